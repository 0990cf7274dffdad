//! Standard error. The feed goes on when nobody reads it, and when its disk is full.

use std::fmt::Arguments;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Texts that wait to be written. Beyond them they are left out.
const WAITING: usize = 1024;

/// The longest wait for them at the end of the program.
const FINISH: Duration = Duration::from_secs(1);

/// Moves the cursor of a terminal to the start of its line, and clears it (ECMA-48, EL).
const CLEAR_LINE: &str = "\r\x1b[K";

/// The terminal has a line that the next one is written over.
static HAS_LIVE_LINE: AtomicBool = AtomicBool::new(false);

enum Job {
    Write(String),
    Finish(Sender<()>),
}

/// Shows a line. On a terminal the next one is written over it, and it is cut to the width.
pub(crate) fn live(line: &str) {
    if io::stderr().is_terminal() {
        let columns = ratatui::crossterm::terminal::size().map_or(80, |(columns, _)| columns);
        let line: String = line.chars().take(usize::from(columns.saturating_sub(1))).collect();
        HAS_LIVE_LINE.store(true, Ordering::Relaxed);
        write(format!("{CLEAR_LINE}{line}"));
    } else {
        write(format!("{line}\n"));
    }
}

/// Writes a line, over a live one.
pub(crate) fn line(text: Arguments<'_>) {
    let has_live_line = HAS_LIVE_LINE.swap(false, Ordering::Relaxed);
    let clear = if has_live_line { CLEAR_LINE } else { "" };
    write(format!("{clear}{text}\n"));
}

/// Writes a text: at once to a terminal, so that the order is kept, and otherwise on a thread of
/// its own. A text that cannot be written is lost.
fn write(text: String) {
    if io::stderr().is_terminal() {
        let _ = io::stderr().write_all(text.as_bytes());
    } else {
        let _ = writer().try_send(Job::Write(text));
    }
}

/// Waits until everything is written, for a second at most.
pub(crate) fn finish() {
    let (tell, told) = bounded(1);
    if writer().send_timeout(Job::Finish(tell), FINISH).is_ok() {
        let _ = told.recv_timeout(FINISH);
    }
}

fn writer() -> &'static Sender<Job> {
    static WRITER: OnceLock<Sender<Job>> = OnceLock::new();
    WRITER.get_or_init(|| {
        let (give, take) = bounded(WAITING);
        // It ends with the program: a write that blocks cannot be interrupted.
        thread::spawn(move || run(&take));
        give
    })
}

fn run(jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Write(text) => {
                let _ = io::stderr().write_all(text.as_bytes());
            }
            Job::Finish(tell) => {
                let _ = tell.send(());
            }
        }
    }
}
