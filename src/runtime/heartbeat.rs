//! The heartbeat thread: writes on the library's behalf, checks that the connection is alive, and
//! carries out a stop.
//!
//! Its blocking points and how each ends: `wait` by shutdown, a wake-up or the next due time; the
//! writer's lock after 10 ms; the wait for the reader in a stop at the deadline of the closing
//! handshake. It makes no other blocking call: its writes do not wait for room. The makers of pings
//! and the recorder of metrics are the program's, and end by returning.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::app_ping::AppPing;
use crate::config::settings::Settings;
use crate::connection::OpenConnection;
use crate::connection::close::WriteFault;
use crate::error::{Error, ErrorKind};
use crate::metrics::PublishSchedule;
use crate::runtime::liveness::{Liveness, LivenessStatus, PingSchedule};
use crate::runtime::shared::{Active, Shared, WaitForReader};
use crate::runtime::work::HeartbeatWork;
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
    app_pings: Vec<AppPing>,
    /// The work of a layer above.
    work: Option<Box<dyn HeartbeatWork>>,
    publish_schedule: PublishSchedule,
}

/// The state of the connection that the thread monitors.
struct Monitor {
    connection: Arc<OpenConnection>,
    pings: PingSchedule,
    /// The time since which a ping is due that is not written yet.
    ping_due_since: Option<Instant>,
    /// The application pings, in the order of their numbers.
    app_pings: Vec<AppPingState>,
    /// The time at which the last application ping had been made.
    program_ran_at: Option<Instant>,
    /// The time at which the process last woke from a sleep.
    awake_since: Option<Instant>,
    /// A warning was logged about the handler, which has not returned since.
    has_warned: bool,
}

/// One of the application pings of a connection.
struct AppPingState {
    /// The interval on this connection.
    every: Duration,
    schedule: PingSchedule,
    /// The time since which one is due that is not written yet.
    due_since: Option<Instant>,
    /// The text that was made and has found no room.
    made: Option<String>,
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
        work: Option<Box<dyn HeartbeatWork>>,
    ) -> Self {
        Heartbeat {
            shared,
            wakeup,
            reader,
            ping_interval: settings.ping_interval,
            pong_timeout: settings.pong_timeout,
            idle_timeout: settings.idle_timeout,
            app_pings: settings.app_pings.clone(),
            work,
            publish_schedule: PublishSchedule::new(),
        }
    }

    /// Runs until the client stops.
    pub(crate) fn run(mut self) {
        let abort_on_panic = AbortOnPanic { shared: Arc::clone(&self.shared) };
        let mut monitor: Option<Monitor> = None;
        let (mut due, mut publish_at) = (None, None);
        loop {
            let next = earliest([due, publish_at]);
            if wait(&self.shared.shutdown, &self.wakeup, next) == Woken::Shutdown {
                break;
            }
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
                if self.ping_interval.is_some() {
                    monitor.ping_due_since.get_or_insert(now);
                }
            }
            due = monitor.as_mut().and_then(|monitor| self.poll(monitor, now));
            publish_at = self.publish(monitor.as_mut(), now);
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
        // The reader may be held up by the handler: the connection is not up any more.
        self.shared.publish(None);
        drop(abort_on_panic);
        // It may hold the last of a value of the program's.
        if let Err(panic) = panic::catch(|| drop(self.work.take())) {
            self.shared.keep_panic(panic);
        }
    }

    /// Publishes the metrics if it is time to. Returns when to look again.
    fn publish(&mut self, monitor: Option<&mut Monitor>, now: Instant) -> Option<Instant> {
        let (shared, work) = (&self.shared, &self.work);
        self.publish_schedule.poll(&shared.counters.metrics, now, || {
            let has_news = shared.publish(work.as_ref().map(|work| work.topics()));
            if let Some(monitor) = monitor {
                // The recorder is the program's.
                monitor.program_ran_at = Some(sync::now());
            }
            has_news
        })
    }

    fn has_overslept(&self, due: Option<Instant>, monitor: &Monitor, now: Instant) -> bool {
        let limit = (self.pong_timeout / OVERSLEPT_PARTS).max(OVERSLEPT_MIN);
        // What came due while the program's own maker of pings took its time was not missed.
        let missed = due.map(|due| monitor.program_ran_at.map_or(due, |made_at| made_at.max(due)));
        missed.is_some_and(|missed| now.saturating_duration_since(missed) > limit)
    }

    fn monitor(&self, connection: Arc<OpenConnection>, now: Instant) -> Monitor {
        let app_pings = self.app_pings.iter().map(|ping| {
            let every = connection.app_ping_interval.unwrap_or(ping.every);
            let schedule = PingSchedule::new(Some(every), now);
            AppPingState { every, schedule, due_since: None, made: None }
        });
        let app_pings = app_pings.collect();
        Monitor {
            connection,
            pings: PingSchedule::new(self.ping_interval, now),
            ping_due_since: None,
            app_pings,
            program_ran_at: None,
            awake_since: None,
            has_warned: false,
        }
    }

    /// Does what is due on an open connection, and returns when to look again.
    fn poll(&mut self, monitor: &mut Monitor, now: Instant) -> Option<Instant> {
        let connection = Arc::clone(&monitor.connection);
        if connection.is_aborted() {
            // The reader may still be in the handler.
            return self.work(monitor, false, now).0;
        }
        // What is due next waits for what could not be written.
        let written = self.write_due(monitor, now);
        let may_write = matches!(written, Ok(true)) && connection.close_deadline().is_none();
        let (next_work, worked) = self.work(monitor, may_write, now);
        let [next, next_app] = match worked.and(written) {
            Ok(true) => {
                let next_app = monitor.app_pings.iter().filter_map(|ping| ping.schedule.next());
                [monitor.pings.next(), next_app.min()]
            }
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
            return earliest([close_deadline, next, next_work]);
        }
        match self.check(monitor, now) {
            Check::Aborted => None,
            Check::Idle => earliest([next, next_app, next_work]),
            Check::At(at) => earliest([Some(at), next, next_app, next_work]),
        }
    }

    /// Writes what is pending and due. Returns `true` when nothing is left to write.
    fn write_due(&self, monitor: &mut Monitor, now: Instant) -> io::Result<bool> {
        // A due ping counts as due even if it cannot be written: a peer that takes nothing must not
        // hide behind that.
        if monitor.pings.take_due(now) {
            monitor.ping_due_since.get_or_insert(now);
        }
        let last_data = monitor.connection.activity.last_data();
        for (state, ping) in monitor.app_pings.iter_mut().zip(&self.app_pings) {
            if !state.schedule.take_due(now) {
                continue;
            }
            if ping.only_when_quiet && now < after(last_data, state.every) {
                // Data came meanwhile: the quiet counts from there.
                state.schedule.restart(last_data);
            } else {
                state.due_since.get_or_insert(now);
            }
        }
        self.write_pending(monitor, now)
    }

    fn write_pending(&self, monitor: &mut Monitor, now: Instant) -> io::Result<bool> {
        let connection = Arc::clone(&monitor.connection);
        if !connection.flush_pending(now)? {
            return Ok(false);
        }
        if connection.close_deadline().is_some() {
            return Ok(true);
        }
        // They wait for a fragmented message that is under way, and pings do not.
        let are_responses_written = connection.write_responses()?;
        if monitor.ping_due_since.is_some() {
            if !connection.write_ping(now)? {
                return Ok(false);
            }
            monitor.ping_due_since = None;
        }
        while let Some(index) = longest_due(&monitor.app_pings) {
            if !self.write_app_ping(monitor, index, now)? {
                return Ok(false);
            }
        }
        Ok(are_responses_written)
    }

    /// Does the work of a layer above. Returns when to look again, and an error if the socket
    /// failed.
    fn work(
        &mut self,
        monitor: &mut Monitor,
        may_write: bool,
        now: Instant,
    ) -> (Option<Instant>, io::Result<()>) {
        let Some(work) = &mut self.work else { return (None, Ok(())) };
        let worked = work.run(&monitor.connection, may_write, now);
        monitor.program_ran_at = Some(sync::now());
        worked
    }

    /// Makes the application ping number `index`, unless that was done before, and writes it.
    /// Returns `false` when there is no room for it now, or when a panic has ended the connection.
    fn write_app_ping(
        &self,
        monitor: &mut Monitor,
        index: usize,
        now: Instant,
    ) -> io::Result<bool> {
        let Monitor { connection, app_pings, program_ran_at, .. } = monitor;
        let (state, ping) = (&mut app_pings[index], &self.app_pings[index]);
        let text = match &mut state.made {
            Some(text) => text,
            made @ None => {
                let text = panic::catch(|| (ping.make)());
                *program_ran_at = Some(sync::now());
                match text {
                    Ok(text) => made.insert(text),
                    Err(panic) => {
                        let context = "the maker of application pings panicked";
                        self.shared.abort_for_panic(connection, panic, context);
                        return Ok(false);
                    }
                }
            }
        };
        let now = program_ran_at.map_or(now, |made_at| made_at.max(now));
        let is_written = connection.write_app_ping(index, text, ping.is_reply.is_some(), now)?;
        if is_written {
            (state.due_since, state.made) = (None, None);
        }
        Ok(is_written)
    }

    /// Aborts a connection that is dead. Otherwise says when to look again.
    fn check(&self, monitor: &mut Monitor, now: Instant) -> Check {
        let connection = &monitor.connection;
        // A ping that finds no room waits like one that is out, for as long as nothing moves. One
        // that waits for a sender of ours is no fault of the peer's.
        let stuck = connection.transport.stuck_since();
        let due = self.due_since(monitor).zip(stuck).map(|(due, stuck)| due.max(stuck));
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

    /// Returns since when a ping, of either kind, is due that expects an answer and is not written
    /// yet.
    fn due_since(&self, monitor: &Monitor) -> Option<Instant> {
        let app_pings = monitor.app_pings.iter().zip(&self.app_pings);
        let app_pings = app_pings.filter(|(_, ping)| ping.is_reply.is_some());
        earliest([monitor.ping_due_since, app_pings.filter_map(|(state, _)| state.due_since).min()])
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

/// Returns the number of the application ping that has been due for the longest: one with a short
/// interval does not keep another from its turn where there is room for few.
fn longest_due(app_pings: &[AppPingState]) -> Option<usize> {
    let due = app_pings.iter().enumerate();
    due.filter_map(|(index, ping)| Some((ping.due_since?, index))).min().map(|(_, index)| index)
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_ping_that_has_been_due_for_the_longest_has_its_turn_first() {
        let now = Instant::now();
        let state = |due_since| AppPingState {
            every: RETRY_INTERVAL,
            schedule: PingSchedule::new(None, now),
            due_since,
            made: None,
        };
        let later = now + RETRY_INTERVAL;
        assert_eq!(longest_due(&[]), None);
        assert_eq!(longest_due(&[state(None), state(None)]), None);
        assert_eq!(longest_due(&[state(Some(later)), state(None), state(Some(now))]), Some(2));
        // Those that became due at once go in their own order.
        assert_eq!(longest_due(&[state(None), state(Some(now)), state(Some(now))]), Some(1));
    }
}
