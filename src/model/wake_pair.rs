//! In the place of `sync::wake_pair`.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::world::{block, change};
use crate::error::Error;

pub(crate) struct WakePair {
    waker: Waker,
}

#[derive(Clone)]
pub(crate) struct Waker {
    is_woken: Arc<AtomicBool>,
}

impl WakePair {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(WakePair { waker: Waker { is_woken: Arc::default() } })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Waits until the waker has been used, or until the deadline.
    pub(super) fn wait_until(&self, deadline: Instant) {
        block(Some(deadline), |_| self.waker.is_woken.load(Ordering::SeqCst).then_some(()));
    }
}

/// The real dial is compiled in the model, and never runs there.
impl AsFd for WakePair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("the model's dialer polls no descriptor")
    }
}

impl Waker {
    pub(crate) fn wake(&self) {
        change(|| self.is_woken.store(true, Ordering::SeqCst));
    }
}
