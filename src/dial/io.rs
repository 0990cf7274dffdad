//! Waiting for sockets during a dial: under one deadline, and cancellable at any time.

use std::io;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use crate::error::{Error, ErrorKind};
use crate::sync;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::WakePair;
use crate::time::Deadline;

/// Without it a peer that is gone kills a program that has not asked to ignore SIGPIPE. Apple has a
/// socket option for it, which socket2 sets.
#[cfg(all(unix, not(target_vendor = "apple")))]
const QUIETLY: i32 = rustix::net::SendFlags::NOSIGNAL.bits() as i32;
#[cfg(not(all(unix, not(target_vendor = "apple"))))]
const QUIETLY: i32 = 0;

/// What every step of a dial needs to wait.
pub(crate) struct DialIo<'a> {
    pub(crate) pair: &'a WakePair,
    pub(crate) shutdown: &'a Shutdown,
    pub(crate) deadline: Deadline,
}

/// What a socket is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Reading,
    Writing,
}

impl DialIo<'_> {
    /// Waits until one of the sockets is ready, `until` at most; which of them are. `context` names
    /// the step, for the error.
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
                    // Only the waker: the loop looks at the signal.
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

    /// Whether to go on. Asked before each system call: a peer that always has something to say
    /// keeps no dial alive.
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

    /// Receives what there is, waiting for it.
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

    /// Sends all of `bytes`, waiting for room. No signal tells of a peer that is gone: the error
    /// does.
    pub(crate) fn send(
        &self,
        socket: &Socket,
        mut bytes: &[u8],
        context: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.check(context)?;
            match socket.send_with_flags(bytes, QUIETLY) {
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
