//! The heartbeat thread: writes on the library's behalf, judges whether the connection is alive,
//! and carries out a stop.
//!
//! How each of its waits ends: `wait` by shutdown, the bell or the next due time; the writer's lock
//! after 10 ms; the wait for the reader in a stop at the deadline of the polite end. It makes no
//! other blocking call: its writes do not wait for room.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{AppPing, Settings};
use crate::connection::OpenConnection;
use crate::error::{Error, ErrorKind};
use crate::runtime::shared::{Active, Shared};
use crate::sync;
use crate::sync::channel::Receiver;
use crate::sync::wait::{Woken, wait, wait_over};
use crate::time::{Liveness, LivenessStatus, PingSchedule, after, earliest};

/// How soon the heart tries again what found no room or no lock.
const RETRY: Duration = Duration::from_millis(10);

/// How often the heart looks whether a busy reader is back, as a part of the pong limit, and within
/// which bounds.
const LOOKS_PER_LIMIT: u32 = 10;
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// A heart that wakes later than it should by more than this part of the pong limit, and this much
/// at least, has slept with all of the process: a laptop lid, a stopped container, a debugger. What
/// the peer said meanwhile has not been read, so nothing can be held against it.
const OVERSLEPT_PARTS: u32 = 4;
const OVERSLEPT_MIN: Duration = Duration::from_millis(20);

/// What the thread runs on.
pub(crate) struct Heartbeat {
    shared: Arc<Shared>,
    wakeup: Receiver<()>,
    /// Disconnects when the reader thread has done its last.
    reader: Receiver<Infallible>,
    ping_interval: Option<Duration>,
    pong_timeout: Duration,
    idle_timeout: Option<Duration>,
    app_ping: Option<AppPing>,
    close_timeout: Duration,
}

/// What the heart remembers of the connection that it tends.
struct Monitor {
    connection: Arc<OpenConnection>,
    pings: PingSchedule,
    app_pings: PingSchedule,
    owes_ping: bool,
    /// Since when a ping, of either kind, has been owed that is to be answered.
    owed_since: Option<Instant>,
    awake_since: Option<Instant>,
    /// An application ping that has been made and found no room.
    owed_app_ping: Option<String>,
    /// When the last application ping had been made.
    made_at: Option<Instant>,
    /// The handler has been warned about, and has not returned since.
    has_warned: bool,
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
            close_timeout: settings.close_timeout,
        }
    }

    /// The thread's body.
    pub(crate) fn run(self) {
        let alarm = AbortOnPanic { shared: Arc::clone(&self.shared) };
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
                (Active::Open(connection), _) => Some(self.watch(connection, now)),
                _ => None,
            };
            if let Some(monitor) =
                monitor.as_mut().filter(|monitor| self.has_overslept(due, monitor, now))
            {
                log::info!(
                    "the process has been asleep: asking whether the connection is still there"
                );
                monitor.awake_since = Some(now);
                monitor.owes_ping = self.ping_interval.is_some();
            }
            due = monitor.as_mut().and_then(|monitor| self.poll(monitor, now));
        }
        drop(monitor);
        self.close_for_stop();
        drop(alarm);
    }

    fn has_overslept(&self, due: Option<Instant>, monitor: &Monitor, now: Instant) -> bool {
        let limit = (self.pong_timeout / OVERSLEPT_PARTS).max(OVERSLEPT_MIN);
        // What came due while the program's own maker of pings took its time has not been slept
        // over.
        let missed = due.map(|due| monitor.made_at.map_or(due, |made_at| made_at.max(due)));
        missed.is_some_and(|missed| now.saturating_duration_since(missed) > limit)
    }

    fn watch(&self, connection: Arc<OpenConnection>, now: Instant) -> Monitor {
        Monitor {
            connection,
            pings: PingSchedule::new(self.ping_interval, now),
            app_pings: PingSchedule::new(self.app_ping.as_ref().map(|ping| ping.every), now),
            owes_ping: false,
            owed_since: None,
            awake_since: None,
            owed_app_ping: None,
            made_at: None,
            has_warned: false,
        }
    }

    /// Does what is due on an open connection, and says when to look again.
    fn poll(&self, monitor: &mut Monitor, now: Instant) -> Option<Instant> {
        let connection = Arc::clone(&monitor.connection);
        if connection.is_aborted() {
            return None;
        }
        let until = connection.close_until();
        if until.is_some_and(|until| now >= until) {
            connection.abort(Error::timeout(
                "close_timeout",
                self.close_timeout,
                "waiting for the peer to end the connection",
            ));
            return None;
        }
        // What is due next waits for what could not be written.
        let [next, next_app] = match self.write_due(monitor, now) {
            Ok(true) => [monitor.pings.next(), monitor.app_pings.next()],
            Ok(false) => [Some(after(now, RETRY)), None],
            Err(error) => {
                // Nothing is written on this connection any more. It is the reader's to end, once
                // it is back from the handler.
                connection.end_writing(Error::caused(
                    ErrorKind::Io,
                    "writing to the connection",
                    error,
                ));
                [None, None]
            }
        };
        if until.is_some() || connection.is_aborted() {
            return earliest([until, next]);
        }
        earliest([self.check(monitor, now)?, next, next_app])
    }

    /// Writes what is owed and due. Whether nothing is left to write.
    fn write_due(&self, monitor: &mut Monitor, now: Instant) -> std::io::Result<bool> {
        // Due is due, whatever is in its way: a peer that takes nothing must not hide behind what
        // it does not take.
        monitor.owes_ping |= monitor.pings.take_due(now);
        let written = self.write_owed(monitor, now);
        let awaits_reply = self.app_ping.as_ref().is_some_and(|ping| ping.is_reply.is_some());
        let is_owed = monitor.owes_ping || awaits_reply && monitor.owed_app_ping.is_some();
        monitor.owed_since = is_owed.then(|| monitor.owed_since.unwrap_or(now));
        written
    }

    fn write_owed(&self, monitor: &mut Monitor, now: Instant) -> std::io::Result<bool> {
        let connection = Arc::clone(&monitor.connection);
        if !connection.flush_pending(now)? {
            return Ok(false);
        }
        if connection.close_until().is_some() {
            return Ok(true);
        }
        if monitor.owes_ping {
            if !connection.write_ping(now)? {
                return Ok(false);
            }
            monitor.owes_ping = false;
        }
        self.write_app_ping(monitor, now)
    }

    fn write_app_ping(&self, monitor: &mut Monitor, now: Instant) -> std::io::Result<bool> {
        let Some(ping) = &self.app_ping else { return Ok(true) };
        if monitor.owed_app_ping.is_none() && monitor.app_pings.take_due(now) {
            let last_data = monitor.connection.liveness().last_data;
            if ping.only_when_quiet && now < after(last_data, ping.every) {
                // Data came meanwhile: the quiet counts from there.
                monitor.app_pings.restart(last_data);
                return Ok(true);
            }
            let made = catch_unwind(AssertUnwindSafe(|| (ping.make)()));
            monitor.made_at = Some(sync::now());
            match made {
                Ok(text) => monitor.owed_app_ping = Some(text),
                Err(panic) => {
                    self.shared.keep_panic(panic);
                    monitor.connection.abort(Error::new(
                        ErrorKind::HandlerPanicked,
                        "the maker of application pings panicked",
                    ));
                    return Ok(true);
                }
            }
        }
        let Some(text) = &monitor.owed_app_ping else { return Ok(true) };
        let is_written = monitor.connection.write_app_ping(text, ping.is_reply.is_some(), now)?;
        if is_written {
            monitor.owed_app_ping = None;
        }
        Ok(is_written)
    }

    /// Aborts a connection that is dead. Otherwise says when to look again; the outer `None` means
    /// that there is nothing more to look at.
    #[expect(
        clippy::option_option,
        reason = "aborted, nothing due, due at a time: three different answers"
    )]
    fn check(&self, monitor: &mut Monitor, now: Instant) -> Option<Option<Instant>> {
        let mut liveness =
            Liveness { awake_since: monitor.awake_since, ..monitor.connection.liveness() };
        // A ping that finds no room waits like one that is out, for as long as nothing gets on. One
        // that waits for a sender of ours is no fault of the peer's.
        let stuck = monitor.connection.transport.stuck_since();
        let owed = monitor.owed_since.zip(stuck).map(|(owed, stuck)| owed.max(stuck));
        liveness.oldest_unanswered = earliest([liveness.oldest_unanswered, owed]);
        let error = match liveness.status(self.pong_timeout, self.idle_timeout, now) {
            LivenessStatus::PongOverdue => {
                let context = format!(
                    "nothing came for {:?} after a ping: the connection is dead",
                    self.pong_timeout
                );
                Error::new(ErrorKind::PongTimeout, context)
            }
            LivenessStatus::Idle => {
                let limit = self.idle_timeout.unwrap_or_default();
                Error::new(ErrorKind::Idle, format!("no data message for {limit:?}"))
            }
            LivenessStatus::Alive(due) if liveness.in_recv_since.is_some() => {
                monitor.has_warned = false;
                return Some(due);
            }
            LivenessStatus::Alive(_) => {
                self.warn_of_busy_handler(monitor, now);
                // The reader does not ring when it is back in `recv`: look now and then, while
                // something hangs on it.
                let is_waiting =
                    liveness.oldest_unanswered.is_some() || self.idle_timeout.is_some();
                let look = (self.pong_timeout / LOOKS_PER_LIMIT).clamp(LOOK_MIN, LOOK_MAX);
                return Some(is_waiting.then(|| after(now, look)));
            }
        };
        monitor.connection.abort(error);
        None
    }

    fn warn_of_busy_handler(&self, monitor: &mut Monitor, now: Instant) {
        let busy = now.saturating_duration_since(monitor.connection.last_byte());
        if busy >= self.pong_timeout && !monitor.has_warned {
            monitor.has_warned = true;
            log::warn!(
                "the handler has been busy for {busy:.1?}, longer than pong_timeout: nothing is read meanwhile"
            );
        }
    }

    /// Carries out a stop, until the reader is done or the polite end is over.
    fn close_for_stop(&self) {
        let began = sync::now();
        match self.shared.active() {
            Active::Empty => {}
            Active::Dialing(waker) => waker.wake(),
            Active::Open(connection) => self.close_politely(&connection, began),
        }
    }

    /// Close frame, the peer's answer, FIN: as far as the time allows. AfterClose aborts, if the
    /// reader has not ended by then.
    fn close_politely(&self, connection: &OpenConnection, began: Instant) {
        connection.begin_close(self.shared.stop_close(), after(began, self.close_timeout));
        loop {
            let now = sync::now();
            let until = self.polite_until(connection, began);
            // A writer that is blocked would have to be waited for: no close frame then, and no
            // wait (nor after an error).
            let is_written = connection.flush_pending(now);
            if now >= until || !matches!(is_written, Ok(true)) || connection.is_aborted() {
                break;
            }
            // Shutdown has been heard already, so this wait is for the reader, the bell (the peer's
            // close frame, an earlier deadline) or the end.
            if wait_over(&self.reader, &self.wakeup, Some(until)) == Woken::Shutdown {
                return;
            }
        }
        connection.abort(Error::stopped());
    }

    fn polite_until(&self, connection: &OpenConnection, began: Instant) -> Instant {
        let own = after(began, self.close_timeout);
        let earlier = connection.close_until().map_or(own, |until| until.min(own));
        match self.shared.stop_by() {
            Some(by) => earlier.min(by),
            None => earlier,
        }
    }
}

/// Ends the client if the heart ends before it was told to: a connection whose pulse nobody takes
/// must not live on.
struct AbortOnPanic {
    shared: Arc<Shared>,
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Active::Open(connection) = self.shared.active() {
                connection.abort(Error::new(
                    ErrorKind::Io,
                    "the heartbeat thread failed: this is a bug in tautline",
                ));
            }
            self.shared.threads.shutdown();
        }
    }
}
