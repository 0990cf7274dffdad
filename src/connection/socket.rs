//! The socket of an open connection.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::time::{Duration, SystemTime};

use socket2::Socket;

use crate::connection::Receiving;
use crate::sync::wake_pair::SignalPair;

/// The longest sleep in one `poll`.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
const SLEEP_MAX_WINDOWS: Duration = Duration::from_millis(100);

/// A connected, blocking socket. Every call may be made from any thread, and none takes a lock.
pub(crate) struct StreamSocket {
    socket: Socket,
    receiving: Receiving,
}

impl StreamSocket {
    /// `socket` is blocking; on Windows it has a receive timeout, because there `shutdown` does not
    /// wake a blocked `recv`.
    pub(crate) fn new(socket: Socket, receiving: Receiving) -> Self {
        StreamSocket { socket, receiving }
    }

    /// Asks the kernel to record the time of what comes, if the settings say so. A kernel that
    /// cannot gives no time.
    #[cfg(target_os = "linux")]
    pub(crate) fn record_times(&self) -> io::Result<()> {
        use nix::sys::socket::{setsockopt, sockopt::ReceiveTimestampns};
        if self.receiving.is_stamped {
            setsockopt(&self.socket, ReceiveTimestampns, &true)?;
        }
        Ok(())
    }

    /// Blocks until bytes come, and returns their number, 0 at the end, and the time at which the
    /// kernel got the last of them, if it says so. An interruption by a signal, or by the receive
    /// timeout of a platform that needs one, is `Interrupted`.
    pub(crate) fn receive(&self, room: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        #[cfg(unix)]
        if self.receiving.is_spinning {
            return self.until_ready(|| self.receive_now(room));
        }
        #[cfg(target_os = "linux")]
        if self.receiving.is_stamped {
            return self.receive_stamped(room, nix::sys::socket::MsgFlags::empty());
        }
        match (&self.socket).read(room) {
            Err(error)
                if cfg!(windows)
                    && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                Err(ErrorKind::Interrupted.into())
            }
            result => result.map(|count| (count, None)),
        }
    }

    /// Asks again and again. Ends as a blocking `recv` does: when bytes come, or when the
    /// connection is aborted.
    #[cfg(unix)]
    fn until_ready<T>(&self, mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match receive() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                result => return result,
            }
        }
    }

    /// As [`receive`](StreamSocket::receive), and `WouldBlock` when nothing is there.
    #[cfg(unix)]
    pub(crate) fn receive_now(&self, room: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        #[cfg(target_os = "linux")]
        if self.receiving.is_stamped {
            return self.receive_stamped(room, nix::sys::socket::MsgFlags::MSG_DONTWAIT);
        }
        Ok((rustix::net::recv(&self.socket, room, rustix::net::RecvFlags::DONTWAIT)?.1, None))
    }

    /// Windows has no flag for it: ask whether something is there.
    #[cfg(windows)]
    pub(crate) fn receive_now(&self, room: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&now))? {
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => self.receive(room),
        }
    }

    /// Returns `true` if the reader asks again and again instead of sleeping.
    pub(crate) fn is_spinning(&self) -> bool {
        self.receiving.is_spinning
    }

    /// Sleeps until there is something to receive, an end included, until somebody signals, or for
    /// `limit`, and clears the signals. May end early, by a signal of the system for example.
    pub(crate) fn await_bytes(
        &self,
        signals: Option<&SignalPair>,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        // On Windows `shutdown` may not end the sleep; other systems refuse times of weeks.
        let longest = if cfg!(windows) { SLEEP_MAX_WINDOWS } else { SLEEP_MAX };
        let limit = Some(limit.unwrap_or(longest).min(longest));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let socket = PollFd::new(&self.socket, PollFlags::IN);
        let (result, is_signaled) = match signals {
            None => (poll(&mut [socket], limit.as_ref()), None),
            Some(pair) => {
                let mut watched = [socket, PollFd::new(pair, PollFlags::IN)];
                let result = poll(&mut watched, limit.as_ref());
                (result, Some(pair).filter(|_| !watched[1].revents().is_empty()))
            }
        };
        if let Some(pair) = is_signaled {
            pair.clear();
        }
        match result {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// One `recvmsg`, which brings the kernel's time too.
    #[cfg(target_os = "linux")]
    fn receive_stamped(
        &self,
        room: &mut [u8],
        flags: nix::sys::socket::MsgFlags,
    ) -> io::Result<(usize, Option<SystemTime>)> {
        use nix::sys::socket::{ControlMessageOwned, recvmsg};
        use std::os::fd::AsRawFd;

        /// Room for the kernel's control messages, aligned as they have to be.
        #[repr(align(16))]
        struct Control([u8; 128]);

        let mut control = Control([0; 128]);
        let mut room = [io::IoSliceMut::new(room)];
        let message =
            recvmsg::<()>(self.socket.as_raw_fd(), &mut room, Some(&mut control.0), flags)?;
        let time = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(time),
            _ => None,
        });
        Ok((message.bytes, time.and_then(|time| SystemTime::UNIX_EPOCH.checked_add(time.into()))))
    }

    /// One `send` that does not wait for room; retried when a signal interrupts it.
    #[cfg(unix)]
    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        // Without MSG_NOSIGNAL an aborted connection would kill a program that has not asked to
        // ignore SIGPIPE. Apple has a socket option for it instead, which socket2 sets.
        #[cfg(not(target_vendor = "apple"))]
        const FLAGS: i32 = (rustix::net::SendFlags::DONTWAIT.bits()
            | rustix::net::SendFlags::NOSIGNAL.bits()) as i32;
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

    /// Waits for room to write. `true` also when the connection is broken: the send that follows
    /// says how. A signal may end the wait early.
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
    pub(crate) fn abort(&self) {
        // An error means that the peer has reset the connection: there is nothing left to abort.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
