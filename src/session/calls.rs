//! The calls that await their replies. Pure: `now` is an argument, and nothing of the program's
//! runs here.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::event::{Message, MessageRef, Receipt};
use crate::session::handle::CallError;
use crate::sync::channel::Sender;

/// The calls under way, by id.
///
/// Whatever is taken out of the table has its fate from whoever took it: each call has one.
#[derive(Default)]
pub(crate) struct Calls {
    calls: HashMap<u64, Call>,
    /// The deadlines of the calls that no thread waits for.
    deadlines: BTreeSet<(Instant, u64)>,
    /// The time at which the heartbeat thread looks next.
    looks_at: Option<Instant>,
    /// The epoch of the connection that takes no more calls, because it is about to be closed.
    drained: Option<u64>,
}

/// A call that has been written down.
pub(crate) struct Call {
    pub(crate) epoch: u64,
    pub(crate) began: Instant,
    pub(crate) until: Instant,
    pub(crate) then: ReplyTo,
    phase: Phase,
}

/// The way to tell the fate of a call.
pub(crate) enum ReplyTo {
    /// A thread waits for it.
    Caller(Sender<Result<Message, Error>>),
    /// A closure gets it.
    Closure(Box<TellReply>),
}

type TellReply = dyn FnOnce(Result<ReplyRef<'_>, CallError>) + Send;

/// The progress of the message of a call.
enum Phase {
    /// It is being sent: the caller decides the fate if the connection ends now.
    Sending,
    Sent(Receipt),
    /// The connection ended while it was being sent.
    Ended(Error),
}

/// The reply to a call, borrowed from the read buffer.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReplyRef<'a> {
    /// The message.
    pub message: MessageRef<'a>,
    /// The time from the start of the call to the `recv` that brought the reply.
    pub took: Duration,
}

/// The result of [`Calls::sent`].
pub(crate) enum SentCall {
    /// It awaits its reply, or has it.
    Waits,
    /// It awaits its reply, and the heartbeat thread has to look at its deadline.
    WakeHeartbeat,
    /// The connection has ended meanwhile: the caller tells the fate.
    Ended(Call, Error),
}

impl Calls {
    /// Writes a call down, before its message leaves.
    ///
    /// # Errors
    /// The connection is about to be closed: its message must not leave.
    pub(crate) fn insert(
        &mut self,
        id: u64,
        epoch: u64,
        began: Instant,
        until: Instant,
        then: ReplyTo,
    ) -> Result<(), ReplyTo> {
        if self.drained == Some(epoch) {
            return Err(then);
        }
        self.calls.insert(id, Call { epoch, began, until, then, phase: Phase::Sending });
        Ok(())
    }

    /// Ends the drain of the connection of `epoch` if no call is under way on it, or time is up.
    /// Returns `true` then: no call leaves by it any more.
    pub(crate) fn end_drain(&mut self, epoch: u64, is_time_up: bool) -> bool {
        let is_over = is_time_up || !self.calls.values().any(|call| call.epoch == epoch);
        if is_over {
            self.drained = Some(epoch);
        }
        is_over
    }

    /// The message has left.
    pub(crate) fn sent(&mut self, id: u64, receipt: Receipt) -> SentCall {
        let Some(mut call) = self.calls.remove(&id) else { return SentCall::Waits };
        if let Phase::Ended(error) = call.phase {
            call.phase = Phase::Sent(receipt);
            return SentCall::Ended(call, error);
        }
        call.phase = Phase::Sent(receipt);
        let mut result = SentCall::Waits;
        if let ReplyTo::Closure(_) = call.then {
            self.deadlines.insert((call.until, id));
            if self.looks_at.is_none_or(|at| call.until < at) {
                self.looks_at = Some(call.until);
                result = SentCall::WakeHeartbeat;
            }
        }
        self.calls.insert(id, call);
        result
    }

    /// Takes a call out: its message did not leave, or its caller no longer waits.
    pub(crate) fn take(&mut self, id: u64) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        self.deadlines.remove(&(call.until, id));
        Some(call)
    }

    /// Takes out the calls whose time is up and that no thread waits for.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Call> {
        let mut expired = Vec::new();
        while let Some(&(_, id)) = self.deadlines.first().filter(|(until, _)| *until <= now) {
            expired.extend(self.take(id));
        }
        self.looks_at = self.deadlines.first().map(|(until, _)| *until);
        expired
    }

    /// Returns when the next call expires that no thread waits for.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.looks_at
    }

    /// The connection has ended: takes out its calls, except those that are being sent.
    pub(crate) fn ended(&mut self, why: &Error) -> Vec<Call> {
        let (mut ended, mut sending) = (Vec::new(), HashMap::new());
        for (id, mut call) in self.calls.drain() {
            match call.phase {
                Phase::Sent(_) => {
                    ended.push(call);
                    continue;
                }
                Phase::Sending => call.phase = Phase::Ended(why.clone()),
                // The first reason is the one.
                Phase::Ended(_) => {}
            }
            sending.insert(id, call);
        }
        self.calls = sending;
        self.deadlines.clear();
        self.looks_at = None;
        ended
    }
}

impl Call {
    pub(crate) fn receipt(&self) -> Option<Receipt> {
        match self.phase {
            Phase::Sent(receipt) => Some(receipt),
            _ => None,
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::sync::channel::bounded;

    const SECOND: Duration = Duration::from_secs(1);

    /// An event in the life of a call, which its number names.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Input {
        /// It is written down. Its time is up when as many seconds have passed as its number says.
        Insert(usize),
        /// Its message has left.
        Sent(usize),
        /// Its reply has come.
        Reply(usize),
        /// Its caller gives up, or its message has not left.
        Take(usize),
        /// The heartbeat thread looks after so many seconds.
        Expire(u32),
        Ended,
    }

    /// A call, as a program sees it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Progress {
        New,
        Sending,
        /// The connection has ended while it was being sent.
        Ended,
        Waiting,
        Over,
    }

    /// The table, what it should hold, and when the heartbeat thread looks at it.
    struct Run {
        calls: Calls,
        start: Instant,
        progress: Vec<Progress>,
        is_closure: Vec<bool>,
        fates: Vec<usize>,
        heartbeat_looks_at: Option<Instant>,
    }

    impl Run {
        fn new(is_closure: &[bool]) -> Self {
            Run {
                calls: Calls::default(),
                start: Instant::now(),
                progress: vec![Progress::New; is_closure.len()],
                is_closure: is_closure.to_vec(),
                fates: vec![0; is_closure.len()],
                heartbeat_looks_at: None,
            }
        }

        fn until(&self, call: usize) -> Instant {
            self.start + SECOND * (1 + call as u32)
        }

        /// Ends a call, and returns its number.
        fn fate(&mut self, call: &Call) -> usize {
            let number = (0..self.progress.len()).find(|number| self.until(*number) == call.until);
            let number = number.expect("it is one of these");
            self.fates[number] += 1;
            self.progress[number] = Progress::Over;
            number
        }

        /// Returns `false` if this cannot happen, or changes nothing.
        fn on(&mut self, input: Input) -> bool {
            let progress = self.progress.clone();
            let looks_at = (self.calls.next_due(), self.heartbeat_looks_at);
            match input {
                Input::Insert(call) if progress[call] == Progress::New => {
                    let then = match self.is_closure[call] {
                        true => ReplyTo::Closure(Box::new(|_| {})),
                        false => ReplyTo::Caller(bounded(1).0),
                    };
                    let until = self.until(call);
                    let inserted = self.calls.insert(call as u64, 7, self.start, until, then);
                    assert!(inserted.is_ok());
                    self.progress[call] = Progress::Sending;
                }
                Input::Sent(call) if progress[call] != Progress::New => {
                    let receipt = Receipt { epoch: 7, sequence: call as u64 };
                    match self.calls.sent(call as u64, receipt) {
                        SentCall::Ended(ended, _) => {
                            assert_eq!(ended.receipt(), Some(receipt));
                            assert_eq!(
                                (progress[call], self.fate(&ended)),
                                (Progress::Ended, call)
                            );
                        }
                        sent => {
                            assert_ne!(
                                progress[call],
                                Progress::Ended,
                                "the caller alone tells it"
                            );
                            if progress[call] == Progress::Sending {
                                self.progress[call] = Progress::Waiting;
                            }
                            if matches!(sent, SentCall::WakeHeartbeat) {
                                assert!(self.is_closure[call]);
                                self.heartbeat_looks_at = self.calls.next_due();
                            }
                        }
                    }
                }
                Input::Reply(call) | Input::Take(call) => {
                    let taken = self.calls.take(call as u64);
                    let is_there = !matches!(progress[call], Progress::New | Progress::Over);
                    assert_eq!(taken.is_some(), is_there);
                    if let Some(taken) = taken {
                        let is_sent = progress[call] == Progress::Waiting;
                        assert_eq!((taken.receipt().is_some(), taken.epoch), (is_sent, 7));
                        assert_eq!(self.fate(&taken), call);
                    }
                }
                Input::Expire(seconds) => {
                    let now = self.start + SECOND * seconds;
                    let expected: Vec<usize> = (0..progress.len())
                        .filter(|&call| {
                            progress[call] == Progress::Waiting && self.is_closure[call]
                        })
                        .filter(|&call| self.until(call) <= now)
                        .collect();
                    let expired = self.calls.expired(now);
                    assert!(expired.iter().all(|call| call.receipt().is_some()));
                    let expired: Vec<usize> = expired.iter().map(|call| self.fate(call)).collect();
                    assert_eq!(expired, expected);
                    self.heartbeat_looks_at = self.calls.next_due();
                }
                Input::Ended => {
                    let waiting = (0..progress.len())
                        .filter(|&call| progress[call] == Progress::Waiting)
                        .collect();
                    let ended = self.calls.ended(&Error::stopped());
                    assert_eq!(self.calls.next_due(), None, "its calls are over");
                    let mut ended: Vec<usize> = ended.iter().map(|call| self.fate(call)).collect();
                    ended.sort_unstable();
                    assert_eq!(ended, Vec::<usize>::from_iter::<Vec<usize>>(waiting));
                    for one in self.progress.iter_mut().filter(|one| **one == Progress::Sending) {
                        *one = Progress::Ended;
                    }
                }
                Input::Insert(_) | Input::Sent(_) => return false,
            }
            self.check();
            progress != self.progress
                || looks_at != (self.calls.next_due(), self.heartbeat_looks_at)
        }

        fn check(&self) {
            let Calls { calls, deadlines, looks_at, drained } = &self.calls;
            for number in 0..self.progress.len() {
                let (id, one) = (number as u64, self.progress[number]);
                assert_eq!(self.fates[number], usize::from(one == Progress::Over));
                let is_there = !matches!(one, Progress::New | Progress::Over);
                assert_eq!(calls.contains_key(&id), is_there);
                let has_deadline = self.is_closure[number] && one == Progress::Waiting;
                assert_eq!(deadlines.contains(&(self.until(number), id)), has_deadline);
            }
            assert!(drained.is_none() && calls.values().all(|call| call.epoch == 7));
            assert!(deadlines.len() <= calls.len());
            if let Some((first, _)) = deadlines.first() {
                assert!(looks_at.is_some_and(|at| at <= *first));
                assert!(self.heartbeat_looks_at.is_some_and(|at| at <= *first));
            }
        }

        /// Everybody does what is left to do.
        fn finish(mut self) {
            for call in 0..self.progress.len() {
                self.on(Input::Insert(call));
                if matches!(self.progress[call], Progress::Sending | Progress::Ended) {
                    self.on(Input::Sent(call));
                }
                if !self.is_closure[call] {
                    self.on(Input::Take(call));
                }
            }
            self.on(Input::Expire(99));
            assert!(self.progress.iter().all(|one| *one == Progress::Over));
            assert_eq!(self.calls.next_due(), None);
            assert!(self.calls.calls.is_empty() && self.calls.deadlines.is_empty());
        }
    }

    /// Tries every sequence of inputs of which each changes something, up to `depth`. Returns their
    /// number.
    fn try_all(is_closure: &[bool], depth: usize) -> usize {
        fn descend(
            inputs: &[Input],
            is_closure: &[bool],
            so_far: &mut Vec<Input>,
            depth: usize,
        ) -> usize {
            let mut run = Run::new(is_closure);
            let is_new = so_far.iter().all(|input| run.on(*input));
            if !is_new {
                return 0;
            }
            run.finish();
            if depth == 0 {
                return 1;
            }
            let mut count = 1;
            for input in inputs {
                so_far.push(*input);
                count += descend(inputs, is_closure, so_far, depth - 1);
                so_far.pop();
            }
            count
        }
        let mut inputs = vec![Input::Ended, Input::Expire(0)];
        for call in 0..is_closure.len() {
            let of_call = [Input::Insert(call), Input::Sent(call), Input::Reply(call)];
            inputs.extend(of_call);
            inputs.extend([Input::Take(call), Input::Expire(1 + call as u32)]);
        }
        descend(&inputs, is_closure, &mut Vec::new(), depth)
    }

    #[test]
    fn one_call_has_one_fate_in_every_order() {
        for is_closure in [false, true] {
            assert!(try_all(&[is_closure], 9) > 10);
        }
    }

    #[test]
    fn each_of_two_calls_has_one_fate_in_every_order() {
        for is_closure in [[false, false], [true, false], [false, true], [true, true]] {
            assert!(try_all(&is_closure, 8) > 100);
        }
    }

    #[test]
    fn the_heartbeat_thread_is_woken_for_an_earlier_deadline_alone() {
        let mut run = Run::new(&[true, true, true]);
        assert!((0..3).all(|call| run.on(Input::Insert(call))));
        let mut sent = |call: u64| run.calls.sent(call, Receipt { epoch: 7, sequence: call });
        assert!(matches!(sent(1), SentCall::WakeHeartbeat));
        assert!(matches!(sent(2), SentCall::Waits));
        assert!(matches!(sent(0), SentCall::WakeHeartbeat));
        // A call that is over leaves the time at which the thread looks.
        assert!(run.calls.take(0).is_some());
        assert_eq!(run.calls.next_due(), Some(run.until(0)));
        assert!(run.calls.expired(run.until(0)).is_empty());
        assert_eq!(run.calls.next_due(), Some(run.until(1)));
    }

    #[test]
    fn a_drain_ends_without_calls_or_when_time_is_up_and_no_call_leaves_after_it() {
        for is_time_up in [false, true] {
            let mut run = Run::new(&[false, true]);
            let (start, until) = (run.start, run.until(1));
            let insert = |calls: &mut Calls, id, epoch| {
                calls.insert(id, epoch, start, until, ReplyTo::Closure(Box::new(|_| {}))).is_ok()
            };
            run.on(Input::Insert(0));
            assert!(!run.calls.end_drain(7, false));
            assert!(insert(&mut run.calls, 1, 7), "one is under way: another may go");
            if !is_time_up {
                assert!(run.calls.take(0).is_some() && run.calls.take(1).is_some());
            }
            assert!(run.calls.end_drain(7, is_time_up));
            assert!(!insert(&mut run.calls, 2, 7));
            assert!(insert(&mut run.calls, 3, 8), "the next connection takes calls");
        }
    }

    #[test]
    fn the_first_reason_for_the_end_of_a_call_is_the_one() {
        let mut run = Run::new(&[false]);
        run.on(Input::Insert(0));
        assert!(run.calls.ended(&Error::config("the first")).is_empty());
        assert!(run.calls.ended(&Error::stopped()).is_empty());
        let SentCall::Ended(_, why) = run.calls.sent(0, Receipt { epoch: 7, sequence: 1 }) else {
            panic!("it has ended");
        };
        assert_eq!(why.to_string(), Error::config("the first").to_string());
    }
}
