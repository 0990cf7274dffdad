//! Dials through proxies, against proxies of our own that can lie. Real ones are asked in
//! `interop`.

use std::io::{self, ErrorKind as IoErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use tautline::testing::TestServer;
use tautline::{Builder, Client, Error, ErrorKind, Proxy, Timeout};

use crate::support::{MS, SOON, dial_failed, echo, message, opened, stopped};

/// The request of a client, or its credentials.
type Asked = String;

trait ReadWrite: Read + Write + Send {
    /// Sends a close_notify, and no end of TCP.
    fn end_tls(&mut self) -> io::Result<()>;
}

impl ReadWrite for TcpStream {
    fn end_tls(&mut self) -> io::Result<()> {
        unreachable!("it is plain")
    }
}

impl ReadWrite for native_tls::TlsStream<TcpStream> {
    fn end_tls(&mut self) -> io::Result<()> {
        self.shutdown()
    }
}

/// A client of a proxy.
struct Guest {
    stream: Box<dyn ReadWrite>,
    /// Below TLS.
    socket: TcpStream,
    asked: crossbeam_channel::Sender<Asked>,
}

/// A proxy on loopback, whose script is run for each client. It returns the address to relay to.
struct TestProxy {
    address: SocketAddr,
    asked: Receiver<Asked>,
    is_over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// The time after which a relay looks at the other direction.
const GLANCE: Duration = Duration::from_millis(2);

impl TestProxy {
    fn start(
        is_tls: bool,
        script: impl Fn(&mut Guest) -> io::Result<SocketAddr> + Send + Sync + 'static,
    ) -> Self {
        TestProxy::at((Ipv4Addr::LOCALHOST, 0).into(), is_tls, script)
    }

    fn at(
        address: SocketAddr,
        is_tls: bool,
        script: impl Fn(&mut Guest) -> io::Result<SocketAddr> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("it listens");
        let (tell, asked) = unbounded();
        let is_over = Arc::new(AtomicBool::new(false));
        let (script, over) = (Arc::new(script), Arc::clone(&is_over));
        let accepting = thread::spawn(move || {
            let mut guests = Vec::new();
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { break };
                let (script, asked, over) = (Arc::clone(&script), tell.clone(), Arc::clone(&over));
                guests.push(thread::spawn(move || {
                    // A guest that hangs up ends its script.
                    let _ = serve(stream, is_tls, asked, &*script, &over);
                }));
            }
            guests.into_iter().for_each(|guest| guest.join().expect("no script panics"));
        });
        TestProxy { address, asked, is_over, accepting: Some(accepting) }
    }

    fn asked(&self) -> String {
        self.asked.recv_timeout(SOON).expect("it is asked")
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let accepting = self.accepting.take().expect("it is dropped once");
        assert!(accepting.join().is_ok() || thread::panicking());
    }
}

fn serve(
    stream: TcpStream,
    is_tls: bool,
    asked: crossbeam_channel::Sender<Asked>,
    script: &dyn Fn(&mut Guest) -> io::Result<SocketAddr>,
    is_over: &AtomicBool,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    let socket = stream.try_clone()?;
    let stream: Box<dyn ReadWrite> = match is_tls {
        false => Box::new(stream),
        true => Box::new(acceptor().accept(stream).map_err(io::Error::other)?),
    };
    let mut guest = Guest { stream, socket, asked };
    let mut server = TcpStream::connect(script(&mut guest)?)?;
    guest.relay(&mut server, &mut |_| {}, is_over)
}

/// Returns `false` at the end of the stream. `change` may change what goes by.
fn relay(
    from: &mut dyn Read,
    to: &mut dyn Write,
    change: &mut dyn FnMut(&mut [u8]),
) -> io::Result<bool> {
    let mut bytes = [0; 4096];
    match from.read(&mut bytes) {
        Ok(count) => {
            change(&mut bytes[..count]);
            to.write_all(&bytes[..count]).map(|()| count > 0)
        }
        Err(error) if matches!(error.kind(), IoErrorKind::WouldBlock | IoErrorKind::TimedOut) => {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

fn acceptor() -> native_tls::TlsAcceptor {
    let identity = native_tls::Identity::from_pkcs8(
        include_bytes!("../../src/testing/certificates/localhost.pem"),
        include_bytes!("../../src/testing/certificates/localhost.key"),
    );
    native_tls::TlsAcceptor::new(identity.expect("a pair")).expect("it is enough")
}

impl Guest {
    /// Relays until one side ends, or the test does. `change` may change what the server sends.
    fn relay(
        &mut self,
        server: &mut TcpStream,
        change: &mut dyn FnMut(&mut [u8]),
        is_over: &AtomicBool,
    ) -> io::Result<()> {
        server.set_nodelay(true)?;
        server.set_read_timeout(Some(GLANCE))?;
        self.socket.set_read_timeout(Some(GLANCE))?;
        while !is_over.load(Ordering::SeqCst) {
            if !relay(&mut self.stream, server, &mut |_| {})?
                || !relay(server, &mut self.stream, change)?
            {
                break;
            }
        }
        Ok(())
    }

    /// Reads a CONNECT, and tells of it and of its credentials.
    fn read_connect(&mut self) -> io::Result<Asked> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.read::<1>()?[0]);
        }
        let head = String::from_utf8(head).expect("it is text");
        let mut fields = head.split("\r\n");
        let mut asked = fields.next().unwrap_or_default().to_owned();
        let login = fields.find_map(|field| field.strip_prefix("Proxy-Authorization: "));
        login.into_iter().for_each(|login| asked.push_str(&format!(" {login}")));
        self.tell(asked.clone());
        Ok(asked)
    }

    /// Answers a request of SOCKS 5, tells of it, and returns the host and port. With `login`, it
    /// asks for user and password.
    fn read_socks(&mut self, login: bool) -> io::Result<Asked> {
        let [version, methods] = self.read()?;
        let mut offered = vec![0; methods.into()];
        self.stream.read_exact(&mut offered)?;
        assert_eq!(version, 5);
        if login {
            assert!(offered.contains(&2), "{offered:?}");
            self.write(&[5, 2])?;
            let [_, len] = self.read()?;
            let user = self.text(len)?;
            let [len] = self.read()?;
            let password = self.text(len)?;
            self.tell(format!("{user}:{password}"));
            self.write(&[1, 0])?;
        } else {
            self.write(&[5, 0])?;
        }
        let [_, command, _, kind] = self.read()?;
        let host = match kind {
            1 => Ipv4Addr::from(self.read::<4>()?).to_string(),
            4 => format!("[{}]", Ipv6Addr::from(self.read::<16>()?)),
            _ => {
                let [len] = self.read()?;
                self.text(len)?
            }
        };
        let port = u16::from_be_bytes(self.read()?);
        self.tell(format!("{command} {host}:{port}"));
        Ok(format!("{host}:{port}"))
    }

    fn read<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self, len: u8) -> io::Result<String> {
        let mut bytes = vec![0; len.into()];
        self.stream.read_exact(&mut bytes)?;
        Ok(String::from_utf8(bytes).expect("it is text"))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    fn tell(&self, asked: String) {
        // The test may be over.
        let _ = self.asked.send(asked);
    }
}

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// SOCKS has connected, from an address of version 4.
const GRANTED: &[u8] = &[5, 0, 0, 1, 127, 0, 0, 1, 0, 9];

/// A proxy that lets everyone through to `server`.
fn open_proxy(is_tls: bool, server: &TestServer) -> TestProxy {
    let server = server.address();
    TestProxy::start(is_tls, move |guest| {
        guest.read_connect()?;
        guest.write(ESTABLISHED)?;
        Ok(server)
    })
}

fn socks_proxy(login: bool, server: &TestServer) -> TestProxy {
    let server = server.address();
    TestProxy::start(false, move |guest| {
        guest.read_socks(login)?;
        guest.write(GRANTED)?;
        Ok(server)
    })
}

/// The settings of a client that dials a host that only the proxy can find.
fn through(scheme: &str, host: &str, proxy: Proxy) -> Builder {
    Client::builder(format!("{scheme}://{host}/"))
        .tls_root(TestServer::root_pem())
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
        .proxy(proxy)
}

/// Checks that messages go both ways.
fn assert_echoes(builder: Builder) -> tautline::Opened {
    let client = builder.start().expect("the settings are good");
    let mut events = client.events();
    let opened = opened(&mut events);
    let long = "x".repeat(100_000);
    for text in ["short", &long] {
        client.send_text(text).expect("it is open");
        assert_eq!(message(&mut events).text(), Some(text));
    }
    assert!(client.stop(SOON).is_clean());
    opened
}

/// Checks that the second dial opens, and returns the error of the first.
fn second_dial_opens(builder: Builder) -> Error {
    let client = builder.start().expect("the settings are good");
    let mut events = client.events();
    let error = dial_failed(&mut events).error;
    opened(&mut events);
    error
}

/// The error of the only dial.
fn refusal(builder: Builder) -> Error {
    let client = builder.max_attempts(1).start().expect("the settings are good");
    dial_failed(&mut client.events()).error
}

#[test]
fn every_kind_of_proxy_tunnels_both_schemes() {
    for scheme in ["ws", "wss"] {
        let tls = scheme == "wss";
        let server = echo(if tls { TestServer::builder().tls() } else { TestServer::builder() });
        let host = "localhost:7";
        for is_tls in [false, true] {
            let proxy = open_proxy(is_tls, &server);
            let at = format!("localhost:{}", proxy.address.port());
            let given = if is_tls { Proxy::https(at) } else { Proxy::http(at) };
            let peer = assert_echoes(through(scheme, host, given)).peer;
            assert_eq!((peer, proxy.asked()), (proxy.address, format!("CONNECT {host} HTTP/1.1")));
        }
        for login in [false, true] {
            let proxy = socks_proxy(login, &server);
            let mut given = Proxy::socks5(proxy.address.to_string());
            if login {
                given = given.credentials("user", "secret");
            }
            let peer = assert_echoes(through(scheme, host, given)).peer;
            if login {
                assert_eq!(proxy.asked(), "user:secret");
            }
            assert_eq!((peer, proxy.asked()), (proxy.address, format!("1 {host}")));
        }
    }
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let server = echo(TestServer::builder());
    let proxy = open_proxy(false, &server);
    let given = Proxy::http(proxy.address.to_string()).credentials("user", "hunter2 é");
    assert!(!format!("{given:?}").contains("hunter2"), "{given:?}");
    assert_echoes(through("ws", "server.test", given));
    // RFC 7617 section 2.1: in UTF-8.
    assert_eq!(proxy.asked(), "CONNECT server.test:80 HTTP/1.1 Basic dXNlcjpodW50ZXIyIMOp");
}

#[test]
fn addresses_of_version_6_are_asked_for_and_dialed() {
    let server = echo(TestServer::builder());
    let address = server.address();
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        return crate::support::skipped("there is no IPv6");
    };
    let at = listener.local_addr().expect("it listens");
    drop(listener);
    let proxy = TestProxy::at(at, false, move |guest| {
        guest.read_connect()?;
        guest.write(ESTABLISHED)?;
        Ok(address)
    });
    assert_echoes(through("ws", "[2001:db8::1]:8", Proxy::http(proxy.address.to_string())));
    assert_eq!(proxy.asked(), "CONNECT [2001:db8::1]:8 HTTP/1.1");
    let proxy = socks_proxy(false, &server);
    assert_echoes(through("ws", "[2001:db8::1]:8", Proxy::socks5(proxy.address.to_string())));
    assert_eq!(proxy.asked(), "1 [2001:db8::1]:8");
}

#[test]
fn names_are_resolved_here_if_that_is_asked_for() {
    let server = echo(TestServer::builder());
    let proxy = socks_proxy(false, &server);
    let given = Proxy::socks5(proxy.address.to_string());
    let nobody = |_: &str, _: u16| Err(io::Error::other("the proxy resolves the name"));
    assert_echoes(through("ws", "server.test", given.clone()).resolver(nobody));
    assert_eq!(proxy.asked(), "1 server.test:80");
    let local = given.socks5_local_dns();
    let resolver = |host: &str, port: u16| {
        assert_eq!(host, "server.test");
        Ok(vec![SocketAddr::from(([192, 0, 2, 7], port))])
    };
    assert_echoes(through("ws", "server.test", local).resolver(resolver));
    assert_eq!(proxy.asked(), "1 192.0.2.7:80");
}

#[test]
fn an_address_that_fails_behind_a_proxy_is_asked_for_last() {
    let server = echo(TestServer::builder());
    let address = server.address();
    let proxy = TestProxy::start(false, move |guest| {
        guest.read_socks(false)?;
        let is_first = guest.asked.len() == 1;
        // "The host cannot be reached" would be the proxy's word: this server hangs up.
        guest.write(GRANTED)?;
        if is_first { Err(IoErrorKind::ConnectionReset.into()) } else { Ok(address) }
    });
    let given = Proxy::socks5(proxy.address.to_string()).socks5_local_dns();
    let resolver = |_: &str, port: u16| {
        Ok([1, 2].map(|last| SocketAddr::from(([192, 0, 2, last], port))).to_vec())
    };
    second_dial_opens(through("ws", "server.test", given).resolver(resolver));
    assert_eq!([proxy.asked(), proxy.asked()], ["1 192.0.2.1:80", "1 192.0.2.2:80"]);
}

#[test]
fn an_address_that_the_proxy_cannot_reach_is_asked_for_last() {
    let server = echo(TestServer::builder());
    let address = server.address();
    let proxy = TestProxy::start(false, move |guest| {
        // There is no IPv6.
        match guest.read_socks(false)?.starts_with('[') {
            false => guest.write(GRANTED).map(|()| address),
            true => {
                guest.write(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0])?;
                Err(IoErrorKind::HostUnreachable.into())
            }
        }
    });
    let given = Proxy::socks5(proxy.address.to_string()).socks5_local_dns();
    let resolver = |_: &str, port: u16| {
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        Ok(vec![(v6, port).into(), ([192, 0, 2, 1], port).into()])
    };
    let error = second_dial_opens(through("ws", "server.test", given).resolver(resolver));
    assert_eq!(error.kind(), ErrorKind::Proxy);
    assert_eq!([proxy.asked(), proxy.asked()], ["1 [2001:db8::1]:80", "1 192.0.2.1:80"]);
}

#[test]
fn a_login_that_is_refused_for_one_endpoint_ends_no_client_that_has_others() {
    let server = echo(TestServer::builder());
    let address = server.address();
    let proxy = TestProxy::start(false, move |guest| {
        if guest.read_connect()?.contains("b.test") {
            return guest.write(ESTABLISHED).map(|()| address);
        }
        guest.write(b"HTTP/1.1 407 Login\r\nContent-Length: 0\r\n\r\n")?;
        Err(IoErrorKind::PermissionDenied.into())
    });
    let given = Proxy::http(proxy.address.to_string());
    let builder = through("ws", "a.test", given).add_endpoint("ws://b.test/");
    let error = second_dial_opens(builder);
    assert_eq!(error.status().map(|status| status.as_u16()), Some(407));
}

// Other systems have no other address of loopback.
#[test]
#[cfg(target_os = "linux")]
fn an_address_of_a_proxy_that_fails_is_dialed_last() {
    let server = echo(TestServer::builder());
    let good = open_proxy(false, &server);
    // It accepts, and hangs up.
    let bad = TestProxy::at(([127, 0, 0, 2], good.address.port()).into(), false, |guest| {
        guest.read_connect()?;
        Err(IoErrorKind::ConnectionReset.into())
    });
    let (bad_at, good_at) = (bad.address, good.address);
    let builder =
        through("ws", "server.test", Proxy::http(format!("proxy.test:{}", good_at.port())))
            .resolver(move |host: &str, _| {
                assert_eq!(host, "proxy.test");
                Ok(vec![bad_at, good_at])
            });
    let client = builder.start().expect("the settings are good");
    let mut events = client.events();
    assert_eq!(dial_failed(&mut events).error.kind(), ErrorKind::Proxy);
    assert_eq!(opened(&mut events).peer, good_at);
    client.reconnect().expect("it is open");
    let again = loop {
        if let tautline::Event::Opened(opened) = crate::support::next(&mut events) {
            break opened;
        }
    };
    assert_eq!((again.peer, bad.asked.len()), (good_at, 1));
}

#[test]
fn the_certificate_is_the_servers_and_that_of_an_https_proxy_is_verified_too() {
    let server = echo(TestServer::builder().tls());
    for is_tls in [false, true] {
        let proxy = open_proxy(is_tls, &server);
        let at = format!("localhost:{}", proxy.address.port());
        let given = if is_tls { Proxy::https(at) } else { Proxy::http(at) };
        let client = through("wss", "server.test", given).start().expect("the settings are good");
        let mut events = client.events();
        // It is permanent once it has been refused twice.
        for _ in 0..2 {
            let error = dial_failed(&mut events).error;
            assert!(error.is_verification_failure(), "{}", error.chain());
            assert!(error.to_string().contains("server.test:443"), "{error}");
        }
        assert_eq!(stopped(&mut events).reason.kind(), ErrorKind::Tls);
    }

    let proxy = open_proxy(true, &server);
    // The certificate is for `localhost`.
    let address = proxy.address;
    let builder = through("ws", "server.test", Proxy::https("proxy.test"));
    let error = refusal(builder.resolver(move |_: &str, _| Ok(vec![address])));
    assert!(error.is_verification_failure(), "{}", error.chain());
    assert!(error.to_string().contains("proxy.test:443"), "{error}");
}

#[test]
fn what_is_glued_behind_the_answer_belongs_to_the_server() {
    let server = echo(TestServer::builder());
    let address = server.address();
    // An interim response in two halves, of which the first comes with the proxy's answer.
    let halves: [&[u8]; 2] = [b"HTTP/1.1 103 Ear", b"ly Hints\r\n\r\n"];
    let http = TestProxy::start(false, move |guest| {
        guest.read_connect()?;
        guest.write(&[ESTABLISHED, halves[0]].concat())?;
        guest.write(halves[1])?;
        Ok(address)
    });
    assert_echoes(through("ws", "server.test", Proxy::http(http.address.to_string())));
    let socks = TestProxy::start(false, move |guest| {
        guest.read_socks(false)?;
        // Its own address is a name here.
        guest.write(&[b"\x05\x00\x00\x03\x05proxy\x00\x50", halves[0]].concat())?;
        guest.write(halves[1])?;
        Ok(address)
    });
    assert_echoes(through("ws", "server.test", Proxy::socks5(socks.address.to_string())));
}

#[test]
fn answers_of_every_form_and_in_any_pieces_are_understood() {
    let server = echo(TestServer::builder());
    let address = server.address();
    for answer in [
        &b"HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy\r\n\r\n"[..],
        // RFC 9110 section 9.3.6: without a body, whatever these say.
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Fine\r\n\r\n",
    ] {
        let proxy = TestProxy::start(false, move |guest| {
            guest.read_connect()?;
            answer.iter().try_for_each(|byte| guest.write(&[*byte]))?;
            Ok(address)
        });
        assert_echoes(through("ws", "server.test", Proxy::http(proxy.address.to_string())));
    }
    let ipv6 = [&[5, 0, 0, 4][..], &[1; 16], &[0, 9]].concat();
    for answer in [GRANTED.to_vec(), ipv6] {
        let proxy = TestProxy::start(false, move |guest| {
            guest.read_socks(false)?;
            answer.iter().try_for_each(|byte| guest.write(&[*byte]))?;
            Ok(address)
        });
        assert_echoes(through("ws", "server.test", Proxy::socks5(proxy.address.to_string())));
    }
}

#[test]
fn a_refused_login_is_permanent_and_a_busy_proxy_is_not() {
    for (status, is_retryable) in [
        (401, false),
        (407, false),
        (403, true),
        (404, true),
        (500, true),
        (502, true),
        (503, true),
        (504, true),
    ] {
        let proxy = TestProxy::start(false, move |guest| {
            guest.read_connect()?;
            let body = r#"{"why":"no"}"#;
            let head = format!("HTTP/1.1 {status} No\r\nContent-Length: {}\r\n", body.len());
            guest.write(format!("{head}Retry-After: 7\r\n\r\n{body}").as_bytes())?;
            // It keeps the connection, like many.
            guest.read::<1>().map(|_| unreachable!("nothing more is said"))
        });
        let given = Proxy::http(proxy.address.to_string()).credentials("user", "hunter2");
        let error = refusal(through("ws", "server.test", given));
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Proxy, is_retryable));
        assert_eq!(error.status().map(|status| status.as_u16()), Some(status));
        let response = error.response().expect("there is one");
        assert_eq!(response.body(), br#"{"why":"no"}"#);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        let text = format!("{} {error:?}", error.chain());
        let expected = format!("the proxy http://{} answered CONNECT with status", proxy.address);
        assert!(text.starts_with(&expected) && !text.contains("hunter2"), "{text}");
    }
    // The client gives up by itself.
    let proxy = TestProxy::start(false, |guest| {
        guest.read_connect()?;
        guest.write(b"HTTP/1.1 407 Login\r\nContent-Length: 0\r\n\r\n")?;
        Err(IoErrorKind::ConnectionReset.into())
    });
    let given = Proxy::http(proxy.address.to_string());
    let client = through("ws", "server.test", given).start().expect("the settings are good");
    let mut events = client.events();
    dial_failed(&mut events);
    assert_eq!(stopped(&mut events).reason.kind(), ErrorKind::Proxy);
}

#[test]
fn socks_refusals_say_why_and_a_refused_login_is_permanent() {
    let answers: [(&'static [u8], bool, &str, bool); 6] = [
        (&[5, 0xff], false, "refused clients without credentials", false),
        (&[5, 0xff], true, "refused to be logged in to by a password", false),
        (&[5, 2, 1, 1], true, "refused the user or the password", false),
        (&[5, 0, 5, 5, 0, 1], false, "the server refused it", true),
        (&[5, 0, 5, 4, 0, 1], false, "the host cannot be reached", true),
        (&[5, 0, 5, 99, 0, 1], false, "for a reason of its own", true),
    ];
    for (answer, login, what, is_retryable) in answers {
        let proxy = TestProxy::start(false, move |guest| {
            guest.write(answer)?;
            guest.read::<600>().map(|_| unreachable!("nothing so long is said"))
        });
        let mut given = Proxy::socks5(proxy.address.to_string());
        if login {
            given = given.credentials("user", "hunter2");
        }
        let error = refusal(through("ws", "server.test", given));
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Proxy, is_retryable));
        let text = format!("{} {error:?}", error.chain());
        assert!(text.contains(what) && !text.contains("hunter2"), "{what}: {text}");
        assert_eq!(error.status(), None);
    }
}

#[test]
fn lies_of_a_proxy_end_the_dial_and_say_what_is_wrong() {
    let endless = [b"HTTP/1.1 200 OK\r\nX: ", &vec![b'x'; 70_000][..]].concat();
    let http: [(Vec<u8>, &str); 6] = [
        (Vec::new(), "by ending the connection"),
        (b"HTTP/1.1 200 O".to_vec(), "by ending the connection inside"),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), "something that is not an HTTP/1.1 response"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(), "status 101"),
        (b"HTTP/1.1 100 Continue\r\n\r\n".repeat(3_000), "of interim answers"),
        (endless, "a head of more than 64 KiB"),
    ];
    let socks: [(&[u8], &str); 6] = [
        (b"", "by ending the connection"),
        (b"\x05", "by ending the connection"),
        (b"\x04\x00", "something that is not SOCKS 5"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something that is not SOCKS 5"),
        (b"\x05\x02", "a way to log in not offered"),
        (b"\x05\x00\x05\x00\x00\x09", "an address of an unknown kind"),
    ];
    let http = http.map(|(answer, what)| (true, answer, what));
    let socks = socks.map(|(answer, what)| (false, answer.to_vec(), what));
    for (is_http, answer, what) in http.into_iter().chain(socks) {
        let proxy = TestProxy::start(false, move |guest| {
            if is_http {
                guest.read_connect()?;
            } else {
                guest.read::<3>()?;
            }
            guest.write(&answer)?;
            Err(IoErrorKind::UnexpectedEof.into())
        });
        let at = proxy.address.to_string();
        let given = if is_http { Proxy::http(at) } else { Proxy::socks5(at) };
        let error = refusal(through("ws", "server.test", given));
        assert_eq!(error.kind(), ErrorKind::Proxy, "{what}: {}", error.chain());
        assert!(error.to_string().contains(what), "{what}: {error}");
        assert!(error.is_retryable(), "{what}");
    }
}

#[test]
fn a_silent_proxy_delays_neither_the_timeout_nor_a_stop() {
    for (is_http, is_tls) in [(true, false), (false, false), (true, true)] {
        let proxy = TestProxy::start(false, move |guest| {
            guest.tell("asked".to_owned());
            guest.read::<60_000>().map(|_| unreachable!("nothing so long is said"))
        });
        let at = format!("localhost:{}", proxy.address.port());
        let given = match (is_http, is_tls) {
            (_, true) => Proxy::https(at),
            (true, _) => Proxy::http(at),
            _ => Proxy::socks5(at),
        };
        let builder = through("wss", "server.test", given);
        let error = refusal(builder.clone().connect_timeout(100 * MS));
        assert_eq!(error.timeout(), Some(Timeout::Connect), "{}", error.chain());
        assert!(error.to_string().contains(&format!("localhost:{}", proxy.address.port())));
        proxy.asked();

        let client = builder.start().expect("the settings are good");
        proxy.asked();
        let began = Instant::now();
        let report = client.stop(SOON);
        assert!(report.is_clean(), "{report}");
        assert!(began.elapsed() < SOON / 4, "{:?}", began.elapsed());
    }
}

#[test]
fn a_proxy_that_cannot_work_is_refused_at_the_start() {
    let long = "x".repeat(256);
    for (proxy, what) in [
        (Proxy::http(""), "has no host"),
        (Proxy::http("http://user:hunter2@proxy:1"), "is not host:port"),
        (Proxy::http("proxy:0"), "port 0"),
        (Proxy::http("proxy:x"), "a port that is not a number"),
        (Proxy::http("pro xy:1"), "a blank"),
        (Proxy::http("proxy").credentials("a:b", "hunter2"), "colon"),
        (Proxy::https("proxy").credentials("a", "hunter2\r\nX: y"), "control character"),
        (Proxy::socks5("proxy").credentials("", "hunter2"), "at most 255"),
        (Proxy::socks5("proxy").credentials("a", long), "at most 255"),
    ] {
        let shown = format!("{proxy:?}");
        let client = through("ws", "server.test", proxy).start();
        let error = client.map(drop).expect_err("it cannot work");
        let text = format!("{} {error:?} {shown}", error.chain());
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(text.contains(what) && !text.contains("hunter2"), "{what}: {text}");
    }
}

/// A proxy over TLS to `server` that does something of its own when it is told to.
fn meddling_proxy(
    server: &TestServer,
    meddles: &Arc<AtomicBool>,
    meddle: impl Fn(&mut Guest, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> TestProxy {
    let (server, meddles) = (server.address(), Arc::clone(meddles));
    TestProxy::start(true, move |guest| {
        guest.read_connect()?;
        guest.write(ESTABLISHED)?;
        let mut server = TcpStream::connect(server)?;
        guest.relay(&mut server, &mut |_| {}, &meddles)?;
        meddle(guest, &mut server)?;
        Err(IoErrorKind::Other.into())
    })
}

/// Opens a connection through the proxy, has it meddle, and returns the end of the connection.
fn meddled_end(scheme: &str, proxy: &TestProxy, meddles: &AtomicBool) -> tautline::Disconnect {
    let given = Proxy::https(format!("localhost:{}", proxy.address.port()));
    let client = through(scheme, "localhost", given).start().expect("the settings are good");
    let mut events = client.events();
    opened(&mut events);
    client.send_text("before").expect("it is open");
    message(&mut events);
    meddles.store(true, Ordering::SeqCst);
    // The first ones may go by before it does.
    let by = Instant::now() + SOON;
    loop {
        // It may have ended.
        let _ = client.send_text("behind");
        if let Ok(tautline::Event::Disconnected(end)) = events.next_timeout(20 * MS) {
            return end;
        }
        assert!(Instant::now() < by, "nothing ends it");
    }
}

#[test]
fn a_record_that_is_changed_on_the_way_through_an_https_proxy_is_no_orderly_end() {
    let server = echo(TestServer::builder().tls());
    let meddles = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let proxy = meddling_proxy(&server, &meddles, move |guest, server| {
        guest.relay(
            server,
            &mut |bytes| bytes.iter_mut().last().into_iter().for_each(|b| *b ^= 1),
            &is_over,
        )
    });
    let error = meddled_end("wss", &proxy, &meddles).error;
    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.chain());
    over.store(true, Ordering::SeqCst);
}

#[test]
fn the_end_of_tls_to_a_proxy_ends_the_connection_and_nothing_behind_it_is_kept() {
    for scheme in ["ws", "wss"] {
        let tls = scheme == "wss";
        let server = echo(if tls { TestServer::builder().tls() } else { TestServer::builder() });
        let meddles = Arc::default();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let proxy = meddling_proxy(&server, &meddles, move |guest, _| {
            // The answer is of no interest.
            let _ = guest.stream.end_tls();
            while !is_over.load(Ordering::SeqCst) {
                guest.socket.write_all(&[0x17; 4096])?;
            }
            Ok(())
        });
        let end = meddled_end(scheme, &proxy, &meddles);
        assert_eq!(end.error.kind(), ErrorKind::Closed, "{}", end.error.chain());
        assert_eq!(end.close.code, 1006);
        over.store(true, Ordering::SeqCst);
    }
}
