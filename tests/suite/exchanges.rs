//! The protocols of the examples against the simulated exchanges, through all their misbehavior;
//! and the rules that those enforce.

#[path = "../../examples/protocols/binance.rs"]
mod binance;
#[path = "../../examples/protocols/okx.rs"]
mod okx;
#[path = "../../examples/protocols/reply.rs"]
pub(crate) mod reply;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tautline::session::{
    Class, Protocol, Session, SessionBuilder, SessionEvent, SessionHandle, Silence,
    SubscriptionState,
};
use tautline::testing::exchange::{
    Exchange, ExchangeBuilder, Misbehavior, OrderStatus, ViolationKind,
};
use tautline::testing::{TestServer, classify};
use tautline::{Builder, Client, ErrorKind, Event, Events, Message, TryNextError};

use self::reply::Fate;
use crate::support::{MS, SOON, disconnected, until};
use crate::{exchanges_deribit, exchanges_kraken};

/// The number of topics, one of which the exchange refuses.
const TOPICS: usize = 200;

/// The number of threads that place orders, and of orders that each places.
const TRADERS: usize = 4;
const ORDERS: usize = 40;

/// Fast, and without the limits that only a rate limit of the client keeps.
pub(crate) fn lenient(exchange: ExchangeBuilder) -> Exchange {
    let no_time = Duration::ZERO;
    let exchange = exchange.message_limit(usize::MAX, no_time).connect_limit(usize::MAX, no_time);
    exchange.tick(20 * MS).start()
}

/// Retries fast, and notices a silent exchange fast.
pub(crate) fn fast(client: Builder) -> Builder {
    client
        .tls_root(TestServer::root_pem())
        .retry_delay_min(MS)
        .retry_delay_max(5 * MS)
        .ping_interval(100 * MS)
        .pong_timeout(1000 * MS)
}

fn okx_login() -> okx::Login {
    okx::Login::new("key", "passphrase", |payload| format!("signed {}", payload.len()))
}

fn binance_api() -> binance::WebSocketApi {
    binance::WebSocketApi::new("key", |payload| format!("signed {}", payload.len()))
}

/// Reads the events of a session, and checks that no data message is missing.
pub(crate) struct Feed {
    events: Events,
    /// The number of the last message, by epoch and topic.
    numbers: HashMap<(u64, String), u64>,
}

impl Feed {
    pub(crate) fn new(session: &Session) -> Self {
        Feed { events: session.events(), numbers: HashMap::new() }
    }

    /// Reads until `is_there`, which sees every event of the session and, at intervals, `None`, and
    /// the number of data messages that have come since the last event of the session.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut is_there: impl FnMut(Option<&SessionEvent>, usize) -> bool,
    ) {
        // Under the thread sanitizer the exchange, its faults and the backoff take their time.
        let limit = 6 * SOON;
        let deadline = Instant::now() + limit;
        let mut messages = 0;
        loop {
            assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
            let is_over = match self.events.next_timeout(5 * MS) {
                Ok(Event::Message(message)) => {
                    self.check(message.epoch(), message.text().expect("it is JSON"));
                    messages += 1;
                    messages % 50 == 0 && is_there(None, messages)
                }
                Ok(Event::Session(event)) => is_there(Some(&event), std::mem::take(&mut messages)),
                Ok(Event::Lagged(lagged)) => panic!("the test is too slow: {lagged:?}"),
                Ok(Event::Stopped(stopped)) => panic!("{what}: {stopped:?}"),
                Ok(_) | Err(TryNextError::Empty) => is_there(None, messages),
                Err(error) => panic!("{what}: {error}"),
            };
            if is_over {
                return;
            }
        }
    }

    fn check(&mut self, epoch: u64, text: &str) {
        let data: serde_json::Value = serde_json::from_str(text).expect("it is JSON");
        if !data["id"].is_null() || !data["req_id"].is_null() {
            // The second copy of an acknowledgment, which nobody waits for.
            return;
        }
        let other =
            exchanges_deribit::numbered(&data).or_else(|| exchanges_kraken::numbered(&data));
        let (topic, number) = match (other, data["stream"].as_str(), data["ch"].as_str()) {
            (Some((topic, number)), ..) => (topic, Some(number)),
            (None, Some(stream), _) => (stream.to_owned(), data["data"]["u"].as_u64()),
            (None, None, Some(channel)) => (channel.to_owned(), data["tick"]["seqNum"].as_u64()),
            (None, None, None) => {
                let (arg, entry) = (&data["arg"], &data["data"][0]);
                let instrument = arg["instId"].as_str().expect("an instrument");
                (format!("books:{instrument}"), entry["seqId"].as_u64())
            }
        };
        let last = self.numbers.entry((epoch, topic)).or_default();
        assert_eq!(number, Some(*last + 1), "a message is missing");
        *last += 1;
    }
}

/// Reads until everything that is wanted is active at the exchange, on the connection with this
/// number, and in the session.
fn settles(feed: &mut Feed, exchange: &Exchange, handle: &SessionHandle, connection: usize) {
    let epoch = connection as u64 + 1;
    feed.until("all topics are answered", |_, _| {
        let states = handle.subscriptions();
        let count = |is: fn(&SubscriptionState, u64) -> bool| {
            states.iter().filter(|(_, state)| is(state, epoch)).count()
        };
        count(|state, epoch| *state == SubscriptionState::Active { epoch }) == TOPICS - 1
            && count(|state, _| matches!(state, SubscriptionState::Rejected(_))) == 1
    });
    assert_eq!(exchange.subscriptions(connection).len(), TOPICS - 1);
}

/// Takes a session of market data through everything that an exchange may do.
pub(crate) fn ordeal<P: Protocol>(
    exchange: &Exchange,
    session: SessionBuilder<P>,
    topic: impl Fn(usize) -> String,
) {
    let refused = topic(100);
    exchange.misbehave(Misbehavior::Refuse(refused.clone()));
    let session = session.batch(50, 16 << 10).ack_timeout(1000 * MS).start().expect("it starts");
    let (handle, mut feed) = (session.handle().clone(), Feed::new(&session));
    handle.subscribe((0..TOPICS).map(&topic)).expect("there is no limit");
    settles(&mut feed, exchange, &handle, 0);
    assert!(matches!(handle.subscription(&refused), Some(SubscriptionState::Rejected(_))));

    // Each connection is asked once for each topic, and not for the refused one.
    for connection in 1..=3 {
        exchange.misbehave(Misbehavior::Disconnect);
        settles(&mut feed, exchange, &handle, connection);
        let record = &exchange.connections()[connection];
        assert_eq!(record.topics.len(), TOPICS - 1);
        assert!(record.topics.values().all(|topic| topic.requests == 1));
    }

    // What is lost is asked for again. Another connection is not needed for that.
    exchange.misbehave(Misbehavior::LoseAcks(1));
    exchange.misbehave(Misbehavior::Disconnect);
    settles(&mut feed, exchange, &handle, 4);
    let requests = |connection: usize| {
        exchange.connections()[connection].topics.values().map(|topic| topic.requests).max()
    };
    assert_eq!(requests(4), Some(2));

    exchange.misbehave(Misbehavior::DoubleAcks(TOPICS));
    exchange.misbehave(Misbehavior::Close(1012));
    settles(&mut feed, exchange, &handle, 5);
    assert_eq!(requests(5), Some(1));
    exchange.misbehave(Misbehavior::DoubleAcks(0));

    // Data is not held back until its acknowledgment comes.
    exchange.misbehave(Misbehavior::DelayAcks(100 * MS));
    exchange.misbehave(Misbehavior::Disconnect);
    let (mut is_ready, mut early) = (false, 0);
    feed.until("the first acknowledgment comes", |event, messages| {
        early = messages;
        is_ready |= matches!(event, Some(SessionEvent::Ready { epoch: 7, .. }));
        is_ready && matches!(event, Some(SessionEvent::Subscription { epoch: 7, .. }))
    });
    assert!(early > 0, "data was held back");
    settles(&mut feed, exchange, &handle, 6);
    exchange.misbehave(Misbehavior::DelayAcks(Duration::ZERO));

    exchange.misbehave(Misbehavior::FallSilent);
    settles(&mut feed, exchange, &handle, 7);

    exchange.misbehave(Misbehavior::AnnounceShutdown);
    let mut is_told = false;
    feed.until("the session tells of the shutdown", |event, _| {
        is_told |= matches!(event, Some(SessionEvent::GoingAway { epoch: 8, .. }));
        is_told
    });
    settles(&mut feed, exchange, &handle, 8);

    // One topic anew, others no more.
    handle.resubscribe(&topic(0));
    handle.unsubscribe((1..50).map(&topic));
    feed.until("the exchange has what is wanted", |_, _| {
        let record = &exchange.connections()[8];
        let renewed = &record.topics[&topic(0)];
        record.subscriptions().len() == TOPICS - 50 && renewed.is_active && renewed.requests == 2
    });
    assert!(session.stop(SOON).is_clean());
    let violations = exchange.violations();
    assert!(violations.is_empty(), "{violations:?}");
}

#[test]
fn binance_streams_come_through_everything_that_the_exchange_does() {
    let exchange = lenient(Exchange::binance());
    let session = fast(binance::client(&exchange.url())).session(binance::Streams);
    ordeal(&exchange, session, |number| format!("coin{number}usdt@bookTicker"));
}

#[test]
fn okx_books_come_through_everything_that_the_exchange_does() {
    let exchange = lenient(Exchange::okx().tls());
    let session = fast(okx::client(&exchange.url())).session(okx::Okx::public());
    ordeal(&exchange, session, |number| format!("books:COIN{number}-USDT"));
}

/// Mutes a topic after three messages. The session notices that and asks for it again, on the same
/// connection. Returns the first message that comes then.
pub(crate) fn mends_a_muted_topic<P: Protocol>(
    exchange: &Exchange,
    session: SessionBuilder<P>,
    topic: &str,
) -> Message {
    let session = session.start().expect("it starts");
    let (handle, mut events) = (session.handle(), session.events());
    handle.subscribe([topic]).expect("there is no limit");
    let watch = handle.watch(topic, 200 * MS, Silence::Resubscribe);
    let (mut count, mut is_silent) = (0, false);
    let first = loop {
        match events.next_timeout(SOON).expect("an event comes") {
            Event::Message(message) if is_silent => break message,
            Event::Message(message) => {
                watch.seen(message.received_at());
                count += 1;
                if count == 3 {
                    exchange.misbehave(Misbehavior::Mute(topic.into()));
                }
            }
            Event::Session(SessionEvent::Silent { .. }) => is_silent = true,
            _ => {}
        }
    };
    assert_eq!(exchange.connections().len(), 1);
    assert_eq!(exchange.connections()[0].topics[topic].requests, 2);
    first
}

/// Changes wishes at random while the exchange misbehaves at random. Once it is quiet, the exchange
/// has what is wanted.
pub(crate) fn wander<P: Protocol>(
    exchange: &Exchange,
    session: SessionBuilder<P>,
    topic: impl Fn(usize) -> String,
    seed: u64,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let session = session.batch(7, 16 << 10).ack_timeout(100 * MS).start().expect("it starts");
    let (handle, mut feed) = (session.handle().clone(), Feed::new(&session));
    let (mut wanted, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for step in 0..200 {
        let topics: Vec<String> =
            (0..rng.random_range(1..10)).map(|_| topic(rng.random_range(0..40))).collect();
        match rng.random_range(0..20) {
            0..=5 => {
                handle.subscribe(&topics).expect("there is no limit");
                wanted.extend(topics);
            }
            6..=9 => {
                handle.unsubscribe(&topics);
                wanted.retain(|topic| !topics.contains(topic));
            }
            10 => handle.resubscribe(&topics[0]),
            11 => exchange.misbehave(Misbehavior::LoseAcks(1)),
            12 => exchange.misbehave(Misbehavior::DoubleAcks(topics.len())),
            13 => {
                let delay = rng.random_range(0..50) * MS;
                exchange.misbehave(Misbehavior::DelayAcks(delay));
            }
            14 => exchange.misbehave(Misbehavior::Disconnect),
            15 if step % 3 == 0 => exchange.misbehave(Misbehavior::AnnounceShutdown),
            16 if refused.len() < 3 => {
                exchange.misbehave(Misbehavior::Refuse(topics[0].clone()));
                refused.insert(topics[0].clone());
            }
            _ => {
                let until = Instant::now() + rng.random_range(0..20) * MS;
                feed.until("time passes", |_, _| Instant::now() >= until);
            }
        }
    }
    for quiet in [
        Misbehavior::LoseAcks(0),
        Misbehavior::DoubleAcks(0),
        Misbehavior::DelayAcks(Duration::ZERO),
    ] {
        exchange.misbehave(quiet);
    }
    feed.until("the exchange has what is wanted", |_, _| {
        let Some(connection) = exchange.connections().pop() else { return wanted.is_empty() };
        let states = handle.subscriptions();
        connection.is_open
            && states.len() == wanted.len()
            && states.iter().all(|(topic, state)| {
                let topic = topic.as_str();
                let is_active = connection.topics.get(topic).is_some_and(|topic| topic.is_active);
                match state {
                    SubscriptionState::Active { .. } => is_active,
                    // After two cuts right behind the request a topic is suspected for a while.
                    SubscriptionState::Rejected(rejection) => {
                        !is_active && (refused.contains(topic) || !rejection.is_permanent())
                    }
                    _ => false,
                }
            })
            && connection.subscriptions().iter().all(|topic| wanted.contains(topic))
    });
    assert!(session.stop(SOON).is_clean());
    let violations = exchange.violations();
    assert!(violations.is_empty(), "{violations:?}");
}

#[test]
fn a_topic_that_is_given_up_while_its_acknowledgment_is_missing_is_ended() {
    let exchange = lenient(Exchange::binance());
    let session = fast(binance::client(&exchange.url())).session(binance::Streams);
    let session = session.ack_timeout(50 * MS).start().expect("it starts");
    let has = |count: usize| {
        move |exchange: &Exchange| {
            exchange.connections().len() == 1 && exchange.subscriptions(0).len() == count
        }
    };
    exchange.misbehave(Misbehavior::LoseAcks(1));
    session.handle().subscribe(["btcusdt@trade"]).expect("there is no limit");
    assert!(exchange.wait_until(SOON, has(1)));
    session.handle().unsubscribe(["btcusdt@trade"]);
    assert!(exchange.wait_until(SOON, has(0)));
}

#[test]
fn a_topic_that_is_given_up_between_a_refusal_and_its_acknowledgment_is_ended() {
    let exchange = lenient(Exchange::okx());
    exchange.misbehave(Misbehavior::Refuse("books:BAD-USDT".into()));
    let session = fast(okx::client(&exchange.url())).session(okx::Okx::public()).batch(2, 1000);
    // The error of the request comes first, and the acknowledgment of its second half after it.
    let handle = session.handle();
    let session = session.on_event(move |event| match event {
        SessionEvent::Subscription { topic, state: SubscriptionState::Pending, .. }
            if topic.as_str() == "books:BTC-USDT" =>
        {
            handle.unsubscribe(["books:BTC-USDT"]);
        }
        _ => {}
    });
    let handle = session.handle();
    handle.subscribe(["books:BAD-USDT", "books:BTC-USDT"]).expect("there is no limit");
    let session = session.start().expect("it starts");
    until("the topic is ended", || {
        let connections = exchange.connections();
        let topic = connections.first().and_then(|first| first.topics.get("books:BTC-USDT"));
        topic.is_some_and(|topic| !topic.is_active)
            && handle.subscription("books:BTC-USDT").is_none()
    });
    assert!(session.stop(SOON).is_clean());
}

/// The seeds of the random tests. `EXCHANGE_SEEDS=100` tries so many.
pub(crate) fn seeds() -> std::ops::Range<u64> {
    0..std::env::var("EXCHANGE_SEEDS").map_or(3, |count| count.parse().expect("a number"))
}

#[test]
fn binance_has_what_is_wanted_after_random_wishes_and_faults() {
    for seed in seeds() {
        println!("seed {seed}");
        let exchange = lenient(Exchange::binance());
        let session = fast(binance::client(&exchange.url())).session(binance::Streams);
        wander(&exchange, session, |number| format!("coin{number}usdt@bookTicker"), seed);
    }
}

#[test]
fn okx_has_what_is_wanted_after_random_wishes_and_faults() {
    for seed in seeds() {
        println!("seed {seed}");
        let exchange = lenient(Exchange::okx());
        let session = fast(okx::client(&exchange.url())).session(okx::Okx::public());
        wander(&exchange, session, |number| format!("books:COIN{number}-USDT"), seed);
    }
}

/// Places orders from several threads while the exchange misbehaves. Returns what each is said to
/// have become. An order that was not sent is placed again under the same id.
pub(crate) fn trade(
    exchange: &Exchange,
    handle: &SessionHandle,
    place: impl Fn(&str) -> Fate + Sync,
) -> BTreeMap<String, Fate> {
    let fates = Mutex::new(BTreeMap::new());
    let (fates_ref, place) = (&fates, &place);
    std::thread::scope(|scope| {
        for trader in 0..TRADERS {
            scope.spawn(move || {
                for number in 0..ORDERS {
                    let id = format!("trader{trader}order{number}");
                    let fate = loop {
                        match place(&id) {
                            Fate::NotSent => {
                                let orders = exchange.orders();
                                let known = orders.iter().find(|o| o.client_order_id == id);
                                assert_eq!(known, None, "it was sent");
                                handle.wait_ready(SOON).expect("the connection comes back");
                            }
                            fate => break fate,
                        }
                    };
                    fates_ref.lock().expect("no trader panics").insert(id, fate);
                }
            });
        }
        let faults = [
            Misbehavior::Disconnect,
            Misbehavior::LoseReplies(3),
            Misbehavior::Disconnect,
            Misbehavior::FallSilent,
            Misbehavior::DelayReplies(2 * MS),
            Misbehavior::Close(1012),
            Misbehavior::AnnounceShutdown,
            Misbehavior::Disconnect,
        ];
        for (number, fault) in faults.into_iter().enumerate() {
            let count = (number + 1) * 10;
            let is_traded =
                exchange.wait_until(SOON, |_| fates_ref.lock().expect("a map").len() >= count);
            assert!(is_traded, "{count} orders");
            exchange.misbehave(fault);
        }
    });
    fates.into_inner().expect("no trader panicked")
}

/// Compares the ledger with what the bot was told.
pub(crate) fn agree(exchange: &Exchange, fates: &BTreeMap<String, Fate>) {
    let orders: HashMap<String, _> =
        exchange.orders().into_iter().map(|order| (order.client_order_id.clone(), order)).collect();
    for (id, fate) in fates {
        let order = orders.get(id);
        assert!(order.is_none_or(|order| order.attempts == 1), "{id} was placed twice");
        match fate {
            Fate::Accepted => {
                assert_eq!(order.map(|order| order.status), Some(OrderStatus::Filled), "{id}");
            }
            Fate::Unknown => {}
            other => panic!("{id}: {other:?}"),
        }
    }
    assert!(orders.keys().all(|id| fates.contains_key(id)), "the exchange has others");
    let violations = exchange.violations();
    assert!(violations.is_empty(), "{violations:?}");
    assert!(fates.values().any(|fate| *fate == Fate::Unknown), "nothing was lost");
}

#[test]
fn the_ledger_of_binance_has_the_orders_that_the_bot_knows_of() {
    let exchange = lenient(Exchange::binance());
    let session = fast(binance::client(&exchange.private_url()))
        .session(binance_api())
        .connect()
        .expect("ready");
    let (handle, within) = (session.handle(), 300 * MS);
    let fates = trade(&exchange, handle, |id| {
        let order = binance::MarketOrder { symbol: "BTCUSDT", side: "BUY", quantity: "1", id };
        binance::fate(handle.call(order.place().within(within)))
    });
    agree(&exchange, &fates);
    // What is in doubt can be asked.
    let is_one_open = |exchange: &Exchange| {
        exchange.connections().iter().filter(|connection| connection.is_open).count() == 1
    };
    assert!(exchange.wait_until(SOON, is_one_open));
    exchange.misbehave(Misbehavior::DelayReplies(Duration::ZERO));
    for id in fates.iter().filter(|(_, fate)| **fate == Fate::Unknown).map(|(id, _)| id) {
        handle.wait_ready(SOON).expect("it is open");
        let is_placed = match binance::fate(handle.call(binance::order_status("BTCUSDT", id))) {
            Fate::Accepted => true,
            Fate::Refused(reason) => {
                assert_eq!(reason, "Order does not exist.");
                false
            }
            other => panic!("{id}: {other:?}"),
        };
        let is_known = exchange.orders().iter().any(|order| order.client_order_id == *id);
        assert_eq!(is_placed, is_known, "{id}");
    }
    assert!(session.stop(SOON).is_clean());
}

#[test]
fn the_ledger_of_okx_has_the_orders_that_the_bot_knows_of() {
    let exchange = lenient(Exchange::okx());
    let login = okx::Okx::private(okx_login());
    let session =
        fast(okx::client(&exchange.private_url())).session(login).connect().expect("ready");
    let (handle, within) = (session.handle(), 300 * MS);
    handle.subscribe(["orders:ANY"]).expect("there is no limit");
    assert_eq!(handle.wait_subscribed(SOON).expect("it is answered").active, 1);
    let fates = trade(&exchange, handle, |id| {
        let order = okx::MarketOrder { instrument: "BTC-USDT", side: "buy", size: "1", id };
        okx::fate(handle.call(order.place().within(within)))
    });
    agree(&exchange, &fates);
    assert!(session.stop(SOON).is_clean());
}

#[test]
fn a_muted_topic_is_noticed_and_a_new_subscription_mends_it() {
    let exchange = lenient(Exchange::binance());
    let session = fast(binance::client(&exchange.url())).session(binance::Streams);
    mends_a_muted_topic(&exchange, session, "btcusdt@trade");
}

#[test]
fn clients_with_the_limits_of_the_protocols_violate_no_limit() {
    let exchange = Exchange::binance().start();
    let connects = binance::connect_limit();
    let client = binance::client(&exchange.url()).retry_delay_max(5 * MS);
    let client = client.connect_limit(connects).send_limit(binance::message_limit());
    let session = client.session(binance::Streams).batch(20, 16 << 10).start().expect("it starts");
    let handle = session.handle();
    handle.subscribe((0..100).map(|n| format!("coin{n}@trade"))).expect("there is no limit");
    for epoch in 1..=2 {
        let is_whole = |exchange: &Exchange| {
            let connections = exchange.connections();
            connections.len() == epoch && connections[epoch - 1].subscriptions().len() == 100
        };
        assert!(exchange.wait_until(SOON, is_whole), "{:?}", exchange.violations());
        exchange.misbehave(Misbehavior::Disconnect);
    }

    let okx = Exchange::okx().start();
    let connects = okx::connect_limit();
    let client = okx::client(&okx.url()).connect_limit(connects);
    let clients: Vec<_> = (0..5).map(|_| client.clone().connect()).collect();
    assert!(clients.iter().all(Result::is_ok));
    for exchange in [exchange, okx] {
        let violations = exchange.violations();
        assert!(violations.is_empty(), "{violations:?}");
    }
}

// ---- The rules that the exchanges enforce ----

/// Returns the kinds of the violations, once there are some.
pub(crate) fn violations(exchange: &Exchange) -> Vec<ViolationKind> {
    assert!(exchange.wait_until(SOON, |exchange| !exchange.violations().is_empty()));
    exchange.violations().iter().map(|violation| violation.kind).collect()
}

/// Sends these texts, and returns the code that the exchange closes with.
pub(crate) fn close_code(exchange: &Exchange, texts: &[String]) -> u16 {
    let client = Client::builder(exchange.url()).max_attempts(1).connect().expect("it opens");
    for text in texts {
        // The connection may have been closed before the last one.
        let _ = client.sender().send_text(text);
    }
    disconnected_after_opening(&mut client.events())
}

fn subscribe_text(topics: impl Iterator<Item = String>) -> String {
    serde_json::json!({"method": "SUBSCRIBE", "params": topics.collect::<Vec<_>>(), "id": 1})
        .to_string()
}

#[test]
fn binance_closes_a_burst_with_1008() {
    let exchange = Exchange::binance().start();
    let texts: Vec<String> =
        (0..6).map(|n| subscribe_text([format!("coin{n}@trade")].into_iter())).collect();
    assert_eq!(close_code(&exchange, &texts), 1008);
    assert_eq!(violations(&exchange), [ViolationKind::TooManyMessages]);
    assert_eq!(exchange.connections()[0].messages, 6);
}

#[test]
fn binance_closes_a_connection_with_more_than_1024_topics() {
    let exchange = Exchange::binance().start();
    let topics = |range: std::ops::Range<usize>| range.map(|n| format!("coin{n}@trade"));
    let texts = [subscribe_text(topics(0..1024)), subscribe_text(topics(1024..1025))];
    assert_eq!(close_code(&exchange, &texts), 1008);
    assert_eq!(violations(&exchange), [ViolationKind::TooManyTopics]);
}

#[test]
fn binance_closes_a_connection_whose_client_sends_no_pong() {
    let exchange = Exchange::binance().time_scale(1000).start();
    let address = exchange.url().replace("ws://", "").replace("/stream", "");
    let mut socket = TcpStream::connect(&address).expect("it listens");
    let request = "GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(request.as_bytes()).expect("it reads");
    let mut all = Vec::new();
    socket.read_to_end(&mut all).expect("it ends");
    assert_eq!(violations(&exchange), [ViolationKind::NoPong]);
    assert_eq!(exchange.connections()[0].closed.as_ref().map(|(code, _)| *code), Some(1008));
}

#[test]
fn binance_takes_orders_after_the_login_alone_and_each_once() {
    let exchange = lenient(Exchange::binance());
    let client = Client::builder(exchange.private_url()).connect().expect("it opens");
    let order = r#"{"id":7,"method":"order.place","params":{"symbol":"A","newClientOrderId":"x"}}"#;
    client.sender().send_text(order).expect("it is open");
    assert_eq!(violations(&exchange), [ViolationKind::NotLoggedIn]);
    assert!(exchange.orders().is_empty());
    drop(client);

    let session = fast(binance::client(&exchange.private_url()))
        .session(binance_api())
        .connect()
        .expect("ready");
    let place = || {
        let order = binance::MarketOrder { symbol: "A", side: "BUY", quantity: "1", id: "x" };
        binance::fate(session.handle().call(order.place()))
    };
    assert_eq!(place(), Fate::Accepted);
    assert_eq!(place(), Fate::Refused("Duplicate order sent.".into()));
    assert_eq!(exchange.orders()[0].attempts, 2);
    assert_eq!(exchange.violations()[1].kind, ViolationKind::DuplicateOrder);
}

#[test]
fn okx_closes_a_silent_connection_with_4004_unless_it_is_pinged() {
    let exchange = Exchange::okx().time_scale(100).start();
    let silent = Client::builder(exchange.url()).start().expect("it starts");
    assert_eq!(disconnected_after_opening(&mut silent.events()), 4004);
    drop(silent);
    assert_eq!(violations(&exchange), [ViolationKind::Silent]);

    // Ten times the silence, with pings that are answered.
    let connections = exchange.connections().len();
    let pinging = Client::builder(exchange.url()).app_ping(okx::ping(100 * MS)).connect();
    let pinging = pinging.expect("it opens");
    let has_pinged = |exchange: &Exchange| exchange.connections()[connections].messages >= 30;
    assert!(exchange.wait_until(SOON, has_pinged));
    assert_eq!(exchange.violations().len(), 1);
    assert!(pinging.stop(SOON).is_clean());
}

pub(crate) fn disconnected_after_opening(events: &mut Events) -> u16 {
    assert!(matches!(events.next_timeout(SOON), Ok(Event::Opened(_))));
    disconnected(events).close.code
}

#[test]
fn okx_takes_private_subscriptions_after_the_login_alone() {
    let exchange = lenient(Exchange::okx());
    // Without the login of the protocol.
    let session = fast(okx::client(&exchange.private_url())).session(okx::Okx::public());
    let session = session.start().expect("it starts");
    session.handle().subscribe(["orders:ANY"]).expect("there is no limit");
    let subscribed = session.handle().wait_subscribed(SOON).expect("it is answered");
    assert_eq!((subscribed.active, subscribed.rejected), (0, 1));
    match session.handle().subscription("orders:ANY") {
        Some(SubscriptionState::Rejected(rejection)) => {
            assert_eq!(rejection.reason(), "Please log in");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(violations(&exchange), [ViolationKind::NotLoggedIn]);
}

#[test]
fn a_rejected_login_ends_the_client_and_names_the_step() {
    let exchange = lenient(Exchange::okx());
    exchange.misbehave(Misbehavior::RejectLogins(1));
    let login = || okx::Okx::private(okx_login());
    let error = fast(okx::client(&exchange.private_url())).session(login()).connect();
    let error = error.expect_err("it is rejected");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Opening, Some("login")));
    assert!(!error.is_retryable());
    let session = fast(okx::client(&exchange.private_url())).session(login()).connect();
    assert!(session.is_ok(), "the next login is taken");

    let exchange = lenient(Exchange::binance());
    exchange.misbehave(Misbehavior::RejectLogins(1));
    let session = fast(binance::client(&exchange.private_url())).session(binance_api()).connect();
    assert_eq!(session.expect_err("it is rejected").step(), Some("logon"));
}

#[test]
fn okx_refuses_the_fourth_connection_of_a_second_and_messages_beyond_64_kib() {
    let exchange = Exchange::okx().start();
    let long = "x".repeat((64 << 10) + 1);
    assert_eq!(close_code(&exchange, &[long]), 1009);
    assert_eq!(violations(&exchange), [ViolationKind::TooLarge]);
    let clients: Vec<_> = (0..3).map(|_| Client::builder(exchange.url()).connect()).collect();
    let error = clients.into_iter().find_map(Result::err).expect("one is refused");
    assert_eq!(error.status().map(|status| status.as_u16()), Some(429));
    assert_eq!(exchange.violations()[1].kind, ViolationKind::TooManyConnects);
}

#[test]
fn okx_refuses_the_481st_request_of_an_hour_for_now() {
    let exchange = lenient(Exchange::okx());
    let client = Client::builder(exchange.url()).connect().expect("it opens");
    for _ in 0..481 {
        let text = r#"{"op":"unsubscribe","args":[{"channel":"books","instId":"A-B"}]}"#;
        client.sender().send_text(text).expect("it is open");
    }
    assert_eq!(violations(&exchange), [ViolationKind::TooManyRequests]);
    assert_eq!(exchange.connections()[0].messages, 481);
}

// ---- The protocols alone ----

#[test]
fn the_protocols_know_each_kind_of_message() {
    let streams = |text| format!("{:?}", classify(&binance::Streams, text));
    assert_eq!(streams(r#"{"stream":"a@trade","data":{"e":"trade","id":5}}"#), "Data");
    assert_eq!(streams(r#"{"result":null,"id":1001}"#), "Reply(1001)");
    assert_eq!(streams(r#"{"code":2,"msg":"no","id":1001}"#), "Reply(1001)");
    assert_eq!(streams(r#"{"error":{"code":2,"msg":"no"},"id":1001}"#), "Reply(1001)");
    assert_eq!(streams(r#"{"code":3,"msg":"Invalid JSON"}"#), "Failure");
    assert_eq!(streams(r#"{"e":"serverShutdown","E":1770123456789}"#), "GoingAway(None)");
    assert_eq!(streams("no JSON"), "Data");

    let api = binance_api();
    let calls = |text| format!("{:?}", classify(&api, text));
    assert_eq!(calls(r#"{"id":1002,"status":200,"result":{}}"#), "Reply(1002)");
    assert_eq!(calls(r#"{"subscriptionId":0,"event":{"e":"executionReport"}}"#), "Data");
    assert_eq!(calls(r#"{"id":null,"status":400,"error":{"code":-1,"msg":""}}"#), "Failure");

    let okx = okx::Okx::public();
    let okx = |text| classify(&okx, text);
    let shown = |text| format!("{:?}", okx(text));
    assert_eq!(shown(r#"{"arg":{"channel":"books","instId":"A-B"},"data":[]}"#), "Data");
    assert_eq!(shown("pong"), "Ignored");
    assert_eq!(shown(r#"{"event":"error","id":"1003","code":"60018","msg":""}"#), "Reply(1003)");
    assert_eq!(shown(r#"{"event":"error","code":"60012","msg":""}"#), "Failure");
    assert_eq!(shown(r#"{"event":"notice","code":"64008","msg":""}"#), "GoingAway(Some(60s))");
    assert_eq!(shown(r#"{"id":"1004","op":"order","data":[],"code":"0"}"#), "Reply(1004)");
    match okx(r#"{"event":"subscribe","arg":{"channel":"books","instId":"A-B"},"connId":"1"}"#) {
        Class::Subscription { topic, .. } => assert_eq!(topic, "books:A-B"),
        other => panic!("{other:?}"),
    }
}
