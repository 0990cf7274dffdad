//! Reading one open connection: bytes in, messages out, until it ends.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use crate::config::settings::Settings;
use crate::connection::OpenConnection;
use crate::connection::close::CloseFrame;
use crate::connection::transport::{ReadHalf, Received};
use crate::error::{CloseReason, Error, ErrorKind};
use crate::event::{Arrival, MessageRef, Opened, Payload};
use crate::handler::{Connection, EventSink, Full, WokenContext};
use crate::protocol::ProtocolError;
use crate::protocol::assembler::{Assembler, Incoming, Limits};
use crate::protocol::decode::{DecodeError, Fault};
use crate::protocol::deflate::Inflater;
use crate::protocol::read_buffer::ReadBuffer;
use crate::runtime::inspection::Inspection;
use crate::sender::Sender;
use crate::sync;
use crate::sync::panic::{self, Panic};
use crate::sync::wait::Shutdown;
use crate::sync::wakeups::Wakeups;

/// The interval at which the reader checks whether its buffers could be smaller.
const SHRINK_INTERVAL: Duration = Duration::from_secs(1);

/// The reader's side of an open connection. Used by the reader thread alone.
pub(crate) struct Reader {
    connection: Arc<OpenConnection>,
    opened: Opened,
    read_half: ReadHalf,
    buffer: ReadBuffer,
    assembler: Assembler,
    inspection: Option<Inspection>,
    shrunk_at: Instant,
    /// The time at which the reader first waited after the last byte. A dead connection must not
    /// look alive because its handler is woken now and then.
    waits_since: Option<Instant>,
    /// The peer's close frame may still come.
    awaits_close: bool,
}

/// The end of the reading of a connection.
pub(crate) enum ReadEnd {
    /// A stop was requested.
    Stopped,
    /// The connection has ended, or has to end now.
    Aborted(Error),
    /// The closing handshake is under way, begun by the peer or by the program.
    Closing(Error),
    /// The closing handshake has to begin, with this frame.
    Close(Error, CloseFrame),
    /// The handler panicked. The closing handshake has to begin.
    Panicked(Panic),
}

/// The reason why draining a connection has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// The connection has ended.
    Over,
    /// The handler is to be woken. There may be more to drain.
    Woken,
}

/// The way on after a batch of messages.
enum Flow {
    Continue,
    End(ReadEnd),
}

/// The end of a batch of messages.
enum BatchEnd {
    /// Everything that was there has been delivered.
    Done,
    /// A stop was requested, or nothing more is to be delivered.
    DeliveryOver,
    /// The peer's close frame came.
    Closed(CloseReason),
    Violation(ProtocolError),
    /// A message is not what `decode` expects.
    Undecodable(Fault),
    QueueFull,
}

/// The messages of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivered {
    Nothing,
    /// Replies to application pings alone.
    Replies,
    Data,
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
            inspection: Inspection::new(settings),
            shrunk_at: sync::now(),
            waits_since: None,
            awaits_close: true,
        }
    }

    pub(crate) fn connection(&self) -> &Arc<OpenConnection> {
        &self.connection
    }

    pub(crate) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Delivers what comes until the connection ends.
    pub(crate) fn run(
        &mut self,
        sink: &mut impl EventSink,
        sender: &Sender,
        shutdown: &Shutdown,
        wakeups: &Wakeups,
    ) -> ReadEnd {
        // Frames may have come in one piece with the response of the opening handshake: they are
        // delivered before the first `recv`.
        let mut arrival = Arrival { at: sync::now(), kernel: None };
        loop {
            let batch = panic::catch(|| self.deliver(sink, sender, shutdown, arrival));
            if let Flow::End(end) = self.after_batch(batch, shutdown) {
                return end;
            }
            // One wake-up at most between two reads: neither keeps the other waiting.
            arrival = loop {
                if wakeups.is_due() {
                    let woken = panic::catch(|| self.wake(sink, sender, shutdown, wakeups));
                    if let Flow::End(end) = self.after_batch(woken, shutdown) {
                        return end;
                    }
                }
                match self.receive(wakeups) {
                    Ok((Received::Woken, _)) => {}
                    Ok((Received::End, _)) => return ReadEnd::Aborted(self.end_error(None)),
                    Ok((_, at)) => break Arrival { at, kernel: self.read_half.kernel_time() },
                    Err(error) => return ReadEnd::Aborted(self.end_error(Some(error))),
                }
            };
        }
    }

    /// Wakes the handler, unless delivery is over: it is woken once it has been told of the end.
    fn wake(
        &self,
        sink: &mut impl EventSink,
        sender: &Sender,
        shutdown: &Shutdown,
        wakeups: &Wakeups,
    ) -> BatchEnd {
        let is_over = || shutdown.is_requested() | self.connection.is_delivery_over();
        if !is_over() {
            let Some(due) = wakeups.take_due() else { return BatchEnd::Done };
            let connection = Connection::new(&self.connection, &self.opened, sender);
            self.connection.activity.enter_woken(sync::now());
            sink.woken(&mut WokenContext::new(due, Some(connection), sender));
        }
        if is_over() { BatchEnd::DeliveryOver } else { BatchEnd::Done }
    }

    /// Blocks until something comes, or until the handler is to be woken.
    fn receive(&mut self, wakeups: &Wakeups) -> io::Result<(Received, Instant)> {
        let since = *self.waits_since.get_or_insert_with(sync::now);
        let Reader { connection, read_half, buffer, .. } = self;
        let transport = &connection.transport;
        let received = transport.receive(read_half, buffer, wakeups, &connection.activity, since);
        let now = sync::now();
        let has_bytes = matches!(received, Ok(Received::Bytes | Received::Partial));
        if has_bytes {
            self.waits_since = None;
        }
        self.connection.activity.leave_recv(now, has_bytes);
        // The reader never writes: the heartbeat thread sends what the TLS engine has to say.
        if self.read_half.owes_output() {
            self.connection.wake_heartbeat();
        }
        self.buffer.note_need(now);
        if now.saturating_duration_since(self.shrunk_at) >= SHRINK_INTERVAL {
            self.shrunk_at = now;
            if self.buffer.settle(now) {
                self.connection.transport.shrink(&mut self.read_half);
            }
            if let Some(inspection) = &mut self.inspection {
                inspection.settle(now);
            }
        }
        received.map(|received| (received, now))
    }

    /// Delivers every message that the buffer holds, and tells the sink of their end.
    fn deliver(
        &mut self,
        sink: &mut impl EventSink,
        sender: &Sender,
        shutdown: &Shutdown,
        arrival: Arrival,
    ) -> BatchEnd {
        let (mut batch, delivered) = self.deliver_messages(sink, sender, shutdown, arrival);
        let Reader { connection, opened, .. } = self;
        if delivered != Delivered::Nothing && !matches!(batch, BatchEnd::DeliveryOver) {
            sink.batch_end(&mut Connection::new(connection, opened, sender));
            // As after each message.
            let is_over = shutdown.is_requested() | connection.is_delivery_over();
            if is_over && matches!(batch, BatchEnd::Done) {
                batch = BatchEnd::DeliveryOver;
            }
        }
        // Before the queue is told, which may have no room for a long time.
        connection.counters.touch();
        let end = sink.end_recv();
        // Replies to application pings are no data: a server that sends nothing else is idle.
        if delivered == Delivered::Data {
            // Now, not when they came: a slow handler or a full queue is no idle connection.
            connection.activity.note_data(sync::now());
        }
        match (end, batch) {
            (Err(Full), BatchEnd::Done) => BatchEnd::QueueFull,
            (_, batch) => batch,
        }
    }

    /// Delivers every message that the buffer holds.
    // A function of its own, so that the loop over messages has the registers to itself: inlined
    // into `run` it costs ten instructions a message more.
    #[inline(never)]
    fn deliver_messages(
        &mut self,
        sink: &mut impl EventSink,
        sender: &Sender,
        shutdown: &Shutdown,
        arrival: Arrival,
    ) -> (BatchEnd, Delivered) {
        let is_delivery_over = self.connection.is_delivery_over();
        let Reader { connection, opened, buffer, assembler, inspection, .. } = self;
        // One check per message for what is rare.
        let traces = log::log_enabled!(log::Level::Trace);
        let is_special = is_delivery_over || inspection.is_some() || traces;
        let mut special = Special {
            is_delivery_over,
            traces,
            inspection: inspection.as_mut(),
            connection,
            sender,
            shutdown,
            arrival,
            end: None,
        };
        let mut view = Connection::new(connection, opened, sender);
        let (mut messages, mut bytes) = (0u64, 0u64);
        // Messages that were no data, and those of them that are replies to pings as well.
        let (mut ignored, mut ignored_replies) = (0u64, 0u64);
        let mut unread = buffer.unread();
        let batch = loop {
            let mut payload = match assembler.next_simple(&mut unread) {
                Some(payload) => payload,
                None => match assembler.next(&mut unread) {
                    Ok(Some(Incoming::Text(text))) => Payload::Text(text),
                    Ok(Some(Incoming::Binary(bytes))) => Payload::Binary(bytes),
                    Ok(Some(Incoming::Ping(payload))) => {
                        connection.queue_pong(payload);
                        continue;
                    }
                    Ok(Some(Incoming::Pong(payload))) => {
                        let round_trip = connection.note_pong(payload, arrival.at);
                        match round_trip.filter(|_| !is_delivery_over) {
                            Some(round_trip) => sink.pong(&mut view, round_trip),
                            None => continue,
                        }
                        // As after a message.
                        if shutdown.is_requested() | connection.is_delivery_over() {
                            break BatchEnd::DeliveryOver;
                        }
                        continue;
                    }
                    Ok(Some(Incoming::Close(close))) => {
                        break BatchEnd::Closed(close_reason(close));
                    }
                    Ok(None) => break BatchEnd::Done,
                    Err(violation) => break BatchEnd::Violation(violation),
                },
            };
            if is_special {
                // Taken apart on both ways: a payload that was lent whole would be in memory, for
                // every message.
                let inspected = match payload {
                    Payload::Text(text) => special.inspect(Payload::Text(text)),
                    Payload::Binary(bytes) => special.inspect(Payload::Binary(bytes)),
                };
                match inspected {
                    Some(Payload::Text(text)) => payload = Payload::Text(text),
                    Some(Payload::Binary(bytes)) => payload = Payload::Binary(bytes),
                    None => match special.end.take() {
                        Some(end) => break end,
                        None => continue,
                    },
                }
            }
            let message = MessageRef::new(payload, opened.epoch, arrival);
            messages += 1;
            bytes += message.bytes().len() as u64;
            sink.message(&mut view, message);
            if sink.ignores() && is_special {
                let latest = sink.take_ignored();
                ignored += latest;
                ignored_replies += if special.is_reply() { latest } else { 0 };
            }
            // One branch for both.
            if shutdown.is_requested() | connection.is_delivery_over() {
                break BatchEnd::DeliveryOver;
            }
        };
        let findings = inspection.as_mut().map(Inspection::take_findings).unwrap_or_default();
        let received = messages + findings.answered;
        if received > 0 {
            connection.counters.received(received, bytes + findings.answered_bytes);
        }
        let messages = messages - ignored - sink.take_ignored();
        let replies = findings.replies - ignored_replies;
        let delivered = match messages {
            0 => Delivered::Nothing,
            _ if messages > replies => Delivered::Data,
            _ => Delivered::Replies,
        };
        (batch, delivered)
    }

    /// Decides what the end of a batch, or of a call that woke the handler, means for the
    /// connection.
    fn after_batch(&self, batch: Result<BatchEnd, Panic>, shutdown: &Shutdown) -> Flow {
        let connection = &self.connection;
        let batch = match batch {
            Ok(batch) => batch,
            Err(panic) => return Flow::End(ReadEnd::Panicked(panic)),
        };
        let end = match batch {
            BatchEnd::Done => return Flow::Continue,
            BatchEnd::DeliveryOver if shutdown.is_requested() => ReadEnd::Stopped,
            BatchEnd::DeliveryOver if connection.is_aborted() => {
                ReadEnd::Aborted(self.end_error(None))
            }
            // The program asked for another connection; the close frame is on its way.
            BatchEnd::DeliveryOver => ReadEnd::Closing(self.end_error(None)),
            BatchEnd::Closed(close) => {
                log::trace!("{}: received Close({})", connection.label(), close.code);
                let context =
                    format!("{} closed the connection with code {}", connection.peer, close.code);
                connection.receive_close(close.clone());
                // If it answers a close frame of ours, the reason is ours.
                let closed = || Error::closed(close, context);
                ReadEnd::Closing(connection.reason().unwrap_or_else(closed))
            }
            BatchEnd::Violation(violation) => {
                let frame = CloseFrame::new(u16::from(violation.code));
                ReadEnd::Close(self.violation_error(&violation), frame)
            }
            BatchEnd::Undecodable(fault) => {
                let context = format!("a message of {} does not decode: {fault}", connection.peer);
                let frame = CloseFrame::new(u16::from(CloseCode::Invalid));
                ReadEnd::Close(Error::new(ErrorKind::Undecodable, context), frame)
            }
            BatchEnd::QueueFull => {
                let context = "the events queue was full: read faster, or choose another rule";
                ReadEnd::Close(Error::new(ErrorKind::Lagged, context), CloseFrame::new(1001))
            }
        };
        Flow::End(end)
    }

    fn violation_error(&self, violation: &ProtocolError) -> Error {
        let peer = &self.connection.peer;
        match violation.code {
            // Nothing is broken: the limit is ours.
            CloseCode::Size => {
                let limit = self.assembler.max_message_size();
                let context = format!("reading from {peer}: {violation}, {limit} bytes");
                Error::new(ErrorKind::TooBig, context)
            }
            code => {
                let code = u16::from(code);
                let context = format!("{peer} broke the protocol (code {code}): {violation}");
                Error::new(ErrorKind::Protocol, context)
            }
        }
    }

    /// Returns the reason for the end of the connection: this side ended it, a read failed, or the
    /// peer ended it without a close frame.
    fn end_error(&self, failure: Option<io::Error>) -> Error {
        let connection = &self.connection;
        match (connection.reason(), failure) {
            (Some(reason), _) => reason,
            (None, Some(error)) => {
                Error::caused(ErrorKind::Io, format!("reading from {}", connection.peer), error)
            }
            (None, None) => connection.reset().unwrap_or_else(|| {
                let context =
                    format!("{} ended the connection without a close frame", connection.peer);
                Error::closed(CloseReason::abnormal(), context)
            }),
        }
    }

    /// Reads and drops until the peer ends TCP or the connection is aborted, looking for the peer's
    /// close frame alone. Aborting with input unread would send a reset, which destroys our close
    /// frame on its way. Returns early when the handler is to be woken.
    pub(crate) fn drain(&mut self, wakeups: &Wakeups) -> Drained {
        loop {
            let mut unread = self.buffer.unread();
            while self.awaits_close {
                match self.assembler.next(&mut unread) {
                    Ok(Some(Incoming::Close(close))) => {
                        self.connection.receive_close(close_reason(close));
                        self.awaits_close = false;
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    // Whatever follows a close frame or a violation has no meaning.
                    Err(_) => self.awaits_close = false,
                }
            }
            drop(unread);
            if !self.awaits_close {
                self.buffer.clear();
            }
            match self.receive(wakeups) {
                Ok((Received::End, _)) | Err(_) => return Drained::Over,
                Ok(_) if wakeups.is_due() => return Drained::Woken,
                Ok(_) => {}
            }
        }
    }
}

/// The rare things that happen to a message before it is delivered, and what they need: one
/// pointer, so that the loop over messages has the registers to itself.
struct Special<'r> {
    is_delivery_over: bool,
    traces: bool,
    inspection: Option<&'r mut Inspection>,
    connection: &'r OpenConnection,
    sender: &'r Sender,
    shutdown: &'r Shutdown,
    arrival: Arrival,
    /// The batch ends with the last message.
    end: Option<BatchEnd>,
}

impl Special<'_> {
    /// Returns `true` if the last message is a reply to an application ping.
    fn is_reply(&self) -> bool {
        self.inspection.as_ref().is_some_and(|inspection| inspection.is_reply)
    }

    /// Returns the payload to be delivered, if one is.
    #[inline(never)]
    fn inspect<'m>(&'m mut self, payload: Payload<'m>) -> Option<Payload<'m>> {
        let connection = self.connection;
        if self.traces {
            log::trace!("{}: received {payload:?}", connection.label());
        }
        if self.is_delivery_over {
            return None;
        }
        let Some(inspection) = &mut self.inspection else { return Some(payload) };
        let message = MessageRef::new(payload, connection.epoch, self.arrival);
        match inspection.inspect(message, connection, self.sender) {
            Ok(Some(inspected)) => return Some(inspected),
            // As after each message that is delivered.
            Ok(None) if self.shutdown.is_requested() | connection.is_delivery_over() => {
                self.end = Some(BatchEnd::DeliveryOver);
            }
            Ok(None) => {}
            Err(DecodeError::TooLong) => {
                self.end = Some(BatchEnd::Violation(ProtocolError::too_long()));
            }
            Err(DecodeError::Undecodable(fault)) => self.end = Some(BatchEnd::Undecodable(fault)),
        }
        None
    }
}

fn close_reason(close: Option<(u16, &str)>) -> CloseReason {
    // RFC 6455 section 7.1.5: 1005 stands for a close frame without a code.
    let (code, reason) = close.unwrap_or((1005, ""));
    CloseReason { code, reason: reason.to_owned() }
}
