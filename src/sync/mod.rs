//! Locks, channels, atomics, threads and the clock.
//!
//! The rest of the crate takes them from here alone. With `--cfg shuttle` they come from the model
//! instead, in which a scheduler tries out interleavings and time passes only when it is told to.

#[cfg(not(shuttle))]
mod circular_wait;
pub(crate) mod panic;
#[cfg(all(unix, not(shuttle)))]
pub(crate) mod ready_fd;
pub(crate) mod stop_report;
pub(crate) mod threads;
pub(crate) mod wait;
#[cfg(not(shuttle))]
pub(crate) mod wake_pair;
pub(crate) mod wakeups;

#[cfg(not(shuttle))]
pub(crate) use std::{sync::atomic, thread};

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(not(shuttle))]
pub(crate) mod channel {
    pub(crate) use crossbeam_channel::{Receiver, Sender, bounded, never};
}

/// Returns the time of the monotonic clock.
#[cfg(not(shuttle))]
#[inline]
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(shuttle)]
pub(crate) use crate::model::sync::{Condvar, Mutex, MutexGuard, atomic, channel, now, thread};
#[cfg(shuttle)]
pub(crate) use crate::model::wake_pair;
