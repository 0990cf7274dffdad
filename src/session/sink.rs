//! The reader's side of a session: every message is classified before the program gets it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::event::{DialFailure, Disconnect, MessageRef, ServerError, Stopped};
use crate::handler::{Connection, EventSink, Full, WokenContext};
use crate::metrics::CallOutcome;
use crate::session::builder::OnEvent;
use crate::session::calls::{ReplyRef, ReplyTo};
use crate::session::handle::fail_all;
use crate::session::protocol::{Class, Context, Protocol};
use crate::session::script::{OpeningScript, ScriptRun, StepOutcome};
use crate::session::shared::{SessionShared, leave_by, rejected_step};
use crate::session::subscriptions::Changes;
use crate::session_event::{SessionEvent, SubscriptionState};
use crate::sync;

/// An error message of the venue is taken for the reason of an end that follows it within this.
const SERVER_ERROR_WITHIN: Duration = Duration::from_secs(1);

/// Stands between the reader thread and whoever gets the messages.
pub(crate) struct SessionSink<P, D> {
    pub(crate) inner: D,
    pub(crate) protocol: Arc<P>,
    pub(crate) shared: Arc<SessionShared>,
    pub(crate) script: OpeningScript,
    pub(crate) on_event: Option<OnEvent>,
    pub(crate) drain_timeout: Duration,
    pub(crate) context: Context,
    pub(crate) connection: ConnectionState,
}

/// The sink's view of the connection.
pub(crate) struct ConnectionState {
    /// The opening script may be under way.
    is_opening: bool,
    opened_at: Instant,
    /// The messages of this `recv` that are no data.
    ignored: u64,
    server_error: Option<(ServerError, Instant)>,
}

impl ConnectionState {
    pub(crate) fn new(opened_at: Instant) -> Self {
        ConnectionState { is_opening: false, opened_at, ignored: 0, server_error: None }
    }
}

impl<P: Protocol, D: EventSink> SessionSink<P, D> {
    /// Shows a message to the step that listens. Returns `true` if it is the answer.
    #[cold]
    fn step(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) -> bool {
        let listening = match self.shared.listening_step(&self.script) {
            Ok(listening) => listening,
            Err(()) => {
                // The heartbeat thread has written the last message of the script.
                self.announce(connection);
                return false;
            }
        };
        let Some((index, step)) = listening else { return false };
        let Some(matcher) = &step.matcher else { return false };
        match matcher(message, &self.context) {
            StepOutcome::Unrelated => return false,
            StepOutcome::Accepted => {
                self.context = self.context.with_answer(step.name, message);
                let (context, now) = (self.context.clone(), sync::now());
                let to = |run: ScriptRun| run.accepted(index, &self.script, now);
                if self.shared.move_script(connection.epoch(), Some(context), to) {
                    self.announce(connection);
                } else {
                    self.shared.wake_heartbeat();
                }
            }
            StepOutcome::Rejected(rejection) => {
                connection.close_because(rejected_step(step.name, &rejection));
            }
        }
        true
    }

    /// Tells the program that the session is ready, and lets subscriptions go.
    fn announce(&mut self, connection: &mut Connection<'_>) {
        if !std::mem::take(&mut self.connection.is_opening) {
            return;
        }
        self.shared.note_change();
        self.inner.ready(connection);
        let took = sync::now().saturating_duration_since(self.connection.opened_at);
        self.tell(SessionEvent::Ready { epoch: connection.epoch(), took });
        self.shared.subscriptions.lock().begin(connection.epoch());
        self.shared.announced();
    }

    fn tell(&mut self, event: SessionEvent) {
        if let Some(on_event) = &self.on_event {
            on_event(&event);
        }
        self.inner.session_event(event);
    }

    /// Does what a class asks for. Returns `true` if the message is to be delivered.
    #[cold]
    #[inline(never)]
    fn handle(
        &mut self,
        connection: &mut Connection<'_>,
        message: MessageRef<'_>,
        class: Class<'_>,
    ) -> bool {
        let (epoch, now) = (connection.epoch(), message.received_at());
        match class {
            Class::Data => true,
            Class::Ignored => false,
            Class::Reply(id) => self.reply(connection, message, id),
            Class::Subscription { topic, update, alias } => {
                let changes = self.shared.subscriptions.lock().update(
                    &topic,
                    &update,
                    alias.as_deref(),
                    epoch,
                    now,
                );
                let is_unknown = changes.is_none();
                self.tell_changes(epoch, changes.unwrap_or_default());
                is_unknown
            }
            Class::ActiveTopics(topics) => {
                let names = topics.iter().map(AsRef::as_ref);
                let changes = self.shared.subscriptions.lock().active_topics(names, epoch, now);
                self.tell_changes(epoch, changes);
                false
            }
            Class::Respond(text) => {
                connection.queue_response(text.into_owned());
                false
            }
            Class::GoingAway(within) => {
                self.shared.going_away(leave_by(sync::now(), within, self.drain_timeout));
                self.tell(SessionEvent::GoingAway { epoch, within });
                false
            }
            Class::Failure(text) => {
                self.connection.server_error = Some((ServerError::new(&text), now));
                true
            }
            Class::Batch(classes) => classes.into_iter().fold(false, |is_delivered, class| {
                if self.is_over(connection) {
                    return false;
                }
                self.handle(connection, message, class) | is_delivered
            }),
        }
    }

    /// Gives a reply to the call or the subscription request that it answers. Returns `true` if
    /// there is none.
    fn reply(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>, id: u64) -> bool {
        let call = self.shared.calls.lock().take(id);
        if let Some(call) = call {
            if self.shared.is_leaving() {
                self.shared.wake_heartbeat();
            }
            match call.then {
                // It has room for the one message that comes. A caller that has gone needs none.
                ReplyTo::Caller(caller) => drop(caller.try_send(Ok(message.to_owned()))),
                ReplyTo::Closure(then) => {
                    let took = message.received_at().saturating_duration_since(call.began);
                    self.shared.tell_reply(CallOutcome::Replied, || {
                        then(Ok(ReplyRef { message, took }));
                    });
                }
            }
            return false;
        }
        let Some(request) = self.shared.subscriptions.lock().request(id) else { return true };
        let acceptance = self.protocol.subscription_reply(&request, message, &self.context);
        let epoch = connection.epoch();
        let now = message.received_at();
        let changes = self.shared.subscriptions.lock().reply(id, &acceptance, epoch, now);
        self.tell_changes(epoch, changes);
        false
    }

    /// Tells the program how the state of topics has changed.
    fn tell_changes(&mut self, epoch: u64, changes: Changes) {
        let is_active =
            |state: &SubscriptionState| matches!(state, SubscriptionState::Active { .. });
        let has_begun = changes.iter().any(|(_, state)| is_active(state));
        let shared = Arc::clone(&self.shared);
        shared.tell_changes(epoch, changes, |event| self.tell(event));
        let (settled, has_work) = {
            let mut subscriptions = self.shared.subscriptions.lock();
            (subscriptions.take_settled(epoch), subscriptions.has_work())
        };
        let is_watched = has_begun && !self.shared.watches.is_empty();
        if let Some(subscribed) = settled {
            self.tell(SessionEvent::Subscribed(subscribed));
        }
        self.shared.note_change();
        if has_work || is_watched {
            self.shared.wake_heartbeat();
        }
    }

    /// Nothing more is delivered: the program has stopped the client, or given the connection up.
    fn is_over(&self, connection: &Connection<'_>) -> bool {
        connection.is_delivery_over()
            || self.shared.client().is_ok_and(|client| client.shutdown.is_requested())
    }
}

impl<P: Protocol, D: EventSink> EventSink for SessionSink<P, D> {
    const CAN_BE_WOKEN: bool = D::CAN_BE_WOKEN;

    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.context = self.context.of_connection(connection.opening());
        self.connection = ConnectionState::new(sync::now());
        self.inner.opened(connection);
        self.connection.is_opening = true;
        // The time of the first step does not count the handler.
        let now = sync::now();
        if self.shared.opened(self.context.clone(), &self.script, now) {
            self.shared.note_change();
            self.shared.wake_heartbeat();
        } else {
            self.announce(connection);
        }
    }

    #[inline]
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        if self.connection.is_opening
            && (self.step(connection, message) || self.is_over(connection))
        {
            self.connection.ignored += 1;
            return;
        }
        let class = self.protocol.classify(message, &self.context);
        let is_data = if matches!(class, Class::Data) {
            // It holds nothing. To drop it costs a call, which looks for what it holds.
            std::mem::forget(class);
            true
        } else {
            self.handle(connection, message, class) && !self.is_over(connection)
        };
        if is_data {
            self.inner.message(connection, message);
        } else {
            self.connection.ignored += 1;
        }
    }

    #[inline]
    fn ignores(&self) -> bool {
        true
    }

    #[inline]
    fn take_ignored(&mut self) -> u64 {
        std::mem::take(&mut self.connection.ignored)
    }

    #[inline]
    fn batch_end(&mut self, connection: &mut Connection<'_>) {
        self.inner.batch_end(connection);
    }

    fn pong(&mut self, connection: &mut Connection<'_>, round_trip: Duration) {
        self.inner.pong(connection, round_trip);
    }

    fn woken(&mut self, context: &mut WokenContext<'_>) {
        if self.connection.is_opening && self.shared.listening_step(&self.script).is_err() {
            if let Some(connection) = context.connection() {
                self.announce(connection);
            }
        }
        // A wake-up of the session's own is not the handler's.
        if !context.is_for_layer() {
            self.inner.woken(context);
        }
    }

    fn end_recv(&mut self) -> Result<(), Full> {
        self.inner.end_recv()
    }

    fn is_ready(&self) -> bool {
        !self.connection.is_opening
    }

    fn disconnected(&mut self, disconnect: &mut Disconnect) {
        self.connection.is_opening = false;
        let (now, why) = (sync::now(), &disconnect.error);
        self.shared.disconnected(why);
        let ended = self.shared.calls.lock().ended(why);
        let panic = fail_all(&self.shared, ended, why);
        // A close frame or the end of TCP: a failing network says nothing about topics.
        let is_by_peer = why.kind() == ErrorKind::Closed;
        let suspects = self.shared.subscriptions.lock().ended(is_by_peer, now);
        let server_error = self.connection.server_error.take();
        disconnect.server_error = server_error
            .filter(|(_, at)| now.saturating_duration_since(*at) <= SERVER_ERROR_WITHIN)
            .map(|(error, _)| error);
        if panic.is_none() {
            for (topic, state) in suspects {
                self.tell(SessionEvent::Subscription { epoch: disconnect.epoch, topic, state });
            }
        }
        self.shared.note_change();
        self.inner.disconnected(disconnect);
        if let Some(panic) = panic {
            std::panic::resume_unwind(panic.into_payload());
        }
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        self.inner.dial_failed(failure);
    }

    fn stopped(&mut self, stopped: &Stopped) {
        self.inner.stopped(stopped);
    }
}

impl<P, D> Drop for SessionSink<P, D> {
    /// After a panic of the handler nobody tells the sink of the end.
    fn drop(&mut self) {
        self.shared.close();
        let why = Error::stopped();
        let ended = self.shared.calls.lock().ended(&why);
        if let (Some(panic), Ok(client)) =
            (fail_all(&self.shared, ended, &why), self.shared.client())
        {
            client.keep_panic(panic);
        }
    }
}
