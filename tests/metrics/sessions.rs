//! The metrics of sessions, against a server of a few words: `sub ID TOPIC` is answered with `ack`
//! or `nack`, `call ID` with `reply ID`, and whatever is called `lost` not at all.

use std::io;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tautline::session::{
    Acceptance, CallError, Class, Context, Outgoing, Protocol, Rejection, Request,
    SubscriptionRequest,
};
use tautline::testing::{Peer, Received, TestServer};
use tautline::{Client, ErrorKind, MessageRef, RateLimit};

use crate::recorder::{Kept, SOON};

const MS: Duration = Duration::from_millis(1);

struct Words;

impl Protocol for Words {
    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        let mut words = message.text().unwrap_or_default().split(' ');
        match (words.next(), words.next().and_then(|id| id.parse().ok())) {
            (Some("ack" | "nack" | "reply"), Some(id)) => Class::Reply(id),
            _ => Class::Data,
        }
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let topics: Vec<&str> = request.topics().collect();
        let word = request.either("sub", "unsub");
        Outgoing::text(format!("{word} {} {}", request.id(), topics.join(" ")))
    }

    fn subscription_reply(
        &self,
        _: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        match reply.text() {
            Some(text) if text.starts_with("nack") => {
                Acceptance::Nothing(Rejection::permanent("it says so"))
            }
            _ => Acceptance::All,
        }
    }
}

fn script(peer: &mut Peer) -> io::Result<()> {
    peer.upgrade()?;
    loop {
        let Received::Text(text) = peer.receive_message()? else { continue };
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["sub", id, "bad"] => peer.send_text(&format!("nack {id}"))?,
            [_, _, "lost"] | ["unsub", ..] => {}
            ["sub", id, _] => peer.send_text(&format!("ack {id}"))?,
            ["call", id, _] => peer.send_text(&format!("reply {id}"))?,
            ["end"] => return peer.reset(),
            _ => {}
        }
    }
}

#[test]
fn topics_are_counted_by_their_state() {
    const STATES: [&str; 5] = ["pending", "requested", "active", "rejected", "unsubscribing"];
    let kept = Kept::installed();
    let counts = |expected: [u64; 5]| {
        for (state, count) in STATES.into_iter().zip(expected) {
            let labels = [("client", "topics"), ("state", state)];
            kept.wait_gauge("tautline_subscriptions", &labels, count as f64);
        }
    };
    let server = TestServer::start(script);
    let builder = Client::builder(server.url()).name("topics").retry_delay_min(SOON);
    let session = builder.retry_delay_max(SOON).session(Words).start().expect("it starts");
    let handle = session.handle();
    handle.subscribe(["book", "trades", "bad", "lost"]).expect("there is no limit");
    counts([0, 1, 2, 1, 0]);
    handle.unsubscribe(["trades"]);
    counts([0, 1, 1, 1, 1]);
    session.sender().send_text("end").expect("the connection is open");
    // It dials again after a while, and then asks for all of them that it still wants.
    counts([2, 0, 0, 1, 0]);
    assert!(session.stop(SOON).is_clean());
    for state in STATES {
        let labels = [("client", "topics"), ("state", state)];
        assert_eq!(kept.gauge("tautline_subscriptions", &labels), 0.0, "{state}");
    }
}

fn call(
    word: &'static str,
) -> Request<impl FnOnce(&tautline::session::CallContext<'_>) -> Outgoing> {
    Request::new(move |context| format!("call {} {word}", context.id()).into())
}

#[test]
fn calls_are_counted_by_their_outcome_each_once() {
    let kept = Kept::installed();
    // Those with a closure are counted when it has returned.
    let over = |expected: [u64; 3]| {
        for (outcome, count) in ["replied", "not_sent", "unknown"].into_iter().zip(expected) {
            let labels = [("client", "calls"), ("outcome", outcome)];
            kept.wait_count("tautline_calls_total", &labels, count);
        }
    };
    let server = TestServer::start(script);
    let builder = Client::builder(server.url()).name("calls").retry_delay_min(SOON);
    let session = builder.retry_delay_max(SOON).session(Words).connect().expect("it is ready");
    let handle = session.handle();
    over([0, 0, 0]);
    handle.call(call("order")).expect("the server answers");
    over([1, 0, 0]);
    let (told, fates) = channel();
    let tell = |told: &std::sync::mpsc::Sender<bool>| {
        let told = told.clone();
        move |result: Result<tautline::session::ReplyRef<'_>, CallError>| {
            told.send(result.is_ok()).expect("the test waits");
        }
    };
    let fate = || fates.recv_timeout(SOON).expect("each call has a fate");
    handle.call_with(call("order"), tell(&told)).expect("it is sent");
    assert!(fate());
    over([2, 0, 0]);
    let late = handle.call(call("lost").within(5 * MS)).expect_err("nobody answers");
    assert!(matches!(late, CallError::Unknown { .. }), "{late:?}");
    over([2, 0, 1]);
    handle.call_with(call("lost").within(5 * MS), tell(&told)).expect("it is sent");
    assert!(!fate());
    over([2, 0, 2]);
    let empty = Request::new(|_: &tautline::session::CallContext<'_>| Outgoing::nothing());
    assert!(matches!(handle.call(empty), Err(CallError::NotSent(_))));
    over([2, 1, 2]);
    // The connection ends while two calls are under way.
    handle.call_with(call("lost").within(SOON), tell(&told)).expect("it is sent");
    let caller = handle.clone();
    let waiting = std::thread::spawn(move || caller.call(call("lost").within(SOON)));
    assert!(server.wait_for_messages(6, SOON), "{:?}", server.messages());
    session.sender().send_text("end").expect("the connection is open");
    assert!(!fate());
    let ended = waiting.join().expect("it does not panic").expect_err("the connection ended");
    assert!(matches!(ended, CallError::Unknown { .. }), "{ended:?}");
    over([2, 1, 4]);
    // No connection is open.
    let refused = handle.call(call("order")).expect_err("it is not ready");
    assert!(matches!(&refused, CallError::NotSent(why) if why.kind() == ErrorKind::NotReady));
    handle.call_with(call("order"), tell(&told)).expect_err("it is not ready");
    over([2, 3, 4]);
    // That is no call, and a send that failed.
    let failures = [("client", "calls"), ("outcome", "not_sent")];
    let before = kept.count("tautline_send_failures_total", &failures);
    handle.send(call("order")).expect_err("it is not ready");
    assert_eq!(kept.count("tautline_send_failures_total", &failures), before + 1);
    over([2, 3, 4]);
    assert!(session.stop(SOON).is_clean());
    over([2, 3, 4]);
}

#[test]
fn waits_of_calls_for_a_rate_limit_are_recorded() {
    let (kept, labels) = (Kept::installed(), [("client", "slow calls")]);
    let server = TestServer::start(script);
    let limit = RateLimit::per_connection().window(1, 50 * MS).margin(Duration::ZERO);
    let builder = Client::builder(server.url()).name("slow calls").send_limit(limit);
    let session = builder.session(Words).connect().expect("it is ready");
    for _ in 0..2 {
        session.handle().call(call("order")).expect("the server answers");
    }
    let waits = kept.recorded("tautline_rate_limit_wait_seconds", &labels);
    assert_eq!(waits.len(), 2);
    assert!(waits[0] < waits[1], "{waits:?}");
}

/// The thread that waits for a call counts it, so that a recorder that holds up the reader does not
/// hold up the caller.
#[test]
fn a_recorder_that_hangs_does_not_keep_calls_from_returning() {
    const NAME: &str = "hanging";
    let kept = Kept::installed();
    let server = TestServer::start(script);
    let session = Client::builder(server.url()).name(NAME).session(Words).connect();
    let session = session.expect("it is ready");
    let (enter, entered) = channel();
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    kept.set_hook(NAME, move || {
        if std::thread::current().name() == Some("hanging-rd") {
            let _ = enter.send(());
            let _ = released.lock().recv();
        }
    });
    let (returned, returns) = channel();
    let call = |word, within| {
        let (handle, returned) = (session.handle().clone(), returned.clone());
        std::thread::spawn(move || {
            let began = Instant::now();
            let result = handle.call(call(word).within(within));
            returned.send((result.map(drop), began.elapsed())).expect("the test waits");
        });
    };
    call("order", SOON);
    let (result, _) = returns.recv_timeout(SOON).expect("the call returns");
    result.expect("the reader hands the reply over before it calls a recorder");
    assert!(entered.try_recv().is_err(), "it calls none for it");
    // The call that has a closure is counted by the reader.
    let then = |reply: Result<tautline::session::ReplyRef<'_>, CallError>| {
        reply.map(drop).expect("the server answers");
    };
    session.handle().call_with(self::call("order"), then).expect("it is sent");
    entered.recv_timeout(SOON).expect("the recorder hangs");
    call("order", 50 * MS);
    let (result, took) = returns.recv_timeout(SOON).expect("the call returns");
    let unknown = result.expect_err("nobody reads the reply");
    assert!(matches!(&unknown, CallError::Unknown { why, .. } if why.kind() == ErrorKind::Timeout));
    assert!((50 * MS..SOON / 2).contains(&took), "{took:?}");
    call("order", SOON);
    assert!(server.wait_for_messages(4, SOON), "{:?}", server.messages());
    let report = session.stop(200 * MS);
    assert!(!report.is_clean(), "the reader hangs: {report}");
    let (result, _) = returns.recv_timeout(SOON).expect("the call returns");
    let unknown = result.expect_err("the client has stopped");
    assert!(matches!(&unknown, CallError::Unknown { why, .. } if why.kind() == ErrorKind::Stopped));
    assert!(session.wait_closed(50 * MS).is_none());
    drop(release);
    assert!(session.stop(SOON).is_clean());
    kept.remove_hook(NAME);
    for (outcome, count) in [("replied", 2), ("not_sent", 0), ("unknown", 2)] {
        let labels = [("client", NAME), ("outcome", outcome)];
        assert_eq!(kept.count("tautline_calls_total", &labels), count, "{outcome}");
    }
}

#[test]
fn requests_without_a_message_are_counted_as_not_sent() {
    let kept = Kept::installed();
    let counts = |sends, calls| {
        let labels = [("client", "empty"), ("outcome", "not_sent")];
        assert_eq!(kept.count("tautline_send_failures_total", &labels), sends);
        assert_eq!(kept.count("tautline_calls_total", &labels), calls);
    };
    let server = TestServer::start(script);
    let session = Client::builder(server.url()).name("empty").session(Words).connect();
    let session = session.expect("it is ready");
    let handle = session.handle();
    let empty = || Request::new(|_: &tautline::session::CallContext<'_>| Outgoing::nothing());
    handle.send(empty()).expect_err("there is nothing to send");
    counts(1, 0);
    handle.call(empty()).expect_err("there is nothing to send");
    counts(1, 1);
    handle.call_with(empty(), |_| {}).expect_err("there is nothing to send");
    counts(1, 2);
    let panics = || {
        Request::new(|_: &tautline::session::CallContext<'_>| -> Outgoing {
            std::panic::resume_unwind(Box::new("on purpose"))
        })
    };
    let caught = |call: &dyn Fn()| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).expect_err("it panics");
    };
    caught(&|| drop(handle.send(panics())));
    counts(2, 2);
    caught(&|| drop(handle.call(panics())));
    counts(2, 3);
    caught(&|| drop(handle.call_with(panics(), |_| {})));
    counts(2, 4);
    handle.call(call("order")).expect("the connection is open");
}
