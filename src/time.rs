//! Points in time and deadlines. Nothing here reads a clock: `now` is an argument.

use std::time::{Duration, Instant};

use crate::error::{Error, Timeout};

/// The point in time by which an operation must be over, and the timeout that it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    budget: Duration,
    timeout: Timeout,
}

impl Deadline {
    /// The deadline of an operation that starts at `now` and may take `budget`, the length of
    /// `timeout`.
    pub(crate) fn new(timeout: Timeout, budget: Duration, now: Instant) -> Self {
        Deadline { at: after(now, budget), budget, timeout }
    }

    pub(crate) fn at(self) -> Instant {
        self.at
    }

    /// Returns what is left, or `None` when nothing is.
    pub(crate) fn left(self, now: Instant) -> Option<Duration> {
        Some(self.at.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    pub(crate) fn has_passed(self, now: Instant) -> bool {
        now >= self.at
    }

    /// Returns the earlier of the two.
    pub(crate) fn or_earlier(self, other: Deadline) -> Deadline {
        if other.at < self.at { other } else { self }
    }

    /// The error of an operation that was `context` when its time was over.
    pub(crate) fn error(self, context: &str) -> Error {
        Error::timed_out(self.timeout, self.budget, context)
    }
}

/// `now + wait`, and some thirty years ahead where that cannot be represented: `Duration::MAX`
/// means "never".
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(1_000_000_000);
    now.checked_add(wait.min(NEVER)).unwrap_or(now)
}

/// The earliest of the times that exist.
pub(crate) fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_deadline_knows_what_is_left_of_its_budget() {
        let now = Instant::now();
        let deadline = Deadline::new(Timeout::Connect, 5 * MS, now);
        assert_eq!(deadline.left(now + 2 * MS), Some(3 * MS));
        assert_eq!(deadline.left(now + 5 * MS), None);
        assert!(deadline.has_passed(now + 5 * MS) && !deadline.has_passed(now + 4 * MS));
        assert_eq!(
            deadline.error("connecting").to_string(),
            "timed out after 5ms (connect_timeout): connecting"
        );
    }

    #[test]
    fn a_deadline_that_never_comes_does_not_overflow() {
        let now = Instant::now();
        assert!(Deadline::new(Timeout::Send, Duration::MAX, now).left(now).is_some());
        assert!(after(now, Duration::MAX) > after(now, Duration::from_secs(900_000_000)));
        assert_eq!(after(now, 3 * MS), now + 3 * MS);
    }

    #[test]
    fn the_earliest_of_no_times_is_none() {
        let now = Instant::now();
        assert_eq!(earliest([]), None);
        assert_eq!(earliest([None, None]), None);
        assert_eq!(earliest([None, Some(now + MS), Some(now), None]), Some(now));
    }

    #[test]
    fn the_earlier_of_two_deadlines_brings_its_timeout() {
        let now = Instant::now();
        let connect = Deadline::new(Timeout::Connect, 5 * MS, now);
        let send = Deadline::new(Timeout::Send, 6 * MS, now);
        for earlier in [connect.or_earlier(send), send.or_earlier(connect)] {
            assert_eq!(earlier.at(), connect.at());
            assert_eq!(earlier.error("x").to_string(), connect.error("x").to_string());
        }
    }
}
