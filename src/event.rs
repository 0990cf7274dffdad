//! The events of a client: openings, messages, ends.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;

use crate::error::{CloseReason, Error, ErrorKind};
use crate::name::ClientName;
use crate::session_event::SessionEvent;

/// An event of a client. Events come in the order in which they happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection is open and a new epoch begins. Subscribe again, whatever was sent before.
    Opened(Opened),
    /// A data message arrived.
    Message(Message),
    /// The connection of an epoch ended. There is exactly one such event per opening.
    Disconnected(Disconnect),
    /// A dial failed.
    DialFailed(DialFailure),
    /// The event queue was full and lost messages.
    Lagged(Lagged),
    /// A [session](crate::session) has news. A client without a session has none.
    Session(SessionEvent),
    /// The client ended. This is its last event.
    Stopped(Stopped),
}

/// The opening of a connection.
#[derive(Clone)]
pub struct Opened {
    /// The number of this opening among those of the client, from 1.
    pub epoch: u64,
    /// The time from the start of the dial to the response that opened the connection.
    pub took: Duration,
    /// The address of the server, or of whatever stands before it.
    pub peer: SocketAddr,
    /// The subprotocol that the server chose, if any.
    pub subprotocol: Option<String>,
    /// The headers of the server's response to the opening handshake. `Debug` hides them.
    pub headers: HeaderMap,
    /// `true` if permessage-deflate was negotiated (RFC 7692).
    pub is_compressed: bool,
    pub(crate) carried: Carried,
    pub(crate) client: ClientName,
}

impl Opened {
    /// Returns the value that the endpoint of this connection carried under `key`, if there is one.
    /// See [`Endpoint::carry`](crate::Endpoint::carry).
    pub fn carried(&self, key: &str) -> Option<&str> {
        self.carried.get(key)
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold cookies, some venues take tokens as subprotocols, and endpoints carry
        // them.
        f.debug_struct("Opened")
            .field("client", &self.client)
            .field("epoch", &self.epoch)
            .field("took", &self.took)
            .field("peer", &self.peer)
            .field("is_compressed", &self.is_compressed)
            .finish_non_exhaustive()
    }
}

/// The values that an endpoint carries, by their keys. They may be secrets. A clone shares them.
#[derive(Clone, Default)]
pub(crate) struct Carried {
    /// `None` where there are none, which costs no memory.
    values: Option<Arc<[(String, String)]>>,
}

impl Carried {
    pub(crate) fn new(values: &[(String, String)]) -> Self {
        Carried { values: (!values.is_empty()).then(|| values.into()) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(carried, _)| carried == key).map(|(_, value)| value.as_str())
    }

    /// Returns how many bytes the keys and the values take.
    pub(crate) fn bytes(&self) -> usize {
        self.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.values.iter().flat_map(|values| values.iter())
    }
}

/// A data message, borrowed from the read buffer for the duration of a call.
///
/// [`to_owned`](MessageRef::to_owned) copies it. `Debug` shows its kind and size, not its content.
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    payload: Payload<'a>,
    epoch: u64,
    arrival: Arrival,
}

/// The time at which bytes arrived.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    /// The time at which the `recv` that brought them returned.
    pub(crate) at: Instant,
    /// The time at which the kernel received the last of them, if it was asked to record it.
    pub(crate) kernel: Option<SystemTime>,
}

/// The payload of a data message: text or binary (RFC 6455 section 5.6).
///
/// `Debug` shows its size, not its content.
// Exhaustive, unlike the other enums here: the RFC has no third kind, so a match on both should
// need no further arm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// The payload of a text message, which is valid UTF-8.
    Text(&'a str),
    /// The payload of a binary message.
    Binary(&'a [u8]),
}

impl<'a> MessageRef<'a> {
    #[inline]
    pub(crate) fn new(payload: Payload<'a>, epoch: u64, arrival: Arrival) -> Self {
        MessageRef { payload, epoch, arrival }
    }

    #[inline]
    pub(crate) fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// Returns the payload.
    #[inline]
    pub fn payload(&self) -> Payload<'a> {
        self.payload
    }

    /// Returns the text of a text message, and `None` for a binary one.
    #[inline]
    pub fn text(&self) -> Option<&'a str> {
        match self.payload {
            Payload::Text(text) => Some(text),
            Payload::Binary(_) => None,
        }
    }

    /// Returns the bytes of a text or binary message.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        match self.payload {
            Payload::Text(text) => text.as_bytes(),
            Payload::Binary(bytes) => bytes,
        }
    }

    /// Returns the epoch of the connection on which the message arrived.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the time at which the `recv` that brought its last bytes returned.
    ///
    /// The clock is monotonic and is read once for all messages of a `recv`.
    #[inline]
    pub fn received_at(&self) -> Instant {
        self.arrival.at
    }

    /// Returns the wall-clock time at which the kernel received the last bytes of the `recv` that
    /// brought this message, if `Builder::kernel_timestamps` is set (Linux).
    ///
    /// [`received_wall`](MessageRef::received_wall) minus this time is what the bytes spent in the
    /// kernel, the reader's wake-up included. `None` for messages that arrived together with the
    /// response to the opening handshake, and for those that arrive before the kernel has begun to
    /// record times.
    #[inline]
    pub fn kernel_received(&self) -> Option<SystemTime> {
        self.arrival.kernel
    }

    /// Returns [`received_at`](MessageRef::received_at) as wall-clock time.
    ///
    /// It is computed by this call, as the current wall-clock time minus the time since then. That
    /// costs two readings of clocks, and a wall clock that was set in between makes it wrong.
    pub fn received_wall(&self) -> SystemTime {
        wall_of(self.arrival.at)
    }

    /// Copies the message.
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

/// An owned data message.
///
/// `Debug` shows its kind and size, not its content.
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
    /// Borrows the message in the form in which a handler receives it.
    pub fn as_ref(&self) -> MessageRef<'_> {
        let payload = match &self.content {
            Content::Text(text) => Payload::Text(text),
            Content::Binary(bytes) => Payload::Binary(bytes),
        };
        MessageRef::new(payload, self.epoch, self.arrival)
    }

    /// Returns the payload.
    pub fn payload(&self) -> Payload<'_> {
        self.as_ref().payload()
    }

    /// Returns the text of a text message, and `None` for a binary one.
    pub fn text(&self) -> Option<&str> {
        self.as_ref().text()
    }

    /// Returns the bytes of a text or binary message.
    pub fn bytes(&self) -> &[u8] {
        self.as_ref().bytes()
    }

    /// Returns the bytes of a text or binary message without copying them.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.content {
            Content::Text(text) => text.into_string().into_bytes(),
            Content::Binary(bytes) => bytes.into_vec(),
        }
    }

    /// Returns the text without copying it.
    ///
    /// # Errors
    /// The message itself if it is binary.
    pub fn into_text(self) -> Result<String, Message> {
        match self.content {
            Content::Text(text) => Ok(text.into_string()),
            Content::Binary(_) => Err(self),
        }
    }

    /// Returns the epoch of the connection on which the message arrived.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the time at which the `recv` that brought its last bytes returned. See
    /// [`MessageRef::received_at`].
    pub fn received_at(&self) -> Instant {
        self.arrival.at
    }

    /// Returns the wall-clock time at which the kernel received its last bytes. See
    /// [`MessageRef::kernel_received`].
    pub fn kernel_received(&self) -> Option<SystemTime> {
        self.arrival.kernel
    }

    /// Returns [`received_at`](Message::received_at) as wall-clock time. See
    /// [`MessageRef::received_wall`].
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

/// Converts to tungstenite's message without copying the payload. With the feature
/// `tungstenite-types`.
#[cfg(feature = "tungstenite-types")]
impl From<Message> for tungstenite::Message {
    fn from(message: Message) -> Self {
        match message.content {
            Content::Text(text) => tungstenite::Message::text(text.into_string()),
            Content::Binary(bytes) => tungstenite::Message::binary(bytes.into_vec()),
        }
    }
}

/// The receipt of a message that the kernel took whole. It proves nothing about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt {
    /// The epoch of the connection that the message was sent on.
    pub epoch: u64,
    /// The number of the message among those of its epoch, from 1; for a batch, that of its last
    /// message. [`Disconnect::sent`] and [`Disconnect::confirmed`] count in these numbers.
    pub sequence: u64,
}

/// The end of a connection.
#[derive(Clone, Debug)]
pub struct Disconnect {
    /// The epoch of the connection.
    pub epoch: u64,
    /// The reason.
    pub error: Error,
    /// The close code and reason (RFC 6455 section 7.1.5).
    ///
    /// - Those of the server's close frame, or 1005 if it had none.
    /// - Those of our own close frame, after a stop, and where we closed first and no answer had
    ///   arrived by then.
    /// - 1006 if there was no close frame.
    pub close: CloseReason,
    /// The time for which the connection was open.
    pub lasted: Duration,
    /// The highest [`sequence`](crate::Receipt::sequence) of a send on this connection; 0 if
    /// nothing was sent. No send that begins later gets a number. A send that is under way at the
    /// very end is counted, and may still turn out as `NotSent`; nothing else is.
    pub sent: u64,
    /// The highest [`sequence`](crate::Receipt::sequence) that a later pong covers: the server had
    /// read up to it. Messages after it may or may not have arrived.
    pub confirmed: u64,
    /// The time from the end of this connection to the next dial. `None` if the client ends
    /// instead. [`before_reconnect`](crate::Builder::before_reconnect), which is called after this
    /// was told, may decide otherwise.
    pub retry_in: Option<Duration>,
    /// The error that the server sent in the second before the end, if it did: a session whose
    /// protocol calls a message a [`Failure`](crate::session::Class::Failure) keeps its text.
    pub server_error: Option<ServerError>,
    /// `true` if the server's close frame had arrived when this was reported.
    pub(crate) has_peer_closed: bool,
}

/// The text of an error that a server sent. `Debug` hides it. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerError(Arc<str>);

impl ServerError {
    pub(crate) fn new(text: &str) -> Self {
        ServerError(text.into())
    }

    /// Returns the text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerError({} bytes)", self.0.len())
    }
}

impl Disconnect {
    /// Returns `true` if a close frame of the server ended the connection, and `false` after a
    /// failure, a timeout or a stop.
    ///
    /// After [`Sender::reconnect`](crate::Sender::reconnect) that frame is the server's answer to
    /// ours. This is `false` if the end was reported before the answer arrived, which happens when
    /// a message of the server arrives between the two.
    pub fn is_clean(&self) -> bool {
        self.error.kind() == ErrorKind::Closed && self.has_peer_closed
    }
}

impl fmt::Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}the connection of epoch {} ended after {:.1?}: {}; {}",
            Prefix(&self.error),
            self.epoch,
            self.lasted,
            self.error.chain_without_name(),
            NextDial(self.retry_in)
        )
    }
}

/// A dial that failed.
#[derive(Clone, Debug)]
pub struct DialFailure {
    /// The consecutive attempt number, from 1. A stable connection resets it; see
    /// [`stable_after`](crate::Builder::stable_after).
    pub attempt: u32,
    /// The reason.
    pub error: Error,
    /// The time from this failure to the next dial. `None` if the client ends instead.
    pub retry_in: Option<Duration>,
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DialFailure { attempt, error, retry_in } = self;
        write!(
            f,
            "{}dial attempt {attempt} failed: {}; {}",
            Prefix(error),
            error.chain_without_name(),
            NextDial(*retry_in)
        )
    }
}

/// The name of the client that an event is about, its host by default.
struct Prefix<'a>(&'a Error);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.client() {
            Some(name) => write!(f, "{name}: "),
            None => Ok(()),
        }
    }
}

/// The time until the next dial, in words.
pub(crate) struct NextDial(pub(crate) Option<Duration>);

impl fmt::Display for NextDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(wait) => write!(f, "dialing again in {wait:.1?}"),
            None => f.write_str("not dialing again"),
        }
    }
}

/// A gap in the events: messages or notices were lost to a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lagged {
    /// The number of messages lost at this place in the order of events.
    pub lost: u64,
    /// The number of openings, ends, failed dials and events of a session lost because nobody read
    /// the queue.
    pub lost_notices: u64,
}

/// The end of a client.
#[derive(Clone, Debug)]
pub struct Stopped {
    /// The reason: an error of kind [`Stopped`](ErrorKind::Stopped) if the client was told to stop,
    /// otherwise the error that ended it.
    pub reason: Error,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = &self.reason;
        write!(f, "{}the client has ended: {}", Prefix(reason), reason.chain_without_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_the_same_borrowed_and_owned() {
        let at = Instant::now().checked_sub(Duration::from_secs(60)).expect("the clock has run");
        let kernel = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        let arrival = Arrival { at, kernel };
        let payloads: [(Payload<'_>, Option<&str>, &[u8], &str); 2] = [
            (Payload::Text("né"), Some("né"), "né".as_bytes(), "text message of 3 bytes, epoch 7"),
            (Payload::Binary(&[0, 255]), None, &[0, 255], "binary message of 2 bytes, epoch 7"),
        ];
        for (payload, text, bytes, shown) in payloads {
            let borrowed = MessageRef::new(payload, 7, arrival);
            let owned = borrowed.to_owned();
            assert!(borrowed.payload() == payload && owned.payload() == payload);
            assert_eq!((borrowed.text(), owned.text()), (text, text));
            assert_eq!((borrowed.bytes(), owned.bytes()), (bytes, bytes));
            assert_eq!((borrowed.epoch(), owned.epoch()), (7, 7));
            assert_eq!((borrowed.received_at(), owned.received_at()), (at, at));
            assert_eq!((borrowed.kernel_received(), owned.kernel_received()), (kernel, kernel));
            for wall in [borrowed.received_wall(), owned.received_wall()] {
                let ago = SystemTime::now().duration_since(wall).expect("it is past");
                assert!(ago.abs_diff(Duration::from_secs(60)) < Duration::from_secs(30), "{ago:?}");
            }
            assert_eq!(
                (format!("{borrowed:?}"), format!("{owned:?}")),
                (shown.into(), shown.into())
            );
            assert_eq!(owned.clone().into_bytes(), bytes);
            assert_eq!(owned.clone().into_text().ok().as_deref(), text);
            #[cfg(feature = "tungstenite-types")]
            {
                let theirs = tungstenite::Message::from(owned);
                let is_text = theirs.is_text();
                assert_eq!((is_text, theirs.into_data().as_ref()), (text.is_some(), bytes));
            }
        }
        assert_eq!(format!("{:?}", Payload::from("né")), "Text(3 bytes)");
        assert_eq!(format!("{:?}", Payload::from(&[0u8; 4][..])), "Binary(4 bytes)");
    }

    #[test]
    fn only_a_close_frame_of_the_server_is_a_clean_end() {
        let closed = || Error::closed(CloseReason::new(1000, ""), "a:1 closed");
        let ends = [(closed(), true), (closed(), false), (Error::stopped(), true)];
        let is_clean = ends.map(|(error, has_peer_closed)| {
            Disconnect {
                epoch: 1,
                error,
                close: CloseReason::new(1000, ""),
                lasted: Duration::ZERO,
                sent: 0,
                confirmed: 0,
                retry_in: None,
                server_error: None,
                has_peer_closed,
            }
            .is_clean()
        });
        assert_eq!(is_clean, [true, false, false]);
    }

    #[test]
    fn an_end_in_words_says_the_epoch_and_when_the_next_dial_is() {
        let mut disconnect = Disconnect {
            epoch: 3,
            error: Error::new(ErrorKind::Io, "reading from a:1"),
            close: CloseReason::new(1006, ""),
            lasted: Duration::from_secs(2),
            sent: 0,
            confirmed: 0,
            retry_in: Some(Duration::from_millis(250)),
            server_error: None,
            has_peer_closed: false,
        };
        assert_eq!(
            disconnect.to_string(),
            "the connection of epoch 3 ended after 2.0s: reading from a:1; dialing again in 250.0ms"
        );
        disconnect.retry_in = None;
        assert!(disconnect.to_string().ends_with("; not dialing again"), "{disconnect}");
    }

    #[test]
    fn events_in_words_begin_with_the_name_of_their_client() {
        for name in [ClientName::given("okx"), ClientName::by_default("a.example")] {
            let error = Error::new(ErrorKind::Connect, "connecting to a:1").of_client(&name);
            let failure = DialFailure { attempt: 2, error: error.clone(), retry_in: None };
            assert_eq!(
                failure.to_string(),
                format!("{name}: dial attempt 2 failed: connecting to a:1; not dialing again")
            );
            assert_eq!(
                Stopped { reason: error }.to_string(),
                format!("{name}: the client has ended: connecting to a:1")
            );
        }
    }
}
