//! The protocol of Deribit against the simulated exchange, and the rules that it enforces.

#[path = "../../examples/protocols/deribit.rs"]
mod deribit;

use std::time::Duration;

use serde_json::{Value, json};
use tautline::session::{Class, Request, SessionHandle, SubscriptionState};
use tautline::testing::classify;
use tautline::testing::exchange::{Exchange, Misbehavior, OrderStatus, ViolationKind};
use tautline::{Client, ErrorKind};

use crate::exchanges::reply::{self, Fate};
use crate::exchanges::{
    agree, close_code, disconnected_after_opening, fast, lenient, mends_a_muted_topic, ordeal,
    seeds, trade, violations, wander,
};
use crate::support::{MS, SOON, message, opened, until};

/// Returns the topic and the number of a data message, if it is one of Deribit's.
pub(crate) fn numbered(data: &Value) -> Option<(String, u64)> {
    let params = &data["params"];
    let topic = params["channel"].as_str()?.to_owned();
    if topic == "platform_state" {
        return None;
    }
    let number = params["data"]["change_id"].as_u64().expect("a number");
    let previous = params["data"]["prev_change_id"].as_u64();
    assert!(previous.is_none_or(|previous| previous + 1 == number), "{data}");
    Some((topic, number))
}

fn private() -> deribit::Deribit {
    let sign = |payload: &str| format!("signed {}", payload.len());
    deribit::Deribit::private(deribit::Login::new("client", sign))
}

fn topic(number: usize) -> String {
    format!("book.COIN{number}-PERPETUAL.100ms")
}

#[test]
fn books_come_through_everything_that_the_exchange_does() {
    let exchange = lenient(Exchange::deribit().tls());
    // Without the limit of the requests, which has a test of its own.
    let session = fast(Client::builder(exchange.url()));
    ordeal(&exchange, session.session(private()), topic);
}

#[test]
fn the_exchange_has_what_is_wanted_after_random_wishes_and_faults() {
    for seed in seeds() {
        println!("seed {seed}");
        let exchange = lenient(Exchange::deribit());
        let session = fast(Client::builder(exchange.url())).session(deribit::Deribit::public());
        wander(&exchange, session, topic, seed);
    }
}

fn buy(handle: &SessionHandle, id: &str, within: Duration) -> Fate {
    let order = deribit::MarketOrder { instrument: "BTC-PERPETUAL", side: "buy", amount: 10.0, id };
    deribit::fate(handle.call(order.place().within(within)))
}

#[test]
fn the_ledger_has_the_orders_that_the_bot_knows_of() {
    let exchange = lenient(Exchange::deribit());
    let session = fast(Client::builder(exchange.private_url())).session(private());
    let session = session.connect().expect("ready");
    let handle = session.handle();
    handle.subscribe(["user.orders.any.any.raw"]).expect("there is no limit");
    assert_eq!(handle.wait_subscribed(SOON).expect("it is answered").active, 1);
    let fates = trade(&exchange, handle, |id| buy(handle, id, 300 * MS));
    agree(&exchange, &fates);
    // What is in doubt can be asked.
    exchange.misbehave(Misbehavior::DelayReplies(Duration::ZERO));
    for (id, _) in fates.iter().filter(|(_, fate)| **fate == Fate::Unknown) {
        let state = loop {
            handle.wait_ready(SOON).expect("it comes back");
            match deribit::fate(handle.call(deribit::order_status("BTC", id))) {
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
fn test_requests_have_to_be_answered_and_the_protocol_does() {
    // 10 seconds are 400 ms.
    let exchange = Exchange::deribit().time_scale(25).start();
    let heartbeat = json!({
        "jsonrpc": "2.0", "id": 1, "method": "public/set_heartbeat", "params": {"interval": 10},
    });
    let silent = Client::builder(exchange.url()).max_attempts(1).connect().expect("it opens");
    silent.sender().send_text(&heartbeat.to_string()).expect("it is open");
    assert_eq!(disconnected_after_opening(&mut silent.events()), 4000);
    assert_eq!(violations(&exchange), [ViolationKind::NoPong]);

    let session = deribit::client(&exchange.url()).session(deribit::Deribit::public());
    let session = session.connect().expect("ready");
    // Two steps of the script, and four answers.
    assert!(exchange.wait_until(SOON, |exchange| exchange.connections()[1].messages >= 6));
    assert_eq!(exchange.violations().len(), 1);
    assert!(exchange.connections()[1].is_open);
    assert!(session.stop(SOON).is_clean());
}

#[test]
fn a_heartbeat_below_ten_seconds_is_refused() {
    let exchange = Exchange::deribit().start();
    let answer = answer_of(&exchange, "public/set_heartbeat", json!({"interval": 9}));
    assert_eq!(answer["error"]["code"], -32602);
    assert_eq!(violations(&exchange), [ViolationKind::Malformed]);
}

/// Sends a request by a connection of its own, and returns the answer.
fn answer_of(exchange: &Exchange, method: &str, params: Value) -> Value {
    let client = Client::builder(exchange.url()).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
    client.sender().send_text(&request.to_string()).expect("it is open");
    let answer = message(&mut events);
    let answer: Value = serde_json::from_slice(answer.bytes()).expect("it is JSON");
    assert_eq!(answer["id"], 7);
    answer
}

#[test]
fn the_eleventh_subscription_request_of_three_seconds_is_refused() {
    let exchange = Exchange::deribit().start();
    let client = Client::builder(exchange.url()).connect().expect("it opens");
    for id in 1..=11 {
        let params = json!({"channels": [topic(id)]});
        let request =
            json!({"jsonrpc": "2.0", "id": id, "method": "public/subscribe", "params": params});
        client.sender().send_text(&request.to_string()).expect("it is open");
    }
    assert_eq!(violations(&exchange), [ViolationKind::TooManyRequests]);
    assert_eq!(exchange.subscriptions(0).len(), 10);
    let mut events = client.events();
    opened(&mut events);
    let refusal = loop {
        let message = message(&mut events);
        let message: Value = serde_json::from_slice(message.bytes()).expect("it is JSON");
        if message["id"] == 11 {
            break message;
        }
    };
    assert_eq!(refusal["error"]["code"], 10028);
}

#[test]
fn a_client_with_the_limit_of_the_protocol_is_refused_nothing() {
    let exchange = Exchange::deribit().start();
    let session = deribit::client(&exchange.url()).session(deribit::Deribit::public());
    let session = session.start().expect("it starts");
    session.handle().subscribe((0..15).map(topic)).expect("there is no limit");
    let subscribed = session.handle().wait_subscribed(SOON).expect("all are answered");
    assert_eq!((subscribed.active, subscribed.rejected), (15, 0));
    assert!(exchange.violations().is_empty(), "{:?}", exchange.violations());
}

#[test]
fn an_acknowledgment_lists_what_is_accepted_and_the_rest_is_rejected() {
    let exchange = Exchange::deribit().start();
    let session = Client::builder(exchange.url()).session(deribit::Deribit::public());
    let session = session.batch(10, 1000).start().expect("it starts");
    let handle = session.handle();
    // Private channels want a private subscription.
    let unknown = ["book.BTC-PERPETUAL.1h", "no channel", "user.orders.any.any.raw"];
    handle.subscribe(unknown).expect("there is no limit");
    handle.subscribe([topic(1), topic(2)]).expect("there is no limit");
    let subscribed = handle.wait_subscribed(SOON).expect("all are answered");
    assert_eq!((subscribed.active, subscribed.rejected), (2, 3));
    assert_eq!(exchange.subscriptions(0), [topic(1), topic(2)]);
    // Nothing had to be asked for twice.
    assert!(exchange.connections()[0].topics.values().all(|topic| topic.requests == 1));
    assert!(exchange.violations().is_empty(), "{:?}", exchange.violations());
}

#[test]
fn private_methods_need_the_login() {
    let exchange = Exchange::deribit().start();
    let params = json!({"instrument_name": "BTC-PERPETUAL", "amount": 1, "label": "x"});
    for (method, params) in [
        ("private/buy", params),
        ("private/subscribe", json!({"channels": ["user.orders.any.any.raw"]})),
        ("private/enable_cancel_on_disconnect", json!({})),
    ] {
        assert_eq!(answer_of(&exchange, method, params)["error"]["code"], 13009);
    }
    assert!(exchange.orders().is_empty());
    assert_eq!(violations(&exchange), [ViolationKind::NotLoggedIn; 3]);
    let incomplete = json!({"grant_type": "client_signature", "client_id": "x"});
    assert_eq!(answer_of(&exchange, "public/auth", incomplete)["error"]["code"], -32602);
    assert_eq!(violations(&exchange).last(), Some(&ViolationKind::Malformed));
}

#[test]
fn a_rejected_login_ends_the_client_and_names_the_step() {
    let exchange = lenient(Exchange::deribit());
    exchange.misbehave(Misbehavior::RejectLogins(1));
    let error = fast(deribit::client(&exchange.url())).session(private()).connect();
    let error = error.expect_err("it is rejected");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Opening, Some("auth")));
    assert!(!error.is_retryable());
    assert!(fast(deribit::client(&exchange.url())).session(private()).connect().is_ok());
}

/// Returns the call that places an order that rests.
fn limit_order(
    id: &str,
) -> Request<impl FnOnce(&tautline::session::CallContext<'_>) -> tautline::session::Outgoing> {
    let params = json!({
        "instrument_name": "BTC-PERPETUAL", "amount": 10, "type": "limit", "price": 1, "label": id,
    });
    Request::new(move |context| {
        let request = json!({
            "jsonrpc": "2.0", "id": context.id(), "method": "private/buy", "params": params,
        });
        request.to_string().into()
    })
}

#[test]
fn what_rests_is_canceled_when_its_connection_ends_if_the_client_asked_for_that() {
    let exchange = lenient(Exchange::deribit());
    let session = || fast(deribit::client(&exchange.url())).session(private()).connect();
    let (first, second) = (session().expect("ready"), session().expect("ready"));
    for (session, id) in [(&first, "a"), (&second, "b")] {
        let fate = deribit::fate(session.handle().call(limit_order(id)));
        assert_eq!(fate, Fate::Accepted);
    }
    assert_eq!(buy(first.handle(), "c", SOON), Fate::Accepted);
    assert!(first.stop(SOON).is_clean());
    let statuses = |exchange: &Exchange| -> Vec<OrderStatus> {
        exchange.orders().iter().map(|order| order.status).collect()
    };
    let expected = [OrderStatus::Canceled, OrderStatus::Resting, OrderStatus::Filled];
    assert!(exchange.wait_until(SOON, |exchange| statuses(exchange) == expected));
    exchange.misbehave(Misbehavior::Disconnect);
    let expected = [OrderStatus::Canceled, OrderStatus::Canceled, OrderStatus::Filled];
    assert!(exchange.wait_until(SOON, |exchange| statuses(exchange) == expected));
}

#[test]
fn a_label_is_placed_once() {
    let exchange = lenient(Exchange::deribit());
    let session = fast(deribit::client(&exchange.url())).session(private());
    let session = session.connect().expect("ready");
    assert_eq!(buy(session.handle(), "x", SOON), Fate::Accepted);
    assert!(matches!(buy(session.handle(), "x", SOON), Fate::Refused(_)));
    assert_eq!(exchange.orders()[0].attempts, 2);
    assert_eq!(violations(&exchange), [ViolationKind::DuplicateOrder]);
}

#[test]
fn a_muted_channel_is_noticed_and_a_new_subscription_begins_with_a_snapshot() {
    let exchange = lenient(Exchange::deribit());
    let session = fast(deribit::client(&exchange.url())).session(deribit::Deribit::public());
    let snapshot = mends_a_muted_topic(&exchange, session, &topic(1));
    assert!(snapshot.text().is_some_and(|text| text.contains(r#""type":"snapshot""#)));
}

#[test]
fn too_long_a_message_and_a_message_that_is_no_request_are_violations() {
    let exchange = Exchange::deribit().start();
    assert_eq!(close_code(&exchange, &["x".repeat((64 << 10) + 1)]), 1009);
    assert_eq!(answer_of(&exchange, "public/nothing", json!({}))["error"]["code"], -32601);
    assert_eq!(violations(&exchange), [ViolationKind::TooLarge, ViolationKind::Malformed]);
}

#[test]
fn a_refused_request_is_asked_again_when_the_limit_allows_it() {
    let exchange = Exchange::deribit().message_limit(1, 2000 * MS).start();
    let session = Client::builder(exchange.url()).session(deribit::Deribit::public());
    let session = session.start().expect("it starts");
    session.handle().subscribe([topic(1)]).expect("there is no limit");
    // The step for `platform_state` was the one request that is allowed.
    until("the session is told", || {
        matches!(
            session.handle().subscription(&topic(1)),
            Some(SubscriptionState::Rejected(rejection)) if !rejection.is_permanent()
        )
    });
    let is_active = |exchange: &Exchange| exchange.subscriptions(0) == [topic(1)];
    assert!(exchange.wait_until(SOON, is_active));
    assert_eq!(violations(&exchange), [ViolationKind::TooManyRequests]);
}

#[test]
fn the_protocol_knows_each_kind_of_message() {
    let shown = |text: &str| format!("{:?}", classify(&deribit::Deribit::public(), text));
    let book = r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.A.100ms"}}"#;
    assert_eq!(shown(book), "Data");
    assert_eq!(shown(r#"{"jsonrpc":"2.0","id":1001,"result":["a"]}"#), "Reply(1001)");
    assert_eq!(shown(r#"{"jsonrpc":"2.0","id":1001,"error":{"code":1}}"#), "Reply(1001)");
    assert_eq!(shown(r#"{"jsonrpc":"2.0","id":0,"result":{"version":"1"}}"#), "Ignored");
    assert_eq!(shown(r#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"x"}}"#), "Failure");
    let heartbeat = r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"heartbeat"}}"#;
    assert_eq!(shown(heartbeat), "Ignored");
    let state = |data: &str| {
        let start = r#"{"jsonrpc":"2.0","method":"subscription","params":"#;
        shown(&format!(r#"{start}{{"channel":"platform_state","data":{data}}}}}"#))
    };
    assert_eq!(state(r#"{"maintenance":true}"#), "GoingAway(None)");
    assert_eq!(state(r#"{"locked":true}"#), "Data");
    let test = r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#;
    match classify(&deribit::Deribit::public(), test) {
        Class::Respond(answer) => assert!(answer.contains("public/test"), "{answer}"),
        other => panic!("{other:?}"),
    }
}
