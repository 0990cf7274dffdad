//! The protocol of HTX of the examples against the simulated exchange, through all its misbehavior;
//! and the rules that it enforces.

#[path = "../../examples/protocols/htx.rs"]
mod htx;

use tautline::session::{Class, Request, SessionEvent, SubscriptionState};
use tautline::testing::classify;
use tautline::testing::exchange::{Exchange, Misbehavior, OrderStatus, ViolationKind};
use tautline::{
    Client, Connection, Decode, ErrorKind, Event, Events, Handler, Message, MessageRef,
};

use self::htx::{Book, Books, Htx, Login, MarketOrder};
use crate::exchanges::reply::{self, Fate};
use crate::exchanges::{
    agree, close_code, fast, lenient, mends_a_muted_topic, ordeal, seeds, trade, violations, wander,
};
use crate::support::{MS, SOON, until};

const BOOK: &str = "market.btcusdt.mbp.150";

fn topic(number: usize) -> String {
    format!("market.coin{number}usdt.mbp.150")
}

fn login() -> Login {
    Login::new("key", |payload| format!("signed {}", payload.len()))
}

fn parsed(message: &Message) -> serde_json::Value {
    serde_json::from_slice(message.bytes()).expect("it is JSON")
}

/// Returns the next message, parsed.
fn reply(events: &mut Events) -> serde_json::Value {
    loop {
        if let Event::Message(message) = events.next_timeout(SOON).expect("a message comes") {
            return parsed(&message);
        }
    }
}

#[test]
fn htx_books_come_through_everything_that_the_exchange_does() {
    let exchange = lenient(Exchange::htx().tls());
    ordeal(&exchange, fast(htx::client(&exchange.url())).session(Htx::market()), topic);
}

#[test]
fn htx_has_what_is_wanted_after_random_wishes_and_faults() {
    for seed in seeds() {
        println!("seed {seed}");
        let exchange = lenient(Exchange::htx());
        let session = fast(htx::client(&exchange.url())).session(Htx::market());
        wander(&exchange, session, topic, seed);
    }
}

#[test]
fn the_ledger_of_htx_has_the_orders_that_the_bot_knows_of() {
    let exchange = lenient(Exchange::htx());
    let session = fast(htx::client(&exchange.private_url())).session(Htx::orders(login()));
    let session = session.connect().expect("ready");
    let (handle, within) = (session.handle(), 300 * MS);
    let fates = trade(&exchange, handle, |id| {
        let order = MarketOrder { symbol: "btcusdt", side: "buy", amount: "1", id };
        htx::fate(handle.call(order.place().within(within)))
    });
    agree(&exchange, &fates);
    assert!(session.stop(SOON).is_clean());
}

#[test]
fn a_muted_topic_of_htx_is_mended_by_a_new_subscription() {
    let exchange = lenient(Exchange::htx());
    let session = fast(htx::client(&exchange.url())).session(Htx::market());
    mends_a_muted_topic(&exchange, session, BOOK);
}

/// Loses one update.
struct Lossy {
    books: Books,
    lost: usize,
}

impl Handler for Lossy {
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        if self.lost == 0 && self.books.book(BOOK).applied == 5 {
            self.lost = 1;
            return;
        }
        self.books.message(connection, message);
    }
}

#[test]
fn a_book_with_a_gap_is_mended_by_a_snapshot_on_the_same_connection() {
    let exchange = lenient(Exchange::htx());
    let session = fast(htx::client(&exchange.url())).session(Htx::market());
    let books = Books::new(session.handle());
    session.handle().subscribe([BOOK]).expect("there is no limit");
    // Updates come before the snapshot, and wait for it.
    exchange.misbehave(Misbehavior::DelayReplies(50 * MS));
    let handler = Lossy { books: books.clone(), lost: 0 };
    let session = session.start_with(handler).expect("it starts");
    for epoch in 1..=3 {
        let is_mended = |book: &Book| {
            book.epoch == epoch
                && book.gaps == usize::from(epoch == 1)
                && book.applied >= 10
                && book.last.is_some()
        };
        until("the book is whole", || is_mended(&books.book(BOOK)));
        let connections = exchange.connections();
        assert_eq!(connections.len() as u64, epoch);
        // One for the subscription. Snapshots are no subscriptions.
        assert_eq!(connections[connections.len() - 1].topics[BOOK].requests, 1);
        exchange.misbehave(Misbehavior::Disconnect);
    }
    assert!(session.stop(SOON).is_clean());
    assert!(exchange.violations().is_empty(), "{:?}", exchange.violations());
}

#[test]
fn a_snapshot_takes_the_updates_behind_it_alone() {
    let mut book = Book::default();
    assert!(book.update(4, 5), "it asks for the snapshot");
    assert!(!book.update(5, 6) && !book.update(6, 7), "once");
    book.snapshot(6);
    assert_eq!((book.last, book.applied, book.gaps), (Some(7), 1, 0));
    assert!(!book.update(7, 9));
    assert!(book.update(10, 11), "one is missing");
    assert_eq!((book.last, book.gaps), (None, 1));
    // This one is older than what is missing.
    book.snapshot(8);
    assert_eq!((book.last, book.gaps), (None, 2));
    assert!(book.update(11, 12), "it asks again");
    book.snapshot(11);
    assert_eq!((book.last, book.applied), (Some(12), 3));
}

#[test]
fn a_client_with_the_limit_of_the_protocol_violates_no_rule_of_htx() {
    let exchange = Exchange::htx().tick(200 * MS).start();
    let client = fast(htx::client(&exchange.url())).send_limit(htx::subscription_limit());
    let session = client.session(Htx::market()).start().expect("it starts");
    session.handle().subscribe((0..100).map(topic)).expect("there is no limit");
    for epoch in 1..=2 {
        let is_whole = |exchange: &Exchange| {
            let connections = exchange.connections();
            connections.len() == epoch && connections[epoch - 1].subscriptions().len() == 100
        };
        assert!(exchange.wait_until(SOON, is_whole), "{:?}", exchange.violations());
        exchange.misbehave(Misbehavior::Disconnect);
    }
    assert!(exchange.violations().is_empty(), "{:?}", exchange.violations());
}

// ---- The rules that the exchange enforces ----

#[test]
fn htx_sends_nothing_but_gzip_in_binary_frames() {
    let exchange = Exchange::htx().tick(MS).time_scale(20).start();
    let client = Client::builder(exchange.url()).connect().expect("it opens");
    for text in [
        format!(r#"{{"sub":"{BOOK}","id":"a"}}"#),
        r#"{"sub":"no","id":"b"}"#.into(),
        format!(r#"{{"req":"{BOOK}","id":"c"}}"#),
    ] {
        client.sender().send_text(&text).expect("it is open");
    }
    exchange.misbehave(Misbehavior::AnnounceShutdown);
    let (mut events, mut count) = (client.events(), 0);
    while let Ok(event) = events.next_timeout(SOON) {
        match event {
            Event::Message(message) => {
                assert_eq!(message.text(), None);
                assert_eq!(message.bytes()[..2], [0x1f, 0x8b]);
                count += 1;
            }
            Event::Disconnected(_) => break,
            _ => {}
        }
    }
    assert!(count > 4, "{count} messages");
}

#[test]
fn htx_closes_after_four_unanswered_pings_with_1003() {
    let exchange = Exchange::htx().time_scale(100).start();
    let client = Client::builder(exchange.url()).decode(Decode::gzip().as_text()).start();
    let client = client.expect("it starts");
    let (mut events, mut pings) = (client.events(), Vec::new());
    let disconnect = loop {
        match events.next_timeout(SOON).expect("an event comes") {
            Event::Message(message) => pings.push(parsed(&message)["ping"].as_u64()),
            Event::Disconnected(disconnect) => break disconnect,
            _ => {}
        }
    };
    assert_eq!(pings.len(), 4);
    assert!(pings.is_sorted_by(|a, b| a < b) && pings[0].is_some(), "{pings:?}");
    assert_eq!(disconnect.close.code, 1003);
    // The client comes back, and does it again.
    assert_eq!(violations(&exchange)[0], ViolationKind::NoPong);
}

#[test]
fn htx_keeps_a_connection_whose_pings_the_protocol_answers() {
    let exchange = Exchange::htx().time_scale(25).start();
    let session = htx::client(&exchange.url()).session(Htx::market()).connect().expect("ready");
    // Twice as many as would close it.
    assert!(exchange.wait_until(SOON, |exchange| exchange.connections()[0].messages >= 8));
    assert!(session.stop(SOON).is_clean());
    assert!(exchange.violations().is_empty(), "{:?}", exchange.violations());
}

#[test]
fn htx_wants_the_number_of_the_ping_in_the_pong() {
    let exchange = Exchange::htx().time_scale(100).start();
    assert_eq!(close_code(&exchange, &[r#"{"pong":7}"#.into()]), 1003);
    assert_eq!(violations(&exchange)[..2], [ViolationKind::Malformed, ViolationKind::NoPong]);
}

#[test]
fn htx_refuses_the_41st_subscribe_of_a_second_for_now() {
    let exchange = Exchange::htx().start();
    let session = htx::client(&exchange.url()).session(Htx::market()).start().expect("it starts");
    let (handle, mut events) = (session.handle(), session.events());
    handle.subscribe((0..41).map(topic)).expect("there is no limit");
    let rejection = loop {
        let event = events.next_timeout(SOON).expect("an event comes");
        let Event::Session(SessionEvent::Subscription { state, .. }) = event else { continue };
        if let SubscriptionState::Rejected(rejection) = state {
            break rejection;
        }
    };
    assert_eq!(rejection.reason(), "too many requests");
    assert!(!rejection.is_permanent());
    assert_eq!(exchange.subscriptions(0).len(), 40);
    assert_eq!(violations(&exchange), [ViolationKind::TooManyRequests]);
    // It is asked for again, and does not ask too early.
    assert!(exchange.wait_until(SOON, |exchange| exchange.subscriptions(0).len() == 41));
    assert_eq!(exchange.violations().len(), 1);
}

#[test]
fn htx_limits_nothing_but_subscribes() {
    let exchange = Exchange::htx().start();
    let session = htx::client(&exchange.url()).session(Htx::market()).connect().expect("ready");
    for _ in 0..41 {
        let reply = session.handle().call(htx::snapshot(topic(0))).expect("it is answered");
        assert!(reply.message.text().expect("it is JSON").contains("seqNum"));
    }
    assert!(exchange.violations().is_empty(), "{:?}", exchange.violations());
}

#[test]
fn htx_answers_each_request_by_its_id() {
    let exchange = lenient(Exchange::htx());
    let client = htx::client(&exchange.url()).connect().expect("it opens");
    let mut events = client.events();
    let mut ask = |text: String| {
        client.sender().send_text(&text).expect("it is open");
        loop {
            let reply = reply(&mut events);
            // Data may come before an answer.
            if reply["ch"].is_null() {
                return reply;
            }
        }
    };
    let subbed = ask(format!(r#"{{"sub":"{BOOK}","id":"a"}}"#));
    assert_eq!((&subbed["id"], &subbed["status"]), (&"a".into(), &"ok".into()));
    assert_eq!(subbed["subbed"], BOOK);

    let snapshot = ask(format!(r#"{{"req":"{BOOK}","id":"b"}}"#));
    assert_eq!((&snapshot["id"], &snapshot["rep"]), (&"b".into(), &BOOK.into()));
    assert!(snapshot["data"]["seqNum"].is_u64(), "{snapshot}");

    for text in [r#"{"sub":"market.btcusdt.no","id":"c"}"#, r#"{"req":"no","id":"c"}"#] {
        let error = ask(text.into());
        assert_eq!((&error["id"], &error["status"]), (&"c".into(), &"error".into()));
        assert_eq!(error["err-code"], "bad-request");
    }
    let unsubbed = ask(format!(r#"{{"unsub":"{BOOK}","id":"d"}}"#));
    assert_eq!((&unsubbed["id"], &unsubbed["unsubbed"]), (&"d".into(), &BOOK.into()));
    assert!(exchange.subscriptions(0).is_empty());
    assert!(exchange.violations().is_empty());

    // One topic in a message.
    let error = ask(format!(r#"{{"sub":["{BOOK}"],"id":"e"}}"#));
    assert_eq!((&error["id"], &error["status"]), (&"e".into(), &"error".into()));
    assert_eq!(violations(&exchange), [ViolationKind::Malformed]);
}

#[test]
fn htx_takes_orders_after_the_login_alone_and_each_once() {
    let exchange = lenient(Exchange::htx());
    // Without the login of the protocol.
    let session = fast(htx::client(&exchange.private_url())).session(Htx::market());
    let session = session.connect().expect("ready");
    let order = MarketOrder { symbol: "btcusdt", side: "buy", amount: "1", id: "x" };
    let refused = |reason: &str| Fate::Refused(reason.into());
    assert_eq!(htx::fate(session.handle().call(order.place())), refused("auth comes first"));
    assert_eq!(violations(&exchange), [ViolationKind::NotLoggedIn]);
    assert!(exchange.orders().is_empty());
    drop(session);

    let session = fast(htx::client(&exchange.private_url())).session(Htx::orders(login()));
    let session = session.connect().expect("ready");
    let place = || htx::fate(session.handle().call(order.place()));
    assert_eq!(place(), Fate::Accepted);
    assert_eq!(place(), refused("duplicate client order id"));
    assert_eq!(exchange.orders()[0].attempts, 2);
    assert_eq!(exchange.violations()[1].kind, ViolationKind::DuplicateOrder);
}

#[test]
fn htx_cancels_an_order_that_rests() {
    let exchange = lenient(Exchange::htx());
    let session = fast(htx::client(&exchange.private_url())).session(Htx::orders(login()));
    let session = session.connect().expect("ready");
    let call = |name: &'static str| {
        let request = Request::new(move |context| {
            let data = r#"{"symbol":"a","type":"buy-limit","client-order-id":"x"}"#;
            format!(r#"{{"req":"{name}","id":"{}","data":{data}}}"#, context.id()).into()
        });
        htx::fate(session.handle().call(request))
    };
    assert_eq!(call("order.place"), Fate::Accepted);
    assert_eq!(exchange.orders()[0].status, OrderStatus::Resting);
    assert_eq!(call("order.cancel"), Fate::Accepted);
    assert_eq!(exchange.orders()[0].status, OrderStatus::Canceled);
    assert_eq!(call("order.cancel"), Fate::Refused("it is not open".into()));
}

#[test]
fn a_rejected_login_to_htx_ends_the_client_and_names_the_step() {
    let exchange = lenient(Exchange::htx());
    exchange.misbehave(Misbehavior::RejectLogins(1));
    let connect =
        || fast(htx::client(&exchange.private_url())).session(Htx::orders(login())).connect();
    let error = connect().expect_err("it is rejected");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Opening, Some("auth")));
    assert!(!error.is_retryable());
    assert!(connect().is_ok(), "the next login is taken");
}

#[test]
fn htx_refuses_a_message_beyond_64_kib() {
    let exchange = Exchange::htx().start();
    assert_eq!(close_code(&exchange, &["x".repeat((64 << 10) + 1)]), 1009);
    assert_eq!(violations(&exchange), [ViolationKind::TooLarge]);
}

// ---- The protocol alone ----

#[test]
fn the_protocol_of_htx_knows_each_kind_of_message() {
    let market = Htx::market();
    let shown = |text| format!("{:?}", classify(&market, text));
    assert_eq!(shown(r#"{"ch":"market.a.mbp.150","ts":1,"tick":{"seqNum":1}}"#), "Data");
    assert_eq!(
        shown(r#"{"id":"1001","status":"ok","subbed":"market.a.bbo","ts":1}"#),
        "Reply(1001)"
    );
    assert_eq!(shown(r#"{"id":"1001","status":"error","err-code":"bad-request"}"#), "Reply(1001)");
    assert_eq!(shown(r#"{"status":"error","err-code":"bad-request","err-msg":""}"#), "Failure");
    assert_eq!(shown(r#"{"op":"close","ts":1}"#), "GoingAway(None)");
    assert_eq!(shown("no JSON"), "Data");
    match classify(&market, r#"{"ping":1790134831961}"#) {
        Class::Respond(text) => assert_eq!(text, r#"{"pong":1790134831961}"#),
        other => panic!("{other:?}"),
    }
}
