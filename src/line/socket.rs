//! The socket of an open line: what the reader, the writers and whoever severs it ask of the kernel.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::time::Duration;

use socket2::Socket;

/// A connected, blocking socket. Every call may be made from any thread, and none takes a lock.
pub(crate) struct LineSocket {
    socket: Socket,
    /// `receive` asks again and again instead of sleeping.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there the setting does not exist"))]
    is_spinning: bool,
}

impl LineSocket {
    /// `socket` is blocking; on Windows it has a receive timeout, because there `shutdown` does not wake a blocked `recv`.
    pub(crate) fn new(socket: Socket, is_spinning: bool) -> Self {
        LineSocket { socket, is_spinning }
    }

    /// Blocks until bytes come; 0 at the end. An interruption by a signal, or by the receive timeout of a platform that needs one, is
    /// `Interrupted`.
    pub(crate) fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        #[cfg(unix)]
        if self.is_spinning {
            return self.spin(room);
        }
        (&self.socket).read(room).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut if cfg!(windows) => ErrorKind::Interrupted.into(),
            _ => error,
        })
    }

    /// Ends as a blocking `recv` does: when bytes come, or when the line is severed.
    #[cfg(unix)]
    fn spin(&self, room: &mut [u8]) -> io::Result<usize> {
        use rustix::io::Errno;
        use rustix::net::{RecvFlags, recv};
        loop {
            match recv(&self.socket, &mut *room, RecvFlags::DONTWAIT) {
                Ok((_, count)) => return Ok(count),
                Err(Errno::WOULDBLOCK) => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// One `send` that does not wait for room; retried when a signal interrupts it.
    #[cfg(unix)]
    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        // Without MSG_NOSIGNAL a severed line would kill a program that has not asked to ignore SIGPIPE. Apple has a socket option
        // for it instead, which socket2 sets.
        #[cfg(not(target_vendor = "apple"))]
        const FLAGS: i32 = (rustix::net::SendFlags::DONTWAIT.bits() | rustix::net::SendFlags::NOSIGNAL.bits()) as i32;
        #[cfg(target_vendor = "apple")]
        const FLAGS: i32 = rustix::net::SendFlags::DONTWAIT.bits() as i32;
        loop {
            match self.socket.send_with_flags(bytes, FLAGS) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Windows has no flag for it: ask for room, then send no more than the smallest buffer takes.
    #[cfg(windows)]
    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room_within(Duration::ZERO)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.socket.send(&bytes[..bytes.len().min(8 * 1024)])
    }

    /// Waits for room to write. `true` also when the line is broken: the send that follows says how. A signal may end the wait early.
    pub(crate) fn has_room_within(&self, wait: Duration) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let wait = Timespec::try_from(wait).ok();
        let mut watched = [PollFd::new(&self.socket, PollFlags::OUT)];
        match poll(&mut watched, wait.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// FIN: nothing more is sent.
    pub(crate) fn end_writing(&self) {
        // An error means that the peer has reset the connection: there is nothing left to end.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends both directions; wakes a blocked `receive`.
    pub(crate) fn sever(&self) {
        // An error means that the peer has reset the connection: there is nothing left to sever.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
