//! Standard error. The feed goes on when nobody reads it, and when its disk is full.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Texts that wait to be written. Beyond them they are left out.
const WAITING: usize = 1024;

/// The longest wait for them at the end of the program.
const FINISH: Duration = Duration::from_secs(1);

enum Job {
    Write(String),
    Finish(Sender<()>),
}

/// Writes a text: at once to a terminal, so that the order is kept, and otherwise on a thread of
/// its own. A text that cannot be written is lost.
pub(crate) fn write(text: String) {
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
