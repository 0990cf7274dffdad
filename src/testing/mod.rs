//! A scripted server on a loopback port, [replays](TestServer::replay) of recordings, simulated
//! [exchanges](exchange) and a check for leaks, for the tests of programs that use this crate.
//!
//! A script is a closure that plays the server's side of one connection, on a thread of its own.
//! The connection ends when the closure returns, and whatever it waits for ends when the server is
//! dropped. Most scripts begin with [`Peer::upgrade`]. The faults of a server take a call or two:
//!
//! | fault | script |
//! |---|---|
//! | accepts and never answers | `\|peer\| peer.stall()` |
//! | stalls in the TLS handshake, or in a TLS record | [`TestServerBuilder::stall_writes_after`] |
//! | sends its response, or a frame, byte by byte | [`Peer::trickle`] |
//! | writes everything byte by byte, TLS included | [`TestServerBuilder::trickle_writes`] |
//! | refuses, redirects | [`Peer::refuse`] |
//! | answers the upgrade wrongly | [`Peer::read_request`], then [`Peer::write`] |
//! | never answers pings | `peer.upgrade()?; peer.drain()` |
//! | never reads | `peer.upgrade()?; peer.stall()` |
//! | floods | [`Peer::flood`] |
//! | garbage, oversize, reserved bits | [`Peer::write`], [`Peer::send_frame`] |
//! | resets, ends without a close frame | [`Peer::reset`], [`Peer::half_close`], or just return |
//! | closes with a code, sends after it | [`Peer::close`], [`Peer::send_text`] |
//! | does not answer a close frame | [`Peer::drain`] |
//! | sends pings, wrong or late pongs | [`Peer::ping`], [`Peer::pong`] |
//!
//! The module needs the feature `testing`:
//! ```toml
//! [dev-dependencies]
//! tautline = { version = "0.1", features = ["testing"] }
//! ```
//!
//! # Example: a bot reconnects and subscribes again
//! ```
//! use std::time::Duration;
//! use tautline::testing::TestServer;
//! use tautline::{Client, Connection, MessageRef};
//!
//! struct Bot;
//! impl tautline::Handler for Bot {
//!     fn opened(&mut self, connection: &mut Connection<'_>) {
//!         connection.send_text("subscribe").ok();
//!     }
//!     fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
//! }
//!
//! // A server that drops every connection after the first message.
//! let server = TestServer::start(|peer| {
//!     peer.upgrade()?;
//!     peer.receive_message()?;
//!     peer.reset()
//! });
//! let client = Client::builder(server.url())
//!     .retry_delay_min(Duration::from_millis(1))
//!     .start_with(Bot)
//!     .unwrap();
//! assert!(server.wait_for_messages(3, Duration::from_secs(5)), "it subscribes again, twice");
//! assert!(server.messages().iter().all(|message| message == b"subscribe"));
//! assert!(client.stop(Duration::from_secs(5)).is_clean());
//! ```

pub mod exchange;
#[cfg(target_os = "linux")]
mod leaks;
mod peer;
mod recorder;
mod recording;
mod replay;
mod server;

#[cfg(target_os = "linux")]
pub use leaks::{ResourceSnapshot, assert_no_leaks};
pub use peer::{Peer, Received, Request};
pub use replay::{Pace, check_recording};
pub use server::{TestServer, TestServerBuilder};

use crate::event::{Arrival, MessageRef, Payload};
use crate::session::{Class, Context, Protocol};
use crate::sync;

/// Returns what a protocol takes a text message for, without a connection.
///
/// The [`Context`] that the protocol is given has no [`opening`](Context::opening) and no answers,
/// and its epoch is 0.
pub fn classify<'m>(protocol: &impl Protocol, text: &'m str) -> Class<'m> {
    let arrival = Arrival { at: sync::now(), kernel: None };
    let message = MessageRef::new(Payload::Text(text), 0, arrival);
    protocol.classify(message, &Context::without_connection())
}
