//! The builder of a session: its settings, and its start.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::builder::Builder;
use crate::client::{Client, Layer, Pull, Push};
use crate::error::Error;
use crate::handler::{EventSink, Handler, HandlerSink};
use crate::queue::{Queue, QueueSink};
use crate::runtime::shared::Shared;
use crate::runtime::work::HeartbeatWork;
use crate::session::Session;
use crate::session::handle::SessionHandle;
use crate::session::protocol::{Context, Protocol};
use crate::session::script::OpeningScript;
use crate::session::shared::SessionShared;
use crate::session::sink::{ConnectionState, SessionSink};
use crate::session::subscriptions::Subscriptions;
use crate::session::work::{Batch, SessionWork};
use crate::session_event::SessionEvent;
use crate::sync;

/// Told the events of a session.
pub(crate) type OnEvent = Arc<dyn Fn(&SessionEvent) + Send + Sync>;

/// Builds a session: [`Builder::session`] creates one.
///
/// A clone starts another session with the same settings and a handle of its own.
#[must_use = "a builder does nothing until `connect` or `start`"]
pub struct SessionBuilder<P> {
    builder: Builder,
    protocol: Arc<P>,
    script: OpeningScript,
    settings: Settings,
    shared: Arc<SessionShared>,
}

#[derive(Clone)]
struct Settings {
    batch: Batch,
    topics_max: usize,
    ack_timeout: Duration,
    drain_timeout: Duration,
    on_event: Option<OnEvent>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            batch: Batch { topics: 1, bytes: 64 << 10 },
            topics_max: usize::MAX,
            ack_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(5),
            on_event: None,
        }
    }
}

impl Builder {
    /// Turns the settings of a client into those of a session, which speaks `protocol`. See the
    /// module [`session`](crate::session).
    ///
    /// [`Protocol::opening`] is called here.
    pub fn session<P: Protocol>(self, protocol: P) -> SessionBuilder<P> {
        let (protocol, settings) = (Arc::new(protocol), Settings::default());
        let script = protocol.opening();
        let shared = new_shared(&protocol, &settings);
        SessionBuilder { builder: self, protocol, script, settings, shared }
    }
}

fn new_shared<P: Protocol>(protocol: &Arc<P>, settings: &Settings) -> Arc<SessionShared> {
    let subscriptions = Subscriptions::new(settings.ack_timeout, settings.topics_max);
    let protocol: Weak<dyn Protocol> = Arc::<P>::downgrade(protocol);
    SessionShared::new(protocol, subscriptions)
}

/// Returns the sink of a session without a client and without an opening script.
#[cfg(all(feature = "_internals", unix))]
pub(crate) fn sink<P: Protocol>(protocol: P, inner: impl EventSink) -> impl EventSink {
    let (protocol, settings) = (Arc::new(protocol), Settings::default());
    let shared = new_shared(&protocol, &settings);
    SessionSink {
        inner,
        protocol,
        context: Context::new(Arc::clone(&shared.ids)),
        shared,
        script: OpeningScript::new(),
        on_event: settings.on_event,
        drain_timeout: settings.drain_timeout,
        connection: ConnectionState::new(sync::now()),
    }
}

impl<P: Protocol> SessionBuilder<P> {
    /// Sets how many topics one subscription request may hold, and how many bytes: those of the
    /// whole message. A request for one topic may be longer.
    ///
    /// Defaults to 1 topic and 64 KiB. Zero topics count as one.
    pub fn batch(mut self, topics: usize, bytes: usize) -> Self {
        self.settings.batch = Batch { topics, bytes };
        self
    }

    /// Sets how many topics the session may want at a time, because a venue limits those of a
    /// connection. Defaults to no limit.
    pub fn topics_max(mut self, topics: usize) -> Self {
        self.settings.topics_max = topics;
        self.shared.subscriptions.lock().set_limits(self.settings.ack_timeout, topics);
        self
    }

    /// Sets the time after which a subscription request counts as lost that the venue has not
    /// answered. Its topics are then asked for again, with twice the time, and so on up to 5 min.
    ///
    /// It is not judged while the handler runs, because the answer may lie unread. `Config` at the
    /// start if it is zero. Defaults to 10 s.
    pub fn ack_timeout(mut self, limit: Duration) -> Self {
        self.settings.ack_timeout = limit;
        self.shared.subscriptions.lock().set_limits(limit, self.settings.topics_max);
        self
    }

    /// Sets the time that calls may still take on a connection whose end the venue has announced
    /// ([`Class::GoingAway`](crate::session::Class::GoingAway)). The time that the venue says
    /// applies if it is shorter. Defaults to 5 s.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.settings.drain_timeout = limit;
        self
    }

    /// Sets a closure that is told every event of the session, on the thread that finds it: the
    /// reader or the heartbeat thread. It must be quick. One that the heartbeat thread finds may be
    /// told while the reader tells the end of its connection. A session that is pulled has them as
    /// [`Event::Session`](crate::Event::Session) too, always before that end. Defaults to none.
    pub fn on_event(mut self, tell: impl Fn(&SessionEvent) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(Arc::new(tell));
        self
    }

    /// Returns the handle that the session will have: for the handler to keep, and to subscribe
    /// before the start.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle::new(Arc::clone(&self.shared), self.script.clone())
    }

    /// Makes one dial, runs the opening script, and returns a session to pull from once it is
    /// ready. After later drops it dials again as usual.
    ///
    /// Blocks for [`connect_timeout`](Builder::connect_timeout) and the times of the steps at most,
    /// and for as long as rate limits hold up a dial, or a step without a time.
    ///
    /// # Errors
    /// As [`Builder::connect`]; the kind [`Opening`](crate::ErrorKind::Opening) if a step was
    /// rejected or late, whether for good or not; the reason if the connection ended before the
    /// session was ready.
    pub fn connect(self) -> Result<Session<Pull>, Error> {
        let connect_timeout = self.builder.settings.connect_timeout;
        self.pulled(true)?.after_first_opening(connect_timeout)
    }

    /// Makes one dial, runs the opening script, and returns a session that passes its events to
    /// `handler`, on the reader thread, once it is ready. As [`connect`](SessionBuilder::connect)
    /// otherwise.
    ///
    /// # Errors
    /// As [`connect`](SessionBuilder::connect).
    pub fn connect_with(self, handler: impl Handler) -> Result<Session<Push>, Error> {
        let connect_timeout = self.builder.settings.connect_timeout;
        self.pushed(handler, true)?.after_first_opening(connect_timeout)
    }

    /// Returns a session to pull from at once. It dials in the background, and retries.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start(self) -> Result<Session<Pull>, Error> {
        self.pulled(false)
    }

    /// Returns a session at once that passes its events to `handler`, on the reader thread. It
    /// dials in the background, and retries.
    ///
    /// # Errors
    /// As [`Builder::start_with`].
    pub fn start_with(self, handler: impl Handler) -> Result<Session<Push>, Error> {
        self.pushed(handler, false)
    }

    fn pulled(self, first_decides: bool) -> Result<Session<Pull>, Error> {
        let conflate = self.builder.settings.conflate.clone();
        self.launch(first_decides, true, |queue, client| {
            QueueSink::new(Arc::clone(queue), client.shutdown.clone(), conflate)
        })
    }

    fn pushed(self, handler: impl Handler, first_decides: bool) -> Result<Session<Push>, Error> {
        self.launch(first_decides, false, |_, _| HandlerSink(handler))
    }

    fn launch<M, D: EventSink>(
        self,
        first_decides: bool,
        is_pulled: bool,
        inner: impl FnOnce(&Arc<Queue>, &Shared) -> D,
    ) -> Result<Session<M>, Error> {
        if self.settings.ack_timeout.is_zero() {
            return Err(Error::config("ack_timeout is zero: it must be longer"));
        }
        let handle = self.handle();
        let SessionBuilder { mut builder, protocol, script, settings, shared } = self;
        // The heartbeat thread has to tell the reader that such a script is done.
        builder.settings.layer_wakes = script.ends_with_send();
        let client: Client<M> = builder.launch(first_decides, |queue, client| {
            shared.adopt_client(client);
            let sink = SessionSink {
                inner: inner(queue, client),
                protocol: Arc::clone(&protocol),
                context: Context::new(Arc::clone(&shared.ids)),
                shared: Arc::clone(&shared),
                script: script.clone(),
                on_event: settings.on_event.clone(),
                drain_timeout: settings.drain_timeout,
                connection: ConnectionState::new(sync::now()),
            };
            let work: Box<dyn HeartbeatWork> = Box::new(SessionWork {
                protocol,
                shared,
                script,
                on_event: settings.on_event,
                queue: is_pulled.then(|| Arc::clone(queue)),
                batch: settings.batch,
                made: None,
            });
            Layer { sink, work: Some(work) }
        })?;
        Ok(Session::new(client, handle))
    }
}

impl<P: Protocol> Clone for SessionBuilder<P> {
    fn clone(&self) -> Self {
        SessionBuilder {
            builder: self.builder.clone(),
            protocol: Arc::clone(&self.protocol),
            script: self.script.clone(),
            settings: self.settings.clone(),
            shared: new_shared(&self.protocol, &self.settings),
        }
    }
}

impl<P> fmt::Debug for SessionBuilder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBuilder")
            .field("client", &self.builder)
            .field("opening", &self.script)
            .finish_non_exhaustive()
    }
}
