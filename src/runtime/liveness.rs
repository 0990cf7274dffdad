//! Schedules of pings and the liveness of a connection: pure, `now` is an argument.

use std::time::{Duration, Instant};

use crate::time::{after, earliest};

/// The times at which pings are due. Missed times are skipped, so that a machine that slept does
/// not wake up to a burst of pings.
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

    /// Returns `true` if a ping is due. The schedule then moves on to its first time after `now`.
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

/// The times of pings and bytes by which a connection is given up; see [`Liveness::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Liveness {
    /// The time at which the oldest unanswered ping was written.
    pub(crate) oldest_unanswered: Option<Instant>,
    /// The period in which nothing has come, as far as that is known. `None` while the reader is
    /// elsewhere (a busy handler, a full queue).
    pub(crate) silence: Option<(Instant, Instant)>,
    /// The time at which the last data message had been delivered.
    pub(crate) last_data: Instant,
    /// The time at which this process last woke from a sleep in which nobody could read.
    pub(crate) awake_since: Option<Instant>,
}

/// The state of a connection by its [`Liveness`].
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
    /// The judgement at the end of the known silence.
    ///
    /// The pong limit runs from the oldest unanswered ping's write, and starts again after every
    /// byte that arrives. While the reader is elsewhere nothing is judged, for then nobody could
    /// have seen the pong. A ping written at 0 s
    /// with a limit of 10 s and a byte at 9 s: overdue at 19 s. Both limits start again after a
    /// sleep: what the peer said meanwhile lies unread in the kernel.
    pub(crate) fn status(
        &self,
        pong_timeout: Duration,
        idle_timeout: Option<Duration>,
    ) -> LivenessStatus {
        let Some((since, until)) = self.silence else { return LivenessStatus::Alive(None) };
        let awake = |at: Instant| self.awake_since.map_or(at, |since| since.max(at));
        let pong_due =
            self.oldest_unanswered.map(|written| after(awake(written.max(since)), pong_timeout));
        let idle_due = idle_timeout.map(|limit| after(awake(self.last_data), limit));
        if pong_due.is_some_and(|due| until >= due) {
            return LivenessStatus::PongOverdue;
        }
        if idle_due.is_some_and(|due| until >= due) {
            return LivenessStatus::Idle;
        }
        LivenessStatus::Alive(earliest([pong_due, idle_due]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

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
                                silence: recv.map(|recv| (at(recv), at(now))),
                                last_data: at(data),
                                awake_since: woke.map(at),
                            };
                            let woke = woke.unwrap_or(0);
                            let status = liveness.status(10 * MS, idle);
                            let overdue = match (ping, recv) {
                                (Some(ping), Some(recv)) => now >= ping.max(recv).max(woke) + 10,
                                _ => false,
                            };
                            let quiet =
                                idle.is_some() && recv.is_some() && now >= data.max(woke) + 12;
                            match status {
                                LivenessStatus::PongOverdue => assert!(overdue),
                                LivenessStatus::Idle => assert!(quiet && !overdue),
                                LivenessStatus::Alive(None) => {
                                    assert!(recv.is_none() || (ping.is_none() && idle.is_none()))
                                }
                                // Whoever looks again exactly then finds it overdue or idle.
                                LivenessStatus::Alive(Some(due)) => {
                                    assert!(!overdue && !quiet && due > at(now));
                                    let silence = liveness.silence.map(|(since, _)| (since, due));
                                    let status =
                                        Liveness { silence, ..liveness }.status(10 * MS, idle);
                                    assert!(!matches!(status, LivenessStatus::Alive(_)));
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_ping_is_due_at_its_time_and_a_rhythm_that_ends_there_starts_anew() {
        let start = Instant::now();
        let mut schedule = PingSchedule::new(Some(10 * MS), start);
        assert!(schedule.take_due(start + 10 * MS));
        assert_eq!(schedule.next(), Some(start + 20 * MS));
        // The time after the one that is due has come too: it is skipped.
        assert!(schedule.take_due(start + 30 * MS));
        assert_eq!(schedule.next(), Some(start + 40 * MS));
    }

    #[test]
    fn a_schedule_that_is_restarted_is_due_one_interval_later() {
        let start = Instant::now();
        let mut schedule = PingSchedule::new(Some(10 * MS), start);
        schedule.restart(start + 7 * MS);
        assert_eq!(schedule.next(), Some(start + 17 * MS));
        assert!(!schedule.take_due(start + 16 * MS));
        assert!(schedule.take_due(start + 17 * MS));
    }
}
