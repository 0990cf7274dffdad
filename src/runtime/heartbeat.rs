//! The heartbeat thread: writes on the library's behalf, judges whether the line is alive, and carries out a stop.
//!
//! How each of its waits ends: `wait` by shutdown, the bell or the next due time; the outlet's lock after 10 ms; the wait for the reader
//! in a stop at the deadline of the polite end. It makes no other blocking call: its writes do not wait for room.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{AppPing, Settings};
use crate::connection::OpenLine;
use crate::error::{Error, ErrorKind};
use crate::runtime::shared::{Board, Slot};
use crate::sync;
use crate::sync::channel::Receiver;
use crate::sync::threads::{Woken, wait, wait_over};
use crate::time::{Liveness, PingSchedule, Verdict, after, earliest};

/// How soon the heart tries again what found no room or no lock.
const RETRY: Duration = Duration::from_millis(10);

/// How often the heart looks whether a busy reader is back, as a part of the pong limit, and within which bounds.
const LOOKS_PER_LIMIT: u32 = 10;
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// A heart that wakes later than it should by more than this part of the pong limit, and this much at least, has slept with all of the process:
/// a laptop lid, a stopped container, a debugger. What the peer said meanwhile has not been read, so nothing can be held against it.
const OVERSLEPT_PARTS: u32 = 4;
const OVERSLEPT_MIN: Duration = Duration::from_millis(20);

/// What the thread runs on.
pub(crate) struct Heart {
    board: Arc<Board>,
    bell: Receiver<()>,
    /// Disconnects when the reader thread has done its last.
    reader: Receiver<Infallible>,
    ping_every: Option<Duration>,
    pong_within: Duration,
    idle_limit: Option<Duration>,
    app_ping: Option<AppPing>,
    close_within: Duration,
}

/// What the heart remembers of the line that it tends.
struct Patient {
    line: Arc<OpenLine>,
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

impl Heart {
    pub(crate) fn new(
        board: Arc<Board>,
        bell: Receiver<()>,
        reader: Receiver<Infallible>,
        settings: &Settings,
    ) -> Self {
        Heart {
            board,
            bell,
            reader,
            ping_every: settings.ping_every,
            pong_within: settings.pong_within,
            idle_limit: settings.idle_limit,
            app_ping: settings.app_ping.clone(),
            close_within: settings.close_within,
        }
    }

    /// The thread's body.
    pub(crate) fn run(self) {
        let alarm = Alarm { board: Arc::clone(&self.board) };
        let mut patient: Option<Patient> = None;
        let mut due = None;
        while wait(&self.board.shutdown, &self.bell, due) != Woken::Shutdown {
            let now = sync::now();
            patient = match (self.board.slot(), patient) {
                (Slot::Open(line), Some(patient)) if Arc::ptr_eq(&line, &patient.line) => Some(patient),
                (Slot::Open(line), _) => Some(self.admit(line, now)),
                _ => None,
            };
            if let Some(patient) = patient.as_mut().filter(|patient| self.has_overslept(due, patient, now)) {
                log::info!("the process has been asleep: asking whether the line is still there");
                patient.awake_since = Some(now);
                patient.owes_ping = self.ping_every.is_some();
            }
            due = patient.as_mut().and_then(|patient| self.tend(patient, now));
        }
        drop(patient);
        self.see_off();
        drop(alarm);
    }

    fn has_overslept(&self, due: Option<Instant>, patient: &Patient, now: Instant) -> bool {
        let limit = (self.pong_within / OVERSLEPT_PARTS).max(OVERSLEPT_MIN);
        // What came due while the program's own maker of pings took its time has not been slept over.
        let missed = due.map(|due| patient.made_at.map_or(due, |made_at| made_at.max(due)));
        missed.is_some_and(|missed| now.saturating_duration_since(missed) > limit)
    }

    fn admit(&self, line: Arc<OpenLine>, now: Instant) -> Patient {
        Patient {
            line,
            pings: PingSchedule::new(self.ping_every, now),
            app_pings: PingSchedule::new(self.app_ping.as_ref().map(|ping| ping.every), now),
            owes_ping: false,
            owed_since: None,
            awake_since: None,
            owed_app_ping: None,
            made_at: None,
            has_warned: false,
        }
    }

    /// Does what is due on an open line, and says when to look again.
    fn tend(&self, patient: &mut Patient, now: Instant) -> Option<Instant> {
        let line = Arc::clone(&patient.line);
        if line.is_severed() {
            return None;
        }
        let until = line.farewell_until();
        if until.is_some_and(|until| now >= until) {
            line.sever(Error::timeout("close_within", self.close_within, "waiting for the peer to end the connection"));
            return None;
        }
        // What is due next waits for what could not be written.
        let [next, next_app] = match self.write_due(patient, now) {
            Ok(true) => [patient.pings.next(), patient.app_pings.next()],
            Ok(false) => [Some(after(now, RETRY)), None],
            Err(error) => {
                // Nothing is written on this line any more. It is the reader's to end, once it is back from the handler.
                line.end_writing(Error::caused(ErrorKind::Io, "writing to the line", error));
                [None, None]
            }
        };
        if until.is_some() || line.is_severed() {
            return earliest([until, next]);
        }
        earliest([self.judge(patient, now)?, next, next_app])
    }

    /// Writes what is owed and due. Whether nothing is left to write.
    fn write_due(&self, patient: &mut Patient, now: Instant) -> std::io::Result<bool> {
        // Due is due, whatever is in its way: a peer that takes nothing must not hide behind what it does not take.
        patient.owes_ping |= patient.pings.take_due(now);
        let written = self.write_owed(patient, now);
        let awaits_reply = self.app_ping.as_ref().is_some_and(|ping| ping.is_reply.is_some());
        let is_owed = patient.owes_ping || awaits_reply && patient.owed_app_ping.is_some();
        patient.owed_since = is_owed.then(|| patient.owed_since.unwrap_or(now));
        written
    }

    fn write_owed(&self, patient: &mut Patient, now: Instant) -> std::io::Result<bool> {
        let line = Arc::clone(&patient.line);
        if !line.work_off(now)? {
            return Ok(false);
        }
        if line.farewell_until().is_some() {
            return Ok(true);
        }
        if patient.owes_ping {
            if !line.write_ping(now)? {
                return Ok(false);
            }
            patient.owes_ping = false;
        }
        self.write_app_ping(patient, now)
    }

    fn write_app_ping(&self, patient: &mut Patient, now: Instant) -> std::io::Result<bool> {
        let Some(ping) = &self.app_ping else { return Ok(true) };
        if patient.owed_app_ping.is_none() && patient.app_pings.take_due(now) {
            let last_data = patient.line.liveness().last_data;
            if ping.only_when_quiet && now < after(last_data, ping.every) {
                // Data came meanwhile: the quiet counts from there.
                patient.app_pings.restart(last_data);
                return Ok(true);
            }
            let made = catch_unwind(AssertUnwindSafe(|| (ping.make)()));
            patient.made_at = Some(sync::now());
            match made {
                Ok(text) => patient.owed_app_ping = Some(text),
                Err(panic) => {
                    self.board.keep_panic(panic);
                    patient
                        .line
                        .sever(Error::new(ErrorKind::HandlerPanicked, "the maker of application pings panicked"));
                    return Ok(true);
                }
            }
        }
        let Some(text) = &patient.owed_app_ping else { return Ok(true) };
        let is_written = patient.line.write_app_ping(text, ping.is_reply.is_some(), now)?;
        if is_written {
            patient.owed_app_ping = None;
        }
        Ok(is_written)
    }

    /// Severs a line that is dead. Otherwise says when to look again; the outer `None` means that there is nothing more to look at.
    #[expect(clippy::option_option, reason = "severed, nothing due, due at a time: three different answers")]
    fn judge(&self, patient: &mut Patient, now: Instant) -> Option<Option<Instant>> {
        let mut liveness = Liveness { awake_since: patient.awake_since, ..patient.line.liveness() };
        // A ping that finds no room waits like one that is out, for as long as nothing gets on. One that waits for a sender of ours is no fault
        // of the peer's.
        let stuck = patient.line.duplex.stuck_since();
        let owed = patient.owed_since.zip(stuck).map(|(owed, stuck)| owed.max(stuck));
        liveness.oldest_unanswered = earliest([liveness.oldest_unanswered, owed]);
        let error = match liveness.verdict(self.pong_within, self.idle_limit, now) {
            Verdict::PongOverdue => {
                let doing = format!("nothing came for {:?} after a ping: the line is dead", self.pong_within);
                Error::new(ErrorKind::PongTimeout, doing)
            }
            Verdict::Idle => {
                let limit = self.idle_limit.unwrap_or_default();
                Error::new(ErrorKind::Idle, format!("no data message for {limit:?}"))
            }
            Verdict::Alive(due) if liveness.in_recv_since.is_some() => {
                patient.has_warned = false;
                return Some(due);
            }
            Verdict::Alive(_) => {
                self.warn_of_busy_handler(patient, now);
                // The reader does not ring when it is back in `recv`: look now and then, while something hangs on it.
                let is_waiting = liveness.oldest_unanswered.is_some() || self.idle_limit.is_some();
                let look = (self.pong_within / LOOKS_PER_LIMIT).clamp(LOOK_MIN, LOOK_MAX);
                return Some(is_waiting.then(|| after(now, look)));
            }
        };
        patient.line.sever(error);
        None
    }

    fn warn_of_busy_handler(&self, patient: &mut Patient, now: Instant) {
        let busy = now.saturating_duration_since(patient.line.last_byte());
        if busy >= self.pong_within && !patient.has_warned {
            patient.has_warned = true;
            log::warn!("the handler has been busy for {busy:.1?}, longer than pong_within: nothing is read meanwhile");
        }
    }

    /// Carries out a stop, until the reader is done or the polite end is over.
    fn see_off(&self) {
        let began = sync::now();
        match self.board.slot() {
            Slot::Empty => {}
            Slot::Dialling(waker) => waker.wake(),
            Slot::Open(line) => self.close_politely(&line, began),
        }
    }

    /// Close frame, the peer's answer, FIN: as far as the time allows. Then severs, if the reader has not ended by then.
    fn close_politely(&self, line: &OpenLine, began: Instant) {
        line.begin_farewell(self.board.stop_close(), after(began, self.close_within));
        loop {
            let now = sync::now();
            let until = self.polite_until(line, began);
            // A writer that is blocked would have to be waited for: no close frame then, and no wait (nor after an error).
            let is_written = line.work_off(now);
            if now >= until || !matches!(is_written, Ok(true)) || line.is_severed() {
                break;
            }
            // Shutdown has been heard already, so this wait is for the reader, the bell (the peer's close frame, an earlier deadline) or the end.
            if wait_over(&self.reader, &self.bell, Some(until)) == Woken::Shutdown {
                return;
            }
        }
        line.sever(Error::stopped());
    }

    fn polite_until(&self, line: &OpenLine, began: Instant) -> Instant {
        let own = after(began, self.close_within);
        let earlier = line.farewell_until().map_or(own, |until| until.min(own));
        match self.board.stop_by() {
            Some(by) => earlier.min(by),
            None => earlier,
        }
    }
}

/// Ends the client if the heart ends before it was told to: a line whose pulse nobody takes must not live on.
struct Alarm {
    board: Arc<Board>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Slot::Open(line) = self.board.slot() {
                line.sever(Error::new(ErrorKind::Io, "the heartbeat thread failed: this is a bug in tautline"));
            }
            self.board.lifecycle.shutdown();
        }
    }
}
