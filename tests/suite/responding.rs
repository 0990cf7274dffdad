//! Responses to messages that ask for one, such as pings of the application.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::bounded;
use tautline::testing::{Received, TestServer};
use tautline::{Connection, ErrorKind, Event, Handler, MessageRef, Payload, WhenFull};

use crate::support::{
    MS, SOON, builder, disconnected, message, next, opened, plain_and_tls, until,
};

/// Answers `ping 7` by `pong 7`.
fn pong(message: MessageRef<'_>) -> Option<Cow<'_, str>> {
    let number = message.text()?.strip_prefix("ping ")?;
    Some(format!("pong {number}").into())
}

#[test]
fn messages_that_ask_for_it_are_answered_in_order_and_delivered_to_nobody() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            for number in 0..3 {
                for _ in 0..10 {
                    peer.send_text(&format!("ping {number}"))?;
                }
                peer.send_text(&format!("data {number}"))?;
                for _ in 0..10 {
                    let expected = Received::Text(format!("pong {number}"));
                    assert_eq!(peer.receive_message()?, expected);
                }
            }
            peer.send_text("all answered")?;
            peer.echo()
        });
        let client = builder(&server).auto_respond(pong).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        for expected in ["data 0", "data 1", "data 2", "all answered"] {
            assert_eq!(message(&mut events).text(), Some(expected));
        }
        // They count like other messages, on their way in and out.
        until("all are counted", || client.stats().messages_sent == 30);
        let stats = client.stats();
        assert_eq!(stats.messages_received, 34);
        let data = 3 * "data 0".len() + "all answered".len();
        assert_eq!(stats.bytes_received, (30 * "ping 0".len() + data) as u64);
        let receipt = client.send_text("the next").expect("the connection is open");
        assert_eq!(receipt.sequence, 31);
    });
}

#[test]
fn a_handler_is_not_called_for_what_is_answered() {
    struct Counts(crossbeam_channel::Sender<&'static str>);
    impl Handler for Counts {
        fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
            let is_data = message.text() == Some("data");
            self.0.send(if is_data { "data" } else { "ping" }).expect("the test waits");
        }
        fn batch_end(&mut self, _: &mut Connection<'_>) {
            self.0.send("end").expect("the test waits");
        }
    }
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for number in 0..3 {
            peer.send_text(&format!("ping {number}"))?;
            peer.receive_message()?;
        }
        peer.send_text("data")?;
        peer.echo()
    });
    let (tell, told) = bounded(10);
    let client = builder(&server).auto_respond(pong).start_with(Counts(tell)).expect("it starts");
    assert_eq!(told.recv_timeout(SOON), Ok("data"));
    assert_eq!(told.recv_timeout(SOON), Ok("end"));
    assert!(client.stop(SOON).is_clean());
    assert!(told.is_empty());
}

#[test]
fn messages_are_answered_while_nobody_pulls() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for number in 0..100 {
            peer.send_text("data")?;
            peer.send_text(&format!("ping {number}"))?;
            assert_eq!(peer.receive_message()?, Received::Text(format!("pong {number}")));
        }
        peer.echo()
    });
    let client = builder(&server)
        .auto_respond(pong)
        .queue_messages(10)
        .when_full(WhenFull::DropOldest)
        .connect()
        .expect("it opens");
    assert!(server.wait_for_messages(100, SOON));
    until("all are counted", || client.stats().messages_sent == 100);
}

#[test]
fn of_responses_that_have_to_wait_the_last_sixteen_are_sent() {
    const PINGS: usize = 100;
    let (go, going) = bounded::<()>(1);
    let (tell, told) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        going.recv_timeout(SOON).map_err(std::io::Error::other)?;
        for number in 0..PINGS {
            peer.send_text(&format!("ping {number}"))?;
        }
        peer.send_text("all sent")?;
        assert_eq!(peer.receive_message()?, Received::Binary(b"in pieces".to_vec()));
        for _ in 0..16 {
            tell.send(peer.receive_message()?).map_err(std::io::Error::other)?;
        }
        peer.echo()
    });
    let client = builder(&server).auto_respond(pong).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    // Responses may not stand between the fragments of another message.
    let mut pieces = ["in ", "pie", "ces"].map(str::as_bytes).into_iter();
    let fragments = std::iter::from_fn(|| {
        if pieces.len() == 1 {
            // The first has been sent.
            go.send(()).expect("the server waits");
            assert_eq!(message(&mut events).text(), Some("all sent"));
        }
        pieces.next().map(Payload::Binary)
    });
    client.sender().send_fragmented(fragments).expect("the connection is open");
    for number in PINGS - 16..PINGS {
        let expected = Received::Text(format!("pong {number}"));
        assert_eq!(told.recv_timeout(SOON), Ok(expected));
    }
    client.send_text("nothing else").expect("the connection is open");
    assert_eq!(message(&mut events).text(), Some("nothing else"));
}

#[test]
fn pings_and_close_frames_pass_responses_that_have_to_wait() {
    let (go, going) = bounded::<()>(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        going.recv_timeout(SOON).map_err(std::io::Error::other)?;
        peer.send_text("ping 1")?;
        peer.send_text("data")?;
        peer.echo()
    });
    let client = builder(&server)
        .auto_respond(pong)
        .ping_interval(20 * MS)
        .pong_timeout(SOON)
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let mut pieces = ["in ", "pie", "ces"].map(str::as_bytes).into_iter();
    let fragments = std::iter::from_fn(|| {
        if pieces.len() == 1 {
            go.send(()).expect("the server waits");
            assert_eq!(message(&mut events).text(), Some("data"));
            let before = server.pings();
            assert!(server.wait_for_pings(before + 2, SOON));
            client.stopper().request_stop();
            assert!(server.wait_for_close(SOON));
        }
        pieces.next().map(Payload::Binary)
    });
    let sent = client.sender().send_fragmented(fragments);
    assert!(sent.is_err_and(|error| !error.is_not_sent()), "it was stopped in the middle of it");
    assert!(client.stop(SOON).is_clean());
    assert!(server.messages().is_empty());
}

#[test]
fn idle_timeout_counts_no_messages_that_are_answered() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        loop {
            peer.send_text("ping 1")?;
            if peer.receive_timeout(SOON)? == Some(Received::End) {
                return Ok(());
            }
        }
    });
    let client = builder(&server)
        .auto_respond(pong)
        .ping_interval(None)
        .idle_timeout(100 * MS)
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let Event::Disconnected(disconnect) = next(&mut events) else {
        panic!("nothing is delivered, and the connection is idle")
    };
    assert_eq!(disconnect.error.kind(), ErrorKind::Idle);
    assert!(disconnect.lasted >= 100 * MS && disconnect.sent >= 2, "{disconnect:?}");
}

#[test]
fn a_flood_of_messages_to_answer_blocks_neither_the_reader_nor_a_stop() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        // The peer reads nothing meanwhile, so at some point responses can no longer be written.
        let ping = format!("ping {}", "x".repeat(1000));
        for _ in 0..20_000 {
            peer.send_text(&ping)?;
        }
        peer.send_text("after the flood")?;
        loop {
            peer.send_text(&ping)?;
        }
    });
    let client =
        builder(&server).close_timeout(100 * MS).auto_respond(pong).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("after the flood"));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_panic_of_the_closure_ends_the_client() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("panic")?;
        peer.send_text("not delivered")?;
        peer.echo()
    });
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let client = builder(&server)
        .auto_respond(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::panic::resume_unwind(Box::new("on purpose"))
        })
        .start()
        .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::HandlerPanicked);
    let reason = client.wait_closed(SOON).expect("it ends the client");
    assert_eq!(reason.kind(), ErrorKind::HandlerPanicked);
    let payload = client.take_panic().expect("the payload is kept");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_response_that_is_too_long_is_left_out_and_the_connection_goes_on() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text(&format!("ping {}", "x".repeat(100)))?;
        peer.send_text("ping 1")?;
        assert_eq!(peer.receive_message()?, Received::Text("pong 1".to_owned()));
        peer.send_text("answered")?;
        peer.echo()
    });
    let client = builder(&server)
        .auto_respond(pong)
        .max_outgoing_message_size(50)
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("answered"));
    until("it is counted", || client.stats().messages_sent == 1);
}

#[test]
fn responses_do_not_outlive_their_connection() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        if peer.number() == 0 {
            peer.send_text("ping of the first")?;
            return peer.reset();
        }
        peer.send_text("ping of the second")?;
        assert_eq!(peer.receive_message()?, Received::Text("pong of the second".to_owned()));
        peer.send_text("answered")?;
        peer.echo()
    });
    let client = builder(&server).auto_respond(pong).start().expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    disconnected(&mut events);
    assert_eq!(opened(&mut events).epoch, 2);
    assert_eq!(message(&mut events).text(), Some("answered"));
}
