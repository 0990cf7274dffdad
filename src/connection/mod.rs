//! One open connection: who reads, who writes, what the library owes the peer, and how it ends.

pub(crate) mod pending_pings;
#[cfg(not(shuttle))]
pub(crate) mod socket;
#[cfg(shuttle)]
pub(crate) use crate::model::socket;
pub(crate) mod tls_buffers;
pub(crate) mod transport;
pub(crate) mod writer;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::error::{BatchError, CloseReason, Error, ErrorKind, SendError};
use crate::event::Payload;
use crate::stats::Counters;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::channel::Sender as WakeTx;
use crate::sync::{self, Condvar, Mutex, MutexGuard};
use crate::time::{Deadline, Liveness};
use pending_pings::PendingPings;
use socket::StreamSocket;
use transport::{Attempt, TlsEngine, Transport};
use writer::{Failed, FailedBatch, FrameWriter, Sent};

/// The heart waits no longer than this for the writer's lock; it tries again, and looks at shutdown
/// in between.
const HEART_PATIENCE: Duration = Duration::from_millis(10);

/// Pongs that may be owed at once: more than any polite server asks for, and little enough to keep.
/// The oldest makes room.
const PONGS_OWED: usize = 16;

/// How the reader of a connection asks the kernel for bytes.
#[derive(Clone, Copy, Default)]
#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "some of it is not to be had there")
)]
pub(crate) struct Receiving {
    /// It asks again and again instead of sleeping.
    pub(crate) is_spinning: bool,
    /// The kernel says when it got what comes.
    pub(crate) is_stamped: bool,
}

/// Gives the next fragment of a message, or `None` after the last.
pub(crate) type NextFragment<'f, 'a> = dyn FnMut() -> Result<Option<Cow<'a, [u8]>>, Error> + 'f;

/// One open connection, shared by the reader, the heart and all senders.
///
/// Locks, none of which is held while another is taken but `writer` before `pings` and before the
/// TLS engine: `writer`, `pings`, `pending`, `end`.
pub(crate) struct OpenConnection {
    pub(crate) epoch: u64,
    /// `host:port`, for errors and logs.
    pub(crate) peer: String,
    /// When the connection was opened; the clocks below count nanoseconds from it.
    origin: Instant,
    pub(crate) transport: Transport,
    writer: Mutex<FrameWriter>,
    /// Signalled when a fragmented message is over. Waits under `writer`.
    fragments_over: Condvar,
    pings: Mutex<PendingPings>,
    pending: Mutex<PendingControl>,
    end: Mutex<End>,
    /// Rings the heart.
    wakeup: WakeTx<()>,
    pub(crate) counters: Arc<Counters>,
    /// When the reader went into `recv`, 0 while it is elsewhere. Written by the reader alone, as
    /// are the two below.
    entered_recv: AtomicU64,
    last_byte: AtomicU64,
    last_data: AtomicU64,
    /// When the oldest unanswered application ping was written, 0 when there is none.
    app_ping_written: AtomicU64,
    /// Pongs are owed. A sender that comes by writes them first, so that a pong never waits behind
    /// messages that came to mind later.
    owes_pongs: AtomicBool,
    /// No send may start any more: the connection is on its way to its end.
    is_ending: AtomicBool,
    /// No message may be delivered any more. Looked at once per message.
    delivery_stopped: AtomicBool,
    /// The number of the last message that was sent or begun, for readers without the writer's
    /// lock.
    sequence: AtomicU64,
}

/// What the heart owes the peer. Written by the reader and by users, worked off by the heart.
#[derive(Default)]
struct PendingControl {
    pongs: VecDeque<Vec<u8>>,
    pings: usize,
    close_handshake: CloseHandshake,
}

/// How far the polite end of a connection has come.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(crate) enum CloseHandshake {
    /// None is needed.
    #[default]
    None,
    /// A close frame is owed. When it is out, the peer's is awaited, unless it has come already.
    Owed(CloseFrame),
    /// Our close frame is out.
    Sent,
    /// TCP has been half-closed: nothing is left to say.
    Over,
}

/// What our close frame says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CloseFrame {
    /// `None`: an empty close frame, the answer to an empty one.
    code: Option<u16>,
    reason: Arc<str>,
}

/// What a close frame holds beside its code: a control frame has 125 bytes (RFC 6455 section 5.5).
const REASON_MAX: usize = 123;

impl CloseFrame {
    /// A code of the library's own choice, and no reason.
    pub(crate) fn new(code: impl Into<Option<u16>>) -> Self {
        CloseFrame { code: code.into(), reason: Arc::default() }
    }

    /// The end that needs no words: 1000.
    pub(crate) fn normal() -> Self {
        Self::new(1000)
    }

    /// What a user wants to say, if it may be said (RFC 6455 section 7.4): 1002 is ours to tell,
    /// 1004 to 1006 and 1015 never travel.
    pub(crate) fn said(close: &CloseReason) -> Result<Self, Error> {
        let CloseReason { code, reason } = close;
        if !matches!(code, 1000 | 1001 | 1003 | 1007..=1014 | 3000..=4999) {
            let what = format!(
                "close code {code}: 1000, 1001, 1003, 1007 to 1014 and 3000 to 4999 may be sent"
            );
            return Err(Error::config(what));
        }
        if reason.len() > REASON_MAX {
            let what = format!(
                "a close reason of {} bytes: at most {REASON_MAX} may be sent",
                reason.len()
            );
            return Err(Error::config(what));
        }
        Ok(CloseFrame { code: Some(*code), reason: reason.as_str().into() })
    }

    pub(crate) fn to_close_reason(&self) -> CloseReason {
        CloseReason::new(self.code.unwrap_or(1005), &*self.reason)
    }
}

impl fmt::Debug for CloseFrame {
    /// The reason stays out, as everywhere.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloseFrame").field("code", &self.code).finish_non_exhaustive()
    }
}

/// Why a connection ends, as far as it is known.
#[derive(Default)]
struct End {
    /// What the first of those who aborted or left the connection gave as a reason.
    reason: Option<Error>,
    /// A reset that a write met.
    reset: Option<Error>,
    /// What the peer's close frame said.
    peer_close: Option<CloseReason>,
    /// What ours says, if it was our idea.
    own_close: Option<CloseFrame>,
    /// By when a polite end has to be over.
    until: Option<Instant>,
}

/// A fragmented message under way. However it ends, whoever waits for it goes on; if it broke off,
/// the connection is over.
struct Fragments<'a> {
    connection: &'a OpenConnection,
    broken_by: Option<Error>,
}

impl Drop for Fragments<'_> {
    fn drop(&mut self) {
        self.connection.writer.lock().end_fragments(self.broken_by.is_some());
        self.connection.fragments_over.notify_all();
        if let Some(reason) = self.broken_by.take() {
            self.connection.end_writing(reason);
        }
    }
}

impl OpenConnection {
    pub(crate) fn new(
        epoch: u64,
        peer: String,
        socket: StreamSocket,
        tls: Option<TlsEngine>,
        writer: FrameWriter,
        wakeup: WakeTx<()>,
        counters: Arc<Counters>,
    ) -> Self {
        OpenConnection {
            epoch,
            peer,
            origin: sync::now(),
            transport: Transport::new(socket, tls),
            writer: Mutex::new(writer),
            fragments_over: Condvar::new(),
            pings: Mutex::default(),
            pending: Mutex::default(),
            end: Mutex::default(),
            wakeup,
            counters,
            entered_recv: AtomicU64::new(0),
            last_byte: AtomicU64::new(0),
            last_data: AtomicU64::new(0),
            app_ping_written: AtomicU64::new(0),
            owes_pongs: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
            delivery_stopped: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
        }
    }

    pub(crate) fn opened_at(&self) -> Instant {
        self.origin
    }

    // ---- Sending, from any thread ----

    /// Sends one message within the deadline.
    pub(crate) fn send(&self, payload: Payload<'_>, deadline: Deadline) -> Result<Sent, SendError> {
        let mut writer = self.writer_until(deadline).map_err(SendError::NotSent)?;
        self.flush_pongs(&mut writer);
        self.begin(writer.sequence(), 1).map_err(SendError::NotSent)?;
        let result = writer.send(&self.transport, payload, deadline);
        self.sequence.store(writer.sequence(), Ordering::Release);
        drop(writer);
        match result {
            Ok(sent) => {
                log::trace!("{}: sent {payload:?}", self.peer);
                self.counters.sent(1, sent.bytes);
                Ok(sent)
            }
            Err(Failed { error, aborts }) => {
                self.abort_if(aborts, error.reason());
                Err(error)
            }
        }
    }

    /// Sends several messages within the deadline.
    pub(crate) fn send_batch(
        &self,
        payloads: &[Payload<'_>],
        deadline: Deadline,
    ) -> Result<Sent, BatchError> {
        let not_sent = |error| BatchError { sent: 0, next: SendError::NotSent(error) };
        let mut writer = self.writer_until(deadline).map_err(not_sent)?;
        self.flush_pongs(&mut writer);
        let begin = |sequence, messages| self.begin(sequence, messages);
        let result = writer.send_batch(&self.transport, payloads, deadline, &begin);
        self.sequence.store(writer.sequence(), Ordering::Release);
        drop(writer);
        match result {
            Ok(sent) => {
                log::trace!("{}: sent {payloads:?}", self.peer);
                self.counters.sent(payloads.len() as u64, sent.bytes);
                Ok(sent)
            }
            Err(FailedBatch { error, aborts, bytes }) => {
                self.counters.sent(error.sent as u64, bytes);
                self.abort_if(aborts, error.next.reason());
                Err(error)
            }
        }
    }

    /// The writer, once whoever holds it lets go.
    fn writer_until(&self, deadline: Deadline) -> Result<MutexGuard<'_, FrameWriter>, Error> {
        self.refuse_if_ending()?;
        let late = || deadline.error("waiting for another sender on this connection");
        // Uncontended, this reads no clock.
        let mut writer = match self.writer.try_lock() {
            Some(writer) => writer,
            None => self.writer.try_lock_until(deadline.at()).ok_or_else(late)?,
        };
        while writer.is_fragmenting() {
            if self.fragments_over.wait_until(&mut writer, deadline.at()).timed_out()
                && writer.is_fragmenting()
            {
                return Err(late());
            }
        }
        Ok(writer)
    }

    /// Sends one message in fragments as `next` gives them. Between two of them control frames may
    /// pass, and other messages may not.
    pub(crate) fn send_fragmented<'a>(
        &self,
        kind: Data,
        next: &mut NextFragment<'_, 'a>,
        deadline: Deadline,
    ) -> Result<Sent, SendError> {
        let Some(first) = next().map_err(SendError::NotSent)? else {
            let reason =
                Error::new(ErrorKind::Config, "a message of no fragments: give it at least one");
            return Err(SendError::NotSent(reason));
        };
        let mut writer = self.writer_until(deadline).map_err(SendError::NotSent)?;
        writer.begin_fragments().map_err(|failed| failed.error)?;
        // If what gives the fragments panics, this is the reason.
        let panicked = Error::new(
            ErrorKind::Io,
            "what gave the fragments of a message panicked in the middle of it",
        );
        let mut fragments = Fragments { connection: self, broken_by: Some(panicked) };
        let result = self.send_fragments(writer, kind, first, next, deadline);
        fragments.broken_by = match &result {
            Err(Failed { error, aborts: true }) => Some(error.reason().clone()),
            _ => None,
        };
        drop(fragments);
        match result {
            Ok(sent) => {
                self.counters.sent(1, sent.bytes);
                Ok(sent)
            }
            Err(Failed { error, .. }) => Err(error),
        }
    }

    fn send_fragments<'a>(
        &self,
        mut writer: MutexGuard<'_, FrameWriter>,
        kind: Data,
        first: Cow<'a, [u8]>,
        next: &mut NextFragment<'_, 'a>,
        deadline: Deadline,
    ) -> Result<Sent, Failed> {
        let (mut current, mut is_first, mut bytes) = (first, true, 0);
        loop {
            // Fetched without the lock: it may take its time, and the heart must not wait for it.
            let following = MutexGuard::unlocked(&mut writer, &mut *next);
            let in_place = |error| {
                if is_first {
                    Failed::harmless(error)
                } else {
                    Failed::harmless(error).in_the_middle()
                }
            };
            let following = following.map_err(in_place)?;
            if deadline.has_passed(sync::now()) {
                return Err(in_place(deadline.error("waiting for the next fragment")));
            }
            self.flush_pongs(&mut writer);
            if is_first {
                self.begin(writer.sequence(), 1).map_err(Failed::harmless)?;
            }
            let opcode = OpCode::Data(if is_first { kind } else { Data::Continue });
            bytes += writer.send_fragment(
                &self.transport,
                opcode,
                &current,
                following.is_none(),
                deadline,
            )?;
            log::trace!("{}: sent {opcode:?}({} bytes)", self.peer, current.len());
            self.sequence.store(writer.sequence(), Ordering::Release);
            match following {
                Some(fragment) => (current, is_first) = (fragment, false),
                None => return Ok(Sent { sequence: writer.sequence(), bytes }),
            }
        }
    }

    /// Counts messages beyond `sequence` as begun before their first byte leaves: the connection
    /// may end, and its end be told, before the send returns. None begins once that is being told:
    /// who tells it sees the number, or who sends sees the end, or both, and what is told is too
    /// high by what was not sent.
    fn begin(&self, sequence: u64, messages: u64) -> Result<(), Error> {
        self.sequence.store(sequence + messages, Ordering::SeqCst);
        let ending = self.refuse_if_ending();
        if ending.is_err() {
            self.sequence.store(sequence, Ordering::SeqCst);
        }
        ending
    }

    /// Writes the pongs that are owed, as far as there is room. What goes wrong here goes wrong
    /// again for the frame that follows.
    fn flush_pongs(&self, writer: &mut FrameWriter) {
        if self.owes_pongs.load(Ordering::Acquire) {
            let _ = self.write_pongs(writer);
        }
    }

    fn abort_if(&self, aborts: bool, reason: &Error) {
        if aborts {
            self.end_writing(reason.clone());
        }
    }

    /// Nothing further can be written. Where the peer has ended the connection the reader is left
    /// to hear of it: what the peer said last, the reason of its close above all, may lie unread in
    /// the kernel, and aborting would lose it. Otherwise the connection is aborted.
    pub(crate) fn end_writing(&self, reason: Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match reason.io_kind() {
            Some(kind @ (BrokenPipe | ConnectionAborted | ConnectionReset)) => {
                self.is_ending.store(true, Ordering::Release);
                // The kernel tells of a reset once. Told here, the reader would take the end for
                // one without a reason.
                if kind != BrokenPipe {
                    self.end.lock().reset.get_or_insert(reason);
                }
            }
            _ => self.abort(reason),
        }
    }

    /// Asks the heart for a ping.
    pub(crate) fn ask_for_ping(&self) -> Result<(), SendError> {
        self.refuse_if_ending().map_err(SendError::NotSent)?;
        self.pending.lock().pings += 1;
        self.wake();
        Ok(())
    }

    fn refuse_if_ending(&self) -> Result<(), Error> {
        if self.is_ending.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "the connection is on its way to its end"));
        }
        Ok(())
    }

    // ---- Reading, from the reader thread ----

    /// The reader is about to enter `recv`.
    pub(crate) fn enter_recv(&self) {
        self.entered_recv.store(self.nanos(sync::now()), Ordering::Release);
    }

    /// The reader has left `recv` at `now`; `got` says whether bytes came.
    pub(crate) fn leave_recv(&self, now: Instant, got: bool) {
        self.entered_recv.store(0, Ordering::Release);
        if got {
            self.last_byte.store(self.nanos(now), Ordering::Release);
        }
    }

    /// Data messages have been delivered.
    pub(crate) fn note_data(&self, now: Instant) {
        self.last_data.store(self.nanos(now), Ordering::Release);
    }

    /// A ping came: a pong is owed (RFC 6455 section 5.5.2). The same payload is owed once.
    pub(crate) fn queue_pong(&self, payload: &[u8]) {
        log::trace!("{}: received Ping({} bytes)", self.peer, payload.len());
        let mut pending = self.pending.lock();
        if pending.pongs.iter().any(|owed| owed == payload) {
            return;
        }
        if pending.pongs.len() == PONGS_OWED {
            pending.pongs.pop_front();
        }
        pending.pongs.push_back(payload.to_vec());
        self.owes_pongs.store(true, Ordering::Release);
        drop(pending);
        self.wake();
    }

    /// A pong came.
    pub(crate) fn note_pong(&self, payload: &[u8], now: Instant) {
        log::trace!("{}: received Pong({} bytes)", self.peer, payload.len());
        if let Some(round_trip) = self.pings.lock().answered(payload, now) {
            self.counters.round_trip(round_trip);
        }
    }

    pub(crate) fn awaits_app_reply(&self) -> bool {
        self.app_ping_written.load(Ordering::Acquire) != 0
    }

    pub(crate) fn note_app_reply(&self) {
        self.app_ping_written.store(0, Ordering::Release);
    }

    /// The peer's close frame came, or the connection has to end politely for a reason of ours: a
    /// close frame is owed. The first one's words are sent.
    pub(crate) fn begin_close(&self, close: CloseFrame, until: Instant) {
        self.is_ending.store(true, Ordering::Release);
        let close = {
            let mut end = self.end.lock();
            end.until = Some(end.until.map_or(until, |earlier| earlier.min(until)));
            end.own_close.get_or_insert(close).clone()
        };
        let mut pending = self.pending.lock();
        if pending.close_handshake == CloseHandshake::None {
            pending.close_handshake = CloseHandshake::Owed(close);
        }
        drop(pending);
        self.wake();
    }

    /// Keeps what the peer's close frame said.
    pub(crate) fn note_peer_close(&self, close: CloseReason) {
        self.is_ending.store(true, Ordering::Release);
        self.end.lock().peer_close.get_or_insert(close);
        self.wake();
    }

    /// The engine may have output, or the peer has closed: the heart should look.
    pub(crate) fn wake(&self) {
        // Full means that it rings already.
        let _ = self.wakeup.try_send(());
    }

    // ---- Ending ----

    /// A user wants another connection: this one ends politely, and no further message of it is
    /// delivered.
    pub(crate) fn close_for_reconnect(&self, close: CloseFrame, until: Instant) {
        let close = {
            let mut end = self.end.lock();
            // Before the reader is halted: it owes a close frame too, when it comes to see that,
            // and finds these words.
            let close = end.own_close.get_or_insert(close).clone();
            let told = || Error::reconnect_requested(close.to_close_reason());
            end.reason.get_or_insert_with(told);
            close
        };
        self.delivery_stopped.store(true, Ordering::Release);
        self.begin_close(close, until);
    }

    /// Whether the reader has to stop delivering: somebody has aborted or left the connection.
    #[inline]
    pub(crate) fn delivery_stopped(&self) -> bool {
        self.delivery_stopped.load(Ordering::Relaxed)
    }

    /// Ends the connection now. The first reason is kept.
    pub(crate) fn abort(&self, reason: Error) {
        self.is_ending.store(true, Ordering::Release);
        self.end.lock().reason.get_or_insert(reason);
        self.delivery_stopped.store(true, Ordering::Release);
        self.transport.abort();
    }

    /// Why the connection was aborted, if somebody of ours did it.
    pub(crate) fn reason(&self) -> Option<Error> {
        self.end.lock().reason.clone()
    }

    /// The reset that a write met, if one did.
    pub(crate) fn reset(&self) -> Option<Error> {
        self.end.lock().reset.clone()
    }

    /// What our close frame says, once one is owed.
    pub(crate) fn own_close(&self) -> Option<CloseFrame> {
        self.end.lock().own_close.clone()
    }

    /// The close code and reason of RFC 6455 section 7.1.5, as far as they are known: the peer's,
    /// or ours, or 1006 for no close frame. And whether they are the peer's.
    pub(crate) fn close_reason(&self) -> (CloseReason, bool) {
        let end = self.end.lock();
        let close = match (&end.peer_close, &end.own_close) {
            (Some(close), _) => close.clone(),
            (None, Some(own)) => own.to_close_reason(),
            (None, None) => CloseReason::abnormal(),
        };
        (close, end.peer_close.is_some())
    }

    /// The highest sequence that was sent or begun, and the highest that a pong covers, when all is
    /// over: no send begins any more.
    pub(crate) fn final_sequences(&self) -> (u64, u64) {
        self.is_ending.store(true, Ordering::SeqCst);
        (self.sequence.load(Ordering::SeqCst), self.pings.lock().confirmed())
    }

    // ---- The heart's work: nothing here waits longer than HEART_PATIENCE ----

    pub(crate) fn liveness(&self) -> Liveness {
        let pinged = self.pings.lock().oldest_unanswered();
        let app_pinged = self.instant(self.app_ping_written.load(Ordering::Acquire));
        Liveness {
            oldest_unanswered: crate::time::earliest([pinged, app_pinged]),
            in_recv_since: self.instant(self.entered_recv.load(Ordering::Acquire)),
            last_data: self.instant(self.last_data.load(Ordering::Acquire)).unwrap_or(self.origin),
            awake_since: None,
        }
    }

    /// When the last byte came: the opening counts as one.
    pub(crate) fn last_byte(&self) -> Instant {
        self.instant(self.last_byte.load(Ordering::Acquire)).unwrap_or(self.origin)
    }

    /// By when the polite end has to be over, once it has begun.
    pub(crate) fn close_until(&self) -> Option<Instant> {
        self.end.lock().until
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.transport.is_aborted()
    }

    /// Works off what is owed: pongs, pings that a user asked for, the close_handshake, the
    /// engine's own output. Whether nothing is left.
    pub(crate) fn flush_pending(&self, now: Instant) -> io::Result<bool> {
        let Some(mut writer) = self.writer.try_lock_for(HEART_PATIENCE) else { return Ok(false) };
        if !self.transport.flush_output(writer.write_buffer())? {
            return Ok(false);
        }
        // The frames go out in this order; each is taken off the list once the kernel, or the
        // wire's own buffer, has it.
        if !self.write_pongs(&mut writer)? {
            return Ok(false);
        }
        while self.take_asked_ping() {
            if !self.write_ping_with(&mut writer, now)? {
                self.pending.lock().pings += 1;
                return Ok(false);
            }
        }
        self.write_close(&mut writer)
    }

    /// Writes a ping, unless there is no room for it: `false` then, and the wait for it counts like
    /// the wait for a pong.
    pub(crate) fn write_ping(&self, now: Instant) -> io::Result<bool> {
        let Some(mut writer) = self.writer.try_lock_for(HEART_PATIENCE) else { return Ok(false) };
        self.write_ping_with(&mut writer, now)
    }

    fn write_ping_with(&self, writer: &mut FrameWriter, now: Instant) -> io::Result<bool> {
        let nonce = writer.nonce();
        let covers = writer.whole_sequence();
        // The peer neither reads nor sends: from its side that is silence like any other, so the
        // clock runs for the frame in our hands too. Written down before it is sent: the pong may
        // be here before `attempt_control` returns.
        self.pings.lock().wrote(nonce, sync::now().max(now), covers);
        let is_out = self.write_control(writer, Control::Ping, &nonce)?;
        if !is_out {
            self.pings.lock().withdraw();
        }
        Ok(is_out)
    }

    /// Writes an application ping; `false` when there is no room for it now.
    pub(crate) fn write_app_ping(
        &self,
        text: &str,
        awaits_reply: bool,
        now: Instant,
    ) -> io::Result<bool> {
        let Some(mut writer) = self.writer.try_lock_for(HEART_PATIENCE) else { return Ok(false) };
        if writer.is_fragmenting() {
            return Ok(false);
        }
        if writer.is_closed() {
            return Ok(true);
        }
        if awaits_reply {
            // The oldest unanswered one stands.
            let _ = self.app_ping_written.compare_exchange(
                0,
                self.nanos(now),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
        if self.begin(writer.sequence(), 1).is_err() {
            return Ok(true);
        }
        let (attempt, bytes) = writer.attempt_text(&self.transport, text)?;
        self.sequence.store(writer.sequence(), Ordering::Release);
        if attempt == Attempt::Later {
            return Ok(false);
        }
        self.counters.sent(1, bytes);
        log::trace!("{}: sent {:?}, an application ping", self.peer, Payload::Text(text));
        Ok(true)
    }

    /// Writes a control frame, unless there is no room for it: `false` then. Where nothing may be
    /// written any more, nothing is owed.
    fn write_control(
        &self,
        writer: &mut FrameWriter,
        opcode: Control,
        payload: &[u8],
    ) -> io::Result<bool> {
        if writer.is_closed() {
            return Ok(true);
        }
        if writer.attempt_control(&self.transport, opcode, payload)? == Attempt::Later {
            return Ok(false);
        }
        log::trace!("{}: sent {opcode:?}({} bytes)", self.peer, payload.len());
        Ok(true)
    }

    fn write_pongs(&self, writer: &mut FrameWriter) -> io::Result<bool> {
        while let Some(pong) = self.next_pong() {
            if !self.write_control(writer, Control::Pong, &pong)? {
                let mut pending = self.pending.lock();
                pending.pongs.push_front(pong);
                self.owes_pongs.store(true, Ordering::Release);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn next_pong(&self) -> Option<Vec<u8>> {
        let mut pending = self.pending.lock();
        let pong = pending.pongs.pop_front();
        self.owes_pongs.store(!pending.pongs.is_empty(), Ordering::Release);
        pong
    }

    fn take_asked_ping(&self) -> bool {
        let mut pending = self.pending.lock();
        let asked = pending.pings > 0;
        // One ping answers all who asked before it.
        pending.pings = 0;
        asked
    }

    fn write_close(&self, writer: &mut FrameWriter) -> io::Result<bool> {
        let close_handshake = self.pending.lock().close_handshake.clone();
        let next = match close_handshake {
            CloseHandshake::None | CloseHandshake::Over => return Ok(true),
            CloseHandshake::Owed(close) => {
                let mut payload = Vec::with_capacity(2 + close.reason.len());
                if let Some(code) = close.code {
                    payload.extend_from_slice(&code.to_be_bytes());
                    payload.extend_from_slice(close.reason.as_bytes());
                }
                if !self.write_control(writer, Control::Close, &payload)? {
                    return Ok(false);
                }
                CloseHandshake::Sent
            }
            CloseHandshake::Sent => CloseHandshake::Sent,
        };
        self.pending.lock().close_handshake = next;
        // Both close frames have gone: the server ends TCP first (RFC 6455 section 7.1.1), and one
        // that waits for us sees our FIN.
        if self.end.lock().peer_close.is_some() {
            self.transport.half_close(writer.write_buffer());
            self.pending.lock().close_handshake = CloseHandshake::Over;
        }
        Ok(true)
    }

    /// For the check that the model finds it.
    #[cfg(all(test, shuttle))]
    pub(crate) fn lock_in_the_wrong_order(&self) {
        self.transport.with_engine_held(|| drop(self.writer.lock()));
    }

    // ---- Clocks ----

    fn nanos(&self, at: Instant) -> u64 {
        // 0 means "never", so the first nanosecond is 1. 584 years fit.
        (at.saturating_duration_since(self.origin).as_nanos() as u64).max(1)
    }

    fn instant(&self, nanos: u64) -> Option<Instant> {
        (nanos != 0).then(|| self.origin + Duration::from_nanos(nanos))
    }
}
