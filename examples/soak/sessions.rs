//! Sessions with simulated exchanges that misbehave at random. The wishes of the program, the view
//! of the session and the record of the exchange must agree.
//!
//! A session of market data changes its wishes, and must get every message of each topic. A session
//! of orders makes calls from several threads, from its handler and with closures, and each must
//! have one fate, which the exchange's ledger confirms.

// A program needs some of each file.
#[path = "../protocols/binance.rs"]
#[allow(dead_code)]
mod binance;
#[path = "../protocols/deribit.rs"]
#[allow(dead_code)]
mod deribit;
#[path = "../protocols/htx.rs"]
#[allow(dead_code)]
mod htx;
#[path = "../protocols/kraken.rs"]
#[allow(dead_code)]
mod kraken;
#[path = "../protocols/okx.rs"]
#[allow(dead_code)]
mod okx;
#[path = "../protocols/reply.rs"]
#[allow(dead_code)]
mod reply;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tautline::session::{
    CallContext, CallError, Outgoing, Protocol, ReplyRef, Request, Session, SessionBuilder,
    SessionHandle, Silence, SubscriptionState, Watch,
};
use tautline::testing::TestServer;
use tautline::testing::exchange::{ConnectionRecord, Exchange, ExchangeBuilder, Misbehavior};
use tautline::{
    Builder, Connection, Disconnect, Event, Events, Handler, MessageRef, SendError, WokenContext,
};

/// Runs sessions of one kind until it is over.
type Kind = fn(&Run<'_>);

/// The kinds of sessions, by name.
const KINDS: &[(&str, Kind)] = &[
    ("binance streams", |run| {
        run.market(
            Exchange::binance(),
            |url| fast(binance::client(url)).session(binance::Streams).batch(7, 16 << 10),
            |number| format!("coin{number}usdt@bookTicker"),
            |data| Some((data["stream"].as_str()?.to_owned(), data["data"]["u"].as_u64()?)),
        );
    }),
    ("binance orders", |run| {
        let session = |url: &str| {
            let api = binance::WebSocketApi::new("key", |_| "signature".to_owned());
            fast(binance::client(url)).wakeups().session(api)
        };
        run.orders(Exchange::binance(), session, |id, call| {
            let order = binance::MarketOrder { symbol: "BTCUSDT", side: "BUY", quantity: "1", id };
            call.make(order.place());
        });
    }),
    ("okx books", |run| {
        run.market(
            Exchange::okx().tls(),
            |url| fast(okx::client(url)).session(okx::Okx::public()).batch(7, 16 << 10),
            |number| format!("books:COIN{number}-USDT"),
            |data| {
                let instrument = data["arg"]["instId"].as_str()?;
                Some((format!("books:{instrument}"), data["data"][0]["seqId"].as_u64()?))
            },
        );
    }),
    ("okx orders", |run| {
        let session = |url: &str| {
            let login = okx::Login::new("key", "passphrase", |_| "signature".to_owned());
            fast(okx::client(url)).wakeups().session(okx::Okx::private(login))
        };
        run.orders(Exchange::okx(), session, |id, call| {
            let order = okx::MarketOrder { instrument: "BTC-USDT", side: "buy", size: "1", id };
            call.make(order.place());
        });
    }),
    ("htx books", |run| {
        run.market(
            Exchange::htx(),
            |url| fast(htx::client(url)).session(htx::Htx::market()),
            |number| format!("market.coin{number}usdt.mbp.150"),
            |data| Some((data["ch"].as_str()?.to_owned(), data["tick"]["seqNum"].as_u64()?)),
        );
    }),
    ("htx orders", |run| {
        let session = |url: &str| {
            let login = htx::Login::new("key", |_| "signature".to_owned());
            fast(htx::client(url)).wakeups().session(htx::Htx::orders(login))
        };
        run.orders(Exchange::htx(), session, |id, call| {
            let order = htx::MarketOrder { symbol: "btcusdt", side: "buy", amount: "1", id };
            call.make(order.place());
        });
    }),
    ("deribit books", |run| {
        run.market(
            Exchange::deribit().tls(),
            |url| fast(deribit::client(url)).session(deribit::Deribit::public()).batch(30, 1 << 14),
            |number| format!("book.COIN{number}-PERPETUAL.100ms"),
            |data| {
                let params = &data["params"];
                let number = params["data"]["change_id"].as_u64()?;
                Some((params["channel"].as_str()?.to_owned(), number))
            },
        );
    }),
    ("deribit orders", |run| {
        let session = |url: &str| {
            let login = deribit::Login::new("client", |_| "signature".to_owned());
            fast(deribit::client(url)).wakeups().session(deribit::Deribit::private(login))
        };
        run.orders(Exchange::deribit(), session, |id, call| {
            let instrument = "BTC-PERPETUAL";
            let order = deribit::MarketOrder { instrument, side: "buy", amount: 10.0, id };
            call.make(order.place());
        });
    }),
    ("kraken books", |run| {
        run.market(
            Exchange::kraken(),
            |url| fast(kraken::client(url)).session(kraken::Kraken).batch(7, 16 << 10),
            |number| format!("book/COIN{number}/USD"),
            |data| {
                let (channel, entry) = (data["channel"].as_str()?, &data["data"][0]);
                let number = entry["bids"][0]["qty"].as_f64()? as u64;
                Some((format!("{channel}/{}", entry["symbol"].as_str()?), number))
            },
        );
    }),
    ("kraken orders", |run| {
        let session = |url: &str| {
            let client = kraken::private_client(url, |_| Ok("token".into()));
            fast(client).wakeups().session(kraken::Kraken)
        };
        run.orders(Exchange::kraken(), session, |id, call| {
            let order = kraken::MarketOrder { symbol: "BTC/USD", side: "buy", quantity: 1.0, id };
            call.make(order.place());
        });
    }),
];

/// The number of sessions that a run has unless it is told otherwise: one of each kind.
pub(crate) const DEFAULT: usize = KINDS.len();

const MS: Duration = Duration::from_millis(1);

/// The time after which the exchange and the session are new. Both are checked then, and what the
/// exchange has recorded goes: memory stays flat in a long run.
const ROUND: Duration = Duration::from_secs(30);

/// Long enough for a session to come to rest once its exchange misbehaves no more.
const SOON: Duration = Duration::from_secs(20);

/// The number of topics that a session chooses from.
const TOPICS: usize = 30;

/// The number of topics that an exchange comes to refuse in a round.
const REFUSED_MAX: usize = 3;

/// The number of threads that call and wait, for each session of orders.
const CALLERS: usize = 2;

/// The close codes that exchanges are asked to use, each once in a round.
const CLOSE_CODES: std::ops::Range<u16> = 4_100..5_000;

/// Retries fast, and notices a silent exchange fast.
fn fast(client: Builder) -> Builder {
    client
        .tls_root(TestServer::root_pem())
        .retry_delay_min(MS)
        .retry_delay_max(50 * MS)
        .ping_interval(100 * MS)
        .pong_timeout(400 * MS)
        .close_timeout(100 * MS)
        .thread_stack_size(256 * 1024)
}

/// The results of all sessions.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) connections: usize,
    pub(crate) messages: u64,
    pub(crate) calls: BTreeMap<Fate, u64>,
    pub(crate) faults: Vec<String>,
}

/// Runs `count` sessions until `is_over`, each with an exchange of its own, and checks them.
pub(crate) fn run(count: usize, seed: u64, is_over: &AtomicBool) -> Totals {
    let totals = Mutex::new(Totals::default());
    thread::scope(|scope| {
        for (index, (name, kind)) in KINDS.iter().cycle().take(count).enumerate() {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
            let run = Run { name, seed, is_over, totals: &totals };
            scope.spawn(move || kind(&run));
        }
    });
    totals.into_inner()
}

/// One session after another, of one kind.
struct Run<'a> {
    name: &'static str,
    seed: u64,
    is_over: &'a AtomicBool,
    totals: &'a Mutex<Totals>,
}

/// Makes the settings of a session from the URL of the exchange.
type MakeSession<P> = fn(&str) -> SessionBuilder<P>;

/// Reads the topic and the number of a data message. `None`: it is something else.
type Numbered = fn(&Value) -> Option<(String, u64)>;

impl Run<'_> {
    fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }

    fn fault(&self, what: &str) {
        let mut totals = self.totals.lock();
        // A single broken check may fail a million times.
        if totals.faults.len() < 20 {
            totals.faults.push(format!("{}: {what}", self.name));
        }
    }

    /// Calls `act` with pauses until the round is over.
    fn during_round(&self, rng: &mut StdRng, mut act: impl FnMut(&mut StdRng)) {
        let until = Instant::now() + ROUND;
        while Instant::now() < until && !self.is_over.load(Ordering::Relaxed) {
            act(rng);
            thread::park_timeout(rng.random_range(0..20) * MS);
        }
    }

    /// Waits until `is_there`. Returns whether it was soon enough.
    fn until(&self, mut is_there: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + SOON;
        while !is_there() {
            if Instant::now() > deadline {
                return false;
            }
            thread::park_timeout(10 * MS);
        }
        true
    }

    /// Stops a session, which must leave nothing behind and have violated nothing.
    fn finish<D>(&self, session: &Session<D>, exchange: &Exchange) {
        let report = session.stop(Duration::from_secs(10));
        if !report.is_clean() || session.client().live_threads() > 0 {
            let threads = session.client().live_threads();
            self.fault(&format!("a stop was not clean: {report}; {threads} threads"));
        }
        // What is in flight arrives, or is lost.
        let is_over = |connection: &ConnectionRecord| !connection.is_open;
        if !self.until(|| exchange.connections().iter().all(is_over)) {
            self.fault("the exchange has an open connection");
        }
        for violation in exchange.violations() {
            self.fault(&format!("{violation:?}"));
        }
        self.totals.lock().connections += exchange.connections().len();
    }
}

/// Without the limits that a client keeps only with a rate limit.
fn start(exchange: ExchangeBuilder) -> Exchange {
    let no_time = Duration::ZERO;
    let exchange = exchange.message_limit(usize::MAX, no_time).connect_limit(usize::MAX, no_time);
    exchange.tick(20 * MS).start()
}

/// Returns a way to end every connection of an exchange, or to let them fall silent.
fn end_of_connections(rng: &mut StdRng, close_codes: &mut std::ops::Range<u16>) -> Misbehavior {
    match (rng.random_range(0..5), close_codes.next()) {
        (0, Some(code)) => Misbehavior::Close(code),
        (1, _) => Misbehavior::FallSilent,
        (2, _) => Misbehavior::AnnounceShutdown,
        _ => Misbehavior::Disconnect,
    }
}

// ---- Market data ----

/// The topics that the program wants, and those that the exchange refuses.
#[derive(Default)]
struct Wishes {
    wanted: BTreeSet<String>,
    refused: BTreeSet<String>,
}

impl Run<'_> {
    fn market<P: Protocol>(
        &self,
        exchange: ExchangeBuilder,
        session: MakeSession<P>,
        topic: fn(usize) -> String,
        numbered: Numbered,
    ) {
        let mut rng = self.rng();
        while !self.is_over.load(Ordering::Relaxed) {
            let exchange = start(exchange.clone());
            let session = session(&exchange.url()).ack_timeout(100 * MS).start();
            let session = session.expect("the settings are good");
            let feed = Feed { run: self, numbered, epochs: Mutex::default() };
            // One topic is muted at times, and subscribed anew once it has been silent.
            let watched = topic(0);
            let watch = session.handle().watch(&watched, 300 * MS, Silence::Resubscribe);
            thread::scope(|scope| {
                scope.spawn(|| feed.read(session.events(), &watched, &watch));
                let wishes = self.wish(&exchange, session.handle(), topic, &mut rng);
                self.settle(&exchange, session.handle(), &feed, &wishes);
                self.finish(&session, &exchange);
            });
            feed.compare(&exchange.connections());
        }
    }

    /// Changes wishes at random while the exchange misbehaves at random. The exchange is quiet
    /// then.
    fn wish(
        &self,
        exchange: &Exchange,
        handle: &SessionHandle,
        topic: fn(usize) -> String,
        rng: &mut StdRng,
    ) -> Wishes {
        let (mut wishes, mut close_codes) = (Wishes::default(), CLOSE_CODES);
        self.during_round(rng, |rng| {
            let count = rng.random_range(1..10);
            let topics: Vec<String> =
                (0..count).map(|_| topic(rng.random_range(0..TOPICS))).collect();
            let misbehavior = match rng.random_range(0..40) {
                0..=11 => {
                    handle.subscribe(&topics).expect("there is no limit");
                    wishes.wanted.extend(topics);
                    return;
                }
                12..=19 => {
                    handle.unsubscribe(&topics);
                    wishes.wanted.retain(|topic| !topics.contains(topic));
                    return;
                }
                20..=23 => return topics.iter().for_each(|topic| handle.resubscribe(topic)),
                24 | 25 => Misbehavior::LoseAcks(rng.random_range(1..4)),
                26 | 27 => Misbehavior::DoubleAcks(topics.len()),
                28 | 29 => Misbehavior::DelayAcks(rng.random_range(0..50) * MS),
                30 => Misbehavior::Mute(topic(0)),
                31 if wishes.refused.len() < REFUSED_MAX => {
                    wishes.refused.insert(topics[0].clone());
                    Misbehavior::Refuse(topics[0].clone())
                }
                32 | 33 => end_of_connections(rng, &mut close_codes),
                _ => return,
            };
            exchange.misbehave(misbehavior);
        });
        exchange.misbehave(Misbehavior::LoseAcks(0));
        exchange.misbehave(Misbehavior::DoubleAcks(0));
        exchange.misbehave(Misbehavior::DelayAcks(Duration::ZERO));
        wishes
    }

    /// Checks that the session comes to rest: what is wanted is active, in the session's view and
    /// at the exchange, and its data comes. Then ends all of it, and checks that nothing is lost.
    fn settle(
        &self,
        exchange: &Exchange,
        handle: &SessionHandle,
        feed: &Feed<'_>,
        wishes: &Wishes,
    ) {
        let before = feed.totals();
        let mut active = BTreeSet::new();
        let is_settled = self.until(|| {
            let Some(connection) = exchange.connections().pop() else { return false };
            let (epoch, states) = (feed.epoch(), handle.subscriptions());
            active.clear();
            for (topic, state) in &states {
                let topic = topic.as_str();
                match state {
                    SubscriptionState::Active { epoch: of } if *of == epoch => {
                        active.insert(topic.to_owned());
                    }
                    // A topic is suspected for a while if connections end right after it was
                    // asked for. The program insists by giving it up first.
                    SubscriptionState::Rejected(rejection) if !rejection.is_permanent() => {
                        handle.unsubscribe([topic]);
                        handle.subscribe([topic]).expect("there is no limit");
                        return false;
                    }
                    SubscriptionState::Rejected(_) if wishes.refused.contains(topic) => {}
                    _ => return false,
                }
            }
            let names: BTreeSet<String> =
                states.iter().map(|(topic, _)| topic.as_str().to_owned()).collect();
            let totals = feed.totals();
            connection.is_open
                && names == wishes.wanted
                && connection.subscriptions().iter().eq(&active)
                && active.iter().all(|topic| totals.get(topic) > before.get(topic))
        });
        if !is_settled {
            let (connection, states) = (exchange.connections().pop(), states(handle));
            self.fault(&format!(
                "the session does not settle: {:?} is wanted, {:?} refused; epoch {} has \
                 {states:?}, and the exchange {connection:?}",
                wishes.wanted,
                wishes.refused,
                feed.epoch()
            ));
        }
        handle.unsubscribe(&wishes.wanted);
        let is_whole = self.until(|| {
            let Some(connection) = exchange.connections().pop() else { return false };
            connection.is_open
                && connection.subscriptions().is_empty()
                && handle.subscriptions().is_empty()
                && feed.epochs.lock().last().is_some_and(|epoch| epoch.has_all(&connection))
        });
        if !is_whole {
            let (connection, states) = (exchange.connections().pop(), states(handle));
            self.fault(&format!(
                "topics are left, or messages are missing: the session has {states:?} and {:?}, \
                 the exchange {connection:?}",
                feed.epochs.lock().last()
            ));
        }
    }
}

/// Returns the state of each topic, for a fault: `Debug` hides the names of topics.
fn states(handle: &SessionHandle) -> BTreeMap<String, SubscriptionState> {
    let states = handle.subscriptions().into_iter();
    states.map(|(topic, state)| (topic.as_str().to_owned(), state)).collect()
}

/// The data that a session has delivered.
struct Feed<'a> {
    run: &'a Run<'a>,
    numbered: Numbered,
    epochs: Mutex<Vec<Epoch>>,
}

/// The data of one connection.
#[derive(Debug, Default)]
struct Epoch {
    number: u64,
    /// The number of the last message of each topic.
    received: BTreeMap<String, u64>,
    /// The close code, once it has ended.
    close: Option<u16>,
}

impl Epoch {
    /// Returns whether this may be the session's view of a connection: what is missing was in
    /// flight at its end. Before a close frame nothing may be missing.
    fn may_be(&self, connection: &ConnectionRecord) -> bool {
        if self.close.is_some_and(|code| CLOSE_CODES.contains(&code)) {
            let code = connection.closed.as_ref().map(|(code, _)| *code);
            return code == self.close && self.has_all(connection);
        }
        let sent = |topic: &String| connection.topics.get(topic).map_or(0, |topic| topic.sent);
        self.received.iter().all(|(topic, received)| *received <= sent(topic))
    }

    fn has_all(&self, connection: &ConnectionRecord) -> bool {
        let sent = connection.topics.iter().filter(|(_, topic)| topic.sent > 0);
        sent.map(|(name, topic)| (name, &topic.sent)).eq(&self.received)
    }
}

impl Feed<'_> {
    /// Reads until the session has stopped.
    fn read(&self, events: Events, watched: &str, watch: &Watch) {
        for event in events {
            match event {
                Event::Opened(opened) => {
                    let mut epochs = self.epochs.lock();
                    if epochs.last().is_some_and(|last| last.close.is_none()) {
                        self.run.fault("a connection opened beside another");
                    }
                    epochs.push(Epoch { number: opened.epoch, ..Epoch::default() });
                }
                Event::Message(message) => {
                    let data = serde_json::from_slice(message.bytes()).unwrap_or_default();
                    // The second copy of an acknowledgment is delivered too.
                    let Some((topic, number)) = (self.numbered)(&data) else { continue };
                    if topic == watched {
                        watch.seen(message.received_at());
                    }
                    self.note(message.epoch(), topic, number);
                }
                Event::Disconnected(disconnect) => self.note_disconnected(&disconnect),
                Event::Lagged(lagged) => self.run.fault(&format!("{lagged:?}")),
                _ => {}
            }
        }
    }

    /// Checks that no message is missing, repeated or of another connection.
    fn note(&self, epoch: u64, topic: String, number: u64) {
        let mut epochs = self.epochs.lock();
        let Some(last) = epochs.last_mut().filter(|last| last.number == epoch) else {
            self.run.fault(&format!("a message of epoch {epoch} out of turn"));
            return;
        };
        let received = last.received.entry(topic).or_default();
        if number != *received + 1 {
            self.run.fault(&format!("message {number} came after {received} of its topic"));
        }
        *received = number;
        self.run.totals.lock().messages += 1;
    }

    fn note_disconnected(&self, disconnect: &Disconnect) {
        if let Some(last) = self.epochs.lock().last_mut() {
            last.close = Some(disconnect.close.code);
        }
    }

    /// Returns the epoch of the last connection.
    fn epoch(&self) -> u64 {
        self.epochs.lock().last().map_or(0, |last| last.number)
    }

    /// Returns the number of messages of each topic.
    fn totals(&self) -> BTreeMap<String, u64> {
        let mut totals = BTreeMap::new();
        for (topic, received) in self.epochs.lock().iter().flat_map(|epoch| &epoch.received) {
            *totals.entry(topic.clone()).or_default() += received;
        }
        totals
    }

    /// Finds the connection of each epoch among those of the exchange, in order. Some have none: a
    /// dial may be cut after the exchange has accepted it.
    fn compare(&self, connections: &[ConnectionRecord]) {
        let mut connections = connections.iter();
        for epoch in self.epochs.lock().iter() {
            if !connections.any(|connection| epoch.may_be(connection)) {
                self.run.fault(&format!("no connection of the exchange explains {epoch:?}"));
                return;
            }
        }
    }
}

// ---- Orders ----

/// The fate of a call, as the session tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Replied,
    NotSent,
    Unknown,
}

impl Fate {
    fn of_failure(error: &CallError) -> Fate {
        if error.is_not_sent() { Fate::NotSent } else { Fate::Unknown }
    }
}

/// The calls of one session by number, each an order. `None`: its fate is not known yet.
#[derive(Default)]
struct Ledger {
    calls: Mutex<Vec<Option<Fate>>>,
    faults: Mutex<Vec<String>>,
}

impl Ledger {
    fn begin(&self) -> usize {
        let mut calls = self.calls.lock();
        calls.push(None);
        calls.len() - 1
    }

    fn settle(&self, number: usize, fate: Fate) {
        if let Some(other) = self.calls.lock()[number].replace(fate) {
            self.faults.lock().push(format!("call {number} is {other:?}, and then {fate:?}"));
        }
    }

    /// Returns the fate of a call with a reply, which must be that to its own order.
    fn replied(&self, number: usize, reply: MessageRef<'_>) -> Fate {
        if !reply.text().is_some_and(|text| text.contains(&format!("\"{}\"", order_id(number)))) {
            self.faults.lock().push(format!("call {number} has the reply of another"));
        }
        Fate::Replied
    }
}

/// The client order id of a call.
fn order_id(number: usize) -> String {
    format!("bot{number}")
}

/// The ways to make a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Wait,
    Closure,
}

/// A call that is to be made. Each exchange has a request of its own for it.
struct Call<'a> {
    trader: &'a Trader,
    number: usize,
    way: Way,
    within: Duration,
}

impl Call<'_> {
    fn make<F: FnOnce(&CallContext<'_>) -> Outgoing>(self, request: Request<F>) {
        let Call { trader: Trader { handle, ledger, .. }, number, way, within } = self;
        let request = request.within(within);
        if way == Way::Wait {
            let fate = match handle.call(request) {
                Ok(reply) => ledger.replied(number, reply.message.as_ref()),
                Err(error) => Fate::of_failure(&error),
            };
            return ledger.settle(number, fate);
        }
        let kept = Arc::clone(ledger);
        let then = move |result: Result<ReplyRef<'_>, CallError>| {
            let fate = match result {
                Ok(reply) => kept.replied(number, reply.message),
                Err(error) => Fate::of_failure(&error),
            };
            kept.settle(number, fate);
        };
        match handle.call_with(request, then) {
            Ok(_) => {}
            Err(SendError::NotSent(_)) => ledger.settle(number, Fate::NotSent),
            Err(_) => ledger.settle(number, Fate::Unknown),
        }
    }
}

/// Places orders, from any thread. As the handler of the session it does so inside `woken`.
#[derive(Clone)]
struct Trader {
    handle: SessionHandle,
    ledger: Arc<Ledger>,
    place: fn(&str, Call<'_>),
}

impl Trader {
    fn place(&self, way: Way, within: Duration) -> Option<Fate> {
        let number = self.ledger.begin();
        (self.place)(&order_id(number), Call { trader: self, number, way, within });
        self.ledger.calls.lock()[number]
    }
}

impl Handler for Trader {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        connection.wake_at(Instant::now());
    }

    fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}

    fn woken(&mut self, context: &mut WokenContext<'_>) {
        self.place(Way::Closure, 100 * MS);
        // It would wait for itself.
        if self.place(Way::Wait, 100 * MS) != Some(Fate::NotSent) {
            self.ledger.faults.lock().push("a handler has waited for a reply".to_owned());
        }
        context.wake_at(Instant::now() + 50 * MS);
    }
}

impl Run<'_> {
    fn orders<P: Protocol>(
        &self,
        exchange: ExchangeBuilder,
        session: MakeSession<P>,
        place: fn(&str, Call<'_>),
    ) {
        let mut rng = self.rng();
        while !self.is_over.load(Ordering::Relaxed) {
            let exchange = start(exchange.clone());
            let session = session(&exchange.private_url());
            let trader = Trader { handle: session.handle(), ledger: Arc::default(), place };
            let session = session.start_with(trader.clone()).expect("the settings are good");
            let has_stopped = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..CALLERS {
                    let mut rng = StdRng::seed_from_u64(rng.random());
                    let (trader, has_stopped) = (&trader, &has_stopped);
                    scope.spawn(move || {
                        while !has_stopped.load(Ordering::Relaxed) {
                            trader.place(Way::Wait, rng.random_range(1..300) * MS);
                            thread::park_timeout(10 * MS);
                        }
                    });
                }
                self.trade(&exchange, &trader, &mut rng);
                // Calls are under way.
                self.finish(&session, &exchange);
                has_stopped.store(true, Ordering::Relaxed);
            });
            self.agree(&exchange, &trader.ledger);
        }
    }

    /// Makes calls with closures while the exchange misbehaves at random.
    fn trade(&self, exchange: &Exchange, trader: &Trader, rng: &mut StdRng) {
        let mut close_codes = CLOSE_CODES;
        self.during_round(rng, |rng| {
            exchange.misbehave(match rng.random_range(0..40) {
                0..=2 => Misbehavior::LoseReplies(rng.random_range(1..4)),
                3 | 4 => Misbehavior::DelayReplies(rng.random_range(0..50) * MS),
                5 => Misbehavior::DelayReplies(Duration::ZERO),
                6 | 7 => end_of_connections(rng, &mut close_codes),
                _ => {
                    trader.place(Way::Closure, rng.random_range(1..300) * MS);
                    return;
                }
            });
        });
    }

    /// Compares the fates of the calls with the orders of the exchange.
    fn agree(&self, exchange: &Exchange, ledger: &Ledger) {
        let mut attempts = BTreeMap::new();
        for order in exchange.orders() {
            *attempts.entry(order.client_order_id).or_default() += order.attempts;
        }
        for (number, fate) in ledger.calls.lock().iter().enumerate() {
            let attempts = attempts.remove(&order_id(number)).unwrap_or(0);
            let is_right = match fate {
                Some(Fate::Replied) => attempts == 1,
                Some(Fate::NotSent) => attempts == 0,
                Some(Fate::Unknown) => attempts <= 1,
                None => false,
            };
            if !is_right {
                self.fault(&format!("call {number}: {fate:?}, at the exchange {attempts} times"));
            }
            if let Some(fate) = fate {
                *self.totals.lock().calls.entry(*fate).or_default() += 1;
            }
        }
        if !attempts.is_empty() {
            self.fault(&format!("the exchange has orders that nobody has placed: {attempts:?}"));
        }
        ledger.faults.lock().iter().for_each(|fault| self.fault(fault));
    }
}
