//! Spawns, signals and joins the threads of one client.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::error::{Error, ErrorKind};
use crate::name::ClientName;
use crate::sync::channel::{Receiver, Sender, bounded};
#[cfg(not(shuttle))]
use crate::sync::circular_wait::{ClientId, Wait};
use crate::sync::panic::{Panic, catch, drop_caught};
use crate::sync::stop_report::{StopReport, ThreadOutcome, ThreadReport};
use crate::sync::thread::{self, JoinHandle, ThreadId};
use crate::sync::wait::{Shutdown, ShutdownTrigger};
use crate::sync::{self, Mutex};
use crate::time::after;

/// Owns every thread of a client, and the signal that ends them.
///
/// The signal is a channel on which nothing is ever sent. `shutdown` drops its only sender, which
/// wakes every receiver, at once and later, so that no wake-up can be lost. Each thread holds a
/// `done` sender that is dropped when the thread ends or panics. A join waits for that with a
/// deadline, and then calls `join`, which returns at once.
///
/// No code of the program's runs under the locks: hooks, bodies, loggers and the `Drop` of their
/// values may all call back.
pub(crate) struct Threads {
    shutdown: Shutdown,
    /// Taken and dropped by the first `shutdown`.
    trigger: Mutex<Option<ShutdownTrigger>>,
    /// Lock order: `threads`, then a thread's `handle`.
    threads: Mutex<Vec<Arc<Tracked>>>,
    options: ThreadOptions,
    #[cfg(not(shuttle))]
    client: ClientId,
}

/// The options of a client's threads.
#[derive(Clone, Default)]
pub(crate) struct ThreadOptions {
    /// In bytes. `None`: Rust's default.
    pub(crate) stack_size: Option<usize>,
    pub(crate) on_start: Option<ThreadHook>,
    /// The client that they are the threads of.
    pub(crate) client: ClientName,
}

/// Called by each thread, with what [`Tracked::name`] says, before anything else.
pub(crate) type ThreadHook = Arc<dyn Fn(&str) + Send + Sync>;

/// A thread that has been spawned. It is removed once it has ended and another is spawned.
struct Tracked {
    /// Its name in the documentation. The system's may say the client too.
    name: &'static str,
    client: ClientName,
    id: ThreadId,
    /// Disconnects when the thread has ended, by a panic too.
    done: Receiver<Infallible>,
    join_timeout: JoinTimeout,
    /// Taken by whoever joins the thread.
    handle: Mutex<Option<JoinHandle<()>>>,
}

/// The time that a join may wait for a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinTimeout {
    /// Until the caller's deadline.
    Deadline,
    /// A tenth of the time until the caller's deadline, and this long at most: for a lookup, which
    /// nothing can interrupt.
    AtMost(Duration),
}

impl Threads {
    pub(crate) fn new(options: ThreadOptions) -> Self {
        let (trigger, shutdown) = Shutdown::new();
        Threads {
            shutdown,
            trigger: Mutex::new(Some(trigger)),
            threads: Mutex::default(),
            options,
            #[cfg(not(shuttle))]
            client: ClientId::new(),
        }
    }

    /// Returns the name of the client.
    pub(crate) fn client(&self) -> &ClientName {
        &self.options.client
    }

    /// Returns the signal that a thread watches to learn that it has to end.
    pub(crate) fn shutdown_signal(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Starts a tracked thread.
    ///
    /// # Errors
    /// `Stopped` after `shutdown`, so that no thread starts after a stop; `Io` when the system
    /// refuses a thread.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        join_timeout: JoinTimeout,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        // The thread gets its body once the lock is free. Were the body in the closure that the
        // system refuses, the values of the program's in it would be dropped under the lock.
        let (hand_over, receiver) = bounded(1);
        let (started, ended) = {
            let mut threads = self.threads.lock();
            if self.shutdown.is_requested() {
                return Err(Error::stopped().of_client(self.client()));
            }
            let (ended, running) = threads.drain(..).partition(|thread| thread.is_done());
            *threads = running;
            let started = self.start(name, join_timeout, receiver);
            (started.map(|thread| threads.push(Arc::new(thread))), ended)
        };
        let ended: Vec<Arc<Tracked>> = ended;
        ended.iter().for_each(|thread| thread.join());
        started?;
        let _ = hand_over.send(body);
        Ok(())
    }

    fn start(
        &self,
        name: &'static str,
        join_timeout: JoinTimeout,
        body: Receiver<impl FnOnce() + Send + 'static>,
    ) -> Result<Tracked, Error> {
        let (running, done) = bounded::<Infallible>(0);
        let mut builder = thread::Builder::new().name(self.client().thread_name(name));
        if let Some(size) = self.options.stack_size {
            builder = builder.stack_size(size);
        }
        let on_start = self.options.on_start.clone();
        let client_name = self.client().clone();
        #[cfg(not(shuttle))]
        let client = self.client;
        let handle = builder
            .spawn(move || {
                // The thread counts as done when this is dropped.
                let _running = keep_until_exit(running);
                #[cfg(not(shuttle))]
                client.adopt_current_thread();
                if let Some(on_start) = on_start {
                    call_hook(on_start, name, &client_name);
                }
                if let Ok(body) = body.recv() {
                    body();
                }
            })
            .map_err(|error| {
                Error::caused(ErrorKind::Io, format!("starting the thread {name}"), error)
                    .of_client(self.client())
            })?;
        Ok(Tracked {
            name,
            client: self.client().clone(),
            id: handle.thread().id(),
            done,
            join_timeout,
            handle: Mutex::new(Some(handle)),
        })
    }

    /// Tells every thread to end. Returns at once. Further calls do nothing.
    pub(crate) fn shutdown(&self) {
        // With the threads' lock, a spawn is either over by now, or sees the signal.
        let _threads = self.threads.lock();
        drop(self.trigger.lock().take());
    }

    /// Waits until every thread has ended or `deadline` has passed, and reports on each. On one of
    /// the threads it does not wait.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn join_until(&self, deadline: Instant) -> StopReport {
        self.join_or_free(deadline, deadline, || ())
    }

    /// Waits until every thread has ended or `deadline` has passed, and reports on each. On one of
    /// the threads it does not wait. If a thread has not ended at `enough`, which is earlier, it
    /// calls `free` before it waits on.
    pub(crate) fn join_or_free(
        &self,
        deadline: Instant,
        enough: Instant,
        free: impl FnOnce(),
    ) -> StopReport {
        let began = sync::now();
        let threads = self.threads.lock().clone();
        let current = thread::current().id();
        // One of the threads must not wait for the others either, because those may be waiting for
        // it: the heartbeat ends after the reader, for example.
        let is_own = threads.iter().any(|thread| thread.id == current);
        #[cfg(not(shuttle))]
        let wait = Wait::begin(self.client);
        #[cfg(not(shuttle))]
        let is_own = is_own || wait.is_none();
        let mut reports: Vec<ThreadReport> = threads
            .iter()
            .map(|thread| match is_own {
                true => thread.report_now(current),
                false => thread.join_until(began, enough),
            })
            .collect();
        // A lookup may be late before `enough`. Freeing does not help it.
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
        StopReport {
            client: self.client().clone(),
            threads: reports,
            took: sync::now().saturating_duration_since(began),
        }
    }

    /// Returns whether the caller runs on one of the threads.
    pub(crate) fn is_own_thread(&self) -> bool {
        let current = thread::current().id();
        self.threads.lock().iter().any(|thread| thread.id == current)
    }

    /// Returns the number of threads that have started and not ended.
    pub(crate) fn live_threads(&self) -> usize {
        let threads = self.threads.lock();
        threads.iter().filter(|thread| !thread.is_done()).count()
    }
}

/// Calls the program's hook. Whatever panics in here, the thread goes on to its body: a client
/// without its reader would never end.
fn call_hook(on_start: ThreadHook, name: &str, client: &ClientName) {
    if catch(|| on_start(name)).is_err() {
        // The logger is the program's too.
        let _ = catch(|| log::error!("{client}: the hook for new threads panicked on {name}"));
    }
    drop_caught(on_start);
}

/// Keeps a thread's `done` sender until the thread has dropped everything else.
///
/// The program may keep values in thread-locals that take a while to drop, the guard of a log for
/// example. A join waits for those too, so they have to be gone before the thread counts as done.
/// Rust drops thread-locals from the last to the first, and this is the first. On a platform with
/// another order, that part of a join has no deadline.
#[cfg(not(shuttle))]
fn keep_until_exit(running: Sender<Infallible>) -> Option<Sender<Infallible>> {
    thread_local! {
        static RUNNING: std::cell::RefCell<Option<Sender<Infallible>>> =
            const { std::cell::RefCell::new(None) };
    }
    RUNNING.replace(Some(running))
}

/// In the model it is dropped at the end of the thread's closure.
#[cfg(shuttle)]
fn keep_until_exit(running: Sender<Infallible>) -> Option<Sender<Infallible>> {
    Some(running)
}

impl Tracked {
    fn is_done(&self) -> bool {
        matches!(self.done.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected))
    }

    /// Joins a thread that is done. Must not be called under the threads' lock: a payload and the
    /// logger are the program's.
    fn join(&self) {
        let Some(handle) = self.handle.lock().take() else { return };
        // Panics of the program's code have been caught and reported further in.
        if handle.join().map_err(Panic::new).is_err() {
            let Tracked { name, client, .. } = self;
            log::error!("{client}: the thread {name} panicked: this is a bug in tautline");
        }
    }

    fn report_now(&self, current: ThreadId) -> ThreadReport {
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
            JoinTimeout::AtMost(limit) => {
                let budget = deadline.saturating_duration_since(began);
                after(began, limit.min(budget / 10))
            }
        };
        // Nothing is ever sent, so this ends by a disconnection or a timeout.
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
    use std::panic::resume_unwind;
    use std::sync::atomic::{AtomicU32, Ordering};

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
        // A second call reports the same.
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
    fn a_join_timeout_ends_before_the_deadline() {
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
        // On a busy machine the released thread may take longer than those 5 ms.
        let by = soon();
        while !threads.join_until(by).is_clean() {
            assert!(Instant::now() < by, "it has been released");
        }
    }

    #[test]
    fn no_thread_starts_after_a_shutdown() {
        let threads = Threads::new(ThreadOptions::default());
        threads.shutdown();
        let refused =
            threads.spawn("late", JoinTimeout::Deadline, || unreachable!("it must not run"));
        assert_eq!(refused.expect_err("a shutdown came before").kind(), ErrorKind::Stopped);
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

    /// Runs its closure when it is dropped.
    struct OnDrop<F: FnMut()>(F);

    impl<F: FnMut()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    #[test]
    fn a_thread_runs_its_body_whatever_its_hook_throws() {
        let on_start: ThreadHook = Arc::new(|_| {
            resume_unwind(Box::new(OnDrop(|| resume_unwind(Box::new("the payload, too")))))
        });
        let threads =
            Threads::new(ThreadOptions { on_start: Some(on_start), ..ThreadOptions::default() });
        let (tell, told) = bounded(1);
        threads
            .spawn("hooked", JoinTimeout::Deadline, move || tell.send(7).expect("there is room"))
            .expect("threads are there");
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(7));
        threads.shutdown();
        assert!(threads.join_until(soon()).is_clean());
    }

    /// A value that counts in the one number that it has been dropped, and in the other that it
    /// found the threads' lock taken.
    fn probe(threads: &Arc<Threads>, seen: &Arc<[AtomicU32; 2]>) -> OnDrop<impl FnMut() + use<>> {
        let (threads, seen) = (Arc::downgrade(threads), Arc::clone(seen));
        OnDrop(move || {
            let Some(threads) = threads.upgrade() else { return };
            seen[0].fetch_add(1, Ordering::SeqCst);
            let is_taken = threads.threads.try_lock().is_none();
            seen[1].fetch_add(u32::from(is_taken), Ordering::SeqCst);
        })
    }

    #[test]
    fn the_body_of_a_thread_that_cannot_start_is_dropped_without_the_lock() {
        let stack_size = Some(1 << 62);
        let threads =
            Arc::new(Threads::new(ThreadOptions { stack_size, ..ThreadOptions::default() }));
        let seen = Arc::default();
        let value = probe(&threads, &seen);
        let refused = threads.spawn("huge", JoinTimeout::Deadline, move || drop(value));
        assert_eq!(refused.expect_err("the stack is too large").kind(), ErrorKind::Io);
        assert_eq!(seen.each_ref().map(|number| number.load(Ordering::SeqCst)), [1, 0]);
    }

    #[test]
    fn a_panic_that_ended_a_thread_is_dropped_without_the_lock() {
        let threads = Arc::new(Threads::new(ThreadOptions::default()));
        let seen = Arc::default();
        let value = probe(&threads, &seen);
        threads
            .spawn("panics", JoinTimeout::Deadline, move || resume_unwind(Box::new(value)))
            .expect("threads are there");
        while threads.live_threads() > 0 {
            thread::yield_now();
        }
        // Joins the one that has ended.
        threads.spawn("next", JoinTimeout::Deadline, || ()).expect("threads are there");
        assert_eq!(seen.each_ref().map(|number| number.load(Ordering::SeqCst)), [1, 0]);
    }
}
