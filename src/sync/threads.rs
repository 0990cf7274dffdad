//! The threads of one client: born here, told to stop here, joined here.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::error::{Error, ErrorKind};
use crate::sync::channel::{Receiver, Sender, bounded};
use crate::sync::stop_report::{StopReport, ThreadOutcome, ThreadReport};
use crate::sync::thread::{self, JoinHandle, ThreadId};
use crate::sync::wait::{Shutdown, ShutdownTrigger};
use crate::sync::{self, Mutex};
use crate::time::after;

/// Owns every thread of a client, and the signal that ends them.
///
/// The signal is a channel on which nothing is ever sent: `shutdown` drops its only sender, and
/// every receiver wakes, now and for ever after, so that no wake-up can be lost. Each thread holds
/// a `done` sender that drops when the thread ends, panics included: waiting for it with a deadline
/// and then calling `join`, which is by then immediate, is how a join gets a deadline.
pub(crate) struct Threads {
    shutdown: Shutdown,
    /// Taken and dropped by the first `shutdown`.
    trigger: Mutex<Option<ShutdownTrigger>>,
    /// Lock order: `threads`, then a thread's `handle`.
    threads: Mutex<Vec<Arc<Tracked>>>,
    options: ThreadOptions,
}

/// How the threads of a client are made.
#[derive(Clone, Default)]
pub(crate) struct ThreadOptions {
    /// `None`: as Rust does by itself.
    pub(crate) stack_size: Option<usize>,
    pub(crate) on_start: Option<ThreadHook>,
}

/// Called by each thread with its name before anything else.
pub(crate) type ThreadHook = Arc<dyn Fn(&str) + Send + Sync>;

/// A thread that has been spawned and not yet been forgotten.
struct Tracked {
    name: &'static str,
    id: ThreadId,
    /// Disconnects when the thread has run to its end, unwound or not.
    done: Receiver<Infallible>,
    join_timeout: JoinTimeout,
    /// Taken by whoever joins it.
    handle: Mutex<Option<JoinHandle<()>>>,
}

/// How long a join may wait for a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinTimeout {
    /// As long as the caller's deadline allows.
    Deadline,
    /// This long at most, whatever the caller's deadline: for a lookup that nothing can interrupt.
    AtMost(Duration),
}

impl Threads {
    pub(crate) fn new(options: ThreadOptions) -> Self {
        let (trigger, shutdown) = Shutdown::new();
        Threads { shutdown, trigger: Mutex::new(Some(trigger)), threads: Mutex::default(), options }
    }

    /// What a thread watches to learn that it has to end.
    pub(crate) fn shutdown_signal(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Starts a tracked thread.
    ///
    /// # Errors
    /// `Stopped` after `shutdown`, so that no thread is born behind a stop; `Io` when the system
    /// has no thread to give.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        join_timeout: JoinTimeout,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let mut threads = self.threads.lock();
        if self.shutdown.is_requested() {
            return Err(Error::stopped());
        }
        threads.retain(|thread| !thread.join_if_done());

        let (running, done) = bounded::<Infallible>(0);
        let mut builder = thread::Builder::new().name(name.to_owned());
        if let Some(size) = self.options.stack_size {
            builder = builder.stack_size(size);
        }
        let on_start = self.options.on_start.clone();
        let handle = builder
            .spawn(move || {
                // Dropping it is what "done" means.
                let _running = last_of_all(running);
                if let Some(on_start) = on_start {
                    // The hook is the user's. A connection is worth more than a pinned thread.
                    if catch_unwind(AssertUnwindSafe(|| on_start(name))).is_err() {
                        log::error!("the hook for new threads panicked on {name}");
                    }
                }
                body();
            })
            .map_err(|error| {
                Error::caused(ErrorKind::Io, format!("starting the thread {name}"), error)
            })?;
        let id = handle.thread().id();
        threads.push(Arc::new(Tracked {
            name,
            id,
            done,
            join_timeout,
            handle: Mutex::new(Some(handle)),
        }));
        Ok(())
    }

    /// Tells every thread to end. Idempotent, and returns at once.
    pub(crate) fn shutdown(&self) {
        // The threads' lock makes this wait out a spawn that is half done, or be seen by it.
        let _threads = self.threads.lock();
        drop(self.trigger.lock().take());
    }

    /// Waits until every thread has ended or `deadline` has passed, and says which did what. Never
    /// waits for the thread it runs on.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn join_until(&self, deadline: Instant) -> StopReport {
        self.join_or_free(deadline, deadline, || ())
    }

    /// Waits until every thread has ended or `deadline` has passed, and says which did what. Never
    /// waits for the thread it runs on. For threads that have not ended at `enough`, which is
    /// earlier, it calls `free` before it goes on waiting.
    pub(crate) fn join_or_free(
        &self,
        deadline: Instant,
        enough: Instant,
        free: impl FnOnce(),
    ) -> StopReport {
        let began = sync::now();
        let threads = self.threads.lock().clone();
        let current = thread::current().id();
        // Waiting for the others from one of them could be waiting for oneself: the heart ends
        // after the reader, for example.
        let is_own = threads.iter().any(|thread| thread.id == current);
        let mut reports: Vec<ThreadReport> = threads
            .iter()
            .map(|thread| match is_own {
                true => thread.look(current),
                false => thread.join_until(began, enough),
            })
            .collect();
        // A lookup may be late before that, and nothing helps it.
        if reports.iter().any(|report| report.outcome == ThreadOutcome::TimedOut)
            && sync::now() >= enough
        {
            free();
            for (thread, report) in threads
                .iter()
                .zip(&mut reports)
                .filter(|(_, report)| report.outcome == ThreadOutcome::TimedOut)
            {
                *report = thread.join_until(began, deadline);
            }
        }
        StopReport { threads: reports, took: sync::now().saturating_duration_since(began) }
    }

    /// Whether the caller runs on one of the threads.
    pub(crate) fn is_own_thread(&self) -> bool {
        let current = thread::current().id();
        self.threads.lock().iter().any(|thread| thread.id == current)
    }

    /// How many threads have been started and have not ended.
    pub(crate) fn live_threads(&self) -> usize {
        let mut threads = self.threads.lock();
        threads.iter_mut().filter(|thread| !thread.is_done()).count()
    }
}

/// Keeps a thread's `done` sender until the thread's end, behind whatever else it drops.
///
/// The program may keep things in the thread that take a while to drop, a log's guard for example,
/// in its thread-locals: a join waits for those too, so they have to be gone when the thread counts
/// as done. Rust drops thread-locals from the last to the first, and this is the first. Should a
/// platform do otherwise, that part of the end is waited for and not seen.
#[cfg(not(shuttle))]
fn last_of_all(running: Sender<Infallible>) -> Option<Sender<Infallible>> {
    thread_local! {
        static RUNNING: std::cell::RefCell<Option<Sender<Infallible>>> = const { std::cell::RefCell::new(None) };
    }
    RUNNING.replace(Some(running))
}

/// In the model it lives until the thread's last line.
#[cfg(shuttle)]
fn last_of_all(running: Sender<Infallible>) -> Option<Sender<Infallible>> {
    Some(running)
}

impl Tracked {
    fn is_done(&self) -> bool {
        matches!(self.done.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected))
    }

    /// Joins the thread if it has ended, and says whether it had.
    fn join_if_done(&self) -> bool {
        let done = self.is_done();
        if done {
            self.join();
        }
        done
    }

    /// Joins a thread that is known to be done. A panic has been reported where it was caught, or
    /// is a bug that the log tells of.
    fn join(&self) {
        let Some(handle) = self.handle.lock().take() else { return };
        if handle.join().is_err() {
            log::error!("the thread {} panicked: this is a bug in tautline", self.name);
        }
    }

    fn look(&self, current: ThreadId) -> ThreadReport {
        let outcome = match self.is_done() {
            _ if self.id == current => ThreadOutcome::Current,
            true => ThreadOutcome::Joined,
            false => ThreadOutcome::Detached,
        };
        ThreadReport { name: self.name, outcome, took: Duration::ZERO }
    }

    fn join_until(&self, began: Instant, deadline: Instant) -> ThreadReport {
        let until = match self.join_timeout {
            JoinTimeout::Deadline => deadline,
            JoinTimeout::AtMost(limit) => deadline.min(after(began, limit)),
        };
        // Nothing is ever sent, so the answer is a disconnection or a timeout.
        let ended = matches!(self.done.recv_deadline(until), Err(RecvTimeoutError::Disconnected));
        if ended {
            self.join();
        }
        let outcome = if ended { ThreadOutcome::Joined } else { ThreadOutcome::TimedOut };
        ThreadReport {
            name: self.name,
            outcome,
            took: sync::now().saturating_duration_since(began),
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::sync::wait::{Woken, wait};
    use crossbeam_channel::{never, unbounded};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn threads_that_watch_the_signal_are_joined_and_reported() {
        let threads = Threads::new(ThreadOptions::default());
        for _ in 0..3 {
            let shutdown = threads.shutdown_signal();
            let body = move || assert_eq!(wait(&shutdown, &never::<()>(), None), Woken::Shutdown);
            threads.spawn("worker", JoinTimeout::Deadline, body).expect("threads are there");
        }
        assert_eq!(threads.live_threads(), 3);
        threads.shutdown();
        let report = threads.join_until(soon());
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.threads().len(), 3);
        assert_eq!(threads.live_threads(), 0);
        // Idempotent: asking again tells the same.
        threads.shutdown();
        assert!(threads.join_until(soon()).is_clean());
    }

    #[test]
    fn a_late_thread_is_named_and_joined_by_a_later_call() {
        let threads = Threads::new(ThreadOptions::default());
        let (release, held) = bounded::<()>(0);
        threads
            .spawn("holdout", JoinTimeout::Deadline, move || assert!(held.recv().is_err()))
            .expect("threads are there");
        threads.shutdown();
        let report = threads.join_until(Instant::now() + Duration::from_millis(10));
        assert!(!report.is_clean());
        assert_eq!(
            (report.threads()[0].name, report.threads()[0].outcome),
            ("holdout", ThreadOutcome::TimedOut)
        );
        drop(release);
        assert!(threads.join_until(soon()).is_clean());
    }

    #[test]
    fn an_impatient_join_does_not_wait_for_the_whole_deadline() {
        let threads = Threads::new(ThreadOptions::default());
        let (release, held) = bounded::<()>(0);
        let join_timeout = JoinTimeout::AtMost(Duration::from_millis(5));
        threads
            .spawn("lookup", join_timeout, move || assert!(held.recv().is_err()))
            .expect("threads are there");
        threads.shutdown();
        let report = threads.join_until(Instant::now() + Duration::from_secs(3600));
        assert_eq!(report.threads()[0].outcome, ThreadOutcome::TimedOut);
        drop(release);
        // Its patience is for a lookup that hangs: one that ends may need a further look on a busy
        // machine.
        let by = soon();
        while !threads.join_until(by).is_clean() {
            assert!(Instant::now() < by, "it has been released");
        }
    }

    #[test]
    fn no_thread_is_born_behind_a_stop() {
        let threads = Threads::new(ThreadOptions::default());
        threads.shutdown();
        let refused =
            threads.spawn("late", JoinTimeout::Deadline, || unreachable!("it must not run"));
        assert_eq!(refused.expect_err("the threads has ended").kind(), ErrorKind::Stopped);
        assert!(threads.join_until(soon()).threads().is_empty());
    }

    #[test]
    fn a_thread_that_joins_itself_is_reported_as_current() {
        let threads = Arc::new(Threads::new(ThreadOptions::default()));
        let (tell, told) = unbounded();
        let inside = Arc::clone(&threads);
        let body = move || {
            inside.shutdown();
            tell.send(inside.join_until(soon())).expect("the test waits");
        };
        threads.spawn("self", JoinTimeout::Deadline, body).expect("threads are there");
        let report = told.recv().expect("it reports");
        assert_eq!(report.threads()[0].outcome, ThreadOutcome::Current);
        assert!(threads.join_until(soon()).is_clean());
    }

    #[test]
    fn a_panicking_thread_counts_as_ended() {
        let threads = Threads::new(ThreadOptions::default());
        threads
            .spawn("panics", JoinTimeout::Deadline, || panic!("on purpose"))
            .expect("threads are there");
        threads.shutdown();
        assert!(threads.join_until(soon()).is_clean());
    }

    #[test]
    fn many_may_join_at_once() {
        let threads = Arc::new(Threads::new(ThreadOptions::default()));
        let shutdown = threads.shutdown_signal();
        let body = move || assert_eq!(wait(&shutdown, &never::<()>(), None), Woken::Shutdown);
        threads.spawn("worker", JoinTimeout::Deadline, body).expect("threads are there");
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    threads.shutdown();
                    assert!(threads.join_until(soon()).is_clean());
                });
            }
        });
    }
}
