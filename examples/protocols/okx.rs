//! The protocol of OKX v5: a file to copy into a bot. It needs `tautline` and `serde_json`.
//!
//! Topics are a channel and an instrument: `books:BTC-USDT`. Private ones are a channel and a type
//! of instruments, `orders:ANY`, or a channel alone, `account`.
//!
//! ```ignore
//! let connects = okx::connect_limit();
//! let public = okx::client("wss://ws.okx.com:8443/ws/v5/public")
//!     .connect_limit(connects.clone())
//!     .session(okx::Okx::public())
//!     .batch(100, 60 << 10)
//!     .start()?;
//! public.handle().subscribe(["books:BTC-USDT", "tickers:ETH-USDT"])?;
//!
//! let login = Login::new(api_key, passphrase, |payload| base64(hmac_sha256(secret, payload)));
//! let private = okx::client("wss://ws.okx.com:8443/ws/v5/private")
//!     .connect_limit(connects.clone())
//!     .session(okx::Okx::private(login))
//!     .connect()?;
//! private.handle().subscribe(["orders:ANY"])?;
//! let order = MarketOrder { instrument: "BTC-USDT", side: "buy", size: "0.001", id: "bot1" };
//! match okx::fate(private.handle().call(order.place())) {
//!     Fate::Accepted => {}           // it is in the book, or filled
//!     Fate::Refused(why) => {}       // it never was
//!     Fate::NotSent => {}            // it never left: place it again
//!     Fate::Unknown => {}            // ask by REST, with the client order id
//! }
//! ```
//!
//! Source: the document "WebSocket" of OKX API v5. Check it before you trade: exchanges change.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tautline::session::{
    Acceptance, CallContext, CallError, Class, Context, OpeningScript, Outgoing, Protocol,
    Rejection, Reply, Request, StepOutcome, SubscriptionRequest, TopicUpdate,
};
use tautline::{AppPing, Builder, Client, MessageRef, RateLimit, SendKind};

use super::reply::{Fate, fate_of, parsed};

/// The time for the login.
const LOGIN_WITHIN: Duration = Duration::from_secs(5);

/// The time from the notice of a shutdown to the shutdown.
const NOTICE: Duration = Duration::from_secs(60);

/// Returns the settings of a client that OKX asks for.
///
/// OKX closes a connection on which nothing is said for 30 seconds, and answers the text `ping`. It
/// takes 480 logins and subscription requests an hour on a connection.
pub(crate) fn client(url: &str) -> Builder {
    let requests = RateLimit::per_connection()
        .window(480, Duration::from_secs(3600))
        .only(&[SendKind::Opening, SendKind::Subscriptions]);
    Client::builder(url).app_ping(ping(Duration::from_secs(25))).send_limit(requests)
}

/// Returns the limit of the connections to OKX: 3 a second from an address. All clients of a
/// process have a clone of one.
pub(crate) fn connect_limit() -> RateLimit {
    RateLimit::shared().window(3, Duration::from_secs(1))
}

/// Returns the ping that OKX asks for, for connections that are quiet for this long.
pub(crate) fn ping(quiet: Duration) -> AppPing {
    AppPing::text("ping", quiet)
        .only_when_quiet()
        .answered_by(|message| message.text() == Some("pong"))
}

/// One connection to OKX, public or private.
#[derive(Clone)]
pub(crate) struct Okx {
    login: Option<Login>,
}

/// The credentials of a login.
#[derive(Clone)]
pub(crate) struct Login {
    api_key: String,
    passphrase: String,
    sign: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

impl Login {
    /// `sign` returns the HMAC with SHA-256 of a text under the secret key, in Base64. It runs on
    /// the heartbeat thread: it must not block.
    pub(crate) fn new(
        api_key: impl Into<String>,
        passphrase: impl Into<String>,
        sign: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Login { api_key: api_key.into(), passphrase: passphrase.into(), sign: Arc::new(sign) }
    }

    fn message(&self, context: &Context) -> Outgoing {
        let now = (context.unix_millis() / 1000).to_string();
        let sign = (self.sign)(&format!("{now}GET/users/self/verify"));
        let Login { api_key, passphrase, .. } = self;
        let arg = json!({
            "apiKey": api_key, "passphrase": passphrase, "timestamp": now, "sign": sign,
        });
        json!({"op": "login", "args": [arg]}).to_string().into()
    }
}

impl Okx {
    /// Market data, at `/ws/v5/public`.
    pub(crate) fn public() -> Self {
        Okx { login: None }
    }

    /// Orders and the account, at `/ws/v5/private`.
    pub(crate) fn private(login: Login) -> Self {
        Okx { login: Some(login) }
    }
}

impl Protocol for Okx {
    fn opening(&self) -> OpeningScript {
        let Some(login) = self.login.clone() else { return OpeningScript::new() };
        OpeningScript::new().request(
            "login",
            LOGIN_WITHIN,
            move |context| login.message(context),
            |message, _| login_outcome(message),
        )
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        let Some(text) = message.text() else { return Class::Data };
        // Data is all that begins so.
        if text.starts_with(r#"{"arg":"#) {
            return Class::Data;
        }
        if text == "pong" {
            return Class::Ignored;
        }
        let parsed = parsed(message);
        let id = parsed["id"].as_str().and_then(|id| id.parse().ok());
        let topic = |update| {
            let topic = topic_of(&parsed["arg"]).into();
            Class::Subscription { topic, update, alias: None }
        };
        match (parsed["event"].as_str(), id) {
            (Some("subscribe"), _) => topic(TopicUpdate::Subscribed),
            (Some("unsubscribe"), _) => topic(TopicUpdate::Unsubscribed),
            // One argument of the request is refused, and the message does not name it in a form
            // that programs can read. What has been confirmed by name stays.
            (Some("error"), Some(id)) => Class::Reply(id),
            (Some("error"), None) => Class::Failure(reason(&parsed).into()),
            (Some("notice"), _) if parsed["code"] == "64008" => Class::GoingAway(Some(NOTICE)),
            (Some("login" | "channel-conn-count"), _) => Class::Ignored,
            // The reply to an order.
            (None, Some(id)) => Class::Reply(id),
            _ => Class::Data,
        }
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let op = request.either("subscribe", "unsubscribe");
        let args: Vec<Value> = request.topics().map(arg_of).collect();
        // Digits and letters, 32 at most.
        json!({"id": request.id().to_string(), "op": op, "args": args}).to_string().into()
    }

    fn subscription_reply(
        &self,
        _: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        let error = parsed(reply);
        Acceptance::Nothing(match error["code"].as_str() {
            // Too many requests, and a system that is busy.
            Some("60014" | "50011" | "50026" | "63999") => {
                Rejection::transient(reason(&error), Duration::from_secs(10))
            }
            _ => Rejection::permanent(reason(&error)),
        })
    }
}

/// Looks for the answer to the login.
fn login_outcome(message: MessageRef<'_>) -> StepOutcome {
    let answer = parsed(message);
    match (answer["event"].as_str(), answer["code"].as_str()) {
        (Some("login"), Some("0")) => StepOutcome::Accepted,
        // The timestamp has expired; too many requests; the system is busy.
        (Some("error"), Some("60006" | "60014" | "63999")) => {
            StepOutcome::Rejected(Rejection::transient(reason(&answer), Duration::from_secs(1)))
        }
        (Some("login" | "error"), _) => {
            StepOutcome::Rejected(Rejection::permanent(reason(&answer)))
        }
        _ => StepOutcome::Unrelated,
    }
}

/// Returns the argument that stands for a topic.
fn arg_of(topic: &str) -> Value {
    match topic.split_once(':') {
        None => json!({"channel": topic}),
        Some((channel @ ("orders" | "positions"), kind)) => {
            json!({"channel": channel, "instType": kind})
        }
        Some((channel, instrument)) => json!({"channel": channel, "instId": instrument}),
    }
}

/// Returns the topic that an argument stands for.
fn topic_of(arg: &Value) -> String {
    let channel = arg["channel"].as_str().unwrap_or_default();
    match arg["instId"].as_str().or(arg["instType"].as_str()) {
        Some(instrument) => format!("{channel}:{instrument}"),
        None => channel.to_owned(),
    }
}

/// An order that is filled at once, at the price of the book.
#[derive(Clone, Debug)]
pub(crate) struct MarketOrder<'a> {
    pub(crate) instrument: &'a str,
    /// `buy` or `sell`.
    pub(crate) side: &'a str,
    /// A decimal number.
    pub(crate) size: &'a str,
    /// The client order id: letters and digits, 32 at most, unique among the orders of the account.
    pub(crate) id: &'a str,
}

impl MarketOrder<'_> {
    /// Returns the call that places the order.
    pub(crate) fn place(&self) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
        let arg = json!({
            "instId": self.instrument, "tdMode": "cash", "side": self.side, "ordType": "market",
            "sz": self.size, "clOrdId": self.id,
        });
        Request::new(move |context| {
            json!({"id": context.id().to_string(), "op": "order", "args": [arg]}).to_string().into()
        })
    }
}

/// Returns what has become of a call.
pub(crate) fn fate(result: Result<Reply, CallError>) -> Fate {
    fate_of(result, |reply| {
        let result = &reply["data"][0];
        match (reply["code"].as_str(), result["sCode"].as_str()) {
            (Some("0"), _) => Fate::Accepted,
            // The request took too long inside, and the system is busy.
            (Some("50004" | "50026"), _) | (_, Some("50004" | "50026")) | (None, _) => {
                Fate::Unknown
            }
            (_, Some(_)) => Fate::Refused(result["sMsg"].as_str().unwrap_or_default().to_owned()),
            (_, None) => Fate::Refused(reason(reply)),
        }
    })
}

fn reason(message: &Value) -> String {
    message["msg"].as_str().unwrap_or_default().to_owned()
}
