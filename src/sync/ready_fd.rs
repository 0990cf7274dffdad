//! A descriptor that is readable while something is ready, for `epoll`, `kqueue` and `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::wake_pair::SignalPair;

/// The end of a pair that is polled, with at most one signal pending.
pub(crate) struct ReadyFd {
    pair: SignalPair,
    is_set: AtomicBool,
}

impl ReadyFd {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(ReadyFd { pair: SignalPair::new()?, is_set: AtomicBool::new(false) })
    }

    /// Makes the descriptor readable, or no longer. The caller holds the lock of what it shows.
    pub(crate) fn set(&self, is_ready: bool) {
        if self.is_set.swap(is_ready, Ordering::Relaxed) == is_ready {
            return;
        }
        match is_ready {
            true => self.pair.signal(),
            false => self.pair.clear(),
        }
    }
}

impl AsFd for ReadyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pair.as_fd()
    }
}
