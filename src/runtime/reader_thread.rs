//! The reader thread: dial, read, deliver, back off, dial again.
//!
//! Its blocking points and how each ends: a dial by its waker and its deadline; `recv` by the
//! shutdown of the socket, which the heartbeat thread carries out when the closing handshake of a
//! stop is over or late; the wait between dials and the wait for room in the events queue by the
//! shutdown channel; the handler, the endpoint closure and `before_reconnect`, which are the
//! program's, by returning. Where the handler may be woken, the reader sleeps in `poll` instead of
//! `recv`, and the shutdown of the socket ends that as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::config::dial_context::DialContext;
use crate::config::endpoint::Target;
use crate::config::targets::Config;
use crate::connection::OpenConnection;
use crate::connection::close::CloseFrame;
use crate::connection::writer::FrameWriter;
use crate::dial::Dialed;
#[cfg(not(shuttle))]
use crate::dial::Dialer;
use crate::error::{Error, ErrorKind, Timeout};
use crate::event::{DialFailure, Disconnect, NextDial, Opened, Stopped};
use crate::handler::{Connection, EventSink, WokenContext};
#[cfg(shuttle)]
use crate::model::dialer::Dialer;
use crate::rate_limit::{Limits, RateLimit};
use crate::runtime::endpoint_pool::EndpointPool;
use crate::runtime::read_loop::{Drained, ReadEnd, Reader};
use crate::runtime::reconnect::{Action, EndedBy, Failure, Input, ReconnectState, RetryDecision};
use crate::runtime::shared::{Active, Shared};
use crate::sender::Sender;
use crate::sync;
use crate::sync::panic::{self, Panic};
use crate::sync::wait::{Woken, wait};
use crate::sync::wake_pair::WakePair;
use crate::time::{Deadline, after, earliest};

/// The state of the reader thread.
pub(crate) struct ReaderThread<D> {
    shared: Arc<Shared>,
    config: Config,
    dialer: Dialer,
    sink: D,
    sender: Sender,
    rng: StdRng,
    epoch: u64,
    endpoint_pool: EndpointPool,
    connect_limit: Option<RateLimit>,
    /// The server that opened to the bare offer after a 400, for each endpoint: a closure may name
    /// another one at any time.
    bare_offer_servers: Vec<Option<String>>,
    /// The open connection, while there is one.
    reader: Option<Reader>,
    /// The last end of a connection and its time, if it is to be told `before_reconnect`.
    ended: Option<(Disconnect, Instant)>,
    /// The first dial is not retried: for `connect`, whose caller waits for it.
    is_first_dial_final: bool,
    /// The handler has panicked, and is not called again.
    has_panicked: bool,
}

impl<D: EventSink> ReaderThread<D> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: Config,
        dialer: Dialer,
        sink: D,
        is_first_dial_final: bool,
    ) -> Self {
        let endpoints = config.source.count();
        let connect_limit = config.settings.connect_limit.as_ref().map(RateLimit::for_owner);
        ReaderThread {
            sender: Sender::new(Arc::clone(&shared)),
            shared,
            config,
            dialer,
            sink,
            rng: rng(),
            epoch: 0,
            endpoint_pool: EndpointPool::new(endpoints),
            connect_limit,
            bare_offer_servers: vec![None; endpoints],
            reader: None,
            ended: None,
            is_first_dial_final,
            has_panicked: false,
        }
    }

    /// Runs from the first dial to the last event.
    pub(crate) fn run(mut self) {
        let on_exit = CloseOnExit { shared: Arc::clone(&self.shared) };
        self.shared.wakeups.adopt_reader();
        let policy = self.config.settings.policy();
        let mut state = ReconnectState::new();
        let reason = loop {
            if let ReconnectState::Closed { reason } = &state {
                break reason.clone();
            }
            let input = self.await_input(&state);
            let action;
            (state, action) = state.on(input, sync::now(), &policy);
            log::debug!("{}: {state:?}", self.shared.name());
            self.shared.show(&state);
            self.act(action);
            if !matches!(state, ReconnectState::Open { .. } | ReconnectState::Closing { .. }) {
                self.release_connection();
            }
        };
        // A thread that failed has left its reason; the state knows of the stop alone.
        self.tell_stopped(self.shared.stop_reason().unwrap_or(reason));
        // The handler is dropped on this thread, before the thread counts as ended.
        if let Err(panic) = panic::catch(|| drop(self)) {
            on_exit.shared.keep_panic(panic);
        }
        drop(on_exit);
    }

    /// Does what the state says until something happens. Whatever waits on this thread waits in
    /// here.
    fn await_input(&mut self, state: &ReconnectState) -> Input {
        if self.shared.shutdown.is_requested() && state.heeds_stop() {
            return self.stopped();
        }
        match state {
            ReconnectState::Connecting { attempt } => self.dial(*attempt),
            ReconnectState::Open { .. } => self.read(),
            ReconnectState::Closing { .. } => self.drain(),
            ReconnectState::Backoff { attempt, until } => match self.ended.take() {
                Some((disconnect, ended_at)) => {
                    self.before_reconnect(&disconnect, ended_at, *attempt)
                }
                None => self.back_off(*until),
            },
            ReconnectState::Closed { .. } => Input::Stop,
        }
    }

    /// Waits for the end of a connection whose end has been told.
    fn drain(&mut self) -> Input {
        while let Some(reader) = &mut self.reader {
            match reader.drain(&self.shared.wakeups) {
                Drained::Over => break,
                Drained::Woken => self.tell_woken(),
            }
        }
        Input::Due
    }

    /// Asks the program, between the end of a connection and the dial number `attempt`.
    fn before_reconnect(&self, disconnect: &Disconnect, ended_at: Instant, attempt: u32) -> Input {
        let settings = &self.config.settings;
        let context = self.dial_context(attempt, after(sync::now(), settings.connect_timeout));
        let decision = panic::catch(|| match &settings.before_reconnect {
            Some(closure) => closure(disconnect, &context),
            None => RetryDecision::Retry,
        });
        match decision {
            // A stop goes before what the program decides.
            Ok(_) if self.shared.shutdown.is_requested() => Input::Stop,
            Ok(decision) => Input::Decided { decision, error: disconnect.error.clone(), ended_at },
            Err(panic) => Input::Decided {
                decision: RetryDecision::GiveUp,
                error: panicked(&self.shared, panic, "the closure of `before_reconnect`"),
                ended_at,
            },
        }
    }

    /// Describes the dial number `attempt` to a closure of the program's.
    fn dial_context(&self, attempt: u32, deadline: Instant) -> DialContext {
        let shutdown = self.shared.shutdown.clone();
        DialContext::new(attempt, deadline, Arc::new(move || shutdown.is_requested()))
    }

    /// Waits for the next dial.
    fn back_off(&mut self, until: Instant) -> Input {
        let shared = Arc::clone(&self.shared);
        loop {
            self.tell_woken();
            let now = sync::now();
            let next = earliest([Some(until), shared.wakeups.next(now)]);
            match wait(&shared.shutdown, shared.wakeups.signaled(), next) {
                Woken::Shutdown => return Input::Stop,
                _ if sync::now() >= until => {
                    // What came meanwhile does not wait for the dial.
                    self.tell_woken();
                    return Input::Due;
                }
                // The handler is to be woken, or has been already.
                _ => {}
            }
        }
    }

    /// Settles what the close frame of a stop says, so that the end of the connection can be told.
    /// The heartbeat thread writes it.
    fn stopped(&self) -> Input {
        if let Some(reader) = &self.reader {
            let latest = after(sync::now(), self.shared.timeouts.close);
            self.shared.begin_stop(reader.connection(), latest);
        }
        Input::Stop
    }

    /// Makes one dial, if it may begin now.
    fn dial(&mut self, attempt: u32) -> Input {
        if let Some(Err(until)) =
            self.connect_limit.as_ref().map(|limit| limit.try_dial(sync::now()))
        {
            return Input::Postponed { until };
        }
        let dialed = self.open(attempt);
        self.shared.set_active(Active::None);
        if self.shared.shutdown.is_requested() {
            return Input::Stop;
        }
        match dialed {
            Ok(reader) => {
                let connection = Arc::clone(reader.connection());
                self.shared.set_active(Active::Open(Arc::clone(&connection)));
                // Looked at after `set_active`: the heartbeat thread has carried out a stop that
                // came before, found nothing to end, and is gone. A connection that it could not
                // see is released here, and nobody has heard of it.
                if self.shared.shutdown.is_requested() {
                    connection.abort(Error::stopped());
                    self.shared.set_active(Active::None);
                    return Input::Stop;
                }
                self.epoch += 1;
                self.shared.counters.opened(reader.opened().took);
                self.shared.set_last_failure(None);
                self.reader = Some(reader);
                Input::Dialed { epoch: self.epoch }
            }
            Err(error) => {
                self.shared.counters.dial_failed(error.kind());
                self.shared.set_last_failure(Some(error.clone()));
                Input::Failed(self.failure(error))
            }
        }
    }

    /// Opens a connection, beginning with the question where to.
    fn open(&mut self, attempt: u32) -> Result<Reader, Error> {
        let began = sync::now();
        let timeout = self.config.settings.connect_timeout;
        let deadline = Deadline::new(Timeout::Connect, timeout, began);
        let turn = self.endpoint_pool.begin();
        let pair = WakePair::new()?;
        self.shared.set_active(Active::Dialing(pair.waker()));

        let context = self.dial_context(attempt, deadline.at());
        let target = panic::catch(|| self.config.source.target(turn, &context))
            .unwrap_or_else(|panic| Err(panicked(&self.shared, panic, "the endpoint closure")))?;

        let dialed = self.dial_with_offer(turn, &target, &pair, deadline)?;
        let settings = &self.config.settings;
        let agreed = match &settings.deflate {
            Some(deflate) => deflate.accept(&dialed.opening.extensions).map_err(|what| {
                self.dialer.remember_failure();
                let context = format!("{target} answered the extension offer wrongly: {what}");
                Error::new(ErrorKind::Upgrade, context)
            })?,
            None => None,
        };
        let opened = Opened {
            epoch: self.epoch + 1,
            took: sync::now().saturating_duration_since(began),
            peer: dialed.opening.peer,
            subprotocol: dialed.opening.subprotocol,
            headers: dialed.opening.headers,
            is_compressed: agreed.is_some(),
            carried: target.carried.clone(),
            client: self.shared.name().clone(),
        };
        let (inflater, deflater) = agreed.map(|agreed| agreed.engines()).unzip();
        let connection = OpenConnection::new(
            opened.epoch,
            target.to_string(),
            self.shared.name().clone(),
            dialed.socket,
            dialed.tls,
            FrameWriter::new(deflater, settings.outgoing_limits()),
            self.shared.timeouts,
            self.shared.wakeup.clone(),
            Arc::clone(&self.shared.counters),
            Limits::for_connection(&settings.send_limits),
            Arc::clone(&self.shared.threads),
        )
        .with_app_pings(settings.app_pings.len(), target.app_ping_interval);
        let label = connection.label();
        log::info!("{label}: open, epoch {}, after {:.1?}", opened.epoch, opened.took);
        Ok(Reader::new(Arc::new(connection), opened, dialed.leftover, settings, inflater))
    }

    /// Dials `target`, the endpoint number `turn`, with the offer of compression if there is one.
    ///
    /// A server that answers 400 to an offer with a window is dialed a second time with the bare
    /// offer. Once that has opened, the dials of this server begin with it.
    fn dial_with_offer(
        &mut self,
        turn: usize,
        target: &Target,
        pair: &WakePair,
        deadline: Deadline,
    ) -> Result<Dialed, Error> {
        let deflate = self.config.settings.deflate.as_ref();
        let bare = deflate.and_then(|deflate| deflate.bare_offer());
        let server = target.to_string();
        if bare.is_some() && self.bare_offer_servers[turn].as_ref() == Some(&server) {
            return self.dialer.dial(target, bare, true, pair, deadline);
        }
        let offer = deflate.map(|deflate| deflate.offer());
        match self.dialer.dial(target, offer.as_deref(), bare.is_none(), pair, deadline) {
            Err(error) if bare.is_some() && error.is_refused_with(StatusCode::BAD_REQUEST) => {
                let label = self.shared.name().label(target);
                log::debug!("{label}: refused with status 400; dialing with a bare offer");
                let dialed = self.dialer.dial(target, bare, true, pair, deadline)?;
                self.bare_offer_servers[turn] = Some(server);
                Ok(dialed)
            }
            dialed => dialed,
        }
    }

    /// Reads and delivers until the connection ends.
    fn read(&mut self) -> Input {
        let Some(reader) = &mut self.reader else { return Input::Stop };
        let Shared { shutdown, wakeups, .. } = &*self.shared;
        let end = reader.run(&mut self.sink, &self.sender, shutdown, wakeups);
        let connection = Arc::clone(reader.connection());
        let (error, is_closing) = match end {
            ReadEnd::Panicked(panic) => {
                self.has_panicked = true;
                let error = panicked(&self.shared, panic, "the handler");
                connection.close_within_timeout(CloseFrame::new(1001));
                (error, true)
            }
            // A stop goes before whatever it may have caused.
            _ if self.shared.shutdown.is_requested() => return self.stopped(),
            ReadEnd::Stopped => return self.stopped(),
            ReadEnd::Aborted(error) => {
                connection.abort(error.clone());
                (error, false)
            }
            ReadEnd::Closing(error) => (error, true),
            ReadEnd::Close(error, frame) => {
                connection.close_within_timeout(frame);
                (error, true)
            }
        };
        let by = match error.is_reconnect_requested() {
            true => EndedBy::Program,
            false => EndedBy::Peer {
                is_marked_stable: connection.is_marked_stable(),
                is_ready: self.sink.is_ready(),
            },
        };
        Input::Ended { failure: self.failure(error), is_closing, by }
    }

    fn failure(&mut self, error: Error) -> Failure {
        let error = self.shared.named(error);
        let settings = &self.config.settings;
        let default = self.endpoint_pool.decision(&error, settings.retry_after_max, sync::now());
        let decision = match panic::catch(|| settings.decision(&error, default)) {
            _ if self.is_first_dial_final && self.epoch == 0 => RetryDecision::GiveUp,
            Ok(decision) => decision,
            Err(panic) => {
                let error = self.shared.named(panicked(&self.shared, panic, "the retry policy"));
                return Failure { error, decision: RetryDecision::GiveUp, jitter: 0.0 };
            }
        };
        Failure { error, decision, jitter: self.rng.random::<f64>() }
    }

    /// Tells the program what a move was about.
    fn act(&mut self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::TellOpened => self.tell_opened(),
            Action::TellFailed { attempt, error, retry_in } => {
                let (name, why) = (self.shared.name(), error.chain_without_name());
                log::info!("{name}: dial {attempt} failed: {why}; {}", NextDial(retry_in));
                let failure = DialFailure { attempt, error, retry_in };
                self.deliver(|sink| sink.dial_failed(&failure));
            }
            Action::TellEnded { error, retry_in } => self.tell_ended(error, retry_in),
        }
    }

    fn tell_opened(&mut self) {
        let Some(reader) = &self.reader else { return };
        self.shared.publish(None);
        let connection = Arc::clone(reader.connection());
        let (opened, sender) = (reader.opened().clone(), self.sender.clone());
        self.deliver(|sink| sink.opened(&mut Connection::new(&connection, &opened, &sender)));
        if self.has_panicked {
            connection.abort(Error::new(ErrorKind::HandlerPanicked, "the handler panicked"));
        }
    }

    fn tell_ended(&mut self, error: Error, retry_in: Option<Duration>) {
        let Some(reader) = &self.reader else { return };
        let connection = Arc::clone(reader.connection());
        let (epoch, label) = (connection.epoch, connection.label());
        let error = self.shared.named(error);
        // A panic in `opened` stops the client; what ended the connection is the panic.
        let kind = if self.has_panicked { ErrorKind::HandlerPanicked } else { error.kind() };
        self.shared.counters.dropped(kind);
        self.shared.publish(None);
        let why = error.chain_without_name();
        log::info!("{label}: epoch {epoch} ended: {why}; {}", NextDial(retry_in));
        let (now, (sent, confirmed)) = (sync::now(), connection.final_sequences());
        let (close, has_peer_closed) = match error.kind() {
            // A stop is told by its own close frame, whatever the server answers.
            ErrorKind::Stopped => (connection.sent_close(), false),
            _ => connection.close_reason(),
        };
        let mut disconnect = Disconnect {
            epoch,
            error,
            close,
            lasted: now.saturating_duration_since(connection.activity.opened_at()),
            sent,
            confirmed,
            retry_in,
            server_error: None,
            has_peer_closed,
        };
        self.deliver(|sink| sink.disconnected(&mut disconnect));
        let is_told = retry_in.is_some() && self.config.settings.before_reconnect.is_some();
        self.ended = is_told.then_some((disconnect, now));
    }

    /// Wakes the handler where no connection is open. After a stop it is not woken any more.
    fn tell_woken(&mut self) {
        let Some(due) = self.shared.wakeups.take_due() else { return };
        if self.shared.shutdown.is_requested() {
            return;
        }
        let sender = self.sender.clone();
        self.deliver(|sink| sink.woken(&mut WokenContext::new(due, None, &sender)));
    }

    fn tell_stopped(&mut self, reason: Error) {
        if reason.kind() != ErrorKind::Stopped {
            log::warn!("{}: giving up: {}", self.shared.name(), reason.chain_without_name());
        }
        let stopped = Stopped { reason: self.shared.named(reason) };
        self.deliver(|sink| sink.stopped(&stopped));
    }

    /// Calls the handler, unless it has panicked before.
    fn deliver(&mut self, call: impl FnOnce(&mut D)) {
        if self.has_panicked {
            return;
        }
        let called = panic::catch(|| call(&mut self.sink));
        // What it was told may be in the queue now.
        self.shared.counters.touch();
        if let Err(panic) = called {
            self.has_panicked = true;
            let error = panicked(&self.shared, panic, "the handler");
            // Whatever state follows, this is the reason of the end; the loop sees the stop next.
            self.shared.stop_because(error);
        }
    }

    /// The connection has ended: nobody sends on it any more, and its socket closes with the last
    /// who holds it.
    fn release_connection(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        reader.connection().end_of_transport();
        self.shared.set_active(Active::None);
    }
}

/// Returns where the jitter comes from.
fn rng() -> StdRng {
    #[cfg(not(shuttle))]
    return rand::make_rng();
    // A schedule that is tried again has to run the same way.
    #[cfg(shuttle)]
    rand::SeedableRng::seed_from_u64(0)
}

/// Keeps the payload of a panic for the program, and returns the error that tells of it.
fn panicked(shared: &Shared, panic: Panic, who: &str) -> Error {
    shared.keep_panic(panic);
    Error::new(ErrorKind::HandlerPanicked, format!("{who} panicked"))
}

/// Closes the client when the reader thread ends, however it ends: the heartbeat thread must not
/// stay behind.
struct CloseOnExit {
    shared: Arc<Shared>,
}

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        // Only a bug of this crate ends the thread without a reason.
        let context = "the reader thread failed: this is a bug in tautline";
        self.shared.close(Error::new(ErrorKind::Io, context));
        self.shared.threads.shutdown();
    }
}
