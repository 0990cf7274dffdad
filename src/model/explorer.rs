//! Runs a scenario under many schedules.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use shuttle::scheduler::{DfsScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use super::dialer::{Server, take_server};
use super::world::{Facts, Pace, change, facts};

/// The number of steps after which a scenario counts as a livelock.
const STEPS_MAX: usize = 200_000;

/// The limits of a leap of time while others can run, and of the number of leaps: less than a
/// minute in all, so that a scenario that allows for a minute is never late because of them.
const LEAP_MAX: Duration = Duration::from_secs(10);
pub(super) const LEAPS: usize = 5;

/// At [`Pace::AnyTime`] the clock runs at one of this many steps.
const STEPS_PER_LEAP: u64 = 60;

/// Runs `scenario` under random schedules at both paces, and under as many schedules enumerated
/// depth first. The variable `MODEL_SCHEDULES` is the number of each, 200 by default.
///
/// # Panics
/// It panics when `MODEL_SCHEDULES` is not a number, when the scenario panics, when no thread can
/// run any more, or when a thread is left at its end. The failing schedule's seed is printed.
pub(super) fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = std::env::var("MODEL_SCHEDULES").map_or(200, |text| {
        // A typing error must not pass for a thorough run.
        text.parse().unwrap_or_else(|_| panic!("MODEL_SCHEDULES is not a number: {text}"))
    });
    let at_random: usize = [Pace::WhenIdle, Pace::AnyTime]
        .map(|pace| run(RandomScheduler::new(schedules), pace, scenario.clone()))
        .iter()
        .sum();
    let enumerated = run(DfsScheduler::new(Some(schedules), true), Pace::WhenIdle, scenario);
    eprintln!("{at_random} random schedules, {enumerated} enumerated");
}

/// Returns whether one of up to `schedules` random schedules makes the scenario fail.
pub(super) fn fails_within(schedules: usize, scenario: impl Fn() + Send + Sync + 'static) -> bool {
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
    let _forget = ForgetLeftovers;
    Runner::new(timed, config).run(move || {
        facts(|facts| facts.pace = pace);
        let clock = shuttle::thread::spawn(run_clock);
        scenario();
        drop(take_server());
        change(|| facts(|facts| facts.is_over = true));
        clock.join().expect("the clock ends only when told to");
        facts(|facts| *facts = Facts::default());
    })
}

/// Forgets the state of a failed execution. Dropping its values would call into a scheduler that is
/// gone.
struct ForgetLeftovers;

impl Drop for ForgetLeftovers {
    fn drop(&mut self) {
        let leftovers: (Facts, Server) = (facts(std::mem::take), take_server());
        std::mem::forget(leftovers);
    }
}

thread_local! {
    /// No thread but the clock can run.
    static IS_IDLE: Cell<bool> = const { Cell::new(false) };
}

/// The clock thread, the first that an execution starts.
fn run_clock() {
    loop {
        let is_over = change(|| {
            facts(|facts| {
                let next = facts.deadlines.iter().min().copied();
                if let Some(next) = next.filter(|next| IS_IDLE.get() || facts.may_leap_to(*next)) {
                    facts.leaps += usize::from(!IS_IDLE.get());
                    facts.now = facts.now.max(next);
                } else if next.is_some() {
                    // Too far for a leap: whoever can run goes on.
                } else if IS_IDLE.get() && !facts.is_over {
                    panic!("deadlock: no thread can run, and none waits for a time");
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

/// Schedules the clock by the pace, and all other threads by another scheduler.
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
