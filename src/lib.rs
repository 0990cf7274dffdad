//! A WebSocket client for programs that block.
#![deny(unsafe_code)]

mod error;
mod lifecycle;
mod timing;

pub use error::{BatchError, CloseReason, Error, ErrorKind, Refusal, SendError};
pub use lifecycle::{Outcome, StopReport, ThreadReport};
