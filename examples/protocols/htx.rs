//! The protocol of HTX spot: a file to copy into a bot. It needs `tautline` and `serde_json`.
//!
//! Topics are those of HTX: `market.btcusdt.mbp.150`.
//!
//! ```ignore
//! let session = htx::client("wss://api.huobi.pro/feed")
//!     .send_limit(htx::subscription_limit())
//!     .session(htx::Htx::market());
//! let books = Books::new(session.handle());
//! session.handle().subscribe(["market.btcusdt.mbp.150"])?;
//! let session = session.start_with(books.clone())?;
//! books.book("market.btcusdt.mbp.150");   // its numbers: keep the prices beside them
//! ```
//!
//! Source: the document "WebSocket Market Data" of HTX spot. Orders are those of the simulated
//! exchange: the real one has another address and other messages for them. Check all of it before
//! you trade: exchanges change.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tautline::session::{
    Acceptance, CallContext, CallError, Class, Context, OpeningScript, Outgoing, Protocol,
    Rejection, Reply, Request, SessionHandle, StepOutcome, SubscriptionRequest,
};
use tautline::{Builder, Client, Connection, Decode, Handler, MessageRef, RateLimit, SendKind};

use super::reply::{Fate, fate_of, parsed};

/// The time for the login.
const LOGIN_WITHIN: Duration = Duration::from_secs(5);

/// The number of updates that wait for the snapshot of their book. Of more, the last ones do.
const EARLY_MAX: usize = 1000;

/// Returns the settings of a client that HTX asks for: every message comes as gzip in a binary
/// frame. The protocol answers the pings.
pub(crate) fn client(url: &str) -> Builder {
    Client::builder(url).decode(Decode::gzip().as_text())
}

/// Returns the limit of the subscription requests on a connection: 40 a second.
pub(crate) fn subscription_limit() -> RateLimit {
    let limit = RateLimit::per_connection().window(40, Duration::from_secs(1));
    limit.only(&[SendKind::Subscriptions])
}

/// One connection to HTX: market data, or orders.
#[derive(Clone)]
pub(crate) struct Htx {
    login: Option<Login>,
}

/// The credentials of a login.
#[derive(Clone)]
pub(crate) struct Login {
    access_key: String,
    sign: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

impl Login {
    /// `sign` returns the signature of a text. It runs on the heartbeat thread: it must not block.
    pub(crate) fn new(
        access_key: impl Into<String>,
        sign: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Login { access_key: access_key.into(), sign: Arc::new(sign) }
    }

    fn message(&self, context: &Context) -> Outgoing {
        let now = context.unix_millis().to_string();
        let (access_key, signature) = (&self.access_key, (self.sign)(&now));
        json!({"req": "auth", "accessKey": access_key, "timestamp": now, "signature": signature})
            .to_string()
            .into()
    }
}

impl Htx {
    /// Market data, at `/feed`.
    pub(crate) fn market() -> Self {
        Htx { login: None }
    }

    /// Orders.
    pub(crate) fn orders(login: Login) -> Self {
        Htx { login: Some(login) }
    }
}

impl Protocol for Htx {
    fn opening(&self) -> OpeningScript {
        let Some(login) = self.login.clone() else { return OpeningScript::new() };
        OpeningScript::new().request(
            "auth",
            LOGIN_WITHIN,
            move |context| login.message(context),
            |message, _| login_outcome(message),
        )
    }

    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        // Data is all that begins so.
        if message.bytes().starts_with(br#"{"ch":"#) {
            return Class::Data;
        }
        let parsed = parsed(message);
        let id = parsed["id"].as_str().and_then(|id| id.parse().ok());
        match (parsed["ping"].as_i64(), id) {
            (Some(ping), _) => Class::Respond(json!({"pong": ping}).to_string().into()),
            (None, Some(id)) => Class::Reply(id),
            (None, None) if parsed["status"] == "error" => Class::Failure(reason(&parsed).into()),
            (None, None) if parsed["op"] == "close" => Class::GoingAway(None),
            (None, None) => Class::Data,
        }
    }

    fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
        let (verb, id) = (request.either("sub", "unsub"), request.id().to_string());
        json!({verb: request.topic(), "id": id}).to_string().into()
    }

    fn subscription_reply(
        &self,
        _: &SubscriptionRequest,
        reply: MessageRef<'_>,
        _: &Context,
    ) -> Acceptance {
        let reply = parsed(reply);
        match (reply["status"].as_str(), reply["err-code"].as_str()) {
            (Some("ok"), _) => Acceptance::All,
            (_, Some("too-many-requests")) => {
                Acceptance::Nothing(Rejection::transient(reason(&reply), Duration::from_secs(1)))
            }
            _ => Acceptance::Nothing(Rejection::permanent(reason(&reply))),
        }
    }

    /// Each topic has a message of its own.
    fn group<'t>(&self, topic: &'t str) -> &'t str {
        topic
    }
}

/// Looks for the answer to the login.
fn login_outcome(message: MessageRef<'_>) -> StepOutcome {
    let answer = parsed(message);
    match (answer["rep"].as_str(), answer["status"].as_str()) {
        (Some("auth"), Some("ok")) => StepOutcome::Accepted,
        (_, Some("error")) => StepOutcome::Rejected(Rejection::permanent(reason(&answer))),
        _ => StepOutcome::Unrelated,
    }
}

// ---- Books ----

/// The numbers of the books that a session subscribes to: which updates follow each other behind a
/// snapshot. Where one is missing, the snapshot is requested on the same connection.
///
/// Clones share the books.
#[derive(Clone)]
pub(crate) struct Books {
    handle: SessionHandle,
    books: Arc<Mutex<HashMap<String, Book>>>,
}

/// The numbers of one book.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    /// The connection that its updates come by.
    pub(crate) epoch: u64,
    /// The number of the last update in the book. `None` while it waits for a snapshot.
    pub(crate) last: Option<u64>,
    /// The number of updates of this connection that are in the book.
    pub(crate) applied: usize,
    /// The number of times that an update was missing.
    pub(crate) gaps: usize,
    /// The last updates before the snapshot: the number of the one before each, and its own.
    early: VecDeque<(u64, u64)>,
    is_requested: bool,
}

impl Book {
    /// Takes an update. Returns whether a snapshot has to be requested now.
    pub(crate) fn update(&mut self, previous: u64, number: u64) -> bool {
        match self.last {
            Some(last) if last == previous => {
                self.last = Some(number);
                self.applied += 1;
            }
            Some(_) => {
                self.gaps += 1;
                self.last = None;
                self.early.clear();
                self.early.push_back((previous, number));
            }
            None => {
                if self.early.len() == EARLY_MAX {
                    self.early.pop_front();
                }
                self.early.push_back((previous, number));
            }
        }
        let is_due = self.last.is_none() && !self.is_requested;
        self.is_requested |= is_due;
        is_due
    }

    /// Takes the snapshot with this number, and the updates behind it. If one of those is missing,
    /// the next update asks again.
    pub(crate) fn snapshot(&mut self, number: u64) {
        if self.last.is_none() {
            self.last = Some(number);
        }
        for (previous, number) in std::mem::take(&mut self.early) {
            if self.last.is_none_or(|last| last < number) {
                self.update(previous, number);
            }
        }
        self.is_requested = false;
    }
}

impl Books {
    pub(crate) fn new(handle: SessionHandle) -> Self {
        Books { handle, books: Arc::default() }
    }

    /// Returns the numbers of a book.
    pub(crate) fn book(&self, topic: &str) -> Book {
        self.lock().get(topic).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Book>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, topic: &str, epoch: u64) {
        let (books, name) = (self.clone(), topic.to_owned());
        let request = snapshot(topic.to_owned()).on_epoch(epoch);
        let called = self.handle.call_with(request, move |result| {
            let reply = result.map(|reply| parsed(reply.message)).unwrap_or_default();
            let number = reply["data"]["seqNum"].as_u64();
            if let Some(book) = books.lock().get_mut(&name).filter(|book| book.epoch == epoch) {
                match number {
                    Some(number) => book.snapshot(number),
                    // It was lost, or refused: the next update asks again.
                    None => book.is_requested = false,
                }
            }
        });
        if let (Err(_), Some(book)) = (called, self.lock().get_mut(topic)) {
            book.is_requested = false;
        }
    }
}

impl Handler for Books {
    fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
        let data = parsed(message);
        let (topic, tick) = (data["ch"].as_str(), &data["tick"]);
        let numbers = (tick["prevSeqNum"].as_u64(), tick["seqNum"].as_u64());
        let (Some(topic), (Some(previous), Some(number))) = (topic, numbers) else { return };
        let epoch = message.epoch();
        let is_due = {
            let mut books = self.lock();
            let book = books.entry(topic.to_owned()).or_default();
            if book.epoch != epoch {
                *book = Book { epoch, ..Book::default() };
            }
            book.update(previous, number)
        };
        if is_due {
            self.request(topic, epoch);
        }
    }
}

/// Returns the call that requests the snapshot of a book.
pub(crate) fn snapshot(topic: String) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
    Request::new(move |context| {
        json!({"req": topic, "id": context.id().to_string()}).to_string().into()
    })
}

// ---- Orders, as the simulated exchange takes them ----

/// An order that is filled at once, at the price of the book.
#[derive(Clone, Debug)]
pub(crate) struct MarketOrder<'a> {
    pub(crate) symbol: &'a str,
    /// `buy` or `sell`.
    pub(crate) side: &'a str,
    /// A decimal number.
    pub(crate) amount: &'a str,
    /// The client order id, unique among the orders of the account.
    pub(crate) id: &'a str,
}

impl MarketOrder<'_> {
    /// Returns the call that places the order.
    pub(crate) fn place(&self) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
        let data = json!({
            "symbol": self.symbol, "type": format!("{}-market", self.side), "amount": self.amount,
            "client-order-id": self.id,
        });
        Request::new(move |context| {
            let id = context.id().to_string();
            json!({"req": "order.place", "id": id, "data": data}).to_string().into()
        })
    }
}

/// Returns what has become of a call.
pub(crate) fn fate(result: Result<Reply, CallError>) -> Fate {
    fate_of(result, |reply| match reply["status"].as_str() {
        Some("ok") => Fate::Accepted,
        Some("error") => Fate::Refused(reason(reply)),
        _ => Fate::Unknown,
    })
}

fn reason(message: &Value) -> String {
    message["err-msg"].as_str().unwrap_or_default().to_owned()
}
