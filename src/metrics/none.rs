//! No metrics: everything is empty, and optimized away.

use std::time::{Duration, Instant};

use crate::error::{ErrorKind, SendError};
use crate::metrics::{CallOutcome, QueueLook, Status, Totals};
use crate::name::ClientName;
use crate::sync::channel::Sender as WakeTx;

/// Tells nobody.
#[derive(Default)]
pub(crate) struct Metrics;

impl Metrics {
    pub(crate) const ARE_PUBLISHED: bool = false;

    pub(crate) fn new(_: &ClientName, _: WakeTx<()>, _: QueueLook) -> Self {
        Metrics
    }

    pub(crate) fn add_session(&self) {}

    #[inline]
    pub(crate) fn touch(&self, _: impl FnOnce() -> Totals) {}

    pub(crate) fn publish(&self, _: impl FnOnce() -> Totals, _: Status) -> bool {
        false
    }

    pub(crate) fn opened(&self, _: Duration) {}

    pub(crate) fn ended(&self, _: ErrorKind) {}

    pub(crate) fn dial_failed(&self, _: ErrorKind) {}

    pub(crate) fn round_trip(&self, _: Duration) {}

    pub(crate) fn send_failed(&self, _: &SendError) {}

    pub(crate) fn call_over(&self, _: CallOutcome) {}

    #[inline]
    pub(crate) fn begin_wait(&self) -> WaitStart {
        WaitStart
    }

    #[inline]
    pub(crate) fn waited(&self, _: WaitStart) {}
}

/// The beginning of a wait that nobody measures.
pub(crate) struct WaitStart;

/// Nothing is ever published.
pub(crate) struct PublishSchedule;

impl PublishSchedule {
    pub(crate) fn new() -> Self {
        PublishSchedule
    }

    pub(crate) fn poll(
        &mut self,
        _: &Metrics,
        _: Instant,
        _: impl FnOnce() -> bool,
    ) -> Option<Instant> {
        None
    }
}
