//! Runs the program in child processes, and reads what it prints.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Returns the command that runs the program with these arguments.
pub(crate) fn tautline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tautline"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Returns the command that runs `tail` with these arguments.
pub(crate) fn tail(arguments: &[&str]) -> Command {
    tautline(&[&["tail"], arguments].concat())
}

/// Runs `tail` to its end, and returns its exit status, the objects it printed behind `started`,
/// and its standard error.
pub(crate) fn run_to_end(arguments: &[&str]) -> (i32, Vec<Value>, String) {
    let output = tail(arguments).output().expect("it starts");
    let printed = String::from_utf8(output.stdout).expect("it prints UTF-8");
    let mut objects: Vec<Value> = printed.lines().map(object).collect();
    if !objects.is_empty() {
        let started = objects.remove(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        let since = started["unix_ns"].as_u64().expect("the wall clock time");
        assert!(started["event"] == "started" && u128::from(since) <= now.as_nanos(), "{started}");
        assert!(u128::from(since) + SOON.as_nanos() > now.as_nanos(), "{started}");
    }
    (
        output.status.code().expect("it exits"),
        objects,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

pub(crate) fn object(line: &str) -> Value {
    serde_json::from_str(line).expect("each line is an object")
}

/// Removes the fields that differ from run to run, and checks that they are numbers.
pub(crate) fn stripped(mut object: Value) -> Value {
    let fields = object.as_object_mut().expect("an object");
    let is_number = |fields: &mut serde_json::Map<String, Value>, name: &str| {
        fields.remove(name).is_none_or(|value| value.is_u64())
    };
    assert!(fields.remove("ns").is_some_and(|ns| ns.is_u64()), "{fields:?}");
    assert!(
        is_number(fields, "ms") && is_number(fields, "retry_in_ms")
            || fields["event"] == "disconnected"
    );
    if fields["event"] != "stopped" {
        fields.remove("detail");
    }
    object
}

pub(crate) fn kinds(objects: &[Value]) -> Vec<&str> {
    objects
        .iter()
        .map(|object| object["event"].as_str().expect("each object names its event"))
        .collect()
}

pub(crate) fn assert_ends_clean(objects: &[Value]) {
    let last = objects.last().expect("there is a last object");
    assert_eq!((&last["event"], &last["clean"]), (&json!("stopped"), &json!(true)), "{objects:?}");
    let threads = last["threads"].as_array().expect("the threads");
    assert!(
        threads.iter().any(|thread| thread["name"] == "taut-reader" && thread["ended"] == true),
        "{last}"
    );
}

/// Reads objects until one reports this event.
pub(crate) fn read_until(kind: &str, lines: &mut std::io::Lines<BufReader<ChildStdout>>) -> Value {
    loop {
        let line = lines.next().expect("more comes").expect("it can be read");
        let object = object(&line);
        if object["event"] == kind {
            return object;
        }
    }
}

pub(crate) fn lines_of(child: &mut Child) -> std::io::Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().expect("it is piped")).lines()
}

/// Waits for a condition that no event announces.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::yield_now();
    }
}

/// Returns the URL that `replay` says it serves.
pub(crate) fn served(child: &mut Child) -> String {
    let first = lines_of(child).next().expect("it prints something").expect("it can be read");
    first.strip_prefix("serving ").expect("a URL").to_owned()
}

/// Ends `replay` by a signal, which is no failure.
pub(crate) fn end(mut child: Child) {
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

/// A folder for the files of one test, which goes with them.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("tautline-cli-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // A test that failed has left it behind.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("there is room for a folder");
        Folder(path)
    }

    /// Returns the path of a file in it.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("it is UTF-8").to_owned()
    }

    /// Returns its files, in the order of their names.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("it is there");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in the system's folder for such files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process has a number");
    rustix::process::kill_process(pid, signal).expect("it is there");
}
