//! Recordings that a test server replays.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tautline::testing::{Pace, TestServer, TestServerBuilder};
use tautline::{Builder, Client, Event, Pull};

use crate::support::*;

/// A recording in a file that goes with it.
struct Recorded(PathBuf);

impl Recorded {
    /// Writes messages with these times.
    fn new<'t>(name: &str, messages: impl IntoIterator<Item = (Duration, &'t str)>) -> Self {
        let mut content = "{\"event\":\"started\",\"unix_ns\":1}\n".to_owned();
        for (at, text) in messages {
            let ns = at.as_nanos();
            writeln!(content, r#"{{"event":"message","epoch":1,"ns":{ns},"text":"{text}"}}"#)
                .expect("a String takes everything");
        }
        Self::of(name, &content)
    }

    fn of(name: &str, content: &str) -> Self {
        let name = format!("tautline-replay-{}-{name}.jsonl", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).expect("there is room for a file");
        Recorded(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // It may never have been there.
        let _ = std::fs::remove_file(&self.0);
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// Returns the texts up to the end of the connection, and the close code.
fn texts(builder: Builder) -> (Vec<String>, u16) {
    let client = builder.max_attempts(1).start().expect("it can start");
    let mut events = client.events();
    opened(&mut events);
    let mut texts = Vec::new();
    loop {
        match next(&mut events) {
            Event::Message(message) => texts.push(message.into_text().expect("it is text")),
            Event::Disconnected(end) => return (texts, end.close.code),
            other => panic!("{other:?}"),
        }
    }
}

fn started(server: &TestServer) -> Client<Pull> {
    builder(server).start().expect("it can start")
}

#[test]
fn every_connection_gets_the_recording_from_its_start_and_then_close_code_1000() {
    let recorded = Recorded::new("start", [(HOUR, "one"), (2 * HOUR, ""), (2 * HOUR, "né")]);
    let server = TestServer::replay(recorded.path(), Pace::Unpaced).expect("it can be read");
    for _ in 0..3 {
        assert_eq!(texts(builder(&server)), (["one", "", "né"].map(String::from).to_vec(), 1000));
    }
    assert_eq!(server.openings(), 3);
}

#[test]
fn a_recording_much_longer_than_all_buffers_comes_whole() {
    let messages: Vec<String> = (0..50_000).map(|n| format!("{n} {}", "x".repeat(500))).collect();
    let recorded =
        Recorded::new("long", messages.iter().map(|text| (Duration::ZERO, text.as_str())));
    let server = TestServer::replay(recorded.path(), Pace::Unpaced).expect("it can be read");
    let (got, code) = texts(builder(&server));
    assert!(got == messages, "{} of {} messages", got.len(), messages.len());
    assert_eq!(code, 1000);
}

#[test]
fn pings_and_messages_and_the_close_frame_of_a_client_are_read_between_two_messages() {
    plain_and_tls(|of: fn() -> TestServerBuilder| {
        let recorded = Recorded::new("pings", [(HOUR, "one"), (2 * HOUR, "two")]);
        let path = recorded.path().to_owned();
        let server = of().start(move |peer| {
            peer.upgrade()?;
            peer.replay(&path, Pace::Recorded).map(|_| ())
        });
        let client = started(&server);
        let mut events = client.events();
        opened(&mut events);
        assert_eq!(message(&mut events).text(), Some("one"));
        // The next message is due in an hour.
        client.send_text("hello").expect("it is open");
        client.ping().expect("it is open");
        until("the ping is answered", || client.stats().round_trip.count == 1);
        assert_eq!(server.messages(), [b"hello"]);
        assert!(client.stop(SOON).is_clean());
        assert_eq!(disconnected(&mut events).close.code, 1000);
        assert!(server.wait_until_all_closed(SOON));
        assert_eq!(server.closes(), [Some(1000)]);
    });
}

#[test]
fn a_ping_right_behind_the_opening_handshake_is_answered_before_the_next_message() {
    let recorded = Recorded::new("early", [(Duration::ZERO, "one"), (HOUR, "two")]);
    let server = TestServer::replay(recorded.path(), Pace::Recorded).expect("it can be read");
    let mut socket = TcpStream::connect(server.address()).expect("it listens");
    socket.set_read_timeout(Some(SOON)).expect("it is open");
    let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Version: 13\r\n\r\n";
    // A ping of one byte, with a masking key of zeros.
    let sent = [request.as_bytes(), &[0x89, 0x81, 0, 0, 0, 0, b'p']].concat();
    socket.write_all(&sent).expect("it is open");
    let mut received = Vec::new();
    while !received.ends_with(b"\x81\x03one\x8a\x01p") {
        let mut bytes = [0; 1024];
        let count = socket.read(&mut bytes).expect("the pong comes");
        assert!(count > 0, "{received:?}");
        received.extend_from_slice(&bytes[..count]);
    }
}

#[test]
fn a_server_that_is_dropped_does_not_wait_for_the_next_message() {
    let recorded = Recorded::new("drop", [(Duration::ZERO, "one"), (HOUR, "two")]);
    let server = TestServer::replay(recorded.path(), Pace::Recorded).expect("it can be read");
    let client = started(&server);
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("one"));
    // It would wait five seconds for a script that does not end.
    let begin = Instant::now();
    drop(server);
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    disconnected(&mut events);
}

#[test]
fn messages_come_at_the_pace_of_the_recording_or_at_a_multiple() {
    let ms = Duration::from_millis;
    let recorded =
        Recorded::new("pace", (0..=10).map(|n| (Duration::from_secs(7) + ms(20) * n, "tick")));
    for (pace, least) in [(Pace::Recorded, ms(200)), (Pace::Times(2.0), ms(100))] {
        let server = TestServer::replay(recorded.path(), pace).expect("it can be read");
        // The first message is sent after this, and the last one before the end.
        let begin = Instant::now();
        let (got, _) = texts(builder(&server));
        let took = begin.elapsed();
        assert!(got.len() == 11 && took >= least && took < SOON, "{pace:?} took {took:?}");
    }
    // A day, in 86 ms: the longest wait of this test is a minute otherwise.
    let recorded = Recorded::new("day", [(HOUR, "first"), (25 * HOUR, "last")]);
    let server = TestServer::replay(recorded.path(), Pace::Times(1e6)).expect("it can be read");
    assert_eq!(texts(builder(&server)).0, ["first", "last"]);
}

#[test]
fn a_damaged_recording_ends_the_connection_with_close_code_1011() {
    let good = r#"{"event":"message","epoch":1,"ns":1,"text":"one"}"#;
    let recorded = Recorded::of("damaged", &format!("{good}\n{{\"event\":\"mess\n{good}\n"));
    let server = TestServer::replay(recorded.path(), Pace::Unpaced).expect("it begins well");
    assert_eq!(texts(builder(&server)), (vec!["one".to_owned()], 1011));
    // One that cannot be replayed at all is told at once.
    assert!(TestServer::replay("/does/not/exist", Pace::Unpaced).is_err());
    assert!(TestServer::replay(recorded.path(), Pace::Times(0.0)).is_err());
}

#[test]
fn a_subprotocol_that_the_client_offers_is_accepted() {
    let recorded = Recorded::new("subprotocol", [(HOUR, "one")]);
    let server = TestServer::replay(recorded.path(), Pace::Unpaced).expect("it can be read");
    let client = builder(&server).subprotocol("v2").subprotocol("v1").start().expect("it starts");
    assert_eq!(opened(&mut client.events()).subprotocol.as_deref(), Some("v2"));
}
