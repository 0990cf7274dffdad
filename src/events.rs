//! The events of a client, pulled one by one or in batches.

use std::fmt;
#[cfg(all(unix, not(shuttle)))]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

#[cfg(all(unix, not(shuttle)))]
use crate::error::{Error, ErrorKind};
use crate::event::{DialFailure, Disconnect, Event, Lagged, MessageRef, Opened, Stopped};
use crate::name::ClientName;
use crate::queue::backlog::{Item, Items, Share, Taken};
use crate::queue::{Queue, TakeResult};
use crate::session_event::SessionEvent;
use crate::sync::Mutex;
use crate::sync::channel::Receiver;

/// The events of a client, in the order in which they happened: an iterator that blocks, and ends
/// when the client has stopped and everything has been read.
///
/// [`Client::events`](crate::Client::events) returns it. It borrows nothing and is `Send`: keep it
/// beside its client, or move it to another thread. It keeps neither the client nor its threads
/// alive, and what has arrived can still be read when both have gone.
///
/// Several may exist, and each event goes to one of them. One that pulls event by event may hold up
/// to 1,024 messages that it has taken; dropping it puts them back, before what has come since,
/// even after another has been told of the end.
pub struct Events {
    queue: Arc<Queue>,
    /// Taken out of the queue and not yet returned. Put back on drop. The lock is for `&self`
    /// alone.
    taken: Mutex<Taken>,
    /// The events of the last batch.
    batch: Taken,
    client: ClientName,
}

/// The reason why there is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryNextError {
    /// None has come yet.
    Empty,
    /// The client has ended and everything has been read.
    Disconnected,
}

impl fmt::Display for TryNextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryNextError::Empty => "no event has come yet",
            TryNextError::Disconnected => "the client has ended and everything has been read",
        })
    }
}

impl std::error::Error for TryNextError {}

impl Events {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        queue.add_consumer();
        let (taken, batch, client) = Default::default();
        Events { queue, taken, batch, client }
    }

    /// The same events, of the client of this name.
    pub(crate) fn of_client(mut self, name: &ClientName) -> Self {
        self.client = name.clone();
        self
    }

    /// Returns the next event, waiting for it for `timeout` at most.
    ///
    /// # Errors
    /// [`TryNextError::Empty`] if none came in time, [`TryNextError::Disconnected`] if none will
    /// come any more.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Event, TryNextError> {
        self.next_event(Some(timeout))
    }

    /// Returns the next event if it is there already.
    ///
    /// # Errors
    /// As [`next_timeout`](Events::next_timeout).
    pub fn try_next(&mut self) -> Result<Event, TryNextError> {
        self.next_timeout(Duration::ZERO)
    }

    /// Returns the next events, waiting for the first of them. `None` when the client has ended and
    /// everything has been read.
    ///
    /// This is the fastest way to pull: the payloads of messages stay in the buffer into which the
    /// reader has copied them, and no memory is allocated for a message. A batch holds at most
    /// 1,024 messages and, unless its last message is longer, about 64 KiB of payloads. The next
    /// call returns what comes after it, whether or not the program has looked at all of it.
    ///
    /// ```no_run
    /// use tautline::{Client, EventRef};
    ///
    /// # fn main() -> Result<(), tautline::Error> {
    /// let client = Client::builder("wss://stream.example.com/ws").start()?;
    /// let mut events = client.events();
    /// let mut bytes = 0;
    /// while let Some(batch) = events.next_batch() {
    ///     for event in batch {
    ///         match event {
    ///             EventRef::Message(message) => bytes += message.bytes().len(),
    ///             other => println!("{other:?} after {bytes} bytes"),
    ///         }
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn next_batch(&mut self) -> Option<Batch<'_>> {
        self.batch(None).ok()
    }

    /// Returns the next events like [`next_batch`](Events::next_batch), waiting for the first of
    /// them for `timeout` at most. Does not wait if `timeout` is zero.
    ///
    /// # Errors
    /// As [`next_timeout`](Events::next_timeout).
    pub fn next_batch_timeout(&mut self, timeout: Duration) -> Result<Batch<'_>, TryNextError> {
        self.batch(Some(timeout))
    }

    fn batch(&mut self, timeout: Option<Duration>) -> Result<Batch<'_>, TryNextError> {
        self.batch.clear();
        let taken = self.taken.get_mut();
        if taken.is_empty() {
            answer(self.queue.take(&mut self.batch, Share::Chunk, timeout))?;
        } else {
            std::mem::swap(taken, &mut self.batch);
        }
        Ok(Batch { taken: &self.batch })
    }

    /// Returns a receiver for the `select!` of crossbeam-channel 0.5 that is ready while events
    /// wait, and now and then when none does: ask [`try_next`](Events::try_next).
    ///
    /// Whoever receives from it has to call `try_next` or another method that returns events:
    /// whoever else waits is woken by that call. The receiver disconnects, which makes it ready
    /// too, once a call has returned [`TryNextError::Disconnected`]. The events themselves stay in
    /// the queue until they are taken, so that its bounds hold.
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
        self.queue.ready(&mut self.taken.lock())
    }

    /// Returns a descriptor that is readable while events wait, and for good once the client has
    /// ended: for `epoll`, `kqueue` and `poll`.
    ///
    /// Poll it for reading, level-triggered or edge-triggered; in the latter case call
    /// [`try_next`](Events::try_next) until it returns an error. Do not read from it. It is opened
    /// by the first call, is the same for all `Events` of a client, and closes when the client and
    /// its last `Events` have been dropped.
    ///
    /// # Errors
    /// `Io` if the system has no descriptors to give.
    #[cfg(all(unix, not(shuttle)))]
    pub fn as_fd(&self) -> Result<BorrowedFd<'_>, Error> {
        let ready_fd = self.queue.ready_fd(&mut self.taken.lock()).map_err(|error| {
            let context = "opening a descriptor for the events";
            Error::caused(ErrorKind::Io, context, error).of_client(&self.client)
        })?;
        Ok(ready_fd.as_fd())
    }

    #[inline]
    fn next_event(&mut self, timeout: Option<Duration>) -> Result<Event, TryNextError> {
        let taken = self.taken.get_mut();
        if let Some(event) = taken.pop() {
            return Ok(event);
        }
        answer(self.queue.take(taken, Share::One, timeout))?;
        taken.pop().ok_or(TryNextError::Empty)
    }
}

fn answer(result: TakeResult) -> Result<(), TryNextError> {
    match result {
        TakeResult::Some => Ok(()),
        TakeResult::Empty => Err(TryNextError::Empty),
        TakeResult::Ended => Err(TryNextError::Disconnected),
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.next_event(None).ok()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.queue.remove_consumer(self.taken.get_mut());
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.queue.counts().depth + self.taken.lock().len();
        f.debug_struct("Events")
            .field("client", &self.client)
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

/// Events of a client, borrowed until the next call of [`Events::next_batch`]. There is at least
/// one.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    taken: &'a Taken,
}

impl<'a> Batch<'a> {
    /// Returns the events in the order in which they happened.
    pub fn iter(&self) -> BatchEvents<'a> {
        BatchEvents { items: self.taken.iter() }
    }

    /// Returns the number of events.
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.taken.len()
    }
}

/// An event of a [`Batch`]. It is an [`Event`] that borrows what it holds.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum EventRef<'a> {
    /// See [`Event::Opened`].
    Opened(&'a Opened),
    /// See [`Event::Message`].
    Message(MessageRef<'a>),
    /// See [`Event::Disconnected`].
    Disconnected(&'a Disconnect),
    /// See [`Event::DialFailed`].
    DialFailed(&'a DialFailure),
    /// See [`Event::Lagged`].
    Lagged(Lagged),
    /// See [`Event::Session`].
    Session(&'a SessionEvent),
    /// See [`Event::Stopped`].
    Stopped(&'a Stopped),
}

impl EventRef<'_> {
    /// Copies the event.
    pub fn to_owned(&self) -> Event {
        match *self {
            EventRef::Opened(opened) => Event::Opened(opened.clone()),
            EventRef::Message(message) => Event::Message(message.to_owned()),
            EventRef::Disconnected(disconnect) => Event::Disconnected(disconnect.clone()),
            EventRef::DialFailed(failure) => Event::DialFailed(failure.clone()),
            EventRef::Lagged(lag) => Event::Lagged(lag),
            EventRef::Session(event) => Event::Session(event.clone()),
            EventRef::Stopped(stopped) => Event::Stopped(stopped.clone()),
        }
    }
}

impl<'a> From<&'a Event> for EventRef<'a> {
    fn from(event: &'a Event) -> Self {
        match event {
            Event::Opened(opened) => EventRef::Opened(opened),
            Event::Message(message) => EventRef::Message(message.as_ref()),
            Event::Disconnected(disconnect) => EventRef::Disconnected(disconnect),
            Event::DialFailed(failure) => EventRef::DialFailed(failure),
            Event::Lagged(lag) => EventRef::Lagged(*lag),
            Event::Session(event) => EventRef::Session(event),
            Event::Stopped(stopped) => EventRef::Stopped(stopped),
        }
    }
}

/// The events of a [`Batch`], one by one.
#[derive(Clone)]
pub struct BatchEvents<'a> {
    items: Items<'a>,
}

impl<'a> Iterator for BatchEvents<'a> {
    type Item = EventRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<EventRef<'a>> {
        Some(match self.items.next()? {
            Item::Message(message) => EventRef::Message(message),
            Item::Lagged(lag) => EventRef::Lagged(lag),
            Item::Notice(event) => event.into(),
        })
    }
}

impl<'a> IntoIterator for Batch<'a> {
    type Item = EventRef<'a>;
    type IntoIter = BatchEvents<'a>;

    fn into_iter(self) -> BatchEvents<'a> {
        BatchEvents { items: self.taken.iter() }
    }
}

impl fmt::Debug for BatchEvents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(*self).finish()
    }
}
