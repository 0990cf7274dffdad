//! Watches: topics that are active and have been silent for too long.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::session_event::Topic;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{self, Mutex};
use crate::time::after;

/// The reaction of a session to a topic that has been silent for too long, besides telling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Silence {
    /// Nothing more: [`SessionEvent::Silent`](crate::session::SessionEvent::Silent) is all.
    Tell,
    /// Ends the subscription and asks for it again.
    Resubscribe,
    /// Ends the connection and dials again.
    Reconnect,
}

/// A watch over one topic, from [`SessionHandle::watch`](crate::session::SessionHandle::watch). It
/// ends when its last clone is dropped.
#[derive(Clone)]
#[must_use = "the watch ends when its last clone is dropped"]
pub struct Watch {
    seen: Arc<Seen>,
}

/// The time at which data of a topic was last seen.
struct Seen {
    /// The times are counted from here.
    base: Instant,
    /// In nanoseconds since `base`.
    nanos: AtomicU64,
}

impl Watch {
    /// Notes that data of the topic has come, at [`MessageRef::received_at`] for example. It costs
    /// one store: call it for every message of the topic, where it is parsed.
    ///
    /// [`MessageRef::received_at`]: crate::MessageRef::received_at
    #[inline]
    pub fn seen(&self, at: Instant) {
        let nanos = at.saturating_duration_since(self.seen.base).as_nanos();
        self.seen.nanos.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// The watches of a session.
#[derive(Default)]
pub(crate) struct Watches {
    watches: Mutex<Vec<Watched>>,
    /// There are some, also while the heartbeat thread looks at them outside the lock. Written
    /// under it.
    is_used: AtomicBool,
}

struct Watched {
    topic: Topic,
    silence: Duration,
    then: Silence,
    seen: Weak<Seen>,
    /// The last sign of life that was found to be too long ago.
    told: Option<Instant>,
}

/// A topic that has been silent for too long.
pub(crate) struct Silent {
    pub(crate) topic: Topic,
    pub(crate) since: Instant,
    pub(crate) then: Silence,
}

impl Watches {
    pub(crate) fn add(&self, topic: &str, silence: Duration, then: Silence) -> Watch {
        let seen = Arc::new(Seen { base: sync::now(), nanos: AtomicU64::new(0) });
        let watched = Watched {
            topic: Topic::new(topic),
            silence,
            then,
            seen: Arc::downgrade(&seen),
            told: None,
        };
        let mut watches = self.watches.lock();
        watches.push(watched);
        self.is_used.store(true, Ordering::Release);
        Watch { seen }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.is_used.load(Ordering::Acquire)
    }

    /// Returns the topics that have been silent for too long, each once per silence, and when to
    /// look again. `active_since` says since when a topic is active.
    pub(crate) fn silent(
        &self,
        active_since: impl Fn(&str) -> Option<Instant>,
        now: Instant,
    ) -> (Vec<Silent>, Option<Instant>) {
        let (mut silent, mut next) = (Vec::new(), None::<Instant>);
        // Outside the lock: the caller's look takes another.
        let mut watches = std::mem::take(&mut *self.watches.lock());
        watches.retain_mut(|watched| {
            let Some(seen) = watched.seen.upgrade() else { return false };
            let Some(active) = active_since(&watched.topic) else { return true };
            let nanos = seen.nanos.load(Ordering::Relaxed);
            let since = active.max(after(seen.base, Duration::from_nanos(nanos)));
            let due = after(since, watched.silence);
            // Data that comes after a silence was told wakes nobody: it is looked for.
            let look_at = if due > now { due } else { after(now, watched.silence) };
            next = Some(next.map_or(look_at, |next| next.min(look_at)));
            if due <= now && watched.told != Some(since) {
                watched.told = Some(since);
                let Watched { topic, then, .. } = watched;
                silent.push(Silent { topic: topic.clone(), since, then: *then });
            }
            true
        });
        let mut added = self.watches.lock();
        watches.append(&mut added);
        self.is_used.store(!watches.is_empty(), Ordering::Release);
        *added = watches;
        (silent, next)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_silence_is_told_once_and_data_begins_another() {
        let watches = Watches::default();
        let watch = watches.add("a", 10 * SECOND, Silence::Tell);
        let start = Instant::now();
        let look = |at: Instant| {
            let (silent, next) = watches.silent(|_| Some(start), at);
            (silent.iter().map(|silent| silent.since).collect::<Vec<_>>(), next)
        };
        assert_eq!(look(start + 9 * SECOND), (vec![], Some(start + 10 * SECOND)));
        // Data wakes nobody, so it is looked for.
        assert_eq!(look(start + 10 * SECOND), (vec![start], Some(start + 20 * SECOND)));
        assert_eq!(look(start + 99 * SECOND), (vec![], Some(start + 109 * SECOND)));
        let seen = start + 100 * SECOND;
        watch.seen(seen);
        assert_eq!(look(start + 101 * SECOND), (vec![], Some(seen + 10 * SECOND)));
        assert_eq!(look(start + 110 * SECOND), (vec![seen], Some(start + 120 * SECOND)));
        drop(watch);
        assert_eq!(look(start + 999 * SECOND), (vec![], None));
        assert!(watches.is_empty());
    }

    #[test]
    fn only_active_topics_are_watched_and_the_confirmation_counts_as_data() {
        let watches = Watches::default();
        let _watch = watches.add("a", SECOND, Silence::Resubscribe);
        let start = Instant::now();
        assert!(watches.silent(|_| None, start + 99 * SECOND).0.is_empty());
        let confirmed = start + 99 * SECOND;
        let (silent, next) = watches.silent(|_| Some(confirmed), confirmed);
        assert!(silent.is_empty());
        assert_eq!(next, Some(confirmed + SECOND));
        let (silent, _) = watches.silent(|_| Some(confirmed), confirmed + SECOND);
        assert_eq!(silent[0].then, Silence::Resubscribe);
        assert_eq!((silent[0].topic.as_str(), silent[0].since), ("a", confirmed));
    }

    #[test]
    fn the_first_of_several_is_looked_for_and_one_that_is_added_meanwhile_is_kept() {
        let watches = Watches::default();
        let _short = watches.add("short", 3 * SECOND, Silence::Tell);
        let _long = watches.add("long", 9 * SECOND, Silence::Tell);
        let _off = watches.add("off", SECOND, Silence::Tell);
        let start = Instant::now();
        let added = std::cell::RefCell::new(Vec::new());
        let active_since = |topic: &str| {
            assert!(!watches.is_empty(), "an answer that comes now has to wake the thread");
            if topic == "long" {
                added.borrow_mut().push(watches.add("added", SECOND, Silence::Tell));
            }
            (topic != "off").then_some(start)
        };
        let (silent, next) = watches.silent(active_since, start);
        assert!(silent.is_empty());
        assert_eq!(next, Some(start + 3 * SECOND));
        let topics = |watches: &Watches| {
            let watches = watches.watches.lock();
            watches.iter().map(|watched| watched.topic.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(topics(&watches), ["short", "long", "off", "added"]);
    }

    #[test]
    fn a_topic_that_becomes_active_again_begins_another_silence() {
        let watches = Watches::default();
        let _watch = watches.add("a", SECOND, Silence::Resubscribe);
        let start = Instant::now();
        let silent = |active: Option<Instant>, at| watches.silent(|_| active, at).0.len();
        assert_eq!(silent(Some(start), start + 5 * SECOND), 1);
        assert_eq!(silent(None, start + 6 * SECOND), 0);
        let again = start + 7 * SECOND;
        assert_eq!(silent(Some(again), again), 0);
        assert_eq!(silent(Some(again), again + SECOND), 1);
    }
}
