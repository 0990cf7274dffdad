//! Counting threads and descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// How long after the work threads and descriptors may linger: the kernel takes a moment to reap a
/// thread that has been joined.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);

/// The threads and descriptors of this process at one moment. Linux only: it reads `/proc/self`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// The names of all threads, by the kernel's numbers for them.
    pub threads: BTreeMap<u32, String>,
    /// What every open descriptor is, sorted. Files tell their path, sockets and pipes a number
    /// that no other has.
    pub descriptors: Vec<String>,
}

impl Census {
    /// Counts now.
    ///
    /// # Panics
    /// If `/proc` is not mounted.
    pub fn take() -> Self {
        let threads = entries("/proc/self/task")
            .iter()
            // A thread may end between the listing and the look.
            .filter_map(|task| {
                let name = fs::read_to_string(format!("/proc/self/task/{task}/comm")).ok()?;
                Some((task.parse().ok()?, name.trim().to_owned()))
            })
            .collect();
        let mut descriptors: Vec<String> = entries("/proc/self/fd")
            .iter()
            // The listing's own descriptor is gone by now.
            .filter_map(|descriptor| fs::read_link(format!("/proc/self/fd/{descriptor}")).ok())
            .map(|target| target.display().to_string())
            .collect();
        descriptors.sort();
        Census { threads, descriptors }
    }

    /// Whether no thread and no descriptor is there that was not there `before`, waiting up to
    /// three seconds for it. Each counts for itself: a socket that is left behind is found even if
    /// another has been closed meanwhile. What has gone is no leak.
    ///
    /// # Errors
    /// What there is and was not there before, by name.
    pub fn settles_to(before: &Census) -> Result<(), String> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            let Some(more) = Census::take().more_than(before) else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(more);
            }
            std::thread::yield_now();
        }
    }

    /// What is here and not in `before`, if anything.
    fn more_than(&self, before: &Census) -> Option<String> {
        // By number alone: a thread that has just been born still has its parent's name.
        let threads: Vec<String> = self
            .threads
            .iter()
            .filter(|(number, _)| !before.threads.contains_key(number))
            .map(|(number, name)| format!("{name} ({number})"))
            .collect();
        let mut known = before.descriptors.clone();
        let mut descriptors = self.descriptors.clone();
        descriptors.retain(|target| match known.iter().position(|other| other == target) {
            Some(place) => {
                known.swap_remove(place);
                false
            }
            None => true,
        });
        let is_more = !threads.is_empty() || !descriptors.is_empty();
        is_more.then(|| format!("threads {threads:?}; descriptors {descriptors:?}"))
    }
}

fn entries(folder: &str) -> Vec<String> {
    let listing =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot list {folder}: {error}"));
    listing
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Runs `work`, and checks that no thread and no descriptor is there afterwards that was not there
/// before. Linux only.
///
/// It looks at the whole process: run nothing else beside it, which means a test binary of its own,
/// or `--test-threads=1`. What the first use of a library sets up for good (the roots of TLS, a
/// logger) has to have been done before. A connection that is open before and comes back during the
/// work has a new socket, which counts as left behind.
///
/// # Panics
/// If something more is there for longer than three seconds, with the names of what it is.
///
/// # Example
/// ```standalone_crate
/// use std::time::Duration;
/// use tautline::Client;
/// use tautline::testing::{TestServer, assert_no_leaks};
///
/// let server = TestServer::start(|peer| {
///     peer.upgrade()?;
///     peer.echo()
/// });
/// assert_no_leaks(|| {
///     let client = Client::builder(server.url()).connect().unwrap();
///     assert!(client.stop(Duration::from_secs(5)).is_clean());
///     // The server runs in this process too.
///     assert!(server.wait_until_empty(Duration::from_secs(5)));
/// });
/// ```
pub fn assert_no_leaks<T>(work: impl FnOnce() -> T) -> T {
    let before = Census::take();
    let result = work();
    if let Err(more) = Census::settles_to(&before) {
        panic!("something was left behind: {more}");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(threads: &[(u32, &str)], descriptors: &[&str]) -> Census {
        Census {
            threads: threads.iter().map(|(number, name)| (*number, (*name).to_owned())).collect(),
            descriptors: descriptors.iter().map(|target| (*target).to_owned()).collect(),
        }
    }

    #[test]
    fn a_thread_that_is_left_behind_is_told_by_name() {
        let before = Census::take();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let (tell, told) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("left-behind".to_owned());
        let body = move || {
            tell.send(()).expect("the test waits");
            held.recv().is_err()
        };
        let thread = thread.spawn(body).expect("there are threads");
        // By now it has its name.
        told.recv().expect("it runs");
        let more = Census::take().more_than(&before).expect("a thread is left behind");
        assert!(more.contains("left-behind"), "{more}");
        drop(release);
        assert!(thread.join().expect("it does not panic"));
    }

    #[test]
    fn what_has_gone_hides_nothing_that_has_come() {
        let before =
            census(&[(1, "main"), (2, "reader")], &["/dev/null", "/dev/null", "socket:[10]"]);
        assert_eq!(before.more_than(&before), None);
        assert_eq!(census(&[(1, "main")], &["/dev/null"]).more_than(&before), None);
        let now = census(&[(1, "main"), (3, "reader")], &["/dev/null", "socket:[11]"]);
        assert_eq!(
            now.more_than(&before).as_deref(),
            Some(r#"threads ["reader (3)"]; descriptors ["socket:[11]"]"#)
        );
        let now = census(&[], &["/dev/null", "/dev/null", "/dev/null"]);
        assert_eq!(
            now.more_than(&before).as_deref(),
            Some(r#"threads []; descriptors ["/dev/null"]"#)
        );
    }
}
