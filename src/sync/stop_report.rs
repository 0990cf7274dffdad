//! The report of a stop on a client's threads.

use std::fmt;
use std::time::{Duration, Instant};

use crate::name::ClientName;
use crate::sync;

/// The outcome of a stop, thread by thread. Its `Display` is one line for a log, and begins with
/// the name of the client.
#[derive(Clone, Debug)]
pub struct StopReport {
    pub(super) client: ClientName,
    pub(super) threads: Vec<ThreadReport>,
    pub(super) took: Duration,
}

/// The outcome of a stop for one thread.
#[derive(Clone, Debug)]
pub struct ThreadReport {
    /// The name of the thread: `taut-reader`, `taut-heartbeat`, `taut-resolver` or `taut-roots`,
    /// whatever the [name](crate::Builder::name) of the client.
    pub name: &'static str,
    /// Says whether the thread ended.
    pub outcome: ThreadOutcome,
    /// The time from the start of the wait until the outcome was known.
    pub took: Duration,
}

/// Says whether a thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadOutcome {
    /// The thread has ended and was joined.
    Joined,
    /// The thread had not ended by the deadline. It ends as soon as the call that holds it up
    /// returns.
    TimedOut,
    /// The thread requested the stop itself, from inside the handler. It ends once the handler
    /// returns.
    Current,
    /// The thread has been told to end and was not waited for, because the stop was requested on
    /// one of the client's own threads.
    Detached,
}

impl StopReport {
    /// Returns the [`name`](crate::Client::name) of the client.
    pub fn client(&self) -> &str {
        self.client.as_str()
    }

    /// Returns the outcome for every thread of the client.
    pub fn threads(&self) -> &[ThreadReport] {
        &self.threads
    }

    /// Returns whether every thread was joined in time. This says nothing about the close
    /// handshake.
    pub fn is_clean(&self) -> bool {
        self.threads.iter().all(|thread| thread.outcome == ThreadOutcome::Joined)
    }

    /// Returns the duration of the stop.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns the report in words, for a text that begins with the name of the client.
    pub(crate) fn without_name(&self) -> impl fmt::Display {
        WithoutName(self)
    }

    /// Makes `took` count from `began`, which is before the join.
    pub(crate) fn measured_from(mut self, began: Instant) -> Self {
        self.took = sync::now().saturating_duration_since(began);
        self
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.client, self.without_name())
    }
}

struct WithoutName<'a>(&'a StopReport);

impl fmt::Display for WithoutName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StopReport { threads, took, .. } = self.0;
        let summary = if self.0.is_clean() { "clean" } else { "not clean" };
        write!(f, "{summary}, {took:.1?}")?;
        for thread in threads {
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
