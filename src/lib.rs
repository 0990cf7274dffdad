//! A synchronous WebSocket client (RFC 6455) with threads of its own and no async runtime.
//!
//! A [`Client`] keeps one connection to a server open. It dials, reads, sends pings, notices when
//! the connection has died, dials again, and stops at once when told to. It is made for trading
//! bots and other programs that must know what became of a message and must not leave a thread
//! behind.
//!
//! # Pulling events
//! [`connect`](Builder::connect) waits for the first connection; [`start`](Builder::start) returns
//! at once and dials in the background. Either way the program reads [`Event`]s from an iterator.
//! ```no_run
//! use std::time::Duration;
//! use tautline::{Client, Event};
//!
//! const SUBSCRIBE: &str = r#"{"method":"SUBSCRIBE","params":["btcusdt@bookTicker"],"id":1}"#;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("wss://stream.example.com/ws")
//!     .ping_interval(Duration::from_secs(15))
//!     .pong_timeout(Duration::from_secs(5))
//!     .connect()?;
//!
//! for event in client.events() { // blocks; ends when the client has stopped
//!     match event {
//!         Event::Opened(opened) => {
//!             // Each connection needs its own subscription. `pinned_to` sends on this one only:
//!             // if it has ended by now, the next one has an `Opened` of its own.
//!             if let Err(error) = client.sender().pinned_to(opened.epoch).send_text(SUBSCRIBE) {
//!                 eprintln!("not subscribed: {error}");
//!             }
//!         }
//!         Event::Message(message) => println!("{}", message.text().unwrap_or("(binary)")),
//!         Event::Disconnected(disconnect) => eprintln!("{disconnect}"),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//! Keep one [`Events`] for the whole loop. It takes events from the queue in batches; one created
//! for every event costs about ten times as much.
//!
//! # Being pushed messages
//! [`start_with`](Builder::start_with) hands messages to a [`Handler`]. It runs on the reader
//! thread and borrows the payload from the read buffer, so there is no thread hop and no copy.
//! ```no_run
//! use std::time::Duration;
//! use tautline::{Client, Connection, Handler, MessageRef};
//!
//! #[derive(Default)]
//! struct Bot {
//!     quotes: u64,
//! }
//!
//! impl Handler for Bot {
//!     fn opened(&mut self, connection: &mut Connection<'_>) {
//!         let subscribe = r#"{"method":"SUBSCRIBE","params":["btcusdt@bookTicker"],"id":1}"#;
//!         if let Err(error) = connection.send_text(subscribe) {
//!             eprintln!("not subscribed: {error}");
//!         }
//!     }
//!
//!     fn message(&mut self, _connection: &mut Connection<'_>, _message: MessageRef<'_>) {
//!         self.quotes += 1;
//!     }
//! }
//!
//! # fn main() -> Result<(), tautline::Error> {
//! let client = Client::builder("wss://stream.example.com/ws").start_with(Bot::default())?;
//! // ... and when the program ends:
//! let report = client.stop(Duration::from_secs(5)); // dropping the client stops it too
//! println!("{report}");
//! # Ok(()) }
//! ```
//!
//! A handler that acts by the clock sets a time with [`Connection::wake_at`], and
//! [`Handler::woken`] is called on the same thread when it has come, whether a connection is open
//! or not; another thread calls it with [`Sender::wake`]. [`Handler::batch_end`] is called after
//! the last of the messages that came at once.
//!
//! # Sessions
//! A bot that logs in, subscribes and trades is a [`session`] on top of a client: it logs in and
//! subscribes again after every reconnect, and tells what became of each call. Each part that it
//! needs of a client is useful alone: [`RateLimit`], [`Builder::decode`],
//! [`Builder::auto_respond`], [`Builder::before_reconnect`], [`Endpoint::carry`].
//!
//! The [`recipes`] are programs for twelve tasks, from a login to a port from tungstenite.
//!
//! # The life of a connection
//! ```text
//!                     dialed                close frame, or stop
//!   .--> Connecting -----------> Open ------------------------------> Closing
//!   |      |    |                 |                                    |   |
//!   |      |    | failed          | reset, timeout, end of TCP         |   |
//!   |      |    |                 v                 closed             |   |
//!   |      |    '------------> Backoff <-------------------------------'   |
//!   |      |                    |   |                                      |
//!   '------|--------------------'   |                                      |
//!          |     delay over         |                                      |
//!          |                        v                                      |
//!          '--------------------> Closed <---------------------------------'
//!            stop, or a permanent error         closed after one of these
//! ```
//! [`Client::state`] returns the [`State`]. Each opened connection is an *epoch*, numbered from 1;
//! the number is part of every message, every [`Receipt`] and every event of a connection, so that
//! nothing from an old connection passes for news from the new one.
//!
//! After a failed dial or an ended connection the client dials again, after a random delay whose
//! upper bound doubles from `retry_delay_min` to `retry_delay_max` and starts again once a
//! connection has been open for `stable_after`. A permanent error ([`Error::is_retryable`]) ends
//! the client instead. [`Builder::retry_policy`] can decide otherwise. A connection that the
//! program itself gives up, with [`reconnect`](Client::reconnect), is dialed again at once and
//! counts as no attempt. [`Builder::before_reconnect`] is called between the end of a connection
//! and the next dial, and may block: to cancel orders by REST before new ones can be sent.
//!
//! A server that allows so many messages a second, or so many dials, is not exceeded where
//! [`Builder::send_limit`] and [`Builder::connect_limit`] have a [`RateLimit`]; one limit may be
//! shared by all clients of the process.
//!
//! # Threads
//! | thread | does | calls the program's |
//! |---|---|---|
//! | `taut-reader` | dials, reads, delivers, backs off | handler, closures of the [`Builder`] |
//! | `taut-heartbeat` | writes pings, pongs, responses, close frames | [`AppPing::made_by`] |
//! | `taut-resolver` | looks up one host name, then ends | [`Resolver`] |
//! | `taut-roots` | reads the system's TLS roots once per process, then ends | nothing |
//!
//! The closures of the builder name an endpoint, decide on retries, run before a reconnect, match
//! replies to pings, respond, and name the key of `conflate`.
//! [`on_thread_start`](Builder::on_thread_start) runs on each thread. The first two call the
//! program's recorder of [metrics](#metrics) as well.
//!
//! The first two live as long as the client, however often it reconnects. A closure that blocks
//! delays what its thread does, so give the calls that it makes a timeout. To the system the
//! threads of a client that was given a [`name`](Builder::name) are `NAME-rd`, `NAME-hb`,
//! `NAME-dns` and `NAME-tls`, with the name cut where it does not fit into 15 bytes.
//!
//! [`Client::stop`], and dropping the client, ends all threads and waits for them, in any state and
//! from any thread. On an open connection that takes a round trip for the closing handshake, and
//! `close_timeout` at most; otherwise a few milliseconds. The [`StopReport`] says what became of
//! each thread. One may be late: a lookup that hangs in the system's resolver, or a closure of the
//! program's, cannot be interrupted. A late thread ends when that call returns.
//!
//! # What became of a message
//! A send writes to the socket on the calling thread, and waits `send_timeout` at most for the rate
//! limits, for other senders and for room in the kernel's buffer.
//! - `Ok(`[`Receipt`]`)`: the kernel took the whole message, which proves nothing about the server.
//! - [`SendError::NotSent`]: the kernel took no byte of it. Sending it again is safe.
//! - [`SendError::Unknown`]: the kernel took part of it, and the connection was aborted. The server
//!   may or may not have it: ask the venue before you send an order again.
//!
//! When a connection ends, [`Disconnect::confirmed`] says up to which message a later pong proves
//! that the server read. Messages after it are in doubt. While no connection is open a send fails
//! with `NotSent`: nothing is queued, and nothing is sent again behind the program's back.
//!
//! # Defaults
//! | setting | default |
//! |---|---|
//! | [`connect_timeout`](Builder::connect_timeout): one whole dial | 10 s |
//! | [`send_timeout`](Builder::send_timeout): one send | 5 s |
//! | [`close_timeout`](Builder::close_timeout): the closing handshake | 1 s |
//! | [`drop_timeout`](Builder::drop_timeout): waiting for the threads in `Drop` | 5 s |
//! | [`ping_interval`](Builder::ping_interval) | 15 s |
//! | [`pong_timeout`](Builder::pong_timeout) | 10 s |
//! | [`idle_timeout`](Builder::idle_timeout), [`app_ping`](Builder::app_ping) | none |
//! | [`auto_respond`](Builder::auto_respond) | none |
//! | [`retry_delay_min`](Builder::retry_delay_min) | 250 ms |
//! | [`retry_delay_max`](Builder::retry_delay_max) | 30 s |
//! | [`retry_after_max`](Builder::retry_after_max): the longest `Retry-After` obeyed | 5 min |
//! | [`tls_pin`](Builder::tls_pin) | none |
//! | [`proxy`](Builder::proxy) | none, and no variable of the environment is read |
//! | [`stable_after`](Builder::stable_after): the time that resets the backoff | 30 s |
//! | [`max_attempts`](Builder::max_attempts), [`retry_policy`](Builder::retry_policy) | none |
//! | [`before_reconnect`](Builder::before_reconnect) | none |
//! | [`max_message_size`](Builder::max_message_size) | 16 MiB |
//! | [`decode`](Builder::decode) | none |
//! | [`max_outgoing_message_size`](Builder::max_outgoing_message_size) | none |
//! | [`max_outgoing_frame_size`](Builder::max_outgoing_frame_size) | none |
//! | [`send_limit`](Builder::send_limit), [`connect_limit`](Builder::connect_limit) | none |
//! | [`compress`](Builder::compress) | off |
//! | [`queue_messages`](Builder::queue_messages) | 65,536 |
//! | [`queue_bytes`](Builder::queue_bytes) | 64 MiB |
//! | [`when_full`](Builder::when_full) | [`WhenFull::Disconnect`] |
//! | [`conflate`](Builder::conflate) | none |
//! | [`wakeups`](Builder::wakeups) | off |
//! | [`thread_stack_size`](Builder::thread_stack_size) | Rust's own, 2 MiB |
//!
//! # Memory
//! A quiet plain connection holds a read buffer of 16 KiB and two thread stacks. A TLS connection
//! holds two more buffers of 16 KiB and the TLS engine. Under load the read buffer grows to 256 KiB
//! and the TLS buffers to 128 KiB each; for a longer frame the read buffer grows as its bytes
//! arrive. The buffers shrink with the first bytes that arrive 10 s or more after the last need.
//!
//! A fragmented or compressed message takes up to `max_message_size` once more while it is
//! assembled, of which up to 64 KiB are kept for the next one. With [`decode`](Builder::decode) a
//! message takes up to `max_message_size` once more while it is decoded. At the default limit of 16
//! MiB, the most that a server can make a connection take is thus 32 MiB, and 48 MiB with `decode`,
//! besides the engines of TLS and of compression (see [`Deflate`]). A send takes 64 KiB, twice that
//! over TLS, and a compressed one as much as its compressed length. The event queue takes what its
//! limits allow.
//!
//! # Logs
//! Log records go through the [`log`] crate, under targets that begin with `tautline`:
//! - error: a client was dropped and one of its threads did not end in time, a hook of
//!   `on_thread_start` panicked, or a bug of this crate
//! - warn: the client gave up, the handler takes longer than `pong_timeout`, a session takes more
//!   than 10 ms to make a message, an application ping or a response of `auto_respond` is longer
//!   than `max_outgoing_message_size`, a certificate is out of its dates, the recorder of metrics
//!   panicked, or the kernel records no times of arrival
//! - info: a connection opened or ended, a dial failed, and what follows
//! - debug: the steps of a dial, changes of state
//! - trace: the kinds and sizes of frames sent and received
//!
//! Each record of a client begins with its [`name`](Builder::name) if it was given one, and with
//! the host and port that the record is about: `okx-public (ws.okx.com:8443): open, epoch 1, [...]`
//! or `ws.okx.com:8443: open, epoch 1, [...]`. One that is about no host and port in particular
//! begins with the name, which is the host by default: `okx-public: dial 3 failed: [...]`. Give two
//! clients of one host a name each, and they can be told apart in logs, errors and stop reports.
//!
//! Host names, addresses and ports are the most that is shown: paths, query strings, header values
//! and payloads appear in no log, `Debug` or `Display`. Neither does the text of an error that
//! a closure of the program returned; only [`source`](std::error::Error::source) has it.
//!
//! # Metrics
//! With the feature `metrics` a client tells the recorder of the program what [`Stats`] counts,
//! through the facade [`metrics`](https://docs.rs/metrics), as its records go to a logger through
//! [`log`]. Install the recorder, of an exporter for Prometheus for example, before the first
//! client starts: a client keeps the one that there is at its start.
//!
//! The facade is `metrics` 0.24, and each 0.x has a recorder of its own: the program and its
//! exporter have to use 0.24 too, or they see nothing. `cargo tree -i metrics` names the versions
//! in a program. The times are histograms, in seconds; an exporter that is given no buckets for
//! them may show summaries instead, which cannot be added up over clients.
//!
//! | metric | type | means |
//! |---|---|---|
//! | `tautline_messages_received_total` | counter | data messages received |
//! | `tautline_received_bytes_total` | counter | their payload bytes, decompressed |
//! | `tautline_messages_sent_total` | counter | data messages that the kernel took whole |
//! | `tautline_sent_bytes_total` | counter | the bytes of their frames |
//! | `tautline_messages_lost_total` | counter | messages lost to a full queue |
//! | `tautline_connections_opened_total` | counter | connections opened |
//! | `tautline_connections_ended_total{kind}` | counter | connections ended |
//! | `tautline_dials_failed_total{kind}` | counter | failed dials |
//! | `tautline_send_failures_total{outcome}` | counter | failed sends: `not_sent`, `unknown` |
//! | `tautline_up` | gauge | open connections: 1 or 0 for one client |
//! | `tautline_queue_events` | gauge | events in the queue |
//! | `tautline_last_byte_timestamp_seconds` | gauge | the Unix time of the last byte |
//! | `tautline_round_trip_seconds` | histogram | round trips of ping frames |
//! | `tautline_connect_duration_seconds` | histogram | times from a dial to its opening |
//! | `tautline_rate_limit_wait_seconds` | histogram | waits for the rate limits |
//! | `tautline_subscriptions{state}` | gauge | topics of a session |
//! | `tautline_calls_total{outcome}` | counter | calls of a session that are over |
//!
//! - Each has the label `client`, the [`name`](Builder::name) of the client, which is its host by
//!   default. Clients of one name share their series: counters and gauges hold the sum, except for
//!   the last byte, which is that of the client that had one last.
//! - `kind` is [`ErrorKind::as_str`]. Kinds that are common exist from the start, as 0. Others are
//!   registered when they happen, with whatever recorder there is then.
//! - A send that fails counts once, a batch too; one that a session makes for a call counts as a
//!   call as well, and as a call alone if it does not get as far as the connection. Messages that
//!   the library writes by itself, application pings for example, are no failed sends, but those
//!   that were written are messages sent. `not_sent` and `unknown` are those of [`SendError`] and
//!   [`CallError`](session::CallError); a call that has its reply, a refusal included, is
//!   `replied`.
//! - `state` is `pending`, `requested`, `active`, `rejected` or `unsubscribing`, as in
//!   [`SubscriptionState`](session::SubscriptionState). These and the calls exist for sessions
//!   alone.
//! - A wait is that of a send or a call for a [`send_limit`](Builder::send_limit) which let it
//!   through, at once or later. Without a limit nothing waits.
//! - The last byte is that of the open connection. An opening counts as one, and the time stays
//!   when the connection has ended. It is 0 until the client has been open.
//! - When the threads of a client have ended, its counters are complete, and its `up`, its queue
//!   and its topics are 0.
//!
//! No label has a path, a query string, a header value, a topic or a payload.
//!
//! Messages are counted once per `recv`, and published by the heartbeat thread: at once after a
//! silence, and then once a second; so are the gauges. The reader thread never calls the
//! recorder for a message; it does so for openings, ends, failed dials, pongs and the calls that
//! have a closure, and a thread that sends or waits for a call does so for failures, calls and
//! waits. A recorder is called under no lock and may use the client, but has to be quick: while it
//! runs on the heartbeat thread no pong is written, and while it runs on the reader thread nothing
//! is read. One that blocks makes a stop last until its deadline; on the reader thread it keeps the
//! client from ending, and so [`wait_closed`](Client::wait_closed) from returning. After a panic in
//! it the client publishes nothing more.
//!
//! The repository's `examples/metrics` serves the metrics to Prometheus, and has a dashboard for
//! Grafana beside it.
//!
//! # Processes that fork
//! Of all threads only the caller of `fork` exists in the child. A client inherited by it has no
//! threads, and perhaps locks that nobody will release, but shares the socket of the parent. The
//! child must not touch the client, nor drop it: that could end the parent's connection. Let the
//! child call `exec` or `_exit`, and create clients after a daemon has forked.
//! [`std::process::Command`] is fine, because the sockets are closed on `exec`.
//!
//! # Features
//! - `native-tls`, on by default, does TLS by the platform: OpenSSL, SChannel or
//!   Security.framework.
//! - `rustls` adds a second engine for TLS, which [`Builder::tls_engine`] chooses. With
//!   `default-features = false` it is the only one, and no OpenSSL is linked.
//! - `vendored-tls` builds OpenSSL from source, for Linux machines without its headers.
//! - `testing` adds `tautline::testing`: a scriptable WebSocket server, simulated exchanges and a
//!   leak check, for the tests of programs that use this crate. The server's TLS is native-tls's.
//! - `metrics` publishes the metrics of clients to the recorder of the program: see
//!   [Metrics](#metrics).
//! - `zstd` lets `testing::TestServer::replay` read recordings that are compressed.
//! - `cli` is for `cargo install`: it builds the program `tautline`, which prints, measures,
//!   records, replays and shows feeds. The library is the same with it.
//! - `tungstenite-types` converts a [`Message`] to tungstenite's. It is off by default, because
//!   each new 0.x of tungstenite is another type: what is behind it may change with any version of
//!   this crate.
#![deny(unsafe_code)]
// docs.rs says of each item which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// The model replaces dialing, and only its checks use much of it.
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
#[cfg(all(feature = "_internals", unix))]
#[doc(hidden)]
pub mod internals;
mod metrics;
#[cfg(shuttle)]
mod model;
mod name;
#[cfg(test)]
mod property;
mod protocol;
mod queue;
mod rate_limit;
#[cfg(any(doc, doctest))]
pub mod recipes;
mod runtime;
mod sender;
pub mod session;
mod session_event;
mod stats;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

/// The `http` crate, whose types [`Opened::headers`] and [`Error::response`] use.
pub use http;

/// The README's program, compiled as a test.
#[cfg(all(doctest, unix))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use builder::Builder;
pub use client::{Client, Pull, Push};
pub use config::app_ping::AppPing;
pub use config::decode::Decode;
pub use config::dial_context::DialContext;
pub use config::endpoint::Endpoint;
pub use config::proxy::Proxy;
pub use config::queue_bounds::WhenFull;
pub use config::tls_engine::TlsEngine;
pub use dial::Resolver;
pub use error::{BatchError, CloseReason, Error, ErrorKind, SendError, Timeout};
pub use event::{
    DialFailure, Disconnect, Event, Lagged, Message, MessageRef, Opened, Payload, Receipt,
    ServerError, Stopped,
};
pub use events::{Batch, BatchEvents, EventRef, Events, TryNextError};
pub use handler::{Connection, Handler, WokenContext};
pub use protocol::deflate::Deflate;
pub use rate_limit::{RateLimit, SendKind};
pub use runtime::reconnect::{RetryDecision, State};
pub use sender::{Sender, Stopper, stop_all};
pub use stats::{RoundTrip, Stats};
pub use sync::stop_report::{StopReport, ThreadOutcome, ThreadReport};
