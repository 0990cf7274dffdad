//! Reading one open connection: bytes in, messages out, until it ends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use crate::config::{AppPing, ReplyMatcher, Settings};
use crate::connection::transport::{ReadHalf, Received};
use crate::connection::{CloseFrame, OpenConnection};
use crate::error::{CloseReason, Error, ErrorKind};
use crate::event::{Arrival, MessageRef, Opened, Payload};
use crate::handler::{Connection, EventSink, Full};
use crate::protocol::ProtocolError;
use crate::protocol::assembler::{Assembler, Incoming, Limits};
use crate::protocol::deflate::Inflater;
use crate::protocol::read_buffer::ReadBuffer;
use crate::sender::Sender;
use crate::sync;
use crate::sync::threads::Shutdown;

/// How often buffers are looked at, whether they could be smaller.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// The reader's side of an open connection. Used by the reader thread alone.
pub(crate) struct Reader {
    connection: Arc<OpenConnection>,
    opened: Opened,
    read_half: ReadHalf,
    buffer: ReadBuffer,
    assembler: Assembler,
    app_ping: Option<AppPing>,
    settled_at: Instant,
}

/// Why the reading ended.
pub(crate) struct ReadEnd {
    /// `Err`: the handler panicked, with this.
    pub(crate) error: Result<Error, Box<dyn Any + Send>>,
    /// The close frame that has to go out; `None` when the connection ends at once.
    pub(crate) close_handshake: Option<CloseFrame>,
}

impl ReadEnd {
    fn at_once(error: Error) -> Self {
        ReadEnd { error: Ok(error), close_handshake: None }
    }

    fn politely(error: Error, code: u16) -> Self {
        ReadEnd { error: Ok(error), close_handshake: Some(CloseFrame::new(code)) }
    }
}

/// What a batch of messages ended with.
enum Batch {
    /// All that was there has been delivered.
    Done,
    /// A stop was asked for, or somebody of ours aborted the connection.
    Halt,
    /// The peer's close frame came.
    Closed(CloseReason),
    ProtocolError(ProtocolError),
    Full,
}

impl Reader {
    pub(crate) fn new(
        connection: Arc<OpenConnection>,
        opened: Opened,
        leftover: Vec<u8>,
        settings: &Settings,
        inflater: Option<Inflater>,
    ) -> Self {
        let limits = Limits { max_message_size: settings.max_message_size };
        Reader {
            read_half: connection.transport.read_half(),
            connection,
            opened,
            buffer: ReadBuffer::with_leftover(&leftover),
            assembler: Assembler::new(limits, inflater),
            app_ping: settings.app_ping.clone(),
            settled_at: sync::now(),
        }
    }

    pub(crate) fn connection(&self) -> &Arc<OpenConnection> {
        &self.connection
    }

    pub(crate) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Delivers what comes until the connection ends; `None` when a stop ends it.
    pub(crate) fn run(
        &mut self,
        delivery: &mut impl EventSink,
        sender: &Sender,
        shutdown: &Shutdown,
    ) -> Option<ReadEnd> {
        // Frames may have come glued to the answer of the opening handshake: they go before the
        // first `recv`.
        let mut arrival = Arrival { at: sync::now(), kernel: None };
        loop {
            let batch = catch_unwind(AssertUnwindSafe(|| {
                self.deliver(delivery, sender, shutdown, arrival)
            }));
            if let Some(over) = self.check(batch, shutdown)? {
                return Some(over);
            }
            match self.receive() {
                Ok((Received::End, _)) => return Some(self.ended(None)),
                Ok((_, at)) => arrival = Arrival { at, kernel: self.read_half.kernel_time() },
                Err(error) => return Some(self.ended(Some(error))),
            }
        }
    }

    /// Blocks in `recv` until something comes, and keeps the heart's clocks.
    fn receive(&mut self) -> std::io::Result<(Received, Instant)> {
        self.connection.enter_recv();
        let received = self.connection.transport.receive(&mut self.read_half, &mut self.buffer);
        let now = sync::now();
        self.connection
            .leave_recv(now, matches!(received, Ok(Received::Bytes | Received::Partial)));
        // The reader never writes, so the heart has to send what the TLS engine has to say.
        if self.read_half.owes_output() {
            self.connection.wake();
        }
        self.buffer.note_need(now);
        if now.saturating_duration_since(self.settled_at) >= SETTLE_EVERY {
            self.settled_at = now;
            if self.buffer.settle(now) {
                self.connection.transport.shrink(&mut self.read_half);
            }
        }
        received.map(|received| (received, now))
    }

    /// Hands over every message that the buffer holds. A program that has left the connection hears
    /// no more of it.
    // The loop over messages has the registers for itself: drawn into `run` it costs ten
    // instructions a message more, or not, by whatever else is changed there.
    #[inline(never)]
    fn deliver(
        &mut self,
        delivery: &mut impl EventSink,
        sender: &Sender,
        shutdown: &Shutdown,
        arrival: Arrival,
    ) -> Batch {
        let has_left = self.connection.delivery_stopped();
        let Reader { connection, opened, buffer, assembler, app_ping, .. } = self;
        let is_reply = app_ping.as_ref().and_then(|ping| ping.is_reply.as_ref());
        // One look per message for what is rare.
        let traces = log::log_enabled!(log::Level::Trace);
        let is_special = has_left || is_reply.is_some() || traces;
        let mut view = Connection::new(connection, opened, sender);
        let (mut messages, mut bytes) = (0u64, 0u64);
        let mut unread = buffer.unread();
        let batch = loop {
            let payload = match assembler.next_simple(&mut unread) {
                Some(payload) => payload,
                None => match assembler.next(&mut unread) {
                    Ok(Some(Incoming::Text(text))) => Payload::Text(text),
                    Ok(Some(Incoming::Binary(bytes))) => Payload::Binary(bytes),
                    Ok(Some(Incoming::Ping(payload))) => {
                        connection.queue_pong(payload);
                        continue;
                    }
                    Ok(Some(Incoming::Pong(payload))) => {
                        connection.note_pong(payload, arrival.at);
                        continue;
                    }
                    Ok(Some(Incoming::Close(close))) => break Batch::Closed(close_reason(close)),
                    Ok(None) => break Batch::Done,
                    Err(violation) => break Batch::ProtocolError(violation),
                },
            };
            let message = MessageRef::new(payload, opened.epoch, arrival);
            if is_special {
                if traces {
                    trace_received(connection, payload);
                }
                if has_left {
                    continue;
                }
                if let Some(is_reply) = is_reply {
                    match_reply(connection, is_reply, message, sender);
                }
            }
            messages += 1;
            bytes += message.bytes().len() as u64;
            delivery.message(&mut view, message);
            // One branch for both.
            if shutdown.is_requested() | connection.delivery_stopped() {
                break Batch::Halt;
            }
        };
        if messages > 0 {
            connection.counters.received(messages, bytes);
        }
        let over = delivery.end_batch();
        if messages > 0 {
            // Now, not when they came: a slow handler or a full queue is not an idle connection.
            connection.note_data(sync::now());
        }
        match (over, batch) {
            (Err(Full), Batch::Done) => Batch::Full,
            (_, batch) => batch,
        }
    }

    /// What a batch means for the connection: the outer `None` for a stop, the inner for going on.
    #[expect(clippy::option_option, reason = "stopped, going on, over: three different answers")]
    fn check(
        &self,
        batch: Result<Batch, Box<dyn Any + Send>>,
        shutdown: &Shutdown,
    ) -> Option<Option<ReadEnd>> {
        let batch = match batch {
            Ok(batch) => batch,
            Err(panic) => {
                return Some(Some(ReadEnd {
                    error: Err(panic),
                    close_handshake: Some(CloseFrame::new(1001)),
                }));
            }
        };
        let over = match batch {
            Batch::Done => return Some(None),
            Batch::Halt if shutdown.is_requested() => return None,
            Batch::Halt if self.connection.is_aborted() => self.ended(None),
            // The program asked for another connection; its close frame is on its way.
            Batch::Halt => {
                ReadEnd { close_handshake: Some(CloseFrame::normal()), ..self.ended(None) }
            }
            Batch::Closed(close) => {
                log::trace!("{}: received Close({})", self.connection.peer, close.code);
                let error = Error::closed(
                    close.clone(),
                    format!(
                        "{} closed the connection with code {}",
                        self.connection.peer, close.code
                    ),
                );
                self.connection.note_peer_close(close.clone());
                // RFC 6455 section 5.5.1: the answer repeats the code. 1005 stands for none.
                let code = Some(close.code).filter(|&code| code != 1005);
                // If it answers a close frame of ours, the reason is ours.
                let error = self.connection.reason().unwrap_or(error);
                ReadEnd { error: Ok(error), close_handshake: Some(CloseFrame::new(code)) }
            }
            Batch::ProtocolError(violation) => {
                let code = u16::from(violation.code);
                let peer = &self.connection.peer;
                let error = match violation.code {
                    // Nothing is broken: the limit is ours.
                    CloseCode::Size => {
                        let what = format!(
                            "reading from {peer}: {violation}, {} bytes",
                            self.assembler.max_message_size()
                        );
                        Error::new(ErrorKind::TooBig, what)
                    }
                    _ => {
                        let what = format!("{peer} broke the protocol (code {code}): {violation}");
                        Error::new(ErrorKind::Protocol, what)
                    }
                };
                ReadEnd::politely(error, code)
            }
            Batch::Full => {
                let error = Error::new(
                    ErrorKind::Lagged,
                    "the events queue was full: read faster, or choose another rule",
                );
                ReadEnd::politely(error, 1001)
            }
        };
        Some(Some(over))
    }

    /// The connection is at its end: somebody of ours aborted it, or the peer ended it without a
    /// close frame.
    fn ended(&self, failure: Option<std::io::Error>) -> ReadEnd {
        let error = match (self.connection.reason(), failure) {
            (Some(reason), _) => reason,
            (None, Some(error)) => Error::caused(
                ErrorKind::Io,
                format!("reading from {}", self.connection.peer),
                error,
            ),
            (None, None) => self.connection.reset().unwrap_or_else(|| {
                let context =
                    format!("{} ended the connection without a close frame", self.connection.peer);
                Error::closed(CloseReason::abnormal(), context)
            }),
        };
        ReadEnd::at_once(error)
    }

    /// Reads and drops until the peer ends the connection or the heart aborts it. Looks for nothing
    /// but the peer's close frame.
    ///
    /// Aborting with input unread would send a reset, which destroys our close frame on its way.
    pub(crate) fn drain(&mut self) {
        let mut is_parsing = true;
        loop {
            let mut unread = self.buffer.unread();
            while is_parsing {
                match self.assembler.next(&mut unread) {
                    Ok(Some(Incoming::Close(close))) => {
                        self.connection.note_peer_close(close_reason(close));
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
fn trace_received(connection: &OpenConnection, payload: Payload<'_>) {
    log::trace!("{}: received {payload:?}", connection.peer);
}

/// Asks the program's matcher whether a message answers an application ping.
#[cold]
fn match_reply(
    connection: &OpenConnection,
    is_reply: &ReplyMatcher,
    message: MessageRef<'_>,
    sender: &Sender,
) {
    if !connection.awaits_app_reply() {
        return;
    }
    match catch_unwind(AssertUnwindSafe(|| is_reply(message))) {
        Ok(true) => connection.note_app_reply(),
        Ok(false) => {}
        Err(panic) => {
            sender.keep_panic(panic);
            connection.abort(Error::new(
                ErrorKind::HandlerPanicked,
                "the matcher of answers to application pings panicked",
            ));
        }
    }
}

fn close_reason(close: Option<(u16, &str)>) -> CloseReason {
    // RFC 6455 section 7.1.5: 1005 stands for a close frame without a code.
    let (code, reason) = close.unwrap_or((1005, ""));
    CloseReason { code, reason: reason.to_owned() }
}
