//! Clocks of one connection: when the reader was where, when bytes and data came.

use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, Ordering};

/// Points in time that several threads read without a lock, in nanoseconds from `origin`; 0 is
/// "never". All but `app_pings_written` are written by the reader alone.
pub(crate) struct Activity {
    /// The time of the opening.
    origin: Instant,
    /// The time at which the reader entered `recv`; 0 while it is elsewhere.
    entered_recv: AtomicU64,
    last_byte: AtomicU64,
    last_data: AtomicU64,
    /// The time at which the handler was last woken.
    last_woken: AtomicU64,
    /// The time at which a reader that can be woken last looked and found nothing to read; 0 if
    /// bytes have come since. Written after `silent_since`.
    looked: AtomicU64,
    /// The time from which on nothing had come at that look.
    silent_since: AtomicU64,
    /// The time at which the oldest unanswered one of each application ping was written.
    app_pings_written: Vec<AtomicU64>,
}

impl Activity {
    pub(crate) fn new(origin: Instant) -> Self {
        Activity {
            origin,
            entered_recv: AtomicU64::new(0),
            last_byte: AtomicU64::new(0),
            last_data: AtomicU64::new(0),
            last_woken: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            silent_since: AtomicU64::new(0),
            app_pings_written: Vec::new(),
        }
    }

    /// Sets the number of application pings.
    pub(crate) fn with_app_pings(self, count: usize) -> Self {
        let app_pings_written = (0..count).map(|_| AtomicU64::new(0)).collect();
        Activity { app_pings_written, ..self }
    }

    pub(crate) fn opened_at(&self) -> Instant {
        self.origin
    }

    /// The reader is about to enter `recv`.
    pub(crate) fn enter_recv(&self, now: Instant) {
        self.entered_recv.store(self.nanos(now), Ordering::Release);
    }

    /// A reader that can be woken has looked, found that nothing has come from `since` to `now`,
    /// and is about to sleep.
    pub(crate) fn found_nothing(&self, since: Instant, now: Instant) {
        self.silent_since.store(self.nanos(since), Ordering::Release);
        self.looked.store(self.nanos(now), Ordering::Release);
        self.enter_recv(since);
    }

    /// The reader has left `recv`, with bytes or without.
    pub(crate) fn leave_recv(&self, now: Instant, has_bytes: bool) {
        self.entered_recv.store(0, Ordering::Release);
        if has_bytes {
            self.looked.store(0, Ordering::Release);
            self.last_byte.store(self.nanos(now), Ordering::Release);
        }
    }

    /// Returns `true` while the reader sleeps in `recv` or `poll`: whatever comes is seen at once.
    pub(crate) fn is_in_recv(&self) -> bool {
        self.entered_recv.load(Ordering::Acquire) != 0
    }

    /// Returns the period in which nothing has come, as far as that is known: up to `now` while the
    /// reader is in `recv`, and up to its last look while it wakes the handler. `None` while a
    /// handler or a full queue keeps it from reading what may have come.
    pub(crate) fn silence(&self, now: Instant) -> Option<(Instant, Instant)> {
        if let Some(since) = self.instant(self.entered_recv.load(Ordering::Acquire)) {
            return Some((since, now));
        }
        // In this order: an older look tells less than there is to tell, never more.
        let looked = self.instant(self.looked.load(Ordering::Acquire))?;
        let since = self.instant(self.silent_since.load(Ordering::Acquire))?;
        Some((since, looked.min(now)))
    }

    /// Returns when the last byte came. The opening counts as one.
    pub(crate) fn last_byte(&self) -> Instant {
        self.instant(self.last_byte.load(Ordering::Acquire)).unwrap_or(self.origin)
    }

    /// Data messages have been delivered.
    pub(crate) fn note_data(&self, now: Instant) {
        self.last_data.store(self.nanos(now), Ordering::Release);
    }

    /// The handler is about to be woken.
    pub(crate) fn enter_woken(&self, now: Instant) {
        self.last_woken.store(self.nanos(now), Ordering::Release);
    }

    /// Returns when the reader last left `recv` for the handler, as far as is known: with bytes, or
    /// to wake it.
    pub(crate) fn last_left(&self) -> Instant {
        let woken = self.instant(self.last_woken.load(Ordering::Acquire));
        woken.map_or(self.last_byte(), |woken| woken.max(self.last_byte()))
    }

    /// Returns when the last data message had been delivered. The opening counts as one.
    pub(crate) fn last_data(&self) -> Instant {
        self.instant(self.last_data.load(Ordering::Acquire)).unwrap_or(self.origin)
    }

    /// The application ping number `index` was written, and awaits a reply. The oldest unanswered
    /// one counts.
    pub(crate) fn note_app_ping(&self, index: usize, now: Instant) {
        let _ = self.app_pings_written[index].compare_exchange(
            0,
            self.nanos(now),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// The application ping number `index` was not written at `now` after all.
    pub(crate) fn withdraw_app_ping(&self, index: usize, now: Instant) {
        let _ = self.app_pings_written[index].compare_exchange(
            self.nanos(now),
            0,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// A reply to the application ping number `index` came.
    pub(crate) fn note_app_reply(&self, index: usize) {
        self.app_pings_written[index].store(0, Ordering::Release);
    }

    /// Returns when the oldest unanswered application ping was written.
    pub(crate) fn unanswered_app_ping(&self) -> Option<Instant> {
        let written = self.app_pings_written.iter();
        written.filter_map(|written| self.instant(written.load(Ordering::Acquire))).min()
    }

    fn nanos(&self, at: Instant) -> u64 {
        // 0 means "never", so the first nanosecond is 1. 584 years fit.
        (at.saturating_duration_since(self.origin).as_nanos() as u64).max(1)
    }

    fn instant(&self, nanos: u64) -> Option<Instant> {
        (nanos != 0).then(|| self.origin + Duration::from_nanos(nanos))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_application_ping_without_a_reply_of_its_own_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let activity = Activity::new(start).with_app_pings(2);
        assert_eq!(activity.unanswered_app_ping(), None);
        for (index, ms) in [(1, 5), (0, 7), (1, 9)] {
            activity.note_app_ping(index, at(ms));
        }
        assert_eq!(activity.unanswered_app_ping(), Some(at(5)));
        activity.note_app_reply(1);
        assert_eq!(activity.unanswered_app_ping(), Some(at(7)));
        // One that was not written after all leaves an older one as it is.
        activity.note_app_ping(0, at(11));
        activity.withdraw_app_ping(0, at(11));
        assert_eq!(activity.unanswered_app_ping(), Some(at(7)));
        activity.note_app_reply(0);
        activity.note_app_ping(0, at(13));
        activity.withdraw_app_ping(0, at(13));
        assert_eq!(activity.unanswered_app_ping(), None);
    }
}
