//! The state that a session's handles, its sink and its work share.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::metrics::CallOutcome;
use crate::runtime::shared::Shared;
use crate::session::calls::Calls;
use crate::session::protocol::{Context, Ids, Protocol};
use crate::session::script::{OpeningScript, ScriptRun, Step};
use crate::session::subscriptions::{Changes, Subscriptions};
use crate::session::watch::Watches;
use crate::session_event::{Rejection, SessionEvent};
use crate::sync::{Mutex, panic};
use crate::time::after;

/// Shared by the handles of a session, the reader thread and the heartbeat thread.
///
/// None of its locks is held while another is taken, or while the program's code runs. Only that of
/// the subscriptions is taken under another, a connection's writer.
pub(crate) struct SessionShared {
    inner: Mutex<Inner>,
    pub(crate) subscriptions: Mutex<Subscriptions>,
    pub(crate) calls: Mutex<Calls>,
    pub(crate) watches: Watches,
    pub(crate) ids: Arc<Ids>,
    /// Weak, because a protocol may hold a handle. The client's threads keep it alive.
    protocol: Weak<dyn Protocol>,
    /// Set at the start.
    client: OnceLock<Arc<Shared>>,
}

/// The life of a session on one connection after the other.
struct Inner {
    stage: Stage,
    /// The venue has announced the end: the connection is left by this time.
    leaves_by: Option<Instant>,
    context: Context,
    /// The reason why the first connection ended before the session was ready.
    first_failure: Option<Error>,
    has_been_ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Disconnected,
    Opening(ScriptRun),
    /// The script is done.
    Ready {
        /// The program has been told, and subscriptions may be asked for.
        is_announced: bool,
    },
}

/// The task of the heartbeat thread on a connection.
pub(crate) enum Task {
    Nothing,
    /// A step of the script is under way.
    Step {
        run: ScriptRun,
        context: Context,
    },
    /// Subscriptions may be asked for.
    Ready {
        context: Context,
    },
    /// Calls may finish until this time.
    Leave {
        by: Instant,
    },
}

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// No connection is open.
    Disconnected,
    /// The opening script is under way.
    Opening {
        /// The current step.
        step: &'static str,
    },
    /// The script is done: calls and subscription requests go out. Once the venue has announced the
    /// end of the connection, the state stays `Ready`, and new calls are refused with the kind
    /// [`NotReady`](crate::ErrorKind::NotReady) until the next connection is ready.
    Ready {
        /// The epoch of the connection.
        epoch: u64,
    },
}

impl SessionShared {
    pub(crate) fn new(
        protocol: Weak<dyn Protocol>,
        subscriptions: Subscriptions,
    ) -> Arc<SessionShared> {
        let ids = Arc::new(Ids::new());
        Arc::new(SessionShared {
            inner: Mutex::new(Inner {
                stage: Stage::Disconnected,
                leaves_by: None,
                context: Context::new(Arc::clone(&ids)),
                first_failure: None,
                has_been_ready: false,
            }),
            subscriptions: Mutex::new(subscriptions),
            calls: Mutex::default(),
            watches: Watches::default(),
            ids,
            protocol,
            client: OnceLock::new(),
        })
    }

    /// The client exists from now on.
    pub(crate) fn adopt_client(&self, client: &Arc<Shared>) {
        client.counters.metrics.add_session();
        let _ = self.client.set(Arc::clone(client));
    }

    /// Gives a closure of the program's the reply or the failure of its call, and then counts the
    /// call, after a panic too.
    pub(crate) fn tell_reply(&self, outcome: CallOutcome, tell: impl FnOnce()) {
        let told = panic::catch(tell);
        self.call_over(outcome);
        if let Err(panic) = told {
            std::panic::resume_unwind(panic.into_payload());
        }
    }

    /// A call is over: counts it. A call that a thread waits for is counted by that thread.
    pub(crate) fn call_over(&self, outcome: CallOutcome) {
        if let Some(client) = self.client.get() {
            client.counters.metrics.call_over(outcome);
        }
    }

    /// Returns the client.
    ///
    /// # Errors
    /// `NotReady` before the start.
    pub(crate) fn client(&self) -> Result<&Arc<Shared>, Error> {
        self.client.get().ok_or_else(|| {
            Error::new(ErrorKind::NotReady, "the session has not been started: start it first")
        })
    }

    /// Returns the protocol, while the session has not ended.
    pub(crate) fn protocol(&self) -> Option<Arc<dyn Protocol>> {
        self.protocol.upgrade()
    }

    pub(crate) fn wake_heartbeat(&self) {
        if let Some(client) = self.client.get() {
            client.wake_heartbeat();
        }
    }

    /// Tells the program of changes with `tell`. The reader and the heartbeat thread may do so at
    /// the same time: the state that is told last is the one that the topic has.
    pub(crate) fn tell_changes(
        &self,
        epoch: u64,
        changes: Changes,
        mut tell: impl FnMut(SessionEvent),
    ) {
        for (topic, state) in changes {
            let mut next = Some(state);
            while let Some(state) = next {
                let event = SessionEvent::Subscription {
                    epoch,
                    topic: topic.clone(),
                    state: state.clone(),
                };
                tell(event);
                next = self.subscriptions.lock().told(&topic, &state, epoch);
            }
        }
    }

    /// Whoever waits for a state of the session looks again.
    pub(crate) fn note_change(&self) {
        if let Some(client) = self.client.get() {
            client.note_change();
        }
    }

    // ---- The life of the session ----

    pub(crate) fn epoch(&self) -> u64 {
        self.inner.lock().context.epoch()
    }

    pub(crate) fn state(&self, script: &OpeningScript) -> SessionState {
        let inner = self.inner.lock();
        match inner.stage {
            Stage::Disconnected => SessionState::Disconnected,
            Stage::Opening(run) => {
                let step = script.steps().get(run.step()).map_or("", |step| step.name);
                SessionState::Opening { step }
            }
            Stage::Ready { .. } => SessionState::Ready { epoch: inner.context.epoch() },
        }
    }

    /// Returns the context of the connection on which calls may be made.
    ///
    /// # Errors
    /// `NotReady`.
    pub(crate) fn ready(&self, epoch: Option<u64>) -> Result<Context, Error> {
        let refused = |what: &'static str| Err(Error::new(ErrorKind::NotReady, what));
        let inner = self.inner.lock();
        match inner.stage {
            Stage::Disconnected => {
                refused("no connection is open: wait until the session is ready")
            }
            Stage::Opening(_) => {
                refused("the opening script is not done: wait until the session is ready")
            }
            Stage::Ready { .. } if inner.leaves_by.is_some() => {
                refused("the venue ends this connection: wait until the session is ready again")
            }
            Stage::Ready { .. } if epoch.is_some_and(|epoch| epoch != inner.context.epoch()) => {
                refused("the connection of that epoch has ended")
            }
            Stage::Ready { .. } => Ok(inner.context.clone()),
        }
    }

    /// A connection is open. Returns `true` if the script has steps.
    pub(crate) fn opened(&self, context: Context, script: &OpeningScript, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        let run = ScriptRun::begin(script, now);
        inner.context = context;
        inner.leaves_by = None;
        inner.stage = run.map_or(Stage::READY, Stage::Opening);
        inner.has_been_ready |= run.is_none();
        run.is_some()
    }

    /// Returns the step that listens, with its index. `Err` if the script is done.
    pub(crate) fn listening_step(
        &self,
        script: &OpeningScript,
    ) -> Result<Option<(usize, Step)>, ()> {
        match self.inner.lock().stage {
            Stage::Opening(run) if run.is_unwritten() => Ok(None),
            Stage::Opening(run) => {
                Ok(script.steps().get(run.step()).map(|step| (run.step(), step.clone())))
            }
            Stage::Disconnected => Ok(None),
            Stage::Ready { .. } => Err(()),
        }
    }

    /// Moves the script on, if it still runs on the connection of `epoch`. Returns `true` if that
    /// was its end.
    pub(crate) fn move_script(
        &self,
        epoch: u64,
        context: Option<Context>,
        to: impl FnOnce(ScriptRun) -> Option<ScriptRun>,
    ) -> bool {
        let mut inner = self.inner.lock();
        let Stage::Opening(run) = inner.stage else { return false };
        if inner.context.epoch() != epoch {
            return false;
        }
        let next = to(run);
        inner.stage = next.map_or(Stage::READY, Stage::Opening);
        inner.has_been_ready |= next.is_none();
        // The old one is no last reference: the sink has another.
        if let Some(context) = context {
            inner.context = context;
        }
        next.is_none()
    }

    /// The current step of the connection of `epoch` is late, and no answer to it counts any more.
    /// Returns `false` if it has been answered meanwhile.
    pub(crate) fn give_up_step(&self, epoch: u64, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        let is_late = matches!(inner.stage, Stage::Opening(run) if run.is_late(now))
            && inner.context.epoch() == epoch;
        if is_late {
            inner.stage = Stage::Disconnected;
        }
        is_late
    }

    /// The program has been told that the session is ready.
    pub(crate) fn announced(&self) {
        if let Stage::Ready { is_announced } = &mut self.inner.lock().stage {
            *is_announced = true;
        }
        self.wake_heartbeat();
    }

    /// The venue has announced the end of the connection, which is left by `by`.
    pub(crate) fn going_away(&self, by: Instant) {
        {
            let mut inner = self.inner.lock();
            inner.leaves_by = Some(inner.leaves_by.map_or(by, |earlier| earlier.min(by)));
        }
        self.wake_heartbeat();
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.inner.lock().leaves_by.is_some()
    }

    /// The reader has gone.
    pub(crate) fn close(&self) {
        self.inner.lock().stage = Stage::Disconnected;
    }

    /// The connection has ended.
    pub(crate) fn disconnected(&self, why: &Error) {
        let mut inner = self.inner.lock();
        inner.stage = Stage::Disconnected;
        if !inner.has_been_ready && inner.first_failure.is_none() {
            inner.first_failure = Some(why.clone());
        }
    }

    /// Returns whether the session has been ready, or why its first connection ended before. `None`
    /// while neither is known.
    pub(crate) fn first_result(&self) -> Option<Result<(), Error>> {
        let inner = self.inner.lock();
        match &inner.first_failure {
            _ if inner.has_been_ready => Some(Ok(())),
            Some(error) => Some(Err(error.clone())),
            None => None,
        }
    }

    /// Returns what the heartbeat thread has to do on the connection of `epoch`.
    pub(crate) fn task(&self, epoch: u64) -> Task {
        let inner = self.inner.lock();
        if inner.context.epoch() != epoch {
            return Task::Nothing;
        }
        let context = inner.context.clone();
        match inner.stage {
            Stage::Opening(run) => Task::Step { run, context },
            Stage::Ready { is_announced } => match inner.leaves_by {
                Some(by) => Task::Leave { by },
                None if is_announced => Task::Ready { context },
                None => Task::Nothing,
            },
            Stage::Disconnected => Task::Nothing,
        }
    }
}

impl Stage {
    const READY: Stage = Stage::Ready { is_announced: false };
}

/// The error of a step that the venue has rejected.
pub(crate) fn rejected_step(step: &'static str, rejection: &Rejection) -> Error {
    let error = Error::opening_step(step, "rejected", rejection.retry_after())
        .because_of_text(rejection.reason());
    if rejection.is_permanent() { error.permanent() } else { error }
}

/// The error of a step that has taken too long.
pub(crate) fn late_step(step: &'static str, within: Duration) -> Error {
    Error::opening_step(step, format!("timed out after {within:?}"), None)
}

/// The time by which a connection is left whose end has been announced.
pub(crate) fn leave_by(now: Instant, within: Option<Duration>, drain_timeout: Duration) -> Instant {
    after(now, within.map_or(drain_timeout, |within| within.min(drain_timeout)))
}
