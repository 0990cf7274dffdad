//! The run loop of the reader thread: dial, read, deliver, back off, dial again.
//!
//! How each of its blocking points ends: a dial by its waker and its deadline; `recv` by
//! `shutdown(Both)`, which the heart calls when a stop's polite end is over; the wait between
//! dials, and the wait for room in the events queue, by the shutdown channel; the handler by
//! itself: it is the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, make_rng};

use crate::config::targets::{Config, DialContext};
use crate::connection::OpenConnection;
use crate::connection::writer::FrameWriter;
use crate::dial::{Dialer, WakePair};
use crate::error::{Error, ErrorKind, Timeout};
use crate::event::{DialFailure, Disconnect, NextDial, Opened, Stopped};
use crate::handler::{Connection, EventSink};
use crate::runtime::endpoint_pool::EndpointPool;
use crate::runtime::read_loop::{ReadEnd, Reader};
use crate::runtime::reconnect::{Action, Failure, Input, ReconnectState, RetryDecision};
use crate::runtime::shared::{Active, Shared};
use crate::sender::Sender;
use crate::sync;
use crate::sync::channel::never;
use crate::sync::threads::{Woken, wait};
use crate::time::{Deadline, after};

/// What the reader thread runs on.
pub(crate) struct Supervisor<D> {
    shared: Arc<Shared>,
    config: Config,
    dialer: Dialer,
    delivery: D,
    sender: Sender,
    rng: StdRng,
    epoch: u64,
    endpoint_pool: EndpointPool,
    /// The open connection, while there is one.
    reader: Option<Reader>,
    /// The first dial decides, and is not retried: for `connect`, whose caller waits.
    first_decides: bool,
    /// The handler has panicked, and is not called again.
    has_panicked: bool,
}

impl<D: EventSink> Supervisor<D> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: Config,
        dialer: Dialer,
        delivery: D,
        first_decides: bool,
    ) -> Self {
        let endpoint_pool = EndpointPool::new(config.source.count());
        Supervisor {
            sender: Sender::new(Arc::clone(&shared)),
            shared,
            config,
            dialer,
            delivery,
            rng: make_rng(),
            epoch: 0,
            endpoint_pool,
            reader: None,
            first_decides,
            has_panicked: false,
        }
    }

    /// The thread's body: the life of the connection, from the first dial to the last event.
    pub(crate) fn run(mut self) {
        let finale = CloseOnExit { shared: Arc::clone(&self.shared) };
        let policy = self.config.settings.policy();
        let mut state = ReconnectState::new();
        let reason = loop {
            if let ReconnectState::Closed { reason } = &state {
                break reason.clone();
            }
            let input = self.await_input(&state);
            let action;
            (state, action) = state.on(input, sync::now(), &policy);
            log::debug!("{state:?}");
            self.shared.show(&state, self.epoch);
            self.act(action);
            if !matches!(state, ReconnectState::Open { .. } | ReconnectState::Closing { .. }) {
                self.let_go();
            }
        };
        self.tell_stopped(reason);
        // The handler is dropped on this thread, before it counts as ended.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(self))) {
            finale.shared.keep_panic(panic);
        }
        drop(finale);
    }

    /// Does what the state says until something happens. Whatever waits on this thread waits in
    /// here.
    fn await_input(&mut self, state: &ReconnectState) -> Input {
        if self.shared.shutdown.is_requested() && state.heeds_stop() {
            return Input::Stop;
        }
        match state {
            ReconnectState::Connecting { attempt } => self.dial(*attempt),
            ReconnectState::Open { .. } => self.reader(),
            ReconnectState::Closing { .. } => {
                if let Some(reader) = &mut self.reader {
                    reader.drain();
                }
                Input::Due
            }
            ReconnectState::Backoff { until, .. } => {
                match wait(&self.shared.shutdown, &never::<()>(), Some(*until)) {
                    Woken::Shutdown => Input::Stop,
                    _ => Input::Due,
                }
            }
            ReconnectState::Closed { .. } => Input::Stop,
        }
    }

    /// One dial, from the question where to.
    fn dial(&mut self, attempt: u32) -> Input {
        let dialed = self.open(attempt);
        self.shared.publish(Active::Empty);
        if self.shared.shutdown.is_requested() {
            return Input::Stop;
        }
        match dialed {
            Ok(reader) => {
                let connection = Arc::clone(reader.connection());
                self.shared.publish(Active::Open(Arc::clone(&connection)));
                // After publishing: the heart has carried out a stop that came before, found
                // nothing to end, and is gone. A connection that it could not see is ours to let
                // go, and nobody has heard of it.
                if self.shared.shutdown.is_requested() {
                    connection.abort(Error::stopped());
                    self.shared.publish(Active::Empty);
                    return Input::Stop;
                }
                self.epoch += 1;
                self.shared.counters.opened();
                self.shared.note_failure(None);
                self.reader = Some(reader);
                Input::Dialed
            }
            Err(error) => {
                self.shared.counters.dial_failed();
                self.shared.note_failure(Some(error.clone()));
                Input::Failed(self.failure(error))
            }
        }
    }

    fn open(&mut self, attempt: u32) -> Result<Reader, Error> {
        let began = sync::now();
        let settings = &self.config.settings;
        let deadline = Deadline::new(Timeout::Connect, settings.connect_timeout, began);
        let turn = self.endpoint_pool.begin();
        let pair = WakePair::new()?;
        self.shared.publish(Active::Dialing(pair.waker()));

        let shutdown = self.shared.shutdown.clone();
        let context =
            DialContext::new(attempt, deadline.at(), Arc::new(move || shutdown.is_requested()));
        let target = catch_unwind(AssertUnwindSafe(|| self.config.source.target(turn, &context)))
            .unwrap_or_else(|panic| {
            Err(panicked(&self.shared, panic, "the endpoint closure"))
        })?;

        let offer = settings.deflate.as_ref().map(|deflate| deflate.offer());
        let dialed = self.dialer.dial(&target, offer.as_deref(), &pair, deadline)?;
        let agreed = match &settings.deflate {
            Some(deflate) => deflate.accept(&dialed.opening.extensions).map_err(|what| {
                Error::new(
                    ErrorKind::Upgrade,
                    format!("{target} answered the extension offer wrongly: {what}"),
                )
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
        };
        let (inflater, deflater) = agreed.map(|agreed| agreed.engines()).unzip();
        let writer = FrameWriter::new(deflater, settings.max_outgoing_frame_size);
        let connection = OpenConnection::new(
            opened.epoch,
            target.to_string(),
            dialed.socket,
            dialed.tls,
            writer,
            self.shared.wakeup.clone(),
            Arc::clone(&self.shared.counters),
        );
        log::info!("{target}: open, epoch {}, after {:.1?}", opened.epoch, opened.took);
        Ok(Reader::new(Arc::new(connection), opened, dialed.leftover, settings, inflater))
    }

    /// Reads and delivers until the connection ends.
    fn reader(&mut self) -> Input {
        let Some(reader) = &mut self.reader else { return Input::Stop };
        let over = reader.run(&mut self.delivery, &self.sender, &self.shared.shutdown);
        let connection = Arc::clone(reader.connection());
        let Some(ReadEnd { error, close_handshake }) = over else { return Input::Stop };
        let error = match error {
            // A stop goes before whatever it may have caused.
            Ok(_) if self.shared.shutdown.is_requested() => return Input::Stop,
            Ok(error) => error,
            Err(panic) => {
                self.has_panicked = true;
                panicked(&self.shared, panic, "the handler")
            }
        };
        let polite = close_handshake.is_some();
        match close_handshake {
            Some(close) => connection
                .begin_close(close, after(sync::now(), self.config.settings.close_timeout)),
            None => connection.abort(error.clone()),
        }
        Input::Ended { failure: self.failure(error), polite }
    }

    fn failure(&mut self, error: Error) -> Failure {
        let settings = &self.config.settings;
        let default = self.endpoint_pool.decision(&error, settings.retry_after_max, sync::now());
        let decision = match catch_unwind(AssertUnwindSafe(|| settings.decision(&error, default))) {
            _ if self.first_decides && self.epoch == 0 => RetryDecision::GiveUp,
            Ok(decision) => decision,
            Err(panic) => {
                let error = panicked(&self.shared, panic, "the retry policy");
                return Failure { error, decision: RetryDecision::GiveUp, jitter: 0.0 };
            }
        };
        Failure { error, decision, jitter: self.rng.random::<f64>() }
    }

    /// Tells the user what a move was about.
    fn act(&mut self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::TellOpened => self.tell_opened(),
            Action::TellFailed { attempt, error, retry_in } => {
                log::info!("dial {attempt} failed: {}; {}", error.chain(), NextDial(retry_in));
                let failure = DialFailure { attempt, error, retry_in };
                self.deliver(|delivery| delivery.dial_failed(&failure));
            }
            Action::TellEnded { error, retry_in } => self.tell_ended(error, retry_in),
        }
    }

    fn tell_opened(&mut self) {
        let Some(reader) = &self.reader else { return };
        let (connection, opened, sender) =
            (Arc::clone(reader.connection()), reader.opened().clone(), self.sender.clone());
        self.deliver(|delivery| {
            delivery.opened(&mut Connection::new(&connection, &opened, &sender))
        });
        if self.has_panicked {
            connection.abort(Error::new(ErrorKind::HandlerPanicked, "the handler panicked"));
        }
    }

    fn tell_ended(&mut self, error: Error, retry_in: Option<std::time::Duration>) {
        let Some(reader) = &self.reader else { return };
        let connection = Arc::clone(reader.connection());
        // A panic in `opened` stops the client; what ended the connection is the panic.
        let kind = if self.has_panicked { ErrorKind::HandlerPanicked } else { error.kind() };
        self.shared.counters.dropped(kind);
        log::info!(
            "{}: epoch {} ended: {}; {}",
            connection.peer,
            connection.epoch,
            error.chain(),
            NextDial(retry_in)
        );
        let (sent, confirmed) = connection.final_sequences();
        let (close, has_peer_closed) = match error.kind() {
            // The close frame of a stop is about to be written by the heart, if it can be.
            ErrorKind::Stopped => {
                let own = connection.own_close().unwrap_or_else(|| self.shared.stop_close());
                (own.to_close_reason(), false)
            }
            _ => connection.close_reason(),
        };
        let lasted = sync::now().saturating_duration_since(connection.opened_at());
        let epoch = connection.epoch;
        let disconnect =
            Disconnect { epoch, error, close, lasted, sent, confirmed, retry_in, has_peer_closed };
        self.deliver(|delivery| delivery.disconnected(&disconnect));
    }

    fn tell_stopped(&mut self, reason: Error) {
        let was_asked = reason.kind() == ErrorKind::Stopped;
        if !was_asked {
            log::warn!("giving up: {}", reason.chain());
        }
        let stopped = Stopped { reason };
        self.deliver(|delivery| delivery.stopped(&stopped));
    }

    /// Calls the handler, unless it has panicked before.
    fn deliver(&mut self, call: impl FnOnce(&mut D)) {
        if self.has_panicked {
            return;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| call(&mut self.delivery))) {
            self.has_panicked = true;
            let error = panicked(&self.shared, panic, "the handler");
            // Whatever state follows, this is the reason of the end; the loop sees the stop next.
            self.shared.end_because(error);
        }
    }

    /// The connection is over: nobody sends on it any more, and its socket closes with the last who
    /// holds it.
    fn let_go(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        reader.connection().abort(Error::new(ErrorKind::Closed, "the connection has ended"));
        self.shared.publish(Active::Empty);
    }
}

/// Keeps what was thrown for whoever asks, and makes an error of it.
fn panicked(shared: &Shared, panic: Box<dyn std::any::Any + Send>, who: &str) -> Error {
    shared.keep_panic(panic);
    Error::new(ErrorKind::HandlerPanicked, format!("{who} panicked"))
}

/// However the reader thread ends, the client has then ended, and the heart must not stay behind.
struct CloseOnExit {
    shared: Arc<Shared>,
}

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        // Only a bug of ours ends this thread without a reason.
        self.shared.close(Error::new(
            ErrorKind::Io,
            "the reader thread failed: this is a bug in tautline",
        ));
        self.shared.threads.shutdown();
    }
}
