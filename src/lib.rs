//! A WebSocket client for programs that block: plain threads, no async runtime.
//!
//! `tautline` keeps one connection to a venue up. It dials, reads, pings, notices when the
//! connection has died, dials again, and stops at once when told to. It is made for trading bots
//! and other programs that must know what became of a message, and must not leave a thread behind.
//!
//! # Pulling
//! ```no_run
//! use std::time::Duration;
//! use tautline::{Client, Event};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("wss://stream.example.com/ws")
//!     .ping_interval(Duration::from_secs(15))
//!     .pong_timeout(Duration::from_secs(5))
//!     .connect()?; // waits for the first opening, or says why not
//!
//! for event in client.events() {
//!     match event {
//!         // A new epoch: subscribe, whatever was sent before. On this very connection: if it is gone already, the next has an opening of its own.
//!         Event::Opened(opened) => {
//!             let connection = client.sender().pinned_to(opened.epoch);
//!             connection.send_text(r#"{"method":"SUBSCRIBE","params":["btcusdt@bookTicker"],"id":1}"#).ok();
//!         }
//!         Event::Message(message) => println!("{}", message.text().unwrap_or_default()),
//!         Event::Disconnected(why) => eprintln!("{why}"),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # Being pushed
//! ```no_run
//! use std::time::Duration;
//! use tautline::{Client, Handler, Connection, MessageRef};
//!
//! #[derive(Default)]
//! struct Bot { quotes: u64 }
//!
//! impl Handler for Bot {
//!     fn opened(&mut self, connection: &mut Connection<'_>) {
//!         connection.send_text(r#"{"method":"SUBSCRIBE","params":["btcusdt@bookTicker"],"id":1}"#).ok();
//!     }
//!     // Called on the reader thread, with the payload borrowed from the read buffer: no hop, no copy.
//!     fn message(&mut self, _connection: &mut Connection<'_>, _message: MessageRef<'_>) {
//!         self.quotes += 1;
//!     }
//! }
//!
//! # fn main() -> Result<(), tautline::Error> {
//! let client = Client::builder("wss://stream.example.com/ws").start_with(Bot::default())?; // dials in the background
//! let report = client.stop(Duration::from_secs(5)); // or just drop it
//! assert!(report.is_clean(), "{report}");
//! # Ok(()) }
//! ```
//!
//! # The life of a connection
//! ```text
//!                 dialed                 close frame, or stop
//!  Connecting ---------------> Open ------------------------------> Ending
//!    |   ^                      |                                     |
//!    |   | due                  | reset, silence, EOF                 | answered, or close_timeout
//!    |   |                      v                                     v
//!    |   '------------------ Waiting <--------------------------------+
//!    |                          |                                     |
//!    '--------------------------+--> Closed <-------------------------'
//!      stop, or an error that no retry mends
//! ```
//! Each opening begins an *epoch*; its number stands on every event, message and receipt. Two
//! threads live as long as the client, however often it reconnects: `taut-reader` dials, reads and
//! calls the handler; `taut-heartbeat` writes pings, pongs and close frames and judges whether the
//! connection is alive. A third, `taut-resolver`, lives for one lookup. All of them are joined by
//! [`Client::stop`] and by `Drop`, and the [`StopReport`] says so, thread by thread.
//!
//! # What became of a message
//! A send writes to the socket on the calling thread. `Ok(`[`Receipt`]`)`: the kernel took all of
//! it, which proves nothing about the peer. [`SendError::NotSent`]: no byte was taken, sending
//! again is safe. [`SendError::Unknown`]: part of it was taken; ask the venue. When a connection
//! ends, [`Disconnect::confirmed`] says how far a pong of the peer covers what was sent. Nothing is
//! ever queued while the connection is down.
//!
//! # Defaults
//! | setting | default |
//! |---|---|
//! | [`connect_timeout`](Builder::connect_timeout): the whole dial | 10 s |
//! | [`send_timeout`](Builder::send_timeout): one send | 5 s |
//! | [`close_timeout`](Builder::close_timeout): the closing handshake | 1 s |
//! | [`drop_timeout`](Builder::drop_timeout): waiting for threads in `Drop` | 5 s |
//! | [`ping_interval`](Builder::ping_interval), [`pong_timeout`](Builder::pong_timeout) | 15 s, 10 s |
//! | [`retry_delay_min`](Builder::retry_delay_min), [`retry_delay_max`](Builder::retry_delay_max): full jitter | 250 ms, 30 s |
//! | [`retry_after_max`](Builder::retry_after_max): the longest `Retry-After` that is obeyed | 5 min |
//! | [`stable_after`](Builder::stable_after): a connection open that long resets the backoff | 30 s |
//! | [`max_attempts`](Builder::max_attempts), [`idle_timeout`](Builder::idle_timeout), [`max_outgoing_frame_size`](Builder::max_outgoing_frame_size) | none |
//! | [`compress`](Builder::compress) | off |
//! | [`max_message_size`](Builder::max_message_size) | 16 MiB |
//! | [`queue_messages`](Builder::queue_messages), [`queue_bytes`](Builder::queue_bytes) | 65,536 and 64 MiB |
//! | [`when_full`](Builder::when_full) | end the connection, and come back |
//!
//! # Memory
//! A quiet plain connection holds a read buffer of 16 KiB and two thread stacks; a TLS connection
//! two buffers of 16 KiB more and the engine. Under load the read buffer grows to 256 KiB, those of
//! TLS to 128 KiB, and the read buffer as far as a frame is long whose bytes really come. They
//! shrink with the first bytes that come ten seconds or more after the last need. A fragmented or
//! compressed message takes up to `max_message_size` once more while it is put together; up to 64
//! KiB of that are kept for the next. So the worst that a venue can make of a connection, at the
//! default limit of 16 MiB, is 32 MiB, and the engines of compression ([`Deflate`]) and TLS. A send
//! takes 64 KiB, over TLS twice that, and a compressed one the length of what is compressed. The
//! events queue holds what its bounds say.
//!
//! # Logs
//! Through the [`log`] crate, targets that begin with `tautline`:
//! - error: a client was dropped and a thread of it did not end in time (what [`Client::stop`]
//!   returns says so by itself), or a bug of ours
//! - warn: the client gave up, or the handler is slower than `pong_timeout`
//! - info: opened, disconnected, dial failed, and what follows
//! - debug: the steps of a dial, changes of state
//! - trace: kinds and sizes of what is sent and received
//!
//! Hosts and ports are as far as it goes: paths, query strings, header values and payloads are in
//! no log, `Debug` or `Display`.
//!
//! # Features
//! - `vendored-tls` builds OpenSSL from source, for Linux machines without its headers.
//! - `testing` adds `tautline::testing`: a scripted venue and a leak check for the tests of your
//!   own program.
#![deny(unsafe_code)]
// The model stands in for dialing, and its checks are the only users of much of itself.
#![cfg_attr(shuttle, allow(dead_code, unused_imports))]

mod builder;
mod client;
mod config;
mod connection;
mod dial;
mod error;
mod event;
mod events;
mod handler;
#[cfg(all(feature = "internals", unix))]
#[doc(hidden)]
pub mod internals;
#[cfg(shuttle)]
mod model;
mod protocol;
mod runtime;
mod sender;
mod stats;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

/// The README's program, compiled as a test.
#[cfg(all(doctest, unix))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use builder::Builder;
pub use client::{Client, Pull, Push};
pub use config::app_ping::AppPing;
pub use config::endpoint::Endpoint;
pub use config::targets::DialContext;
pub use dial::Resolver;
pub use error::{BatchError, CloseReason, Error, ErrorKind, SendError, Timeout};
pub use event::{
    DialFailure, Disconnect, Event, Lagged, Message, MessageRef, Opened, Payload, Receipt, Stopped,
};
pub use events::{Events, TryNextError, WhenFull};
pub use handler::{Connection, Handler};
pub use http;
pub use protocol::deflate::Deflate;
pub use runtime::reconnect::RetryDecision;
pub use runtime::shared::State;
pub use sender::{Sender, Stopper};
pub use stats::{RoundTrip, Stats};
pub use sync::stop_report::{StopReport, ThreadOutcome, ThreadReport};
