//! Checks the laws of sessions under every schedule that is tried.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::sync::Mutex;
use shuttle::thread::spawn;

use super::checks::{AT_ONCE, SECOND, builder, opens, stop_client};
use super::dialer::{Dial, Peer, TEXT, server};
use super::explorer::explore;
use super::world::is_exact;
use crate::session::{
    CallError, Class, Context, OpeningScript, Outgoing, Protocol, Request, Session, SessionBuilder,
    SessionHandle, StepOutcome, SubscriptionRequest, SubscriptionState,
};
use crate::{Event, MessageRef};

/// Long enough where time leaps, too.
const LONG: Duration = Duration::from_secs(3600);

/// A protocol of words: `login`, `in`; `sub ID TOPIC`, `unsub ID TOPIC`, `call ID`; `re ID`.
struct Words {
    logs_in: bool,
}

impl Protocol for Words {
    fn opening(&self) -> OpeningScript {
        if !self.logs_in {
            return OpeningScript::new();
        }
        let accepts = |message: MessageRef<'_>, _: &Context| match message.text() {
            Some("in") => StepOutcome::Accepted,
            _ => StepOutcome::Unrelated,
        };
        OpeningScript::new().request("login", LONG, |_| "login".into(), accepts)
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        let id = message.text().and_then(|text| text.strip_prefix("re ")?.parse().ok());
        id.map_or(Class::Data, Class::Reply)
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let word = request.either("sub", "unsub");
        format!("{word} {} {}", request.id(), request.topic()).into()
    }
}

fn session(logs_in: bool) -> SessionBuilder<Words> {
    builder("ws").session(Words { logs_in }).ack_timeout(LONG)
}

/// Answers everything.
fn obliging(peer: &mut Peer) {
    peer.serve(answer);
}

fn answer(peer: &mut Peer, said: &[u8]) {
    let words: Vec<&str> = words(said);
    match words[0] {
        "login" => peer.send(TEXT, b"in"),
        _ => peer.send(TEXT, format!("re {}", words[1]).as_bytes()),
    }
}

fn words(said: &[u8]) -> Vec<&str> {
    std::str::from_utf8(said).expect("it is text").split(' ').collect()
}

fn call(handle: &SessionHandle) -> Result<(), CallError> {
    handle.call(request()).map(|_| ())
}

fn request() -> Request<impl FnOnce(&crate::session::CallContext<'_>) -> Outgoing> {
    Request::new(|context: &crate::session::CallContext<'_>| {
        format!("call {}", context.id()).into()
    })
    .within(LONG)
}

fn stop(session: Session) {
    stop_client(session.client(), AT_ONCE);
}

#[test]
fn a_session_logs_in_subscribes_and_calls() {
    for logs_in in [false, true] {
        explore(move || {
            server(|_| opens(obliging));
            let builder = session(logs_in);
            builder.handle().subscribe(["a"]).expect("there is no limit");
            let session = builder.start().expect("it starts");
            let handle = session.handle().clone();
            let waits = spawn(move || handle.wait_subscribed(LONG).expect("it is answered").active);
            assert_eq!(session.handle().wait_ready(LONG).expect("it opens"), 1);
            let fate = call(session.handle());
            // Where time leaps, a send may be late.
            assert!(fate.is_ok() || !is_exact(), "{fate:?}");
            assert_eq!(waits.join().expect("it does not panic"), 1);
            stop(session);
        });
    }
}

/// A server that drops its first connection after some messages.
fn drops_after(count: usize) -> impl Fn(usize) -> Dial + Send + Sync + Clone {
    move |number| {
        opens(move |peer| match number {
            0 => {
                for _ in 0..count {
                    let Some((TEXT, said)) = peer.receive() else { return };
                    answer(peer, &said);
                }
            }
            _ => obliging(peer),
        })
    }
}

#[test]
fn each_call_has_one_fate_at_the_end_of_its_connection() {
    for count in 0..3 {
        explore(move || {
            server(drops_after(count));
            let session = session(false).start().expect("it starts");
            session.handle().wait_ready(LONG).expect("it opens");
            let handle = session.handle().clone();
            let other = spawn(move || call(&handle).is_err());
            let fates = Arc::new(AtomicUsize::new(0));
            let sent = {
                let fates = Arc::clone(&fates);
                session.handle().call_with(request(), move |_| {
                    fates.fetch_add(1, Ordering::SeqCst);
                })
            };
            let _ = other.join().expect("it does not panic");
            stop(session);
            assert_eq!(fates.load(Ordering::SeqCst), usize::from(sent.is_ok()));
        });
    }
}

#[test]
fn a_stop_ends_calls_and_waits() {
    explore(|| {
        // It answers pings and the close frame alone.
        server(|_| opens(|peer| peer.serve(|_, _| ())));
        let session = session(false).start().expect("it starts");
        let handles = [session.handle().clone(), session.handle().clone()];
        let [calls, waits] = handles;
        let calls = spawn(move || {
            calls.subscribe(["a"]).expect("there is no limit");
            assert!(call(&calls).is_err());
        });
        let waits = spawn(move || assert!(waits.wait_subscribed(LONG).is_err()));
        session.handle().subscribe(["b"]).expect("there is no limit");
        stop(session);
        calls.join().expect("it does not panic");
        waits.join().expect("it does not panic");
    });
}

#[test]
fn the_venue_has_what_is_wanted_whoever_changes_it_and_whenever_the_connection_drops() {
    for count in [1, 3] {
        explore(move || {
            let active: Arc<Mutex<BTreeSet<String>>> = Arc::default();
            let venue = Arc::clone(&active);
            server(move |number| {
                let venue = Arc::clone(&venue);
                opens(move |peer| {
                    venue.lock().expect("no panic").clear();
                    let mut heard = 0;
                    while let Some((kind, said)) = peer.receive() {
                        if kind != TEXT {
                            peer.send(kind, &said);
                            continue;
                        }
                        let words = words(&said);
                        let topic = words[2].to_owned();
                        {
                            let mut venue = venue.lock().expect("no panic");
                            let has_changed = match words[0] {
                                "sub" => venue.insert(topic),
                                _ => venue.remove(&topic),
                            };
                            assert!(has_changed, "asked for twice: {words:?}");
                        }
                        heard += 1;
                        if number == 0 && heard == count {
                            return;
                        }
                        answer(peer, &said);
                    }
                })
            });
            let session = session(false).start().expect("it starts");
            let threads = ["a", "b"].map(|topic| {
                let handle = session.handle().clone();
                spawn(move || {
                    handle.subscribe([topic, "c"]).expect("there is no limit");
                    if topic == "b" {
                        handle.unsubscribe([topic]);
                    }
                })
            });
            for thread in threads {
                thread.join().expect("it does not panic");
            }
            // The end of the first connection may come at any time.
            let is_settled = || {
                let handle = session.handle();
                let mut known = handle.subscriptions();
                known.retain(|(_, state)| !matches!(state, SubscriptionState::Unsubscribing));
                session.handle().wait_subscribed(LONG).is_ok_and(|all| all.active == 2)
                    && known.len() == 2
            };
            while !is_settled() {
                shuttle::thread::yield_now();
            }
            let active = active.lock().expect("no panic").clone();
            assert!(active.contains("a") && active.contains("c"), "{active:?}");
            stop(session);
        });
    }
}

#[test]
fn a_pulled_session_tells_its_events_in_order() {
    explore(|| {
        server(|_| opens(obliging));
        let builder = session(true);
        builder.handle().subscribe(["a"]).expect("there is no limit");
        let session = builder.start().expect("it starts");
        let mut told = Vec::new();
        for event in session.events() {
            let name = match event {
                Event::Opened(_) => "opened",
                Event::Session(crate::session::SessionEvent::Ready { .. }) => "ready",
                Event::Session(crate::session::SessionEvent::Subscription { .. }) => "active",
                Event::Session(crate::session::SessionEvent::Subscribed(_)) => break,
                _ => "other",
            };
            told.push(name);
        }
        assert_eq!(told, ["opened", "ready", "active"]);
        stop(session);
    });
}
