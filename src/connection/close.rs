//! The end of one connection as a pure state machine, in the words of RFC 6455 section 7.
//!
//! ```text
//!            we close            the peer closes
//!  Open ---------------> CloseSent ------------+
//!   | |                                        v
//!   | '----------------> CloseReceived ---> Exchanged ---> Closed
//!   |   the peer closes            ours is written   TCP ends
//!   '--> WriteFailed
//! ```
//! Every state leads to `Aborted` when the deadline passes or somebody aborts. The reader, the
//! heartbeat thread, senders and a stop feed the machine inputs and carry out what it answers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{CloseReason, Error};

/// A control frame holds 125 bytes, two of which are the code (RFC 6455 section 5.5).
const REASON_MAX: usize = 123;

/// The content of a close frame of ours.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CloseFrame {
    /// `None` is an empty close frame, the answer to an empty one.
    code: Option<u16>,
    reason: Arc<str>,
}

impl CloseFrame {
    /// A code without a reason.
    pub(crate) fn new(code: impl Into<Option<u16>>) -> Self {
        CloseFrame { code: code.into(), reason: Arc::default() }
    }

    /// Code 1000: a normal closure.
    pub(crate) fn normal() -> Self {
        Self::new(1000)
    }

    /// Repeats the peer's code (RFC 6455 section 5.5.1). 1005 stands for a frame without one.
    fn echo(received: &CloseReason) -> Self {
        Self::new(Some(received.code).filter(|&code| code != 1005))
    }

    /// Checks what a program wants to send (RFC 6455 section 7.4): 1002 is for the library to
    /// tell, and 1004 to 1006 and 1015 are never sent.
    pub(crate) fn from_program(close: &CloseReason) -> Result<Self, Error> {
        let CloseReason { code, reason } = close;
        if !matches!(code, 1000 | 1001 | 1003 | 1007..=1014 | 3000..=4999) {
            return Err(Error::config(format!(
                "close code {code}: 1000, 1001, 1003, 1007 to 1014 and 3000 to 4999 may be sent"
            )));
        }
        if reason.len() > REASON_MAX {
            return Err(Error::config(format!(
                "a close reason of {} bytes: at most {REASON_MAX} may be sent",
                reason.len()
            )));
        }
        Ok(CloseFrame { code: Some(*code), reason: reason.as_str().into() })
    }

    /// The payload of the frame (RFC 6455 section 5.5.1).
    pub(crate) fn payload(&self) -> Vec<u8> {
        let Some(code) = self.code else { return Vec::new() };
        let mut payload = Vec::with_capacity(2 + self.reason.len());
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(self.reason.as_bytes());
        payload
    }

    pub(crate) fn to_close_reason(&self) -> CloseReason {
        CloseReason::new(self.code.unwrap_or(1005), &*self.reason)
    }
}

impl fmt::Debug for CloseFrame {
    /// Leaves the reason out: it may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloseFrame").field("code", &self.code).finish_non_exhaustive()
    }
}

/// The progress of a connection towards its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseState {
    Open,
    /// A write found that the peer has ended the connection. Nothing can be written any more, and
    /// what the peer said last, its close frame above all, may still be unread.
    WriteFailed,
    /// Our close frame is queued or written, and the peer's has not come.
    CloseSent {
        is_written: bool,
    },
    /// The peer's close frame has come, and ours is queued.
    CloseReceived,
    /// Both close frames are through. The server ends TCP first (RFC 6455 section 7.1.1); our side
    /// is half-closed for a server that waits for us.
    Exchanged {
        is_half_closed: bool,
    },
    /// TCP has ended.
    Closed,
    /// The socket was shut down without waiting for anything.
    Aborted,
}

/// The state of a connection on which a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteFault {
    /// The peer has ended the connection.
    PeerEnded,
    /// A frame broke off, or the socket failed otherwise: the peer would take whatever came next
    /// for the rest of that frame.
    Broken,
}

impl WriteFault {
    /// The fault of a connection whose socket failed. The error is the socket's own: what a closure
    /// of the program failed with says nothing about the connection.
    pub(crate) fn of(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset => WriteFault::PeerEnded,
            _ => WriteFault::Broken,
        }
    }
}

/// An event on the way of a connection to its end.
#[derive(Clone, Debug)]
pub(crate) enum CloseInput {
    /// This side closes: `frame` is to be sent, and the peer's answered, by `deadline`.
    Close { frame: CloseFrame, deadline: Instant },
    /// As `Close`, because the program wants another connection: nothing more is delivered.
    Reconnect { frame: CloseFrame, deadline: Instant },
    /// As `Close`, for an error of a layer above: nothing more is delivered.
    Fail { error: Error, frame: CloseFrame, deadline: Instant },
    /// The peer's close frame came.
    Received { close: CloseReason, deadline: Instant },
    /// Our close frame is written.
    Written,
    /// Our side of TCP is closed.
    HalfClosed,
    /// A write failed.
    WriteFailed { fault: WriteFault, error: Error },
    /// TCP has ended.
    Ended,
    /// The connection has to end now.
    Abort(Error),
}

/// The work that an input leaves to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseAction {
    Nothing,
    /// The heartbeat thread has something to write, or a deadline to keep.
    WakeHeartbeat,
    /// The socket is to be shut down in both directions.
    ShutDown,
}

/// The end of one connection: its state, its reasons and its one deadline.
#[derive(Debug)]
pub(crate) struct Close {
    state: CloseState,
    /// The first reason that this side gave for ending the connection.
    reason: Option<Error>,
    /// The reset that a write met. The kernel tells of a reset once, so the reader may see an end
    /// without a reason.
    reset: Option<Error>,
    /// The content of our close frame.
    sent: Option<CloseFrame>,
    /// The content of the peer's close frame.
    received: Option<CloseReason>,
    /// The time by which the closing handshake has to be over.
    deadline: Option<Instant>,
    /// No message is delivered any more.
    is_delivery_over: bool,
}

impl Close {
    pub(crate) fn new() -> Self {
        Close {
            state: CloseState::Open,
            reason: None,
            reset: None,
            sent: None,
            received: None,
            deadline: None,
            is_delivery_over: false,
        }
    }

    /// Moves the machine. Inputs that make no sense in a state change nothing.
    pub(crate) fn on(&mut self, input: CloseInput) -> CloseAction {
        use CloseState::{Aborted, CloseReceived, CloseSent, Closed, Exchanged, Open, WriteFailed};
        if self.is_over() {
            // A close frame that was read before the end is still what the peer said.
            if let CloseInput::Received { close, .. } = input {
                self.received.get_or_insert(close);
            }
            return CloseAction::Nothing;
        }
        match input {
            CloseInput::Close { frame, deadline } => self.close(frame, deadline),
            CloseInput::Reconnect { frame, deadline } => {
                self.is_delivery_over = true;
                let sent = self.sent.as_ref().unwrap_or(&frame).to_close_reason();
                self.reason.get_or_insert_with(|| Error::reconnect_requested(sent));
                self.close(frame, deadline)
            }
            CloseInput::Fail { error, frame, deadline } => {
                self.is_delivery_over = true;
                self.reason.get_or_insert(error);
                self.close(frame, deadline)
            }
            CloseInput::Received { close, deadline } => {
                let answer = CloseFrame::echo(&close);
                self.received.get_or_insert(close);
                let next = match self.state {
                    Open => CloseReceived,
                    CloseSent { is_written: false } => CloseReceived,
                    CloseSent { is_written: true } => Exchanged { is_half_closed: false },
                    other => other,
                };
                self.close(answer, deadline);
                self.state = next;
                CloseAction::WakeHeartbeat
            }
            CloseInput::Written => {
                self.state = match self.state {
                    CloseSent { .. } => CloseSent { is_written: true },
                    CloseReceived => Exchanged { is_half_closed: false },
                    other => other,
                };
                CloseAction::Nothing
            }
            CloseInput::HalfClosed => {
                if let Exchanged { .. } = self.state {
                    self.state = Exchanged { is_half_closed: true };
                }
                CloseAction::Nothing
            }
            CloseInput::WriteFailed { fault: WriteFault::PeerEnded, error } => {
                self.reset.get_or_insert(error);
                self.state = WriteFailed;
                CloseAction::Nothing
            }
            CloseInput::WriteFailed { fault: WriteFault::Broken, error }
            | CloseInput::Abort(error) => {
                self.reason.get_or_insert(error);
                self.is_delivery_over = true;
                self.state = Aborted;
                CloseAction::ShutDown
            }
            CloseInput::Ended => {
                self.state = Closed;
                CloseAction::ShutDown
            }
        }
    }

    /// Keeps the first frame and the earliest deadline. Wakes the heartbeat thread only if it has
    /// to look again, so that it may repeat the input itself.
    fn close(&mut self, frame: CloseFrame, deadline: Instant) -> CloseAction {
        let is_earlier = self.deadline.is_none_or(|earlier| deadline < earlier);
        if is_earlier {
            self.deadline = Some(deadline);
        }
        self.sent.get_or_insert(frame);
        if self.state == CloseState::Open {
            self.state = CloseState::CloseSent { is_written: false };
        }
        if is_earlier { CloseAction::WakeHeartbeat } else { CloseAction::Nothing }
    }

    pub(crate) fn state(&self) -> CloseState {
        self.state
    }

    /// TCP has ended, or was shut down.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, CloseState::Closed | CloseState::Aborted)
    }

    /// Nothing may be written any more: our close frame was the last (RFC 6455 section 5.5.1), or
    /// the connection can take nothing.
    pub(crate) fn is_writing_over(&self) -> bool {
        use CloseState::{Aborted, CloseReceived, CloseSent, Closed, Exchanged, Open, WriteFailed};
        match self.state {
            Open | CloseSent { is_written: false } | CloseReceived => false,
            CloseSent { is_written: true } | Exchanged { .. } | WriteFailed | Closed | Aborted => {
                true
            }
        }
    }

    pub(crate) fn is_delivery_over(&self) -> bool {
        self.is_delivery_over
    }

    /// The close frame that has to be written.
    pub(crate) fn queued(&self) -> Option<&CloseFrame> {
        match self.state {
            CloseState::CloseSent { is_written: false } | CloseState::CloseReceived => {
                self.sent.as_ref()
            }
            _ => None,
        }
    }

    pub(crate) fn reason(&self) -> Option<&Error> {
        self.reason.as_ref()
    }

    pub(crate) fn reset(&self) -> Option<&Error> {
        self.reset.as_ref()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.is_over())
    }

    /// The close code and reason of RFC 6455 section 7.1.5: the peer's, or ours, or 1006 where
    /// there was no close frame at all.
    pub(crate) fn close_reason(&self) -> CloseReason {
        match (&self.received, &self.sent) {
            (Some(received), _) => received.clone(),
            (None, Some(sent)) => sent.to_close_reason(),
            (None, None) => CloseReason::abnormal(),
        }
    }

    /// The close frame that this side has sent or will send.
    pub(crate) fn sent(&self) -> Option<&CloseFrame> {
        self.sent.as_ref()
    }

    pub(crate) fn has_received(&self) -> bool {
        self.received.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;

    const MS: Duration = Duration::from_millis(1);

    fn error(context: &'static str) -> Error {
        Error::new(ErrorKind::Io, context)
    }

    /// Every input, with a deadline `step` after `start`.
    fn inputs(start: Instant, step: u32) -> Vec<CloseInput> {
        let deadline = start + step * MS;
        let code = 4000 + step as u16;
        vec![
            CloseInput::Close { frame: CloseFrame::new(code), deadline },
            CloseInput::Reconnect { frame: CloseFrame::new(code), deadline },
            CloseInput::Fail { error: error("fail"), frame: CloseFrame::new(code), deadline },
            CloseInput::Received { close: CloseReason::new(code, "x"), deadline },
            CloseInput::Written,
            CloseInput::HalfClosed,
            CloseInput::WriteFailed { fault: WriteFault::PeerEnded, error: error("reset") },
            CloseInput::WriteFailed { fault: WriteFault::Broken, error: error("broken") },
            CloseInput::Ended,
            CloseInput::Abort(error("abort")),
        ]
    }

    struct Step {
        before: CloseState,
        input: CloseInput,
        after: CloseState,
        action: CloseAction,
    }

    /// Calls `visit` for every sequence of inputs up to `depth`, with the machine after it.
    fn for_every_sequence(depth: u32, visit: &mut impl FnMut(&[Step], &Close)) {
        fn descend(
            inputs_so_far: &mut Vec<CloseInput>,
            start: Instant,
            depth: u32,
            visit: &mut impl FnMut(&[Step], &Close),
        ) {
            let step = inputs_so_far.len() as u32;
            if step == depth {
                return;
            }
            // Deadlines fall, rise and fall again along a sequence.
            for input in inputs(start, [5, 3, 7, 1, 9, 2][step as usize]) {
                inputs_so_far.push(input);
                let mut close = Close::new();
                let mut steps = Vec::new();
                for input in inputs_so_far.iter() {
                    let before = close.state();
                    let action = close.on(input.clone());
                    steps.push(Step { before, input: input.clone(), after: close.state(), action });
                }
                visit(&steps, &close);
                descend(inputs_so_far, start, depth, visit);
                inputs_so_far.pop();
            }
        }
        descend(&mut Vec::new(), Instant::now(), depth, visit);
    }

    /// The distance of a state from the beginning: no move may lead back.
    fn rank(state: CloseState) -> u8 {
        match state {
            CloseState::Open => 0,
            CloseState::CloseSent { is_written: false } => 1,
            CloseState::CloseSent { is_written: true } | CloseState::CloseReceived => 2,
            CloseState::Exchanged { is_half_closed: false } => 3,
            CloseState::Exchanged { is_half_closed: true } => 4,
            CloseState::WriteFailed => 5,
            CloseState::Closed | CloseState::Aborted => 6,
        }
    }

    #[test]
    fn no_sequence_leads_back_and_the_end_is_final() {
        for_every_sequence(5, &mut |steps, close| {
            let last = steps.last().expect("a sequence has a step");
            assert!(rank(last.after) >= rank(last.before), "{last:?}");
            if rank(last.before) == 6 {
                assert_eq!((last.after, last.action), (last.before, CloseAction::Nothing));
            }
            assert_eq!(close.is_over(), rank(last.after) == 6);
            assert!(close.deadline().is_none() || !close.is_over());
        });
    }

    impl fmt::Debug for Step {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Step { before, input, after, action } = self;
            write!(f, "{before:?} + {input:?} = {after:?}, {action:?}")
        }
    }

    #[test]
    fn the_socket_is_shut_down_exactly_once() {
        for_every_sequence(5, &mut |steps, close| {
            let count = steps.iter().filter(|step| step.action == CloseAction::ShutDown).count();
            assert_eq!(count, usize::from(close.is_over()), "{steps:?}");
        });
    }

    #[test]
    fn the_first_frame_is_sent_once_and_by_the_earliest_deadline() {
        for_every_sequence(5, &mut |steps, close| {
            let mut frames = Vec::new();
            let mut deadlines = Vec::new();
            let mut written = 0;
            for step in steps.iter().filter(|step| rank(step.before) < 6) {
                match &step.input {
                    CloseInput::Close { frame, deadline }
                    | CloseInput::Reconnect { frame, deadline }
                    | CloseInput::Fail { frame, deadline, .. } => {
                        frames.push(frame.clone());
                        deadlines.push(*deadline);
                    }
                    CloseInput::Received { close, deadline } => {
                        frames.push(CloseFrame::echo(close));
                        deadlines.push(*deadline);
                    }
                    CloseInput::Written if step.before != step.after => written += 1,
                    _ => {}
                }
            }
            assert_eq!(close.sent(), frames.first());
            assert!(written <= 1, "{steps:?}");
            if !close.is_over() {
                assert_eq!(close.deadline(), deadlines.iter().min().copied());
                // Whoever closes has a deadline, so that a wait for the peer has an end.
                let is_open = matches!(close.state(), CloseState::Open | CloseState::WriteFailed);
                assert!(is_open || close.deadline().is_some());
            }
            if close.queued().is_some() {
                assert!(written == 0 && !close.is_writing_over());
            }
        });
    }

    #[test]
    fn closing_again_wakes_nobody_unless_the_deadline_is_earlier() {
        let now = Instant::now();
        let mut close = Close::new();
        let again = |deadline| CloseInput::Close { frame: CloseFrame::normal(), deadline };
        assert_eq!(close.on(again(now + 2 * MS)), CloseAction::WakeHeartbeat);
        assert_eq!(close.on(again(now + 2 * MS)), CloseAction::Nothing);
        assert_eq!(close.on(again(now + 3 * MS)), CloseAction::Nothing);
        assert_eq!(close.on(again(now + MS)), CloseAction::WakeHeartbeat);
    }

    #[test]
    fn the_peers_code_counts_before_ours_and_neither_is_1006() {
        for_every_sequence(4, &mut |steps, close| {
            let received = steps.iter().find_map(|step| match &step.input {
                CloseInput::Received { close, .. } => Some(close.clone()),
                _ => None,
            });
            assert_eq!(close.has_received(), received.is_some());
            let expected = received
                .or_else(|| close.sent().map(CloseFrame::to_close_reason))
                .unwrap_or_else(CloseReason::abnormal);
            assert_eq!(close.close_reason(), expected);
        });
    }

    #[test]
    fn delivery_is_over_after_an_abort_a_reconnect_or_a_failure_and_the_first_reason_is_kept() {
        for_every_sequence(4, &mut |steps, close| {
            let mut reason = None;
            for step in steps.iter().filter(|step| rank(step.before) < 6) {
                match &step.input {
                    CloseInput::Abort(error)
                    | CloseInput::Fail { error, .. }
                    | CloseInput::WriteFailed { fault: WriteFault::Broken, error } => {
                        reason.get_or_insert(error.to_string());
                    }
                    CloseInput::Reconnect { .. } => {
                        reason.get_or_insert("the program asked for a new connection".to_owned());
                    }
                    _ => {}
                }
            }
            assert_eq!(close.is_delivery_over(), reason.is_some());
            assert_eq!(close.reason().map(ToString::to_string), reason);
        });
    }

    #[test]
    fn a_write_that_failed_leaves_the_peers_last_words_to_the_reader() {
        let now = Instant::now();
        let mut close = Close::new();
        let failed =
            CloseInput::WriteFailed { fault: WriteFault::PeerEnded, error: error("reset") };
        assert_eq!(close.on(failed), CloseAction::Nothing);
        assert!(close.is_writing_over() && !close.is_delivery_over() && !close.is_over());
        close.on(CloseInput::Received { close: CloseReason::new(4001, "bye"), deadline: now });
        assert_eq!(close.state(), CloseState::WriteFailed);
        assert_eq!(close.close_reason(), CloseReason::new(4001, "bye"));
        assert_eq!(close.queued(), None);
    }

    #[test]
    fn what_may_not_be_sent_is_refused() {
        for code in [0, 999, 1002, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert!(CloseFrame::from_program(&CloseReason::new(code, "")).is_err(), "{code}");
        }
        for code in [1000, 1001, 1003, 1007, 1014, 3000, 4999] {
            let frame = CloseFrame::from_program(&CloseReason::new(code, "x")).expect("allowed");
            assert_eq!(frame.payload(), [&code.to_be_bytes()[..], b"x"].concat());
        }
        let longest = "x".repeat(REASON_MAX);
        assert!(CloseFrame::from_program(&CloseReason::new(1000, &*longest)).is_ok());
        assert!(CloseFrame::from_program(&CloseReason::new(1000, longest + "x")).is_err());
        assert!(CloseFrame::new(None).payload().is_empty());
    }

    #[test]
    fn the_queued_frame_is_the_first_until_it_is_written() {
        let deadline = Instant::now();
        let mut close = Close::new();
        assert_eq!(close.queued(), None);
        close.on(CloseInput::Close { frame: CloseFrame::new(4001), deadline });
        assert_eq!(close.queued(), Some(&CloseFrame::new(4001)));
        close.on(CloseInput::Close { frame: CloseFrame::new(4002), deadline });
        assert_eq!(close.queued(), Some(&CloseFrame::new(4001)));
        close.on(CloseInput::Written);
        assert_eq!(close.queued(), None);
    }

    #[test]
    fn the_answer_repeats_the_code_of_the_peer_and_is_empty_where_there_was_none() {
        for (received, answer) in [(4001, Some(4001)), (1000, Some(1000)), (1005, None)] {
            let deadline = Instant::now();
            let mut close = Close::new();
            let received = CloseReason::new(received, "");
            close.on(CloseInput::Received { close: received, deadline });
            assert_eq!(close.queued(), Some(&CloseFrame::new(answer)));
        }
    }

    #[test]
    fn the_first_reset_is_kept_for_the_reader() {
        let mut close = Close::new();
        assert!(close.reset().is_none());
        for context in ["first", "second"] {
            let error = error(context);
            close.on(CloseInput::WriteFailed { fault: WriteFault::PeerEnded, error });
        }
        assert_eq!(close.reset().map(ToString::to_string).as_deref(), Some("first"));
    }

    #[test]
    fn resets_are_told_from_other_failures_of_the_socket() {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, Other, TimedOut, WouldBlock,
        };
        for kind in [BrokenPipe, ConnectionAborted, ConnectionReset] {
            assert_eq!(WriteFault::of(&kind.into()), WriteFault::PeerEnded);
        }
        for kind in [TimedOut, WouldBlock, Other] {
            assert_eq!(WriteFault::of(&kind.into()), WriteFault::Broken);
        }
    }

    #[test]
    fn debug_output_of_a_frame_holds_its_code_and_not_its_reason() {
        let frame = CloseFrame::from_program(&CloseReason::new(4001, "secret")).expect("allowed");
        let text = format!("{frame:?}");
        assert!(text.contains("4001") && !text.contains("secret"), "{text}");
    }
}
