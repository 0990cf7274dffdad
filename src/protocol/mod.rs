//! WebSocket frames and messages (RFC 6455, RFC 7692): no clock, no thread, no socket.

pub(crate) mod assembler;
pub(crate) mod deflate;
pub(crate) mod frame;
