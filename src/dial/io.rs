//! Waits for the sockets of a dial. One deadline holds for all waits, and a stop ends each.

use std::io;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use crate::error::{Error, ErrorKind};
use crate::sync;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::WakePair;
use crate::time::Deadline;

/// Without this flag, a send to a peer that is gone kills a program that does not ignore SIGPIPE.
/// Apple has a socket option instead, which socket2 sets.
#[cfg(all(unix, not(target_vendor = "apple")))]
const NO_SIGNAL: i32 = rustix::net::SendFlags::NOSIGNAL.bits() as i32;
#[cfg(not(all(unix, not(target_vendor = "apple"))))]
const NO_SIGNAL: i32 = 0;

/// The waker, stop signal and deadline that every wait of a dial obeys.
pub(crate) struct DialIo<'a> {
    pub(crate) pair: &'a WakePair,
    pub(crate) shutdown: &'a Shutdown,
    pub(crate) deadline: Deadline,
}

/// The readiness that a wait is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Reading,
    Writing,
}

impl DialIo<'_> {
    /// Waits until one of the sockets is ready, or until `until`. Returns for each of them whether
    /// it is ready. `context` names the step in the error.
    ///
    /// # Errors
    /// `Stopped`, or `Timeout` when the deadline of the whole dial passes.
    pub(crate) fn wait(
        &self,
        sockets: &[&Socket],
        what: Interest,
        until: Option<Instant>,
        context: &dyn Fn() -> String,
    ) -> Result<Vec<bool>, Error> {
        let flags = if what == Interest::Reading { PollFlags::IN } else { PollFlags::OUT };
        loop {
            if self.shutdown.is_requested() {
                return Err(Error::stopped());
            }
            let now = sync::now();
            let left = self.deadline.left(now).ok_or_else(|| self.deadline.error(&context()))?;
            let wait = until.map_or(left, |until| left.min(until.saturating_duration_since(now)));
            let mut watched: Vec<PollFd<'_>> =
                sockets.iter().map(|socket| PollFd::new(*socket, flags)).collect();
            watched.push(PollFd::new(self.pair, PollFlags::IN));
            let timeout = Timespec::try_from(wait).ok();
            match poll(&mut watched, timeout.as_ref()) {
                Ok(0) if until.is_some_and(|until| sync::now() >= until) => {
                    return Ok(vec![false; sockets.len()]);
                }
                Ok(0) => {}
                Ok(_) => {
                    let ready: Vec<bool> = watched[..sockets.len()]
                        .iter()
                        .map(|watched| !watched.revents().is_empty())
                        .collect();
                    if ready.contains(&true) {
                        return Ok(ready);
                    }
                    // The dial was woken: the loop looks at the stop signal.
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(Error::caused(
                        ErrorKind::Io,
                        "waiting for the socket",
                        io::Error::from(error),
                    ));
                }
            }
        }
    }

    /// Checks that the dial may go on. Called before each system call, because a peer that never
    /// stops sending would keep the dial from ever waiting.
    ///
    /// # Errors
    /// As [`wait`](DialIo::wait).
    pub(crate) fn check(&self, context: &dyn Fn() -> String) -> Result<(), Error> {
        if self.shutdown.is_requested() {
            return Err(Error::stopped());
        }
        if self.deadline.has_passed(sync::now()) {
            return Err(self.deadline.error(&context()));
        }
        Ok(())
    }

    /// Receives at least one byte, unless the connection ends, in which case it returns 0.
    ///
    /// # Errors
    /// As [`wait`](DialIo::wait), and `Io`.
    pub(crate) fn recv(
        &self,
        socket: &Socket,
        into: &mut [u8],
        context: &dyn Fn() -> String,
    ) -> Result<usize, Error> {
        use io::Read;
        loop {
            self.check(context)?;
            match (&*socket).read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(&[socket], Interest::Reading, None, context)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::caused(ErrorKind::Io, context(), error)),
                Ok(count) => return Ok(count),
            }
        }
    }

    /// Sends all of `bytes`, waiting for room. Raises no signal if the peer is gone.
    ///
    /// # Errors
    /// As [`wait`](DialIo::wait), and `Io`.
    pub(crate) fn send(
        &self,
        socket: &Socket,
        mut bytes: &[u8],
        context: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.check(context)?;
            match socket.send_with_flags(bytes, NO_SIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(&[socket], Interest::Writing, None, context)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::caused(ErrorKind::Io, context(), error)),
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(shuttle)))]
pub(super) mod testing {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::error::Timeout;

    /// The limit of a test's dial, which none reaches.
    const SOON: Duration = Duration::from_secs(10);

    /// Performs a part of a dial.
    pub(crate) fn with_io<T>(act: impl FnOnce(&DialIo<'_>) -> T) -> T {
        let pair = WakePair::new().expect("descriptors are there");
        let (_trigger, shutdown) = Shutdown::new();
        let deadline = Deadline::new(Timeout::Connect, SOON, Instant::now());
        act(&DialIo { pair: &pair, shutdown: &shutdown, deadline })
    }
}
