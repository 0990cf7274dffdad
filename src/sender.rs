//! Handles that may be kept and moved to any thread: to send, and to stop.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::Data;

use crate::connection::OpenConnection;
use crate::connection::close::CloseFrame;
use crate::error::{BatchError, CloseReason, Error, ErrorKind, SendError};
use crate::event::{Payload, Receipt};
use crate::name::ClientName;
use crate::runtime::reconnect::State;
use crate::runtime::shared::Shared;
use crate::sync;
use crate::sync::panic::Panic;
use crate::sync::stop_report::StopReport;

/// Sends on whatever connection is open at the time. Cheap to clone, and usable from any thread.
///
/// A send writes to the socket on the calling thread. It waits for the kernel to have room, and for
/// other senders, `send_timeout` at most (5 s by default). Nothing is ever queued: while no
/// connection is open, sends fail with `NotSent` at once.
///
/// A sender does not keep the client alive, and outlives it harmlessly: its sends then fail with
/// `NotSent` and the kind `Stopped`.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
    /// The one epoch to send on.
    epoch: Option<u64>,
}

impl Sender {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Sender { shared, epoch: None }
    }

    /// Keeps what a closure of the program threw, and ends the connection for it.
    pub(crate) fn abort_for_panic(
        &self,
        connection: &OpenConnection,
        panic: Panic,
        context: &'static str,
    ) {
        self.shared.abort_for_panic(connection, panic, context);
    }

    /// Returns a sender for the connection of one epoch, which never sends on a later one: what was
    /// decided on one connection's data must not leave by another. Once that connection has ended
    /// its sends fail with `NotSent`.
    pub fn pinned_to(&self, epoch: u64) -> Sender {
        Sender { shared: Arc::clone(&self.shared), epoch: Some(epoch) }
    }

    /// Sends a text message.
    ///
    /// `Ok` means that the kernel took all of it, which proves nothing about the peer.
    ///
    /// # Errors
    /// [`SendError::NotSent`]: no byte was taken, and sending again is safe.
    /// [`SendError::Unknown`]: a part was taken and the connection was aborted, so ask the venue.
    /// Their reasons: `Timeout` (`send_timeout` ran out), `Connect` (no connection is open),
    /// `Closed` (the connection is ending), `Stopped` (the client has ended), `Limited` (a
    /// [`send_limit`](crate::Builder::send_limit) leaves no room in time), `TooBig` (longer than
    /// `max_outgoing_message_size`), `Io`.
    pub fn send_text(&self, text: &str) -> Result<Receipt, SendError> {
        self.connection_for_message()?.send(Payload::Text(text))
    }

    /// Sends a binary message. See [`send_text`](Sender::send_text).
    ///
    /// # Errors
    /// As [`send_text`](Sender::send_text).
    pub fn send_binary(&self, bytes: &[u8]) -> Result<Receipt, SendError> {
        self.connection_for_message()?.send(Payload::Binary(bytes))
    }

    /// Sends several messages in order, by one system call for every 64 KiB of them, within
    /// `send_timeout` for all. A message that is compressed goes by a call of its own. A batch of
    /// more than a [`send_limit`](crate::Builder::send_limit) allows at once goes in parts. The
    /// receipt is the last one's.
    ///
    /// # Errors
    /// [`BatchError`]: how many went whole, and what became of the next. An empty batch is refused
    /// with `Config`.
    pub fn send_batch(&self, messages: &[Payload<'_>]) -> Result<Receipt, BatchError> {
        let connection =
            self.connection_for_message().map_err(|next| BatchError { sent: 0, next })?;
        connection.send_batch(messages)
    }

    /// Sends one message in fragments (RFC 6455 section 5.4), all text or all binary, within
    /// `send_timeout` for all. Pings, pongs and close frames may pass between them; other messages
    /// wait. Fragments are not compressed.
    ///
    /// ```no_run
    /// # fn f(sender: &tautline::Sender) -> Result<(), tautline::SendError> {
    /// sender.send_fragmented(["one ", "message ", "in pieces"].map(Into::into))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`send_text`](Sender::send_text); `Config` for no fragments, or for both kinds in one
    /// message: `NotSent` if that is seen before the first has gone, otherwise `Unknown`, because a
    /// message that has begun cannot be taken back.
    pub fn send_fragmented<'a>(
        &self,
        fragments: impl IntoIterator<Item = Payload<'a>>,
    ) -> Result<Receipt, SendError> {
        let connection = self.connection_for_message()?;
        let mut fragments = fragments.into_iter().peekable();
        let is_text = matches!(fragments.peek(), Some(Payload::Text(_)));
        let mut next = || match fragments.next() {
            Some(Payload::Text(text)) if is_text => Ok(Some(Cow::Borrowed(text.as_bytes()))),
            Some(Payload::Binary(bytes)) if !is_text => Ok(Some(Cow::Borrowed(bytes))),
            Some(_) => {
                Err(Error::config("fragments of text and of binary in one message: choose one"))
            }
            None => Ok(None),
        };
        connection.send_fragmented(if is_text { Data::Text } else { Data::Binary }, &mut next)
    }

    /// Sends the contents of `reader` as one binary message, in fragments of at most `fragment`
    /// bytes, within `send_timeout` for all. Holds two fragments in memory at a time. A reader that
    /// blocks cannot be interrupted: the deadline is checked after each read.
    ///
    /// # Errors
    /// As [`send_fragmented`](Sender::send_fragmented). A failure of the reader is an `Io`; its
    /// text is in [`source`](std::error::Error::source) alone.
    pub fn send_reader(
        &self,
        mut reader: impl Read,
        fragment: usize,
    ) -> Result<Receipt, SendError> {
        let connection = self.connection_for_message()?;
        let mut next = || {
            let mut piece = Vec::new();
            // Short reads are gathered: a fragment is short only at the end.
            let read = (&mut reader).take(fragment.max(1) as u64).read_to_end(&mut piece);
            read.map_err(|error| {
                Error::caused_by_closure(ErrorKind::Io, "reading what is to be sent", error)
            })?;
            Ok((!piece.is_empty()).then_some(Cow::Owned(piece)))
        };
        connection.send_fragmented(Data::Binary, &mut next)
    }

    /// Requests a ping frame, which the heartbeat thread writes at once. Its pong counts for the
    /// round-trip time and confirms what was sent before it. Returns before the ping is written.
    ///
    /// # Errors
    /// `NotSent`, when no connection is open or the connection is ending.
    pub fn ping(&self) -> Result<(), SendError> {
        self.connection()?.request_ping()
    }

    /// Closes the connection that is open now and dials again: for a gap in a sequence that only a
    /// new snapshot mends, or an announced shutdown.
    ///
    /// Returns at once. No further message of that connection is delivered, its close frame says
    /// 1000 (see [`reconnect_with`](Sender::reconnect_with)), and the reason in
    /// [`Disconnect`](crate::Disconnect) is a `Closed` with that code. The next dial starts at
    /// once, or after one jittered [`retry_delay_min`](crate::Builder::retry_delay_min) if the
    /// connection was open for less than a second; it counts as no attempt, and no `retry_policy`
    /// is asked.
    ///
    /// # Errors
    /// `NotSent`, when no connection is open.
    pub fn reconnect(&self) -> Result<(), SendError> {
        self.connection()?.close_for_reconnect(CloseFrame::normal());
        Ok(())
    }

    /// Reconnects like [`reconnect`](Sender::reconnect), with a close code and reason of your own
    /// in the close frame (RFC 6455 section 7.4), unless the connection is closing already. The
    /// reason in [`Disconnect`](crate::Disconnect) is a `Closed` with that code and reason;
    /// [`Disconnect::close`](crate::Disconnect::close) is what the server answered, if the answer
    /// came before a further message did.
    ///
    /// # Errors
    /// `NotSent`. Its reason is a `Config` if the code may not be sent or the close reason is too
    /// long ([`CloseReason::new`] says what is allowed), and the connection goes on; otherwise as
    /// for [`reconnect`](Sender::reconnect).
    pub fn reconnect_with(&self, close: &CloseReason) -> Result<(), SendError> {
        let close = self.close_frame(close)?;
        self.connection()?.close_for_reconnect(close);
        Ok(())
    }

    /// Wakes the handler: [`Handler::woken`](crate::Handler::woken) is called on the reader thread,
    /// whether a connection is open or not. Returns at once, from any thread.
    ///
    /// A call of `woken` that begins after this is sure to come, unless a stop, a panic or the end
    /// of the client comes first. Until it begins, further wake-ups add nothing: what a thread has
    /// for the handler goes by a channel or the like, and `woken` takes all that is there. A sender
    /// that is [pinned](Sender::pinned_to) wakes it in any epoch.
    ///
    /// ```no_run
    /// use std::sync::mpsc::{Receiver, channel};
    /// use tautline::{Client, Connection, Handler, MessageRef, WokenContext};
    ///
    /// struct Desk {
    ///     orders: Receiver<String>,
    /// }
    ///
    /// impl Handler for Desk {
    ///     fn message(&mut self, _connection: &mut Connection<'_>, _message: MessageRef<'_>) {}
    ///
    ///     fn woken(&mut self, context: &mut WokenContext<'_>) {
    ///         for order in self.orders.try_iter() {
    ///             let Some(connection) = context.connection() else {
    ///                 eprintln!("no connection is open: {order} is not sent");
    ///                 continue;
    ///             };
    ///             if let Err(error) = connection.send_text(&order) {
    ///                 eprintln!("{order}: {error}");
    ///             }
    ///         }
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (order, orders) = channel();
    /// let client =
    ///     Client::builder("wss://trade.example.com/ws").wakeups().start_with(Desk { orders })?;
    /// let sender = client.sender();
    /// std::thread::spawn(move || {
    ///     order.send("buy".to_owned()).ok();
    ///     sender.wake().ok();
    /// });
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Config`, if the client was not built with [`wakeups`](crate::Builder::wakeups), or has no
    /// handler: a reader that sleeps would not hear of it. Inside the handler itself it works
    /// without. `Stopped` once the client has been told to stop, or has ended.
    pub fn wake(&self) -> Result<(), Error> {
        let woken = self.refuse_stopped().and_then(|()| self.shared.wakeups.wake());
        woken.map_err(|error| self.shared.named(error))
    }

    /// Sets the time at which [`Handler::woken`](crate::Handler::woken) is called, from anywhere:
    /// from another thread, or from `disconnected`. See
    /// [`Connection::wake_at`](crate::Connection::wake_at).
    ///
    /// # Errors
    /// As [`wake`](Sender::wake).
    pub fn wake_at(&self, at: impl Into<Option<Instant>>) -> Result<(), Error> {
        let set = self.refuse_stopped().and_then(|()| self.shared.wakeups.wake_at(at.into()));
        set.map_err(|error| self.shared.named(error))
    }

    /// As [`wake_at`](Sender::wake_at), on the reader thread.
    pub(crate) fn wake_reader_at(&self, at: Option<Instant>) {
        self.shared.wakeups.wake_reader_at(at);
    }

    fn refuse_stopped(&self) -> Result<(), Error> {
        match self.shared.shutdown.is_requested() {
            true => Err(Error::stopped()),
            false => Ok(()),
        }
    }

    /// Returns the state of the client.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Waits until a connection is open, and returns its epoch. See
    /// [`Client::wait_open`](crate::Client::wait_open).
    ///
    /// # Errors
    /// As [`Client::wait_open`](crate::Client::wait_open).
    pub fn wait_open(&self, timeout: Duration) -> Result<u64, Error> {
        self.shared.wait_open(timeout)
    }

    /// Returns a handle that stops the client.
    pub fn stopper(&self) -> Stopper {
        Stopper { shared: Arc::clone(&self.shared) }
    }

    /// Returns the frame of a close code and reason of the program's, if it may be sent.
    pub(crate) fn close_frame(&self, close: &CloseReason) -> Result<CloseFrame, SendError> {
        let refused = |error| SendError::NotSent(self.shared.named(error));
        CloseFrame::from_program(close).map_err(refused)
    }

    /// Returns the name of the client.
    pub(crate) fn client(&self) -> &ClientName {
        self.shared.name()
    }

    /// Returns the connection for a message.
    fn connection_for_message(&self) -> Result<Arc<OpenConnection>, SendError> {
        self.connection().inspect_err(|error| self.shared.counters.metrics.send_failed(error))
    }

    fn connection(&self) -> Result<Arc<OpenConnection>, SendError> {
        let connection = self.shared.open_connection().map_err(SendError::NotSent)?;
        match self.epoch {
            Some(epoch) if epoch != connection.epoch => {
                let context = format!(
                    "the connection of epoch {epoch} has ended, this is epoch {}",
                    connection.epoch
                );
                let ended = Error::new(ErrorKind::Closed, context);
                Err(SendError::NotSent(self.shared.named(ended)))
            }
            _ => Ok(connection),
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("client", self.client())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// Stops a client, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Stopper {
    shared: Arc<Shared>,
}

impl Stopper {
    /// Stops the client and waits until its threads have ended, `timeout` at most. See
    /// [`Client::stop`](crate::Client::stop).
    pub fn stop(&self, timeout: Duration) -> StopReport {
        self.shared.stop(CloseFrame::normal(), timeout)
    }

    /// Stops the client with a close code and reason of your own. See
    /// [`Client::stop_with`](crate::Client::stop_with).
    ///
    /// # Errors
    /// As [`Client::stop_with`](crate::Client::stop_with).
    pub fn stop_with(&self, close: &CloseReason, timeout: Duration) -> Result<StopReport, Error> {
        let close = CloseFrame::from_program(close).map_err(|error| self.shared.named(error))?;
        Ok(self.shared.stop(close, timeout))
    }

    /// Tells the client to stop and returns at once. Waiting is left to `stop` or to the drop of
    /// the client.
    ///
    /// A loop over events ends after those that are queued, and after the closing handshake: if
    /// the server does not answer it, that takes `close_timeout`.
    pub fn request_stop(&self) {
        self.shared.request_stop(CloseFrame::normal(), Duration::MAX);
    }

    /// Returns `true` if the client has been told to stop, or has ended by itself.
    pub fn is_stopping(&self) -> bool {
        self.shared.shutdown.is_requested()
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper")
            .field("client", self.shared.name())
            .field("is_stopping", &self.is_stopping())
            .finish()
    }
}

/// Stops several clients side by side and waits until all their threads have ended, for `timeout`
/// at most in all. Returns a report for each, in the order of `stoppers`.
///
/// Each client is stopped as by [`Client::stop`](crate::Client::stop).
///
/// ```no_run
/// # fn f(one: tautline::Client, two: tautline::Client) {
/// let stoppers = [&one.stopper(), &two.stopper()];
/// for report in tautline::stop_all(stoppers, std::time::Duration::from_secs(5)) {
///     assert!(report.is_clean(), "{report}");
/// }
/// # }
/// ```
pub fn stop_all<'a>(
    stoppers: impl IntoIterator<Item = &'a Stopper>,
    timeout: Duration,
) -> Vec<StopReport> {
    let began = sync::now();
    let stoppers: Vec<&Stopper> = stoppers.into_iter().collect();
    for stopper in &stoppers {
        stopper.shared.request_stop(CloseFrame::normal(), timeout);
    }
    stoppers.iter().map(|stopper| stopper.shared.wait_stopped(began, timeout)).collect()
}
