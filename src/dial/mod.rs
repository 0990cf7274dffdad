//! From a URL to an open connection, under one deadline, cancellable at every step.

mod addresses;
mod body;
mod io;
mod resolve;
mod tcp;
mod tls;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
#[cfg(not(shuttle))]
use socket2::Socket;

use crate::config::endpoint::Target;
use crate::connection::socket::StreamSocket;
use crate::connection::transport::TlsEngine;
use crate::error::{Error, ErrorKind};
use crate::sync::threads::Threads;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::WakePair;
use crate::time::Deadline;

use addresses::AddressMemory;
use io::DialIo;
pub(crate) use resolve::Lookups;
pub use resolve::Resolver;
pub(crate) use tcp::TcpOptions;
use tls::Connectors;
pub(crate) use tls::TlsOptions;
#[cfg(not(shuttle))]
use upgrade::UpgradeResponse;

/// What a dial depends on besides its target.
#[derive(Clone)]
pub(crate) struct DialSettings {
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    pub(crate) tcp: TcpOptions,
    pub(crate) tls: TlsOptions,
    /// The number of endpoints that take turns.
    pub(crate) endpoints: usize,
}

impl DialSettings {
    /// The number of hosts whose addresses are remembered, and that are looked up at a time. The
    /// endpoint closure counts as one endpoint, and may name another host for each dial.
    pub(crate) fn hosts_max(&self) -> usize {
        self.endpoints.max(8)
    }
}

/// Dials, one target after the other. Owned by the reader thread.
#[cfg(not(shuttle))]
pub(crate) struct Dialer {
    tcp: TcpOptions,
    lookups: Lookups,
    memory: AddressMemory,
    connectors: Connectors,
    shutdown: Shutdown,
}

/// A connection on which the opening handshake is done.
pub(crate) struct Dialed {
    pub(crate) socket: StreamSocket,
    pub(crate) tls: Option<TlsEngine>,
    /// What came glued to the answer: the first frames.
    pub(crate) leftover: Vec<u8>,
    pub(crate) opening: Opening,
}

/// What is worth telling of an opening handshake.
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
            connectors: Connectors::new(settings.tls, Arc::clone(&threads)),
            lookups: Lookups::new(settings.resolver, hosts_max, threads),
            memory: AddressMemory::new(hosts_max),
        }
    }

    /// Resolves, connects, shakes hands below and above. `offer` is the value of
    /// `Sec-WebSocket-Extensions`.
    pub(crate) fn dial(
        &mut self,
        target: &Target,
        offer: Option<&str>,
        pair: &WakePair,
        deadline: Deadline,
    ) -> Result<Dialed, Error> {
        let io = DialIo { pair, shutdown: &self.shutdown, deadline };
        self.connectors.begin_dial();
        log::debug!("{target}: resolving");
        let candidates = self.lookups.addresses(target, &self.shutdown, deadline)?;
        let addresses = self.memory.order(&target.host, target.port, candidates, self.tcp.bind);
        let memory = &mut self.memory;
        let mut reset = |address| memory.failed(&target.host, target.port, address);
        let (socket, peer) = tcp::connect(target, addresses, &self.tcp, &io, &mut reset)?;
        let connectors = &mut self.connectors;
        let (tls, answer) = match shake_hands(connectors, target, offer, &socket, &io) {
            Ok(done) => done,
            Err(error) => {
                self.answered_wrongly(target, peer);
                return Err(error);
            }
        };
        self.memory.succeeded(&target.host, target.port, peer);
        socket
            .set_nonblocking(false)
            .map_err(|error| Error::caused(ErrorKind::Io, "setting up the socket", error))?;
        // There `shutdown` does not wake a blocked `recv`: it has to look by itself.
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
        Ok(Dialed {
            socket: StreamSocket::new(socket, self.tcp.receiving),
            tls,
            leftover: answer.leftover,
            opening,
        })
    }

    /// The server at `address` failed the dial after TCP had connected. Its other addresses are
    /// tried first from now on.
    pub(crate) fn answered_wrongly(&mut self, target: &Target, address: SocketAddr) {
        self.memory.failed(&target.host, target.port, address);
    }
}

/// Makes the TLS handshake, if there is one, and the opening handshake.
#[cfg(not(shuttle))]
fn shake_hands(
    connectors: &mut Connectors,
    target: &Target,
    offer: Option<&str>,
    socket: &Socket,
    io: &DialIo<'_>,
) -> Result<(Option<TlsEngine>, UpgradeResponse), Error> {
    let mut tls = None;
    if target.is_tls {
        log::debug!("{target}: TLS handshake");
        tls = Some(connectors.handshake(target, socket, io)?);
    }
    log::debug!("{target}: upgrade");
    let mut stream = upgrade::Stream { socket, tls: tls.as_mut() };
    let answer = upgrade::upgrade(&mut stream, target, offer, io)?;
    Ok((tls, answer))
}

/// For the fuzz target of the response head.
#[cfg(all(feature = "internals", unix))]
pub(crate) fn fuzz_head(bytes: &[u8]) {
    upgrade::fuzz_head(bytes);
}

/// For the fuzz target of the address memory.
#[cfg(all(feature = "internals", unix))]
pub(crate) fn fuzz_addresses(bytes: &[u8]) {
    addresses::fuzz_addresses(bytes);
}
