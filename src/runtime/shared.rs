//! What the threads of one client tell each other and the user: the state, the connection that is
//! open, and who rings whom.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::{CloseFrame, OpenConnection};
use crate::error::{Error, ErrorKind};
use crate::runtime::reconnect::{AfterClose, ReconnectState};
use crate::stats::Counters;
use crate::sync::channel::{Receiver, Sender as WakeTx, bounded};
use crate::sync::stop_report::StopReport;
use crate::sync::threads::Threads;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::Waker;
use crate::sync::{self, Condvar, Mutex};
use crate::time::{Deadline, after};

/// The state of a client, as its user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// A dial is under way, the `attempt`-th in a row without a stable connection.
    Connecting {
        /// From 1.
        attempt: u32,
    },
    /// A connection is open.
    Open {
        /// Counts the openings, from 1.
        epoch: u64,
    },
    /// The connection is being closed.
    Closing,
    /// No connection; the next dial starts at `until`.
    Backoff {
        /// The number of that dial.
        attempt: u32,
        /// When.
        until: Instant,
    },
    /// The client has ended.
    Closed,
}

/// Shared by the client, its threads, its senders and its stoppers.
pub(crate) struct Shared {
    pub(crate) threads: Arc<Threads>,
    pub(crate) shutdown: Shutdown,
    pub(crate) counters: Arc<Counters>,
    pub(crate) send_timeouts: SendTimeouts,
    /// Held for moments, and never while another lock is taken.
    public: Mutex<Inner>,
    /// Signalled when `public` changes. Waits under `public`.
    changed: Condvar,
    /// Rings the heart. One ring is remembered, so none is lost.
    pub(crate) wakeup: WakeTx<()>,
}

/// What senders may spend.
#[derive(Clone, Copy)]
pub(crate) struct SendTimeouts {
    pub(crate) send_timeout: Duration,
    pub(crate) close_timeout: Duration,
}

struct Inner {
    state: State,
    epoch: u64,
    active: Active,
    /// Why the client ended.
    end: Option<Error>,
    /// Why the last dial failed, until one succeeds.
    failure: Option<Error>,
    /// What a panicking handler threw.
    panic: Option<Box<dyn Any + Send>>,
    /// By when the polite end has to be over, for the earliest of all stops to be in time.
    stop_by: Option<Instant>,
    /// What the close frame says, in the words of the first of all stops.
    stop_close: Option<CloseFrame>,
}

/// The budget of a wait for an opening, as errors name it.
pub(crate) const WAIT_OPEN: &str = "wait_open";

/// What a stop keeps back of its budget, a quarter of it at most, so that the threads have the time
/// to end after the connection has been aborted, on a busy machine too.
pub(crate) fn stop_margin(budget: Duration) -> Duration {
    Duration::from_millis(200).min(budget / 4)
}

/// What a stop has to reach.
#[derive(Clone)]
pub(crate) enum Active {
    /// Nothing that blocks in a system call.
    Empty,
    /// A dial, which its waker cancels.
    Dialing(Waker),
    /// A connection, which the heart ends politely.
    Open(Arc<OpenConnection>),
}

impl Shared {
    /// The board, and the bell that the heart listens to.
    pub(crate) fn new(threads: Threads, send_timeouts: SendTimeouts) -> (Arc<Self>, Receiver<()>) {
        let (ringer, wakeup) = bounded(1);
        let shared = Shared {
            shutdown: threads.shutdown_signal(),
            threads: Arc::new(threads),
            counters: Arc::default(),
            send_timeouts,
            public: Mutex::new(Inner {
                state: State::Connecting { attempt: 1 },
                epoch: 0,
                active: Active::Empty,
                end: None,
                failure: None,
                panic: None,
                stop_by: None,
                stop_close: None,
            }),
            changed: Condvar::new(),
            wakeup: ringer,
        };
        (Arc::new(shared), wakeup)
    }

    /// Shows what the reader thread is at.
    pub(crate) fn show(&self, state: &ReconnectState, epoch: u64) {
        let mut public = self.public.lock();
        public.state = match state {
            ReconnectState::Connecting { attempt } => State::Connecting { attempt: *attempt },
            ReconnectState::Open { .. } => State::Open { epoch },
            ReconnectState::Closing {
                then: AfterClose::Retry { .. } | AfterClose::Closed { .. },
                ..
            } => State::Closing,
            ReconnectState::Backoff { attempt, until } => {
                State::Backoff { attempt: *attempt, until: *until }
            }
            ReconnectState::Closed { reason } => {
                public.end.get_or_insert_with(|| reason.clone());
                State::Closed
            }
        };
        public.epoch = epoch;
        self.changed.notify_all();
    }

    /// Puts what a stop has to reach where it will be found. The caller looks at the shutdown
    /// signal afterwards: one of the two sees the other.
    pub(crate) fn publish(&self, active: Active) {
        self.public.lock().active = active;
        self.wake();
    }

    pub(crate) fn active(&self) -> Active {
        self.public.lock().active.clone()
    }

    /// The client has ended without saying why: its reader thread is gone.
    pub(crate) fn close(&self, reason: Error) {
        let mut public = self.public.lock();
        public.end.get_or_insert(reason);
        public.state = State::Closed;
        public.active = Active::Empty;
        self.changed.notify_all();
    }

    /// The client ends, and not because it was told to: this is the reason that counts.
    pub(crate) fn end_because(&self, reason: Error) {
        self.public.lock().end.get_or_insert(reason);
        self.threads.shutdown();
    }

    /// Why the last dial failed; `None` when it did not.
    pub(crate) fn note_failure(&self, failure: Option<Error>) {
        self.public.lock().failure = failure;
    }

    pub(crate) fn keep_panic(&self, panic: Box<dyn Any + Send>) {
        self.public.lock().panic.get_or_insert(panic);
    }

    pub(crate) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.public.lock().panic.take()
    }

    pub(crate) fn state(&self) -> State {
        let state = self.public.lock().state;
        // A stop that has been asked for shows at once, not when the reader comes to hear of it.
        match state {
            State::Open { .. } if self.shutdown.is_requested() => State::Closing,
            state => state,
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.public.lock().epoch
    }

    /// Why the client ended, once it has.
    pub(crate) fn end(&self) -> Option<Error> {
        self.public.lock().end.clone()
    }

    /// Waits until a connection is open; its epoch.
    pub(crate) fn wait_open(&self, timeout: Duration) -> Result<u64, Error> {
        self.wait_for_opening(timeout, |public| match public.state {
            State::Open { epoch } if !self.shutdown.is_requested() => Some(epoch),
            _ => None,
        })
    }

    /// Waits until a connection has been open, however briefly.
    pub(crate) fn wait_first_open(&self, timeout: Duration) -> Result<(), Error> {
        self.wait_for_opening(timeout, |public| (public.epoch > 0).then_some(()))
    }

    fn wait_for_opening<T>(
        &self,
        timeout: Duration,
        is_there: impl Fn(&Inner) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Deadline::new(WAIT_OPEN, timeout, sync::now());
        let mut public = self.public.lock();
        loop {
            match (is_there(&public), public.state) {
                (Some(there), _) => return Ok(there),
                (None, State::Closed) => {
                    return Err(public.end.clone().unwrap_or_else(Error::stopped));
                }
                (None, _) if self.shutdown.is_requested() => return Err(Error::stopped()),
                _ => {}
            }
            let timed_out = self.changed.wait_until(&mut public, deadline.at()).timed_out();
            if timed_out && deadline.has_passed(sync::now()) {
                let late = deadline.error("waiting for the connection to open");
                return Err(match public.failure.clone() {
                    Some(failure) => late.because(failure),
                    None => late,
                });
            }
        }
    }

    /// Waits until the client has ended; why.
    pub(crate) fn wait_closed(&self, timeout: Duration) -> Option<Error> {
        if self.threads.is_own_thread() {
            // It cannot end while this very call keeps it from it.
            return self.end();
        }
        let deadline = after(sync::now(), timeout);
        let mut public = self.public.lock();
        while public.state != State::Closed {
            if self.changed.wait_until(&mut public, deadline).timed_out()
                && public.state != State::Closed
            {
                return None;
            }
        }
        public.end.clone()
    }

    /// The connection to send on.
    pub(crate) fn open_connection(&self) -> Result<Arc<OpenConnection>, Error> {
        let public = self.public.lock();
        match (&public.active, public.state) {
            (_, State::Closed) => {
                Err(Error::new(ErrorKind::Stopped, "the client has ended: build a new one"))
            }
            (Active::Open(connection), _) => Ok(Arc::clone(connection)),
            _ => Err(Error::new(
                ErrorKind::Connect,
                "no connection is open: wait for the next opening",
            )),
        }
    }

    pub(crate) fn wake(&self) {
        // Full means that it rings already.
        let _ = self.wakeup.try_send(());
    }

    /// Tells the client to stop by `timeout` from now, and returns at once. `close`: what the peer
    /// is told, if no earlier stop told it.
    pub(crate) fn request_stop(&self, close: CloseFrame, timeout: Duration) {
        let by = after(sync::now(), timeout);
        let by = by.checked_sub(stop_margin(timeout)).unwrap_or(by);
        {
            let mut public = self.public.lock();
            public.stop_by = Some(public.stop_by.map_or(by, |earlier| earlier.min(by)));
            public.stop_close.get_or_insert(close);
        }
        self.threads.shutdown();
        // Whoever waits for an opening has to hear of it, and the heart of an earlier deadline. The
        // lock makes this wake whoever is about to wait.
        drop(self.public.lock());
        self.changed.notify_all();
        self.wake();
    }

    /// Stops the client, and waits until its threads have ended, `timeout` at most.
    pub(crate) fn stop(&self, close: CloseFrame, timeout: Duration) -> StopReport {
        let began = sync::now();
        self.request_stop(close, timeout);
        let by = after(began, timeout);
        // Half of what the heart keeps back: if it has not aborted the connection by then,
        // something of the program's holds it up.
        let enough = by.checked_sub(stop_margin(timeout) / 2).unwrap_or(by);
        self.threads.join_or_free(by, enough, || self.let_go()).measured_from(began)
    }

    /// Frees the reader without the heart's help, and says goodbye if that takes no waiting.
    fn let_go(&self) {
        match self.active() {
            Active::Empty => {}
            Active::Dialing(waker) => waker.wake(),
            Active::Open(connection) => {
                let now = sync::now();
                // Not due at once: the heart, which may be at it too, would abort before anything
                // is said.
                connection
                    .begin_close(self.stop_close(), after(now, self.send_timeouts.close_timeout));
                let _ = connection.flush_pending(now);
                connection.abort(Error::stopped());
            }
        }
    }

    /// By when the polite end has to be over, for the earliest of all stops to be in time.
    pub(crate) fn stop_by(&self) -> Option<Instant> {
        self.public.lock().stop_by
    }

    /// What the close frame of a stop says. A client that ends by itself has nothing to add to
    /// 1000.
    pub(crate) fn stop_close(&self) -> CloseFrame {
        self.public.lock().stop_close.clone().unwrap_or_else(CloseFrame::normal)
    }
}
