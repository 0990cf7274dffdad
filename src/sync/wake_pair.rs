//! Wakes a dial that waits for its socket.

use std::io;
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
