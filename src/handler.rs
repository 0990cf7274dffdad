//! The program's handler, called on the reader thread.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::OpenConnection;
use crate::connection::close::CloseFrame;
use crate::error::{BatchError, CloseReason, Error, SendError};
use crate::event::{DialFailure, Disconnect, MessageRef, Opened, Payload, Receipt, Stopped};
use crate::sender::{Sender, Stopper};
use crate::session_event::SessionEvent;
use crate::sync::panic::Panic;
use crate::sync::wakeups::Due;

/// The receiver of a client's events.
///
/// The thread `taut-reader` alone calls it, with `&mut self`, so nothing in it needs a lock, and
/// drops it before that thread counts as ended. Nothing is read while a call runs: a handler that
/// takes longer than `pong_timeout` gets a warning in the log, and its connection is not taken for
/// dead meanwhile. A panic ends the client once, with the kind `HandlerPanicked`; its payload is
/// kept for [`Client::take_panic`](crate::Client::take_panic).
///
/// A handler may keep a [`Sender`] and a [`Stopper`]. An `Arc<Client>` inside its own handler is a
/// cycle: such a client is never dropped, and so never stopped.
///
/// A closure `FnMut(&mut Connection<'_>, MessageRef<'_>)` is a handler for messages alone.
pub trait Handler: Send + 'static {
    /// Called when a connection is open, before any message of that connection: the place to
    /// subscribe.
    fn opened(&mut self, connection: &mut Connection<'_>) {
        let _ = connection;
    }

    /// Called when a [session](crate::session) is ready on this connection: its opening script is
    /// done, and calls may go out. Before any later message. A client without a session never calls
    /// it.
    fn ready(&mut self, connection: &mut Connection<'_>) {
        let _ = connection;
    }

    /// Called for each data message. Its payload is borrowed from the read buffer.
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>);

    /// Called after the last message of a batch: once for all messages that one read of the socket
    /// brought. For a program that conflates: it notes in `message` what is new, and acts once.
    ///
    /// A batch has at least one message. A read that brings none, because it brings pings or a part
    /// of a message, is followed by no call. The call comes before the news of an end that came
    /// with the messages. Like further messages it is left out after a panic, once a stop or a
    /// reconnect was requested, and once this side has aborted the connection, after a send that
    /// broke off for example.
    ///
    /// ```
    /// use tautline::{Connection, Handler, MessageRef};
    ///
    /// struct Quoter {
    ///     latest: String,
    /// }
    ///
    /// impl Handler for Quoter {
    ///     fn message(&mut self, _connection: &mut Connection<'_>, message: MessageRef<'_>) {
    ///         // Whatever the venue said before is out of date.
    ///         self.latest.clear();
    ///         self.latest.push_str(message.text().unwrap_or_default());
    ///     }
    ///
    ///     fn batch_end(&mut self, connection: &mut Connection<'_>) {
    ///         if let Err(error) = connection.send_text(&self.latest) {
    ///             eprintln!("no quote: {error}");
    ///         }
    ///     }
    /// }
    /// ```
    fn batch_end(&mut self, connection: &mut Connection<'_>) {
        let _ = connection;
    }

    /// Called when a time that was set by [`wake_at`](Connection::wake_at) has come, or after a
    /// [`wake`](Sender::wake) from any thread: a program that acts by the clock, or on news from
    /// elsewhere, needs no thread of its own and no lock.
    ///
    /// It is also called while no connection is open, between dials and during a closing handshake:
    /// [`WokenContext::connection`] tells. During a dial it waits until the dial is over, and
    /// `opened` or `dial_failed` goes first. One call stands for everything that has come until it
    /// begins: a time, and any number of `wake`. It is left out after a panic, and once a stop was
    /// requested.
    ///
    /// Messages and wake-ups take turns: at most one call is made between two reads, and one is
    /// made between two reads if it is due. So a flood delays it by one batch.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use tautline::{Connection, Handler, MessageRef, WokenContext};
    ///
    /// const EVERY: Duration = Duration::from_millis(100);
    ///
    /// #[derive(Default)]
    /// struct Quoter {
    ///     latest: Option<String>,
    /// }
    ///
    /// impl Handler for Quoter {
    ///     fn opened(&mut self, connection: &mut Connection<'_>) {
    ///         connection.wake_at(Instant::now() + EVERY);
    ///     }
    ///
    ///     fn message(&mut self, _connection: &mut Connection<'_>, message: MessageRef<'_>) {
    ///         self.latest = message.text().map(str::to_owned);
    ///     }
    ///
    ///     fn woken(&mut self, context: &mut WokenContext<'_>) {
    ///         if let Some(due) = context.due() {
    ///             // From when it was due, not from now: the rhythm is kept.
    ///             context.wake_at(due + EVERY);
    ///         }
    ///         let Some(connection) = context.connection() else { return };
    ///         if let Some(quote) = self.latest.take() {
    ///             if let Err(error) = connection.send_text(&quote) {
    ///                 eprintln!("no quote: {error}");
    ///             }
    ///         }
    ///     }
    /// }
    /// ```
    fn woken(&mut self, context: &mut WokenContext<'_>) {
        let _ = context;
    }

    /// Called when a pong has come for a ping frame of this client, its own or one of
    /// [`ping`](Connection::ping). `round_trip` is the time from the write of that ping to the
    /// `recv` that brought the pong. A pong that nobody asked for (RFC 6455 section 5.5.3) is none.
    ///
    /// It is no message: [`batch_end`](Handler::batch_end) does not follow. Like messages it is
    /// left out after a panic, and once a stop or a reconnect was requested. The handler of a
    /// session is told of pongs before the session is ready too.
    fn pong(&mut self, connection: &mut Connection<'_>, round_trip: Duration) {
        let _ = (connection, round_trip);
    }

    /// Called when the connection has ended, exactly once per `opened`.
    fn disconnected(&mut self, disconnect: &Disconnect) {
        let _ = disconnect;
    }

    /// Called when a dial has failed.
    fn dial_failed(&mut self, failure: &DialFailure) {
        let _ = failure;
    }

    /// Called when the client has ended. It is the last call, and made in every case but a panic of
    /// this handler.
    fn stopped(&mut self, stopped: &Stopped) {
        let _ = stopped;
    }
}

impl<F> Handler for F
where
    F: FnMut(&mut Connection<'_>, MessageRef<'_>) + Send + 'static,
{
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        self(connection, message);
    }
}

/// The open connection, for the length of a call of the handler. It sends on that very connection,
/// and never on a later one.
///
/// A send from inside the handler writes on the reader's thread: nothing is read while it waits for
/// room. It is bounded by `send_timeout` like any other.
///
/// It is not `Send`. A [`Sender`] may be kept and moved.
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<tautline::Connection<'_>>();
/// ```
pub struct Connection<'a> {
    connection: &'a Arc<OpenConnection>,
    opened: &'a Opened,
    sender: &'a Sender,
    stays: PhantomData<*const ()>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(
        connection: &'a Arc<OpenConnection>,
        opened: &'a Opened,
        sender: &'a Sender,
    ) -> Self {
        Connection { connection, opened, sender, stays: PhantomData }
    }

    /// Keeps the panic of a closure of the program's, and ends the connection for it.
    pub(crate) fn abort_for_panic(&self, panic: Panic, context: &'static str) {
        self.sender.abort_for_panic(self.connection, panic, context);
    }

    /// Closes this connection for an error of a layer above.
    pub(crate) fn close_because(&self, error: Error) {
        self.connection.close_because(error);
    }

    /// Has the heartbeat thread send `text`, as the answer to a message of the server.
    pub(crate) fn queue_response(&self, text: String) {
        self.connection.queue_response(text);
    }

    /// Returns `true` if nothing more is delivered.
    pub(crate) fn is_delivery_over(&self) -> bool {
        self.connection.is_delivery_over()
    }

    /// Returns how this connection was opened.
    pub fn opening(&self) -> &Opened {
        self.opened
    }

    /// Returns the epoch of this connection.
    pub fn epoch(&self) -> u64 {
        self.opened.epoch
    }

    /// Sends a text message. See [`Sender::send_text`].
    ///
    /// # Errors
    /// As [`Sender::send_text`].
    pub fn send_text(&mut self, text: &str) -> Result<Receipt, SendError> {
        self.connection.send(Payload::Text(text))
    }

    /// Sends a binary message. See [`Sender::send_binary`].
    ///
    /// # Errors
    /// As [`Sender::send_text`].
    pub fn send_binary(&mut self, bytes: &[u8]) -> Result<Receipt, SendError> {
        self.connection.send(Payload::Binary(bytes))
    }

    /// Sends several messages with as few system calls as they fit in. See [`Sender::send_batch`].
    ///
    /// # Errors
    /// As [`Sender::send_batch`].
    pub fn send_batch(&mut self, messages: &[Payload<'_>]) -> Result<Receipt, BatchError> {
        self.connection.send_batch(messages)
    }

    /// Requests a ping. See [`Sender::ping`].
    ///
    /// # Errors
    /// As [`Sender::ping`].
    pub fn ping(&mut self) -> Result<(), SendError> {
        self.connection.request_ping()
    }

    /// Returns a sender that may be kept and moved to other threads. It sends on whatever
    /// connection is open at the time.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Returns a handle that stops the client from anywhere.
    pub fn stopper(&self) -> Stopper {
        self.sender.stopper()
    }

    /// Tells the client to stop, and returns at once. No further message is delivered after the
    /// call of the handler that said so.
    pub fn stop(&mut self) {
        self.sender.stopper().request_stop();
    }

    /// Counts this connection as stable from now on, before
    /// [`stable_after`](crate::Builder::stable_after) has passed: the backoff after its end starts
    /// anew. For a program that knows more than the clock does, because its login was accepted, for
    /// example. Without effect on the connection of a session whose opening script is never done.
    pub fn mark_stable(&mut self) {
        self.connection.mark_stable();
    }

    /// Sets the time at which [`Handler::woken`] is called. The client has one such time: this one
    /// replaces what was set before, and `None` takes it back. A time that has passed is due at
    /// once.
    ///
    /// The time stays when the connection ends. Setting it makes no system call. While it is set,
    /// the reader looks whether there is something to read before it sleeps: see
    /// [`Builder::wakeups`](crate::Builder::wakeups), which this does not need.
    pub fn wake_at(&mut self, at: impl Into<Option<Instant>>) {
        self.sender.wake_reader_at(at.into());
    }

    /// Closes this connection and dials again. See [`Sender::reconnect`].
    pub fn reconnect(&mut self) {
        self.connection.close_for_reconnect(CloseFrame::normal());
    }

    /// Closes this connection with a close code and reason of your own, and dials again. See
    /// [`Sender::reconnect_with`].
    ///
    /// # Errors
    /// `NotSent` with a `Config`, if the code or the reason may not be sent; the connection goes
    /// on.
    pub fn reconnect_with(&mut self, close: &CloseReason) -> Result<(), SendError> {
        self.connection.close_for_reconnect(self.sender.close_frame(close)?);
        Ok(())
    }
}

impl fmt::Debug for Connection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("client", self.sender.client())
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

/// The occasion of a [`Handler::woken`].
pub struct WokenContext<'a> {
    due: Due,
    connection: Option<Connection<'a>>,
    sender: &'a Sender,
}

impl<'a> WokenContext<'a> {
    /// Returns `true` if a layer above the client alone has called.
    pub(crate) fn is_for_layer(&self) -> bool {
        !self.due.is_for_handler
    }

    pub(crate) fn new(due: Due, connection: Option<Connection<'a>>, sender: &'a Sender) -> Self {
        WokenContext { due, connection, sender }
    }

    /// Returns the open connection, or `None` while none is open: between dials, and from
    /// `disconnected` on.
    pub fn connection(&mut self) -> Option<&mut Connection<'a>> {
        self.connection.as_mut()
    }

    /// Returns the time that was set and has come. It is not set any more. `None` if the handler is
    /// woken by [`Sender::wake`] alone; a time that comes with such a call is returned.
    pub fn due(&self) -> Option<Instant> {
        self.due.at
    }

    /// Sets the time of the next call. See [`Connection::wake_at`].
    pub fn wake_at(&mut self, at: impl Into<Option<Instant>>) {
        self.sender.wake_reader_at(at.into());
    }

    /// Returns a sender that may be kept and moved to other threads.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Tells the client to stop, and returns at once. See [`Connection::stop`].
    pub fn stop(&mut self) {
        self.sender.stopper().request_stop();
    }
}

impl fmt::Debug for WokenContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WokenContext")
            .field("due", &self.due())
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// The receiver of the reader thread's events: a program's handler, or the events queue.
pub(crate) trait EventSink: Send + 'static {
    /// It does something when it is woken.
    const CAN_BE_WOKEN: bool = false;

    fn opened(&mut self, connection: &mut Connection<'_>);
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>);
    /// All messages of a `recv`, at least one, have been delivered, and delivery goes on.
    #[inline]
    fn batch_end(&mut self, connection: &mut Connection<'_>) {
        let _ = connection;
    }
    /// Some messages may be no data.
    #[inline]
    fn ignores(&self) -> bool {
        false
    }
    /// Returns how many messages were no data, since the last call.
    #[inline]
    fn take_ignored(&mut self) -> u64 {
        0
    }
    /// A ping of ours was answered.
    fn pong(&mut self, connection: &mut Connection<'_>, round_trip: Duration) {
        let _ = (connection, round_trip);
    }
    /// A time has come, or a thread has called.
    fn woken(&mut self, context: &mut WokenContext<'_>) {
        let _ = context;
    }
    /// The session is ready.
    fn ready(&mut self, connection: &mut Connection<'_>) {
        let _ = connection;
    }
    /// The session has news.
    fn session_event(&mut self, event: SessionEvent) {
        let _ = event;
    }
    /// Nothing more of a `recv` is delivered. `Err` ends the connection: the queue is full and its
    /// rule says so.
    fn end_recv(&mut self) -> Result<(), Full>;
    /// `false`: the connection is open, and what is above it is not ready.
    fn is_ready(&self) -> bool {
        true
    }
    /// The connection has ended. Whatever a layer above knows of the end is filled in.
    fn disconnected(&mut self, disconnect: &mut Disconnect);
    fn dial_failed(&mut self, failure: &DialFailure);
    fn stopped(&mut self, stopped: &Stopped);
}

/// The events queue is full and the connection has to end.
#[derive(Debug)]
pub(crate) struct Full;

/// Hands everything to a user's handler.
pub(crate) struct HandlerSink<H>(pub(crate) H);

impl<H: Handler> EventSink for HandlerSink<H> {
    const CAN_BE_WOKEN: bool = true;

    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.0.opened(connection);
    }

    #[inline]
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        self.0.message(connection, message);
    }

    #[inline]
    fn batch_end(&mut self, connection: &mut Connection<'_>) {
        self.0.batch_end(connection);
    }

    fn pong(&mut self, connection: &mut Connection<'_>, round_trip: Duration) {
        self.0.pong(connection, round_trip);
    }

    fn woken(&mut self, context: &mut WokenContext<'_>) {
        self.0.woken(context);
    }

    fn ready(&mut self, connection: &mut Connection<'_>) {
        self.0.ready(connection);
    }

    #[inline]
    fn end_recv(&mut self) -> Result<(), Full> {
        Ok(())
    }

    fn disconnected(&mut self, disconnect: &mut Disconnect) {
        self.0.disconnected(disconnect);
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        self.0.dial_failed(failure);
    }

    fn stopped(&mut self, stopped: &Stopped) {
        self.0.stopped(stopped);
    }
}
