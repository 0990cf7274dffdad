//! Connects TCP to the first address that answers (RFC 8305).

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::config::endpoint::TargetLabel;
use crate::connection::Receiving;
use crate::dial::io::{DialIo, Interest};
use crate::error::{Error, ErrorKind};
use crate::sync;
use crate::time::after;

/// The next address is tried beside an attempt that has taken this long (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// The options of a client's sockets.
#[derive(Clone, Default)]
pub(crate) struct TcpOptions {
    pub(crate) keepalive: Option<Duration>,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) bind: Option<IpAddr>,
    /// Used by the open connection, not by the dial.
    pub(crate) receiving: Receiving,
}

/// Connects to the first of the addresses that accepts. The socket is non-blocking.
///
/// Calls `reset` with each address that accepted and then reset the connection at once.
///
/// # Errors
/// `Stopped`; `Timeout` at the deadline; `Connect` when no address accepts.
pub(crate) fn connect(
    label: &TargetLabel<'_>,
    mut waiting: VecDeque<SocketAddr>,
    options: &TcpOptions,
    io: &DialIo<'_>,
    reset: &mut dyn FnMut(SocketAddr),
) -> Result<(Socket, SocketAddr), Error> {
    let (tried, target) = (waiting.len(), label.target);
    let context = || format!("connecting to {target}");
    let mut under_way: Vec<(Socket, SocketAddr)> = Vec::new();
    let mut failure =
        io::Error::new(io::ErrorKind::AddrNotAvailable, "no address of the family of bind_address");
    let mut next_at = sync::now();
    loop {
        if sync::now() >= next_at || under_way.is_empty() {
            if let Some(address) = waiting.pop_front() {
                log::debug!("{label}: connecting to {address}");
                match begin(address, options) {
                    Ok(socket) => under_way.push((socket, address)),
                    Err(error) => failure = error,
                }
                next_at = after(sync::now(), STAGGER);
            }
        }
        if under_way.is_empty() {
            if waiting.is_empty() {
                let addresses = if tried == 1 { "address" } else { "addresses" };
                let context = format!("connecting to {target} ({tried} {addresses} tried)");
                return Err(Error::caused(ErrorKind::Connect, context, failure));
            }
            // It was refused at once, so the next address is tried at once.
            continue;
        }
        let sockets: Vec<&Socket> = under_way.iter().map(|(socket, _)| socket).collect();
        let until = (!waiting.is_empty()).then_some(next_at);
        let ready = io.wait(&sockets, Interest::Writing, until, &context)?;
        let mut index = 0;
        for is_ready in ready {
            if !is_ready {
                index += 1;
                continue;
            }
            let (socket, address) = under_way.remove(index);
            match outcome(&socket) {
                Ok(()) => return Ok((socket, address)),
                Err(error) => {
                    if is_reset(&error) {
                        reset(address);
                    }
                    failure = error;
                    next_at = sync::now();
                }
            }
        }
    }
}

/// Starts to connect.
fn begin(address: SocketAddr, options: &TcpOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(idle) = options.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    // Before connecting, because the window is announced in the handshake.
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bind) = options.bind {
        socket.bind(&SockAddr::from(SocketAddr::new(bind, 0)))?;
    }
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => Ok(socket),
        Err(error) if is_under_way(&error) => Ok(socket),
        Err(error) => Err(error),
    }
}

fn is_under_way(error: &io::Error) -> bool {
    #[cfg(unix)]
    let code = Some(rustix::io::Errno::INPROGRESS.raw_os_error());
    #[cfg(not(unix))]
    let code = None;
    error.kind() == io::ErrorKind::WouldBlock
        || error.kind() == io::ErrorKind::Interrupted
        || (code.is_some() && error.raw_os_error() == code)
}

/// Returns the result of an attempt whose socket has become writable.
fn outcome(socket: &Socket) -> io::Result<()> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    let peer = socket.peer_addr()?.as_socket();
    // A loopback port without a listener may become the port of our own socket, which then connects
    // to itself.
    if peer.is_some() && peer == socket.local_addr()?.as_socket() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// Returns `true` if the connection was made before it failed.
fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn every_option_is_set_on_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let dial = |options: TcpOptions| begin(address, &options).expect("it begins");

        let socket = dial(TcpOptions::default());
        assert!(socket.tcp_nodelay().expect("an option"));
        assert!(!socket.keepalive().expect("an option"));

        let idle = Duration::from_secs(123);
        let socket = dial(TcpOptions { keepalive: Some(idle), ..TcpOptions::default() });
        assert!(socket.keepalive().expect("an option"));
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), idle);

        // Linux doubles the size, to have room for its own records.
        let bytes = 30_000;
        let is_as_asked =
            |size: io::Result<usize>| [bytes, 2 * bytes].contains(&size.expect("an option"));
        let socket = dial(TcpOptions { receive_buffer: Some(bytes), ..TcpOptions::default() });
        assert!(is_as_asked(socket.recv_buffer_size()) && !is_as_asked(socket.send_buffer_size()));
        let socket = dial(TcpOptions { send_buffer: Some(bytes), ..TcpOptions::default() });
        assert!(is_as_asked(socket.send_buffer_size()) && !is_as_asked(socket.recv_buffer_size()));

        // Linux has all of 127.0.0.0/8.
        #[cfg(target_os = "linux")]
        {
            let bind = "127.0.0.2".parse().expect("an address");
            let socket = dial(TcpOptions { bind: Some(bind), ..TcpOptions::default() });
            let own = socket.local_addr().expect("it is bound").as_socket();
            assert_eq!(own.map(|own| own.ip()), Some(bind));
        }
    }
}
