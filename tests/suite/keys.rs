//! TLS connections that change their keys: key updates and renegotiation.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use tautline::testing::TestServer;
use tautline::{Client, Connection, ErrorKind, Event, MessageRef, SendError};

use crate::openssl::Server;
use crate::support::{MS, SOON, disconnected, message, opened};

const ROUNDS: usize = 5;

/// Opens a connection, has the server carry out `command` several times, and checks that messages
/// pass both ways in between.
fn assert_survives(version: &str, command: &[u8]) {
    let Some((mut server, port)) = Server::start(&[version]) else { return };
    let builder = Client::builder(format!("wss://localhost:{port}/"))
        .tls_root(TestServer::root_pem())
        .close_timeout(50 * MS);
    let client = builder.start().expect("it starts");
    server.accept();
    let mut events = client.events();
    opened(&mut events);
    for round in 0..ROUNDS {
        server.say(b"\x81\x04down");
        assert_eq!(message(&mut events).text(), Some("down"));
        server.say(command);
        // One message crosses the command, another follows it.
        let text = format!("up {round}");
        client.send_text(&text).expect("the connection is open");
        server.expect_text(&text);
        server.say(b"\x81\x05later");
        assert_eq!(message(&mut events).text(), Some("later"));
        client.send_text("still here").expect("the connection is open");
        server.expect_text("still here");
    }
    // Without these handshakes the test would prove nothing.
    let handshakes =
        String::from_utf8_lossy(&server.printed).matches("SSL_do_handshake -> 1").count();
    assert_eq!(handshakes, ROUNDS);
    assert_eq!(client.epoch(), 1);
    assert!(!matches!(events.try_next(), Ok(Event::Disconnected(_))));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_key_update_keeps_the_connection_open() {
    assert_survives("-tls1_3", b"K\n");
}

#[test]
#[cfg_attr(rustls_by_default, ignore = "rustls does not renegotiate")]
fn a_renegotiation_keeps_the_connection_open() {
    assert_survives("-tls1_2", b"r\n");
}

#[test]
#[cfg(feature = "rustls")]
fn with_rustls_a_server_that_renegotiates_ends_the_connection() {
    let Some((mut server, port)) = Server::start(&["-tls1_2"]) else { return };
    let builder = Client::builder(format!("wss://localhost:{port}/"))
        .tls_root(TestServer::root_pem())
        .tls_engine(tautline::TlsEngine::Rustls);
    let client = builder.start().expect("it starts");
    server.accept();
    let mut events = client.events();
    opened(&mut events);
    server.say(b"r\n");
    // `s_server` reads the refusal only when more arrives.
    server.read_until("SSL_do_handshake -> ", "\n");
    let _ = client.send_text("more");
    let end = disconnected(&mut events);
    assert_eq!(end.error.kind(), ErrorKind::Io, "{}", end.error.chain());
    assert!(end.error.is_retryable() && end.retry_in.is_some());
}

#[test]
#[cfg_attr(rustls_by_default, ignore = "rustls does not renegotiate")]
fn a_handler_that_sends_during_a_renegotiation_does_not_block() {
    let Some((mut server, port)) = Server::start(&["-tls1_2"]) else { return };
    let (tell, told) = bounded(10);
    let (release, held) = bounded::<()>(0);
    let handler = move |connection: &mut Connection<'_>, message: MessageRef<'_>| {
        if message.text() == Some("wait") {
            tell.send(None).expect("the test waits");
            // The test ends this by dropping the sender.
            held.recv().ok();
        } else {
            tell.send(Some(connection.send_text("up"))).expect("the test waits");
        }
    };
    let builder = Client::builder(format!("wss://localhost:{port}/"))
        .tls_root(TestServer::root_pem())
        .close_timeout(50 * MS);
    // `s_server` answers no ping. It continues the renegotiation only when something arrives, such
    // as a ping.
    let builder = builder.ping_interval(50 * MS).pong_timeout(60 * SOON);
    let client = builder.send_timeout(60 * SOON).start_with(handler).expect("it starts");
    server.accept();
    server.say(b"\x81\x04wait");
    assert!(told.recv_timeout(SOON).expect("it is called").is_none());
    server.say(b"r\n");
    server.read_until("SSL_do_handshake -> ", "\n");
    server.say(b"\x81\x04down");
    drop(release);
    let sent =
        told.recv_timeout(SOON).expect("the send does not block").expect("it is the second call");
    assert!(matches!(&sent, Ok(_) | Err(SendError::NotSent(_))), "{sent:?}");
    // The connection goes on, and a message that was not sent can be sent again.
    if sent.is_err() {
        client.send_text("up").expect("the reader reads again");
    }
    server.expect_text("up");
    assert_eq!(client.epoch(), 1);
    assert!(client.stop(SOON).is_clean());
}

/// Relays between a client and the server. Once `is_gone` is set it drops whatever the client
/// sends, and holds the server's ping until more follows. It announces on `tell` that it holds the
/// ping.
fn relay(server: u16, is_gone: &Arc<AtomicBool>, tell: Sender<()>) -> u16 {
    // The record of the ping that the test sends: header, nonce, payload, and tag of AES-GCM.
    const PING_RECORD: usize = 5 + 8 + 2 + 16;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (drops, holds) = (Arc::clone(is_gone), Arc::clone(is_gone));
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("it dials");
        let mut server = TcpStream::connect(("127.0.0.1", server)).expect("it is there");
        let (mut from, mut to) =
            (server.try_clone().expect("it is open"), client.try_clone().expect("it is open"));
        thread::spawn(move || {
            let (mut held, mut bytes) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                held.extend_from_slice(&bytes[..count]);
                if !holds.load(Ordering::SeqCst) || held.len() > PING_RECORD {
                    // The client may have gone.
                    let _ = to.write_all(&std::mem::take(&mut held));
                } else if held.len() == PING_RECORD {
                    tell.send(()).expect("the test waits");
                }
            }
        });
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = client.read(&mut bytes) {
            if !drops.load(Ordering::SeqCst) {
                server.write_all(&bytes[..count]).expect("it reads");
            }
        }
        let _ = server.shutdown(Shutdown::Both);
    });
    port
}

#[test]
#[cfg_attr(rustls_by_default, ignore = "rustls does not renegotiate")]
fn a_peer_that_is_gone_in_the_middle_of_a_renegotiation_is_noticed() {
    let Some((mut server, port)) = Server::start(&["-tls1_2"]) else { return };
    let is_gone = Arc::new(AtomicBool::new(false));
    let (tell, told) = bounded(1);
    let port = relay(port, &is_gone, tell);
    let client = Client::builder(format!("wss://localhost:{port}/"))
        .tls_root(TestServer::root_pem())
        .close_timeout(50 * MS)
        .ping_interval(1000 * MS)
        .pong_timeout(300 * MS)
        .start()
        .expect("it starts");
    server.accept();
    let mut events = client.events();
    opened(&mut events);
    // The server sends a ping and then asks for new keys. The client's answers are lost.
    is_gone.store(true, Ordering::SeqCst);
    server.say(b"\x89\x00");
    // `s_server` takes a command only at the start of a read, so the ping has to be out first.
    told.recv_timeout(SOON).expect("the ping is on its way");
    server.say(b"r\n");
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::PongTimeout);
}
