//! Tests against servers of other libraries, over TLS: Python's `websockets` and Node's `ws`; and
//! through proxies that others have made. tungstenite's server runs in this process.
//!
//! The gate installs them and names them in two environment variables: `INTEROP_PYTHON` (a Python
//! that has `websockets`) and `INTEROP_NODE_PATH` (a folder of Node modules that has `ws`). Without
//! a variable its test reports that it is skipped.

mod proxies;
mod tungstenite;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tautline::testing::TestServer;
use tautline::{Builder, Client, Deflate, ErrorKind, Event, Events};

const SOON: Duration = Duration::from_secs(20);

/// A server process of another library.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(command: &mut Command) -> Server {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/certificates");
        let mut process = command
            .arg(format!("{folder}/localhost.pem"))
            .arg(format!("{folder}/localhost.key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let output = process.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("the server prints its port");
        let port = line
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("the server prints its port, not {line:?}"));
        Server { process, port }
    }

    fn client(&self) -> Builder {
        Client::builder(format!("wss://localhost:{}/", self.port)).tls_root(TestServer::root_pem())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says on standard error that a test is skipped. The harness would hide the output of `eprintln!`,
/// because the test passes.
fn skipped(why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").expect("there is a standard error");
}

#[test]
fn python_websockets() {
    let Some(python) = std::env::var_os("INTEROP_PYTHON") else {
        skipped("INTEROP_PYTHON is not set");
        return;
    };
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/server.py");
    let server = Server::start(Command::new(python).arg(server));
    converse(server.client());
    converse(server.client().compress(Deflate::new()));
    converse(server.client().max_outgoing_frame_size(1000));
}

#[test]
fn node_ws() {
    let Some(modules) = std::env::var_os("INTEROP_NODE_PATH") else {
        skipped("INTEROP_NODE_PATH is not set");
        return;
    };
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/server.cjs");
    let server = Server::start(Command::new("node").arg(server).env("NODE_PATH", modules));
    converse(server.client());
    converse(server.client().compress(Deflate::new()));
    converse(
        server
            .client()
            .compress(Deflate::new().client_no_context_takeover().server_no_context_takeover()),
    );
    converse(server.client().max_outgoing_frame_size(1000));
}

/// Exchanges text, binary messages of up to a mebibyte, pings both ways, and a close by the server.
fn converse(builder: Builder) {
    let client = builder
        .ping_interval(Duration::from_millis(20))
        .max_attempts(1)
        .connect()
        .expect("it opens");
    let mut events = client.events();
    let Ok(Event::Opened(_)) = events.next_timeout(SOON) else { panic!("the opening comes first") };
    assert_eq!(message(&mut events), b"hello");

    client.send_text("grüße").expect("the connection is open");
    assert_eq!(message(&mut events), "grüße".as_bytes());
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let bytes: Vec<u8> =
            (0..size).map(|at: usize| (at.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
        client.send_binary(&bytes).expect("the connection is open");
        assert!(message(&mut events) == bytes, "{size} bytes");
    }
    let deadline = Instant::now() + SOON;
    while client.stats().round_trip.count == 0 {
        assert!(Instant::now() < deadline, "the server answers no ping");
        std::thread::yield_now();
    }

    client.send_text("close").expect("the connection is open");
    let Ok(Event::Disconnected(disconnect)) = events.next_timeout(SOON) else {
        panic!("the server closes")
    };
    assert_eq!(disconnect.error.kind(), ErrorKind::Closed);
    assert_eq!((disconnect.close.code, disconnect.close.reason.as_str()), (4001, "as you asked"));
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
}

fn message(events: &mut Events) -> Vec<u8> {
    match events.next_timeout(SOON) {
        Ok(Event::Message(message)) => message.into_bytes(),
        other => panic!("expected a message, got {other:?}"),
    }
}
