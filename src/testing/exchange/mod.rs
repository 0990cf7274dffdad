//! Simulated exchanges on a loopback port, for tests of bots and of their
//! [`Protocol`](crate::session::Protocol)s.
//!
//! A simulated exchange enforces the rules of the real one, at the arrival of each message: message
//! limits, the login before anything that needs it, pings and their answers, sizes, numbers of
//! topics. Whoever violates one is treated as the exchange does, and [`Exchange::violations`] says
//! why. Orders are in a ledger, [`Exchange::orders`]. Each active topic streams numbered messages:
//! by the numbers a test can account for every one. On request the exchange misbehaves
//! ([`Exchange::misbehave`]).
//!
//! [`Exchange::binance`]: streams at `/stream` and `/ws`, orders at `/ws-api/v3`.
//!
//! - Streams take 5 messages a second, pings and pongs included, and 1,024 topics: 1008 otherwise.
//! - 300 opening handshakes in 5 minutes: status 429 otherwise.
//! - One acknowledgment by id. A request with an unknown topic is refused whole.
//! - `session.logon` before orders: error -2015 otherwise.
//! - A ping every 20 seconds. 1008 if none of the pongs comes within 60 seconds.
//! - Topics are a symbol and `@aggTrade`, `@trade`, `@bookTicker` or `@depth`. The number of a
//!   message is `a`, `t` or `u`.
//!
//! [`Exchange::okx`]: market data at `/ws/v5/public`, orders at `/ws/v5/private`.
//!
//! - 480 logins and subscription requests an hour on a connection: error 60014 otherwise.
//! - 3 opening handshakes a second: status 429 otherwise.
//! - One acknowledgment for each argument, by its echo. Errors have the id of the request.
//! - `login` before anything else at the private path: error 60011 otherwise.
//! - 4004 after 30 seconds without a message in either direction. The text `ping` is answered.
//! - Topics are `books`, `tickers` or `trades`, a colon and an instrument; private ones are
//!   `orders:ANY`, `positions:ANY` and `account`. The number of a message is `seqId`.
//!
//! [`Exchange::deribit`]: market data and orders at `/ws/api/v2`, as JSON-RPC.
//!
//! - 10 requests to subscribe in 3 seconds on a connection: error 10028 otherwise.
//! - One acknowledgment by id, which lists the channels that were accepted.
//! - `public/auth` before private methods: error 13009 otherwise.
//! - After `public/set_heartbeat` a `test_request` at each interval: 4000 if none has been answered
//!   by `public/test` before the next.
//! - `private/enable_cancel_on_disconnect` cancels what rests when the connection ends.
//! - Topics are `book` or `trades`, an instrument and `100ms` or `agg2`, with dots between them;
//!   `user.orders.any.any.raw` is private. The number of a message is `change_id` or `trade_seq`.
//! - `label` is the client order id. A second order with the same label is refused with error
//!   10009, although the real exchange takes it. `platform_state` announces the end of the
//!   connection, even to those who have not subscribed to it.
//!
//! [`Exchange::kraken`]: market data and orders at `/v2`.
//!
//! - 150 opening handshakes in 10 minutes: status 429 otherwise.
//! - `status` as the greeting and when it changes, and `heartbeat` after a second without another
//!   message of the exchange.
//! - One channel for each request. One acknowledgment or error for each symbol, all with the
//!   `req_id` of the request. Errors name the symbol, not the channel.
//! - A token in each request that concerns orders: error `ESession:Invalid session` otherwise. The
//!   first one on a connection is its login.
//! - `cancel_all_orders_after` cancels what rests at its timeout, by whichever connection it came.
//! - Topics are `book`, `ticker` or `trade`, a slash and a symbol, and the private `executions`.
//!   The number of a message is the `qty` of its bid, `bid_qty` or `trade_id`.
//! - `query_orders` returns the order with a `cl_ord_id`: the simulator's own, because the real
//!   exchange has it in its REST API alone.
//!
//! [`Exchange::htx`]: market data at `/feed`, orders at `/ws/v2`.
//!
//! - Every message that it sends is gzip in a binary frame.
//! - `{"ping":N}` every 5 seconds, to be answered with `{"pong":N}`. 1003 if four in a row are not.
//! - 40 subscribes a second on a connection: error `too-many-requests` otherwise.
//! - One topic in a request, acknowledged by id. `req` gets the snapshot of a book.
//! - `req` of `auth` before orders: error `auth-fail` otherwise. Orders, `order.place` and
//!   `order.cancel`, are the simulator's own, and so is `{"op":"close"}` before a shutdown.
//! - Topics are `market.`, a symbol and `.mbp.150` (or 5, 20, 400), `.bbo` or `.trade.detail`. The
//!   number of a message is `seqNum`, `seqId` or `tradeId`.
//!
//! Signatures and tokens are not checked: they need to be there. A message is 64 KiB long at most:
//! 1009 otherwise.
//!
//! ```
//! use std::time::Duration;
//! use tautline::Client;
//! use tautline::testing::exchange::{Exchange, Misbehavior};
//!
//! let exchange = Exchange::binance().tick(Duration::from_millis(1)).start();
//! let client = Client::builder(exchange.url()).connect().unwrap();
//! let subscribe = r#"{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}"#;
//! client.sender().send_text(subscribe).unwrap();
//! let within = Duration::from_secs(5);
//! assert!(exchange.wait_until(within, |exchange| exchange.subscriptions(0) == ["btcusdt@trade"]));
//! exchange.misbehave(Misbehavior::Disconnect);
//! assert!(exchange.violations().is_empty());
//! ```

mod binance;
mod connection;
mod deribit;
mod htx;
mod kraken;
mod limits;
mod misbehavior;
mod okx;
mod record;

use std::sync::Arc;
use std::time::Duration;

use self::connection::Profile;
use self::limits::{Limit, Settings};
pub use self::misbehavior::Misbehavior;
use self::record::Record;
pub use self::record::{
    ConnectionRecord, Order, OrderStatus, TopicRecord, Violation, ViolationKind,
};
use crate::testing::server::{TestServer, TestServerBuilder};

/// A simulated exchange. Its methods may be called from any thread.
///
/// Dropping it ends every connection without a close frame.
pub struct Exchange {
    server: TestServer,
    profile: &'static Profile,
    record: Arc<Record>,
}

/// The settings of an [`Exchange`].
#[must_use = "a builder does nothing until `start`"]
#[derive(Clone)]
pub struct ExchangeBuilder {
    profile: &'static Profile,
    server: TestServerBuilder,
    settings: Settings,
}

impl Exchange {
    /// Returns the settings of an exchange that speaks like Binance spot.
    pub fn binance() -> ExchangeBuilder {
        ExchangeBuilder::new(&binance::PROFILE)
    }

    /// Returns the settings of an exchange that speaks like OKX v5.
    pub fn okx() -> ExchangeBuilder {
        ExchangeBuilder::new(&okx::PROFILE)
    }

    /// Returns the settings of an exchange that speaks like Deribit v2.
    pub fn deribit() -> ExchangeBuilder {
        ExchangeBuilder::new(&deribit::PROFILE)
    }

    /// Returns the settings of an exchange that speaks like Kraken v2.
    pub fn kraken() -> ExchangeBuilder {
        ExchangeBuilder::new(&kraken::PROFILE)
    }

    /// Returns the settings of an exchange that speaks like HTX spot.
    pub fn htx() -> ExchangeBuilder {
        ExchangeBuilder::new(&htx::PROFILE)
    }

    /// Returns the URL of market data.
    pub fn url(&self) -> String {
        self.url_of(self.profile.path)
    }

    /// Returns the URL of orders.
    pub fn private_url(&self) -> String {
        self.url_of(self.profile.private_path)
    }

    fn url_of(&self, path: &str) -> String {
        format!("{}{path}", self.server.url().trim_end_matches('/'))
    }

    /// Makes the exchange misbehave. Returns at once.
    ///
    /// Faults of connections concern those that are open now, and are shown within a few
    /// milliseconds. Faults of messages concern all connections. A number or a time replaces the
    /// one before.
    pub fn misbehave(&self, misbehavior: Misbehavior) {
        if misbehavior == Misbehavior::Disconnect {
            self.server.abort_all();
        }
        self.record.change(|state| state.misbehave(misbehavior));
    }

    /// Returns what clients have violated, in order.
    pub fn violations(&self) -> Vec<Violation> {
        self.record.read(|state| state.violations.clone())
    }

    /// Returns the ledger: every order that has come, in order.
    pub fn orders(&self) -> Vec<Order> {
        self.record.cancel_due();
        self.record.read(|state| state.orders.clone())
    }

    /// Returns all connections, open or ended, by number. Refused ones are not among them.
    pub fn connections(&self) -> Vec<ConnectionRecord> {
        self.record.read(|state| state.connections.clone())
    }

    /// Returns the names of the active topics of a connection, in order.
    ///
    /// # Panics
    /// If there has been no connection with this number.
    pub fn subscriptions(&self, connection: usize) -> Vec<String> {
        self.record.read(|state| state.connections[connection].subscriptions())
    }

    /// Waits until `is_there` returns `true`; it is asked after every change. Returns whether it
    /// did within `timeout`.
    pub fn wait_until(&self, timeout: Duration, is_there: impl Fn(&Exchange) -> bool) -> bool {
        self.record.wait(timeout, || is_there(self))
    }
}

impl ExchangeBuilder {
    fn new(profile: &'static Profile) -> Self {
        let settings = Settings {
            tick: Duration::from_millis(100),
            time_scale: 1,
            connect_limit: None,
            message_limit: None,
        };
        ExchangeBuilder { profile, server: TestServer::builder(), settings }
    }

    /// Sets the interval at which one data message of each active topic is sent. Defaults to 100
    /// ms.
    pub fn tick(mut self, interval: Duration) -> Self {
        self.settings.tick = interval;
        self
    }

    /// Divides every time of the exchange's rules by `factor`, so that tests are fast: with 30, OKX
    /// closes after a second of silence, and 5 messages to Binance may come in 33 ms. Defaults to
    /// 1, and 0 counts as 1.
    pub fn time_scale(mut self, factor: u32) -> Self {
        self.settings.time_scale = factor.max(1);
        self
    }

    /// Sets the number of messages that a connection with such a limit takes within `per`, instead
    /// of the exchange's own, scaled limit. Deribit counts requests to subscribe alone, HTX
    /// subscribes. `usize::MAX` lifts it.
    pub fn message_limit(mut self, count: usize, per: Duration) -> Self {
        self.settings.message_limit = Some(Limit { count, per });
        self
    }

    /// Sets the number of opening handshakes that the exchange takes within `per`, instead of its
    /// own, scaled limit. `usize::MAX` lifts it.
    pub fn connect_limit(mut self, count: usize, per: Duration) -> Self {
        self.settings.connect_limit = Some(Limit { count, per });
        self
    }

    /// Uses TLS, as [`TestServerBuilder::tls`] does. Defaults to no TLS.
    pub fn tls(mut self) -> Self {
        self.server = self.server.tls();
        self
    }

    /// Starts the exchange.
    ///
    /// # Panics
    /// If the system has no free port or thread.
    pub fn start(self) -> Exchange {
        let ExchangeBuilder { profile, server, settings } = self;
        let record = Arc::new(Record::default());
        let shared = Arc::clone(&record);
        let serve = move |peer: &mut _| connection::serve(peer, profile, settings, &shared);
        Exchange { server: server.discard_messages().start(serve), profile, record }
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ExchangeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExchangeBuilder")
            .field("path", &self.profile.path)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
