//! A check for threads and descriptors that are left behind.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// The time that threads and descriptors may linger: the kernel takes a moment to reap a thread
/// that has been joined.
const LINGER_MAX: Duration = Duration::from_secs(3);

/// The pause between two looks at `/proc`, which notifies nobody.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The threads and descriptors of this process at one moment, from `/proc/self`. Linux only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceSnapshot {
    /// The names of all threads, by thread id.
    pub threads: BTreeMap<u32, String>,
    /// The targets of all open descriptors, sorted: the path of a file, or the type and the inode
    /// of a socket or pipe.
    pub descriptors: Vec<String>,
}

impl ResourceSnapshot {
    /// Takes a snapshot now.
    ///
    /// # Panics
    /// If `/proc` is not mounted.
    pub fn take() -> Self {
        let threads = entries("/proc/self/task")
            .iter()
            // A thread may end between the listing and the reading.
            .filter_map(|task| {
                let name = fs::read_to_string(format!("/proc/self/task/{task}/comm")).ok()?;
                Some((task.parse().ok()?, name.trim().to_owned()))
            })
            .collect();
        let mut descriptors: Vec<String> = entries("/proc/self/fd")
            .iter()
            // The descriptor of the listing itself is closed by now.
            .filter_map(|descriptor| fs::read_link(format!("/proc/self/fd/{descriptor}")).ok())
            .map(|target| target.display().to_string())
            .collect();
        descriptors.sort();
        ResourceSnapshot { threads, descriptors }
    }

    /// Waits, up to three seconds, until the process has no thread or descriptor that is not in
    /// this snapshot.
    ///
    /// Each is compared by its identity: a socket that is left behind is found even if another has
    /// been closed meanwhile.
    ///
    /// # Errors
    /// The names of the threads and descriptors that are not in this snapshot.
    pub fn wait_for_no_leaks(&self) -> Result<(), String> {
        let deadline = Instant::now() + LINGER_MAX;
        loop {
            let Some(more) = ResourceSnapshot::take().more_than(self) else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(more);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Describes what is in this snapshot and not in `before`.
    fn more_than(&self, before: &ResourceSnapshot) -> Option<String> {
        // By id alone: a thread that has just started still has its parent's name.
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

/// Runs `work` and checks that it leaves no thread and no descriptor behind. Linux only.
///
/// The check covers the whole process, so nothing else may run at the same time: put the test into
/// a binary of its own, or use `--test-threads=1`. Things that a library sets up once and keeps
/// (TLS roots, a logger) have to be set up before. A connection that was open before and reconnects
/// during the work has a new socket, which counts as left behind.
///
/// # Panics
/// If `work` panics, or if a thread or descriptor is left for longer than three seconds. The
/// message names it.
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
///     assert!(server.wait_until_all_closed(Duration::from_secs(5)));
/// });
/// ```
pub fn assert_no_leaks<T>(work: impl FnOnce() -> T) -> T {
    let before = ResourceSnapshot::take();
    let result = work();
    if let Err(more) = before.wait_for_no_leaks() {
        panic!("something was left behind: {more}");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(threads: &[(u32, &str)], descriptors: &[&str]) -> ResourceSnapshot {
        ResourceSnapshot {
            threads: threads.iter().map(|(number, name)| (*number, (*name).to_owned())).collect(),
            descriptors: descriptors.iter().map(|target| (*target).to_owned()).collect(),
        }
    }

    #[test]
    fn a_thread_that_is_left_behind_is_named() {
        let before = ResourceSnapshot::take();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let (tell, told) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("left-behind".to_owned());
        let body = move || {
            tell.send(()).expect("the test waits");
            held.recv().is_err()
        };
        let thread = thread.spawn(body).expect("there are threads");
        // The thread has its name by now.
        told.recv().expect("it runs");
        let more = ResourceSnapshot::take().more_than(&before).expect("a thread is left behind");
        assert!(more.contains("left-behind"), "{more}");
        drop(release);
        assert!(thread.join().expect("it does not panic"));
    }

    #[test]
    fn what_has_gone_does_not_hide_what_is_new() {
        let before =
            snapshot(&[(1, "main"), (2, "reader")], &["/dev/null", "/dev/null", "socket:[10]"]);
        assert_eq!(before.more_than(&before), None);
        assert_eq!(snapshot(&[(1, "main")], &["/dev/null"]).more_than(&before), None);
        let now = snapshot(&[(1, "main"), (3, "reader")], &["/dev/null", "socket:[11]"]);
        assert_eq!(
            now.more_than(&before).as_deref(),
            Some(r#"threads ["reader (3)"]; descriptors ["socket:[11]"]"#)
        );
        let now = snapshot(&[], &["/dev/null", "/dev/null", "/dev/null"]);
        assert_eq!(
            now.more_than(&before).as_deref(),
            Some(r#"threads []; descriptors ["/dev/null"]"#)
        );
    }
}
