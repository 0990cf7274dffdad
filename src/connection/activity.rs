//! Clocks of one connection: when the reader was where, when bytes and data came.

use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, Ordering};

/// Points in time that several threads read without a lock, in nanoseconds from `origin`; 0 is
/// "never". All but `app_ping_written` are written by the reader alone.
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
    /// The time at which the oldest unanswered application ping was written.
    app_ping_written: AtomicU64,
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
            app_ping_written: AtomicU64::new(0),
        }
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

    /// An application ping was written that awaits a reply. The oldest unanswered one counts.
    pub(crate) fn note_app_ping(&self, now: Instant) {
        let _ = self.app_ping_written.compare_exchange(
            0,
            self.nanos(now),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// A reply to an application ping came.
    pub(crate) fn note_app_reply(&self) {
        self.app_ping_written.store(0, Ordering::Release);
    }

    /// Returns when the oldest unanswered application ping was written.
    pub(crate) fn unanswered_app_ping(&self) -> Option<Instant> {
        self.instant(self.app_ping_written.load(Ordering::Acquire))
    }

    fn nanos(&self, at: Instant) -> u64 {
        // 0 means "never", so the first nanosecond is 1. 584 years fit.
        (at.saturating_duration_since(self.origin).as_nanos() as u64).max(1)
    }

    fn instant(&self, nanos: u64) -> Option<Instant> {
        (nanos != 0).then(|| self.origin + Duration::from_nanos(nanos))
    }
}
