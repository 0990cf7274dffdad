//! A session: what a bot needs on top of a connection.
//!
//! Before a venue sends anything worth having, a bot logs in, subscribes to its topics, matches the
//! venue's acknowledgements, answers its pings, and does it all again after every reconnect. A
//! [`Session`] does that. The program writes down once how the venue speaks, as a [`Protocol`], and
//! gets a client that is ready when the login is through, keeps its subscriptions, and tells what
//! became of each call.
//!
//! | concept | in a sentence |
//! |---|---|
//! | [`Protocol`] | how a venue speaks: the program's type, one per venue |
//! | [`Session`] | a client that speaks a protocol |
//! | [`SessionHandle`] | its cloneable handle: subscriptions and calls, from any thread |
//! | [`OpeningScript`] | what is said and awaited after each opening; then the session is *ready* |
//! | [`Class`] | what one message is to the session: data, an answer, or to be answered |
//! | [`SubscriptionState`] | what the venue has said of a topic |
//!
//! # A venue
//! ```no_run
//! use std::time::Duration;
//!
//! use serde_json::{Value, json};
//! use tautline::session::{
//!     Acceptance, CallError, Class, Context, OpeningScript, Outgoing, Protocol, Rejection,
//!     Request, SessionEvent, StepOutcome, SubscriptionRequest,
//! };
//! use tautline::{Client, Event, MessageRef};
//!
//! struct Venue {
//!     key: String,
//! }
//!
//! fn parse(message: MessageRef<'_>) -> Value {
//!     serde_json::from_slice(message.bytes()).unwrap_or_default()
//! }
//!
//! impl Protocol for Venue {
//!     // After each opening: log in, with a timestamp of that moment.
//!     fn opening(&self) -> OpeningScript {
//!         let key = self.key.clone();
//!         OpeningScript::new().request(
//!             "login",
//!             Duration::from_secs(5),
//!             move |context| {
//!                 let timestamp = context.unix_millis();
//!                 json!({"op": "login", "key": key, "ts": timestamp}).to_string().into()
//!             },
//!             |message, _| match parse(message) {
//!                 answer if answer["op"] != "login" => StepOutcome::Unrelated,
//!                 answer if answer["ok"] == true => StepOutcome::Accepted,
//!                 answer => {
//!                     StepOutcome::Rejected(Rejection::permanent(answer["msg"].to_string()))
//!                 }
//!             },
//!         )
//!     }
//!
//!     // For every message: data is told by its first bytes, without parsing it.
//!     fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
//!         if message.bytes().starts_with(br#"{"ch":"#) {
//!             return Class::Data;
//!         }
//!         let control = parse(message);
//!         match (control["ping"].as_u64(), control["id"].as_u64()) {
//!             (Some(ping), _) => Class::Respond(json!({"pong": ping}).to_string().into()),
//!             (None, Some(id)) => Class::Reply(id),
//!             (None, None) => Class::Data,
//!         }
//!     }
//!
//!     fn subscription_request(&self, request: &SubscriptionRequest, _: &Context) -> Outgoing {
//!         let op = request.either("subscribe", "unsubscribe");
//!         let topics: Vec<&str> = request.topics().collect();
//!         json!({"id": request.id(), "op": op, "topics": topics}).to_string().into()
//!     }
//!
//!     fn subscription_reply(
//!         &self,
//!         _: &SubscriptionRequest,
//!         reply: MessageRef<'_>,
//!         _: &Context,
//!     ) -> Acceptance {
//!         match parse(reply) {
//!             reply if reply["ok"] == true => Acceptance::All,
//!             reply => Acceptance::Nothing(Rejection::permanent(reply["msg"].to_string())),
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let session = Client::builder("wss://venue.example/ws")
//!     .session(Venue { key: "...".to_owned() })
//!     .batch(100, 16 << 10)
//!     .connect()?; // logged in, or why not
//!
//! session.handle().subscribe(["book.BTC", "trades.BTC"])?;
//!
//! let handle = session.handle().clone();
//! std::thread::spawn(move || {
//!     let order = Request::new(|context| {
//!         json!({"id": context.id(), "op": "order", "size": 1}).to_string().into()
//!     });
//!     match handle.call(order.within(Duration::from_secs(2))) {
//!         Ok(reply) => println!("{}", reply.message.text().unwrap_or_default()),
//!         Err(CallError::NotSent(why)) => println!("safe to repeat: {why}"),
//!         Err(unknown) => println!("ask the venue: {unknown}"),
//!     }
//! });
//!
//! for event in session.events() {
//!     match event {
//!         Event::Message(message) => println!("{}", message.text().unwrap_or("(binary)")),
//!         Event::Session(SessionEvent::Subscription { topic, state, .. }) => {
//!             println!("{}: {state:?}", topic.as_str());
//!         }
//!         Event::Disconnected(end) => println!("{end}"), // nothing to do: it subscribes again
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # What holds
//! These hold beside the promises of the [crate].
//! 1. *Data is never held back or reordered.* What comes before the login is through, or before an
//!    acknowledgement, is delivered at once.
//! 2. *Nothing of the program's is queued for a connection.* A call leaves by the connection that
//!    is ready when it is made, within [`Request::within`], or fails. Only the topics that are
//!    wanted outlive a connection, and they are a set.
//! 3. *What was decided on one connection's data leaves by that connection.* A call belongs to the
//!    epoch that was ready when it was made; see [`Request::on_epoch`].
//! 4. *Each topic has at most one change under way*, and is asked for once per opening, unless the
//!    program resubscribes, or the venue refused it, ignored the request or ended it.
//! 5. *The session tells what it knows.* Every wait names what it waited for, every step its name,
//!    every topic its state, every call its fate.
//!
//! # What is not promised
//! An acknowledgement does not prove that data follows: see [`SessionHandle::watch`]. A reply says
//! what the venue says, a refusal or "unknown" included: it is for the program to read. Sequence
//! numbers, order books, the state of orders and the repetition of orders are the program's.
//! A handler that blocks, and a full queue under [`WhenFull::Block`](crate::WhenFull::Block), hold
//! up replies and acknowledgements as they hold up everything that is read.
//!
//! # Who runs what
//! | thread | code of the program's | may |
//! |---|---|---|
//! | reader | [`classify`], [`subscription_reply`], matchers | be quick |
//! | heartbeat | makers of the script, [`subscription_request`] | sign; no REST call |
//! | the caller's | [`opening`], [`group`], the maker of a [`Request`] | anything |
//! | reader or heartbeat | [`on_event`] | be quick |
//! | reader, heartbeat or the caller's | the closure of [`call_with`] | be quick |
//!
//! A session has no thread more than a client. A panic on the reader or the heartbeat thread ends
//! the client like a panic of the handler. A panic on the caller's thread goes on to the caller.
//!
//! # Races
//! | | |
//! |---|---|
//! | data before the acknowledgement, or before the session is ready | delivered at once |
//! | an acknowledgement before the request is known to be written | counts |
//! | an acknowledgement of an old connection | cannot be: ids never repeat in a session |
//! | the connection ends during a step of the script | backoff, and the script anew |
//! | the connection ends before a topic is acknowledged | asked again on the next one |
//! | the connection ends before the reply to a call | [`Unknown`], before the end is told |
//! | the connection ends while a call is being sent | [`Unknown`] or [`NotSent`], by its caller |
//! | a refused login comes as an error and a close frame | the end has the error as its reason |
//! | unsubscribe while it is requested | ended after the answer |
//! | subscribe while it is being ended | asked for after the answer |
//! | two threads subscribe the same topic | one request |
//! | a handler resubscribes a thousand times a second | one request at a time |
//! | stop while a caller waits for the rate limits, or for room | [`NotSent`], at once |
//! | stop while a caller waits for its reply | [`Unknown`], at once; nothing is unsubscribed |
//! | the venue announces the end while calls are out | see [`Class::GoingAway`] |
//! | a reply after its call has ended, or a second one | delivered like data |
//!
//! [`classify`]: Protocol::classify
//! [`subscription_reply`]: Protocol::subscription_reply
//! [`subscription_request`]: Protocol::subscription_request
//! [`opening`]: Protocol::opening
//! [`group`]: Protocol::group
//! [`call_with`]: SessionHandle::call_with
//! [`on_event`]: SessionBuilder::on_event
//! [`Unknown`]: CallError::Unknown
//! [`NotSent`]: CallError::NotSent

mod builder;
mod calls;
mod handle;
mod protocol;
mod script;
mod shared;
mod sink;
mod subscriptions;
mod watch;
mod work;

use std::any::Any;
use std::fmt;
use std::time::Duration;

pub use crate::session_event::{Rejection, SessionEvent, Subscribed, SubscriptionState, Topic};
pub use builder::SessionBuilder;
#[cfg(all(feature = "_internals", unix))]
pub(crate) use builder::sink;
pub use calls::ReplyRef;
pub use handle::{CallError, Reply, Request, SessionHandle};
pub use protocol::{
    Acceptance, CallContext, Class, Context, Outgoing, Protocol, SubscriptionRequest,
    SubscriptionRequestKind, TopicUpdate,
};
pub use script::{OpeningScript, StepOutcome};
pub use shared::SessionState;
pub use watch::{Silence, Watch};

use crate::client::{Client, Pull};
use crate::error::Error;
use crate::events::Events;
use crate::sender::{Sender, Stopper};
use crate::stats::Stats;
use crate::sync::stop_report::StopReport;

/// A client that speaks the protocol of a venue: it logs in, subscribes again after every opening,
/// and matches calls with their replies. Built by [`Builder::session`](crate::Builder::session).
///
/// Dropping it stops it as dropping a [`Client`] does.
pub struct Session<D = Pull> {
    client: Client<D>,
    handle: SessionHandle,
}

impl<D> Session<D> {
    pub(crate) fn new(client: Client<D>, handle: SessionHandle) -> Self {
        Session { client, handle }
    }

    /// Waits until the opening script is done on the first connection; otherwise ends the client.
    pub(crate) fn after_first_opening(mut self, connect_timeout: Duration) -> Result<Self, Error> {
        self.client = self.client.after_first_dial(connect_timeout)?;
        // Otherwise the client is dropped, which stops it.
        self.handle.wait_first_ready()?;
        Ok(self)
    }

    /// Returns the handle, to subscribe and to call. It may be cloned, kept and moved to other
    /// threads.
    pub fn handle(&self) -> &SessionHandle {
        &self.handle
    }

    /// Returns the client below the session. Replies to messages sent through it are delivered like
    /// data.
    pub fn client(&self) -> &Client<D> {
        &self.client
    }

    /// Returns the sender of the client. See [`Client::sender`].
    pub fn sender(&self) -> Sender {
        self.client.sender()
    }

    /// Returns a handle that stops the session from anywhere. See [`Client::stopper`].
    pub fn stopper(&self) -> Stopper {
        self.client.stopper()
    }

    /// Returns the state of the session.
    pub fn state(&self) -> SessionState {
        self.handle.state()
    }

    /// Returns what the client has counted so far.
    pub fn stats(&self) -> Stats {
        self.client.stats()
    }

    /// Stops the session. See [`Client::stop`]. Threads that wait for replies get
    /// [`Unknown`](CallError::Unknown) at once, closures when the connection has ended. No topics
    /// are unsubscribed.
    pub fn stop(&self, timeout: Duration) -> StopReport {
        self.client.stop(timeout)
    }

    /// Waits until the session has ended, and returns why. See [`Client::wait_closed`].
    pub fn wait_closed(&self, timeout: Duration) -> Option<Error> {
        self.client.wait_closed(timeout)
    }

    /// Returns the payload of a panic of the program's code, once. See [`Client::take_panic`].
    pub fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.client.take_panic()
    }
}

impl Session<Pull> {
    /// Returns the session's events. See [`Client::events`].
    pub fn events(&self) -> Events {
        self.client.events()
    }
}

impl<D> fmt::Debug for Session<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("client", &self.client)
            .field("state", &self.state())
            .finish()
    }
}
