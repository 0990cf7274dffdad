//! Sessions against scripted servers that speak a small protocol of words:
//!
//! | client | server |
//! |---|---|
//! | `login KEY` | `welcome`, `login ok`, `login no`, `login later` |
//! | `sub ID TOPIC...`, `unsub ID TOPIC...` | `ack ID`, `nack ID`; `on`, `off`, `bad` and a topic |
//! | `call ID TEXT` | `reply ID TEXT` |
//! | `pong N` | `ping N`, `hb`, `leaving`, `error TEXT` |

use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tautline::session::{
    Acceptance, CallError, Class, Context, OpeningScript, Outgoing, Protocol, Rejection, Request,
    Session, SessionBuilder, SessionEvent, SessionHandle, SessionState, Silence, StepOutcome,
    SubscriptionRequest, SubscriptionState, TopicUpdate,
};
use tautline::testing::{Peer, Received, TestServer};
use tautline::{Connection, ErrorKind, Event, Events, Handler, MessageRef, StopReport, Timeout};

use crate::support::{MS, SOON, builder, disconnected, next, until};

/// The protocol of words.
#[derive(Clone, Default)]
pub(crate) struct Words {
    pub(crate) script: OpeningScript,
    /// Requests to subscribe are not answered.
    pub(crate) is_silent: bool,
    /// The time that it takes to make a request to unsubscribe.
    pub(crate) unsubscribe_delay: Duration,
}

impl Words {
    /// With a login, after a greeting.
    pub(crate) fn with_login() -> Self {
        let script = OpeningScript::new()
            .expect("greeting", SOON, |message, _| match message.text() {
                Some("welcome") => StepOutcome::Accepted,
                _ => StepOutcome::Unrelated,
            })
            .request("login", SOON, |_| "login key".into(), login_outcome);
        Words { script, ..Words::default() }
    }
}

pub(crate) fn login_outcome(message: MessageRef<'_>, _: &Context) -> StepOutcome {
    match message.text() {
        Some("login ok") => StepOutcome::Accepted,
        Some("login no") => StepOutcome::Rejected(Rejection::permanent("secret reason")),
        Some("login later") => StepOutcome::Rejected(Rejection::transient("busy", 5 * MS)),
        _ => StepOutcome::Unrelated,
    }
}

impl Protocol for Words {
    fn opening(&self) -> OpeningScript {
        self.script.clone()
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        let Some(text) = message.text() else { return Class::Data };
        let topic = |topic: &'m str, update| Class::Subscription {
            topic: topic.into(),
            update,
            alias: None,
        };
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "hb" | "welcome" => Class::Ignored,
            "ack" | "nack" | "reply" => {
                let id = rest.split(' ').next().and_then(|id| id.parse().ok());
                id.map_or(Class::Data, Class::Reply)
            }
            "on" => topic(rest, TopicUpdate::Subscribed),
            "off" => topic(rest, TopicUpdate::Unsubscribed),
            "bad" => topic(rest, TopicUpdate::Rejected(Rejection::permanent("bad"))),
            "all" => Class::ActiveTopics(rest.split(' ').map(Into::into).collect()),
            "ping" => Class::Respond(format!("pong {rest}").into()),
            "leaving" => Class::GoingAway(None),
            "error" => Class::Failure(rest.into()),
            "panic" => panic!("deliberate"),
            _ => Class::Data,
        }
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let topics: Vec<&str> = request.topics().collect();
        let word = request.either("sub", "unsub");
        let text = Outgoing::text(format!("{word} {} {}", request.id(), topics.join(" ")));
        if word == "unsub" {
            thread::sleep(self.unsubscribe_delay);
        }
        if self.is_silent { text.unanswered() } else { text }
    }

    fn subscription_reply(
        &self,
        _: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        match reply.text() {
            Some(text) if text.starts_with("nack") => {
                Acceptance::Nothing(Rejection::permanent("secret reason"))
            }
            _ => Acceptance::All,
        }
    }
}

/// Splits what a client said into words.
fn words(message: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(message);
    text.split(' ').map(str::to_owned).collect()
}

/// Reads the next message, as words.
pub(crate) fn heard(peer: &mut Peer) -> std::io::Result<Vec<String>> {
    match peer.receive_message()? {
        Received::Text(text) => Ok(words(text.as_bytes())),
        other => panic!("the protocol has no {other:?}"),
    }
}

/// Reads on and says nothing.
pub(crate) fn listens(peer: &mut Peer) -> std::io::Result<()> {
    loop {
        heard(peer)?;
    }
}

/// Answers everything as a venue does that takes it all.
pub(crate) fn obliging(peer: &mut Peer) -> std::io::Result<()> {
    loop {
        let said = heard(peer)?;
        match said[0].as_str() {
            "login" => peer.send_text("login ok")?,
            "sub" | "unsub" => peer.send_text(&format!("ack {}", said[1]))?,
            "call" => peer.send_text(&format!("reply {} {}", said[1], said[2]))?,
            _ => {}
        }
    }
}

pub(crate) fn session(server: &TestServer, protocol: Words) -> SessionBuilder<Words> {
    builder(server).session(protocol)
}

pub(crate) fn call(
    text: &str,
) -> Request<impl FnOnce(&tautline::session::CallContext<'_>) -> Outgoing> {
    let text = text.to_owned();
    Request::new(move |context| format!("call {} {text}", context.id()).into()).within(SOON)
}

#[test]
fn a_session_greets_logs_in_subscribes_and_calls() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("welcome")?;
        obliging(peer)
    });
    let session = session(&server, Words::with_login()).batch(10, 1000).connect().expect("ready");
    let handle = session.handle();
    assert_eq!(handle.state(), SessionState::Ready { epoch: 1 });
    handle.subscribe(["a", "b", "c"]).expect("there is no limit");
    let subscribed = handle.wait_subscribed(SOON).expect("all are answered");
    assert_eq!((subscribed.epoch, subscribed.active, subscribed.rejected), (1, 3, 0));
    let reply = handle.call(call("hello")).expect("it is answered");
    assert!(reply.message.text().is_some_and(|text| text.ends_with(" hello")));
    assert_eq!(reply.receipt.epoch, 1);
    assert!(session.stop(SOON).is_clean());
    let said: Vec<_> = server.messages().iter().map(|message| words(message)).collect();
    assert_eq!(said[0], ["login", "key"]);
    assert_eq!(
        (said[1][0].as_str(), &said[1][2..]),
        ("sub", &["a", "b", "c"].map(str::to_owned)[..])
    );
    assert_eq!((said[2][0].as_str(), said[2][2].as_str()), ("call", "hello"));
    assert_eq!(said.len(), 3);
}

/// A server whose script begins with the greeting.
fn greeting(
    script: impl Fn(&mut Peer) -> std::io::Result<()> + Send + Sync + 'static,
) -> TestServer {
    TestServer::start(move |peer| {
        peer.upgrade()?;
        peer.send_text("welcome")?;
        script(peer)
    })
}

/// A server without a greeting.
pub(crate) fn plain(
    script: impl Fn(&mut Peer) -> std::io::Result<()> + Send + Sync + 'static,
) -> TestServer {
    TestServer::start(move |peer| {
        peer.upgrade()?;
        script(peer)
    })
}

/// Returns what the server heard from its connections, without the ids of requests.
pub(crate) fn heard_by(server: &TestServer) -> Vec<String> {
    let without_id = |message: &Vec<u8>| {
        let mut said = words(message);
        if said.len() > 2 {
            said.remove(1);
        }
        said.join(" ")
    };
    server.messages().iter().map(without_id).collect()
}

/// An event in short.
pub(crate) fn short(event: &Event) -> String {
    match event {
        Event::Opened(opened) => format!("opened {}", opened.epoch),
        Event::Message(message) => message.text().unwrap_or_default().to_owned(),
        Event::Disconnected(end) => format!("ended {}", end.epoch),
        Event::DialFailed(_) => "dial failed".to_owned(),
        Event::Stopped(_) => "stopped".to_owned(),
        Event::Session(event) => match event {
            SessionEvent::Ready { epoch, .. } => format!("ready {epoch}"),
            SessionEvent::Subscription { topic, state, .. } => match state {
                SubscriptionState::Active { epoch } => format!("active {} {epoch}", topic.as_str()),
                SubscriptionState::Rejected(_) => format!("rejected {}", topic.as_str()),
                SubscriptionState::Pending => format!("pending {}", topic.as_str()),
                other => format!("{other:?}"),
            },
            SessionEvent::Subscribed(all) => format!("subscribed {}/{}", all.active, all.rejected),
            SessionEvent::Silent { topic, .. } => format!("silent {}", topic.as_str()),
            SessionEvent::GoingAway { .. } => "going away".to_owned(),
            other => format!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}

/// Returns the next events in short, as far as one that is `last`.
pub(crate) fn until_event(events: &mut Events, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|event| event != last) {
        all.push(short(&next(events)));
    }
    all
}

// ---- The opening ----

#[test]
fn events_come_in_the_order_opened_ready_subscriptions_subscribed_and_data_is_never_held_back() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        // Before the greeting, before the login, before the acknowledgement.
        peer.send_text("early 1")?;
        peer.send_text("welcome")?;
        peer.send_text("early 2")?;
        heard(peer)?;
        peer.send_text("early 3")?;
        peer.send_text("login ok")?;
        let said = heard(peer)?;
        peer.send_text("early 4")?;
        peer.send_text(&format!("ack {}", said[1]))?;
        peer.send_text("data")?;
        listens(peer)
    });
    let session = session(&server, Words::with_login());
    session.handle().subscribe(["a"]).expect("there is no limit");
    let session = session.start().expect("it starts");
    let events = until_event(&mut session.events(), "data");
    assert_eq!(
        events,
        [
            "opened 1",
            "early 1",
            "early 2",
            "early 3",
            "ready 1",
            "early 4",
            "active a 1",
            "subscribed 1/0",
            "data"
        ]
    );
}

#[test]
fn a_permanent_rejection_ends_the_client_and_names_the_step_but_not_the_reason() {
    let server = greeting(|peer| {
        heard(peer)?;
        peer.send_text("login no")?;
        listens(peer)
    });
    let session = session(&server, Words::with_login()).start().expect("it starts");
    let mut events = session.events();
    let ended = until_event(&mut events, "stopped");
    assert_eq!(ended, ["opened 1", "ended 1", "stopped"]);
    let error = session.wait_closed(SOON).expect("it has ended");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Opening, Some("login")));
    assert!(!error.is_retryable());
    assert_eq!(error.chain(), "step login of the opening script: rejected");
    let source = std::error::Error::source(&error).expect("the venue's text");
    assert_eq!(source.to_string(), "secret reason");
    assert!(!format!("{error:?}").contains("secret"));
    let refused = session.handle().wait_ready(SOON).expect_err("it has ended");
    assert_eq!(refused.kind(), ErrorKind::Opening);
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_transient_rejection_is_retried_no_sooner_than_the_venue_says() {
    let server = greeting(|peer| {
        heard(peer)?;
        match peer.number() {
            0 | 1 => peer.send_text("login later")?,
            _ => peer.send_text("login ok")?,
        }
        listens(peer)
    });
    let session = session(&server, Words::with_login()).start().expect("it starts");
    let mut events = session.events();
    let end = disconnected_of(&mut events);
    assert_eq!((end.error.kind(), end.error.retry_after()), (ErrorKind::Opening, Some(5 * MS)));
    assert!(end.retry_in.is_some_and(|wait| wait >= 4 * MS), "{:?}", end.retry_in);
    assert_eq!(session.handle().wait_ready(SOON).expect("the third works"), 3);
}

/// Returns the next end of a connection, whatever comes before.
pub(crate) fn disconnected_of(events: &mut Events) -> tautline::Disconnect {
    loop {
        if let Event::Disconnected(end) = next(events) {
            return end;
        }
    }
}

#[test]
fn a_step_that_is_late_ends_the_connection_with_its_name() {
    // No greeting; no answer to the login.
    for (greets, step) in [(false, "greeting"), (true, "login")] {
        let server = plain(move |peer| {
            if greets {
                peer.send_text("welcome")?;
            }
            listens(peer)
        });
        let script = OpeningScript::new()
            .expect("greeting", 50 * MS, |message, _| match message.text() {
                Some("welcome") => StepOutcome::Accepted,
                _ => StepOutcome::Unrelated,
            })
            .request("login", 50 * MS, |_| "login key".into(), login_outcome);
        let words = Words { script, ..Words::default() };
        let session = session(&server, words).start().expect("it starts");
        let end = disconnected_of(&mut session.events());
        assert_eq!((end.error.kind(), end.error.step()), (ErrorKind::Opening, Some(step)));
        assert!(end.error.to_string().ends_with("timed out after 50ms"), "{}", end.error);
        assert!(end.retry_in.is_some());
    }
}

/// Says `data` for some seconds, and `last`.
fn talks(peer: &mut Peer) -> std::io::Result<()> {
    for _ in 0..400 {
        peer.send_text("data")?;
        peer.wait(5 * MS)?;
    }
    peer.send_text("last")?;
    listens(peer)
}

#[test]
fn data_gives_no_more_time_to_a_step_or_to_an_answer() {
    let last = "last".to_owned();
    let quick = |server: &TestServer| builder(server).close_timeout(MS);
    let server = plain(talks);
    let script = OpeningScript::new().expect("greeting", 200 * MS, |_, _| StepOutcome::Unrelated);
    let words = Words { script, ..Words::default() };
    let late = quick(&server).session(words).start().expect("it starts");
    let seen = until_event(&mut late.events(), "ended 1");
    assert!(!seen.contains(&last), "the step was given more time");

    let server = plain(|peer| {
        heard(peer)?;
        talks(peer)
    });
    let builder = quick(&server).session(Words::default()).ack_timeout(200 * MS);
    builder.handle().subscribe(["a"]).expect("there is no limit");
    let late = builder.start().expect("it starts");
    let seen = until_event(&mut late.events(), "pending a");
    assert!(!seen.contains(&last), "the answer was given more time");
}

#[test]
fn a_greeting_that_comes_in_one_piece_with_the_upgrade_is_seen() {
    let server = TestServer::start(|peer| {
        let request = peer.read_request()?;
        let mut answer = request.acceptance("").into_bytes();
        answer.extend_from_slice(b"\x81\x07welcome");
        peer.write(&answer)?;
        obliging(peer)
    });
    let session = session(&server, Words::with_login()).start().expect("it starts");
    assert_eq!(session.handle().wait_ready(SOON).expect("it is ready"), 1);
}

#[test]
fn an_end_right_after_a_rejection_is_told_with_the_rejection_as_its_reason() {
    let server = greeting(|peer| {
        heard(peer)?;
        peer.send_text("login no")?;
        peer.close(1008, "go away")?;
        listens(peer)
    });
    let session = session(&server, Words::with_login()).start().expect("it starts");
    let error = session.wait_closed(SOON).expect("it has ended");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Opening, Some("login")));
}

#[test]
fn connect_returns_why_the_first_connection_was_not_ready_whether_for_good_or_not() {
    type Script = fn(&mut Peer) -> std::io::Result<()>;
    let cases: [(Script, ErrorKind); 4] = [
        (|peer| peer.send_text("login no").and_then(|()| listens(peer)), ErrorKind::Opening),
        (|peer| peer.send_text("login later").and_then(|()| listens(peer)), ErrorKind::Opening),
        (|peer| peer.close(1008, "").and_then(|()| listens(peer)), ErrorKind::Closed),
        (|peer| peer.reset(), ErrorKind::Io),
    ];
    for (script, kind) in cases {
        let server = greeting(move |peer| {
            heard(peer)?;
            script(peer)
        });
        let error = session(&server, Words::with_login()).connect().expect_err("it is refused");
        assert_eq!(error.kind(), kind, "{error}");
    }
    let server = TestServer::start(|peer| peer.refuse(403, "", ""));
    let refused = session(&server, Words::default()).connect().expect_err("it is refused");
    assert_eq!(refused.kind(), ErrorKind::Http);
}

#[test]
fn a_script_that_ends_with_a_send_is_done_once_that_is_written() {
    let server = plain(listens);
    let script = || {
        OpeningScript::new()
            .send("first", |context| format!("first {}", context.epoch()).into())
            .send("nothing", |_| Outgoing::nothing())
            .send("second", |_| "second".into())
    };
    let words = || Words { script: script(), ..Words::default() };
    let pulled = session(&server, words()).connect().expect("it is ready");
    assert_eq!(until_event(&mut pulled.events(), "ready 1"), ["opened 1", "ready 1"]);
    assert!(server.wait_for_messages(2, SOON));
    assert_eq!(heard_by(&server), ["first 1", "second"]);

    // A handler that nothing else wakes hears of it.
    let (ready, is_ready) = channel();
    let _pushed = session(&server, words()).start_with(Ready(ready)).expect("it starts");
    assert_eq!(is_ready.recv_timeout(SOON), Ok(1));
}

/// Tells when the session is ready.
pub(crate) struct Ready(pub(crate) Sender<u64>);

impl Handler for Ready {
    fn ready(&mut self, connection: &mut Connection<'_>) {
        let _ = self.0.send(connection.epoch());
    }

    fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}

    fn woken(&mut self, _: &mut tautline::WokenContext<'_>) {
        panic!("nobody has woken this handler");
    }
}

// ---- Subscriptions ----

#[test]
fn topics_are_asked_for_only_after_the_program_has_been_told_that_the_session_is_ready() {
    let server = plain(obliging);
    let builder = session(&server, Words::default());
    let handle = builder.handle();
    let (state_tx, state) = channel();
    let session = builder.on_event(move |event| {
        if let SessionEvent::Ready { .. } = event {
            handle.subscribe(["a"]).expect("there is no limit");
            // That wakes the thread that asks. This gives it time to.
            thread::sleep(20 * MS);
            let _ = state_tx.send(handle.subscription("a"));
        }
    });
    let session = session.connect().expect("ready");
    assert_eq!(state.recv_timeout(SOON), Ok(Some(SubscriptionState::Pending)));
    assert_eq!(session.handle().wait_subscribed(SOON).expect("it is answered").active, 1);
}

#[test]
fn topics_are_asked_for_once_on_each_connection_in_batches_and_in_order() {
    let server = plain(|peer| {
        let mut asked = 0;
        loop {
            let said = heard(peer)?;
            peer.send_text(&format!("ack {}", said[1]))?;
            asked += said.len() - 2;
            if asked == 5 && peer.number() < 3 {
                return peer.reset();
            }
        }
    });
    let session = session(&server, Words::default()).batch(2, 1000);
    session.handle().subscribe(["a", "b", "c", "d", "e"]).expect("there is no limit");
    let session = session.start().expect("it starts");
    until("the fourth connection is subscribed", || {
        session.handle().wait_subscribed(SOON).is_ok_and(|all| all.epoch == 4)
    });
    let one = ["sub a b", "sub c d", "sub e"];
    // A reset may overtake what the server has sent, but never repeats what was asked.
    assert_eq!(heard_by(&server), [one, one, one, one].concat());
}

#[test]
fn a_refused_batch_is_halved_until_the_refused_topic_stands_alone() {
    let server = plain(|peer| {
        loop {
            let said = heard(peer)?;
            let word = if said.iter().any(|topic| topic == "t5") { "nack" } else { "ack" };
            peer.send_text(&format!("{word} {}", said[1]))?;
        }
    });
    let session = session(&server, Words::default()).batch(200, 10_000).connect().expect("ready");
    let topics: Vec<String> = (0..16).map(|n| format!("t{n}")).collect();
    session.handle().subscribe(&topics).expect("there is no limit");
    let all = session.handle().wait_subscribed(SOON).expect("all are answered");
    assert_eq!((all.active, all.rejected), (15, 1));
    match session.handle().subscription("t5") {
        Some(SubscriptionState::Rejected(why)) => {
            assert!(why.is_permanent());
            assert_eq!(why.reason(), "secret reason");
        }
        other => panic!("{other:?}"),
    }
    // 16, 8, 8, 4, 4, 2, 2, 1, 1.
    assert_eq!(server.messages().len(), 9);
}

#[test]
fn answers_by_topic_by_list_and_none_at_all_are_understood() {
    let by_topic = plain(|peer| {
        let said = heard(peer)?;
        for topic in &said[2..] {
            let word = if topic == "b" { "bad" } else { "on" };
            peer.send_text(&format!("{word} {topic}"))?;
        }
        listens(peer)
    });
    let by_list = plain(|peer| {
        heard(peer)?;
        peer.send_text("all a c")?;
        listens(peer)
    });
    let none = plain(listens);
    for (server, is_silent, expected) in
        [(by_topic, false, (2, 1)), (by_list, false, (2, 1)), (none, true, (3, 0))]
    {
        let words = Words { is_silent, ..Words::default() };
        let session = session(&server, words).batch(10, 1000).connect().expect("ready");
        session.handle().subscribe(["a", "b", "c"]).expect("there is no limit");
        let all = session.handle().wait_subscribed(SOON).expect("all are answered");
        assert_eq!((all.active, all.rejected), expected);
        assert!(server.wait_for_messages(1, SOON));
        assert_eq!(server.messages().len(), 1);
    }
}

#[test]
fn a_gap_is_mended_by_one_resubscription_however_often_it_is_asked_for() {
    let server = plain(obliging);
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle();
    handle.subscribe(["a", "b"]).expect("there is no limit");
    handle.wait_subscribed(SOON).expect("all are answered");
    for _ in 0..1000 {
        handle.resubscribe("a");
        handle.resubscribe("unknown");
    }
    handle.wait_subscribed(SOON).expect("all are answered");
    handle.unsubscribe(["b", "unknown"]);
    until("it has ended", || handle.subscription("b").is_none());
    let said = heard_by(&server);
    assert_eq!(said[..2], ["sub a", "sub b"]);
    let count = |text: &str| said.iter().filter(|said| *said == text).count();
    assert!(count("unsub a") >= 1 && count("sub a") == count("unsub a") + 1, "{said:?}");
    assert!(count("unsub a") < 1000 && count("unsub b") == 1, "{said:?}");
}

#[test]
fn a_request_that_is_not_answered_is_asked_again() {
    let server = plain(|peer| {
        heard(peer)?;
        let again = heard(peer)?;
        peer.send_text(&format!("ack {}", again[1]))?;
        listens(peer)
    });
    let session = session(&server, Words::default()).ack_timeout(20 * MS).connect().expect("ready");
    session.handle().subscribe(["a"]).expect("there is no limit");
    let all = session.handle().wait_subscribed(SOON).expect("the second is answered");
    assert_eq!(all.active, 1);
    assert_eq!(heard_by(&server), ["sub a", "sub a"]);
}

#[test]
fn a_topic_that_the_venue_ends_is_asked_for_again() {
    let server = plain(|peer| {
        let said = heard(peer)?;
        peer.send_text(&format!("ack {}", said[1]))?;
        peer.send_text("off a")?;
        obliging(peer)
    });
    let session = session(&server, Words::default());
    session.handle().subscribe(["a"]).expect("there is no limit");
    let session = session.start().expect("it starts");
    let mut events = session.events();
    assert_eq!(
        until_event(&mut events, "pending a"),
        ["opened 1", "ready 1", "active a 1", "subscribed 1/0", "pending a"]
    );
    assert_eq!(until_event(&mut events, "subscribed 1/0"), ["active a 1", "subscribed 1/0"]);
}

#[test]
fn more_topics_than_a_connection_may_have_are_refused_all_or_none() {
    let server = plain(obliging);
    let session = session(&server, Words::default()).topics_max(2).connect().expect("ready");
    let handle = session.handle();
    handle.subscribe(["a"]).expect("there is room");
    let refused = handle.subscribe(["b", "c"]).expect_err("there is no room for both");
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("3 topics are more than topics_max, 2"), "{refused}");
    assert_eq!(handle.subscriptions().len(), 1);
    handle.subscribe(["a", "b"]).expect("one of them is there already");
}

#[test]
fn an_ack_timeout_of_zero_is_refused() {
    let server = plain(obliging);
    let refused = session(&server, Words::default()).ack_timeout(Duration::ZERO).start();
    let error = refused.expect_err("every request would be late");
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[test]
fn nothing_left_to_ask_counts_as_answered() {
    let server = plain(obliging);
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle();
    // Given up before it has left, or after.
    handle.subscribe(["a"]).expect("there is no limit");
    handle.unsubscribe(["a"]);
    until_event(&mut session.events(), "subscribed 0/0");
    // If it has left, it is to be ended yet.
    until("nothing is left of it", || handle.subscriptions().is_empty());
}

#[test]
fn a_watched_topic_that_falls_silent_is_told_and_asked_for_again() {
    let server = plain(obliging);
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle();
    let watch = handle.watch("a", 30 * MS, Silence::Resubscribe);
    let began = Instant::now();
    handle.subscribe(["a"]).expect("there is no limit");
    let mut events = session.events();
    let seen = until_event(&mut events, "silent a");
    assert_eq!(seen, ["opened 1", "ready 1", "active a 1", "subscribed 1/0", "silent a"]);
    assert!(began.elapsed() < SOON / 2, "told after {:?}", began.elapsed());
    assert_eq!(
        until_event(&mut events, "subscribed 1/0"),
        ["pending a", "active a 1", "subscribed 1/0"]
    );
    drop(watch);
}

// ---- Calls ----

#[test]
fn a_call_is_not_sent_while_the_session_is_not_ready() {
    let server = greeting(listens);
    let builder = session(&server, Words::with_login());
    let handle = builder.handle();
    let refused = |handle: &SessionHandle| {
        let began = Instant::now();
        match handle.call(call("x")) {
            Err(CallError::NotSent(error)) if began.elapsed() < SOON => error,
            other => panic!("{other:?} after {:?}", began.elapsed()),
        }
    };
    assert_eq!(refused(&handle).kind(), ErrorKind::NotReady);
    let session = builder.start().expect("it starts");
    assert!(server.wait_for_messages(1, SOON), "the login is out");
    assert_eq!(handle.state(), SessionState::Opening { step: "login" });
    assert_eq!(refused(&handle).kind(), ErrorKind::NotReady);
    let late = handle.wait_ready(MS).expect_err("it never is");
    assert_eq!(late.timeout(), Some(Timeout::WaitReady));
    assert!(session.stop(SOON).is_clean());
    assert!(matches!(handle.call(call("x")), Err(CallError::NotSent(_))));
    assert_eq!(server.messages().len(), 1);
}

#[test]
fn a_call_whose_connection_ends_is_unknown_before_the_end_is_told() {
    let server = plain(|peer| {
        heard(peer)?;
        peer.reset()
    });
    let session = session(&server, Words::default()).connect().expect("ready");
    let (fate_tx, fate) = channel();
    let receipt = session
        .handle()
        .call_with(call("x"), move |fate| {
            fate_tx.send(fate.map(|_| ()).expect_err("nobody answers")).expect("the test waits");
        })
        .expect("it leaves");
    disconnected_of(&mut session.events());
    match fate.try_recv().expect("it was told before the end") {
        CallError::Unknown { receipt: of, why } => {
            assert_eq!(of, Some(receipt));
            assert_ne!(why.kind(), ErrorKind::Timeout);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_ends_at_its_deadline_and_a_late_reply_is_delivered_like_data() {
    let server = plain(|peer| {
        let said = [heard(peer)?, heard(peer)?];
        // Both are late.
        assert_eq!(heard(peer)?, ["now"]);
        for said in said {
            peer.send_text(&format!("reply {} {}", said[1], said[2]))?;
        }
        listens(peer)
    });
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle();
    let (fate_tx, fate) = channel();
    let late = |error: CallError| match error {
        CallError::Unknown { why, receipt: Some(_) } => why.timeout(),
        other => panic!("{other:?}"),
    };
    handle
        .call_with(call("one").within(20 * MS), move |fate| {
            fate_tx.send(fate.map(|_| ()).expect_err("it is late")).expect("the test waits");
        })
        .expect("it leaves");
    let error = handle.call(call("two").within(20 * MS)).expect_err("it is late");
    assert_eq!(late(error), Some(Timeout::Call));
    assert_eq!(late(fate.recv_timeout(SOON).expect("it is told")), Some(Timeout::Call));
    session.client().send_text("now").expect("it leaves");
    let events = until_event_ending(&mut session.events(), " two");
    assert!(events[events.len() - 2].ends_with(" one"), "{events:?}");
}

/// Returns the next events in short, as far as one that ends with `last`.
fn until_event_ending(events: &mut Events, last: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    while all.last().is_none_or(|event| !event.ends_with(last)) {
        all.push(short(&next(events)));
    }
    all
}

#[test]
fn a_stop_ends_a_call_at_once() {
    let server = plain(|peer| peer.stall());
    let builder = builder(&server).close_timeout(10 * MS);
    let session = builder.session(Words::default()).connect().expect("ready");
    let handle = session.handle().clone();
    let waits = std::thread::spawn(move || handle.call(call("x").within(Duration::MAX)));
    until("the call is out", || session.stats().messages_sent == 1);
    let stopper = session.stopper();
    stopper.request_stop();
    match waits.join().expect("no panic") {
        Err(CallError::Unknown { why, .. }) => assert_eq!(why.kind(), ErrorKind::Stopped),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_may_be_bound_to_an_epoch() {
    let server = plain(|peer| match peer.number() {
        0 => {
            heard(peer)?;
            peer.reset()
        }
        _ => obliging(peer),
    });
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle();
    let lost = handle.call(call("x").on_epoch(1)).expect_err("the connection ends");
    assert!(!lost.is_not_sent());
    until("the second is ready", || handle.wait_ready(SOON).is_ok_and(|epoch| epoch == 2));
    let old = handle.call(call("x").on_epoch(1)).expect_err("that connection has ended");
    assert!(old.is_not_sent() && old.reason().kind() == ErrorKind::NotReady, "{old}");
    assert_eq!(handle.call(call("x").on_epoch(2)).expect("it is this one").receipt.epoch, 2);
}

/// Calls inside the handler, by both ways.
struct Caller {
    handle: SessionHandle,
    fates: Sender<String>,
}

impl Handler for Caller {
    fn ready(&mut self, _: &mut Connection<'_>) {
        let refused = self.handle.call(call("x")).expect_err("it would wait for itself");
        let kind = refused.reason().kind();
        self.fates.send(format!("{} {kind}", refused.is_not_sent())).expect("the test waits");
        let fates = self.fates.clone();
        self.handle
            .call_with(call("y"), move |reply| {
                let text = reply.expect("it is answered").message.text().unwrap_or("").to_owned();
                fates.send(text).expect("the test waits");
            })
            .expect("it leaves");
    }

    fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
        panic!("no data comes: {:?}", message.text());
    }
}

#[test]
fn a_handler_calls_without_waiting_and_a_call_that_would_wait_for_itself_is_refused() {
    let server = plain(obliging);
    let (fates, told) = channel();
    let builder = session(&server, Words::default());
    let caller = Caller { handle: builder.handle(), fates };
    let session = builder.start_with(caller).expect("it starts");
    assert_eq!(told.recv_timeout(SOON).as_deref(), Ok("true config"));
    assert!(told.recv_timeout(SOON).is_ok_and(|text| text.ends_with(" y")));
    assert!(session.stop(SOON).is_clean());
}

#[test]
fn every_call_of_many_threads_has_one_fate_whatever_becomes_of_its_connection() {
    let server = plain(|peer| {
        // Ends at some point, in the middle of things.
        for n in 0.. {
            let said = heard(peer)?;
            if n == 40 + 7 * peer.number() {
                return peer.reset();
            }
            peer.send_text(&format!("reply {} {}", said[1], said[2]))?;
        }
        Ok(())
    });
    let session = session(&server, Words::default()).connect().expect("ready");
    let handle = session.handle();
    let fates = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                scope.spawn(move || {
                    (0..200)
                        .map(|n| {
                            let text = format!("{thread}-{n}");
                            let _ = handle.wait_ready(SOON);
                            let fate = handle.call(call(&text));
                            if let Ok(reply) = &fate {
                                let end = format!(" {text}");
                                assert!(reply.message.text().is_some_and(|it| it.ends_with(&end)));
                            }
                            (text, fate)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    let ledger: Vec<String> =
        server.messages().iter().map(|message| words(message)[2].clone()).collect();
    let mut outcomes = [0; 3];
    for (text, fate) in fates {
        let count = ledger.iter().filter(|known| **known == text).count();
        match fate {
            Ok(_) => (outcomes[0] += 1, assert_eq!(count, 1, "{text}")).1,
            Err(CallError::NotSent(_)) => (outcomes[1] += 1, assert_eq!(count, 0, "{text}")).1,
            Err(_) => (outcomes[2] += 1, assert!(count <= 1, "{text}")).1,
        }
    }
    assert!(outcomes[0] > 1000 && outcomes[2] > 0, "{outcomes:?}");
    assert!(session.stop(SOON).is_clean());
}

// ---- The rest ----

#[test]
fn pings_of_the_venue_are_answered_and_neither_they_nor_heartbeats_are_delivered() {
    let server = plain(|peer| {
        peer.send_text("hb")?;
        peer.send_text("ping 7")?;
        assert_eq!(heard(peer)?, ["pong", "7"]);
        peer.send_text("data")?;
        listens(peer)
    });
    let session = session(&server, Words::default()).start().expect("it starts");
    let events = until_event(&mut session.events(), "data");
    assert_eq!(events, ["opened 1", "ready 1", "data"]);
}

#[test]
fn heartbeats_of_the_venue_are_no_data() {
    let server = plain(|peer| {
        loop {
            peer.send_text("hb")?;
            peer.wait(5 * MS)?;
        }
    });
    let builder = builder(&server).idle_timeout(60 * MS).session(Words::default());
    let session = builder.start().expect("it starts");
    assert_eq!(disconnected_of(&mut session.events()).error.kind(), ErrorKind::Idle);
}

#[test]
fn a_connection_whose_end_is_announced_finishes_its_calls_and_is_dialed_again() {
    let (hold, held) = channel::<()>();
    let held = Mutex::new(held);
    let server = plain(move |peer| match peer.number() {
        0 => {
            let said = heard(peer)?;
            peer.send_text("leaving")?;
            held.lock().expect("no panic").recv().expect("the test goes on");
            peer.send_text(&format!("reply {} x", said[1]))?;
            listens(peer)
        }
        _ => obliging(peer),
    });
    let session = session(&server, Words::default()).drain_timeout(SOON).connect().expect("ready");
    let handle = session.handle().clone();
    let waits = std::thread::spawn(move || handle.call(call("x")));
    let mut events = session.events();
    assert_eq!(until_event(&mut events, "going away"), ["opened 1", "ready 1", "going away"]);
    let refused = session.handle().call(call("y")).expect_err("no new calls");
    assert_eq!(refused.reason().kind(), ErrorKind::NotReady);
    assert!(refused.is_not_sent());
    hold.send(()).expect("the server waits");
    assert!(waits.join().expect("no panic").is_ok(), "the call has finished");
    let end = disconnected(&mut events);
    assert_eq!((end.epoch, end.retry_in.is_some()), (1, true));
    assert_eq!(until_event(&mut events, "ready 2"), ["opened 2", "ready 2"]);
}

#[test]
fn calls_that_take_too_long_do_not_keep_a_connection_whose_end_is_announced() {
    let server = plain(|peer| match peer.number() {
        0 => {
            heard(peer)?;
            peer.send_text("leaving")?;
            listens(peer)
        }
        _ => obliging(peer),
    });
    let session = session(&server, Words::default()).drain_timeout(20 * MS).connect();
    let session = session.expect("ready");
    let error = session.handle().call(call("x")).expect_err("it is given up");
    assert!(!error.is_not_sent());
    until("the second is ready", || {
        session.handle().wait_ready(SOON).is_ok_and(|epoch| epoch == 2)
    });
}

#[test]
fn an_error_of_the_venue_right_before_the_end_is_kept_with_it() {
    let server = plain(|peer| {
        peer.send_text("error secret words")?;
        peer.close(1008, "")?;
        listens(peer)
    });
    let session = session(&server, Words::default()).start().expect("it starts");
    let mut events = session.events();
    assert_eq!(until_event(&mut events, "error secret words").len(), 3);
    let end = disconnected(&mut events);
    assert_eq!(end.server_error.as_ref().map(|error| error.text()), Some("secret words"));
    assert!(!format!("{end:?} {end}").contains("secret"));
}

#[test]
fn a_panic_of_the_programs_code_ends_the_client_wherever_it_is() {
    let panicking = |message: MessageRef<'_>, _: &Context| -> StepOutcome {
        panic!("deliberate: {:?}", message.text())
    };
    let scripts = [
        OpeningScript::new().expect("matcher", SOON, panicking),
        OpeningScript::new().send("maker", |_| panic!("deliberate")),
        OpeningScript::new(),
    ];
    for script in scripts {
        let server = plain(|peer| {
            peer.send_text("panic")?;
            listens(peer)
        });
        let words = Words { script, ..Words::default() };
        let session = session(&server, words).start().expect("it starts");
        let error = session.wait_closed(SOON).expect("it has ended");
        assert_eq!(error.kind(), ErrorKind::HandlerPanicked);
        assert!(session.take_panic().is_some());
        assert!(session.stop(SOON).is_clean());
    }

    // In a closure that awaits a reply: on the reader, and on the heartbeat thread.
    for answers in [true, false] {
        let server = plain(move |peer| if answers { obliging(peer) } else { listens(peer) });
        let session = session(&server, Words::default()).connect().expect("ready");
        let within = if answers { SOON } else { 10 * MS };
        let request = call("x").within(within);
        session.handle().call_with(request, |_| panic!("deliberate")).expect("it leaves");
        let error = session.wait_closed(SOON).expect("it has ended");
        assert_eq!(error.kind(), ErrorKind::HandlerPanicked);
        assert!(session.take_panic().is_some());
    }

    // In the closure that is told of events.
    let server = plain(obliging);
    let told = session(&server, Words::default()).on_event(|_| panic!("deliberate"));
    let session = told.start().expect("it starts");
    let error = session.wait_closed(SOON).expect("it has ended");
    assert_eq!(error.kind(), ErrorKind::HandlerPanicked);
}

#[test]
fn a_call_still_has_a_fate_after_a_panic_of_the_handler() {
    struct Panics;
    impl Handler for Panics {
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
            panic!("deliberate");
        }
    }
    let server = plain(|peer| {
        heard(peer)?;
        peer.send_text("data")?;
        listens(peer)
    });
    let session = session(&server, Words::default()).connect_with(Panics).expect("ready");
    let (fate_tx, fate) = channel();
    session
        .handle()
        .call_with(call("x"), move |fate| {
            fate_tx.send(fate.is_err()).expect("the test waits");
        })
        .expect("it leaves");
    assert_eq!(fate.recv_timeout(SOON), Ok(true));
    assert_eq!(fate.recv_timeout(SOON).ok(), None, "and only one");
}

#[test]
fn events_are_told_to_the_closure_of_a_session_with_a_handler() {
    let server = plain(obliging);
    let (told_tx, told) = channel();
    let builder = session(&server, Words::default()).on_event(move |event| {
        let _ = told_tx.send(short(&Event::Session(event.clone())));
    });
    builder.handle().subscribe(["a"]).expect("there is no limit");
    let handler = |_: &mut Connection<'_>, _: MessageRef<'_>| {};
    let session = builder.connect_with(handler).expect("ready");
    let all: Vec<String> = (0..3).map(|_| told.recv_timeout(SOON).expect("it is told")).collect();
    assert_eq!(all, ["ready 1", "active a 1", "subscribed 1/0"]);
    drop(session);
}

#[test]
fn a_stop_in_every_stage_of_a_session_is_clean_and_quick() {
    type Script = fn(&mut Peer) -> std::io::Result<()>;
    let scripts: [Script; 4] = [
        // Waiting for the greeting, for the login, for an acknowledgement; ready.
        |peer| listens(peer),
        |peer| peer.send_text("welcome").and_then(|()| listens(peer)),
        |peer| {
            peer.send_text("welcome")?;
            heard(peer)?;
            peer.send_text("login ok")?;
            listens(peer)
        },
        |peer| {
            peer.send_text("welcome")?;
            obliging(peer)
        },
    ];
    for script in scripts {
        let server = plain(script);
        let builder = session(&server, Words::with_login());
        builder.handle().subscribe(["a"]).expect("there is no limit");
        let session = builder.start().expect("it starts");
        let mut events = session.events();
        assert_eq!(short(&next(&mut events)), "opened 1");
        let report: StopReport = session.stop(SOON);
        assert!(report.is_clean(), "{report}");
        assert_eq!(session.client().live_threads(), 0);
    }
}

#[test]
fn a_clone_of_a_builder_starts_a_session_of_its_own() {
    let server = plain(obliging);
    let first = session(&server, Words::default());
    let second = first.clone();
    first.handle().subscribe(["a"]).expect("there is no limit");
    let sessions: Vec<Session> =
        vec![first.connect().expect("ready"), second.connect().expect("ready")];
    sessions[0].handle().wait_subscribed(SOON).expect("all are answered");
    let counts: Vec<usize> =
        sessions.iter().map(|session| session.handle().subscriptions().len()).collect();
    assert_eq!(counts, [1, 0]);
}
