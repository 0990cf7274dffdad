//! The full-duplex stream: one thread reads, any thread writes, and neither waits for the other.
//!
//! ```text
//! reader                                  writer (whoever holds the writer's lock)
//! ------                                  ----------------------------------------
//! recv(socket), no lock                   encode the frame, masked
//! lock engine: feed it, take plaintext    lock engine: encrypt into memory, take all output
//! unlock; parse, deliver                  unlock; send(socket)
//! ```
//!
//! A plain connection has no engine: reader and writers share nothing but the socket.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant, SystemTime};

use crate::connection::activity::Activity;
use crate::connection::socket::StreamSocket;
use crate::connection::tls_connection::{RECORD_MAX, TlsConnection};
use crate::protocol::read_buffer::ReadBuffer;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread::{self, ThreadId};
use crate::sync::wakeups::Wakeups;
use crate::sync::{self, Condvar, Mutex};
use crate::time::Deadline;

/// The number of bytes that the engine may hold for a peer that does not take them: far more than
/// any handshake of an honest one.
const OUTPUT_MAX: usize = 1024 * 1024;

/// The number of bytes that are encrypted under one hold of the engine. The reader waits no longer
/// than that takes.
const ENCRYPT_AT_ONCE: usize = 64 * 1024;

/// The number of bytes of plaintext that the reader takes out under one hold of the engine.
const DECRYPT_AT_ONCE: usize = 256 * 1024;

/// The ciphertext buffer of a quiet connection, and of a busy one.
const CIPHER_MIN: usize = 16 * 1024;
const CIPHER_MAX: usize = 128 * 1024;

/// The socket of an open connection, and the TLS engine beside it.
pub(crate) struct Transport {
    /// The reader thread, which also opened the connection.
    reader: ThreadId,
    /// The origin of the clock below.
    origin: Instant,
    /// The time since which no writer has made progress, in nanoseconds from `origin`; 0 while they
    /// do.
    stuck_since: AtomicU64,
    socket: StreamSocket,
    tls: Option<Tls>,
    is_aborted: AtomicBool,
}

struct Tls {
    /// Covers memory only. Taken after the writer's lock by writers, alone by the reader.
    engine: Mutex<Engine>,
    /// Signalled when the engine has been fed. Waits under `engine`.
    fed: Condvar,
}

struct Engine {
    stream: TlsConnection,
    /// The number of times it has been fed, so that a writer that waits for it misses none.
    feedings: u64,
}

/// The reader's part of the stream: never shared, never locked.
pub(crate) struct ReadHalf {
    /// Ciphertext on its way from the socket to the engine. Empty on a plain connection.
    cipher: Vec<u8>,
    /// The engine may hold plaintext that has not been taken yet.
    has_more: bool,
    /// The engine has produced output, an answer to a key update for example, that somebody has to
    /// send.
    owes_output: bool,
    /// The TLS engine failed behind plaintext that had to be delivered first.
    failure: Option<io::Error>,
    /// The time at which the kernel got the last bytes that `recv` brought, if it says so.
    kernel_time: Option<SystemTime>,
}

impl ReadHalf {
    pub(crate) fn owes_output(&self) -> bool {
        self.owes_output
    }

    pub(crate) fn kernel_time(&self) -> Option<SystemTime> {
        self.kernel_time
    }
}

/// The result of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Plaintext is in the buffer.
    Bytes,
    /// Bytes came, and no plaintext yet.
    Partial,
    /// The peer ended TCP, or TLS by its close_notify.
    End,
    /// Nothing came, and the handler is to be woken.
    Woken,
}

/// The writers' part of the stream. Guarded by the writer's lock.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    /// Encrypted bytes on their way to the kernel.
    cipher: Vec<u8>,
    /// The ends of the records in `cipher`: in the plaintext, and in `cipher`.
    records: Vec<(usize, usize)>,
    /// Bytes that go out before anything else: the rest of a frame for which the heartbeat thread
    /// does not wait.
    unsent: Vec<u8>,
    unsent_start: usize,
    /// The kernel had no room the last time. A writer then asks for room before it encrypts, which
    /// cannot be taken back.
    was_full: bool,
}

/// A transmission that failed.
#[derive(Debug)]
pub(crate) struct WriteError {
    /// The number of bytes, from the first, that the kernel is known to have taken.
    pub(crate) taken: usize,
    /// The kernel may have taken some beyond those.
    pub(crate) is_partial: bool,
    /// Nothing further can be sent on this connection.
    pub(crate) is_fatal: bool,
    pub(crate) kind: WriteErrorKind,
}

#[derive(Debug)]
pub(crate) enum WriteErrorKind {
    Deadline,
    System(io::Error),
}

impl WriteError {
    fn untouched(kind: WriteErrorKind) -> Self {
        let is_fatal = matches!(kind, WriteErrorKind::System(_));
        WriteError { taken: 0, is_partial: false, is_fatal, kind }
    }
}

/// The result of an attempt to send without waiting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The kernel has all of it.
    Sent,
    /// The rest is kept behind what the kernel has: `flush` goes on with it.
    Kept,
    /// Nothing was taken, encrypted or kept: try again later.
    Later,
}

impl Transport {
    /// `tls` has finished its handshake.
    pub(crate) fn new(socket: StreamSocket, tls: Option<TlsConnection>) -> Self {
        let tls = tls.map(|stream| Tls {
            engine: Mutex::new(Engine { stream, feedings: 0 }),
            fed: Condvar::new(),
        });
        Transport {
            reader: thread::current().id(),
            origin: sync::now(),
            stuck_since: AtomicU64::new(0),
            socket,
            tls,
            is_aborted: AtomicBool::new(false),
        }
    }

    /// The reader's half. The engine may hold plaintext from the handshake, so it is asked before
    /// the first `recv`.
    pub(crate) fn read_half(&self) -> ReadHalf {
        let cipher = if self.tls.is_some() { vec![0; CIPHER_MIN] } else { Vec::new() };
        ReadHalf {
            cipher,
            has_more: self.tls.is_some(),
            owes_output: false,
            failure: None,
            kernel_time: None,
        }
    }

    /// Blocks until something comes, or until the handler is to be woken. A wake-up waits for what
    /// is there to read. `since` is when the reader first waited after the last byte.
    ///
    /// Ends at once when the connection is aborted: `shutdown(Both)` wakes a blocked `recv`, and a
    /// `poll`.
    pub(crate) fn receive(
        &self,
        read_half: &mut ReadHalf,
        buffer: &mut ReadBuffer,
        wakeups: &Wakeups,
        activity: &Activity,
        since: Instant,
    ) -> io::Result<Received> {
        let recv =
            |room: &mut [u8], kernel_time: &mut Option<SystemTime>| match wakeups.are_in_use() {
                // Nobody but this thread can bring them into use.
                true => self.recv_unless_woken(room, kernel_time, wakeups, activity, since),
                false => {
                    activity.enter_recv(since);
                    self.recv_blocking(room, kernel_time).map(Some)
                }
            };
        let Some(tls) = &self.tls else {
            return Ok(match recv(buffer.room(), &mut read_half.kernel_time)? {
                Some(0) => Received::End,
                Some(filled) => {
                    buffer.filled(filled);
                    Received::Bytes
                }
                None => Received::Woken,
            });
        };
        if let Some(failure) = read_half.failure.take() {
            return Err(failure);
        }
        let filled = if read_half.has_more {
            0
        } else {
            match recv(&mut read_half.cipher, &mut read_half.kernel_time)? {
                Some(0) => return Ok(Received::End),
                Some(filled) => filled,
                None => return Ok(Received::Woken),
            }
        };
        tls.decrypt(read_half, filled, buffer)
    }

    /// Sleeps in `recv`, which is retried when a signal interrupts it.
    #[inline]
    fn recv_blocking(
        &self,
        room: &mut [u8],
        kernel_time: &mut Option<SystemTime>,
    ) -> io::Result<usize> {
        loop {
            if self.is_aborted() {
                return Ok(0);
            }
            match self.socket.receive(room) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => {
                    let (count, time) = result?;
                    *kernel_time = time;
                    return Ok(count);
                }
            }
        }
    }

    /// Asks whether something is there before it sleeps, and sleeps in `poll`. `None`: nothing is
    /// there, and the handler is to be woken.
    // A function of its own, so that most clients get the other one inlined.
    #[inline(never)]
    fn recv_unless_woken(
        &self,
        room: &mut [u8],
        kernel_time: &mut Option<SystemTime>,
        wakeups: &Wakeups,
        activity: &Activity,
        since: Instant,
    ) -> io::Result<Option<usize>> {
        loop {
            if self.is_aborted() {
                return Ok(Some(0));
            }
            match self.socket.receive_now(room) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Not before: what has come while the handler was busy proves the peer alive.
                    let now = sync::now();
                    activity.found_nothing(since, now);
                    if !self.await_bytes(wakeups, now)? {
                        return Ok(None);
                    }
                }
                result => {
                    let (count, time) = result?;
                    *kernel_time = time;
                    return Ok(Some(count));
                }
            }
        }
    }

    /// Waits until something may be there to read, and returns `true`, or until the handler is to
    /// be woken.
    fn await_bytes(&self, wakeups: &Wakeups, now: Instant) -> io::Result<bool> {
        if self.socket.is_spinning() {
            std::hint::spin_loop();
            return Ok(!wakeups.is_due());
        }
        let left = wakeups.next(now).map(|at| at.saturating_duration_since(now));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        self.socket.await_bytes(wakeups.pair(), left)?;
        Ok(true)
    }

    /// Gives back buffers that a burst has grown.
    pub(crate) fn shrink(&self, read_half: &mut ReadHalf) {
        if read_half.cipher.len() > CIPHER_MIN {
            read_half.cipher = vec![0; CIPHER_MIN];
        }
        if let Some(tls) = &self.tls {
            // The other of the two buffers that are swapped.
            tls.engine.lock().stream.buffers().shrink(CIPHER_MIN);
        }
    }

    /// Sends all of `bytes`, behind what is unsent, waiting for room until `deadline`.
    pub(crate) fn transmit(
        &self,
        write_buffer: &mut WriteBuffer,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<(), WriteError> {
        self.flush_until(write_buffer, deadline).map_err(WriteError::untouched)?;
        match &self.tls {
            None => {
                let mut taken = 0;
                self.send_all(&mut write_buffer.was_full, bytes, &mut taken, deadline).map_err(
                    |kind| WriteError {
                        taken,
                        is_partial: false,
                        is_fatal: matches!(kind, WriteErrorKind::System(_)),
                        kind,
                    },
                )
            }
            Some(tls) => self.transmit_encrypted(tls, write_buffer, bytes, deadline),
        }
    }

    fn transmit_encrypted(
        &self,
        tls: &Tls,
        write_buffer: &mut WriteBuffer,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<(), WriteError> {
        // Records that have been encrypted cannot be taken back: the next one would not decrypt. So
        // look for room first where there may be none.
        if write_buffer.was_full {
            self.await_room(deadline).map_err(WriteError::untouched)?;
        }
        let mut taken = 0;
        while taken < bytes.len() {
            let end = bytes.len().min(taken + ENCRYPT_AT_ONCE);
            write_buffer.records.clear();
            let encrypted = tls.encrypt(
                &bytes[taken..end],
                &mut write_buffer.cipher,
                &mut write_buffer.records,
            );
            let (advanced, feedings) = match encrypted {
                Ok(Encrypted::All) => (end - taken, None),
                Ok(Encrypted::Some { advanced, feedings }) => (advanced, Some(feedings)),
                Err(error) => {
                    return Err(WriteError {
                        taken,
                        is_partial: false,
                        is_fatal: true,
                        kind: WriteErrorKind::System(error),
                    });
                }
            };
            let mut sent = 0;
            let result = self.send_all(
                &mut write_buffer.was_full,
                &write_buffer.cipher,
                &mut sent,
                deadline,
            );
            write_buffer.cipher.clear();
            if let Err(kind) = result {
                // The peer can read whole records, and nothing of one that broke off.
                let whole =
                    write_buffer.records.iter().rev().find(|record| record.1 <= sent).copied();
                let (plain_end, cipher_end) = whole.unwrap_or_default();
                return Err(WriteError {
                    taken: taken + plain_end,
                    is_partial: sent > cipher_end,
                    is_fatal: true,
                    kind,
                });
            }
            taken += advanced;
            // A TLS 1.2 peer renegotiates: the engine takes nothing until the reader has fed it.
            if let Some(feedings) = feedings {
                if let Err(kind) = self.await_feeding(tls, feedings, deadline) {
                    // As long as the engine has nothing of these bytes, this connection can go on
                    // without them.
                    return Err(WriteError {
                        taken,
                        is_partial: false,
                        is_fatal: taken > 0 || self.is_aborted(),
                        kind,
                    });
                }
            }
        }
        write_buffer.cipher.shrink_to(2 * ENCRYPT_AT_ONCE);
        Ok(())
    }

    /// Waits until the kernel has room, before anything is given to it.
    pub(crate) fn await_room_untouched(&self, deadline: Deadline) -> Result<(), WriteError> {
        self.await_room(deadline).map_err(WriteError::untouched)
    }

    /// Sends `bytes` without waiting.
    pub(crate) fn attempt(
        &self,
        write_buffer: &mut WriteBuffer,
        bytes: &[u8],
    ) -> io::Result<Attempt> {
        if !self.flush(write_buffer)? {
            return Ok(Attempt::Later);
        }
        match &self.tls {
            None => match self.socket.send_now(bytes) {
                Ok(sent) if sent == bytes.len() => {
                    self.note_progress();
                    Ok(Attempt::Sent)
                }
                Ok(sent) => {
                    self.note_progress();
                    write_buffer.unsent.extend_from_slice(&bytes[sent..]);
                    write_buffer.was_full = true;
                    Ok(Attempt::Kept)
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    write_buffer.was_full = true;
                    self.note_stuck();
                    Ok(Attempt::Later)
                }
                Err(error) => Err(error),
            },
            Some(tls) => {
                let encrypted =
                    tls.encrypt(bytes, &mut write_buffer.unsent, &mut write_buffer.records)?;
                write_buffer.records.clear();
                let sent = self.flush(write_buffer)?;
                Ok(match encrypted {
                    // Control frames fit in one record, so it is all or nothing. A longer text may
                    // not, and cannot be begun anew.
                    Encrypted::Some { advanced, .. } if advanced > 0 => {
                        return Err(io::Error::other(
                            "the peer renegotiates TLS in the middle of a message",
                        ));
                    }
                    Encrypted::Some { .. } => {
                        self.note_stuck();
                        Attempt::Later
                    }
                    Encrypted::All if sent => Attempt::Sent,
                    Encrypted::All => Attempt::Kept,
                })
            }
        }
    }

    /// Sends the engine's own output and what is unsent, without waiting. Returns `true` when all
    /// of it went.
    pub(crate) fn flush_output(&self, write_buffer: &mut WriteBuffer) -> io::Result<bool> {
        if let Some(tls) = &self.tls {
            tls.engine.lock().stream.buffers().take_output(&mut write_buffer.unsent)?;
        }
        let is_flushed = self.flush(write_buffer)?;
        refuse_too_much(write_buffer.unsent.len() - write_buffer.unsent_start)?;
        Ok(is_flushed)
    }

    /// Closes our direction of the stream: close_notify where there is TLS, and FIN. Sends only
    /// what the kernel takes at once.
    pub(crate) fn half_close(&self, write_buffer: &mut WriteBuffer) {
        if let Some(tls) = &self.tls {
            // The answer to close_notify is of no interest: the peer has said all that it had to
            // say.
            let mut engine = tls.engine.lock();
            let _ = engine.stream.enter().shutdown();
            let _ = engine.stream.buffers().close_outer();
        }
        if let Ok(true) = self.flush_output(write_buffer) {
            self.socket.end_writing();
        }
    }

    /// Ends the connection now: a blocked `recv` or send returns at once.
    pub(crate) fn abort(&self) {
        self.is_aborted.store(true, Ordering::SeqCst);
        self.socket.abort();
        if let Some(tls) = &self.tls {
            // The lock makes this wake whoever is about to wait.
            let _engine = tls.engine.lock();
            tls.fed.notify_all();
        }
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::SeqCst)
    }

    /// Sends what is unsent, without waiting. Returns `true` when all of it went.
    fn flush(&self, write_buffer: &mut WriteBuffer) -> io::Result<bool> {
        while write_buffer.unsent_start < write_buffer.unsent.len() {
            match self.socket.send_now(&write_buffer.unsent[write_buffer.unsent_start..]) {
                Ok(sent) => {
                    write_buffer.unsent_start += sent;
                    self.note_progress();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    write_buffer.was_full = true;
                    self.note_stuck();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        write_buffer.unsent.clear();
        write_buffer.unsent_start = 0;
        Ok(true)
    }

    /// Waits until the reader has fed the engine more than `feedings` times.
    fn await_feeding(
        &self,
        tls: &Tls,
        feedings: u64,
        deadline: Deadline,
    ) -> Result<(), WriteErrorKind> {
        if self.reader == thread::current().id() {
            // A handler's send: nobody else reads.
            let context = "the peer renegotiates TLS, for which this thread has to read: send when \
                           the handler has returned";
            return Err(WriteErrorKind::System(io::Error::new(ErrorKind::WouldBlock, context)));
        }
        self.note_stuck();
        let mut engine = tls.engine.lock();
        while engine.feedings == feedings {
            if self.is_aborted() {
                return Err(WriteErrorKind::System(ErrorKind::BrokenPipe.into()));
            }
            if deadline.has_passed(sync::now()) {
                return Err(WriteErrorKind::Deadline);
            }
            tls.fed.wait_until(&mut engine, deadline.at());
        }
        self.note_progress();
        Ok(())
    }

    fn flush_until(
        &self,
        write_buffer: &mut WriteBuffer,
        deadline: Deadline,
    ) -> Result<(), WriteErrorKind> {
        while !self.flush(write_buffer).map_err(WriteErrorKind::System)? {
            self.await_room(deadline)?;
        }
        Ok(())
    }

    /// Returns since when nothing can be written: the peer reads nothing, or takes no part in a
    /// renegotiation. `None` if nobody has noticed that, and as soon as bytes go: a peer that reads
    /// slowly reads.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        let nanos = self.stuck_since.load(Ordering::Acquire);
        (nanos != 0).then(|| self.origin + Duration::from_nanos(nanos))
    }

    fn note_stuck(&self) {
        let nanos = sync::now().saturating_duration_since(self.origin).as_nanos() as u64;
        // The first who notices it counts.
        let _ =
            self.stuck_since.compare_exchange(0, nanos.max(1), Ordering::AcqRel, Ordering::Acquire);
    }

    fn note_progress(&self) {
        // It is 0 nearly always, and reading is cheaper than writing.
        if self.stuck_since.load(Ordering::Relaxed) != 0 {
            self.stuck_since.store(0, Ordering::Release);
        }
    }

    fn send_all(
        &self,
        was_full: &mut bool,
        bytes: &[u8],
        taken: &mut usize,
        deadline: Deadline,
    ) -> Result<(), WriteErrorKind> {
        *was_full = false;
        while *taken < bytes.len() {
            match self.socket.send_now(&bytes[*taken..]) {
                Ok(sent) => {
                    *taken += sent;
                    self.note_progress();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    *was_full = true;
                    self.await_room(deadline)?;
                }
                Err(error) => return Err(WriteErrorKind::System(error)),
            }
        }
        Ok(())
    }

    /// Waits until the kernel has room, or the connection is aborted: the send that follows says
    /// which.
    fn await_room(&self, deadline: Deadline) -> Result<(), WriteErrorKind> {
        // Usually there is none: the kernel has just said so.
        while !self.socket.has_room_within(Duration::ZERO).map_err(WriteErrorKind::System)? {
            self.note_stuck();
            let left = deadline.left(sync::now()).ok_or(WriteErrorKind::Deadline)?;
            if self.socket.has_room_within(left).map_err(WriteErrorKind::System)? {
                break;
            }
        }
        self.note_progress();
        Ok(())
    }
}

/// A peer may ask for any number of answers (TLS 1.3 key updates, RFC 8446 section 4.6.3) and read
/// none of them.
fn refuse_too_much(output: usize) -> io::Result<()> {
    if output > OUTPUT_MAX {
        return Err(io::Error::other("the peer has TLS answer more than it reads"));
    }
    Ok(())
}

/// The progress of an encryption.
enum Encrypted {
    All,
    /// The engine takes no more until it has been fed once more than `feedings`.
    Some {
        advanced: usize,
        feedings: u64,
    },
}

impl Tls {
    /// Encrypts `bytes` behind what `cipher` holds, and notes where each record ends.
    fn encrypt(
        &self,
        bytes: &[u8],
        cipher: &mut Vec<u8>,
        records: &mut Vec<(usize, usize)>,
    ) -> io::Result<Encrypted> {
        let mut engine = self.engine.lock();
        let Engine { stream, feedings } = &mut *engine;
        let stream = stream.enter();
        let mut advanced = 0;
        let mut stuck = None;
        while advanced < bytes.len() {
            let end = bytes.len().min(advanced + RECORD_MAX);
            match stream.write(&bytes[advanced..end]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    advanced += count;
                    records.push((advanced, cipher.len() + stream.buffers().output_len()?));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stuck = Some(*feedings);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        // All of it, in this same hold: records must reach the wire in the order in which they were
        // made.
        stream.buffers().take_output(cipher)?;
        Ok(stuck.map_or(Encrypted::All, |feedings| Encrypted::Some { advanced, feedings }))
    }

    fn decrypt(
        &self,
        read_half: &mut ReadHalf,
        filled: usize,
        buffer: &mut ReadBuffer,
    ) -> io::Result<Received> {
        let mut engine = self.engine.lock();
        if filled > 0 {
            let was_filled_up = filled == read_half.cipher.len();
            engine.stream.buffers().feed(&mut read_half.cipher, filled);
            engine.feedings += 1;
            self.fed.notify_all();
            // The buffer that came back may be the smaller of the two that are swapped.
            if was_filled_up && read_half.cipher.len() < CIPHER_MAX {
                read_half.cipher.resize(2 * read_half.cipher.len().max(CIPHER_MIN), 0);
            }
        }
        let mut taken = 0;
        read_half.has_more = true;
        let stream = engine.stream.enter();
        while taken < DECRYPT_AT_ONCE {
            let room = buffer.room();
            match stream.read(room) {
                Ok(0) => {
                    // close_notify; what came before it is delivered first.
                    return Ok(if taken > 0 { Received::Bytes } else { Received::End });
                }
                Ok(count) => {
                    buffer.filled(count);
                    taken += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    read_half.has_more = false;
                    break;
                }
                // Asked again, the engine may tell an orderly end instead: see the error kept here.
                Err(error) if taken > 0 => {
                    read_half.failure = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let output = stream.buffers().output_len()?;
        refuse_too_much(output)?;
        read_half.owes_output = output > 0;
        Ok(if taken > 0 { Received::Bytes } else { Received::Partial })
    }
}
