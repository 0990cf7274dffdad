//! One open line: who reads, who writes, what the library owes the peer, and how it ends.

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
use crate::sync::channel::Sender as Ringer;
use crate::sync::{self, Condvar, Mutex, MutexGuard};
use crate::time::{Deadline, Liveness};
use pending_pings::PingBook;
use socket::LineSocket;
use transport::{Attempt, Duplex, TlsEngine};
use writer::{Failed, FailedBatch, Outlet, Sent};

/// The heart waits no longer than this for the outlet's lock; it tries again, and looks at shutdown in between.
const HEART_PATIENCE: Duration = Duration::from_millis(10);

/// Pongs that may be owed at once: more than any polite server asks for, and little enough to keep. The oldest makes room.
const PONGS_OWED: usize = 16;

/// How the reader of a line asks the kernel for bytes.
#[derive(Clone, Copy, Default)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "some of it is not to be had there"))]
pub(crate) struct Receiving {
    /// It asks again and again instead of sleeping.
    pub(crate) is_spinning: bool,
    /// The kernel says when it got what comes.
    pub(crate) is_stamped: bool,
}

/// Gives the next fragment of a message, or `None` after the last.
pub(crate) type NextFragment<'f, 'a> = dyn FnMut() -> Result<Option<Cow<'a, [u8]>>, Error> + 'f;

/// One open line, shared by the reader, the heart and all senders.
///
/// Locks, none of which is held while another is taken but `outlet` before `pings` and before the TLS engine: `outlet`, `pings`, `duties`,
/// `end`.
pub(crate) struct OpenLine {
    pub(crate) epoch: u64,
    /// `host:port`, for errors and logs.
    pub(crate) peer: String,
    /// When the line was opened; the clocks below count nanoseconds from it.
    origin: Instant,
    pub(crate) duplex: Duplex,
    outlet: Mutex<Outlet>,
    /// Signalled when a fragmented message is over. Waits under `outlet`.
    fragments_over: Condvar,
    pings: Mutex<PingBook>,
    duties: Mutex<Duties>,
    end: Mutex<End>,
    /// Rings the heart.
    bell: Ringer<()>,
    pub(crate) counters: Arc<Counters>,
    /// When the reader went into `recv`, 0 while it is elsewhere. Written by the reader alone, as are the two below.
    entered_recv: AtomicU64,
    last_byte: AtomicU64,
    last_data: AtomicU64,
    /// When the oldest unanswered application ping was written, 0 when there is none.
    app_ping_written: AtomicU64,
    /// Pongs are owed. A sender that comes by writes them first, so that a pong never waits behind messages that came to mind later.
    owes_pongs: AtomicBool,
    /// No send may start any more: the line is on its way to its end.
    is_ending: AtomicBool,
    /// No message may be delivered any more. Looked at once per message.
    is_halted: AtomicBool,
    /// The number of the last message that was sent or begun, for readers without the outlet's lock.
    sequence: AtomicU64,
}

/// What the heart owes the peer. Written by the reader and by users, worked off by the heart.
#[derive(Default)]
struct Duties {
    pongs: VecDeque<Vec<u8>>,
    pings: usize,
    farewell: Farewell,
}

/// How far the polite end of a line has come.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Farewell {
    /// None is needed.
    #[default]
    None,
    /// A close frame is owed. When it is out, the peer's is awaited, unless it has come already.
    Owed(OwnClose),
    /// Our close frame is out.
    Sent,
    /// TCP has been half-closed: nothing is left to say.
    Over,
}

/// What our close frame says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct OwnClose {
    /// `None`: an empty close frame, the answer to an empty one.
    code: Option<u16>,
    reason: Arc<str>,
}

/// What a close frame holds beside its code: a control frame has 125 bytes (RFC 6455 section 5.5).
const REASON_MAX: usize = 123;

impl OwnClose {
    /// A code of the library's own choice, and no reason.
    pub(crate) fn new(code: impl Into<Option<u16>>) -> Self {
        OwnClose { code: code.into(), reason: Arc::default() }
    }

    /// The end that needs no words: 1000.
    pub(crate) fn normal() -> Self {
        Self::new(1000)
    }

    /// What a user wants to say, if it may be said (RFC 6455 section 7.4): 1002 is ours to tell, 1004 to 1006 and 1015 never travel.
    pub(crate) fn said(close: &CloseReason) -> Result<Self, Error> {
        let CloseReason { code, reason } = close;
        if !matches!(code, 1000 | 1001 | 1003 | 1007..=1014 | 3000..=4999) {
            let what = format!("close code {code}: 1000, 1001, 1003, 1007 to 1014 and 3000 to 4999 may be sent");
            return Err(Error::config(what));
        }
        if reason.len() > REASON_MAX {
            let what = format!("a close reason of {} bytes: at most {REASON_MAX} may be sent", reason.len());
            return Err(Error::config(what));
        }
        Ok(OwnClose { code: Some(*code), reason: reason.as_str().into() })
    }

    pub(crate) fn to_close_reason(&self) -> CloseReason {
        CloseReason::new(self.code.unwrap_or(1005), &*self.reason)
    }
}

impl fmt::Debug for OwnClose {
    /// The reason stays out, as everywhere.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnClose").field("code", &self.code).finish_non_exhaustive()
    }
}

/// Why a line ends, as far as it is known.
#[derive(Default)]
struct End {
    /// What the first of those who severed or left the line gave as a reason.
    reason: Option<Error>,
    /// A reset that a write met.
    reset: Option<Error>,
    /// What the peer's close frame said.
    peer_close: Option<CloseReason>,
    /// What ours says, if it was our idea.
    own_close: Option<OwnClose>,
    /// By when a polite end has to be over.
    until: Option<Instant>,
}

/// A fragmented message under way. However it ends, whoever waits for it goes on; if it broke off, the line is over.
struct Fragments<'a> {
    line: &'a OpenLine,
    broken_by: Option<Error>,
}

impl Drop for Fragments<'_> {
    fn drop(&mut self) {
        self.line.outlet.lock().end_fragments(self.broken_by.is_some());
        self.line.fragments_over.notify_all();
        if let Some(reason) = self.broken_by.take() {
            self.line.end_writing(reason);
        }
    }
}

impl OpenLine {
    pub(crate) fn new(
        epoch: u64,
        peer: String,
        socket: LineSocket,
        tls: Option<TlsEngine>,
        outlet: Outlet,
        bell: Ringer<()>,
        counters: Arc<Counters>,
    ) -> Self {
        OpenLine {
            epoch,
            peer,
            origin: sync::now(),
            duplex: Duplex::new(socket, tls),
            outlet: Mutex::new(outlet),
            fragments_over: Condvar::new(),
            pings: Mutex::default(),
            duties: Mutex::default(),
            end: Mutex::default(),
            bell,
            counters,
            entered_recv: AtomicU64::new(0),
            last_byte: AtomicU64::new(0),
            last_data: AtomicU64::new(0),
            app_ping_written: AtomicU64::new(0),
            owes_pongs: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
            is_halted: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
        }
    }

    pub(crate) fn opened_at(&self) -> Instant {
        self.origin
    }

    // ---- Sending, from any thread ----

    /// Sends one message within the deadline.
    pub(crate) fn send(&self, payload: Payload<'_>, deadline: Deadline) -> Result<Sent, SendError> {
        let mut outlet = self.outlet_until(deadline).map_err(SendError::NotSent)?;
        self.pay_pongs(&mut outlet);
        self.begin(outlet.sequence(), 1).map_err(SendError::NotSent)?;
        let result = outlet.send(&self.duplex, payload, deadline);
        self.sequence.store(outlet.sequence(), Ordering::Release);
        drop(outlet);
        match result {
            Ok(sent) => {
                log::trace!("{}: sent {payload:?}", self.peer);
                self.counters.sent(1, sent.bytes);
                Ok(sent)
            }
            Err(Failed { error, severs }) => {
                self.sever_if(severs, error.reason());
                Err(error)
            }
        }
    }

    /// Sends several messages within the deadline.
    pub(crate) fn send_batch(&self, payloads: &[Payload<'_>], deadline: Deadline) -> Result<Sent, BatchError> {
        let not_sent = |error| BatchError { sent: 0, next: SendError::NotSent(error) };
        let mut outlet = self.outlet_until(deadline).map_err(not_sent)?;
        self.pay_pongs(&mut outlet);
        let begin = |sequence, messages| self.begin(sequence, messages);
        let result = outlet.send_batch(&self.duplex, payloads, deadline, &begin);
        self.sequence.store(outlet.sequence(), Ordering::Release);
        drop(outlet);
        match result {
            Ok(sent) => {
                log::trace!("{}: sent {payloads:?}", self.peer);
                self.counters.sent(payloads.len() as u64, sent.bytes);
                Ok(sent)
            }
            Err(FailedBatch { error, severs, bytes }) => {
                self.counters.sent(error.sent as u64, bytes);
                self.sever_if(severs, error.next.reason());
                Err(error)
            }
        }
    }

    /// The outlet, once whoever holds it lets go.
    fn outlet_until(&self, deadline: Deadline) -> Result<MutexGuard<'_, Outlet>, Error> {
        self.refuse_if_ending()?;
        let late = || deadline.error("waiting for another sender on this line");
        // Uncontended, this reads no clock.
        let mut outlet = match self.outlet.try_lock() {
            Some(outlet) => outlet,
            None => self.outlet.try_lock_until(deadline.at()).ok_or_else(late)?,
        };
        while outlet.is_fragmenting() {
            if self.fragments_over.wait_until(&mut outlet, deadline.at()).timed_out() && outlet.is_fragmenting() {
                return Err(late());
            }
        }
        Ok(outlet)
    }

    /// Sends one message in fragments as `next` gives them. Between two of them control frames may pass, and other messages may not.
    pub(crate) fn send_fragmented<'a>(
        &self,
        kind: Data,
        next: &mut NextFragment<'_, 'a>,
        deadline: Deadline,
    ) -> Result<Sent, SendError> {
        let Some(first) = next().map_err(SendError::NotSent)? else {
            let reason = Error::new(ErrorKind::Config, "a message of no fragments: give it at least one");
            return Err(SendError::NotSent(reason));
        };
        let mut outlet = self.outlet_until(deadline).map_err(SendError::NotSent)?;
        outlet.begin_fragments().map_err(|failed| failed.error)?;
        // If what gives the fragments panics, this is the reason.
        let panicked = Error::new(ErrorKind::Io, "what gave the fragments of a message panicked in the middle of it");
        let mut fragments = Fragments { line: self, broken_by: Some(panicked) };
        let result = self.send_fragments(outlet, kind, first, next, deadline);
        fragments.broken_by = match &result {
            Err(Failed { error, severs: true }) => Some(error.reason().clone()),
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
        mut outlet: MutexGuard<'_, Outlet>,
        kind: Data,
        first: Cow<'a, [u8]>,
        next: &mut NextFragment<'_, 'a>,
        deadline: Deadline,
    ) -> Result<Sent, Failed> {
        let (mut current, mut is_first, mut bytes) = (first, true, 0);
        loop {
            // Fetched without the lock: it may take its time, and the heart must not wait for it.
            let following = MutexGuard::unlocked(&mut outlet, &mut *next);
            let in_place =
                |error| if is_first { Failed::harmless(error) } else { Failed::harmless(error).in_the_middle() };
            let following = following.map_err(in_place)?;
            if deadline.has_passed(sync::now()) {
                return Err(in_place(deadline.error("waiting for the next fragment")));
            }
            self.pay_pongs(&mut outlet);
            if is_first {
                self.begin(outlet.sequence(), 1).map_err(Failed::harmless)?;
            }
            let opcode = OpCode::Data(if is_first { kind } else { Data::Continue });
            bytes += outlet.send_fragment(&self.duplex, opcode, &current, following.is_none(), deadline)?;
            log::trace!("{}: sent {opcode:?}({} bytes)", self.peer, current.len());
            self.sequence.store(outlet.sequence(), Ordering::Release);
            match following {
                Some(fragment) => (current, is_first) = (fragment, false),
                None => return Ok(Sent { sequence: outlet.sequence(), bytes }),
            }
        }
    }

    /// Counts messages beyond `sequence` as begun before their first byte leaves: the line may end, and its end be told, before the send returns.
    /// None begins once that is being told: who tells it sees the number, or who sends sees the end, or both, and what is told is too high by what
    /// was not sent.
    fn begin(&self, sequence: u64, messages: u64) -> Result<(), Error> {
        self.sequence.store(sequence + messages, Ordering::SeqCst);
        let ending = self.refuse_if_ending();
        if ending.is_err() {
            self.sequence.store(sequence, Ordering::SeqCst);
        }
        ending
    }

    /// Writes the pongs that are owed, as far as there is room. What goes wrong here goes wrong again for the frame that follows.
    fn pay_pongs(&self, outlet: &mut Outlet) {
        if self.owes_pongs.load(Ordering::Acquire) {
            let _ = self.work_off_pongs(outlet);
        }
    }

    fn sever_if(&self, severs: bool, reason: &Error) {
        if severs {
            self.end_writing(reason.clone());
        }
    }

    /// Nothing further can be written. Where the peer has ended the connection the reader is left to hear of it: what the peer said
    /// last, the reason of its close above all, may lie unread in the kernel, and severing would lose it. Otherwise the line is severed.
    pub(crate) fn end_writing(&self, reason: Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match reason.io_kind() {
            Some(kind @ (BrokenPipe | ConnectionAborted | ConnectionReset)) => {
                self.is_ending.store(true, Ordering::Release);
                // The kernel tells of a reset once. Told here, the reader would take the end for one without a reason.
                if kind != BrokenPipe {
                    self.end.lock().reset.get_or_insert(reason);
                }
            }
            _ => self.sever(reason),
        }
    }

    /// Asks the heart for a ping.
    pub(crate) fn ask_for_ping(&self) -> Result<(), SendError> {
        self.refuse_if_ending().map_err(SendError::NotSent)?;
        self.duties.lock().pings += 1;
        self.ring();
        Ok(())
    }

    fn refuse_if_ending(&self) -> Result<(), Error> {
        if self.is_ending.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "the line is on its way to its end"));
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
    pub(crate) fn owe_pong(&self, payload: &[u8]) {
        log::trace!("{}: received Ping({} bytes)", self.peer, payload.len());
        let mut duties = self.duties.lock();
        if duties.pongs.iter().any(|owed| owed == payload) {
            return;
        }
        if duties.pongs.len() == PONGS_OWED {
            duties.pongs.pop_front();
        }
        duties.pongs.push_back(payload.to_vec());
        self.owes_pongs.store(true, Ordering::Release);
        drop(duties);
        self.ring();
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

    /// The peer's close frame came, or the line has to end politely for a reason of ours: a close frame is owed. The first one's words are sent.
    pub(crate) fn begin_farewell(&self, close: OwnClose, until: Instant) {
        self.is_ending.store(true, Ordering::Release);
        let close = {
            let mut end = self.end.lock();
            end.until = Some(end.until.map_or(until, |earlier| earlier.min(until)));
            end.own_close.get_or_insert(close).clone()
        };
        let mut duties = self.duties.lock();
        if duties.farewell == Farewell::None {
            duties.farewell = Farewell::Owed(close);
        }
        drop(duties);
        self.ring();
    }

    /// Keeps what the peer's close frame said.
    pub(crate) fn note_peer_close(&self, close: CloseReason) {
        self.is_ending.store(true, Ordering::Release);
        self.end.lock().peer_close.get_or_insert(close);
        self.ring();
    }

    /// The engine may have output, or the peer has closed: the heart should look.
    pub(crate) fn ring(&self) {
        // Full means that it rings already.
        let _ = self.bell.try_send(());
    }

    // ---- Ending ----

    /// A user wants another line: this one ends politely, and no further message of it is delivered.
    pub(crate) fn leave(&self, close: OwnClose, until: Instant) {
        let close = {
            let mut end = self.end.lock();
            // Before the reader is halted: it owes a close frame too, when it comes to see that, and finds these words.
            let close = end.own_close.get_or_insert(close).clone();
            let told = || Error::left(close.to_close_reason());
            end.reason.get_or_insert_with(told);
            close
        };
        self.is_halted.store(true, Ordering::Release);
        self.begin_farewell(close, until);
    }

    /// Whether the reader has to stop delivering: somebody has severed or left the line.
    #[inline]
    pub(crate) fn is_halted(&self) -> bool {
        self.is_halted.load(Ordering::Relaxed)
    }

    /// Ends the line now. The first reason is kept.
    pub(crate) fn sever(&self, reason: Error) {
        self.is_ending.store(true, Ordering::Release);
        self.end.lock().reason.get_or_insert(reason);
        self.is_halted.store(true, Ordering::Release);
        self.duplex.sever();
    }

    /// Why the line was severed, if somebody of ours did it.
    pub(crate) fn reason(&self) -> Option<Error> {
        self.end.lock().reason.clone()
    }

    /// The reset that a write met, if one did.
    pub(crate) fn reset(&self) -> Option<Error> {
        self.end.lock().reset.clone()
    }

    /// What our close frame says, once one is owed.
    pub(crate) fn own_close(&self) -> Option<OwnClose> {
        self.end.lock().own_close.clone()
    }

    /// The close code and reason of RFC 6455 section 7.1.5, as far as they are known: the peer's, or ours, or 1006 for no close frame. And
    /// whether they are the peer's.
    pub(crate) fn close_reason(&self) -> (CloseReason, bool) {
        let end = self.end.lock();
        let close = match (&end.peer_close, &end.own_close) {
            (Some(close), _) => close.clone(),
            (None, Some(own)) => own.to_close_reason(),
            (None, None) => CloseReason::abnormal(),
        };
        (close, end.peer_close.is_some())
    }

    /// The highest sequence that was sent or begun, and the highest that a pong covers, when all is over: no send begins any more.
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
    pub(crate) fn farewell_until(&self) -> Option<Instant> {
        self.end.lock().until
    }

    pub(crate) fn is_severed(&self) -> bool {
        self.duplex.is_severed()
    }

    /// Works off what is owed: pongs, pings that a user asked for, the farewell, the engine's own output. Whether nothing is left.
    pub(crate) fn work_off(&self, now: Instant) -> io::Result<bool> {
        let Some(mut outlet) = self.outlet.try_lock_for(HEART_PATIENCE) else { return Ok(false) };
        if !self.duplex.flush_output(outlet.wire())? {
            return Ok(false);
        }
        // The frames go out in this order; each is taken off the list once the kernel, or the wire's own buffer, has it.
        if !self.work_off_pongs(&mut outlet)? {
            return Ok(false);
        }
        while self.take_asked_ping() {
            if !self.write_ping_with(&mut outlet, now)? {
                self.duties.lock().pings += 1;
                return Ok(false);
            }
        }
        self.work_off_farewell(&mut outlet)
    }

    /// Writes a ping, unless there is no room for it: `false` then, and the wait for it counts like the wait for a pong.
    pub(crate) fn write_ping(&self, now: Instant) -> io::Result<bool> {
        let Some(mut outlet) = self.outlet.try_lock_for(HEART_PATIENCE) else { return Ok(false) };
        self.write_ping_with(&mut outlet, now)
    }

    fn write_ping_with(&self, outlet: &mut Outlet, now: Instant) -> io::Result<bool> {
        let nonce = outlet.nonce();
        let covers = outlet.whole_sequence();
        // The peer neither reads nor sends: from its side that is silence like any other, so the clock runs for the frame in our hands too.
        // Written down before it is sent: the pong may be here before `attempt_control` returns.
        self.pings.lock().wrote(nonce, sync::now().max(now), covers);
        let is_out = self.write_control(outlet, Control::Ping, &nonce)?;
        if !is_out {
            self.pings.lock().withdraw();
        }
        Ok(is_out)
    }

    /// Writes an application ping; `false` when there is no room for it now.
    pub(crate) fn write_app_ping(&self, text: &str, awaits_reply: bool, now: Instant) -> io::Result<bool> {
        let Some(mut outlet) = self.outlet.try_lock_for(HEART_PATIENCE) else { return Ok(false) };
        if outlet.is_fragmenting() {
            return Ok(false);
        }
        if outlet.is_closed() {
            return Ok(true);
        }
        if awaits_reply {
            // The oldest unanswered one stands.
            let _ = self.app_ping_written.compare_exchange(0, self.nanos(now), Ordering::AcqRel, Ordering::Acquire);
        }
        if self.begin(outlet.sequence(), 1).is_err() {
            return Ok(true);
        }
        let (attempt, bytes) = outlet.attempt_text(&self.duplex, text)?;
        self.sequence.store(outlet.sequence(), Ordering::Release);
        if attempt == Attempt::Later {
            return Ok(false);
        }
        self.counters.sent(1, bytes);
        log::trace!("{}: sent {:?}, an application ping", self.peer, Payload::Text(text));
        Ok(true)
    }

    /// Writes a control frame, unless there is no room for it: `false` then. Where nothing may be written any more, nothing is owed.
    fn write_control(&self, outlet: &mut Outlet, opcode: Control, payload: &[u8]) -> io::Result<bool> {
        if outlet.is_closed() {
            return Ok(true);
        }
        if outlet.attempt_control(&self.duplex, opcode, payload)? == Attempt::Later {
            return Ok(false);
        }
        log::trace!("{}: sent {opcode:?}({} bytes)", self.peer, payload.len());
        Ok(true)
    }

    fn work_off_pongs(&self, outlet: &mut Outlet) -> io::Result<bool> {
        while let Some(pong) = self.next_pong() {
            if !self.write_control(outlet, Control::Pong, &pong)? {
                let mut duties = self.duties.lock();
                duties.pongs.push_front(pong);
                self.owes_pongs.store(true, Ordering::Release);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn next_pong(&self) -> Option<Vec<u8>> {
        let mut duties = self.duties.lock();
        let pong = duties.pongs.pop_front();
        self.owes_pongs.store(!duties.pongs.is_empty(), Ordering::Release);
        pong
    }

    fn take_asked_ping(&self) -> bool {
        let mut duties = self.duties.lock();
        let asked = duties.pings > 0;
        // One ping answers all who asked before it.
        duties.pings = 0;
        asked
    }

    fn work_off_farewell(&self, outlet: &mut Outlet) -> io::Result<bool> {
        let farewell = self.duties.lock().farewell.clone();
        let next = match farewell {
            Farewell::None | Farewell::Over => return Ok(true),
            Farewell::Owed(close) => {
                let mut payload = Vec::with_capacity(2 + close.reason.len());
                if let Some(code) = close.code {
                    payload.extend_from_slice(&code.to_be_bytes());
                    payload.extend_from_slice(close.reason.as_bytes());
                }
                if !self.write_control(outlet, Control::Close, &payload)? {
                    return Ok(false);
                }
                Farewell::Sent
            }
            Farewell::Sent => Farewell::Sent,
        };
        self.duties.lock().farewell = next;
        // Both close frames have gone: the server ends TCP first (RFC 6455 section 7.1.1), and one that waits for us sees our FIN.
        if self.end.lock().peer_close.is_some() {
            self.duplex.half_close(outlet.wire());
            self.duties.lock().farewell = Farewell::Over;
        }
        Ok(true)
    }

    /// For the check that the model finds it.
    #[cfg(all(test, shuttle))]
    pub(crate) fn lock_in_the_wrong_order(&self) {
        self.duplex.with_engine_held(|| drop(self.outlet.lock()));
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
