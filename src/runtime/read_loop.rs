//! Reading one open line: bytes in, messages out, until it ends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use crate::config::{AppPing, ReplyMatcher, Settings};
use crate::connection::transport::{Inlet, Received};
use crate::connection::{OpenLine, OwnClose};
use crate::error::{CloseReason, Error, ErrorKind};
use crate::event::{Arrival, MessageRef, Opened, Payload};
use crate::handler::{Delivery, Full, Line};
use crate::protocol::assembler::{Assembler, Incoming, Limits};
use crate::protocol::deflate::Inflater;
use crate::protocol::frame::{Breach, ReadBuffer};
use crate::sender::Sender;
use crate::sync;
use crate::sync::threads::Shutdown;

/// How often buffers are looked at, whether they could be smaller.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// The reader's side of an open line. Used by the reader thread alone.
pub(crate) struct Talk {
    line: Arc<OpenLine>,
    opened: Opened,
    inlet: Inlet,
    buffer: ReadBuffer,
    assembler: Assembler,
    app_ping: Option<AppPing>,
    settled_at: Instant,
}

/// Why the reading ended.
pub(crate) struct TalkOver {
    /// `Err`: the handler panicked, with this.
    pub(crate) error: Result<Error, Box<dyn Any + Send>>,
    /// The close frame that has to go out; `None` when the line ends at once.
    pub(crate) farewell: Option<OwnClose>,
}

impl TalkOver {
    fn at_once(error: Error) -> Self {
        TalkOver { error: Ok(error), farewell: None }
    }

    fn politely(error: Error, code: u16) -> Self {
        TalkOver { error: Ok(error), farewell: Some(OwnClose::new(code)) }
    }
}

/// What a batch of messages ended with.
enum Batch {
    /// All that was there has been delivered.
    Done,
    /// A stop was asked for, or somebody of ours severed the line.
    Halt,
    /// The peer's close frame came.
    Closed(CloseReason),
    Breach(Breach),
    Full,
}

impl Talk {
    pub(crate) fn new(
        line: Arc<OpenLine>,
        opened: Opened,
        leftover: Vec<u8>,
        settings: &Settings,
        inflater: Option<Inflater>,
    ) -> Self {
        let limits = Limits { max_message: settings.max_message };
        Talk {
            inlet: line.duplex.inlet(),
            line,
            opened,
            buffer: ReadBuffer::with_leftover(&leftover),
            assembler: Assembler::new(limits, inflater),
            app_ping: settings.app_ping.clone(),
            settled_at: sync::now(),
        }
    }

    pub(crate) fn line(&self) -> &Arc<OpenLine> {
        &self.line
    }

    pub(crate) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Delivers what comes until the line ends; `None` when a stop ends it.
    pub(crate) fn run(
        &mut self,
        delivery: &mut impl Delivery,
        sender: &Sender,
        shutdown: &Shutdown,
    ) -> Option<TalkOver> {
        // Frames may have come glued to the answer of the opening handshake: they go before the first `recv`.
        let mut arrival = Arrival { at: sync::now(), kernel: None };
        loop {
            let batch = catch_unwind(AssertUnwindSafe(|| self.deliver(delivery, sender, shutdown, arrival)));
            if let Some(over) = self.judge(batch, shutdown)? {
                return Some(over);
            }
            match self.receive() {
                Ok((Received::End, _)) => return Some(self.ended(None)),
                Ok((_, at)) => arrival = Arrival { at, kernel: self.inlet.kernel_time() },
                Err(error) => return Some(self.ended(Some(error))),
            }
        }
    }

    /// Blocks in `recv` until something comes, and keeps the heart's clocks.
    fn receive(&mut self) -> std::io::Result<(Received, Instant)> {
        self.line.enter_recv();
        let received = self.line.duplex.receive(&mut self.inlet, &mut self.buffer);
        let now = sync::now();
        self.line.leave_recv(now, matches!(received, Ok(Received::Bytes | Received::Partial)));
        // The reader never writes, so the heart has to send what the TLS engine has to say.
        if self.inlet.owes_output() {
            self.line.ring();
        }
        self.buffer.note_need(now);
        if now.saturating_duration_since(self.settled_at) >= SETTLE_EVERY {
            self.settled_at = now;
            if self.buffer.settle(now) {
                self.line.duplex.shrink(&mut self.inlet);
            }
        }
        received.map(|received| (received, now))
    }

    /// Hands over every message that the buffer holds. A program that has left the line hears no more of it.
    // The loop over messages has the registers for itself: drawn into `run` it costs ten instructions a message more, or not, by whatever else
    // is changed there.
    #[inline(never)]
    fn deliver(
        &mut self,
        delivery: &mut impl Delivery,
        sender: &Sender,
        shutdown: &Shutdown,
        arrival: Arrival,
    ) -> Batch {
        let has_left = self.line.is_halted();
        let Talk { line, opened, buffer, assembler, app_ping, .. } = self;
        let is_reply = app_ping.as_ref().and_then(|ping| ping.is_reply.as_ref());
        // One look per message for what is rare.
        let is_special = has_left || is_reply.is_some();
        let mut view = Line::new(line, opened, sender);
        let (mut messages, mut bytes) = (0u64, 0u64);
        // Asked once per batch, as a message costs less than asking. Who listens pays for it: all messages take the long way then.
        assembler.lend_simply(!log::log_enabled!(log::Level::Trace));
        let mut unread = buffer.unread();
        let batch = loop {
            let payload = match assembler.next_simple(&mut unread) {
                Some(payload) => payload,
                None => match assembler.next(&mut unread) {
                    Ok(Some(Incoming::Text(text))) => traced(line, Payload::Text(text)),
                    Ok(Some(Incoming::Binary(bytes))) => traced(line, Payload::Binary(bytes)),
                    Ok(Some(Incoming::Ping(payload))) => {
                        line.owe_pong(payload);
                        continue;
                    }
                    Ok(Some(Incoming::Pong(payload))) => {
                        line.note_pong(payload, arrival.at);
                        continue;
                    }
                    Ok(Some(Incoming::Close(close))) => break Batch::Closed(close_reason(close)),
                    Ok(None) => break Batch::Done,
                    Err(breach) => break Batch::Breach(breach),
                },
            };
            let message = MessageRef::new(payload, opened.epoch, arrival);
            if is_special {
                if has_left {
                    continue;
                }
                if let Some(is_reply) = is_reply {
                    match_reply(line, is_reply, message, sender);
                }
            }
            messages += 1;
            bytes += message.bytes().len() as u64;
            delivery.message(&mut view, message);
            // One branch for both.
            if shutdown.is_requested() | line.is_halted() {
                break Batch::Halt;
            }
        };
        if messages > 0 {
            line.counters.received(messages, bytes);
        }
        let over = delivery.batch_over();
        if messages > 0 {
            // Now, not when they came: a slow handler or a full queue is not an idle line.
            line.note_data(sync::now());
        }
        match (over, batch) {
            (Err(Full), Batch::Done) => Batch::Full,
            (_, batch) => batch,
        }
    }

    /// What a batch means for the line: the outer `None` for a stop, the inner for going on.
    #[expect(clippy::option_option, reason = "stopped, going on, over: three different answers")]
    fn judge(&self, batch: Result<Batch, Box<dyn Any + Send>>, shutdown: &Shutdown) -> Option<Option<TalkOver>> {
        let batch = match batch {
            Ok(batch) => batch,
            Err(panic) => {
                return Some(Some(TalkOver { error: Err(panic), farewell: Some(OwnClose::new(1001)) }));
            }
        };
        let over = match batch {
            Batch::Done => return Some(None),
            Batch::Halt if shutdown.is_requested() => return None,
            Batch::Halt if self.line.is_severed() => self.ended(None),
            // The program asked for another line; its close frame is on its way.
            Batch::Halt => TalkOver { farewell: Some(OwnClose::normal()), ..self.ended(None) },
            Batch::Closed(close) => {
                log::trace!("{}: received Close({})", self.line.peer, close.code);
                let error = Error::closed(
                    close.clone(),
                    format!("{} closed the line with code {}", self.line.peer, close.code),
                );
                self.line.note_peer_close(close.clone());
                // RFC 6455 section 5.5.1: the answer repeats the code. 1005 stands for none.
                let code = Some(close.code).filter(|&code| code != 1005);
                // If it answers a close frame of ours, the reason is ours.
                let error = self.line.reason().unwrap_or(error);
                TalkOver { error: Ok(error), farewell: Some(OwnClose::new(code)) }
            }
            Batch::Breach(breach) => {
                let code = u16::from(breach.code);
                let peer = &self.line.peer;
                let error = match breach.code {
                    // Nothing is broken: the limit is ours.
                    CloseCode::Size => {
                        let what =
                            format!("reading from {peer}: {}, {} bytes", breach.what, self.assembler.max_message());
                        Error::new(ErrorKind::TooBig, what)
                    }
                    _ => {
                        let what = format!("{peer} broke the protocol (code {code}): {}", breach.what);
                        Error::new(ErrorKind::Protocol, what)
                    }
                };
                TalkOver::politely(error, code)
            }
            Batch::Full => {
                let error =
                    Error::new(ErrorKind::Lagged, "the events queue was full: read faster, or choose another rule");
                TalkOver::politely(error, 1001)
            }
        };
        Some(Some(over))
    }

    /// The line is at its end: somebody of ours severed it, or the peer ended it without a close frame.
    fn ended(&self, failure: Option<std::io::Error>) -> TalkOver {
        let error = match (self.line.reason(), failure) {
            (Some(reason), _) => reason,
            (None, Some(error)) => Error::caused(ErrorKind::Io, format!("reading from {}", self.line.peer), error),
            (None, None) => self.line.reset().unwrap_or_else(|| {
                let doing = format!("{} ended the connection without a close frame", self.line.peer);
                Error::closed(CloseReason::abnormal(), doing)
            }),
        };
        TalkOver::at_once(error)
    }

    /// Reads and drops until the peer ends the connection or the heart severs it. Looks for nothing but the peer's close frame.
    ///
    /// Severing with input unread would send a reset, which destroys our close frame on its way.
    pub(crate) fn drain(&mut self) {
        let mut is_parsing = true;
        loop {
            let mut unread = self.buffer.unread();
            while is_parsing {
                match self.assembler.next(&mut unread) {
                    Ok(Some(Incoming::Close(close))) => {
                        self.line.note_peer_close(close_reason(close));
                        is_parsing = false;
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    // Whatever follows a close frame, or a broken protocol, has no meaning.
                    Err(_) => is_parsing = false,
                }
            }
            drop(unread);
            if !is_parsing {
                self.buffer.clear();
            }
            match self.receive() {
                Ok((Received::End, _)) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

#[cold]
fn traced<'a>(line: &OpenLine, payload: Payload<'a>) -> Payload<'a> {
    log::trace!("{}: received {payload:?}", line.peer);
    payload
}

/// Asks the program's matcher whether a message answers an application ping.
#[cold]
fn match_reply(line: &OpenLine, is_reply: &ReplyMatcher, message: MessageRef<'_>, sender: &Sender) {
    if !line.awaits_app_reply() {
        return;
    }
    match catch_unwind(AssertUnwindSafe(|| is_reply(message))) {
        Ok(true) => line.note_app_reply(),
        Ok(false) => {}
        Err(panic) => {
            sender.keep_panic(panic);
            line.sever(Error::new(ErrorKind::HandlerPanicked, "the matcher of answers to application pings panicked"));
        }
    }
}

fn close_reason(close: Option<(u16, &str)>) -> CloseReason {
    // RFC 6455 section 7.1.5: 1005 stands for a close frame without a code.
    let (code, reason) = close.unwrap_or((1005, ""));
    CloseReason { code, reason: reason.to_owned() }
}
