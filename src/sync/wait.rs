//! Waiting for several things at once.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel::Receiver;

/// Seen by every thread of a client: whether it has to end.
#[derive(Clone)]
pub(crate) struct Shutdown {
    pub(super) gone: Receiver<Infallible>,
    /// Set before the channel disconnects. What the reader looks at once per message, where a
    /// channel would be too slow.
    pub(super) requested: Arc<AtomicBool>,
}

impl Shutdown {
    #[inline]
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}

/// Why a [`wait`] ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Woken<T> {
    Shutdown,
    /// Something came through the bell.
    Received(T),
    /// Whoever could have rung the bell is gone.
    Disconnected,
    /// The time has come.
    TimedOut,
}

/// Waits for the shutdown signal, the bell or a time, whichever is first; shutdown goes before the
/// time when both are there.
///
/// Every wait of a thread that has to be woken goes through here.
pub(crate) fn wait<T>(
    shutdown: &Shutdown,
    wakeup: &Receiver<T>,
    until: Option<Instant>,
) -> Woken<T> {
    let woken = wait_over(&shutdown.gone, wakeup, until);
    // select! picks at random among those that are ready, and what came through the bell must not
    // be lost.
    if shutdown.is_requested() && !matches!(woken, Woken::Received(_)) {
        Woken::Shutdown
    } else {
        woken
    }
}

/// As [`wait`], with any channel on which nothing is ever sent in the place of the shutdown signal.
#[cfg(not(shuttle))]
pub(crate) fn wait_over<T>(
    over: &Receiver<Infallible>,
    wakeup: &Receiver<T>,
    until: Option<Instant>,
) -> Woken<T> {
    use crossbeam_channel::{at, never, select};
    let due = until.map_or_else(never, at);
    select! {
        recv(over) -> _ => Woken::Shutdown,
        recv(wakeup) -> rung => rung.map_or(Woken::Disconnected, Woken::Received),
        recv(due) -> _ => Woken::TimedOut,
    }
}

#[cfg(shuttle)]
pub(crate) use crate::model::sync::wait_over;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::sync::threads::{ThreadOptions, Threads};
    use crossbeam_channel::unbounded;

    #[test]
    fn a_wait_tells_its_four_ends_apart() {
        let threads = Threads::new(ThreadOptions::default());
        let shutdown = threads.shutdown_signal();
        let (wake, wakeup) = unbounded();
        assert_eq!(wait(&shutdown, &wakeup, Some(Instant::now())), Woken::TimedOut);
        wake.send(7).expect("the wakeup is there");
        assert_eq!(wait(&shutdown, &wakeup, None), Woken::Received(7));
        drop(wake);
        assert_eq!(wait(&shutdown, &wakeup, None), Woken::Disconnected);
        threads.shutdown();
        assert_eq!(wait(&shutdown, &wakeup, None), Woken::Shutdown);
    }
}
