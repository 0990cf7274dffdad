//! Deadlines, backoff and ping schedules: pure, `now` is an argument.

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

    /// What is left, or `None` when nothing is.
    pub(crate) fn left(self, now: Instant) -> Option<Duration> {
        Some(self.at.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    pub(crate) fn has_passed(self, now: Instant) -> bool {
        now >= self.at
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

/// How long to wait before dialing again: capped exponential growth with full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// The wait before the `retry`-th retry in a row (from 1): uniform in `[0, min(max, min *
    /// 2^(retry-1))]`, with `jitter` in [0, 1).
    ///
    /// With 250 ms and 30 s the ceilings are 250 ms, 500 ms, 1 s, 2 s, 4 s, 8 s, 16 s, 30 s, 30 s,
    /// ...
    pub(crate) fn delay(&self, retry: u32, jitter: f64) -> Duration {
        self.ceiling(retry).mul_f64(jitter.clamp(0.0, 1.0))
    }

    fn ceiling(&self, retry: u32) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        self.min.saturating_mul(1 << doublings).min(self.max)
    }
}

/// When the next ping is due. Missed times are skipped, so that a machine that slept does not wake
/// up to a burst of pings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PingSchedule {
    every: Option<Duration>,
    next: Option<Instant>,
}

impl PingSchedule {
    /// A schedule that starts at `now`, its first ping due after one interval. `None` never pings.
    pub(crate) fn new(every: Option<Duration>, now: Instant) -> Self {
        PingSchedule { every, next: every.map(|every| after(now, every)) }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether a ping is due. If so the schedule moves on to its first time after `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        let (Some(every), Some(next)) = (self.every, self.next) else { return false };
        if now < next {
            return false;
        }
        // The rhythm is kept (15, 30, 45, ...) unless a time was missed: then it starts anew from
        // now.
        let following = after(next, every);
        self.next = Some(if following > now { following } else { after(now, every) });
        true
    }

    /// Starts the interval again from `now`: for pings that are sent only when it is quiet.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.next = self.every.map(|every| after(now, every));
    }
}

/// When a connection must be given up, from what is known of pings and bytes. All times are points
/// in time; see [`Liveness::verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Liveness {
    /// When the oldest unanswered ping was written.
    pub(crate) oldest_unanswered: Option<Instant>,
    /// When the reader last went into `recv`; `None` while it is elsewhere (a busy handler, a full
    /// queue).
    pub(crate) in_recv_since: Option<Instant>,
    /// When the last data message had been delivered.
    pub(crate) last_data: Instant,
    /// When this process last came round from a sleep in which nobody could have read anything.
    pub(crate) awake_since: Option<Instant>,
}

/// What [`Liveness`] says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LivenessStatus {
    /// Look again at this time, at the latest. `None`: only when something changes.
    Alive(Option<Instant>),
    /// A ping went unanswered for too long, and nothing else came.
    PongOverdue,
    /// No data for too long.
    Idle,
}

impl Liveness {
    /// The judgement at `now`.
    ///
    /// The pong limit runs from the oldest unanswered ping's write, and starts again whenever the
    /// reader enters `recv`: it does so after every byte that arrives, and it stands still while
    /// the reader is elsewhere, for then nobody could have seen the pong. A ping written at 0 s
    /// with a limit of 10 s and a byte at 9 s: overdue at 19 s. Both limits start again after a
    /// sleep: what the peer said meanwhile lies unread in the kernel.
    pub(crate) fn status(
        &self,
        pong_timeout: Duration,
        idle_timeout: Option<Duration>,
        now: Instant,
    ) -> LivenessStatus {
        let awake = |at: Instant| self.awake_since.map_or(at, |since| since.max(at));
        let pong_due = match (self.oldest_unanswered, self.in_recv_since) {
            (Some(written), Some(since)) => Some(after(awake(written.max(since)), pong_timeout)),
            _ => None,
        };
        let idle_due = match (idle_timeout, self.in_recv_since) {
            (Some(limit), Some(_)) => Some(after(awake(self.last_data), limit)),
            _ => None,
        };
        if pong_due.is_some_and(|due| now >= due) {
            return LivenessStatus::PongOverdue;
        }
        if idle_due.is_some_and(|due| now >= due) {
            return LivenessStatus::Idle;
        }
        LivenessStatus::Alive(earliest([pong_due, idle_due]))
    }
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
    }

    #[test]
    fn backoff_doubles_to_its_cap_and_jitters_over_the_whole_range() {
        let backoff = Backoff { min: 250 * MS, max: 30_000 * MS };
        for retry in 1..=100u32 {
            let ceiling = (250u64 << (retry - 1).min(20)).min(30_000);
            assert_eq!(backoff.delay(retry, 0.0), Duration::ZERO);
            assert_eq!(backoff.delay(retry, 0.5), Duration::from_millis(ceiling) / 2);
            assert_eq!(backoff.delay(retry, 1.0), Duration::from_millis(ceiling));
        }
        let huge = Backoff { min: Duration::MAX, max: Duration::MAX };
        assert_eq!(huge.delay(u32::MAX, 0.0), Duration::ZERO);
    }

    #[test]
    fn pings_keep_their_rhythm_and_missed_ones_are_skipped() {
        let start = Instant::now();
        let mut schedule = PingSchedule::new(Some(10 * MS), start);
        assert!(!schedule.take_due(start + 9 * MS));
        assert!(schedule.take_due(start + 12 * MS));
        assert_eq!(schedule.next(), Some(start + 20 * MS));
        assert!(schedule.take_due(start + 1000 * MS));
        assert!(!schedule.take_due(start + 1000 * MS));
        assert_eq!(schedule.next(), Some(start + 1010 * MS));
    }

    #[test]
    fn a_schedule_without_an_interval_never_pings() {
        let start = Instant::now();
        let mut schedule = PingSchedule::new(None, start);
        assert!(!schedule.take_due(start + Duration::from_secs(1_000_000)));
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn liveness_over_every_combination_of_ping_recv_and_data_times() {
        let start = Instant::now();
        let at = |ms: u32| start + ms * MS;
        let times = [None, Some(0), Some(5), Some(9), Some(15)];
        for ping in times {
            for recv in times {
                for (data, woke) in
                    [(0, None), (7, None), (20, None), (0, Some(3)), (7, Some(12)), (20, Some(25))]
                {
                    for now in 0..60 {
                        for idle in [None, Some(12 * MS)] {
                            let liveness = Liveness {
                                oldest_unanswered: ping.map(at),
                                in_recv_since: recv.map(at),
                                last_data: at(data),
                                awake_since: woke.map(at),
                            };
                            let woke = woke.unwrap_or(0);
                            let verdict = liveness.status(10 * MS, idle, at(now));
                            let overdue = matches!((ping, recv), (Some(p), Some(r)) if now >= p.max(r).max(woke) + 10);
                            let quiet =
                                idle.is_some() && recv.is_some() && now >= data.max(woke) + 12;
                            match verdict {
                                LivenessStatus::PongOverdue => assert!(overdue),
                                LivenessStatus::Idle => assert!(quiet && !overdue),
                                LivenessStatus::Alive(None) => {
                                    assert!(recv.is_none() || (ping.is_none() && idle.is_none()))
                                }
                                // Whoever looks again exactly then finds it overdue or idle.
                                LivenessStatus::Alive(Some(due)) => {
                                    assert!(!overdue && !quiet && due > at(now));
                                    assert!(!matches!(
                                        liveness.status(10 * MS, idle, due),
                                        LivenessStatus::Alive(_)
                                    ));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
