//! The life of a line as a state machine: pure, `now` and the dice are arguments.
//!
//! ```text
//!               dialled            ended, polite           over, can retry
//! Connecting ------------> Open ------------------> Ending ----------------> Waiting
//!     |  ^                  |                         |                       |  |
//!     |  |                  '------ ended at once ----|---------------------->|  |
//!     |  '--------------------------------------------|------ due ------------'  |
//!     '--- failed, can retry: Waiting                 |                          |
//!     '--- failed, cannot; stop --------> Closed <----'<---------- stop ---------'
//! ```

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::time::{Backoff, after};

/// Where a line is in its life. Owned and moved by the reader thread alone.
#[derive(Clone, Debug)]
pub(crate) enum Life {
    /// The `attempt`-th dial in a row (from 1) without a stable line is under way.
    Connecting { attempt: u32 },
    /// A line is open.
    Open { since: Instant, attempt: u32 },
    /// A close frame is on its way; input is read and dropped until the peer ends TCP or `until`.
    Ending { until: Instant, then: Then },
    /// The `attempt`-th dial starts at `until`.
    Waiting { attempt: u32, until: Instant },
    /// The end. Absorbs everything.
    Closed { reason: Error },
}

/// What follows an ending.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    Retry { attempt: u32, at: Instant },
    Closed { reason: Error },
}

/// What happens to a line.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The dial succeeded.
    Dialled,
    /// The dial failed.
    Failed(Setback),
    /// The open line ended: at once, or politely, with a close frame still to be exchanged.
    Ended { setback: Setback, polite: bool },
    /// The wait, or the ending, is over.
    Due,
    /// The user wants no more.
    Stop,
}

/// A failure, with everything that decides what follows it.
#[derive(Clone, Debug)]
pub(crate) struct Setback {
    pub(crate) error: Error,
    pub(crate) verdict: Verdict,
    /// Uniform in [0, 1): where in its range the delay falls.
    pub(crate) jitter: f64,
}

/// What to do after a dial failed or a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Dial again after the usual backoff.
    Retry,
    /// Dial again after the usual backoff, and not before this long.
    RetryAfter(Duration),
    /// End the client with this error.
    GiveUp,
}

/// What the reader has to tell the user about a move.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Nothing,
    TellOpened,
    /// The dial failed; the next one starts after `retry_in`, or never.
    TellFailed {
        attempt: u32,
        error: Error,
        retry_in: Option<Duration>,
    },
    /// The line ended; the next dial starts after `retry_in`, or never.
    TellEnded {
        error: Error,
        retry_in: Option<Duration>,
    },
}

/// The settings that the machine obeys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) backoff: Backoff,
    pub(crate) stable_after: Duration,
    /// Dials in a row without a stable line before giving up. 1: a single dial, and no retry ever.
    pub(crate) max_attempts: Option<u32>,
    pub(crate) close_within: Duration,
}

impl Life {
    pub(crate) fn new() -> Self {
        Life::Connecting { attempt: 1 }
    }

    /// Whether a stop still changes anything.
    pub(crate) fn heeds_stop(&self) -> bool {
        !matches!(self, Life::Closed { .. } | Life::Ending { then: Then::Closed { .. }, .. })
    }

    /// The move that `input` causes at `now`, and what to tell the user. Inputs that make no sense in a state change nothing.
    pub(crate) fn on(self, input: Input, now: Instant, rules: &Rules) -> (Life, Action) {
        match (self, input) {
            (closed @ Life::Closed { .. }, _) => (closed, Action::Nothing),

            (Life::Connecting { attempt }, Input::Dialled) => (Life::Open { since: now, attempt }, Action::TellOpened),
            (Life::Connecting { attempt }, Input::Failed(setback)) => {
                let error = setback.error.clone();
                let then = rules.after(setback, attempt, now);
                let retry_in = then.retry_in(now);
                (then.into_life(), Action::TellFailed { attempt, error, retry_in })
            }

            (Life::Open { since, attempt }, Input::Ended { setback, polite }) => {
                let stable = now.saturating_duration_since(since) >= rules.stable_after;
                let error = setback.error.clone();
                let then = rules.after(setback, if stable { 0 } else { attempt }, now);
                let retry_in = then.retry_in(now);
                let life = if polite {
                    Life::Ending { until: after(now, rules.close_within), then }
                } else {
                    then.into_life()
                };
                (life, Action::TellEnded { error, retry_in })
            }
            (Life::Open { .. }, Input::Stop) => {
                let error = Error::stopped();
                let then = Then::Closed { reason: error.clone() };
                (
                    Life::Ending { until: after(now, rules.close_within), then },
                    Action::TellEnded { error, retry_in: None },
                )
            }

            (Life::Ending { then, .. }, Input::Due) => (then.into_life(), Action::Nothing),
            (Life::Ending { until, .. }, Input::Stop) => {
                (Life::Ending { until, then: Then::Closed { reason: Error::stopped() } }, Action::Nothing)
            }

            (Life::Waiting { attempt, .. }, Input::Due) => (Life::Connecting { attempt }, Action::Nothing),

            (Life::Connecting { .. } | Life::Waiting { .. }, Input::Stop) => {
                (Life::Closed { reason: Error::stopped() }, Action::Nothing)
            }

            (life, _) => (life, Action::Nothing),
        }
    }
}

impl Then {
    fn into_life(self) -> Life {
        match self {
            Then::Retry { attempt, at } => Life::Waiting { attempt, until: at },
            Then::Closed { reason } => Life::Closed { reason },
        }
    }

    fn retry_in(&self, now: Instant) -> Option<Duration> {
        match self {
            Then::Retry { at, .. } => Some(at.saturating_duration_since(now)),
            Then::Closed { .. } => None,
        }
    }
}

impl Rules {
    /// What follows a setback when the last `attempt` dials in a row brought no stable line.
    ///
    /// After a stable line `attempt` is 0, and the next dial is the first retry of a new row.
    fn after(&self, setback: Setback, attempt: u32, now: Instant) -> Then {
        let Setback { error, verdict, jitter } = setback;
        let spent = self.max_attempts.is_some_and(|max| max <= 1 || attempt >= max);
        let backoff = self.backoff.delay(attempt.max(1), jitter);
        let delay = match verdict {
            Verdict::GiveUp => return Then::Closed { reason: error },
            _ if spent => return Then::Closed { reason: error },
            Verdict::Retry => backoff,
            Verdict::RetryAfter(floor) => backoff.max(floor),
        };
        Then::Retry { attempt: attempt.saturating_add(1), at: after(now, delay) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const MS: Duration = Duration::from_millis(1);

    const RULES: Rules = Rules {
        backoff: Backoff { min: Duration::from_millis(100), max: Duration::from_millis(1000) },
        stable_after: Duration::from_millis(50),
        max_attempts: None,
        close_within: Duration::from_millis(20),
    };

    fn setback(verdict: Verdict) -> Setback {
        Setback { error: Error::new(ErrorKind::Connect, "connecting to a:1"), verdict, jitter: 1.0 }
    }

    fn inputs() -> Vec<Input> {
        let mut inputs = vec![Input::Dialled, Input::Due, Input::Stop];
        for verdict in [Verdict::Retry, Verdict::RetryAfter(7000 * MS), Verdict::GiveUp] {
            inputs.push(Input::Failed(setback(verdict)));
            inputs.push(Input::Ended { setback: setback(verdict), polite: false });
            inputs.push(Input::Ended { setback: setback(verdict), polite: true });
        }
        inputs
    }

    /// Calls `visit` for every sequence of inputs up to `depth`, each step either 1 ms or 60 ms (a stable while) after the one before.
    fn for_every_sequence(depth: usize, rules: &Rules, visit: &mut impl FnMut(&[(Life, Input, Life, Action)])) {
        fn descend(
            life: &Life,
            now: Instant,
            depth: usize,
            rules: &Rules,
            path: &mut Vec<(Life, Input, Life, Action)>,
            visit: &mut impl FnMut(&[(Life, Input, Life, Action)]),
        ) {
            if depth == 0 {
                return;
            }
            for input in inputs() {
                for step in [MS, 60 * MS] {
                    let now = now + step;
                    let (next, action) = life.clone().on(input.clone(), now, rules);
                    path.push((life.clone(), input.clone(), next.clone(), action));
                    visit(path);
                    descend(&next, now, depth - 1, rules, path, visit);
                    path.pop();
                }
            }
        }
        descend(&Life::new(), Instant::now(), depth, rules, &mut Vec::new(), visit);
    }

    fn is_closed(life: &Life) -> bool {
        matches!(life, Life::Closed { .. })
    }

    #[test]
    fn after_stop_no_sequence_dials_or_opens_again() {
        for_every_sequence(4, &RULES, &mut |path| {
            let Some(stop) = path.iter().position(|(_, input, ..)| matches!(input, Input::Stop)) else { return };
            for (_, _, next, action) in &path[stop..] {
                assert!(is_closed(next) || matches!(next, Life::Ending { then: Then::Closed { .. }, .. }));
                assert!(!matches!(action, Action::TellOpened));
            }
        });
    }

    #[test]
    fn every_sequence_can_reach_closed_and_stays_there() {
        for_every_sequence(4, &RULES, &mut |path| {
            let (_, _, life, _) = path.last().expect("a path has a step");
            let (stopping, _) = life.clone().on(Input::Stop, Instant::now(), &RULES);
            let (over, _) = stopping.on(Input::Due, Instant::now(), &RULES);
            assert!(is_closed(&over), "{path:?}");
            for input in inputs() {
                let (still, action) = over.clone().on(input, Instant::now(), &RULES);
                assert!(is_closed(&still) && matches!(action, Action::Nothing));
            }
        });
    }

    #[test]
    fn every_opening_has_exactly_one_end() {
        for_every_sequence(4, &RULES, &mut |path| {
            let mut open = false;
            for (_, _, _, action) in path {
                match action {
                    Action::TellOpened => assert!(!std::mem::replace(&mut open, true)),
                    Action::TellEnded { .. } => assert!(std::mem::replace(&mut open, false)),
                    _ => {}
                }
            }
            let (_, _, life, _) = path.last().expect("a path has a step");
            assert_eq!(open, matches!(life, Life::Open { .. }));
        });
    }

    #[test]
    fn attempt_resets_only_after_a_stable_line() {
        fn attempt_of(life: &Life) -> Option<u32> {
            match life {
                Life::Connecting { attempt } | Life::Open { attempt, .. } | Life::Waiting { attempt, .. } => {
                    Some(*attempt)
                }
                Life::Ending { then: Then::Retry { attempt, .. }, .. } => Some(*attempt),
                _ => None,
            }
        }
        for_every_sequence(4, &RULES, &mut |path| {
            let (before, input, next, action) = path.last().expect("a path has a step");
            let (Some(old), Some(new)) = (attempt_of(before), attempt_of(next)) else { return };
            let expected = match (before, input, action) {
                (Life::Open { since, .. }, Input::Ended { .. }, Action::TellEnded { retry_in: Some(wait), .. }) => {
                    let next_dial = match next {
                        Life::Waiting { until, .. } => *until,
                        Life::Ending { then: Then::Retry { at, .. }, .. } => *at,
                        other => panic!("it retries, and is {other:?}"),
                    };
                    // It ended when the wait began.
                    let lasted = next_dial.duration_since(*since) - *wait;
                    if lasted >= RULES.stable_after { 1 } else { old + 1 }
                }
                (Life::Connecting { .. }, Input::Failed(_), _) => old + 1,
                _ => old,
            };
            assert_eq!(new, expected, "{path:?}");
        });
    }

    #[test]
    fn a_server_that_accepts_and_drops_is_backed_off_from() {
        let now = Instant::now();
        let mut life = Life::new();
        let mut waits = Vec::new();
        for _ in 0..6 {
            (life, _) = life.on(Input::Dialled, now, &RULES);
            let (next, action) =
                life.on(Input::Ended { setback: setback(Verdict::Retry), polite: false }, now + MS, &RULES);
            let Action::TellEnded { retry_in: Some(wait), .. } = action else { panic!("it retries, not {action:?}") };
            waits.push(wait.as_millis());
            (life, _) = next.on(Input::Due, now, &RULES);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn retry_after_is_a_floor_under_the_backoff() {
        let now = Instant::now();
        let (_, action) = Life::new().on(Input::Failed(setback(Verdict::RetryAfter(7000 * MS))), now, &RULES);
        assert!(matches!(action, Action::TellFailed { retry_in: Some(wait), .. } if wait == 7000 * MS));
        let (_, action) = Life::new().on(Input::Failed(setback(Verdict::RetryAfter(MS))), now, &RULES);
        assert!(matches!(action, Action::TellFailed { retry_in: Some(wait), .. } if wait == 100 * MS));
    }

    #[test]
    fn max_attempts_counts_dials_in_a_row() {
        let now = Instant::now();
        for max in 1..5 {
            let rules = Rules { max_attempts: Some(max), ..RULES };
            let mut life = Life::new();
            let mut dials = 0;
            while !is_closed(&life) {
                dials += 1;
                let (next, action) = life.on(Input::Failed(setback(Verdict::Retry)), now, &rules);
                assert_eq!(matches!(action, Action::TellFailed { retry_in: None, .. }), is_closed(&next));
                (life, _) = next.on(Input::Due, now, &rules);
            }
            assert_eq!(dials, max);
        }
    }

    #[test]
    fn a_single_attempt_never_retries_even_after_a_stable_line() {
        let now = Instant::now();
        let rules = Rules { max_attempts: Some(1), ..RULES };
        let (open, _) = Life::new().on(Input::Dialled, now, &rules);
        let ended = Input::Ended { setback: setback(Verdict::Retry), polite: false };
        let (life, action) = open.on(ended, now + 1000 * MS, &rules);
        assert!(is_closed(&life));
        assert!(matches!(action, Action::TellEnded { retry_in: None, .. }));
    }

    #[test]
    fn a_stop_during_an_ending_keeps_its_deadline() {
        let now = Instant::now();
        let (open, _) = Life::new().on(Input::Dialled, now, &RULES);
        let ended = Input::Ended { setback: setback(Verdict::Retry), polite: true };
        let (ending, _) = open.on(ended, now, &RULES);
        let (stopped, action) = ending.on(Input::Stop, now + 10 * MS, &RULES);
        assert!(matches!(action, Action::Nothing));
        assert!(matches!(stopped, Life::Ending { until, then: Then::Closed { .. } } if until == now + 20 * MS));
    }
}
