//! The metrics of one client, by the facade `metrics`.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use ::metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::error::{ErrorKind, SendError};
use crate::metrics::{CallOutcome, INTERVAL, QueueLook, Status, TopicCounts, Totals};
use crate::name::ClientName;
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use crate::sync::channel::Sender as WakeTx;
use crate::sync::{self, Mutex, panic};

/// The metrics of a client. Made when it starts, with whatever recorder there is then.
#[derive(Default)]
pub(crate) struct Metrics {
    /// `None` where there is no client around a connection, as in tests of parts.
    registered: Option<Box<Registered>>,
    /// The state of the publisher, for whoever counts: one of those below.
    phase: AtomicU8,
}

/// The publisher looks again within [`INTERVAL`].
const AWAKE: u8 = 0;

/// Nothing has changed at the last look: whoever counts wakes the publisher.
const IDLE: u8 = 1;

/// There is no publisher any more: whoever counts publishes.
const OVER: u8 = 2;

struct Registered {
    client: ClientName,
    handles: Handles,
    session: OnceLock<SessionHandles>,
    /// Wakes the heartbeat thread.
    wakeup: WakeTx<()>,
    queue: QueueLook,
    /// Held for moments. The recorder is not called under it.
    published: Mutex<Published>,
    /// The recorder has panicked, and is not called again.
    has_panicked: AtomicBool,
}

struct Handles {
    messages_received: Counter,
    received_bytes: Counter,
    messages_sent: Counter,
    sent_bytes: Counter,
    messages_lost: Counter,
    connections_opened: Counter,
    connections_ended: Vec<(ErrorKind, Counter)>,
    dials_failed: Vec<(ErrorKind, Counter)>,
    sends_not_sent: Counter,
    sends_unknown: Counter,
    up: Gauge,
    queue_events: Gauge,
    last_byte_timestamp: Gauge,
    round_trip: Histogram,
    connect_duration: Histogram,
    rate_limit_wait: Histogram,
}

struct SessionHandles {
    pending: Gauge,
    requested: Gauge,
    active: Gauge,
    rejected: Gauge,
    unsubscribing: Gauge,
    replied: Counter,
    not_sent: Counter,
    unknown: Counter,
}

/// The values that the recorder has been told.
#[derive(Default)]
struct Published {
    totals: Totals,
    lost: u64,
    up: u64,
    queued: u64,
    topics: TopicCounts,
    last_byte: Option<Instant>,
    /// The number of the latest status.
    number: u64,
    is_final: bool,
}

/// The changes since the last publication. Clients that share a name share their series: gauges
/// are moved by differences, so that each holds the sum.
#[derive(Default)]
struct Changes {
    totals: Totals,
    lost: u64,
    up: i64,
    queued: i64,
    topics: [i64; 5],
    last_byte: Option<Instant>,
}

/// The kinds of ends and of failed dials that are told from the beginning, as 0: a series that
/// begins with 1 shows no increase. Others are rare, and begin when they happen.
const ENDS: [ErrorKind; 12] = [
    ErrorKind::Closed,
    ErrorKind::HandlerPanicked,
    ErrorKind::Idle,
    ErrorKind::Io,
    ErrorKind::Lagged,
    ErrorKind::Opening,
    ErrorKind::PongTimeout,
    ErrorKind::Protocol,
    ErrorKind::Stopped,
    ErrorKind::Timeout,
    ErrorKind::TooBig,
    ErrorKind::Undecodable,
];
const FAILED_DIALS: [ErrorKind; 9] = [
    ErrorKind::Connect,
    ErrorKind::Endpoint,
    ErrorKind::Http,
    ErrorKind::Io,
    ErrorKind::Proxy,
    ErrorKind::Resolve,
    ErrorKind::Timeout,
    ErrorKind::Tls,
    ErrorKind::Upgrade,
];

const CONNECTIONS_ENDED: &str = "tautline_connections_ended_total";
const DIALS_FAILED: &str = "tautline_dials_failed_total";
const SEND_FAILURES: &str = "tautline_send_failures_total";
const SUBSCRIPTIONS: &str = "tautline_subscriptions";
const CALLS: &str = "tautline_calls_total";

impl Metrics {
    pub(crate) const ARE_PUBLISHED: bool = true;

    /// Registers the metrics of a client. `wakeup` wakes its heartbeat thread.
    pub(crate) fn new(client: &ClientName, wakeup: WakeTx<()>, queue: QueueLook) -> Self {
        // The recorder may refuse by a panic: the client goes on without metrics.
        let registered = panic::catch(|| {
            describe();
            Handles::new(client)
        });
        let registered = registered.inspect_err(|_| warn(client)).ok().map(|handles| Registered {
            client: client.clone(),
            handles,
            session: OnceLock::new(),
            wakeup,
            queue,
            published: Mutex::default(),
            has_panicked: AtomicBool::new(false),
        });
        Metrics { registered: registered.map(Box::new), phase: AtomicU8::new(AWAKE) }
    }

    /// The client has a session: registers its metrics too.
    pub(crate) fn add_session(&self) {
        self.tell(|registered| {
            let handles = SessionHandles::new(&registered.client);
            let _ = registered.session.set(handles);
        });
    }

    // ---- What is counted often ----

    /// Something has been counted, or the queue has changed: it is published soon. `totals` has all
    /// that has been counted.
    ///
    /// Whoever counts adds and then loads the phase; a publisher that is the last one stores the
    /// phase and then loads the counts. One of the two sees the other, because all four are
    /// sequentially consistent.
    // A load and a branch: all that metrics cost the reader, once per `recv`.
    #[inline]
    pub(crate) fn touch(&self, totals: impl FnOnce() -> Totals) {
        if self.phase.load(Ordering::SeqCst) != AWAKE {
            self.end_idleness(totals);
        }
    }

    #[cold]
    #[inline(never)]
    fn end_idleness(&self, totals: impl FnOnce() -> Totals) {
        let Some(registered) = &self.registered else { return };
        let woken = self.phase.compare_exchange(IDLE, AWAKE, Ordering::SeqCst, Ordering::SeqCst);
        match woken {
            Ok(_) => {
                // A full channel means that it is awake already.
                let _ = registered.wakeup.try_send(());
            }
            Err(OVER) => {
                self.publish(totals, Status { is_final: true, ..Status::default() });
            }
            Err(_) => {}
        }
    }

    /// Tells the recorder what has changed since it was told last. Returns `true` if something
    /// has.
    pub(crate) fn publish(&self, totals: impl FnOnce() -> Totals, status: Status) -> bool {
        let Some(registered) = &self.registered else { return false };
        if status.is_final {
            self.phase.store(OVER, Ordering::SeqCst);
        }
        let totals = totals();
        // It may hold the last of a queue for a moment, and so drop values of the program's.
        let queue = panic::catch(|| (registered.queue)()).ok().flatten();
        let changes = registered.published.lock().changes(totals, queue, status);
        let has_news = changes.has_news();
        if has_news {
            self.tell(|registered| changes.tell(registered));
        }
        has_news
    }

    /// Returns the totals that the recorder has been told.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn published_totals(&self) -> Totals {
        self.registered.as_ref().expect("it is registered").published.lock().totals
    }

    // ---- What is rare ----

    pub(crate) fn opened(&self, took: Duration) {
        self.tell(|registered| {
            registered.handles.connections_opened.increment(1);
            registered.handles.connect_duration.record(took);
        });
    }

    pub(crate) fn ended(&self, kind: ErrorKind) {
        self.tell(|registered| {
            let known = &registered.handles.connections_ended;
            increment_kind(known, CONNECTIONS_ENDED, &registered.client, kind);
        });
    }

    pub(crate) fn dial_failed(&self, kind: ErrorKind) {
        self.tell(|registered| {
            increment_kind(
                &registered.handles.dials_failed,
                DIALS_FAILED,
                &registered.client,
                kind,
            );
        });
    }

    pub(crate) fn round_trip(&self, time: Duration) {
        self.tell(|registered| registered.handles.round_trip.record(time));
    }

    pub(crate) fn send_failed(&self, error: &SendError) {
        self.tell(|registered| match error {
            SendError::NotSent(_) => registered.handles.sends_not_sent.increment(1),
            SendError::Unknown(_) => registered.handles.sends_unknown.increment(1),
        });
    }

    pub(crate) fn call_over(&self, outcome: CallOutcome) {
        self.tell(|registered| {
            let Some(session) = registered.session.get() else { return };
            match outcome {
                CallOutcome::Replied => session.replied.increment(1),
                CallOutcome::NotSent => session.not_sent.increment(1),
                CallOutcome::Unknown => session.unknown.increment(1),
            }
        });
    }

    /// A thread is about to wait for the rate limits.
    pub(crate) fn begin_wait(&self) -> WaitStart {
        WaitStart(sync::now())
    }

    /// The rate limits have let its message through.
    pub(crate) fn waited(&self, start: WaitStart) {
        let time = sync::now().saturating_duration_since(start.0);
        self.tell(|registered| registered.handles.rate_limit_wait.record(time));
    }

    /// Calls the recorder, unless it has panicked before.
    fn tell(&self, call: impl FnOnce(&Registered)) {
        let Some(registered) = &self.registered else { return };
        if registered.has_panicked.load(Ordering::Relaxed) {
            return;
        }
        if panic::catch(|| call(registered)).is_err()
            && !registered.has_panicked.swap(true, Ordering::Relaxed)
        {
            warn(&registered.client);
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        let Some(registered) = self.registered.take() else { return };
        let Registered { handles, session, .. } = *registered;
        handles.drop_caught();
        if let Some(session) = session.into_inner() {
            session.drop_caught();
        }
    }
}

fn warn(client: &ClientName) {
    log::warn!("{client}: the recorder of metrics panicked: the client publishes none any more");
}

/// The beginning of a wait for the rate limits.
pub(crate) struct WaitStart(Instant);

impl Published {
    /// Notes the new values, and returns the differences.
    fn changes(&mut self, totals: Totals, queue: Option<(usize, u64)>, status: Status) -> Changes {
        // A publisher that looked earlier may come later: sums never fall.
        let gained = |known: &mut u64, now: u64| {
            let gain = now.saturating_sub(*known);
            *known += gain;
            gain
        };
        let moved = |known: &mut u64, now: u64| now as i64 - std::mem::replace(known, now) as i64;
        let known = &mut self.totals;
        let mut changes = Changes {
            totals: Totals {
                messages_received: gained(&mut known.messages_received, totals.messages_received),
                bytes_received: gained(&mut known.bytes_received, totals.bytes_received),
                messages_sent: gained(&mut known.messages_sent, totals.messages_sent),
                bytes_sent: gained(&mut known.bytes_sent, totals.bytes_sent),
            },
            lost: queue.map_or(0, |(_, lost)| gained(&mut self.lost, lost)),
            ..Changes::default()
        };
        if self.is_final {
            return changes;
        }
        self.is_final = status.is_final;
        let (is_up, queued, topics) = match status.is_final {
            true => (false, 0, Some(TopicCounts::default())),
            false => (status.is_up, queue.map_or(0, |(queued, _)| queued as u64), status.topics),
        };
        if status.is_final || status.number > self.number {
            self.number = status.number;
            changes.up = moved(&mut self.up, u64::from(is_up));
        }
        changes.queued = moved(&mut self.queued, queued);
        if let Some(now) = topics {
            let known = &mut self.topics;
            changes.topics = [
                moved(&mut known.pending, now.pending),
                moved(&mut known.requested, now.requested),
                moved(&mut known.active, now.active),
                moved(&mut known.rejected, now.rejected),
                moved(&mut known.unsubscribing, now.unsubscribing),
            ];
        }
        if status.last_byte.is_some() && status.last_byte > self.last_byte {
            self.last_byte = status.last_byte;
            changes.last_byte = status.last_byte;
        }
        changes
    }
}

impl Changes {
    fn has_news(&self) -> bool {
        let Changes { totals, lost, up, queued, topics, last_byte } = self;
        *totals != Totals::default()
            || *lost > 0
            || *up != 0
            || *queued != 0
            || topics.iter().any(|change| *change != 0)
            || last_byte.is_some()
    }

    fn tell(&self, registered: &Registered) {
        let Handles {
            messages_received,
            received_bytes,
            messages_sent,
            sent_bytes,
            messages_lost,
            up,
            queue_events,
            last_byte_timestamp,
            ..
        } = &registered.handles;
        for (counter, gain) in [
            (messages_received, self.totals.messages_received),
            (received_bytes, self.totals.bytes_received),
            (messages_sent, self.totals.messages_sent),
            (sent_bytes, self.totals.bytes_sent),
            (messages_lost, self.lost),
        ] {
            if gain > 0 {
                counter.increment(gain);
            }
        }
        move_gauge(up, self.up);
        move_gauge(queue_events, self.queued);
        if let Some(session) = registered.session.get() {
            let SessionHandles { pending, requested, active, rejected, unsubscribing, .. } =
                session;
            let gauges = [pending, requested, active, rejected, unsubscribing];
            for (gauge, change) in gauges.into_iter().zip(self.topics) {
                move_gauge(gauge, change);
            }
        }
        if let Some(at) = self.last_byte {
            let age = sync::now().saturating_duration_since(at);
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let time = since_1970.unwrap_or_default().saturating_sub(age);
            last_byte_timestamp.set(time);
        }
    }
}

fn move_gauge(gauge: &Gauge, change: i64) {
    match change {
        0 => {}
        1.. => gauge.increment(change as f64),
        _ => gauge.decrement(change.unsigned_abs() as f64),
    }
}

fn increment_kind(
    known: &[(ErrorKind, Counter)],
    name: &'static str,
    client: &ClientName,
    kind: ErrorKind,
) {
    match known.iter().find(|(of, _)| *of == kind) {
        Some((_, counter)) => counter.increment(1),
        None => kind_counter(name, client, kind).increment(1),
    }
}

fn kind_counter(name: &'static str, client: &ClientName, kind: ErrorKind) -> Counter {
    counter!(name, "client" => client.as_str().to_owned(), "kind" => kind.as_str())
}

fn outcome_counter(name: &'static str, client: &ClientName, outcome: &'static str) -> Counter {
    counter!(name, "client" => client.as_str().to_owned(), "outcome" => outcome)
}

impl Handles {
    fn new(client: &ClientName) -> Self {
        let name = || client.as_str().to_owned();
        let failed = |outcome| outcome_counter(SEND_FAILURES, client, outcome);
        let by_kind = |metric: &'static str, kinds: &[ErrorKind]| {
            kinds.iter().map(|kind| (*kind, kind_counter(metric, client, *kind))).collect()
        };
        Handles {
            messages_received: counter!("tautline_messages_received_total", "client" => name()),
            received_bytes: counter!("tautline_received_bytes_total", "client" => name()),
            messages_sent: counter!("tautline_messages_sent_total", "client" => name()),
            sent_bytes: counter!("tautline_sent_bytes_total", "client" => name()),
            messages_lost: counter!("tautline_messages_lost_total", "client" => name()),
            connections_opened: counter!("tautline_connections_opened_total", "client" => name()),
            connections_ended: by_kind(CONNECTIONS_ENDED, &ENDS),
            dials_failed: by_kind(DIALS_FAILED, &FAILED_DIALS),
            sends_not_sent: failed("not_sent"),
            sends_unknown: failed("unknown"),
            up: gauge!("tautline_up", "client" => name()),
            queue_events: gauge!("tautline_queue_events", "client" => name()),
            last_byte_timestamp: gauge!("tautline_last_byte_timestamp_seconds", "client" => name()),
            round_trip: histogram!("tautline_round_trip_seconds", "client" => name()),
            connect_duration: histogram!("tautline_connect_duration_seconds", "client" => name()),
            rate_limit_wait: histogram!("tautline_rate_limit_wait_seconds", "client" => name()),
        }
    }

    /// The handles are the recorder's, and the `Drop` of each may panic. One after the other: two
    /// panics at the same time would abort the process.
    fn drop_caught(self) {
        let Handles {
            messages_received,
            received_bytes,
            messages_sent,
            sent_bytes,
            messages_lost,
            connections_opened,
            connections_ended,
            dials_failed,
            sends_not_sent,
            sends_unknown,
            up,
            queue_events,
            last_byte_timestamp,
            round_trip,
            connect_duration,
            rate_limit_wait,
        } = self;
        let by_kind = connections_ended.into_iter().chain(dials_failed);
        let counters = [
            messages_received,
            received_bytes,
            messages_sent,
            sent_bytes,
            messages_lost,
            connections_opened,
            sends_not_sent,
            sends_unknown,
        ];
        counters
            .into_iter()
            .chain(by_kind.map(|(_, counter)| counter))
            .for_each(panic::drop_caught);
        [up, queue_events, last_byte_timestamp].into_iter().for_each(panic::drop_caught);
        [round_trip, connect_duration, rate_limit_wait].into_iter().for_each(panic::drop_caught);
    }
}

impl SessionHandles {
    /// As [`Handles::drop_caught`].
    fn drop_caught(self) {
        let SessionHandles {
            pending,
            requested,
            active,
            rejected,
            unsubscribing,
            replied,
            not_sent,
            unknown,
        } = self;
        let gauges = [pending, requested, active, rejected, unsubscribing];
        gauges.into_iter().for_each(panic::drop_caught);
        [replied, not_sent, unknown].into_iter().for_each(panic::drop_caught);
    }

    fn new(client: &ClientName) -> Self {
        let name = || client.as_str().to_owned();
        let in_state =
            |state: &'static str| gauge!(SUBSCRIPTIONS, "client" => name(), "state" => state);
        let over = |outcome| outcome_counter(CALLS, client, outcome);
        SessionHandles {
            pending: in_state("pending"),
            requested: in_state("requested"),
            active: in_state("active"),
            rejected: in_state("rejected"),
            unsubscribing: in_state("unsubscribing"),
            replied: over("replied"),
            not_sent: over("not_sent"),
            unknown: over("unknown"),
        }
    }
}

/// Describes the metrics. Once per client and not once per process: the recorder may have been
/// installed after the first client.
fn describe() {
    for (name, unit, text) in [
        ("tautline_messages_received_total", Unit::Count, "Data messages received"),
        ("tautline_received_bytes_total", Unit::Bytes, "Payload bytes of data messages received"),
        ("tautline_messages_sent_total", Unit::Count, "Data messages that the kernel took whole"),
        ("tautline_sent_bytes_total", Unit::Bytes, "Bytes of the frames of messages sent"),
        ("tautline_messages_lost_total", Unit::Count, "Messages lost to a full queue"),
        ("tautline_connections_opened_total", Unit::Count, "Connections opened"),
        (CONNECTIONS_ENDED, Unit::Count, "Connections ended, by the kind of the reason"),
        (DIALS_FAILED, Unit::Count, "Failed dials, by the kind of the reason"),
        (SEND_FAILURES, Unit::Count, "Sends that failed, by their outcome"),
        (CALLS, Unit::Count, "Calls of sessions that are over, by their outcome"),
    ] {
        describe_counter!(name, unit, text);
    }
    for (name, unit, text) in [
        ("tautline_up", Unit::Count, "Open connections"),
        ("tautline_queue_events", Unit::Count, "Events in the queue"),
        (
            "tautline_last_byte_timestamp_seconds",
            Unit::Seconds,
            "Unix time at which the last byte came; an opening counts as one",
        ),
        (SUBSCRIPTIONS, Unit::Count, "Topics of sessions, by their state"),
    ] {
        describe_gauge!(name, unit, text);
    }
    for (name, text) in [
        ("tautline_round_trip_seconds", "Round-trip times of ping frames"),
        ("tautline_connect_duration_seconds", "Time from the start of a dial to its opening"),
        ("tautline_rate_limit_wait_seconds", "Waits of sends and calls for their rate limits"),
    ] {
        describe_histogram!(name, Unit::Seconds, text);
    }
}

/// The times at which the heartbeat thread publishes.
pub(crate) struct PublishSchedule {
    published: Option<Instant>,
}

impl PublishSchedule {
    pub(crate) fn new() -> Self {
        PublishSchedule { published: None }
    }

    /// Publishes if it is time to, and returns when to do so again: `None` if nothing changes until
    /// somebody wakes the thread. `publish` returns `true` if there was something to tell.
    pub(crate) fn poll(
        &mut self,
        metrics: &Metrics,
        now: Instant,
        publish: impl FnOnce() -> bool,
    ) -> Option<Instant> {
        let due = self.published.map(|published| published + INTERVAL);
        if due.is_some_and(|due| now < due) {
            // Whoever woke the thread may have counted something.
            return due;
        }
        self.published = Some(now);
        let phase = metrics.phase.load(Ordering::SeqCst);
        let has_news = publish();
        match (has_news, phase) {
            (true, _) => Some(now + INTERVAL),
            // It has been idle for an interval: whatever was counted since has woken the thread.
            (false, IDLE) => None,
            // Whoever counts just now may not see it yet: one more look.
            (false, _) => {
                let (from, to) = (AWAKE, IDLE);
                let _ =
                    metrics.phase.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
                Some(now + INTERVAL)
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::sync::channel::{Receiver, bounded};

    fn metrics() -> (Metrics, Receiver<()>) {
        let (wakeup_tx, wakeup) = bounded(1);
        (Metrics::new(&ClientName::default(), wakeup_tx, Box::new(|| Some((0, 0)))), wakeup)
    }

    fn totals(messages_received: u64) -> Totals {
        Totals { messages_received, ..Totals::default() }
    }

    #[test]
    fn the_publisher_sleeps_after_two_looks_without_news_and_whoever_counts_wakes_it() {
        let (metrics, wakeup) = metrics();
        let mut schedule = PublishSchedule::new();
        let start = Instant::now();
        let at = |tenths: u32| start + INTERVAL / 10 * tenths;
        let mut looks = 0;
        // The time in tenths of an interval, the news, whether it looks, and when it does so next.
        let mut poll = |tenths, has_news, is_look, next: Option<u32>| {
            let before = looks;
            let next_look = schedule.poll(&metrics, at(tenths), || {
                looks += 1;
                has_news
            });
            assert_eq!((looks > before, next_look), (is_look, next.map(at)), "at {tenths}");
        };
        poll(0, true, true, Some(10));
        poll(5, true, false, Some(10));
        poll(10, true, true, Some(20));
        poll(20, false, true, Some(30));
        // Woken for something else meanwhile.
        poll(25, false, false, Some(30));
        poll(30, false, true, None);
        poll(200, false, true, None);
        assert!(wakeup.try_recv().is_err());

        metrics.touch(|| totals(1));
        assert!(wakeup.try_recv().is_ok(), "it is woken");
        metrics.touch(|| totals(2));
        assert!(wakeup.try_recv().is_err(), "once");
        // A silence is over: it looks at once, but not twice in an interval.
        poll(211, true, true, Some(221));
        poll(221, false, true, Some(231));
        metrics.touch(|| totals(3));
        assert!(wakeup.try_recv().is_ok(), "it is about to fall asleep");
        poll(222, true, false, Some(231));
        poll(231, true, true, Some(241));
    }

    #[test]
    fn whatever_is_counted_after_the_end_is_published_by_whoever_counts() {
        let (metrics, wakeup) = metrics();
        assert!(metrics.publish(|| totals(2), Status { is_final: true, ..Status::default() }));
        metrics.touch(|| totals(5));
        assert_eq!(metrics.published_totals(), totals(5));
        assert!(wakeup.try_recv().is_err(), "nobody is there to be woken");
    }

    #[test]
    fn sums_never_fall_and_gauges_move_by_differences_until_the_end() {
        let mut published = Published::default();
        let at = Instant::now();
        let status = |active, is_up| Status {
            number: 2,
            is_up,
            last_byte: Some(at),
            topics: Some(TopicCounts { active, ..TopicCounts::default() }),
            is_final: false,
        };
        let first = published.changes(totals(3), Some((4, 1)), status(5, true));
        assert_eq!((first.totals, first.lost), (totals(3), 1));
        assert_eq!((first.up, first.queued, first.topics), (1, 4, [0, 0, 5, 0, 0]));
        assert_eq!(first.last_byte, Some(at));
        // Of a publisher that has looked before.
        let late = published.changes(totals(2), Some((1, 0)), status(2, true));
        assert_eq!((late.totals, late.lost), (totals(0), 0));
        assert_eq!((late.up, late.queued, late.topics), (0, -3, [0, 0, -3, 0, 0]));
        assert_eq!(late.last_byte, None);
        // Nobody knows of the topics.
        let unknown = Status { topics: None, ..status(0, true) };
        assert!(!published.changes(totals(3), Some((1, 1)), unknown).has_news());
        // Of a publisher whose look was an earlier one.
        let earlier = Status { number: 1, ..status(2, false) };
        assert!(!published.changes(totals(3), Some((1, 1)), earlier).has_news());
        let end = Status { number: 0, is_final: true, ..status(2, true) };
        let end = published.changes(totals(4), Some((9, 6)), end);
        assert_eq!((end.totals, end.lost), (totals(1), 5));
        assert_eq!((end.up, end.queued, end.topics), (-1, -1, [0, 0, -2, 0, 0]));
        let later = published.changes(totals(6), Some((9, 6)), status(2, true));
        assert_eq!(later.totals, totals(2));
        assert_eq!((later.up, later.queued, later.topics), (0, 0, [0; 5]));
    }
}
