//! Opens connections: resolves, connects, asks a proxy for a tunnel, and makes the TLS and opening
//! handshakes. One deadline holds for all of it, and every step can be canceled.

mod addresses;
mod body;
mod io;
mod pin;
mod proxy;
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
use crate::config::proxy::Proxies;
#[cfg(not(shuttle))]
use crate::config::proxy::{ProxyKind, ProxyServer};
use crate::connection::socket::StreamSocket;
#[cfg(not(shuttle))]
use crate::connection::tls_connection::TlsBuffers;
use crate::connection::tls_connection::TlsConnection;
use crate::error::{Error, ErrorKind};
use crate::name::ClientName;
use crate::sync::threads::Threads;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::WakePair;
use crate::time::Deadline;

use addresses::AddressMemory;
use io::DialIo;
#[cfg(not(shuttle))]
use proxy::Destination;
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
    pub(crate) proxies: Option<Arc<Proxies>>,
    pub(crate) tcp: TcpOptions,
    pub(crate) tls: TlsOptions,
    /// The number of endpoints that take turns.
    pub(crate) endpoints: usize,
}

impl DialSettings {
    /// Returns the number of hosts whose failed addresses are remembered, and whose lookups may
    /// hang at the same time. An endpoint closure counts as one endpoint, but may name more hosts.
    pub(crate) fn hosts_max(&self) -> usize {
        // The proxies for `ws://` and `wss://` have hosts, too.
        let proxies = if self.proxies.is_some() { 2 } else { 0 };
        self.endpoints.max(8) + proxies
    }
}

/// Dials one target after another. Owned by the reader thread.
#[cfg(not(shuttle))]
pub(crate) struct Dialer {
    tcp: TcpOptions,
    proxies: Option<Arc<Proxies>>,
    lookups: Lookups,
    memory: AddressMemory,
    /// The addresses of the last dial: the one that a proxy was given, and the one to which TCP
    /// had connected.
    tried: Vec<Tried>,
    connectors: Connectors,
    /// For HTTPS proxies.
    proxy_connectors: Connectors,
    shutdown: Shutdown,
    client: ClientName,
}

/// A connection on which the opening handshake is done.
pub(crate) struct Dialed {
    pub(crate) socket: StreamSocket,
    pub(crate) tls: Option<TlsConnection>,
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
            proxies: settings.proxies,
            shutdown: threads.shutdown_signal(),
            client: threads.client().clone(),
            proxy_connectors: Connectors::new(settings.tls.for_proxy(), Arc::clone(&threads)),
            connectors: Connectors::new(settings.tls, Arc::clone(&threads)),
            lookups: Lookups::new(settings.resolver, hosts_max, threads),
            memory: AddressMemory::new(hosts_max),
            tried: Vec::new(),
        }
    }

    /// Opens a connection to `target`: resolve, TCP, tunnel, TLS, upgrade. `offer` is the value of
    /// `Sec-WebSocket-Extensions`. A 400 that is not final says nothing against the address: the
    /// next dial begins with it again.
    ///
    /// # Errors
    /// `Stopped`; `Timeout` at the deadline; `Resolve`, `Connect`, `Proxy`, `Tls`, `Upgrade`,
    /// `Http` or `Io` when that step fails.
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
        self.proxy_connectors.begin_dial();
        let proxies = self.proxies.clone();
        let proxy = match &proxies {
            Some(proxies) => proxies.for_target(target)?,
            None => None,
        };
        let first_hop = proxy.map_or(target, |proxy| &proxy.target);
        let label = self.client.label(target);
        self.tried.clear();
        let resolved = match proxy {
            Some(ProxyServer { kind: ProxyKind::Socks5 { has_local_dns: true }, .. }) => {
                log::debug!("{label}: resolving");
                let candidates = self.lookups.addresses(target, &self.shutdown, deadline)?;
                let mut order = self.memory.order(&target.host, target.port, candidates, None);
                order.pop_front()
            }
            _ => None,
        };
        let hop_label = self.client.label(first_hop);
        log::debug!("{hop_label}: resolving");
        let candidates = self.lookups.addresses(first_hop, &self.shutdown, deadline)?;
        let (host, port) = (&first_hop.host, first_hop.port);
        let addresses = self.memory.order(host, port, candidates, self.tcp.bind);
        let memory = &mut self.memory;
        let mut reset = |address| memory.failed(host, port, address);
        let (socket, peer) = tcp::connect(&hop_label, addresses, &self.tcp, &io, &mut reset)?;
        self.tried.extend(resolved.map(|address| Tried::new(target, address)));
        self.tried.push(Tried::new(first_hop, peer));
        let tunnel = match proxy {
            None => Ok(Tunnel::default()),
            Some(proxy) => {
                let destination = match resolved {
                    Some(address) => Destination::Address(address),
                    None => Destination::Host(target),
                };
                log::debug!("{label}: through the proxy {proxy}");
                let connectors = &mut self.proxy_connectors;
                open_tunnel(connectors, &hop_label, proxy, &destination, &socket, &io)
            }
        };
        let tunnel = match tunnel {
            Ok(tunnel) => tunnel,
            Err(error) => {
                // It may be the proxy's fault, or that of the address that it was given.
                self.remember_failure();
                return Err(error);
            }
        };
        let connectors = &mut self.connectors;
        let (tls, answer) = match shake_hands(connectors, &label, offer, &socket, tunnel, &io) {
            Ok(done) => done,
            Err(error) => {
                if is_400_final || !error.is_refused_with(StatusCode::BAD_REQUEST) {
                    self.remember_failure();
                }
                return Err(error);
            }
        };
        for Tried { host, port, address } in &self.tried {
            self.memory.succeeded(host, *port, *address);
        }
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

    /// Remembers that the last dial has failed after TCP had connected, so that other addresses
    /// come first.
    pub(crate) fn remember_failure(&mut self) {
        for Tried { host, port, address } in &self.tried {
            self.memory.failed(host, *port, *address);
        }
    }
}

/// An address of a host, which a dial has tried.
#[cfg(not(shuttle))]
struct Tried {
    host: String,
    port: u16,
    address: SocketAddr,
}

#[cfg(not(shuttle))]
impl Tried {
    fn new(target: &Target, address: SocketAddr) -> Self {
        Tried { host: target.host.clone(), port: target.port, address }
    }
}

/// The way to the server, behind TCP.
#[cfg(not(shuttle))]
#[derive(Default)]
struct Tunnel {
    /// The TLS connection to an HTTPS proxy.
    outer: Option<TlsConnection>,
    /// The bytes that the server has sent already.
    received: Vec<u8>,
}

/// Asks the proxy at the other end of `socket` for a tunnel.
#[cfg(not(shuttle))]
fn open_tunnel(
    connectors: &mut Connectors,
    label: &TargetLabel<'_>,
    proxy: &ProxyServer,
    destination: &Destination<'_>,
    socket: &Socket,
    io: &DialIo<'_>,
) -> Result<Tunnel, Error> {
    let mut outer = None;
    if proxy.target.is_tls {
        log::debug!("{label}: TLS handshake");
        outer = Some(connectors.handshake(label, socket, TlsBuffers::default(), io)?);
    }
    let mut stream = Stream { socket, tls: outer.as_mut() };
    let received = proxy::open_tunnel(&mut stream, proxy, destination, io)?;
    Ok(Tunnel { outer, received })
}

/// Makes the TLS handshake, if there is one, and the opening handshake.
#[cfg(not(shuttle))]
fn shake_hands(
    connectors: &mut Connectors,
    label: &TargetLabel<'_>,
    offer: Option<&str>,
    socket: &Socket,
    tunnel: Tunnel,
    io: &DialIo<'_>,
) -> Result<(Option<TlsConnection>, UpgradeResponse), Error> {
    let target = label.target;
    let Tunnel { outer, received } = tunnel;
    let (mut tls, received) = match target.is_tls {
        false => (outer, received),
        true => {
            log::debug!("{label}: TLS handshake");
            let buffers = TlsBuffers::in_tunnel(outer, received);
            (Some(connectors.handshake(label, socket, buffers, io)?), Vec::new())
        }
    };
    log::debug!("{label}: upgrade");
    let mut stream = Stream { socket, tls: tls.as_mut() };
    let answer = upgrade::upgrade(&mut stream, target, offer, received, io)?;
    Ok((tls, answer))
}

/// Runs the fuzz target of the response head.
#[cfg(all(feature = "_internals", unix))]
pub(crate) fn fuzz_head(bytes: &[u8]) {
    upgrade::fuzz_head(bytes);
}

/// Runs the fuzz target of refusals.
#[cfg(all(feature = "_internals", unix))]
pub(crate) fn fuzz_body(bytes: &[u8]) {
    body::fuzz_body(bytes);
}

/// Runs the fuzz target of the address memory.
#[cfg(all(feature = "_internals", unix))]
pub(crate) fn fuzz_addresses(bytes: &[u8]) {
    addresses::fuzz_addresses(bytes);
}
