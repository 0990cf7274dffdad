//! The shutdown signal, and waiting for it together with a wake-up and a time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::{Receiver, Sender, bounded};

/// The receiving side of the shutdown signal. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shutdown {
    /// Nothing is ever sent on it. It disconnects, for good, when the signal is given.
    gone: Receiver<Infallible>,
    /// Set before the channel disconnects. The reader looks at it once per message, for which a
    /// channel would be too slow.
    requested: Arc<AtomicBool>,
}

/// Gives the shutdown signal by being dropped.
pub(crate) struct ShutdownTrigger {
    requested: Arc<AtomicBool>,
    _alive: Sender<Infallible>,
}

impl Shutdown {
    pub(crate) fn new() -> (ShutdownTrigger, Shutdown) {
        let (alive, gone) = bounded(0);
        let requested = Arc::new(AtomicBool::new(false));
        let trigger = ShutdownTrigger { requested: Arc::clone(&requested), _alive: alive };
        (trigger, Shutdown { gone, requested })
    }

    #[inline]
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}

impl Drop for ShutdownTrigger {
    fn drop(&mut self) {
        self.requested.store(true, Ordering::SeqCst);
    }
}

/// The reason why a [`wait`] ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Woken<T> {
    Shutdown,
    /// The wake-up channel delivered this.
    Received(T),
    /// All senders of the wake-up channel have gone.
    Disconnected,
    TimedOut,
}

/// Waits for the shutdown signal, a wake-up or a time, whichever comes first. When several are
/// there, a wake-up that has been received goes first, and then the shutdown.
///
/// Every wait of a thread that a stop has to end goes through this function.
pub(crate) fn wait<T>(
    shutdown: &Shutdown,
    wakeup: &Receiver<T>,
    until: Option<Instant>,
) -> Woken<T> {
    let woken = wait_over(&shutdown.gone, wakeup, until);
    // `select!` picks at random among those that are ready, and what it has received must not be
    // lost.
    if shutdown.is_requested() && !matches!(woken, Woken::Received(_)) {
        Woken::Shutdown
    } else {
        woken
    }
}

/// Waits like [`wait`], with any channel on which nothing is ever sent in the place of the shutdown
/// signal.
#[cfg(not(shuttle))]
pub(crate) fn wait_over<T>(
    over: &Receiver<Infallible>,
    wakeup: &Receiver<T>,
    until: Option<Instant>,
) -> Woken<T> {
    use crossbeam_channel::{at, never, select};
    let timeout = until.map_or_else(never, at);
    select! {
        recv(over) -> _ => Woken::Shutdown,
        recv(wakeup) -> received => received.map_or(Woken::Disconnected, Woken::Received),
        recv(timeout) -> _ => Woken::TimedOut,
    }
}

#[cfg(shuttle)]
pub(crate) fn wait_over<T>(
    over: &Receiver<Infallible>,
    wakeup: &Receiver<T>,
    until: Option<Instant>,
) -> Woken<T> {
    use crate::sync::channel::{Selected, select};
    match select(over, wakeup, until) {
        Selected::First(_) => Woken::Shutdown,
        Selected::Second(received) => received.map_or(Woken::Disconnected, Woken::Received),
        Selected::TimedOut => Woken::TimedOut,
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    #[test]
    fn a_wait_tells_its_four_ends_apart() {
        let (trigger, shutdown) = Shutdown::new();
        let (wake, wakeup) = unbounded();
        assert_eq!(wait(&shutdown, &wakeup, Some(Instant::now())), Woken::TimedOut);
        wake.send(7).expect("the receiver is there");
        assert_eq!(wait(&shutdown, &wakeup, None), Woken::Received(7));
        drop(wake);
        assert_eq!(wait(&shutdown, &wakeup, None), Woken::Disconnected);
        assert!(!shutdown.is_requested());
        drop(trigger);
        assert_eq!(wait(&shutdown, &wakeup, None), Woken::Shutdown);
        assert!(shutdown.is_requested());
    }

    #[test]
    fn a_stop_goes_before_a_time_and_nothing_that_was_received_is_lost() {
        let (trigger, shutdown) = Shutdown::new();
        drop(trigger);
        // `select!` chooses at random.
        for _ in 0..100 {
            let (wake, wakeup) = unbounded();
            wake.send(7).expect("the receiver is here");
            match wait(&shutdown, &wakeup, Some(Instant::now())) {
                Woken::Received(7) => assert!(wakeup.is_empty()),
                Woken::Shutdown => assert_eq!(wakeup.try_recv(), Ok(7)),
                other => panic!("{other:?}"),
            }
        }
    }
}
