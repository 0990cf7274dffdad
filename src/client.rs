//! The client: owns the threads of one connection, and ends them when stopped or dropped.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::builder::Builder;
use crate::config::dial_context::DialContext;
use crate::config::endpoint::Endpoint;
use crate::connection::close::CloseFrame;
use crate::dial::DialSettings;
#[cfg(not(shuttle))]
use crate::dial::Dialer;
use crate::error::{BatchError, CloseReason, Error, SendError, Timeout};
use crate::event::{Event, Payload, Receipt};
use crate::events::Events;
use crate::handler::{EventSink, Handler, HandlerSink};
#[cfg(shuttle)]
use crate::model::dialer::Dialer;
use crate::queue::{Queue, QueueSink};
use crate::runtime::heartbeat::Heartbeat;
use crate::runtime::reader_thread::ReaderThread;
use crate::runtime::reconnect::State;
use crate::runtime::shared::{Active, Shared};
use crate::runtime::work::HeartbeatWork;
use crate::sender::{Sender, Stopper};
use crate::stats::Stats;
use crate::sync;
use crate::sync::channel::bounded;
use crate::sync::stop_report::{StopReport, ThreadOutcome};
use crate::sync::threads::{JoinTimeout, ThreadOptions, Threads};
use crate::sync::wakeups::Wakeups;

/// A client that keeps one connection to a server up, with two threads, until it is stopped or
/// dropped.
///
/// A `Client<Pull>`, from [`connect`](Builder::connect) or [`start`](Builder::start), queues its
/// events for [`events`](Client::events). A `Client<Push>`, from
/// [`start_with`](Builder::start_with), passes them to a [`Handler`].
///
/// `Display` shows its name, its state and the epoch, on one line.
///
/// All methods may be called from any thread, the handler's included. Dropping a client stops it,
/// and waits for its threads for [`drop_timeout`](Builder::drop_timeout) at most (5 s by default).
pub struct Client<D = Pull> {
    shared: Arc<Shared>,
    sender: Sender,
    /// Empty and unread where a handler takes the messages.
    queue: Arc<Queue>,
    drop_timeout: Duration,
    delivery: PhantomData<fn() -> D>,
}

/// The delivery of a [`Client`] whose events are queued, and pulled by [`Client::events`].
#[derive(Debug)]
pub enum Pull {}

/// The delivery of a [`Client`] whose events are pushed to a [`Handler`].
#[derive(Debug)]
pub enum Push {}

impl Client {
    /// Returns the settings of a client that dials `endpoint`: a URL (`ws://` or `wss://`), or an
    /// [`Endpoint`] with headers of its own.
    ///
    /// Nothing is checked yet: [`connect`](Builder::connect) and [`start`](Builder::start) do that.
    pub fn builder(endpoint: impl Into<Endpoint>) -> Builder {
        Builder::new(endpoint.into())
    }

    /// Returns the settings of a client that calls `endpoint` before each dial to learn where to:
    /// for venues whose URL or headers come from a token call.
    ///
    /// The closure runs on the reader thread, within [`connect_timeout`](Builder::connect_timeout).
    /// Nothing can interrupt it: give the calls that it makes a timeout of their own, of
    /// [`DialContext::remaining`]. Its error is retried, unless it is an [`Error`] of this crate
    /// that is not retryable.
    pub fn builder_from_fn(
        endpoint: impl Fn(&DialContext) -> Result<Endpoint, Box<dyn StdError + Send + Sync>>
        + Send
        + Sync
        + 'static,
    ) -> Builder {
        Builder::from_fn(Arc::new(endpoint))
    }
}

/// The layer above a client's threads: the receiver of the reader's events, and the work of the
/// heartbeat thread.
pub(crate) struct Layer<D> {
    pub(crate) sink: D,
    pub(crate) work: Option<Box<dyn HeartbeatWork>>,
}

impl<D> From<D> for Layer<D> {
    fn from(sink: D) -> Self {
        Layer { sink, work: None }
    }
}

/// A dial that is this much later than its own deadline must be in an endpoint closure.
const CLOSURE_GRACE: Duration = Duration::from_millis(500);

impl Builder {
    /// Makes one dial and returns a client to pull from once the connection is open. Blocks for
    /// [`connect_timeout`](Builder::connect_timeout) at most, once the
    /// [`connect_limit`](Builder::connect_limit) lets the dial begin. After later drops the client
    /// dials again as usual.
    ///
    /// # Errors
    /// `Config` for settings that cannot work; otherwise the reason why the dial failed. Nothing is
    /// left running then, except a lookup or an endpoint closure that hangs: nothing can interrupt
    /// those, and their threads end when they return.
    pub fn connect(self) -> Result<Client<Pull>, Error> {
        let connect_timeout = self.settings.connect_timeout;
        self.pulled(true)?.after_first_dial(connect_timeout)
    }

    /// Makes one dial and returns a client once the connection is open, which passes its events to
    /// `handler`, on the reader thread. Blocks as [`connect`](Builder::connect) does. After later
    /// drops the client dials again as usual.
    ///
    /// # Errors
    /// As [`connect`](Builder::connect). The handler has been told of the failure then too.
    pub fn connect_with(self, handler: impl Handler) -> Result<Client<Push>, Error> {
        let connect_timeout = self.settings.connect_timeout;
        self.launch(true, |_, _| HandlerSink(handler).into())?.after_first_dial(connect_timeout)
    }

    /// Returns a client to pull from at once. It dials in the background, and retries.
    ///
    /// # Errors
    /// `Config`, or `Io` when the system has no threads to give.
    pub fn start(self) -> Result<Client<Pull>, Error> {
        self.pulled(false)
    }

    /// Returns a client at once that passes its events to `handler`, on the reader thread. It dials
    /// in the background, and retries.
    ///
    /// # Errors
    /// `Config`, or `Io` when the system has no threads to give, or no descriptors for
    /// [`wakeups`](Builder::wakeups).
    ///
    /// # Examples
    /// ```no_run
    /// use tautline::{Client, Connection, MessageRef};
    /// # fn main() -> Result<(), tautline::Error> {
    /// let client = Client::builder("wss://stream.example.com/ws")
    ///     .start_with(|_: &mut Connection<'_>, message: MessageRef<'_>| {
    ///         println!("{}", message.text().unwrap_or("(binary)"));
    ///     })?;
    /// let report = client.stop(std::time::Duration::from_secs(5));
    /// assert!(report.is_clean());
    /// # Ok(()) }
    /// ```
    pub fn start_with(self, handler: impl Handler) -> Result<Client<Push>, Error> {
        self.launch(false, |_, _| HandlerSink(handler).into())
    }

    fn pulled(self, first_decides: bool) -> Result<Client<Pull>, Error> {
        let conflate = self.settings.conflate.clone();
        self.launch(first_decides, |queue, shared| {
            QueueSink::new(Arc::clone(queue), shared.shutdown.clone(), conflate).into()
        })
    }

    pub(crate) fn launch<M, D: EventSink>(
        self,
        first_decides: bool,
        layer: impl FnOnce(&Arc<Queue>, &Arc<Shared>) -> Layer<D>,
    ) -> Result<Client<M>, Error> {
        let config = self.check()?;
        let settings = &config.settings;
        let hears_program = settings.has_wakeups && D::CAN_BE_WOKEN;
        let wakeups = Wakeups::new(hears_program || settings.layer_wakes, hears_program)
            .map_err(|error| error.of_client(&config.client))?;
        let threads = ThreadOptions { client: config.client.clone(), ..settings.threads.clone() };
        let queue = Arc::new(Queue::new(settings.queue));
        // Weak: a sender that outlives the client must not keep its events.
        let queue_look = Arc::downgrade(&queue);
        let queue_look = move || {
            let counts = queue_look.upgrade()?.counts();
            Some((counts.depth, counts.lost.lost))
        };
        let (shared, wakeup) =
            Shared::new(Threads::new(threads), settings.timeouts(), wakeups, Box::new(queue_look));
        queue.set_counters(Arc::clone(&shared.counters));
        let client = Client {
            sender: Sender::new(Arc::clone(&shared)),
            queue: Arc::clone(&queue),
            drop_timeout: settings.drop_timeout,
            shared: Arc::clone(&shared),
            delivery: PhantomData,
        };
        let dial = DialSettings {
            resolver: settings.resolver.clone(),
            proxies: config.proxies.clone(),
            tcp: settings.tcp.clone(),
            tls: settings.tls.clone(),
            endpoints: config.source.count(),
        };
        let dialer = Dialer::new(dial, Arc::clone(&shared.threads));
        let (reading, reader) = bounded(0);
        let Layer { sink, work } = layer(&queue, &shared);
        let heartbeat = Heartbeat::new(Arc::clone(&shared), wakeup, reader, settings, work);
        let reader_thread =
            ReaderThread::new(Arc::clone(&shared), config, dialer, sink, first_decides);

        // From here on an early return drops the client, which stops whatever has been started.
        shared.threads.spawn("taut-heartbeat", JoinTimeout::Deadline, move || heartbeat.run())?;
        let spawned = shared.threads.spawn("taut-reader", JoinTimeout::Deadline, move || {
            // Named, so that it lives until the reader has ended: the heartbeat thread waits for
            // that.
            let _reading = reading;
            reader_thread.run();
        });
        // The reader would publish the end, and the heartbeat thread has begun to publish.
        spawned.inspect_err(|_| shared.publish_end())?;
        Ok(client)
    }
}

impl<D> Client<D> {
    /// Waits until the first dial has succeeded; otherwise ends the client.
    pub(crate) fn after_first_dial(mut self, connect_timeout: Duration) -> Result<Self, Error> {
        // The dial keeps its own deadline; this one is for an endpoint closure that does not.
        let Err(error) = self.shared.wait_first_open(connect_timeout.saturating_add(CLOSURE_GRACE))
        else {
            return Ok(self);
        };
        let is_closure_late = error.timeout() == Some(Timeout::WaitOpen);
        // Like a lookup that hangs, a closure that hangs is told to stop, and not waited for.
        let join_timeout = if is_closure_late { Duration::ZERO } else { self.drop_timeout };
        self.stop(join_timeout);
        self.drop_timeout = Duration::ZERO;
        let late =
            || Error::timed_out(Timeout::Connect, connect_timeout, "calling the endpoint closure");
        Err(if is_closure_late { self.shared.named(late()) } else { error })
    }
}

impl Client<Pull> {
    /// Returns the client's events: an iterator that blocks, and ends when the client has stopped
    /// and everything has been read.
    ///
    /// Several may exist, in several threads; each event goes to one of them.
    pub fn events(&self) -> Events {
        Events::new(Arc::clone(&self.queue)).of_client(self.shared.name())
    }
}

impl<D> Client<D> {
    /// Sends a text message on the connection that is open now. See [`Sender::send_text`].
    ///
    /// # Errors
    /// As [`Sender::send_text`].
    pub fn send_text(&self, text: &str) -> Result<Receipt, SendError> {
        self.sender.send_text(text)
    }

    /// Sends a binary message on the connection that is open now. See [`Sender::send_binary`].
    ///
    /// # Errors
    /// As [`Sender::send_text`].
    pub fn send_binary(&self, bytes: &[u8]) -> Result<Receipt, SendError> {
        self.sender.send_binary(bytes)
    }

    /// Sends several messages at once. See [`Sender::send_batch`].
    ///
    /// # Errors
    /// As [`Sender::send_batch`].
    pub fn send_batch(&self, messages: &[Payload<'_>]) -> Result<Receipt, BatchError> {
        self.sender.send_batch(messages)
    }

    /// Requests a ping. See [`Sender::ping`].
    ///
    /// # Errors
    /// As [`Sender::ping`].
    pub fn ping(&self) -> Result<(), SendError> {
        self.sender.ping()
    }

    /// Ends the connection that is open now and dials again. See [`Sender::reconnect`].
    ///
    /// # Errors
    /// As [`Sender::reconnect`].
    pub fn reconnect(&self) -> Result<(), SendError> {
        self.sender.reconnect()
    }

    /// Ends the connection that is open now with a close code and reason of your own, and dials
    /// again. See [`Sender::reconnect_with`].
    ///
    /// # Errors
    /// As [`Sender::reconnect_with`].
    pub fn reconnect_with(&self, close: &CloseReason) -> Result<(), SendError> {
        self.sender.reconnect_with(close)
    }

    /// Returns a sender that may be cloned, kept and moved to other threads.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Returns a handle that stops the client from anywhere: from the thread that waits for
    /// signals, for example.
    pub fn stopper(&self) -> Stopper {
        self.sender.stopper()
    }

    /// Returns the name of the client: the one that [`Builder::name`] gave it, otherwise the host
    /// of its endpoints, or `client` if there are several or a closure returns them.
    pub fn name(&self) -> &str {
        self.shared.name().as_str()
    }

    /// Returns the state of the client.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Returns the number of openings so far; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch()
    }

    /// Waits until a connection is open, for `timeout` at most, and returns its epoch.
    ///
    /// # Errors
    /// `Timeout` when none was open in time, with the last dial's failure as its cause; `Config` on
    /// a thread of the client's own, a handler's for example, where it would wait for itself;
    /// otherwise the reason why the client has ended.
    pub fn wait_open(&self, timeout: Duration) -> Result<u64, Error> {
        self.shared.wait_open(timeout)
    }

    /// Waits until the client has ended by itself or has been stopped, for `timeout` at most, and
    /// returns why. `None` when it has not ended by then, and at once on a thread of the client's
    /// own.
    pub fn wait_closed(&self, timeout: Duration) -> Option<Error> {
        self.shared.wait_closed(timeout)
    }

    /// Returns why the client ended, once it has: kind `Stopped` when it was told to.
    pub fn stop_reason(&self) -> Option<Error> {
        self.shared.stop_reason()
    }

    /// Returns the payload of a handler's panic, once. Pass it to [`std::panic::resume_unwind`] to
    /// go on with the panic here.
    pub fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.shared.take_panic()
    }

    /// Returns what the client has counted so far.
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.counters.snapshot();
        if let Active::Open(connection) = self.shared.active() {
            stats.last_byte_age =
                Some(sync::now().saturating_duration_since(connection.activity.last_byte()));
        }
        let queue = self.queue.counts();
        stats.queue_depth = queue.depth;
        stats.messages_lost = queue.lost.lost;
        stats.messages_conflated = queue.conflated;
        stats
    }

    /// Returns the number of this client's threads: 2 while it runs, one more for each lookup, 0
    /// after a clean stop. For leak tests.
    pub fn live_threads(&self) -> usize {
        self.shared.threads.live_threads()
    }

    /// Stops the client, waits until every thread has ended, for `timeout` at most, and reports
    /// what became of each.
    ///
    /// An open connection is closed with a close frame, within
    /// [`close_timeout`](Builder::close_timeout) (1 s by default), and then aborted. A quarter of
    /// `timeout`, and 200 ms at most, is kept for the threads to end in: a closing handshake that
    /// would take longer is cut short.
    ///
    /// A stop may be repeated, and called from any thread and from several at once. From inside the
    /// handler it returns at once: the reader is `Current` in the report then. Nothing can
    /// interrupt a lookup: it is waited for a tenth of `timeout`, 200 ms at most, and then reported
    /// as `TimedOut`.
    pub fn stop(&self, timeout: Duration) -> StopReport {
        self.shared.stop(CloseFrame::normal(), timeout)
    }

    /// Stops the client like [`stop`](Client::stop), with a close code and reason of your own in
    /// the close frame (RFC 6455 section 7.4).
    ///
    /// The code and reason of the first stop are sent, and those of a connection that was closing
    /// before it stay. No frame is sent where `stop` sends none: when no connection is open, or a
    /// sender is blocked.
    ///
    /// # Errors
    /// `Config` if the code may not be sent or the reason is too long; [`CloseReason::new`] says
    /// what is allowed. Nothing is stopped then.
    ///
    /// # Examples
    /// ```no_run
    /// # fn f(client: tautline::Client) -> Result<(), tautline::Error> {
    /// let handover = tautline::CloseReason::new(1001, "another instance takes over");
    /// let report = client.stop_with(&handover, std::time::Duration::from_secs(5))?;
    /// # Ok(()) }
    /// ```
    pub fn stop_with(&self, close: &CloseReason, timeout: Duration) -> Result<StopReport, Error> {
        let close = CloseFrame::from_program(close).map_err(|error| self.shared.named(error))?;
        Ok(self.shared.stop(close, timeout))
    }
}

impl<D> Drop for Client<D> {
    fn drop(&mut self) {
        let report = self.shared.stop(CloseFrame::normal(), self.drop_timeout);
        let is_late =
            report.threads().iter().any(|thread| thread.outcome == ThreadOutcome::TimedOut);
        // Quiet during a panic: the panic is the news.
        if is_late && !std::thread::panicking() {
            log::error!(
                "{}: the client was dropped and not all of its threads ended in time: {}",
                self.shared.name(),
                report.without_name()
            );
        }
        self.shared.release_values();
    }
}

impl<D> fmt::Debug for Client<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name())
            .field("state", &self.state())
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl<D> fmt::Display for Client<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self.state() {
            State::Connecting { attempt } => write!(f, "{name}: dialing, attempt {attempt}"),
            State::Open { epoch } => write!(f, "{name}: open, epoch {epoch}"),
            State::Closing => write!(f, "{name}: closing, epoch {}", self.epoch()),
            State::Backoff { attempt, .. } => write!(f, "{name}: waiting for dial {attempt}"),
            State::Closed => write!(f, "{name}: closed after {} openings", self.epoch()),
        }
    }
}

impl IntoIterator for &Client<Pull> {
    type Item = Event;
    type IntoIter = Events;

    fn into_iter(self) -> Events {
        self.events()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_shared_and_sent_is_both() {
        fn is_shared<T: Send + Sync>() {}
        fn is_cloned<T: Clone>() {}
        is_shared::<Client<Pull>>();
        is_shared::<Client<Push>>();
        is_shared::<Sender>();
        is_shared::<Stopper>();
        is_shared::<Builder>();
        is_shared::<Error>();
        is_cloned::<Sender>();
        is_cloned::<Stopper>();
        is_cloned::<Builder>();
    }
}
