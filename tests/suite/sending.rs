//! Sending: single messages, batches and fragments, and what their receipts and errors promise.

use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use tautline::testing::{Received, TestServer};
use tautline::{
    Client, Connection, Disconnect, ErrorKind, Event, Handler, MessageRef, Payload, Receipt,
    SendError, Sender, Timeout,
};

use crate::support::{
    MS, SOON, builder, disconnected, draining, echo, message, next, opened, plain_and_tls, until,
};

#[test]
fn messages_of_every_size_come_back_as_they_were_sent() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let sizes = [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 200_000, 3 << 20];
        for (index, &size) in sizes.iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let receipt = client.send_binary(&bytes).expect("the connection is open");
            assert_eq!((receipt.epoch, receipt.sequence), (1, index as u64 + 1));
            assert!(message(&mut events).bytes() == bytes, "{size} bytes");
        }
        client.send_text("grüße €").expect("the connection is open");
        assert_eq!(message(&mut events).text(), Some("grüße €"));
        let stats = client.stats();
        assert_eq!((stats.messages_sent, stats.messages_received), (11, 11));
    });
}

#[test]
fn messages_longer_than_max_outgoing_frame_size_are_split_into_frames() {
    let server = echo(TestServer::builder());
    let client = builder(&server).max_outgoing_frame_size(10).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    for text in ["", "short", "exactly 10", "one more..1", &"x".repeat(1005)] {
        client.send_text(text).expect("the connection is open");
        assert_eq!(message(&mut events).text(), Some(text));
    }
}

#[test]
fn a_batch_arrives_in_order_with_one_receipt() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let texts: Vec<String> = (0..1000).map(|number| format!("order {number}")).collect();
        let large = vec![7; 100_000];
        let mut batch: Vec<Payload<'_>> = texts.iter().map(|text| text.as_str().into()).collect();
        batch.insert(500, large.as_slice().into());
        assert_eq!(client.send_batch(&batch).map(|receipt| receipt.sequence).ok(), Some(1001));
        for sent in &batch {
            assert_eq!(message(&mut events).payload(), *sent);
        }
        let empty = client.send_batch(&[]).expect_err("there is nothing to send");
        assert_eq!((empty.sent, empty.next.reason().kind()), (0, ErrorKind::Config));
    });
}

#[test]
fn a_peer_that_never_reads_makes_a_send_time_out_and_does_not_block_the_reader() {
    plain_and_tls(|server_builder| {
        let (go, going) = bounded::<()>(0);
        let server = server_builder().start(move |peer| {
            peer.upgrade()?;
            // The peer never reads, and writes when the test asks it to.
            while going.recv().is_ok() {
                peer.send_text("still talking")?;
            }
            peer.stall()
        });
        let client = builder(&server).send_timeout(300 * MS).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let sender = client.sender();
        thread::scope(|scope| {
            let sending = scope.spawn(move || {
                let large = vec![0; 1 << 20];
                let mut sent = 0u64;
                loop {
                    match sender.send_binary(&large) {
                        Ok(_) => sent += 1,
                        Err(error) => return (sent, error),
                    }
                }
            });
            // Reading goes on while the send is blocked.
            for _ in 0..3 {
                go.send(()).expect("the server is there");
                assert_eq!(message(&mut events).text(), Some("still talking"));
            }
            let (sent, error) = sending.join().expect("it does not panic");
            assert_eq!(error.reason().timeout(), Some(tautline::Timeout::Send));
            match error {
                // The kernel took part of it: its fate is unknown, and the connection is aborted.
                SendError::Unknown(_) => {
                    let disconnect = disconnected(&mut events);
                    assert_eq!(disconnect.error.kind(), ErrorKind::Timeout);
                    assert_eq!((disconnect.sent, disconnect.confirmed), (sent + 1, 0));
                }
                // The kernel took no byte of it: the connection stays open.
                SendError::NotSent(_) => {
                    go.send(()).expect("the server is there");
                    assert_eq!(message(&mut events).text(), Some("still talking"));
                }
                other => panic!("{other:?}"),
            }
        });
        drop(go);
    });
}

#[test]
fn client_and_server_do_not_deadlock_when_both_fill_their_buffers() {
    plain_and_tls(|server_builder| {
        // Both sides write 64 MiB before they read anything.
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            let block = vec![1; 1 << 20];
            for _ in 0..64 {
                peer.send_binary(&block)?;
            }
            peer.echo()
        });
        let (tell, told) = bounded(200);
        let handler = move |_: &mut Connection<'_>, message: MessageRef<'_>| {
            tell.send(message.bytes().len()).expect("the test waits");
        };
        let client = builder(&server).send_timeout(SOON).start_with(handler).expect("it starts");
        client.wait_open(SOON).expect("it opens");
        let block = vec![2; 1 << 20];
        for _ in 0..64 {
            client.send_binary(&block).expect("the reader makes room");
        }
        for _ in 0..128 {
            assert_eq!(told.recv_timeout(SOON), Ok(1 << 20));
        }
        assert!(client.stop(SOON).is_clean());
    });
}

#[test]
fn sends_fail_at_once_as_not_sent_while_no_connection_is_open() {
    let server = TestServer::start(|peer| peer.stall());
    let client = builder(&server).start().expect("it starts");
    assert!(server.wait_for_connections(1, SOON));
    let error = client.send_text("early").expect_err("no connection is open");
    assert!(error.is_not_sent());
    assert_eq!(error.reason().kind(), ErrorKind::Connect);
}

#[test]
fn messages_for_one_connection_are_never_sent_on_another() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        if peer.number() == 0 {
            peer.receive_message()?;
            return peer.reset();
        }
        peer.echo()
    });
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    let first = client.sender().pinned_to(opened(&mut events).epoch);
    first.send_text("drop me").expect("the connection is open");
    disconnected(&mut events);
    opened(&mut events);
    let error = first.send_text("stale").expect_err("its connection has ended");
    assert!(error.is_not_sent());
    client.send_text("fresh").expect("the connection is open");
    assert_eq!(message(&mut events).text(), Some("fresh"));
    assert_eq!(server.messages(), [b"drop me".to_vec(), b"fresh".to_vec()]);
}

#[test]
fn many_senders_share_a_connection_and_their_messages_stay_whole_and_numbered() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        const THREADS: usize = 8;
        const EACH: usize = 200;
        let sequences = thread::scope(|scope| {
            let senders: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let sender = client.sender();
                    scope.spawn(move || {
                        (0..EACH)
                            .map(|number| {
                                let text = format!("{thread}:{number}:{}", "x".repeat(number * 7));
                                sender.send_text(&text).expect("the connection is open").sequence
                            })
                            .collect::<Vec<u64>>()
                    })
                })
                .collect();
            let mut next = [0; THREADS];
            for _ in 0..THREADS * EACH {
                let echo = message(&mut events);
                let mut parts = echo.text().expect("it was text").split(':');
                let mut part = || parts.next().expect("three parts").to_owned();
                let (thread, number) = (
                    part().parse::<usize>().expect("a number"),
                    part().parse::<usize>().expect("a number"),
                );
                assert_eq!(number, next[thread], "each thread's messages stay in order");
                assert_eq!(part().len(), number * 7);
                next[thread] += 1;
            }
            let lists = senders.into_iter().map(|sender| sender.join().expect("it does not panic"));
            lists.flatten().collect::<Vec<u64>>()
        });
        let mut sorted = sequences;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(1..=(THREADS * EACH) as u64));
    });
}

#[test]
fn a_handler_sends_on_its_own_connection() {
    struct Bot;
    impl Handler for Bot {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            assert_eq!(connection.opening().epoch, connection.epoch());
            connection.send_text("subscribe").expect("the connection is open");
        }
        fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
            if message.text() == Some("subscribe") {
                connection.send_binary(b"order").expect("the connection is open");
            }
        }
    }
    let server = echo(TestServer::builder());
    let client = builder(&server).start_with(Bot).expect("it starts");
    assert!(server.wait_for_messages(2, SOON));
    assert_eq!(server.messages(), [b"subscribe".to_vec(), b"order".to_vec()]);
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_sender_that_outlives_its_client_fails_with_stopped() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let sender = client.sender();
    drop(client);
    let error = sender.send_text("too late").expect_err("the client is gone");
    assert!(error.is_not_sent());
    assert_eq!(error.reason().kind(), ErrorKind::Stopped);
}

#[test]
fn text_and_headers_stay_out_of_every_debug_and_display() {
    let server = TestServer::start(|peer| {
        peer.upgrade_with("X-Session: secret\r\n")?;
        peer.send_text("secret")?;
        peer.close(1008, "secret")
    });
    let url = format!("{}secret?key=secret", server.url());
    let settings = Client::builder(url).header("Authorization", "secret").max_attempts(1);
    let mut shown = format!("{settings:?}");
    let client = settings.start().expect("it starts");
    for event in client.events() {
        shown.push_str(&format!("{event:?}"));
        match event {
            Event::Disconnected(disconnect) => shown.push_str(&disconnect.to_string()),
            Event::Stopped(stopped) => shown.push_str(&stopped.reason.chain()),
            _ => {}
        }
    }
    shown.push_str(&format!("{client:?} {:?} {:?}", client.sender(), client.stats()));
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn a_send_after_the_connection_was_aborted_fails_as_not_sent() {
    let server = draining(TestServer::builder());
    let client =
        builder(&server).retry_delay_min(SOON).retry_delay_max(SOON).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    server.abort_all();
    assert!(matches!(next(&mut events), Event::Disconnected(_)));
    let error = client.send_text("gone").expect_err("the connection has ended");
    assert!(error.is_not_sent(), "{error:?}");
}

#[test]
fn text_and_binary_messages_arrive_masked() {
    // `Peer::receive` refuses frames without a mask.
    let (tell, told) = bounded(2);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        for _ in 0..2 {
            tell.send(peer.receive()?).expect("the test waits");
        }
        peer.echo()
    });
    let client = builder(&server).connect().expect("it opens");
    client.send_text("text").expect("the connection is open");
    client.send_binary(&[0xff]).expect("the connection is open");
    assert_eq!(told.recv_timeout(SOON), Ok(Received::Text("text".to_owned())));
    assert_eq!(told.recv_timeout(SOON), Ok(Received::Binary(vec![0xff])));
    assert!(client.stop(Duration::from_secs(5)).is_clean());
}

#[test]
fn fragments_arrive_as_one_message_and_control_frames_pass_between_them() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        let client = builder(&server).ping_interval(5 * MS).connect().expect("it opens");
        let sender = client.sender();
        let mut events = client.events();
        opened(&mut events);
        let pieces = ["one ", "", "message ", "in pieces €"].map(Payload::from);
        assert_eq!(sender.send_fragmented(pieces).map(|receipt| receipt.sequence).ok(), Some(1));
        assert_eq!(message(&mut events).text(), Some("one message in pieces €"));
        assert_eq!(
            sender.send_reader(&[7; 100_001][..], 1000).map(|receipt| receipt.sequence).ok(),
            Some(2)
        );
        assert_eq!(message(&mut events).bytes(), [7; 100_001]);
        // The iterator waits until pings have passed between the fragments.
        let before = server.pings();
        let slow = (0..3).map(|index| {
            assert!(index == 0 || server.wait_for_pings(before + index, SOON));
            Payload::Text("slow ")
        });
        assert!(sender.send_fragmented(slow).is_ok());
        assert_eq!(message(&mut events).text(), Some("slow slow slow "));
    });
}

#[test]
fn other_messages_wait_for_the_end_of_a_fragmented_one() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let (begun, beginning) = bounded(0);
    let (sender, other) = (client.sender(), client.sender());
    thread::scope(|scope| {
        scope.spawn(move || {
            let fragments = (0..100).map(|index| {
                if index == 2 {
                    begun.send(()).expect("the test waits");
                }
                Payload::Text("x")
            });
            sender.send_fragmented(fragments).expect("the connection is open");
        });
        beginning.recv_timeout(SOON).expect("it begins");
        other.send_text("whole").expect("the connection is open");
    });
    assert_eq!(message(&mut events).text(), Some("x".repeat(100).as_str()));
    assert_eq!(message(&mut events).text(), Some("whole"));
}

#[test]
fn a_message_that_waits_for_a_fragmented_one_gives_up_at_its_deadline() {
    let server = draining(TestServer::builder());
    let client = builder(&server).send_timeout(100 * MS).connect().expect("it opens");
    let (begun, beginning) = bounded(0);
    let (finish, finished) = bounded::<()>(0);
    let sender = client.sender();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut pieces = 0;
            let fragments = std::iter::from_fn(|| {
                pieces += 1;
                if pieces == 3 {
                    begun.send(()).expect("the test waits");
                    finished.recv_timeout(SOON).expect("the test goes on");
                }
                (pieces < 4).then_some(Payload::Text("x"))
            });
            // It is late itself by then.
            let _ = sender.send_fragmented(fragments);
        });
        beginning.recv_timeout(SOON).expect("it begins");
        let error = client.send_text("whole").expect_err("the other message is not over");
        assert!(error.is_not_sent(), "{error}");
        assert_eq!(error.reason().timeout(), Some(Timeout::Send), "{error:?}");
        finish.send(()).expect("the sender waits");
    });
}

#[test]
fn a_fragmented_message_that_cannot_be_finished_aborts_the_connection() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let sender = client.sender();
    let mut events = client.events();
    opened(&mut events);
    let none = sender.send_fragmented([]).expect_err("there is nothing to send");
    assert!(none.is_not_sent() && none.reason().kind() == ErrorKind::Config);
    let early = sender
        .send_fragmented([Payload::Text("a"), Payload::Binary(b"b")])
        .expect_err("they are mixed");
    assert!(early.is_not_sent(), "the mistake is found before the first fragment is sent");
    let text_second = sender.send_fragmented([Payload::Binary(b"a"), Payload::Text("b")]);
    assert_eq!(text_second.expect_err("they are mixed").reason().kind(), ErrorKind::Config);
    assert!(sender.send_text("the connection is still open").is_ok());
    message(&mut events);
    let late =
        sender.send_fragmented([Payload::Text("a"), Payload::Text("b"), Payload::Binary(b"c")]);
    assert!(matches!(late, Err(SendError::Unknown(_))), "{late:?}");
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::Config);
}

#[test]
fn a_first_fragment_that_breaks_off_aborts_the_connection() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.stall()
        });
        let client = builder(&server).send_timeout(100 * MS).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        // More than the buffers of both kernels hold.
        let large = vec![0; 64 << 20];
        let fragments = [Payload::Binary(&large), Payload::Binary(b"")];
        let error = client.sender().send_fragmented(fragments).expect_err("nobody reads");
        assert!(matches!(error, SendError::Unknown(_)), "{error:?}");
        assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::Timeout);
    });
}

#[test]
fn a_panic_in_the_middle_of_a_fragmented_message_ends_only_its_connection() {
    let server = draining(TestServer::builder());
    let client = builder(&server).start().expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    let sender = client.sender();
    let fragments = ["a", "b"].into_iter().map(|text| match text {
        "a" => Payload::Text("a"),
        _ => std::panic::resume_unwind(Box::new("on purpose")),
    });
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        sender.send_fragmented(fragments)
    }));
    assert!(panic.is_err());
    let end = disconnected(&mut events);
    assert!(end.error.to_string().contains("panicked"), "{}", end.error);
    // The next connection is not affected.
    opened(&mut events);
    assert!(sender.send_text("next").is_ok());
}

#[test]
fn a_batch_cut_short_never_reports_an_arrived_message_as_not_sent() {
    plain_and_tls(|server_builder| {
        for buffer in [8, 48] {
            let (go, told) = bounded::<()>(1);
            let server = server_builder().start(move |peer| {
                peer.limit_receive_buffer(64 * 1024)?;
                peer.upgrade()?;
                told.recv().expect("the test says when");
                peer.drain()
            });
            let builder = builder(&server)
                .tcp_send_buffer(buffer * 1024)
                .send_timeout(200 * MS)
                .max_attempts(1);
            let client = builder.connect().expect("it opens");
            let texts: Vec<String> = (0..10_000).map(|number| format!("{number:090}")).collect();
            let batch: Vec<Payload<'_>> = texts.iter().map(|text| Payload::Text(text)).collect();
            let error = client.send_batch(&batch).expect_err("it does not fit");
            go.send(()).expect("the server waits");
            // The connection may still be open, if the batch was cut between two frames.
            drop(client);
            assert!(server.wait_until_all_closed(SOON));
            let most = error.sent + usize::from(!error.next.is_not_sent());
            let arrived = server.messages().len();
            assert!(error.sent <= arrived && arrived <= most, "{arrived} arrived: {error:?}");
        }
    });
}

#[test]
fn fragments_respect_max_outgoing_frame_size() {
    let (tell, told) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        let received = peer.receive_message()?;
        tell.send(received).expect("the test waits");
        peer.drain()
    });
    let client = builder(&server)
        .max_outgoing_frame_size(10)
        .ping_interval(None)
        .connect()
        .expect("it opens");
    let before = client.stats().bytes_sent;
    let piece = "a".repeat(45);
    client
        .sender()
        .send_fragmented([piece.as_str(), &piece].map(Payload::Text))
        .expect("the connection is open");
    let Received::Text(text) = told.recv_timeout(SOON).expect("it comes") else {
        panic!("it was text")
    };
    assert_eq!(text, piece.repeat(2));
    // Each piece takes four frames of ten bytes and one of five, each with a header of six bytes.
    assert_eq!(client.stats().bytes_sent - before, 2 * (5 * 6 + 45));
    let before = client.stats().bytes_sent;
    client
        .send_batch(&[piece.as_str(), &piece].map(Payload::Text))
        .expect("the connection is open");
    assert_eq!(client.stats().bytes_sent - before, 2 * (5 * 6 + 45));
}

#[test]
fn a_message_longer_than_max_outgoing_message_size_is_refused_and_the_connection_goes_on() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        let client = builder(&server).max_outgoing_message_size(512).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let (fits, long) = ("x".repeat(512), "x".repeat(513));
        let is_refused = |error: &SendError| {
            let reason = error.reason();
            let text = reason.to_string();
            assert!(text.contains("513 bytes") && text.contains("512"), "{text}");
            error.is_not_sent() && reason.kind() == ErrorKind::TooBig && reason.is_retryable()
        };
        assert!(client.send_text(&long).is_err_and(|error| is_refused(&error)));
        assert!(client.send_binary(long.as_bytes()).is_err_and(|error| is_refused(&error)));
        assert_eq!(client.send_text(&fits).map(|receipt| receipt.sequence).ok(), Some(1));
        let batch = ["one", "two", &long, "never"].map(Payload::Text);
        let error = client.send_batch(&batch).expect_err("the third is too long");
        assert!(error.sent == 2 && is_refused(&error.next), "{error:?}");
        // The fragments that are known before the first of them is sent.
        let pieces = [&fits[..], "x"].map(Payload::Text);
        assert!(client.sender().send_fragmented(pieces).is_err_and(|error| is_refused(&error)));
        let pieces = [&fits[1..], "y"].map(Payload::Text);
        let sent = client.sender().send_fragmented(pieces);
        assert_eq!(sent.map(|receipt| receipt.sequence).ok(), Some(4));
        for expected in [&fits[..], "one", "two", &format!("{}y", &fits[1..])] {
            assert_eq!(message(&mut events).text(), Some(expected));
        }
        assert_eq!(client.stats().messages_sent, 4);
    });
}

#[test]
fn a_message_in_fragments_that_gets_too_long_on_its_way_aborts_the_connection() {
    let server = echo(TestServer::builder());
    let client = builder(&server).max_outgoing_message_size(512).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let piece = "x".repeat(200);
    let error = client
        .sender()
        .send_fragmented([piece.as_str(); 3].map(Payload::Text))
        .expect_err("the third is one too many");
    assert!(!error.is_not_sent() && error.reason().kind() == ErrorKind::TooBig, "{error:?}");
    let disconnect = disconnected(&mut events);
    assert_eq!((disconnect.error.kind(), disconnect.sent), (ErrorKind::TooBig, 1));
}

#[test]
fn a_pong_does_not_confirm_an_unfinished_fragmented_message() {
    let (ping, pinged) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        while !matches!(peer.receive()?, Received::Ping(payload) if peer.pong(&payload).is_ok()) {}
        ping.send(()).expect("the test waits");
        peer.drain()
    });
    let client = builder(&server).ping_interval(None).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let (mut pieces, mut end) = (0, None);
    let result = client.sender().send_fragmented(std::iter::from_fn(|| {
        pieces += 1;
        if pieces == 3 {
            client.ping().expect("the connection is open");
            pinged.recv_timeout(SOON).expect("a ping passes between fragments");
            until("the pong arrives", || client.stats().round_trip.count > 0);
            server.abort_all();
            end = Some(disconnected(&mut events));
        }
        (pieces < 9).then_some(Payload::Text("piece"))
    }));
    assert!(matches!(result, Err(SendError::Unknown(_))), "{result:?}");
    let end = end.expect("the connection was aborted");
    assert_eq!((end.sent, end.confirmed), (1, 0));
}

#[test]
fn messages_of_a_batch_that_were_never_begun_do_not_count_as_sent() {
    let (go, gone) = bounded::<()>(0);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        assert!(gone.recv().is_err());
        peer.close(1001, "")?;
        peer.stall()
    });
    let client =
        builder(&server).max_attempts(1).close_timeout(50 * MS).connect().expect("it opens");
    let large = vec![0; 50_000];
    let batch = vec![Payload::Binary(&large); 2000];
    let error = thread::scope(|scope| {
        let sending = scope.spawn(|| client.sender().send_batch(&batch));
        // Nobody reads, so the batch is stuck halfway when the server closes.
        thread::sleep(50 * MS);
        drop(go);
        sending.join().expect("it does not panic").expect_err("nobody reads")
    });
    let mut events = client.events();
    opened(&mut events);
    let disconnect = disconnected(&mut events);
    // Messages of one system call count as begun together. At this size that is one message.
    assert!(
        (error.sent as u64..=error.sent as u64 + 1).contains(&disconnect.sent),
        "{disconnect:?}, {error:?}"
    );
    let stats = client.stats();
    assert_eq!(stats.messages_sent, error.sent as u64);
    assert!(stats.bytes_sent > error.sent as u64 * 50_000);
}

#[test]
fn a_send_inside_the_disconnected_callback_is_not_sent() {
    struct Sends(Option<Sender>, crossbeam_channel::Sender<Result<Receipt, SendError>>);
    impl Handler for Sends {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            self.0 = Some(connection.sender());
        }
        fn message(&mut self, connection: &mut Connection<'_>, _: MessageRef<'_>) {
            connection.stop();
        }
        fn disconnected(&mut self, _: &Disconnect) {
            let sender = self.0.as_ref().expect("it was opened");
            self.1.send(sender.send_text("cancel all")).expect("the test waits");
        }
    }
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("go")?;
        peer.drain()
    });
    let (tell, told) = bounded(1);
    for _ in 0..20 {
        let handler = Sends(None, tell.clone());
        let client = builder(&server).close_timeout(5 * MS).start_with(handler).expect("it starts");
        let result = told.recv_timeout(SOON).expect("it ends");
        assert!(result.as_ref().is_err_and(SendError::is_not_sent), "{result:?}");
        assert!(client.stop(SOON).is_clean());
    }
}
