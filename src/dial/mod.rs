//! From a URL to an open connection, under one deadline, cancellable at every step.

mod io;
mod resolve;
mod tcp;
mod tls;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;

use crate::config::endpoint::Target;
use crate::connection::socket::StreamSocket;
use crate::connection::transport::TlsEngine;
use crate::error::{Error, ErrorKind};
use crate::sync::threads::Threads;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::WakePair;
use crate::time::Deadline;

use io::DialIo;
pub(crate) use resolve::Lookups;
pub use resolve::Resolver;
pub(crate) use tcp::TcpOptions;
use tls::Connectors;
pub(crate) use tls::TlsOptions;

/// What a dial depends on besides its target.
#[derive(Clone)]
pub(crate) struct DialSettings {
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    pub(crate) tcp: TcpOptions,
    pub(crate) tls: TlsOptions,
}

/// Dials, one target after the other. Owned by the reader thread.
#[cfg(not(shuttle))]
pub(crate) struct Dialer {
    tcp: TcpOptions,
    lookups: Lookups,
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
        Dialer {
            tcp: settings.tcp,
            shutdown: threads.shutdown_signal(),
            connectors: Connectors::new(settings.tls, Arc::clone(&threads)),
            lookups: Lookups::new(settings.resolver, threads),
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
        let addresses = self.lookups.addresses(target, &self.shutdown, deadline)?;
        let (socket, peer) = tcp::connect(target, addresses, &self.tcp, &io)?;
        let mut tls = match target.is_tls {
            true => {
                log::debug!("{target}: TLS handshake");
                Some(self.connectors.handshake(target, &socket, &io)?)
            }
            false => None,
        };
        log::debug!("{target}: upgrade");
        let mut stream = upgrade::Stream { socket: &socket, tls: tls.as_mut() };
        let answer = upgrade::upgrade(&mut stream, target, offer, &io)?;
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
}

/// For the fuzz target of the response head.
#[cfg(all(feature = "internals", unix))]
pub(crate) fn fuzz_head(bytes: &[u8]) {
    upgrade::fuzz_head(bytes);
}
