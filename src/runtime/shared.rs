//! The state that a client's threads and handles share.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::close::CloseFrame;
use crate::connection::{OpenConnection, Timeouts};
use crate::error::{Error, ErrorKind, Timeout};
use crate::metrics::{Metrics, QueueLook, Status, TopicCounts};
use crate::name::ClientName;
use crate::runtime::reconnect::{ReconnectState, State};
use crate::stats::Counters;
use crate::sync::channel::{Receiver, Sender as WakeTx, bounded};
use crate::sync::panic::Panic;
use crate::sync::stop_report::StopReport;
use crate::sync::threads::Threads;
use crate::sync::wait::Shutdown;
use crate::sync::wake_pair::Waker;
use crate::sync::wakeups::Wakeups;
use crate::sync::{self, Condvar, Mutex};
use crate::time::{Deadline, after};

/// Shared by the client, its threads, its senders and its stoppers.
pub(crate) struct Shared {
    pub(crate) threads: Arc<Threads>,
    pub(crate) shutdown: Shutdown,
    pub(crate) counters: Arc<Counters>,
    pub(crate) timeouts: Timeouts,
    /// Held for moments, and never while another lock is taken. Nothing of the program's is called
    /// or dropped under it: errors and panics may hold values of the program's.
    inner: Mutex<Inner>,
    /// Signalled when `inner` changes. Waits under `inner`.
    changed: Condvar,
    /// Wakes the heartbeat thread. One wake-up is remembered, so none is lost.
    pub(crate) wakeup: WakeTx<()>,
    /// The wake-ups of the handler.
    pub(crate) wakeups: Wakeups,
}

struct Inner {
    state: State,
    /// The number of openings so far.
    epoch: u64,
    active: Active,
    /// The reason for the end of the client.
    stop_reason: Option<Error>,
    /// The failure of the last dial, until one succeeds.
    last_failure: Option<Error>,
    /// The payload of the first panic of the program's code.
    panic: Option<Panic>,
    /// The time by which the closing handshake has to be over for the earliest of all stops.
    stop_deadline: Option<Instant>,
    /// The close frame of the first of all stops.
    stop_frame: Option<CloseFrame>,
    /// Counts the changes that somebody may wait for.
    changes: u64,
    /// The number of the last status that was taken for the metrics.
    looks: u64,
}

/// The part of a stop's budget that is kept for the threads to end in after the connection was
/// aborted, on a busy machine too: a quarter, and 200 ms at most.
pub(crate) fn stop_margin(budget: Duration) -> Duration {
    Duration::from_millis(200).min(budget / 4)
}

/// The number of times that a stop tries to get hold of the writer, 10 ms each.
const FLUSH_TRIES: u32 = 5;

/// The system call that the reader may be blocked in, which a stop has to end.
#[derive(Clone)]
pub(crate) enum Active {
    /// Nothing that blocks in a system call.
    None,
    /// A dial, which its waker cancels.
    Dialing(Waker),
    /// An open connection, which is closed.
    Open(Arc<OpenConnection>),
}

impl Shared {
    /// Returns the shared state, and the channel by which the heartbeat thread is woken.
    pub(crate) fn new(
        threads: Threads,
        timeouts: Timeouts,
        wakeups: Wakeups,
        queue: QueueLook,
    ) -> (Arc<Self>, Receiver<()>) {
        let (wakeup_tx, wakeup) = bounded(1);
        let metrics = Metrics::new(threads.client(), wakeup_tx.clone(), queue);
        let shared = Shared {
            shutdown: threads.shutdown_signal(),
            threads: Arc::new(threads),
            counters: Arc::new(Counters::new(metrics)),
            timeouts,
            inner: Mutex::new(Inner {
                state: State::Connecting { attempt: 1 },
                epoch: 0,
                active: Active::None,
                stop_reason: None,
                last_failure: None,
                panic: None,
                stop_deadline: None,
                stop_frame: None,
                changes: 0,
                looks: 0,
            }),
            changed: Condvar::new(),
            wakeup: wakeup_tx,
            wakeups,
        };
        (Arc::new(shared), wakeup)
    }

    pub(crate) fn name(&self) -> &ClientName {
        self.threads.client()
    }

    /// Gives an error the name of the client, on its way to the program.
    pub(crate) fn named(&self, error: Error) -> Error {
        error.of_client(self.name())
    }

    /// Shows the state of the reader thread.
    pub(crate) fn show(&self, state: &ReconnectState) {
        let mut inner = self.inner.lock();
        inner.state = State::from(state);
        match state {
            ReconnectState::Open { epoch, .. } => inner.epoch = *epoch,
            ReconnectState::Closed { reason } => {
                // A clone is no last reference: nothing is dropped here.
                inner.stop_reason.get_or_insert_with(|| reason.clone());
            }
            _ => {}
        }
        self.notify(&mut inner);
    }

    /// Whoever waits looks again.
    fn notify(&self, inner: &mut Inner) {
        inner.changes += 1;
        self.changed.notify_all();
    }

    /// A layer above has changed: whoever waits for it looks again.
    pub(crate) fn note_change(&self) {
        self.notify(&mut self.inner.lock());
    }

    /// Shows a stop what the reader may be blocked in. The caller looks at the shutdown signal
    /// afterwards: one of the two sees the other.
    pub(crate) fn set_active(&self, active: Active) {
        let before = std::mem::replace(&mut self.inner.lock().active, active);
        drop(before);
        self.wake_heartbeat();
    }

    pub(crate) fn active(&self) -> Active {
        self.inner.lock().active.clone()
    }

    /// The reader thread is gone. `reason` counts if nobody has given another.
    pub(crate) fn close(&self, reason: Error) {
        // First, so that whoever sees the end sees its metrics.
        self.publish_end();
        let before = {
            let mut inner = self.inner.lock();
            inner.stop_reason.get_or_insert_with(|| reason.clone());
            inner.state = State::Closed;
            self.notify(&mut inner);
            std::mem::replace(&mut inner.active, Active::None)
        };
        drop(before);
    }

    /// Ends the client for a reason of its own.
    pub(crate) fn stop_because(&self, reason: Error) {
        self.inner.lock().stop_reason.get_or_insert_with(|| reason.clone());
        self.threads.shutdown();
    }

    /// Keeps why the last dial failed; `None` when it succeeded.
    pub(crate) fn set_last_failure(&self, failure: Option<Error>) {
        let before = std::mem::replace(&mut self.inner.lock().last_failure, failure);
        drop(before);
    }

    /// Keeps the first panic of the program's code.
    pub(crate) fn keep_panic(&self, panic: Panic) {
        let mut later = Some(panic);
        {
            let mut inner = self.inner.lock();
            if inner.panic.is_none() {
                inner.panic = later.take();
            }
        }
        drop(later);
    }

    /// A closure of the program's panicked: keeps the panic, and ends the connection for it.
    #[cold]
    pub(crate) fn abort_for_panic(
        &self,
        connection: &OpenConnection,
        panic: Panic,
        context: &'static str,
    ) {
        self.keep_panic(panic);
        let error = Error::new(ErrorKind::HandlerPanicked, context);
        connection.abort(error.clone());
        // The connection may be over already, for another reason.
        let reason = connection.reason();
        if reason.is_none_or(|reason| reason.kind() != ErrorKind::HandlerPanicked) {
            self.stop_because(error);
        }
    }

    /// The client is gone: lets go of the program's values that errors and a panic hold. One of
    /// them may hold a handle of this client, and so keep itself alive.
    pub(crate) fn release_values(&self) {
        let mut inner = self.inner.lock();
        let values = (inner.panic.take(), inner.last_failure.take(), inner.stop_reason.take());
        inner.stop_reason = values.2.as_ref().map(Error::without_cause);
        drop(inner);
        drop(values);
    }

    pub(crate) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        let panic = self.inner.lock().panic.take();
        panic.map(Panic::into_payload)
    }

    pub(crate) fn state(&self) -> State {
        let state = self.inner.lock().state;
        // A stop shows when it is requested, not when the reader hears of it.
        match state {
            State::Open { .. } if self.shutdown.is_requested() => State::Closing,
            state => state,
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.inner.lock().epoch
    }

    /// Returns the reason for the end of the client, once it has ended.
    pub(crate) fn stop_reason(&self) -> Option<Error> {
        let reason = self.inner.lock().stop_reason.clone();
        reason.map(|reason| self.named(reason))
    }

    /// Waits until a connection is open, and returns its epoch.
    pub(crate) fn wait_open(&self, timeout: Duration) -> Result<u64, Error> {
        self.wait_for_opening(timeout, false, |inner| match inner.state {
            State::Open { epoch } if !self.shutdown.is_requested() => Some(epoch),
            _ => None,
        })
    }

    /// Waits until a connection has been open, however briefly. While the dial has to wait before
    /// it may begin, the timeout has not begun either.
    pub(crate) fn wait_first_open(&self, timeout: Duration) -> Result<(), Error> {
        self.wait_for_opening(timeout, true, |inner| (inner.epoch > 0).then_some(()))
    }

    fn wait_for_opening<T>(
        &self,
        timeout: Duration,
        begins_with_dial: bool,
        is_there: impl Fn(&Inner) -> Option<T>,
    ) -> Result<T, Error> {
        let is_own_thread = self.threads.is_own_thread();
        let opened = self.await_opening(timeout, begins_with_dial, is_own_thread, is_there);
        opened.map_err(|error| self.named(error))
    }

    fn await_opening<T>(
        &self,
        timeout: Duration,
        begins_with_dial: bool,
        is_own_thread: bool,
        is_there: impl Fn(&Inner) -> Option<T>,
    ) -> Result<T, Error> {
        let mut deadline = Deadline::new(Timeout::WaitOpen, timeout, sync::now());
        let mut inner = self.inner.lock();
        loop {
            match (is_there(&inner), inner.state) {
                (Some(there), _) => return Ok(there),
                (None, State::Closed) => {
                    return Err(inner.stop_reason.clone().unwrap_or_else(Error::stopped));
                }
                (None, _) if self.shutdown.is_requested() => return Err(Error::stopped()),
                (None, _) if is_own_thread => {
                    let context = "waiting for an opening on a thread of the client's own, which \
                                   would wait for itself: return from the handler first";
                    return Err(Error::config(context));
                }
                (None, State::Backoff { until, .. }) if begins_with_dial => {
                    deadline = Deadline::new(Timeout::WaitOpen, timeout, until);
                }
                _ => {}
            }
            let timed_out = self.changed.wait_until(&mut inner, deadline.at()).timed_out();
            if timed_out && deadline.has_passed(sync::now()) {
                let late = deadline.error("waiting for the connection to open");
                return Err(match inner.last_failure.clone() {
                    Some(failure) => late.because(failure),
                    None => late,
                });
            }
        }
    }

    /// Waits until `look`, which is called without a lock, finds something, as `context` says.
    ///
    /// # Errors
    /// `Timeout`, with the failure of the last dial as its cause; `Config` on a thread of the
    /// client's own; otherwise the reason why the client has ended.
    pub(crate) fn wait_for<T>(
        &self,
        deadline: Deadline,
        context: &str,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, Error> {
        let is_own_thread = self.threads.is_own_thread();
        loop {
            let seen = self.inner.lock().changes;
            if let Some(found) = look() {
                return Ok(found);
            }
            let waited = self.await_change(seen, deadline, context, is_own_thread);
            waited.map_err(|error| self.named(error))?;
        }
    }

    /// Waits until something has changed since `seen`.
    fn await_change(
        &self,
        seen: u64,
        deadline: Deadline,
        context: &str,
        is_own_thread: bool,
    ) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        loop {
            if inner.changes != seen {
                return Ok(());
            }
            if inner.state == State::Closed {
                return Err(inner.stop_reason.clone().unwrap_or_else(Error::stopped));
            }
            if self.shutdown.is_requested() {
                return Err(inner.stop_reason.clone().unwrap_or_else(Error::stopped));
            }
            if is_own_thread {
                let context = format!(
                    "{context} on a thread of the client's own, which would wait for itself: \
                     return from the handler first"
                );
                return Err(Error::config(context));
            }
            let timed_out = self.changed.wait_until(&mut inner, deadline.at()).timed_out();
            if timed_out && inner.changes == seen && deadline.has_passed(sync::now()) {
                let late = deadline.error(context);
                return Err(match inner.last_failure.clone() {
                    Some(failure) => late.because(failure),
                    None => late,
                });
            }
        }
    }

    /// Waits until the client has ended, and returns why. On a thread of the client's own it does
    /// not wait: the client cannot end while that call keeps it from it.
    pub(crate) fn wait_closed(&self, timeout: Duration) -> Option<Error> {
        if self.threads.is_own_thread() {
            return self.stop_reason();
        }
        let deadline = after(sync::now(), timeout);
        let mut inner = self.inner.lock();
        while inner.state != State::Closed {
            if self.changed.wait_until(&mut inner, deadline).timed_out()
                && inner.state != State::Closed
            {
                return None;
            }
        }
        let reason = inner.stop_reason.clone();
        drop(inner);
        reason.map(|reason| self.named(reason))
    }

    /// Returns the connection to send on.
    pub(crate) fn open_connection(&self) -> Result<Arc<OpenConnection>, Error> {
        let inner = self.inner.lock();
        match (&inner.active, inner.state) {
            (_, State::Closed) => {
                let context = "the client has ended: build a new one";
                Err(self.named(Error::new(ErrorKind::Stopped, context)))
            }
            (Active::Open(connection), _) => Ok(Arc::clone(connection)),
            _ => {
                let context = "no connection is open: wait for the next opening";
                Err(self.named(Error::new(ErrorKind::Connect, context)))
            }
        }
    }

    // ---- Metrics ----

    /// Publishes the metrics, the topics if they are given. Returns `true` if there was something
    /// to tell. Called without a lock: the recorder is the program's.
    pub(crate) fn publish(&self, topics: Option<TopicCounts>) -> bool {
        if !Metrics::ARE_PUBLISHED {
            return false;
        }
        let status = {
            let mut inner = self.inner.lock();
            inner.looks += 1;
            let last_byte = match &inner.active {
                Active::Open(connection) => Some(connection.activity.last_byte()),
                _ => None,
            };
            // As `state` has it.
            let is_up = matches!(inner.state, State::Open { .. }) && !self.shutdown.is_requested();
            Status { number: inner.looks, is_up, last_byte, topics, is_final: false }
        };
        self.counters.publish(status)
    }

    /// Publishes the metrics of a client that has ended.
    pub(crate) fn publish_end(&self) {
        self.counters.publish(Status { is_final: true, ..Status::default() });
    }

    pub(crate) fn wake_heartbeat(&self) {
        // A full channel means that it is awake already.
        let _ = self.wakeup.try_send(());
    }

    // ---- Stopping ----

    /// Tells the client to stop within `timeout`, and returns at once. The frame of the first stop
    /// is sent.
    pub(crate) fn request_stop(&self, frame: CloseFrame, timeout: Duration) {
        let end = after(sync::now(), timeout);
        let deadline = end.checked_sub(stop_margin(timeout)).unwrap_or(end);
        {
            let mut inner = self.inner.lock();
            let earliest = inner.stop_deadline.map_or(deadline, |earlier| earlier.min(deadline));
            inner.stop_deadline = Some(earliest);
            inner.stop_frame.get_or_insert(frame);
        }
        self.threads.shutdown();
        // Whoever waits for an opening has to hear of the stop, and the heartbeat thread of an
        // earlier deadline. Taking the lock makes this wake whoever is about to wait.
        self.note_change();
        self.wake_heartbeat();
    }

    /// Stops the client, and waits until its threads have ended, `timeout` at most.
    pub(crate) fn stop(&self, frame: CloseFrame, timeout: Duration) -> StopReport {
        let began = sync::now();
        self.request_stop(frame, timeout);
        self.wait_stopped(began, timeout)
    }

    /// Waits until the threads of a client that was told to stop at `began` have ended, until
    /// `timeout` after that at most.
    pub(crate) fn wait_stopped(&self, began: Instant, timeout: Duration) -> StopReport {
        let end = after(began, timeout);
        // Half of the margin: if the heartbeat thread has not aborted the connection by then,
        // something of the program's holds it up, and this thread does it.
        let rescue = end.checked_sub(stop_margin(timeout) / 2).unwrap_or(end);
        let close = || self.close_for_stop(|_| WaitForReader::TimedOut);
        self.threads.join_or_free(end, rescue, close).measured_from(began)
    }

    /// Carries out a stop: cancels a dial, or closes the connection as far as the time allows and
    /// then aborts it. `wait` waits until the reader has ended, something happens, or a deadline.
    ///
    /// Usually called by the heartbeat thread; a stop calls it when that thread is held up.
    pub(crate) fn close_for_stop(&self, mut wait: impl FnMut(Instant) -> WaitForReader) {
        let connection = match self.active() {
            Active::None => return,
            Active::Dialing(waker) => return waker.wake(),
            Active::Open(connection) => connection,
        };
        let latest = after(sync::now(), self.timeouts.close);
        loop {
            let deadline = self.begin_stop(&connection, latest);
            // A writer that is blocked would have to be waited for: no close frame then, and no
            // wait for an answer; nor after an error.
            let is_written = flush_for_stop(&connection);
            let is_due = sync::now() >= deadline;
            if is_due || !matches!(is_written, Ok(true)) || connection.is_aborted() {
                break;
            }
            match wait(deadline) {
                WaitForReader::Ended => return,
                WaitForReader::Woken => {}
                WaitForReader::TimedOut => break,
            }
        }
        connection.abort(Error::stopped());
    }

    /// Begins the closing handshake of a stop, and returns its deadline: `latest` or earlier.
    pub(crate) fn begin_stop(&self, connection: &OpenConnection, latest: Instant) -> Instant {
        let (frame, stop_deadline) = {
            let inner = self.inner.lock();
            // A client that ends by itself has nothing to add to 1000.
            let frame = inner.stop_frame.clone().unwrap_or_else(CloseFrame::normal);
            (frame, inner.stop_deadline)
        };
        let deadline = stop_deadline.map_or(latest, |deadline| deadline.min(latest));
        connection.close(frame, deadline);
        connection.close_deadline().unwrap_or(deadline)
    }
}

/// Writes the close frame, trying again while somebody holds the writer and gets on: the stop and
/// the heartbeat thread may both be at it, and neither may abort what the other is writing.
fn flush_for_stop(connection: &OpenConnection) -> io::Result<bool> {
    let mut tries = 1;
    loop {
        let is_written = connection.flush_pending(sync::now());
        let is_blocked = connection.transport.stuck_since().is_some();
        if !matches!(is_written, Ok(false)) || is_blocked || tries == FLUSH_TRIES {
            return is_written;
        }
        tries += 1;
    }
}

/// The result of a wait for the end of the reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WaitForReader {
    Ended,
    /// There is something to write, or an earlier deadline.
    Woken,
    TimedOut,
}
