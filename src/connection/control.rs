//! Frames that the heartbeat thread writes: pongs, pings, responses and the close frame.
//!
//! Nothing here waits for room, nor longer than [`LOCK_TIMEOUT`] for the writer: the heartbeat
//! thread tries again, and looks at shutdown in between.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::Control;

use super::OpenConnection;
use super::close::{CloseFrame, CloseInput, CloseState};
use super::transport::Attempt;
use super::writer::FrameWriter;
use crate::error::{Error, SendError};
use crate::event::Payload;
use crate::rate_limit::SendKind;
use crate::sync;
use crate::sync::atomic::Ordering;

/// The heartbeat thread waits no longer than this for the writer.
const LOCK_TIMEOUT: Duration = Duration::from_millis(10);

/// The number of pongs that may be pending: more than any polite server asks for. The oldest makes
/// room.
const PONGS_MAX: usize = 16;

/// The number of responses that may be pending. The oldest makes room.
const RESPONSES_MAX: usize = 16;

/// The frames that the heartbeat thread has to write. Filled by the reader and by users.
#[derive(Default)]
pub(super) struct PendingControl {
    pongs: VecDeque<Vec<u8>>,
    /// The texts of messages that answer the server's.
    responses: VecDeque<String>,
    /// The program has asked for a ping. One answers all who asked before it.
    wants_ping: bool,
}

/// The fate of a message of the library's own.
#[derive(Debug)]
pub(crate) enum MessageWrite {
    Sent,
    /// There is no room for it now, or a fragmented message is under way.
    Later,
    /// It is too long.
    Refused(Error),
    /// No message may begin any more.
    Over,
}

/// Control frames that were written under the writer's lock, to be logged without it: a logger is
/// the program's, and may send.
#[derive(Default)]
#[must_use = "what was written has to be logged"]
pub(super) struct Written(Vec<(Control, usize)>);

impl Written {
    fn note(&mut self, opcode: Control, len: usize) {
        if log::log_enabled!(log::Level::Trace) {
            self.0.push((opcode, len));
        }
    }

    pub(super) fn log(self, connection: &OpenConnection) {
        let label = connection.label();
        for (opcode, len) in self.0 {
            log::trace!("{label}: sent {opcode:?}({len} bytes)");
        }
    }
}

impl OpenConnection {
    /// A ping came: a pong with its payload is to be sent (RFC 6455 section 5.5.2), one for all
    /// pings of the same payload that are pending.
    pub(crate) fn queue_pong(&self, payload: &[u8]) {
        log::trace!("{}: received Ping({} bytes)", self.label(), payload.len());
        let mut pending = self.pending.lock();
        if pending.pongs.iter().any(|queued| queued == payload) {
            return;
        }
        if pending.pongs.len() == PONGS_MAX {
            pending.pongs.pop_front();
        }
        pending.pongs.push_back(payload.to_vec());
        self.has_pending_pongs.store(true, Ordering::Release);
        drop(pending);
        self.wake_heartbeat();
    }

    /// A message came that is to be answered with `text`.
    pub(crate) fn queue_response(&self, text: String) {
        let mut pending = self.pending.lock();
        if pending.responses.len() == RESPONSES_MAX {
            pending.responses.pop_front();
        }
        pending.responses.push_back(text);
        drop(pending);
        self.wake_heartbeat();
    }

    /// A pong came. Returns the round-trip time if it answers a ping.
    pub(crate) fn note_pong(&self, payload: &[u8], now: Instant) -> Option<Duration> {
        log::trace!("{}: received Pong({} bytes)", self.label(), payload.len());
        // Unlocked first: the recorder of metrics is told.
        let round_trip = self.pings.lock().answered(payload, now)?;
        self.counters.round_trip(round_trip);
        Some(round_trip)
    }

    /// Asks the heartbeat thread for a ping.
    pub(crate) fn request_ping(&self) -> Result<(), SendError> {
        let ended = |reason: Error| SendError::NotSent(reason.of_client(&self.client));
        self.sequence.check().map_err(ended)?;
        self.pending.lock().wants_ping = true;
        self.wake_heartbeat();
        Ok(())
    }

    /// Returns when the oldest ping was written that no pong has answered.
    pub(crate) fn unanswered_ping(&self) -> Option<Instant> {
        self.pings.lock().oldest_unanswered()
    }

    /// Writes what is pending: the TLS engine's output, pongs, pings that the program asked for,
    /// the close frame. Returns `true` when nothing is left.
    pub(crate) fn flush_pending(&self, now: Instant) -> io::Result<bool> {
        let Some(mut writer) = self.writer.try_lock_for(LOCK_TIMEOUT) else { return Ok(false) };
        let mut written = Written::default();
        let result = self.flush_under(&mut writer, &mut written, now);
        drop(writer);
        written.log(self);
        result
    }

    fn flush_under(
        &self,
        writer: &mut FrameWriter,
        written: &mut Written,
        now: Instant,
    ) -> io::Result<bool> {
        if self.close.lock().state() == CloseState::WriteFailed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.transport.flush_output(writer.write_buffer())? {
            return Ok(false);
        }
        // Each is taken off the list once the kernel, or the write buffer, has it.
        if !self.write_pongs(writer, written)? {
            return Ok(false);
        }
        if std::mem::take(&mut self.pending.lock().wants_ping)
            && !self.write_ping_under(writer, written, now)?
        {
            self.pending.lock().wants_ping = true;
            return Ok(false);
        }
        self.write_close(writer, written)
    }

    /// Writes a ping. Returns `false` when there is no room for it; the wait for room then counts
    /// like the wait for a pong.
    pub(crate) fn write_ping(&self, now: Instant) -> io::Result<bool> {
        let Some(mut writer) = self.writer.try_lock_for(LOCK_TIMEOUT) else { return Ok(false) };
        let mut written = Written::default();
        let result = self.write_ping_under(&mut writer, &mut written, now);
        drop(writer);
        written.log(self);
        result
    }

    fn write_ping_under(
        &self,
        writer: &mut FrameWriter,
        written: &mut Written,
        now: Instant,
    ) -> io::Result<bool> {
        let nonce = writer.nonce();
        let covers = self.sequence.count() - u64::from(writer.is_mid_message());
        // Noted before it is sent: the pong may be here before `write_control` returns.
        self.pings.lock().wrote(nonce, sync::now().max(now), covers);
        let is_out = self.write_control(writer, Control::Ping, &nonce, written)?;
        if !is_out {
            self.pings.lock().withdraw();
        }
        Ok(is_out)
    }

    /// Writes the responses that are pending, those that come meanwhile excepted: they wake the
    /// heartbeat thread again. Returns `false` when there is no room for one now.
    pub(crate) fn write_responses(&self) -> io::Result<bool> {
        for _ in 0..RESPONSES_MAX {
            let Some(text) = self.pending.lock().responses.pop_front() else { break };
            if !self.attempt_own_message(&text, "a response", || ())? {
                let mut pending = self.pending.lock();
                if pending.responses.len() < RESPONSES_MAX {
                    pending.responses.push_front(text);
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the application ping number `index`. Returns `false` when there is no room for it
    /// now.
    pub(crate) fn write_app_ping(
        &self,
        index: usize,
        text: &str,
        awaits_reply: bool,
        now: Instant,
    ) -> io::Result<bool> {
        let note = || {
            if awaits_reply {
                self.activity.note_app_ping(index, now);
            }
        };
        let is_written = self.attempt_own_message(text, "an application ping", note)?;
        if !is_written && awaits_reply {
            // One that finds no room is no fault of a peer that takes something now and then.
            self.activity.withdraw_app_ping(index, now);
        }
        Ok(is_written)
    }

    /// Writes a message of the library's own without waiting. `note` is called before it leaves:
    /// the answer may be here before this returns.
    ///
    /// Returns `false` when there is no room for it now. Nothing is left to write where no message
    /// may begin any more, nor of one that is too long.
    fn attempt_own_message(
        &self,
        text: &str,
        what: &'static str,
        note: impl FnOnce(),
    ) -> io::Result<bool> {
        Ok(match self.attempt_message(Payload::Text(text), what, note)? {
            MessageWrite::Later => false,
            MessageWrite::Sent => {
                self.count_ping();
                true
            }
            MessageWrite::Over => true,
            MessageWrite::Refused(refused) => {
                self.warn_of_refusal(what, &refused);
                true
            }
        })
    }

    /// Writes a message without waiting. `note` is called before it leaves: the answer may be here
    /// before this returns.
    pub(crate) fn attempt_message(
        &self,
        payload: Payload<'_>,
        what: &'static str,
        note: impl FnOnce(),
    ) -> io::Result<MessageWrite> {
        let Some(mut writer) = self.writer.try_lock_for(LOCK_TIMEOUT) else {
            return Ok(MessageWrite::Later);
        };
        if writer.is_fragmenting() {
            return Ok(MessageWrite::Later);
        }
        let len = match payload {
            Payload::Text(text) => text.len(),
            Payload::Binary(bytes) => bytes.len(),
        };
        if let Err(refused) = writer.check_len(len) {
            return Ok(MessageWrite::Refused(refused));
        }
        if self.sequence.begin(1).is_err() {
            return Ok(MessageWrite::Over);
        }
        note();
        let result = writer.attempt_message(&self.transport, payload);
        if !matches!(result, Ok((Attempt::Sent | Attempt::Kept, _))) {
            self.sequence.take_back(1);
        }
        drop(writer);
        let (attempt, bytes) = result?;
        if attempt == Attempt::Later {
            return Ok(MessageWrite::Later);
        }
        self.counters.sent(1, bytes);
        log::trace!("{}: sent {payload:?}, {what}", self.label());
        Ok(MessageWrite::Sent)
    }

    /// Nobody waits for the error of such a message: it is told once per connection.
    fn warn_of_refusal(&self, what: &str, refused: &Error) {
        if !self.has_warned_of_refusal.swap(true, Ordering::Relaxed) {
            log::warn!("{}: {what} is not sent: {refused}", self.label());
        }
    }

    /// Writes the pongs that are pending, as far as there is room. A sender calls this before its
    /// own frame; what goes wrong here goes wrong again for that.
    pub(super) fn flush_pongs(&self, writer: &mut FrameWriter) -> Written {
        let mut written = Written::default();
        if self.has_pending_pongs.load(Ordering::Acquire) {
            let _ = self.write_pongs(writer, &mut written);
        }
        written
    }

    fn write_pongs(&self, writer: &mut FrameWriter, written: &mut Written) -> io::Result<bool> {
        while let Some(pong) = self.next_pong() {
            if !self.write_control(writer, Control::Pong, &pong, written)? {
                let mut pending = self.pending.lock();
                pending.pongs.push_front(pong);
                self.has_pending_pongs.store(true, Ordering::Release);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn next_pong(&self) -> Option<Vec<u8>> {
        let mut pending = self.pending.lock();
        let pong = pending.pongs.pop_front();
        self.has_pending_pongs.store(!pending.pongs.is_empty(), Ordering::Release);
        pong
    }

    /// Writes a control frame. Returns `false` when there is no room for it. Nothing is left to
    /// write where nothing may be written any more.
    fn write_control(
        &self,
        writer: &mut FrameWriter,
        opcode: Control,
        payload: &[u8],
        written: &mut Written,
    ) -> io::Result<bool> {
        if self.close.lock().is_writing_over() {
            return Ok(true);
        }
        if writer.attempt_control(&self.transport, opcode, payload)? == Attempt::Later {
            return Ok(false);
        }
        if opcode != Control::Close {
            self.count_ping();
        }
        written.note(opcode, payload.len());
        Ok(true)
    }

    /// Counts a ping or pong against the limits.
    fn count_ping(&self) {
        if !self.limits.is_empty() {
            self.limits.note(SendKind::Pings, sync::now());
        }
    }

    /// Writes the close frame if one is queued, and half-closes TCP once both are through.
    fn write_close(&self, writer: &mut FrameWriter, written: &mut Written) -> io::Result<bool> {
        let queued = self.close.lock().queued().map(CloseFrame::payload);
        if let Some(payload) = queued {
            if !self.write_control(writer, Control::Close, &payload, written)? {
                return Ok(false);
            }
            self.feed_close(CloseInput::Written);
        }
        if self.close.lock().state() == (CloseState::Exchanged { is_half_closed: false }) {
            self.transport.half_close(writer.write_buffer());
            self.feed_close(CloseInput::HalfClosed);
        }
        Ok(true)
    }
}
