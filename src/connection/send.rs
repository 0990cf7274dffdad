//! Sends of one connection, from any thread.

use std::borrow::Cow;

use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::OpenConnection;
use super::close::{CloseAction, CloseInput, WriteFault};
use super::writer::{FrameWriter, WriteFailure};
use crate::error::{BatchError, Error, ErrorKind, SendError, Timeout};
use crate::event::{Payload, Receipt};
use crate::rate_limit::{Permit, Refused, SendKind};
use crate::sync::{self, Condvar, Mutex, MutexGuard};
use crate::time::Deadline;

/// Gives the next fragment of a message, or `None` after the last.
pub(crate) type NextFragment<'f, 'a> = dyn FnMut() -> Result<Option<Cow<'a, [u8]>>, Error> + 'f;

/// The place where senders wait while a fragmented message is under way: data frames of another
/// message may not stand between its fragments (RFC 6455 section 5.4).
#[derive(Default)]
pub(super) struct FragmentGate {
    /// Counts the wake-ups, so that none is lost. Taken after the writer, held for moments.
    wakeups: Mutex<u64>,
    /// Signalled when `wakeups` changes. Waits under `wakeups`.
    changed: Condvar,
}

impl FragmentGate {
    /// Lets everybody look again: a fragmented message is over, or the connection is closing.
    pub(super) fn wake_all(&self) {
        *self.wakeups.lock() += 1;
        self.changed.notify_all();
    }

    /// Gives up the writer and waits for a wake-up. Returns `false` when the deadline has passed.
    fn wait(&self, writer: MutexGuard<'_, FrameWriter>, deadline: Deadline) -> bool {
        let mut wakeups = self.wakeups.lock();
        let before = *wakeups;
        // Whoever ends the message takes the writer first, so its wake-up comes after this.
        drop(writer);
        while *wakeups == before {
            let timed_out = self.changed.wait_until(&mut wakeups, deadline.at()).timed_out();
            if timed_out && *wakeups == before {
                return false;
            }
        }
        true
    }
}

/// A send that failed, and what the close machine answered to that.
struct Settled {
    error: SendError,
    action: Option<CloseAction>,
}

impl Settled {
    /// A part of the message has left.
    fn has_left(&self) -> bool {
        !self.error.is_not_sent()
    }
}

/// A message that failed, and the fault of the connection if it can take nothing further.
struct SendFailure {
    error: SendError,
    fault: Option<WriteFault>,
}

/// A fragmented message under way. However it ends, whoever waits for it goes on.
struct Fragmenting<'a> {
    connection: &'a OpenConnection,
    /// The reason why the message broke off; `None` when it did not.
    broken_off: Option<(WriteFault, Error)>,
}

impl Drop for Fragmenting<'_> {
    fn drop(&mut self) {
        let mut writer = self.connection.writer.lock();
        writer.end_fragments();
        // Under the writer, so that nobody writes what the peer would take for the rest.
        let action = self.broken_off.take().map(|(fault, error)| {
            self.connection.feed_close(CloseInput::WriteFailed { fault, error })
        });
        drop(writer);
        self.connection.carry_out(action.unwrap_or(CloseAction::Nothing));
    }
}

impl OpenConnection {
    /// Sends one message within `send_timeout`.
    pub(crate) fn send(&self, payload: Payload<'_>) -> Result<Receipt, SendError> {
        let deadline = self.send_deadline();
        let sent = self
            .permit(SendKind::Sends, 1, deadline)
            .map_err(SendError::NotSent)
            .and_then(|permit| self.send_permitted(payload, permit, deadline));
        sent.map_err(|error| self.failed(error))
    }

    fn send_permitted(
        &self,
        payload: Payload<'_>,
        permit: Option<Permit>,
        deadline: Deadline,
    ) -> Result<Receipt, SendError> {
        let mut writer = self.writer_until(deadline).map_err(SendError::NotSent)?;
        let pongs = self.flush_pongs(&mut writer);
        let result = match self.sequence.begin(1) {
            Ok(sequence) => match writer.send(&self.transport, payload, deadline) {
                Ok(bytes) => Ok((sequence, bytes)),
                Err(failure) => Err(self.settle(failure, deadline)),
            },
            Err(reason) => Err(Settled { error: SendError::NotSent(reason), action: None }),
        };
        drop(writer);
        if let Some(permit) = permit {
            // Of one that did not leave the permit is given back.
            if result.as_ref().map_or_else(Settled::has_left, |_| true) {
                permit.commit(sync::now());
            }
        }
        pongs.log(self);
        let (sequence, bytes) = result.map_err(|settled| self.tell(settled))?;
        log::trace!("{}: sent {payload:?}", self.label());
        self.counters.sent(1, bytes);
        Ok(self.receipt(sequence))
    }

    /// Sends one message that the limits have let through, by `deadline` and within `send_timeout`.
    pub(crate) fn send_by(
        &self,
        payload: Payload<'_>,
        permit: Option<Permit>,
        deadline: Deadline,
    ) -> Result<Receipt, SendError> {
        let deadline = deadline.or_earlier(self.send_deadline());
        let sent = self.send_permitted(payload, permit, deadline);
        sent.map_err(|error| self.failed(error))
    }

    /// Sends several messages within `send_timeout`, as many as fit in a chunk by one system call,
    /// and together as far as the limits let them through together.
    pub(crate) fn send_batch(&self, payloads: &[Payload<'_>]) -> Result<Receipt, BatchError> {
        self.send_several(payloads).map_err(|error| {
            let BatchError { sent, next } = error;
            BatchError { sent, next: self.failed(next) }
        })
    }

    fn send_several(&self, payloads: &[Payload<'_>]) -> Result<Receipt, BatchError> {
        let failed = |sent, next| BatchError { sent, next };
        if payloads.is_empty() {
            let reason = Error::config("a batch of no messages: give it at least one");
            return Err(failed(0, SendError::NotSent(reason)));
        }
        let deadline = self.send_deadline();
        if self.limits.is_empty() {
            return self.send_part(payloads, None, deadline);
        }
        let most = self.limits.weight_max(SendKind::Sends, true);
        let mut sent = 0;
        loop {
            let rest = &payloads[sent..];
            let weight = u32::try_from(rest.len()).unwrap_or(u32::MAX).min(most);
            let permit = self.permit(SendKind::Sends, weight, deadline);
            let permit = permit.map_err(|reason| failed(sent, SendError::NotSent(reason)))?;
            let receipt = self
                .send_part(&rest[..weight as usize], permit, deadline)
                .map_err(|error| BatchError { sent: sent + error.sent, ..error })?;
            sent += weight as usize;
            if sent == payloads.len() {
                return Ok(receipt);
            }
        }
    }

    /// Sends the messages of a batch that were let through together.
    fn send_part(
        &self,
        payloads: &[Payload<'_>],
        permit: Option<Permit>,
        deadline: Deadline,
    ) -> Result<Receipt, BatchError> {
        let failed = |sent, next| BatchError { sent, next };
        let mut writer =
            self.writer_until(deadline).map_err(|reason| failed(0, SendError::NotSent(reason)))?;
        let pongs = self.flush_pongs(&mut writer);
        let (mut sent, mut bytes, mut last) = (0, 0, 0);
        let mut result = Ok(());
        while sent < payloads.len() {
            let together = &payloads[sent..sent + writer.count_together(&payloads[sent..])];
            let begun = together.len() as u64;
            let sequence = match self.sequence.begin(begun) {
                Ok(sequence) => sequence,
                Err(reason) => {
                    result = Err(Settled { error: SendError::NotSent(reason), action: None });
                    break;
                }
            };
            match writer.send_together(&self.transport, together, deadline) {
                Ok(count) => (sent, bytes, last) = (sent + together.len(), bytes + count, sequence),
                Err(cut) => {
                    (sent, bytes) = (sent + cut.whole, bytes + cut.bytes);
                    // The failed one is taken back where it is settled, if nothing of it has left.
                    self.sequence.take_back(begun - cut.whole as u64 - 1);
                    result = Err(self.settle(cut.failure, deadline));
                    break;
                }
            }
        }
        drop(writer);
        if let Some(permit) = permit {
            let begun = result.as_ref().is_err_and(Settled::has_left);
            // A permit weighs no more than fits.
            permit.commit_part(sent as u32 + u32::from(begun), sync::now());
        }
        pongs.log(self);
        self.counters.sent(sent as u64, bytes);
        result.map_err(|settled| failed(sent, self.tell(settled)))?;
        log::trace!("{}: sent {payloads:?}", self.label());
        Ok(self.receipt(last))
    }

    /// Sends one message in fragments as `next` gives them, within `send_timeout`. Control frames
    /// may pass between them, and other messages may not.
    pub(crate) fn send_fragmented<'a>(
        &self,
        kind: Data,
        next: &mut NextFragment<'_, 'a>,
    ) -> Result<Receipt, SendError> {
        self.send_in_fragments(kind, next).map_err(|error| self.failed(error))
    }

    fn send_in_fragments<'a>(
        &self,
        kind: Data,
        next: &mut NextFragment<'_, 'a>,
    ) -> Result<Receipt, SendError> {
        let deadline = self.send_deadline();
        let Some(first) = next().map_err(SendError::NotSent)? else {
            let reason = Error::config("a message of no fragments: give it at least one");
            return Err(SendError::NotSent(reason));
        };
        let permit = self.permit(SendKind::Sends, 1, deadline).map_err(SendError::NotSent)?;
        let mut writer = self.writer_until(deadline).map_err(SendError::NotSent)?;
        writer.begin_fragments();
        let panicked = "what gave the fragments of a message panicked in the middle of it";
        let mut fragmenting = Fragmenting {
            connection: self,
            broken_off: Some((WriteFault::Broken, Error::new(ErrorKind::Io, panicked))),
        };
        let result = self.send_fragments(writer, permit, kind, first, next, deadline);
        let result = match result {
            Ok(sent) => {
                fragmenting.broken_off = None;
                Ok(sent)
            }
            Err(SendFailure { error, fault }) => {
                fragmenting.broken_off = fault.map(|fault| (fault, error.reason().clone()));
                Err(error)
            }
        };
        drop(fragmenting);
        let (receipt, bytes) = result?;
        self.counters.sent(1, bytes);
        Ok(receipt)
    }

    fn send_fragments<'a>(
        &self,
        mut writer: MutexGuard<'_, FrameWriter>,
        mut permit: Option<Permit>,
        kind: Data,
        first: Cow<'a, [u8]>,
        next: &mut NextFragment<'_, 'a>,
        deadline: Deadline,
    ) -> Result<(Receipt, usize), SendFailure> {
        let not_sent = |reason| SendFailure { error: SendError::NotSent(reason), fault: None };
        let (mut current, mut sequence, mut bytes) = (first, None, 0);
        // The payload bytes of all fragments that are known.
        let mut len = current.len();
        loop {
            let in_place = |reason| match sequence {
                None => not_sent(reason),
                Some(_) => SendFailure {
                    error: SendError::Unknown(reason),
                    fault: Some(WriteFault::Broken),
                },
            };
            // Fetched without the lock: it may take its time, and nobody may have to wait for it.
            let following = MutexGuard::unlocked(&mut writer, &mut *next).map_err(in_place)?;
            if deadline.has_passed(sync::now()) {
                return Err(in_place(deadline.error("waiting for the next fragment")));
            }
            len += following.as_ref().map_or(0, |fragment| fragment.len());
            writer.check_len(len).map_err(in_place)?;
            let pongs = self.flush_pongs(&mut writer);
            let number = match sequence {
                Some(sequence) => {
                    // The closing handshake is under way, and aborting would spoil it.
                    let is_over = self.close.lock().is_writing_over();
                    if is_over {
                        let reason = Error::new(ErrorKind::Closed, "the connection is closing");
                        return Err(SendFailure { error: SendError::Unknown(reason), fault: None });
                    }
                    sequence
                }
                None => self.sequence.begin(1).map_err(not_sent)?,
            };
            let opcode = OpCode::Data(if sequence.is_none() { kind } else { Data::Continue });
            let is_final = following.is_none();
            let sent = writer.send_fragment(&self.transport, opcode, &current, is_final, deadline);
            // Before the program's code runs again: what has begun counts, whatever becomes of it.
            if let Some(permit) = permit.take() {
                let has_left = sent.as_ref().map_or_else(|failure| failure.is_partial, |_| true);
                permit.commit_part(u32::from(has_left), sync::now());
            }
            MutexGuard::unlocked(&mut writer, || {
                pongs.log(self);
                if sent.is_ok() {
                    log::trace!("{}: sent {opcode:?}({} bytes)", self.label(), current.len());
                }
            });
            match sent {
                Ok(count) => bytes += count,
                Err(failure) => return Err(self.send_failure(failure, deadline)),
            }
            sequence = Some(number);
            match following {
                Some(fragment) => current = fragment,
                None => return Ok((self.receipt(number), bytes)),
            }
        }
    }

    /// Waits until the limits let `weight` messages through; `None` where there are none.
    #[inline]
    pub(crate) fn permit(
        &self,
        kind: SendKind,
        weight: u32,
        deadline: Deadline,
    ) -> Result<Option<Permit>, Error> {
        match self.limits.is_empty() {
            true => Ok(None),
            false => self.acquire(kind, weight, deadline).map(Some),
        }
    }

    fn acquire(&self, kind: SendKind, weight: u32, deadline: Deadline) -> Result<Permit, Error> {
        // Whatever runs on these threads would wait for itself, or keep the connection from being
        // read and written. Asked only where there is no room: it takes a lock.
        let may_wait = || !self.threads.is_own_thread();
        let is_over = || self.sequence.check().is_err();
        let start = self.counters.metrics.begin_wait();
        match self.limits.acquire(kind, weight, deadline.at(), may_wait, is_over) {
            Ok(permit) => {
                self.counters.metrics.waited(start);
                Ok(permit)
            }
            Err(Refused::Late { retry_in }) => Err(Error::limited(retry_in)),
            Err(Refused::Over) => Err(self.sequence.check().err().unwrap_or_else(Error::stopped)),
        }
    }

    /// The writer, once no other message is under way.
    fn writer_until(&self, deadline: Deadline) -> Result<MutexGuard<'_, FrameWriter>, Error> {
        let late = || deadline.error("waiting for another sender on this connection");
        loop {
            self.sequence.check()?;
            // Uncontended, this reads no clock.
            let writer = match self.writer.try_lock() {
                Some(writer) => writer,
                None => self.writer.try_lock_until(deadline.at()).ok_or_else(late)?,
            };
            if !writer.is_fragmenting() {
                return Ok(writer);
            }
            if !self.fragment_gate.wait(writer, deadline) {
                return Err(late());
            }
        }
    }

    /// Says what a failed write means for its message, and takes the message back if nothing of it
    /// has left.
    fn send_failure(&self, failure: WriteFailure, deadline: Deadline) -> SendFailure {
        let (is_partial, fault) = (failure.is_partial, failure.fault());
        let reason = failure.into_error(deadline);
        let error = if is_partial {
            SendError::Unknown(reason)
        } else {
            self.sequence.take_back(1);
            SendError::NotSent(reason)
        };
        SendFailure { error, fault }
    }

    /// Feeds the close machine if the connection can take nothing further: under the writer, so
    /// that nobody writes behind a frame that broke off.
    fn settle(&self, failure: WriteFailure, deadline: Deadline) -> Settled {
        let SendFailure { error, fault } = self.send_failure(failure, deadline);
        let action = fault.map(|fault| {
            let error = error.reason().clone();
            self.feed_close(CloseInput::WriteFailed { fault, error })
        });
        Settled { error, action }
    }

    /// Carries out what a failed send means, without the writer.
    fn tell(&self, settled: Settled) -> SendError {
        if let Some(action) = settled.action {
            self.carry_out(action);
        }
        settled.error
    }

    /// Counts a send of the program's that failed, and gives its error the name of the client.
    #[cold]
    fn failed(&self, error: SendError) -> SendError {
        self.counters.metrics.send_failed(&error);
        error.of_client(&self.client)
    }

    fn receipt(&self, sequence: u64) -> Receipt {
        Receipt { epoch: self.epoch, sequence }
    }

    fn send_deadline(&self) -> Deadline {
        Deadline::new(Timeout::Send, self.timeouts.send, sync::now())
    }
}

#[cfg(all(test, unix, not(shuttle)))]
mod tests {
    use std::io::{ErrorKind as IoErrorKind, Read};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::connection::close::CloseFrame;
    use crate::connection::socket::StreamSocket;
    use crate::connection::writer::OutgoingLimits;
    use crate::connection::{Receiving, Timeouts};
    use crate::name::ClientName;
    use crate::rate_limit::{Limits, RateLimit};
    use crate::stats::Counters;
    use crate::sync::channel::bounded;
    use crate::sync::threads::{ThreadOptions, Threads};

    /// More than the kernel takes while nobody reads.
    const LONG: usize = 8 * 1024 * 1024;

    fn connection(send_timeout: Duration) -> (Arc<OpenConnection>, Socket) {
        limited(send_timeout, Limits::default())
    }

    fn limited(send_timeout: Duration, limits: Limits) -> (Arc<OpenConnection>, Socket) {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).expect("a pair");
        let connection = OpenConnection::new(
            1,
            "peer:1".to_owned(),
            ClientName::default(),
            StreamSocket::new(ours, Receiving::default()),
            None,
            FrameWriter::new(None, OutgoingLimits::default()),
            Timeouts { send: send_timeout, close: Duration::from_secs(1) },
            bounded(1).0,
            Arc::new(Counters::default()),
            limits,
            Arc::new(Threads::new(ThreadOptions::default())),
        );
        (Arc::new(connection.with_app_pings(1, None)), theirs)
    }

    fn drain(theirs: &mut Socket) -> usize {
        theirs.set_nonblocking(true).expect("it is a socket");
        let mut buffer = vec![0; LONG];
        let mut drained = 0;
        while let Ok(count @ 1..) = theirs.read(&mut buffer) {
            drained += count;
        }
        drained
    }

    #[test]
    fn nothing_follows_a_message_that_broke_off() {
        let (connection, mut theirs) = connection(Duration::from_millis(10));
        let long = vec![0; LONG];
        let failed = connection.send(Payload::Binary(&long)).expect_err("nobody reads");
        assert!(matches!(failed, SendError::Unknown(_)));
        assert!(connection.is_aborted());

        // Somebody reads now, and would take a ping, a close frame or the next message for the rest
        // of the first.
        assert!((1..LONG).contains(&drain(&mut theirs)));
        connection.queue_pong(b"pong");
        let now = Instant::now();
        assert!(connection.flush_pending(now).is_ok_and(|is_flushed| is_flushed));
        assert!(connection.write_ping(now).is_ok_and(|is_written| is_written));
        let app_ping = connection.write_app_ping(0, "ping", false, now);
        assert!(app_ping.is_ok_and(|is_written| is_written));
        connection.close(CloseFrame::normal(), now + Duration::from_secs(1));
        assert!(connection.flush_pending(now).is_ok());
        let next = connection.send(Payload::Text("next")).expect_err("nothing may follow");
        assert!(next.is_not_sent());
        let batch = connection.send_batch(&[Payload::Text("next")]).expect_err("it is over");
        assert!(batch.sent == 0 && batch.next.is_not_sent());
        assert_eq!(drain(&mut theirs), 0);
        // The one message that was begun is counted.
        assert_eq!(connection.final_sequences(), (1, 0));
    }

    #[test]
    fn an_application_ping_that_finds_no_room_awaits_no_reply() {
        let (connection, _theirs) = connection(Duration::from_millis(10));
        let now = Instant::now();
        let text = "x".repeat(LONG / 8);
        let mut pings = 0;
        while connection.write_app_ping(0, &text, false, now).expect("it is open") {
            pings += 1;
        }
        assert!((1..100).contains(&pings));
        assert!(!connection.write_app_ping(0, "ping", true, now).expect("it is open"));
        assert_eq!(connection.activity.unanswered_app_ping(), None);
    }

    #[test]
    fn messages_of_which_nothing_left_are_not_counted() {
        let (connection, _theirs) = connection(Duration::from_millis(10));
        assert!(connection.send(Payload::Text("first")).is_ok());
        let full = [0; 4096];
        while connection.send(Payload::Binary(&full)).is_ok() {}
        let (before, _) = connection.final_sequences();
        // Where the last one broke off the connection is over, otherwise it goes on.
        for _ in 0..3 {
            assert!(connection.send(Payload::Text("next")).is_err_and(|e| e.is_not_sent()));
            let batch = [Payload::Text("next"); 7];
            assert!(connection.send_batch(&batch).is_err_and(|error| error.next.is_not_sent()));
            let mut fragments = [&b"one"[..], b"two"].into_iter();
            let mut next = || Ok(fragments.next().map(Cow::Borrowed));
            let sent = connection.send_fragmented(Data::Text, &mut next);
            assert!(sent.is_err_and(|error| error.is_not_sent()));
        }
        assert_eq!(connection.final_sequences().0, before);
    }

    #[test]
    fn of_a_limited_message_that_counts_which_left_in_part() {
        let limit = RateLimit::per_connection().window(2, Duration::from_secs(3600));
        let limits = Limits::for_connection(&[limit]);
        let (connection, _theirs) = limited(Duration::from_millis(10), limits.clone());
        let has_room = || limits.try_acquire(SendKind::Sends, 1, Instant::now()).is_ok();
        {
            let _writer = connection.writer.lock();
            for _ in 0..3 {
                let late = connection.send(Payload::Text("late")).expect_err("the writer is taken");
                assert!(late.is_not_sent() && late.reason().kind() == ErrorKind::Timeout);
                let batch = [Payload::Text("late"); 3];
                let late = connection.send_batch(&batch).expect_err("the writer is taken");
                assert_eq!(late.next.reason().kind(), ErrorKind::Timeout);
            }
        }
        assert!(connection.send(Payload::Text("whole")).is_ok() && has_room());
        let mut count = 0;
        let mut next = || {
            count += 1;
            match count {
                1 | 2 => Ok(Some(Cow::Borrowed(&b"fragment"[..]))),
                _ => Err(Error::config("broken off")),
            }
        };
        let broken = connection.send_fragmented(Data::Binary, &mut next);
        assert!(matches!(broken, Err(SendError::Unknown(_))) && !has_room());
    }

    #[test]
    fn a_reader_of_the_programs_that_fails_like_a_reset_aborts_the_connection() {
        for kind in [
            IoErrorKind::ConnectionReset,
            IoErrorKind::ConnectionAborted,
            IoErrorKind::BrokenPipe,
            IoErrorKind::Other,
        ] {
            let (connection, _theirs) = connection(Duration::from_secs(10));
            let mut count = 0;
            let mut next = || {
                count += 1;
                match count {
                    1 | 2 => Ok(Some(Cow::Borrowed(&b"fragment"[..]))),
                    _ => {
                        let error = std::io::Error::new(kind, "the program's own");
                        Err(Error::caused_by_closure(ErrorKind::Io, "reading", error))
                    }
                }
            };
            let failed = connection.send_fragmented(Data::Binary, &mut next);
            assert!(matches!(failed, Err(SendError::Unknown(_))), "{kind:?}");
            assert!(connection.is_aborted(), "{kind:?}");
            assert_eq!(connection.final_sequences().0, 1);
        }
    }

    #[test]
    fn whoever_waits_for_a_fragmented_message_hears_of_the_end() {
        for ends_politely in [true, false] {
            let (connection, _theirs) = connection(Duration::from_secs(60));
            let (has_begun_tx, has_begun) = bounded::<()>(0);
            let (release, released) = bounded::<()>(0);
            std::thread::scope(|scope| {
                let fragments = scope.spawn(|| {
                    let mut count = 0;
                    let mut next = || {
                        count += 1;
                        if count == 2 {
                            has_begun_tx.send(()).expect("the test waits");
                            assert!(released.recv().is_err(), "nothing is sent");
                        }
                        Ok(Some(Cow::Borrowed(&b"fragment"[..])))
                    };
                    connection.send_fragmented(Data::Binary, &mut next)
                });
                has_begun.recv().expect("it begins");
                let waits = scope.spawn(|| connection.send(Payload::Text("waits")));
                // It waits, or is about to: both have to end.
                std::thread::yield_now();
                match ends_politely {
                    true => {
                        let deadline = Instant::now() + Duration::from_secs(60);
                        connection.close(CloseFrame::normal(), deadline);
                    }
                    false => connection.abort(Error::stopped()),
                }
                let refused = waits.join().expect("no panic").expect_err("it is over");
                assert!(refused.is_not_sent() && refused.reason().kind() == ErrorKind::Closed);
                drop(release);
                assert!(fragments.join().expect("no panic").is_err());
            });
        }
    }
}
