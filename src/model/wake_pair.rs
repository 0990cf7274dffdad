//! In the place of `sync::wake_pair`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::world::{Fault, block, change, is_injected};
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

/// In the place of the pair that is signaled again and again.
pub(crate) struct SignalPair {
    is_signaled: AtomicBool,
}

impl SignalPair {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(SignalPair { is_signaled: AtomicBool::new(false) })
    }

    pub(crate) fn signal(&self) {
        if !is_injected(Fault::LostSignals) {
            change(|| self.is_signaled.store(true, Ordering::SeqCst));
        }
    }

    pub(crate) fn clear(&self) {
        change(|| self.is_signaled.store(false, Ordering::SeqCst));
    }

    pub(super) fn is_signaled(&self) -> bool {
        self.is_signaled.load(Ordering::SeqCst)
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
