//! The run loop of the reader thread: dial, read, deliver, back off, dial again.
//!
//! How each of its blocking points ends: a dial by its waker and its deadline; `recv` by `shutdown(Both)`, which the heart calls when a stop's
//! polite end is over; the wait between dials, and the wait for room in the events queue, by the shutdown channel; the handler by itself:
//! it is the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, make_rng};

use crate::config::{Config, DialContext};
use crate::connection::OpenLine;
use crate::connection::writer::Outlet;
use crate::dial::{Dialler, WakePair};
use crate::error::{Error, ErrorKind};
use crate::event::{DialFailure, Disconnect, Opened, Stopped};
use crate::handler::{Delivery, Line};
use crate::runtime::endpoint_pool::Rota;
use crate::runtime::read_loop::{Talk, TalkOver};
use crate::runtime::reconnect::{Action, Input, Life, Setback, Verdict};
use crate::runtime::shared::{Board, Slot};
use crate::sender::Sender;
use crate::sync;
use crate::sync::channel::never;
use crate::sync::threads::{Woken, wait};
use crate::time::{Deadline, after};

/// What the reader thread runs on.
pub(crate) struct Supervisor<D> {
    board: Arc<Board>,
    config: Config,
    dialler: Dialler,
    delivery: D,
    sender: Sender,
    dice: StdRng,
    epoch: u64,
    rota: Rota,
    /// The open line, while there is one.
    talk: Option<Talk>,
    /// The first dial decides, and is not retried: for `connect`, whose caller waits.
    first_decides: bool,
    /// The handler has panicked, and is not called again.
    has_panicked: bool,
}

impl<D: Delivery> Supervisor<D> {
    pub(crate) fn new(board: Arc<Board>, config: Config, dialler: Dialler, delivery: D, first_decides: bool) -> Self {
        let rota = Rota::new(config.source.count());
        Supervisor {
            sender: Sender::new(Arc::clone(&board)),
            board,
            config,
            dialler,
            delivery,
            dice: make_rng(),
            epoch: 0,
            rota,
            talk: None,
            first_decides,
            has_panicked: false,
        }
    }

    /// The thread's body: the life of the line, from the first dial to the last event.
    pub(crate) fn run(mut self) {
        let finale = Finale { board: Arc::clone(&self.board) };
        let rules = self.config.settings.rules();
        let mut life = Life::new();
        let reason = loop {
            if let Life::Closed { reason } = &life {
                break reason.clone();
            }
            let input = self.await_input(&life);
            let action;
            (life, action) = life.on(input, sync::now(), &rules);
            log::debug!("{life:?}");
            self.board.show(&life, self.epoch);
            self.act(action);
            if !matches!(life, Life::Open { .. } | Life::Ending { .. }) {
                self.let_go();
            }
        };
        self.tell_stopped(reason);
        // The handler is dropped on this thread, before it counts as ended.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(self))) {
            finale.board.keep_panic(panic);
        }
        drop(finale);
    }

    /// Does what the state says until something happens. Whatever waits on this thread waits in here.
    fn await_input(&mut self, life: &Life) -> Input {
        if self.board.shutdown.is_requested() && life.heeds_stop() {
            return Input::Stop;
        }
        match life {
            Life::Connecting { attempt } => self.dial(*attempt),
            Life::Open { .. } => self.talk(),
            Life::Ending { .. } => {
                if let Some(talk) = &mut self.talk {
                    talk.drain();
                }
                Input::Due
            }
            Life::Waiting { until, .. } => match wait(&self.board.shutdown, &never::<()>(), Some(*until)) {
                Woken::Shutdown => Input::Stop,
                _ => Input::Due,
            },
            Life::Closed { .. } => Input::Stop,
        }
    }

    /// One dial, from the question where to.
    fn dial(&mut self, attempt: u32) -> Input {
        let dialled = self.open(attempt);
        self.board.publish(Slot::Empty);
        if self.board.shutdown.is_requested() {
            return Input::Stop;
        }
        match dialled {
            Ok(talk) => {
                let line = Arc::clone(talk.line());
                self.board.publish(Slot::Open(Arc::clone(&line)));
                // After publishing: the heart has carried out a stop that came before, found nothing to end, and is gone. A line that it could
                // not see is ours to let go, and nobody has heard of it.
                if self.board.shutdown.is_requested() {
                    line.sever(Error::stopped());
                    self.board.publish(Slot::Empty);
                    return Input::Stop;
                }
                self.epoch += 1;
                self.board.counters.opened();
                self.board.note_failure(None);
                self.talk = Some(talk);
                Input::Dialled
            }
            Err(error) => {
                self.board.counters.dial_failed();
                self.board.note_failure(Some(error.clone()));
                Input::Failed(self.setback(error))
            }
        }
    }

    fn open(&mut self, attempt: u32) -> Result<Talk, Error> {
        let began = sync::now();
        let settings = &self.config.settings;
        let deadline = Deadline::new("dial_within", settings.dial_within, began);
        let turn = self.rota.begin();
        let pair = WakePair::new()?;
        self.board.publish(Slot::Dialling(pair.waker()));

        let shutdown = self.board.shutdown.clone();
        let context = DialContext::new(attempt, deadline.at(), Arc::new(move || shutdown.is_requested()));
        let target = catch_unwind(AssertUnwindSafe(|| self.config.source.target(turn, &context)))
            .unwrap_or_else(|panic| Err(panicked(&self.board, panic, "the endpoint closure")))?;

        let offer = settings.deflate.as_ref().map(|deflate| deflate.offer());
        let dialled = self.dialler.dial(&target, offer.as_deref(), &pair, deadline)?;
        let agreed = match &settings.deflate {
            Some(deflate) => deflate.accept(&dialled.opening.extensions).map_err(|what| {
                Error::new(ErrorKind::Upgrade, format!("{target} answered the extension offer wrongly: {what}"))
            })?,
            None => None,
        };
        let opened = Opened {
            epoch: self.epoch + 1,
            took: sync::now().saturating_duration_since(began),
            peer: dialled.opening.peer,
            subprotocol: dialled.opening.subprotocol,
            headers: dialled.opening.headers,
            is_compressed: agreed.is_some(),
        };
        let (inflater, deflater) = agreed.map(|agreed| agreed.engines()).unzip();
        let outlet = Outlet::new(deflater, settings.max_frame);
        let line = OpenLine::new(
            opened.epoch,
            target.to_string(),
            dialled.socket,
            dialled.tls,
            outlet,
            self.board.bell.clone(),
            Arc::clone(&self.board.counters),
        );
        log::info!("{target}: open, epoch {}, after {:.1?}", opened.epoch, opened.took);
        Ok(Talk::new(Arc::new(line), opened, dialled.leftover, settings, inflater))
    }

    /// Reads and delivers until the line ends.
    fn talk(&mut self) -> Input {
        let Some(talk) = &mut self.talk else { return Input::Stop };
        let over = talk.run(&mut self.delivery, &self.sender, &self.board.shutdown);
        let line = Arc::clone(talk.line());
        let Some(TalkOver { error, farewell }) = over else { return Input::Stop };
        let error = match error {
            // A stop goes before whatever it may have caused.
            Ok(_) if self.board.shutdown.is_requested() => return Input::Stop,
            Ok(error) => error,
            Err(panic) => {
                self.has_panicked = true;
                panicked(&self.board, panic, "the handler")
            }
        };
        let polite = farewell.is_some();
        match farewell {
            Some(close) => line.begin_farewell(close, after(sync::now(), self.config.settings.close_within)),
            None => line.sever(error.clone()),
        }
        Input::Ended { setback: self.setback(error), polite }
    }

    fn setback(&mut self, error: Error) -> Setback {
        let settings = &self.config.settings;
        let default = self.rota.verdict(&error, settings.retry_after_max, sync::now());
        let verdict = match catch_unwind(AssertUnwindSafe(|| settings.verdict(&error, default))) {
            _ if self.first_decides && self.epoch == 0 => Verdict::GiveUp,
            Ok(verdict) => verdict,
            Err(panic) => {
                let error = panicked(&self.board, panic, "the retry policy");
                return Setback { error, verdict: Verdict::GiveUp, jitter: 0.0 };
            }
        };
        Setback { error, verdict, jitter: self.dice.random::<f64>() }
    }

    /// Tells the user what a move was about.
    fn act(&mut self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::TellOpened => self.tell_opened(),
            Action::TellFailed { attempt, error, retry_in } => {
                log::info!("dial {attempt} failed: {}; {}", error.chain(), Plan(retry_in));
                let failure = DialFailure { attempt, error, retry_in };
                self.deliver(|delivery| delivery.dial_failed(&failure));
            }
            Action::TellEnded { error, retry_in } => self.tell_ended(error, retry_in),
        }
    }

    fn tell_opened(&mut self) {
        let Some(talk) = &self.talk else { return };
        let (line, opened, sender) = (Arc::clone(talk.line()), talk.opened().clone(), self.sender.clone());
        self.deliver(|delivery| delivery.opened(&mut Line::new(&line, &opened, &sender)));
        if self.has_panicked {
            line.sever(Error::new(ErrorKind::HandlerPanicked, "the handler panicked"));
        }
    }

    fn tell_ended(&mut self, error: Error, retry_in: Option<std::time::Duration>) {
        let Some(talk) = &self.talk else { return };
        let line = Arc::clone(talk.line());
        // A panic in `opened` stops the client; what ended the line is the panic.
        let kind = if self.has_panicked { ErrorKind::HandlerPanicked } else { error.kind() };
        self.board.counters.dropped(kind);
        log::info!("{}: epoch {} ended: {}; {}", line.peer, line.epoch, error.chain(), Plan(retry_in));
        let (sent, confirmed) = line.final_sequences();
        let (close, has_peer_closed) = match error.kind() {
            // The close frame of a stop is about to be written by the heart, if it can be.
            ErrorKind::Stopped => {
                let own = line.own_close().unwrap_or_else(|| self.board.stop_close());
                (own.to_close_reason(), false)
            }
            _ => line.close_reason(),
        };
        let lasted = sync::now().saturating_duration_since(line.opened_at());
        let epoch = line.epoch;
        let disconnect = Disconnect { epoch, error, close, lasted, sent, confirmed, retry_in, has_peer_closed };
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
            let error = panicked(&self.board, panic, "the handler");
            // Whatever state follows, this is the reason of the end; the loop sees the stop next.
            self.board.end_because(error);
        }
    }

    /// The line is over: nobody sends on it any more, and its socket closes with the last who holds it.
    fn let_go(&mut self) {
        let Some(talk) = self.talk.take() else { return };
        talk.line().sever(Error::new(ErrorKind::Closed, "the line has ended"));
        self.board.publish(Slot::Empty);
    }
}

/// Keeps what was thrown for whoever asks, and makes an error of it.
fn panicked(board: &Board, panic: Box<dyn std::any::Any + Send>, who: &str) -> Error {
    board.keep_panic(panic);
    Error::new(ErrorKind::HandlerPanicked, format!("{who} panicked"))
}

/// `retrying in 250ms`, or that there is no retry.
struct Plan(Option<std::time::Duration>);

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(wait) => write!(f, "dialling again in {wait:.0?}"),
            None => f.write_str("not dialling again"),
        }
    }
}

/// However the reader thread ends, the client has then ended, and the heart must not stay behind.
struct Finale {
    board: Arc<Board>,
}

impl Drop for Finale {
    fn drop(&mut self) {
        // Only a bug of ours ends this thread without a reason.
        self.board.close(Error::new(ErrorKind::Io, "the reader thread failed: this is a bug in tautline"));
        self.board.lifecycle.shutdown();
    }
}
