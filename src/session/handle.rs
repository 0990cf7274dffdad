//! The handle of a session: subscriptions and calls, from any thread.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::OpenConnection;
use crate::error::{Error, ErrorKind, SendError, Timeout, write_name};
use crate::event::{Message, Receipt};
use crate::metrics::CallOutcome;
use crate::rate_limit::{Permit, SendKind};
use crate::session::calls::{Call, ReplyRef, ReplyTo, SentCall};
use crate::session::protocol::{CallContext, Context, Outgoing};
use crate::session::script::OpeningScript;
use crate::session::shared::{SessionShared, SessionState};
use crate::session::watch::{Silence, Watch};
use crate::session_event::{Subscribed, SubscriptionState, Topic};
use crate::sync;
use crate::sync::channel::bounded;
use crate::sync::panic::{self, Panic};
use crate::sync::wait::{Woken, wait};
use crate::time::Deadline;

/// Subscribes, calls and waits, from any thread. Cheap to clone.
///
/// A handle keeps neither the session nor its threads alive, and outlives them harmlessly.
///
/// Every method may be called on the client's own threads, inside the handler for example, but none
/// waits there: [`call`](SessionHandle::call), and [`wait_ready`](SessionHandle::wait_ready) or
/// [`wait_subscribed`](SessionHandle::wait_subscribed) if it would have to wait, fail with the kind
/// `Config`; [`call_with`](SessionHandle::call_with) and [`send`](SessionHandle::send) with the
/// kind `Limited` if the rate limits have no room now.
#[derive(Clone)]
pub struct SessionHandle {
    shared: Arc<SessionShared>,
    script: OpeningScript,
}

/// A call or a message of a session: what to send, and within what time.
///
/// ```
/// use std::time::Duration;
/// use tautline::session::Request;
///
/// let order = Request::new(|context| {
///     format!(r#"{{"id":{},"op":"order","ts":{}}}"#, context.id(), context.unix_millis()).into()
/// })
/// .within(Duration::from_secs(2));
/// # let _: Request<_> = order;
/// ```
#[must_use = "a request does nothing until it is called or sent"]
pub struct Request<F> {
    make: F,
    within: Duration,
    epoch: Option<u64>,
    weight: u32,
}

impl<F: FnOnce(&CallContext<'_>) -> Outgoing> Request<F> {
    /// Creates a request whose message `make` returns.
    ///
    /// `make` runs on the calling thread, once the rate limits have let the request through: a
    /// timestamp is fresh.
    pub fn new(make: F) -> Self {
        Request { make, within: Duration::from_secs(5), epoch: None, weight: 1 }
    }

    /// Sets the time for all of it: the wait for the rate limits and for other senders, the send,
    /// and the reply of a call. Once the rate limits have let it through, the send takes
    /// [`send_timeout`](crate::Builder::send_timeout) at most as well. Defaults to 5 s.
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// Sets how many messages the request counts as in the rate limits, for venues that weigh them.
    /// Defaults to 1.
    pub fn weighing(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Binds the request to the connection of one epoch: what was decided on its data does not
    /// leave by another. Defaults to the connection that is ready when the call is made.
    pub fn on_epoch(mut self, epoch: u64) -> Self {
        self.epoch = Some(epoch);
        self
    }
}

impl<F> fmt::Debug for Request<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("within", &self.within)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// The reply to a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reply {
    /// The message. The program reads what it says: a refusal is a reply too.
    pub message: Message,
    /// The receipt of the request.
    pub receipt: Receipt,
    /// The time from the start of the call to the `recv` that brought the reply.
    pub took: Duration,
}

/// The failure of a call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CallError {
    /// No byte of the request left. Calling again is safe.
    ///
    /// The kind of the error is [`NotReady`](ErrorKind::NotReady) while the session is not ready,
    /// and [`Limited`](ErrorKind::Limited) if the rate limits leave no room in time, of which
    /// [`Error::retry_in`] says when they would; otherwise as for
    /// [`Sender::send_text`](crate::Sender::send_text).
    NotSent(Error),
    /// The request left, at least in part, and no reply came: the connection ended, the time ran
    /// out, or the client was stopped. Ask the venue what became of it.
    Unknown {
        /// The reason.
        why: Error,
        /// The receipt of the request, if it left whole. Beside
        /// [`Disconnect::confirmed`](crate::Disconnect::confirmed) it tells whether the venue has
        /// read it.
        receipt: Option<Receipt>,
    },
}

impl CallError {
    /// Returns `true` if no byte left, so that calling again is safe.
    pub fn is_not_sent(&self) -> bool {
        matches!(self, CallError::NotSent(_))
    }

    /// Returns the reason.
    pub fn reason(&self) -> &Error {
        match self {
            CallError::NotSent(reason) | CallError::Unknown { why: reason, .. } => reason,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(self.reason(), f)?;
        f.write_str(match self {
            CallError::NotSent(_) => "the request was not sent",
            CallError::Unknown { .. } => "the request was sent, and its fate is unknown",
        })
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.reason())
    }
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotSent(reason) => CallError::NotSent(reason),
            SendError::Unknown(why) => CallError::Unknown { why, receipt: None },
        }
    }
}

/// A request on its way: where it goes, and until when. The rate limits have let it through.
struct Route {
    connection: Arc<OpenConnection>,
    context: Context,
    began: Instant,
    deadline: Deadline,
    permit: Option<Permit>,
}

/// A call whose message did not leave, or not all of it.
struct FailedCall {
    error: SendError,
    /// The reply to one that was sent in part has come all the same.
    is_replied: bool,
}

impl SessionHandle {
    pub(crate) fn new(shared: Arc<SessionShared>, script: OpeningScript) -> Self {
        SessionHandle { shared, script }
    }

    // ---- Subscriptions ----

    /// Wants these topics: each is asked for once the session is ready, and again on every later
    /// connection, until it is unsubscribed or rejected for good. Returns at once.
    ///
    /// Subscribing to a topic again changes nothing, unless it has been rejected for good: then it
    /// is asked for anew. One that is rejected for a while is asked for by itself; to ask sooner,
    /// unsubscribe from it first.
    ///
    /// # Errors
    /// `Config` beyond [`topics_max`](crate::session::SessionBuilder::topics_max): none of them is
    /// wanted then.
    pub fn subscribe<T: AsRef<str>>(
        &self,
        topics: impl IntoIterator<Item = T>,
    ) -> Result<(), Error> {
        let names: Vec<T> = topics.into_iter().collect();
        let protocol = self.shared.protocol();
        let group = |name| protocol.as_ref().map_or("", |protocol| protocol.group(name));
        let topics: Vec<(&str, &str)> =
            names.iter().map(|name| (name.as_ref(), group(name.as_ref()))).collect();
        let result = self.shared.subscriptions.lock().subscribe(&topics);
        self.shared.note_change();
        self.shared.wake_heartbeat();
        result.map_err(|error| self.named(error))
    }

    /// Wants these topics no more. Returns at once. One that the venue has been asked for is ended
    /// once it has answered; unknown ones are ignored.
    pub fn unsubscribe<T: AsRef<str>>(&self, topics: impl IntoIterator<Item = T>) {
        let names: Vec<T> = topics.into_iter().collect();
        // The program's `as_ref` does not run under the lock.
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        self.shared.subscriptions.lock().unsubscribe(names);
        self.shared.note_change();
        self.shared.wake_heartbeat();
    }

    /// Ends an active topic and asks for it again: for a gap in a sequence that only a new snapshot
    /// mends. Returns at once.
    ///
    /// It does nothing in any other state of the topic, so that a handler may say it at every
    /// message until the new snapshot comes.
    pub fn resubscribe(&self, topic: &str) {
        let is_new = self.shared.subscriptions.lock().resubscribe(topic);
        if is_new {
            self.shared.note_change();
            self.shared.wake_heartbeat();
        }
    }

    /// Returns the state of a topic; `None` if the session does not have it.
    ///
    /// After [`unsubscribe`](SessionHandle::unsubscribe) it has it until the venue has ended it or
    /// the connection has ended. No event tells of that.
    pub fn subscription(&self, topic: &str) -> Option<SubscriptionState> {
        self.on_one_epoch(|epoch| self.shared.subscriptions.lock().state(topic, epoch))
    }

    /// Returns all topics in the order of their subscription, those that are being ended included,
    /// each with its state.
    pub fn subscriptions(&self) -> Vec<(Topic, SubscriptionState)> {
        self.on_one_epoch(|epoch| self.shared.subscriptions.lock().states(epoch))
    }

    /// Returns what `look` sees while the epoch stays the same.
    fn on_one_epoch<T>(&self, look: impl Fn(u64) -> T) -> T {
        loop {
            let epoch = self.shared.epoch();
            let seen = look(epoch);
            if self.shared.epoch() == epoch {
                return seen;
            }
        }
    }

    /// Watches a topic: once it has been active and silent for `silence`, the session tells it with
    /// [`SessionEvent::Silent`](crate::session::SessionEvent::Silent) and does what `then` says.
    /// It tells each silence once. The watch ends when the last clone of the returned value is
    /// dropped.
    ///
    /// The session does not read data: the program calls [`Watch::seen`] for every message of the
    /// topic.
    pub fn watch(&self, topic: &str, silence: Duration, then: Silence) -> Watch {
        let watch = self.shared.watches.add(topic, silence, then);
        self.shared.wake_heartbeat();
        watch
    }

    // ---- Waiting ----

    /// Returns the state of the session.
    pub fn state(&self) -> SessionState {
        self.shared.state(&self.script)
    }

    /// Waits until the session is ready, for `timeout` at most, and returns the epoch.
    ///
    /// # Errors
    /// `NotReady` before the start; `Timeout`, with the last failure as its cause; `Config` on a
    /// thread of the client's own, where it would wait for itself; otherwise the reason why the
    /// client has ended.
    pub fn wait_ready(&self, timeout: Duration) -> Result<u64, Error> {
        let waits = "waiting for the session to be ready";
        self.wait(Timeout::WaitReady, timeout, waits, || self.ready_epoch())
    }

    /// Waits until the session is ready and the venue has answered for every topic, for `timeout`
    /// at most.
    ///
    /// # Errors
    /// As [`wait_ready`](SessionHandle::wait_ready).
    pub fn wait_subscribed(&self, timeout: Duration) -> Result<Subscribed, Error> {
        let waits = "waiting for the subscriptions";
        self.wait(Timeout::WaitSubscribed, timeout, waits, || {
            let epoch = self.ready_epoch()?;
            let subscriptions = self.shared.subscriptions.lock();
            subscriptions.is_on(epoch).then(|| subscriptions.settled(epoch))?
        })
    }

    /// Returns the epoch of the connection by which calls may go out now: one that is about to end
    /// takes none.
    fn ready_epoch(&self) -> Option<u64> {
        let epoch = self.shared.ready(None).ok()?.epoch();
        let connection = self.shared.client().ok()?.open_connection().ok()?;
        (connection.epoch == epoch && connection.check_open().is_ok()).then_some(epoch)
    }

    /// Waits until the session has been ready once, or its first connection has ended before.
    pub(crate) fn wait_first_ready(&self) -> Result<(), Error> {
        let waits = "waiting for the session to be ready";
        // The steps have deadlines of their own.
        self.wait(Timeout::WaitReady, Duration::MAX, waits, || self.shared.first_result())?
    }

    fn wait<T>(
        &self,
        name: Timeout,
        timeout: Duration,
        context: &str,
        look: impl FnMut() -> Option<T>,
    ) -> Result<T, Error> {
        let client = self.shared.client()?;
        client.wait_for(Deadline::new(name, timeout, sync::now()), context, look)
    }

    // ---- Calls ----

    /// Sends a request and waits for the reply: the message that
    /// [`classify`](crate::session::Protocol::classify) calls the reply to its id.
    ///
    /// Waits for [`within`](Request::within) at most in all. A reply that comes later is delivered
    /// like data. The message goes by the connection that is ready now, and the call ends with it:
    /// nothing is queued for a connection.
    ///
    /// # Errors
    /// [`CallError::NotSent`] or [`CallError::Unknown`]. On a thread of the client's own, the
    /// handler's for example, it is refused with `NotSent` and the kind `Config`, because it would
    /// wait for itself: use [`call_with`](SessionHandle::call_with) there.
    pub fn call<F>(&self, request: Request<F>) -> Result<Reply, CallError>
    where
        F: FnOnce(&CallContext<'_>) -> Outgoing,
    {
        let result = self.call_and_wait(request);
        // By this thread, whatever its fate and whoever found it: the recorder is the program's,
        // and if it hangs, it holds up the thread that calls it.
        self.shared.call_over(match &result {
            Ok(_) => CallOutcome::Replied,
            Err(CallError::NotSent(_)) => CallOutcome::NotSent,
            Err(CallError::Unknown { .. }) => CallOutcome::Unknown,
        });
        result
    }

    fn call_and_wait<F>(&self, request: Request<F>) -> Result<Reply, CallError>
    where
        F: FnOnce(&CallContext<'_>) -> Outgoing,
    {
        let client = self.shared.client().map_err(CallError::NotSent)?;
        if client.threads.is_own_thread() {
            let context = "a call on a thread of the client's own, which would wait for itself: \
                           use `call_with` there";
            return Err(CallError::NotSent(self.named(Error::config(context))));
        }
        let route = self.route(&request).map_err(CallError::NotSent)?;
        let (deadline, began) = (route.deadline, route.began);
        let (reply_tx, answer) = bounded(1);
        let dispatched = self.dispatch(route, request.make, ReplyTo::Caller(reply_tx));
        let (id, receipt, sent) = dispatched.map_err(|failed| failed.error)?;
        let unknown =
            |why: Error| Err(CallError::Unknown { why: self.named(why), receipt: Some(receipt) });
        if let SentCall::Ended(_, why) = sent {
            return unknown(why);
        }
        let fate = match wait(&client.shutdown, &answer, Some(deadline.at())) {
            Woken::Received(fate) => fate,
            woken => match self.take_call(id) {
                Some(_) => {
                    let is_stopped = matches!(woken, Woken::Shutdown);
                    let late = || deadline.error("waiting for the reply");
                    Err(if is_stopped { Error::stopped() } else { late() })
                }
                // Somebody has taken it, and hands its fate over before anything of the program's
                // runs.
                None => answer.recv().unwrap_or_else(|_| Err(Error::stopped())),
            },
        };
        match fate {
            Ok(message) => {
                let took = message.received_at().saturating_duration_since(began);
                Ok(Reply { message, receipt, took })
            }
            Err(why) => unknown(why),
        }
    }

    /// Sends a request and returns. `then` gets the reply on the reader thread, borrowed from the
    /// read buffer, or the failure on the thread that finds it: the reader, the heartbeat thread or
    /// the caller. It must be quick. A panic in it ends the client, except on the caller's thread,
    /// where it goes on to the caller.
    ///
    /// `then` is called once if this returns `Ok`, and not at all if it returns `NotSent`. After
    /// `Unknown` it is dropped, unless a reply has come all the same. If the connection ends while
    /// the request is being sent, `then` is called by this method, perhaps after the end has been
    /// told. The deadline is as for [`call`](SessionHandle::call).
    ///
    /// # Errors
    /// As [`Sender::send_text`](crate::Sender::send_text), and `NotSent` with the kind
    /// [`NotReady`](ErrorKind::NotReady) while the session is not ready.
    pub fn call_with<F>(
        &self,
        request: Request<F>,
        then: impl FnOnce(Result<ReplyRef<'_>, CallError>) + Send + 'static,
    ) -> Result<Receipt, SendError>
    where
        F: FnOnce(&CallContext<'_>) -> Outgoing,
    {
        let route = self.route(&request).map_err(|error| {
            self.shared.call_over(CallOutcome::NotSent);
            SendError::NotSent(error)
        })?;
        let then = ReplyTo::Closure(Box::new(then));
        let dispatched = self.dispatch(route, request.make, then);
        let (_, receipt, sent) = dispatched.map_err(|FailedCall { error, is_replied }| {
            if !is_replied {
                self.shared.call_over(match error {
                    SendError::NotSent(_) => CallOutcome::NotSent,
                    SendError::Unknown(_) => CallOutcome::Unknown,
                });
            }
            error
        })?;
        match sent {
            SentCall::Waits => {}
            SentCall::WakeHeartbeat => self.shared.wake_heartbeat(),
            SentCall::Ended(call, why) => fail(&self.shared, call, &why),
        }
        Ok(receipt)
    }

    /// Sends a request and awaits nothing.
    ///
    /// # Errors
    /// As [`call_with`](SessionHandle::call_with).
    pub fn send<F>(&self, request: Request<F>) -> Result<Receipt, SendError>
    where
        F: FnOnce(&CallContext<'_>) -> Outgoing,
    {
        let not_sent = |error: &SendError| {
            if let Ok(client) = self.shared.client() {
                client.counters.metrics.send_failed(error);
            }
        };
        let route = self.route(&request).map_err(SendError::NotSent).inspect_err(not_sent)?;
        let id = self.shared.ids.next();
        let context = CallContext::new(&route.context, id);
        let outgoing = panic::catch(|| (request.make)(&context)).unwrap_or_else(|panic| {
            let context = "the maker of the message panicked";
            not_sent(&SendError::NotSent(Error::config(context)));
            std::panic::resume_unwind(panic.into_payload())
        });
        let is_empty = outgoing.payload().is_none();
        // The connection counts what gets as far as there.
        self.send_on(route, &outgoing).inspect_err(|error| {
            if is_empty {
                not_sent(error);
            }
        })
    }

    /// Returns the way of a request, if the session is ready and the rate limits let it through.
    fn route<F>(&self, request: &Request<F>) -> Result<Route, Error> {
        let began = sync::now();
        let client = self.shared.client()?;
        if client.shutdown.is_requested() {
            return Err(client.named(Error::stopped()));
        }
        let context = self.shared.ready(request.epoch).map_err(|error| client.named(error))?;
        let connection = client.open_connection()?;
        if connection.epoch != context.epoch() {
            let error = Error::new(ErrorKind::NotReady, "the session is not ready: wait for it");
            return Err(client.named(error));
        }
        let deadline = Deadline::new(Timeout::Call, request.within, began);
        let permit = connection.permit(SendKind::Calls, request.weight, deadline);
        let permit = permit.map_err(|error| client.named(error))?;
        Ok(Route { connection, context, began, deadline, permit })
    }

    /// Writes a call down, and sends it.
    fn dispatch<F>(
        &self,
        route: Route,
        make: F,
        then: ReplyTo,
    ) -> Result<(u64, Receipt, SentCall), FailedCall>
    where
        F: FnOnce(&CallContext<'_>) -> Outgoing,
    {
        let id = self.shared.ids.next();
        let context = CallContext::new(&route.context, id);
        let outgoing = panic::catch(|| make(&context)).unwrap_or_else(|panic| {
            self.shared.call_over(CallOutcome::NotSent);
            std::panic::resume_unwind(panic.into_payload())
        });
        let (epoch, until) = (route.connection.epoch, route.deadline.at());
        // Written down before the first byte leaves: the reply may be here before the send returns.
        let inserted = self.shared.calls.lock().insert(id, epoch, route.began, until, then);
        if inserted.is_err() {
            let context = "the server has announced the end of the connection";
            let error = self.named(Error::new(ErrorKind::NotReady, context));
            return Err(FailedCall { error: SendError::NotSent(error), is_replied: false });
        }
        match self.send_on(route, &outgoing) {
            Ok(receipt) => {
                let sent = self.shared.calls.lock().sent(id, receipt);
                Ok((id, receipt, sent))
            }
            Err(error) => {
                let is_replied = self.take_call(id).is_none();
                Err(FailedCall { error, is_replied })
            }
        }
    }

    fn send_on(&self, route: Route, outgoing: &Outgoing) -> Result<Receipt, SendError> {
        let Some(payload) = outgoing.payload() else {
            let error = Error::config("a request without a message: there is nothing to send");
            return Err(SendError::NotSent(self.named(error)));
        };
        route.connection.send_by(payload, route.permit, route.deadline)
    }

    fn take_call(&self, id: u64) -> Option<Call> {
        let call = self.shared.calls.lock().take(id);
        if self.shared.is_leaving() {
            self.shared.wake_heartbeat();
        }
        call
    }

    fn named(&self, error: Error) -> Error {
        match self.shared.client() {
            Ok(client) => client.named(error),
            Err(_) => error,
        }
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SessionHandle");
        if let Ok(client) = self.shared.client() {
            shown.field("client", client.name());
        }
        shown.field("state", &self.state()).finish_non_exhaustive()
    }
}

/// Tells calls that they have failed: those first that a thread waits for, which must not wait for
/// the closures of others. Returns the first panic of a closure.
#[must_use = "a panic of the program's code ends the client"]
pub(crate) fn fail_all(shared: &SessionShared, calls: Vec<Call>, why: &Error) -> Option<Panic> {
    let (waited_for, others): (Vec<Call>, Vec<Call>) =
        calls.into_iter().partition(|call| matches!(call.then, ReplyTo::Caller(_)));
    let mut first = None;
    for call in waited_for.into_iter().chain(others) {
        if let Err(panic) = panic::catch(|| fail(shared, call, why)) {
            first.get_or_insert(panic);
        }
    }
    first
}

/// Tells a call that it has failed.
pub(crate) fn fail(shared: &SessionShared, call: Call, why: &Error) {
    let receipt = call.receipt();
    match call.then {
        // It has room for the one message that comes. A caller that has gone needs none.
        ReplyTo::Caller(caller) => drop(caller.try_send(Err(why.clone()))),
        ReplyTo::Closure(then) => shared.tell_reply(CallOutcome::Unknown, || {
            then(Err(CallError::Unknown { why: why.clone(), receipt }));
        }),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_a_call_says_its_reason_once() {
        let reason = || Error::new(ErrorKind::Closed, "the connection ended");
        for (error, text) in [
            (CallError::NotSent(reason()), "the request was not sent"),
            (
                CallError::Unknown { why: reason(), receipt: None },
                "the request was sent, and its fate is unknown",
            ),
        ] {
            assert_eq!(error.to_string(), text);
            let source = std::error::Error::source(&error).expect("the reason");
            assert_eq!(source.to_string(), "the connection ended");
        }
    }
}
