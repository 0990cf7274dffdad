//! Asks a proxy for a tunnel: by `CONNECT` (RFC 9110 section 9.3.6) or SOCKS 5 (RFC 1928).

use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64;
use http::StatusCode;

use crate::config::endpoint::Target;
use crate::config::proxy::{Credentials, ProxyKind, ProxyServer};
use crate::dial::io::DialIo;
use crate::dial::response::{read_response, refusal};
use crate::dial::stream::Stream;
use crate::error::{Error, ErrorKind};

/// The server that a proxy is to connect to.
pub(super) enum Destination<'a> {
    /// The proxy resolves the host.
    Host(&'a Target),
    /// This machine has resolved it.
    Address(SocketAddr),
}

/// Asks the proxy at the other end of `stream` for a tunnel. Returns the bytes that followed its
/// answer: they are the server's.
///
/// # Errors
/// `Stopped`; `Timeout` at the deadline; `Proxy` when it refuses, or answers wrongly; `Io` or `Tls`
/// when the connection to it fails.
pub(super) fn open_tunnel(
    stream: &mut Stream<'_>,
    proxy: &ProxyServer,
    destination: &Destination<'_>,
    io: &DialIo<'_>,
) -> Result<Vec<u8>, Error> {
    let conversation = Conversation { stream, proxy, io, received: Vec::new() };
    match proxy.kind {
        ProxyKind::Http => conversation.connect(destination),
        ProxyKind::Socks5 { .. } => conversation.socks5(destination),
    }
}

struct Conversation<'a, 's> {
    stream: &'a mut Stream<'s>,
    proxy: &'a ProxyServer,
    io: &'a DialIo<'a>,
    /// Bytes that have come and have not been looked at.
    received: Vec<u8>,
}

impl Conversation<'_, '_> {
    fn connect(mut self, destination: &Destination<'_>) -> Result<Vec<u8>, Error> {
        let Conversation { stream, proxy, io, .. } = &mut self;
        let request = connect_request(destination, proxy.credentials.as_ref());
        let context = || format!("CONNECT through the proxy {proxy}");
        stream.send(&request, io, &context)?;
        let broken = |what: &str| broken(proxy, what);
        match read_response(stream, Vec::new(), io, &context, &broken)? {
            // A response of this kind has no body, whatever its headers say.
            (head, Some(leftover)) if head.status.is_success() => Ok(leftover),
            (head, None) if head.status.is_success() => {
                Err(broken("with a head of more than 64 KiB or 128 headers"))
            }
            (head, rest) => {
                // tinyproxy answers wrong credentials with a server's 401.
                let is_login =
                    [StatusCode::PROXY_AUTHENTICATION_REQUIRED, StatusCode::UNAUTHORIZED]
                        .contains(&head.status);
                let (response, retry_after) = refusal(stream, head, rest, io, &context);
                let error = Error::refused_by_proxy(&proxy.to_string(), response, retry_after);
                Err(if is_login { error.permanent() } else { error })
            }
        }
    }

    fn socks5(mut self, destination: &Destination<'_>) -> Result<Vec<u8>, Error> {
        const NO_LOGIN: u8 = 0;
        const PASSWORD: u8 = 2;
        const NONE_OF_THESE: u8 = 0xff;
        let proxy = self.proxy;
        let request = socks5_request(destination);
        let credentials = proxy.credentials.as_ref();
        match credentials {
            None => self.send(&[VERSION, 1, NO_LOGIN])?,
            Some(_) => self.send(&[VERSION, 2, NO_LOGIN, PASSWORD])?,
        }
        match (self.receive()?, credentials) {
            ([VERSION, NO_LOGIN], _) => {}
            ([VERSION, PASSWORD], Some(credentials)) => {
                self.send(&login(credentials))?;
                let [_, status] = self.receive()?;
                if status != 0 {
                    return Err(refused(proxy, "the user or the password").permanent());
                }
            }
            ([VERSION, NONE_OF_THESE], Some(_)) => {
                return Err(refused(proxy, "to be logged in to by a password").permanent());
            }
            ([VERSION, NONE_OF_THESE], None) => {
                return Err(refused(proxy, "clients without credentials").permanent());
            }
            ([VERSION, _], _) => return Err(broken(proxy, "with a way to log in not offered")),
            _ => return Err(broken(proxy, NOT_SOCKS)),
        }
        self.send(&request)?;
        let [version, status, _, kind] = self.receive()?;
        if version != VERSION {
            return Err(broken(proxy, NOT_SOCKS));
        }
        if status != 0 {
            return Err(refused(proxy, reason(status)));
        }
        // The address from which the proxy has connected, which is of no use.
        match kind {
            IPV4 => drop(self.receive::<6>()?),
            IPV6 => drop(self.receive::<18>()?),
            NAME => {
                let [len] = self.receive()?;
                self.receive_all(usize::from(len) + 2)?;
            }
            _ => return Err(broken(proxy, "with an address of an unknown kind")),
        }
        Ok(self.received)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let proxy = self.proxy;
        self.stream.send(bytes, self.io, &|| context(proxy))
    }

    fn receive<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.receive_all(N)?);
        Ok(bytes)
    }

    fn receive_all(&mut self, count: usize) -> Result<Vec<u8>, Error> {
        let proxy = self.proxy;
        while self.received.len() < count {
            if self.stream.receive(&mut self.received, self.io, &|| context(proxy))? == 0 {
                return Err(broken(proxy, "by ending the connection"));
            }
        }
        let rest = self.received.split_off(count);
        Ok(std::mem::replace(&mut self.received, rest))
    }
}

/// The version of SOCKS.
const VERSION: u8 = 5;

// The kinds of address (RFC 1928 section 5).
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

const NOT_SOCKS: &str = "with something that is not SOCKS 5";

fn context(proxy: &ProxyServer) -> String {
    format!("asking the proxy {proxy} for a tunnel")
}

fn broken(proxy: &ProxyServer, what: &str) -> Error {
    Error::new(ErrorKind::Proxy, format!("the proxy {proxy} answered {what}"))
}

fn refused(proxy: &ProxyServer, what: &str) -> Error {
    Error::new(ErrorKind::Proxy, format!("the proxy {proxy} refused {what}"))
}

fn connect_request(destination: &Destination<'_>, credentials: Option<&Credentials>) -> Vec<u8> {
    let authority = match destination {
        Destination::Host(target) => target.to_string(),
        Destination::Address(address) => address.to_string(),
    };
    let mut text = format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: tautline/{}\r\n",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(Credentials { user, password }) = credentials {
        let basic = BASE64.encode(format!("{user}:{password}").as_bytes());
        text.push_str(&format!("Proxy-Authorization: Basic {basic}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// The request of RFC 1928 section 4. A name has 255 bytes at most, which has been checked.
fn socks5_request(destination: &Destination<'_>) -> Vec<u8> {
    const CONNECT: u8 = 1;
    let mut request = vec![VERSION, CONNECT, 0];
    let mut put_address = |address: IpAddr| match address {
        IpAddr::V4(address) => {
            request.push(IPV4);
            request.extend(address.octets());
        }
        IpAddr::V6(address) => {
            request.push(IPV6);
            request.extend(address.octets());
        }
    };
    let port = match destination {
        Destination::Address(address) => {
            put_address(address.ip());
            address.port()
        }
        Destination::Host(target) => {
            match target.literal() {
                Some(address) => put_address(address),
                None => {
                    request.push(NAME);
                    request.push(target.host.len() as u8);
                    request.extend(target.host.as_bytes());
                }
            }
            target.port
        }
    };
    request.extend(port.to_be_bytes());
    request
}

/// The request of RFC 1929 section 2. Each part has 255 bytes at most, which has been checked.
fn login(credentials: &Credentials) -> Vec<u8> {
    let mut request = vec![1];
    for part in [&credentials.user, &credentials.password] {
        request.push(part.len() as u8);
        request.extend(part.as_bytes());
    }
    request
}

/// The reason of a refusal (RFC 1928 section 6).
fn reason(status: u8) -> &'static str {
    match status {
        2 => "a connection that its rules do not allow",
        3 => "the connection: the network cannot be reached",
        4 => "the connection: the host cannot be reached",
        5 => "the connection: the server refused it",
        6 => "the connection: it has expired",
        7 => "to connect, because it does not know how",
        8 => "the kind of address",
        _ => "the connection, for a reason of its own",
    }
}
