//! Checks the promises of the crate under every schedule that is tried.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::thread::spawn;

use super::dialer::{CLOSE, Dial, PING, Peer, TEXT, server};
use super::explorer::{LEAPS, explore};
use super::socket::StreamSocket;
use super::world::{elapsed, facts, is_exact};
use crate::connection::activity::Activity;
use crate::connection::transport::{Received, Transport};
use crate::protocol::read_buffer::ReadBuffer;
use crate::rate_limit::{Limits, Refused};
use crate::sync;
use crate::sync::channel::{bounded, never};
use crate::sync::threads::{JoinTimeout, ThreadOptions, Threads};
use crate::sync::wait::{Woken, wait};
use crate::sync::wakeups::Wakeups;
use crate::{
    Builder, Client, Connection, ErrorKind, Event, Handler, MessageRef, RateLimit, RetryDecision,
    SendError, SendKind, State, ThreadOutcome, WhenFull, WokenContext,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// So short that the heartbeat retries only a few times meanwhile.
const MOMENT: Duration = Duration::from_millis(30);

/// The duration of a stop in which every thread does as it should: nothing waits for a time.
pub(super) const AT_ONCE: Duration = Duration::ZERO;

pub(super) fn builder(scheme: &str) -> Builder {
    // An address needs no lookup, and an hour between pings keeps them out of the way. The leaps of
    // time, which the deadlines of any thread allow for, must not end a dial.
    Client::builder(format!("{scheme}://127.0.0.1:1/"))
        .connect_timeout(60 * SECOND)
        .ping_interval(3600 * SECOND)
        .close_timeout(SECOND)
        .drop_timeout(60 * SECOND)
}

pub(super) fn opens(run: impl FnOnce(&mut Peer) + Send + 'static) -> Dial {
    Dial::Opens(Box::new(run))
}

fn echoes() -> Dial {
    opens(|peer| peer.serve(|peer, text| peer.send(TEXT, text)))
}

/// A server that closes the first connection, refuses the second dial, drops the second connection
/// and keeps the third.
fn comes_and_goes(number: usize) -> Dial {
    match number {
        0 => opens(|peer| {
            peer.send(TEXT, b"a");
            peer.send(CLOSE, &[0x03, 0xe9]);
            peer.ignore()
        }),
        1 => Dial::Fails,
        2 => opens(|peer| peer.send(TEXT, b"b")),
        _ => echoes(),
    }
}

/// Stops the client, and checks that everything has ended within `timeout`.
fn stop<D>(client: Client<D>, timeout: Duration) {
    stop_client(&client, timeout);
}

/// As [`stop`].
pub(super) fn stop_client<D>(client: &Client<D>, timeout: Duration) {
    let began = elapsed();
    let report = client.stop(60 * SECOND);
    assert!(report.is_clean(), "{report}, after {:?}, exact: {}", elapsed() - began, is_exact());
    assert_eq!(client.live_threads(), 0);
    assert!(!is_exact() || elapsed() - began <= timeout, "it took {:?}", elapsed() - began);
    assert_eq!(client.state(), State::Closed);
}

#[test]
fn no_thread_starts_after_a_shutdown_and_every_joiner_sees_the_end() {
    explore(|| {
        let threads = Arc::new(Threads::new(ThreadOptions::default()));
        let shutdown = threads.shutdown_signal();
        let sleeper = move || assert_eq!(wait(&shutdown, &never::<()>(), None), Woken::Shutdown);
        let spawner = {
            let (threads, sleeper) = (Arc::clone(&threads), sleeper.clone());
            spawn(move || threads.spawn("second", JoinTimeout::Deadline, sleeper).is_ok())
        };
        threads.spawn("first", JoinTimeout::Deadline, sleeper).expect("no shutdown came before");
        let joiner = {
            let threads = Arc::clone(&threads);
            spawn(move || {
                threads.shutdown();
                threads.join_until(sync::now() + 3600 * SECOND)
            })
        };
        threads.shutdown();
        let mine = threads.join_until(sync::now() + 3600 * SECOND);
        let theirs = joiner.join().expect("it does not panic");
        let has_started = spawner.join().expect("it does not panic");
        // Whoever was first, a thread that started before the shutdown has been joined by everybody
        // who joined after it.
        assert!(mine.is_clean() && theirs.is_clean(), "{mine}; {theirs}");
        assert_eq!(mine.threads().len(), 1 + usize::from(has_started));
        assert_eq!(threads.live_threads(), 0);
    });
}

/// Drops the client, and checks that everything has ended within `timeout`.
fn drop_client<D>(client: Client<D>, timeout: Duration) {
    let stopper = client.stopper();
    let began = elapsed();
    drop(client);
    let took = elapsed() - began;
    let report = stopper.stop(Duration::ZERO);
    assert!(report.is_clean(), "{report}, after {took:?}, exact: {}", is_exact());
    assert!(!is_exact() || took <= timeout, "it took {took:?}");
}

/// Ends clients of a server by stop and by drop, under every schedule that is tried.
fn ends<D: 'static>(
    timeout: Duration,
    dial: impl Fn() -> Dial + Send + Sync + Clone + 'static,
    make: impl Fn() -> Client<D> + Send + Sync + Clone + 'static,
) {
    for end in [stop, drop_client] {
        let (dial, make) = (dial.clone(), make.clone());
        explore(move || {
            let dial = dial.clone();
            server(move |_| dial());
            end(make(), timeout);
        });
    }
}

#[test]
fn stop_and_drop_in_every_state_end_everything_at_once() {
    let start = |scheme| move || builder(scheme).start().expect("it starts");
    let connect = |scheme| move || builder(scheme).connect().expect("it opens");
    // Nobody answers; waiting to retry.
    ends(AT_ONCE, || Dial::Hangs, start("ws"));
    ends(AT_ONCE, || Dial::Fails, start("ws"));
    for scheme in ["ws", "wss"] {
        // During the opening, and idle.
        ends(AT_ONCE, echoes, start(scheme));
        ends(AT_ONCE, echoes, connect(scheme));
        // Flooded by a server that reads nothing, so that the close handshake takes all its time.
        let flooded = move || {
            let handler = |_: &mut Connection<'_>, _: MessageRef<'_>| ();
            builder(scheme).start_with(handler).expect("it starts")
        };
        ends(SECOND, || opens(|peer| peer.flood(b"tick")), flooded);
        // A server that never answers the close frame, and one that has sent its own.
        ends(SECOND, || opens(|peer| peer.ignore()), connect(scheme));
        let closes = || {
            opens(|peer| {
                peer.send(CLOSE, &[0x03, 0xe9]);
                peer.ignore()
            })
        };
        ends(SECOND, closes, start(scheme));
    }
}

#[test]
fn a_stop_does_not_wait_for_a_lookup_that_hangs() {
    // At any moment, and surely during the lookup.
    for is_under_way in [false, true] {
        explore(move || {
            let (release, held) = bounded::<()>(0);
            let (tell, told) = bounded(1);
            let resolver = move |_: &str, _: u16| {
                // Full after the first lookup: one is enough.
                tell.try_send(()).ok();
                assert!(held.recv().is_err());
                Err(std::io::Error::other("too late"))
            };
            let client = Client::builder("ws://server.example/")
                .resolver(resolver)
                .start()
                .expect("it starts");
            assert!(!is_under_way || told.recv().is_ok());
            let began = elapsed();
            let report = client.stop(60 * SECOND);
            let late: Vec<_> = report
                .threads()
                .iter()
                .filter(|thread| thread.outcome != ThreadOutcome::Joined)
                .collect();
            assert!(late.iter().all(|thread| thread.name == "taut-resolver"), "{report}");
            assert!(!is_under_way || late.len() == 1, "{report}");
            assert!(!is_exact() || elapsed() - began <= Duration::from_millis(200));
            drop(release);
            // A stop allows a lookup 200 ms, which may have passed, where time leaps, before the
            // lookup's thread has run to its end.
            let leaps = if is_exact() { 0 } else { LEAPS };
            assert!((0..=leaps).any(|_| client.stop(60 * SECOND).is_clean()));
        });
    }
}

#[test]
fn a_stop_from_the_handler_from_two_threads_and_by_drop() {
    struct Stops;
    impl Handler for Stops {
        fn message(&mut self, connection: &mut Connection<'_>, _: MessageRef<'_>) {
            let report = connection.stopper().stop(60 * SECOND);
            assert!(report.threads().iter().any(|thread| thread.outcome == ThreadOutcome::Current));
        }
    }
    explore(|| {
        server(|_| {
            opens(|peer| {
                peer.send(TEXT, b"stop");
                peer.serve(|_, _| ());
            })
        });
        let client = builder("ws").start_with(Stops).expect("it starts");
        let reason = client.wait_closed(3600 * SECOND).expect("the handler stops it");
        assert_eq!(reason.kind(), ErrorKind::Stopped);
        stop(client, AT_ONCE);
    });
    explore(|| {
        server(|_| echoes());
        let client = Arc::new(builder("ws").start().expect("it starts"));
        let other = Arc::clone(&client);
        let other = spawn(move || assert!(other.stop(60 * SECOND).is_clean()));
        assert!(client.stop(60 * SECOND).is_clean());
        other.join().expect("it does not panic");
        assert_eq!(client.live_threads(), 0);
    });
    explore(|| {
        server(|_| echoes());
        drop(builder("ws").start().expect("it starts"));
    });
}

#[test]
fn a_panic_in_the_handler_ends_the_client_once() {
    explore(|| {
        server(|_| {
            opens(|peer| {
                peer.send(TEXT, b"panic");
                peer.serve(|_, _| ());
            })
        });
        let handler = |_: &mut Connection<'_>, _: MessageRef<'_>| {
            std::panic::resume_unwind(Box::new("on purpose"))
        };
        let client = builder("ws").start_with(handler).expect("it starts");
        let reason = client.wait_closed(3600 * SECOND).expect("the panic ends it");
        assert_eq!(reason.kind(), ErrorKind::HandlerPanicked);
        assert!(client.take_panic().is_some());
        stop(client, AT_ONCE);
    });
}

#[test]
fn every_opening_has_one_end_and_the_connection_comes_back() {
    for scheme in ["ws", "wss"] {
        explore(move || {
            server(comes_and_goes);
            let client = builder(scheme).start().expect("it starts");
            let mut told = String::new();
            for event in client.events() {
                match event {
                    Event::Opened(opened) => told.push_str(&format!("o{} ", opened.epoch)),
                    Event::Message(message) => told.push_str(&format!(
                        "{}{} ",
                        message.text().unwrap_or("?"),
                        message.epoch()
                    )),
                    Event::Disconnected(end) => {
                        told.push_str(&format!("d{}:{} ", end.epoch, end.close.code));
                    }
                    Event::DialFailed(_) => told.push_str("f "),
                    _ => {}
                }
                if client.epoch() == 3 && told.contains("o3") {
                    break;
                }
            }
            assert_eq!(told.trim(), "o1 a1 d1:1001 f o2 b2 d2:1006 o3");
            stop(client, AT_ONCE);
        });
    }
}

#[test]
fn before_reconnect_is_called_once_between_an_end_and_the_next_dial_and_never_after_a_stop() {
    for is_stopped_at_once in [false, true] {
        explore(move || {
            let calls = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&calls);
            server(move |number| {
                // The second dial fails, and nothing is called after that.
                assert_eq!(counted.load(Ordering::SeqCst), [0, 1, 1, 2][number.min(3)]);
                comes_and_goes(number)
            });
            let counted = Arc::clone(&calls);
            let client = builder("ws")
                .before_reconnect(move |ended, _| {
                    let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    assert_eq!(ended.epoch, call as u64);
                    RetryDecision::Retry
                })
                .start()
                .expect("it starts");
            if !is_stopped_at_once {
                let is_third = |event| matches!(event, Event::Opened(opened) if opened.epoch == 3);
                assert!(client.events().any(is_third));
            }
            stop(client, AT_ONCE);
            let calls = calls.load(Ordering::SeqCst);
            assert!(calls == 2 || is_stopped_at_once && calls < 2, "{calls}");
        });
    }
}

#[test]
fn a_connection_that_answers_no_ping_is_dialed_again_and_one_that_answers_is_left_alone() {
    explore(|| {
        server(|number| match number {
            0 => opens(|peer| peer.ignore()),
            _ => echoes(),
        });
        let client =
            builder("ws").ping_interval(SECOND).pong_timeout(SECOND).start().expect("it starts");
        let mut events = client.events();
        loop {
            match events.next_timeout(60 * SECOND).expect("something happens") {
                Event::Disconnected(end) => assert_eq!(end.error.kind(), ErrorKind::PongTimeout),
                Event::Opened(opened) if opened.epoch == 2 => break,
                _ => {}
            }
        }
        // No pong can be late where time passes only when no thread can run.
        if is_exact() {
            assert_eq!(
                events.next_timeout(10 * SECOND).expect_err("the connection stays up"),
                crate::TryNextError::Empty
            );
        }
        drop(events);
        stop(client, AT_ONCE);
    });
}

#[test]
fn a_connection_is_dead_in_time_though_pongs_are_owed_that_find_no_room() {
    for scheme in ["ws", "wss"] {
        explore(move || {
            server(|_| {
                opens(|peer| {
                    for number in 0..8 {
                        peer.send(PING, &[number; 8]);
                    }
                    peer.flood(b"tick")
                })
            });
            let client = builder(scheme).max_attempts(1).ping_interval(MOMENT).pong_timeout(MOMENT);
            let client = client.start().expect("it starts");
            for event in client.events() {
                if let Event::Disconnected(end) = event {
                    assert_eq!(end.error.kind(), ErrorKind::PongTimeout);
                    assert!(!is_exact() || end.lasted == 2 * MOMENT, "{:?}", end.lasted);
                }
            }
            stop(client, AT_ONCE);
        });
    }
}

#[test]
fn a_connection_is_dead_in_time_though_a_sender_waits_for_room() {
    for scheme in ["ws", "wss"] {
        explore(move || {
            server(|_| opens(|peer| peer.flood(b"tick")));
            let client = builder(scheme).max_attempts(1).ping_interval(MOMENT).pong_timeout(MOMENT);
            let client = client
                .send_timeout(3600 * SECOND)
                .start_with(|_: &mut Connection<'_>, _: MessageRef<'_>| ())
                .expect("it starts");
            if client.wait_open(3600 * SECOND).is_ok() {
                let began = elapsed();
                while client.send_text("of a length that fills the buffer").is_ok() {}
                // The heartbeat has tried for the lock every 10 ms meanwhile.
                assert!(!is_exact() || elapsed() - began <= 3 * MOMENT);
            }
            stop(client, AT_ONCE);
        });
    }
}

#[test]
fn what_became_of_each_send_is_told_as_it_was() {
    for scheme in ["ws", "wss"] {
        explore(move || {
            let (heard, hears) = bounded::<String>(16);
            server(move |_| {
                let heard = heard.clone();
                opens(move |peer| {
                    // The server pings, changes keys and renegotiates while the senders write, and
                    // drops the connection after three messages.
                    peer.send(PING, b"p");
                    if scheme == "wss" {
                        peer.update_keys();
                        peer.renegotiate();
                    }
                    let mut count = 0;
                    while let Some((first, payload)) = peer.receive() {
                        if first == TEXT {
                            heard
                                .try_send(String::from_utf8(payload).expect("it is text"))
                                .expect("there is room");
                            count += 1;
                        }
                        if count == 3 {
                            return;
                        }
                    }
                })
            });
            // A single dial, so that everything is sent on one connection.
            let client = builder(scheme).max_attempts(1).start().expect("it starts");
            let epoch = client.wait_open(3600 * SECOND).unwrap_or_default();
            let senders: Vec<_> = (0..2)
                .map(|number| {
                    let sender = client.sender();
                    spawn(move || {
                        [0, 1].map(|nth| {
                            let text = format!("{number}{nth} of a length that fills");
                            let sent = sender.send_text(&text);
                            (text, sent)
                        })
                    })
                })
                .collect();
            let sent: Vec<_> = senders
                .into_iter()
                .flat_map(|sender| sender.join().expect("it does not panic"))
                .collect();
            assert!(client.stop(60 * SECOND).is_clean());
            let told = client.events().find_map(|event| match event {
                Event::Disconnected(disconnect) => Some(disconnect.sent),
                _ => None,
            });
            stop(client, SECOND);
            let mut arrived = Vec::new();
            while let Ok(text) = hears.recv_timeout(Duration::ZERO) {
                arrived.push(text);
            }
            for (text, outcome) in sent {
                let times = arrived.iter().filter(|heard| **heard == text).count();
                assert!(times <= 1, "{text} arrived twice");
                match outcome {
                    Ok(receipt) => {
                        assert_eq!(receipt.epoch, epoch);
                        assert!(
                            told.is_some_and(|told| receipt.sequence <= told),
                            "{receipt:?}, and the end told {told:?}"
                        );
                    }
                    Err(SendError::NotSent(_)) => {
                        assert_eq!(times, 0, "{text} was not sent, and arrived")
                    }
                    Err(SendError::Unknown(_)) => {}
                }
            }
        });
    }
}

#[test]
fn a_send_to_a_server_that_does_not_read_ends_in_its_budget_and_reading_goes_on() {
    for scheme in ["ws", "wss"] {
        explore(move || {
            server(|_| opens(|peer| peer.flood(b"tick")));
            let seen = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&seen);
            let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
                counted.fetch_add(1, Ordering::SeqCst);
            };
            let client = builder(scheme)
                .max_attempts(1)
                .send_timeout(SECOND)
                .start_with(handler)
                .expect("it starts");
            if client.wait_open(3600 * SECOND).is_ok() {
                let began = elapsed();
                let outcome = (0..4)
                    .map(|_| client.send_text("of a length that fills the buffer"))
                    .find(Result::is_err);
                assert!(outcome.is_some(), "there is no room for all of them");
                assert!(!is_exact() || elapsed() - began <= SECOND);
            }
            stop(client, SECOND);
            assert!(!is_exact() || seen.load(Ordering::SeqCst) > 0);
        });
    }
}

#[test]
fn the_events_queue_loses_no_wake_up_under_any_rule() {
    for rule in [WhenFull::Block, WhenFull::DropOldest, WhenFull::DropNewest, WhenFull::Disconnect]
    {
        explore(move || {
            server(|number| match number {
                0 => opens(|peer| {
                    for text in [b"1", b"2", b"3"] {
                        peer.send(TEXT, text);
                    }
                    peer.send(CLOSE, &[0x03, 0xe8]);
                    peer.ignore()
                }),
                _ => Dial::Hangs,
            });
            let client =
                builder("ws").queue_messages(1).when_full(rule).start().expect("it starts");
            let (mut got, mut lost) = (0, 0);
            // Alternates between the iterator's way and that of `select!`.
            let mut events = client.events();
            let ready = events.ready();
            loop {
                let event = match events.try_next() {
                    Ok(event) => event,
                    Err(crate::TryNextError::Empty) => match ready.recv() {
                        Ok(()) => continue,
                        Err(_) => break,
                    },
                    Err(crate::TryNextError::Disconnected) => break,
                };
                match event {
                    Event::Message(_) => got += 1,
                    Event::Lagged(lag) => lost += lag.lost,
                    Event::Disconnected(_) => client.stopper().request_stop(),
                    _ => {}
                }
            }
            // Messages that arrive after the queue has ended the connection are not counted.
            let told = got + lost;
            assert!(
                if rule == WhenFull::Disconnect { (1..=3).contains(&told) } else { told == 3 },
                "{got} and {lost}"
            );
            assert!(rule != WhenFull::Block || lost == 0);
            drop(events);
            stop(client, AT_ONCE);
        });
    }
}

/// A handler that tells of each call of `woken`: the number that a thread had counted up to, and
/// the time.
struct CountsWakeups {
    counted: Arc<AtomicUsize>,
    tell: crate::sync::channel::Sender<(usize, Duration)>,
    wakes_first_after: Option<Duration>,
}

impl Handler for CountsWakeups {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        if let Some(after) = self.wakes_first_after.take() {
            connection.wake_at(sync::now() + after);
        }
    }

    fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}

    fn woken(&mut self, context: &mut WokenContext<'_>) {
        assert!(context.due().is_none_or(|due| sync::now() >= due));
        self.tell.try_send((self.counted.load(Ordering::SeqCst), elapsed())).expect("it has room");
    }
}

#[test]
fn no_wake_up_is_lost_whatever_the_reader_is_at() {
    const WAKES: usize = 3;
    for scheme in ["ws", "wss"] {
        explore(move || {
            // Openings, ends of both kinds, failures and waits between dials come and go meanwhile.
            server(comes_and_goes);
            let (tell, told) = bounded(64);
            let counted = Arc::new(AtomicUsize::new(0));
            let handler =
                CountsWakeups { counted: Arc::clone(&counted), tell, wakes_first_after: None };
            let client = builder(scheme).wakeups().start_with(handler).expect("it starts");
            let wakers = [(); 2].map(|()| {
                let (sender, counted) = (client.sender(), Arc::clone(&counted));
                spawn(move || {
                    for _ in 0..WAKES {
                        counted.fetch_add(1, Ordering::SeqCst);
                        sender.wake().expect("nobody stops it");
                    }
                })
            });
            for waker in wakers {
                waker.join().expect("it does not panic");
            }
            let began = elapsed();
            loop {
                let (seen, at) = told.recv().expect("the handler is there");
                // Nothing else would let time pass: a reader that misses a wake-up sleeps until a
                // dial is due, or a ping.
                if seen == 2 * WAKES {
                    assert!(!is_exact() || at <= began, "{at:?}, {began:?}");
                    break;
                }
            }
            stop(client, AT_ONCE);
        });
    }
}

#[test]
fn no_wake_up_is_lost_by_a_reader_that_goes_to_sleep() {
    for scheme in ["ws", "wss"] {
        explore(move || {
            server(|_| echoes());
            let (tell, told) = bounded(64);
            let counted = Arc::new(AtomicUsize::new(0));
            let handler =
                CountsWakeups { counted: Arc::clone(&counted), tell, wakes_first_after: None };
            let client = builder(scheme).wakeups().connect_with(handler).expect("it opens");
            for number in 1..=6 {
                let began = elapsed();
                counted.store(number, Ordering::SeqCst);
                client.sender().wake().expect("nobody stops it");
                // Every other call comes while the one before it is on its way.
                if number % 2 == 0 {
                    while told.recv().expect("the handler is there").0 < number {}
                    assert!(!is_exact() || elapsed() == began);
                }
            }
            stop(client, AT_ONCE);
        });
    }
}

#[test]
fn no_call_is_lost_between_a_look_and_a_sleep() {
    // Without the rest of a client, whose threads make a schedule that hits the gap rare. A call
    // that is lost leaves nobody who can run.
    explore(|| {
        let (ours, _theirs) = StreamSocket::pair();
        let transport = Transport::new(ours, None);
        let (mut read_half, mut buffer) = (transport.read_half(), ReadBuffer::with_leftover(&[]));
        let wakeups = Arc::new(Wakeups::new(true, true).expect("it has descriptors"));
        let waker = {
            let wakeups = Arc::clone(&wakeups);
            spawn(move || wakeups.wake().expect("it has signals"))
        };
        let activity = Activity::new(sync::now());
        let received =
            transport.receive(&mut read_half, &mut buffer, &wakeups, &activity, sync::now());
        assert_eq!(received.expect("nothing breaks"), Received::Woken);
        assert!(wakeups.take_due().is_some());
        waker.join().expect("it does not panic");
    });
}

#[test]
fn a_wake_up_between_dials_comes_at_once() {
    explore(|| {
        server(|_| Dial::Fails);
        let (tell, told) = bounded(64);
        let counted = Arc::new(AtomicUsize::new(0));
        let handler =
            CountsWakeups { counted: Arc::clone(&counted), tell, wakes_first_after: None };
        let client = builder("ws")
            .wakeups()
            .retry_policy(|_, _| crate::RetryDecision::RetryAfter(200 * SECOND))
            .start_with(handler)
            .expect("it starts");
        for number in 1..=3 {
            counted.store(number, Ordering::SeqCst);
            client.sender().wake().expect("nobody stops it");
            let began = elapsed();
            while told.recv().expect("the handler is there").0 < number {}
            assert!(!is_exact() || elapsed() == began);
        }
        stop(client, AT_ONCE);
    });
}

#[test]
fn a_time_comes_on_time_in_every_state() {
    const AFTER: Duration = Duration::from_millis(1500);
    for scheme in ["ws", "wss"] {
        for has_wakeups in [false, true] {
            for ends_connection in [false, true] {
                explore(move || {
                    server(move |_| {
                        opens(move |peer| {
                            if !ends_connection {
                                peer.serve(|_, _| ());
                            }
                        })
                    });
                    let (tell, told) = bounded(64);
                    let handler = CountsWakeups {
                        counted: Arc::default(),
                        tell,
                        wakes_first_after: Some(AFTER),
                    };
                    let settings = builder(scheme)
                        .retry_policy(|_, _| crate::RetryDecision::RetryAfter(200 * SECOND));
                    let settings = if has_wakeups { settings.wakeups() } else { settings };
                    let client = settings.start_with(handler).expect("it starts");
                    let (_, at) = told.recv().expect("the handler is there");
                    assert!(at >= AFTER);
                    assert!(!is_exact() || at == AFTER, "{at:?}");
                    if has_wakeups {
                        // Earlier than the one that the reader sleeps for.
                        client.sender().wake_at(sync::now() + 100 * SECOND).expect("it may wake");
                        client.sender().wake_at(sync::now() + SECOND).expect("it may wake");
                        let (_, at) = told.recv().expect("the handler is there");
                        assert!(!is_exact() || at == AFTER + SECOND, "{at:?}");
                    }
                    stop(client, AT_ONCE);
                });
            }
        }
    }
}

#[test]
fn a_reader_that_waits_for_wake_ups_ends_at_once() {
    // By the time alone, and by calls of other threads.
    for (scheme, has_wakeups) in [("ws", false), ("ws", true), ("wss", true)] {
        let make = move || {
            let handler = CountsWakeups {
                counted: Arc::default(),
                tell: bounded(64).0,
                wakes_first_after: Some(3000 * SECOND),
            };
            let settings = builder(scheme);
            let settings = if has_wakeups { settings.wakeups() } else { settings };
            settings.connect_with(handler).expect("it opens")
        };
        ends(AT_ONCE, echoes, make);
        ends(SECOND, || opens(|peer| peer.ignore()), make);
    }
    // While another thread wakes it all the time, and from inside the call itself.
    struct Stops;
    impl Handler for Stops {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
        fn woken(&mut self, context: &mut WokenContext<'_>) {
            let report = context.sender().stopper().stop(60 * SECOND);
            assert!(report.threads().iter().any(|thread| thread.outcome == ThreadOutcome::Current));
        }
    }
    explore(|| {
        server(|_| echoes());
        let client = builder("ws").wakeups().start_with(Stops).expect("it starts");
        client.sender().wake().expect("nobody has stopped it");
        let reason = client.wait_closed(3600 * SECOND).expect("the handler stops it");
        assert_eq!(reason.kind(), ErrorKind::Stopped);
        stop(client, AT_ONCE);
    });
    explore(|| {
        server(|_| echoes());
        let handler =
            CountsWakeups { counted: Arc::default(), tell: bounded(64).0, wakes_first_after: None };
        let client = builder("ws").wakeups().start_with(handler).expect("it starts");
        let sender = client.sender();
        let waker = spawn(move || while sender.wake().is_ok() {});
        stop(client, AT_ONCE);
        waker.join().expect("it does not panic");
    });
}

#[test]
fn a_reader_that_nobody_may_wake_makes_no_other_call_than_recv() {
    for is_woken in [false, true] {
        explore(move || {
            server(|_| {
                opens(|peer| {
                    peer.send(TEXT, b"a");
                    peer.send(TEXT, b"b");
                    peer.serve(|_, _| ());
                })
            });
            let (tell, told) = bounded(2);
            let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
                tell.try_send(()).expect("there are two messages");
            };
            let settings = builder("ws");
            let settings = if is_woken { settings.wakeups() } else { settings };
            let client = settings.max_attempts(1).start_with(handler).expect("it starts");
            for _ in 0..2 {
                told.recv().expect("the handler is there");
            }
            stop(client, AT_ONCE);
            assert_eq!(facts(|facts| facts.wakeable_reads) > 0, is_woken);
        });
    }
}

#[test]
fn a_stop_ends_a_send_that_is_under_way() {
    for scheme in ["ws", "wss"] {
        explore(move || {
            server(|_| opens(|peer| peer.flood(b"tick")));
            let client = builder(scheme)
                .max_attempts(1)
                .send_timeout(3600 * SECOND)
                .start_with(|_: &mut Connection<'_>, _: MessageRef<'_>| ())
                .expect("it starts");
            let sender = client.sender();
            let sending =
                spawn(
                    move || while sender.send_text("of a length that fills the buffer").is_ok() {},
                );
            stop(client, SECOND);
            sending.join().expect("it does not panic");
        });
    }
}

#[test]
fn a_stop_without_a_budget_writes_its_close_frame() {
    explore(|| {
        let (tell, told) = bounded(1);
        server(move |_| {
            let tell = tell.clone();
            opens(move |peer| {
                while let Some((first, _)) = peer.receive() {
                    if first == CLOSE {
                        tell.try_send(()).expect("there is one");
                    }
                }
            })
        });
        let client = builder("ws").connect().expect("it opens");
        client.stop(Duration::ZERO);
        // Whatever the heartbeat thread was at.
        assert!(told.recv().is_ok(), "no close frame came");
        stop(client, AT_ONCE);
    });
}

#[test]
fn two_consumers_lose_no_event_and_both_hear_of_the_end() {
    for rule in [WhenFull::Block, WhenFull::DropOldest, WhenFull::DropNewest] {
        explore(move || {
            server(|_| {
                opens(|peer| {
                    for text in [b"1", b"2", b"3"] {
                        peer.send(TEXT, text);
                    }
                })
            });
            let client = builder("ws").queue_messages(1).when_full(rule).max_attempts(1);
            let client = client.start().expect("it starts");
            let mut batches = client.events();
            let other = spawn(move || {
                let mut told = 0;
                while let Some(batch) = batches.next_batch() {
                    told += batch.iter().map(|event| told_by(&event.to_owned())).sum::<u64>();
                }
                told
            });
            let mine: u64 = client.events().map(|event| told_by(&event)).sum();
            let theirs = other.join().expect("it does not panic");
            assert_eq!(mine + theirs, 3);
            stop(client, AT_ONCE);
        });
    }
}

/// Returns the number of messages that an event brings or tells the loss of.
fn told_by(event: &Event) -> u64 {
    match event {
        Event::Message(_) => 1,
        Event::Lagged(lag) => lag.lost,
        _ => 0,
    }
}

#[test]
fn a_consumer_that_goes_with_the_wake_up_leaves_it_to_the_next() {
    explore(|| {
        server(|_| opens(|peer| peer.send(TEXT, b"1")));
        let client = builder("ws").max_attempts(1).start().expect("it starts");
        let leaver = client.events();
        let leaving = spawn(move || {
            // Receives a wake-up, or hears that there will be none, and takes nothing.
            let _ = leaver.ready().recv();
            drop(leaver);
        });
        let told: u64 = client.events().map(|event| told_by(&event)).sum();
        assert_eq!(told, 1);
        leaving.join().expect("it does not panic");
        stop(client, AT_ONCE);
    });
}

#[test]
fn events_end_when_their_client_is_dropped_while_they_wait() {
    explore(|| {
        server(|_| echoes());
        let client = builder("ws").queue_messages(1).when_full(WhenFull::Block);
        let client = client.start().expect("it starts");
        let mut events = client.events();
        let waiting = spawn(move || while events.next_timeout(3600 * SECOND).is_ok() {});
        drop_client(client, AT_ONCE);
        waiting.join().expect("it does not panic");
    });
}

#[test]
fn no_wake_up_is_lost_by_whoever_waits_for_a_rate_limit() {
    explore(|| {
        // One message an hour, for two connections together.
        let limit = RateLimit::shared().window(1, 3600 * SECOND);
        let limits = [(); 2].map(|()| Limits::for_connection(std::slice::from_ref(&limit)));
        let permit = limits[0].try_acquire(SendKind::Calls, 1, sync::now()).expect("there is room");
        let is_over = Arc::new(AtomicBool::new(false));
        let waits = |limits: &Limits, is_over: &Arc<AtomicBool>| {
            let (limits, is_over) = (limits.clone(), Arc::clone(is_over));
            spawn(move || {
                let deadline = sync::now() + 3 * 3600 * SECOND;
                let is_over = || is_over.load(Ordering::SeqCst);
                limits.acquire(SendKind::Calls, 1, deadline, || true, is_over).map(drop)
            })
        };
        // Both get what is given back, one after the other: nobody sends.
        let both = [0, 1].map(|number| waits(&limits[number], &Arc::default()));
        drop(permit);
        for waits in both {
            assert!(waits.join().expect("it does not panic").is_ok());
        }
        assert!(!is_exact() || elapsed() == AT_ONCE);

        // The end of one connection is heard there, whatever the other waits for.
        let permit = limits[1].try_acquire(SendKind::Calls, 1, sync::now()).expect("there is room");
        let (ends, other) = (waits(&limits[0], &is_over), waits(&limits[1], &Arc::default()));
        is_over.store(true, Ordering::SeqCst);
        limits[0].wake_all();
        assert_eq!(ends.join().expect("it does not panic"), Err(Refused::Over));
        drop(permit);
        assert!(other.join().expect("it does not panic").is_ok());
        assert!(!is_exact() || elapsed() == AT_ONCE);
        assert!(limits[0].try_acquire(SendKind::Calls, 1, sync::now()).is_ok());
    });
}

#[test]
fn a_stop_ends_a_send_that_waits_for_a_rate_limit_and_a_dial_that_does() {
    explore(|| {
        server(comes_and_goes);
        let limit = RateLimit::per_connection().window(1, 3600 * SECOND);
        let client = builder("ws")
            .send_limit(limit.clone())
            .connect_limit(limit)
            .send_timeout(3 * 3600 * SECOND)
            .start()
            .expect("it starts");
        let senders = [(); 2].map(|()| {
            let sender = client.sender();
            spawn(move || sender.send_text("order").map(drop))
        });
        stop(client, SECOND);
        let sent = senders.map(|sender| sender.join().expect("it does not panic"));
        assert!(sent.iter().filter(|sent| sent.is_ok()).count() <= 1);
        // They did not wait for room, or for `send_timeout`.
        assert!(!is_exact() || elapsed() <= SECOND);
    });
}
