//! The life of a connection as a state machine: pure, `now` and the rng are arguments.
//!
//! ```text
//!               dialed            ended, polite           over, can retry
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

/// Where a connection is in its life. Owned and moved by the reader thread alone.
#[derive(Clone, Debug)]
pub(crate) enum ReconnectState {
    /// The `attempt`-th dial in a row (from 1) without a stable connection is under way.
    Connecting { attempt: u32 },
    /// A connection is open.
    Open { since: Instant, attempt: u32 },
    /// A close frame is on its way; input is read and dropped until the peer ends TCP or `until`.
    Closing { until: Instant, then: AfterClose },
    /// The `attempt`-th dial starts at `until`.
    Backoff { attempt: u32, until: Instant },
    /// The end. Absorbs everything.
    Closed { reason: Error },
}

/// What follows an ending.
#[derive(Clone, Debug)]
pub(crate) enum AfterClose {
    Retry { attempt: u32, at: Instant },
    Closed { reason: Error },
}

/// What happens to a connection.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The dial succeeded.
    Dialed,
    /// The dial failed.
    Failed(Failure),
    /// The open connection ended: at once, or politely, with a close frame still to be exchanged.
    Ended { failure: Failure, polite: bool },
    /// The wait, or the ending, is over.
    Due,
    /// The user wants no more.
    Stop,
}

/// A failure, with everything that decides what follows it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) decision: RetryDecision,
    /// Uniform in [0, 1): where in its range the delay falls.
    pub(crate) jitter: f64,
}

/// What to do after a dial failed or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryDecision {
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
    /// The connection ended; the next dial starts after `retry_in`, or never.
    TellEnded {
        error: Error,
        retry_in: Option<Duration>,
    },
}

/// The settings that the machine obeys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReconnectPolicy {
    pub(crate) backoff: Backoff,
    pub(crate) stable_after: Duration,
    /// Dials in a row without a stable connection before giving up. 1: a single dial, and no retry
    /// ever.
    pub(crate) max_attempts: Option<u32>,
    pub(crate) close_timeout: Duration,
}

impl ReconnectState {
    pub(crate) fn new() -> Self {
        ReconnectState::Connecting { attempt: 1 }
    }

    /// Whether a stop still changes anything.
    pub(crate) fn heeds_stop(&self) -> bool {
        !matches!(
            self,
            ReconnectState::Closed { .. }
                | ReconnectState::Closing { then: AfterClose::Closed { .. }, .. }
        )
    }

    /// The move that `input` causes at `now`, and what to tell the user. Inputs that make no sense
    /// in a state change nothing.
    pub(crate) fn on(
        self,
        input: Input,
        now: Instant,
        policy: &ReconnectPolicy,
    ) -> (ReconnectState, Action) {
        match (self, input) {
            (closed @ ReconnectState::Closed { .. }, _) => (closed, Action::Nothing),

            (ReconnectState::Connecting { attempt }, Input::Dialed) => {
                (ReconnectState::Open { since: now, attempt }, Action::TellOpened)
            }
            (ReconnectState::Connecting { attempt }, Input::Failed(failure)) => {
                let error = failure.error.clone();
                let then = policy.after(failure, attempt, now);
                let retry_in = then.retry_in(now);
                (then.into_state(), Action::TellFailed { attempt, error, retry_in })
            }

            (ReconnectState::Open { since, attempt }, Input::Ended { failure, polite }) => {
                let stable = now.saturating_duration_since(since) >= policy.stable_after;
                let error = failure.error.clone();
                let then = policy.after(failure, if stable { 0 } else { attempt }, now);
                let retry_in = then.retry_in(now);
                let state = if polite {
                    ReconnectState::Closing { until: after(now, policy.close_timeout), then }
                } else {
                    then.into_state()
                };
                (state, Action::TellEnded { error, retry_in })
            }
            (ReconnectState::Open { .. }, Input::Stop) => {
                let error = Error::stopped();
                let then = AfterClose::Closed { reason: error.clone() };
                (
                    ReconnectState::Closing { until: after(now, policy.close_timeout), then },
                    Action::TellEnded { error, retry_in: None },
                )
            }

            (ReconnectState::Closing { then, .. }, Input::Due) => {
                (then.into_state(), Action::Nothing)
            }
            (ReconnectState::Closing { until, .. }, Input::Stop) => (
                ReconnectState::Closing {
                    until,
                    then: AfterClose::Closed { reason: Error::stopped() },
                },
                Action::Nothing,
            ),

            (ReconnectState::Backoff { attempt, .. }, Input::Due) => {
                (ReconnectState::Connecting { attempt }, Action::Nothing)
            }

            (ReconnectState::Connecting { .. } | ReconnectState::Backoff { .. }, Input::Stop) => {
                (ReconnectState::Closed { reason: Error::stopped() }, Action::Nothing)
            }

            (state, _) => (state, Action::Nothing),
        }
    }
}

impl AfterClose {
    fn into_state(self) -> ReconnectState {
        match self {
            AfterClose::Retry { attempt, at } => ReconnectState::Backoff { attempt, until: at },
            AfterClose::Closed { reason } => ReconnectState::Closed { reason },
        }
    }

    fn retry_in(&self, now: Instant) -> Option<Duration> {
        match self {
            AfterClose::Retry { at, .. } => Some(at.saturating_duration_since(now)),
            AfterClose::Closed { .. } => None,
        }
    }
}

impl ReconnectPolicy {
    /// What follows a failure when the last `attempt` dials in a row brought no stable connection.
    ///
    /// After a stable connection `attempt` is 0, and the next dial is the first retry of a new row.
    fn after(&self, failure: Failure, attempt: u32, now: Instant) -> AfterClose {
        let Failure { error, decision, jitter } = failure;
        let spent = self.max_attempts.is_some_and(|max| max <= 1 || attempt >= max);
        let backoff = self.backoff.delay(attempt.max(1), jitter);
        let delay = match decision {
            RetryDecision::GiveUp => return AfterClose::Closed { reason: error },
            _ if spent => return AfterClose::Closed { reason: error },
            RetryDecision::Retry => backoff,
            RetryDecision::RetryAfter(floor) => backoff.max(floor),
        };
        AfterClose::Retry { attempt: attempt.saturating_add(1), at: after(now, delay) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const MS: Duration = Duration::from_millis(1);

    const RULES: ReconnectPolicy = ReconnectPolicy {
        backoff: Backoff { min: Duration::from_millis(100), max: Duration::from_millis(1000) },
        stable_after: Duration::from_millis(50),
        max_attempts: None,
        close_timeout: Duration::from_millis(20),
    };

    fn failure(decision: RetryDecision) -> Failure {
        Failure {
            error: Error::new(ErrorKind::Connect, "connecting to a:1"),
            decision,
            jitter: 1.0,
        }
    }

    fn inputs() -> Vec<Input> {
        let mut inputs = vec![Input::Dialed, Input::Due, Input::Stop];
        for decision in
            [RetryDecision::Retry, RetryDecision::RetryAfter(7000 * MS), RetryDecision::GiveUp]
        {
            inputs.push(Input::Failed(failure(decision)));
            inputs.push(Input::Ended { failure: failure(decision), polite: false });
            inputs.push(Input::Ended { failure: failure(decision), polite: true });
        }
        inputs
    }

    /// Calls `visit` for every sequence of inputs up to `depth`, each step either 1 ms or 60 ms (a
    /// stable while) after the one before.
    fn for_every_sequence(
        depth: usize,
        policy: &ReconnectPolicy,
        visit: &mut impl FnMut(&[(ReconnectState, Input, ReconnectState, Action)]),
    ) {
        fn descend(
            state: &ReconnectState,
            now: Instant,
            depth: usize,
            policy: &ReconnectPolicy,
            path: &mut Vec<(ReconnectState, Input, ReconnectState, Action)>,
            visit: &mut impl FnMut(&[(ReconnectState, Input, ReconnectState, Action)]),
        ) {
            if depth == 0 {
                return;
            }
            for input in inputs() {
                for step in [MS, 60 * MS] {
                    let now = now + step;
                    let (next, action) = state.clone().on(input.clone(), now, policy);
                    path.push((state.clone(), input.clone(), next.clone(), action));
                    visit(path);
                    descend(&next, now, depth - 1, policy, path, visit);
                    path.pop();
                }
            }
        }
        descend(&ReconnectState::new(), Instant::now(), depth, policy, &mut Vec::new(), visit);
    }

    fn is_closed(state: &ReconnectState) -> bool {
        matches!(state, ReconnectState::Closed { .. })
    }

    #[test]
    fn after_stop_no_sequence_dials_or_opens_again() {
        for_every_sequence(4, &RULES, &mut |path| {
            let Some(stop) = path.iter().position(|(_, input, ..)| matches!(input, Input::Stop))
            else {
                return;
            };
            for (_, _, next, action) in &path[stop..] {
                assert!(
                    is_closed(next)
                        || matches!(
                            next,
                            ReconnectState::Closing { then: AfterClose::Closed { .. }, .. }
                        )
                );
                assert!(!matches!(action, Action::TellOpened));
            }
        });
    }

    #[test]
    fn every_sequence_can_reach_closed_and_stays_there() {
        for_every_sequence(4, &RULES, &mut |path| {
            let (_, _, state, _) = path.last().expect("a path has a step");
            let (stopping, _) = state.clone().on(Input::Stop, Instant::now(), &RULES);
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
            let (_, _, state, _) = path.last().expect("a path has a step");
            assert_eq!(open, matches!(state, ReconnectState::Open { .. }));
        });
    }

    #[test]
    fn attempt_resets_only_after_a_stable_connection() {
        fn attempt_of(state: &ReconnectState) -> Option<u32> {
            match state {
                ReconnectState::Connecting { attempt }
                | ReconnectState::Open { attempt, .. }
                | ReconnectState::Backoff { attempt, .. } => Some(*attempt),
                ReconnectState::Closing { then: AfterClose::Retry { attempt, .. }, .. } => {
                    Some(*attempt)
                }
                _ => None,
            }
        }
        for_every_sequence(4, &RULES, &mut |path| {
            let (before, input, next, action) = path.last().expect("a path has a step");
            let (Some(old), Some(new)) = (attempt_of(before), attempt_of(next)) else { return };
            let expected = match (before, input, action) {
                (
                    ReconnectState::Open { since, .. },
                    Input::Ended { .. },
                    Action::TellEnded { retry_in: Some(wait), .. },
                ) => {
                    let next_dial = match next {
                        ReconnectState::Backoff { until, .. } => *until,
                        ReconnectState::Closing { then: AfterClose::Retry { at, .. }, .. } => *at,
                        other => panic!("it retries, and is {other:?}"),
                    };
                    // It ended when the wait began.
                    let lasted = next_dial.duration_since(*since) - *wait;
                    if lasted >= RULES.stable_after { 1 } else { old + 1 }
                }
                (ReconnectState::Connecting { .. }, Input::Failed(_), _) => old + 1,
                _ => old,
            };
            assert_eq!(new, expected, "{path:?}");
        });
    }

    #[test]
    fn a_server_that_accepts_and_drops_is_backed_off_from() {
        let now = Instant::now();
        let mut state = ReconnectState::new();
        let mut waits = Vec::new();
        for _ in 0..6 {
            (state, _) = state.on(Input::Dialed, now, &RULES);
            let (next, action) = state.on(
                Input::Ended { failure: failure(RetryDecision::Retry), polite: false },
                now + MS,
                &RULES,
            );
            let Action::TellEnded { retry_in: Some(wait), .. } = action else {
                panic!("it retries, not {action:?}")
            };
            waits.push(wait.as_millis());
            (state, _) = next.on(Input::Due, now, &RULES);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn retry_after_is_a_floor_under_the_backoff() {
        let now = Instant::now();
        let (_, action) = ReconnectState::new().on(
            Input::Failed(failure(RetryDecision::RetryAfter(7000 * MS))),
            now,
            &RULES,
        );
        assert!(
            matches!(action, Action::TellFailed { retry_in: Some(wait), .. } if wait == 7000 * MS)
        );
        let (_, action) = ReconnectState::new().on(
            Input::Failed(failure(RetryDecision::RetryAfter(MS))),
            now,
            &RULES,
        );
        assert!(
            matches!(action, Action::TellFailed { retry_in: Some(wait), .. } if wait == 100 * MS)
        );
    }

    #[test]
    fn max_attempts_counts_dials_in_a_row() {
        let now = Instant::now();
        for max in 1..5 {
            let policy = ReconnectPolicy { max_attempts: Some(max), ..RULES };
            let mut state = ReconnectState::new();
            let mut dials = 0;
            while !is_closed(&state) {
                dials += 1;
                let (next, action) =
                    state.on(Input::Failed(failure(RetryDecision::Retry)), now, &policy);
                assert_eq!(
                    matches!(action, Action::TellFailed { retry_in: None, .. }),
                    is_closed(&next)
                );
                (state, _) = next.on(Input::Due, now, &policy);
            }
            assert_eq!(dials, max);
        }
    }

    #[test]
    fn a_single_attempt_never_retries_even_after_a_stable_connection() {
        let now = Instant::now();
        let policy = ReconnectPolicy { max_attempts: Some(1), ..RULES };
        let (open, _) = ReconnectState::new().on(Input::Dialed, now, &policy);
        let ended = Input::Ended { failure: failure(RetryDecision::Retry), polite: false };
        let (state, action) = open.on(ended, now + 1000 * MS, &policy);
        assert!(is_closed(&state));
        assert!(matches!(action, Action::TellEnded { retry_in: None, .. }));
    }

    #[test]
    fn a_stop_during_an_ending_keeps_its_deadline() {
        let now = Instant::now();
        let (open, _) = ReconnectState::new().on(Input::Dialed, now, &RULES);
        let ended = Input::Ended { failure: failure(RetryDecision::Retry), polite: true };
        let (ending, _) = open.on(ended, now, &RULES);
        let (stopped, action) = ending.on(Input::Stop, now + 10 * MS, &RULES);
        assert!(matches!(action, Action::Nothing));
        assert!(
            matches!(stopped, ReconnectState::Closing { until, then: AfterClose::Closed { .. } } if until == now + 20 * MS)
        );
    }
}
