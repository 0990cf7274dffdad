//! Closing handshakes and abnormal ends, by the peer and by the client.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tautline::testing::{Peer, Received, TestServer, TestServerBuilder};
use tautline::{
    CloseReason, Connection, Deflate, Disconnect, ErrorKind, Event, Handler, MessageRef, Payload,
    SendError,
};

use crate::support::{MS, SOON, builder, disconnected, message, next, opened, plain_and_tls};

/// Opens a connection whose peer runs `script` after the opening handshake, and checks how it ends,
/// without TLS and with it.
fn check_end(
    script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + Clone + 'static,
    check: impl Fn(&Disconnect),
) {
    plain_and_tls(|server_builder| {
        let script = script.clone();
        let server = server_builder().start(move |peer| {
            peer.upgrade()?;
            script(peer)
        });
        let client = builder(&server)
            .max_message_size(100_000)
            .close_timeout(50 * MS)
            .max_attempts(1)
            .start()
            .expect("it starts");
        let mut events = client.events();
        opened(&mut events);
        check(&disconnected(&mut events));
    });
}

/// Returns the close code that the client sends when its peer sends these bytes, and why its
/// connection ended.
fn answer_to(bytes: &'static [u8]) -> (u16, ErrorKind) {
    let (tell, told) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        peer.write(bytes)?;
        loop {
            if let Received::Close(code, _) = peer.receive()? {
                tell.send(code.unwrap_or(1005)).expect("the test waits");
                return Ok(());
            }
        }
    });
    let client =
        builder(&server).max_message_size(1000).max_attempts(1).start().expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    let kind = disconnected(&mut events).error.kind();
    (told.recv_timeout(SOON).expect("a close frame comes"), kind)
}

#[test]
fn the_close_code_and_reason_of_the_server_are_kept() {
    check_end(
        |peer| {
            peer.close(4008, "slow down")?;
            peer.drain()
        },
        |disconnect| {
            assert_eq!(disconnect.error.kind(), ErrorKind::Closed);
            assert_eq!(
                (disconnect.close.code, disconnect.close.reason.as_str()),
                (4008, "slow down")
            );
            assert!(disconnect.is_clean());
        },
    );
}

#[test]
fn a_close_frame_without_a_code_is_reported_as_1005() {
    check_end(
        |peer| {
            peer.send_frame(0x88, &[])?;
            peer.drain()
        },
        |disconnect| assert_eq!((disconnect.close.code, disconnect.is_clean()), (1005, true)),
    );
}

#[test]
fn close_code_1014_is_accepted_like_any_other() {
    check_end(
        |peer| {
            peer.close(1014, "the feed behind us is gone")?;
            peer.drain()
        },
        |disconnect| {
            assert_eq!((disconnect.close.code, disconnect.error.kind()), (1014, ErrorKind::Closed));
            assert_eq!(disconnect.close.reason, "the feed behind us is gone");
        },
    );
    assert_eq!(answer_to(b"\x88\x02\x03\xf6"), (1014, ErrorKind::Closed));
}

#[test]
fn an_end_without_a_close_frame_is_reported_as_1006() {
    let abnormal = |disconnect: &Disconnect| {
        assert_eq!((disconnect.close.code, disconnect.is_clean()), (1006, false));
        assert!(
            matches!(disconnect.error.kind(), ErrorKind::Closed | ErrorKind::Io),
            "{disconnect}"
        );
    };
    check_end(|peer| peer.half_close(), abnormal);
    check_end(|peer| peer.end_tls(), abnormal);
    check_end(|_| Ok(()), abnormal);
    check_end(|peer| peer.reset(), abnormal);
    // The last one ends in the middle of a frame.
    check_end(|peer| peer.write(&[0x81, 100, b'x']), abnormal);
}

#[test]
fn the_answer_to_a_close_frame_repeats_its_code_and_the_connection_ends() {
    plain_and_tls(|server_builder| {
        let (tell, told) = bounded(2);
        let server = server_builder().start(move |peer| {
            peer.upgrade()?;
            peer.close(1001, "going")?;
            // The client drops whatever follows a close frame.
            peer.send_text("ignored")?;
            tell.send(peer.receive()?).expect("the test waits");
            tell.send(peer.receive()?).expect("the test waits");
            Ok(())
        });
        let client = builder(&server).max_attempts(1).start().expect("it starts");
        assert_eq!(told.recv_timeout(SOON), Ok(Received::Close(Some(1001), String::new())));
        assert_eq!(told.recv_timeout(SOON), Ok(Received::End));
        let mut events = client.events();
        opened(&mut events);
        assert_eq!(disconnected(&mut events).close.code, 1001);
        assert!(events.all(|event| !matches!(event, Event::Message(_))));
    });
}

#[test]
fn a_connection_whose_peer_keeps_tcp_open_after_the_close_is_aborted_at_the_deadline() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.close(1000, "")?;
        peer.stall()
    });
    let client = builder(&server).close_timeout(30 * MS).connect().expect("it opens");
    assert!(server.wait_for_openings(2, SOON), "it dials again after the deadline");
    assert!(client.stop(SOON).is_clean());
}

/// Starts a server that reports every close frame that it receives, and answers it with code 4001
/// and a reason of its own.
fn reporting_closes(builder: TestServerBuilder) -> (TestServer, Receiver<Received>) {
    let (tell, told) = bounded(10);
    let server = builder.start(move |peer| {
        peer.upgrade()?;
        loop {
            match peer.receive()? {
                close @ Received::Close(..) => {
                    tell.send(close).expect("the test waits");
                    peer.close(4001, "answer")?;
                    return peer.drain();
                }
                Received::Text(text) => peer.send_text(&text)?,
                _ => {}
            }
        }
    });
    (server, told)
}

#[test]
fn stop_with_sends_the_given_code_and_reason() {
    plain_and_tls(|server_builder| {
        for reason in ["", "grüße", &"x".repeat(123)] {
            let (server, told) = reporting_closes(server_builder());
            let client = builder(&server).connect().expect("it opens");
            let report = client
                .stop_with(&CloseReason::new(4000, reason), SOON)
                .expect("the reason is valid");
            assert!(report.is_clean(), "{report}");
            assert_eq!(told.recv_timeout(SOON), Ok(Received::Close(Some(4000), reason.to_owned())));
            let mut events = client.events();
            opened(&mut events);
            let disconnect = disconnected(&mut events);
            assert_eq!(
                (disconnect.error.kind(), disconnect.is_clean()),
                (ErrorKind::Stopped, false)
            );
            assert_eq!(
                disconnect.close,
                CloseReason::new(4000, reason),
                "the client's reason is reported, whatever the peer answers"
            );
        }
    });
}

#[test]
fn the_close_reason_of_the_first_stop_is_sent() {
    let (server, told) = reporting_closes(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let stopper = client.stopper();
    stopper.request_stop();
    stopper.stop_with(&CloseReason::new(4000, "too late"), SOON).expect("the reason is valid");
    assert_eq!(told.recv_timeout(SOON), Ok(Received::Close(Some(1000), String::new())));

    let (server, told) = reporting_closes(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    client.stop_with(&CloseReason::new(1001, "first"), SOON).expect("the reason is valid");
    client.stop_with(&CloseReason::new(4000, "too late"), SOON).expect("the reason is valid");
    assert!(client.stop(SOON).is_clean());
    assert_eq!(told.recv_timeout(SOON), Ok(Received::Close(Some(1001), "first".to_owned())));
    assert!(told.try_recv().is_err());
}

#[test]
fn reconnect_with_sends_the_given_reason_and_reports_the_answer() {
    plain_and_tls(|server_builder| {
        let (server, told) = reporting_closes(server_builder());
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        client.reconnect_with(&CloseReason::new(3000, "a gap")).expect("a connection is open");
        assert_eq!(told.recv_timeout(SOON), Ok(Received::Close(Some(3000), "a gap".to_owned())));
        let disconnect = disconnected(&mut events);
        assert_eq!(disconnect.close, CloseReason::new(4001, "answer"));
        assert_eq!(disconnect.error.close_reason(), Some(&CloseReason::new(3000, "a gap")));
        assert!(disconnect.is_clean());
        assert_eq!(opened(&mut events).epoch, 2);
    });
}

#[test]
fn a_handler_can_reconnect_with_a_close_reason() {
    let (server, told) = reporting_closes(TestServer::builder());
    let (tell, ends) = bounded(1);
    struct Reconnects(Sender<CloseReason>);
    impl Handler for Reconnects {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            connection.send_text("a gap").expect("the connection is open");
        }

        fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
            let refused = connection
                .reconnect_with(&CloseReason::new(1005, ""))
                .expect_err("1005 may not be sent");
            assert_eq!(refused.reason().kind(), ErrorKind::Config);
            let text = message.text().expect("it is text");
            connection.reconnect_with(&CloseReason::new(4002, text)).expect("the reason is valid");
            connection.reconnect();
        }

        fn disconnected(&mut self, disconnect: &Disconnect) {
            // The test looks at the first one only.
            let _ = self.0.try_send(disconnect.close.clone());
        }
    }
    let client = builder(&server).start_with(Reconnects(tell)).expect("it starts");
    assert_eq!(told.recv_timeout(SOON), Ok(Received::Close(Some(4002), "a gap".to_owned())));
    // The end is reported as soon as the handler returns, before an answer could come.
    assert_eq!(ends.recv_timeout(SOON), Ok(CloseReason::new(4002, "a gap")));
    drop(client);
}

#[test]
fn invalid_close_reasons_are_refused_and_leave_the_connection_open() {
    let (server, told) = reporting_closes(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let codes = [0, 999, 1002, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX];
    let bad_codes = codes.map(|code| {
        (CloseReason::new(code, ""), "1000, 1001, 1003, 1007 to 1014 and 3000 to 4999")
    });
    let too_long = ["x".repeat(124), "ü".repeat(62)]
        .map(|reason| (CloseReason::new(1000, reason), "at most 123"));
    for (close, allowed) in bad_codes.into_iter().chain(too_long) {
        let errors = [
            client.stop_with(&close, SOON).expect_err("the reason is invalid"),
            client.stopper().stop_with(&close, SOON).expect_err("the reason is invalid"),
            client.reconnect_with(&close).expect_err("the reason is invalid").reason().clone(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Config, "{close:?}");
            assert!(error.to_string().contains(allowed), "{error}");
        }
    }
    client.send_text("still here").expect("the connection is open");
    assert_eq!(message(&mut events).text(), Some("still here"));
    assert!(told.try_recv().is_err());
    for code in [1000, 1001, 1003, 1007, 1014, 3000, 4999] {
        client.wait_open(SOON).expect("it opens");
        client.reconnect_with(&CloseReason::new(code, "")).expect("the reason is valid");
        assert_eq!(told.recv_timeout(SOON), Ok(Received::Close(Some(code), String::new())));
        disconnected(&mut events);
        opened(&mut events);
    }
}

#[test]
fn invalid_frames_are_answered_with_1002() {
    for bytes in [
        &b"\x83\x00"[..],
        b"\xc1\x00",
        b"\x91\x00",
        b"\x81\x80\x00\x00\x00\x00",
        b"\x09\x00",
        b"\x89\x7e\x00\x7e",
        b"\x80\x00",
        b"\x88\x01\x03",
        b"\x88\x02\x03\xec",
    ] {
        assert_eq!(answer_to(bytes), (1002, ErrorKind::Protocol), "{bytes:?}");
    }
}

#[test]
fn invalid_utf8_is_answered_with_1007_as_soon_as_it_is_seen() {
    // The header announces a hundred bytes, and two follow.
    assert_eq!(answer_to(b"\x81\x64a\xff"), (1007, ErrorKind::Protocol));
    assert_eq!(answer_to(b"\x88\x03\x03\xe8\xff"), (1007, ErrorKind::Protocol));
}

#[test]
fn messages_that_are_too_long_are_answered_with_1009() {
    assert_eq!(answer_to(b"\x82\x7f\x00\x00\x00\x40\x00\x00\x00\x00"), (1009, ErrorKind::TooBig));
    assert_eq!(answer_to(b"\x02\x7e\x03\xe9"), (1009, ErrorKind::TooBig));
}

#[test]
fn garbage_ends_the_connection_and_not_the_client() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        if peer.number() == 0 {
            peer.write(&[0xff; 5000])?;
            return peer.drain();
        }
        peer.send_text("valid again")?;
        peer.echo()
    });
    let client = builder(&server).close_timeout(30 * MS).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::Protocol);
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("valid again"));
}

#[test]
fn a_connection_works_without_compression_if_the_server_declines_it() {
    // The scripted server declines compression.
    let server = TestServer::start(|peer| {
        let request = peer.upgrade()?;
        peer.send_text(request.header("Sec-WebSocket-Extensions").unwrap_or("none"))?;
        peer.echo()
    });
    let client = builder(&server).compress(Deflate::new()).connect().expect("it opens");
    let mut events = client.events();
    assert!(!opened(&mut events).is_compressed);
    assert_eq!(message(&mut events).text(), Some("permessage-deflate; client_max_window_bits"));
    assert!(client.stop(Duration::from_secs(5)).is_clean());
}

#[test]
fn a_close_reason_is_read_even_if_a_send_meets_the_reset_behind_it() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.receive_message()?;
            peer.send_text("you are too fast")?;
            peer.close(4008, "slow down")?;
            peer.reset()
        });
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        for _ in 0..30 {
            let sender = client.sender().pinned_to(opened(&mut events).epoch);
            while sender.send_text("order").is_ok() {}
            assert_eq!(message(&mut events).text(), Some("you are too fast"));
            let disconnect = disconnected(&mut events);
            assert_eq!(
                (disconnect.close.code, disconnect.error.kind()),
                (4008, ErrorKind::Closed),
                "{disconnect}"
            );
        }
    });
}

#[test]
fn a_reset_that_a_sender_meets_first_is_reported_as_an_io_error() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("busy")?;
        peer.receive_message()?;
        peer.reset()
    });
    let (entered, is_busy) = bounded(1);
    let (release, held) = bounded::<()>(0);
    let (told, ends) = bounded(1);
    struct Busy(Sender<()>, Receiver<()>, Sender<ErrorKind>);
    impl Handler for Busy {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            self.0.send(()).expect("the test waits");
            assert!(self.1.recv().is_err());
        }

        fn disconnected(&mut self, disconnect: &Disconnect) {
            assert_eq!(disconnect.close.code, 1006);
            self.2.send(disconnect.error.kind()).expect("the test waits");
        }
    }
    let client =
        builder(&server).max_attempts(1).start_with(Busy(entered, held, told)).expect("it starts");
    is_busy.recv_timeout(SOON).expect("the message comes");
    client.send_text("now").expect("the connection is open");
    assert!(server.wait_until_all_closed(SOON));
    // The kernel reports a reset to the first caller only. The reader is busy, so that is the
    // sender.
    let deadline = Instant::now() + SOON;
    while client.send_text("too late").is_ok() {
        assert!(Instant::now() < deadline, "the reset arrives");
    }
    drop(release);
    assert_eq!(ends.recv_timeout(SOON), Ok(ErrorKind::Io));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn an_unlimited_close_timeout_ends_with_the_closing_handshake() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.close(1000, "")?;
        peer.drain()
    });
    let client = builder(&server).close_timeout(Duration::MAX).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::Closed);
}

#[test]
fn the_client_ends_its_side_of_tcp_after_both_close_frames() {
    plain_and_tls(|server_builder| {
        let (tell, told) = bounded(1);
        let server = server_builder().start(move |peer| {
            peer.upgrade()?;
            peer.close(1000, "")?;
            let answers = [peer.receive_timeout(SOON)?, peer.receive_timeout(SOON)?];
            tell.send(answers).map_err(io::Error::other)
        });
        let client =
            builder(&server).close_timeout(60 * SOON).max_attempts(1).start().expect("it starts");
        let answers = told.recv_timeout(2 * SOON).expect("the client ends it");
        let close = Received::Close(Some(1000), String::new());
        assert_eq!(answers, [Some(close), Some(Received::End)]);
        drop(client);
    });
}

#[test]
fn nothing_is_delivered_after_the_program_has_asked_to_reconnect() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("ready")?;
        loop {
            match peer.receive()? {
                Received::Close(..) => {
                    peer.send_text("too late")?;
                    peer.close(1000, "")?;
                }
                Received::End => return Ok(()),
                _ => {}
            }
        }
    });
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    message(&mut events);
    client.reconnect().expect("a connection is open");
    let event = next(&mut events);
    assert!(matches!(event, Event::Disconnected(_)), "{event:?}");
}

#[test]
fn a_fragmented_send_does_not_disturb_the_closing_handshake() {
    plain_and_tls(|server_builder| {
        let (closing, is_closing) = bounded(1);
        let (answer, told) = bounded::<()>(1);
        let server = server_builder().start(move |peer| {
            peer.upgrade()?;
            if peer.number() > 0 {
                return peer.drain();
            }
            while !matches!(peer.receive()?, Received::Close(..)) {}
            closing.send(()).expect("the test waits");
            told.recv().expect("the test says when");
            peer.close(1000, "bye")?;
            peer.drain()
        });
        let client = builder(&server).close_timeout(SOON).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let mut pieces = 0;
        let result = client.sender().send_fragmented(std::iter::from_fn(|| {
            pieces += 1;
            if pieces == 3 {
                client.reconnect().expect("a connection is open");
                is_closing.recv_timeout(SOON).expect("the close frame passes between fragments");
            }
            (pieces < 9).then_some(Payload::Text("piece"))
        }));
        assert!(matches!(result, Err(SendError::Unknown(_))), "{result:?}");
        answer.send(()).expect("the server waits");
        assert_eq!(disconnected(&mut events).close.reason, "bye");
    });
}
