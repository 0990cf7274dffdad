//! One open connection: what its reader, its senders and the heartbeat thread share.

pub(crate) mod activity;
pub(crate) mod close;
pub(crate) mod control;
pub(crate) mod pending_pings;
mod send;
mod sequence;
#[cfg(not(shuttle))]
pub(crate) mod socket;
#[cfg(shuttle)]
pub(crate) use crate::model::socket;
pub(crate) mod tls_connection;
pub(crate) mod transport;
pub(crate) mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{CloseReason, Error, Timeout};
use crate::name::{ClientName, Label};
use crate::rate_limit::Limits;
use crate::stats::Counters;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::Sender as WakeTx;
use crate::sync::threads::Threads;
use crate::sync::{self, Mutex};
use crate::time::after;
use activity::Activity;
use close::{Close, CloseAction, CloseFrame, CloseInput, CloseState, WriteFault};
use control::PendingControl;
use pending_pings::PendingPings;
use send::FragmentGate;
use sequence::Sequence;
use socket::StreamSocket;
use tls_connection::TlsConnection;
use transport::Transport;
use writer::FrameWriter;

/// The way in which the reader asks the kernel for bytes.
#[derive(Clone, Copy, Default)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "some of it exists on Linux only"))]
pub(crate) struct Receiving {
    /// Asks again and again instead of sleeping.
    pub(crate) is_spinning: bool,
    /// Asks the kernel for the time at which it got the bytes.
    pub(crate) is_stamped: bool,
}

/// The budgets of operations on a connection.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) send: Duration,
    pub(crate) close: Duration,
}

/// A WebSocket connection whose opening handshake is done, shared by the reader, the heartbeat
/// thread and all senders.
///
/// Lock order: `writer` before `pings`, `pending`, `close`, the fragment gate, the TLS engine and
/// the limits.
/// No other lock is held while one is taken, and nothing of the program's runs or is dropped
/// under any of them.
pub(crate) struct OpenConnection {
    pub(crate) epoch: u64,
    /// `host:port`, for errors.
    pub(crate) peer: String,
    client: ClientName,
    pub(crate) transport: Transport,
    pub(crate) activity: Activity,
    pub(crate) counters: Arc<Counters>,
    timeouts: Timeouts,
    /// Taken by senders and the heartbeat thread, always with a deadline, and never by the reader.
    writer: Mutex<FrameWriter>,
    fragment_gate: FragmentGate,
    pings: Mutex<PendingPings>,
    pending: Mutex<PendingControl>,
    /// Pongs are pending: senders look here and write them first, so that no pong waits behind
    /// messages that came later.
    has_pending_pongs: AtomicBool,
    close: Mutex<Close>,
    /// Mirrors `close` for the reader, which looks once per message.
    is_delivery_over: AtomicBool,
    /// Numbers the messages. Finished, under `close`, when `close` leaves `Open`: no send begins
    /// after that.
    sequence: Sequence,
    /// The interval of the application pings, in the place of their own.
    pub(crate) app_ping_interval: Option<Duration>,
    /// Set by a program that knows the connection to be stable.
    is_marked_stable: AtomicBool,
    /// The log has a warning of a message that the heartbeat thread did not send, being too long.
    has_warned_of_refusal: AtomicBool,
    /// Wakes the heartbeat thread.
    wakeup: WakeTx<()>,
    pub(crate) limits: Limits,
    /// On these a send does not wait for the limits.
    threads: Arc<Threads>,
}

impl OpenConnection {
    #[expect(clippy::too_many_arguments, reason = "the parts of a connection, each made elsewhere")]
    pub(crate) fn new(
        epoch: u64,
        peer: String,
        client: ClientName,
        socket: StreamSocket,
        tls: Option<TlsConnection>,
        writer: FrameWriter,
        timeouts: Timeouts,
        wakeup: WakeTx<()>,
        counters: Arc<Counters>,
        limits: Limits,
        threads: Arc<Threads>,
    ) -> Self {
        OpenConnection {
            epoch,
            peer,
            client,
            transport: Transport::new(socket, tls),
            activity: Activity::new(sync::now()),
            counters,
            timeouts,
            writer: Mutex::new(writer),
            fragment_gate: FragmentGate::default(),
            pings: Mutex::default(),
            pending: Mutex::default(),
            has_pending_pongs: AtomicBool::new(false),
            close: Mutex::new(Close::new()),
            is_delivery_over: AtomicBool::new(false),
            sequence: Sequence::default(),
            app_ping_interval: None,
            is_marked_stable: AtomicBool::new(false),
            has_warned_of_refusal: AtomicBool::new(false),
            wakeup,
            limits,
            threads,
        }
    }

    /// Sets the number of application pings, and the interval of all of them if it is not their
    /// own.
    pub(crate) fn with_app_pings(self, count: usize, interval: Option<Duration>) -> Self {
        let activity = self.activity.with_app_pings(count);
        OpenConnection { activity, app_ping_interval: interval, ..self }
    }

    /// Returns what log records about the connection begin with.
    pub(crate) fn label(&self) -> Label<'_, &str> {
        self.client.label(&self.peer)
    }

    /// Wakes the heartbeat thread: there is something to write or to look at.
    pub(crate) fn wake_heartbeat(&self) {
        // A full channel means that it is awake already.
        let _ = self.wakeup.try_send(());
    }

    /// The program knows that this connection is stable, before `stable_after` says so.
    pub(crate) fn mark_stable(&self) {
        self.is_marked_stable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_marked_stable(&self) -> bool {
        self.is_marked_stable.load(Ordering::Relaxed)
    }

    /// # Errors
    /// The reason why no message may begin any more.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.sequence.check()
    }

    // ---- The end ----

    /// Begins the closing handshake, which has to be over by `deadline`. The first frame's words
    /// are sent.
    pub(crate) fn close(&self, frame: CloseFrame, deadline: Instant) {
        self.end(CloseInput::Close { frame, deadline });
    }

    /// Begins the closing handshake within `close_timeout`.
    pub(crate) fn close_within_timeout(&self, frame: CloseFrame) {
        self.close(frame, after(sync::now(), self.timeouts.close));
    }

    /// Closes because the program wants another connection. No further message is delivered.
    pub(crate) fn close_for_reconnect(&self, frame: CloseFrame) {
        let deadline = after(sync::now(), self.timeouts.close);
        self.end(CloseInput::Reconnect { frame, deadline });
    }

    /// Closes for an error of a layer above. No further message is delivered.
    pub(crate) fn close_because(&self, error: Error) {
        let deadline = after(sync::now(), self.timeouts.close);
        self.end(CloseInput::Fail { error, frame: CloseFrame::normal(), deadline });
    }

    /// The peer's close frame came.
    pub(crate) fn receive_close(&self, close: CloseReason) {
        let deadline = after(sync::now(), self.timeouts.close);
        self.end(CloseInput::Received { close, deadline });
    }

    /// Ends the connection now: a blocked `recv` or send returns at once. The first reason is kept.
    pub(crate) fn abort(&self, reason: Error) {
        self.end(CloseInput::Abort(reason));
    }

    /// The reader has read to the end of TCP: whoever still holds the connection is refused.
    pub(crate) fn end_of_transport(&self) {
        self.end(CloseInput::Ended);
    }

    /// A write failed. The reader is left to read what the peer said last, if the peer has
    /// ended the connection; otherwise the connection is aborted.
    pub(crate) fn write_failed(&self, fault: WriteFault, error: Error) {
        self.end(CloseInput::WriteFailed { fault, error });
    }

    /// Aborts a connection whose closing handshake is not over in time.
    pub(crate) fn abort_overdue_close(&self) {
        let context = "waiting for the peer to end the connection";
        self.abort(Error::timed_out(Timeout::Close, self.timeouts.close, context));
    }

    /// Feeds the close machine and carries out what it answers.
    fn end(&self, input: CloseInput) {
        let action = self.feed_close(input);
        self.carry_out(action);
    }

    /// Carries out what the close machine answered. Not called under `writer`: whoever holds it may
    /// have to be woken first.
    fn carry_out(&self, action: CloseAction) {
        if action == CloseAction::ShutDown {
            self.transport.abort();
        }
        // Whoever waits for its turn to send has to hear that there will be none.
        self.fragment_gate.wake_all();
        self.limits.wake_all();
        if action == CloseAction::WakeHeartbeat {
            self.wake_heartbeat();
        }
    }

    /// Feeds the close machine, and sets the mirrors under its lock. May be called under `writer`.
    fn feed_close(&self, input: CloseInput) -> CloseAction {
        // An error may hold a value of the program's: it must not be dropped under the lock.
        let _error = match &input {
            CloseInput::Abort(error)
            | CloseInput::Fail { error, .. }
            | CloseInput::WriteFailed { error, .. } => Some(error.clone()),
            _ => None,
        };
        let mut close = self.close.lock();
        let action = close.on(input);
        if close.state() != CloseState::Open {
            self.sequence.finish();
        }
        self.is_delivery_over.store(close.is_delivery_over(), Ordering::Release);
        action
    }

    /// Returns `true` if the reader has to stop delivering.
    #[inline]
    pub(crate) fn is_delivery_over(&self) -> bool {
        self.is_delivery_over.load(Ordering::Relaxed)
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.transport.is_aborted()
    }

    /// Returns when the closing handshake has to be over, once it has begun.
    pub(crate) fn close_deadline(&self) -> Option<Instant> {
        self.close.lock().deadline()
    }

    /// Returns the reason why this side ended the connection, if it did.
    pub(crate) fn reason(&self) -> Option<Error> {
        self.close.lock().reason().cloned()
    }

    /// Returns the reset that a write met, if one did.
    pub(crate) fn reset(&self) -> Option<Error> {
        self.close.lock().reset().cloned()
    }

    /// The close code and reason of RFC 6455 section 7.1.5, and whether they are the peer's.
    pub(crate) fn close_reason(&self) -> (CloseReason, bool) {
        let close = self.close.lock();
        (close.close_reason(), close.has_received())
    }

    /// Returns what our close frame says; 1006 where there is none.
    pub(crate) fn sent_close(&self) -> CloseReason {
        let close = self.close.lock();
        close.sent().map_or_else(CloseReason::abnormal, CloseFrame::to_close_reason)
    }

    /// The number of messages that were sent or begun, and of those that a pong covers. Exact once
    /// the connection has left `Open`, but for one send that is under way at that moment: it is
    /// counted, and may still turn out as `NotSent`.
    pub(crate) fn final_sequences(&self) -> (u64, u64) {
        (self.sequence.count(), self.pings.lock().confirmed())
    }
}
