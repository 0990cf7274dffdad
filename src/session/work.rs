//! The heartbeat thread's side of a session: the messages of the opening script, subscription
//! requests, and whatever is late.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::OpenConnection;
use crate::connection::close::CloseFrame;
use crate::connection::control::MessageWrite;
use crate::error::{CloseReason, Error, Timeout};
use crate::metrics::TopicCounts;
use crate::queue::Queue;
use crate::rate_limit::{Permit, SendKind};
use crate::runtime::work::HeartbeatWork;
use crate::session::builder::OnEvent;
use crate::session::handle::fail;
use crate::session::protocol::{Acceptance, Context, Outgoing, Protocol};
use crate::session::script::{OpeningScript, ScriptRun};
use crate::session::shared::{SessionShared, Task, late_step};
use crate::session::subscriptions::Changes;
use crate::session::watch::Silence;
use crate::session_event::{Rejection, SessionEvent};
use crate::sync::{self, panic};
use crate::time::{after, earliest};

/// The time after which the thread tries again what found no room.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The time after which it looks again whether a late answer lies unread.
const UNREAD_INTERVAL: Duration = Duration::from_millis(100);

/// The rate limits may have room sooner than they said, because a message that was let through did
/// not leave: the thread looks again after this time.
const LIMITED_INTERVAL: Duration = Duration::from_millis(250);

/// The number of subscription requests that are written before pongs and pings have their turn.
const REQUESTS_PER_TURN: usize = 16;

/// A maker of messages that takes longer than this delays pongs.
const SLOW_MAKER: Duration = Duration::from_millis(10);

/// Returns the room that the rate limits have for a message. One that says nothing needs none.
///
/// # Errors
/// The time to look again.
fn permit_for(
    connection: &OpenConnection,
    kind: SendKind,
    outgoing: &Outgoing,
) -> Result<Option<Permit>, Instant> {
    match outgoing.payload() {
        Some(_) => connection.limits.try_acquire(kind, 1, sync::now()).map(Some),
        None => Ok(None),
    }
}

fn commit(permit: Option<Permit>) {
    if let Some(permit) = permit {
        permit.commit(sync::now());
    }
}

/// Writes a message without waiting. One that says nothing counts as sent. `note` is called once
/// nothing stands in its way any more, before it leaves: the answer may come at once.
fn write(
    connection: &OpenConnection,
    outgoing: &Outgoing,
    what: &'static str,
    note: impl FnOnce(),
) -> io::Result<MessageWrite> {
    match outgoing.payload() {
        Some(payload) => connection.attempt_message(payload, what, note),
        None => {
            note();
            Ok(MessageWrite::Sent)
        }
    }
}

/// The work of the heartbeat thread for a session.
pub(crate) struct SessionWork<P> {
    pub(crate) protocol: Arc<P>,
    pub(crate) shared: Arc<SessionShared>,
    pub(crate) script: OpeningScript,
    pub(crate) on_event: Option<OnEvent>,
    /// The queue of a session that is pulled.
    pub(crate) queue: Option<Arc<Queue>>,
    pub(crate) batch: Batch,
    /// A message of the script that was made and has found no room.
    pub(crate) made: Option<(u64, usize, Outgoing)>,
}

/// The limits of one subscription request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) topics: usize,
    pub(crate) bytes: usize,
}

/// The result of a try to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Done,
    /// There is no room now.
    Later,
    /// The rate limits leave no room before this time.
    Limited(Instant),
    /// Nothing more is written on this connection: it is ending, or is ended for a panic of the
    /// program's code or for a message that may not be sent.
    Over,
}

impl<P: Protocol> HeartbeatWork for SessionWork<P> {
    fn run(
        &mut self,
        connection: &Arc<OpenConnection>,
        may_write: bool,
        now: Instant,
    ) -> (Option<Instant>, io::Result<()>) {
        // First, and whether anything can be written or not: callers wait for it.
        let next_call = self.expire_calls(connection, now);
        match self.advance(connection, may_write, now) {
            Ok(next) => (earliest([next, next_call]), Ok(())),
            Err(error) => (next_call, Err(error)),
        }
    }

    fn topics(&self) -> TopicCounts {
        self.shared.subscriptions.lock().counts()
    }
}

impl<P: Protocol> SessionWork<P> {
    /// Carries on with the script, or with subscriptions.
    fn advance(
        &mut self,
        connection: &Arc<OpenConnection>,
        may_write: bool,
        now: Instant,
    ) -> io::Result<Option<Instant>> {
        let epoch = connection.epoch;
        loop {
            match self.shared.task(epoch) {
                Task::Nothing => return Ok(None),
                // An answer that lies unread is not missing.
                Task::Step { run, .. } if run.is_late(now) && !connection.activity.is_in_recv() => {
                    return Ok(Some(after(now, UNREAD_INTERVAL)));
                }
                Task::Step { run, .. } if run.is_late(now) => {
                    if self.shared.give_up_step(epoch, now) {
                        self.fail_step(connection, run);
                        return Ok(None);
                    }
                }
                Task::Step { run, context } if run.is_unwritten() && may_write => {
                    let retry_at = match self.write_step(connection, run, &context)? {
                        Write::Done => continue,
                        Write::Later => after(now, RETRY_INTERVAL),
                        Write::Limited(at) => at.min(after(now, LIMITED_INTERVAL)),
                        Write::Over => return Ok(None),
                    };
                    return Ok(earliest([run.until(), Some(retry_at)]));
                }
                Task::Step { run, .. } => return Ok(run.until()),
                Task::Ready { context } if may_write => {
                    return self.subscribe(connection, &context, now);
                }
                Task::Ready { .. } => return Ok(None),
                Task::Leave { by } => {
                    if self.shared.calls.lock().end_drain(epoch, by <= now) {
                        // Not like a reconnect of the program's, which is dialed at once: a server
                        // that announces an end after each opening is backed off from.
                        let close = CloseReason::new(1000, "");
                        let context = "the server announced the end of the connection";
                        connection.close_because(Error::closed(close, context));
                        return Ok(None);
                    }
                    return Ok(Some(by));
                }
            }
        }
    }

    fn fail_step(&self, connection: &OpenConnection, run: ScriptRun) {
        let Some(step) = self.script.steps().get(run.step()) else { return };
        // One that is closing has its reason.
        if connection.check_open().is_err() {
            return;
        }
        connection.close_because(late_step(step.name, step.within.unwrap_or_default()));
    }

    /// Writes the message of a step.
    fn write_step(
        &mut self,
        connection: &Arc<OpenConnection>,
        run: ScriptRun,
        context: &Context,
    ) -> io::Result<Write> {
        let (epoch, index) = (connection.epoch, run.step());
        let kept = self.made.take().filter(|(of, step, _)| (*of, *step) == (epoch, index));
        let outgoing = match kept {
            Some((_, _, outgoing)) => outgoing,
            None => {
                let make = self.script.steps().get(index).and_then(|step| step.make.clone());
                let Some(make) = make else { return Ok(Write::Done) };
                match self.make(connection, || make(context)) {
                    Some(outgoing) => outgoing,
                    None => return Ok(Write::Over),
                }
            }
        };
        let permit = match permit_for(connection, SendKind::Opening, &outgoing) {
            Ok(permit) => permit,
            // Made anew then, with a timestamp of then.
            Err(at) => return Ok(Write::Limited(at)),
        };
        // Written down before it is written out: the answer may come at once.
        self.shared.move_script(epoch, None, |run| Some(run.writing(index)));
        let written = write(connection, &outgoing, "a step of the opening script", || ())?;
        match written {
            MessageWrite::Sent => commit(permit),
            MessageWrite::Over => return Ok(Write::Over),
            MessageWrite::Later => {
                self.shared.move_script(epoch, None, |run| Some(run.not_written(index)));
                self.made = Some((epoch, index, outgoing));
                return Ok(Write::Later);
            }
            MessageWrite::Refused(why) => {
                let name = self.script.steps().get(index).map_or("", |step| step.name);
                let error = Error::opening_step(name, "its message may not be sent", None);
                connection.close_because(error.because(why).permanent());
                return Ok(Write::Over);
            }
        }
        let now = sync::now();
        if self.shared.move_script(epoch, None, |run| run.written(index, &self.script, now)) {
            // The reader tells the program that the session is ready.
            self.shared.note_change();
            if let Ok(client) = self.shared.client() {
                client.wakeups.wake_layer();
            }
        }
        Ok(Write::Done)
    }

    /// Calls the program's maker of a message. `None` if it panicked.
    fn make(
        &self,
        connection: &Arc<OpenConnection>,
        make: impl FnOnce() -> Outgoing,
    ) -> Option<Outgoing> {
        let began = sync::now();
        let made = panic::catch(make);
        let took = sync::now().saturating_duration_since(began);
        if took > SLOW_MAKER {
            let label = connection.label();
            log::warn!("{label}: making a message took {took:.1?}: no pong is written meanwhile");
        }
        self.settle(connection, made, "what makes messages of the session panicked")
    }

    /// Ends the connection for a panic of the program's code.
    fn settle<T>(
        &self,
        connection: &OpenConnection,
        result: Result<T, panic::Panic>,
        context: &'static str,
    ) -> Option<T> {
        match (result, self.shared.client()) {
            (Ok(value), _) => Some(value),
            (Err(panic), Ok(client)) => {
                client.abort_for_panic(connection, panic, context);
                None
            }
            (Err(_), Err(_)) => None,
        }
    }

    /// Asks for topics and ends others, as far as there is room, and looks for what is late.
    fn subscribe(
        &mut self,
        connection: &Arc<OpenConnection>,
        context: &Context,
        now: Instant,
    ) -> io::Result<Option<Instant>> {
        let epoch = connection.epoch;
        // An answer that lies unread is not missing.
        let is_reading = connection.activity.is_in_recv();
        if is_reading {
            let late = self.shared.subscriptions.lock().overdue(epoch, now);
            if !late.is_empty() {
                self.tell_changes(connection, epoch, late);
            }
        }
        let mut retry_at = None;
        for turn in 0.. {
            if turn == REQUESTS_PER_TURN {
                retry_at = Some(now);
                break;
            }
            match self.write_request(connection, context)? {
                None => break,
                Some(Write::Done) => {}
                Some(Write::Later) => {
                    retry_at = Some(after(now, RETRY_INTERVAL));
                    break;
                }
                Some(Write::Limited(at)) => {
                    retry_at = Some(at.min(after(now, LIMITED_INTERVAL)));
                    break;
                }
                Some(Write::Over) => return Ok(None),
            }
        }
        // Nothing may be left to ask: the last topic has been unsubscribed, for example.
        self.tell_settled(connection);
        // Data that lies unread is no silence.
        let silent_at = match is_reading {
            true => self.look_for_silence(connection, now),
            false if self.shared.watches.is_empty() => None,
            false => Some(after(now, UNREAD_INTERVAL)),
        };
        let due = self.shared.subscriptions.lock().next_due();
        let due = due.map(|due| match is_reading {
            true => due,
            false => due.max(after(now, UNREAD_INTERVAL)),
        });
        Ok(earliest([retry_at, due, silent_at]))
    }

    /// Writes the next subscription request. `None` if there is none.
    fn write_request(
        &mut self,
        connection: &Arc<OpenConnection>,
        context: &Context,
    ) -> io::Result<Option<Write>> {
        let epoch = connection.epoch;
        let mut topics_max = self.batch.topics;
        loop {
            let (id, now) = (self.shared.ids.next(), sync::now());
            let next = self.shared.subscriptions.lock().request_on(epoch, id, topics_max, now);
            let Some(request) = next else { return Ok(None) };
            let make = || self.protocol.subscription_request(&request, context);
            let Some(outgoing) = self.make(connection, make) else {
                return Ok(Some(Write::Over));
            };
            let count = request.topics.len();
            if outgoing.len() > self.batch.bytes && count > 1 {
                self.withdraw(id);
                topics_max = count.div_ceil(2);
                continue;
            }
            let permit = match permit_for(connection, SendKind::Subscriptions, &outgoing) {
                Ok(permit) => permit,
                Err(at) => {
                    self.withdraw(id);
                    return Ok(Some(Write::Limited(at)));
                }
            };
            let note = || self.shared.subscriptions.lock().written(id, sync::now());
            let written = write(connection, &outgoing, "a subscription request", note);
            let now = sync::now();
            // One of which no byte left says nothing about the end of the connection.
            let written = written.inspect_err(|_| self.withdraw(id))?;
            match written {
                MessageWrite::Sent => commit(permit),
                // It did not leave, so that the end which is about to be told is not its fault.
                MessageWrite::Over => {
                    self.withdraw(id);
                    return Ok(Some(Write::Over));
                }
                MessageWrite::Later => {
                    self.withdraw(id);
                    return Ok(Some(Write::Later));
                }
                MessageWrite::Refused(_) if count > 1 => {
                    self.withdraw(id);
                    topics_max = count.div_ceil(2);
                    continue;
                }
                MessageWrite::Refused(why) => {
                    let refused = Acceptance::Nothing(Rejection::permanent(why.to_string()));
                    self.answer(connection, id, &refused, now);
                    return Ok(Some(Write::Done));
                }
            }
            if !outgoing.is_answered() {
                self.answer(connection, id, &Acceptance::All, now);
            }
            return Ok(Some(Write::Done));
        }
    }

    /// The request did not leave.
    fn withdraw(&self, id: u64) {
        self.shared.subscriptions.lock().withdraw(id);
        // It may have been about a topic that nobody wants any more.
        self.shared.note_change();
    }

    /// Answers a request in the venue's place.
    fn answer(&self, connection: &OpenConnection, id: u64, acceptance: &Acceptance, now: Instant) {
        let epoch = connection.epoch;
        let changes = self.shared.subscriptions.lock().reply(id, acceptance, epoch, now);
        self.tell_changes(connection, epoch, changes);
    }

    fn look_for_silence(&self, connection: &Arc<OpenConnection>, now: Instant) -> Option<Instant> {
        let active_since = |topic: &str| self.shared.subscriptions.lock().active_since(topic);
        let (silent, next) = self.shared.watches.silent(active_since, now);
        for silent in silent {
            let epoch = connection.epoch;
            let (topic, since) = (silent.topic.clone(), silent.since);
            self.tell(connection, SessionEvent::Silent { epoch, topic, since });
            match silent.then {
                Silence::Tell => {}
                Silence::Resubscribe => {
                    self.shared.subscriptions.lock().resubscribe(&silent.topic);
                    self.shared.wake_heartbeat();
                }
                Silence::Reconnect => connection.close_for_reconnect(CloseFrame::normal()),
            }
        }
        next
    }

    /// Ends calls whose time is up. Returns when the next one's is.
    fn expire_calls(&self, connection: &Arc<OpenConnection>, now: Instant) -> Option<Instant> {
        let expired = self.shared.calls.lock().expired(now);
        for call in expired {
            let within = call.until.saturating_duration_since(call.began);
            let why = Error::timed_out(Timeout::Call, within, "waiting for the reply");
            let why = self.shared.client().map_or(why.clone(), |client| client.named(why));
            let told = panic::catch(|| fail(&self.shared, call, &why));
            self.settle(connection, told, "what awaits the reply to a call panicked");
        }
        self.shared.calls.lock().next_due()
    }

    fn tell_changes(&self, connection: &OpenConnection, epoch: u64, changes: Changes) {
        self.shared.tell_changes(epoch, changes, |event| self.tell(connection, event));
        self.tell_settled(connection);
        self.shared.note_change();
    }

    /// Tells the program that everything has been answered, once.
    fn tell_settled(&self, connection: &OpenConnection) {
        let settled = self.shared.subscriptions.lock().take_settled(connection.epoch);
        if let Some(subscribed) = settled {
            self.tell(connection, SessionEvent::Subscribed(subscribed));
        }
    }

    fn tell(&self, connection: &OpenConnection, event: SessionEvent) {
        // Before the program's closure, which may take its time.
        if let Some(queue) = &self.queue {
            queue.push_session_event(connection.epoch, event.clone());
        }
        let Some(on_event) = &self.on_event else { return };
        // The reader may have told the end of the connection meanwhile.
        if self.shared.subscriptions.lock().is_on(connection.epoch) {
            let told = panic::catch(|| on_event(&event));
            self.settle(connection, told, "the closure of `on_event` panicked");
        }
    }
}
