//! Locks, channels, threads and the clock, in the place of std's, parking_lot's and crossbeam's.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Plain, MutexGuard as PlainGuard, PoisonError};
use std::time::{Duration, Instant};

use super::world::{Fault, block, change, elapsed, is_injected, origin};

pub(crate) use shuttle::sync::atomic;

pub(crate) mod thread {
    pub(crate) use shuttle::thread::{Builder, JoinHandle, ThreadId};
    use shuttle::thread::{Thread, spawn};

    use super::{Fault, is_injected};

    pub(crate) fn current() -> Thread {
        match is_injected(Fault::WrongThreadId) {
            true => spawn(|| ()).thread().clone(),
            false => shuttle::thread::current(),
        }
    }
}

/// Returns the time, which stands still until the clock thread moves it.
pub(crate) fn now() -> Instant {
    origin() + elapsed()
}

/// Locks a value that nobody else uses: every other thread is inside a call to shuttle.
fn plain<T>(value: &Plain<T>) -> PlainGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the place of parking_lot's.
#[derive(Default)]
pub(crate) struct Mutex<T> {
    is_held: AtomicBool,
    value: Plain<T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex { is_held: AtomicBool::new(false), value: Plain::new(value) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.enter(None).expect("without a deadline it waits until the lock is free")
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.enter(Some(origin()))
    }

    pub(crate) fn try_lock_for(&self, timeout: Duration) -> Option<MutexGuard<'_, T>> {
        self.enter(Some(now() + timeout))
    }

    pub(crate) fn try_lock_until(&self, until: Instant) -> Option<MutexGuard<'_, T>> {
        self.enter(Some(until))
    }

    fn enter(&self, until: Option<Instant>) -> Option<MutexGuard<'_, T>> {
        block(until, |_| (!self.is_held.swap(true, Ordering::SeqCst)).then_some(()))?;
        Some(MutexGuard { mutex: self, value: Some(plain(&self.value)) })
    }

    fn leave(&self) {
        self.is_held.store(false, Ordering::SeqCst);
    }
}

pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// `None` while the lock is not held, during a wait.
    value: Option<PlainGuard<'a, T>>,
}

impl<T> MutexGuard<'_, T> {
    /// Unlocks, calls `act` and locks again.
    pub(crate) fn unlocked<R>(guard: &mut Self, act: impl FnOnce() -> R) -> R {
        guard.value = None;
        change(|| guard.mutex.leave());
        let result = act();
        guard.enter_again();
        result
    }

    fn enter_again(&mut self) {
        block(None, |_| (!self.mutex.is_held.swap(true, Ordering::SeqCst)).then_some(()));
        self.value = Some(plain(&self.mutex.value));
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is used while the lock is held")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is used while the lock is held")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.value.take().is_some() {
            change(|| self.mutex.leave());
        }
    }
}

/// In the place of parking_lot's: the longest waiter is woken first, and no wake-up is spurious.
#[derive(Default)]
pub(crate) struct Condvar {
    waiting: Plain<Waiting>,
}

#[derive(Default)]
struct Waiting {
    tickets: VecDeque<u64>,
    next: u64,
}

/// Says whether a wait ended at its deadline.
pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Condvar::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_for_ticket(guard, None);
    }

    pub(crate) fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        until: Instant,
    ) -> WaitTimeoutResult {
        WaitTimeoutResult(self.wait_for_ticket(guard, Some(until)))
    }

    fn wait_for_ticket<T>(&self, guard: &mut MutexGuard<'_, T>, until: Option<Instant>) -> bool {
        guard.value = None;
        let ticket = change(|| {
            guard.mutex.leave();
            let mut waiting = plain(&self.waiting);
            waiting.next += 1;
            let ticket = waiting.next;
            waiting.tickets.push_back(ticket);
            ticket
        });
        let timed_out = block(until, |is_due| {
            let mut waiting = plain(&self.waiting);
            match waiting.tickets.iter().position(|known| *known == ticket) {
                None => Some(false),
                Some(place) if is_due => waiting.tickets.remove(place).map(|_| true),
                Some(_) => None,
            }
        });
        guard.enter_again();
        timed_out.unwrap_or(true)
    }

    pub(crate) fn notify_one(&self) {
        if !is_injected(Fault::LostNotifications) {
            change(|| plain(&self.waiting).tickets.pop_front());
        }
    }

    pub(crate) fn notify_all(&self) {
        if !is_injected(Fault::LostNotifications) {
            change(|| plain(&self.waiting).tickets.clear());
        }
    }
}

/// In the place of crossbeam's, with the operations that the crate uses.
pub(crate) mod channel {
    pub(crate) use crossbeam_channel::{
        RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError,
    };

    use shuttle::rand::Rng;

    use super::*;

    struct Channel<T> {
        queue: VecDeque<T>,
        capacity: usize,
        senders: usize,
        receivers: usize,
    }

    pub(crate) struct Sender<T> {
        channel: Arc<Plain<Channel<T>>>,
    }

    pub struct Receiver<T> {
        /// `None`: nothing is ever received.
        channel: Option<Arc<Plain<Channel<T>>>>,
    }

    pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let channel = Channel { queue: VecDeque::new(), capacity, senders: 1, receivers: 1 };
        let channel = Arc::new(Plain::new(channel));
        (Sender { channel: Arc::clone(&channel) }, Receiver { channel: Some(channel) })
    }

    pub(crate) fn never<T>() -> Receiver<T> {
        Receiver { channel: None }
    }

    impl<T> Sender<T> {
        pub(crate) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
            if is_injected(Fault::LostWakeups) {
                return Ok(());
            }
            change(|| {
                let mut channel = plain(&self.channel);
                if channel.receivers == 0 {
                    return Err(TrySendError::Disconnected(item));
                }
                if channel.queue.len() >= channel.capacity {
                    return Err(TrySendError::Full(item));
                }
                channel.queue.push_back(item);
                Ok(())
            })
        }

        pub(crate) fn send(&self, item: T) -> Result<(), SendError<T>> {
            let mut item = Some(item);
            let sent = block(None, |_| {
                let mut channel = plain(&self.channel);
                if channel.receivers == 0 {
                    return Some(false);
                }
                (channel.queue.len() < channel.capacity).then(|| {
                    channel.queue.extend(item.take());
                    true
                })
            });
            match (sent, item) {
                (Some(false), Some(item)) => Err(SendError(item)),
                _ => Ok(()),
            }
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            plain(&self.channel).senders += 1;
            Sender { channel: Arc::clone(&self.channel) }
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            if is_injected(Fault::LostDisconnects) {
                return;
            }
            change(|| plain(&self.channel).senders -= 1);
        }
    }

    impl<T> Receiver<T> {
        /// Receives without waiting: an item, the error that the senders have gone, or nothing
        /// yet.
        fn poll(&self) -> Option<Result<T, RecvError>> {
            let mut channel = plain(self.channel.as_ref()?);
            match channel.queue.pop_front() {
                Some(item) => Some(Ok(item)),
                None => (channel.senders == 0).then_some(Err(RecvError)),
            }
        }

        fn is_ready(&self) -> bool {
            self.channel.as_ref().is_some_and(|channel| {
                let channel = plain(channel);
                channel.senders == 0 || !channel.queue.is_empty()
            })
        }

        /// Waits for an item.
        pub fn recv(&self) -> Result<T, RecvError> {
            block(None, |_| self.poll()).unwrap_or(Err(RecvError))
        }

        /// Receives an item that is there.
        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            match change(|| self.poll()) {
                Some(received) => received.map_err(|RecvError| TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        pub(crate) fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
            self.recv_deadline(now() + timeout)
        }

        pub(crate) fn recv_deadline(&self, until: Instant) -> Result<T, RecvTimeoutError> {
            match block(Some(until), |_| self.poll()) {
                Some(Ok(item)) => Ok(item),
                Some(Err(RecvError)) => Err(RecvTimeoutError::Disconnected),
                None => Err(RecvTimeoutError::Timeout),
            }
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            if let Some(channel) = &self.channel {
                plain(channel).receivers += 1;
            }
            Receiver { channel: self.channel.clone() }
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            if let Some(channel) = &self.channel {
                change(|| plain(channel).receivers -= 1);
            }
        }
    }

    /// The operation that [`select`] chose.
    pub(crate) enum Selected<A, B> {
        First(Result<A, RecvError>),
        Second(Result<B, RecvError>),
        TimedOut,
    }

    /// In the place of `crossbeam_channel::select!` over two receivers and a time. Where several
    /// are ready, the scheduler chooses.
    pub(crate) fn select<A, B>(
        first: &Receiver<A>,
        second: &Receiver<B>,
        until: Option<Instant>,
    ) -> Selected<A, B> {
        let selected = block(until, |is_due| {
            let ready = [first.is_ready(), second.is_ready(), is_due];
            let ready: Vec<usize> = (0..ready.len()).filter(|index| ready[*index]).collect();
            let choice = match ready.as_slice() {
                [] => return None,
                [one] => *one,
                several => several[shuttle::rand::thread_rng().gen_range(0..several.len())],
            };
            Some(match choice {
                0 => Selected::First(first.poll()?),
                1 => Selected::Second(second.poll()?),
                _ => Selected::TimedOut,
            })
        });
        selected.unwrap_or(Selected::TimedOut)
    }
}
