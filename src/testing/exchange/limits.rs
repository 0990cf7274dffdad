//! The limits of an exchange, and the scale of its time. Pure: `now` is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The number of events that are allowed within a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) count: usize,
    pub(super) per: Duration,
}

/// The times of the last events that a limit counts.
#[derive(Debug, Default)]
pub(super) struct Arrivals(VecDeque<Instant>);

impl Arrivals {
    /// Counts an event. Returns `false` if it exceeds the limit.
    pub(super) fn add(&mut self, limit: Limit, now: Instant) -> bool {
        while self.0.front().is_some_and(|at| now.saturating_duration_since(*at) >= limit.per) {
            self.0.pop_front();
        }
        if self.0.len() >= limit.count {
            return false;
        }
        self.0.push_back(now);
        true
    }
}

/// The limits of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The messages that it takes, pings and pongs included. More close it with 1008.
    pub(super) messages: Option<Limit>,
    /// The size of a message. A longer one closes it with 1009.
    pub(super) message_size: usize,
    /// The interval of its pings, and the time for their pongs.
    pub(super) ping: Option<(Duration, Duration)>,
    /// The time without a message in either direction, and the code that closes it.
    pub(super) silence: Option<(Duration, u16)>,
    /// The time from the announcement of its end to the end.
    pub(super) shutdown: Duration,
}

/// Messages of 64 KiB, a minute from an announcement to the end, and nothing else.
impl Default for Limits {
    fn default() -> Self {
        Limits {
            messages: None,
            message_size: 64 << 10,
            ping: None,
            silence: None,
            shutdown: Duration::from_secs(60),
        }
    }
}

/// The settings of the builder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) tick: Duration,
    pub(super) time_scale: u32,
    pub(super) connect_limit: Option<Limit>,
    pub(super) message_limit: Option<Limit>,
}

impl Settings {
    pub(super) fn scaled(&self, time: Duration) -> Duration {
        time / self.time_scale
    }

    pub(super) fn scaled_limit(&self, limit: Limit) -> Limit {
        Limit { count: limit.count, per: self.scaled(limit.per) }
    }

    /// Returns the limit of messages that the builder wants instead of the exchange's own.
    pub(super) fn message_limit_or(&self, own: Limit) -> Limit {
        self.message_limit.unwrap_or_else(|| self.scaled_limit(own))
    }
}

impl Limits {
    /// Returns the limits as the builder wants them.
    pub(super) fn scaled(self, settings: &Settings) -> Limits {
        let (time, pair) = (
            |time| settings.scaled(time),
            |(every, within)| (settings.scaled(every), settings.scaled(within)),
        );
        Limits {
            messages: self.messages.map(|limit| settings.message_limit_or(limit)),
            message_size: self.message_size,
            ping: self.ping.map(pair),
            silence: self.silence.map(|(silence, code)| (time(silence), code)),
            shutdown: time(self.shutdown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_after_the_last_allowed_one_exceeds_the_limit_until_the_first_is_old() {
        let limit = Limit { count: 2, per: Duration::from_secs(1) };
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(arrivals.add(limit, at(0)) && arrivals.add(limit, at(500)));
        assert!(!arrivals.add(limit, at(999)));
        assert!(arrivals.add(limit, at(1000)));
        assert!(!arrivals.add(limit, at(1499)));
    }
}
