//! The subscriptions of a session: what the program wants, and what the venue has confirmed. Pure:
//! `now` is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::metrics::TopicCounts;
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
    wish: Wish,
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
    /// The kind of the last request about it on this connection.
    last_asked: Option<SubscriptionRequestKind>,
    /// A request on this connection was not answered in time: what the venue says of the topic by
    /// name may be older than the requests that followed.
    is_late: bool,
    /// The sums that it is part of now.
    counted: Count,
}

/// The wish of the program for a topic.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Wish {
    Unwanted,
    Wanted,
    /// It is to be ended and asked for again.
    Renewed,
}

/// The sums that a topic is part of.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Count {
    Unwanted,
    Wanted,
    /// Of those that are wanted, too.
    Open,
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
            .filter(|name| self.entry(name).is_none_or(|entry| !entry.is_wanted()))
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
                wish: Wish::Wanted,
                state: State::Off,
                is_uncertain: false,
                retry_at: None,
                failures: 0,
                evictions: 0,
                suspicions: 0,
                cohort: None,
                answers_from: 0,
                last_asked: None,
                is_late: false,
                counted: Count::Unwanted,
            };
            self.topics.insert(order, entry);
            return self.changed(order);
        };
        let Some(entry) = self.topics.get_mut(&order) else { return };
        let is_new = !entry.is_wanted();
        if is_new {
            entry.wish = Wish::Wanted;
        }
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
            entry.wish = Wish::Unwanted;
            self.changed(order);
        }
    }

    /// Ends an active topic and asks for it again. Returns `false`, and does nothing, in every
    /// other state.
    pub(crate) fn resubscribe(&mut self, name: &str) -> bool {
        let Some(&order) = self.names.get(name) else { return false };
        let Some(entry) = self.topics.get_mut(&order) else { return false };
        let is_new = entry.wish == Wish::Wanted && matches!(entry.state, State::Active { .. });
        if is_new {
            entry.wish = Wish::Renewed;
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

    /// Returns the number of topics in each state.
    pub(crate) fn counts(&self) -> TopicCounts {
        let mut counts = TopicCounts::default();
        for entry in self.topics.values() {
            // As `subscription_state` has it, without a clone of the rejection.
            *match &entry.state {
                State::Off | State::Rejected(_) if entry.is_ending() => &mut counts.unsubscribing,
                State::Off => &mut counts.pending,
                State::Requested(_) => &mut counts.requested,
                State::Active { .. } => &mut counts.active,
                State::Unsubscribing { .. } => &mut counts.unsubscribing,
                State::Rejected(_) => &mut counts.rejected,
            } += 1;
        }
        counts
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
            let wanted = || self.topics.values().filter(|entry| entry.is_wanted());
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
        let entry = self.entry(name).filter(|entry| entry.is_wanted());
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
        let count = entry.count();
        let before = std::mem::replace(&mut entry.counted, count);
        let is_in = |sum, count| usize::from(count >= sum);
        self.wanted = self.wanted + is_in(Count::Wanted, count) - is_in(Count::Wanted, before);
        self.open = self.open + is_in(Count::Open, count) - is_in(Count::Open, before);
        self.is_settling |= count == Count::Open;
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
            entry.last_asked = Some(kind);
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
                    _ => self.ended_topic(order, false, epoch),
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
        let is_old = self.may_be_old(order);
        let entry = self.topics.get_mut(&order)?;
        // By name it may be the answer to an older request.
        let is_ambiguous = std::mem::replace(&mut entry.answers_from, self.requests_made) > 0;
        let (is_ending, is_late) = (entry.is_ending(), entry.is_late);
        let is_over = entry.last_asked == Some(SubscriptionRequestKind::Unsubscribe);
        if let Some(alias) = alias {
            self.drop_alias(order);
            let alias = Topic::new(alias);
            self.aliases.insert(alias.clone(), order);
            self.topics.get_mut(&order)?.alias = Some(alias);
        }
        let change = match (&self.topics.get(&order)?.state, update) {
            // It answers a request that was made before the one that ended it.
            (State::Off | State::Rejected(_), TopicUpdate::Subscribed) if is_over => None,
            // The last word counts.
            (State::Off | State::Requested(_) | State::Rejected(_), TopicUpdate::Subscribed) => {
                self.active(order, epoch, now)
            }
            // It answers the request to end the topic, or comes before it.
            (_, TopicUpdate::Unsubscribed) if is_ending => self.ended_topic(order, is_old, epoch),
            (State::Active { .. }, TopicUpdate::Unsubscribed) => self.evicted(order, epoch, now),
            (_, TopicUpdate::Rejected(rejection)) if is_ending && rejection.is_permanent() => {
                self.ended_topic(order, is_old, epoch)
            }
            (State::Unsubscribing { id, .. }, TopicUpdate::Rejected(rejection)) => {
                // It may refuse an older request: then the venue has ended the topic.
                if is_late {
                    let state = State::Unsubscribing { id: *id, since: None };
                    let entry = self.topics.get_mut(&order)?;
                    (entry.state, entry.is_uncertain) = (state, true);
                }
                self.end_refused(order, rejection, epoch, now)
            }
            (_, TopicUpdate::Rejected(_)) if is_ending => None,
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
                (_, false) if entry.is_ending() => {
                    self.ended_topic(order, self.may_be_old(order), epoch)
                }
                (State::Active { .. }, false) => self.evicted(order, epoch, now),
                _ => None,
            });
        }
        changes
    }

    fn is_sent(&self, id: u64) -> bool {
        self.requests.get(&id).is_some_and(|request| request.sent.is_some())
    }

    /// The end of a topic that the venue tells of may be older than the last request for it: one
    /// was not answered in time. Nothing is lost by that while a request to end it is under way.
    fn may_be_old(&self, order: u64) -> bool {
        self.topics.get(&order).is_some_and(|entry| {
            let is_end_sent =
                matches!(entry.state, State::Unsubscribing { id, .. } if self.is_sent(id));
            entry.is_late && !is_end_sent
        })
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
            (entry.alias, entry.is_uncertain) = (None, false);
            entry.end_renewal();
            (entry.failures, entry.answers_from) = (0, 0);
            (entry.last_asked, entry.is_late) = (None, false);
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

    /// The venue has ended a topic because it was asked to. If that is uncertain, it is asked
    /// again.
    fn ended_topic(
        &mut self,
        order: u64,
        is_uncertain: bool,
        epoch: u64,
    ) -> Option<(Topic, SubscriptionState)> {
        self.set(order, State::Off);
        self.drop_alias(order);
        let entry = self.topics.get_mut(&order)?;
        entry.has_answer();
        entry.is_uncertain = is_uncertain;
        entry.end_renewal();
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
        let Some(wait) = rejection.retry_after() else {
            return self.ended_topic(order, false, epoch);
        };
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
        entry.is_uncertain = entry.is_late;
        self.set(order, State::Off);
        self.drop_alias(order);
        self.wait_until(order, after(now, wait));
        self.moved(order, epoch)
    }

    /// The venue has not answered in time.
    fn not_answered(&mut self, order: u64, epoch: u64) -> Option<(Topic, SubscriptionState)> {
        self.set(order, State::Off);
        let entry = self.topics.get_mut(&order)?;
        (entry.is_uncertain, entry.is_late) = (true, true);
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
        let is_wanted = entry.is_wanted();
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
    fn is_wanted(&self) -> bool {
        self.wish != Wish::Unwanted
    }

    /// It has been ended: all that is left of a renewal is to ask for it.
    fn end_renewal(&mut self) {
        if self.wish == Wish::Renewed {
            self.wish = Wish::Wanted;
        }
    }

    /// Returns the request that it needs, if none is under way.
    fn next_request(&self) -> Option<SubscriptionRequestKind> {
        match self.state {
            State::Off | State::Active { .. } | State::Rejected(_) if self.is_ending() => {
                Some(SubscriptionRequestKind::Unsubscribe)
            }
            State::Off if self.is_wanted() => Some(SubscriptionRequestKind::Subscribe),
            _ => None,
        }
    }

    /// It is to be ended, or is being ended.
    fn is_ending(&self) -> bool {
        let is_over = self.wish != Wish::Wanted;
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
        !self.is_wanted() && is_off && !self.is_uncertain
    }

    /// The venue has answered.
    fn has_answer(&mut self) {
        (self.failures, self.suspicions) = (0, 0);
    }

    /// Returns what it is to be counted as.
    fn count(&self) -> Count {
        match (self.wish, &self.state) {
            (Wish::Unwanted, _) => Count::Unwanted,
            (Wish::Wanted, State::Active { .. } | State::Rejected(_)) => Count::Wanted,
            // The venue has not answered for it.
            _ => Count::Open,
        }
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
mod tests;
