//! The life of a client's connections as a pure state machine: the time and the jitter are
//! arguments.
//!
//! ```text
//!               dialed             closing                over, can retry
//! Connecting ------------> Open ------------> Closing ------------------> Backoff
//!     |  ^                  |                    |                         |  |
//!     |  |                  '---- aborted -------|------------------------>|  |
//!     |  '---------------------------------------|-------- due ------------'  |
//!     '--- failed, can retry; postponed: Backoff |                            |
//!     '--- failed, cannot; stop -----> Closed <--'<------ given up; stop -----'
//! ```

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::runtime::backoff::Backoff;
use crate::time::after;

/// A connection that the program gave up is redialed at once if it was open this long.
const RECONNECT_AT_ONCE_AFTER: Duration = Duration::from_secs(1);

/// The state of a client's connection. Owned and moved by the reader thread.
#[derive(Clone, Debug)]
pub(crate) enum ReconnectState {
    /// A dial is under way, the `attempt`-th in a row (from 1) without a stable connection.
    Connecting { attempt: u32 },
    /// A connection is open.
    Open { epoch: u64, since: Instant, attempt: u32 },
    /// The closing handshake is under way. Its deadline is kept by the connection.
    Closing { then: AfterClose },
    /// The `attempt`-th dial starts at `until`.
    Backoff { attempt: u32, until: Instant },
    /// The end, which absorbs every input.
    Closed { reason: Error },
}

/// The way on after the closing handshake.
#[derive(Clone, Debug)]
pub(crate) enum AfterClose {
    Retry { attempt: u32, at: Instant },
    Closed { reason: Error },
}

/// An event in the life of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The dial succeeded, and brought the connection of this epoch.
    Dialed { epoch: u64 },
    /// The dial failed.
    Failed(Failure),
    /// The dial may not begin before this time.
    Postponed { until: Instant },
    /// The open connection has ended, or is closing.
    Ended { failure: Failure, is_closing: bool, by: EndedBy },
    /// The program has been asked, after the end of a connection at `ended_at` by `error`, what is
    /// to follow.
    Decided { decision: RetryDecision, error: Error, ended_at: Instant },
    /// The wait, or the closing handshake, is over.
    Due,
    /// A stop was requested.
    Stop,
}

/// The side that ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// The program, to have another: that is no failure, and counts against nothing.
    Program,
    /// The peer, the network or this client. The program may have marked it stable before.
    /// One whose opening script is not done never was stable.
    Peer { is_marked_stable: bool, is_ready: bool },
}

/// A failure, with everything that decides what follows it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) decision: RetryDecision,
    /// The place of the delay in its range: uniform in [0, 1).
    pub(crate) jitter: f64,
}

/// The decision that follows a failed dial or the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryDecision {
    /// Dial again after the usual backoff.
    Retry,
    /// Dial again after the usual backoff, but not before this long.
    RetryAfter(Duration),
    /// Dial again after the usual backoff, but not later than this.
    RetryWithin(Duration),
    /// End the client with this error.
    GiveUp,
}

/// The news that a move brings for the program.
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
    /// The number of dials in a row without a stable connection before the client gives up. 1 is a
    /// single dial, and no retry ever.
    pub(crate) max_attempts: Option<u32>,
}

/// The state of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// A dial is under way.
    Connecting {
        /// The number of this dial in a row without a stable connection, from 1.
        attempt: u32,
    },
    /// A connection is open.
    Open {
        /// The number of openings so far, from 1.
        epoch: u64,
    },
    /// The closing handshake is under way, or a stop was requested.
    Closing,
    /// No connection is open, and the next dial waits for its time.
    Backoff {
        /// The number of the next dial in a row without a stable connection.
        attempt: u32,
        /// The time at which that dial starts.
        until: Instant,
    },
    /// The client has ended.
    Closed,
}

impl From<&ReconnectState> for State {
    fn from(state: &ReconnectState) -> Self {
        match *state {
            ReconnectState::Connecting { attempt } => State::Connecting { attempt },
            ReconnectState::Open { epoch, .. } => State::Open { epoch },
            ReconnectState::Closing { .. } => State::Closing,
            ReconnectState::Backoff { attempt, until } => State::Backoff { attempt, until },
            ReconnectState::Closed { .. } => State::Closed,
        }
    }
}

impl ReconnectState {
    pub(crate) fn new() -> Self {
        ReconnectState::Connecting { attempt: 1 }
    }

    /// Returns `true` if a stop still changes anything.
    pub(crate) fn heeds_stop(&self) -> bool {
        !matches!(
            self,
            ReconnectState::Closed { .. }
                | ReconnectState::Closing { then: AfterClose::Closed { .. } }
        )
    }

    /// Returns the state after `input` at `now`, and what to tell the program. Inputs that make no
    /// sense in a state change nothing.
    pub(crate) fn on(
        self,
        input: Input,
        now: Instant,
        policy: &ReconnectPolicy,
    ) -> (ReconnectState, Action) {
        use ReconnectState::{Backoff, Closed, Closing, Connecting, Open};
        match (self, input) {
            (closed @ Closed { .. }, _) => (closed, Action::Nothing),

            (Connecting { attempt }, Input::Dialed { epoch }) => {
                (Open { epoch, since: now, attempt }, Action::TellOpened)
            }
            (Connecting { attempt }, Input::Failed(failure)) => {
                let error = failure.error.clone();
                let then = policy.after_failure(failure, attempt, now);
                let retry_in = then.retry_in(now);
                (then.into_state(), Action::TellFailed { attempt, error, retry_in })
            }

            (Connecting { attempt }, Input::Postponed { until }) => {
                (Backoff { attempt, until }, Action::Nothing)
            }

            (Open { since, attempt, .. }, Input::Ended { failure, is_closing, by }) => {
                let lasted = now.saturating_duration_since(since);
                let error = failure.error.clone();
                let then = match by {
                    EndedBy::Program => policy.after_reconnect(failure, attempt, lasted, now),
                    EndedBy::Peer { is_marked_stable, is_ready } => {
                        let is_stable =
                            is_ready && (is_marked_stable || lasted >= policy.stable_after);
                        policy.after_failure(failure, if is_stable { 0 } else { attempt }, now)
                    }
                };
                let retry_in = then.retry_in(now);
                let state = if is_closing { Closing { then } } else { then.into_state() };
                (state, Action::TellEnded { error, retry_in })
            }
            (Open { .. }, Input::Stop) => {
                let error = Error::stopped();
                let then = AfterClose::Closed { reason: error.clone() };
                (Closing { then }, Action::TellEnded { error, retry_in: None })
            }

            (Closing { then }, Input::Due) => (then.into_state(), Action::Nothing),
            (Closing { .. }, Input::Stop) => {
                let then = AfterClose::Closed { reason: Error::stopped() };
                (Closing { then }, Action::Nothing)
            }

            (Backoff { attempt, until }, Input::Decided { decision, error, ended_at }) => {
                // What was decided before takes the place of the backoff.
                let decided = until.saturating_duration_since(ended_at);
                let state = match decision.delay(decided) {
                    Some(delay) => Backoff { attempt, until: after(ended_at, delay) },
                    None => Closed { reason: error },
                };
                (state, Action::Nothing)
            }
            (Backoff { attempt, .. }, Input::Due) => (Connecting { attempt }, Action::Nothing),

            (Connecting { .. } | Backoff { .. }, Input::Stop) => {
                (Closed { reason: Error::stopped() }, Action::Nothing)
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
    /// Decides what follows a failure when the last `attempt` dials in a row brought no stable
    /// connection.
    ///
    /// After a stable connection `attempt` is 0, and the next dial is the first retry of a new row.
    fn after_failure(&self, failure: Failure, attempt: u32, now: Instant) -> AfterClose {
        let Failure { error, decision, jitter } = failure;
        let is_spent = self.max_attempts.is_some_and(|max| max <= 1 || attempt >= max);
        let backoff = self.backoff.delay(attempt.max(1), jitter);
        match decision.delay(backoff) {
            Some(delay) if !is_spent => {
                AfterClose::Retry { attempt: attempt.saturating_add(1), at: after(now, delay) }
            }
            _ => AfterClose::Closed { reason: error },
        }
    }

    /// Decides what follows the end of a connection that the program gave up: a dial at once, which
    /// counts no attempt. A program that asks again and again is slowed to the least delay.
    fn after_reconnect(
        &self,
        failure: Failure,
        attempt: u32,
        lasted: Duration,
        now: Instant,
    ) -> AfterClose {
        let delay = match lasted >= RECONNECT_AT_ONCE_AFTER {
            true => Duration::ZERO,
            false => self.backoff.delay(1, failure.jitter),
        };
        match failure.decision.delay(delay) {
            Some(delay) => AfterClose::Retry { attempt, at: after(now, delay) },
            None => AfterClose::Closed { reason: failure.error },
        }
    }
}

impl RetryDecision {
    /// The delay of the next dial, where the client by itself would wait for `backoff`; `None` when
    /// there is no next dial.
    fn delay(self, backoff: Duration) -> Option<Duration> {
        match self {
            RetryDecision::Retry => Some(backoff),
            RetryDecision::RetryAfter(floor) => Some(backoff.max(floor)),
            RetryDecision::RetryWithin(ceiling) => Some(backoff.min(ceiling)),
            RetryDecision::GiveUp => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const MS: Duration = Duration::from_millis(1);

    const POLICY: ReconnectPolicy = ReconnectPolicy {
        backoff: Backoff { min: Duration::from_millis(100), max: Duration::from_millis(1000) },
        stable_after: Duration::from_millis(50),
        max_attempts: None,
    };

    const PEER: EndedBy = EndedBy::Peer { is_marked_stable: false, is_ready: true };

    fn failure(decision: RetryDecision) -> Failure {
        Failure {
            error: Error::new(ErrorKind::Connect, "connecting to a:1"),
            decision,
            jitter: 1.0,
        }
    }

    fn decided(decision: RetryDecision, ended_at: Instant) -> Input {
        Input::Decided { decision, error: failure(decision).error, ended_at }
    }

    fn inputs(now: Instant) -> Vec<Input> {
        let mut inputs = vec![
            Input::Dialed { epoch: 1 },
            Input::Postponed { until: now + 7000 * MS },
            Input::Due,
            Input::Stop,
        ];
        for decision in
            [RetryDecision::Retry, RetryDecision::RetryAfter(7000 * MS), RetryDecision::GiveUp]
        {
            inputs.push(Input::Failed(failure(decision)));
            inputs.push(Input::Ended { failure: failure(decision), is_closing: false, by: PEER });
            inputs.push(Input::Ended { failure: failure(decision), is_closing: true, by: PEER });
            inputs.push(decided(decision, now));
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
            for input in inputs(now) {
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
        for_every_sequence(4, &POLICY, &mut |path| {
            let Some(stop) = path.iter().position(|(_, input, ..)| matches!(input, Input::Stop))
            else {
                return;
            };
            for (_, _, next, action) in &path[stop..] {
                assert!(
                    is_closed(next)
                        || matches!(
                            next,
                            ReconnectState::Closing { then: AfterClose::Closed { .. } }
                        )
                );
                assert!(!matches!(action, Action::TellOpened));
            }
        });
    }

    #[test]
    fn every_sequence_can_reach_closed_and_stays_there() {
        for_every_sequence(4, &POLICY, &mut |path| {
            let (_, _, state, _) = path.last().expect("a path has a step");
            let (stopping, _) = state.clone().on(Input::Stop, Instant::now(), &POLICY);
            let (over, _) = stopping.on(Input::Due, Instant::now(), &POLICY);
            assert!(is_closed(&over), "{path:?}");
            for input in inputs(Instant::now()) {
                let (still, action) = over.clone().on(input, Instant::now(), &POLICY);
                assert!(is_closed(&still) && matches!(action, Action::Nothing));
            }
        });
    }

    #[test]
    fn every_opening_has_exactly_one_end() {
        for_every_sequence(4, &POLICY, &mut |path| {
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
                ReconnectState::Closing { then: AfterClose::Retry { attempt, .. } } => {
                    Some(*attempt)
                }
                _ => None,
            }
        }
        for_every_sequence(4, &POLICY, &mut |path| {
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
                        ReconnectState::Closing { then: AfterClose::Retry { at, .. } } => *at,
                        other => panic!("it retries, and is {other:?}"),
                    };
                    // It ended when the wait began.
                    let lasted = next_dial.duration_since(*since) - *wait;
                    if lasted >= POLICY.stable_after { 1 } else { old + 1 }
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
            (state, _) = state.on(Input::Dialed { epoch: 1 }, now, &POLICY);
            let (next, action) = state.on(
                Input::Ended {
                    failure: failure(RetryDecision::Retry),
                    is_closing: false,
                    by: PEER,
                },
                now + MS,
                &POLICY,
            );
            let Action::TellEnded { retry_in: Some(wait), .. } = action else {
                panic!("it retries, not {action:?}")
            };
            waits.push(wait.as_millis());
            (state, _) = next.on(Input::Due, now, &POLICY);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn retry_after_is_a_floor_under_the_backoff() {
        let now = Instant::now();
        let (_, action) = ReconnectState::new().on(
            Input::Failed(failure(RetryDecision::RetryAfter(7000 * MS))),
            now,
            &POLICY,
        );
        assert!(
            matches!(action, Action::TellFailed { retry_in: Some(wait), .. } if wait == 7000 * MS)
        );
        let (_, action) = ReconnectState::new().on(
            Input::Failed(failure(RetryDecision::RetryAfter(MS))),
            now,
            &POLICY,
        );
        assert!(
            matches!(action, Action::TellFailed { retry_in: Some(wait), .. } if wait == 100 * MS)
        );
    }

    #[test]
    fn a_dial_that_is_postponed_waits_and_counts_once() {
        let now = Instant::now();
        let policy = ReconnectPolicy { max_attempts: Some(2), ..POLICY };
        let (mut state, mut until) = (ReconnectState::new(), now);
        for _ in 0..3 {
            until += 500 * MS;
            let (waiting, action) = state.on(Input::Postponed { until }, now, &policy);
            assert!(matches!(action, Action::Nothing));
            let ReconnectState::Backoff { attempt: 1, until: shown } = waiting else {
                panic!("it waits, and is {waiting:?}")
            };
            assert_eq!(shown, until);
            (state, _) = waiting.on(Input::Due, until, &policy);
        }
        let failed = Input::Failed(failure(RetryDecision::Retry));
        let (state, _) = state.on(failed, now, &policy);
        assert!(matches!(state, ReconnectState::Backoff { attempt: 2, .. }), "{state:?}");
    }

    #[test]
    fn max_attempts_counts_dials_in_a_row() {
        let now = Instant::now();
        for max in 1..5 {
            let policy = ReconnectPolicy { max_attempts: Some(max), ..POLICY };
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
        let policy = ReconnectPolicy { max_attempts: Some(1), ..POLICY };
        let (open, _) = ReconnectState::new().on(Input::Dialed { epoch: 1 }, now, &policy);
        let ended =
            Input::Ended { failure: failure(RetryDecision::Retry), is_closing: false, by: PEER };
        let (state, action) = open.on(ended, now + 1000 * MS, &policy);
        assert!(is_closed(&state));
        assert!(matches!(action, Action::TellEnded { retry_in: None, .. }));
    }

    #[test]
    fn a_stop_while_closing_is_followed_by_no_dial() {
        let now = Instant::now();
        let (open, _) = ReconnectState::new().on(Input::Dialed { epoch: 1 }, now, &POLICY);
        let ended =
            Input::Ended { failure: failure(RetryDecision::Retry), is_closing: true, by: PEER };
        let (closing, _) = open.on(ended, now, &POLICY);
        let (stopped, action) = closing.on(Input::Stop, now + 10 * MS, &POLICY);
        assert!(matches!(action, Action::Nothing));
        let then = |state| match state {
            ReconnectState::Closing { then: AfterClose::Closed { reason } } => Some(reason.kind()),
            _ => None,
        };
        assert_eq!(then(stopped), Some(ErrorKind::Stopped));
    }

    /// Dials, stays open for `lasted`, and ends by `by`; the wait before the next dial and its
    /// number.
    fn end(
        state: ReconnectState,
        lasted: Duration,
        by: EndedBy,
        policy: &ReconnectPolicy,
    ) -> (ReconnectState, Duration, u32) {
        let now = Instant::now();
        let (open, _) = state.on(Input::Dialed { epoch: 1 }, now, policy);
        let failure = failure(RetryDecision::Retry);
        let ended = Input::Ended { failure, is_closing: false, by };
        match open.on(ended, now + lasted, policy) {
            (
                ReconnectState::Backoff { attempt, until },
                Action::TellEnded { retry_in: Some(wait), .. },
            ) => {
                let (next, _) =
                    ReconnectState::Backoff { attempt, until }.on(Input::Due, until, policy);
                (next, wait, attempt)
            }
            other => panic!("it retries, and is {other:?}"),
        }
    }

    #[test]
    fn a_connection_that_the_program_gave_up_is_redialed_at_once_and_counts_no_attempt() {
        let policy = ReconnectPolicy {
            max_attempts: Some(1),
            stable_after: Duration::from_secs(30),
            ..POLICY
        };
        let mut state = ReconnectState::new();
        for _ in 0..10 {
            let (next, wait, attempt) =
                end(state, Duration::from_secs(1), EndedBy::Program, &policy);
            assert_eq!((wait, attempt), (Duration::ZERO, 1));
            state = next;
        }
        // Again and again, the program is slowed to one jitter of the least delay.
        for _ in 0..10 {
            let (next, wait, attempt) = end(state, 999 * MS, EndedBy::Program, &policy);
            assert_eq!((wait, attempt), (POLICY.backoff.min, 1));
            state = next;
        }
    }

    #[test]
    fn a_connection_that_is_marked_stable_resets_the_attempts() {
        let (state, ..) = end(ReconnectState::new(), MS, PEER, &POLICY);
        let (state, wait, attempt) = end(state, MS, PEER, &POLICY);
        assert_eq!((wait, attempt), (200 * MS, 3));
        let marked = EndedBy::Peer { is_marked_stable: true, is_ready: true };
        let (_, wait, attempt) = end(state, MS, marked, &POLICY);
        assert_eq!((wait, attempt), (100 * MS, 1));
    }

    #[test]
    fn a_decision_can_set_a_ceiling_over_the_backoff() {
        let now = Instant::now();
        for (ceiling, expected) in [(7 * MS, 7 * MS), (7000 * MS, 100 * MS)] {
            let failed = Input::Failed(failure(RetryDecision::RetryWithin(ceiling)));
            let (_, action) = ReconnectState::new().on(failed, now, &POLICY);
            let Action::TellFailed { retry_in, .. } = action else { panic!("{action:?}") };
            assert_eq!(retry_in, Some(expected));
        }
    }

    #[test]
    fn a_decision_before_a_reconnect_moves_the_dial_or_ends_the_client() {
        let ended_at = Instant::now();
        // The program takes longer to decide than the wait is.
        let (wait, now) = (100 * MS, ended_at + 500 * MS);
        let until = |decision| {
            let backoff = ReconnectState::Backoff { attempt: 3, until: ended_at + wait };
            match backoff.on(decided(decision, ended_at), now, &POLICY) {
                (ReconnectState::Backoff { attempt: 3, until }, Action::Nothing) => {
                    Some(until - ended_at)
                }
                (ReconnectState::Closed { reason }, Action::Nothing) => {
                    assert_eq!(reason.kind(), ErrorKind::Connect);
                    None
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(until(RetryDecision::Retry), Some(wait));
        assert_eq!(until(RetryDecision::RetryAfter(MS)), Some(wait));
        assert_eq!(until(RetryDecision::RetryAfter(7000 * MS)), Some(7000 * MS));
        assert_eq!(until(RetryDecision::RetryWithin(MS)), Some(MS));
        assert_eq!(until(RetryDecision::RetryWithin(7000 * MS)), Some(wait));
        assert_eq!(until(RetryDecision::GiveUp), None);
    }

    #[test]
    fn a_stop_changes_every_state_but_those_that_end_the_client_already() {
        let now = Instant::now();
        let closed = || AfterClose::Closed { reason: Error::stopped() };
        let retry = AfterClose::Retry { attempt: 2, at: now };
        for (state, heeds_stop) in [
            (ReconnectState::new(), true),
            (ReconnectState::Open { epoch: 1, since: now, attempt: 1 }, true),
            (ReconnectState::Backoff { attempt: 2, until: now }, true),
            (ReconnectState::Closing { then: retry }, true),
            (ReconnectState::Closing { then: closed() }, false),
            (ReconnectState::Closed { reason: Error::stopped() }, false),
        ] {
            assert_eq!(state.heeds_stop(), heeds_stop, "{state:?}");
        }
    }
}
