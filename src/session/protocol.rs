//! The protocol of a venue: the trait that a program implements, and what its methods are given.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::event::{Message, MessageRef, Opened, Payload};
use crate::session::script::OpeningScript;
use crate::session_event::{Rejection, Topic};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The protocol of a venue. A program implements it once per venue.
///
/// The threads of the client share it: whatever changes from connection to connection is in the
/// [`Context`]. A panic in a method that they call ends the client like a panic of the handler;
/// [`opening`](Protocol::opening) and [`group`](Protocol::group) run on the program's own thread.
///
/// `testing::classify`, of the feature `testing`, runs [`classify`](Protocol::classify) on a text
/// without a connection.
pub trait Protocol: Send + Sync + 'static {
    /// Returns what is said and awaited after each opening, before the session is ready.
    ///
    /// Called once, by [`Builder::session`](crate::Builder::session); clones of that builder have
    /// the same script. Defaults to nothing: a session is ready at once.
    fn opening(&self) -> OpeningScript {
        OpeningScript::new()
    }

    /// Returns what a message is to the session.
    ///
    /// Called on the reader thread for every message that no step of the opening script has taken.
    /// Look at a few bytes first, and parse only what is no data.
    fn classify<'m>(&self, message: MessageRef<'m>, context: &Context) -> Class<'m>;

    /// Returns the message that asks for topics, or ends them.
    ///
    /// Called on the heartbeat thread, which also writes pongs, right before the message is
    /// written: it must not block.
    fn subscription_request(&self, request: &SubscriptionRequest, context: &Context) -> Outgoing;

    /// Returns what the venue's reply to a subscription request accepts: for a message of which
    /// [`classify`](Protocol::classify) said that it is the [`Reply`](Class::Reply) to it.
    ///
    /// Called on the reader thread. A request may be repeated whose answer was lost: call it
    /// accepted if the venue says that a topic is subscribed already. Defaults to
    /// [`Acceptance::All`].
    fn subscription_reply(
        &self,
        request: &SubscriptionRequest,
        reply: MessageRef<'_>,
        context: &Context,
    ) -> Acceptance {
        let _ = (request, reply, context);
        Acceptance::All
    }

    /// Returns the group of a topic. Topics of different groups never share a message: for venues
    /// that take one channel per message.
    ///
    /// Called by [`subscribe`](crate::session::SessionHandle::subscribe) on the thread that
    /// subscribes. Defaults to one group for all.
    fn group<'t>(&self, topic: &'t str) -> &'t str {
        let _ = topic;
        ""
    }
}

/// The meaning of a message to a session: the answer of [`Protocol::classify`].
#[non_exhaustive]
pub enum Class<'m> {
    /// Market data, or anything unknown: delivered to the program.
    Data,
    /// Heartbeats, pongs, greetings: delivered to nobody, and no data for
    /// [`idle_timeout`](crate::Builder::idle_timeout).
    Ignored,
    /// The reply to the call or the subscription request that carried this id. If nothing waits for
    /// it, or nothing does any more, it is delivered like data.
    Reply(u64),
    /// News of one topic. If the session does not know the topic, it is delivered like data.
    Subscription {
        /// The topic, or its alias.
        topic: Cow<'m, str>,
        /// The news.
        update: TopicUpdate,
        /// The venue's name for the topic from now on, on this connection (Bitfinex's `chanId`).
        alias: Option<Cow<'m, str>>,
    },
    /// All topics that are active (Alpaca): delivered to nobody. It answers the oldest subscription
    /// request that has no such answer yet: those of its topics that are not in the list have been
    /// rejected. An active topic that is not in it has ended, and is asked for again.
    ActiveTopics(Vec<Cow<'m, str>>),
    /// A ping of the venue's own that wants this text as its answer (HTX, Deribit): delivered to
    /// nobody. The heartbeat thread writes the answer right after pongs.
    Respond(Cow<'m, str>),
    /// This connection ends soon, after this time if the venue says so: delivered to nobody. New
    /// calls are refused. The session closes the connection (1000) once no call waits for its
    /// reply, at the latest after the shorter of this time and
    /// [`drain_timeout`](crate::session::SessionBuilder::drain_timeout). Calls that still wait then
    /// are `Unknown`. The next dial follows after the backoff.
    GoingAway(Option<Duration>),
    /// An error that belongs to no call and no topic: delivered like data. If the connection ends
    /// within a second, [`Disconnect::server_error`](crate::Disconnect::server_error) has it.
    Failure(Cow<'m, str>),
    /// Several things in one message. It is delivered once, if any of them is delivered.
    Batch(Vec<Class<'m>>),
}

impl fmt::Debug for Class<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Data => "Data",
            Class::Ignored => "Ignored",
            Class::Reply(id) => return write!(f, "Reply({id})"),
            Class::Subscription { update, .. } => return write!(f, "Subscription({update:?})"),
            Class::ActiveTopics(topics) => return write!(f, "ActiveTopics({})", topics.len()),
            Class::Respond(_) => "Respond",
            Class::GoingAway(within) => return write!(f, "GoingAway({within:?})"),
            Class::Failure(_) => "Failure",
            Class::Batch(classes) => return f.debug_list().entries(classes).finish(),
        })
    }
}

/// News of one topic.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TopicUpdate {
    /// It is active.
    Subscribed,
    /// It has ended: because the session asked for that, or by itself. A topic that is wanted is
    /// asked for again after a second, then two and so on, up to 5 min.
    Unsubscribed,
    /// The venue has refused it.
    Rejected(Rejection),
}

/// The part of a subscription request that the venue has accepted.
///
/// For a request to unsubscribe every answer ends all of its topics, with two exceptions: `Except`
/// is about the topics that it names alone, and what is rejected for a time is asked for again
/// after that time, 1 s at least.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Acceptance {
    /// All of its topics.
    All,
    /// These topics. The others have been rejected for good.
    Only(Vec<String>),
    /// Not these topics, each for its reason. The reply says nothing of the others: they wait for
    /// answers of their own, as a [`Class::Subscription`] or in further replies. For venues that
    /// answer topic by topic, with the id of the request.
    Except(Vec<(String, Rejection)>),
    /// None of its topics. After a permanent rejection of several topics, each half of them is
    /// asked for again until the refused ones stand alone.
    Nothing(Rejection),
}

/// The direction of a [`SubscriptionRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionRequestKind {
    /// Asks for topics.
    Subscribe,
    /// Ends topics.
    Unsubscribe,
}

/// A change of subscriptions that one message asks for.
///
/// `Debug` shows its id, its kind and the number of its topics.
#[derive(Clone)]
pub struct SubscriptionRequest {
    pub(crate) id: u64,
    pub(crate) kind: SubscriptionRequestKind,
    /// The topics, and what the venue calls them if that is something else.
    pub(crate) topics: Vec<(Topic, Option<Topic>)>,
}

impl SubscriptionRequest {
    /// Returns the id of the request: from 1,000 on, unique within the session, and the same for
    /// which [`Class::Reply`] stands.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns its direction.
    pub fn kind(&self) -> SubscriptionRequestKind {
        self.kind
    }

    /// Returns the first value for a request to subscribe, and the second for one to unsubscribe.
    pub fn either<T>(&self, subscribe: T, unsubscribe: T) -> T {
        match self.kind {
            SubscriptionRequestKind::Subscribe => subscribe,
            SubscriptionRequestKind::Unsubscribe => unsubscribe,
        }
    }

    /// Returns the topics. There is at least one.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &str> {
        self.topics.iter().map(|(topic, _)| topic.as_str())
    }

    /// Returns the topics by the names that the venue gave them on this connection, where it gave
    /// them one.
    pub fn aliases(&self) -> impl ExactSizeIterator<Item = &str> {
        self.topics.iter().map(|(topic, alias)| alias.as_ref().unwrap_or(topic).as_str())
    }

    /// Returns the first topic: the only one where a message holds one, which is the default.
    pub fn topic(&self) -> &str {
        self.topics.first().map_or("", |(topic, _)| topic.as_str())
    }
}

impl fmt::Debug for SubscriptionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionRequest")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("topics", &self.topics.len())
            .finish()
    }
}

/// A message to send, or none.
///
/// `Debug` shows its kind and size, not its content.
#[derive(Clone, PartialEq, Eq)]
pub struct Outgoing {
    content: Content,
    is_answered: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Content {
    Nothing,
    Text(String),
    Binary(Vec<u8>),
}

impl Outgoing {
    /// A text message.
    pub fn text(text: impl Into<String>) -> Self {
        Outgoing { content: Content::Text(text.into()), is_answered: true }
    }

    /// A binary message.
    pub fn binary(bytes: impl Into<Vec<u8>>) -> Self {
        Outgoing { content: Content::Binary(bytes.into()), is_answered: true }
    }

    /// No message: the topics are in the URL, for example. A subscription counts as active at once,
    /// and a call is refused.
    pub fn nothing() -> Self {
        Outgoing { content: Content::Nothing, is_answered: false }
    }

    /// The venue does not answer this subscription request: its topics count as active once it has
    /// been written.
    pub fn unanswered(mut self) -> Self {
        self.is_answered = false;
        self
    }

    pub(crate) fn payload(&self) -> Option<Payload<'_>> {
        match &self.content {
            Content::Nothing => None,
            Content::Text(text) => Some(Payload::Text(text)),
            Content::Binary(bytes) => Some(Payload::Binary(bytes)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.content {
            Content::Nothing => 0,
            Content::Text(text) => text.len(),
            Content::Binary(bytes) => bytes.len(),
        }
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.is_answered
    }
}

impl From<String> for Outgoing {
    fn from(text: String) -> Self {
        Outgoing::text(text)
    }
}

impl From<&str> for Outgoing {
    fn from(text: &str) -> Self {
        Outgoing::text(text)
    }
}

impl From<Vec<u8>> for Outgoing {
    fn from(bytes: Vec<u8>) -> Self {
        Outgoing::binary(bytes)
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.payload() {
            Some(payload) => payload.fmt(f),
            None => f.write_str("Nothing"),
        }
    }
}

/// The ids of a session, which never repeat.
#[derive(Debug)]
pub(crate) struct Ids(AtomicU64);

/// Ids below this one are the program's, for the steps of its opening script.
const FIRST_ID: u64 = 1000;

impl Ids {
    pub(crate) fn new() -> Self {
        Ids(AtomicU64::new(FIRST_ID))
    }

    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// The facts of one connection. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    connection: Arc<ConnectionFacts>,
    ids: Arc<Ids>,
}

/// The facts of a connection. Replaced when another step of its script is done.
struct ConnectionFacts {
    opened: Option<Arc<Opened>>,
    answers: Vec<(&'static str, Arc<Message>)>,
}

impl Context {
    /// Before the first opening.
    pub(crate) fn new(ids: Arc<Ids>) -> Self {
        Context { connection: Arc::new(ConnectionFacts { opened: None, answers: Vec::new() }), ids }
    }

    /// For tests of a protocol.
    #[cfg(feature = "testing")]
    pub(crate) fn without_connection() -> Self {
        Self::new(Arc::new(Ids::new()))
    }

    /// The context of another connection.
    pub(crate) fn of_connection(&self, opened: &Opened) -> Self {
        let opened = Some(Arc::new(opened.clone()));
        let connection = Arc::new(ConnectionFacts { opened, answers: Vec::new() });
        Context { connection, ids: Arc::clone(&self.ids) }
    }

    /// The same with the answer to a step.
    pub(crate) fn with_answer(&self, step: &'static str, message: MessageRef<'_>) -> Self {
        let ConnectionFacts { opened, answers } = &*self.connection;
        let mut answers = answers.clone();
        answers.push((step, Arc::new(message.to_owned())));
        let connection = Arc::new(ConnectionFacts { opened: opened.clone(), answers });
        Context { connection, ids: Arc::clone(&self.ids) }
    }

    /// Returns the epoch of the connection; 0 in a test of a protocol without a connection.
    pub fn epoch(&self) -> u64 {
        self.opening().map_or(0, |opened| opened.epoch)
    }

    /// Returns how the connection was opened. `None` only in a test of a protocol without a
    /// connection.
    pub fn opening(&self) -> Option<&Opened> {
        self.connection.opened.as_deref()
    }

    /// Returns the message that a step of the opening script accepted on this connection; `None` if
    /// that step has accepted none.
    pub fn answer(&self, step: &str) -> Option<MessageRef<'_>> {
        let mut answers = self.connection.answers.iter();
        answers.find(|(name, _)| *name == step).map(|(_, message)| message.as_ref().as_ref())
    }

    /// Returns the milliseconds since 1970 by the wall clock, read by this call: for timestamps of
    /// signatures.
    pub fn unix_millis(&self) -> u64 {
        unix_millis()
    }

    /// Returns an id that nothing else in this session has, for messages of the program's own that
    /// carry one. Ids start at 1,000 and stay far below 2^53.
    pub fn next_id(&self) -> u64 {
        self.ids.next()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The facts for the message of a call: the [`Context`] of the connection that it leaves by,
/// to which it derefs, and its id.
#[derive(Debug)]
pub struct CallContext<'a> {
    context: &'a Context,
    id: u64,
}

impl<'a> CallContext<'a> {
    pub(crate) fn new(context: &'a Context, id: u64) -> Self {
        CallContext { context, id }
    }

    /// Returns the id of the call, for which [`Class::Reply`] stands in the reply.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl std::ops::Deref for CallContext<'_> {
    type Target = Context;

    fn deref(&self) -> &Context {
        self.context
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_at_most_64_bytes() {
        assert!(size_of::<Class<'_>>() <= 64, "{}", size_of::<Class<'_>>());
    }
}
