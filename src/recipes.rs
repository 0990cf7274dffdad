//! Recipes: a program for each of twelve tasks.
//!
//! | task | section |
//! |---|---|
//! | log in and subscribe, again after every reconnect | [1](#1-log-in-and-subscribe) |
//! | send an order and know what became of it | [2](#2-request-and-reply) |
//! | read two clients on one thread | [3](#3-two-clients-in-one-loop) |
//! | act by the clock in a handler | [4](#4-timers-in-a-handler) |
//! | end within a second of Ctrl-C | [5](#5-stop-on-sigint-within-a-second) |
//! | read slower than messages come | [6](#6-a-queue-for-a-slow-strategy) |
//! | test a bot without a network | [7](#7-tests-with-testing) |
//! | test a bot against yesterday's market | [12](#12-tests-against-a-recording) |
//! | dial through a proxy | [8](#8-behind-a-proxy) |
//! | keep to the rules of an exchange | [9](#9-settings-per-venue) |
//! | port a program from tungstenite | [10](#10-coming-from-tungstenite) |
//! | port a program from Python | [11](#11-coming-from-websocket-client) |
//!
//! Besides this crate the programs use crossbeam-channel 0.5 (3 and 5), serde_json (1 and 2)
//! and signal-hook 0.3 (5). The hosts under `example.com` do not exist.
//!
//! # 1. Log in and subscribe
//! A [`session`] logs in and subscribes after every opening, so a reconnect needs no code. The
//! program says in a [`Protocol`] what to send and what each message means. The module [`session`]
//! explains one in full; those of Binance, Deribit, HTX, Kraken and OKX are files to copy, in
//! `examples/protocols`.
//! ```no_run
//! use std::time::Duration;
//!
//! use serde_json::{Value, json};
//! use tautline::session::{
//!     Class, Context, OpeningScript, Outgoing, Protocol, Rejection, StepOutcome,
//!     SubscriptionRequest,
//! };
//! use tautline::{Client, Event, MessageRef};
//!
//! struct Exchange {
//!     key: String,
//! }
//!
//! fn parse(message: MessageRef<'_>) -> Value {
//!     serde_json::from_slice(message.bytes()).unwrap_or_default()
//! }
//!
//! impl Protocol for Exchange {
//!     fn opening(&self) -> OpeningScript {
//!         let login = json!({"op": "login", "key": self.key}).to_string();
//!         OpeningScript::new().request(
//!             "login",
//!             Duration::from_secs(5),
//!             move |_| login.clone().into(),
//!             |message, _| match parse(message) {
//!                 other if other["op"] != "login" => StepOutcome::Unrelated,
//!                 answer if answer["ok"] == true => StepOutcome::Accepted,
//!                 answer => {
//!                     StepOutcome::Rejected(Rejection::permanent(answer["msg"].to_string()))
//!                 }
//!             },
//!         )
//!     }
//!
//!     fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
//!         parse(message)["id"].as_u64().map_or(Class::Data, Class::Reply)
//!     }
//!
//!     fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
//!         let op = request.either("subscribe", "unsubscribe");
//!         json!({"id": request.id(), "op": op, "topic": request.topic()}).to_string().into()
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let session = Client::builder("wss://stream.example.com/ws")
//!     .session(Exchange { key: std::env::var("API_KEY")? })
//!     .connect()?; // logged in, or the reason why not
//! session.handle().subscribe(["trades.BTC", "trades.ETH"])?;
//! for event in session.events() {
//!     match event {
//!         Event::Message(message) => println!("{}", message.text().unwrap_or("(binary)")),
//!         Event::Session(event) => eprintln!("{event:?}"), // ready, subscribed, rejected
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # 2. Request and reply
//! [`SessionHandle::call`] sends a request and waits for the reply that has its id, on any thread
//! but those of the client. It ends in one of three ways: a [`Reply`], which may be a refusal;
//! [`NotSent`], after which a repetition cannot duplicate the order; or [`Unknown`], after which
//! only the venue can tell. A handler uses [`call_with`], which does not wait.
//! ```no_run
//! use std::time::Duration;
//!
//! use serde_json::json;
//! use tautline::session::{CallError, Request, SessionHandle};
//!
//! /// Places an order. `id` is the program's own, and the same in every repetition.
//! fn place(handle: &SessionHandle, id: &str) {
//!     let order = Request::new(|context| {
//!         json!({"id": context.id(), "op": "order", "clientId": id, "ts": context.unix_millis()})
//!             .to_string()
//!             .into()
//!     });
//!     match handle.call(order.within(Duration::from_secs(2))) {
//!         Ok(reply) => {
//!             let text = reply.message.text().unwrap_or_default();
//!             println!("{id}: answered after {:.1?}: {text}", reply.took);
//!         }
//!         Err(CallError::NotSent(why)) => match why.retry_in() {
//!             Some(wait) => println!("{id}: not sent, the rate limits have room in {wait:.1?}"),
//!             None => println!("{id}: not sent ({why}), to be placed again"),
//!         },
//!         Err(unknown) => {
//!             println!("{id}: {unknown} ({}): ask for {id}", unknown.reason());
//!         }
//!     }
//! }
//! ```
//! `examples/orders.rs` is a whole bot that goes on from each of the three.
//!
//! # 3. Two clients in one loop
//! [`Events::ready`] is a receiver for the `select!` of crossbeam-channel. It says that events may
//! wait; [`Events::try_next`] returns one. Call it each time, and leave the loop at
//! [`TryNextError::Disconnected`], since the receiver is ready for good from then on.
//! ```no_run
//! use crossbeam_channel::select;
//! use tautline::{Client, Event, TryNextError};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let spot = Client::builder("wss://spot.example.com/ws").name("spot").start()?;
//! let futures = Client::builder("wss://futures.example.com/ws").name("futures").start()?;
//! let (mut spot_events, mut futures_events) = (spot.events(), futures.events());
//! let (spot_ready, futures_ready) = (spot_events.ready(), futures_events.ready());
//! loop {
//!     let (client, event) = select! {
//!         recv(spot_ready) -> _ => (&spot, spot_events.try_next()),
//!         recv(futures_ready) -> _ => (&futures, futures_events.try_next()),
//!     };
//!     match event {
//!         Ok(Event::Message(message)) => {
//!             println!("{}: {}", client.name(), message.text().unwrap_or("(binary)"));
//!         }
//!         Ok(event) => println!("{}: {event:?}", client.name()),
//!         Err(TryNextError::Disconnected) => break, // one has ended: drop stops the other
//!         Err(_) => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # 4. Timers in a handler
//! [`Connection::wake_at`] sets the time at which [`Handler::woken`] is called, on the thread that
//! delivers the messages. A client has one such time, and each call replaces it: a handler with
//! several timers sets the earliest. `woken` is also called while no connection is open, so ask
//! [`WokenContext::connection`].
//! ```no_run
//! use std::time::{Duration, Instant};
//!
//! use tautline::{Client, Connection, Disconnect, Handler, MessageRef, WokenContext};
//!
//! const REPORT: Duration = Duration::from_secs(10);
//! const SNAPSHOT: Duration = Duration::from_secs(3);
//!
//! /// Reports every ten seconds, and gives up a connection that brings no snapshot.
//! struct Bot {
//!     messages: u64,
//!     report_at: Instant,
//!     snapshot_by: Option<Instant>,
//! }
//!
//! impl Bot {
//!     fn next_timer(&self) -> Instant {
//!         self.snapshot_by.map_or(self.report_at, |snapshot_by| snapshot_by.min(self.report_at))
//!     }
//! }
//!
//! impl Handler for Bot {
//!     fn opened(&mut self, connection: &mut Connection<'_>) {
//!         self.snapshot_by = Some(Instant::now() + SNAPSHOT);
//!         connection.wake_at(self.next_timer());
//!     }
//!
//!     fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
//!         self.messages += 1;
//!         if message.bytes().starts_with(br#"{"type":"snapshot""#) {
//!             self.snapshot_by = None;
//!             connection.wake_at(self.next_timer());
//!         }
//!     }
//!
//!     fn woken(&mut self, context: &mut WokenContext<'_>) {
//!         let now = Instant::now();
//!         if self.report_at <= now {
//!             println!("{} messages", self.messages);
//!             self.report_at += REPORT;
//!         }
//!         if self.snapshot_by.is_some_and(|snapshot_by| snapshot_by <= now) {
//!             self.snapshot_by = None;
//!             if let Some(connection) = context.connection() {
//!                 connection.reconnect();
//!             }
//!         }
//!         context.wake_at(self.next_timer());
//!     }
//!
//!     fn disconnected(&mut self, _: &Disconnect) {
//!         self.snapshot_by = None;
//!     }
//! }
//!
//! # fn main() -> Result<(), tautline::Error> {
//! let bot = Bot { messages: 0, report_at: Instant::now() + REPORT, snapshot_by: None };
//! let client = Client::builder("wss://stream.example.com/ws").start_with(bot)?;
//! # Ok(()) }
//! ```
//!
//! # 5. Stop on SIGINT within a second
//! A thread waits for the signal and passes it on by a channel, which the loop selects over beside
//! the events. [`Client::stop`] then bounds the closing handshake and the wait for the threads.
//! Dropping the client waits for a late thread once more, within [`drop_timeout`]. A loop over the
//! iterator, with [`Stopper::request_stop`] in the other thread, ends when the client has ended: a
//! server that does not answer the close frame holds it up for [`close_timeout`], 1 s by default.
//! ```no_run
//! # #[cfg(unix)]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use crossbeam_channel::{bounded, select};
//! use signal_hook::consts::{SIGINT, SIGTERM};
//! use signal_hook::iterator::Signals;
//! use tautline::{Client, Event, TryNextError};
//!
//! let mut signals = Signals::new([SIGINT, SIGTERM])?;
//! let (signal_tx, signal) = bounded(1);
//! std::thread::spawn(move || {
//!     if signals.forever().next().is_some() {
//!         signal_tx.send(()).ok();
//!     }
//! });
//!
//! let client = Client::builder("wss://stream.example.com/ws")
//!     .drop_timeout(Duration::from_millis(200))
//!     .start()?;
//! let mut events = client.events();
//! let ready = events.ready();
//! loop {
//!     select! {
//!         recv(signal) -> _ => break,
//!         recv(ready) -> _ => match events.try_next() {
//!             Ok(Event::Message(message)) => println!("{}", message.text().unwrap_or("(binary)")),
//!             Err(TryNextError::Disconnected) => break,
//!             _ => {}
//!         },
//!     }
//! }
//! eprintln!("{}", client.stop(Duration::from_millis(700)));
//! # Ok(()) }
//! # #[cfg(not(unix))]
//! # fn main() {}
//! ```
//! The two waits take 0.9 s at most together, and normally some milliseconds. The work of the
//! program on one event is added to that.
//!
//! # 6. A queue for a slow strategy
//! Events that are pulled wait in a queue, bounded by [`queue_messages`] and [`queue_bytes`].
//! [`when_full`] says what happens to a message that finds it full; [`WhenFull::Disconnect`], the
//! default, ends the connection, and the other rules lose messages or hold up the reader. With
//! [`conflate`] a message takes the place of an unread one with the same key, which suits quotes
//! and not order book updates. Pull one event at a time then: a batch that has been taken keeps
//! the messages that it has.
//! ```no_run
//! use tautline::{Client, Event, WhenFull};
//!
//! /// Returns the symbol of a quote such as `{"u":400900217,"s":"BNBUSDT","b":"25.3"}`.
//! fn symbol(quote: &[u8]) -> Option<&[u8]> {
//!     const KEY: &[u8] = br#""s":""#;
//!     let start = quote.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
//!     quote[start..].split(|&byte| byte == b'"').next()
//! }
//! # fn decide(_: &str) {}
//!
//! # fn main() -> Result<(), tautline::Error> {
//! let client = Client::builder("wss://stream.example.com/ws")
//!     .queue_messages(10_000)
//!     .queue_bytes(8 << 20)
//!     .when_full(WhenFull::DropOldest)
//!     .conflate(|message| symbol(message.bytes()))
//!     .start()?;
//! for event in client.events() {
//!     match event {
//!         Event::Message(quote) => decide(quote.text().unwrap_or_default()), // takes a while
//!         Event::Lagged(lagged) => eprintln!("{} messages lost", lagged.lost),
//!         _ => {}
//!     }
//! }
//! println!("{} quotes were replaced unread", client.stats().messages_conflated);
//! # Ok(()) }
//! ```
//!
//! # 7. Tests with `testing`
//! With the feature `testing`, `tautline::testing::TestServer` plays a script on a loopback port,
//! once for each connection. This test, which takes some milliseconds, has the server close the
//! first connection and checks that the bot comes back and subscribes again. It waits for events,
//! with a timeout that only a failure reaches, and never sleeps.
//! ```
//! use std::time::Duration;
//!
//! use tautline::testing::TestServer;
//! use tautline::{Client, Event};
//!
//! const SOON: Duration = Duration::from_secs(5);
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = TestServer::start(|peer| {
//!     peer.upgrade()?;
//!     peer.receive_message()?; // the subscription
//!     peer.send_text(&format!("quote {}", peer.number()))?; // connections count from 0
//!     if peer.number() == 0 {
//!         peer.close(1012, "restart")?;
//!     }
//!     peer.receive()?; // the client's close frame
//!     Ok(())
//! });
//! let client = Client::builder(server.url())
//!     .retry_delay_min(Duration::from_millis(1))
//!     .start()?;
//!
//! let mut events = client.events();
//! let mut seen = Vec::new();
//! while seen.len() < 5 {
//!     seen.push(match events.next_timeout(SOON)? {
//!         Event::Opened(opened) => {
//!             client.sender().pinned_to(opened.epoch).send_text("subscribe")?;
//!             format!("opened {}", opened.epoch)
//!         }
//!         Event::Message(message) => message.text().unwrap_or_default().to_owned(),
//!         Event::Disconnected(end) => format!("closed {}", end.close.code),
//!         other => format!("{other:?}"),
//!     });
//! }
//! assert_eq!(seen, ["opened 1", "quote 0", "closed 1012", "opened 2", "quote 1"]);
//! assert_eq!(server.messages(), [b"subscribe", b"subscribe"]);
//! assert!(client.stop(SOON).is_clean());
//! # Ok(()) }
//! ```
//! `tautline::testing::exchange` has simulated exchanges, which enforce their limits.
//!
//! # 8. Behind a proxy
//! [`Builder::proxy`] dials through an HTTP, HTTPS or SOCKS5 proxy. No variable of the environment
//! is read but by [`Proxy::from_env`], which follows curl's rules, `no_proxy` included. A
//! refusal is an error of the kind [`ErrorKind::Proxy`]; after 407 the client does not dial again.
//! ```no_run
//! use tautline::{Client, ErrorKind, Proxy};
//!
//! # fn main() -> Result<(), tautline::Error> {
//! let proxy = match std::env::var("PROXY_PASSWORD") {
//!     Ok(password) => Proxy::http("proxy.example.com:3128").credentials("bot", password),
//!     Err(_) => Proxy::from_env(), // dials directly if it names none
//! };
//! let client = match Client::builder("wss://stream.example.com/ws").proxy(proxy).connect() {
//!     Err(error) if error.kind() == ErrorKind::Proxy => {
//!         eprintln!("the proxy refuses, with status {:?}", error.status());
//!         return Err(error);
//!     }
//!     result => result?,
//! };
//! println!("{client}"); // its name, its state and the epoch
//! # Ok(()) }
//! ```
//!
//! # 9. Settings per venue
//! The client answers protocol pings, sends its own every 15 s, obeys `Retry-After` and backs off
//! with jitter, without any setting. The table has what a venue wants beyond that. The facts are
//! of late 2026, from the venues' own documents, SDKs and servers; those marked *measured* are a
//! third party's measurements. Check the venue before you trade.
//!
//! "300 in 5 min" stands for `.window(300, Duration::from_secs(300))`, and "without data" for
//! [`AppPing::only_when_quiet`]. A limit is a [`RateLimit::shared`] for [`connect_limit`] and where
//! the table says "shared", of which all clients of the process have a clone, and a
//! [`RateLimit::per_connection`] otherwise. The program chooses an interval for a ping that has
//! none here; idle timeouts, and values below a limit that the venue states, are proposals.
//!
//! [`idle_timeout`] counts messages that are data, so a protocol must not call the heartbeats named
//! here [`Class::Ignored`]. [`batch`] and [`topics_max`] are settings of a session, whose protocol
//! may answer pings by [`Class::Respond`] instead of [`auto_respond`].
//!
//! | venue | call | argument |
//! |---|---|---|
//! | Binance spot streams | [`send_limit`] | 5 in 1 s, [`counting_pings`] |
//! | | [`connect_limit`] | 300 in 5 min, for an address |
//! | | [`retry_policy`] | [`RetryAfter`] 30 s for the code 1008, since repeats are banned |
//! | | [`topics_max`] | 1,024 |
//! | Binance WebSocket API | [`Request::within`] | over 10 s, after which the server gives up |
//! | Binance futures | [`send_limit`] | 10 in 1 s |
//! | | [`builder_from_fn`] | the URL holds a listenKey, which a REST call returns |
//! | | [`compress`] | off: a client has got an invalid reply to the offer |
//! | Bybit v5 | [`app_ping`] | `{"op":"ping"}` every 20 s |
//! | | [`connect_limit`] | 500 in 5 min |
//! | OKX v5 | [`app_ping`] | `ping` after 25 s without data, answered by `pong` |
//! | | [`send_limit`] | 480 in 1 h, [`only`] `Opening` and `Subscriptions` |
//! | | [`connect_limit`] | 3 in 1 s, for an address |
//! | | [`batch`] | 60,000 bytes: a subscription request has 64 KB at most |
//! | | [`compress`] | possible |
//! | Coinbase Exchange | [`send_limit`] | 8 in 1 s, shared |
//! | | [`idle_timeout`] | 5 s, with the channel `heartbeat`, which has a message a second |
//! | | [`compress`] | recommended by the venue |
//! | Coinbase Advanced | [`send_limit`] | 8 in 1 s, shared |
//! | Kraken v2 | [`app_ping`] | `{"method":"ping"}`, answered by a message with `pong` |
//! | | [`idle_timeout`] | 10 s: each quiet second has a `heartbeat` |
//! | | [`connect_limit`] | 150 in 10 min, for an address |
//! | | [`retry_policy`] | [`RetryAfter`] 5 s after maintenance |
//! | Deribit | [`auto_respond`] | `public/test` to each `test_request` (*measured*) |
//! | | [`send_limit`] | 10 in 3 s, [`only`] `Subscriptions` |
//! | | [`compress`] | possible (*measured*) |
//! | BitMEX | [`app_ping`] | `ping` after 5 s without data |
//! | | [`connect_limit`] | 20 in 1 h |
//! | KuCoin | [`builder_from_fn`] | a REST call returns the URL and the interval of pings |
//! | | [`app_ping_interval`] | that interval, on the endpoint |
//! | | [`app_ping`] | `{"id":"1","type":"ping"}`, even while data flows (*measured*) |
//! | | [`send_limit`] | 100 in 10 s |
//! | HTX | [`decode`] | [`Decode::gzip`]: every message |
//! | | [`auto_respond`] | `{"pong":1}` for `{"ping":1}`, with the same number |
//! | | [`send_limit`] | 40 in 1 s, [`only`] `Subscriptions` |
//! | Gate v4 | [`app_ping`] | [`AppPing::made_by`]: `spot.ping` holds the time |
//! | | [`when_full`] | not [`Block`]: the venue closes slow readers |
//! | Bitfinex v2 | [`idle_timeout`] | 40 s: `hb` comes every 15 s |
//! | | [`connect_limit`] | 20 in 1 min |
//! | Bitstamp | [`max_outgoing_message_size`] | 500: a frame of 512 bytes is closed with 1009 |
//! | | [`compress`] | possible |
//! | Hyperliquid | [`app_ping`] | `{"method":"ping"}` after 30 s without data, of 60 s allowed |
//! | | [`send_limit`] | 2,000 in 1 min, shared |
//! | Bitget | [`app_ping`] | `ping` every 30 s, even while data flows |
//! | | [`send_limit`] | 10 in 1 s, [`counting_pings`] |
//! | | [`send_limit`] | 240 in 1 h, [`only`] `Subscriptions` |
//! | | [`batch`] | 4,096 bytes |
//! | MEXC spot | [`app_ping`] | `{"method":"PING"}` |
//! | | [`send_limit`] | 100 in 1 s |
//! | | [`topics_max`] | 30 |
//! | MEXC futures | [`app_ping`] | `{"method":"ping"}` every 15 s: from 10 to 20 s are required |
//! | dYdX v4 | [`send_limit`] | 2 in 1 s, [`only`] `Subscriptions`: more is closed with 1008 |
//! | | [`retry_policy`] | [`RetryAfter`] 30 s for the code 4008 |
//! | Alpaca | [`ping_interval`] | 10 s, as its SDK has it |
//! | Massive (Polygon) | [`when_full`] | not [`Block`]: the venue closes slow readers |
//! | IBKR client portal | [`app_ping`] | `ech+hb` every 60 s |
//! | | [`header`] | `Cookie`, with the session's |
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use tautline::{AppPing, Builder, Client, Decode, RateLimit, RetryDecision, SendKind};
//!
//! /// `connects` is `RateLimit::shared().window(300, Duration::from_secs(300))`, or a clone.
//! fn binance(connects: RateLimit) -> Builder {
//!     // Two of the five are kept from subscriptions, for pongs and the program's own messages.
//!     let messages =
//!         RateLimit::per_connection().window(5, Duration::from_secs(1)).keep(2).counting_pings();
//!     Client::builder("wss://stream.binance.com:9443/ws")
//!         .send_limit(messages)
//!         .connect_limit(connects)
//!         .retry_policy(|error, default| match error.close_reason() {
//!             Some(close) if close.code == 1008 => {
//!                 RetryDecision::RetryAfter(Duration::from_secs(30))
//!             }
//!             _ => default,
//!         })
//! }
//!
//! /// `connects` is `RateLimit::shared().window(3, Duration::from_secs(1))`, or a clone.
//! fn okx(connects: RateLimit) -> Builder {
//!     let ping = AppPing::text("ping", Duration::from_secs(25))
//!         .only_when_quiet()
//!         .answered_by(|message| message.text() == Some("pong"));
//!     let requests = RateLimit::per_connection()
//!         .window(480, Duration::from_secs(3600))
//!         .only(&[SendKind::Opening, SendKind::Subscriptions]);
//!     Client::builder("wss://ws.okx.com:8443/ws/v5/public")
//!         .app_ping(ping)
//!         .send_limit(requests)
//!         .connect_limit(connects)
//! }
//!
//! fn htx(url: &str) -> Builder {
//!     let requests = RateLimit::per_connection()
//!         .window(40, Duration::from_secs(1))
//!         .only(&[SendKind::Subscriptions]);
//!     Client::builder(url)
//!         .decode(Decode::gzip().as_text())
//!         .send_limit(requests)
//!         .auto_respond(|message| {
//!             let rest = message.text()?.strip_prefix(r#"{"ping":"#)?;
//!             Some(format!(r#"{{"pong":{rest}"#).into())
//!         })
//! }
//! ```
//! The kinds [`SendKind::Opening`] and [`SendKind::Subscriptions`] are those of a session. A client
//! without one sends its subscriptions as [`SendKind::Sends`].
//!
//! # 10. Coming from tungstenite
//! In tungstenite 0.30 the program calls `read` in a loop, writes what is due between two reads,
//! and connects again after an error. Here the threads of the client do that. [`Event`]s take the
//! place of the results of `read`, and a [`Sender`] takes the place of a shared socket.
//!
//! | tungstenite | tautline |
//! |---|---|
//! | `connect(url)` | [`Client::builder`], then [`connect`] or [`start`] |
//! | `connect` again after an error | none: see [`retry_delay_min`], [`retry_policy`] |
//! | up to three redirects followed | none: [`Error::response`] has the `Location` |
//! | `ClientRequestBuilder::with_header` | [`header`] |
//! | `ClientRequestBuilder::with_sub_protocol` | [`subprotocol`] |
//! | `Connector` | [`tls_engine`], [`tls_root`], [`tls_identity_pem`] |
//! | `WebSocketConfig::max_message_size`: 64 MiB | [`max_message_size`]: 16 MiB |
//! | `read` | [`Client::events`], or [`Handler::message`] |
//! | `TcpStream::set_read_timeout`, then `read` | [`Events::next_timeout`] |
//! | `set_nonblocking`, then `read` | [`Events::try_next`] |
//! | `Message::Text`, `Message::Binary` | [`Message::text`], [`Message::bytes`] |
//! | `Message::Ping`, and the flush of its pong | none: pongs are written by the client |
//! | `send(Message::Ping(..))` by a timer | none: see [`ping_interval`], [`pong_timeout`] |
//! | `Message::Close`, and every `Err` of `read` | [`Event::Disconnected`] |
//! | `send(Message::text(..))` | [`send_text`], whose error is [`SendError`] |
//! | `write` several times, then `flush` | [`send_batch`] |
//! | `Arc<Mutex<WebSocket<..>>>` | clones of [`Sender`] |
//! | `close`, then `read` until `ConnectionClosed` | [`Client::stop`], [`stop_with`] |
//!
//! With the feature `tungstenite-types` a [`Message`] converts to tungstenite's.
//! ```no_run
//! use std::time::Duration;
//!
//! use tautline::{Client, Event, TryNextError};
//!
//! # fn main() -> Result<(), tautline::Error> {
//! let client = Client::builder("wss://stream.example.com/ws").connect()?;
//!
//! let sender = client.sender(); // usable on any thread, while another one reads
//! std::thread::spawn(move || {
//!     if let Err(error) = sender.send_text("hello") {
//!         eprintln!("{error}: {}", error.reason());
//!     }
//! });
//!
//! let mut events = client.events();
//! loop {
//!     match events.next_timeout(Duration::from_secs(1)) {
//!         Ok(Event::Message(message)) => match message.text() {
//!             Some(text) => println!("{text}"),
//!             None => println!("{} bytes", message.bytes().len()),
//!         },
//!         Ok(Event::Disconnected(end)) => eprintln!("{end}"), // it says when the next dial is
//!         Ok(_) => {}
//!         Err(TryNextError::Empty) => println!("nothing for a second"),
//!         Err(_) => break, // the client has ended
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # 11. Coming from websocket-client
//! A `WebSocketApp` of Python's websocket-client 1.9 calls back from `run_forever`. A [`Handler`]
//! is called back on a thread of the client's, while the program goes on; [`Client::wait_closed`]
//! waits for the end as `run_forever` does. Reconnects and pings are on without any setting.
//!
//! | websocket-client | tautline |
//! |---|---|
//! | `WebSocketApp(url, ..)` | [`Client::builder`] |
//! | `header=`, `cookie=`, a callable as `header=` | [`header`], [`builder_from_fn`] |
//! | `subprotocols=` | [`subprotocol`] |
//! | `on_open`, `on_reconnect` | [`Handler::opened`]: the epoch is 1, or more |
//! | `on_message` | [`Handler::message`] |
//! | `on_error`, `on_close` | [`Handler::disconnected`], [`dial_failed`], [`stopped`] |
//! | `on_ping` | none: pongs are written by the client |
//! | `on_pong` | [`Handler::pong`], for pings of this client; [`Stats::round_trip`] |
//! | `run_forever()` | [`start_with`], then [`Client::wait_closed`] |
//! | `run_forever(ping_interval=, ping_timeout=)` | [`ping_interval`], [`pong_timeout`] |
//! | `run_forever(reconnect=5)` | none: see [`retry_delay_min`], [`retry_delay_max`] |
//! | `http_proxy_host=`, `http_proxy_auth=`, `proxy_type=` | [`Builder::proxy`], [`Proxy`] |
//! | proxies of the environment, without being asked | [`Proxy::from_env`] |
//! | `sslopt={"ca_certs": ..}` | [`tls_root`], [`tls_only_given_roots`] |
//! | `sslopt={"cert_reqs": ssl.CERT_NONE}` | [`danger_accept_invalid_certificates`] |
//! | `send`, `send_text`, `send_bytes` | [`send_text`], [`send_binary`] |
//! | `close()` | [`Client::stop`], or [`Connection::stop`] in a handler |
//! | an exception in a callback | a panic, which ends the client: [`Client::take_panic`] |
//! | `enableTrace(True)` | the level `trace` of the crate `log`, without payloads |
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use tautline::{Client, Connection, Disconnect, Handler, MessageRef};
//!
//! struct App;
//!
//! impl Handler for App {
//!     // on_open and on_reconnect
//!     fn opened(&mut self, connection: &mut Connection<'_>) {
//!         if let Err(error) = connection.send_text(r#"{"op":"subscribe","topic":"trades"}"#) {
//!             eprintln!("{error}");
//!         }
//!     }
//!
//!     // on_message
//!     fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
//!         println!("{}", message.text().unwrap_or("(binary)"));
//!     }
//!
//!     // on_error and on_close
//!     fn disconnected(&mut self, disconnect: &Disconnect) {
//!         eprintln!("{disconnect}");
//!     }
//! }
//!
//! # fn main() -> Result<(), tautline::Error> {
//! // run_forever(ping_interval=20, ping_timeout=10)
//! let client = Client::builder("wss://stream.example.com/ws")
//!     .ping_interval(Duration::from_secs(20))
//!     .pong_timeout(Duration::from_secs(10))
//!     .start_with(App)?;
//! match client.wait_closed(Duration::MAX) {
//!     Some(reason) => Err(reason), // no retry could help, for example
//!     None => Ok(()),
//! }
//! # }
//! ```
//!
//! # 12. Tests against a recording
//! `tautline record wss://stream.example.com/ws market.jsonl.zst` records a feed, with the program
//! of the feature `cli`. `TestServer::replay` plays the file to a bot: at its own pace, at a
//! multiple, or as fast as the bot reads, where each run brings the same messages in the same
//! order. A file that ends in `.zst` needs the feature `zstd`.
//! ```
//! use tautline::testing::{Pace, TestServer};
//! use tautline::{Client, Event};
//!
//! /// Buys when the price falls, and sells when it rises.
//! fn decide(last: f64, price: f64) -> &'static str {
//!     if price < last { "buy" } else { "sell" }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("tautline-recipe-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let file = folder.join("market.jsonl");
//! # std::fs::write(&file, r#"{"event":"started","unix_ns":1754300000000000000}
//! # {"event":"message","ns":1000000,"text":"100.5"}
//! # {"event":"message","ns":2000000,"text":"99"}
//! # {"event":"message","ns":900000000,"text":"101"}
//! # "#)?;
//! let server = TestServer::replay(&file, Pace::Unpaced)?;
//! // The server closes the connection at the end of the recording, and the client ends with it.
//! let client = Client::builder(server.url()).max_attempts(1).start()?;
//! let mut prices = Vec::new();
//! for event in client.events() {
//!     if let Event::Message(message) = event {
//!         prices.push(message.text().unwrap_or_default().parse::<f64>()?);
//!     }
//! }
//! let decisions: Vec<_> = prices.windows(2).map(|pair| decide(pair[0], pair[1])).collect();
//! assert_eq!(decisions, ["buy", "sell"]);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok(()) }
//! ```
//!
//! [`app_ping`]: crate::Builder::app_ping
//! [`app_ping_interval`]: crate::Endpoint::app_ping_interval
//! [`AppPing::made_by`]: crate::AppPing::made_by
//! [`AppPing::only_when_quiet`]: crate::AppPing::only_when_quiet
//! [`auto_respond`]: crate::Builder::auto_respond
//! [`batch`]: crate::session::SessionBuilder::batch
//! [`Block`]: crate::WhenFull::Block
//! [`Builder::proxy`]: crate::Builder::proxy
//! [`builder_from_fn`]: crate::Client::builder_from_fn
//! [`call_with`]: crate::session::SessionHandle::call_with
//! [`Class::Ignored`]: crate::session::Class::Ignored
//! [`Class::Respond`]: crate::session::Class::Respond
//! [`Client::builder`]: crate::Client::builder
//! [`Client::events`]: crate::Client::events
//! [`Client::stop`]: crate::Client::stop
//! [`Client::take_panic`]: crate::Client::take_panic
//! [`Client::wait_closed`]: crate::Client::wait_closed
//! [`close_timeout`]: crate::Builder::close_timeout
//! [`compress`]: crate::Builder::compress
//! [`conflate`]: crate::Builder::conflate
//! [`connect`]: crate::Builder::connect
//! [`connect_limit`]: crate::Builder::connect_limit
//! [`Connection::stop`]: crate::Connection::stop
//! [`Connection::wake_at`]: crate::Connection::wake_at
//! [`counting_pings`]: crate::RateLimit::counting_pings
//! [`danger_accept_invalid_certificates`]: crate::Builder::danger_accept_invalid_certificates
//! [`decode`]: crate::Builder::decode
//! [`Decode::gzip`]: crate::Decode::gzip
//! [`dial_failed`]: crate::Handler::dial_failed
//! [`drop_timeout`]: crate::Builder::drop_timeout
//! [`Error::response`]: crate::Error::response
//! [`ErrorKind::Proxy`]: crate::ErrorKind::Proxy
//! [`Event`]: crate::Event
//! [`Event::Disconnected`]: crate::Event::Disconnected
//! [`Events::next_timeout`]: crate::Events::next_timeout
//! [`Events::ready`]: crate::Events::ready
//! [`Events::try_next`]: crate::Events::try_next
//! [`Handler`]: crate::Handler
//! [`Handler::disconnected`]: crate::Handler::disconnected
//! [`Handler::message`]: crate::Handler::message
//! [`Handler::opened`]: crate::Handler::opened
//! [`Handler::pong`]: crate::Handler::pong
//! [`Handler::woken`]: crate::Handler::woken
//! [`header`]: crate::Builder::header
//! [`idle_timeout`]: crate::Builder::idle_timeout
//! [`max_message_size`]: crate::Builder::max_message_size
//! [`max_outgoing_message_size`]: crate::Builder::max_outgoing_message_size
//! [`Message`]: crate::Message
//! [`Message::bytes`]: crate::Message::bytes
//! [`Message::text`]: crate::Message::text
//! [`NotSent`]: crate::session::CallError::NotSent
//! [`only`]: crate::RateLimit::only
//! [`ping_interval`]: crate::Builder::ping_interval
//! [`pong_timeout`]: crate::Builder::pong_timeout
//! [`Protocol`]: crate::session::Protocol
//! [`Proxy`]: crate::Proxy
//! [`Proxy::from_env`]: crate::Proxy::from_env
//! [`queue_bytes`]: crate::Builder::queue_bytes
//! [`queue_messages`]: crate::Builder::queue_messages
//! [`RateLimit::per_connection`]: crate::RateLimit::per_connection
//! [`RateLimit::shared`]: crate::RateLimit::shared
//! [`Reply`]: crate::session::Reply
//! [`Request::within`]: crate::session::Request::within
//! [`retry_delay_max`]: crate::Builder::retry_delay_max
//! [`retry_delay_min`]: crate::Builder::retry_delay_min
//! [`retry_policy`]: crate::Builder::retry_policy
//! [`RetryAfter`]: crate::RetryDecision::RetryAfter
//! [`send_batch`]: crate::Client::send_batch
//! [`send_binary`]: crate::Client::send_binary
//! [`send_limit`]: crate::Builder::send_limit
//! [`send_text`]: crate::Client::send_text
//! [`Sender`]: crate::Sender
//! [`SendError`]: crate::SendError
//! [`SendKind::Opening`]: crate::SendKind::Opening
//! [`SendKind::Sends`]: crate::SendKind::Sends
//! [`SendKind::Subscriptions`]: crate::SendKind::Subscriptions
//! [`session`]: crate::session
//! [`SessionHandle::call`]: crate::session::SessionHandle::call
//! [`start`]: crate::Builder::start
//! [`start_with`]: crate::Builder::start_with
//! [`Stats::round_trip`]: crate::Stats::round_trip
//! [`stop_with`]: crate::Client::stop_with
//! [`stopped`]: crate::Handler::stopped
//! [`Stopper::request_stop`]: crate::Stopper::request_stop
//! [`subprotocol`]: crate::Builder::subprotocol
//! [`tls_engine`]: crate::Builder::tls_engine
//! [`tls_identity_pem`]: crate::Builder::tls_identity_pem
//! [`tls_only_given_roots`]: crate::Builder::tls_only_given_roots
//! [`tls_root`]: crate::Builder::tls_root
//! [`topics_max`]: crate::session::SessionBuilder::topics_max
//! [`TryNextError::Disconnected`]: crate::TryNextError::Disconnected
//! [`Unknown`]: crate::session::CallError::Unknown
//! [`when_full`]: crate::Builder::when_full
//! [`WhenFull::Disconnect`]: crate::WhenFull::Disconnect
//! [`WokenContext::connection`]: crate::WokenContext::connection
