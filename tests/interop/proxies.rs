//! Tunnels through proxies that others have made: tinyproxy, microsocks, and stunnel for TLS. A
//! test whose proxy is not installed reports that it is skipped.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tautline::testing::TestServer;
use tautline::{Builder, Client, Error, ErrorKind, Event, Proxy};

use crate::{SOON, skipped};

const CREDENTIALS: (&str, &str) = ("user", "hunter2");

/// A proxy process.
struct Running {
    process: Child,
    port: u16,
    /// Its settings.
    file: Option<PathBuf>,
}

impl Running {
    /// Starts `program`, whose settings `settings` makes of the port. `None` if it is not
    /// installed.
    fn start(
        program: &str,
        arguments: impl Fn(u16) -> Vec<String>,
        settings: Option<&dyn Fn(u16) -> String>,
    ) -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("it listens").port();
        drop(listener);
        let mut command = Command::new(program);
        command.args(arguments(port)).stdout(Stdio::null()).stderr(Stdio::null());
        let file = settings.map(|settings| {
            let name = format!("tautline-{program}-{}-{port}.conf", std::process::id());
            let file = std::env::temp_dir().join(name);
            std::fs::write(&file, settings(port)).expect("there is room for a file");
            command.arg(&file);
            file
        });
        let process = match command.spawn() {
            Ok(process) => process,
            Err(_) => {
                skipped(&format!("{program} is not installed"));
                return None;
            }
        };
        let running = Running { process, port, file };
        let by = Instant::now() + SOON;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < by, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(running)
    }

    fn tinyproxy(has_login: bool) -> Option<Self> {
        let (user, password) = CREDENTIALS;
        let login =
            if has_login { format!("BasicAuth {user} {password}\n") } else { String::new() };
        let settings = move |port| format!("Port {port}\nListen 127.0.0.1\nMaxClients 20\n{login}");
        Running::start("tinyproxy", |_| vec!["-d".into(), "-c".into()], Some(&settings))
    }

    fn microsocks(has_login: bool) -> Option<Self> {
        let arguments = move |port: u16| {
            let port = port.to_string();
            let mut arguments = vec!["-i", "127.0.0.1", "-p", &port];
            if has_login {
                arguments.extend(["-u", CREDENTIALS.0, "-P", CREDENTIALS.1]);
            }
            arguments.into_iter().map(str::to_owned).collect()
        };
        Running::start("microsocks", arguments, None)
    }

    /// TLS in front of `inner`.
    fn stunnel(inner: &Running) -> Option<Self> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/certificates");
        let inner = inner.port;
        let settings = move |port| {
            format!(
                "foreground = yes\npid =\n[proxy]\naccept = 127.0.0.1:{port}\n\
                 connect = 127.0.0.1:{inner}\ncert = {folder}/localhost.pem\n\
                 key = {folder}/localhost.key\n"
            )
        };
        Running::start("stunnel", |_| Vec::new(), Some(&settings))
    }

    fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

fn servers() -> [TestServer; 2] {
    [TestServer::builder(), TestServer::builder().tls()].map(|server| {
        server.start(|peer| {
            peer.upgrade()?;
            peer.echo()
        })
    })
}

fn client(server: &TestServer, proxy: Proxy) -> Builder {
    Client::builder(server.url()).tls_root(TestServer::root_pem()).max_attempts(1).proxy(proxy)
}

/// Checks that messages go both ways, and that the connection closes in order.
fn assert_tunnels(server: &TestServer, proxy: &Proxy) {
    let client = client(server, proxy.clone()).connect().expect("it opens");
    let mut events = client.events();
    assert!(matches!(events.next_timeout(SOON), Ok(Event::Opened(_))));
    let text = "x".repeat(300_000);
    for _ in 0..3 {
        client.send_text(&text).expect("it is open");
        match events.next_timeout(SOON) {
            Ok(Event::Message(message)) => assert_eq!(message.text(), Some(text.as_str())),
            other => panic!("expected the message, got {other:?}"),
        }
    }
    assert!(client.stop(SOON).is_clean());
    let ends = events.find_map(|event| match event {
        Event::Disconnected(end) => Some(end.close.code),
        _ => None,
    });
    assert_eq!(ends, Some(1000));
}

fn refusal(server: &TestServer, proxy: Proxy) -> (ErrorKind, bool, Option<u16>) {
    let error = client(server, proxy).connect().map(drop).expect_err("it is refused");
    let status = error.status().map(|status| status.as_u16());
    (error.kind(), error.is_retryable(), status)
}

/// Returns the error of a dial to a port at which nobody listens.
fn failure_elsewhere(proxy: Proxy) -> Error {
    let builder = Client::builder("ws://localhost:1/").max_attempts(1).proxy(proxy);
    let error = builder.connect().map(drop).expect_err("nobody listens there");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Proxy, true));
    error
}

#[test]
fn tinyproxy_tunnels_and_refuses() {
    let servers = servers();
    for has_login in [false, true] {
        let Some(running) = Running::tinyproxy(has_login) else { return };
        let mut proxy = Proxy::http(running.address());
        if has_login {
            let wrong = proxy.clone().credentials("user", "wrong");
            assert_eq!(refusal(&servers[0], wrong), (ErrorKind::Proxy, false, Some(401)));
            assert_eq!(refusal(&servers[0], proxy.clone()), (ErrorKind::Proxy, false, Some(407)));
            proxy = proxy.credentials(CREDENTIALS.0, CREDENTIALS.1);
        }
        servers.iter().for_each(|server| assert_tunnels(server, &proxy));
        let error = failure_elsewhere(proxy);
        assert!(error.response().is_some_and(|response| !response.body().is_empty()));
    }
}

#[test]
fn microsocks_tunnels_and_refuses() {
    let servers = servers();
    for has_login in [false, true] {
        let Some(running) = Running::microsocks(has_login) else { return };
        let mut proxy = Proxy::socks5(running.address());
        if has_login {
            let wrong = proxy.clone().credentials("user", "wrong");
            assert_eq!(refusal(&servers[0], wrong), (ErrorKind::Proxy, false, None));
            assert_eq!(refusal(&servers[0], proxy.clone()), (ErrorKind::Proxy, false, None));
            proxy = proxy.credentials(CREDENTIALS.0, CREDENTIALS.1);
        }
        for proxy in [proxy.clone(), proxy.clone().socks5_local_dns()] {
            servers.iter().for_each(|server| assert_tunnels(server, &proxy));
        }
        failure_elsewhere(proxy);
    }
}

#[test]
fn a_proxy_behind_stunnel_tunnels() {
    let servers = servers();
    let Some(inner) = Running::tinyproxy(false) else { return };
    let Some(outer) = Running::stunnel(&inner) else { return };
    for server in &servers {
        assert_tunnels(server, &Proxy::https(outer.address()));
    }
}
