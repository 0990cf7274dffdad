//! Metrics: what a client tells the recorder of the program, through the facade `metrics`.
//!
//! The counters behind [`Stats`](crate::Stats) are the one place that counts messages, once per
//! `recv`. The heartbeat thread publishes what they have gained, once in [`INTERVAL`] at most, and
//! sleeps while they gain nothing: the reader looks once per `recv` whether it has to be woken.
//! Rare events go to the recorder at once, from the thread that finds them.
//!
//! A recorder is code of the program's: none of its calls is made under a lock, and its panics are
//! caught. Without the feature `metrics` everything here is empty, and so are the calls of it.

#[cfg(feature = "metrics")]
mod facade;
#[cfg(not(feature = "metrics"))]
mod none;

#[cfg(feature = "metrics")]
pub(crate) use facade::{Metrics, PublishSchedule};
#[cfg(not(feature = "metrics"))]
pub(crate) use none::{Metrics, PublishSchedule};

use std::time::{Duration, Instant};

/// The time between two publications of what is counted often.
#[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "nothing is published"))]
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// Returns the length of the event queue, and the number of messages that it has lost. `None` once
/// it is gone.
pub(crate) type QueueLook = Box<dyn Fn() -> Option<(usize, u64)> + Send + Sync>;

/// The counts of a client so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) messages_received: u64,
    pub(crate) bytes_received: u64,
    pub(crate) messages_sent: u64,
    pub(crate) bytes_sent: u64,
}

/// The state of a client, for its gauges.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "nothing is published"))]
pub(crate) struct Status {
    /// Of two that are published at the same time the one with the higher number counts.
    pub(crate) number: u64,
    pub(crate) is_up: bool,
    /// `None` while no connection is open.
    pub(crate) last_byte: Option<Instant>,
    /// `None` where the caller does not know.
    pub(crate) topics: Option<TopicCounts>,
    /// The client has ended. No later status counts.
    pub(crate) is_final: bool,
}

/// The number of topics of a session in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicCounts {
    pub(crate) pending: u64,
    pub(crate) requested: u64,
    pub(crate) active: u64,
    pub(crate) rejected: u64,
    pub(crate) unsubscribing: u64,
}

/// The fate of a call of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallOutcome {
    Replied,
    NotSent,
    Unknown,
}
