//! Opens connections: resolves, connects, and makes the TLS and opening handshakes. One deadline
//! holds for all of it, and every step can be canceled.

mod addresses;
mod body;
mod io;
mod resolve;
mod response;
mod stream;
mod tcp;
mod tls;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
#[cfg(not(shuttle))]
use socket2::Socket;

use crate::config::endpoint::{Target, TargetLabel};
use crate::connection::socket::StreamSocket;
use crate::connection::transport::TlsEngine;
use crate::error::{Error, ErrorKind};
use crate::name::ClientName;
use crate::sync::threads::Threads;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::WakePair;
use crate::time::Deadline;

use addresses::AddressMemory;
use io::DialIo;
pub(crate) use resolve::Lookups;
pub use resolve::Resolver;
#[cfg(not(shuttle))]
use stream::Stream;
pub(crate) use tcp::TcpOptions;
use tls::Connectors;
pub(crate) use tls::TlsOptions;
#[cfg(not(shuttle))]
use upgrade::UpgradeResponse;

/// The settings of a client's dials.
#[derive(Clone)]
pub(crate) struct DialSettings {
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    pub(crate) tcp: TcpOptions,
    pub(crate) tls: TlsOptions,
    /// The number of endpoints that take turns.
    pub(crate) endpoints: usize,
}

impl DialSettings {
    /// Returns the number of hosts whose failed addresses are remembered, and whose lookups may
    /// hang at the same time. An endpoint closure counts as one endpoint, but may name more hosts.
    pub(crate) fn hosts_max(&self) -> usize {
        self.endpoints.max(8)
    }
}

/// Dials one target after another. Owned by the reader thread.
#[cfg(not(shuttle))]
pub(crate) struct Dialer {
    tcp: TcpOptions,
    lookups: Lookups,
    memory: AddressMemory,
    connectors: Connectors,
    shutdown: Shutdown,
    client: ClientName,
}

/// A connection on which the opening handshake is done.
pub(crate) struct Dialed {
    pub(crate) socket: StreamSocket,
    pub(crate) tls: Option<TlsEngine>,
    /// The bytes that followed the response: the first frames, if any.
    pub(crate) leftover: Vec<u8>,
    pub(crate) opening: Opening,
}

/// The parts of an opening handshake that the client reports or needs.
pub(crate) struct Opening {
    pub(crate) peer: SocketAddr,
    pub(crate) subprotocol: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) extensions: Vec<String>,
}

#[cfg(not(shuttle))]
impl Dialer {
    pub(crate) fn new(settings: DialSettings, threads: Arc<Threads>) -> Self {
        let hosts_max = settings.hosts_max();
        Dialer {
            tcp: settings.tcp,
            shutdown: threads.shutdown_signal(),
            client: threads.client().clone(),
            connectors: Connectors::new(settings.tls, Arc::clone(&threads)),
            lookups: Lookups::new(settings.resolver, hosts_max, threads),
            memory: AddressMemory::new(hosts_max),
        }
    }

    /// Opens a connection to `target`: resolve, TCP, TLS, upgrade. `offer` is the value of
    /// `Sec-WebSocket-Extensions`. A 400 that is not final says nothing against the address: the
    /// next dial begins with it again.
    ///
    /// # Errors
    /// `Stopped`; `Timeout` at the deadline; `Resolve`, `Connect`, `Tls`, `Upgrade`, `Http` or `Io`
    /// when that step fails.
    pub(crate) fn dial(
        &mut self,
        target: &Target,
        offer: Option<&str>,
        is_400_final: bool,
        pair: &WakePair,
        deadline: Deadline,
    ) -> Result<Dialed, Error> {
        let io = DialIo { pair, shutdown: &self.shutdown, deadline };
        self.connectors.begin_dial();
        let label = self.client.label(target);
        log::debug!("{label}: resolving");
        let candidates = self.lookups.addresses(target, &self.shutdown, deadline)?;
        let addresses = self.memory.order(&target.host, target.port, candidates, self.tcp.bind);
        let memory = &mut self.memory;
        let mut reset = |address| memory.failed(&target.host, target.port, address);
        let (socket, peer) = tcp::connect(&label, addresses, &self.tcp, &io, &mut reset)?;
        let connectors = &mut self.connectors;
        let (tls, answer) = match shake_hands(connectors, &label, offer, &socket, &io) {
            Ok(done) => done,
            Err(error) => {
                if is_400_final || error.status() != Some(StatusCode::BAD_REQUEST) {
                    self.remember_failure(target, peer);
                }
                return Err(error);
            }
        };
        self.memory.succeeded(&target.host, target.port, peer);
        socket
            .set_nonblocking(false)
            .map_err(|error| Error::caused(ErrorKind::Io, "setting up the socket", error))?;
        // On Windows, `shutdown` does not wake a blocked `recv`, which therefore has to time out.
        #[cfg(windows)]
        socket
            .set_read_timeout(Some(std::time::Duration::from_millis(100)))
            .map_err(|error| Error::caused(ErrorKind::Io, "setting up the socket", error))?;
        let opening = Opening {
            peer,
            subprotocol: answer.subprotocol,
            headers: answer.headers,
            extensions: answer.extensions,
        };
        let socket = StreamSocket::new(socket, self.tcp.receiving);
        #[cfg(target_os = "linux")]
        if let Err(error) = socket.record_times() {
            // The connection is none the worse for it.
            log::warn!("{label}: the kernel notes no time of what comes: {error}");
        }
        Ok(Dialed { socket, tls, leftover: answer.leftover, opening })
    }

    /// Remembers that the dial of `address` has failed after TCP had connected, so that the other
    /// addresses of the target come first.
    pub(crate) fn remember_failure(&mut self, target: &Target, address: SocketAddr) {
        self.memory.failed(&target.host, target.port, address);
    }
}

/// Makes the TLS handshake, if there is one, and the opening handshake.
#[cfg(not(shuttle))]
fn shake_hands(
    connectors: &mut Connectors,
    label: &TargetLabel<'_>,
    offer: Option<&str>,
    socket: &Socket,
    io: &DialIo<'_>,
) -> Result<(Option<TlsEngine>, UpgradeResponse), Error> {
    let target = label.target;
    let mut tls = None;
    if target.is_tls {
        log::debug!("{label}: TLS handshake");
        tls = Some(connectors.handshake(label, socket, io)?);
    }
    log::debug!("{label}: upgrade");
    let mut stream = Stream { socket, tls: tls.as_mut() };
    let answer = upgrade::upgrade(&mut stream, target, offer, io)?;
    Ok((tls, answer))
}

/// Runs the fuzz target of the response head.
#[cfg(all(feature = "internals", unix))]
pub(crate) fn fuzz_head(bytes: &[u8]) {
    upgrade::fuzz_head(bytes);
}

/// Runs the fuzz target of refusals.
#[cfg(all(feature = "internals", unix))]
pub(crate) fn fuzz_body(bytes: &[u8]) {
    body::fuzz_body(bytes);
}

/// Runs the fuzz target of the address memory.
#[cfg(all(feature = "internals", unix))]
pub(crate) fn fuzz_addresses(bytes: &[u8]) {
    addresses::fuzz_addresses(bytes);
}
