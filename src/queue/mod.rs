//! The event queue, between the reader thread and the consumers that pull.

pub(crate) mod backlog;
mod chunk;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::config::queue_bounds::Bounds;
use crate::config::settings::Conflate;
use crate::event::{DialFailure, Disconnect, Event, Lagged, MessageRef, Stopped};
use crate::handler::{Connection, EventSink, Full};
use crate::metrics::Metrics;
use crate::queue::backlog::{Backlog, Share, Stuck, Taken, notice_bytes};
use crate::queue::chunk::Chunk;
use crate::session_event::SessionEvent;
use crate::stats::Counters;
use crate::sync::channel::{Receiver, Sender as WakeTx, bounded};
use crate::sync::panic;
#[cfg(all(unix, not(shuttle)))]
use crate::sync::ready_fd::ReadyFd;
use crate::sync::wait::{Shutdown, Woken, wait};
use crate::sync::{self, Mutex, MutexGuard};
use crate::time::after;

/// The payload bytes that the reader gathers before it publishes them, within a `recv`.
const GATHER_BYTES: usize = 256 * 1024;

/// The number of chunks that the reader gathers before it publishes them, within a `recv`.
const GATHER_CHUNKS: usize = 4;

/// The time for which buffers are kept that are no longer needed.
const KEEP: Duration = Duration::from_secs(10);

/// A `recv` with no more than this many payload bytes needs no large buffers.
const QUIET_BYTES: usize = 4096;

/// A `recv` with no more than this many messages needs no large buffers.
const QUIET_MESSAGES: usize = 64;

/// The queue, shared by the reader thread, the client and the consumers.
///
/// Consumers wait for one wake-up channel. It holds a wake-up whenever the queue has events or has
/// ended, except while the consumer that received it is about to take: that consumer puts it back
/// if events are left, and so wakes the next. A wake-up may be left over from events that have been
/// taken since.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    ready: Receiver<()>,
    /// Received when room appears while the reader waits for it.
    room: Receiver<()>,
    /// Those of the client, once it has been started.
    counters: OnceLock<Arc<Counters>>,
    /// Readable whenever the queue has events or has ended. Set and cleared under `inner`.
    #[cfg(all(unix, not(shuttle)))]
    ready_fd: OnceLock<ReadyFd>,
}

struct Inner {
    backlog: Backlog,
    /// The number of consumers.
    consumers: usize,
    /// Messages take the place of unread ones with their key.
    is_conflated: bool,
    /// Somebody waits for readiness by other means than a call of a consumer.
    is_watched: bool,
    /// The reader waits for room.
    is_blocked: bool,
    /// Dropped when a consumer has been told of the end.
    wake: Option<WakeTx<()>>,
    room: WakeTx<()>,
    /// No event follows.
    is_ended: bool,
    /// The epoch of the connection whose opening is in the queue, and whose end is not.
    epoch: Option<u64>,
}

/// The result of an attempt to take events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TakeResult {
    Some,
    Empty,
    Ended,
}

/// The queue's counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueCounts {
    pub(crate) depth: usize,
    pub(crate) lost: Lagged,
    pub(crate) conflated: u64,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let (wake, ready) = bounded(1);
        let (room_tx, room) = bounded(1);
        Queue {
            inner: Mutex::new(Inner {
                backlog: Backlog::new(bounds),
                consumers: 0,
                is_conflated: false,
                is_watched: false,
                is_blocked: false,
                wake: Some(wake),
                room: room_tx,
                is_ended: false,
                epoch: None,
            }),
            ready,
            room,
            counters: OnceLock::new(),
            #[cfg(all(unix, not(shuttle)))]
            ready_fd: OnceLock::new(),
        }
    }

    /// Has the metrics of the client published when the queue changes.
    pub(crate) fn set_counters(&self, counters: Arc<Counters>) {
        let _ = self.counters.set(counters);
    }

    /// The metrics have the depth of the queue, and nobody looks at it while nothing is counted.
    #[inline]
    fn touch_metrics(&self) {
        if let Some(counters) = self.counters.get().filter(|_| Metrics::ARE_PUBLISHED) {
            counters.touch();
        }
    }

    pub(crate) fn counts(&self) -> QueueCounts {
        let inner = self.inner.lock();
        let backlog = &inner.backlog;
        QueueCounts { depth: backlog.len(), lost: backlog.lost(), conflated: backlog.conflated() }
    }

    /// Adds the news of a session, from the heartbeat thread, unless its connection has ended.
    pub(crate) fn push_session_event(&self, epoch: u64, event: SessionEvent) {
        let event = Event::Session(event);
        let bytes = notice_bytes(&event);
        let event = Box::new(event);
        // Notices may hold values of the program's: they are dropped without the lock.
        let mut dropped = Vec::new();
        let wake = {
            let mut inner = self.inner.lock();
            // It does not stand behind the end of its connection.
            if inner.is_ended || inner.epoch != Some(epoch) {
                return;
            }
            inner.backlog.push_notice(event, bytes, &mut dropped);
            self.show_fd(true);
            inner.wake.clone()
        };
        if let Some(wake) = wake {
            // Full means that nobody has received the last one yet.
            let _ = wake.try_send(());
        }
    }

    // ---- Consumers ----

    pub(crate) fn add_consumer(&self) {
        self.inner.lock().consumers += 1;
    }

    /// Puts back what a consumer has not handed on.
    pub(crate) fn remove_consumer(&self, taken: &mut Taken) {
        {
            let mut inner = self.inner.lock();
            inner.consumers -= 1;
            inner.backlog.put_back(taken);
            // It may have received the wake-up and taken nothing.
            self.show(&mut inner);
        }
        self.touch_metrics();
    }

    /// Moves some events to a consumer that has none left. Waits for the first of them, for
    /// `timeout` at most.
    pub(crate) fn take(
        &self,
        taken: &mut Taken,
        share: Share,
        timeout: Option<Duration>,
    ) -> TakeResult {
        let mut result = self.try_take(taken, share);
        if result != TakeResult::Empty || timeout == Some(Duration::ZERO) {
            return result;
        }
        let until = timeout.map(|timeout| after(sync::now(), timeout));
        while result == TakeResult::Empty {
            // A channel that has disconnected tells of the end, like a wake-up.
            let is_late = match until {
                None => {
                    let _ = self.ready.recv();
                    false
                }
                Some(until) => {
                    self.ready.recv_deadline(until).is_err_and(|error| error.is_timeout())
                }
            };
            result = self.try_take(taken, share);
            if is_late {
                break;
            }
        }
        result
    }

    fn try_take(&self, taken: &mut Taken, share: Share) -> TakeResult {
        let mut inner = self.inner.lock();
        if inner.backlog.is_empty() {
            if !inner.is_ended {
                return TakeResult::Empty;
            }
            inner.wake = None;
            return TakeResult::Ended;
        }
        // The others cannot be told of what one has taken, nor can whoever watches, and no message
        // takes the place of one that has been taken.
        let is_alone = inner.consumers <= 1 && !inner.is_watched && !inner.is_conflated;
        inner.backlog.take(taken, if is_alone { Share::Chunk } else { share });
        self.show(&mut inner);
        if inner.is_blocked {
            // Full means that an earlier one has not been received yet.
            let _ = inner.room.try_send(());
        }
        drop(inner);
        self.touch_metrics();
        TakeResult::Some
    }

    /// Returns the receiver for `select!`, after putting back what the consumer has left.
    pub(crate) fn ready(&self, taken: &mut Taken) -> Receiver<()> {
        drop(self.watch(taken));
        self.touch_metrics();
        self.ready.clone()
    }

    /// Returns the descriptor that shows readiness, after putting back what the consumer has left.
    #[cfg(all(unix, not(shuttle)))]
    pub(crate) fn ready_fd(&self, taken: &mut Taken) -> std::io::Result<&ReadyFd> {
        let mut inner = self.watch(taken);
        if let Some(ready_fd) = self.ready_fd.get() {
            return Ok(ready_fd);
        }
        let created = ReadyFd::new()?;
        let ready_fd = self.ready_fd.get_or_init(|| created);
        self.show(&mut inner);
        Ok(ready_fd)
    }

    fn watch(&self, taken: &mut Taken) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock();
        inner.is_watched = true;
        if !taken.is_empty() {
            inner.backlog.put_back(taken);
        }
        self.show(&mut inner);
        inner
    }

    /// Makes the readiness that others see that of the queue.
    fn show(&self, inner: &mut Inner) {
        let is_ready = inner.is_ready();
        if !is_ready {
            // Whatever is received here was about events that have been taken.
            let _ = self.ready.try_recv();
        } else if let Some(wake) = &inner.wake {
            // Full means that nobody has received it yet.
            let _ = wake.try_send(());
        }
        self.show_fd(is_ready);
    }

    fn show_fd(&self, is_ready: bool) {
        #[cfg(all(unix, not(shuttle)))]
        if let Some(ready_fd) = self.ready_fd.get() {
            ready_fd.set(is_ready);
        }
        #[cfg(not(all(unix, not(shuttle))))]
        let _ = is_ready;
    }
}

impl Inner {
    fn is_ready(&self) -> bool {
        self.is_ended || !self.backlog.is_empty()
    }
}

/// The reader's end of the queue.
pub(crate) struct QueueSink {
    queue: Arc<Queue>,
    shutdown: Shutdown,
    conflate: Option<Conflate>,
    /// Wakes a consumer. Used without the lock, so that the consumer does not find it held.
    wake: Option<WakeTx<()>>,
    /// The messages of this `recv`: those of all chunks up to `current`.
    chunks: Vec<Chunk>,
    current: usize,
    /// The payload bytes in the chunks before `current`.
    gathered: usize,
    is_full: bool,
    /// The time at which large buffers were last needed.
    needed_at: Option<Instant>,
}

impl QueueSink {
    pub(crate) fn new(queue: Arc<Queue>, shutdown: Shutdown, conflate: Option<Conflate>) -> Self {
        let wake = {
            let mut inner = queue.inner.lock();
            inner.is_conflated = conflate.is_some();
            inner.wake.clone()
        };
        QueueSink {
            queue,
            shutdown,
            conflate,
            wake,
            chunks: vec![Chunk::default()],
            current: 0,
            gathered: 0,
            is_full: false,
            needed_at: None,
        }
    }

    fn wake_consumer(&self) {
        if let Some(wake) = &self.wake {
            // Full means that nobody has received the last one yet.
            let _ = wake.try_send(());
        }
    }

    /// Copies a message. `key` is `None` where nothing is conflated.
    #[inline]
    fn push(&mut self, message: MessageRef<'_>, key: Option<Option<&[u8]>>) {
        let Some(chunk) = self.chunks.get_mut(self.current) else { return };
        match key {
            None => chunk.push(message),
            Some(key) => chunk.push_keyed(message, key),
        }
        if chunk.is_full() {
            self.begin_chunk();
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_chunk(&mut self) {
        self.needed_at = None;
        self.gathered += self.chunks.get(self.current).map_or(0, Chunk::bytes);
        if self.current + 1 == GATHER_CHUNKS || self.gathered >= GATHER_BYTES {
            return self.publish();
        }
        self.current += 1;
        if self.current == self.chunks.len() {
            self.chunks.push(Chunk::default());
        }
    }

    /// Moves the gathered messages into the queue and wakes a consumer. Under `Block` it waits for
    /// room, until shutdown.
    fn publish(&mut self) {
        while self.move_in() == Err(Stuck::NoRoom) {
            if !self.await_room() {
                // The client ends, and these have no room.
                let mut inner = self.queue.inner.lock();
                self.chunks.iter_mut().for_each(|chunk| inner.backlog.lose_all(chunk));
            }
        }
        self.current = 0;
        self.gathered = 0;
    }

    /// Moves all chunks in under one lock, as far as there is room.
    fn move_in(&mut self) -> Result<(), Stuck> {
        let mut moved = Ok(());
        {
            let mut inner = self.queue.inner.lock();
            for chunk in self.chunks.iter_mut().take(self.current + 1) {
                if self.is_full {
                    inner.backlog.lose_all(chunk);
                    continue;
                }
                match inner.backlog.push(chunk) {
                    Ok(()) => {}
                    Err(Stuck::Lagged) => self.is_full = true,
                    Err(Stuck::NoRoom) => {
                        inner.is_blocked = true;
                        moved = Err(Stuck::NoRoom);
                        break;
                    }
                }
            }
            self.queue.show_fd(inner.is_ready());
        }
        self.wake_consumer();
        moved
    }

    /// Waits for room; `false` when the client has to end instead.
    fn await_room(&self) -> bool {
        // A wake-up is remembered, so the period is a second line of defense only.
        let until = after(sync::now(), Duration::from_millis(100));
        let woken = wait(&self.shutdown, &self.queue.room, Some(until));
        self.queue.inner.lock().is_blocked = false;
        !matches!(woken, Woken::Shutdown)
    }

    /// Returns `true` if large buffers have not been needed for a while.
    fn is_quiet(&mut self) -> bool {
        let Some(first) = self.chunks.first() else { return false };
        let Some(at) = first.messages().next().map(|message| message.received_at()) else {
            return false;
        };
        if self.current > 0 || first.bytes() > QUIET_BYTES || first.len() > QUIET_MESSAGES {
            self.needed_at = Some(at);
        }
        let needed_at = *self.needed_at.get_or_insert(at);
        at.saturating_duration_since(needed_at) >= KEEP
    }

    /// Gives back buffers.
    fn shrink(&mut self) {
        self.chunks = vec![Chunk::default()];
        self.queue.inner.lock().backlog.shrink();
        self.needed_at = None;
    }

    fn push_notice(&mut self, event: Event) {
        let bytes = notice_bytes(&event);
        let event = Box::new(event);
        // Notices may hold values of the program's: they are dropped without the lock.
        let mut dropped = Vec::new();
        {
            let mut inner = self.queue.inner.lock();
            match &*event {
                Event::Opened(opened) => inner.epoch = Some(opened.epoch),
                Event::Disconnected(_) => inner.epoch = None,
                _ => {}
            }
            inner.backlog.push_notice(event, bytes, &mut dropped);
            self.queue.show_fd(true);
        }
        self.wake_consumer();
    }
}

impl EventSink for QueueSink {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.is_full = false;
        self.push_notice(Event::Opened(connection.opening().clone()));
    }

    #[inline]
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        match &self.conflate {
            None => self.push(message, None),
            Some(conflate) => {
                let key = panic::catch(|| conflate(message)).unwrap_or_else(|panic| {
                    connection.abort_for_panic(panic, "the closure of `conflate` panicked");
                    None
                });
                self.push(message, Some(key));
            }
        }
    }

    fn end_recv(&mut self) -> Result<(), Full> {
        let is_quiet = self.is_quiet();
        if self.chunks.first().is_some_and(|first| !first.is_empty()) {
            self.publish();
        }
        if is_quiet {
            self.shrink();
        }
        if self.is_full { Err(Full) } else { Ok(()) }
    }

    fn disconnected(&mut self, disconnect: &mut Disconnect) {
        self.push_notice(Event::Disconnected(disconnect.clone()));
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        self.push_notice(Event::DialFailed(failure.clone()));
    }

    fn session_event(&mut self, event: SessionEvent) {
        // It stands behind the messages that came before it.
        if self.chunks.first().is_some_and(|first| !first.is_empty()) {
            self.publish();
        }
        self.push_notice(Event::Session(event));
    }

    fn stopped(&mut self, stopped: &Stopped) {
        self.push_notice(Event::Stopped(stopped.clone()));
    }
}

impl Drop for QueueSink {
    /// Whatever ended the reader, no consumer may wait for ever.
    fn drop(&mut self) {
        {
            let mut inner = self.queue.inner.lock();
            inner.is_ended = true;
            self.queue.show_fd(true);
        }
        self.wake_consumer();
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::config::queue_bounds::WhenFull;
    use crate::error::Error;
    use crate::event::{Arrival, Payload};
    use crate::events::{Events, TryNextError};
    use crate::sync::threads::{ThreadOptions, Threads};

    fn queue(messages: usize, when_full: WhenFull) -> (QueueSink, Events) {
        let queue = Arc::new(Queue::new(Bounds { messages, bytes: 1000, when_full }));
        let shutdown = Threads::new(ThreadOptions::default()).shutdown_signal();
        (QueueSink::new(Arc::clone(&queue), shutdown, None), Events::new(queue))
    }

    fn notice() -> Event {
        Event::Stopped(Stopped { reason: Error::stopped() })
    }

    fn push_one(sink: &mut QueueSink, text: &str, at: Instant) {
        let arrival = Arrival { at, kernel: None };
        sink.push(MessageRef::new(Payload::Text(text), 1, arrival), None);
    }

    /// Pushes the messages of a `recv`.
    fn push(sink: &mut QueueSink, texts: &[&str]) -> Result<(), Full> {
        let now = Instant::now();
        texts.iter().for_each(|text| push_one(sink, text, now));
        sink.end_recv()
    }

    /// Returns an event in short: the text of a message, `lost/notices` of a lag, `*` for a notice.
    fn short(event: Event) -> String {
        match event {
            Event::Message(message) => message.into_text().expect("all are text"),
            Event::Lagged(lag) => format!("{}/{}", lag.lost, lag.lost_notices),
            _ => "*".to_owned(),
        }
    }

    fn drain(events: &mut Events) -> Vec<String> {
        std::iter::from_fn(|| events.try_next().ok()).map(short).collect()
    }

    fn in_batches(events: &mut Events) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(batch) = events.next_batch_timeout(Duration::ZERO) {
            assert_eq!(batch.len(), batch.iter().count());
            all.extend(batch.into_iter().map(|event| short(event.to_owned())));
        }
        all
    }

    #[test]
    fn a_full_queue_that_disconnects_keeps_what_it_has_and_counts_the_rest() {
        for read in [drain, in_batches] {
            let (mut sink, mut events) = queue(2, WhenFull::Disconnect);
            assert!(push(&mut sink, &["a", "b", "c", "d"]).is_err());
            sink.push_notice(notice());
            assert_eq!(sink.queue.counts().lost.lost, 2);
            assert_eq!(read(&mut events), ["a", "b", "2/0", "*"]);
        }
    }

    #[test]
    fn dropping_the_oldest_puts_the_lag_where_they_were() {
        for read in [drain, in_batches] {
            let (mut sink, mut events) = queue(2, WhenFull::DropOldest);
            sink.push_notice(notice());
            assert!(push(&mut sink, &["a", "b", "c", "d"]).is_ok());
            sink.push_notice(notice());
            assert!(push(&mut sink, &["e"]).is_ok());
            assert_eq!(read(&mut events), ["*", "3/0", "d", "*", "e"]);
        }
    }

    #[test]
    fn dropping_the_newest_puts_the_lag_behind_those_that_stay() {
        for read in [drain, in_batches] {
            let (mut sink, mut events) = queue(2, WhenFull::DropNewest);
            assert!(push(&mut sink, &["a", "b", "c"]).is_ok());
            assert!(push(&mut sink, &["d"]).is_ok());
            sink.push_notice(notice());
            assert!(push(&mut sink, &["e"]).is_ok());
            assert_eq!(read(&mut events), ["a", "b", "2/0", "*", "1/0"]);
        }
    }

    #[test]
    fn bytes_are_bounded_too_and_a_giant_goes_into_an_empty_queue() {
        let (mut sink, mut events) = queue(100, WhenFull::DropNewest);
        let giant = "g".repeat(2000);
        assert!(push(&mut sink, &[&giant, "a"]).is_ok());
        assert_eq!(drain(&mut events), [giant.as_str(), "1/0"]);
        let half = "h".repeat(600);
        assert!(push(&mut sink, &[&half, &half]).is_ok());
        assert_eq!(drain(&mut events), [half.as_str(), "1/0"]);
    }

    #[test]
    fn notices_are_bounded_and_their_loss_is_told() {
        let (mut sink, mut events) = {
            let bounds = Bounds { messages: 2, bytes: 1 << 30, when_full: WhenFull::Disconnect };
            let queue = Arc::new(Queue::new(bounds));
            let shutdown = Threads::new(ThreadOptions::default()).shutdown_signal();
            (QueueSink::new(Arc::clone(&queue), shutdown, None), Events::new(queue))
        };
        for _ in 0..1034 {
            sink.push_notice(notice());
        }
        let told = drain(&mut events);
        assert_eq!((told.len(), told[0].as_str()), (1025, "0/10"));
    }

    #[test]
    fn refusals_are_bounded_by_the_bytes_that_they_hold() {
        let bounds = Bounds { messages: 2, bytes: 10_000, when_full: WhenFull::Disconnect };
        let queue = Arc::new(Queue::new(bounds));
        let shutdown = Threads::new(ThreadOptions::default()).shutdown_signal();
        let mut sink = QueueSink::new(Arc::clone(&queue), shutdown, None);
        for _ in 0..20 {
            let error = Error::refused("a:1", http::Response::new(vec![0; 6000]), None);
            sink.dial_failed(&DialFailure { attempt: 1, error, retry_in: None });
        }
        assert_eq!(queue.counts().depth, 2, "a loss and the last refusal");
        assert_eq!(drain(&mut Events::new(queue)), ["0/19", "*"]);
    }

    #[test]
    fn a_flood_of_empty_messages_leaves_small_buffers() {
        let (mut sink, mut events) = queue(10, WhenFull::DropNewest);
        let now = Instant::now();
        (0..100_000).for_each(|_| push_one(&mut sink, "", now));
        sink.end_recv().expect("the rule is to drop");
        let in_sink: usize = sink.chunks.iter().map(Chunk::capacity).sum();
        let held = in_sink + sink.queue.inner.lock().backlog.capacity();
        assert!(held < 1 << 20, "{held} bytes");
        assert_eq!(drain(&mut events).len(), 11);
    }

    #[test]
    fn ends_have_room_however_many_lags_there_are() {
        let bounds = Bounds { messages: 4096, bytes: 1 << 30, when_full: WhenFull::DropNewest };
        let queue = Arc::new(Queue::new(bounds));
        let shutdown = Threads::new(ThreadOptions::default()).shutdown_signal();
        let mut sink = QueueSink::new(Arc::clone(&queue), shutdown, None);
        assert!(push(&mut sink, &vec!["x"; 4097]).is_ok());
        for _ in 0..1100 {
            // A program that is a little too slow: it takes one, and two come.
            let mut events = Events::new(Arc::clone(&queue));
            while !matches!(events.try_next().expect("there are many"), Event::Message(_)) {}
            drop(events);
            assert!(push(&mut sink, &["x", "x"]).is_ok());
        }
        sink.push_notice(notice());
        sink.push_notice(notice());
        assert_eq!(queue.counts().lost.lost_notices, 0);
    }

    #[test]
    fn a_blocked_reader_goes_on_when_there_is_room_and_loses_nothing() {
        let bounds = Bounds { messages: 2, bytes: 1000, when_full: WhenFull::Block };
        let queue = Arc::new(Queue::new(bounds));
        let threads = Threads::new(ThreadOptions::default());
        let mut sink = QueueSink::new(Arc::clone(&queue), threads.shutdown_signal(), None);
        let thread = std::thread::spawn(move || push(&mut sink, &["a", "b", "c", "d", "e"]));
        let texts: Vec<_> = Events::new(queue).map(short).collect();
        assert_eq!(texts, ["a", "b", "c", "d", "e"]);
        assert!(thread.join().expect("it does not panic").is_ok());
    }

    #[test]
    fn a_blocked_reader_ends_on_shutdown_and_tells_what_it_lost() {
        let bounds = Bounds { messages: 1, bytes: 1000, when_full: WhenFull::Block };
        let queue = Arc::new(Queue::new(bounds));
        let threads = Threads::new(ThreadOptions::default());
        let mut sink = QueueSink::new(Arc::clone(&queue), threads.shutdown_signal(), None);
        std::thread::scope(|scope| {
            let pushing = scope.spawn(move || push(&mut sink, &["a", "b"]));
            threads.shutdown();
            assert!(pushing.join().expect("it does not panic").is_ok());
        });
        assert_eq!(drain(&mut Events::new(queue)), ["a", "1/0"]);
    }

    #[test]
    fn what_was_taken_and_not_read_is_there_for_the_next() {
        let (mut sink, mut events) = queue(10, WhenFull::Disconnect);
        assert!(push(&mut sink, &["a", "b", "c"]).is_ok());
        sink.push_notice(notice());
        assert!(push(&mut sink, &["d"]).is_ok());
        let queue = Arc::clone(&sink.queue);
        assert_eq!(events.next().map(short).as_deref(), Some("a"));
        drop(events);
        assert_eq!(queue.counts().depth, 4);
        let mut events = Events::new(queue);
        assert!(push(&mut sink, &["e"]).is_ok());
        assert_eq!(in_batches(&mut events), ["b", "c", "*", "d", "e"]);
    }

    #[test]
    fn a_message_that_a_lone_consumer_has_not_read_can_be_replaced() {
        let bounds = Bounds { messages: 9, bytes: 1000, when_full: WhenFull::Disconnect };
        let queue = Arc::new(Queue::new(bounds));
        let shutdown = Threads::new(ThreadOptions::default()).shutdown_signal();
        let conflate: Conflate = Arc::new(|message| message.bytes().get(..1));
        let mut sink = QueueSink::new(Arc::clone(&queue), shutdown, Some(conflate.clone()));
        let mut push = |texts: &[&'static str]| {
            for text in texts {
                let arrival = Arrival { at: Instant::now(), kernel: None };
                let message = MessageRef::new(Payload::Text(text), 1, arrival);
                sink.push(message, Some(conflate(message)));
            }
            sink.end_recv().expect("there is room");
        };
        let mut events = Events::new(queue);
        push(&["a0", "b0", "c0"]);
        assert_eq!(events.next().map(short).as_deref(), Some("a0"));
        push(&["b1"]);
        assert_eq!(drain(&mut events), ["b1", "c0"]);
    }

    #[test]
    fn a_batch_begins_with_what_was_taken_and_not_read() {
        let (mut sink, mut events) = queue(10, WhenFull::Disconnect);
        assert!(push(&mut sink, &["a", "b", "c"]).is_ok());
        assert_eq!(events.next().map(short).as_deref(), Some("a"));
        assert_eq!(in_batches(&mut events), ["b", "c"]);
    }

    #[test]
    fn the_receiver_is_ready_while_there_are_events_and_disconnects_at_the_end() {
        let (mut sink, mut events) = queue(200, WhenFull::Disconnect);
        let ready = events.ready();
        assert!(ready.is_empty());
        let texts = vec!["x"; 150];
        assert!(push(&mut sink, &texts).is_ok());
        let mut seen = 0;
        while ready.try_recv().is_ok() {
            while events.try_next().is_ok() {
                seen += 1;
            }
        }
        assert_eq!(seen, 150);
        // One at a time is as good.
        assert!(push(&mut sink, &texts).is_ok());
        while ready.try_recv().is_ok() {
            seen += usize::from(events.try_next().is_ok());
        }
        assert_eq!(seen, 300);
        drop(sink);
        assert_eq!(ready.recv(), Ok(()), "whoever waits has to ask");
        assert_eq!(events.try_next().expect_err("nothing is left"), TryNextError::Disconnected);
        assert_eq!(ready.recv(), Err(crossbeam_channel::RecvError));
        assert_eq!(events.ready().recv(), Err(crossbeam_channel::RecvError));
    }

    #[test]
    fn the_receiver_does_not_disconnect_while_events_may_be_put_back() {
        let (mut sink, mut events) = queue(200, WhenFull::Disconnect);
        assert!(push(&mut sink, &["a", "b", "c"]).is_ok());
        let queue = Arc::clone(&sink.queue);
        drop(sink);
        let ready = events.ready();
        assert!(events.next().is_some());
        drop(events);
        let mut events = Events::new(queue);
        let mut seen = 0;
        while ready.recv().is_ok() {
            seen += usize::from(events.try_next().is_ok());
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn the_receiver_is_ready_for_what_was_taken_before() {
        let (mut sink, mut events) = queue(9, WhenFull::DropNewest);
        assert!(push(&mut sink, &["a", "b", "c"]).is_ok());
        assert!(events.try_next().is_ok());
        let ready = events.ready();
        assert_eq!(ready.recv_timeout(Duration::from_secs(1)), Ok(()), "two events are there");
    }

    #[test]
    fn the_receiver_is_ready_though_another_consumer_received_the_wake_up() {
        let (mut sink, mut one) = queue(9, WhenFull::DropNewest);
        let mut two = Events::new(Arc::clone(&sink.queue));
        let (first, second) = (one.ready(), two.ready());
        assert!(push(&mut sink, &["a", "b", "c"]).is_ok());
        assert_eq!(first.recv(), Ok(()));
        assert!(one.try_next().is_ok());
        assert_eq!(second.recv(), Ok(()));
        assert!(two.try_next().is_ok());
        assert_eq!(first.recv_timeout(Duration::from_secs(1)), Ok(()), "one event is left");
    }

    #[test]
    fn a_consumer_that_received_the_wake_up_and_goes_leaves_it_to_the_next() {
        let (mut sink, one) = queue(9, WhenFull::DropNewest);
        let two = Events::new(Arc::clone(&sink.queue));
        assert!(push(&mut sink, &["a"]).is_ok());
        assert_eq!(one.ready().recv(), Ok(()));
        let ready = two.ready();
        while ready.try_recv().is_ok() {}
        drop(one);
        assert_eq!(ready.try_recv(), Ok(()));
    }

    #[cfg(unix)]
    #[test]
    fn the_descriptor_is_readable_while_there_are_events_and_from_the_end_on() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let is_readable = |events: &Events| {
            let fd = events.as_fd().expect("there are descriptors");
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut fds, Some(&at_once)).expect("it polls") == 1
        };
        let (mut sink, mut events) = queue(9, WhenFull::DropNewest);
        assert!(!is_readable(&events));
        for _ in 0..3 {
            assert!(push(&mut sink, &["a", "b"]).is_ok());
            assert!(push(&mut sink, &["c"]).is_ok());
            for _ in 0..3 {
                assert!(is_readable(&events));
                assert!(events.try_next().is_ok());
            }
            assert!(!is_readable(&events));
            sink.push_notice(notice());
            assert!(is_readable(&events));
            assert_eq!(in_batches(&mut events), ["*"]);
            assert!(!is_readable(&events));
        }
        // Events that were taken before the first call count as well.
        let (mut other, mut late) = queue(9, WhenFull::DropNewest);
        assert!(push(&mut other, &["a", "b"]).is_ok());
        assert!(late.try_next().is_ok());
        assert!(is_readable(&late));
        drop(sink);
        assert!(is_readable(&events));
        assert_eq!(events.try_next().expect_err("nothing is left"), TryNextError::Disconnected);
        assert!(is_readable(&events));
    }

    #[test]
    fn buffers_shrink_after_a_quiet_while() {
        let bounds = Bounds { messages: 1 << 20, bytes: 1 << 30, when_full: WhenFull::Block };
        let queue = Arc::new(Queue::new(bounds));
        let threads = Threads::new(ThreadOptions::default());
        let mut sink = QueueSink::new(Arc::clone(&queue), threads.shutdown_signal(), None);
        let mut events = Events::new(Arc::clone(&queue));
        let mut at = Instant::now();
        let large = "x".repeat(1000);
        for _ in 0..1000 {
            push_one(&mut sink, &large, at);
        }
        sink.end_recv().expect("there is room");
        while events.next_batch_timeout(Duration::ZERO).is_ok() {}
        let held = |sink: &QueueSink| -> usize {
            let in_sink: usize = sink.chunks.iter().map(Chunk::capacity).sum();
            in_sink + queue.inner.lock().backlog.capacity()
        };
        assert!(held(&sink) > 100_000);
        for _ in 0..60 {
            push_one(&mut sink, "x", at);
            sink.end_recv().expect("there is room");
            assert!(events.next_batch_timeout(Duration::ZERO).is_ok());
            at += Duration::from_secs(1);
        }
        let held = held(&sink);
        assert!(held < 10_000, "{held} bytes");
    }
}
