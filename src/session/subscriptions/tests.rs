//! The state of each topic, event by event; at the end, by properties, against a venue that is
//! simulated.

use rand::RngExt;
use rand::rngs::StdRng;

use super::*;
use crate::property;

const SECOND: Duration = Duration::from_secs(1);
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Subscriptions on one connection, and the time.
struct Session {
    subscriptions: Subscriptions,
    now: Instant,
    epoch: u64,
    last_id: u64,
}

/// A request that has left.
struct Sent {
    id: u64,
    is_subscribe: bool,
    topics: Vec<String>,
    aliases: Vec<String>,
}

impl Session {
    fn new() -> Self {
        let mut subscriptions = Subscriptions::new(ACK_TIMEOUT, usize::MAX);
        subscriptions.begin(1);
        Session { subscriptions, now: Instant::now(), epoch: 1, last_id: 1000 }
    }

    /// A session whose topics are all active.
    fn with_active(topics: &[&str]) -> Self {
        let mut session = Session::new();
        session.subscribe(topics);
        let sent = session.ask_all(topics.len());
        sent.iter().for_each(|sent| drop(session.accept(sent.id)));
        assert_eq!(session.subscriptions.open, 0);
        session
    }

    fn subscribe(&mut self, topics: &[&str]) {
        let topics: Vec<(&str, &str)> = topics.iter().map(|topic| (*topic, "")).collect();
        self.subscriptions.subscribe(&topics).expect("topics_max is not reached");
        self.check();
    }

    fn unsubscribe(&mut self, topics: &[&str]) {
        self.subscriptions.unsubscribe(topics.iter().copied());
        self.check();
    }

    /// The next request, which has not been written.
    fn next(&mut self, topics_max: usize) -> Option<Sent> {
        self.last_id += 1;
        let next = self.subscriptions.next_request(self.last_id, topics_max, self.now);
        self.check();
        next.map(|request| Sent {
            id: request.id(),
            is_subscribe: request.either(true, false),
            topics: request.topics().map(str::to_owned).collect(),
            aliases: request.aliases().map(str::to_owned).collect(),
        })
    }

    /// The next request, which is written.
    fn ask(&mut self, topics_max: usize) -> Option<Sent> {
        let sent = self.next(topics_max)?;
        self.subscriptions.written(sent.id, self.now);
        self.check();
        Some(sent)
    }

    fn ask_all(&mut self, topics_max: usize) -> Vec<Sent> {
        std::iter::from_fn(|| self.ask(topics_max)).collect()
    }

    fn asked(&mut self, topics_max: usize) -> Vec<String> {
        self.ask_all(topics_max).iter().map(ToString::to_string).collect()
    }

    fn reply(&mut self, id: u64, acceptance: &Acceptance) -> Vec<String> {
        let changes = self.subscriptions.reply(id, acceptance, self.epoch, self.now);
        self.tell(&changes)
    }

    fn accept(&mut self, id: u64) -> Vec<String> {
        self.reply(id, &Acceptance::All)
    }

    fn refuse(&mut self, id: u64) -> Vec<String> {
        self.reply(id, &Acceptance::Nothing(permanent()))
    }

    fn update(&mut self, topic: &str, update: &TopicUpdate) -> Option<Vec<String>> {
        self.update_with(topic, update, None)
    }

    fn update_with(
        &mut self,
        topic: &str,
        update: &TopicUpdate,
        alias: Option<&str>,
    ) -> Option<Vec<String>> {
        let changes = self.subscriptions.update(topic, update, alias, self.epoch, self.now);
        changes.map(|changes| self.tell(&changes))
    }

    fn list(&mut self, topics: &[&str]) -> Vec<String> {
        let topics = topics.iter().copied();
        let changes = self.subscriptions.active_topics(topics, self.epoch, self.now);
        self.tell(&changes)
    }

    fn overdue(&mut self) -> Vec<String> {
        let changes = self.subscriptions.overdue(self.epoch, self.now);
        self.tell(&changes)
    }

    /// The program is told of changes, at once.
    fn tell(&mut self, changes: &Changes) -> Vec<String> {
        self.check();
        for (topic, state) in changes {
            assert_eq!(self.subscriptions.told(topic, state, self.epoch), None);
        }
        shown(changes)
    }

    fn ended(&mut self) -> Vec<String> {
        let changes = self.subscriptions.ended(true, self.now);
        self.epoch += 1;
        self.subscriptions.begin(self.epoch);
        self.check();
        shown(&changes)
    }

    /// Returns the time until something is asked.
    fn wait_for_ask(&mut self) -> Duration {
        let from = self.now;
        loop {
            if self.ask(1).is_some() {
                return self.now - from;
            }
            self.now = self.subscriptions.next_due().expect("something is waited for");
            self.overdue();
        }
    }

    fn state(&self, topic: &str) -> String {
        let state = self.subscriptions.state(topic, self.epoch);
        state.map_or("none".to_owned(), |state| name_of(&state))
    }

    fn settled(&self) -> Option<(usize, usize)> {
        let settled = self.subscriptions.settled(self.epoch);
        settled.map(|settled| (settled.active, settled.rejected))
    }

    fn take_settled(&mut self) -> Option<(usize, usize)> {
        let settled = self.subscriptions.take_settled(self.epoch);
        settled.map(|settled| (settled.active, settled.rejected))
    }

    fn check(&self) {
        check_invariants(&self.subscriptions);
    }
}

impl std::fmt::Display for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.is_subscribe { '+' } else { '-' };
        write!(f, "{sign}{}", self.topics.join(","))
    }
}

fn permanent() -> Rejection {
    Rejection::permanent("no such symbol")
}

fn transient(seconds: u64) -> Rejection {
    Rejection::transient("busy", Duration::from_secs(seconds))
}

fn refused(rejection: Rejection) -> TopicUpdate {
    TopicUpdate::Rejected(rejection)
}

fn name_of(state: &SubscriptionState) -> String {
    match state {
        SubscriptionState::Pending => "pending".to_owned(),
        SubscriptionState::Requested => "requested".to_owned(),
        SubscriptionState::Active { .. } => "active".to_owned(),
        SubscriptionState::Unsubscribing => "unsubscribing".to_owned(),
        SubscriptionState::Rejected(rejection) if rejection.is_permanent() => "rejected".to_owned(),
        SubscriptionState::Rejected(_) => "rejected for now".to_owned(),
    }
}

fn shown(changes: &Changes) -> Vec<String> {
    let shown = changes.iter();
    shown.map(|(topic, state)| format!("{} {}", topic.as_str(), name_of(state))).collect()
}

/// The counts and the indexes agree with the topics and the requests.
fn check_invariants(subscriptions: &Subscriptions) {
    let Subscriptions { topics, names, aliases, due, delayed, requests, .. } = subscriptions;
    assert_eq!(names.len(), topics.len());
    let (mut wanted, mut open, mut waiting) = (0, 0, 0);
    let mut awaited: BTreeMap<u64, usize> = BTreeMap::new();
    for (order, entry) in topics {
        assert_eq!(names.get(&entry.name), Some(order));
        wanted += usize::from(entry.is_wanted());
        open += usize::from(entry.count() == Count::Open);
        assert_eq!(entry.counted, entry.count());
        assert!(!entry.is_gone());
        assert!(entry.wish != Wish::Renewed || entry.is_ending());
        let needs_request = entry.next_request().is_some();
        assert_eq!(due.contains(order), needs_request && entry.retry_at.is_none());
        if let Some(at) = entry.retry_at {
            waiting += 1;
            assert!(delayed.contains(&(at, *order)));
            assert!(needs_request || matches!(entry.state, State::Rejected(_)));
        } else if let State::Rejected(rejection) = &entry.state {
            let is_asked = rejection.is_permanent() || needs_request;
            assert!(is_asked, "nobody would ask for it again");
        }
        if let Some(id) = entry.state.asked() {
            *awaited.entry(id).or_default() += 1;
            assert!(requests[&id].topics.contains(order));
        }
        if let Some(alias) = &entry.alias {
            assert!(aliases.contains_key(alias));
        }
    }
    assert_eq!((subscriptions.wanted, subscriptions.open), (wanted, open));
    assert!(due.iter().all(|order| topics.contains_key(order)));
    assert_eq!(delayed.len(), waiting);
    assert!(aliases.values().all(|order| topics.contains_key(order)));
    assert!(awaited.keys().all(|id| requests.contains_key(id)));
    let mut deadlines = 0;
    for (id, request) in requests {
        assert_eq!(request.open, awaited.get(id).copied().unwrap_or(0));
        assert_eq!(subscriptions.unanswered.contains(id), request.open > 0);
        assert_eq!(request.topics.len(), request.names.len());
        if let Some((_, until)) = request.sent {
            deadlines += 1;
            assert!(subscriptions.deadlines.contains(&(until, *id)));
        }
    }
    assert_eq!(subscriptions.deadlines.len(), deadlines);
    assert!(subscriptions.unanswered.iter().all(|id| requests.contains_key(id)));
}

// ---- Requests ----

#[test]
fn topics_are_asked_for_in_the_order_of_their_subscription_and_in_batches() {
    let mut session = Session::new();
    session.subscribe(&["b", "a", "d", "c", "e"]);
    assert_eq!(session.asked(2), ["+b,a", "+d,c", "+e"]);
    assert!(!session.subscriptions.has_work());
}

#[test]
fn a_batch_of_no_topics_counts_as_one() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    assert_eq!(session.asked(0), ["+a", "+b"]);
}

#[test]
fn topics_of_different_groups_and_directions_never_share_a_request() {
    let mut session = Session::with_active(&["x"]);
    let topics = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")];
    session.subscriptions.subscribe(&topics).expect("there is room");
    session.unsubscribe(&["x"]);
    assert_eq!(session.asked(9), ["-x", "+a1,a2", "+b1,b2"]);
}

#[test]
fn more_than_topics_max_are_refused_all_at_once() {
    let mut session = Session::new();
    session.subscriptions.set_limits(ACK_TIMEOUT, 3);
    session.subscribe(&["a", "b"]);
    // Those that are wanted already, and those said twice, count once.
    session.subscribe(&["a", "c", "c", "b"]);
    let refused = session.subscriptions.subscribe(&[("a", ""), ("d", "")]);
    assert!(refused.expect_err("four").to_string().contains("4 topics"));
    assert_eq!((session.state("d"), session.subscriptions.wanted), ("none".to_owned(), 3));
    session.unsubscribe(&["a"]);
    session.subscribe(&["d"]);
}

#[test]
fn what_found_no_room_is_asked_for_later_and_was_never_asked() {
    let mut session = Session::with_active(&["old"]);
    session.subscribe(&["a", "b"]);
    session.unsubscribe(&["old"]);
    for _ in 0..2 {
        for expected in ["-old", "+a,b"] {
            let sent = session.next(9).expect("it has not been asked");
            assert_eq!(sent.to_string(), expected);
            if expected == "-old" {
                let since = session.subscriptions.active_since("old");
                session.subscriptions.withdraw(sent.id);
                assert!(since.is_none() && session.state("old") == "active");
                assert!(session.subscriptions.active_since("old").is_some());
                let again = session.next(9).expect("it has been withdrawn");
                assert_eq!(again.to_string(), "-old");
                session.subscribe(&["old"]);
                session.subscriptions.withdraw(again.id);
            } else {
                session.subscriptions.withdraw(sent.id);
            }
            session.check();
            assert!(session.subscriptions.request(sent.id).is_none());
        }
        session.unsubscribe(&["old"]);
    }
    // Nobody asks for what is wanted no more when it comes back.
    let sent = session.next(9).expect("to end it");
    session.subscriptions.withdraw(sent.id);
    let sent = session.next(1).expect("the same");
    session.subscriptions.written(sent.id, session.now);
    let (a, b) = (session.next(1).expect("a"), session.next(1).expect("b"));
    session.unsubscribe(&["a"]);
    session.subscriptions.withdraw(a.id);
    session.subscriptions.withdraw(b.id);
    session.check();
    assert_eq!((session.state("a"), session.state("b")), ("none".into(), "pending".into()));
}

#[test]
fn a_withdrawn_end_leaves_the_time_at_which_the_topic_became_active() {
    let mut session = Session::with_active(&["a"]);
    let since = session.subscriptions.active_since("a");
    session.now += SECOND;
    session.subscriptions.resubscribe("a");
    let sent = session.next(1).expect("its end");
    assert_eq!(session.subscriptions.active_since("a"), None);
    session.subscriptions.withdraw(sent.id);
    assert_eq!(session.subscriptions.active_since("a"), since);
}

#[test]
fn nothing_is_asked_but_on_the_connection_that_is_ready() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    let (subscriptions, now) = (&mut session.subscriptions, session.now);
    assert!(subscriptions.ended(false, now).is_empty());
    assert!(subscriptions.request_on(1, 9, 1, now).is_none());
    subscriptions.begin(2);
    assert!(subscriptions.request_on(1, 9, 1, now).is_none());
    assert!(subscriptions.request_on(2, 9, 1, now).is_some());
}

// ---- Wishes that change ----

#[test]
fn an_unsubscribe_overtakes_a_subscribe_that_has_not_left() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    session.unsubscribe(&["a"]);
    assert_eq!((session.asked(9), session.state("a")), (vec!["+b".into()], "none".into()));
}

#[test]
fn of_two_requests_that_have_left_the_second_waits_for_the_answer() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    let first = session.ask(1).expect("a");
    for _ in 0..3 {
        session.unsubscribe(&["a"]);
        assert!(session.ask(1).is_none());
        session.subscribe(&["a"]);
        assert!(session.ask(1).is_none());
    }
    session.unsubscribe(&["a"]);
    assert!(session.accept(first.id).is_empty(), "nobody wants to know");
    let second = session.ask(1).expect("its end");
    assert_eq!((second.to_string(), session.state("a")), ("-a".into(), "unsubscribing".into()));
    session.subscribe(&["a"]);
    assert!(session.ask(1).is_none());
    assert_eq!(session.accept(second.id), ["a pending"]);
    assert_eq!(session.asked(1), ["+a"]);
}

#[test]
fn a_resubscription_ends_the_topic_and_asks_again_however_often_it_is_said() {
    let mut session = Session::with_active(&["a"]);
    let mut requests = Vec::new();
    let mut is_new = 0;
    for turn in 0..1000 {
        is_new += usize::from(session.subscriptions.resubscribe("a"));
        session.check();
        let sent = if turn % 100 == 0 { session.ask(1) } else { None };
        if let Some(sent) = sent {
            requests.push(sent.to_string());
            session.now += SECOND;
            session.accept(sent.id);
        }
    }
    let again = ["-a", "+a"];
    assert_eq!(requests, again.repeat(5));
    assert_eq!(is_new, 6, "the last one is due");
}

#[test]
fn a_resubscription_does_nothing_unless_the_topic_is_active_and_wanted() {
    let mut session = Session::new();
    assert!(!session.subscriptions.resubscribe("a"));
    session.subscribe(&["a"]);
    assert!(!session.subscriptions.resubscribe("a"), "pending");
    let sent = session.ask(1).expect("a");
    assert!(!session.subscriptions.resubscribe("a"), "requested");
    session.accept(sent.id);
    session.unsubscribe(&["a"]);
    assert!(!session.subscriptions.resubscribe("a"), "not wanted");
    session.subscribe(&["a"]);
    assert!(session.ask(1).is_none(), "active and wanted");
    session.update("a", &refused(permanent()));
    assert!(!session.subscriptions.resubscribe("a"), "rejected");
}

#[test]
fn a_resubscription_that_has_not_left_is_forgotten_with_the_wish() {
    let mut session = Session::with_active(&["a"]);
    session.subscriptions.resubscribe("a");
    session.unsubscribe(&["a"]);
    session.subscribe(&["a"]);
    assert!(session.ask(1).is_none());
    assert_eq!(session.state("a"), "active");
}

#[test]
fn an_end_that_crosses_a_resubscription_answers_it() {
    let mut session = Session::with_active(&["a"]);
    session.subscriptions.resubscribe("a");
    assert_eq!(session.update("a", &TopicUpdate::Unsubscribed).expect("known"), ["a pending"]);
    let sent = session.ask(1).expect("at once");
    assert_eq!(sent.to_string(), "+a");
    session.accept(sent.id);
    assert!(session.ask(1).is_none(), "it has been renewed");
}

// ---- Answers ----

#[test]
fn an_answer_by_id_counts_for_all_that_is_open_and_a_second_one_for_nothing() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let sent = session.ask(2).expect("both");
    assert_eq!((session.state("a"), session.settled()), ("requested".into(), None));
    assert_eq!(session.accept(sent.id), ["a active", "b active"]);
    assert_eq!(session.settled(), Some((2, 0)));
    assert!(session.subscriptions.request(sent.id).is_none());
    assert!(session.refuse(sent.id).is_empty() && session.accept(9).is_empty());
    assert_eq!((session.state("a"), session.subscriptions.next_due()), ("active".into(), None));
}

#[test]
fn an_answer_may_be_faster_than_the_news_of_the_write() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let (a, b) = (session.next(1).expect("a"), session.next(1).expect("b"));
    session.accept(a.id);
    session.update("b", &TopicUpdate::Subscribed);
    session.subscriptions.written(a.id, session.now);
    session.subscriptions.written(b.id, session.now);
    session.now += 99 * SECOND;
    assert!(session.overdue().is_empty());
    assert_eq!((session.settled(), session.ask(1).is_none()), (Some((2, 0)), true));
}

#[test]
fn an_answer_by_id_leaves_what_was_answered_by_name() {
    let mut session = Session::new();
    session.subscribe(&["a", "b", "c"]);
    let sent = session.ask(3).expect("all");
    assert_eq!(session.update("a", &TopicUpdate::Subscribed).expect("known"), ["a active"]);
    session.update("b", &refused(permanent()));
    assert_eq!(session.settled(), None);
    // The protocol is shown the request as it was sent.
    let request = session.subscriptions.request(sent.id).expect("c is open");
    assert_eq!(request.topics().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(session.refuse(sent.id), ["c rejected"]);
    assert_eq!(session.settled(), Some((1, 2)));
}

#[test]
fn a_request_that_was_answered_by_name_takes_a_reply_by_id_until_its_time_is_up() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    let sent = session.ask(1).expect("a");
    session.update("a", &TopicUpdate::Subscribed);
    let request = session.subscriptions.request(sent.id).expect("a reply may follow");
    assert_eq!(request.topic(), "a");
    session.now += ACK_TIMEOUT;
    assert!(session.overdue().is_empty());
    assert!(session.subscriptions.request(sent.id).is_none());
}

#[test]
fn topics_that_a_reply_excepts_are_rejected_and_the_others_stay_open() {
    let mut session = Session::new();
    session.subscribe(&["a", "b", "c"]);
    let sent = session.ask(3).expect("all");
    let except = |name: &str| {
        Acceptance::Except(vec![(name.to_owned(), permanent()), ("unknown".into(), permanent())])
    };
    assert_eq!(session.reply(sent.id, &except("b")), ["b rejected"]);
    assert_eq!(session.reply(sent.id, &except("b")), Vec::<String>::new());
    assert_eq!(session.settled(), None);
    session.update("a", &TopicUpdate::Subscribed);
    assert_eq!(session.reply(sent.id, &except("c")), ["c rejected"]);
    assert_eq!(session.settled(), Some((1, 2)));

    session.unsubscribe(&["a"]);
    let end = session.ask(1).expect("the end");
    session.reply(end.id, &except("a"));
    assert_eq!(session.state("a"), "none");
}

#[test]
fn topics_that_a_reply_leaves_out_are_rejected() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let sent = session.ask(2).expect("both");
    let only = Acceptance::Only(vec!["b".to_owned(), "unknown".to_owned()]);
    assert_eq!(session.reply(sent.id, &only), ["a rejected", "b active"]);
    session.unsubscribe(&["b"]);
    let sent = session.ask(2).expect("its end");
    session.reply(sent.id, &Acceptance::Only(Vec::new()));
    assert_eq!(session.state("b"), "none");
}

#[test]
fn the_last_word_on_a_topic_counts() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    // Data and its confirmation may come before the request is known to be written.
    assert_eq!(session.update("a", &TopicUpdate::Subscribed).expect("known"), ["a active"]);
    assert!(session.ask(1).is_none());
    let rejected = session.update("a", &refused(permanent()));
    assert_eq!(rejected.expect("known"), ["a rejected"]);
    assert_eq!(session.update("a", &TopicUpdate::Subscribed).expect("known"), ["a active"]);
    assert!(session.update("a", &TopicUpdate::Subscribed).expect("known").is_empty());
    session.update("a", &refused(transient(60)));
    session.update("a", &TopicUpdate::Subscribed);
    assert_eq!(session.subscriptions.next_due(), None, "nothing is left to ask");
    assert_eq!(session.update("unknown", &TopicUpdate::Subscribed), None);
}

#[test]
fn a_rejection_by_name_counts_while_the_topic_waits_to_be_asked_again() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let sent = session.ask(2).expect("both");
    session.refuse(sent.id);
    session.update("a", &refused(permanent()));
    assert_eq!((session.state("a"), session.asked(9)), ("rejected".into(), vec!["+b".into()]));
}

#[test]
fn a_list_answers_the_first_request_that_is_open() {
    let mut session = Session::new();
    session.subscribe(&["a", "b", "c"]);
    session.ask(2);
    session.ask(1);
    let unsent = session.subscriptions.active_topics([], 1, session.now - SECOND);
    assert_eq!(shown(&unsent), ["a rejected", "b rejected"]);
    assert_eq!(session.state("c"), "requested");
    assert_eq!(session.list(&["b", "c", "unknown"]), ["b active", "c active"]);
    assert_eq!(session.settled(), Some((2, 1)));
    session.unsubscribe(&["b"]);
    session.subscriptions.resubscribe("c");
    session.ask_all(1);
    assert!(session.list(&["b", "c"]).is_empty(), "it has ended none");
    assert_eq!(session.list(&["b"]), ["c pending"]);
    assert!(session.list(&[]).is_empty());
    assert_eq!((session.state("b"), session.asked(1)), ("none".into(), vec!["+c".into()]));
}

#[test]
fn a_list_answers_one_request_though_its_topics_were_answered_before() {
    let mut session = Session::with_active(&["a", "b"]);
    session.unsubscribe(&["a", "b"]);
    session.subscribe(&["c"]);
    assert_eq!(session.asked(1), ["-a", "-b", "+c"]);
    // The first leaves out both, because the second has been taken as well.
    session.list(&[]);
    assert!(session.list(&[]).is_empty(), "it is the second's");
    assert_eq!(session.list(&["c"]), ["c active"]);
}

#[test]
fn a_list_does_not_answer_what_has_not_been_written() {
    let mut session = Session::with_active(&["x"]);
    session.unsubscribe(&["x"]);
    session.subscribe(&["a"]);
    let (x, a) = (session.next(1).expect("x"), session.next(1).expect("a"));
    assert!(session.list(&[]).is_empty());
    assert_eq!(
        (session.state("x"), session.state("a")),
        ("unsubscribing".into(), "requested".into())
    );
    session.subscriptions.written(x.id, session.now);
    session.list(&[]);
    session.subscriptions.written(a.id, session.now);
    assert_eq!(
        (session.state("x"), session.list(&[])),
        ("none".into(), vec!["a rejected".to_owned()])
    );
}

#[test]
fn an_active_topic_that_a_list_leaves_out_has_ended() {
    let mut session = Session::with_active(&["a", "b"]);
    assert_eq!(session.list(&["a"]), ["b pending"]);
    assert_eq!(session.wait_for_ask(), SECOND);
}

// ---- Rejections ----

#[test]
fn a_permanent_rejection_stays_until_the_program_subscribes_anew() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let sent = session.ask(1).expect("a");
    session.refuse(sent.id);
    session.ended();
    assert_eq!((session.state("a"), session.asked(9)), ("rejected".into(), vec!["+b".into()]));
    session.subscribe(&["b"]);
    assert!(session.ask(9).is_none());
    session.subscribe(&["a"]);
    assert_eq!(session.asked(9), ["+a"]);
}

#[test]
fn a_transient_rejection_is_asked_again_after_its_time_on_the_next_connection_too() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    let sent = session.ask(1).expect("a");
    let rejection = Acceptance::Nothing(transient(60));
    assert_eq!(session.reply(sent.id, &rejection), ["a rejected for now"]);
    assert_eq!(session.settled(), Some((0, 1)));
    // The program cannot know better, and may say it at every message.
    session.subscribe(&["a"]);
    session.now += 20 * SECOND;
    session.ended();
    assert!(session.ask(1).is_none());
    assert_eq!(session.wait_for_ask(), 40 * SECOND);
    assert_eq!(session.settled(), None);
    // The other batch is not halved for it.
    session.subscribe(&["b", "c"]);
    let sent = session.ask(2).expect("both");
    session.reply(sent.id, &rejection);
    session.now += 60 * SECOND;
    assert_eq!(session.asked(2), ["+b,c"]);
}

#[test]
fn a_rejection_without_a_time_is_no_storm() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    let sent = session.ask(1).expect("a");
    session.reply(sent.id, &Acceptance::Nothing(transient(0)));
    assert_eq!(session.wait_for_ask(), RETRY_MIN);
}

#[test]
fn the_time_of_a_rejection_that_is_over_rejects_nothing_later() {
    let mut session = Session::with_active(&["a"]);
    session.update("a", &refused(transient(60)));
    session.update("a", &TopicUpdate::Subscribed);
    session.now += 30 * SECOND;
    session.update("a", &refused(permanent()));
    session.now += 60 * SECOND;
    assert!(session.ask(1).is_none());
    assert_eq!(session.state("a"), "rejected");
    session.subscribe(&["b"]);
    let sent = session.ask(1).expect("b");
    session.reply(sent.id, &Acceptance::Nothing(transient(60)));
    session.unsubscribe(&["b"]);
    assert_eq!((session.state("b"), session.subscriptions.next_due()), ("none".into(), None));
}

/// Asks for `n` topics of which some are refused, and returns the number of requests.
fn find_culprits(n: usize, culprits: &[usize]) -> usize {
    let mut session = Session::new();
    let names: Vec<String> = (0..n).map(|i| format!("{i}")).collect();
    session.subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let is_culprit = |name: &String| culprits.iter().any(|i| *name == format!("{i}"));
    let mut requests = 0;
    while let Some(sent) = session.ask(n) {
        requests += 1;
        assert!(session.ask(n).is_none(), "one half at a time");
        match sent.topics.iter().any(is_culprit) {
            true => session.refuse(sent.id),
            false => session.accept(sent.id),
        };
    }
    for name in &names {
        let expected = if is_culprit(name) { "rejected" } else { "active" };
        assert_eq!(session.state(name), expected);
    }
    assert_eq!(session.settled(), Some((n - culprits.len(), culprits.len())));
    requests
}

#[test]
fn halving_finds_each_culprit_with_two_requests_per_level() {
    for n in [1usize, 2, 3, 7, 8, 64, 100, 200] {
        let levels = n.next_power_of_two().ilog2() as usize;
        for culprit in (0..n).step_by(1 + n / 40) {
            let requests = find_culprits(n, &[culprit]);
            assert!(requests <= 1 + 2 * levels, "{requests} for {culprit} of {n}");
        }
    }
    for (first, second) in [(0, 199), (3, 4), (99, 100), (17, 150)] {
        assert!(find_culprits(200, &[first, second]) <= 1 + 4 * 8);
    }
    assert_eq!(find_culprits(16, &(0..16).collect::<Vec<_>>()), 31);
}

#[test]
fn topics_that_are_in_no_half_do_not_wait_and_share_no_request_with_one() {
    let mut session = Session::new();
    session.subscribe(&["a", "b", "c", "d"]);
    let sent = session.ask(9).expect("all");
    session.refuse(sent.id);
    session.subscribe(&["e"]);
    assert_eq!(session.asked(9), ["+a,b", "+e"]);
    // A half whose request finds no room, or no answer, keeps nobody waiting for ever.
    session.now += ACK_TIMEOUT;
    session.overdue();
    assert_eq!(session.asked(9), ["+a,b", "+e"]);
    session.ended();
    assert_eq!(session.asked(9), ["+a,b", "+e"]);
}

#[test]
fn topics_that_have_an_answer_are_in_no_half_any_more() {
    let mut session = Session::new();
    session.subscribe(&["a", "b", "c", "d"]);
    let sent = session.ask(9).expect("all");
    session.refuse(sent.id);
    let sent = session.ask(9).expect("a and b");
    session.accept(sent.id);
    let sent = session.ask(9).expect("c and d");
    session.update("c", &refused(permanent()));
    session.accept(sent.id);
    session.subscriptions.resubscribe("a");
    session.subscriptions.resubscribe("d");
    assert_eq!(session.asked(9), ["-a,d"]);
    session.subscribe(&["c", "e"]);
    assert_eq!(session.asked(9), ["+c,e"]);
}

#[test]
fn a_refusal_to_end_a_topic_counts_as_its_end_unless_it_is_transient() {
    let mut session = Session::with_active(&["a", "b"]);
    let since = session.subscriptions.active_since("a");
    session.now += SECOND;
    session.unsubscribe(&["a", "b"]);
    let sent = session.ask(2).expect("both");
    session.reply(sent.id, &Acceptance::Nothing(transient(7)));
    assert_eq!(
        (session.state("a"), session.subscriptions.active_since("a")),
        ("active".into(), since)
    );
    assert_eq!(session.wait_for_ask(), 7 * SECOND);
    session.update("a", &refused(transient(5)));
    assert_eq!(session.state("a"), "active");
    let sent = session.ask(2).expect("b");
    session.refuse(sent.id);
    assert_eq!(session.state("b"), "none");
    assert_eq!(session.wait_for_ask(), 5 * SECOND);
    session.update("a", &refused(permanent()));
    assert_eq!(session.state("a"), "none");
}

#[test]
fn a_refusal_to_end_what_is_wanted_again_leaves_nothing_to_wait_for() {
    let mut session = Session::with_active(&["a"]);
    session.unsubscribe(&["a"]);
    let sent = session.ask(1).expect("its end");
    session.subscribe(&["a"]);
    session.reply(sent.id, &Acceptance::Nothing(transient(60)));
    assert_eq!((session.state("a"), session.subscriptions.next_due()), ("active".into(), None));
}

#[test]
fn a_wish_that_changes_ends_the_wait_of_the_other_one() {
    let mut session = Session::with_active(&["a"]);
    session.unsubscribe(&["a"]);
    let sent = session.ask(1).expect("its end");
    session.reply(sent.id, &Acceptance::Nothing(transient(60)));
    session.unsubscribe(&["a"]);
    assert!(session.ask(1).is_none(), "the wish is the same");
    session.subscribe(&["a"]);
    assert_eq!(session.subscriptions.next_due(), None);
    session.unsubscribe(&["a"]);
    assert_eq!(session.asked(1), ["-a"]);
}

// ---- Ends that nobody asked for ----

#[test]
fn a_topic_that_the_venue_ends_is_asked_for_again_with_a_growing_delay() {
    let mut session = Session::with_active(&["a"]);
    for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        let ended = session.update("a", &TopicUpdate::Unsubscribed);
        assert_eq!(ended.expect("known"), ["a pending"]);
        // The program cannot know better, and may say it at every message.
        session.subscribe(&["a"]);
        session.subscriptions.resubscribe("a");
        assert_eq!(session.settled(), None);
        assert_eq!(session.wait_for_ask(), seconds * SECOND);
        session.update("a", &TopicUpdate::Subscribed);
    }
    session.now += RETRY_MAX;
    session.update("a", &TopicUpdate::Unsubscribed);
    assert_eq!(session.wait_for_ask(), SECOND, "it was active for long");
    session.update("a", &TopicUpdate::Subscribed);
    session.update("a", &TopicUpdate::Unsubscribed);
    session.ended();
    assert_eq!(session.asked(1), ["+a"], "a connection begins with everything");
}

#[test]
fn the_end_of_a_topic_that_nobody_wants_is_the_end() {
    let mut session = Session::with_active(&["a"]);
    session.unsubscribe(&["a"]);
    session.update("a", &TopicUpdate::Unsubscribed);
    assert_eq!((session.state("a"), session.ask(1).is_none()), ("none".into(), true));
}

// ---- Silence ----

#[test]
fn what_is_not_answered_in_time_is_asked_again_with_twice_the_time() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    session.ask(1);
    for seconds in [10, 20, 40, 80, 160, 300, 300] {
        let due = session.subscriptions.next_due().expect("an answer is due");
        assert_eq!(due - session.now, seconds * SECOND);
        session.now = due - SECOND / 1000;
        assert!(session.overdue().is_empty());
        session.now = due;
        assert_eq!(session.overdue(), ["a pending"]);
        assert_eq!(session.asked(1), ["+a"]);
    }
    session.update("a", &TopicUpdate::Subscribed);
    session.subscriptions.resubscribe("a");
    for (asked, seconds) in [("-a", 10), ("-a", 20), ("-a", 40)] {
        assert_eq!(session.asked(1), [asked]);
        session.now += seconds * SECOND;
        assert_eq!(session.overdue(), ["a unsubscribing"]);
    }
    session.ask(1);
    session.update("a", &TopicUpdate::Unsubscribed);
    let sent = session.ask(1).expect("again");
    let (_, until) = session.subscriptions.requests[&sent.id].sent.expect("it is written");
    assert_eq!((sent.to_string(), until - session.now), ("+a".into(), ACK_TIMEOUT));
}

#[test]
fn a_refusal_is_an_answer_and_its_halves_begin_with_the_shortest_time() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    session.ask(2);
    session.now += ACK_TIMEOUT;
    session.overdue();
    let sent = session.ask(2).expect("both again");
    assert_eq!(session.subscriptions.next_due(), Some(session.now + 2 * ACK_TIMEOUT));
    session.refuse(sent.id);
    session.ask(1);
    assert_eq!(session.subscriptions.next_due(), Some(session.now + ACK_TIMEOUT));
}

#[test]
fn a_new_connection_begins_with_the_shortest_time() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    for _ in 0..4 {
        session.ask(1);
        session.now = session.subscriptions.next_due().expect("an answer is due");
        session.overdue();
    }
    session.ended();
    session.ask(1);
    assert_eq!(session.subscriptions.next_due(), Some(session.now + ACK_TIMEOUT));
}

#[test]
fn a_topic_whose_request_was_not_answered_is_ended_before_it_is_forgotten() {
    // The venue may have it: nobody would end it otherwise, and its data would never stop.
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    session.ask(2);
    session.unsubscribe(&["a"]);
    session.now += ACK_TIMEOUT;
    assert_eq!(session.overdue(), ["b pending"]);
    session.unsubscribe(&["b"]);
    assert_eq!(
        (session.state("a"), session.state("b")),
        ("unsubscribing".into(), "unsubscribing".into())
    );
    let sent = session.next(2).expect("their end");
    assert_eq!(sent.to_string(), "-a,b");
    session.subscriptions.withdraw(sent.id);
    assert_eq!(session.state("a"), "unsubscribing");
    let sent = session.ask(2).expect("their end");
    session.refuse(sent.id);
    assert_eq!((session.state("a"), session.state("b")), ("none".into(), "none".into()));
}

#[test]
fn a_topic_whose_end_was_not_answered_is_asked_for_before_it_counts_as_active() {
    let mut session = Session::with_active(&["a"]);
    session.unsubscribe(&["a"]);
    session.ask(1);
    session.subscribe(&["a"]);
    session.now += ACK_TIMEOUT;
    assert_eq!(session.overdue(), ["a pending"]);
    assert_eq!(session.asked(1), ["+a"]);
    // The answer to the first comes late, and is none to the second.
    session.update("a", &TopicUpdate::Unsubscribed);
    assert_eq!(session.state("a"), "requested");
}

#[test]
fn a_topic_is_certain_again_once_it_has_been_ended_or_has_another_connection() {
    let settle: [fn(&mut Session); 2] = [
        |session| {
            session.unsubscribe(&["a"]);
            let sent = session.ask(1).expect("its end");
            session.subscribe(&["a"]);
            session.accept(sent.id);
        },
        |session| drop(session.ended()),
    ];
    for settle in settle {
        let mut session = Session::new();
        session.subscribe(&["a"]);
        session.ask(1);
        session.now += ACK_TIMEOUT;
        session.overdue();
        settle(&mut session);
        assert_eq!(session.state("a"), "pending");
        session.unsubscribe(&["a"]);
        assert_eq!(session.state("a"), "none");
    }
}

/// A session that has asked twice for "a", because the answer to the first request is late.
fn asked_twice() -> Session {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    session.ask(1);
    session.now += ACK_TIMEOUT;
    session.overdue();
    assert_eq!(session.asked(1), ["+a"]);
    session
}

#[test]
fn an_end_that_the_venue_has_told_of_before_it_was_asked_again_is_none() {
    let told: [fn(&mut Session); 3] = [
        |session| drop(session.update("a", &TopicUpdate::Unsubscribed)),
        |session| drop(session.update("a", &refused(permanent()))),
        |session| drop(session.list(&[])),
    ];
    // Each returns a request that does not leave.
    let before: [fn(&mut Session) -> Option<u64>; 3] = [
        // Nothing has answered the second request either.
        |session| {
            session.unsubscribe(&["a"]);
            session.now += 2 * ACK_TIMEOUT;
            session.overdue();
            None
        },
        // What answers the first seems to answer the second.
        |session| {
            session.update("a", &TopicUpdate::Subscribed);
            session.unsubscribe(&["a"]);
            None
        },
        |session| {
            session.update("a", &TopicUpdate::Subscribed);
            session.unsubscribe(&["a"]);
            session.next(1).map(|sent| sent.id)
        },
    ];
    for told in told {
        for before in before {
            let mut session = asked_twice();
            let withdrawn = before(&mut session);
            told(&mut session);
            withdrawn.into_iter().for_each(|id| session.subscriptions.withdraw(id));
            assert_eq!(session.asked(1), ["-a"]);
            session.update("a", &TopicUpdate::Unsubscribed);
            assert_eq!(session.state("a"), "none");
        }
    }
}

#[test]
fn a_topic_that_the_venue_seems_to_have_ended_before_it_was_asked_again_is_ended() {
    let mut session = asked_twice();
    session.update("a", &TopicUpdate::Subscribed);
    assert_eq!(session.update("a", &TopicUpdate::Unsubscribed), Some(vec!["a pending".into()]));
    session.unsubscribe(&["a"]);
    session.now += SECOND;
    assert_eq!(session.asked(1), ["-a"]);
}

#[test]
fn an_acceptance_that_is_older_than_the_end_of_a_topic_is_none() {
    let mut session = asked_twice();
    session.update("a", &TopicUpdate::Subscribed);
    session.unsubscribe(&["a"]);
    assert_eq!(session.asked(1), ["-a"]);
    session.subscribe(&["a"]);
    session.now += ACK_TIMEOUT;
    assert_eq!(session.overdue(), ["a pending"]);
    // It answers the second request, and the venue has ended the topic since.
    session.update("a", &TopicUpdate::Subscribed);
    assert_eq!((session.state("a"), session.asked(1)), ("pending".into(), vec!["+a".into()]));
    session.update("a", &TopicUpdate::Subscribed);
    assert_eq!(session.state("a"), "active");
}

#[test]
fn a_refusal_that_may_be_older_than_the_end_of_a_topic_leaves_it_to_be_asked_for() {
    let mut session = asked_twice();
    session.update("a", &TopicUpdate::Subscribed);
    session.unsubscribe(&["a"]);
    assert_eq!(session.asked(1), ["-a"]);
    session.subscribe(&["a"]);
    // It answers the second request for it, or the one to end it.
    session.update("a", &refused(transient(3)));
    assert_eq!((session.state("a"), session.asked(1)), ("pending".into(), vec!["+a".into()]));
    // Where nobody wants it, it is ended.
    session.update("a", &TopicUpdate::Subscribed);
    session.unsubscribe(&["a"]);
    assert_eq!(session.asked(1), ["-a"]);
    session.update("a", &refused(transient(3)));
    assert_eq!(session.state("a"), "unsubscribing");
    session.now += 3 * SECOND;
    assert_eq!(session.asked(1), ["-a"]);
}

#[test]
fn a_rejection_that_may_be_of_a_second_request_leaves_the_first_to_be_ended() {
    let mut session = Session::new();
    session.subscribe(&["again", "active", "left out"]);
    session.ask_all(1);
    session.update("active", &TopicUpdate::Subscribed);
    session.now += ACK_TIMEOUT;
    session.overdue();
    session.ask_all(1);
    session.update("again", &refused(transient(60)));
    session.update("active", &refused(permanent()));
    (0..3).for_each(|_| drop(session.list(&[])));
    for topic in ["again", "active", "left out"] {
        assert!(session.state(topic).starts_with("rejected"), "{topic}");
        session.unsubscribe(&[topic]);
        assert_eq!(session.state(topic), "unsubscribing");
    }
    session.subscribe(&["again", "active"]);
    session.now += 60 * SECOND;
    assert_eq!(session.asked(1), ["+again", "+active", "-left out"]);
}

#[test]
fn a_list_that_crosses_a_request_leaves_its_topics_to_be_ended() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    session.ask(1);
    session.list(&[]);
    session.unsubscribe(&["a"]);
    assert_eq!(session.asked(1), ["-a"]);
    session.list(&[]);
    assert_eq!(session.state("a"), "none");
}

#[test]
fn a_late_answer_counts_by_name_and_by_id_but_for_what_it_refuses() {
    let late = || {
        let mut session = Session::new();
        session.subscribe(&["a", "b"]);
        let sent = session.ask(2).expect("both");
        session.now += ACK_TIMEOUT;
        session.overdue();
        (session, sent.id)
    };
    let (mut session, _) = late();
    session.update("a", &TopicUpdate::Subscribed);
    assert_eq!(session.asked(2), ["+b"]);

    let (mut session, id) = late();
    let again = session.ask(2).expect("both again");
    assert_eq!(session.accept(id), ["a active", "b active"]);
    // The answer to the second request finds nothing to refuse.
    assert!(session.refuse(again.id).is_empty());
    assert!(session.subscriptions.request(id).is_none());

    let (mut session, id) = late();
    assert!(session.refuse(id).is_empty());
    assert_eq!(session.asked(2), ["+a,b"]);
}

// ---- Aliases ----

#[test]
fn a_topic_is_known_by_its_alias_until_it_ends() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    session.ask_all(2);
    session.update_with("a", &TopicUpdate::Subscribed, Some("5"));
    session.update_with("b", &TopicUpdate::Subscribed, Some("6"));
    session.update_with("b", &TopicUpdate::Subscribed, Some("7"));
    assert_eq!(session.update("6", &TopicUpdate::Subscribed), None);
    session.unsubscribe(&["b"]);
    let sent = session.ask(1).expect("b");
    assert_eq!((sent.topics, sent.aliases), (vec!["b".to_owned()], vec!["7".to_owned()]));
    session.update("7", &TopicUpdate::Unsubscribed);
    assert_eq!(session.update("7", &TopicUpdate::Subscribed), None);
    session.subscriptions.resubscribe("a");
    let sent = session.ask(1).expect("a");
    session.reply(sent.id, &Acceptance::Only(vec!["5".to_owned()]));
    assert_eq!(session.update("5", &TopicUpdate::Subscribed), None);
    let sent = session.ask(1).expect("a");
    assert_eq!(sent.aliases, ["a"]);
    session.update_with("a", &TopicUpdate::Subscribed, Some("8"));
    session.ended();
    assert_eq!(session.update("8", &TopicUpdate::Subscribed), None);
}

#[test]
fn an_alias_that_the_venue_gives_to_another_topic_is_that_ones() {
    let mut session = Session::with_active(&["a", "b", "c"]);
    session.update_with("a", &TopicUpdate::Subscribed, Some("5"));
    session.update("5", &TopicUpdate::Unsubscribed);
    assert_eq!(session.update("5", &TopicUpdate::Subscribed), None);
    session.update_with("b", &TopicUpdate::Subscribed, Some("5"));
    session.update_with("a", &TopicUpdate::Subscribed, Some("6"));
    assert_eq!(session.update("5", &refused(permanent())).expect("b"), ["b rejected"]);
    // Without a word on the end of the first one too.
    session.update_with("c", &TopicUpdate::Subscribed, Some("6"));
    session.unsubscribe(&["a"]);
    let sent = session.ask(1).expect("a");
    session.accept(sent.id);
    assert_eq!(session.update("6", &refused(permanent())).expect("c"), ["c rejected"]);
}

// ---- The end of a connection ----

#[test]
fn the_end_of_a_connection_ends_every_subscription_and_every_request() {
    let mut session = Session::with_active(&["a", "b", "c"]);
    session.subscribe(&["d"]);
    session.unsubscribe(&["b"]);
    session.ask_all(1);
    session.unsubscribe(&["d"]);
    session.subscriptions.resubscribe("c");
    session.now += 2 * SECOND;
    assert!(session.ended().is_empty());
    let states = session.subscriptions.states(2);
    assert_eq!(shown(&states), ["a pending", "c pending"]);
    assert_eq!(session.asked(1), ["+a", "+c"], "once on each connection");
    assert!(session.accept(1001).is_empty());
}

#[test]
fn everything_that_was_asked_is_told_once_on_each_connection() {
    let mut session = Session::new();
    assert_eq!((session.settled(), session.take_settled()), (Some((0, 0)), None));
    session.subscribe(&["a", "b"]);
    let sent = session.ask(1).expect("a");
    session.accept(sent.id);
    assert_eq!(session.take_settled(), None);
    let sent = session.ask(1).expect("b");
    session.reply(sent.id, &Acceptance::Nothing(transient(60)));
    assert_eq!((session.take_settled(), session.take_settled()), (Some((1, 1)), None));
    session.ended();
    assert_eq!((session.settled(), session.take_settled()), (None, None));
    let sent = session.ask(1).expect("a");
    session.accept(sent.id);
    assert_eq!((session.take_settled(), session.take_settled()), (Some((1, 1)), None));
    let mut rejected = Session::with_active(&["x"]);
    rejected.update("x", &refused(permanent()));
    assert_eq!(rejected.take_settled(), Some((0, 1)));
    rejected.ended();
    assert_eq!(rejected.take_settled(), Some((0, 1)), "there is nothing to ask");
    session.now += 60 * SECOND;
    let sent = session.ask(1).expect("b");
    assert_eq!(session.settled(), None);
    session.accept(sent.id);
    assert_eq!(session.take_settled(), Some((2, 0)));
    session.subscriptions.resubscribe("a");
    assert_eq!(session.settled(), None);
    for _ in 0..2 {
        let sent = session.ask(1).expect("a");
        session.accept(sent.id);
    }
    assert_eq!(session.take_settled(), Some((2, 0)));
    // What nobody wants counts for nothing, and its end is awaited.
    session.unsubscribe(&["a"]);
    assert_eq!(session.settled(), Some((1, 0)));
    let sent = session.ask(1).expect("a");
    assert_eq!(session.settled(), None);
    session.accept(sent.id);
    assert_eq!(session.take_settled(), Some((1, 0)));
}

#[test]
fn a_late_answer_says_nothing_of_topics_that_have_been_named_since_the_request() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let sent = session.ask(9).expect("both");
    session.now += 10 * SECOND;
    assert_eq!(session.overdue(), ["a pending", "b pending"]);
    // Refused by name while nobody wants it. The reply accepts the rest.
    session.unsubscribe(&["a"]);
    assert_eq!(session.update("a", &refused(transient(3))), Some(vec![]));
    session.subscribe(&["a"]);
    assert_eq!(session.accept(sent.id), ["b active"]);
    assert_eq!((session.state("a"), session.asked(9)), ("pending".into(), vec!["+a".into()]));
}

#[test]
fn a_late_answer_says_nothing_of_topics_that_the_venue_has_been_asked_to_end_since() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    let sent = session.ask(1).expect("a");
    session.unsubscribe(&["a"]);
    session.now += 10 * SECOND;
    assert!(session.overdue().is_empty());
    assert_eq!(session.asked(1), ["-a"]);
    session.now += 25 * SECOND;
    assert!(session.overdue().is_empty());
    assert!(session.accept(sent.id).is_empty());
    session.subscribe(&["a"]);
    assert_eq!((session.state("a"), session.asked(1)), ("pending".into(), vec!["+a".into()]));
}

#[test]
fn a_refusal_by_name_that_may_answer_an_older_request_leaves_nothing_at_the_venue() {
    let mut session = Session::with_active(&["a"]);
    // The venue ends it, the request to renew it crosses that and is refused for now.
    session.subscriptions.resubscribe("a");
    assert_eq!(session.asked(1), ["-a"]);
    session.update("a", &TopicUpdate::Unsubscribed);
    assert_eq!(session.asked(1), ["+a"]);
    session.unsubscribe(&["a"]);
    // It is about the request to end it. The venue has the topic.
    session.update("a", &refused(transient(3)));
    session.now += 3 * SECOND;
    assert_eq!(session.asked(1), ["-a"]);
}

#[test]
fn a_change_that_another_thread_has_overtaken_is_followed_by_the_later_one() {
    let mut session = Session::new();
    session.subscribe(&["a"]);
    let sent = session.ask(1).expect("a");
    session.now += 10 * SECOND;
    let late = session.subscriptions.overdue(session.epoch, session.now);
    assert_eq!(shown(&late), ["a pending"]);
    // The late answer, which its thread tells first.
    assert_eq!(session.accept(sent.id), ["a active"]);
    let (topic, pending) = &late[0];
    let active = session.subscriptions.told(topic, pending, session.epoch).expect("a state");
    assert_eq!(name_of(&active), "active");
    assert_eq!(session.subscriptions.told(topic, &active, session.epoch), None);
}

#[test]
fn that_everything_is_answered_is_told_after_every_change() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let sent = session.ask(9).expect("both");
    let changes =
        session.subscriptions.reply(sent.id, &Acceptance::All, session.epoch, session.now);
    assert_eq!((session.settled(), session.take_settled()), (Some((2, 0)), None));
    session.tell(&changes[..1].to_vec());
    assert_eq!(session.take_settled(), None);
    session.tell(&changes[1..].to_vec());
    assert_eq!(session.take_settled(), Some((2, 0)));
    // The changes of a connection that has ended hold nothing up on the next.
    session.update("a", &TopicUpdate::Unsubscribed);
    session.subscriptions.update("b", &refused(permanent()), None, session.epoch, session.now);
    session.subscriptions.ended(true, session.now);
    // A late look for the connection that has ended takes nothing away from the next, and one
    // before it is ready finds nothing.
    assert_eq!((session.take_settled(), session.subscriptions.take_settled(2)), (None, None));
    session.epoch = 2;
    session.subscriptions.begin(2);
    let sent = session.ask(9).expect("a");
    session.accept(sent.id);
    assert_eq!(session.take_settled(), Some((1, 1)));
}

// ---- Suspects ----

#[test]
fn a_topic_that_ends_two_connections_in_a_row_is_rejected_for_a_while_and_told() {
    let mut session = Session::new();
    session.subscribe(&["a", "b"]);
    let crash = |session: &mut Session| {
        let first = session.ask(1).expect("a");
        session.accept(first.id);
        let second = session.ask(1).expect("b");
        assert_eq!(second.to_string(), "+b");
        session.now += SECOND;
        session.ended()
    };
    assert!(crash(&mut session).is_empty());
    assert_eq!(crash(&mut session), ["b rejected for now"]);
    assert_eq!(session.asked(9), ["+a"]);
    // Each further end doubles the time.
    for seconds in [60, 120, 240, 300, 300] {
        session.ended();
        let sent = session.ask(1).expect("a");
        session.accept(sent.id);
        session.now = session.subscriptions.delayed.first().expect("b waits").0;
        let sent = session.ask(1).expect("b");
        assert_eq!(sent.to_string(), "+b");
        assert_eq!(session.ended(), ["b rejected for now"]);
        let next = seconds.min(150) * 2 * SECOND;
        assert_eq!(session.subscriptions.delayed.first().expect("b waits").0, session.now + next);
    }
}

#[test]
fn an_answer_a_late_end_and_a_request_that_did_not_leave_make_no_suspect() {
    let acquittals: [fn(&mut Session); 4] = [
        |session| {
            let sent = session.ask(1).expect("a");
            session.accept(sent.id);
        },
        |session| {
            session.ask(1);
            session.now += SECOND + SECOND / 1000;
        },
        |session| {
            let sent = session.ask(1).expect("a");
            session.reply(sent.id, &Acceptance::Nothing(transient(0)));
            session.now += SECOND;
        },
        |session| {
            session.ask(1);
            session.update("a", &refused(permanent()));
            session.subscribe(&["a"]);
        },
    ];
    for acquit in acquittals {
        let mut session = Session::new();
        session.subscribe(&["a"]);
        session.ask(1);
        session.ended();
        acquit(&mut session);
        assert!(session.ended().is_empty());
        session.ask(1);
        assert!(session.ended().is_empty());
        // Its end is no request for it.
        session.update("a", &TopicUpdate::Subscribed);
        session.subscriptions.resubscribe("a");
        assert_eq!(session.asked(1), ["-a"]);
        assert!(session.ended().is_empty());
        session.ask(1);
        assert!(session.ended().is_empty());
        // Neither for nor against it.
        session.next(1);
        assert!(session.ended().is_empty());
        assert!(session.ended().is_empty());
        session.ask(1);
        assert_eq!(session.ended(), ["a rejected for now"]);
    }
}

#[test]
fn the_one_that_ends_connections_is_found_among_many_that_are_innocent() {
    for batch in [1, 3, 20] {
        let mut session = Session::new();
        let names: Vec<String> = (0..20).map(|i| format!("{i}")).collect();
        session.subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut ends = 0;
        while session.state("13") != "rejected for now" {
            // The venue answers nothing of a burst in which there is something wrong.
            let sent = session.ask_all(batch);
            session.now += SECOND / 10;
            if sent.iter().any(|sent| sent.topics.iter().any(|topic| topic == "13")) {
                ends += 1;
                let told = session.ended();
                assert!(told.is_empty() || told == ["13 rejected for now"]);
            } else {
                sent.iter().for_each(|sent| drop(session.accept(sent.id)));
            }
            assert!(ends < 9, "{batch}");
        }
        session.ended();
        for sent in session.ask_all(batch) {
            session.accept(sent.id);
        }
    }
}

#[test]
fn a_venue_that_comes_and_goes_makes_no_more_than_one_suspect_at_a_time() {
    let mut session = Session::new();
    let names: Vec<String> = (0..200).map(|i| format!("{i}")).collect();
    session.subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut told = 0;
    for _ in 0..10 {
        session.ask_all(1);
        session.now += SECOND / 10;
        let rejected = session.ended().len();
        assert!(rejected <= 1);
        told += rejected;
    }
    assert!(told <= 8);
    let mut active = 0;
    while let Some(sent) = session.ask(1) {
        active += session.accept(sent.id).len();
    }
    assert_eq!(active, 200 - told);
}

// ---- Size ----

#[test]
fn ten_thousand_topics_one_by_one_take_no_quadratic_time() {
    const TOPICS: usize = 10_000;
    let began = std::time::Instant::now();
    let mut subscriptions = Subscriptions::new(ACK_TIMEOUT, TOPICS);
    let names: Vec<String> = (0..TOPICS).map(|i| format!("topic {i}")).collect();
    let (mut id, mut now) = (1000, Instant::now());
    let topics: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    subscriptions.subscribe(&topics).expect("there is room");
    let mut ask_all = |subscriptions: &mut Subscriptions, now: Instant| {
        let mut ids = Vec::new();
        loop {
            id += 1;
            if subscriptions.next_request(id, 1, now).is_none() {
                return ids;
            }
            subscriptions.written(id, now);
            // As the heartbeat thread does.
            subscriptions.overdue(1, now);
            let _ = (subscriptions.next_due(), subscriptions.take_settled(1));
            ids.push(id);
        }
    };
    let rejection = Acceptance::Nothing(transient(60));
    // By id, refused for now, by name, ended by the venue, silent, and unsubscribed.
    for turn in 0..4 {
        let ids = ask_all(&mut subscriptions, now);
        assert_eq!(ids.len(), TOPICS);
        for (id, name) in ids.into_iter().zip(&names) {
            match turn {
                0 => drop(subscriptions.reply(id, &rejection, 1, now)),
                3 => break,
                _ => {
                    subscriptions.update(name, &TopicUpdate::Subscribed, None, 1, now);
                    subscriptions.update(name, &TopicUpdate::Unsubscribed, None, 1, now);
                }
            }
            let _ = (subscriptions.take_settled(1), subscriptions.has_work());
        }
        now += 60 * SECOND;
    }
    subscriptions.overdue(1, now);
    for id in ask_all(&mut subscriptions, now) {
        subscriptions.reply(id, &Acceptance::All, 1, now);
        let _ = subscriptions.take_settled(1);
    }
    subscriptions.unsubscribe(names.iter().map(String::as_str));
    ask_all(&mut subscriptions, now);
    for name in &names {
        subscriptions.update(name, &TopicUpdate::Unsubscribed, None, 1, now);
        let _ = subscriptions.take_settled(1);
    }
    assert!(subscriptions.topics.is_empty());
    // Two seconds without optimization; a scan of all topics in each step takes minutes.
    assert!(began.elapsed() < 30 * SECOND, "{:?}", began.elapsed());
}

// ---- Against a venue ----

/// The answers of a venue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// All or nothing, by id.
    ById,
    /// The topics that it has taken, by id.
    Only,
    /// Each topic by its name.
    ByName,
    /// The refused ones by name, and then the rest by id.
    Both,
    /// All topics that are active.
    List,
    /// Not at all.
    Never,
}

/// A message of the venue.
#[derive(Clone, Debug)]
enum Word {
    Reply { id: u64, acceptance: Acceptance, topics: Vec<String> },
    Update { topic: String, update: TopicUpdate },
    List(Vec<String>),
}

impl Word {
    fn is_about(&self, topics: &[String]) -> bool {
        match self {
            Word::Reply { topics: of, .. } => of.iter().any(|topic| topics.contains(topic)),
            Word::Update { topic, .. } => topics.contains(topic),
            Word::List(_) => true,
        }
    }

    fn topics(&self) -> Vec<String> {
        match self {
            Word::Reply { topics, .. } | Word::List(topics) => topics.clone(),
            Word::Update { topic, .. } => vec![topic.clone()],
        }
    }
}

/// An event of a program, a venue or a clock. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Subscribe(usize),
    Unsubscribe(usize),
    Resubscribe(usize),
    /// A request of so many topics at most is made, and leaves or does not.
    Ask {
        topics_max: usize,
        is_written: bool,
    },
    /// The venue is busy, and refuses what comes next for now.
    Busy,
    /// The venue does not answer what comes next.
    Ignore,
    /// An answer arrives, perhaps twice: the first, or one that overtakes others.
    Deliver {
        number: usize,
        is_doubled: bool,
    },
    /// An answer is lost.
    Lose(usize),
    /// The venue ends a topic.
    Evict(usize),
    Pass(u64),
    Drop,
}

/// Those that the venue never takes are the last.
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "bad", "worse"];

fn is_bad(topic: &str) -> bool {
    matches!(topic, "bad" | "worse")
}

/// A session, and the venue that it talks to.
struct Market {
    session: Session,
    answers: Answers,
    wanted: BTreeSet<String>,
    /// The topics of the venue.
    active: BTreeSet<String>,
    words: Vec<Word>,
    is_busy: bool,
    is_ignoring: bool,
    /// The topics that may be asked for: nobody has asked on this connection, or there is a
    /// reason to ask again.
    may_ask: BTreeSet<String>,
    /// The time until which nothing may be asked about a topic, because a request is under way.
    under_way: HashMap<String, (u64, Instant)>,
}

impl Market {
    fn new(answers: Answers) -> Self {
        Market {
            session: Session::new(),
            answers,
            wanted: BTreeSet::new(),
            active: BTreeSet::new(),
            words: Vec::new(),
            is_busy: false,
            is_ignoring: false,
            may_ask: NAMES.map(str::to_owned).into(),
            under_way: HashMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        let name = |number: usize| NAMES[number % NAMES.len()];
        match *step {
            Step::Subscribe(number) => {
                self.session.subscribe(&[name(number)]);
                self.wanted.insert(name(number).to_owned());
                self.may_ask.insert(name(number).to_owned());
            }
            Step::Unsubscribe(number) => {
                self.session.unsubscribe(&[name(number)]);
                self.wanted.remove(name(number));
                self.may_ask.insert(name(number).to_owned());
            }
            Step::Resubscribe(number) => {
                if self.session.subscriptions.resubscribe(name(number)) {
                    self.may_ask.insert(name(number).to_owned());
                }
                self.session.check();
            }
            Step::Ask { topics_max, is_written } => drop(self.ask(topics_max, is_written)),
            Step::Busy => self.is_busy = true,
            Step::Ignore => self.is_ignoring = true,
            Step::Deliver { number, is_doubled } => {
                self.deliver(number, is_doubled);
            }
            Step::Lose(number) => {
                // Nothing follows where the venue tells of an end that nobody asked for.
                let number = number % self.words.len().max(1);
                let is_answer = match self.words.get(number) {
                    Some(Word::Reply { .. }) => true,
                    // The reply that follows accepts the rest.
                    Some(_) if self.answers == Answers::Both => false,
                    Some(Word::Update { update: TopicUpdate::Unsubscribed, topic }) => {
                        self.active.contains(topic)
                    }
                    Some(Word::Update { topic, .. }) => self.under_way.contains_key(topic),
                    _ => false,
                };
                if is_answer {
                    self.words.remove(number);
                }
            }
            Step::Evict(number) => {
                // By name nobody can tell an end from the answer to an older request.
                let topics = [name(number).to_owned()];
                let is_quiet = !self.words.iter().any(|word| word.is_about(&topics));
                if is_quiet && self.active.remove(name(number)) {
                    self.say_active(name(number), TopicUpdate::Unsubscribed);
                    // A list that crosses a request seems to answer it, and an end that crosses
                    // a request without an answer seems to come after it.
                    if matches!(self.answers, Answers::List | Answers::Never) {
                        while self.deliver(0, false) {}
                    }
                }
            }
            Step::Pass(millis) => self.pass(Duration::from_millis(millis)),
            Step::Drop => {
                self.session.ended();
                self.words.clear();
                self.active.clear();
                self.under_way.clear();
                self.may_ask = NAMES.map(str::to_owned).into();
            }
        }
    }

    fn say_active(&mut self, topic: &str, update: TopicUpdate) {
        self.words.push(match self.answers {
            Answers::List => Word::List(self.active.iter().cloned().collect()),
            _ => Word::Update { topic: topic.to_owned(), update },
        });
    }

    fn pass(&mut self, time: Duration) {
        // A list is of its time: the venue does not tell what was.
        while self.answers == Answers::List && self.deliver(0, false) {}
        self.session.now += time;
        let now = self.session.now;
        self.session.overdue();
        let may_ask = &mut self.may_ask;
        self.under_way.retain(|topic, (_, until)| {
            let is_late = *until <= now;
            may_ask.extend(is_late.then(|| topic.clone()));
            !is_late
        });
    }

    fn ask(&mut self, topics_max: usize, is_written: bool) -> bool {
        let Some(sent) = self.session.next(topics_max) else { return false };
        for topic in &sent.topics {
            assert!(!self.under_way.contains_key(topic), "{topic}: one request at a time");
            assert!(self.may_ask.contains(topic), "{topic} is asked for once");
            let (is_wanted, state) = (self.wanted.contains(topic), self.session.state(topic));
            // Only to renew a topic that is wanted is it ended.
            assert_eq!(state == "requested", sent.is_subscribe);
            assert!(is_wanted || !sent.is_subscribe);
        }
        if !is_written {
            self.session.subscriptions.withdraw(sent.id);
            self.session.check();
            return true;
        }
        if self.answers == Answers::Never {
            self.take(&sent);
            self.session.accept(sent.id);
            for topic in sent.topics.iter().filter(|topic| is_bad(topic)) {
                if sent.is_subscribe {
                    self.say_active(topic, refused(permanent()));
                }
            }
            self.may_ask.retain(|topic| !sent.topics.contains(topic));
            self.answered_renewal(&sent);
            return true;
        }
        self.take(&sent);
        // The news of the write.
        self.session.subscriptions.written(sent.id, self.session.now);
        self.session.check();
        let (_, until) = self.session.subscriptions.requests[&sent.id].sent.expect("written");
        for topic in sent.topics {
            self.may_ask.remove(&topic);
            self.under_way.insert(topic, (sent.id, until));
        }
        true
    }

    /// A topic that has been ended may be asked for.
    fn answered_renewal(&mut self, sent: &Sent) {
        if !sent.is_subscribe {
            self.may_ask.extend(sent.topics.iter().cloned());
        }
    }

    /// The venue gets a request, and answers it.
    fn take(&mut self, sent: &Sent) {
        let is_ignored = std::mem::take(&mut self.is_ignoring);
        let can_be_busy = !matches!(self.answers, Answers::List | Answers::Never);
        let is_busy = std::mem::take(&mut self.is_busy) && can_be_busy;
        let rejection = if is_busy { transient(3) } else { permanent() };
        let is_refused = |topic: &String| is_busy || (sent.is_subscribe && is_bad(topic));
        let is_all_or_nothing = matches!(self.answers, Answers::ById);
        let is_refused_whole = is_all_or_nothing && sent.topics.iter().any(is_refused);
        let (mut words, mut taken) = (Vec::new(), Vec::new());
        for topic in &sent.topics {
            if is_refused(topic) || is_refused_whole {
                let update = refused(rejection.clone());
                words.push(Word::Update { topic: topic.clone(), update });
            } else if sent.is_subscribe {
                self.active.insert(topic.clone());
                let update = TopicUpdate::Subscribed;
                words.push(Word::Update { topic: topic.clone(), update });
                taken.push(topic.clone());
            } else {
                self.active.remove(topic);
                let update = TopicUpdate::Unsubscribed;
                words.push(Word::Update { topic: topic.clone(), update });
                taken.push(topic.clone());
            }
        }
        // A list that comes later would answer the request.
        if is_ignored && self.answers != Answers::List {
            return;
        }
        let (id, topics) = (sent.id, sent.topics.clone());
        let nothing = Acceptance::Nothing(rejection);
        let reply = |acceptance| Word::Reply { id, acceptance, topics };
        match self.answers {
            Answers::ById if is_refused_whole => self.words.push(reply(nothing)),
            Answers::ById => self.words.push(reply(Acceptance::All)),
            Answers::Only if is_busy => self.words.push(reply(nothing)),
            Answers::Only => self.words.push(reply(Acceptance::Only(taken))),
            Answers::ByName => self.words.append(&mut words),
            Answers::Both => {
                let is_no = |word: &Word| {
                    matches!(word, Word::Update { update: TopicUpdate::Rejected(_), .. })
                };
                self.words.extend(words.into_iter().filter(is_no));
                self.words.push(reply(Acceptance::All));
            }
            Answers::List => {
                self.words.push(Word::List(self.active.iter().cloned().collect()));
            }
            Answers::Never => {}
        }
    }

    /// Returns `false` if there is nothing to deliver.
    fn deliver(&mut self, number: usize, is_doubled: bool) -> bool {
        if self.words.is_empty() {
            return false;
        }
        // What is said of one topic is said in order.
        let number = number % self.words.len();
        let topics = self.words[number].topics();
        let is_first = !self.words[..number].iter().any(|word| word.is_about(&topics));
        let is_list = matches!(self.words[number], Word::List(_));
        let number = if is_first && !is_list { number } else { 0 };
        let word = self.words.remove(number);
        self.hear(&word);
        match word {
            // By id it may come twice at any time, by name at once.
            Word::Reply { .. } if is_doubled => self.words.push(word),
            Word::Update { .. } if is_doubled => self.hear(&word),
            _ => {}
        }
        true
    }

    fn hear(&mut self, word: &Word) {
        if let Word::Update { update: TopicUpdate::Rejected(_), .. } = word {
            for topic in word.topics() {
                self.under_way.remove(&topic);
                self.may_ask.insert(topic);
            }
        }
        match word {
            Word::Reply { id, acceptance, .. } => {
                self.session.reply(*id, acceptance);
                self.under_way.retain(|_, (asked, _)| asked != id);
                if matches!(acceptance, Acceptance::Nothing(_)) {
                    self.may_ask.extend(word.topics());
                }
                NAMES.iter().for_each(|topic| self.heard_of(topic));
            }
            Word::Update { topic, update } => {
                self.session.update(topic, update);
                self.heard_of(topic);
            }
            Word::List(topics) => {
                let listed: Vec<&str> = topics.iter().map(String::as_str).collect();
                self.session.list(&listed);
                NAMES.iter().for_each(|topic| self.heard_of(topic));
            }
        }
    }

    fn heard_of(&mut self, topic: &str) {
        let state = self.session.state(topic);
        let asked = self.session.subscriptions.entry(topic).and_then(|e| e.state.asked());
        if self.under_way.get(topic).is_some_and(|(id, _)| asked != Some(*id)) {
            self.under_way.remove(topic);
        }
        if state != "active" && state != "requested" {
            self.may_ask.insert(topic.to_owned());
        }
    }

    /// Everybody does what they should from now on.
    fn calm_down(&mut self) {
        (self.is_busy, self.is_ignoring) = (false, false);
        for _ in 0..1000 {
            while self.deliver(0, false) || self.ask(3, true) {}
            let Some(due) = self.session.subscriptions.next_due() else { return };
            self.pass(due.saturating_duration_since(self.session.now));
        }
        panic!("there is no end");
    }

    fn check_calm(&self) {
        let is_good = |topic: &&String| !is_bad(topic);
        let wanted: BTreeSet<&String> = self.wanted.iter().filter(is_good).collect();
        assert_eq!(self.active.iter().filter(is_good).collect::<BTreeSet<_>>(), wanted);
        for topic in NAMES {
            let expected = match (self.wanted.contains(topic), is_bad(topic)) {
                (true, true) => "rejected",
                (true, false) => "active",
                (false, _) => "none",
            };
            assert_eq!(self.session.state(topic), expected, "{topic}");
        }
        assert!(!self.session.subscriptions.has_work());
        assert!(self.session.subscriptions.requests.is_empty());
        let rejected = self.wanted.iter().filter(|topic| is_bad(topic)).count();
        assert_eq!(self.session.settled(), Some((wanted.len(), rejected)));
    }
}

fn step(rng: &mut StdRng) -> Step {
    let topic = rng.random_range(0..NAMES.len());
    match rng.random_range(0..31) {
        0..4 => Step::Subscribe(topic),
        4 | 5 => Step::Unsubscribe(topic),
        6 | 7 => Step::Resubscribe(topic),
        8..16 => {
            Step::Ask { topics_max: rng.random_range(1..4), is_written: rng.random_bool(0.85) }
        }
        16 => Step::Busy,
        17 => Step::Ignore,
        18..26 => {
            Step::Deliver { number: rng.random_range(0..4), is_doubled: rng.random_bool(0.2) }
        }
        26 => Step::Lose(rng.random_range(0..4)),
        27 => Step::Evict(topic),
        28 | 29 => Step::Pass([100, 1500, 10_000, 25_000][rng.random_range(0..4)]),
        _ => Step::Drop,
    }
}

#[test]
fn once_it_is_left_alone_the_venue_has_what_the_program_wants() {
    const ANSWERS: [Answers; 6] = [
        Answers::ById,
        Answers::Only,
        Answers::ByName,
        Answers::Both,
        Answers::List,
        Answers::Never,
    ];
    property::check(2000, |rng| {
        let mut market = Market::new(ANSWERS[rng.random_range(0..ANSWERS.len())]);
        for step in property::vec(rng, 0..80, step) {
            market.step(&step);
        }
        market.calm_down();
        market.check_calm();
        market.step(&Step::Drop);
        market.calm_down();
        market.check_calm();
    });
}
