//! The events queue: bounded in messages and bytes, between the reader thread and a program that
//! pulls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::event::{DialFailure, Disconnect, Event, Lagged, MessageRef, Opened, Stopped};
use crate::handler::{Connection, EventSink, Full};
use crate::sync::channel::{Receiver, Sender as WakeTx, bounded};
use crate::sync::wait::{Shutdown, Woken, wait};
use crate::sync::{self, Condvar, Mutex};
use crate::time::after;

/// The rule for a message that finds the events queue full.
///
/// The rules apply to messages only: openings, ends and failed dials have room of their own, for
/// 1,024 of them, and the oldest make room then; a [`Lagged`] says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// The connection ends with the kind `Lagged` and comes back: what is in the queue can still be
    /// read, and the program takes a new snapshot. The default, because a gap that nobody notices
    /// costs more than a reconnect.
    #[default]
    Disconnect,
    /// The oldest message makes room, and `Lagged` says how many were lost.
    DropOldest,
    /// The new message is dropped, and `Lagged` says how many were lost.
    DropNewest,
    /// The reader waits for room. It reads nothing meanwhile, so pings go unanswered and the venue
    /// may close the connection.
    Block,
}

/// The bounds of the events queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) when_full: WhenFull,
}

/// Notices (openings, ends, lags) have their own room beside the messages. A program that reads
/// nothing through a thousand reconnects loses the oldest of them, and `Lagged` says so.
const NOTICES: usize = 1024;

/// The number of events that a consumer takes out under one hold of the lock.
const TAKE: usize = 64;

/// The number of payload bytes that a consumer takes out under one hold of the lock, at least one
/// event.
const TAKE_BYTES: usize = 256 * 1024;

/// The number of payload bytes that the reader gathers before it hands them over, at least one
/// event.
const GATHER_BYTES: usize = 64 * 1024;

/// The number of events that the reader gathers before it hands them over: empty messages have no
/// payload, and a `recv` brings a hundred thousand of them.
const GATHER_EVENTS: usize = 1024;

/// The queue itself, shared by the reader thread and whoever pulls.
pub(crate) struct Queue {
    bounds: Bounds,
    inner: Mutex<Inner>,
    /// Signalled when events come in and when the queue ends. Waits under `inner`.
    readable: Condvar,
    /// Signalled when room appears while the reader is blocked. One signal is remembered, so none
    /// is lost.
    room: (WakeTx<()>, Receiver<()>),
    /// A receiver has been lent, which has to be ready for what consumers have taken out and not
    /// handed on, too.
    has_lent: AtomicBool,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Event>,
    messages: usize,
    /// Openings, ends and the like: everything but messages and lags.
    notices: usize,
    /// The bytes of the refusals that the notices hold.
    notice_bytes: usize,
    bytes: usize,
    /// The number of threads that wait for `readable`.
    waiting: usize,
    /// The reader waits for room.
    is_blocked: bool,
    /// No event comes after those that are here.
    is_ended: bool,
    lost: u64,
    lost_notices: u64,
    /// Lent to `select!`; holds a signal whenever the queue is not empty. Dropped when somebody has
    /// been told that it has ended.
    wakeup: Option<WakeTx<()>>,
    lent: Option<Receiver<()>>,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Queue {
            bounds,
            inner: Mutex::default(),
            readable: Condvar::new(),
            room: bounded(1),
            has_lent: AtomicBool::new(false),
        }
    }

    /// Returns the number of events that wait.
    pub(crate) fn depth(&self) -> usize {
        self.inner.lock().events.len()
    }

    /// Messages and notices lost so far.
    pub(crate) fn lag(&self) -> Lagged {
        let inner = self.inner.lock();
        Lagged { lost: inner.lost, lost_notices: inner.lost_notices }
    }

    fn push_notice(&self, event: Event) {
        let mut lost = Vec::new();
        {
            let mut inner = self.inner.lock();
            inner.push_notice(event, self.bounds.bytes, &mut lost);
            self.tell(&mut inner);
        }
        // Without the lock: an error may hold a value of the program's, whose `Drop` may call back.
        drop(lost);
    }

    /// Nothing comes after this.
    fn end(&self) {
        let mut inner = self.inner.lock();
        inner.is_ended = true;
        inner.wake_if_over();
        self.readable.notify_all();
    }

    /// Moves a batch of messages in, as far as the rule lets it. Under `Block` it waits for room,
    /// until shutdown.
    fn push_batch(&self, batch: &mut VecDeque<Event>, shutdown: &Shutdown) -> Result<(), Full> {
        while !batch.is_empty() {
            let mut inner = self.inner.lock();
            let outcome = self.admit(&mut inner, batch);
            self.tell(&mut inner);
            match outcome {
                Ok(()) => {}
                Err(Stuck::Lagged) => return Err(Full),
                Err(Stuck::NoRoom) => {
                    inner.is_blocked = true;
                    drop(inner);
                    if !self.await_room(shutdown) {
                        // The client ends, and these have no room.
                        let mut inner = self.inner.lock();
                        inner.lose_newest(batch.len() as u64);
                        batch.clear();
                    }
                }
            }
        }
        Ok(())
    }

    fn admit(&self, inner: &mut Inner, batch: &mut VecDeque<Event>) -> Result<(), Stuck> {
        while let Some(event) = batch.pop_front() {
            let bytes = payload_bytes(&event);
            if inner.has_room(bytes, &self.bounds) {
                inner.push_message(event);
                continue;
            }
            match self.bounds.when_full {
                WhenFull::Block => {
                    batch.push_front(event);
                    return Err(Stuck::NoRoom);
                }
                WhenFull::DropNewest => inner.lose_newest(1),
                WhenFull::DropOldest => {
                    while !inner.has_room(bytes, &self.bounds) && inner.lose_oldest() {}
                    inner.push_message(event);
                }
                WhenFull::Disconnect => {
                    inner.lose_newest(1 + batch.len() as u64);
                    batch.clear();
                    return Err(Stuck::Lagged);
                }
            }
        }
        Ok(())
    }

    /// Waits for room; `false` when the client has to end instead.
    fn await_room(&self, shutdown: &Shutdown) -> bool {
        // The signal is remembered: the period is a safety net only.
        let woken =
            wait(shutdown, &self.room.1, Some(after(sync::now(), Duration::from_millis(100))));
        self.inner.lock().is_blocked = false;
        !matches!(woken, Woken::Shutdown)
    }

    /// Wakes whoever waits for events.
    fn tell(&self, inner: &mut Inner) {
        if inner.events.is_empty() {
            return;
        }
        inner.wake();
        if inner.waiting > 0 {
            self.readable.notify_one();
        }
    }

    /// Moves some events into `taken`. Waits for the first until `until`; `None` waits for ever.
    fn take(&self, taken: &mut VecDeque<Event>, until: Option<Instant>) -> Taken {
        let mut inner = self.inner.lock();
        while inner.events.is_empty() {
            if inner.is_ended {
                inner.wakeup = None;
                return Taken::Ended;
            }
            inner.waiting += 1;
            let timed_out = match until {
                Some(until) => self.readable.wait_until(&mut inner, until).timed_out(),
                None => {
                    self.readable.wait(&mut inner);
                    false
                }
            };
            inner.waiting -= 1;
            if timed_out && inner.events.is_empty() && !inner.is_ended {
                return Taken::Nothing;
            }
        }
        let mut bytes = 0;
        // What one of several takes out no other can be told of.
        let most = if self.has_lent.load(Ordering::Relaxed) { 1 } else { TAKE };
        for _ in 0..most {
            let Some(event) = inner.pop() else { break };
            bytes += payload_bytes(&event);
            taken.push_back(event);
            if bytes >= TAKE_BYTES {
                break;
            }
        }
        // Several may pull: what is left is for the next.
        self.tell(&mut inner);
        inner.wake_if_over();
        if inner.is_blocked {
            // A full channel means that an earlier signal is still there.
            let _ = self.room.0.try_send(());
        }
        Taken::Some
    }

    /// Puts back what was taken and not used, in front.
    fn put_back(&self, taken: &mut VecDeque<Event>) {
        if taken.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        while let Some(event) = taken.pop_back() {
            inner.count_in(&event);
            inner.events.push_front(event);
        }
        self.tell(&mut inner);
    }

    /// Makes the lent receiver ready again, if events are left here or with the one who asks, or
    /// the end is.
    fn keep_ready(&self, are_left: bool) {
        let mut inner = self.inner.lock();
        if are_left || !inner.events.is_empty() || inner.is_ended {
            inner.wake();
        }
    }

    /// The receiver for `select!`: see [`Events::ready`].
    fn lend(&self) -> Receiver<()> {
        let mut inner = self.inner.lock();
        if let Some(lent) = &inner.lent {
            return lent.clone();
        }
        let (wakeup, lent) = bounded(1);
        self.has_lent.store(true, Ordering::Relaxed);
        inner.wakeup = Some(wakeup);
        inner.lent = Some(lent.clone());
        if !inner.events.is_empty() {
            inner.wake();
        }
        inner.wake_if_over();
        lent
    }
}

/// The reason why a batch did not go in whole.
enum Stuck {
    NoRoom,
    Lagged,
}

enum Taken {
    Some,
    Nothing,
    Ended,
}

impl Inner {
    fn has_room(&self, bytes: usize, bounds: &Bounds) -> bool {
        // A message larger than the whole bound is let into an empty queue: it could never be
        // delivered otherwise.
        self.messages == 0
            || (self.messages < bounds.messages && self.bytes.saturating_add(bytes) <= bounds.bytes)
    }

    /// Counts an event that comes in.
    fn count_in(&mut self, event: &Event) {
        match event {
            Event::Message(message) => {
                self.messages += 1;
                self.bytes += message.bytes().len();
            }
            Event::Lagged(_) => {}
            notice => {
                self.notices += 1;
                self.notice_bytes += notice_bytes(notice);
            }
        }
    }

    /// Takes an event that leaves off the counts.
    fn count_out(&mut self, event: &Event) {
        match event {
            Event::Message(message) => {
                self.messages -= 1;
                self.bytes -= message.bytes().len();
            }
            Event::Lagged(_) => {}
            notice => {
                self.notices -= 1;
                self.notice_bytes -= notice_bytes(notice);
            }
        }
    }

    fn push_message(&mut self, event: Event) {
        self.count_in(&event);
        self.events.push_back(event);
    }

    /// Makes room for a notice by number and by the bytes of refusals: the oldest go into `lost`.
    fn push_notice(&mut self, event: Event, bytes_max: usize, lost: &mut Vec<Event>) {
        let bytes = notice_bytes(&event);
        while self.notices >= NOTICES
            || self.notices > 0 && self.notice_bytes.saturating_add(bytes) > bytes_max
        {
            let Some(oldest) = self.events.iter().position(is_notice) else { break };
            let Some(event) = self.events.remove(oldest) else { break };
            self.count_out(&event);
            self.lost_notices += 1;
            self.note_loss(oldest, 0, 1);
            lost.push(event);
        }
        self.count_in(&event);
        self.events.push_back(event);
    }

    fn lose_newest(&mut self, count: u64) {
        self.lost += count;
        self.note_loss(self.events.len(), count, 0);
    }

    /// Removes the oldest message; `false` when there is none.
    fn lose_oldest(&mut self) -> bool {
        let Some(oldest) = self.events.iter().position(is_message) else {
            return false;
        };
        let Some(event) = self.events.remove(oldest) else { return false };
        self.count_out(&event);
        self.lost += 1;
        self.note_loss(oldest, 1, 0);
        true
    }

    /// Counts a loss in the lag just before or at `place`, or puts a new one there.
    fn note_loss(&mut self, place: usize, messages: u64, notices: u64) {
        for near in [place.checked_sub(1), Some(place)].into_iter().flatten() {
            if let Some(Event::Lagged(lag)) = self.events.get_mut(near) {
                lag.lost += messages;
                lag.lost_notices += notices;
                return;
            }
        }
        self.events.insert(place, Event::Lagged(Lagged { lost: messages, lost_notices: notices }));
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.count_out(&event);
        Some(event)
    }

    fn wake(&mut self) {
        if let Some(wakeup) = &self.wakeup {
            // A full channel means that it is signalled already.
            let _ = wakeup.try_send(());
        }
    }

    /// Nothing can come any more: whoever waits with `select!` has to ask once more to hear it, and
    /// the lent receiver disconnects when one has. Not before: another may hold events that it will
    /// put back.
    fn wake_if_over(&mut self) {
        if self.is_ended && self.events.is_empty() {
            self.wake();
        }
    }
}

fn is_message(event: &Event) -> bool {
    matches!(event, Event::Message(_))
}

fn is_notice(event: &Event) -> bool {
    !matches!(event, Event::Message(_) | Event::Lagged(_))
}

fn payload_bytes(event: &Event) -> usize {
    match event {
        Event::Message(message) => message.bytes().len(),
        _ => 0,
    }
}

/// The bytes of the refusal that a notice holds: headers and body.
fn notice_bytes(event: &Event) -> usize {
    let error = match event {
        Event::DialFailed(failure) => &failure.error,
        Event::Disconnected(disconnect) => &disconnect.error,
        Event::Stopped(stopped) => &stopped.reason,
        _ => return 0,
    };
    error.response().map_or(0, |response| {
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| name.as_str().len() + value.len());
        response.body().len() + headers.sum::<usize>()
    })
}

/// The events of a client: a blocking iterator that ends when the client has stopped and everything
/// has been read.
///
/// Borrowed from a [`Client`](crate::Client). Several may exist, in several threads; each event
/// goes to one of them.
pub struct Events<'a> {
    queue: &'a Queue,
    /// Taken out and not yet handed on; put back on drop.
    taken: VecDeque<Event>,
}

/// The reason why [`Events::try_next`] or [`Events::next_timeout`] has no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryNextError {
    /// None has come yet.
    Empty,
    /// The client has ended and everything has been read.
    Disconnected,
}

impl<'a> Events<'a> {
    pub(crate) fn new(queue: &'a Queue) -> Self {
        Events { queue, taken: VecDeque::new() }
    }

    /// The next event, waiting for it `timeout` at most.
    ///
    /// # Errors
    /// [`TryNextError::Empty`] when none came in time, [`TryNextError::Disconnected`] when none
    /// will come any more.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Event, TryNextError> {
        self.next_until(|| Some(after(sync::now(), timeout)))
    }

    /// The next event if it is there already.
    ///
    /// # Errors
    /// As [`next_timeout`](Events::next_timeout).
    pub fn try_next(&mut self) -> Result<Event, TryNextError> {
        self.next_timeout(Duration::ZERO)
    }

    /// A receiver for the `select!` of crossbeam-channel 0.5, that is ready whenever an event is,
    /// and now and then when none is: ask [`try_next`](Events::try_next).
    ///
    /// It disconnects, which makes it ready too, once `try_next` has said
    /// [`TryNextError::Disconnected`]. The events themselves stay in the queue until they are
    /// taken, so that its bounds hold.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// use crossbeam_channel::{select, tick};
    /// use tautline::{Client, TryNextError};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::builder("wss://stream.example.com/ws").start()?;
    /// let mut events = client.events();
    /// let (ready, seconds) = (events.ready(), tick(Duration::from_secs(1)));
    /// loop {
    ///     select! {
    ///         recv(ready) -> _ => match events.try_next() {
    ///             Ok(event) => println!("{event:?}"),
    ///             Err(TryNextError::Disconnected) => break,
    ///             Err(_) => {}
    ///         },
    ///         recv(seconds) -> _ => println!("{} events wait", client.stats().queue_depth),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn ready(&self) -> Receiver<()> {
        let ready = self.queue.lend();
        self.queue.keep_ready(!self.taken.is_empty());
        ready
    }

    #[inline]
    fn next_until(
        &mut self,
        until: impl FnOnce() -> Option<Instant>,
    ) -> Result<Event, TryNextError> {
        if self.taken.is_empty() {
            match self.queue.take(&mut self.taken, until()) {
                Taken::Some => {}
                Taken::Nothing => return Err(TryNextError::Empty),
                Taken::Ended => return Err(TryNextError::Disconnected),
            }
        }
        let event = self.taken.pop_front().ok_or(TryNextError::Empty)?;
        if self.queue.has_lent.load(Ordering::Relaxed) {
            self.queue.keep_ready(!self.taken.is_empty());
        }
        Ok(event)
    }
}

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.next_until(|| None).ok()
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        self.queue.put_back(&mut self.taken);
    }
}

impl std::fmt::Debug for Events<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("waiting", &(self.queue.depth() + self.taken.len())).finish()
    }
}

/// The delivery that feeds the queue.
pub(crate) struct QueueSink {
    queue: Arc<Queue>,
    shutdown: Shutdown,
    /// Messages of this `recv`, handed over together: one lock and one wake-up for all of them.
    batch: VecDeque<Event>,
    bytes: usize,
    is_full: bool,
}

impl QueueSink {
    pub(crate) fn new(queue: Arc<Queue>, shutdown: Shutdown) -> Self {
        QueueSink { queue, shutdown, batch: VecDeque::new(), bytes: 0, is_full: false }
    }

    fn gather(&mut self, message: MessageRef<'_>) {
        self.bytes += message.bytes().len();
        self.batch.push_back(Event::Message(message.to_owned()));
        if self.bytes >= GATHER_BYTES || self.batch.len() >= GATHER_EVENTS {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        self.bytes = 0;
        if self.queue.push_batch(&mut self.batch, &self.shutdown).is_err() {
            self.is_full = true;
        }
    }
}

impl EventSink for QueueSink {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        let opened: Opened = connection.opening().clone();
        self.is_full = false;
        self.queue.push_notice(Event::Opened(opened));
    }

    #[inline]
    fn message(&mut self, _connection: &mut Connection<'_>, message: MessageRef<'_>) {
        self.gather(message);
    }

    fn end_batch(&mut self) -> Result<(), Full> {
        if !self.batch.is_empty() {
            self.hand_over();
        }
        if self.is_full { Err(Full) } else { Ok(()) }
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        self.queue.push_notice(Event::Disconnected(disconnect.clone()));
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        self.queue.push_notice(Event::DialFailed(failure.clone()));
    }

    fn stopped(&mut self, stopped: &Stopped) {
        self.queue.push_notice(Event::Stopped(stopped.clone()));
    }
}

impl Drop for QueueSink {
    /// Whatever ended the reader, whoever pulls must not wait for ever.
    fn drop(&mut self) {
        self.queue.end();
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::event::{Arrival, Payload};
    use crate::sync::threads::{ThreadOptions, Threads};

    fn queue(messages: usize, when_full: WhenFull) -> Queue {
        Queue::new(Bounds { messages, bytes: 1000, when_full })
    }

    fn message(text: &str) -> Event {
        Event::Message(
            MessageRef::new(Payload::Text(text), 1, Arrival { at: Instant::now(), kernel: None })
                .to_owned(),
        )
    }

    fn notice() -> Event {
        Event::Stopped(Stopped { reason: Error::stopped() })
    }

    fn push(queue: &Queue, texts: &[&str]) -> Result<(), Full> {
        let threads = Threads::new(ThreadOptions::default());
        let mut batch = texts.iter().map(|text| message(text)).collect();
        queue.push_batch(&mut batch, &threads.shutdown_signal())
    }

    /// Everything in the queue, in short: the text of messages, `lost/notices` of lags, `*` for
    /// notices.
    fn drain(queue: &Queue) -> Vec<String> {
        let mut events = Events::new(queue);
        std::iter::from_fn(|| events.try_next().ok())
            .map(|event| match event {
                Event::Message(message) => message.into_text().expect("all are text"),
                Event::Lagged(lag) => format!("{}/{}", lag.lost, lag.lost_notices),
                _ => "*".to_owned(),
            })
            .collect()
    }

    #[test]
    fn a_full_queue_that_disconnects_keeps_what_it_has_and_counts_the_rest() {
        let queue = queue(2, WhenFull::Disconnect);
        assert!(push(&queue, &["a", "b", "c", "d"]).is_err());
        queue.push_notice(notice());
        assert_eq!(queue.lag().lost, 2);
        assert_eq!(drain(&queue), ["a", "b", "2/0", "*"]);
    }

    #[test]
    fn dropping_the_oldest_puts_the_lag_where_they_were() {
        let queue = queue(2, WhenFull::DropOldest);
        queue.push_notice(notice());
        assert!(push(&queue, &["a", "b", "c", "d"]).is_ok());
        queue.push_notice(notice());
        assert!(push(&queue, &["e"]).is_ok());
        assert_eq!(drain(&queue), ["*", "3/0", "d", "*", "e"]);
    }

    #[test]
    fn dropping_the_newest_puts_the_lag_behind_those_that_stay() {
        let queue = queue(2, WhenFull::DropNewest);
        assert!(push(&queue, &["a", "b", "c"]).is_ok());
        assert!(push(&queue, &["d"]).is_ok());
        queue.push_notice(notice());
        assert!(push(&queue, &["e"]).is_ok());
        assert_eq!(drain(&queue), ["a", "b", "2/0", "*", "1/0"]);
    }

    #[test]
    fn bytes_are_bounded_too_and_a_giant_goes_into_an_empty_queue() {
        let queue = queue(100, WhenFull::DropNewest);
        let giant = "g".repeat(2000);
        assert!(push(&queue, &[&giant, "a"]).is_ok());
        let events = drain(&queue);
        assert_eq!(events, [giant.as_str(), "1/0"]);
        let half = "h".repeat(600);
        assert!(push(&queue, &[&half, &half]).is_ok());
        assert_eq!(drain(&queue), [half.as_str(), "1/0"]);
    }

    #[test]
    fn notices_are_bounded_and_their_loss_is_told() {
        let queue = queue(2, WhenFull::Disconnect);
        for _ in 0..NOTICES + 10 {
            queue.push_notice(notice());
        }
        let events = drain(&queue);
        assert!(events.len() <= NOTICES + 1, "{}", events.len());
        assert_eq!(events[0], "0/10");
    }

    #[test]
    fn refusals_are_bounded_by_the_bytes_that_they_hold() {
        // The queue takes 1,000 bytes.
        let queue = queue(2, WhenFull::Disconnect);
        for _ in 0..20 {
            let response = http::Response::new(vec![0; 600]);
            let error = Error::refused("a:1", response, None);
            let failure = DialFailure { attempt: 1, error, retry_in: None };
            queue.push_notice(Event::DialFailed(failure));
        }
        assert_eq!(queue.depth(), 2, "a loss and the last refusal");
        assert_eq!(queue.lag().lost_notices, 19);
        let (mut taken, mut back) = (VecDeque::new(), VecDeque::new());
        queue.take(&mut taken, None);
        assert_eq!(queue.inner.lock().notice_bytes, 0);
        std::mem::swap(&mut taken, &mut back);
        queue.put_back(&mut back);
        assert_eq!(queue.inner.lock().notice_bytes, 600);
    }

    #[test]
    fn a_flood_of_empty_messages_leaves_a_small_batch() {
        let threads = Threads::new(ThreadOptions::default());
        let queue = Arc::new(queue(10, WhenFull::DropNewest));
        let mut sink = QueueSink::new(Arc::clone(&queue), threads.shutdown_signal());
        let arrival = Arrival { at: Instant::now(), kernel: None };
        for _ in 0..100_000 {
            sink.gather(MessageRef::new(Payload::Text(""), 1, arrival));
        }
        assert!(sink.batch.capacity() <= 2 * GATHER_EVENTS, "{}", sink.batch.capacity());
        assert!(queue.depth() <= 11);
    }

    #[test]
    fn a_blocked_reader_goes_on_when_there_is_room_and_loses_nothing() {
        let queue = Arc::new(queue(2, WhenFull::Block));
        let pushing = Arc::clone(&queue);
        let thread = std::thread::spawn(move || {
            let result = push(&pushing, &["a", "b", "c", "d", "e"]);
            pushing.end();
            result
        });
        let texts: Vec<_> = Events::new(&queue)
            .map(|event| match event {
                Event::Message(message) => message.into_text().expect("all are text"),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(texts, ["a", "b", "c", "d", "e"]);
        assert!(thread.join().expect("it does not panic").is_ok());
    }

    #[test]
    fn a_blocked_reader_ends_on_shutdown() {
        let queue = queue(1, WhenFull::Block);
        let threads = Threads::new(ThreadOptions::default());
        let shutdown = threads.shutdown_signal();
        let mut batch = VecDeque::from([message("a"), message("b")]);
        std::thread::scope(|scope| {
            let pushing = scope.spawn(|| queue.push_batch(&mut batch, &shutdown));
            threads.shutdown();
            assert!(pushing.join().expect("it does not panic").is_ok());
        });
    }

    #[test]
    fn what_was_taken_and_not_read_is_there_for_the_next() {
        let queue = queue(10, WhenFull::Disconnect);
        assert!(push(&queue, &["a", "b", "c"]).is_ok());
        assert!(Events::new(&queue).next().is_some());
        assert_eq!(drain(&queue), ["b", "c"]);
    }

    #[test]
    fn the_lent_receiver_is_ready_while_there_are_events_and_disconnects_at_the_end() {
        let queue = queue(200, WhenFull::Disconnect);
        let mut events = Events::new(&queue);
        let ready = events.ready();
        assert!(ready.is_empty());
        let texts = vec!["x"; 150];
        assert!(push(&queue, &texts).is_ok());
        let mut seen = 0;
        while ready.try_recv().is_ok() {
            while events.try_next().is_ok() {
                seen += 1;
            }
        }
        assert_eq!(seen, 150);
        // One at a time is as good.
        assert!(push(&queue, &texts).is_ok());
        while ready.try_recv().is_ok() {
            seen += usize::from(events.try_next().is_ok());
        }
        assert_eq!(seen, 300);
        queue.end();
        assert_eq!(ready.recv(), Ok(()), "whoever waits has to ask");
        assert_eq!(events.try_next().expect_err("nothing is left"), TryNextError::Disconnected);
        assert_eq!(ready.recv(), Err(crossbeam_channel::RecvError));
        assert_eq!(events.ready().recv(), Err(crossbeam_channel::RecvError));
    }

    #[test]
    fn the_lent_receiver_does_not_disconnect_while_events_may_be_put_back() {
        let queue = queue(200, WhenFull::Disconnect);
        assert!(push(&queue, &["a", "b", "c"]).is_ok());
        queue.end();
        let mut events = Events::new(&queue);
        let ready = events.ready();
        assert!(events.next().is_some());
        drop(events);
        let mut events = Events::new(&queue);
        let mut seen = 0;
        while ready.recv().is_ok() {
            seen += usize::from(events.try_next().is_ok());
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn ends_have_room_however_many_lags_there_are() {
        let queue =
            Queue::new(Bounds { messages: 4096, bytes: 1 << 30, when_full: WhenFull::DropNewest });
        let threads = Threads::new(ThreadOptions::default());
        let push = |count: usize| {
            let mut batch: VecDeque<Event> = (0..count).map(|_| message("x")).collect();
            queue.push_batch(&mut batch, &threads.shutdown_signal()).expect("no such rule");
        };
        push(4097);
        for _ in 0..NOTICES + 10 {
            // A program that is a little too slow: it takes one, and two come.
            let mut events = Events::new(&queue);
            while !matches!(events.try_next().expect("there are many"), Event::Message(_)) {}
            drop(events);
            push(2);
        }
        queue.push_notice(notice());
        queue.push_notice(notice());
        assert_eq!(queue.lag().lost_notices, 0);
    }

    #[test]
    fn the_lent_receiver_is_ready_for_what_was_taken_before_it_was_lent() {
        let queue = queue(9, WhenFull::DropNewest);
        assert!(push(&queue, &["a", "b", "c"]).is_ok());
        let mut events = Events::new(&queue);
        assert!(events.try_next().is_ok());
        let ready = events.ready();
        assert_eq!(ready.recv_timeout(Duration::from_secs(1)), Ok(()), "two events are there");
    }

    #[test]
    fn the_lent_receiver_is_ready_though_another_consumer_took_the_ring() {
        let queue = queue(9, WhenFull::DropNewest);
        let (mut one, mut two) = (Events::new(&queue), Events::new(&queue));
        let (first, second) = (one.ready(), two.ready());
        assert!(push(&queue, &["a", "b", "c"]).is_ok());
        assert_eq!(first.recv(), Ok(()));
        assert!(one.try_next().is_ok());
        assert_eq!(second.recv(), Ok(()));
        assert!(two.try_next().is_ok());
        assert_eq!(first.recv_timeout(Duration::from_secs(1)), Ok(()), "one holds two events");
    }
}
