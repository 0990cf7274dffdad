//! Runs a scenario under many schedules.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use shuttle::scheduler::{DfsScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use super::{Facts, WORLD, change, facts};

/// A scenario that takes more steps than this goes round in circles.
const STEPS_MAX: usize = 200_000;

/// How far time leaps ahead of those who can still run, and how often: less than a minute in all,
/// so that a scenario that allows for a minute is never late because of it.
const LEAP_MAX: Duration = Duration::from_secs(10);
pub(super) const LEAPS: usize = 5;

/// At any pace, the clock is let in at one step of so many.
const STEPS_PER_LEAP: u64 = 60;

/// When time passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    /// When nobody else can run.
    #[default]
    WhenIdle,
    /// At any moment too, now and then, up to [`LEAP_MAX`] at a time, [`LEAPS`] times.
    AnyTime,
}

/// How many schedules were tried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Explored {
    pub(crate) at_random: usize,
    pub(crate) one_by_one: usize,
}

/// Runs `scenario` under random schedules at both paces, and under as many as that enumerated depth
/// first. `MODEL_SCHEDULES` says how many, 200 by default.
///
/// # Panics
/// When `MODEL_SCHEDULES` is no number, when the scenario panics, when nobody can run any more, or
/// when somebody is left behind at its end. The failing schedule's seed is printed.
pub(crate) fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) -> Explored {
    let schedules = std::env::var("MODEL_SCHEDULES").map_or(200, |text| {
        // A slip of the pen must not pass for a thorough run.
        text.parse().unwrap_or_else(|_| panic!("MODEL_SCHEDULES is no number: {text}"))
    });
    let mut explored = Explored::default();
    for pace in [Pace::WhenIdle, Pace::AnyTime] {
        explored.at_random += run(RandomScheduler::new(schedules), pace, scenario.clone());
    }
    explored.one_by_one = run(DfsScheduler::new(Some(schedules), true), Pace::WhenIdle, scenario);
    eprintln!("{} schedules at random, {} one by one", explored.at_random, explored.one_by_one);
    explored
}

/// Whether one of up to `schedules` random schedules makes the scenario fail: for the checks of the
/// checks.
#[cfg(test)]
pub(crate) fn fails_within(schedules: usize, scenario: impl Fn() + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| {
        run(RandomScheduler::new(schedules), Pace::WhenIdle, scenario)
    }))
    .is_err()
}

fn run(
    scheduler: impl Scheduler + 'static,
    pace: Pace,
    scenario: impl Fn() + Send + Sync + 'static,
) -> usize {
    let mut config = Config::new();
    config.stack_size = 256 * 1024;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    let timed = Timed { inner: scheduler, pace };
    let _leftovers = Leftovers;
    Runner::new(timed, config).run(move || {
        facts(|facts| facts.pace = pace);
        let clock = shuttle::thread::spawn(keep_time);
        scenario();
        drop(facts(|facts| facts.server.take()));
        change(|| facts(|facts| facts.is_over = true));
        clock.join().expect("the clock stands still only when told to");
        facts(|facts| *facts = Facts::default());
    })
}

/// What a failed execution leaves behind belongs to a world that is gone: nothing of it may be
/// dropped.
struct Leftovers;

impl Drop for Leftovers {
    fn drop(&mut self) {
        std::mem::forget(facts(std::mem::take));
    }
}

thread_local! {
    /// Nobody but the clock can run.
    static IS_IDLE: Cell<bool> = const { Cell::new(false) };
}

/// The thread that is time. The first that the scenario starts.
fn keep_time() {
    loop {
        let is_over = change(|| {
            facts(|facts| {
                let next = facts.deadlines.iter().min().copied();
                if let Some(next) = next.filter(|next| IS_IDLE.get() || facts.may_leap_to(*next)) {
                    facts.leaps += usize::from(!IS_IDLE.get());
                    facts.now = facts.now.max(next);
                } else if next.is_some() {
                    // Too far for a leap: those who can run go on.
                } else if IS_IDLE.get() && !facts.is_over {
                    panic!("deadlock: nobody can run, and nobody waits for a time");
                }
                facts.is_over
            })
        });
        if is_over {
            return;
        }
        shuttle::thread::yield_now();
    }
}

impl Facts {
    fn may_leap_to(&self, next: Duration) -> bool {
        self.leaps < LEAPS && next <= self.now + LEAP_MAX
    }
}

/// Another scheduler, for all threads but the clock.
struct Timed<S> {
    inner: S,
    pace: Pace,
}

impl<S: Scheduler> Scheduler for Timed<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.inner.new_execution()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let clock = TaskId::from(1);
        let others: Vec<&Task> =
            runnable.iter().copied().filter(|task| task.id() != clock).collect();
        IS_IDLE.set(others.is_empty());
        let leaps = self.pace == Pace::AnyTime && others.len() < runnable.len();
        if others.is_empty() || (leaps && self.inner.next_u64() % STEPS_PER_LEAP == 0) {
            return Some(clock);
        }
        self.inner.next_task(&others, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}
