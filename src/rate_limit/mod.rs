//! Rate limits: how many messages, or dials, may leave within a time.
//!
//! A message asks all limits of its connection at once: each is debited, or none. Once it has been
//! let through it counts, as pending until the kernel has it, and from that time for as long as the
//! window. A send that waits for its turn holds no lock; it is woken when something is given back,
//! when there is room, and when its connection ends.

mod windows;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::sync::{self, Condvar, Mutex};
use crate::time::after;
use windows::{Window, Windows};

/// A limit on how many messages may be sent, or connections be dialed, within a time.
///
/// Its windows roll: never are there more than `count` within *any* `per`, at no offset, so that
/// neither the end of one second and the beginning of the next nor a long silence makes room for
/// more. Several windows apply together, and a message counts in all of them or in none. It counts
/// from the moment at which it is let through, and for `per` and the
/// [`margin`](RateLimit::margin) after the kernel has taken it: 5 per second are at most 5 in any
/// 1.1 s by default.
///
/// A server counts arrivals. [`margin`](RateLimit::margin) allows for an uneven network; a stalled
/// connection, whose data is retransmitted, may still deliver the sends of several seconds at once.
///
/// A clone is the same limit: two clients that have clones of one [`shared`](RateLimit::shared)
/// limit share what it allows. A clone that is configured further becomes a limit of its own.
///
/// Each limit remembers as many times, of 16 bytes each, as its largest `count`.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use tautline::{Client, RateLimit};
///
/// // 5 messages a second, and no two within 150 ms of each other.
/// let messages = RateLimit::per_connection()
///     .window(5, Duration::from_secs(1))
///     .window(1, Duration::from_millis(150));
/// // 300 dials in 5 minutes, whichever client makes them.
/// let dials = RateLimit::shared().window(300, Duration::from_secs(300));
/// let builder = Client::builder("wss://stream.example.com/ws")
///     .send_limit(messages)
///     .connect_limit(dials.clone());
/// ```
#[derive(Clone)]
#[must_use = "a limit does nothing until a builder has it"]
pub struct RateLimit {
    state: Arc<State>,
    is_shared: bool,
}

/// The kinds of what a client sends, for [`RateLimit::only`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendKind {
    /// The messages by which a session opens, such as a login.
    Opening,
    /// The requests by which a session subscribes and unsubscribes.
    Subscriptions,
    /// The requests that await a reply.
    Calls,
    /// The messages that the program sends itself: [`Sender::send_text`](crate::Sender::send_text)
    /// and the like.
    Sends,
    /// Pings, pongs, application pings and automatic responses. They never wait.
    Pings,
}

impl SendKind {
    const ALL_BUT_PINGS: [SendKind; 4] =
        [SendKind::Opening, SendKind::Subscriptions, SendKind::Calls, SendKind::Sends];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl RateLimit {
    /// Creates a limit that counts each connection by itself, and each from nothing: what was sent
    /// on the connection before does not count. It has no window yet.
    ///
    /// As a [`connect_limit`](crate::Builder::connect_limit) it counts each client by itself.
    pub fn per_connection() -> Self {
        RateLimit { state: Arc::new(State::new(Terms::default())), is_shared: false }
    }

    /// Creates a limit that all connections of all clients share that have it or a clone of it. It
    /// has no window yet.
    pub fn shared() -> Self {
        RateLimit { is_shared: true, ..RateLimit::per_connection() }
    }

    /// Adds a window: at most `count` messages within any `per`. May be called several times. One
    /// message per time is a minimum distance between two.
    ///
    /// `Config` at the start for a limit without a window, and if `count` or `per` is zero.
    pub fn window(self, count: u32, per: Duration) -> Self {
        self.with(|terms| terms.windows.push(Window { count, per, keep: 0 }))
    }

    /// Keeps `count` messages of the last window that was added for what is urgent. A program's own
    /// sends and its calls are urgent, subscriptions and the steps of an opening script are not.
    /// Without effect in a [`connect_limit`](crate::Builder::connect_limit).
    ///
    /// Defaults to 0. `Config` at the start if it is not less than the count of the window, or if
    /// there is no window before it.
    pub fn keep(self, count: u32) -> Self {
        self.with(|terms| match terms.windows.last_mut() {
            Some(window) => window.keep = count,
            None => terms.keeps_of_nothing = true,
        })
    }

    /// Sets the time by which two messages may be closer together when they arrive than when they
    /// were sent. Every window is longer by it.
    ///
    /// Defaults to 100 ms.
    pub fn margin(self, margin: Duration) -> Self {
        self.with(|terms| terms.margin = margin)
    }

    /// Sets what the limit applies to; everything else neither counts nor waits.
    ///
    /// Defaults to everything but [`Pings`](SendKind::Pings). `Config` at the start if there is
    /// nothing. Without effect on a [`connect_limit`](crate::Builder::connect_limit).
    ///
    /// [`Opening`](SendKind::Opening), [`Subscriptions`](SendKind::Subscriptions) and
    /// [`Calls`](SendKind::Calls) are messages of a session. A client without one sends everything
    /// as [`Sends`](SendKind::Sends).
    pub fn only(self, kinds: &[SendKind]) -> Self {
        self.with(|terms| terms.kinds = kinds.iter().fold(0, |bits, kind| bits | kind.bit()))
    }

    /// Counts pings and pongs too, for a server that does. They are written without waiting, even
    /// where there is no room: leave some for as many as may come within a window.
    pub fn counting_pings(self) -> Self {
        self.with(|terms| terms.kinds |= SendKind::Pings.bit())
    }

    /// The same limit on other terms, which shares nothing with it.
    fn with(self, change: impl FnOnce(&mut Terms)) -> Self {
        let mut terms = self.state.terms.clone();
        change(&mut terms);
        RateLimit { state: Arc::new(State::new(terms)), ..self }
    }

    /// Refuses a limit that cannot work.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Terms { windows, kinds, keeps_of_nothing, .. } = &self.state.terms;
        let refused = |context: &'static str| Err(Error::config(context));
        if windows.is_empty() {
            return refused("a rate limit without a window: give it at least one");
        }
        if windows.iter().any(|window| window.count == 0 || window.per.is_zero()) {
            return refused("a window of a rate limit is zero: it must be at least 1, and longer");
        }
        if *keeps_of_nothing || windows.iter().any(|window| window.keep >= window.count) {
            return refused("a rate limit must keep less than the window before it has");
        }
        if *kinds == 0 {
            return refused("a rate limit that applies to nothing: leave it out");
        }
        Ok(())
    }

    /// Returns the limit as a new owner counts by it, a connection or what dials: a shared one with
    /// all that counts already, another one from nothing.
    pub(crate) fn for_owner(&self) -> RateLimit {
        match self.is_shared {
            true => self.clone(),
            false => self.clone().with(|_| ()),
        }
    }

    /// Counts a dial that begins now.
    ///
    /// # Errors
    /// The time to look again, if there is no room for it.
    pub(crate) fn try_dial(&self, now: Instant) -> Result<(), Instant> {
        let mut inner = self.state.inner.lock();
        let at = inner.windows.earliest(0, 1, true, now);
        if at > now {
            return Err(at);
        }
        inner.windows.note(1, now);
        Ok(())
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Terms { windows, margin, .. } = &self.state.terms;
        f.debug_struct("RateLimit")
            .field("is_shared", &self.is_shared)
            .field("windows", windows)
            .field("margin", margin)
            .finish_non_exhaustive()
    }
}

/// The configuration of a limit.
#[derive(Clone)]
struct Terms {
    windows: Vec<Window>,
    margin: Duration,
    /// The bits of the [`SendKind`]s that it applies to.
    kinds: u8,
    /// `keep` was called before there was a window.
    keeps_of_nothing: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Terms {
            windows: Vec::new(),
            margin: Duration::from_millis(100),
            kinds: SendKind::ALL_BUT_PINGS.iter().fold(0, |bits, kind| bits | kind.bit()),
            keeps_of_nothing: false,
        }
    }
}

/// A limit, and what counts against it.
struct State {
    terms: Terms,
    /// Locks are taken in the order of the states' addresses, and before those of [`Waiter`]s. Held
    /// for moments; nothing waits or is called under it.
    inner: Mutex<Inner>,
}

struct Inner {
    windows: Windows,
    /// Whoever waits for room, in the order in which they came.
    waiting: VecDeque<Ticket>,
}

/// The place of a message that waits for room.
struct Ticket {
    waiter: Arc<Waiter>,
    weight: u32,
}

/// A thread that waits for room.
#[derive(Default)]
struct Waiter {
    /// Held for moments, and no lock is taken under it.
    inner: Mutex<Waiting>,
    /// Signalled when it is woken. Waits under `inner`.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// There is something to look at.
    is_woken: bool,
    /// The times at which its limits have room for it, by what was known at its last look.
    times: Vec<(Address, Instant)>,
    /// One of `times` had come, and is later after this look: others may pass who could not.
    may_be_passed: bool,
}

/// Identifies a limit for as long as it lives.
type Address = usize;

impl State {
    fn new(terms: Terms) -> Self {
        let windows = Windows::new(terms.windows.clone(), terms.margin);
        State { terms, inner: Mutex::new(Inner { windows, waiting: VecDeque::new() }) }
    }

    fn applies_to(&self, kind: SendKind) -> bool {
        self.terms.kinds & kind.bit() != 0
    }

    fn address(&self) -> Address {
        std::ptr::from_ref(self).addr()
    }
}

impl Inner {
    /// Returns when `request` has room here, behind those who came before it.
    fn earliest(&self, request: &Request<'_>) -> Instant {
        let came_before =
            |ticket: &&Ticket| request.waiter.is_none_or(|waiter| !ticket.is_of(waiter));
        let ahead = self.waiting.iter().take_while(came_before);
        let ahead = ahead.filter(|ticket| !request.may_pass(ticket));
        let ahead = ahead.map(|ticket| u64::from(ticket.weight)).sum();
        self.windows.earliest(ahead, request.weight, request.is_urgent, request.now)
    }

    /// Keeps a place in the order of those who wait.
    fn wait(&mut self, waiter: &Arc<Waiter>, weight: u32) {
        match self.waiting.iter().position(|ticket| ticket.is_of(waiter)) {
            None => self.waiting.push_back(Ticket { waiter: Arc::clone(waiter), weight }),
            Some(place) if waiter.may_be_passed() => {
                self.waiting.iter().skip(place + 1).for_each(Ticket::wake);
            }
            Some(_) => {}
        }
    }

    /// Gives up a place. Returns `false` when there was none.
    fn give_up(&mut self, waiter: &Arc<Waiter>) -> bool {
        let place = self.waiting.iter().position(|ticket| ticket.is_of(waiter));
        place.and_then(|place| self.waiting.remove(place)).is_some()
    }

    fn wake_all(&self) {
        self.waiting.iter().for_each(Ticket::wake);
    }
}

impl Ticket {
    fn is_of(&self, waiter: &Arc<Waiter>) -> bool {
        Arc::ptr_eq(&self.waiter, waiter)
    }

    fn wake(&self) {
        self.waiter.inner.lock().is_woken = true;
        self.waiter.changed.notify_one();
    }
}

impl Waiter {
    /// Waits for a wake-up, or until `until`.
    fn wait(&self, until: Instant) {
        let mut inner = self.inner.lock();
        while !inner.is_woken {
            if self.changed.wait_until(&mut inner, until).timed_out() {
                break;
            }
        }
        inner.is_woken = false;
    }

    /// Writes down when a limit has room for it.
    fn set_time(&self, limit: &State, at: Instant, now: Instant) {
        let mut inner = self.inner.lock();
        let address = limit.address();
        match inner.times.iter().position(|(known, _)| *known == address) {
            Some(place) => {
                let before = std::mem::replace(&mut inner.times[place].1, at);
                inner.may_be_passed |= before <= now && at > now;
            }
            None => inner.times.push((address, at)),
        }
    }

    /// Returns `true` if somebody may pass who could not before: never where there is one limit.
    fn may_be_passed(&self) -> bool {
        let inner = self.inner.lock();
        inner.may_be_passed && inner.times.len() > 1
    }
}

/// A message that asks for room.
struct Request<'a> {
    /// All limits of its connection.
    states: &'a [Arc<State>],
    kind: SendKind,
    weight: u32,
    is_urgent: bool,
    now: Instant,
    /// Keeps a place for it where it has to wait.
    waiter: Option<&'a Arc<Waiter>>,
}

impl Request<'_> {
    /// Returns `true` if it need not stay behind a message that came before it: that waits for a
    /// limit which this one does not have. A burst of one client that waits for a limit of its own
    /// must not keep the others from using what they share.
    fn may_pass(&self, ticket: &Ticket) -> bool {
        let waits_elsewhere =
            |(limit, at): &(Address, Instant)| *at > self.now && !self.asks(*limit);
        ticket.waiter.inner.lock().times.iter().any(waits_elsewhere)
    }

    fn asks(&self, limit: Address) -> bool {
        let mut asked = self.states.iter().filter(|state| state.applies_to(self.kind));
        asked.any(|state| state.address() == limit)
    }

    /// Takes room in all limits that apply, if each has it now, and otherwise in none: the waiter
    /// then keeps a place in each. Returns when all of them have room, `now` if it was taken.
    fn take(&self) -> Instant {
        if let Some(waiter) = self.waiter {
            waiter.inner.lock().may_be_passed = false;
        }
        self.take_in(self.states, self.now)
    }

    /// `before` is when those limits have room whose locks are held already.
    fn take_in(&self, states: &[Arc<State>], before: Instant) -> Instant {
        let Some((state, others)) = states.split_first() else { return before };
        if !state.applies_to(self.kind) {
            return self.take_in(others, before);
        }
        let mut inner = state.inner.lock();
        let here = inner.earliest(self);
        if let Some(waiter) = self.waiter {
            waiter.set_time(state, here, self.now);
        }
        // Locked until all have been asked: each then does the same.
        let at = self.take_in(others, before.max(here));
        match self.waiter {
            _ if at <= self.now => inner.windows.take(self.weight),
            Some(waiter) => inner.wait(waiter, self.weight),
            None => {}
        }
        if let Some(waiter) = self.waiter.filter(|_| at <= self.now) {
            inner.give_up(waiter);
        }
        at
    }
}

/// All limits of one connection. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Limits(Option<Arc<[Arc<State>]>>);

/// The reason why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is none in time, by what is known now. `Duration::MAX`: the message weighs more than a
    /// window holds.
    Late { retry_in: Duration },
    /// The connection has ended.
    Over,
}

impl Limits {
    /// Returns the limits of a new connection: those that are shared as they stand, the others from
    /// nothing.
    pub(crate) fn for_connection(configured: &[RateLimit]) -> Limits {
        let mut states: Vec<_> = configured.iter().map(|limit| limit.for_owner().state).collect();
        // The order in which they are locked, each once.
        states.sort_by_key(Arc::as_ptr);
        states.dedup_by(|one, other| Arc::ptr_eq(one, other));
        Limits((!states.is_empty()).then(|| states.into()))
    }

    /// Returns `true` if there are no limits: nothing waits, and nothing counts.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the most messages that may leave together.
    pub(crate) fn weight_max(&self, kind: SendKind, is_urgent: bool) -> u32 {
        let windows = self.applying(kind).flat_map(|state| &state.terms.windows);
        windows.map(|window| window.room(is_urgent)).min().unwrap_or(u32::MAX)
    }

    /// Waits for room for `weight` messages, until `deadline` at most, behind those who wait
    /// already. Refuses at once where there can be no room by then, as far as is known now, and
    /// where it would have to wait if not `may_wait`.
    ///
    /// `is_over` is asked before each wait and after it: the connection has ended. Whoever ends it
    /// calls [`wake_all`](Limits::wake_all) afterwards.
    pub(crate) fn acquire(
        &self,
        kind: SendKind,
        weight: u32,
        deadline: Instant,
        may_wait: impl Fn() -> bool,
        is_over: impl Fn() -> bool,
    ) -> Result<Permit, Refused> {
        if weight > self.weight_max(kind, true) {
            return Err(Refused::Late { retry_in: Duration::MAX });
        }
        let mut waits: Option<Waits<'_>> = None;
        loop {
            let now = sync::now();
            let waiter = waits.as_ref().map(|waits| &waits.waiter);
            let states = self.states();
            let at = Request { states, kind, weight, is_urgent: true, now, waiter }.take();
            if at <= now {
                return Ok(Permit { limits: self.clone(), kind, weight });
            }
            // Asked once it has a place: whoever ends the connection wakes it there.
            if waits.is_some() && is_over() {
                return Err(Refused::Over);
            }
            if at > deadline || !may_wait() {
                return Err(Refused::Late { retry_in: at.saturating_duration_since(now) });
            }
            match &waits {
                Some(waits) => waits.waiter.wait(at),
                None => waits = Some(Waits { limits: self, waiter: Arc::default() }),
            }
        }
    }

    /// Takes room for `weight` messages that are not urgent: what is free above what is kept, and
    /// not wanted by whoever waits. Never waits, and keeps no place.
    ///
    /// # Errors
    /// The time to look again.
    pub(crate) fn try_acquire(
        &self,
        kind: SendKind,
        weight: u32,
        now: Instant,
    ) -> Result<Permit, Instant> {
        if weight > self.weight_max(kind, false) {
            return Err(after(now, Duration::MAX));
        }
        let states = self.states();
        let request = Request { states, kind, weight, is_urgent: false, now, waiter: None };
        match request.take() {
            at if at <= now => Ok(Permit { limits: self.clone(), kind, weight }),
            at => Err(at),
        }
    }

    /// Counts a frame or message that never waits.
    pub(crate) fn note(&self, kind: SendKind, now: Instant) {
        for state in self.applying(kind) {
            state.inner.lock().windows.note(1, now);
        }
    }

    /// Lets everybody who waits look again: the connection has ended.
    pub(crate) fn wake_all(&self) {
        for state in self.states() {
            state.inner.lock().wake_all();
        }
    }

    fn states(&self) -> &[Arc<State>] {
        self.0.as_deref().unwrap_or_default()
    }

    fn applying(&self, kind: SendKind) -> impl Iterator<Item = &Arc<State>> {
        self.states().iter().filter(move |state| state.applies_to(kind))
    }
}

/// The places of a thread that waits for room. It gives them up where it has not been let through.
struct Waits<'a> {
    limits: &'a Limits,
    waiter: Arc<Waiter>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        for state in self.limits.states() {
            let mut inner = state.inner.lock();
            if inner.give_up(&self.waiter) {
                inner.wake_all();
            }
        }
    }
}

/// Messages that were let through. They count until they are given back, which is what a drop does,
/// and for good once they are committed.
#[must_use = "a drop gives it back"]
pub(crate) struct Permit {
    limits: Limits,
    kind: SendKind,
    /// Those that have been neither committed nor given back.
    weight: u32,
}

impl Permit {
    /// The kernel has the messages.
    #[cfg_attr(not(test), allow(dead_code, reason = "for what is sent alone"))]
    pub(crate) fn commit(self, now: Instant) {
        let weight = self.weight;
        self.commit_part(weight, now);
    }

    /// The kernel has `sent` of the messages, and the others are given back.
    pub(crate) fn commit_part(mut self, sent: u32, now: Instant) {
        self.settle(sent, now);
    }

    fn settle(&mut self, sent: u32, now: Instant) {
        let weight = std::mem::take(&mut self.weight);
        for state in self.limits.applying(self.kind) {
            let mut inner = state.inner.lock();
            inner.windows.settle(weight, sent, now);
            if sent < weight {
                inner.wake_all();
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.weight > 0 {
            self.settle(0, sync::now());
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use rand::RngExt;
    use rand::rngs::StdRng;

    use super::*;
    use crate::error::ErrorKind;
    use crate::property;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn one_per(per: Duration) -> RateLimit {
        RateLimit::per_connection().window(1, per).margin(Duration::ZERO)
    }

    fn acquire(limits: &Limits, deadline: Instant) -> Result<Permit, Refused> {
        limits.acquire(SendKind::Sends, 1, deadline, || true, || false)
    }

    #[test]
    fn limits_that_cannot_work_are_refused() {
        let limit = RateLimit::shared;
        for refused in [
            limit(),
            limit().window(0, SECOND),
            limit().window(5, Duration::ZERO),
            limit().window(5, SECOND).keep(5),
            limit().keep(1).window(5, SECOND),
            limit().window(5, SECOND).only(&[]),
        ] {
            assert_eq!(refused.check().expect_err("it cannot work").kind(), ErrorKind::Config);
        }
        let limit = limit().window(5, SECOND).keep(4).window(1, MS).only(&[SendKind::Pings]);
        assert!(limit.check().is_ok());
    }

    #[test]
    fn clones_share_a_limit_until_they_are_configured_further() {
        let now = Instant::now();
        let limit = RateLimit::shared().window(1, HOUR);
        let (clone, other) = (limit.clone(), limit.clone().margin(SECOND));
        assert!(limit.try_dial(now).is_ok());
        assert_eq!(clone.for_owner().try_dial(now), Err(now + HOUR + 100 * MS));
        assert!(other.try_dial(now).is_ok());

        let limit = RateLimit::per_connection().window(1, HOUR);
        for _ in 0..2 {
            assert!(limit.for_owner().try_dial(now).is_ok());
        }
    }

    #[test]
    fn only_what_a_limit_is_for_counts_and_waits() {
        let now = Instant::now();
        let is_free = |limits: &Limits, kind| limits.try_acquire(kind, 1, now).is_ok();
        let calls = Limits::for_connection(&[one_per(HOUR).only(&[SendKind::Calls])]);
        calls.note(SendKind::Sends, now);
        calls.note(SendKind::Pings, now);
        assert!(is_free(&calls, SendKind::Calls) && is_free(&calls, SendKind::Sends));
        calls.note(SendKind::Calls, now);
        assert!(!is_free(&calls, SendKind::Calls) && is_free(&calls, SendKind::Sends));

        for (limit, counts) in [(one_per(HOUR), false), (one_per(HOUR).counting_pings(), true)] {
            let limits = Limits::for_connection(&[limit]);
            limits.note(SendKind::Pings, now);
            assert_eq!(is_free(&limits, SendKind::Subscriptions), !counts);
        }
    }

    #[test]
    fn of_several_limits_all_are_debited_or_none() {
        let now = Instant::now();
        let one = RateLimit::shared().window(2, HOUR);
        let other = RateLimit::shared().window(1, HOUR);
        // Given twice, it counts once.
        let limits = Limits::for_connection(&[one.clone(), other.clone(), one.clone()]);
        limits.try_acquire(SendKind::Sends, 1, now).expect("there is room").commit(now);
        for _ in 0..3 {
            assert!(limits.try_acquire(SendKind::Sends, 1, now).is_err());
            assert!(!limits.is_empty() && acquire(&limits, now + SECOND).is_err());
        }
        // So one message is left of the limit that allows two.
        let alone = Limits::for_connection(&[one]);
        let permit = alone.try_acquire(SendKind::Sends, 1, now).expect("there is room");
        assert!(alone.try_acquire(SendKind::Sends, 1, now).is_err());
        drop(permit);
        alone.try_acquire(SendKind::Sends, 1, now).expect("it was given back").commit(now);
        assert!(alone.try_acquire(SendKind::Sends, 1, now).is_err());
    }

    #[test]
    fn of_messages_that_were_let_through_together_those_count_that_left() {
        let now = Instant::now();
        let limits = Limits::for_connection(&[RateLimit::per_connection().window(5, HOUR)]);
        let permit = limits.try_acquire(SendKind::Sends, 5, now).expect("there is room");
        permit.commit_part(2, now);
        assert!(limits.try_acquire(SendKind::Sends, 4, now).is_err());
        assert!(limits.try_acquire(SendKind::Sends, 3, now).is_ok());
        let heavy = limits.acquire(SendKind::Sends, 6, now + HOUR, || true, || false);
        assert_eq!(heavy.err(), Some(Refused::Late { retry_in: Duration::MAX }));
    }

    #[test]
    fn a_message_that_would_be_late_is_refused_at_once() {
        let limits = Limits::for_connection(&[one_per(HOUR)]);
        acquire(&limits, Instant::now()).expect("there is room").commit(Instant::now());
        let began = Instant::now();
        let refusals = [
            acquire(&limits, began + 60 * SECOND),
            limits.acquire(SendKind::Sends, 1, began + 2 * HOUR, || false, || false),
        ];
        for refused in refusals {
            let Err(Refused::Late { retry_in }) = refused else { panic!("it has to be refused") };
            assert!(retry_in > HOUR - 30 * SECOND && retry_in <= HOUR);
        }
        assert!(began.elapsed() < 30 * SECOND);
    }

    #[test]
    fn a_waiting_message_is_woken_by_time_by_what_is_given_back_and_by_the_end() {
        let limits = Limits::for_connection(&[one_per(50 * MS)]);
        let committed = Instant::now();
        acquire(&limits, committed).expect("there is room").commit(committed);
        let permit = acquire(&limits, committed + HOUR).expect("it waits");
        assert!(committed.elapsed() >= 50 * MS);
        drop(permit);

        // An hour, unless something is given back.
        let limits = Limits::for_connection(&[one_per(HOUR)]);
        let permit = acquire(&limits, Instant::now()).expect("there is room");
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let wait = || {
                limits.acquire(
                    SendKind::Sends,
                    1,
                    Instant::now() + 3 * HOUR,
                    || true,
                    || is_over.load(Ordering::SeqCst),
                )
            };
            let waiting = |count| {
                let state = &limits.states()[0];
                while state.inner.lock().waiting.len() < count {
                    thread::yield_now();
                }
            };
            let first = scope.spawn(wait);
            waiting(1);
            let second = scope.spawn(wait);
            waiting(2);
            drop(permit);
            let permit = first.join().expect("no panic").expect("it was first");
            assert!(!second.is_finished());
            is_over.store(true, Ordering::SeqCst);
            limits.wake_all();
            assert_eq!(second.join().expect("no panic").err(), Some(Refused::Over));
            drop(permit);
        });
        assert!(limits.states()[0].inner.lock().waiting.is_empty());
    }

    // ---- Under simulated time ----

    /// Two connections with a limit that they share, and one of their own for calls.
    struct Simulation {
        now: Instant,
        connections: Vec<Limits>,
        books: Vec<Book>,
        waiting: Vec<Sleeper>,
        taken: Vec<(usize, Permit)>,
        commits_at_once: bool,
        /// The number of messages that were let through.
        passed: usize,
    }

    /// Everything that one limit has let through.
    struct Book {
        address: Address,
        terms: Terms,
        left: Vec<Instant>,
        pending: u32,
    }

    /// A thread that waits, as the simulation sees it.
    struct Sleeper {
        number: usize,
        connection: usize,
        kind: SendKind,
        weight: u32,
        waiter: Arc<Waiter>,
        /// The time until which it sleeps, and the first such time, by which a deadline is judged.
        until: Instant,
        first: Instant,
    }

    impl Book {
        fn has_room(&self, weight: u32, is_urgent: bool, now: Instant) -> bool {
            self.terms.windows.iter().all(|window| {
                let span = window.per + self.terms.margin;
                let young = self.left.iter().filter(|left| now < **left + span).count() as u32;
                young + self.pending + weight <= window.room(is_urgent)
            })
        }
    }

    impl Simulation {
        fn new(shared: RateLimit, own: RateLimit, commits_at_once: bool) -> Self {
            let connections: Vec<_> =
                (0..2).map(|_| Limits::for_connection(&[shared.clone(), own.clone()])).collect();
            let mut books: Vec<Book> = Vec::new();
            for state in connections.iter().flat_map(Limits::states) {
                if books.iter().all(|book| book.address != state.address()) {
                    books.push(Book {
                        address: state.address(),
                        terms: state.terms.clone(),
                        left: Vec::new(),
                        pending: 0,
                    });
                }
            }
            assert_eq!(books.len(), 3);
            Simulation {
                now: Instant::now(),
                connections,
                books,
                waiting: Vec::new(),
                taken: Vec::new(),
                commits_at_once,
                passed: 0,
            }
        }

        fn books(&mut self, connection: usize, kind: SendKind) -> Vec<&mut Book> {
            let asked: Vec<_> =
                self.connections[connection].applying(kind).map(|state| state.address()).collect();
            self.books.iter_mut().filter(|book| asked.contains(&book.address)).collect()
        }

        fn has_room(
            &mut self,
            connection: usize,
            kind: SendKind,
            weight: u32,
            is_urgent: bool,
        ) -> bool {
            let now = self.now;
            self.books(connection, kind).iter().all(|book| book.has_room(weight, is_urgent, now))
        }

        /// A message that waited was let through.
        fn waited(&mut self, connection: usize, kind: SendKind, weight: u32) {
            let limits = self.connections[connection].clone();
            self.passed(connection, Permit { limits, kind, weight }, true);
        }

        /// A message was let through.
        fn passed(&mut self, connection: usize, permit: Permit, is_urgent: bool) {
            let (kind, weight) = (permit.kind, permit.weight);
            assert!(self.has_room(connection, kind, weight, is_urgent), "a window is over");
            self.books(connection, kind).into_iter().for_each(|book| book.pending += weight);
            self.taken.push((connection, permit));
            self.passed += weight as usize;
            if self.commits_at_once {
                self.settle(self.taken.len() - 1, weight);
            }
        }

        fn settle(&mut self, place: usize, sent: u32) {
            let (connection, permit) = self.taken.remove(place);
            let (kind, weight, now) = (permit.kind, permit.weight, self.now);
            permit.commit_part(sent.min(weight), now);
            for book in self.books(connection, kind) {
                book.pending -= weight;
                book.left.extend((0..sent.min(weight)).map(|_| now));
            }
        }

        fn take(&self, sleeper: &Sleeper) -> Instant {
            let Sleeper { connection, kind, weight, ref waiter, .. } = *sleeper;
            let states = self.connections[connection].states();
            let (is_urgent, now, waiter) = (true, self.now, Some(waiter));
            Request { states, kind, weight, is_urgent, now, waiter }.take()
        }

        fn send(&mut self, number: usize, connection: usize, kind: SendKind, weight: u32) {
            let (waiter, until) = (Arc::default(), self.now);
            let mut sleeper =
                Sleeper { number, connection, kind, weight, waiter, until, first: until };
            sleeper.until = self.take(&sleeper);
            // Others in front of it that have to wait for more limits may yet let it pass.
            let asks_no_more = |other: &Sleeper| {
                other.kind == SendKind::Sends
                    || (other.connection, other.kind) == (connection, kind)
            };
            if self.waiting.iter().all(asks_no_more) {
                sleeper.first = sleeper.until;
            }
            match sleeper.until <= self.now {
                true => self.waited(connection, kind, weight),
                false => self.waiting.push(sleeper),
            }
        }

        /// Lets all look who are awake, the last first, until all sleep. Those who have slept on
        /// must have had to.
        fn look(&mut self) {
            let mut passed: Vec<Sleeper> = Vec::new();
            for looks in 0.. {
                assert!(looks < 10_000, "they wake each other for ever");
                let is_awake = |sleeper: &Sleeper| {
                    std::mem::take(&mut sleeper.waiter.inner.lock().is_woken)
                        || sleeper.until <= self.now
                };
                let Some(place) = self.waiting.iter().rposition(is_awake) else { break };
                let until = self.take(&self.waiting[place]);
                self.waiting[place].until = until;
                if until <= self.now {
                    let sleeper = self.waiting.remove(place);
                    assert!(
                        !self.commits_at_once || sleeper.first <= self.now,
                        "it would have been refused wrongly"
                    );
                    self.waited(sleeper.connection, sleeper.kind, sleeper.weight);
                    passed.push(sleeper);
                }
            }
            for sleeper in &passed {
                let is_overtaken = |other: &Sleeper| {
                    (other.connection, other.kind) == (sleeper.connection, sleeper.kind)
                        && other.number < sleeper.number
                };
                assert!(!self.waiting.iter().any(is_overtaken), "one was overtaken");
            }
            if let Some(&Sleeper { connection, kind, weight, .. }) = self.waiting.first() {
                assert!(!self.has_room(connection, kind, weight, true), "one sleeps on");
            }
        }

        /// Lets all look who sleep: none of them has slept too long.
        fn check_sleepers(&mut self) {
            for place in 0..self.waiting.len() {
                let is_woken = self.waiting[place].waiter.inner.lock().is_woken;
                if !is_woken {
                    self.waiting[place].until = self.take(&self.waiting[place]);
                    assert!(self.waiting[place].until > self.now, "one has slept too long");
                }
            }
        }
    }

    enum Step {
        Pass(u64),
        Send { connection: usize, kind: SendKind, weight: u32 },
        TryAcquire { connection: usize, kind: SendKind, weight: u32 },
        Settle { place: usize, sent: u32 },
        GiveUp { place: usize },
        Check,
    }

    fn step(rng: &mut StdRng) -> Step {
        let connection = rng.random_range(0..2);
        let kind = if rng.random() { SendKind::Calls } else { SendKind::Sends };
        let weight = rng.random_range(1..4);
        match rng.random_range(0..9) {
            0 => Step::Pass(rng.random_range(0..2500)),
            1 => Step::Pass(rng.random_range(0..3)),
            2 | 3 => Step::Send { connection, kind, weight },
            4 => Step::TryAcquire { connection, kind, weight },
            5 => Step::Settle { place: rng.random_range(0..4), sent: rng.random_range(0..4) },
            6 => Step::Settle { place: rng.random_range(0..4), sent: 3 },
            7 => Step::GiveUp { place: rng.random_range(0..9) },
            _ => Step::Check,
        }
    }

    /// Adds one or two windows.
    fn with_windows(rng: &mut StdRng, limit: RateLimit) -> RateLimit {
        let limit = limit.margin(Duration::from_nanos(rng.random_range(0..300)));
        (0..rng.random_range(1..3)).fold(limit, |limit, _| {
            let per = Duration::from_nanos(rng.random_range(1..3000));
            limit.window(rng.random_range(3..8), per).keep(rng.random_range(0..3))
        })
    }

    /// No window is ever over; all limits are debited or none; nobody is overtaken by a message
    /// of the same kind on the same connection, sleeps on where there is room, or would have
    /// been refused wrongly.
    #[test]
    fn messages_pass_in_order_when_there_is_room_and_never_before() {
        property::check(1000, |rng| {
            let shared = with_windows(rng, RateLimit::shared());
            let own = RateLimit::per_connection().only(&[SendKind::Calls]);
            let own = with_windows(rng, own);
            let commits_at_once: bool = rng.random();
            let steps = property::vec(rng, 1..80, step);
            let mut simulation = Simulation::new(shared, own, commits_at_once);
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Pass(nanos) => {
                        // At each time for which one waits: nobody oversleeps.
                        let until = simulation.now + Duration::from_nanos(nanos);
                        loop {
                            let times = simulation.waiting.iter().map(|sleeper| sleeper.until);
                            match times.min().filter(|next| *next <= until) {
                                Some(next) => simulation.now = next,
                                None => break,
                            }
                            simulation.look();
                        }
                        simulation.now = until;
                    }
                    Step::Send { connection, kind, weight } => {
                        simulation.send(number, connection, kind, weight);
                    }
                    Step::TryAcquire { connection, kind, weight } => {
                        let limits = simulation.connections[connection].clone();
                        if let Ok(permit) = limits.try_acquire(kind, weight, simulation.now) {
                            simulation.passed(connection, permit, false);
                        } else if simulation.waiting.is_empty() {
                            let is_small = weight <= limits.weight_max(kind, false);
                            assert!(
                                !is_small || !simulation.has_room(connection, kind, weight, false)
                            );
                        }
                    }
                    Step::Settle { place, sent } if place < simulation.taken.len() => {
                        simulation.settle(place, sent);
                    }
                    Step::GiveUp { place }
                        if place < simulation.waiting.len() && !commits_at_once =>
                    {
                        let sleeper = simulation.waiting.remove(place);
                        let limits = &simulation.connections[sleeper.connection];
                        drop(Waits { limits, waiter: sleeper.waiter });
                    }
                    Step::Check => simulation.check_sleepers(),
                    Step::Settle { .. } | Step::GiveUp { .. } => {}
                }
                simulation.look();
            }
        });
    }

    #[test]
    fn two_saturated_connections_use_nine_tenths_of_what_they_share() {
        let shared = RateLimit::shared().window(10, SECOND);
        let own = one_per(150 * MS).margin(10 * MS);
        let mut simulation = Simulation::new(shared, own, true);
        let begin = simulation.now;
        for number in 0.. {
            if simulation.waiting.len() < 50 {
                simulation.send(number, number % 2, SendKind::Calls, 1);
                continue;
            }
            if simulation.now > begin + 60 * SECOND {
                break;
            }
            let times = simulation.waiting.iter().map(|sleeper| sleeper.until);
            simulation.now = times.min().expect("all of them wait");
            simulation.look();
        }
        assert!(simulation.passed >= 540, "{}", simulation.passed);
    }

    #[test]
    fn a_burst_of_one_connection_does_not_hold_up_another() {
        let shared = RateLimit::shared().window(10, SECOND);
        let mut simulation = Simulation::new(shared, one_per(10 * SECOND), true);
        for number in 0..20 {
            simulation.send(number, 0, SendKind::Calls, 1);
        }
        assert_eq!((simulation.passed, simulation.waiting.len()), (1, 19));
        simulation.send(20, 1, SendKind::Calls, 1);
        assert_eq!((simulation.passed, simulation.waiting.len()), (2, 19));
    }
}
