//! Pings, pongs, and the detection of dead connections.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use tautline::testing::{Received, TestServer, TestServerBuilder};
use tautline::{
    AppPing, Client, Connection, ErrorKind, Event, Handler, MessageRef, Payload, SendError,
    WhenFull,
};

use crate::session::Words;
use crate::support::{
    MS, SOON, builder, disconnected, draining, echo, message, next, opened, plain_and_tls, skipped,
    stalling, until,
};

/// Checks that a run takes between two times. A shared machine may stall a test for a while, so one
/// of several runs has to be in time, and none may be early.
fn assert_takes(between: RangeInclusive<Duration>, mut run: impl FnMut() -> Duration) {
    let mut all = Vec::new();
    while all.iter().all(|took| took > between.end()) {
        assert!(all.len() < 5, "none was in time: {all:?}");
        let took = run();
        assert!(took >= *between.start(), "it was early: {took:?}");
        all.push(took);
    }
}

#[test]
fn two_pings_arrive_within_half_a_second_at_an_interval_of_100_ms() {
    assert_takes(200 * MS..=500 * MS, || {
        let server = echo(TestServer::builder());
        let began = Instant::now();
        let client = builder(&server).ping_interval(100 * MS).connect().expect("it opens");
        assert!(server.wait_for_pings(2, SOON));
        let took = began.elapsed();
        assert!(client.stop(SOON).is_clean());
        took
    });
}

#[test]
fn a_server_that_never_pongs_is_dropped_and_dialed_again_each_time() {
    plain_and_tls(|server_builder| {
        let server = draining(server_builder());
        let client = builder(&server)
            .ping_interval(20 * MS)
            .pong_timeout(30 * MS)
            .start()
            .expect("it starts");
        let mut events = client.events();
        for epoch in 1..=3 {
            assert_eq!(opened(&mut events).epoch, epoch);
            let disconnect = disconnected(&mut events);
            assert_eq!(disconnect.error.kind(), ErrorKind::PongTimeout);
            assert_eq!(disconnect.close.code, 1006);
        }
        assert!(server.openings() >= 3);
        assert_eq!(client.stats().drops["pong_timeout"], 3);
        assert!(client.stop(SOON).is_clean());
    });
}

#[test]
fn any_received_byte_proves_that_the_peer_is_alive() {
    // The server never pongs, but sends a byte of a long frame every few milliseconds, for three
    // times `pong_timeout`.
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.write(&[0x82, 100])?;
        peer.trickle(&[7; 99], 12 * MS)?;
        peer.write(&[7])?;
        peer.drain()
    });
    let client =
        builder(&server).ping_interval(10 * MS).pong_timeout(400 * MS).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).bytes(), [7; 100]);
    // The silence after it is noticed.
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::PongTimeout);
}

#[test]
fn bytes_of_an_incomplete_tls_record_prove_that_the_peer_is_alive() {
    const BYTES: usize = 1300;
    // The server never pongs, but sends a single TLS record byte by byte, for more than three times
    // `pong_timeout`.
    let server = TestServer::builder().tls().trickle_writes(MS).start(|peer| {
        peer.upgrade()?;
        peer.send_binary(&[7; BYTES])?;
        peer.drain()
    });
    let builder =
        builder(&server).connect_timeout(6 * SOON).ping_interval(10 * MS).pong_timeout(400 * MS);
    let client = builder.connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    // Each byte that counts resets the age to zero. The message does so too, but only once.
    let (mut last, mut falls) = (Duration::ZERO, 0);
    until("bytes of the record count", || {
        let age = client.stats().last_byte_age.unwrap_or(last);
        falls += usize::from(age < last);
        last = age;
        falls >= 20
    });
    // On a busy machine every byte may be late, though none by `pong_timeout`.
    let event = events.next_timeout(6 * SOON).expect("an event comes");
    assert!(
        matches!(&event, Event::Message(message) if message.bytes() == [7; BYTES]),
        "{event:?}"
    );
}

#[test]
fn pings_are_answered_with_their_payload() {
    plain_and_tls(|server_builder| {
        let (tell, told) = bounded(10);
        let server = server_builder().start(move |peer| {
            peer.upgrade()?;
            for payload in [&b""[..], b"one", &[0xff; 125]] {
                peer.ping(payload)?;
                tell.send(peer.receive()?).expect("the test waits");
            }
            peer.echo()
        });
        let client = builder(&server).connect().expect("it opens");
        for payload in [&b""[..], b"one", &[0xff; 125]] {
            assert_eq!(told.recv_timeout(SOON), Ok(Received::Pong(payload.to_vec())));
        }
        assert!(client.stop(SOON).is_clean());
    });
}

#[test]
fn unsolicited_late_and_repeated_pongs_are_harmless() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for _ in 0..3 {
            peer.pong(b"unsolicited")?;
        }
        if let Received::Ping(payload) = peer.receive()? {
            for _ in 0..3 {
                peer.pong(&payload)?;
            }
        }
        peer.send_text("still here")?;
        peer.echo()
    });
    let client = builder(&server).ping_interval(10 * MS).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("still here"));
    let trip = client.stats().round_trip;
    assert!(
        trip.count >= 1
            && trip.min > Duration::ZERO
            && trip.min <= trip.mean
            && trip.mean <= trip.max,
        "{trip:?}"
    );
}

#[test]
fn a_pong_that_answers_no_ping_is_not_counted_as_a_round_trip() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.pong(b"unsolicited")?;
        let Received::Ping(first) = peer.receive()? else { return Ok(()) };
        let Received::Ping(second) = peer.receive()? else { return Ok(()) };
        peer.pong(b"wrong")?;
        peer.pong(&second)?;
        // One is repeated, the other late.
        peer.pong(&second)?;
        peer.pong(&first)?;
        peer.send_text("still here")?;
        peer.drain()
    });
    let client =
        builder(&server).ping_interval(100 * MS).pong_timeout(SOON).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("still here"));
    assert_eq!(client.stats().round_trip.count, 1);
}

#[test]
fn after_a_ping_flood_the_last_ping_is_answered_and_none_twice() {
    const PINGS: u32 = 100_000;
    let (tell, told) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        for number in 0..PINGS {
            peer.ping(&number.to_be_bytes())?;
        }
        let mut last = None;
        while last != Some(PINGS - 1) {
            let Received::Pong(payload) = peer.receive()? else { continue };
            let number = u32::from_be_bytes(payload.try_into().expect("four bytes"));
            assert!(last < Some(number), "in order, and each once");
            last = Some(number);
        }
        tell.send(()).expect("the test waits");
        peer.echo()
    });
    let client = builder(&server).connect().expect("it opens");
    assert_eq!(told.recv_timeout(SOON), Ok(()));
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_ping_flood_does_not_block_the_reader() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        // The peer reads nothing meanwhile, so at some point pongs can no longer be written.
        for number in 0u32..200_000 {
            peer.ping(&number.to_be_bytes())?;
        }
        peer.send_text("after the flood")?;
        peer.echo()
    });
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(message(&mut events).text(), Some("after the flood"));
}

#[test]
fn a_slow_handler_is_not_mistaken_for_a_dead_connection() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("work")?;
        peer.echo()
    });
    let (tell, told) = bounded(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |connection: &mut Connection<'_>, _: MessageRef<'_>| {
        if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            // Longer than `pong_timeout`, while no pong is read. Passing time is what is tested.
            std::thread::park_timeout(900 * MS);
            connection.send_text("done").expect("the connection is open");
        } else {
            tell.send(connection.epoch()).expect("the test waits");
        }
    };
    let client = builder(&server)
        .ping_interval(20 * MS)
        .pong_timeout(300 * MS)
        .start_with(handler)
        .expect("it starts");
    assert_eq!(told.recv_timeout(SOON), Ok(1), "the echo comes by the same connection");
    assert!(client.stop(SOON).is_clean());
    assert!(client.stats().drops.keys().all(|kind| *kind == "stopped"));
}

#[test]
fn idle_timeout_counts_data_and_not_pongs() {
    let server = echo(TestServer::builder());
    let client =
        builder(&server).ping_interval(10 * MS).idle_timeout(100 * MS).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let disconnect = disconnected(&mut events);
    assert_eq!(disconnect.error.kind(), ErrorKind::Idle);
    assert!(disconnect.lasted >= 100 * MS);
}

#[test]
fn application_pings_are_sent_and_their_replies_are_awaited() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for _ in 0..2 {
            if peer.receive_message()? == Received::Text("ping".to_owned()) {
                peer.send_text("pong")?;
            }
        }
        peer.drain()
    });
    let ping = AppPing::text("ping", 20 * MS).answered_by(|message| message.text() == Some("pong"));
    let client = builder(&server)
        .ping_interval(None)
        .pong_timeout(300 * MS)
        .app_ping(ping)
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    for _ in 0..2 {
        assert_eq!(message(&mut events).text(), Some("pong"));
    }
    // The third is not answered.
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::PongTimeout);
    assert_eq!(server.pings(), 0);
}

/// Starts a server that answers the messages that `is_answered` says with "re: " and the message.
fn answering(is_answered: fn(&str) -> bool) -> TestServer {
    TestServer::start(move |peer| {
        peer.upgrade()?;
        loop {
            match peer.receive_message()? {
                Received::Text(text) if is_answered(&text) => {
                    peer.send_text(&format!("re: {text}"))?;
                }
                Received::End => return Ok(()),
                _ => {}
            }
        }
    })
}

/// Returns a ping that sends `text` and the number of the ping, and awaits the server's answer.
fn numbered(text: &'static str, every: Duration) -> AppPing {
    let made = AtomicUsize::new(0);
    let make = move || format!("{text} {}", made.fetch_add(1, Ordering::SeqCst));
    let reply = format!("re: {text} ");
    AppPing::made_by(make, every)
        .answered_by(move |message| message.text().is_some_and(|text| text.starts_with(&reply)))
}

#[test]
fn several_application_pings_have_their_own_intervals_and_are_made_when_they_are_sent() {
    let server = answering(|_| true);
    let client = builder(&server)
        .ping_interval(None)
        .app_ping(numbered("often", 5 * MS))
        .app_ping(numbered("seldom", 200 * MS))
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    while message(&mut events).text() != Some("re: seldom 2") {}
    assert!(client.stop(SOON).is_clean());
    let messages = server.messages();
    let of = |text: &str| -> Vec<String> {
        let texts = messages.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        texts.filter(|message| message.starts_with(text)).collect()
    };
    let (often, seldom) = (of("often"), of("seldom"));
    assert!(often.len() > 2 * seldom.len(), "{often:?} {seldom:?}");
    for (text, sent) in [("often", often), ("seldom", seldom)] {
        let expected: Vec<String> =
            (0..sent.len()).map(|number| format!("{text} {number}")).collect();
        assert_eq!(sent, expected);
    }
}

#[test]
fn one_application_ping_without_a_reply_ends_the_connection_though_another_has_its_own() {
    for unanswered in ["one", "two"] {
        let is_answered: fn(&str) -> bool = match unanswered {
            "one" => |text| text.starts_with("two"),
            _ => |text| text.starts_with("one"),
        };
        let server = answering(is_answered);
        // Both leave at once. The reply to one starts `pong_timeout` again, for the other.
        let client = builder(&server)
            .ping_interval(None)
            .pong_timeout(150 * MS)
            .app_ping(numbered("one", 400 * MS))
            .app_ping(numbered("two", 400 * MS))
            .connect()
            .expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let reply = message(&mut events).text().map(str::to_owned);
        assert!(reply.is_some_and(|reply| !reply.contains(unanswered)));
        // Where the machine pauses, both leave once more before the end.
        let end = (0..20).find_map(|_| match next(&mut events) {
            Event::Disconnected(disconnect) => Some(disconnect.error.kind()),
            _ => None,
        });
        assert_eq!(end, Some(ErrorKind::PongTimeout));
    }
}

#[test]
fn an_application_ping_that_finds_no_room_does_not_keep_another_from_noticing_a_dead_connection() {
    let server = TestServer::start(|peer| {
        peer.limit_receive_buffer(4096)?;
        peer.upgrade()?;
        peer.stall()
    });
    // Nobody reads the first, which has no replies. The second is due while there is no room.
    let long = AppPing::text("x".repeat(32 * 1024), MS);
    let client = builder(&server)
        .tcp_send_buffer(4096)
        .ping_interval(None)
        .pong_timeout(200 * MS)
        .app_ping(long)
        .app_ping(numbered("ping", 100 * MS))
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let error = disconnected(&mut events).error;
    assert_eq!(error.kind(), ErrorKind::PongTimeout, "{}", error.chain());
}

#[test]
fn application_pings_only_when_quiet_are_not_sent_while_data_flows() {
    const INTERVAL: Duration = Duration::from_millis(500);
    let (tell, told) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        // Data flows for three intervals. If the machine pauses for one of them the connection is
        // quiet, and a ping is no fault.
        let (began, mut last, mut is_gap, mut pings) = (Instant::now(), Instant::now(), false, 0);
        while began.elapsed() < 3 * INTERVAL {
            is_gap |= last.elapsed() >= INTERVAL / 2;
            last = Instant::now();
            peer.send_text("data")?;
            pings += usize::from(peer.receive_timeout(10 * MS)?.is_some());
        }
        tell.send((pings, is_gap)).expect("the test waits");
        peer.send_text("end of data")?;
        peer.echo()
    });
    let pings_of = |ping: AppPing| {
        let client =
            builder(&server).ping_interval(None).app_ping(ping).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        while message(&mut events).text() != Some("end of data") {}
        assert_eq!(
            message(&mut events).text(),
            Some("ping"),
            "the connection is quiet, and the echo of the ping comes"
        );
        told.recv_timeout(SOON).expect("the server has counted")
    };
    // Without `only_when_quiet` pings are sent whether data flows or not.
    assert!(pings_of(AppPing::text("ping", INTERVAL)).0 >= 1);
    for _ in 0..5 {
        let (pings, is_gap) = pings_of(AppPing::text("ping", INTERVAL).only_when_quiet());
        if !is_gap {
            assert_eq!(pings, 0, "no ping is needed while data flows");
            return;
        }
    }
    skipped("on this machine data never flows for long enough without a pause");
}

#[test]
fn a_ping_on_demand_confirms_what_was_sent_before_it() {
    let (tell, told) = bounded(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        loop {
            match peer.receive()? {
                Received::Ping(payload) => {
                    peer.pong(&payload)?;
                    peer.send_text("ponged")?;
                    // The next message stays unconfirmed, because the connection is reset after it.
                    peer.receive()?;
                    tell.send(()).expect("the test waits");
                    return peer.reset();
                }
                Received::End => return Ok(()),
                _ => {}
            }
        }
    });
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(client.send_text("one").map(|receipt| receipt.sequence).ok(), Some(1));
    assert_eq!(client.send_text("two").map(|receipt| receipt.sequence).ok(), Some(2));
    client.ping().expect("the connection is open");
    assert_eq!(message(&mut events).text(), Some("ponged"));
    assert_eq!(client.send_text("three").map(|receipt| receipt.sequence).ok(), Some(3));
    told.recv_timeout(SOON).expect("the server read it");
    let disconnect = disconnected(&mut events);
    assert_eq!((disconnect.sent, disconnect.confirmed), (3, 2));
}

#[test]
fn a_dead_connection_is_noticed_after_ping_interval_plus_pong_timeout() {
    let server = draining(TestServer::builder());
    assert_takes(200 * MS..=400 * MS, || {
        let client = builder(&server)
            .ping_interval(100 * MS)
            .pong_timeout(100 * MS)
            .connect()
            .expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        let Event::Disconnected(disconnect) = next(&mut events) else {
            panic!("the connection is dead")
        };
        assert_eq!(disconnect.error.kind(), ErrorKind::PongTimeout);
        disconnect.lasted
    });
}

#[test]
fn a_slow_ping_closure_does_not_hide_a_dead_connection() {
    let server = stalling(TestServer::builder());
    // So slow that each call could be mistaken for a suspension of the whole process.
    let make = || {
        thread::sleep(60 * MS);
        "ping".to_owned()
    };
    let ping = AppPing::made_by(make, 100 * MS);
    let client = builder(&server)
        .ping_interval(20 * MS)
        .pong_timeout(150 * MS)
        .app_ping(ping)
        .connect()
        .expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::PongTimeout);
}

#[test]
fn a_connection_stays_open_while_its_pings_wait_behind_our_own_fragments() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        loop {
            match peer.receive_message()? {
                Received::Text(text) if text == "ping" => peer.send_text("pong")?,
                Received::End => return Ok(()),
                _ => {}
            }
        }
    });
    let ping =
        AppPing::text("ping", 100 * MS).answered_by(|message| message.text() == Some("pong"));
    let client = builder(&server)
        .ping_interval(None)
        .pong_timeout(300 * MS)
        .app_ping(ping)
        .connect()
        .expect("it opens");
    let mut pieces = 0;
    let sent = client.sender().send_fragmented(std::iter::from_fn(|| {
        pieces += 1;
        thread::sleep(250 * MS);
        (pieces <= 3).then_some(Payload::Text("piece "))
    }));
    assert!(sent.is_ok(), "{sent:?}, {:?}", client.stats().drops);
    assert_eq!(client.stats().drops.len(), 0);
}

#[test]
fn a_full_queue_that_blocks_the_reader_is_not_mistaken_for_a_dead_connection() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for _ in 0..3 {
            peer.send_text("tick")?;
        }
        peer.echo()
    });
    let limit = 100 * MS;
    let client = builder(&server)
        .queue_messages(1)
        .when_full(WhenFull::Block)
        .ping_interval(20 * MS)
        .pong_timeout(limit)
        .connect()
        .expect("it opens");
    // The reader waits for room, several times `pong_timeout`. Passing time is what is tested.
    until("the queue is full", || client.stats().queue_depth == 2);
    thread::sleep(4 * limit);
    let mut events = client.events();
    opened(&mut events);
    for _ in 0..3 {
        assert_eq!(message(&mut events).text(), Some("tick"));
    }
    assert_eq!((client.epoch(), client.stats().drops.len()), (1, 0));
}

#[test]
fn application_pings_are_made_when_they_are_sent() {
    let server = echo(TestServer::builder());
    let made = AtomicUsize::new(0);
    let ping =
        AppPing::made_by(move || format!("ping {}", made.fetch_add(1, Ordering::SeqCst)), 5 * MS);
    let client = builder(&server).app_ping(ping).connect().expect("it opens");
    assert!(server.wait_for_messages(3, SOON));
    assert!(client.stop(SOON).is_clean());
    assert_eq!(
        server.messages()[..3],
        [b"ping 0".to_vec(), b"ping 1".to_vec(), b"ping 2".to_vec()]
    );
    let (sent, told) = (client.stats().messages_sent, highest_sequence(&client));
    assert_eq!(sent, told, "application pings count as messages");
}

/// Returns the number of messages sent on the last connection.
fn highest_sequence(client: &Client) -> u64 {
    let ends = client.events().filter_map(|event| match event {
        Event::Disconnected(disconnect) => Some(disconnect.sent),
        _ => None,
    });
    ends.last().expect("a connection has ended")
}

#[test]
fn a_ping_closure_that_panics_ends_the_client() {
    let server = echo(TestServer::builder());
    let ping = AppPing::made_by(|| std::panic::resume_unwind(Box::new("on purpose")), MS);
    let client = builder(&server).app_ping(ping).connect().expect("it opens");
    assert_eq!(client.wait_closed(SOON).map(|end| end.kind()), Some(ErrorKind::HandlerPanicked));
    assert!(client.take_panic().is_some());
}

#[test]
fn a_panic_in_answered_by_ends_the_client_with_one_disconnect() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.receive_message()?;
        peer.send_text("boom")?;
        peer.drain()
    });
    let ping = AppPing::text("ping", 20 * MS)
        .answered_by(|_| std::panic::resume_unwind(Box::new("on purpose")));
    let client = builder(&server).app_ping(ping).connect().expect("it opens");
    let (mut ends, mut last) = (0, None);
    for event in client.events() {
        ends += usize::from(matches!(event, Event::Disconnected(_)));
        last = Some(event);
    }
    assert_eq!(ends, 1);
    assert!(matches!(last, Some(Event::Stopped(_))));
    assert_eq!(client.stop_reason().map(|end| end.kind()), Some(ErrorKind::HandlerPanicked));
    assert!(client.take_panic().is_some());
}

#[test]
fn a_slow_handler_does_not_make_its_connection_idle() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            loop {
                peer.send_binary(&vec![1; 300_000])?;
            }
        });
        let (tell, told) = bounded(0);
        let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
            // Longer than `idle_timeout` each time, while the next message waits in the kernel.
            thread::sleep(400 * MS);
            tell.send(()).ok();
        };
        let client =
            builder(&server).idle_timeout(300 * MS).start_with(handler).expect("it starts");
        for _ in 0..5 {
            told.recv_timeout(SOON).expect("messages come");
        }
        assert!(client.stats().drops.is_empty(), "{:?}", client.stats().drops);
        drop(told);
        assert!(client.stop(SOON).is_clean());
    });
}

#[test]
fn a_blocked_sender_does_not_hide_a_dead_connection() {
    plain_and_tls(|server_builder| {
        let server = stalling(server_builder());
        let builder =
            builder(&server).send_timeout(60 * SOON).ping_interval(50 * MS).pong_timeout(200 * MS);
        let client = builder.max_attempts(1).connect().expect("it opens");
        let sender = client.sender();
        // This is much more than the kernel buffers while nobody reads.
        let blocked = thread::spawn(move || sender.send_binary(&vec![0; 64 << 20]));
        let mut events = client.events();
        opened(&mut events);
        assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::PongTimeout);
        let sent = blocked.join().expect("it does not panic");
        assert!(matches!(sent, Err(SendError::Unknown(_))), "{sent:?}");
    });
}

#[test]
fn pongs_that_cannot_be_written_do_not_hide_a_dead_connection() {
    let server = TestServer::start(|peer| {
        peer.limit_receive_buffer(4096)?;
        peer.upgrade()?;
        // These cause more pongs than the kernel buffers while nobody reads. Silence follows.
        for round in 0u32..200 {
            for number in 0u32..12 {
                peer.ping(&[(round * 100 + number).to_be_bytes(); 31].concat())?;
            }
            peer.wait(2 * MS)?;
        }
        peer.stall()
    });
    let builder =
        builder(&server).tcp_send_buffer(4096).ping_interval(1000 * MS).pong_timeout(300 * MS);
    let client = builder.connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::PongTimeout);
}

#[test]
fn a_peer_that_reads_slowly_and_sends_nothing_counts_as_alive() {
    let server = TestServer::start(|peer| {
        peer.limit_receive_buffer(64 * 1024)?;
        peer.upgrade()?;
        // Reading all of it takes two seconds, and no pong is sent.
        loop {
            peer.receive()?;
            peer.wait(12 * MS)?;
        }
    });
    let builder =
        builder(&server).tcp_send_buffer(64 * 1024).ping_interval(100 * MS).pong_timeout(700 * MS);
    let client = builder.send_timeout(3 * SOON).connect().expect("it opens");
    // A batch is a single send: no ping passes between its messages.
    let piece = vec![0; 64 * 1024];
    let receipt = client.send_batch(&[Payload::Binary(&piece); 160]).expect("it gets through");
    assert_eq!((receipt.epoch, receipt.sequence), (1, 160));
}

#[test]
fn a_connection_that_stalls_in_the_middle_of_a_tls_record_is_dropped() {
    for bytes in [1, 5, 60] {
        let server = TestServer::builder().tls().start(move |peer| {
            peer.upgrade()?;
            if peer.number() == 0 {
                peer.stall_writes_after(bytes);
                return peer.send_text("a message that comes to a halt in its TLS record");
            }
            peer.send_text("whole")?;
            peer.echo()
        });
        let client = builder(&server)
            .ping_interval(50 * MS)
            .pong_timeout(500 * MS)
            .start()
            .expect("it starts");
        let mut events = client.events();
        opened(&mut events);
        assert_eq!(disconnected(&mut events).error.kind(), ErrorKind::PongTimeout);
        opened(&mut events);
        assert_eq!(message(&mut events).text(), Some("whole"));
    }
}

#[test]
fn idle_timeout_counts_no_replies_to_application_pings() {
    // The replies come in pairs, so that there are some that nobody awaits.
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        while let Received::Text(_) = peer.receive_message()? {
            peer.send_text("pong")?;
            peer.send_text("pong")?;
        }
        Ok(())
    });
    let ping = AppPing::text("ping", 10 * MS).answered_by(|message| message.text() == Some("pong"));
    let client = builder(&server)
        .ping_interval(None)
        .app_ping(ping)
        .idle_timeout(100 * MS)
        .connect()
        .expect("it opens");
    let disconnect = disconnected_after_opening(&client);
    assert_eq!(disconnect.error.kind(), ErrorKind::Idle);
    assert!(disconnect.lasted >= 100 * MS);
}

fn disconnected_after_opening(client: &Client) -> tautline::Disconnect {
    let mut events = client.events();
    opened(&mut events);
    disconnected(&mut events)
}

/// The calls of a [`Pinger`].
#[derive(Debug, PartialEq)]
enum Seen {
    Pong(Duration),
    Text(String),
    BatchEnd,
    Ready,
}

/// Asks for a ping when a connection opens, and does something at its pong.
struct Pinger {
    seen: crossbeam_channel::Sender<Seen>,
    at_pong: fn(&mut Connection<'_>),
}

impl Handler for Pinger {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        connection.ping().expect("it is open");
    }

    fn message(&mut self, _connection: &mut Connection<'_>, message: MessageRef<'_>) {
        let text = message.text().expect("a text").to_owned();
        self.seen.send(Seen::Text(text)).expect("the test waits");
    }

    fn pong(&mut self, connection: &mut Connection<'_>, round_trip: Duration) {
        self.seen.send(Seen::Pong(round_trip)).expect("the test waits");
        (self.at_pong)(connection);
    }

    fn batch_end(&mut self, _connection: &mut Connection<'_>) {
        self.seen.send(Seen::BatchEnd).expect("the test waits");
    }

    fn ready(&mut self, _connection: &mut Connection<'_>) {
        self.seen.send(Seen::Ready).expect("the test waits");
    }
}

/// Pongs unasked, answers the first ping twice, and sends a text behind it, in one piece.
fn pongs_thrice(server: TestServerBuilder) -> TestServer {
    server.start(|peer| {
        peer.upgrade()?;
        peer.pong(b"unasked")?;
        let Received::Ping(payload) = peer.receive()? else { panic!("no ping") };
        let pong = [&[0x8a, payload.len() as u8], &payload[..]].concat();
        peer.write(&[&pong[..], &pong, b"\x81\x03end"].concat())?;
        peer.drain()
    })
}

#[test]
fn a_handler_is_told_of_each_pong_that_answers_a_ping_and_how_long_it_took() {
    plain_and_tls(|server_builder| {
        let server = pongs_thrice(server_builder());
        let (seen, all) = bounded(8);
        let began = Instant::now();
        let client = builder(&server)
            .ping_interval(None)
            .start_with(Pinger { seen, at_pong: |_| {} })
            .expect("it starts");
        let Ok(Seen::Pong(round_trip)) = all.recv_timeout(SOON) else { panic!("no pong") };
        assert_eq!(all.recv_timeout(SOON), Ok(Seen::Text("end".to_owned())));
        // One, and for the message.
        assert_eq!(all.recv_timeout(SOON), Ok(Seen::BatchEnd));
        assert!(round_trip > Duration::ZERO && round_trip < began.elapsed());
        let stats = client.stats().round_trip;
        assert_eq!((stats.count, stats.last), (1, round_trip));
        assert!(client.stop(SOON).is_clean());
        assert_eq!(all.try_iter().next(), None);
    });
}

#[test]
fn nothing_is_delivered_after_a_stop_at_a_pong() {
    plain_and_tls(|server_builder| {
        let server = pongs_thrice(server_builder());
        let (seen, all) = bounded(8);
        let client = builder(&server)
            .ping_interval(None)
            .close_timeout(50 * MS)
            .start_with(Pinger { seen, at_pong: |connection| connection.stop() })
            .expect("it starts");
        assert!(client.wait_closed(SOON).is_some());
        assert!(client.stop(SOON).is_clean());
        let all: Vec<Seen> = all.iter().collect();
        assert!(matches!(all[..], [Seen::Pong(_)]), "{all:?}");
    });
}

#[test]
fn nothing_of_a_connection_is_delivered_after_a_reconnect_at_a_pong() {
    plain_and_tls(|server_builder| {
        let server = pongs_thrice(server_builder());
        let (seen, all) = bounded(8);
        let at_pong = |connection: &mut Connection<'_>| {
            if connection.epoch() == 1 {
                connection.reconnect();
            }
        };
        let pinger = Pinger { seen, at_pong };
        let builder = builder(&server).ping_interval(None).close_timeout(50 * MS);
        let client = builder.start_with(pinger).expect("it starts");
        let all: Vec<Seen> = (0..4).map(|_| all.recv_timeout(SOON).expect("it comes")).collect();
        let [Seen::Pong(_), Seen::Pong(_), Seen::Text(_), Seen::BatchEnd] = &all[..] else {
            panic!("{all:?}")
        };
        assert_eq!(client.stats().epochs, 2);
        assert!(client.stop(SOON).is_clean());
    });
}

#[test]
fn a_panic_at_a_pong_ends_the_client() {
    let server = pongs_thrice(TestServer::builder());
    let (seen, all) = bounded(8);
    let at_pong = |_: &mut Connection<'_>| std::panic::resume_unwind(Box::new("on purpose"));
    let builder = builder(&server).ping_interval(None);
    let client = builder.start_with(Pinger { seen, at_pong }).expect("it starts");
    let why = client.wait_closed(SOON).expect("it ends");
    assert_eq!(why.kind(), ErrorKind::HandlerPanicked);
    assert!(client.take_panic().is_some());
    let all: Vec<Seen> = all.iter().collect();
    assert!(matches!(all[..], [Seen::Pong(_)]), "{all:?}");
}

#[test]
fn the_handler_of_a_session_is_told_of_pongs_before_the_session_is_ready_too() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        let Received::Ping(payload) = peer.receive()? else { panic!("no ping") };
        peer.pong(&payload)?;
        let Received::Ping(payload) = peer.receive()? else { panic!("no ping") };
        peer.send_text("welcome")?;
        peer.pong(&payload)?;
        let Received::Text(_) = peer.receive()? else { panic!("no login") };
        peer.send_text("login ok")?;
        let Received::Ping(payload) = peer.receive()? else { panic!("no ping") };
        peer.pong(&payload)?;
        peer.drain()
    });
    let (seen, all) = bounded(16);
    let builder = builder(&server).ping_interval(None).session(Words::with_login());
    let session = builder.start_with(Pinger { seen, at_pong: |_| {} }).expect("it starts");
    let next = || loop {
        match all.recv_timeout(SOON).expect("the handler is told") {
            Seen::BatchEnd => {}
            seen => return seen,
        }
    };
    assert!(matches!(next(), Seen::Pong(_)));
    session.sender().ping().expect("the connection is open");
    assert!(matches!(next(), Seen::Pong(_)));
    assert_eq!(next(), Seen::Ready);
    session.sender().ping().expect("the connection is open");
    assert!(matches!(next(), Seen::Pong(_)));
    assert_eq!(session.stats().round_trip.count, 3);
    assert!(session.stop(SOON).is_clean());
}
