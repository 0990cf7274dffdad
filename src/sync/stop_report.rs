//! What a stop tells of a client's threads.

use std::fmt;
use std::time::{Duration, Instant};

use crate::sync;

/// What became of each thread when a client stopped.
#[derive(Clone, Debug)]
pub struct StopReport {
    pub(super) threads: Vec<ThreadReport>,
    pub(super) took: Duration,
}

/// What became of one thread.
#[derive(Clone, Debug)]
pub struct ThreadReport {
    /// `taut-reader`, `taut-heartbeat` or `taut-resolver`.
    pub name: &'static str,
    /// Whether it ended.
    pub outcome: ThreadOutcome,
    /// How long after the stop began this was known.
    pub took: Duration,
}

/// Whether a thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadOutcome {
    /// It has ended and was joined.
    Joined,
    /// It had not ended by the deadline. It has been told to, and ends as soon as whatever holds it
    /// lets go.
    TimedOut,
    /// It is the thread that asked for the stop, from inside the handler. It ends once the handler
    /// returns.
    Current,
    /// It has been told to end and was not waited for, because the stop was asked for from one of
    /// the client's own threads.
    Detached,
}

impl StopReport {
    /// Every thread of the client.
    pub fn threads(&self) -> &[ThreadReport] {
        &self.threads
    }

    /// Whether every thread ended in time. Says nothing of the close handshake.
    pub fn is_clean(&self) -> bool {
        self.threads.iter().all(|thread| thread.outcome == ThreadOutcome::Joined)
    }

    /// How long the stop took.
    pub fn took(&self) -> Duration {
        self.took
    }
}

impl StopReport {
    /// Counts what went before the join into `took`.
    pub(crate) fn measured_from(mut self, began: Instant) -> Self {
        self.took = sync::now().saturating_duration_since(began);
        self
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_clean() { "clean" } else { "not clean" };
        write!(f, "{verdict}, {:.1?}", self.took)?;
        for thread in &self.threads {
            write!(f, "; {} {} after {:.1?}", thread.name, thread.outcome, thread.took)?;
        }
        Ok(())
    }
}

impl fmt::Display for ThreadOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ThreadOutcome::Joined => "ended",
            ThreadOutcome::TimedOut => "LATE",
            ThreadOutcome::Current => "current",
            ThreadOutcome::Detached => "signalled",
        })
    }
}
