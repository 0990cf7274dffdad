//! Messages on their way to the program: the events queue and its rules.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{bounded, select, unbounded};
use tautline::testing::{Received, TestServer};
use tautline::{Event, TryNextError, WhenFull};

#[cfg(unix)]
use crate::support::plain_and_tls;
use crate::support::{MS, SOON, builder, disconnected, echo, message, next, opened, until};

/// Sends `count` numbered messages, then a last one that says so when the test lets it.
fn burst(count: usize, finish: crossbeam_channel::Receiver<()>) -> TestServer {
    TestServer::start(move |peer| {
        peer.upgrade()?;
        for number in 0..count {
            peer.send_text(&number.to_string())?;
        }
        if finish.recv().is_ok() {
            peer.send_text("last")?;
        }
        peer.echo()
    })
}

#[test]
fn a_program_that_lags_is_disconnected_and_its_queue_can_still_be_read() {
    let (go, finish) = bounded::<()>(1);
    let server = burst(100, finish);
    let client = builder(&server).queue_messages(10).connect().expect("it opens");
    assert!(server.wait_for_openings(2, SOON), "the connection comes back");
    let mut events = client.events();
    assert_eq!(opened(&mut events).epoch, 1);
    for number in 0..10 {
        assert_eq!(message(&mut events).text(), Some(number.to_string().as_str()));
    }
    let Event::Lagged(lag) = next(&mut events) else { panic!("something was lost") };
    assert!(lag.lost >= 1);
    let disconnect = disconnected(&mut events);
    assert_eq!(disconnect.error.kind().as_str(), "lagged");
    assert_eq!(opened(&mut events).epoch, 2);
    drop(go);
}

#[test]
fn dropping_the_oldest_keeps_the_newest_and_counts_the_rest() {
    let (go, finish) = bounded::<()>(1);
    let server = burst(1000, finish);
    let client = builder(&server)
        .queue_messages(10)
        .when_full(WhenFull::DropOldest)
        .connect()
        .expect("it opens");
    until("the burst arrives", || client.stats().messages_received >= 1000);
    go.send(()).expect("the server waits");
    until("the last message arrives", || client.stats().messages_received >= 1001);
    // The last batch may still be on its way into the queue.
    until("the oldest make room", || client.stats().messages_lost >= 991);
    let mut events = client.events();
    opened(&mut events);
    let Event::Lagged(lag) = next(&mut events) else { panic!("something was lost") };
    assert_eq!(lag.lost, 991);
    let texts: Vec<String> =
        (0..10).map(|_| message(&mut events).into_text().expect("it is text")).collect();
    assert_eq!(texts[0], "991");
    assert_eq!(texts[9], "last");
}

#[test]
fn dropping_the_newest_keeps_the_oldest_and_counts_the_rest() {
    let (go, finish) = bounded::<()>(1);
    let server = burst(1000, finish);
    let client = builder(&server)
        .queue_messages(10)
        .when_full(WhenFull::DropNewest)
        .connect()
        .expect("it opens");
    until("the newest find no room", || client.stats().messages_lost >= 990);
    let mut events = client.events();
    opened(&mut events);
    for number in 0..10 {
        assert_eq!(message(&mut events).text(), Some(number.to_string().as_str()));
    }
    let Event::Lagged(lag) = next(&mut events) else { panic!("something was lost") };
    assert_eq!(lag.lost, 990);
    go.send(()).expect("the server waits");
    assert_eq!(message(&mut events).text(), Some("last"));
}

#[test]
fn blocking_loses_nothing() {
    let (go, finish) = bounded::<()>(1);
    let server = burst(50_000, finish);
    let client =
        builder(&server).queue_messages(10).when_full(WhenFull::Block).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    for number in 0..50_000 {
        assert_eq!(message(&mut events).text(), Some(number.to_string().as_str()));
    }
    assert_eq!(client.stats().messages_lost, 0);
    drop(go);
}

#[test]
fn a_blocked_reader_stops_at_once() {
    let (go, finish) = bounded::<()>(1);
    let server = burst(50_000, finish);
    let client = builder(&server)
        .queue_messages(10)
        .when_full(WhenFull::Block)
        .close_timeout(20 * MS)
        .connect()
        .expect("it opens");
    until("the queue is full", || client.stats().queue_depth >= 11);
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
    drop(go);
}

#[test]
fn where_nobody_pulls_pings_are_answered_all_the_same() {
    for rule in [WhenFull::DropOldest, WhenFull::DropNewest] {
        let (tell, told) = bounded(1);
        let server = TestServer::start(move |peer| {
            peer.upgrade()?;
            for number in 0..1000 {
                peer.send_text(&number.to_string())?;
            }
            peer.ping(b"and now?")?;
            loop {
                match peer.receive()? {
                    Received::Pong(payload) if payload == b"and now?" => {
                        tell.send(()).expect("the test waits")
                    }
                    Received::Ping(payload) => peer.pong(&payload)?,
                    Received::End => return Ok(()),
                    _ => {}
                }
            }
        });
        let client = builder(&server)
            .queue_messages(10)
            .when_full(rule)
            .ping_interval(10 * MS)
            .connect()
            .expect("it opens");
        assert_eq!(told.recv_timeout(SOON), Ok(()));
        assert_eq!(client.epoch(), 1);
    }
}

#[test]
fn the_queue_is_bounded_in_bytes() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for _ in 0..100 {
            peer.send_binary(&[0; 1000])?;
        }
        peer.echo()
    });
    let client = builder(&server)
        .queue_bytes(10_000)
        .when_full(WhenFull::DropNewest)
        .connect()
        .expect("it opens");
    until("the rest find no room", || client.stats().messages_lost >= 90);
    // The opening, ten messages, the lag.
    assert_eq!(client.stats().queue_depth, 12);
}

#[test]
fn a_pull_ends_in_time_and_says_why_there_is_no_event() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(events.try_next().map_err(|none| none == TryNextError::Empty).err(), Some(true));
    assert_eq!(
        events.next_timeout(MS).map_err(|none| none == TryNextError::Empty).err(),
        Some(true)
    );
    client.stop(SOON);
    while events.next_timeout(SOON).is_ok() {}
    assert_eq!(
        events.try_next().map_err(|none| none == TryNextError::Disconnected).err(),
        Some(true)
    );
}

#[test]
fn a_program_can_select_over_events_and_its_own_channels() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let (order, orders) = bounded(1);
    let mut events = client.events();
    let ready = events.ready();
    let mut seen = Vec::new();
    order.send("buy").expect("the test reads");
    while seen.len() < 2 {
        select! {
            recv(orders) -> order => {
                client.send_text(order.expect("the test sends")).expect("the connection is open");
            }
            recv(ready) -> _ => while let Ok(event) = events.try_next() {
                match event {
                    Event::Opened(_) => seen.push("opened".to_owned()),
                    Event::Message(message) => seen.push(message.into_text().expect("it is text")),
                    other => panic!("{other:?}"),
                }
            },
            default(SOON) => panic!("nothing came"),
        }
    }
    assert_eq!(seen, ["opened", "buy"]);
}

#[test]
fn frames_glued_to_the_answer_of_the_handshake_are_delivered() {
    for tls in [false, true] {
        let settings = if tls { TestServer::builder().tls() } else { TestServer::builder() };
        let server = settings.start(|peer| {
            let request = peer.read_request()?;
            let mut answer = request.acceptance("").into_bytes();
            answer.extend_from_slice(b"\x81\x05glued\x81\x04half");
            // Half of the second frame comes later.
            let (now, later) = answer.split_at(answer.len() - 2);
            peer.write(now)?;
            peer.wait(20 * MS)?;
            peer.write(later)?;
            peer.echo()
        });
        let client = builder(&server).connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        assert_eq!(message(&mut events).text(), Some("glued"));
        assert_eq!(message(&mut events).text(), Some("half"));
    }
}

#[test]
fn several_may_pull_and_each_event_goes_to_one() {
    let (go, finish) = bounded::<()>(1);
    let server = burst(1000, finish);
    let client = builder(&server).connect().expect("it opens");
    let total: usize = thread::scope(|scope| {
        let pullers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    client.events().filter(|event| matches!(event, Event::Message(_))).count()
                })
            })
            .collect();
        until("all are pulled", || {
            client.stats().queue_depth == 0 && client.stats().messages_received >= 1000
        });
        client.stop(Duration::from_secs(5));
        pullers.into_iter().map(|puller| puller.join().expect("it does not panic")).sum()
    });
    assert_eq!(total, 1000);
    drop(go);
}

#[test]
#[cfg(unix)]
fn a_reader_that_spins_delivers_sends_and_stops_like_any_other() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        let client = builder(&server).busy_poll().connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        for number in 0..100 {
            client.send_text(&number.to_string()).expect("the connection is open");
            assert_eq!(message(&mut events).text(), Some(number.to_string().as_str()));
        }
        server.abort_all();
        disconnected(&mut events);
        assert_eq!(opened(&mut events).epoch, 2);
        assert!(client.stop(SOON).is_clean());
        // A server that says nothing: what ends the spinning is the stop.
        let silent = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.drain()
        });
        let client =
            builder(&silent).busy_poll().close_timeout(10 * MS).connect().expect("it opens");
        assert!(client.stop(SOON).is_clean());
        // The kernel tells of a reset once.
        let resetting = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.receive_message()?;
            peer.reset()
        });
        let client = builder(&resetting).busy_poll().connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        client.send_text("x").expect("the connection is open");
        let end = disconnected(&mut events);
        assert_eq!(end.error.kind(), tautline::ErrorKind::Io, "{end}");
    });
}

#[test]
fn every_thread_calls_the_hook_first_and_outlives_a_panic_in_it() {
    let server = echo(TestServer::builder().tls());
    let (started, threads) = unbounded();
    let hook = move |name: &str| {
        let own = thread::current().name().map(str::to_owned);
        started.send((name.to_owned(), own)).expect("the test waits");
        std::panic::resume_unwind(Box::new("on purpose"));
    };
    let client = builder(&server).on_thread_start(hook).connect().expect("it opens all the same");
    assert!(client.stop(SOON).is_clean());
    let names = threads.try_iter().map(|(name, own)| {
        assert_eq!(own.as_deref(), Some(name.as_str()));
        name
    });
    // The roots of the system are read once per process, by whichever client is the first.
    let mut names: Vec<String> = names.filter(|name| name != "taut-roots").collect();
    names.sort();
    assert_eq!(names, ["taut-heartbeat", "taut-reader", "taut-resolver"]);
}

#[test]
fn stats_count_messages_and_their_bytes_both_ways() {
    let server = echo(TestServer::builder());
    let client = builder(&server).ping_interval(None).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    for text in ["", "a", "né"] {
        client.send_text(text).expect("the connection is open");
        assert_eq!(message(&mut events).text(), Some(text));
    }
    // The reader counts what a `recv` brought after it has delivered it.
    until("all are counted", || client.stats().messages_received == 3);
    let stats = client.stats();
    assert_eq!((stats.messages_received, stats.bytes_received), (3, 4));
    // Each frame has a header of six bytes.
    assert_eq!((stats.messages_sent, stats.bytes_sent), (3, 4 + 3 * 6));
    assert_eq!((stats.epochs, stats.failed_dials, stats.queue_depth), (1, 0, 0));
    assert!(stats.drops.is_empty() && stats.last_byte_age.is_some_and(|age| age < SOON));
}

#[test]
fn messages_know_when_they_came_by_both_clocks() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let (before, before_wall) = (Instant::now(), SystemTime::now());
    client.send_text("now").expect("the connection is open");
    let message = message(&mut events);
    assert!(message.received_at() >= before && message.received_at() <= Instant::now());
    // The two clocks are read one after the other, and a machine may pause in between.
    let tolerance = Duration::from_secs(2);
    assert!(
        message.received_wall() + tolerance >= before_wall
            && message.received_wall() <= SystemTime::now() + tolerance
    );
}

#[test]
#[cfg(target_os = "linux")]
fn the_kernel_tells_when_it_got_what_a_busy_handler_let_lie() {
    use tautline::{Connection, MessageRef};

    plain_and_tls(|server| {
        for is_spinning in [false, true] {
            let (sent, is_answered) = unbounded();
            let server = server().start(move |peer| {
                peer.upgrade()?;
                loop {
                    peer.receive_message()?;
                    peer.send_text("answer")?;
                    sent.send(()).expect("the test waits");
                }
            });
            let (got, messages) = unbounded();
            let (release, held) = unbounded::<()>();
            let handler = move |_: &mut Connection<'_>, message: MessageRef<'_>| {
                got.send(message.to_owned()).expect("the test waits");
                // Ends when the test lets go.
                held.recv().ok();
            };
            let builder = builder(&server).kernel_timestamps();
            let builder = if is_spinning { builder.busy_poll() } else { builder };
            let client = builder.start_with(handler).expect("it starts");
            client.wait_open(SOON).expect("it opens");
            let ask = || {
                client.send_text("what time is it?").expect("the connection is open");
                is_answered.recv_timeout(SOON).expect("it is answered");
            };
            // The first connection of a machine that asks for times may get some messages before
            // the kernel has begun to note them.
            let deadline = Instant::now() + SOON;
            loop {
                ask();
                if messages.recv_timeout(SOON).expect("it comes").kernel_received().is_some() {
                    break;
                }
                release.send(()).expect("the handler waits");
                assert!(Instant::now() < deadline, "the kernel tells no times");
            }
            // The handler is busy.
            let asked_at = SystemTime::now();
            ask();
            let answered_at = SystemTime::now();
            release.send(()).expect("the handler waits");
            let message = messages.recv_timeout(SOON).expect("it comes");
            let kernel = message.kernel_received().expect("it was told before");
            assert!(
                asked_at <= kernel && kernel <= answered_at,
                "{asked_at:?} {kernel:?} {answered_at:?}"
            );
            // The two clocks are read one after the other, and a machine may pause in between.
            assert!(message.received_wall() + Duration::from_secs(2) >= answered_at);
            drop(release);
            assert!(client.stop(SOON).is_clean());
        }
    });
}

#[test]
fn events_live_beside_their_client_and_outlive_it() {
    struct Bot {
        client: tautline::Client,
        events: tautline::Events,
    }

    for is_client_first in [true, false] {
        let server = echo(TestServer::builder());
        let client = builder(&server).connect().expect("it opens");
        let events = client.events();
        let mut bot = Bot { client, events };
        opened(&mut bot.events);
        let mut bot = thread::spawn(move || {
            bot.client.send_text("a").expect("the connection is open");
            assert_eq!(message(&mut bot.events).text(), Some("a"));
            bot
        })
        .join()
        .expect("it does not panic");
        if is_client_first {
            drop(bot.client);
            disconnected(&mut bot.events);
            crate::support::stopped(&mut bot.events);
            assert!(bot.events.next().is_none());
        } else {
            drop(bot.events);
            assert!(bot.client.stop(SOON).is_clean());
            // What nobody has read is still there.
            disconnected(&mut bot.client.events());
        }
    }
}

#[test]
fn batches_hold_every_event_in_its_place() {
    let (go, finish) = bounded::<()>(1);
    let server = burst(50_000, finish);
    let client =
        builder(&server).queue_messages(10).when_full(WhenFull::Block).connect().expect("it opens");
    let mut events = client.events();
    let mut next = 0;
    while next < 50_000 {
        for event in events.next_batch_timeout(SOON).expect("a batch comes") {
            match event {
                tautline::EventRef::Opened(opened) => assert_eq!((opened.epoch, next), (1, 0)),
                tautline::EventRef::Message(message) => {
                    assert_eq!(message.text(), Some(next.to_string().as_str()));
                    next += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    client.stop(SOON);
    let mut last = None;
    while let Some(batch) = events.next_batch() {
        last = batch.iter().last().map(|event| event.to_owned());
    }
    assert!(matches!(last, Some(Event::Stopped(_))), "{last:?}");
    drop(go);
}

#[test]
#[cfg(unix)]
fn a_program_can_poll_a_descriptor_for_events() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    let mut events = client.events();
    let wait = |events: &tautline::Events| {
        let fd = events.as_fd().expect("there are descriptors");
        let soon = Timespec { tv_sec: 10, tv_nsec: 0 };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&soon)).expect("it polls")
    };
    assert_eq!(wait(&events), 1);
    opened(&mut events);
    for number in 0..100 {
        client.send_text(&number.to_string()).expect("the connection is open");
        assert_eq!(wait(&events), 1);
        let event = events.try_next().expect("it is there");
        let Event::Message(message) = event else { panic!("{event:?}") };
        assert_eq!(message.text(), Some(number.to_string().as_str()));
    }
    drop(client);
    while events.try_next().is_ok() {}
    assert_eq!(wait(&events), 1, "the end shows");
}

#[test]
fn conflation_keeps_the_latest_of_each_key_and_nothing_crosses_an_opening() {
    let (go, finish) = bounded::<()>(1);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        for round in 0..100 {
            for key in ["a", "b", "c"] {
                peer.send_text(&format!("{key}{round}"))?;
            }
        }
        peer.send_text("last")?;
        // An end of this connection, which the program asks for.
        if finish.recv().is_ok() {
            return Ok(());
        }
        peer.drain()
    });
    let client = builder(&server)
        .conflate(|message| message.bytes().get(..1).filter(|key| *key != b"l"))
        .connect()
        .expect("it opens");
    let is_read = |times: u64| {
        until("the messages are queued", || client.stats().messages_conflated == times * 297);
        until("the last is queued", || client.stats().queue_depth as u64 >= times * 5);
    };
    is_read(1);
    go.send(()).expect("the server waits");
    is_read(2);
    let mut events = client.events();
    for epoch in [1, 2] {
        assert_eq!(opened(&mut events).epoch, epoch);
        for text in ["a99", "b99", "c99", "last"] {
            assert_eq!(message(&mut events).text(), Some(text));
        }
        if epoch == 1 {
            disconnected(&mut events);
        }
    }
    assert_eq!(client.stats().messages_lost, 0);
    drop(go);
}

#[test]
fn a_panic_in_the_key_of_conflation_ends_the_client_and_is_told() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("a")?;
        peer.drain()
    });
    let client = builder(&server)
        .conflate(|_| std::panic::resume_unwind(Box::new("on purpose")))
        .start()
        .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    let end = disconnected(&mut events);
    assert_eq!(end.error.kind(), tautline::ErrorKind::HandlerPanicked);
    let reason = crate::support::stopped(&mut events).reason;
    assert_eq!(reason.kind(), tautline::ErrorKind::HandlerPanicked);
    assert!(client.take_panic().is_some());
}
