//! A WebSocket client for programs that block.
#![deny(unsafe_code)]

mod board;
mod client;
mod config;
mod dial;
mod endpoint;
mod error;
mod event;
mod handler;
mod heart;
mod lifecycle;
mod line;
mod queue;
mod sender;
mod state;
mod stats;
mod supervisor;
mod talk;
#[cfg(feature = "testing")]
pub mod testing;
mod timing;

pub use board::State;
pub use client::{Client, Pulled, Pushed};
pub use config::{AppPing, Builder, DialContext};
pub use dial::Resolver;
pub use endpoint::Endpoint;
pub use error::{BatchError, CloseReason, Error, ErrorKind, Refusal, SendError};
pub use event::{DialFailure, Disconnect, Event, Lag, Message, MessageRef, Opened, Payload, Stopped};
pub use handler::{Handler, Line};
pub use lifecycle::{Outcome, StopReport, ThreadReport};
pub use line::deflate::Deflate;
pub use queue::{Events, NoEvent, WhenFull};
pub use sender::{Receipt, Sender, Stopper};
pub use state::Verdict;
pub use stats::{RoundTrip, Stats};
