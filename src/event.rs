//! What a client tells its user: openings, messages, ends.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;

use crate::error::{CloseReason, Error, ErrorKind};

/// One thing that happened, in the order in which it happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection is open: a new epoch begins. Subscribe again, whatever was sent before.
    Opened(Opened),
    /// A data message.
    Message(Message),
    /// The connection of an epoch has ended: exactly one per opening.
    Disconnected(Disconnect),
    /// A dial failed.
    DialFailed(DialFailure),
    /// The queue was full, and its rule cost messages.
    Lagged(Lagged),
    /// The client has ended, and this is its last event.
    Stopped(Stopped),
}

/// How a connection was opened.
#[derive(Clone)]
pub struct Opened {
    /// Counts the openings of one client, from 1.
    pub epoch: u64,
    /// From the start of the dial to the answer that opened the connection.
    pub took: Duration,
    /// The address at the other end.
    pub peer: SocketAddr,
    /// The subprotocol that the server chose, if any.
    pub subprotocol: Option<String>,
    /// The headers of the server's answer.
    pub headers: HeaderMap,
    /// Whether permessage-deflate was agreed on (RFC 7692).
    pub is_compressed: bool,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold cookies, and some venues take tokens as subprotocols.
        f.debug_struct("Opened")
            .field("epoch", &self.epoch)
            .field("took", &self.took)
            .field("peer", &self.peer)
            .field("is_compressed", &self.is_compressed)
            .finish_non_exhaustive()
    }
}

/// A data message, borrowed from the read buffer for the length of a call.
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    payload: Payload<'a>,
    epoch: u64,
    arrival: Arrival,
}

/// When bytes came.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    /// When the `recv` that brought them returned.
    pub(crate) at: Instant,
    /// When the kernel got the last of them, if it was asked to note it.
    pub(crate) kernel: Option<SystemTime>,
}

/// What a message carries.
// Exhaustive, unlike other enums here: RFC 6455 section 5.6 knows no third kind, and who matches
// both should need no arm for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A text message: valid UTF-8 (RFC 6455 section 5.6).
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

impl<'a> MessageRef<'a> {
    #[inline]
    pub(crate) fn new(payload: Payload<'a>, epoch: u64, arrival: Arrival) -> Self {
        MessageRef { payload, epoch, arrival }
    }

    /// Text or binary, and its content.
    #[inline]
    pub fn payload(&self) -> Payload<'a> {
        self.payload
    }

    /// The text, if it is a text message.
    #[inline]
    pub fn text(&self) -> Option<&'a str> {
        match self.payload {
            Payload::Text(text) => Some(text),
            Payload::Binary(_) => None,
        }
    }

    /// The bytes, of text and binary messages alike.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        match self.payload {
            Payload::Text(text) => text.as_bytes(),
            Payload::Binary(bytes) => bytes,
        }
    }

    /// The epoch of the connection that it came by.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When the `recv` that brought its last bytes returned: monotonic, one reading of the clock
    /// for all messages of a `recv`.
    #[inline]
    pub fn received_at(&self) -> Instant {
        self.arrival.at
    }

    /// When the kernel got the last bytes of the `recv` that brought this message, by the wall
    /// clock, if it was asked to note it (`Builder::kernel_timestamps`, on Linux).
    /// [`received_wall`](MessageRef::received_wall) less this is how long they lay in the kernel,
    /// and how long the reader took to wake. A message that came in one piece with the answer to
    /// the opening handshake has none, nor do those of the moment that the kernel takes to begin
    /// with it.
    #[inline]
    pub fn kernel_received(&self) -> Option<SystemTime> {
        self.arrival.kernel
    }

    /// [`received_at`](MessageRef::received_at) by the wall clock, worked out when it is asked for:
    /// the wall clock's now, less the time that has passed since. Costs two readings of clocks; a
    /// wall clock that was set in between shows.
    pub fn received_wall(&self) -> SystemTime {
        wall_of(self.arrival.at)
    }

    /// A copy that may be kept.
    pub fn to_owned(&self) -> Message {
        let content = match self.payload {
            Payload::Text(text) => Content::Text(text.into()),
            Payload::Binary(bytes) => Content::Binary(bytes.into()),
        };
        Message { content, epoch: self.epoch, arrival: self.arrival }
    }
}

impl fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.text().is_some() { "text" } else { "binary" };
        write!(f, "{kind} message of {} bytes, epoch {}", self.bytes().len(), self.epoch)
    }
}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Payload::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Payload::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

impl<'a> From<&'a str> for Payload<'a> {
    fn from(text: &'a str) -> Self {
        Payload::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Payload::Binary(bytes)
    }
}

/// A data message that may be kept.
#[derive(Clone)]
pub struct Message {
    content: Content,
    epoch: u64,
    arrival: Arrival,
}

#[derive(Clone)]
enum Content {
    Text(Box<str>),
    Binary(Box<[u8]>),
}

impl Message {
    /// The message as a handler would see it.
    pub fn as_ref(&self) -> MessageRef<'_> {
        let payload = match &self.content {
            Content::Text(text) => Payload::Text(text),
            Content::Binary(bytes) => Payload::Binary(bytes),
        };
        MessageRef::new(payload, self.epoch, self.arrival)
    }

    /// Text or binary, and its content.
    pub fn payload(&self) -> Payload<'_> {
        self.as_ref().payload()
    }

    /// The text, if it is a text message.
    pub fn text(&self) -> Option<&str> {
        self.as_ref().text()
    }

    /// The bytes, of text and binary messages alike.
    pub fn bytes(&self) -> &[u8] {
        self.as_ref().bytes()
    }

    /// The text or the bytes, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.content {
            Content::Text(text) => text.into_string().into_bytes(),
            Content::Binary(bytes) => bytes.into_vec(),
        }
    }

    /// The text without a copy, or the message back if it is binary.
    ///
    /// # Errors
    /// The message itself, if it is binary.
    pub fn into_text(self) -> Result<String, Message> {
        match self.content {
            Content::Text(text) => Ok(text.into_string()),
            Content::Binary(_) => Err(self),
        }
    }

    /// The epoch of the connection that it came by.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When the `recv` that brought its last bytes returned.
    pub fn received_at(&self) -> Instant {
        self.arrival.at
    }

    /// As [`MessageRef::kernel_received`].
    pub fn kernel_received(&self) -> Option<SystemTime> {
        self.arrival.kernel
    }

    /// As [`MessageRef::received_wall`].
    pub fn received_wall(&self) -> SystemTime {
        wall_of(self.arrival.at)
    }
}

fn wall_of(at: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

/// tungstenite's message, for code that already speaks in it.
impl From<Message> for tungstenite::Message {
    fn from(message: Message) -> Self {
        match message.content {
            Content::Text(text) => tungstenite::Message::text(text.into_string()),
            Content::Binary(bytes) => tungstenite::Message::binary(bytes.into_vec()),
        }
    }
}

/// The proof that the kernel took a message whole. It proves nothing about the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt {
    /// The epoch of the connection that it went by.
    pub epoch: u64,
    /// Its number among the messages of that epoch, from 1. For a batch, that of its last message.
    /// [`Disconnect::confirmed`](crate::Disconnect::confirmed) counts in these.
    pub sequence: u64,
}

/// Why and how the connection of an epoch ended.
#[derive(Clone, Debug)]
pub struct Disconnect {
    /// The epoch that ended.
    pub epoch: u64,
    /// Why.
    pub error: Error,
    /// The close code and reason (RFC 6455 section 7.1.5): what the peer's close frame said, 1005
    /// if it said nothing; what ours says if we closed first and no answer had come when this was
    /// told; after a stop, which is told before its close frame is written, what that says if there
    /// is room for it; 1006 if there was no close frame at all.
    pub close: CloseReason,
    /// How long the connection was open.
    pub lasted: Duration,
    /// The highest sequence that a send on this connection was given. 0: nothing was sent.
    pub sent: u64,
    /// The highest sequence that a later pong covers: the peer had read that far. What was sent
    /// after it is in doubt.
    pub confirmed: u64,
    /// When the next dial starts, from the end of this connection. `None`: never, the client ends.
    pub retry_in: Option<Duration>,
    /// The peer's close frame had come when this was told.
    pub(crate) has_peer_closed: bool,
}

impl Disconnect {
    /// Whether a close frame of the peer ended the connection, as opposed to a failure, a silence
    /// or a stop.
    ///
    /// After [`Sender::reconnect`](crate::Sender::reconnect) that frame is the answer to ours:
    /// `false` when the peer gave none, and also when the connection was told as ended before the
    /// answer came, which a message of the peer between the two brings about.
    pub fn is_clean(&self) -> bool {
        self.error.kind() == ErrorKind::Closed && self.has_peer_closed
    }
}

impl fmt::Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connection {} ended after {:.1?}: {}",
            self.epoch,
            self.lasted,
            self.error.chain()
        )
    }
}

/// A dial that did not lead to a connection.
#[derive(Clone, Debug)]
pub struct DialFailure {
    /// The number of this dial in a row without a stable connection, from 1.
    pub attempt: u32,
    /// Why.
    pub error: Error,
    /// When the next dial starts. `None`: never, the client ends.
    pub retry_in: Option<Duration>,
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dial {} failed: {}", self.attempt, self.error.chain())
    }
}

/// Messages lost to a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lagged {
    /// How many messages were lost where this event stands.
    pub lost: u64,
    /// How many notices (openings, ends, failed dials) were lost to a queue that nobody reads.
    pub lost_notices: u64,
}

/// The end of a client.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// Why: kind `Stopped` when it was told to, otherwise the error that no retry mends.
    pub reason: Error,
}
