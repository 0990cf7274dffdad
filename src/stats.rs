//! The counters of a client.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::metrics::{Metrics, Status, Totals};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Counters of one client since it was created, from [`Client::stats`](crate::Client::stats).
///
/// It is no atomic snapshot: the counters are read one after the other.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The number of data messages received, those included that
    /// [`auto_respond`](crate::Builder::auto_respond) answered.
    pub messages_received: u64,
    /// The payload bytes of data messages received, after decompression and
    /// [`decode`](crate::Builder::decode).
    pub bytes_received: u64,
    /// The number of data messages that the kernel took whole, application pings and responses of
    /// [`auto_respond`](crate::Builder::auto_respond) included.
    pub messages_sent: u64,
    /// The bytes of their frames, headers included.
    pub bytes_sent: u64,
    /// The number of connections opened.
    pub epochs: u64,
    /// The number of connections ended, by [`ErrorKind::as_str`] of the reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// The number of failed dials.
    pub failed_dials: u64,
    /// The time since the last byte arrived. `None` while no connection is open.
    pub last_byte_age: Option<Duration>,
    /// The round-trip times of ping frames, over all connections.
    pub round_trip: RoundTrip,
    /// The number of events in the queue. 0 for a client with a handler.
    pub queue_depth: usize,
    /// The number of messages lost to a full queue.
    pub messages_lost: u64,
    /// The number of unread messages that [`conflate`](crate::Builder::conflate) replaced.
    pub messages_conflated: u64,
}

/// Round-trip times of ping frames, each from the write of a ping to the `recv` that brought its
/// pong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    /// The number of round trips. While it is 0, so are the times.
    pub count: u64,
    /// The latest one.
    pub last: Duration,
    /// The shortest one.
    pub min: Duration,
    /// The mean of all of them.
    pub mean: Duration,
    /// The longest one.
    pub max: Duration,
}

/// The counters behind [`Stats`].
///
/// Those of messages and bytes are sequentially consistent, for [`Metrics::touch`].
#[derive(Default)]
pub(crate) struct Counters {
    messages_received: AtomicU64,
    bytes_received: AtomicU64,
    messages_sent: AtomicU64,
    bytes_sent: AtomicU64,
    epochs: AtomicU64,
    failed_dials: AtomicU64,
    /// Locked once per connection and once per pong.
    rare: Mutex<Rare>,
    pub(crate) metrics: Metrics,
}

#[derive(Default)]
struct Rare {
    drops: BTreeMap<&'static str, u64>,
    round_trip: RoundTrip,
    round_trips: Duration,
}

impl Counters {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Counters { metrics, ..Counters::default() }
    }

    /// Counts the messages of one `recv`. Only the reader calls this.
    pub(crate) fn received(&self, messages: u64, bytes: u64) {
        self.messages_received.fetch_add(messages, Ordering::SeqCst);
        self.bytes_received.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(crate) fn sent(&self, messages: u64, bytes: usize) {
        self.messages_sent.fetch_add(messages, Ordering::SeqCst);
        self.bytes_sent.fetch_add(bytes as u64, Ordering::SeqCst);
        self.touch();
    }

    /// Has the metrics published soon.
    #[inline]
    pub(crate) fn touch(&self) {
        self.metrics.touch(|| self.totals());
    }

    /// Publishes the metrics. Returns `true` if there was something to tell.
    pub(crate) fn publish(&self, status: Status) -> bool {
        self.metrics.publish(|| self.totals(), status)
    }

    pub(crate) fn opened(&self, took: Duration) {
        self.epochs.fetch_add(1, Ordering::Relaxed);
        self.metrics.opened(took);
    }

    pub(crate) fn dial_failed(&self, kind: ErrorKind) {
        self.failed_dials.fetch_add(1, Ordering::Relaxed);
        self.metrics.dial_failed(kind);
    }

    pub(crate) fn dropped(&self, kind: ErrorKind) {
        *self.rare.lock().drops.entry(kind.as_str()).or_default() += 1;
        self.metrics.ended(kind);
    }

    pub(crate) fn round_trip(&self, time: Duration) {
        self.metrics.round_trip(time);
        let mut rare = self.rare.lock();
        rare.round_trips += time;
        let total = rare.round_trips;
        let trip = &mut rare.round_trip;
        trip.min = if trip.count == 0 { time } else { trip.min.min(time) };
        trip.max = trip.max.max(time);
        trip.last = time;
        trip.count += 1;
        trip.mean = Duration::from_nanos((total.as_nanos() / u128::from(trip.count)) as u64);
    }

    fn totals(&self) -> Totals {
        Totals {
            messages_received: self.messages_received.load(Ordering::SeqCst),
            bytes_received: self.bytes_received.load(Ordering::SeqCst),
            messages_sent: self.messages_sent.load(Ordering::SeqCst),
            bytes_sent: self.bytes_sent.load(Ordering::SeqCst),
        }
    }

    /// Returns the counters kept here. The caller fills in the rest.
    pub(crate) fn snapshot(&self) -> Stats {
        let rare = self.rare.lock();
        Stats {
            messages_received: self.messages_received.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            messages_sent: self.messages_sent.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            epochs: self.epochs.load(Ordering::Relaxed),
            failed_dials: self.failed_dials.load(Ordering::Relaxed),
            drops: rare.drops.clone(),
            round_trip: rare.round_trip,
            ..Stats::default()
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn round_trips_keep_their_extremes_and_their_mean() {
        let counters = Counters::default();
        for millis in [5, 1, 9] {
            counters.round_trip(Duration::from_millis(millis));
        }
        let expected = RoundTrip {
            count: 3,
            last: Duration::from_millis(9),
            min: Duration::from_millis(1),
            mean: Duration::from_millis(5),
            max: Duration::from_millis(9),
        };
        assert_eq!(counters.snapshot().round_trip, expected);
    }

    #[test]
    fn drops_are_counted_by_kind() {
        let counters = Counters::default();
        counters.dropped(ErrorKind::Closed);
        counters.dropped(ErrorKind::Closed);
        counters.dropped(ErrorKind::PongTimeout);
        let drops = counters.snapshot().drops;
        assert_eq!((drops["closed"], drops["pong_timeout"]), (2, 1));
    }

    /// Whoever counts sees that the end has been published, or its count is in what is published.
    #[cfg(feature = "metrics")]
    #[test]
    fn a_send_that_is_counted_while_the_end_is_published_is_published_too() {
        let (wakeup_tx, _wakeup) = crate::sync::channel::bounded(1);
        let metrics = Metrics::new(&Default::default(), wakeup_tx, Box::new(|| Some((0, 0))));
        let counters = Counters::new(metrics);
        let end = Status { is_final: true, ..Status::default() };
        let totals = || {
            let totals = counters.totals();
            counters.sent(1, 7);
            totals
        };
        counters.metrics.publish(totals, end);
        assert_eq!(counters.metrics.published_totals(), counters.totals());
        assert_eq!(counters.totals().messages_sent, 1);
    }
}
