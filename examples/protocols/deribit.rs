//! The protocol of Deribit v2: a file to copy into a bot. It needs `tautline` and `serde_json`.
//!
//! Topics are the names of channels: `book.BTC-PERPETUAL.100ms`, `user.orders.any.any.raw`. One URL
//! has market data and orders.
//!
//! ```ignore
//! let login = Login::new(client_id, |payload| hex(hmac_sha256(secret, payload)));
//! let session = deribit::client("wss://www.deribit.com/ws/api/v2")
//!     .session(deribit::Deribit::private(login))
//!     .batch(100, 16 << 10)
//!     .connect()?;
//! session.handle().subscribe(["book.BTC-PERPETUAL.100ms", "user.orders.any.any.raw"])?;
//! let order = MarketOrder { instrument: "BTC-PERPETUAL", side: "buy", amount: 10.0, id: "bot1" };
//! match deribit::fate(session.handle().call(order.place())) {
//!     Fate::Accepted => {}           // it is in the book, or filled
//!     Fate::Refused(why) => {}       // it never was
//!     Fate::NotSent => {}            // it never left: place it again
//!     Fate::Unknown => {}            // ask by `order_status("BTC", "bot1")`
//! }
//! ```
//!
//! A message whose `prev_change_id` is not the last `change_id` is a gap: call
//! `handle.resubscribe(topic)`, and the next message is a snapshot.
//!
//! Source: the document "Deribit API v2.1.1". Check it before you trade: exchanges change.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tautline::session::{
    Acceptance, CallContext, CallError, Class, Context, OpeningScript, Outgoing, Protocol,
    Rejection, Reply, Request, StepOutcome, SubscriptionRequest,
};
use tautline::{Builder, Client, MessageRef, RateLimit, SendKind};

use super::reply::{Fate, fate_of, parsed};

/// The time for each step after an opening.
const STEP_WITHIN: Duration = Duration::from_secs(5);

/// The interval of Deribit's test requests, in seconds: the shortest that it takes.
const HEARTBEAT: u64 = 10;

/// The id of messages whose results nobody waits for.
const UNAWAITED: u64 = 0;

/// The ids of the steps after an opening. Those of the session begin at 1,000.
const SET_HEARTBEAT: u64 = 1;
const PLATFORM_STATE: u64 = 2;
const AUTH: u64 = 3;
const CANCEL_ON_DISCONNECT: u64 = 4;

/// Returns the settings of a client that Deribit asks for: about 3.3 subscription requests a second
/// on a connection, and 10 at once.
pub(crate) fn client(url: &str) -> Builder {
    let requests = RateLimit::per_connection()
        .window(10, Duration::from_secs(3))
        .only(&[SendKind::Opening, SendKind::Subscriptions]);
    Client::builder(url).send_limit(requests)
}

/// One connection to Deribit.
#[derive(Clone)]
pub(crate) struct Deribit {
    login: Option<Login>,
}

/// The credentials of a login.
#[derive(Clone)]
pub(crate) struct Login {
    client_id: String,
    sign: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

impl Login {
    /// `sign` returns the HMAC with SHA-256 of a text under the client secret, in hexadecimal
    /// digits. It runs on the heartbeat thread: it must not block.
    pub(crate) fn new(
        client_id: impl Into<String>,
        sign: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Login { client_id: client_id.into(), sign: Arc::new(sign) }
    }

    fn message(&self, context: &Context) -> Outgoing {
        let (timestamp, nonce) = (context.unix_millis(), context.next_id().to_string());
        let signature = (self.sign)(&format!("{timestamp}\n{nonce}\n"));
        let params = json!({
            "grant_type": "client_signature", "client_id": self.client_id, "timestamp": timestamp,
            "signature": signature, "nonce": nonce, "data": "",
        });
        request(AUTH, "public/auth", params)
    }
}

impl Deribit {
    /// Market data.
    pub(crate) fn public() -> Self {
        Deribit { login: None }
    }

    /// Market data, orders and the account. Orders that rest are canceled when their connection
    /// ends.
    pub(crate) fn private(login: Login) -> Self {
        Deribit { login: Some(login) }
    }
}

impl Protocol for Deribit {
    fn opening(&self) -> OpeningScript {
        let script = OpeningScript::new()
            .request(
                "heartbeat",
                STEP_WITHIN,
                |_| {
                    let params = json!({"interval": HEARTBEAT});
                    request(SET_HEARTBEAT, "public/set_heartbeat", params)
                },
                |message, _| outcome(message, SET_HEARTBEAT),
            )
            .request(
                "platform state",
                STEP_WITHIN,
                |_| {
                    let params = json!({"channels": ["platform_state"]});
                    request(PLATFORM_STATE, "public/subscribe", params)
                },
                |message, _| outcome(message, PLATFORM_STATE),
            );
        let Some(login) = self.login.clone() else { return script };
        script
            .request(
                "auth",
                STEP_WITHIN,
                move |context| login.message(context),
                |message, _| outcome(message, AUTH),
            )
            .request(
                "cancel on disconnect",
                STEP_WITHIN,
                |_| {
                    let method = "private/enable_cancel_on_disconnect";
                    request(CANCEL_ON_DISCONNECT, method, json!({"scope": "connection"}))
                },
                |message, _| outcome(message, CANCEL_ON_DISCONNECT),
            )
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        // Data is all that begins so.
        let text = message.text().unwrap_or_default();
        if let Some(params) = text.strip_prefix(r#"{"jsonrpc":"2.0","method":"subscription""#) {
            let is_state = params.starts_with(r#","params":{"channel":"platform_state""#);
            let is_end = is_state && parsed(message)["params"]["data"]["maintenance"] == true;
            return if is_end { Class::GoingAway(None) } else { Class::Data };
        }
        let parsed = parsed(message);
        let kind = parsed["params"]["type"].as_str();
        match (parsed["method"].as_str(), kind, parsed["id"].as_u64()) {
            (Some("heartbeat"), Some("test_request"), _) => {
                let answer = json!({
                    "jsonrpc": "2.0", "id": UNAWAITED, "method": "public/test", "params": {},
                });
                Class::Respond(answer.to_string().into())
            }
            (Some("heartbeat"), ..) | (None, _, Some(UNAWAITED)) => Class::Ignored,
            (None, _, Some(id)) => Class::Reply(id),
            // It did not understand a message well enough to find its id.
            (None, _, None) if parsed["error"].is_object() => {
                Class::Failure(reason(&parsed).into())
            }
            _ => Class::Data,
        }
    }

    fn subscription_request(&self, change: &SubscriptionRequest, _: &Context) -> Outgoing {
        let scope = if self.login.is_some() { "private" } else { "public" };
        let method = format!("{scope}/{}", change.either("subscribe", "unsubscribe"));
        let channels: Vec<&str> = change.topics().collect();
        request(change.id(), &method, json!({"channels": channels}))
    }

    fn subscription_reply(
        &self,
        change: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        let reply = parsed(reply);
        let Some(accepted) = reply["result"].as_array() else {
            return Acceptance::Nothing(rejection(&reply));
        };
        // Whatever it says of the end of a subscription, that has ended.
        let accepted = || accepted.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        change.either(Acceptance::Only(accepted()), Acceptance::All)
    }
}

/// Looks for the answer to a step.
fn outcome(message: MessageRef<'_>, id: u64) -> StepOutcome {
    // Data comes meanwhile, and has no id.
    let text = message.text().unwrap_or_default();
    if text.starts_with(r#"{"jsonrpc":"2.0","method""#) {
        return StepOutcome::Unrelated;
    }
    let answer = parsed(message);
    match answer["id"].as_u64() == Some(id) {
        false => StepOutcome::Unrelated,
        true if answer["error"].is_null() => StepOutcome::Accepted,
        true => StepOutcome::Rejected(rejection(&answer)),
    }
}

/// Returns what an error is worth asking again.
fn rejection(answer: &Value) -> Rejection {
    match answer["error"]["code"].as_i64() {
        // Too many requests; try again; not available now; a timestamp that is too old.
        Some(10028 | 10040 | 10047 | 11051 | 13028 | 13010) => {
            Rejection::transient(reason(answer), Duration::from_secs(3))
        }
        _ => Rejection::permanent(reason(answer)),
    }
}

fn request(id: u64, method: &str, params: Value) -> Outgoing {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string().into()
}

/// An order that is filled at once, at the price of the book.
#[derive(Clone, Debug)]
pub(crate) struct MarketOrder<'a> {
    pub(crate) instrument: &'a str,
    /// `buy` or `sell`.
    pub(crate) side: &'a str,
    /// In USD for perpetuals and inverse futures, otherwise in the base currency.
    pub(crate) amount: f64,
    /// The label: 64 characters at most. Deribit takes a second order with the same one, so it is
    /// the program that keeps it unique.
    pub(crate) id: &'a str,
}

impl MarketOrder<'_> {
    /// Returns the call that places the order.
    pub(crate) fn place(&self) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
        let method = format!("private/{}", self.side);
        let params = json!({
            "instrument_name": self.instrument, "amount": self.amount, "type": "market",
            "label": self.id,
        });
        Request::new(move |context| request(context.id(), &method, params))
    }
}

/// Returns the call that asks for the order with this label. Its [`fate`] is that of the order: it
/// is `Refused` if there is none.
pub(crate) fn order_status(
    currency: &str,
    id: &str,
) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
    let params = json!({"currency": currency, "label": id});
    Request::new(move |context| request(context.id(), "private/get_order_state_by_label", params))
}

/// Returns what has become of a call.
pub(crate) fn fate(result: Result<Reply, CallError>) -> Fate {
    fate_of(result, |reply| match (reply["result"].as_array(), reply["error"]["code"].as_i64()) {
        (Some(orders), _) if orders.is_empty() => Fate::Refused("no such order".to_owned()),
        // An error inside, and a request that took too long there.
        (_, Some(11094 | 13888)) => Fate::Unknown,
        (_, Some(_)) => Fate::Refused(reason(reply)),
        (_, None) if reply["result"].is_null() => Fate::Unknown,
        (_, None) => Fate::Accepted,
    })
}

fn reason(answer: &Value) -> String {
    answer["error"]["message"].as_str().unwrap_or_default().to_owned()
}
