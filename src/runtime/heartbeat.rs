//! The heartbeat thread: writes on the library's behalf, checks that the connection is alive, and
//! carries out a stop.
//!
//! Its blocking points and how each ends: `wait` by shutdown, a wake-up or the next due time; the
//! writer's lock after 10 ms; the wait for the reader in a stop at the deadline of the closing
//! handshake. It makes no other blocking call: its writes do not wait for room.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::app_ping::AppPing;
use crate::config::settings::Settings;
use crate::connection::OpenConnection;
use crate::connection::close::WriteFault;
use crate::error::{Error, ErrorKind};
use crate::runtime::liveness::{Liveness, LivenessStatus, PingSchedule};
use crate::runtime::shared::{Active, Shared, WaitForReader};
use crate::sync;
use crate::sync::channel::Receiver;
use crate::sync::panic;
use crate::sync::wait::{Woken, wait, wait_over};
use crate::time::{after, earliest};

/// The time after which the thread tries again what found no room or no lock.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// While the reader is elsewhere, the thread checks this many times per `pong_timeout` whether it
/// is back, within these bounds.
const CHECKS_PER_TIMEOUT: u32 = 10;
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(1);
const CHECK_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// A thread that wakes later than it should by more than this part of `pong_timeout`, and by this
/// much at least, has slept with the whole process: a laptop lid, a stopped container, a debugger.
/// The peer's words of that time are unread, so nothing can be held against it.
const OVERSLEPT_PARTS: u32 = 4;
const OVERSLEPT_MIN: Duration = Duration::from_millis(20);

/// The state of the heartbeat thread.
pub(crate) struct Heartbeat {
    shared: Arc<Shared>,
    wakeup: Receiver<()>,
    /// Disconnects when the reader thread has ended.
    reader: Receiver<Infallible>,
    ping_interval: Option<Duration>,
    pong_timeout: Duration,
    idle_timeout: Option<Duration>,
    app_ping: Option<AppPing>,
}

/// The state of the connection that the thread monitors.
struct Monitor {
    connection: Arc<OpenConnection>,
    pings: PingSchedule,
    app_pings: PingSchedule,
    /// A ping is due and not written yet.
    is_ping_due: bool,
    /// The time at which a ping, of either kind, became due that expects an answer and is not
    /// written yet.
    due_since: Option<Instant>,
    /// The time at which the process last woke from a sleep.
    awake_since: Option<Instant>,
    /// An application ping that was made and has found no room.
    app_ping: Option<String>,
    /// The time at which the last application ping had been made.
    app_ping_made_at: Option<Instant>,
    /// A warning was logged about the handler, which has not returned since.
    has_warned: bool,
}

/// The result of a look at the connection's liveness.
enum Check {
    /// The connection is dead, and was aborted.
    Aborted,
    /// Nothing hangs on the peer.
    Idle,
    /// Look again at this time.
    At(Instant),
}

impl Heartbeat {
    pub(crate) fn new(
        shared: Arc<Shared>,
        wakeup: Receiver<()>,
        reader: Receiver<Infallible>,
        settings: &Settings,
    ) -> Self {
        Heartbeat {
            shared,
            wakeup,
            reader,
            ping_interval: settings.ping_interval,
            pong_timeout: settings.pong_timeout,
            idle_timeout: settings.idle_timeout,
            app_ping: settings.app_ping.clone(),
        }
    }

    /// Runs until the client stops.
    pub(crate) fn run(self) {
        let abort_on_panic = AbortOnPanic { shared: Arc::clone(&self.shared) };
        let mut monitor: Option<Monitor> = None;
        let mut due = None;
        while wait(&self.shared.shutdown, &self.wakeup, due) != Woken::Shutdown {
            let now = sync::now();
            monitor = match (self.shared.active(), monitor) {
                (Active::Open(connection), Some(monitor))
                    if Arc::ptr_eq(&connection, &monitor.connection) =>
                {
                    Some(monitor)
                }
                (Active::Open(connection), _) => Some(self.monitor(connection, now)),
                _ => None,
            };
            let overslept = |monitor: &&mut Monitor| self.has_overslept(due, monitor, now);
            if let Some(monitor) = monitor.as_mut().filter(overslept) {
                let label = monitor.connection.label();
                log::info!("{label}: the process has been asleep: pinging");
                monitor.awake_since = Some(now);
                monitor.is_ping_due = self.ping_interval.is_some();
            }
            due = monitor.as_mut().and_then(|monitor| self.poll(monitor, now));
        }
        drop(monitor);
        self.shared.close_for_stop(|deadline| {
            // Shutdown has been heard already: this waits for the reader, a wake-up (the peer's
            // close frame, an earlier deadline) or the deadline.
            match wait_over(&self.reader, &self.wakeup, Some(deadline)) {
                Woken::Shutdown => WaitForReader::Ended,
                Woken::Received(()) | Woken::Disconnected => WaitForReader::Woken,
                Woken::TimedOut => WaitForReader::TimedOut,
            }
        });
        drop(abort_on_panic);
    }

    fn has_overslept(&self, due: Option<Instant>, monitor: &Monitor, now: Instant) -> bool {
        let limit = (self.pong_timeout / OVERSLEPT_PARTS).max(OVERSLEPT_MIN);
        // What came due while the program's own maker of pings took its time was not missed.
        let missed =
            due.map(|due| monitor.app_ping_made_at.map_or(due, |made_at| made_at.max(due)));
        missed.is_some_and(|missed| now.saturating_duration_since(missed) > limit)
    }

    fn monitor(&self, connection: Arc<OpenConnection>, now: Instant) -> Monitor {
        let app_ping_interval = self.app_ping.as_ref().map(|ping| ping.every);
        Monitor {
            connection,
            pings: PingSchedule::new(self.ping_interval, now),
            app_pings: PingSchedule::new(app_ping_interval, now),
            is_ping_due: false,
            due_since: None,
            awake_since: None,
            app_ping: None,
            app_ping_made_at: None,
            has_warned: false,
        }
    }

    /// Does what is due on an open connection, and returns when to look again.
    fn poll(&self, monitor: &mut Monitor, now: Instant) -> Option<Instant> {
        let connection = Arc::clone(&monitor.connection);
        if connection.is_aborted() {
            return None;
        }
        // What is due next waits for what could not be written.
        let [next, next_app] = match self.write_due(monitor, now) {
            Ok(true) => [monitor.pings.next(), monitor.app_pings.next()],
            Ok(false) => [Some(after(now, RETRY_INTERVAL)), None],
            Err(error) => {
                let fault = WriteFault::of(&error);
                let error = Error::caused(ErrorKind::Io, "writing to the connection", error);
                connection.write_failed(fault, error);
                [None, None]
            }
        };
        // After the flush, so that a close frame is written before its time is up. A stop has its
        // own way of ending the connection, and may be writing just now: whoever sees the deadline
        // that a stop has set sees the shutdown signal afterwards.
        let close_deadline = connection.close_deadline();
        let is_due = close_deadline.is_some_and(|deadline| now >= deadline);
        if is_due && !self.shared.shutdown.is_requested() {
            connection.abort_overdue_close();
        }
        if close_deadline.is_some() || connection.is_aborted() {
            return earliest([close_deadline, next]);
        }
        match self.check(monitor, now) {
            Check::Aborted => None,
            Check::Idle => earliest([next, next_app]),
            Check::At(at) => earliest([Some(at), next, next_app]),
        }
    }

    /// Writes what is pending and due. Returns `true` when nothing is left to write.
    fn write_due(&self, monitor: &mut Monitor, now: Instant) -> io::Result<bool> {
        // A due ping counts as due even if it cannot be written: a peer that takes nothing must not
        // hide behind that.
        monitor.is_ping_due |= monitor.pings.take_due(now);
        let written = self.write_pending(monitor, now);
        let awaits_reply = self.app_ping.as_ref().is_some_and(|ping| ping.is_reply.is_some());
        let is_due = monitor.is_ping_due || awaits_reply && monitor.app_ping.is_some();
        monitor.due_since = is_due.then(|| monitor.due_since.unwrap_or(now));
        written
    }

    fn write_pending(&self, monitor: &mut Monitor, now: Instant) -> io::Result<bool> {
        let connection = Arc::clone(&monitor.connection);
        if !connection.flush_pending(now)? {
            return Ok(false);
        }
        if connection.close_deadline().is_some() {
            return Ok(true);
        }
        if monitor.is_ping_due {
            if !connection.write_ping(now)? {
                return Ok(false);
            }
            monitor.is_ping_due = false;
        }
        self.write_app_ping(monitor, now)
    }

    fn write_app_ping(&self, monitor: &mut Monitor, now: Instant) -> io::Result<bool> {
        let Some(ping) = &self.app_ping else { return Ok(true) };
        if monitor.app_ping.is_none() && monitor.app_pings.take_due(now) {
            let last_data = monitor.connection.activity.last_data();
            if ping.only_when_quiet && now < after(last_data, ping.every) {
                // Data came meanwhile: the quiet counts from there.
                monitor.app_pings.restart(last_data);
                return Ok(true);
            }
            let made = panic::catch(|| (ping.make)());
            monitor.app_ping_made_at = Some(sync::now());
            match made {
                Ok(text) => monitor.app_ping = Some(text),
                Err(panic) => {
                    let context = "the maker of application pings panicked";
                    self.shared.abort_for_panic(&monitor.connection, panic, context);
                    return Ok(true);
                }
            }
        }
        let Some(text) = &monitor.app_ping else { return Ok(true) };
        let awaits_reply = ping.is_reply.is_some();
        let is_written = monitor.connection.write_app_ping(text, awaits_reply, now)?;
        if is_written {
            monitor.app_ping = None;
        }
        Ok(is_written)
    }

    /// Aborts a connection that is dead. Otherwise says when to look again.
    fn check(&self, monitor: &mut Monitor, now: Instant) -> Check {
        let connection = &monitor.connection;
        // A ping that finds no room waits like one that is out, for as long as nothing moves. One
        // that waits for a sender of ours is no fault of the peer's.
        let stuck = connection.transport.stuck_since();
        let due = monitor.due_since.zip(stuck).map(|(due, stuck)| due.max(stuck));
        let activity = &connection.activity;
        let liveness = Liveness {
            oldest_unanswered: earliest([
                connection.unanswered_ping(),
                activity.unanswered_app_ping(),
                due,
            ]),
            silence: activity.silence(now),
            last_data: activity.last_data(),
            awake_since: monitor.awake_since,
        };
        let error = match liveness.status(self.pong_timeout, self.idle_timeout) {
            LivenessStatus::PongOverdue => {
                let limit = self.pong_timeout;
                let context =
                    format!("nothing came for {limit:?} after a ping: the connection is dead");
                Error::new(ErrorKind::PongTimeout, context)
            }
            LivenessStatus::Idle => {
                let limit = self.idle_timeout.unwrap_or_default();
                Error::new(ErrorKind::Idle, format!("no data message for {limit:?}"))
            }
            LivenessStatus::Alive(due) if activity.is_in_recv() => {
                monitor.has_warned = false;
                return due.map_or(Check::Idle, Check::At);
            }
            LivenessStatus::Alive(_) => {
                self.warn_of_busy_handler(monitor, now);
                // The reader does not say when it is back in `recv`: look now and then, while
                // something hangs on it.
                let is_waiting =
                    liveness.oldest_unanswered.is_some() || self.idle_timeout.is_some();
                let interval = (self.pong_timeout / CHECKS_PER_TIMEOUT)
                    .clamp(CHECK_INTERVAL_MIN, CHECK_INTERVAL_MAX);
                return match is_waiting {
                    true => Check::At(after(now, interval)),
                    false => Check::Idle,
                };
            }
        };
        connection.abort(error);
        Check::Aborted
    }

    fn warn_of_busy_handler(&self, monitor: &mut Monitor, now: Instant) {
        let busy = now.saturating_duration_since(monitor.connection.activity.last_left());
        if busy >= self.pong_timeout && !monitor.has_warned {
            monitor.has_warned = true;
            log::warn!(
                "{}: the handler has been busy for {busy:.1?}, longer than pong_timeout: nothing \
                 is read meanwhile",
                monitor.connection.label()
            );
        }
    }
}

/// Ends the client if the heartbeat thread panics, which only a bug of this crate or a logger that
/// panics brings about: without the thread a dead connection would go unnoticed.
struct AbortOnPanic {
    shared: Arc<Shared>,
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let context = "the heartbeat thread panicked: in a logger, or by a bug of tautline";
        let error = Error::new(ErrorKind::Io, context);
        // Before anything ends, so that whoever sees the end sees its reason.
        if !self.shared.shutdown.is_requested() {
            self.shared.stop_because(error.clone());
        }
        match self.shared.active() {
            Active::None => {}
            Active::Dialing(waker) => waker.wake(),
            Active::Open(connection) => connection.abort(error),
        }
    }
}
