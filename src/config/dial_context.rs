//! The argument of closures that are called before a dial.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync;

/// The dial that comes next: an argument of the endpoint closure
/// ([`builder_from_fn`](crate::Client::builder_from_fn)) and of
/// [`before_reconnect`](crate::Builder::before_reconnect).
#[derive(Clone, Debug)]
pub struct DialContext {
    attempt: u32,
    deadline: Instant,
    is_stopping: IsStopping,
}

#[derive(Clone)]
struct IsStopping(Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for IsStopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0)())
    }
}

impl DialContext {
    pub(crate) fn new(
        attempt: u32,
        deadline: Instant,
        is_stopping: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        DialContext { attempt, deadline, is_stopping: IsStopping(is_stopping) }
    }

    /// Returns the consecutive attempt number, from 1. A stable connection resets it.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns what is left of `connect_timeout`, counted from the call of the closure.
    ///
    /// An endpoint closure shares it with its dial. For
    /// [`before_reconnect`](crate::Builder::before_reconnect) it is a measure for the timeouts of
    /// its own calls: nothing ends at that time, and the dial has all of `connect_timeout`.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(sync::now())
    }

    /// Returns `true` if the client has been told to stop. A closure that makes calls of its own
    /// should ask now and then, because nothing can interrupt it.
    pub fn is_stopping(&self) -> bool {
        (self.is_stopping.0)()
    }
}
