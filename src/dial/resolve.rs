//! Names to addresses, on a thread of its own: `getaddrinfo` cannot be interrupted.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crate::config::endpoint::Target;
use crate::dial::addresses::Candidates;
use crate::error::{Error, ErrorKind};
use crate::sync::channel::{Receiver, bounded};
use crate::sync::panic;
use crate::sync::threads::{JoinTimeout, Threads};
use crate::sync::wait::{Shutdown, Woken, wait};
use crate::time::Deadline;

/// Stop gives a lookup that hangs this long, then reports it late.
const PATIENCE: Duration = Duration::from_millis(20);

/// Resolves host names, in the place of the system's resolver.
///
/// It runs on the thread `taut-resolver`, at most one call at a time for each client. Nothing can
/// interrupt it: a call that hangs is left behind at the end of the dial's budget, and asked for
/// its answer again by the next dial.
pub trait Resolver: Send + Sync {
    /// The addresses of `host`, preferred ones first, each with `port`.
    ///
    /// # Errors
    /// Any: the dial fails with the kind `Resolve`, and is retried. A panic counts as an error.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

impl<F> Resolver for F
where
    F: Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync,
{
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self(host, port)
    }
}

/// `getaddrinfo`.
struct System;

impl Resolver for System {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        (host, port).to_socket_addrs().map(Iterator::collect)
    }
}

/// The lookups of one client, one after the other.
pub(crate) struct Lookups {
    /// `None`: the system's.
    resolver: Option<Arc<dyn Resolver>>,
    threads: Arc<Threads>,
    /// The one that is under way: what was asked, and where the answer will come.
    pending: Option<Pending>,
}

struct Pending {
    host: String,
    port: u16,
    answer: Receiver<io::Result<Candidates>>,
}

impl Lookups {
    pub(crate) fn new(resolver: Option<Arc<dyn Resolver>>, threads: Arc<Threads>) -> Self {
        Lookups { resolver, threads, pending: None }
    }

    /// The addresses of the target: at once if it is an address itself.
    pub(crate) fn addresses(
        &mut self,
        target: &Target,
        shutdown: &Shutdown,
        deadline: Deadline,
    ) -> Result<Candidates, Error> {
        if let Some(literal) = target.literal() {
            return Ok(Candidates::new([SocketAddr::new(literal, target.port)]));
        }
        loop {
            let pending = match self.pending.take() {
                Some(pending) => pending,
                None => self.ask(target)?,
            };
            let is_for_this = pending.host == target.host && pending.port == target.port;
            let result = match wait(shutdown, &pending.answer, Some(deadline.at())) {
                Woken::Received(result) => result,
                Woken::Disconnected => {
                    Err(io::Error::other("the lookup's thread ended without an answer"))
                }
                Woken::Shutdown => return Err(Error::stopped()),
                Woken::TimedOut => {
                    // It hangs. The next dial waits for this same lookup: one thread at most hangs
                    // for each client.
                    self.pending = Some(pending);
                    return Err(deadline.error(&format!("resolving {}", target.host)));
                }
            };
            if !is_for_this {
                continue;
            }
            let caused =
                if self.resolver.is_some() { Error::caused_by_closure } else { Error::caused };
            let addresses = result.map_err(|error| {
                caused(ErrorKind::Resolve, format!("resolving {}", target.host), error)
            })?;
            if addresses.is_empty() {
                return Err(Error::new(
                    ErrorKind::Resolve,
                    format!("{} has no addresses", target.host),
                ));
            }
            return Ok(addresses);
        }
    }

    fn ask(&self, target: &Target) -> Result<Pending, Error> {
        let (host, port) = (target.host.clone(), target.port);
        let resolver = self.resolver.clone().unwrap_or_else(|| Arc::new(System));
        let (tell, answer) = bounded(1);
        let asked = host.clone();
        self.threads.spawn("taut-resolver", JoinTimeout::AtMost(PATIENCE), move || {
            // Cut down here: a dial must not be late for a resolver that returns 200,000 addresses.
            let answer = panic::catch(|| resolver.resolve(&asked, port).map(Candidates::new));
            // Nobody may be waiting any more.
            let _ = tell
                .send(answer.unwrap_or_else(|_| Err(io::Error::other("the resolver panicked"))));
        })?;
        Ok(Pending { host, port, answer })
    }
}
