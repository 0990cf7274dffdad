//! TLS that changes its keys in the middle of a line.

use crossbeam_channel::bounded;
use tautline::testing::Venue;
use tautline::{Client, Event, Line, MessageRef, SendError};

use crate::openssl::Server;
use crate::support::{MS, SOON, message, opened};

const ROUNDS: usize = 5;

/// Opens a line, has the server do `command` several times, and checks that messages go both ways between them.
fn converse(version: &str, command: &[u8]) {
    let Some((mut server, port)) = Server::start(&[version]) else { return };
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
    let Some((mut server, port)) = Server::start(&["-tls1_2"]) else { return };
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
    let builder = Client::builder(format!("wss://localhost:{port}/")).tls_root(Venue::root_pem()).close_within(50 * MS);
    // The server answers no ping, and shows what it has to say of the renegotiation only when something comes.
    let builder = builder.ping_every(50 * MS).pong_within(60 * SOON);
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
