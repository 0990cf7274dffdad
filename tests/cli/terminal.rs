//! Runs the program in a terminal: a tmux of its own, without a user's settings.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::SOON;

/// The time between two looks at the screen.
const LOOK: Duration = Duration::from_millis(20);

/// A terminal in which the program runs, between two lines that tell the terminal's settings.
pub(crate) struct Terminal {
    socket: String,
    folder: PathBuf,
}

impl Terminal {
    /// Runs the program in a terminal of 80 columns and 24 rows. `None` without tmux, after saying
    /// so.
    pub(crate) fn run(arguments: &[&str]) -> Option<Self> {
        Self::run_with("", arguments)
    }

    /// Runs the program with these variables, as a shell takes them.
    pub(crate) fn run_with(variables: &str, arguments: &[&str]) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("SKIPPED: there is no tmux");
            return None;
        }
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket = format!("tautline-test-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(&socket);
        fs::create_dir_all(&folder).expect("there is room for a folder");
        let quoted: Vec<String> = [env!("CARGO_BIN_EXE_tautline")]
            .iter()
            .chain(arguments)
            .map(|argument| format!("'{}'", argument.replace('\'', r"'\''")))
            .collect();
        let folder_text = folder.display();
        // `exec` gives the program the number that was written. The shell outlives the terminal, as
        // far as `read`, to tell the status.
        let script = format!(
            "trap '' HUP\ncd '{folder_text}'\nstty -a >before\n\
             {variables} sh -c 'echo $$ >number; exec \"$@\"' sh {}\n\
             status=$?\necho $status >status\necho status=$status ended\nstty -a >after\n\
             echo settings are written\nread line\n",
            quoted.join(" ")
        );
        let path = folder.join("run.sh");
        fs::write(&path, script).expect("there is room for a file");
        let terminal = Terminal { socket, folder };
        let path = path.to_str().expect("it is UTF-8");
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "sh", path]);
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-u", "-f", "/dev/null", "-L", &self.socket])
            .args(arguments)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .output()
            .expect("tmux starts");
        assert!(output.status.success(), "tmux {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("it prints UTF-8")
    }

    /// Returns what the screen shows.
    pub(crate) fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Returns what the screen shows, and what has left it at the top; lines are joined that were
    /// wrapped.
    pub(crate) fn history(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J", "-S", "-"])
    }

    /// Waits until the screen shows this, and returns all of it.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |screen| screen.contains(text))
    }

    pub(crate) fn wait_until(&self, awaited: &str, is_there: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let screen = self.screen();
            if is_there(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "it never shows {awaited}:\n{screen}");
            thread::sleep(LOOK);
        }
    }

    pub(crate) fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// Sends the program a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let number = fs::read_to_string(self.folder.join("number")).expect("it has started");
        let number = number.trim().parse().ok().and_then(Pid::from_raw);
        kill_process(number.expect("a process has a number"), signal).expect("it is there");
    }

    /// Ends tmux, so that the terminal hangs up, and returns the status of the program after that.
    pub(crate) fn hang_up(&self) -> String {
        self.tmux(&["kill-server"]);
        let deadline = Instant::now() + SOON;
        loop {
            match fs::read_to_string(self.folder.join("status")) {
                Ok(status) if status.ends_with('\n') => return status.trim().to_owned(),
                _ => assert!(Instant::now() < deadline, "it never ends"),
            }
            thread::sleep(LOOK);
        }
    }

    /// Returns whether the alternate screen is on, and whether the cursor is hidden.
    pub(crate) fn is_taken(&self) -> bool {
        let flags = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        match flags.trim() {
            "1 0" => true,
            "0 1" => false,
            other => panic!("it is neither taken nor as it was: {other}"),
        }
    }

    /// Waits until the program has ended with this status, checks that the terminal is as it was
    /// before, and returns what it shows.
    pub(crate) fn assert_ends(&self, status: i32) -> String {
        self.wait_for("settings are written");
        assert!(!self.is_taken());
        let settings = |name| fs::read_to_string(self.folder.join(name)).expect("it was written");
        assert_eq!(settings("before"), settings("after"));
        let history = self.history();
        assert!(history.contains(&format!("status={status} ended")), "{history}");
        history
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.socket, "kill-server"]).output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
