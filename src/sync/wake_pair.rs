//! Wakes a dial that waits for its socket.

#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::error::Error;
#[cfg(unix)]
use crate::error::ErrorKind;

/// Both ends of what wakes a dial. Made for one dial and dropped with it.
pub(crate) struct WakePair {
    #[cfg(unix)]
    sleeper: std::os::unix::net::UnixStream,
    waker: Waker,
}

/// Wakes a dial out of whatever it waits for. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Waker {
    #[cfg(unix)]
    stream: Arc<std::os::unix::net::UnixStream>,
    /// Windows cannot poll a pair of anything but sockets: there a dial looks at the shutdown
    /// signal every 20 ms instead.
    #[cfg(not(unix))]
    stream: Arc<()>,
}

impl WakePair {
    /// # Errors
    /// `Io` when there are no descriptors.
    #[cfg(unix)]
    pub(crate) fn new() -> Result<Self, Error> {
        let pair = std::os::unix::net::UnixStream::pair();
        let (sleeper, stream) = pair.map_err(|error| {
            Error::caused(ErrorKind::Io, "opening a descriptor for the dial", error)
        })?;
        Ok(WakePair { sleeper, waker: Waker { stream: Arc::new(stream) } })
    }

    #[cfg(not(unix))]
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(WakePair { waker: Waker { stream: Arc::new(()) } })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// What a dial polls beside its socket.
#[cfg(unix)]
impl AsFd for WakePair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sleeper.as_fd()
    }
}

impl Waker {
    /// Wakes the dial, now or when it next waits. The reader looks at the shutdown signal then.
    #[cfg(unix)]
    pub(crate) fn wake(&self) {
        // An end of stream is a wake-up that lasts, and needs no room.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    #[cfg(not(unix))]
    pub(crate) fn wake(&self) {
        let _ = &self.stream;
    }
}
