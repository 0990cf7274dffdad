//! WebSocket frames and messages (RFC 6455, RFC 7692): no clock, no thread, no socket.

pub(crate) mod assembler;
pub(crate) mod decode;
pub(crate) mod deflate;
pub(crate) mod frame;
pub(crate) mod mask;
pub(crate) mod read_buffer;

use std::fmt;

use tungstenite::protocol::frame::coding::CloseCode;

/// A violation by the peer, with the close code that reports it (RFC 6455 section 7.4.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProtocolError {
    pub(crate) code: CloseCode,
    what: &'static str,
    /// The code of the peer's close frame, where that frame is at fault.
    received: Option<u16>,
}

impl ProtocolError {
    pub(crate) fn protocol(what: &'static str) -> Self {
        ProtocolError { code: CloseCode::Protocol, what, received: None }
    }

    pub(crate) fn invalid_text() -> Self {
        Self::invalid("text that is not UTF-8")
    }

    /// A payload that is not what it has to be.
    pub(crate) fn invalid(what: &'static str) -> Self {
        ProtocolError { code: CloseCode::Invalid, what, received: None }
    }

    /// The same violation, by a close frame with the code `received`.
    pub(crate) fn in_close_frame(self, received: u16) -> Self {
        ProtocolError { received: Some(received), ..self }
    }

    pub(crate) fn too_long() -> Self {
        ProtocolError {
            code: CloseCode::Size,
            what: "a message is longer than max_message_size allows",
            received: None,
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        match self.received {
            Some(code) => write!(f, " (close code {code})"),
            None => Ok(()),
        }
    }
}
