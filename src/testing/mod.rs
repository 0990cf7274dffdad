//! A scripted server on a loopback port, and a check for leaks: for the tests of programs that use
//! this crate, and for its own.
//!
//! A script is a closure that plays the server's side of one connection, on a thread of its own. It
//! ends when the closure returns, and whatever it waits for ends when the server is dropped. Most
//! scripts begin with [`Peer::upgrade`], and everything that a server can do wrong is one or two
//! calls away:
//!
//! | fault | script |
//! |---|---|
//! | accepts and says nothing | `\|peer\| peer.stall()` |
//! | stalls in the TLS handshake, or in any TLS record | `.tls_stalls_after(bytes)` on the builder |
//! | trickles its answer, or a frame | [`Peer::trickle`] |
//! | trickles whatever it writes, TLS handshake and records too | `.trickles_every(time)` on the builder |
//! | refuses, redirects | [`Peer::refuse`] |
//! | lies in the upgrade | [`Peer::read_request`], then [`Peer::write`] |
//! | never pongs | `peer.upgrade()?; peer.drain()` |
//! | never reads | `peer.upgrade()?; peer.stall()` |
//! | floods | [`Peer::flood`] |
//! | garbage, oversize, reserved bits | [`Peer::write`], [`Peer::send_frame`] |
//! | resets, ends without a close frame | [`Peer::reset`], [`Peer::half_close`], or just return |
//! | closes with a code, goes on after it, answers no close | [`Peer::close`], [`Peer::send_text`], [`Peer::drain`] |
//! | floods with pings, answers them wrongly or late | [`Peer::ping`], [`Peer::pong`] |
//!
//! It is for tests, so it comes with a feature of its own:
//! ```toml
//! [dev-dependencies]
//! tautline = { version = "0.1", features = ["testing"] }
//! ```
//!
//! # Does my bot come back, and does it subscribe again?
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
//! // A server that drops every connection as soon as somebody has subscribed.
//! let server = TestServer::start(|peer| {
//!     peer.upgrade()?;
//!     peer.receive_message()?;
//!     peer.reset()
//! });
//! let client = Client::builder(server.url()).retry_delay_min(Duration::from_millis(1)).start_with(Bot).unwrap();
//! assert!(server.wait_for_messages(3, Duration::from_secs(5)), "it came back and subscribed again, twice");
//! assert!(server.messages().iter().all(|message| message == b"subscribe"));
//! assert!(client.stop(Duration::from_secs(5)).is_clean());
//! ```

#[cfg(target_os = "linux")]
mod leaks;
mod peer;
mod server;

#[cfg(target_os = "linux")]
pub use leaks::{Census, assert_no_leaks};
pub use peer::{Peer, Received, Request};
pub use server::{TestServer, TestServerBuilder};
