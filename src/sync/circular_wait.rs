//! Waits of one client's threads for those of another, so that a circle of them is noticed.
//!
//! A handler may stop another client and wait for it. Two handlers that stop each other's clients
//! would wait for each other until their timeouts: the second of them does not wait.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Identifies a client among all of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientId(u64);

thread_local! {
    /// The client that the current thread belongs to.
    static CURRENT: Cell<Option<ClientId>> = const { Cell::new(None) };
}

/// The waits of clients' threads: which client's thread waits for which client. Held for moments.
static WAITS: Mutex<Vec<(ClientId, ClientId)>> = Mutex::new(Vec::new());

impl ClientId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ClientId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Marks the current thread as one of this client's.
    pub(crate) fn adopt_current_thread(self) {
        CURRENT.set(Some(self));
    }
}

/// A wait for a client's threads, which ends when this is dropped.
pub(crate) struct Wait(Option<(ClientId, ClientId)>);

impl Wait {
    /// Begins a wait of the current thread. `None` if the awaited client waits for the current
    /// thread's, directly or through others.
    pub(crate) fn begin(awaited: ClientId) -> Option<Wait> {
        let Some(current) = CURRENT.get() else { return Some(Wait(None)) };
        let mut waits = WAITS.lock();
        let mut reached = vec![awaited];
        let mut index = 0;
        while let Some(&client) = reached.get(index) {
            if client == current {
                return None;
            }
            for &(waiter, next) in waits.iter() {
                if waiter == client && !reached.contains(&next) {
                    reached.push(next);
                }
            }
            index += 1;
        }
        waits.push((current, awaited));
        Some(Wait(Some((current, awaited))))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(own) = self.0 else { return };
        let mut waits = WAITS.lock();
        if let Some(place) = waits.iter().position(|wait| *wait == own) {
            waits.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_thread_of(client: ClientId, awaited: ClientId) -> Option<Wait> {
        let wait = std::thread::spawn(move || {
            client.adopt_current_thread();
            Wait::begin(awaited)
        });
        wait.join().expect("it does not panic")
    }

    #[test]
    fn a_wait_that_would_close_a_circle_is_refused() {
        let [one, two, three] = [(); 3].map(|()| ClientId::new());
        let first = on_thread_of(one, two);
        let second = on_thread_of(two, three);
        assert!(first.is_some() && second.is_some());
        assert!(on_thread_of(three, one).is_none());
        assert!(on_thread_of(two, one).is_none());
        assert!(on_thread_of(one, one).is_none());
        // Not the other way round.
        assert!(on_thread_of(one, three).is_some());
        drop(first);
        assert!(on_thread_of(three, one).is_some());
        // Threads of no client wait for whom they like.
        assert!(Wait::begin(one).is_some());
    }
}
