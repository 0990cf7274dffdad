//! Stopping and dropping a client, in every state and from every thread.

use std::cell::RefCell;
use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use tautline::testing::{Received, TestServer};
use tautline::{
    AppPing, Client, Connection, ErrorKind, Handler, MessageRef, Push, State, StopReport,
    ThreadOutcome,
};

use crate::support::{
    MS, SOON, builder, dial_failed, disconnected, draining, echo, opened, plain_and_tls, stalling,
    stopped, unanswering_address, until,
};

/// The longest time that counts as "at once": far more than a stop needs, and far less than any
/// timeout that could delay it.
const AT_ONCE: Duration = Duration::from_millis(100);

/// The two ways to end a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Stop,
    Drop,
}

/// A budget so large that no test passes because it ran out.
const HOUR: Duration = Duration::from_secs(3600);

/// Ends the client, and returns how long that took and what became of its threads.
fn end<D>(client: Client<D>, by: By) -> (Duration, StopReport) {
    let stopper = client.stopper();
    let began = Instant::now();
    let report = (by == By::Stop).then(|| client.stop(HOUR));
    drop(client);
    let took = began.elapsed();
    (took, report.unwrap_or_else(|| stopper.stop(Duration::ZERO)))
}

/// Ends clients by stop and by drop. `start` brings each into the state under test, and returns
/// beside it whatever has to outlive it.
///
/// A shared machine may stall a test for a while. So one of several ends has to be at once, and all
/// of them have to be clean.
fn assert_ends_at_once<D, K>(mut start: impl FnMut() -> (Client<D>, K)) {
    for by in [By::Stop, By::Drop] {
        let mut all = Vec::new();
        while all.iter().all(|&took| took > AT_ONCE) {
            assert!(all.len() < 5, "by {by:?} none was at once: {all:?}");
            let (client, _kept) = start();
            let (took, report) = end(client, by);
            assert!(report.is_clean(), "by {by:?}: {report}");
            all.push(took);
        }
    }
}

fn silent() -> impl Handler {
    |_: &mut Connection<'_>, _: MessageRef<'_>| {}
}

#[test]
fn a_client_ends_at_once_while_connecting() {
    let (address, _guard) = unanswering_address();
    assert_ends_at_once(|| {
        let client =
            Client::builder(format!("ws://{address}/")).start_with(silent()).expect("it starts");
        assert!(matches!(client.state(), State::Connecting { attempt: 1 }));
        (client, ())
    });
}

#[test]
fn a_client_ends_at_once_in_the_tls_handshake() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let start = || {
        let client = Client::builder(format!("wss://localhost:{port}/"))
            .start_with(silent())
            .expect("it starts");
        let (mut socket, _) = listener.accept().expect("it dials");
        // The client has sent its first byte: from here on it waits for the answer.
        socket.read_exact(&mut [0]).expect("it begins the handshake");
        (client, socket)
    };
    // Reading the system's roots takes some ten milliseconds of work, which a stop cannot
    // interrupt. The first client reads them for all.
    let _first = start();
    assert_ends_at_once(start);
}

#[test]
fn a_client_ends_at_once_when_the_tls_handshake_stalls_halfway() {
    // Reading the system's roots takes some ten milliseconds of work, which a stop cannot
    // interrupt. The first client reads them for all.
    let good = echo(TestServer::builder().tls());
    let _first = builder(&good).connect().expect("it opens");
    for bytes in [1, 100, 700] {
        let server = TestServer::builder()
            .tls()
            .stall_writes_after(bytes)
            .start(|peer| peer.upgrade().map(drop));
        let mut dials = 0;
        assert_ends_at_once(|| {
            let client = builder(&server).start_with(silent()).expect("it starts");
            dials += 1;
            assert!(server.wait_for_connections(dials, SOON));
            (client, ())
        });
    }
}

#[test]
fn a_client_ends_at_once_in_the_upgrade() {
    plain_and_tls(|server_builder| {
        let good = echo(server_builder());
        let _first = builder(&good).connect().expect("it opens");
        let (tell, told) = bounded(100);
        let server = server_builder().start(move |peer| {
            peer.read_request()?;
            peer.write(b"HTTP/1.1 101 Swit")?;
            tell.send(()).expect("the test waits");
            peer.stall()
        });
        assert_ends_at_once(|| {
            let client = builder(&server).start_with(silent()).expect("it starts");
            told.recv_timeout(SOON).expect("it asks for the upgrade");
            (client, ())
        });
    });
}

#[test]
fn an_idle_connection_is_closed_with_1000_at_once() {
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        assert_ends_at_once(|| (builder(&server).connect().expect("it opens"), ()));
        assert!(server.wait_until_all_closed(SOON));
        let closes = server.closes();
        assert!(
            closes.len() == server.openings() && closes.iter().all(|&code| code == Some(1000)),
            "{closes:?}"
        );
    });
}

#[test]
fn a_client_ends_at_once_while_its_reader_waits_for_a_wakeup() {
    struct WakesLater(Sender<()>);
    impl Handler for WakesLater {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            connection.wake_at(Instant::now() + HOUR);
            self.0.send(()).expect("the test waits");
        }
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
    }
    plain_and_tls(|server_builder| {
        let server = echo(server_builder());
        // It never answers the close frame, so that the stop has to abort the connection.
        let mute = stalling(server_builder());
        for has_wakeups in [false, true] {
            for server in [&server, &mute] {
                assert_ends_at_once(|| {
                    let (tell, told) = bounded(1);
                    let settings = builder(server).close_timeout(10 * MS);
                    let settings = if has_wakeups { settings.wakeups() } else { settings };
                    let client = settings.start_with(WakesLater(tell)).expect("it starts");
                    told.recv_timeout(SOON).expect("it opens");
                    (client, ())
                });
            }
        }
    });
}

#[test]
fn a_client_ends_at_once_while_its_connection_is_flooded() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.flood(200)
        });
        // The server does not read, so it never answers the close frame.
        assert_ends_at_once(|| {
            let (tell, told) = bounded(1);
            let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
                // The channel is full after the first message. One is enough.
                let _ = tell.try_send(());
            };
            let client =
                builder(&server).close_timeout(20 * MS).start_with(handler).expect("it starts");
            told.recv_timeout(SOON).expect("the flood comes");
            (client, ())
        });
    });
}

#[test]
fn an_unanswered_close_frame_delays_an_end_by_close_timeout_at_most() {
    plain_and_tls(|server_builder| {
        let server = draining(server_builder());
        for (nth, by) in [By::Stop, By::Drop].into_iter().enumerate() {
            let client = builder(&server)
                .close_timeout(50 * MS)
                .drop_timeout(HOUR)
                .connect()
                .expect("it opens");
            let (took, report) = end(client, by);
            assert!(report.is_clean(), "by {by:?}: {report}");
            assert!((40 * MS..SOON).contains(&took), "by {by:?}, after {took:?}");
            until("a close frame", || server.closes().len() > nth);
        }
    });
}

#[test]
fn an_end_is_bounded_by_close_timeout_if_the_peer_answers_and_keeps_tcp_open() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            while !matches!(peer.receive()?, Received::Close(..) | Received::End) {}
            peer.close(1000, "")?;
            peer.stall()
        });
        for by in [By::Stop, By::Drop] {
            let client = builder(&server)
                .close_timeout(50 * MS)
                .drop_timeout(HOUR)
                .connect()
                .expect("it opens");
            let (took, report) = end(client, by);
            assert!(report.is_clean(), "by {by:?}: {report}");
            assert!((40 * MS..SOON).contains(&took), "by {by:?}, after {took:?}");
        }
    });
}

#[test]
fn a_short_stop_cuts_the_closing_handshake_short() {
    let server = draining(TestServer::builder());
    let client =
        builder(&server).close_timeout(Duration::from_secs(60)).connect().expect("it opens");
    let report = client.stop(1000 * MS);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_second_stop_with_less_time_overtakes_the_first() {
    let server = draining(TestServer::builder());
    let client = builder(&server).close_timeout(HOUR).connect().expect("it opens");
    thread::scope(|scope| {
        let first = scope.spawn(|| client.stop(HOUR));
        assert!(server.wait_for_close(SOON));
        assert!(client.stop(1000 * MS).is_clean());
        assert!(first.join().expect("it does not panic").is_clean());
    });
}

#[test]
fn a_client_ends_during_backoff_before_the_delay_is_over() {
    let server = TestServer::start(|_| Ok(()));
    assert_ends_at_once(|| {
        let client = Client::builder(server.url())
            .retry_delay_min(HOUR)
            .retry_delay_max(HOUR)
            .start()
            .expect("it starts");
        dial_failed(&mut client.events());
        assert!(matches!(client.state(), State::Backoff { attempt: 2, .. }));
        (client, ())
    });
}

#[test]
fn a_lookup_that_hangs_is_reported_and_not_waited_for() {
    for by in [By::Stop, By::Drop] {
        let (release, held) = bounded::<()>(0);
        let (tell, told) = bounded(1);
        let resolver = move |_: &str, _: u16| {
            tell.send(()).expect("the test waits");
            assert!(held.recv().is_err());
            Err(std::io::Error::other("too late"))
        };
        let client = Client::builder("ws://server.example/")
            .drop_timeout(HOUR)
            .resolver(resolver)
            .start_with(silent())
            .expect("it starts");
        told.recv_timeout(SOON).expect("it resolves");
        assert_eq!(client.live_threads(), 3);
        let stopper = client.stopper();
        let (took, report) = end(client, by);
        assert!(took < SOON, "by {by:?}, after {took:?}");
        let late: Vec<_> = report
            .threads()
            .iter()
            .filter(|thread| thread.outcome == ThreadOutcome::TimedOut)
            .collect();
        assert_eq!(late.len(), 1, "by {by:?}: {report}");
        assert_eq!(late[0].name, "taut-resolver");
        drop(release);
        // A stop waits only 200 ms for a lookup, which may be too short on a busy machine.
        until("the lookup has ended", || stopper.stop(SOON).is_clean());
    }
}

#[test]
fn stop_from_the_handler_returns_at_once_and_nothing_is_delivered_after_it() {
    struct Once {
        stopper: Option<tautline::Stopper>,
        report: crossbeam_channel::Sender<StopReport>,
        calls: usize,
    }
    impl Handler for Once {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            self.stopper = Some(connection.stopper());
        }
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            self.calls += 1;
            assert_eq!(self.calls, 1, "a message after the stop");
            let report = self.stopper.as_ref().expect("it was opened").stop(HOUR);
            self.report.send(report).expect("the test waits");
        }
    }
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.flood(10)
    });
    let (report, reported) = bounded(1);
    let client = builder(&server)
        .close_timeout(20 * MS)
        .start_with(Once { stopper: None, report, calls: 0 })
        .expect("it starts");
    let report = reported.recv_timeout(SOON).expect("it stops");
    assert!(
        report.threads().iter().any(|thread| thread.outcome == ThreadOutcome::Current),
        "{report}"
    );
    assert!(!report.is_clean());
    assert!(client.stop(SOON).is_clean());
    assert_eq!(client.stop_reason().map(|end| end.kind()), Some(ErrorKind::Stopped));
}

#[test]
fn stop_from_eight_threads_at_once_gives_eight_clean_reports() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    thread::scope(|scope| {
        let stops: Vec<_> = (0..8).map(|_| scope.spawn(|| client.stop(SOON))).collect();
        for stop in stops {
            let report = stop.join().expect("it does not panic");
            assert!(report.is_clean(), "{report}");
        }
    });
    assert_eq!(client.state(), State::Closed);
    assert_eq!(client.live_threads(), 0);
}

#[test]
fn ending_a_client_unblocks_its_sender_and_skips_the_close_frame() {
    plain_and_tls(|server_builder| {
        for by in [By::Stop, By::Drop] {
            let server = stalling(server_builder());
            let client = builder(&server).send_timeout(HOUR).connect().expect("it opens");
            let sender = client.sender();
            let (tell, told) = bounded(1);
            let blocked = thread::spawn(move || {
                let large = vec![0; 1 << 20];
                loop {
                    // Nobody receives this once the client has ended.
                    let _ = tell.send(());
                    if let Err(error) = sender.send_binary(&large) {
                        return error;
                    }
                }
            });
            // No further send begins: the sender is blocked, or so slow that it makes no
            // difference.
            while told.recv_timeout(100 * MS).is_ok() {}
            let (took, report) = end(client, by);
            assert!(report.is_clean(), "by {by:?}: {report}");
            assert!(took < SOON, "by {by:?}, after {took:?}");
            drop(told);
            let error = blocked.join().expect("it does not panic");
            assert!(
                matches!(
                    error.reason().kind(),
                    ErrorKind::Io | ErrorKind::Stopped | ErrorKind::Closed
                ),
                "{error:?}"
            );
            assert!(server.closes().is_empty(), "there was no room for a close frame");
        }
    });
}

#[test]
fn a_client_that_is_already_closing_ends_by_the_same_close_deadline() {
    plain_and_tls(|server_builder| {
        let server = server_builder().start(|peer| {
            peer.upgrade()?;
            peer.close(1001, "")?;
            // The client's answer is read, and TCP stays open.
            while !matches!(peer.receive()?, Received::Close(..) | Received::End) {}
            peer.stall()
        });
        for by in [By::Stop, By::Drop] {
            let client = builder(&server)
                .close_timeout(100 * MS)
                .drop_timeout(HOUR)
                .retry_delay_min(HOUR)
                .retry_delay_max(HOUR);
            let client = client.start().expect("it starts");
            until("the connection is closing", || {
                matches!(client.state(), State::Closing | State::Backoff { .. })
            });
            let (took, report) = end(client, by);
            assert!(report.is_clean(), "by {by:?}: {report}");
            assert!(took < SOON, "by {by:?}, after {took:?}");
        }
    });
}

#[test]
fn a_busy_handler_makes_only_the_reader_thread_late() {
    for by in [By::Stop, By::Drop] {
        let (release, held) = bounded::<()>(0);
        let (tell, told) = bounded(1);
        let server = TestServer::start(|peer| {
            peer.upgrade()?;
            peer.send_text("work")?;
            peer.drain()
        });
        let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
            tell.send(()).expect("the test waits");
            assert!(held.recv().is_err());
        };
        let settings = builder(&server).close_timeout(20 * MS).drop_timeout(500 * MS);
        let client = settings.start_with(handler).expect("it starts");
        let stopper = client.stopper();
        told.recv_timeout(SOON).expect("the handler is called");
        let report = match by {
            By::Stop => client.stop(500 * MS),
            By::Drop => end(client, by).1,
        };
        for thread in report.threads() {
            let expected = if thread.name == "taut-reader" {
                ThreadOutcome::TimedOut
            } else {
                ThreadOutcome::Joined
            };
            assert_eq!(thread.outcome, expected, "by {by:?}: {report}");
        }
        drop(release);
        assert!(stopper.stop(SOON).is_clean());
    }
}

#[test]
fn a_panic_in_the_handler_ends_the_client_once_and_reaches_the_user() {
    struct Panics(Arc<AtomicBool>);
    impl Handler for Panics {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            panic!("on purpose");
        }
        fn stopped(&mut self, _: &tautline::Stopped) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("boom")?;
        peer.echo()
    });
    let called_again = Arc::new(AtomicBool::new(false));
    let client = builder(&server).start_with(Panics(Arc::clone(&called_again))).expect("it starts");
    assert!(server.wait_for_close(SOON), "the client sends a close frame");
    assert!(server.wait_until_all_closed(SOON));
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
    assert_eq!(client.stop_reason().map(|end| end.kind()), Some(ErrorKind::HandlerPanicked));
    let panic = client.take_panic().expect("the panic is kept");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    assert!(
        !called_again.load(Ordering::SeqCst),
        "a handler that has panicked is not called again"
    );
    assert_eq!(server.openings(), 1);
}

#[test]
fn a_handler_is_not_called_again_after_a_panic_in_any_of_its_methods() {
    struct Panics(&'static str, Arc<Mutex<Vec<&'static str>>>);
    impl Panics {
        fn called(&self, what: &'static str) {
            self.1.lock().push(what);
            if self.0 == what {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
        }
    }
    impl Handler for Panics {
        fn opened(&mut self, _: &mut Connection<'_>) {
            self.called("opened");
        }
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            self.called("message");
        }
        fn batch_end(&mut self, _: &mut Connection<'_>) {
            self.called("batch_end");
        }
        fn disconnected(&mut self, _: &tautline::Disconnect) {
            self.called("disconnected");
        }
        fn dial_failed(&mut self, _: &tautline::DialFailure) {
            self.called("dial_failed");
        }
        fn stopped(&mut self, _: &tautline::Stopped) {
            self.called("stopped");
        }
    }
    let server = TestServer::start(|peer| match peer.number() % 2 {
        0 => peer.refuse(503, "", ""),
        _ => {
            peer.upgrade()?;
            peer.send_text("tick")?;
            peer.close(1001, "")?;
            peer.drain()
        }
    });
    for what in ["dial_failed", "opened", "message", "batch_end", "disconnected"] {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let client =
            builder(&server).start_with(Panics(what, Arc::clone(&calls))).expect("it starts");
        let end = client.wait_closed(SOON).expect("the panic ends it");
        assert_eq!(end.kind(), ErrorKind::HandlerPanicked, "{what}");
        assert!(client.stop(SOON).is_clean(), "{what}");
        assert!(client.take_panic().is_some() && client.take_panic().is_none(), "{what}");
        assert_eq!(calls.lock().last(), Some(&what));
        let ended_a_connection = matches!(what, "opened" | "message" | "batch_end");
        assert_eq!(
            client.stats().drops.contains_key("handler_panicked"),
            ended_a_connection,
            "{what}"
        );
    }
    // A panic in `stopped` has nothing left to end.
    let client = builder(&server).start_with(Panics("stopped", Arc::default())).expect("it starts");
    assert!(client.stop(SOON).is_clean());
    assert!(client.take_panic().is_some());
}

#[test]
fn a_client_that_its_own_handler_drops_does_not_wait_for_itself() {
    struct Owns(Receiver<Client<Push>>, Sender<()>);
    impl Handler for Owns {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            drop(self.0.recv().expect("the test sends it"));
            self.1.send(()).expect("the test waits");
        }
    }
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("go")?;
        peer.echo()
    });
    let (give, given) = bounded(1);
    let (tell, told) = bounded(1);
    let client = builder(&server).start_with(Owns(given, tell)).expect("it starts");
    give.send(client).map_err(drop).expect("the handler waits");
    assert_eq!(told.recv_timeout(SOON), Ok(()));
    assert!(server.wait_until_all_closed(SOON));
    assert_eq!(server.openings(), 1);
}

#[test]
fn a_panic_after_a_stop_from_the_handler_is_not_lost() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("boom")?;
        peer.echo()
    });
    let handler = |connection: &mut Connection<'_>, _: MessageRef<'_>| {
        connection.stop();
        panic!("on purpose");
    };
    let client = builder(&server).start_with(handler).expect("it starts");
    assert_eq!(client.wait_closed(SOON).map(|end| end.kind()), Some(ErrorKind::HandlerPanicked));
    assert!(client.take_panic().is_some());
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_client_dropped_during_a_panic_stops_quietly() {
    let server = echo(TestServer::builder());
    let url = server.url();
    let panicking = thread::spawn(move || {
        let _client = Client::builder(url).connect().expect("it opens");
        panic!("on purpose");
    });
    assert!(panicking.join().is_err());
    assert!(server.wait_until_all_closed(SOON));
}

/// A value in a thread-local of one of the client's threads whose destructor takes a while, such as
/// the guard of a logger or a connection of a pool.
struct SlowToDrop(Receiver<()>);

impl Drop for SlowToDrop {
    fn drop(&mut self) {
        // The test ends this by dropping the sender.
        assert!(self.0.recv().is_err());
    }
}

thread_local! {
    static KEPT: RefCell<Option<SlowToDrop>> = const { RefCell::new(None) };
}

#[test]
fn a_stop_keeps_its_budget_when_thread_local_destructors_hang() {
    let (release, held) = bounded(0);
    let server = echo(TestServer::builder());
    let client = builder(&server)
        .on_thread_start(move |_| KEPT.set(Some(SlowToDrop(held.clone()))))
        .connect()
        .expect("it opens");
    let began = Instant::now();
    let report = client.stop(300 * MS);
    assert!(began.elapsed() < SOON, "it was waited for: {report}");
    assert!(
        report.threads().iter().all(|thread| thread.outcome == ThreadOutcome::TimedOut),
        "{report}"
    );
    assert_eq!(client.live_threads(), 2);
    drop(release);
    assert!(client.stop(SOON).is_clean());
    assert_eq!(client.live_threads(), 0);
}

#[test]
fn dials_do_not_wait_for_thread_local_destructors_of_an_earlier_lookup() {
    let (release, held) = bounded(0);
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lookups);
    let client = Client::builder("ws://server.example:1/")
        .resolver(move |_: &str, port| {
            counted.fetch_add(1, Ordering::SeqCst);
            KEPT.set(Some(SlowToDrop(held.clone())));
            Ok(vec![([127, 0, 0, 1], port).into()])
        })
        .retry_delay_min(MS)
        .retry_delay_max(MS)
        .start_with(silent())
        .expect("it starts");
    until("it dials again", || lookups.load(Ordering::SeqCst) >= 3);
    let began = Instant::now();
    client.stop(HOUR);
    assert!(began.elapsed() < SOON, "it was waited for");
    drop(release);
    // A stop waits 200 ms for a lookup, which may be too short for a busy machine.
    until("the lookups have ended", || client.stop(SOON).is_clean());
}

#[test]
fn a_ping_closure_that_hangs_does_not_keep_the_connection_open() {
    for by in [By::Stop, By::Drop] {
        let server = draining(TestServer::builder());
        let (release, held) = bounded::<()>(0);
        let (tell, told) = bounded(1);
        let make = move || {
            let _ = tell.try_send(());
            assert!(held.recv().is_err());
            "ping".to_owned()
        };
        let settings = builder(&server).app_ping(AppPing::made_by(make, MS)).drop_timeout(300 * MS);
        let client = settings.connect().expect("it opens");
        told.recv_timeout(SOON).expect("a ping is made");
        let stopper = client.stopper();
        let report = match by {
            By::Stop => client.stop(300 * MS),
            By::Drop => end(client, by).1,
        };
        // The closure still hangs, and the connection has ended.
        assert!(server.wait_until_all_closed(SOON), "by {by:?}: {report}");
        drop(release);
        assert!(stopper.stop(SOON).is_clean());
    }
}

#[test]
fn wait_closed_returns_none_at_once_inside_the_handler() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("go")?;
        peer.drain()
    });
    let (give, given) = bounded::<std::sync::Weak<Client<Push>>>(1);
    let (tell, told) = bounded(1);
    let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
        let client = given.recv().expect("the test sends it").upgrade().expect("the test keeps it");
        tell.send(client.wait_closed(HOUR).map(|end| end.kind())).expect("the test waits");
    };
    let client =
        Arc::new(builder(&server).close_timeout(20 * MS).start_with(handler).expect("it starts"));
    give.send(Arc::downgrade(&client)).expect("the handler waits");
    assert_eq!(told.recv_timeout(SOON), Ok(None), "it has not ended");
    assert!(client.stop(SOON).is_clean());
}

#[test]
fn a_stop_without_a_budget_still_sends_a_close_frame() {
    // Plain only: over TLS, bytes of the server may lie unread, such as session tickets. Aborting
    // then resets TCP, and the close frame may be lost.
    for budget in [Duration::ZERO, MS] {
        for _ in 0..10 {
            let server = echo(TestServer::builder());
            let client = builder(&server).connect().expect("it opens");
            client.stop(budget);
            assert!(server.wait_for_close(SOON), "no close frame within {budget:?}");
        }
    }
}

#[test]
fn a_later_stop_leaves_the_closing_handshake_most_of_its_own_budget() {
    let (go, gone) = bounded::<()>(0);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        while !matches!(peer.receive()?, Received::Close(..)) {}
        // The answer comes only once the second stop has begun.
        assert!(gone.recv().is_err());
        peer.close(1000, "")
    });
    let client = builder(&server).close_timeout(HOUR).connect().expect("it opens");
    client.stopper().request_stop();
    assert!(server.wait_for_close(SOON));
    // Longer than the share of its budget that a stop reserves for joining. The time since
    // `request_stop` must not be charged to the second stop.
    thread::sleep(300 * MS);
    thread::scope(|scope| {
        let stopping = scope.spawn(|| client.stop(SOON));
        drop(go);
        assert!(stopping.join().expect("it does not panic").is_clean());
    });
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(disconnected(&mut events).close.code, 1000);
}

#[test]
fn stop_is_idempotent_and_closed_is_final() {
    let server = echo(TestServer::builder());
    let settings = builder(&server);
    let client = settings.clone().connect().expect("it opens");
    for _ in 0..3 {
        assert!(client.stop(SOON).is_clean());
        assert_eq!(client.state(), State::Closed);
    }
    assert!(client.send_text("late").is_err_and(|error| error.is_not_sent()));
    assert_eq!(client.wait_open(SOON).map_err(|error| error.kind()), Err(ErrorKind::Stopped));
    assert!(settings.connect().is_ok(), "the same builder makes another client");
}

#[test]
fn a_stopped_client_reports_its_end_once_and_its_events_end() {
    let server = echo(TestServer::builder());
    let client = builder(&server).connect().expect("it opens");
    assert!(client.stop(SOON).is_clean());
    let mut events = client.events();
    opened(&mut events);
    let disconnect = disconnected(&mut events);
    assert_eq!((disconnect.error.kind(), disconnect.retry_in), (ErrorKind::Stopped, None));
    assert_eq!(stopped(&mut events).reason.kind(), ErrorKind::Stopped);
    assert!(events.next().is_none());
}

#[test]
fn a_stop_wakes_wait_open() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let client =
        Client::builder(format!("ws://{address}/")).start_with(silent()).expect("it starts");
    let (socket, _) = listener.accept().expect("it dials");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.wait_open(HOUR));
        client.stopper().request_stop();
        let began = Instant::now();
        assert_eq!(
            waiting.join().expect("it does not panic").map_err(|error| error.kind()),
            Err(ErrorKind::Stopped)
        );
        assert!(began.elapsed() < SOON);
    });
    drop(socket);
}

#[test]
fn a_hook_whose_panic_panics_again_when_it_is_dropped_costs_no_thread() {
    struct PanicsOnDrop;
    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("the payload, too"));
        }
    }
    for victim in ["taut-reader", "taut-heartbeat", "taut-resolver"] {
        let server = echo(TestServer::builder());
        let url = server.url().replace("127.0.0.1", "localhost");
        let client = Client::builder(url)
            .on_thread_start(move |name| {
                if name == victim {
                    std::panic::resume_unwind(Box::new(PanicsOnDrop));
                }
            })
            .ping_interval(MS)
            .start()
            .expect("it starts");
        client.wait_open(SOON).unwrap_or_else(|error| panic!("{victim}: {error}"));
        // The heartbeat writes these.
        assert!(server.wait_for_pings(2, SOON), "{victim}");
        assert!(client.stop(SOON).is_clean(), "{victim}");
    }
}

#[test]
fn two_handlers_that_stop_each_others_clients_do_not_wait_for_each_other() {
    /// Stops the other client once both handlers have been called.
    struct Stops {
        other: crossbeam_channel::Receiver<tautline::Stopper>,
        both: Arc<std::sync::Barrier>,
        took: crossbeam_channel::Sender<Duration>,
    }
    impl Handler for Stops {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            let other = self.other.recv_timeout(SOON).expect("the test sends it");
            self.both.wait();
            let began = Instant::now();
            other.stop(10 * SOON);
            self.took.send(began.elapsed()).expect("the test waits");
        }
    }
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("stop")?;
        peer.drain()
    });
    let both = Arc::new(std::sync::Barrier::new(2));
    let (took, times) = bounded(2);
    let [one, two] = [(); 2].map(|()| {
        let (tell, other) = bounded(1);
        let handler = Stops { other, both: Arc::clone(&both), took: took.clone() };
        (builder(&server).start_with(handler).expect("it starts"), tell)
    });
    one.1.send(two.0.stopper()).expect("the handler waits");
    two.1.send(one.0.stopper()).expect("the handler waits");
    for _ in 0..2 {
        let took = times.recv_timeout(10 * SOON).expect("the stops return");
        assert!(took < SOON, "it took {took:?}");
    }
    assert!(one.0.stop(SOON).is_clean() && two.0.stop(SOON).is_clean());
}

#[test]
fn stop_all_stops_side_by_side_within_one_budget() {
    // None of the servers answers the close frame, so each stop alone takes `close_timeout`.
    let server = stalling(TestServer::builder());
    let clients = [(); 5].map(|()| {
        let builder = builder(&server).close_timeout(300 * MS);
        builder.connect().expect("it opens")
    });
    let stoppers = clients.each_ref().map(Client::stopper);
    let began = Instant::now();
    let reports = tautline::stop_all(&stoppers, SOON);
    let took = began.elapsed();
    assert!(reports.len() == 5 && reports.iter().all(StopReport::is_clean), "{reports:?}");
    assert!((300 * MS..900 * MS).contains(&took), "it took {took:?}");
}
