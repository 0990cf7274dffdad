//! The protocol of Kraken against the simulated exchange, through all its misbehavior.

#[path = "../../examples/protocols/kraken.rs"]
pub(crate) mod kraken;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tautline::session::{Class, SessionBuilder, SessionHandle, SubscriptionState, TopicUpdate};
use tautline::testing::classify;
use tautline::testing::exchange::{Exchange, Misbehavior};
use tautline::{Builder, Client, ErrorKind, Event, RetryDecision};

use crate::exchanges::reply::{self, Fate};
use crate::exchanges::{agree, fast, lenient, mends_a_muted_topic, ordeal, seeds, trade, wander};
use crate::support::{MS, SOON, until};

/// Returns the topic and the number of a data message, if it is one of Kraken's.
pub(crate) fn numbered(data: &Value) -> Option<(String, u64)> {
    let entry = &data["data"][0];
    let (channel, symbol) = (data["channel"].as_str()?, entry["symbol"].as_str()?);
    let number = entry["bids"][0]["qty"].as_f64().expect("a number");
    Some((format!("{channel}/{symbol}"), number as u64))
}

fn topic(number: usize) -> String {
    format!("book/COIN{number}/USD")
}

/// A client for orders, whose tokens are numbered.
fn private_client(exchange: &Exchange) -> Builder {
    let count = AtomicUsize::new(0);
    fast(kraken::private_client(&exchange.private_url(), move |_| {
        Ok(format!("token {}", count.fetch_add(1, Ordering::Relaxed)))
    }))
}

pub(crate) fn private(exchange: &Exchange) -> SessionBuilder<kraken::Kraken> {
    private_client(exchange).session(kraken::Kraken)
}

#[test]
fn books_come_through_everything_that_the_exchange_does() {
    let exchange = lenient(Exchange::kraken().tls());
    let session = fast(kraken::client(&exchange.url()));
    let session = session.connect_limit(kraken::connect_limit()).session(kraken::Kraken);
    ordeal(&exchange, session, topic);
}

#[test]
fn the_exchange_has_what_is_wanted_after_random_wishes_and_faults() {
    for seed in seeds() {
        println!("seed {seed}");
        let exchange = lenient(Exchange::kraken());
        let session = fast(kraken::client(&exchange.url())).session(kraken::Kraken);
        wander(&exchange, session, topic, seed);
    }
}

pub(crate) fn buy(handle: &SessionHandle, id: &str, within: Duration) -> Fate {
    let order = kraken::MarketOrder { symbol: "BTC/USD", side: "buy", quantity: 0.5, id };
    kraken::fate(handle.call(order.place().within(within)))
}

/// Places an order that rests.
pub(crate) fn rest(handle: &SessionHandle, id: &str) -> Fate {
    let params = json!({
        "order_type": "limit", "side": "buy", "order_qty": 1, "limit_price": 1, "symbol": "BTC/USD",
        "cl_ord_id": id,
    });
    kraken::fate(handle.call(kraken::call("add_order", params)))
}

#[test]
fn the_ledger_has_the_orders_that_the_bot_knows_of() {
    let exchange = lenient(Exchange::kraken());
    let session = private(&exchange).connect().expect("ready");
    let handle = session.handle();
    handle.subscribe(["executions"]).expect("there is no limit");
    assert_eq!(handle.wait_subscribed(SOON).expect("it is answered").active, 1);
    let fates = trade(&exchange, handle, |id| buy(handle, id, 300 * MS));
    agree(&exchange, &fates);
    // What is in doubt can be asked: here by the query that the simulated exchange alone has.
    exchange.misbehave(Misbehavior::DelayReplies(Duration::ZERO));
    for (id, _) in fates.iter().filter(|(_, fate)| **fate == Fate::Unknown) {
        let state = loop {
            handle.wait_ready(SOON).expect("it comes back");
            let query = kraken::call("query_orders", json!({"cl_ord_id": id}));
            match kraken::fate(handle.call(query)) {
                Fate::NotSent | Fate::Unknown => {}
                state => break state,
            }
        };
        let is_known = exchange.orders().iter().any(|order| order.client_order_id == *id);
        assert_eq!(state == Fate::Accepted, is_known, "{id}");
    }
    assert!(session.stop(SOON).is_clean());
}

#[test]
fn pings_and_signs_of_life_are_answered_and_delivered_to_nobody() {
    let exchange = lenient(Exchange::kraken().time_scale(1000));
    let client = fast(Client::builder_from_fn({
        let url = exchange.url();
        move |_| Ok(tautline::Endpoint::new(&url).carry("token", "t"))
    }));
    let session = client
        .app_ping(kraken::ping(20 * MS))
        .app_ping(kraken::cancel_all_after(60, 20 * MS, || "t".to_owned()))
        .pong_timeout(1000 * MS)
        .session(kraken::Kraken)
        .connect()
        .expect("ready");
    assert!(exchange.wait_until(SOON, |exchange| exchange.connections()[0].messages > 40));
    assert_eq!(exchange.connections().len(), 1, "each was answered");
    let mut events = session.events();
    while let Ok(event) = events.next_timeout(Duration::ZERO) {
        assert!(!matches!(event, Event::Message(_)), "{event:?}");
    }
    assert!(exchange.violations().is_empty(), "{:?}", exchange.violations());
}

#[test]
fn an_unknown_symbol_among_others_is_rejected_alone() {
    let exchange = lenient(Exchange::kraken());
    let session = fast(kraken::client(&exchange.url())).session(kraken::Kraken);
    let session = session.batch(50, 1 << 14).start().expect("it starts");
    let handle = session.handle();
    handle.subscribe(["book/nothing", "book/no/thing/here"]).expect("there is no limit");
    handle.subscribe((0..20).map(topic)).expect("there is no limit");
    let subscribed = handle.wait_subscribed(SOON).expect("all are answered");
    assert_eq!((subscribed.active, subscribed.rejected), (20, 2));
    match handle.subscription("book/nothing") {
        Some(SubscriptionState::Rejected(rejection)) => {
            assert_eq!(rejection.reason(), "Currency pair not supported");
            assert!(rejection.is_permanent());
        }
        other => panic!("{other:?}"),
    }
    // The others were asked for once.
    let connections = exchange.connections();
    let requests = connections[0].topics.iter().map(|(name, topic)| (name, topic.requests));
    let repeated: Vec<_> =
        requests.filter(|(name, count)| name.contains("COIN") && *count != 1).collect();
    assert!(repeated.is_empty(), "{repeated:?}");
}

#[test]
fn topics_of_different_channels_share_no_request() {
    let exchange = lenient(Exchange::kraken());
    let session = fast(kraken::client(&exchange.url())).session(kraken::Kraken);
    let session = session.batch(50, 1 << 14).start().expect("it starts");
    let topics = ["book/A/USD", "ticker/A/USD", "book/B/USD", "trade/A/USD"];
    session.handle().subscribe(topics).expect("there is no limit");
    let subscribed = session.handle().wait_subscribed(SOON).expect("all are answered");
    assert_eq!((subscribed.active, subscribed.rejected), (4, 0));
    assert!(exchange.violations().is_empty());
}

#[test]
fn a_rejected_token_is_no_reason_to_give_up_the_topic() {
    let exchange = lenient(Exchange::kraken());
    exchange.misbehave(Misbehavior::RejectLogins(1));
    let session = private(&exchange).connect().expect("ready");
    let handle = session.handle();
    handle.subscribe(["executions"]).expect("there is no limit");
    until("it is rejected for now", || {
        matches!(
            handle.subscription("executions"),
            Some(SubscriptionState::Rejected(rejection)) if !rejection.is_permanent()
        )
    });
    // The next connection has another token.
    exchange.misbehave(Misbehavior::Disconnect);
    let is_active = |exchange: &Exchange| {
        exchange.connections().len() == 2 && exchange.subscriptions(1) == ["executions"]
    };
    assert!(exchange.wait_until(SOON, is_active));
    assert!(exchange.violations().is_empty());
}

#[test]
fn a_session_that_opens_during_maintenance_is_told_and_waits() {
    let exchange = lenient(Exchange::kraken());
    exchange.misbehave(Misbehavior::Maintenance(SOON));
    let client = fast(kraken::client(&exchange.url())).max_attempts(1);
    let error = client.session(kraken::Kraken).connect().expect_err("it is rejected");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Opening, Some("status")));
    assert!(error.is_retryable());

    let waits = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&waits);
    let client = fast(kraken::client(&exchange.url())).retry_policy(move |_, default| {
        shared.lock().expect("no panic").push(default);
        RetryDecision::RetryAfter(10 * MS)
    });
    let session = client.session(kraken::Kraken).start().expect("it starts");
    until("it is told", || !waits.lock().expect("no panic").is_empty());
    let wait = format!("{:?}", waits.lock().expect("no panic")[0]);
    assert_eq!(wait, "RetryAfter(5s)");
    exchange.misbehave(Misbehavior::Maintenance(Duration::ZERO));
    session.handle().wait_ready(SOON).expect("it is over");
}

#[test]
fn a_muted_topic_is_noticed_and_a_new_subscription_begins_with_a_snapshot() {
    let exchange = lenient(Exchange::kraken());
    let session = fast(kraken::client(&exchange.url())).session(kraken::Kraken);
    let snapshot = mends_a_muted_topic(&exchange, session, &topic(1));
    assert!(snapshot.text().is_some_and(|text| text.contains(r#""type":"snapshot""#)));
}

#[test]
fn the_protocol_knows_each_kind_of_message() {
    let shown = |text: &str| format!("{:?}", classify(&kraken::Kraken, text));
    let status = |system: &str| {
        let start = r#"{"channel":"status","type":"update","data":[{"system":""#;
        shown(&format!(r#"{start}{system}"}}]}}"#))
    };
    assert_eq!(shown(r#"{"channel":"book","type":"update","data":[]}"#), "Data");
    assert_eq!(shown(r#"{"channel":"heartbeat"}"#), "Ignored");
    assert_eq!(status("online"), "Ignored");
    assert_eq!(status("maintenance"), "GoingAway(None)");
    assert_eq!(shown(r#"{"method":"pong","req_id":0}"#), "Ignored");
    let switch = r#"{"method":"cancel_all_orders_after","result":{},"success":true,"req_id":0}"#;
    assert_eq!(shown(switch), "Ignored");
    let switch = r#"{"method":"cancel_all_orders_after","error":"x","success":false,"req_id":0}"#;
    assert_eq!(shown(switch), "Failure");
    let order = r#"{"method":"add_order","result":{},"success":true,"req_id":1001}"#;
    assert_eq!(shown(order), "Reply(1001)");
    let refusal = r#"{"method":"subscribe","error":"x","success":false,"req_id":1002}"#;
    assert_eq!(shown(refusal), "Reply(1002)");
    assert_eq!(shown("no JSON"), "Data");
    let ack =
        r#"{"method":"unsubscribe","result":{"channel":"book","symbol":"A/B"},"success":true}"#;
    match classify(&kraken::Kraken, ack) {
        Class::Subscription { topic, update: TopicUpdate::Unsubscribed, .. } => {
            assert_eq!(topic, "book/A/B");
        }
        other => panic!("{other:?}"),
    }
}
