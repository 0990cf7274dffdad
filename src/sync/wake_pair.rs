//! A wake-up for a dial that waits for its socket.

#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::error::Error;
#[cfg(unix)]
use crate::error::ErrorKind;

/// Both ends of a dial's wake-up. It belongs to one dial and is dropped with it.
pub(crate) struct WakePair {
    /// Polled beside the dial's socket.
    #[cfg(unix)]
    receiver: std::os::unix::net::UnixStream,
    waker: Waker,
}

/// Wakes a dial from any of its waits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Waker {
    #[cfg(unix)]
    stream: Arc<std::os::unix::net::UnixStream>,
    /// Windows polls nothing but sockets. There a dial looks at the shutdown signal every 20 ms
    /// instead.
    #[cfg(not(unix))]
    stream: Arc<()>,
}

impl WakePair {
    /// # Errors
    /// `Io` when the process is out of descriptors.
    #[cfg(unix)]
    pub(crate) fn new() -> Result<Self, Error> {
        let pair = std::os::unix::net::UnixStream::pair();
        let (receiver, stream) = pair.map_err(|error| {
            Error::caused(ErrorKind::Io, "opening a descriptor for the dial", error)
        })?;
        Ok(WakePair { receiver, waker: Waker { stream: Arc::new(stream) } })
    }

    #[cfg(not(unix))]
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(WakePair { waker: Waker { stream: Arc::new(()) } })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

#[cfg(unix)]
impl AsFd for WakePair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl Waker {
    /// Wakes the dial, now or when it next waits. It looks at the shutdown signal then.
    #[cfg(unix)]
    pub(crate) fn wake(&self) {
        // An end of stream lasts, and needs no room in a buffer.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    #[cfg(not(unix))]
    pub(crate) fn wake(&self) {
        let _ = &self.stream;
    }
}
