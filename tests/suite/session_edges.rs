//! Sessions whose parts meet at bad moments: a step that is made while its connection ends, answers
//! that lie unread, stops and panics inside what the session calls. The protocol of words is that
//! of `session`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tautline::session::{
    Class, Context, OpeningScript, Outgoing, Protocol, Request, SessionEvent, SessionHandle,
    Silence, SubscriptionRequest, SubscriptionState, Watch,
};
use tautline::{
    AppPing, Connection, ErrorKind, Event, Handler, MessageRef, RateLimit, RetryDecision,
};

use crate::session::{
    Ready, Words, call, disconnected_of, heard, heard_by, listens, login_outcome, obliging, plain,
    session, short, until_event,
};
use crate::support::{MS, SOON, builder, next, until};

/// A limit of so many messages, which has no room again while a test runs.
fn limit(messages: u32) -> RateLimit {
    RateLimit::per_connection().window(messages, Duration::from_secs(3600))
}

/// The words with this script.
fn with(script: OpeningScript) -> Words {
    Words { script, ..Words::default() }
}

/// A script of one login, which has this long to be answered.
fn login_within(limit: Duration) -> OpeningScript {
    OpeningScript::new().request("login", limit, |_| "login key".into(), login_outcome)
}

/// Blocks the first call until the test releases it.
struct BlockFirst {
    is_called: AtomicBool,
    arrived: Sender<()>,
    release: Mutex<Receiver<()>>,
}

impl BlockFirst {
    /// Returns one, with what tells that the first call has come, and what releases it.
    fn new() -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let ((arrived, has_arrived), (releases, release)) = (channel(), channel());
        let is_called = AtomicBool::new(false);
        let first = BlockFirst { is_called, arrived, release: Mutex::new(release) };
        (Arc::new(first), has_arrived, releases)
    }

    /// Returns `true` to the first call, once it is released.
    fn call(&self) -> bool {
        let is_first = !self.is_called.swap(true, Ordering::SeqCst);
        if is_first {
            let _ = self.arrived.send(());
            // Released as well by a test that has failed.
            let _ = self.release.lock().expect("no panic").recv();
        }
        is_first
    }
}

// ---- The opening ----

#[test]
fn a_step_that_was_made_on_an_old_connection_leaves_the_next_script_alone() {
    type Script = fn(Arc<BlockFirst>) -> OpeningScript;
    let scripts: [(&str, Script); 2] = [
        ("login key", |first| {
            let make = move |_: &Context| {
                first.call();
                "login key".into()
            };
            OpeningScript::new().request("login", SOON, make, login_outcome)
        }),
        ("hello", |first| {
            OpeningScript::new().send("hello", move |_| {
                first.call();
                "hello".into()
            })
        }),
    ];
    for (text, script) in scripts {
        let server = plain(obliging);
        let (first, arrived, release) = BlockFirst::new();
        let session = session(&server, with(script(first))).start().expect("it starts");
        let mut events = session.events();
        arrived.recv_timeout(SOON).expect("the first is being made");
        server.abort_all();
        until_event(&mut events, "opened 2");
        release.send(()).expect("it is held");
        assert_eq!(until_event(&mut events, "ready 2"), ["ready 2"]);
        assert!(server.wait_for_messages(1, SOON));
        assert_eq!(heard_by(&server), [text]);
    }
}

#[test]
fn a_panic_in_a_step_ends_the_client_though_its_connection_has_ended_before() {
    let server = plain(obliging);
    let (first, arrived, release) = BlockFirst::new();
    let make = move |_: &Context| {
        assert!(!first.call(), "deliberate");
        "login key".into()
    };
    let script = OpeningScript::new().request("login", SOON, make, login_outcome);
    let session = session(&server, with(script)).start().expect("it starts");
    arrived.recv_timeout(SOON).expect("the first login is being made");
    server.abort_all();
    until_event(&mut session.events(), "opened 2");
    release.send(()).expect("it is held");
    let error = session.wait_closed(SOON).expect("it has ended");
    assert_eq!(error.kind(), ErrorKind::HandlerPanicked);
    assert!(session.take_panic().is_some());
}

/// Takes its time in `opened`, and for each message.
struct Slow {
    opened: Duration,
    message: Duration,
}

impl Handler for Slow {
    fn opened(&mut self, _: &mut Connection<'_>) {
        thread::sleep(self.opened);
    }

    fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
        thread::sleep(self.message);
    }
}

#[test]
fn the_time_that_a_handler_takes_for_the_opening_is_not_that_of_the_first_step() {
    let server = plain(obliging);
    let handler = Slow { opened: 400 * MS, message: Duration::ZERO };
    let session = session(&server, with(login_within(300 * MS))).connect_with(handler);
    assert_eq!(session.expect("it is ready").handle().wait_ready(SOON).ok(), Some(1));
}

#[test]
fn an_answer_to_a_step_that_lies_unread_is_not_late() {
    let server = plain(|peer| {
        heard(peer)?;
        peer.write(b"\x81\x01d\x81\x08login ok")?;
        obliging(peer)
    });
    let handler = Slow { opened: Duration::ZERO, message: 400 * MS };
    let session = session(&server, with(login_within(200 * MS))).connect_with(handler);
    assert_eq!(session.expect("it is ready").handle().wait_ready(SOON).ok(), Some(1));
}

#[test]
fn a_script_that_is_late_counts_as_a_failed_attempt_however_long_the_connection_lasted() {
    let server = plain(listens);
    let builder = builder(&server).stable_after(10 * MS).max_attempts(3).close_timeout(MS);
    let session = builder.session(with(login_within(30 * MS))).start().expect("it starts");
    let error = session.wait_closed(SOON).expect("it has given up");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Opening, Some("login")));
    assert!(server.openings() <= 4, "{} openings", server.openings());
}

#[test]
fn connect_names_a_panic_as_the_reason_whoever_finds_it_first() {
    struct Panics;
    impl Handler for Panics {
        fn opened(&mut self, _: &mut Connection<'_>) {
            panic!("deliberate");
        }

        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
    }
    for _ in 0..6 {
        let server = plain(|peer| {
            peer.send_text("data")?;
            listens(peer)
        });
        let script = OpeningScript::new().expect("matcher", SOON, |_, _| panic!("deliberate"));
        let error = session(&server, with(script)).connect().expect_err("the matcher panics");
        assert_eq!(error.kind(), ErrorKind::HandlerPanicked);
        let error = session(&server, with(login_within(SOON))).connect_with(Panics);
        assert_eq!(error.expect_err("the handler panics").kind(), ErrorKind::HandlerPanicked);
    }
}

// ---- Subscriptions ----

#[test]
fn the_end_of_the_last_request_to_unsubscribe_wakes_who_waits() {
    let server = plain(listens);
    let words = Words { is_silent: true, unsubscribe_delay: 200 * MS, ..Words::default() };
    let session = session(&server, words).connect().expect("ready");
    let handle = session.handle();
    handle.subscribe(["a", "b"]).expect("there is no limit");
    handle.wait_subscribed(SOON).expect("all count as answered");
    handle.unsubscribe(["a"]);
    // This gives the thread that asks time to be in the middle of the request.
    thread::sleep(50 * MS);
    assert_eq!(handle.wait_subscribed(SOON).expect("one is left").active, 1);
}

#[test]
fn a_topic_may_ask_the_session_while_it_is_turned_into_text() {
    struct Asks(SessionHandle);
    impl AsRef<str> for Asks {
        fn as_ref(&self) -> &str {
            let _ = self.0.subscription("a");
            "a"
        }
    }
    let server = plain(obliging);
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle().clone();
    let (done_tx, done) = channel();
    thread::spawn(move || {
        handle.subscribe([Asks(handle.clone())]).expect("there is no limit");
        handle.unsubscribe([Asks(handle.clone())]);
        let _ = done_tx.send(());
    });
    let is_done = done.recv_timeout(SOON).is_ok();
    if !is_done {
        // A stop would wait for the lock as well.
        std::mem::forget(session);
    }
    assert!(is_done, "it waits for itself");
}

#[test]
fn room_that_a_call_gives_back_is_used_for_the_topics_that_wait() {
    let server = plain(obliging);
    let builder = builder(&server).ping_interval(None).send_limit(limit(1));
    let session = builder.session(Words::default()).connect().expect("ready");
    let handle = session.handle();
    let (first, arrived, release) = BlockFirst::new();
    thread::scope(|scope| {
        // Dropped by a panic in here, before the thread is waited for.
        let release = release;
        let called = scope.spawn(move || {
            let request = Request::new(move |_| {
                first.call();
                Outgoing::nothing()
            });
            handle.call(request)
        });
        arrived.recv_timeout(SOON).expect("the call has the only room");
        handle.subscribe(["a"]).expect("there is no limit");
        // This gives the thread that asks for topics time to find no room.
        thread::sleep(50 * MS);
        release.send(()).expect("it is held");
        assert!(called.join().expect("no panic").is_err(), "nothing was sent");
    });
    assert_eq!(handle.wait_subscribed(SOON).expect("there is room").active, 1);
}

#[test]
fn a_topic_that_needs_no_message_needs_no_room_in_the_rate_limits() {
    struct InTheUrl;
    impl Protocol for InTheUrl {
        fn classify<'m>(&self, _: MessageRef<'m>, _: &Context) -> Class<'m> {
            Class::Data
        }

        fn subscription_request(&self, _: &SubscriptionRequest, _: &Context) -> Outgoing {
            Outgoing::nothing()
        }
    }
    let server = plain(listens);
    let builder = builder(&server).ping_interval(None).send_limit(limit(1));
    let session = builder.session(InTheUrl).connect().expect("ready");
    session.client().send_text("x").expect("there is room for one");
    session.handle().subscribe(["a"]).expect("there is no limit");
    assert_eq!(session.handle().wait_subscribed(SOON).expect("it is active").active, 1);
}

#[test]
fn no_topic_is_told_as_active_on_a_connection_after_its_end() {
    let server = plain(|peer| match peer.number() {
        0 => {
            heard(peer)?;
            peer.reset()
        }
        _ => listens(peer),
    });
    let words = Words { is_silent: true, ..Words::default() };
    let builder = session(&server, words).on_event(|event| {
        if let SessionEvent::Subscription { .. } = event {
            thread::sleep(100 * MS);
        }
    });
    builder.handle().subscribe(["a"]).expect("there is no limit");
    let session = builder.start().expect("it starts");
    let mut events = session.events();
    until_event(&mut events, "ended 1");
    // The thread that tells of topics comes to this one after all that it had to say of the first.
    let later = until_event(&mut events, "active a 2");
    assert!(!later.contains(&"active a 1".to_owned()), "{later:?}");
    assert!(later.contains(&"ready 2".to_owned()), "{later:?}");
}

#[test]
fn the_last_state_of_a_topic_that_is_told_is_its_state() {
    let (late_tx, late) = channel();
    let late = Mutex::new(late);
    let server = plain(move |peer| {
        heard(peer)?;
        late.lock().expect("no panic").recv_timeout(SOON).expect("the request is late");
        peer.send_text("on a")?;
        listens(peer)
    });
    let builder = session(&server, Words::default()).ack_timeout(50 * MS);
    let handle = builder.handle();
    let is_active = |handle: &SessionHandle| {
        matches!(handle.subscription("a"), Some(SubscriptionState::Active { .. }))
    };
    let told = AtomicUsize::new(0);
    let builder = builder.on_event(move |event| {
        if let SessionEvent::Subscription { state: SubscriptionState::Pending, .. } = event {
            // The answer comes while the program is told that there is none.
            if told.fetch_add(1, Ordering::SeqCst) == 0 {
                let _ = late_tx.send(());
                until("the answer is in", || is_active(&handle));
            }
        }
    });
    builder.handle().subscribe(["a"]).expect("there is no limit");
    let session = builder.start().expect("it starts");
    let mut events = session.events();
    until_event(&mut events, "active a 1");
    let mut later = Vec::new();
    while let Ok(event) = events.next_timeout(100 * MS) {
        later.push(short(&event));
    }
    assert!(is_active(session.handle()));
    assert!(!later.contains(&"pending a".to_owned()), "{later:?}");
}

#[test]
fn a_late_yes_counts_whatever_the_repeated_request_is_answered() {
    let server = plain(|peer| {
        if peer.number() > 0 {
            return obliging(peer);
        }
        let (first, second) = (heard(peer)?, heard(peer)?);
        peer.send_text(&format!("ack {}", first[1]))?;
        peer.send_text(&format!("nack {}", second[1]))?;
        peer.send_text("data")?;
        listens(peer)
    });
    let builder = session(&server, Words::default()).ack_timeout(100 * MS);
    builder.handle().subscribe(["a"]).expect("there is no limit");
    let session = builder.start().expect("it starts");
    let mut events = session.events();
    until_event(&mut events, "data");
    server.abort_all();
    until_event(&mut events, "active a 2");
    let state = session.handle().subscription("a");
    assert!(matches!(state, Some(SubscriptionState::Active { epoch: 2 })), "{state:?}");
}

// ---- Watches ----

#[test]
fn a_watch_looks_by_itself_for_the_first_silence_and_for_those_after_it() {
    let server = plain(obliging);
    let builder = builder(&server).ping_interval(None).session(Words::default());
    let session = builder.connect().expect("ready");
    let watch = session.handle().watch("a", 100 * MS, Silence::Tell);
    session.handle().subscribe(["a"]).expect("there is no limit");
    let mut events = session.events();
    until_event(&mut events, "subscribed 1/0");
    for _ in 0..2 {
        // Nothing else wakes the thread that looks.
        let began = Instant::now();
        assert_eq!(until_event(&mut events, "silent a"), ["silent a"]);
        assert!(began.elapsed() < SOON / 2, "told after {:?}", began.elapsed());
        watch.seen(Instant::now());
    }
}

#[test]
fn data_that_lies_unread_is_no_silence() {
    struct Watches {
        handle: SessionHandle,
        watch: Option<Watch>,
        seen: Sender<()>,
    }
    impl Handler for Watches {
        fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
            let watch = || self.handle.watch("a", 400 * MS, Silence::Tell);
            let watch = self.watch.get_or_insert_with(watch);
            watch.seen(Instant::now());
            if message.text() == Some("slow") {
                thread::sleep(900 * MS);
            }
            watch.seen(Instant::now());
            let _ = self.seen.send(());
        }
    }
    let server = plain(|peer| {
        let said = heard(peer)?;
        peer.send_text(&format!("ack {}", said[1]))?;
        peer.send_text("slow")?;
        loop {
            peer.wait(10 * MS)?;
            peer.send_text("data")?;
        }
    });
    let (silent_tx, silent) = channel();
    let builder = builder(&server).close_timeout(MS).session(Words::default());
    let builder = builder.on_event(move |event| {
        if let SessionEvent::Silent { .. } = event {
            let _ = silent_tx.send(());
        }
    });
    let handle = builder.handle();
    handle.subscribe(["a"]).expect("there is no limit");
    let (seen_tx, seen) = channel();
    let handler = Watches { handle, watch: None, seen: seen_tx };
    let session = builder.connect_with(handler).expect("ready");
    for _ in 0..20 {
        seen.recv_timeout(SOON).expect("data comes");
    }
    assert!(silent.try_recv().is_err(), "data was there all the time");
    drop(session);
}

#[test]
fn all_topics_are_told_before_the_sum_of_them_however_slow_the_closure_is() {
    let server = plain(|peer| {
        heard(peer)?;
        peer.send_text("all a b c")?;
        listens(peer)
    });
    let builder = session(&server, Words::default());
    let handle = builder.handle();
    handle.subscribe(["a", "b", "c"]).expect("there is no limit");
    let (told_tx, told) = channel();
    let builder = builder.on_event(move |event| {
        let event = short(&Event::Session(event.clone()));
        let is_first = event == "active a 1";
        let _ = told_tx.send(event);
        if is_first {
            // The heartbeat thread has looked at the subscriptions between two late calls.
            for _ in 0..2 {
                let (late_tx, late) = channel();
                let call = call("x").within(10 * MS);
                let sent = handle.call_with(call, move |_| {
                    let _ = late_tx.send(());
                });
                sent.expect("it leaves");
                late.recv_timeout(SOON).expect("it is late");
            }
        }
    });
    let handler = |_: &mut Connection<'_>, _: MessageRef<'_>| {};
    let session = builder.connect_with(handler).expect("ready");
    let all: Vec<String> = (0..5).map(|_| told.recv_timeout(SOON).expect("it is told")).collect();
    assert_eq!(all, ["ready 1", "active a 1", "active b 1", "active c 1", "subscribed 3/0"]);
    drop(session);
}

// ---- Calls ----

#[test]
fn a_call_that_weighs_more_takes_more_of_the_room() {
    let server = plain(obliging);
    let builder = builder(&server).send_limit(limit(4));
    let session = builder.session(Words::default()).connect().expect("ready");
    let is_sent = |_| session.handle().call(call("x").weighing(2).within(500 * MS)).is_ok();
    assert_eq!([0, 1, 2].map(is_sent), [true, true, false]);
    assert_eq!(server.messages().len(), 2);
}

#[test]
fn a_call_has_its_deadline_after_a_write_has_failed_while_the_handler_blocks() {
    let server = Arc::new(plain(|peer| {
        peer.send_text("go")?;
        heard(peer)?;
        peer.reset()
    }));
    let builder = session(&server, Words::default());
    let (handle, is_closed) = (builder.handle(), Arc::clone(&server));
    let (result_tx, result) = channel();
    let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
        let (fate_tx, fate) = channel();
        let sent = handle.call_with(call("x").within(300 * MS), move |result| {
            let _ = fate_tx.send(result.is_err());
        });
        sent.expect("it leaves");
        assert!(is_closed.wait_until_all_closed(SOON));
        // The write of the request fails.
        handle.subscribe(["a"]).expect("there is no limit");
        let _ = result_tx.send(fate.recv_timeout(SOON));
    };
    let session = builder.connect_with(handler).expect("ready");
    assert_eq!(result.recv_timeout(2 * SOON), Ok(Ok(true)));
    drop(session);
}

#[test]
fn a_call_does_not_wait_for_the_closures_of_other_calls() {
    let server = plain(listens);
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle();
    let lock = Arc::new(Mutex::new(()));
    for _ in 0..30 {
        let lock = lock.clone();
        handle.call_with(call("x"), move |_| drop(lock.lock())).expect("it leaves");
    }
    let (fate_tx, fate) = channel();
    let caller = handle.clone();
    thread::spawn(move || {
        let _guard = lock.lock();
        let _ = fate_tx.send(caller.call(call("y")).is_err());
    });
    assert!(server.wait_for_messages(31, SOON));
    let began = Instant::now();
    server.abort_all();
    assert_eq!(fate.recv_timeout(SOON), Ok(true));
    assert!(began.elapsed() < SOON / 2, "after {:?}", began.elapsed());
    assert!(session.stop(SOON).is_clean());
}

#[test]
fn a_call_after_the_end_says_that_the_client_has_stopped() {
    let server = plain(obliging);
    let session = session(&server, Words::default()).connect().expect("ready");
    session.stop(SOON);
    let error = session.handle().call(call("x")).expect_err("it has stopped");
    assert_eq!(error.reason().kind(), ErrorKind::Stopped);
    assert!(error.is_not_sent());
}

#[test]
fn every_closure_of_a_call_runs_though_each_of_them_panics() {
    const CALLS: usize = 6;
    let server = plain(listens);
    let session = session(&server, Words::default()).connect().expect("ready");
    let count = Arc::new(AtomicUsize::new(0));
    for _ in 0..CALLS {
        let count = count.clone();
        let called = session.handle().call_with(call("x"), move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            panic!("deliberate");
        });
        called.expect("it leaves");
    }
    assert!(server.wait_for_messages(CALLS, SOON));
    server.abort_all();
    let error = session.wait_closed(SOON).expect("it has ended");
    assert_eq!(error.kind(), ErrorKind::HandlerPanicked);
    drop(session);
    assert_eq!(count.load(Ordering::SeqCst), CALLS);
}

#[test]
fn a_call_ends_at_its_deadline_though_its_connection_is_aborted_and_the_handler_busy() {
    let server = plain(|peer| {
        heard(peer)?;
        peer.send_text("data")?;
        peer.stall()
    });
    let (first, arrived, release) = BlockFirst::new();
    let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
        first.call();
    };
    let builder = builder(&server).close_timeout(10 * MS).session(Words::default());
    let session = builder.connect_with(handler).expect("ready");
    let (fate_tx, fate) = channel();
    let called = session.handle().call_with(call("x").within(300 * MS), move |fate| {
        let _ = fate_tx.send(fate.is_err());
    });
    called.expect("it leaves");
    arrived.recv_timeout(SOON).expect("the handler has the data");
    session.client().reconnect().expect("it is open");
    assert_eq!(fate.recv_timeout(SOON), Ok(true));
    release.send(()).expect("it is held");
}

// ---- The rest ----

#[test]
fn an_end_that_is_announced_during_the_opening_is_not_forgotten() {
    let server = plain(|peer| {
        if peer.number() == 0 {
            peer.send_text("leaving")?;
        }
        peer.send_text("welcome")?;
        obliging(peer)
    });
    let builder = session(&server, Words::with_login()).drain_timeout(20 * MS);
    let session = builder.start().expect("it starts");
    let seen = until_event(&mut session.events(), "ready 2");
    assert_eq!(seen.iter().filter(|event| *event == "going away").count(), 1, "{seen:?}");
    assert_eq!(server.openings(), 2);
}

#[test]
fn a_server_that_announces_its_end_after_each_opening_is_backed_off_from() {
    let server = plain(|peer| {
        peer.send_text("leaving")?;
        obliging(peer)
    });
    let builder = builder(&server).max_attempts(4).session(Words::default());
    let session = builder.start().expect("it starts");
    assert!(session.wait_closed(SOON).is_some(), "{} openings", server.openings());
    assert!(server.openings() <= 5, "{} openings", server.openings());
}

#[test]
fn the_program_sees_the_error_of_the_server_before_it_decides_on_the_reconnect() {
    let server = plain(|peer| {
        peer.send_text("error words")?;
        peer.close(1008, "")?;
        listens(peer)
    });
    let (seen_tx, seen) = channel();
    let builder = builder(&server).before_reconnect(move |end, _| {
        let _ = seen_tx.send(end.server_error.as_ref().map(|error| error.text().to_owned()));
        RetryDecision::GiveUp
    });
    let session = builder.session(Words::default()).start().expect("it starts");
    assert_eq!(seen.recv_timeout(SOON), Ok(Some("words".to_owned())));
    let end = disconnected_of(&mut session.events());
    assert_eq!(end.server_error.as_ref().map(|error| error.text()), Some("words"));
}

#[test]
fn data_in_one_read_with_a_reply_to_a_ping_that_is_ignored_is_data() {
    let server = plain(|peer| {
        loop {
            peer.write(b"\x81\x01d\x81\x02hb")?;
            peer.wait(10 * MS)?;
        }
    });
    let ping = AppPing::text("p", SOON).answered_by(|message| message.text() == Some("hb"));
    let builder = builder(&server).app_ping(ping).idle_timeout(300 * MS).close_timeout(MS);
    let session = builder.session(Words::default()).start().expect("it starts");
    let mut events = session.events();
    until_event(&mut events, "ready 1");
    let began = Instant::now();
    while began.elapsed() < 700 * MS {
        match next(&mut events) {
            Event::Message(message) => assert_eq!(message.text(), Some("d")),
            other => panic!("data comes all the time, but: {other:?}"),
        }
    }
}

#[test]
fn a_panic_in_the_drop_of_a_protocol_is_kept() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("deliberate");
        }
    }
    impl Protocol for Panics {
        fn classify<'m>(&self, _: MessageRef<'m>, _: &Context) -> Class<'m> {
            Class::Data
        }

        fn subscription_request(&self, _: &SubscriptionRequest, _: &Context) -> Outgoing {
            Outgoing::nothing()
        }
    }
    let server = plain(obliging);
    let session = builder(&server).session(Panics).connect().expect("ready");
    session.stop(SOON);
    assert!(session.take_panic().is_some());
}

#[test]
fn a_session_refuses_wakes_that_its_program_has_not_asked_for() {
    let server = plain(obliging);
    let (ready_tx, ready) = channel();
    let words = with(OpeningScript::new().send("login", |_| "login key".into()));
    let session = session(&server, words).connect_with(Ready(ready_tx)).expect("ready");
    assert_eq!(ready.recv_timeout(SOON), Ok(1));
    let refused = session.sender().wake().expect_err("there are no wakeups");
    assert_eq!(refused.kind(), ErrorKind::Config);
}

#[test]
fn nothing_is_delivered_after_a_stop_in_ready() {
    struct Stops {
        has_stopped: bool,
        later: Arc<AtomicUsize>,
    }
    impl Handler for Stops {
        fn ready(&mut self, connection: &mut Connection<'_>) {
            self.has_stopped = true;
            connection.stop();
        }

        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            self.later.fetch_add(usize::from(self.has_stopped), Ordering::SeqCst);
        }
    }
    let later = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let server = plain(|peer| {
            let burst = b"\x81\x01d".repeat(2000);
            loop {
                peer.write(&burst)?;
            }
        });
        // It is done in the middle of the data.
        let script = OpeningScript::new().send("first", |_| {
            thread::sleep(10 * MS);
            "first".into()
        });
        // The server never answers the close frame.
        let builder = builder(&server).close_timeout(10 * MS).session(with(script));
        let handler = Stops { has_stopped: false, later: later.clone() };
        let session = builder.start_with(handler).expect("it starts");
        session.wait_closed(SOON).expect("it has ended");
    }
    assert_eq!(later.load(Ordering::SeqCst), 0);
}
