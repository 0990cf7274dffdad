//! WebSocket frames and messages (RFC 6455, RFC 7692): no clock, no thread, no socket.

pub(crate) mod assembler;
pub(crate) mod deflate;
pub(crate) mod frame;
pub(crate) mod mask;
pub(crate) mod read_buffer;

use tungstenite::protocol::frame::coding::CloseCode;

/// What the peer did wrong, and the close code that says so (RFC 6455 section 7.4.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProtocolError {
    pub(crate) code: CloseCode,
    pub(crate) what: &'static str,
}

impl ProtocolError {
    pub(crate) fn protocol(what: &'static str) -> Self {
        ProtocolError { code: CloseCode::Protocol, what }
    }

    pub(crate) fn invalid_text() -> Self {
        ProtocolError { code: CloseCode::Invalid, what: "text that is not UTF-8" }
    }

    pub(crate) fn too_long() -> Self {
        ProtocolError {
            code: CloseCode::Size,
            what: "a message is longer than max_message_size allows",
        }
    }
}
