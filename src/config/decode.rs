//! The setting of messages that are compressed inside their frames.

use crate::protocol::decode::Format;

/// The format in which a server compresses the payload of its binary messages, for
/// [`Builder::decode`](crate::Builder::decode).
///
/// This is compression by the application, inside the message. That of the protocol is
/// permessage-deflate, for which there is [`Builder::compress`](crate::Builder::compress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decode {
    pub(crate) format: Format,
    pub(crate) is_text: bool,
}

impl Decode {
    /// Expects gzip (RFC 1952). Several members are decoded to one message.
    pub fn gzip() -> Self {
        Self::new(Format::Gzip)
    }

    /// Expects zlib (RFC 1950), which HTTP calls `deflate`.
    pub fn zlib() -> Self {
        Self::new(Format::Zlib)
    }

    /// Expects a DEFLATE stream without header and checksum (RFC 1951).
    pub fn deflate() -> Self {
        Self::new(Format::Deflate)
    }

    /// Delivers what was decoded as text, which must be UTF-8. Defaults to binary.
    pub fn as_text(mut self) -> Self {
        self.is_text = true;
        self
    }

    fn new(format: Format) -> Self {
        Decode { format, is_text: false }
    }
}
