//! The wake-ups of a client's handler: a time, a call from any thread, or both.
//!
//! They are kept here until the reader thread takes them, so that none is lost while it is
//! elsewhere. A reader that sleeps is woken by signals: a pair of sockets beside the socket of the
//! connection, and a channel between dials.

use std::sync::OnceLock;
use std::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::{Receiver, Sender, bounded, never};
use crate::sync::thread::{self, ThreadId};
use crate::sync::wake_pair::SignalPair;
use crate::sync::{self, Mutex};

/// The wake-ups of one client. Shared by its threads and handles.
pub(crate) struct Wakeups {
    /// Held for moments, and never while another lock is taken.
    pending: Mutex<Pending>,
    /// Mirrors `pending` for the reader, which looks once per `recv`.
    is_pending: AtomicBool,
    /// `None`: a sleeping reader hears of nothing, so that only its own thread may ask.
    signals: Option<Signals>,
    /// The program may ask from any thread too, not the layer above the client alone.
    hears_program: bool,
    /// Received from between dials.
    signaled: Receiver<()>,
    /// Set when the reader thread begins.
    reader: OnceLock<ThreadId>,
}

#[derive(Default)]
struct Pending {
    at: Option<Instant>,
    is_called: bool,
    /// A layer above the client has called, and the handler is not meant.
    is_layer_called: bool,
}

/// The ways to wake a reader that sleeps.
struct Signals {
    pair: SignalPair,
    channel: Sender<()>,
}

/// A wake-up that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// The time that was set for it, if it was a time that came.
    pub(crate) at: Option<Instant>,
    /// It is meant for the handler.
    pub(crate) is_for_handler: bool,
}

impl Wakeups {
    /// With signals, any thread may ask for a wake-up: of the program's if it is heard, and
    /// otherwise of a layer above the client.
    ///
    /// # Errors
    /// `Io` when there are no descriptors.
    pub(crate) fn new(has_signals: bool, hears_program: bool) -> Result<Self, Error> {
        let (signals, signaled) = match has_signals {
            true => {
                let (channel, signaled) = bounded(1);
                let pair = SignalPair::new().map_err(|error| {
                    Error::caused(ErrorKind::Io, "opening a descriptor for `wakeups`", error)
                })?;
                (Some(Signals { pair, channel }), signaled)
            }
            false => (None, never()),
        };
        Ok(Wakeups {
            pending: Mutex::default(),
            is_pending: AtomicBool::new(false),
            signals,
            hears_program: has_signals && hears_program,
            signaled,
            reader: OnceLock::new(),
        })
    }

    /// The current thread is the reader.
    pub(crate) fn adopt_reader(&self) {
        let _ = self.reader.set(thread::current().id());
    }

    // ---- Asking ----

    /// Asks for a wake-up now. Calls are remembered as one until it is taken.
    ///
    /// # Errors
    /// `Config` on a thread that the reader does not hear.
    pub(crate) fn wake(&self) -> Result<(), Error> {
        self.ask(|pending| !std::mem::replace(&mut pending.is_called, true))
    }

    /// Asks for a wake-up at a time, in the place of the one that was asked for before.
    ///
    /// # Errors
    /// As [`wake`](Wakeups::wake).
    pub(crate) fn wake_at(&self, at: Option<Instant>) -> Result<(), Error> {
        self.ask(|pending| std::mem::replace(&mut pending.at, at) != at)
    }

    /// As [`wake_at`](Wakeups::wake_at), on the reader thread, which looks before it sleeps.
    pub(crate) fn wake_reader_at(&self, at: Option<Instant>) {
        self.change(|pending| pending.at = at);
    }

    /// Signals only what is news: whoever brought the rest has signaled it, or is about to.
    fn ask(&self, change: impl FnOnce(&mut Pending) -> bool) -> Result<(), Error> {
        let is_heard = self.hears_program || self.reader.get() == Some(&thread::current().id());
        if !is_heard {
            let context = "waking the handler from another thread: build the client with \
                           `wakeups`, and with a handler";
            return Err(Error::config(context));
        }
        self.change_and_signal(change);
        Ok(())
    }

    /// Asks for a wake-up of the reader for a layer above the client.
    pub(crate) fn wake_layer(&self) {
        self.change_and_signal(|pending| !std::mem::replace(&mut pending.is_layer_called, true));
    }

    fn change_and_signal(&self, change: impl FnOnce(&mut Pending) -> bool) {
        let is_news = self.change(change);
        if let Some(signals) = self.signals.as_ref().filter(|_| is_news) {
            signals.pair.signal();
            // A full channel means that a signal is on its way already.
            let _ = signals.channel.try_send(());
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Pending) -> T) -> T {
        let mut pending = self.pending.lock();
        let changed = change(&mut pending);
        let is_pending = pending.is_called || pending.is_layer_called || pending.at.is_some();
        self.is_pending.store(is_pending, Ordering::Release);
        changed
    }

    // ---- The reader ----

    /// Returns `true` if the reader must not sleep without a look at what is pending.
    #[inline]
    pub(crate) fn are_in_use(&self) -> bool {
        self.signals.is_some() || self.is_pending.load(Ordering::Relaxed)
    }

    /// Returns `true` if the handler is to be woken.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.is_pending.load(Ordering::Relaxed) && {
            let now = sync::now();
            self.next(now).is_some_and(|at| at <= now)
        }
    }

    /// Returns when the handler is to be woken next, `now` if it has been called. A reader that
    /// sleeps until then, and hears the signals, misses nothing: whatever comes after this look is
    /// signaled.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let pending = self.pending.lock();
        if pending.is_called || pending.is_layer_called { Some(now) } else { pending.at }
    }

    /// Takes what is due. Whatever is asked for from here on is another wake-up.
    pub(crate) fn take_due(&self) -> Option<Due> {
        if !self.is_pending.load(Ordering::Relaxed) {
            return None;
        }
        let now = sync::now();
        self.change(|pending| {
            let at = pending.at.take_if(|at| *at <= now);
            let is_layer_called = std::mem::take(&mut pending.is_layer_called);
            let is_for_handler = std::mem::take(&mut pending.is_called) || at.is_some();
            (is_for_handler || is_layer_called).then_some(Due { at, is_for_handler })
        })
    }

    /// Returns the pair that wakes a sleep beside a socket.
    pub(crate) fn pair(&self) -> Option<&SignalPair> {
        self.signals.as_ref().map(|signals| &signals.pair)
    }

    /// Returns the channel that wakes a wait between dials.
    pub(crate) fn signaled(&self) -> &Receiver<()> {
        &self.signaled
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn calls_are_remembered_as_one_and_a_time_until_it_comes() {
        let wakeups = Wakeups::new(true, true).expect("descriptors are there");
        assert_eq!((wakeups.is_due(), wakeups.take_due()), (false, None));
        for _ in 0..3 {
            wakeups.wake().expect("it has signals");
        }
        assert!(wakeups.is_due());
        assert_eq!(wakeups.take_due(), Some(Due { at: None, is_for_handler: true }));
        assert_eq!(wakeups.take_due(), None);

        let now = Instant::now();
        let later = now + Duration::from_secs(3600);
        wakeups.wake_at(Some(later)).expect("it has signals");
        assert_eq!((wakeups.is_due(), wakeups.take_due()), (false, None));
        assert_eq!(wakeups.next(now), Some(later));
        // A call leaves the time alone.
        wakeups.wake().expect("it has signals");
        assert_eq!(wakeups.next(now), Some(now));
        assert_eq!(wakeups.take_due(), Some(Due { at: None, is_for_handler: true }));
        // The last time counts, earlier or later.
        wakeups.wake_at(Some(now)).expect("it has signals");
        assert_eq!(wakeups.take_due(), Some(Due { at: Some(now), is_for_handler: true }));
        assert_eq!(wakeups.next(now), None);
        wakeups.wake_at(Some(now)).expect("it has signals");
        wakeups.wake_at(None).expect("it has signals");
        assert_eq!((wakeups.is_due(), wakeups.take_due()), (false, None));
        // One wake-up for both.
        wakeups.wake_at(Some(now)).expect("it has signals");
        wakeups.wake().expect("it has signals");
        assert_eq!(wakeups.take_due(), Some(Due { at: Some(now), is_for_handler: true }));
        assert_eq!(wakeups.take_due(), None);
    }

    #[test]
    fn without_signals_only_the_reader_may_ask() {
        let wakeups = Wakeups::new(false, false).expect("it needs none");
        let refused = |result: Result<(), Error>| {
            assert_eq!(result.expect_err("nobody would hear it").kind(), ErrorKind::Config);
        };
        refused(wakeups.wake());
        assert!(!wakeups.are_in_use());
        wakeups.adopt_reader();
        wakeups.wake().expect("the reader is awake");
        assert!(wakeups.are_in_use() && wakeups.is_due());
        std::thread::scope(|scope| {
            scope.spawn(|| refused(wakeups.wake_at(Some(Instant::now()))));
        });
        assert_eq!(wakeups.take_due(), Some(Due { at: None, is_for_handler: true }));
        assert!(!wakeups.are_in_use());
    }
}
