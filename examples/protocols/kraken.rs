//! The protocol of Kraken v2: a file to copy into a bot. It needs `tautline` and `serde_json`.
//!
//! Topics are a channel and a symbol: `book/BTC/USD`. The private one is `executions`.
//!
//! ```ignore
//! let connects = kraken::connect_limit();
//! let public = kraken::client("wss://ws.kraken.com/v2")
//!     .connect_limit(connects.clone())
//!     .session(kraken::Kraken)
//!     .batch(50, 16 << 10)
//!     .start()?;
//! public.handle().subscribe(["book/BTC/USD", "trade/ETH/USD"])?;
//!
//! // GetWebSocketsToken, by REST.
//! let url = "wss://ws-auth.kraken.com/v2";
//! let private = kraken::private_client(url, move |dial| Ok(rest.token(dial.remaining())?))
//!     .connect_limit(connects.clone())
//!     .session(kraken::Kraken)
//!     .connect()?;
//! private.handle().subscribe(["executions"])?;
//! let order = MarketOrder { symbol: "BTC/USD", side: "buy", quantity: 0.001, id: "bot1" };
//! match kraken::fate(private.handle().call(order.place())) {
//!     Fate::Accepted => {}           // it is in the book, or filled
//!     Fate::Refused(why) => {}       // it never was
//!     Fate::NotSent => {}            // it never left: place it again
//!     Fate::Unknown => {}            // ask by REST, with the client order id
//! }
//! ```
//!
//! Source: the document "WebSocket API v2" of Kraken. Check it before you trade: exchanges change.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tautline::session::{
    Acceptance, CallContext, CallError, Class, Context, OpeningScript, Outgoing, Protocol,
    Rejection, Reply, Request, StepOutcome, SubscriptionRequest, TopicUpdate,
};
use tautline::{AppPing, Builder, Client, DialContext, Endpoint, MessageRef, RateLimit};

use super::reply::{Fate, fate_of, parsed};

/// The time for the greeting.
const STATUS_WITHIN: Duration = Duration::from_secs(10);

/// The wait before the next attempt during maintenance: the shortest that Kraken allows.
const MAINTENANCE: Duration = Duration::from_secs(5);

/// The time without a sign of life of a private client after which Kraken cancels all orders, in
/// seconds, and the interval of these signs.
const CANCEL_AFTER: u64 = 60;
const ALIVE_EVERY: Duration = Duration::from_secs(20);

/// The topic of the orders of the account. It has no symbol.
const EXECUTIONS: &str = "executions";

/// The reason for which there is no token.
pub(crate) type TokenError = Box<dyn Error + Send + Sync>;

/// Returns the settings of a client for market data.
pub(crate) fn client(url: &str) -> Builder {
    Client::builder(url).app_ping(ping(Duration::from_secs(30)))
}

/// Returns the settings of a client for orders. `token` is asked before every dial, on the thread
/// that dials, and returns a token for it.
///
/// Kraken cancels all orders of the account when it has not heard from the client for a minute,
/// connected or not.
pub(crate) fn private_client(
    url: &str,
    token: impl Fn(&DialContext) -> Result<String, TokenError> + Send + Sync + 'static,
) -> Builder {
    let url = url.to_owned();
    // The signs of life need the token too, and no connection tells them.
    let last = Arc::new(Mutex::new(String::new()));
    let shared = Arc::clone(&last);
    let endpoint = move |dial: &DialContext| {
        let token = token(dial)?;
        shared.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&token);
        Ok(Endpoint::new(&url).carry("token", token))
    };
    Client::builder_from_fn(endpoint).app_ping(ping(Duration::from_secs(30))).app_ping(
        cancel_all_after(CANCEL_AFTER, ALIVE_EVERY, move || {
            last.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }),
    )
}

/// Returns the limit of the connections to Kraken: about 150 in ten minutes from an address. All
/// clients of a process have a clone of one.
pub(crate) fn connect_limit() -> RateLimit {
    RateLimit::shared().window(150, Duration::from_secs(600))
}

/// Returns Kraken's ping.
pub(crate) fn ping(every: Duration) -> AppPing {
    AppPing::text(r#"{"method":"ping","req_id":0}"#, every)
        .answered_by(|message| is_answer(message, r#"{"method":"pong""#))
}

/// Returns the sign of life after which Kraken cancels all orders, if no other comes within
/// `timeout` seconds.
pub(crate) fn cancel_all_after(
    timeout: u64,
    every: Duration,
    token: impl Fn() -> String + Send + Sync + 'static,
) -> AppPing {
    let make = move || {
        let params = json!({"timeout": timeout, "token": token()});
        json!({"method": "cancel_all_orders_after", "params": params, "req_id": 0}).to_string()
    };
    AppPing::made_by(make, every)
        .answered_by(|message| is_answer(message, r#"{"method":"cancel_all_orders_after""#))
}

fn is_answer(message: MessageRef<'_>, start: &str) -> bool {
    message.text().is_some_and(|text| text.starts_with(start))
}

/// One connection to Kraken, public or private.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kraken;

impl Protocol for Kraken {
    fn opening(&self) -> OpeningScript {
        OpeningScript::new().expect("status", STATUS_WITHIN, |message, _| {
            match system_of(message).as_deref() {
                None => StepOutcome::Unrelated,
                Some("maintenance") => {
                    StepOutcome::Rejected(Rejection::transient("maintenance", MAINTENANCE))
                }
                Some(_) => StepOutcome::Accepted,
            }
        })
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        let text = message.text().unwrap_or_default();
        if text == r#"{"channel":"heartbeat"}"# {
            return Class::Ignored;
        }
        // Data is all else that begins so, but the status.
        if text.starts_with(r#"{"channel":"#) {
            return match system_of(message).as_deref() {
                None => Class::Data,
                Some("maintenance") => Class::GoingAway(None),
                Some(_) => Class::Ignored,
            };
        }
        let parsed = parsed(message);
        let (id, is_done) = (parsed["req_id"].as_u64(), parsed["success"] == true);
        match (parsed["method"].as_str(), id) {
            (Some("pong"), _) => Class::Ignored,
            (Some("cancel_all_orders_after"), _) if is_done => Class::Ignored,
            (Some("subscribe"), _) if is_done => subscription(&parsed, TopicUpdate::Subscribed),
            (Some("unsubscribe"), _) if is_done => subscription(&parsed, TopicUpdate::Unsubscribed),
            // The error of one symbol of a request: it names the symbol, and not the channel.
            (Some(_), Some(id)) if id > 0 => Class::Reply(id),
            (Some(_), _) if !is_done => Class::Failure(reason(&parsed).into()),
            _ => Class::Data,
        }
    }

    fn subscription_request(&self, change: &SubscriptionRequest, context: &Context) -> Outgoing {
        let mut params = json!({"channel": self.group(change.topic())});
        if change.topic() == EXECUTIONS {
            params["token"] = json!(token(context));
        } else {
            params["symbol"] = change.topics().filter_map(symbol_of).collect();
        }
        let method = change.either("subscribe", "unsubscribe");
        json!({"method": method, "params": params, "req_id": change.id()}).to_string().into()
    }

    fn subscription_reply(
        &self,
        request: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        let reply = parsed(reply);
        let reason = reason(&reply);
        // Too many requests, and a system that is busy.
        let is_busy =
            ["EAPI:Rate limit", "EService:"].iter().any(|start| reason.starts_with(start));
        let rejection = match (is_busy, reason.starts_with("ESession:")) {
            (true, _) => Rejection::transient(reason, Duration::from_secs(10)),
            // A token that has expired. The next connection has another.
            (_, true) => Rejection::transient(reason, Duration::from_secs(1)),
            _ => Rejection::permanent(reason),
        };
        // It names the symbol alone; the request has one channel.
        let symbol = reply["symbol"].as_str();
        let named = request.topics().find(|topic| symbol.is_some() && symbol_of(topic) == symbol);
        match named {
            Some(topic) => Acceptance::Except(vec![(topic.to_owned(), rejection)]),
            None => Acceptance::Nothing(rejection),
        }
    }

    /// Returns the channel: a message has one.
    fn group<'t>(&self, topic: &'t str) -> &'t str {
        topic.split('/').next().unwrap_or_default()
    }
}

/// Returns the status that a message tells of.
fn system_of(message: MessageRef<'_>) -> Option<String> {
    let text = message.text().filter(|text| text.starts_with(r#"{"channel":"status""#));
    text.and_then(|_| parsed(message)["data"][0]["system"].as_str().map(str::to_owned))
}

fn symbol_of(topic: &str) -> Option<&str> {
    topic.split_once('/').map(|(_, symbol)| symbol)
}

/// Returns what an acknowledgment says of its topic.
fn subscription(ack: &Value, update: TopicUpdate) -> Class<'static> {
    let result = &ack["result"];
    let channel = result["channel"].as_str().unwrap_or_default();
    let topic = match result["symbol"].as_str() {
        Some(symbol) => format!("{channel}/{symbol}"),
        None => channel.to_owned(),
    };
    Class::Subscription { topic: topic.into(), update, alias: None }
}

/// Returns the token that the endpoint of this connection carried.
fn token(context: &Context) -> &str {
    context.opening().and_then(|opened| opened.carried("token")).unwrap_or_default()
}

/// An order that is filled at once, at the price of the book.
#[derive(Clone, Debug)]
pub(crate) struct MarketOrder<'a> {
    pub(crate) symbol: &'a str,
    /// `buy` or `sell`.
    pub(crate) side: &'a str,
    /// In the base currency.
    pub(crate) quantity: f64,
    /// The client order id: 18 characters at most, or a UUID, unique among the open orders.
    pub(crate) id: &'a str,
}

impl MarketOrder<'_> {
    /// Returns the call that places the order.
    pub(crate) fn place(&self) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
        call(
            "add_order",
            json!({
                "order_type": "market", "side": self.side, "order_qty": self.quantity,
                "symbol": self.symbol, "cl_ord_id": self.id,
            }),
        )
    }
}

/// Returns a call with the token of the connection that it leaves by.
pub(crate) fn call(
    method: &'static str,
    mut params: Value,
) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
    Request::new(move |context| {
        params["token"] = json!(token(context));
        json!({"method": method, "params": params, "req_id": context.id()}).to_string().into()
    })
}

/// Returns what has become of a call.
pub(crate) fn fate(result: Result<Reply, CallError>) -> Fate {
    fate_of(result, |reply| match (reply["success"].as_bool(), reason(reply)) {
        (Some(true), _) => Fate::Accepted,
        // An error inside, and a request that took too long there.
        (Some(false), reason) if reason.starts_with("EService:") || reason == INTERNAL => {
            Fate::Unknown
        }
        (Some(false), reason) => Fate::Refused(reason),
        (None, _) => Fate::Unknown,
    })
}

const INTERNAL: &str = "EGeneral:Internal error";

fn reason(answer: &Value) -> String {
    answer["error"].as_str().unwrap_or_default().to_owned()
}
