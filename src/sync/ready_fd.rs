//! A descriptor that is readable while something is ready, for `epoll`, `kqueue` and `poll`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

/// Two connected sockets, with at most one byte between them.
pub(crate) struct ReadyFd {
    /// The end that is polled.
    polled: UnixStream,
    signal: UnixStream,
    is_set: AtomicBool,
}

impl ReadyFd {
    pub(crate) fn new() -> io::Result<Self> {
        let (polled, signal) = UnixStream::pair()?;
        polled.set_nonblocking(true)?;
        signal.set_nonblocking(true)?;
        Ok(ReadyFd { polled, signal, is_set: AtomicBool::new(false) })
    }

    /// Makes the descriptor readable, or no longer. The caller holds the lock of what it shows.
    pub(crate) fn set(&self, is_ready: bool) {
        if self.is_set.swap(is_ready, Ordering::Relaxed) == is_ready {
            return;
        }
        // Neither call blocks, and there is room for a byte.
        let _ = match is_ready {
            true => (&self.signal).write(&[1]),
            false => (&self.polled).read(&mut [0]),
        };
    }
}

impl AsFd for ReadyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.polled.as_fd()
    }
}
