//! Wakes a thread that waits for a socket: a dial, once, and the reader, again and again.

use std::io;
#[cfg(unix)]
use std::io::{Read, Write};
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream as End;
use std::sync::Arc;
#[cfg(windows)]
use std::{
    net::{Ipv4Addr, UdpSocket as End},
    os::windows::io::{AsSocket, BorrowedSocket},
};

use crate::error::{Error, ErrorKind};

/// Two connected sockets: a dial polls one beside its own sockets, and is woken through the other.
/// Made for one dial and dropped with it.
pub(crate) struct WakePair {
    sleeper: End,
    waker: Waker,
}

/// Wakes a dial out of whatever it waits for. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Waker {
    end: Arc<End>,
}

impl WakePair {
    /// # Errors
    /// `Io` when there are no descriptors.
    pub(crate) fn new() -> Result<Self, Error> {
        let (sleeper, end) = pair().map_err(|error| {
            Error::caused(ErrorKind::Io, "opening a descriptor for the dial", error)
        })?;
        Ok(WakePair { sleeper, waker: Waker { end: Arc::new(end) } })
    }

    /// Returns the handle that wakes this dial.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Waker {
    /// Wakes the dial, now or when it next waits. It looks at the shutdown signal then.
    pub(crate) fn wake(&self) {
        wake(&self.end);
    }
}

/// Two connected sockets, of which one is polled and the other signals, again and again. Both ends
/// live as long as the pair, so that no signal meets a closed end.
pub(crate) struct SignalPair {
    sleeper: End,
    signaler: End,
}

impl SignalPair {
    pub(crate) fn new() -> io::Result<Self> {
        let (sleeper, signaler) = pair()?;
        sleeper.set_nonblocking(true)?;
        signaler.set_nonblocking(true)?;
        Ok(SignalPair { sleeper, signaler })
    }

    /// Ends the wait for the polled end, now or when somebody next waits. Does not block.
    pub(crate) fn signal(&self) {
        // If there is no room, signals are there that nobody has heard yet.
        #[cfg(unix)]
        let _ = (&self.signaler).write(&[0]);
        #[cfg(windows)]
        let _ = self.signaler.send(&[0]);
    }

    /// Forgets the signals that have come. Whoever was woken looks at what they stand for
    /// afterwards.
    pub(crate) fn clear(&self) {
        let mut bytes = [0; 64];
        // One read takes all that there usually are. What it leaves ends the next wait.
        #[cfg(unix)]
        let _ = (&self.sleeper).read(&mut bytes);
        #[cfg(windows)]
        while self.sleeper.recv(&mut bytes).is_ok() {}
    }
}

#[cfg(unix)]
impl AsFd for SignalPair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sleeper.as_fd()
    }
}

#[cfg(windows)]
impl AsSocket for SignalPair {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.sleeper.as_socket()
    }
}

#[cfg(unix)]
fn pair() -> io::Result<(End, End)> {
    End::pair()
}

/// An end of stream stays readable, and needs no room in a buffer.
#[cfg(unix)]
fn wake(end: &End) {
    let _ = end.shutdown(std::net::Shutdown::Both);
}

#[cfg(unix)]
impl AsFd for WakePair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sleeper.as_fd()
    }
}

/// Windows polls nothing but sockets of the network, and std has no pair of those there. A datagram
/// socket that is connected to itself takes datagrams from nobody else.
#[cfg(windows)]
fn pair() -> io::Result<(End, End)> {
    let end = End::bind((Ipv4Addr::LOCALHOST, 0))?;
    end.connect(end.local_addr()?)?;
    end.set_nonblocking(true)?;
    Ok((end.try_clone()?, end))
}

/// Nobody reads the datagram, so the socket stays readable.
#[cfg(windows)]
fn wake(end: &End) {
    let _ = end.send(&[0]);
}

#[cfg(windows)]
impl AsSocket for WakePair {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.sleeper.as_socket()
    }
}
