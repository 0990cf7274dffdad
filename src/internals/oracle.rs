//! The parser of tungstenite, asked about the same bytes.

use std::io::{self, Cursor, Read, Write};

use tungstenite::error::ProtocolError;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

/// The messages and control frames of a stream of bytes, and what ends them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) received: Vec<(Kind, Vec<u8>)>,
    pub(super) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Text,
    Binary,
    Ping,
    Pong,
}

#[derive(Debug, Default, PartialEq)]
pub(super) enum End {
    /// The bytes are over, perhaps inside a frame.
    #[default]
    Bytes,
    /// A close frame with this code.
    Close(Option<u16>),
    /// A violation of RFC 6455, or a message that is too long.
    Violation(String),
}

impl Reading {
    pub(super) fn push(&mut self, kind: Kind, payload: &[u8]) {
        self.received.push((kind, payload.to_vec()));
    }
}

/// The most bytes of a frame's header that may be missing, with a masking key.
const HEADER_MAX: usize = 14;

/// Checks that tungstenite reads the same as `ours`, which is what was read from `bytes`, save for
/// the differences below.
///
/// # Panics
/// It panics where they differ otherwise.
pub(super) fn compare(bytes: &[u8], ours: &Reading, max_message_size: usize) {
    let mut theirs = read(bytes.to_vec(), max_message_size);
    if let (End::Violation(_), End::Bytes) = (&ours.end, &theirs.end) {
        // They judge a frame that is whole; we end at the first byte that is wrong.
        let padding = vec![0; max_message_size + HEADER_MAX];
        theirs = read([bytes, &padding].concat(), max_message_size);
    }
    if let End::Violation(what) = &ours.end {
        // RFC 6455 section 5.2 asks for the shortest form of a length, which they do not check:
        // they read on. In a control frame any longer form is one for more than 125 bytes.
        let is_long_form = ["more bytes than it needs", "control frame of more than 125"];
        if is_long_form.iter().any(|form| what.contains(form)) {
            return assert!(theirs.received.starts_with(&ours.received));
        }
    }
    assert_eq!(ours.received, theirs.received);
    match (&ours.end, &theirs.end) {
        (End::Violation(_), End::Violation(_)) => {}
        // They hand out a close frame with an illegal code as one of their own.
        (End::Violation(what), End::Close(Some(1002))) if what.contains("illegal code") => {}
        // IANA registered 1014 after their list was made.
        (End::Close(Some(1014)), End::Close(Some(1002))) => {}
        (ours, theirs) => assert_eq!(ours, theirs),
    }
}

fn read(bytes: Vec<u8>, max_message_size: usize) -> Reading {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(max_message_size))
        .max_frame_size(Some(max_message_size));
    let mut socket =
        WebSocket::from_raw_socket(Bytes(Cursor::new(bytes)), Role::Client, Some(config));
    let mut reading = Reading::default();
    reading.end = loop {
        match socket.read() {
            Ok(Message::Text(text)) => reading.push(Kind::Text, text.as_bytes()),
            Ok(Message::Binary(bytes)) => reading.push(Kind::Binary, &bytes),
            Ok(Message::Ping(payload)) => reading.push(Kind::Ping, &payload),
            Ok(Message::Pong(payload)) => reading.push(Kind::Pong, &payload),
            Ok(Message::Close(frame)) => break End::Close(frame.map(|frame| frame.code.into())),
            Ok(Message::Frame(_)) => unreachable!("reading returns no raw frames"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => break End::Bytes,
            Err(error) => break End::Violation(error.to_string()),
        }
    };
    reading
}

/// The bytes of the server, for a client whose own bytes go nowhere.
struct Bytes(Cursor<Vec<u8>>);

impl Read for Bytes {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1000;

    fn end(bytes: &[u8]) -> End {
        read(bytes.to_vec(), MAX).end
    }

    #[test]
    fn tungstenite_reads_messages_closes_and_violations() {
        let reading = read(b"\x81\x01a\x02\x01b\x89\x00\x80\x01c\x88\x02\x03\xe8".to_vec(), MAX);
        let received: Vec<_> =
            reading.received.iter().map(|(kind, payload)| (*kind, payload.as_slice())).collect();
        assert_eq!(received, [(Kind::Text, &b"a"[..]), (Kind::Ping, b""), (Kind::Binary, b"bc")]);
        assert_eq!(reading.end, End::Close(Some(1000)));
        assert_eq!((end(b""), end(b"\x81\x05a")), (End::Bytes, End::Bytes));
        assert!(matches!(end(b"\x83\x00"), End::Violation(_)));
    }

    /// Each difference that `compare` lets pass is one.
    #[test]
    fn tungstenite_differs_in_lengths_and_close_codes() {
        assert_eq!(end(b"\x81\x7e\x00\x01a"), End::Bytes);
        assert_eq!(end(b"\x89\x7e\x00\x01a"), End::Bytes);
        assert_eq!(end(b"\x88\x02\x03\xed"), End::Close(Some(1002)));
        assert_eq!(end(b"\x88\x02\x03\xf6"), End::Close(Some(1002)));
        assert_eq!(end(b"\xb1\x05"), End::Bytes);
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn a_difference_is_noticed() {
        compare(b"\x81\x01a", &Reading::default(), MAX);
    }
}
