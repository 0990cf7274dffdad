//! The messages and bytes that a client received lately; pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tautline::Stats;

/// The seconds that are kept: as many as the widest sparkline shows.
const SECONDS: usize = 300;

/// The time that a rate is the mean of, unless samples are rarer.
const WINDOW: Duration = Duration::from_secs(1);

/// The shortest time between two samples that are kept.
const APART: Duration = Duration::from_millis(50);

/// The messages of one second at most: charts multiply them.
const SECOND_MAX: u64 = 1 << 48;

/// The messages and bytes of the last second, and the messages of each of the seconds before.
pub(crate) struct History {
    began: Instant,
    /// Those of the last second and the one before; the latest is the last. APART bounds them.
    samples: VecDeque<Sample>,
    /// The messages of each second that is over; the latest is the last. At most `SECONDS`.
    seconds: VecDeque<u64>,
    /// The number of seconds that are over.
    over: u64,
    /// The messages that had come by the end of them.
    counted: u64,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    messages: u64,
    bytes: u64,
}

/// Messages and bytes in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    pub(crate) messages: f64,
    pub(crate) bytes: f64,
}

impl History {
    pub(crate) fn new(now: Instant) -> Self {
        History {
            began: now,
            samples: VecDeque::from([Sample { at: now, messages: 0, bytes: 0 }]),
            seconds: VecDeque::new(),
            over: 0,
            counted: 0,
        }
    }

    /// Notes what has come until now.
    pub(crate) fn sample(&mut self, now: Instant, stats: &Stats) {
        let latest = self.samples.back().map_or(self.began, |latest| latest.at);
        if now.saturating_duration_since(latest) < APART {
            return;
        }
        self.samples.push_back(Sample {
            at: now,
            messages: stats.messages_received,
            bytes: stats.bytes_received,
        });
        // The oldest one is the last that is a whole window old.
        let is_old = |sample: &Sample| now.saturating_duration_since(sample.at) >= WINDOW;
        while self.samples.get(1).is_some_and(is_old) {
            self.samples.pop_front();
        }
        let over = now.saturating_duration_since(self.began).as_secs();
        // After a pause the messages count for its last second: nobody knows when they came.
        let passed = over - self.over;
        if passed > 0 {
            for _ in 1..passed.min(SECONDS as u64) {
                self.push(0);
            }
            self.push(stats.messages_received.saturating_sub(self.counted));
            (self.over, self.counted) = (over, stats.messages_received);
        }
    }

    fn push(&mut self, messages: u64) {
        if self.seconds.len() == SECONDS {
            self.seconds.pop_front();
        }
        self.seconds.push_back(messages.min(SECOND_MAX));
    }

    /// Returns what comes in a second, by the samples of the last one.
    pub(crate) fn rate(&self) -> Rate {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return Rate::default();
        };
        let elapsed = last.at.saturating_duration_since(first.at).as_secs_f64();
        if elapsed == 0.0 {
            return Rate::default();
        }
        Rate {
            messages: last.messages.saturating_sub(first.messages) as f64 / elapsed,
            bytes: last.bytes.saturating_sub(first.bytes) as f64 / elapsed,
        }
    }

    /// Returns the messages of the last `count` seconds, the latest at the end; seconds before the
    /// start count as without any.
    pub(crate) fn last_seconds(&self, count: usize) -> Vec<u64> {
        let missing = count.saturating_sub(self.seconds.len());
        let skipped = self.seconds.len().saturating_sub(count);
        std::iter::repeat_n(0, missing).chain(self.seconds.iter().skip(skipped).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(messages: u64) -> Stats {
        let mut stats = Stats::default();
        (stats.messages_received, stats.bytes_received) = (messages, messages * 10);
        stats
    }

    #[test]
    fn a_rate_is_that_of_the_last_second() {
        let start = Instant::now();
        let mut history = History::new(start);
        assert_eq!(history.rate(), Rate::default());
        // Ten a second for five seconds, then a hundred a second.
        for tenth in 1..=50 {
            history.sample(start + Duration::from_millis(tenth * 100), &stats(tenth));
        }
        assert_eq!(history.rate(), Rate { messages: 10.0, bytes: 100.0 });
        for tenth in 1..=10 {
            history
                .sample(start + Duration::from_millis(5000 + tenth * 100), &stats(50 + tenth * 10));
        }
        assert_eq!(history.rate(), Rate { messages: 100.0, bytes: 1000.0 });
        history.sample(start + Duration::from_secs(60), &stats(150));
        assert_eq!(history.rate(), Rate { messages: 0.0, bytes: 0.0 });
    }

    #[test]
    fn samples_and_seconds_are_bounded() {
        let start = Instant::now();
        let mut history = History::new(start);
        for step in 0..1_000_000 {
            history.sample(start + Duration::from_millis(step), &stats(step));
        }
        assert!(history.samples.len() <= 22, "{}", history.samples.len());
        assert_eq!(history.last_seconds(1000).len(), 1000);
        assert_eq!((history.seconds.len(), history.last_seconds(3)), (SECONDS, vec![1000; 3]));
    }

    #[test]
    fn each_second_has_its_messages_and_a_pause_has_none() {
        let start = Instant::now();
        let mut history = History::new(start);
        for (millis, messages) in [(500, 5), (1000, 7), (1999, 9), (2100, 20), (6100, 21)] {
            history.sample(start + Duration::from_millis(millis), &stats(messages));
        }
        // The third to the fifth second are over without a sample, and what came counts once.
        assert_eq!(history.last_seconds(8), [0, 0, 7, 13, 0, 0, 0, 1]);
        assert_eq!(history.last_seconds(2), [0, 1]);
        history.sample(start + Duration::from_secs(1 << 40), &stats(21));
        assert_eq!(history.last_seconds(SECONDS), [0; SECONDS]);
    }
}
