//! Looks up host names. Each lookup has a thread of its own, because nothing can interrupt
//! `getaddrinfo`.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use crate::config::endpoint::Target;
use crate::dial::addresses::Candidates;
use crate::error::{Error, ErrorKind};
use crate::sync::channel::{Receiver, bounded};
use crate::sync::panic;
use crate::sync::threads::{JoinTimeout, Threads};
use crate::sync::wait::{Shutdown, Woken, wait};
use crate::time::Deadline;

/// A stop waits this long at most for a lookup, and then reports it as late.
const JOIN_TIMEOUT_MAX: Duration = Duration::from_millis(200);

/// A resolver of host names that replaces the system's.
///
/// It is called on the thread `taut-resolver`. Nothing can interrupt a call: one that hangs is left
/// behind when the dial times out, and the next dial of that host and port waits for it instead of
/// making another. Calls for different hosts overlap only while one of them hangs.
pub trait Resolver: Send + Sync {
    /// Returns the addresses of `host`, each with its port, the preferred ones first.
    ///
    /// A dial tries at most 16 of them, and those last that accepted TCP and then failed an earlier
    /// dial.
    ///
    /// # Errors
    /// The dial fails with the kind `Resolve` on any error, and is retried. A panic counts as an
    /// error.
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

/// The system's resolver, `getaddrinfo`.
struct System;

impl Resolver for System {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        (host, port).to_socket_addrs().map(Iterator::collect)
    }
}

/// The lookups of one client: at most one at a time for each host and port.
pub(crate) struct Lookups {
    /// The program's resolver, or `None` for the system's.
    resolver: Option<Arc<dyn Resolver>>,
    threads: Arc<Threads>,
    /// The lookups whose dial timed out. The next dial of the same host takes the answer, so that
    /// a lookup that is always slower than a dial is of use, too.
    pending: Vec<Pending>,
    pending_max: usize,
}

/// A lookup that has been started.
struct Pending {
    host: String,
    port: u16,
    answer: Receiver<io::Result<Candidates>>,
}

impl Lookups {
    /// Leaves behind at most `pending_max` lookups that hang.
    pub(crate) fn new(
        resolver: Option<Arc<dyn Resolver>>,
        pending_max: usize,
        threads: Arc<Threads>,
    ) -> Self {
        Lookups { resolver, threads, pending: Vec::new(), pending_max }
    }

    /// Returns the addresses of the target, at once if its host is an address.
    ///
    /// # Errors
    /// `Stopped`; `Timeout` at the deadline; `Resolve` when there are no addresses, or when too
    /// many lookups of other hosts hang.
    pub(crate) fn addresses(
        &mut self,
        target: &Target,
        shutdown: &Shutdown,
        deadline: Deadline,
    ) -> Result<Candidates, Error> {
        if let Some(literal) = target.literal() {
            return Ok(Candidates::new([SocketAddr::new(literal, target.port)]));
        }
        let context = || format!("resolving {}", target.host);
        let known = self.pending.iter().position(|pending| pending.is_of(target));
        let pending = match known {
            Some(index) => self.pending.swap_remove(index),
            None => self.start(target)?,
        };
        let result = match wait(shutdown, &pending.answer, Some(deadline.at())) {
            Woken::Received(result) => result,
            Woken::Disconnected => {
                Err(io::Error::other("the lookup's thread ended without an answer"))
            }
            Woken::Shutdown => return Err(Error::stopped()),
            Woken::TimedOut => {
                self.pending.push(pending);
                return Err(deadline.error(&context()));
            }
        };
        let caused = if self.resolver.is_some() { Error::caused_by_closure } else { Error::caused };
        let candidates = result.map_err(|error| caused(ErrorKind::Resolve, context(), error))?;
        if candidates.is_empty() {
            let context = format!("{} has no addresses", target.host);
            return Err(Error::new(ErrorKind::Resolve, context));
        }
        Ok(candidates)
    }

    fn start(&mut self, target: &Target) -> Result<Pending, Error> {
        if self.pending.len() >= self.pending_max {
            // Only an endpoint closure can name more hosts than this.
            self.pending.retain(Pending::is_under_way);
        }
        if self.pending.len() >= self.pending_max {
            let context = format!(
                "resolving {}: {} lookups of other hosts hang",
                target.host,
                self.pending.len()
            );
            return Err(Error::new(ErrorKind::Resolve, context));
        }
        let (host, port) = (target.host.clone(), target.port);
        let resolver = self.resolver.clone().unwrap_or_else(|| Arc::new(System));
        let (tell, answer) = bounded(1);
        let asked = host.clone();
        self.threads.spawn("taut-resolver", JoinTimeout::AtMost(JOIN_TIMEOUT_MAX), move || {
            // `Candidates` bounds the addresses here: a dial or a stop must not be late because a
            // resolver returns 200,000 of them.
            let answer = panic::catch(|| resolver.resolve(&asked, port).map(Candidates::new))
                .unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")));
            // The client may be gone.
            let _ = tell.send(answer);
        })?;
        Ok(Pending { host, port, answer })
    }
}

impl Pending {
    fn is_of(&self, target: &Target) -> bool {
        self.port == target.port && self.host == target.host
    }

    /// Returns `false` if the answer has come. It is lost then.
    fn is_under_way(&self) -> bool {
        matches!(self.answer.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout))
    }
}
