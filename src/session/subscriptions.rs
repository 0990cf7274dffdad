//! The subscriptions of a session: what the program wants, and what the venue has confirmed. Pure:
//! `now` is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::session::protocol::{
    Acceptance, SubscriptionRequest, SubscriptionRequestKind, TopicUpdate,
};
use crate::session_event::{Rejection, Subscribed, SubscriptionState, Topic};
use crate::time::{after, earliest};

/// The wait before a topic is asked for again that the venue ended by itself. It doubles. No
/// request is repeated sooner that the venue has refused.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// The longest wait for an answer, and the longest wait before a topic is asked for again that the
/// venue ended. One that has been active for this long starts anew with the shortest.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// A connection that ends this soon after a request that nothing has answered may have ended
/// because of it.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// The time for which a topic is rejected that seems to end connections. It doubles.
const SUSPECT_REJECTED_FOR: Duration = Duration::from_secs(60);

/// The number of requests whose late answers are still understood.
const LATE_MAX: usize = 1024;

/// The topics of a session and the requests that are under way.
pub(crate) struct Subscriptions {
    /// By the order of their subscription.
    topics: BTreeMap<u64, Entry>,
    names: HashMap<Topic, u64>,
    /// The venue's names for topics on this connection.
    aliases: HashMap<Topic, u64>,
    /// The topics that the next requests are about.
    due: BTreeSet<u64>,
    /// The topics that become due at a time.
    delayed: BTreeSet<(Instant, u64)>,
    requests: BTreeMap<u64, Request>,
    /// The requests with topics that have not been answered.
    unanswered: BTreeSet<u64>,
    /// The times by which requests have to be answered.
    deadlines: BTreeSet<(Instant, u64)>,
    /// The requests that were not answered in time: a late answer still counts.
    late: BTreeMap<u64, Request>,
    /// The last request that asked for a half of a refused one.
    cohort_request: Option<u64>,
    next_order: u64,
    next_cohort: u32,
    /// The number of requests that have been made.
    requests_made: u32,
    ack_timeout: Duration,
    topics_max: usize,
    /// The number of topics that are wanted.
    wanted: usize,
    /// The number of wanted topics that the venue has not answered for.
    open: usize,
    /// The program has not been told that everything is answered.
    is_settling: bool,
    /// The number of changes that the program has not been told of yet.
    untold: usize,
    /// The epoch of the connection on which topics may be asked for.
    epoch: Option<u64>,
}

/// A topic: what the program wants, and what the venue has said.
struct Entry {
    name: Topic,
    group: Box<str>,
    alias: Option<Topic>,
    is_wanted: bool,
    /// It is to be ended and asked for again.
    is_renewed: bool,
    state: State,
    /// A request was not answered in time: the venue may have the topic, or may have it no more.
    is_uncertain: bool,
    /// The time before which nothing is asked: it is in `delayed`, and not in `due`.
    retry_at: Option<Instant>,
    /// The number of requests in a row that were not answered in time.
    failures: u8,
    /// The number of times in a row that the venue has ended it by itself.
    evictions: u8,
    /// The number of connections in a row that ended right after a request for it.
    suspicions: u8,
    /// The half of a refused request that it is in: these are asked for together, and alone.
    cohort: Option<NonZeroU32>,
    /// A late answer to a request with a lower number says nothing of it: the venue has named it
    /// since, or has been asked to end it.
    answers_from: u32,
    /// It is counted as wanted, and as open.
    counted: (bool, bool),
}

/// The state of a topic at the venue.
#[derive(Clone)]
enum State {
    Off,
    /// The request with this id asks for it.
    Requested(u64),
    Active {
        since: Instant,
    },
    /// The request with this id ends it. `None`: it was not known to be active.
    Unsubscribing {
        id: u64,
        since: Option<Instant>,
    },
    Rejected(Rejection),
}

/// A request that has left, or is about to.
struct Request {
    kind: SubscriptionRequestKind,
    /// The number of requests that were made before it.
    number: u32,
    topics: Vec<u64>,
    /// The names and aliases of `topics`, as they were sent.
    names: Vec<(Topic, Option<Topic>)>,
    /// The number of topics that have not been answered. At zero the request stays until its time
    /// is up, because a reply by id may follow the answers by name.
    open: usize,
    /// The time of the write, and the time by which the answer is due.
    sent: Option<(Instant, Instant)>,
    /// A list of all active topics has come for it.
    is_listed: bool,
}

/// Topics whose state has changed.
pub(crate) type Changes = Vec<(Topic, SubscriptionState)>;

impl Subscriptions {
    pub(crate) fn new(ack_timeout: Duration, topics_max: usize) -> Self {
        Subscriptions {
            topics: BTreeMap::new(),
            names: HashMap::new(),
            aliases: HashMap::new(),
            due: BTreeSet::new(),
            delayed: BTreeSet::new(),
            requests: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            late: BTreeMap::new(),
            cohort_request: None,
            next_order: 0,
            next_cohort: 0,
            requests_made: 0,
            ack_timeout,
            topics_max,
            wanted: 0,
            open: 0,
            is_settling: false,
            untold: 0,
            epoch: None,
        }
    }

    /// Before the start.
    pub(crate) fn set_limits(&mut self, ack_timeout: Duration, topics_max: usize) {
        (self.ack_timeout, self.topics_max) = (ack_timeout, topics_max);
    }

    /// Topics may be asked for on this connection.
    pub(crate) fn begin(&mut self, epoch: u64) {
        (self.epoch, self.untold) = (Some(epoch), 0);
    }

    /// Returns `true` if topics may be asked for on the connection of this epoch.
    pub(crate) fn is_on(&self, epoch: u64) -> bool {
        self.epoch == Some(epoch)
    }

    // ---- The program ----

    /// Wants these topics, each given with its group. All or none of them.
    ///
    /// # Errors
    /// `Config` if there would be too many.
    pub(crate) fn subscribe(&mut self, topics: &[(&str, &str)]) -> Result<(), Error> {
        let new: BTreeSet<&str> = topics
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| self.entry(name).is_none_or(|entry| !entry.is_wanted))
            .collect();
        let (wanted, max) = (self.wanted + new.len(), self.topics_max);
        if wanted > max {
            return Err(Error::config(format!(
                "{wanted} topics are more than topics_max, {max}: start another session for the \
                 rest"
            )));
        }
        for (name, group) in topics {
            self.want(name, group);
        }
        Ok(())
    }

    fn want(&mut self, name: &str, group: &str) {
        let Some(&order) = self.names.get(name) else {
            let (order, name) = (self.next_order, Topic::new(name));
            self.next_order += 1;
            self.names.insert(name.clone(), order);
            let entry = Entry {
                name,
                group: group.into(),
                alias: None,
                is_wanted: true,
                is_renewed: false,
                state: State::Off,
                is_uncertain: false,
                retry_at: None,
                failures: 0,
                evictions: 0,
                suspicions: 0,
                cohort: None,
                answers_from: 0,
                counted: (false, false),
            };
            self.topics.insert(order, entry);
            return self.changed(order);
        };
        let Some(entry) = self.topics.get_mut(&order) else { return };
        let is_new = !std::mem::replace(&mut entry.is_wanted, true);
        // The program insists: it has mended what the venue refused.
        let is_refused = matches!(
            &entry.state,
            State::Rejected(rejection) if is_new || rejection.is_permanent()
        );
        if is_refused {
            self.set(order, State::Off);
        } else if is_new {
            self.wait_no_more(order);
        }
        self.changed(order);
    }

    /// Wants these topics no more.
    pub(crate) fn unsubscribe<'t>(&mut self, topics: impl IntoIterator<Item = &'t str>) {
        for name in topics {
            let Some(&order) = self.names.get(name) else { continue };
            let Some(entry) = self.topics.get_mut(&order) else { continue };
            (entry.is_wanted, entry.is_renewed) = (false, false);
            self.changed(order);
        }
    }

    /// Ends an active topic and asks for it again. Returns `false`, and does nothing, in every
    /// other state.
    pub(crate) fn resubscribe(&mut self, name: &str) -> bool {
        let Some(&order) = self.names.get(name) else { return false };
        let Some(entry) = self.topics.get_mut(&order) else { return false };
        let is_new =
            entry.is_wanted && !entry.is_renewed && matches!(entry.state, State::Active { .. });
        if is_new {
            entry.is_renewed = true;
            self.changed(order);
        }
        is_new
    }

    pub(crate) fn state(&self, name: &str, epoch: u64) -> Option<SubscriptionState> {
        self.entry(name).map(|entry| entry.subscription_state(epoch))
    }

    pub(crate) fn states(&self, epoch: u64) -> Changes {
        self.topics
            .values()
            .map(|entry| (entry.name.clone(), entry.subscription_state(epoch)))
            .collect()
    }

    /// Returns since when a topic is active. `None` while it is not.
    pub(crate) fn active_since(&self, name: &str) -> Option<Instant> {
        match self.entry(name)?.state {
            State::Active { since } => Some(since),
            _ => None,
        }
    }

    /// Returns the counts if the venue has answered for everything that is wanted.
    pub(crate) fn settled(&self, epoch: u64) -> Option<Subscribed> {
        let has_answers = self.open == 0 && self.unanswered.is_empty();
        has_answers.then(|| {
            let wanted = || self.topics.values().filter(|entry| entry.is_wanted);
            let count = |is: fn(&State) -> bool| wanted().filter(|entry| is(&entry.state)).count();
            Subscribed {
                epoch,
                active: count(|state| matches!(state, State::Active { .. })),
                rejected: count(|state| matches!(state, State::Rejected(_))),
            }
        })
    }

    /// Returns the counts like [`settled`](Subscriptions::settled), once after each time at which
    /// something was asked. The changes are told before.
    pub(crate) fn take_settled(&mut self, epoch: u64) -> Option<Subscribed> {
        // A late look for an old connection takes nothing away from the next.
        if !self.is_on(epoch) || self.untold > 0 || !self.is_settling {
            return None;
        }
        let settled = self.settled(epoch)?;
        self.is_settling = false;
        Some(settled)
    }

    /// The program has been told of a change: follow every change by this. Returns the state that
    /// it has to be told next, if another thread has changed the topic meanwhile: that thread may
    /// have told it before.
    pub(crate) fn told(
        &mut self,
        name: &str,
        state: &SubscriptionState,
        epoch: u64,
    ) -> Option<SubscriptionState> {
        if !self.is_on(epoch) {
            return None;
        }
        let entry = self.entry(name).filter(|entry| entry.is_wanted);
        let later = entry.map(|entry| entry.subscription_state(epoch)).filter(|current| {
            // Nobody is told that a topic has been asked for, or is being ended.
            let is_told =
                !matches!(current, SubscriptionState::Requested | SubscriptionState::Unsubscribing);
            is_told && current != state
        });
        if later.is_none() {
            self.untold = self.untold.saturating_sub(1);
        }
        later
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        let order = self.names.get(name)?;
        self.topics.get(order)
    }

    /// Returns the topic of this name, or of this alias.
    fn order_of(&self, name: &str) -> Option<u64> {
        self.names.get(name).or_else(|| self.aliases.get(name)).copied()
    }

    /// Puts a topic where it belongs after a change of it.
    fn changed(&mut self, order: u64) {
        let Some(entry) = self.topics.get_mut(&order) else { return };
        let counts = (entry.is_wanted, entry.is_open());
        let before = std::mem::replace(&mut entry.counted, counts);
        self.wanted = self.wanted + usize::from(counts.0) - usize::from(before.0);
        self.open = self.open + usize::from(counts.1) - usize::from(before.1);
        self.is_settling |= counts.1;
        let is_due = entry.next_request().is_some() && entry.retry_at.is_none();
        let is_gone = entry.is_gone();
        match is_due {
            true => self.due.insert(order),
            false => self.due.remove(&order),
        };
        if is_gone {
            self.wait_no_more(order);
            self.drop_alias(order);
            if let Some(entry) = self.topics.remove(&order) {
                self.names.remove(&entry.name);
            }
        }
    }

    /// Moves a topic to another state at the venue. A wait ends with the state that it began in.
    fn set(&mut self, order: u64, state: State) {
        self.wait_no_more(order);
        let Some(entry) = self.topics.get_mut(&order) else { return };
        let next = state.asked();
        let asked = std::mem::replace(&mut entry.state, state).asked();
        let Some(id) = asked.filter(|_| asked != next) else { return };
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.open -= 1;
        if request.open == 0 {
            self.unanswered.remove(&id);
        }
    }

    /// Nothing is asked about a topic before `at`, or before another change of it.
    fn wait_until(&mut self, order: u64, at: Instant) {
        self.wait_no_more(order);
        if let Some(entry) = self.topics.get_mut(&order) {
            entry.retry_at = Some(at);
            self.delayed.insert((at, order));
        }
    }

    fn wait_no_more(&mut self, order: u64) {
        let retry_at = self.topics.get_mut(&order).and_then(|entry| entry.retry_at.take());
        if let Some(at) = retry_at {
            self.delayed.remove(&(at, order));
        }
    }

    fn drop_alias(&mut self, order: u64) {
        let Some(alias) = self.topics.get_mut(&order).and_then(|entry| entry.alias.take()) else {
            return;
        };
        // The venue may have given it to another topic meanwhile.
        if self.aliases.get(&alias) == Some(&order) {
            self.aliases.remove(&alias);
        }
    }

    // ---- Requests ----

    /// Returns `true` if the heartbeat thread has something to ask, or to look for.
    pub(crate) fn has_work(&self) -> bool {
        !self.due.is_empty() || !self.delayed.is_empty()
    }

    fn wake_delayed(&mut self, now: Instant) {
        while let Some(&(_, order)) = self.delayed.first().filter(|(at, _)| *at <= now) {
            self.wait_no_more(order);
            if self.topics.get(&order).is_some_and(|e| matches!(e.state, State::Rejected(_))) {
                self.set(order, State::Off);
            }
            self.changed(order);
        }
    }

    /// A half of a refused request waits until the other half has been answered.
    fn first_due(&self) -> Option<u64> {
        let waits = self.cohort_request.is_some_and(|id| self.unanswered.contains(&id));
        let mut due = self.due.iter().copied();
        due.find(|order| !waits || self.topics.get(order).is_some_and(|e| e.cohort.is_none()))
    }

    /// Returns the next request like [`next_request`](Subscriptions::next_request), for the
    /// connection of `epoch` alone: once its end has been noted, nothing may be counted as asked on
    /// it.
    pub(crate) fn request_on(
        &mut self,
        epoch: u64,
        id: u64,
        topics_max: usize,
        now: Instant,
    ) -> Option<SubscriptionRequest> {
        if self.is_on(epoch) { self.next_request(id, topics_max, now) } else { None }
    }

    /// Returns the next request, of `topics_max` topics at most, and counts it as asked: whatever
    /// is written has been written down before. Follow it by [`written`](Subscriptions::written)
    /// or [`withdraw`](Subscriptions::withdraw).
    fn next_request(
        &mut self,
        id: u64,
        topics_max: usize,
        now: Instant,
    ) -> Option<SubscriptionRequest> {
        self.wake_delayed(now);
        let first = self.topics.get(&self.first_due()?)?;
        let kind = first.next_request()?;
        let (group, cohort) = (first.group.clone(), first.cohort);
        let orders: Vec<u64> = self
            .due
            .iter()
            .copied()
            .filter(|order| {
                self.topics.get(order).is_some_and(|entry| {
                    entry.next_request() == Some(kind)
                        && entry.group == group
                        && entry.cohort == cohort
                })
            })
            .take(topics_max.max(1))
            .collect();
        let mut names = Vec::with_capacity(orders.len());
        for &order in &orders {
            self.due.remove(&order);
            let Some(entry) = self.topics.get_mut(&order) else { continue };
            names.push((entry.name.clone(), entry.alias.clone()));
            if kind == SubscriptionRequestKind::Unsubscribe {
                entry.answers_from = self.requests_made;
            }
            let state = match (kind, &entry.state) {
                (SubscriptionRequestKind::Subscribe, _) => State::Requested(id),
                (SubscriptionRequestKind::Unsubscribe, State::Active { since }) => {
                    State::Unsubscribing { id, since: Some(*since) }
                }
                (SubscriptionRequestKind::Unsubscribe, _) => {
                    State::Unsubscribing { id, since: None }
                }
            };
            self.set(order, state);
        }
        if cohort.is_some() {
            self.cohort_request = Some(id);
        }
        self.unanswered.insert(id);
        let (topics, open) = (names.clone(), orders.len());
        let number = self.requests_made;
        self.requests_made = number.saturating_add(1);
        self.requests.insert(
            id,
            Request { kind, number, topics: orders, names, open, sent: None, is_listed: false },
        );
        self.is_settling = true;
        Some(SubscriptionRequest { id, kind, topics })
    }

    fn remove_request(&mut self, id: u64) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        self.unanswered.remove(&id);
        if let Some((_, until)) = request.sent {
            self.deadlines.remove(&(until, id));
        }
        Some(request)
    }

    /// The request did not leave: its topics are asked for later.
    pub(crate) fn withdraw(&mut self, id: u64) {
        let Some(request) = self.remove_request(id) else { return };
        for order in request.topics {
            if self.awaits(order, id) {
                self.not_asked(order);
                self.changed(order);
            }
        }
    }

    /// A topic is as it was before the request that is under way.
    fn not_asked(&mut self, order: u64) {
        let Some(entry) = self.topics.get(&order) else { return };
        let before = match entry.state {
            State::Unsubscribing { since: Some(since), .. } => State::Active { since },
            _ => State::Off,
        };
        self.set(order, before);
    }

    /// The request has been written, and its answer is due after a while.
    pub(crate) fn written(&mut self, id: u64, now: Instant) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let failures = request.topics.iter().filter_map(|order| self.topics.get(order));
        let failures = failures.map(|entry| entry.failures).max().unwrap_or(0);
        let timeout = doubled(self.ack_timeout, failures.into());
        let until = after(now, timeout);
        request.sent = Some((now, until));
        self.deadlines.insert((until, id));
    }

    /// Returns the request with this id, if no reply to it has come.
    pub(crate) fn request(&self, id: u64) -> Option<SubscriptionRequest> {
        let request = self.requests.get(&id).or_else(|| self.late.get(&id))?;
        Some(SubscriptionRequest { id, kind: request.kind, topics: request.names.clone() })
    }

    /// Returns when there is something to do, if nothing comes before.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let at = |times: &BTreeSet<(Instant, u64)>| times.first().map(|(at, _)| *at);
        earliest([at(&self.delayed), at(&self.deadlines)])
    }

    // ---- The venue ----

    /// The venue has answered the request with this id. Nothing happens if there is none.
    pub(crate) fn reply(
        &mut self,
        id: u64,
        acceptance: &Acceptance,
        epoch: u64,
        now: Instant,
    ) -> Changes {
        if let Acceptance::Except(refused) = acceptance {
            return self.refuse_some(id, refused, epoch, now);
        }
        let Some(request) = self.remove_request(id) else {
            return self.late_reply(id, acceptance, epoch, now);
        };
        // What has been answered by name meanwhile stays as it is.
        let open: Vec<u64> =
            request.topics.iter().copied().filter(|order| self.awaits(*order, id)).collect();
        if request.kind == SubscriptionRequestKind::Unsubscribe {
            return open
                .into_iter()
                .filter_map(|order| match acceptance {
                    Acceptance::Nothing(why) => self.end_refused(order, why, epoch, now),
                    _ => self.ended_topic(order, epoch),
                })
                .collect();
        }
        match acceptance {
            Acceptance::All => {
                open.into_iter().filter_map(|order| self.active(order, epoch, now)).collect()
            }
            Acceptance::Except(_) => Changes::new(),
            Acceptance::Only(taken) => {
                let rejection = Rejection::permanent("the venue has left it out of its reply");
                let taken: BTreeSet<&str> = taken.iter().map(String::as_str).collect();
                open.into_iter()
                    .filter_map(|order| match self.is_named(order, &taken) {
                        true => self.active(order, epoch, now),
                        false => self.rejected(order, &rejection, epoch, now),
                    })
                    .collect()
            }
            Acceptance::Nothing(rejection) if rejection.is_permanent() && open.len() > 1 => {
                self.halve(&open, epoch)
            }
            Acceptance::Nothing(rejection) => open
                .into_iter()
                .filter_map(|order| self.rejected(order, rejection, epoch, now))
                .collect(),
        }
    }

    /// The venue has refused some topics of a request, and says nothing of the others.
    fn refuse_some(
        &mut self,
        id: u64,
        refused: &[(String, Rejection)],
        epoch: u64,
        now: Instant,
    ) -> Changes {
        let mut changes = Changes::new();
        for (name, rejection) in refused {
            let order = self.order_of(name).filter(|order| self.awaits(*order, id));
            let Some(order) = order else { continue };
            let is_ending = self.topics.get(&order).is_some_and(Entry::is_ending);
            changes.extend(match is_ending {
                false => self.rejected(order, rejection, epoch, now),
                true => self.end_refused(order, rejection, epoch, now),
            });
        }
        changes
    }

    /// An answer has come after its time: the topics that it accepts are active, unless the venue
    /// has named them since, or has been asked to end them. Those that it refuses have been asked
    /// for again, and have their answer there.
    fn late_reply(
        &mut self,
        id: u64,
        acceptance: &Acceptance,
        epoch: u64,
        now: Instant,
    ) -> Changes {
        let Some(request) = self.late.remove(&id) else { return Changes::new() };
        let accepts = |name: &str| match acceptance {
            Acceptance::All => true,
            Acceptance::Only(names) => names.iter().any(|accepted| accepted == name),
            Acceptance::Except(_) | Acceptance::Nothing(_) => false,
        };
        let mut changes = Changes::new();
        for order in request.topics {
            let Some(entry) = self.topics.get(&order) else { continue };
            let is_open = entry.answers_from <= request.number
                && matches!(entry.state, State::Off | State::Requested(_));
            if is_open && accepts(&entry.name) {
                changes.extend(self.active(order, epoch, now));
            }
        }
        changes
    }

    /// The venue has named a topic. `None` if it is not one of the session's.
    pub(crate) fn update(
        &mut self,
        name: &str,
        update: &TopicUpdate,
        alias: Option<&str>,
        epoch: u64,
        now: Instant,
    ) -> Option<Changes> {
        let order = self.order_of(name)?;
        let entry = self.topics.get_mut(&order)?;
        // By name it may be the answer to an older request.
        let is_ambiguous = std::mem::replace(&mut entry.answers_from, self.requests_made) > 0;
        let is_ending = entry.is_ending();
        if let Some(alias) = alias {
            self.drop_alias(order);
            let alias = Topic::new(alias);
            self.aliases.insert(alias.clone(), order);
            self.topics.get_mut(&order)?.alias = Some(alias);
        }
        let change = match (&self.topics.get(&order)?.state, update) {
            // The last word counts.
            (State::Off | State::Requested(_) | State::Rejected(_), TopicUpdate::Subscribed) => {
                self.active(order, epoch, now)
            }
            // It answers the request to end the topic, or comes before it.
            (_, TopicUpdate::Unsubscribed) if is_ending => self.ended_topic(order, epoch),
            (State::Active { .. }, TopicUpdate::Unsubscribed) => self.evicted(order, epoch, now),
            (State::Unsubscribing { .. }, TopicUpdate::Rejected(rejection)) => {
                self.end_refused(order, rejection, epoch, now)
            }
            (_, TopicUpdate::Rejected(rejection)) if is_ending => match rejection.is_permanent() {
                true => self.ended_topic(order, epoch),
                false => None,
            },
            (
                State::Off | State::Requested(_) | State::Active { .. },
                TopicUpdate::Rejected(rejection),
            ) => {
                self.topics.get_mut(&order)?.is_uncertain |= is_ambiguous;
                self.rejected(order, rejection, epoch, now)
            }
            // Late, or said before.
            _ => None,
        };
        Some(change.into_iter().collect())
    }

    /// The venue has named all topics that are active.
    pub(crate) fn active_topics<'t>(
        &mut self,
        names: impl IntoIterator<Item = &'t str>,
        epoch: u64,
        now: Instant,
    ) -> Changes {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let rejection = Rejection::permanent("the venue has left it out of its list");
        // Where several requests are under way, each list answers one, in their order.
        let mut requests = self.requests.iter_mut();
        let answered = requests.find(|(_, request)| request.sent.is_some() && !request.is_listed);
        let answered = answered.map(|(id, request)| {
            request.is_listed = true;
            *id
        });
        let orders: Vec<u64> = self.topics.keys().copied().collect();
        let mut changes = Changes::new();
        for order in orders {
            let is_listed = self.is_named(order, &names);
            let Some(entry) = self.topics.get(&order) else { continue };
            changes.extend(match (&entry.state, is_listed) {
                (State::Off | State::Requested(_) | State::Rejected(_), true) => {
                    self.active(order, epoch, now)
                }
                (State::Requested(id), false) if answered == Some(*id) => {
                    // A list that answers nothing may have crossed the request.
                    self.topics.get_mut(&order).into_iter().for_each(|e| e.is_uncertain = true);
                    self.rejected(order, &rejection, epoch, now)
                }
                (State::Unsubscribing { id, .. }, false) if !self.is_sent(*id) => None,
                (_, false) if entry.is_ending() => self.ended_topic(order, epoch),
                (State::Active { .. }, false) => self.evicted(order, epoch, now),
                _ => None,
            });
        }
        changes
    }

    fn is_sent(&self, id: u64) -> bool {
        self.requests.get(&id).is_some_and(|request| request.sent.is_some())
    }

    /// Requests of which nothing has come in time are asked again, with twice the time.
    pub(crate) fn overdue(&mut self, epoch: u64, now: Instant) -> Changes {
        let mut changes = Changes::new();
        while let Some(&(_, id)) = self.deadlines.first().filter(|(until, _)| *until <= now) {
            let Some(request) = self.remove_request(id) else { break };
            for &order in &request.topics {
                if self.awaits(order, id) {
                    changes.extend(self.not_answered(order, epoch));
                }
            }
            if request.kind == SubscriptionRequestKind::Subscribe && request.open > 0 {
                self.late.insert(id, request);
            }
            if self.late.len() > LATE_MAX {
                self.late.pop_first();
            }
        }
        changes
    }

    /// The connection has ended, by the peer or otherwise, and every subscription with it. Returns
    /// the topics that seem to have ended it.
    pub(crate) fn ended(&mut self, is_by_peer: bool, now: Instant) -> Changes {
        self.epoch = None;
        let mut suspects = Vec::new();
        for (id, request) in std::mem::take(&mut self.requests) {
            // One that did not leave says nothing about its topics.
            let Some((sent_at, _)) = request.sent else { continue };
            let is_suspicious = is_by_peer
                && request.kind == SubscriptionRequestKind::Subscribe
                && now <= after(sent_at, SUSPICIOUS);
            for order in request.topics {
                if !self.awaits(order, id) {
                    continue;
                }
                let Some(entry) = self.topics.get_mut(&order) else { continue };
                entry.suspicions =
                    if is_suspicious { entry.suspicions.saturating_add(1) } else { 0 };
                if entry.suspicions >= 2 {
                    suspects.push(order);
                }
            }
        }
        self.unanswered.clear();
        self.deadlines.clear();
        self.late.clear();
        self.aliases.clear();
        let orders: Vec<u64> = self.topics.keys().copied().collect();
        for &order in &orders {
            let Some(entry) = self.topics.get_mut(&order) else { continue };
            (entry.alias, entry.is_renewed, entry.is_uncertain) = (None, false, false);
            (entry.failures, entry.answers_from) = (0, 0);
            if !matches!(entry.state, State::Rejected(_)) {
                self.set(order, State::Off);
            }
        }
        let changes = self.suspect(&suspects, now);
        for order in orders {
            self.changed(order);
        }
        (self.is_settling, self.untold) = (true, 0);
        changes
    }

    /// Two connections in a row have ended right after these were asked for and not answered. One
    /// of them alone is rejected for a while; several are halved, to find it: most of them are
    /// innocent, and perhaps all.
    fn suspect(&mut self, orders: &[u64], now: Instant) -> Changes {
        let &[order] = orders else {
            self.split(orders);
            return Changes::new();
        };
        let Some(entry) = self.topics.get_mut(&order) else { return Changes::new() };
        let wait = doubled(SUSPECT_REJECTED_FOR, u32::from(entry.suspicions) - 2);
        entry.cohort = None;
        let reason = "two connections ended right after it was asked for";
        self.set(order, State::Rejected(Rejection::transient(reason, wait)));
        self.wait_until(order, after(now, wait));
        self.moved(order, 0).into_iter().collect()
    }

    // ---- Moves of one topic ----

    fn awaits(&self, order: u64, id: u64) -> bool {
        self.topics.get(&order).is_some_and(|entry| entry.state.asked() == Some(id))
    }

    fn is_named(&self, order: u64, names: &BTreeSet<&str>) -> bool {
        self.topics.get(&order).is_some_and(|entry| {
            names.contains(entry.name.as_str())
                || entry.alias.as_ref().is_some_and(|alias| names.contains(alias.as_str()))
        })
    }

    fn active(
        &mut self,
        order: u64,
        epoch: u64,
        now: Instant,
    ) -> Option<(Topic, SubscriptionState)> {
        self.set(order, State::Active { since: now });
        let entry = self.topics.get_mut(&order)?;
        entry.has_answer();
        (entry.is_uncertain, entry.cohort) = (false, None);
        self.moved(order, epoch)
    }

    fn rejected(
        &mut self,
        order: u64,
        rejection: &Rejection,
        epoch: u64,
        now: Instant,
    ) -> Option<(Topic, SubscriptionState)> {
        // It may be a late answer to a second request: then the venue has it all the same.
        let was_active = matches!(self.topics.get(&order)?.state, State::Active { .. });
        self.set(order, State::Rejected(rejection.clone()));
        self.drop_alias(order);
        let entry = self.topics.get_mut(&order)?;
        entry.has_answer();
        entry.is_uncertain |= was_active;
        entry.cohort = None;
        if let Some(wait) = rejection.retry_after() {
            self.wait_until(order, after(now, wait.max(RETRY_MIN)));
        }
        self.moved(order, epoch)
    }

    /// The venue has ended a topic because it was asked to.
    fn ended_topic(&mut self, order: u64, epoch: u64) -> Option<(Topic, SubscriptionState)> {
        self.set(order, State::Off);
        self.drop_alias(order);
        let entry = self.topics.get_mut(&order)?;
        entry.has_answer();
        (entry.is_uncertain, entry.is_renewed) = (false, false);
        self.moved(order, epoch)
    }

    /// The venue refuses to end a topic: for now, or because it does not have it.
    fn end_refused(
        &mut self,
        order: u64,
        rejection: &Rejection,
        epoch: u64,
        now: Instant,
    ) -> Option<(Topic, SubscriptionState)> {
        let Some(wait) = rejection.retry_after() else { return self.ended_topic(order, epoch) };
        self.not_asked(order);
        if self.topics.get(&order)?.is_ending() {
            self.wait_until(order, after(now, wait.max(RETRY_MIN)));
        }
        self.moved(order, epoch)
    }

    /// The venue has ended a topic by itself: it is asked for again after a while.
    fn evicted(
        &mut self,
        order: u64,
        epoch: u64,
        now: Instant,
    ) -> Option<(Topic, SubscriptionState)> {
        let entry = self.topics.get_mut(&order)?;
        if matches!(entry.state, State::Active { since } if after(since, RETRY_MAX) <= now) {
            entry.evictions = 0;
        }
        let wait = doubled(RETRY_MIN, entry.evictions.into());
        entry.evictions = entry.evictions.saturating_add(1);
        self.set(order, State::Off);
        self.drop_alias(order);
        self.wait_until(order, after(now, wait));
        self.moved(order, epoch)
    }

    /// The venue has not answered in time.
    fn not_answered(&mut self, order: u64, epoch: u64) -> Option<(Topic, SubscriptionState)> {
        self.set(order, State::Off);
        let entry = self.topics.get_mut(&order)?;
        entry.is_uncertain = true;
        entry.failures = entry.failures.saturating_add(1);
        self.moved(order, epoch)
    }

    /// A refused request is asked for again in two halves.
    fn halve(&mut self, orders: &[u64], epoch: u64) -> Changes {
        self.split(orders);
        let mut changes = Changes::new();
        for &order in orders {
            self.set(order, State::Off);
            if let Some(entry) = self.topics.get_mut(&order) {
                entry.has_answer();
                // A venue that answers for each topic may have taken this one, and say so yet.
                entry.is_uncertain = true;
            }
            changes.extend(self.moved(order, epoch));
        }
        changes
    }

    fn split(&mut self, orders: &[u64]) {
        let (first, second) = orders.split_at(orders.len().div_ceil(2));
        for half in [first, second] {
            self.next_cohort = self.next_cohort.wrapping_add(1).max(1);
            for order in half {
                if let Some(entry) = self.topics.get_mut(order) {
                    entry.cohort = NonZeroU32::new(self.next_cohort);
                }
            }
        }
    }

    /// Puts a topic where it belongs, and returns its state for the program.
    fn moved(&mut self, order: u64, epoch: u64) -> Option<(Topic, SubscriptionState)> {
        let entry = self.topics.get(&order)?;
        let change = (entry.name.clone(), entry.subscription_state(epoch));
        let is_wanted = entry.is_wanted;
        self.untold += usize::from(is_wanted);
        self.changed(order);
        is_wanted.then_some(change)
    }
}

impl State {
    /// Returns the id of the request that is under way.
    fn asked(&self) -> Option<u64> {
        match self {
            State::Requested(id) | State::Unsubscribing { id, .. } => Some(*id),
            _ => None,
        }
    }
}

impl Entry {
    /// Returns the request that it needs, if none is under way.
    fn next_request(&self) -> Option<SubscriptionRequestKind> {
        match self.state {
            State::Off | State::Active { .. } | State::Rejected(_) if self.is_ending() => {
                Some(SubscriptionRequestKind::Unsubscribe)
            }
            State::Off if self.is_wanted => Some(SubscriptionRequestKind::Subscribe),
            _ => None,
        }
    }

    /// It is to be ended, or is being ended.
    fn is_ending(&self) -> bool {
        let is_over = !self.is_wanted || self.is_renewed;
        match self.state {
            // A second request that is refused says nothing of the first.
            State::Off | State::Rejected(_) => is_over && self.is_uncertain,
            State::Active { .. } => is_over,
            State::Unsubscribing { .. } => true,
            State::Requested(_) => false,
        }
    }

    /// Nobody wants it, and the venue does not have it.
    fn is_gone(&self) -> bool {
        let is_off = matches!(self.state, State::Off | State::Rejected(_));
        !self.is_wanted && is_off && !self.is_uncertain
    }

    /// The venue has answered.
    fn has_answer(&mut self) {
        (self.failures, self.suspicions) = (0, 0);
    }

    /// The venue has not answered for it.
    fn is_open(&self) -> bool {
        self.is_wanted
            && (self.is_renewed || !matches!(self.state, State::Active { .. } | State::Rejected(_)))
    }

    fn subscription_state(&self, epoch: u64) -> SubscriptionState {
        match &self.state {
            State::Off | State::Rejected(_) if self.is_ending() => SubscriptionState::Unsubscribing,
            State::Off => SubscriptionState::Pending,
            State::Requested(_) => SubscriptionState::Requested,
            State::Active { .. } => SubscriptionState::Active { epoch },
            State::Unsubscribing { .. } => SubscriptionState::Unsubscribing,
            State::Rejected(rejection) => SubscriptionState::Rejected(rejection.clone()),
        }
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(RETRY_MAX.max(first))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            SubscriptionState::Rejected(rejection) if rejection.is_permanent() => {
                "rejected".to_owned()
            }
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
            wanted += usize::from(entry.is_wanted);
            open += usize::from(entry.is_open());
            assert_eq!(entry.counted, (entry.is_wanted, entry.is_open()));
            assert!(!entry.is_gone() && (entry.is_wanted || !entry.is_renewed));
            assert!(!entry.is_renewed || entry.is_ending());
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
            Acceptance::Except(vec![
                (name.to_owned(), permanent()),
                ("unknown".into(), permanent()),
            ])
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
    fn a_topic_is_certain_again_once_it_is_active_has_ended_or_has_another_connection() {
        let settle: [fn(&mut Session); 3] = [
            |session| {
                session.update("a", &TopicUpdate::Subscribed);
                session.update("a", &TopicUpdate::Unsubscribed);
            },
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
            assert_eq!(
                session.subscriptions.delayed.first().expect("b waits").0,
                session.now + next
            );
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
                            self.deliver(0, false);
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

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let topic = 0..NAMES.len();
        let step = prop_oneof![
            4 => topic.clone().prop_map(Step::Subscribe),
            2 => topic.clone().prop_map(Step::Unsubscribe),
            2 => topic.clone().prop_map(Step::Resubscribe),
            8 => (1..4usize, prop::bool::weighted(0.85))
                .prop_map(|(topics_max, is_written)| Step::Ask { topics_max, is_written }),
            1 => Just(Step::Busy),
            1 => Just(Step::Ignore),
            8 => (0..4usize, prop::bool::weighted(0.2))
                .prop_map(|(number, is_doubled)| Step::Deliver { number, is_doubled }),
            1 => (0..4usize).prop_map(Step::Lose),
            1 => topic.prop_map(Step::Evict),
            2 => prop_oneof![Just(100), Just(1500), Just(10_000), Just(25_000)]
                .prop_map(Step::Pass),
            1 => Just(Step::Drop),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn once_it_is_left_alone_the_venue_has_what_the_program_wants(
            answers in prop::sample::select(vec![
                Answers::ById,
                Answers::Only,
                Answers::ByName,
                Answers::Both,
                Answers::List,
                Answers::Never,
            ]),
            steps in steps(),
        ) {
            let mut market = Market::new(answers);
            for step in &steps {
                market.step(step);
            }
            market.calm_down();
            market.check_calm();
            market.step(&Step::Drop);
            market.calm_down();
            market.check_calm();
        }
    }
}
