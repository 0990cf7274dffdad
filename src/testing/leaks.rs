//! Counting threads and descriptors.

use std::fs;
use std::time::{Duration, Instant};

/// How long after the work threads and descriptors may linger: the kernel takes a moment to reap a thread that has been joined.
const SETTLE_WITHIN: Duration = Duration::from_secs(1);

/// The threads and descriptors of this process at one moment. Linux only: it reads `/proc/self`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// The names of all threads, sorted.
    pub threads: Vec<String>,
    /// What every open descriptor is, sorted.
    pub descriptors: Vec<String>,
}

impl Census {
    /// Counts now.
    ///
    /// # Panics
    /// If `/proc` is not mounted.
    pub fn take() -> Self {
        let mut threads: Vec<String> = entries("/proc/self/task")
            .iter()
            // A thread may end between the listing and the look.
            .filter_map(|task| fs::read_to_string(format!("/proc/self/task/{task}/comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect();
        let mut descriptors: Vec<String> = entries("/proc/self/fd")
            .iter()
            // The listing's own descriptor is gone by now.
            .filter_map(|descriptor| fs::read_link(format!("/proc/self/fd/{descriptor}")).ok())
            .map(|target| target.display().to_string())
            .collect();
        threads.sort();
        descriptors.sort();
        Census { threads, descriptors }
    }

    /// Whether no thread and no descriptor is there that was not there `before`, waiting up to a second for it. What has gone meanwhile is
    /// no leak: a thread that had been joined just before may still have been seen.
    ///
    /// # Errors
    /// What there is, and what there was, by name.
    pub fn settles_to(before: &Census) -> Result<(), String> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            let now = Census::take();
            if is_part_of(&now.threads, &before.threads) && now.descriptors.len() <= before.descriptors.len() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "threads {:?}, before {:?}; descriptors {:?}, before {:?}",
                    now.threads, before.threads, now.descriptors, before.descriptors
                ));
            }
            std::thread::yield_now();
        }
    }
}

/// Whether each name of `some` is in `all` at least as often. Both are sorted.
fn is_part_of(some: &[String], all: &[String]) -> bool {
    let mut all = all.iter();
    some.iter().all(|name| all.any(|known| known == name))
}

fn entries(folder: &str) -> Vec<String> {
    let listing = fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot list {folder}: {error}"));
    listing.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

/// Runs `work`, and checks that no thread and no descriptor is there afterwards that was not there before. Linux only.
///
/// It counts the whole process: run nothing else beside it, which means a test binary of its own, or `--test-threads=1`. What the first use of
/// a library sets up for good (the roots of TLS, a logger) has to have been done before.
///
/// # Panics
/// If something more is there for longer than a second, with the names of what is there.
pub fn assert_no_leaks<T>(work: impl FnOnce() -> T) -> T {
    let before = Census::take();
    let result = work();
    if let Err(difference) = Census::settles_to(&before) {
        panic!("something was left behind: {difference}");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_is_told_by_name() {
        let before = Census::take();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let thread = std::thread::Builder::new().name("left-behind".to_owned());
        let thread = thread.spawn(move || held.recv().is_err()).expect("there are threads");
        let difference = Census::settles_to(&before).expect_err("a thread is left behind");
        assert!(difference.contains("left-behind"), "{difference}");
        drop(release);
        assert!(thread.join().expect("it does not panic"));
    }

    #[test]
    fn names_are_counted() {
        let names = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        assert!(is_part_of(&names("abb"), &names("aabbc")));
        assert!(!is_part_of(&names("abb"), &names("abc")));
        assert!(!is_part_of(&names("d"), &names("abc")));
    }
}
