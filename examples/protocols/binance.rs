//! The protocol of Binance spot: a file to copy into a bot. It needs `tautline` and `serde_json`.
//!
//! [`Streams`] is market data. Topics are the names of streams: `btcusdt@bookTicker`.
//!
//! ```ignore
//! let connects = binance::connect_limit();
//! let session = binance::client("wss://stream.binance.com:9443/stream")
//!     .connect_limit(connects.clone())
//!     .send_limit(binance::message_limit())
//!     .session(binance::Streams)
//!     .batch(200, 16 << 10)
//!     .topics_max(1024)
//!     .start()?;
//! session.handle().subscribe(["btcusdt@bookTicker", "ethusdt@bookTicker"])?;
//! ```
//!
//! [`WebSocketApi`] is orders. It logs in with an Ed25519 key, which the program signs with.
//!
//! ```ignore
//! let session = binance::client("wss://ws-api.binance.com:443/ws-api/v3")
//!     .connect_limit(connects.clone())
//!     .session(binance::WebSocketApi::new(api_key, |payload| base64(key.sign(payload))))
//!     .connect()?;
//! let order = MarketOrder { symbol: "BTCUSDT", side: "BUY", quantity: "0.001", id: "bot-1" };
//! match binance::fate(session.handle().call(order.place())) {
//!     Fate::Accepted => {}           // it is in the book, or filled
//!     Fate::Refused(why) => {}       // it never was
//!     Fate::NotSent => {}            // it never left: place it again
//!     Fate::Unknown => {}            // ask by `order_status("bot-1")`
//! }
//! ```
//!
//! Sources: the documents "WebSocket Streams" and "WebSocket API" of Binance spot. Check them
//! before you trade: exchanges change.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tautline::session::{
    Acceptance, CallContext, CallError, Class, Context, OpeningScript, Outgoing, Protocol,
    Rejection, Reply, Request, StepOutcome, SubscriptionRequest,
};
use tautline::{Builder, Client, MessageRef, RateLimit, RetryDecision};

use super::reply::{Fate, fate_of, parsed};

/// The time for each step of the login.
const LOGIN_WITHIN: Duration = Duration::from_secs(5);

/// The wait after Binance has closed with 1008, which it does for too many messages: whoever comes
/// back at once and does the same again is banned.
const AFTER_1008: Duration = Duration::from_secs(30);

/// Returns the settings of a client that Binance asks for.
///
/// Binance pings every 20 seconds, but says nothing else on a quiet connection. The client's own
/// pings find out a dead one sooner, and are few among 5 messages a second.
pub(crate) fn client(url: &str) -> Builder {
    Client::builder(url).retry_policy(|error, default| match error.close_reason() {
        Some(reason) if reason.code == 1008 => RetryDecision::RetryAfter(AFTER_1008),
        _ => default,
    })
}

/// Returns the limit of the connections to Binance: 300 in five minutes from an address. All
/// clients of a process have a clone of one.
pub(crate) fn connect_limit() -> RateLimit {
    RateLimit::shared().window(300, Duration::from_secs(300))
}

/// Returns the limit of the messages on a connection of [`Streams`]: 5 a second, pings and pongs
/// included. Two of them are kept for those, and for what the program sends.
pub(crate) fn message_limit() -> RateLimit {
    RateLimit::per_connection().window(5, Duration::from_secs(1)).keep(2).counting_pings()
}

/// Market data: combined streams, at `/stream`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams;

impl Protocol for Streams {
    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        // Data is all that begins so. Binary messages are data too (SBE).
        let text = message.text().unwrap_or_default();
        if text.is_empty() || text.starts_with(r#"{"stream""#) {
            return Class::Data;
        }
        let Ok(control) = serde_json::from_str::<Value>(text) else { return Class::Data };
        if is_shutdown(&control) {
            return Class::GoingAway(None);
        }
        match (control["id"].as_u64(), error_of(&control)) {
            (Some(id), _) => Class::Reply(id),
            // It did not understand a message well enough to find its id.
            (None, Some((_, reason))) => Class::Failure(reason.into()),
            (None, None) => Class::Data,
        }
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let method = request.either("SUBSCRIBE", "UNSUBSCRIBE");
        let topics: Vec<&str> = request.topics().collect();
        json!({"method": method, "params": topics, "id": request.id()}).to_string().into()
    }

    fn subscription_reply(
        &self,
        _: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        match error_of(&parsed(reply)) {
            None => Acceptance::All,
            // Too many requests.
            Some((4, reason)) => {
                Acceptance::Nothing(Rejection::transient(reason, Duration::from_secs(60)))
            }
            Some((_, reason)) => Acceptance::Nothing(Rejection::permanent(reason)),
        }
    }
}

/// Orders: the WebSocket API, at `/ws-api/v3`.
///
/// Execution reports are delivered as data: `{"subscriptionId":…,"event":{"e":"executionReport",…`.
#[derive(Clone)]
pub(crate) struct WebSocketApi {
    api_key: String,
    sign: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

impl WebSocketApi {
    /// `sign` returns the signature of a text with the Ed25519 key that belongs to `api_key`, in
    /// Base64. It runs on the heartbeat thread: it must not block.
    pub(crate) fn new(
        api_key: impl Into<String>,
        sign: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        WebSocketApi { api_key: api_key.into(), sign: Arc::new(sign) }
    }

    fn logon(&self, context: &Context) -> Outgoing {
        let (key, now) = (&self.api_key, context.unix_millis());
        // The parameters in alphabetical order.
        let signature = (self.sign)(&format!("apiKey={key}&timestamp={now}"));
        let params = json!({"apiKey": key, "signature": signature, "timestamp": now});
        json!({"id": "logon", "method": "session.logon", "params": params}).to_string().into()
    }
}

impl Protocol for WebSocketApi {
    fn opening(&self) -> OpeningScript {
        let api = self.clone();
        OpeningScript::new()
            .request(
                "logon",
                LOGIN_WITHIN,
                move |context| api.logon(context),
                |message, _| step_outcome(message, "logon"),
            )
            .request(
                "user data",
                LOGIN_WITHIN,
                |_| r#"{"id":"user data","method":"userDataStream.subscribe"}"#.into(),
                |message, _| step_outcome(message, "user data"),
            )
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        let parsed = parsed(message);
        match parsed["id"].as_u64() {
            Some(id) => Class::Reply(id),
            None if is_shutdown(&parsed) => Class::GoingAway(None),
            None => match error_of(&parsed) {
                Some((_, reason)) => Class::Failure(reason.into()),
                None => Class::Data,
            },
        }
    }

    /// There are no topics here: the login asks for the one stream.
    fn subscription_request(&self, _: &SubscriptionRequest, _: &Context) -> Outgoing {
        Outgoing::nothing()
    }
}

/// Looks for the answer to a step of the login, whose id is its name.
fn step_outcome(message: MessageRef<'_>, step: &str) -> StepOutcome {
    let answer = parsed(message);
    if answer["id"] != step {
        return StepOutcome::Unrelated;
    }
    let reason = error_of(&answer).map(|(_, reason)| reason).unwrap_or_default();
    match answer["status"].as_u64() {
        Some(200) => StepOutcome::Accepted,
        // Too many requests, and banned for a while; the exchange has trouble.
        Some(418 | 429 | 500..) => {
            let until = answer["error"]["data"]["retryAfter"].as_u64().unwrap_or_default();
            let now = answer["error"]["data"]["serverTime"].as_u64().unwrap_or(until);
            let wait = Duration::from_millis(until.saturating_sub(now)).max(LOGIN_WITHIN);
            StepOutcome::Rejected(Rejection::transient(reason, wait))
        }
        _ => StepOutcome::Rejected(Rejection::permanent(reason)),
    }
}

/// An order that is filled at once, at the price of the book.
#[derive(Clone, Debug)]
pub(crate) struct MarketOrder<'a> {
    pub(crate) symbol: &'a str,
    /// `BUY` or `SELL`.
    pub(crate) side: &'a str,
    /// A decimal number.
    pub(crate) quantity: &'a str,
    /// The client order id, unique among the orders of the account: by it the order is found again,
    /// and refused if it is placed twice.
    pub(crate) id: &'a str,
}

impl MarketOrder<'_> {
    /// Returns the call that places the order.
    pub(crate) fn place(&self) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
        rpc(
            "order.place",
            json!({
                "symbol": self.symbol, "side": self.side, "type": "MARKET",
                "quantity": self.quantity, "newClientOrderId": self.id,
            }),
        )
    }
}

/// Returns the call that asks what has become of an order. Refused: Binance has no such order.
pub(crate) fn order_status(
    symbol: &str,
    id: &str,
) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing + use<>> {
    rpc("order.status", json!({"symbol": symbol, "origClientOrderId": id}))
}

fn rpc(
    method: &'static str,
    mut params: Value,
) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
    Request::new(move |context| {
        // Binance takes a request for 5 s after this time, and refuses it later.
        params["timestamp"] = context.unix_millis().into();
        json!({"id": context.id(), "method": method, "params": params}).to_string().into()
    })
}

/// Returns what has become of a call.
pub(crate) fn fate(result: Result<Reply, CallError>) -> Fate {
    fate_of(result, |reply| match (reply["status"].as_u64(), error_of(reply)) {
        (Some(200), _) => Fate::Accepted,
        // -1006 and -1007: the answer of a machine behind the one that answers did not come.
        (Some(400..500), Some((code, reason))) if !matches!(code, -1006 | -1007) => {
            Fate::Refused(reason)
        }
        _ => Fate::Unknown,
    })
}

/// Returns code and text of an error, which stand in the message or in its field `error`.
fn error_of(message: &Value) -> Option<(i64, String)> {
    let error = if message["error"].is_object() { &message["error"] } else { message };
    let code = error["code"].as_i64()?;
    Some((code, error["msg"].as_str().unwrap_or_default().to_owned()))
}

fn is_shutdown(message: &Value) -> bool {
    message["e"] == "serverShutdown" || message["event"]["e"] == "serverShutdown"
}
