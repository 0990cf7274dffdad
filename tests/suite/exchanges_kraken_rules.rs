//! The rules that the simulated Kraken enforces.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tautline::session::SessionEvent;
use tautline::testing::exchange::{
    Exchange, ExchangeBuilder, Misbehavior, OrderStatus, ViolationKind,
};
use tautline::{Client, Event, Events};

use crate::exchanges::reply::Fate;
use crate::exchanges::{close_code, fast, lenient, violations};
use crate::exchanges_kraken::{buy, kraken, private, rest};
use crate::support::{MS, SOON, message, opened};

/// Reads messages until `wanted`, which gets each as JSON.
fn read_until(events: &mut Events, mut wanted: impl FnMut(&Value) -> bool) {
    let deadline = Instant::now() + SOON;
    loop {
        let message = message(events);
        if wanted(&serde_json::from_slice(message.bytes()).expect("it is JSON")) {
            return;
        }
        assert!(Instant::now() < deadline, "it does not come");
    }
}

/// Sends a request by a connection of its own, and returns the first answers.
fn answers_of(exchange: &Exchange, request: &Value, count: usize) -> Vec<Value> {
    let client = Client::builder(exchange.url()).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    client.sender().send_text(&request.to_string()).expect("it is open");
    let mut answers = Vec::new();
    read_until(&mut events, |message| {
        if !message["method"].is_null() {
            answers.push(message.clone());
        }
        answers.len() == count
    });
    answers
}

#[test]
fn a_connection_begins_with_the_status_and_a_quiet_one_has_heartbeats() {
    // A second is 50 ms.
    let exchange = Exchange::kraken().time_scale(20).start();
    let started_at = Instant::now();
    let client = Client::builder(exchange.url()).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let status = message(&mut events);
    let status: Value = serde_json::from_slice(status.bytes()).expect("it is JSON");
    assert_eq!(status["channel"], "status");
    assert_eq!(status["data"][0]["system"], "online");
    for _ in 0..3 {
        assert_eq!(message(&mut events).text(), Some(r#"{"channel":"heartbeat"}"#));
    }
    assert!(started_at.elapsed() >= 150 * MS, "they come too often");
    assert!(exchange.violations().is_empty());
}

#[test]
fn a_busy_connection_has_no_heartbeats() {
    let exchange = Exchange::kraken().tick(10 * MS).start();
    let client = Client::builder(exchange.url()).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let params = json!({"channel": "trade", "symbol": ["BTC/USD"]});
    let request = json!({"method": "subscribe", "params": params, "req_id": 1});
    client.sender().send_text(&request.to_string()).expect("it is open");
    let mut heartbeats = 0;
    // Longer than a second.
    read_until(&mut events, |message| {
        heartbeats += usize::from(message["channel"] == "heartbeat");
        message["data"][0]["trade_id"] == 150
    });
    assert_eq!(heartbeats, 0);
}

#[test]
fn each_symbol_is_answered_by_itself_with_the_id_of_the_request() {
    let exchange = Exchange::kraken().start();
    let symbols = ["BTC/USD", "nothing", "ETH/USD"];
    let params = json!({"channel": "book", "symbol": symbols});
    let request = json!({"method": "subscribe", "params": params, "req_id": 7});
    let answers = answers_of(&exchange, &request, 3);
    for (answer, symbol) in answers.iter().zip(symbols) {
        assert_eq!(answer["req_id"], 7);
        assert_eq!(answer["success"], symbol != "nothing");
        let named =
            if symbol == "nothing" { &answer["symbol"] } else { &answer["result"]["symbol"] };
        assert_eq!(*named, symbol);
    }
    assert_eq!(exchange.subscriptions(0), ["book/BTC/USD", "book/ETH/USD"]);
}

#[test]
fn whatever_concerns_orders_needs_a_token() {
    let exchange = Exchange::kraken().start();
    for (method, params) in [
        ("subscribe", json!({"channel": "executions"})),
        ("add_order", json!({"order_type": "market", "symbol": "A/USD", "cl_ord_id": "x"})),
        ("cancel_order", json!({"cl_ord_id": ["x"]})),
        ("query_orders", json!({"cl_ord_id": "x"})),
        ("cancel_all_orders_after", json!({"timeout": 60})),
    ] {
        let request = json!({"method": method, "params": params, "req_id": 7});
        let answer = &answers_of(&exchange, &request, 1)[0];
        assert_eq!(answer["error"], "ESession:Invalid session", "{method}");
        assert_eq!(answer["success"], false);
    }
    assert!(exchange.orders().is_empty());
    assert_eq!(violations(&exchange), [ViolationKind::NotLoggedIn; 5]);
}

#[test]
fn an_order_id_is_placed_once_and_an_order_is_canceled_once() {
    let exchange = lenient(Exchange::kraken());
    let session = private(&exchange).connect().expect("ready");
    let (handle, mut events) = (session.handle(), session.events());
    handle.subscribe(["executions"]).expect("there is no limit");
    handle.wait_subscribed(SOON).expect("it is answered");
    assert_eq!(rest(handle, "x"), Fate::Accepted);
    assert!(matches!(rest(handle, "x"), Fate::Refused(_)));
    let cancel = || {
        let params = json!({"cl_ord_id": ["x"]});
        kraken::fate(handle.call(kraken::call("cancel_order", params)))
    };
    assert!(matches!([cancel(), cancel()], [Fate::Accepted, Fate::Refused(_)]));
    assert_eq!(exchange.orders()[0].status, OrderStatus::Canceled);
    assert_eq!(violations(&exchange), [ViolationKind::DuplicateOrder]);
    let mut reports = Vec::new();
    while reports.len() < 2 {
        if let Event::Message(message) = events.next_timeout(SOON).expect("an event comes") {
            let report: Value = serde_json::from_slice(message.bytes()).expect("it is JSON");
            reports.push(report["data"][0]["order_status"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(reports, [Some("new".to_owned()), Some("canceled".to_owned())]);
}

/// An exchange at which a minute is a second.
fn hurried() -> ExchangeBuilder {
    Exchange::kraken().time_scale(60).connect_limit(usize::MAX, Duration::ZERO)
}

#[test]
fn orders_rest_while_signs_of_life_come_and_are_canceled_a_minute_after_the_last() {
    let exchange = hurried().start();
    let client = fast(Client::builder_from_fn({
        let url = exchange.url();
        move |_| Ok(tautline::Endpoint::new(&url).carry("token", "t"))
    }));
    let session = client
        .app_ping(kraken::cancel_all_after(60, 100 * MS, || "t".to_owned()))
        .session(kraken::Kraken)
        .connect()
        .expect("ready");
    assert_eq!(rest(session.handle(), "x"), Fate::Accepted);
    assert_eq!(buy(session.handle(), "y", SOON), Fate::Accepted);
    // Several minutes of the exchange's.
    assert!(exchange.wait_until(SOON, |exchange| exchange.connections()[0].messages > 25));
    assert_eq!(exchange.orders()[0].status, OrderStatus::Resting);

    // Nobody is connected when they are canceled.
    let stopped_at = Instant::now();
    assert!(session.stop(SOON).is_clean());
    let is_canceled = |exchange: &Exchange| exchange.orders()[0].status == OrderStatus::Canceled;
    assert!(exchange.wait_until(SOON, is_canceled));
    assert!(stopped_at.elapsed() < SOON, "the wait was told of it");
    assert_eq!(exchange.orders()[1].status, OrderStatus::Filled);
}

#[test]
fn a_timeout_of_zero_lifts_the_cancelation() {
    let exchange = hurried().start();
    let session = private(&exchange).connect().expect("ready");
    let set = |timeout: u64| {
        let params = json!({"timeout": timeout});
        let request = kraken::call("cancel_all_orders_after", params);
        session.handle().send(request).expect("it is open");
    };
    assert_eq!(rest(session.handle(), "x"), Fate::Accepted);
    set(1);
    let is_canceled = |number: usize| {
        move |exchange: &Exchange| exchange.orders()[number].status == OrderStatus::Canceled
    };
    assert!(exchange.wait_until(SOON, is_canceled(0)));
    assert_eq!(rest(session.handle(), "y"), Fate::Accepted);
    // 200 ms, and none.
    set(12);
    set(0);
    assert!(!exchange.wait_until(400 * MS, is_canceled(1)));
}

#[test]
fn open_connections_are_told_when_the_status_changes() {
    let exchange = lenient(Exchange::kraken());
    let session = fast(kraken::client(&exchange.url())).session(kraken::Kraken);
    let session = session.connect().expect("ready");
    let mut events = session.events();
    exchange.misbehave(Misbehavior::Maintenance(20 * MS));
    loop {
        if let Event::Session(SessionEvent::GoingAway { epoch: 1, .. }) =
            events.next_timeout(SOON).expect("an event comes")
        {
            break;
        }
    }

    let client = Client::builder(exchange.url()).connect().expect("it opens");
    exchange.misbehave(Misbehavior::Maintenance(50 * MS));
    let (mut events, mut told) = (client.events(), Vec::new());
    opened(&mut events);
    read_until(&mut events, |message| {
        told.extend(message["data"][0]["system"].as_str().map(str::to_owned));
        told.ends_with(&["maintenance".to_owned(), "online".to_owned()])
    });
}

#[test]
fn exchanges_without_a_status_refuse_connections_during_maintenance() {
    for exchange in [Exchange::binance(), Exchange::okx(), Exchange::deribit()] {
        let exchange = exchange.start();
        exchange.misbehave(Misbehavior::Maintenance(SOON));
        let error = Client::builder(exchange.url()).max_attempts(1).connect();
        let error = error.expect_err("it is refused");
        assert_eq!(error.status().map(|status| status.as_u16()), Some(503));
    }
}

#[test]
fn the_151st_connection_of_ten_minutes_and_long_messages_are_refused() {
    let exchange = Exchange::kraken().start();
    assert_eq!(close_code(&exchange, &["x".repeat((64 << 10) + 1)]), 1009);
    assert_eq!(violations(&exchange), [ViolationKind::TooLarge]);
    for _ in 0..149 {
        Client::builder(exchange.url()).connect().expect("it opens");
    }
    let error = Client::builder(exchange.url()).max_attempts(1).connect();
    let error = error.expect_err("it is refused");
    assert_eq!(error.status().map(|status| status.as_u16()), Some(429));
    assert_eq!(exchange.violations()[1].kind, ViolationKind::TooManyConnects);
}

#[test]
fn a_request_has_one_channel() {
    let exchange = Exchange::kraken().start();
    let params = json!({"channel": ["book", "ticker"], "symbol": ["A/USD"]});
    let request = json!({"method": "subscribe", "params": params, "req_id": 7});
    assert_eq!(answers_of(&exchange, &request, 1)[0]["success"], false);
    assert_eq!(violations(&exchange), [ViolationKind::Malformed]);
}
