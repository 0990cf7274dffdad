//! Where messages go: the user's handler, called on the reader thread.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::connection::OpenConnection;
use crate::connection::close::CloseFrame;
use crate::error::{BatchError, CloseReason, SendError};
use crate::event::{DialFailure, Disconnect, MessageRef, Opened, Payload, Receipt, Stopped};
use crate::sender::{Sender, Stopper};

/// What a program does with what comes.
///
/// Called with `&mut self` by the thread `taut-reader` alone, so nothing in it needs a lock, and
/// dropped there before that thread counts as ended. While a call runs nothing is read: a handler
/// that takes longer than the pong limit gets a warning in the log, and the connection is not taken
/// for dead meanwhile. A panic ends the client once, with the kind `HandlerPanicked`; what was
/// thrown is kept for [`Client::take_panic`](crate::Client::take_panic).
///
/// What a handler may keep: a [`Sender`] and a [`Stopper`]. An `Arc<Client>` inside its own handler
/// is a cycle: such a client is never dropped, and so never stopped.
///
/// A closure `FnMut(&mut Connection<'_>, MessageRef<'_>)` is a handler for messages alone.
pub trait Handler: Send + 'static {
    /// A connection is open: subscribe. Runs before any message of that connection.
    fn opened(&mut self, connection: &mut Connection<'_>) {
        let _ = connection;
    }

    /// A data message came. Its payload is borrowed from the read buffer.
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>);

    /// The connection has ended; exactly once per `opened`.
    fn disconnected(&mut self, disconnect: &Disconnect) {
        let _ = disconnect;
    }

    /// A dial failed.
    fn dial_failed(&mut self, failure: &DialFailure) {
        let _ = failure;
    }

    /// The client has ended: the last call, in every case but a panic of this handler.
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

/// The open connection, for the length of a call of the handler: sends on that very connection, and
/// never on a later one.
///
/// A send from inside the handler happens on the reader's thread: while it waits for room nothing
/// is read. It is bounded by `send_timeout` like any other.
///
/// It stays where it is: what may be kept and moved is a [`Sender`].
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

    /// How this connection was opened.
    pub fn opening(&self) -> &Opened {
        self.opened
    }

    /// The epoch of this connection.
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

    /// Has a ping sent at once. See [`Sender::ping`].
    ///
    /// # Errors
    /// As [`Sender::ping`].
    pub fn ping(&mut self) -> Result<(), SendError> {
        self.connection.request_ping()
    }

    /// A sender that may be kept and moved to other threads. It sends on whatever connection is
    /// open at the time.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// What can stop the client from anywhere.
    pub fn stopper(&self) -> Stopper {
        self.sender.stopper()
    }

    /// Tells the client to stop, and returns at once; no further message is delivered after the
    /// call that said so.
    pub fn stop(&mut self) {
        self.sender.stopper().request_stop();
    }

    /// Counts this connection as stable from now on, before
    /// [`stable_after`](crate::Builder::stable_after) has passed: the backoff after its end starts
    /// anew. For a program that knows more than the clock does, because its login was accepted, for
    /// example.
    pub fn mark_stable(&mut self) {
        self.connection.mark_stable();
    }

    /// Ends this connection politely and dials again. See [`Sender::reconnect`].
    pub fn reconnect(&mut self) {
        self.connection.close_for_reconnect(CloseFrame::normal());
    }

    /// Ends this connection with a close code and reason of your own and dials again. See
    /// [`Sender::reconnect_with`].
    ///
    /// # Errors
    /// `NotSent` and `Config`, when the code or the reason may not be sent; the connection goes on
    /// as it was.
    pub fn reconnect_with(&mut self, close: &CloseReason) -> Result<(), SendError> {
        self.connection
            .close_for_reconnect(CloseFrame::from_program(close).map_err(SendError::NotSent)?);
        Ok(())
    }
}

impl fmt::Debug for Connection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}

/// What the reader thread hands things to: a user's handler, or the events queue.
pub(crate) trait EventSink: Send + 'static {
    fn opened(&mut self, connection: &mut Connection<'_>);
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>);
    /// All messages of a `recv` have been delivered. `Err` ends the connection: the queue is full
    /// and its rule says so.
    fn end_batch(&mut self) -> Result<(), Full>;
    fn disconnected(&mut self, disconnect: &Disconnect);
    fn dial_failed(&mut self, failure: &DialFailure);
    fn stopped(&mut self, stopped: &Stopped);
}

/// The events queue is full and the connection has to end.
#[derive(Debug)]
pub(crate) struct Full;

/// Hands everything to a user's handler.
pub(crate) struct HandlerSink<H>(pub(crate) H);

impl<H: Handler> EventSink for HandlerSink<H> {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.0.opened(connection);
    }

    #[inline]
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        self.0.message(connection, message);
    }

    #[inline]
    fn end_batch(&mut self) -> Result<(), Full> {
        Ok(())
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        self.0.disconnected(disconnect);
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        self.0.dial_failed(failure);
    }

    fn stopped(&mut self, stopped: &Stopped) {
        self.0.stopped(stopped);
    }
}
