//! The machine in a model: threads that a scheduler interleaves as it likes, time that passes when
//! it says so, sockets and a TLS engine in memory, a server that follows a script. Built with
//! `--cfg shuttle` alone; see CONTRIBUTING.md.
//!
//! The code of the crate runs in it as it is: threads, board, queue, connection, heart and
//! supervisor. Everything they wait for comes from [`sync`], and comes down to two calls: [`block`]
//! and [`change`].
//!
//! Time is a thread. It moves the clock to the earliest deadline that somebody waits for: when
//! nobody else can run ([`Pace::WhenIdle`]), so that a lost wake-up shows as time that has passed,
//! or at any moment ([`Pace::AnyTime`]), as on a machine that is busy with other things.

pub(crate) mod dialer;
pub(crate) mod engine;
mod explorer;
pub(crate) mod socket;
pub(crate) mod sync;

#[cfg(test)]
mod checks;
#[cfg(test)]
mod mutation;

use std::cell::RefCell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub(crate) use explorer::{Explored, Pace, explore};

shuttle::lazy_static! {
    static ref WORLD: World = World::default();
}

/// What blocked threads wait for: that anything at all changes. Coarse, and so simple that it can
/// be trusted.
#[derive(Default)]
struct World {
    turn: shuttle::sync::Mutex<()>,
    changed: shuttle::sync::Condvar,
}

thread_local! {
    /// All threads of an execution are coroutines on one thread of the system, and change places
    /// only at calls of shuttle's.
    static FACTS: RefCell<Facts> = RefCell::default();
}

/// What is true in the world.
#[derive(Default)]
struct Facts {
    now: Duration,
    /// What somebody waits for at the moment.
    deadlines: Vec<Duration>,
    is_over: bool,
    sabotage: Option<Sabotage>,
    server: Option<dialer::Script>,
    dials: usize,
    pace: Pace,
    leaps: usize,
}

/// A fault put in on purpose, for the checks of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// A ring of a bell is lost.
    LoseWakeups,
    /// Nobody is told that the last sender of a channel has gone.
    LoseShutdown,
    /// A condition variable wakes nobody.
    LoseNotifications,
    /// Joining from one of the client's own threads waits like any other.
    JoinItself,
}

fn facts<T>(look: impl FnOnce(&mut Facts) -> T) -> T {
    FACTS.with_borrow_mut(look)
}

pub(crate) fn is_sabotaged(by: Sabotage) -> bool {
    facts(|facts| facts.sabotage == Some(by))
}

/// Puts a fault in for the rest of the execution.
#[cfg(test)]
pub(crate) fn sabotage(by: Sabotage) {
    facts(|facts| facts.sabotage = Some(by));
}

/// How much time has passed in this execution.
pub(crate) fn elapsed() -> Duration {
    facts(|facts| facts.now)
}

/// Whether time passes only while nobody can run: then durations are exact, and may be asserted.
#[cfg(test)]
pub(crate) fn is_exact() -> bool {
    facts(|facts| facts.pace == Pace::WhenIdle)
}

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// Waits until `ready` gives something. It is asked again after every [`change`], and a last time,
/// with `true`, when the deadline has passed: then it has to decide.
pub(crate) fn block<T>(
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
pub(crate) fn change<T>(act: impl FnOnce() -> T) -> T {
    let _turn = WORLD.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let result = act();
    WORLD.changed.notify_all();
    result
}
