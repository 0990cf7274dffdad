//! TLS that changes its keys in the middle of a line: `openssl s_server` can be told to, and speaks no WebSocket, so this test does that for it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crossbeam_channel::bounded;
use tautline::testing::Venue;
use tautline::{Client, Event, Line, MessageRef, SendError};
use tungstenite::handshake::derive_accept_key;

use crate::support::{MS, SOON, message, opened, skipped};

struct Server {
    process: Child,
    input: ChildStdin,
    output: ChildStdout,
    seen: Vec<u8>,
    /// Everything that it has printed.
    printed: Vec<u8>,
}

impl Server {
    fn start(version: &str) -> Option<(Server, u16)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/certificates");
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "1", version]);
        command.args(["-cert", &format!("{folder}/localhost.pem"), "-key", &format!("{folder}/localhost.key")]);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = process.ok()?;
        let input = process.stdin.take()?;
        let output = process.stdout.take()?;
        let mut server = Server { process, input, output, seen: Vec::new(), printed: Vec::new() };
        // `ACCEPT 127.0.0.1:40000`
        let told = server.read_until("ACCEPT ", "\n");
        let port = told.rsplit(':').next().and_then(|port| port.trim().parse().ok());
        Some((server, port.unwrap_or_else(|| panic!("no port in {told:?}"))))
    }

    /// What comes between the first `from` and the next `to`; all of it is used up.
    fn read_until(&mut self, from: &str, to: &str) -> String {
        loop {
            let find = |what: &str, start: usize| {
                let rest = &self.seen[start..];
                rest.windows(what.len()).position(|window| window == what.as_bytes()).map(|at| start + at)
            };
            if let Some(start) = find(from, 0).map(|at| at + from.len()) {
                if let Some(end) = find(to, start) {
                    let text = String::from_utf8_lossy(&self.seen[start..end]).into_owned();
                    self.seen.drain(..end + to.len());
                    return text;
                }
            }
            self.read_more();
        }
    }

    fn read_more(&mut self) {
        let mut bytes = [0; 4096];
        let count = self.output.read(&mut bytes).expect("the server prints what it gets");
        assert!(count > 0, "the server has ended: {:?}", String::from_utf8_lossy(&self.seen));
        self.seen.extend_from_slice(&bytes[..count]);
        self.printed.extend_from_slice(&bytes[..count]);
    }

    fn say(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).and_then(|()| self.input.flush()).expect("the server reads");
    }

    /// Answers the opening handshake.
    fn accept(&mut self) {
        let key = self.read_until("Sec-WebSocket-Key: ", "\r\n");
        self.read_until("Sec-WebSocket-Version", "\r\n\r\n");
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.say(answer.as_bytes());
    }

    /// The next text of the client, among what the server prints of its own.
    fn expect_text(&mut self, text: &str) {
        loop {
            let found = (0..self.seen.len().saturating_sub(6)).rfind(|&at| {
                let frame = &self.seen[at..];
                let len = usize::from(frame[1] & 0x7f);
                let key = &frame[2..6];
                let payload = frame[6..].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
                frame[0] == 0x81 && len == text.len() && payload.take(len).eq(text.bytes())
            });
            if let Some(at) = found {
                self.seen.drain(..at);
                return;
            }
            self.read_more();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const ROUNDS: usize = 5;

/// Opens a line, has the server do `command` several times, and checks that messages go both ways between them.
fn converse(version: &str, command: &[u8]) {
    let Some((mut server, port)) = Server::start(version) else {
        skipped("there is no openssl command");
        return;
    };
    let builder = Client::builder(format!("wss://localhost:{port}/")).tls_root(Venue::root_pem()).close_within(50 * MS);
    let client = builder.start_pulled().expect("it starts");
    server.accept();
    let mut events = client.events();
    opened(&mut events);
    for round in 0..ROUNDS {
        server.say(b"\x81\x04down");
        assert_eq!(message(&mut events).text(), Some("down"));
        server.say(command);
        // Behind the command in the same direction, and against it in the other.
        let text = format!("up {round}");
        client.send_text(&text).expect("the line is open");
        server.expect_text(&text);
        server.say(b"\x81\x05later");
        assert_eq!(message(&mut events).text(), Some("later"));
        client.send_text("still here").expect("the line is open");
        server.expect_text("still here");
    }
    // Otherwise this shows nothing.
    let handshakes = String::from_utf8_lossy(&server.printed).matches("SSL_do_handshake -> 1").count();
    assert_eq!(handshakes, ROUNDS);
    assert_eq!(client.epoch(), 1);
    assert!(!matches!(events.try_next(), Ok(Event::Disconnected(_))));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_key_update_leaves_the_line_alone() {
    converse("-tls1_3", b"K\n");
}

#[test]
fn a_renegotiation_leaves_the_line_alone() {
    converse("-tls1_2", b"r\n");
}

#[test]
fn a_handler_that_sends_while_the_peer_renegotiates_waits_for_nobody() {
    let Some((mut server, port)) = Server::start("-tls1_2") else {
        eprintln!("SKIPPED: there is no openssl command");
        return;
    };
    let (tell, told) = bounded(10);
    let (release, held) = bounded::<()>(0);
    let handler = move |line: &mut Line<'_>, message: MessageRef<'_>| {
        if message.text() == Some("wait") {
            tell.send(None).expect("the test waits");
            // Ends when the test lets go.
            held.recv().ok();
        } else {
            tell.send(Some(line.send_text("up"))).expect("the test waits");
        }
    };
    let builder = Client::builder(format!("wss://localhost:{port}/")).tls_root(Venue::root_pem());
    let client = builder.send_within(60 * SOON).start(handler).expect("it starts");
    server.accept();
    server.say(b"\x81\x04wait");
    assert!(told.recv_timeout(SOON).expect("it is called").is_none());
    server.say(b"r\n");
    server.read_until("SSL_do_handshake -> ", "\n");
    server.say(b"\x81\x04down");
    drop(release);
    let sent = told.recv_timeout(SOON).expect("the send waits for nothing").expect("it is the second call");
    assert!(matches!(&sent, Ok(_) | Err(SendError::NotSent(_))), "{sent:?}");
    // The line goes on, with the message that did not get through too.
    if sent.is_err() {
        client.send_text("up").expect("the reader reads again");
    }
    server.expect_text("up");
    assert_eq!(client.epoch(), 1);
    assert!(client.stop(SOON).is_clean());
}
