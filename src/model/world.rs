//! The state that an execution shares: the time, who waits for it, and the fault injected on
//! purpose.
//!
//! Time moves to the earliest deadline that somebody waits for: when nobody else can run
//! ([`Pace::WhenIdle`]), so that a lost wake-up shows as time that has passed, or at any moment
//! ([`Pace::AnyTime`]), as on a machine that is busy with other things. The explorer's clock thread
//! moves it.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

shuttle::lazy_static! {
    static ref WORLD: World = World::default();
}

/// Wakes every blocked thread on any change. Coarse, and so simple that it can be trusted.
#[derive(Default)]
struct World {
    turn: shuttle::sync::Mutex<()>,
    changed: shuttle::sync::Condvar,
}

thread_local! {
    /// All threads of an execution are coroutines on one thread of the system, and switch only in
    /// calls to shuttle.
    static FACTS: RefCell<Facts> = RefCell::default();
}

/// The facts of one execution.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) now: Duration,
    /// The deadlines that somebody waits for at the moment.
    pub(super) deadlines: Vec<Duration>,
    /// The scenario has ended.
    pub(super) is_over: bool,
    pub(super) pace: Pace,
    /// The number of times that the clock moved while somebody could run.
    pub(super) leaps: usize,
    fault: Option<Fault>,
    /// The number of reads of a reader whose handler may be woken.
    pub(super) wakeable_reads: usize,
}

/// The moments at which time passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pace {
    /// Time passes when no other thread can run.
    #[default]
    WhenIdle,
    /// Time passes at any moment too, within the explorer's limits.
    AnyTime,
}

/// A fault of the primitives, injected to see whether the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Items that are sent on a channel without waiting are lost.
    LostWakeups,
    /// Signals to a reader that sleeps in `poll` are lost.
    LostSignals,
    /// Receivers are not told that the last sender has gone.
    LostDisconnects,
    /// Condition variables wake nobody.
    LostNotifications,
    /// Threads do not recognize themselves among the client's own.
    WrongThreadId,
}

/// Reads or changes the facts. `access` must not call shuttle.
pub(super) fn facts<T>(access: impl FnOnce(&mut Facts) -> T) -> T {
    FACTS.with_borrow_mut(access)
}

/// Injects a fault for the rest of the execution.
#[cfg(test)]
pub(super) fn inject(fault: Fault) {
    facts(|facts| facts.fault = Some(fault));
}

pub(super) fn is_injected(fault: Fault) -> bool {
    facts(|facts| facts.fault == Some(fault))
}

/// Returns the time that has passed in this execution.
pub(super) fn elapsed() -> Duration {
    facts(|facts| facts.now)
}

/// Returns whether durations are exact, so that they may be asserted: time passes only while nobody
/// can run.
#[cfg(test)]
pub(super) fn is_exact() -> bool {
    facts(|facts| facts.pace == Pace::WhenIdle)
}

/// Returns the instant at which every execution begins.
pub(super) fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// Waits until `ready` returns something.
///
/// `ready` is called again after every [`change`], and a last time, with `true`, once the deadline
/// has passed. `None` means that it had nothing to return then either.
pub(super) fn block<T>(
    deadline: Option<Instant>,
    mut ready: impl FnMut(bool) -> Option<T>,
) -> Option<T> {
    let deadline = deadline.map(|at| at.saturating_duration_since(origin()));
    let mut turn = WORLD.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    loop {
        let is_due = deadline.is_some_and(|at| elapsed() >= at);
        if let Some(result) = ready(is_due) {
            WORLD.changed.notify_all();
            return Some(result);
        }
        if is_due {
            return None;
        }
        facts(|facts| facts.deadlines.extend(deadline));
        turn = WORLD.changed.wait(turn).unwrap_or_else(|poisoned| poisoned.into_inner());
        facts(|facts| {
            let mine = facts.deadlines.iter().position(|at| Some(*at) == deadline);
            mine.map(|mine| facts.deadlines.swap_remove(mine));
        });
    }
}

/// Changes something that others may wait for.
pub(super) fn change<T>(act: impl FnOnce() -> T) -> T {
    let _turn = WORLD.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let result = act();
    WORLD.changed.notify_all();
    result
}
