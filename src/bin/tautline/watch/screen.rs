//! The terminal while the view is on it, and its way back, whatever ends the program.
//!
//! There is one terminal, which panics and signals have to find: its state is that of the process.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Stdout, Write};
use std::mem::ManuallyDrop;
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};

/// The view is on the terminal.
static IS_ENTERED: AtomicBool = AtomicBool::new(false);

/// Held while a frame is drawn, and while the screen is entered or left.
static DRAWING: Mutex<()> = Mutex::new(());

/// Another program may have drawn since the last frame.
static IS_STALE: AtomicBool = AtomicBool::new(false);

/// The time that leaving waits for a frame that is being drawn. A panic in the middle of one, or a
/// terminal that takes nothing, is not waited for any longer.
const FRAME: Duration = Duration::from_millis(200);

/// The time for which an exit at once waits for a terminal that takes nothing.
const EXIT: Duration = Duration::from_millis(500);

/// The alternate screen. Its drop brings back the other one.
pub(crate) struct Screen {
    /// Its own drop would print to standard error if the terminal has gone, and panic if that is
    /// the terminal too.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<Stdout>>>,
}

impl Screen {
    pub(crate) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let previous = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                // First: its text would vanish with the alternate screen.
                restore();
                previous(panic);
            }));
        });
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        let screen = Screen { terminal: ManuallyDrop::new(terminal) };
        let _drawing = DRAWING.lock();
        set_up()?;
        Ok(screen)
    }

    /// Draws a frame.
    pub(crate) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        let _drawing = DRAWING.lock();
        if !IS_ENTERED.load(Ordering::Relaxed) {
            return Err(io::Error::other("the screen has been left"));
        }
        if IS_STALE.swap(false, Ordering::Relaxed) {
            self.terminal.clear()?;
        }
        self.terminal.draw(draw)?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Returns whether the view can be drawn here.
pub(crate) fn is_terminal() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb
}

fn set_up() -> io::Result<()> {
    // What fails midway is undone as well.
    IS_ENTERED.store(true, Ordering::Relaxed);
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, Hide)?;
    IS_STALE.store(true, Ordering::Relaxed);
    Ok(())
}

fn restore_now() {
    if IS_ENTERED.load(Ordering::Relaxed) {
        // A terminal that has gone is in no state.
        let _ = disable_raw_mode();
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        // From here on records need not be kept.
        IS_ENTERED.store(false, Ordering::Relaxed);
        LOG.write_kept();
    }
}

/// Leaves the terminal as it was. Does nothing if that has been done.
pub(crate) fn restore() {
    let _drawing = DRAWING.try_lock_for(FRAME);
    restore_now();
}

/// Leaves the terminal as it was, unless that takes too long, for a program that ends at once.
pub(crate) fn restore_before_exit() {
    let (done, is_done) = crossbeam_channel::bounded::<()>(0);
    thread::spawn(move || {
        restore();
        drop(done);
    });
    // Only the drop wakes it.
    let _ = is_done.recv_timeout(EXIT);
}

/// Leaves the screen, calls `stop`, which returns when the program is to go on, and enters the
/// screen again.
pub(crate) fn suspend(stop: impl FnOnce()) {
    let _drawing = DRAWING.lock();
    let was_entered = IS_ENTERED.load(Ordering::Relaxed);
    restore_now();
    stop();
    if was_entered && set_up().is_err() {
        // The next frame ends the program.
        restore_now();
    }
}

/// The log's way to standard error. While the view is on the terminal the latest records are kept,
/// and they are written once the terminal is as it was.
pub(crate) struct LogWriter;

impl Write for LogWriter {
    /// Takes a whole record.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if !LOG.keep_if(|| IS_ENTERED.load(Ordering::Relaxed), record) {
            io::stderr().write_all(record)?;
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static LOG: Log = Log(Mutex::new(Kept { records: VecDeque::new(), bytes: 0, lost: 0 }));

struct Log(Mutex<Kept>);

struct Kept {
    records: VecDeque<Vec<u8>>,
    /// The bytes of all of them, at most `KEPT_BYTES`.
    bytes: usize,
    /// The number of older records, which had to make room.
    lost: u64,
}

const KEPT_BYTES: usize = 64 << 10;

impl Log {
    /// Keeps a record, if that is what to do. That is asked under the lock: otherwise a record
    /// could come after the others have been written.
    fn keep_if(&self, is_kept: impl FnOnce() -> bool, record: &[u8]) -> bool {
        let mut kept = self.0.lock();
        if !is_kept() {
            return false;
        }
        kept.bytes += record.len();
        kept.records.push_back(record.to_vec());
        while kept.bytes > KEPT_BYTES {
            let Some(oldest) = kept.records.pop_front() else { break };
            kept.bytes -= oldest.len();
            kept.lost += 1;
        }
        true
    }

    fn write_kept(&self) {
        let (records, lost) = {
            let mut kept = self.0.lock();
            kept.bytes = 0;
            (std::mem::take(&mut kept.records), std::mem::take(&mut kept.lost))
        };
        let mut stderr = io::stderr().lock();
        // Standard error may be closed.
        if lost > 0 {
            let _ = writeln!(stderr, "tautline: {lost} earlier log records are left out");
        }
        for record in records {
            let _ = stderr.write_all(&record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_log_records_are_kept_within_their_bound() {
        let log = Log(Mutex::new(Kept { records: VecDeque::new(), bytes: 0, lost: 0 }));
        for number in 0..10_000 {
            assert!(log.keep_if(|| true, format!("record {number:04}\n").as_bytes()));
        }
        assert!(!log.keep_if(|| false, b"not kept\n"));
        {
            let kept = log.0.lock();
            assert_eq!(kept.records.len(), KEPT_BYTES / 12);
            assert_eq!(kept.lost, 10_000 - kept.records.len() as u64);
            assert_eq!(kept.records.back().map(Vec::as_slice), Some(&b"record 9999\n"[..]));
        }
        log.keep_if(|| true, &[b'x'; KEPT_BYTES + 1]);
        let kept = log.0.lock();
        assert_eq!((kept.records.len(), kept.bytes, kept.lost), (0, 0, 10_001));
    }

    /// Tells this test that it is the one in the terminal.
    #[cfg(unix)]
    const IN_TERMINAL: &str = "TAUTLINE_TEST_IN_TERMINAL";

    #[cfg(unix)]
    #[test]
    fn a_panic_while_it_draws_leaves_the_terminal_as_it_was_and_is_shown() {
        use std::process::Command;
        use std::time::Instant;

        if std::env::var_os(IN_TERMINAL).is_some() {
            let mut screen = Screen::enter().expect("this is a terminal");
            let _ = screen.draw(|_| panic!("in the middle of a frame"));
            return;
        }
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("SKIPPED: there is no tmux");
            return;
        }
        let socket = format!("tautline-panic-{}", std::process::id());
        let tmux = |arguments: &[&str]| {
            let output = Command::new("tmux")
                .args(["-f", "/dev/null", "-L", &socket])
                .args(arguments)
                .env_remove("TMUX")
                .output()
                .expect("tmux starts");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let program = std::env::current_exe().expect("it runs");
        let script = format!(
            "before=$(stty -g); {IN_TERMINAL}=1 RUST_BACKTRACE=0 '{}' --nocapture --exact \
             watch::screen::tests::a_panic_while_it_draws_leaves_the_terminal_as_it_was_and_is_shown
             test \"$before\" = \"$(stty -g)\" && echo settings are the same; sleep 1000",
            program.display()
        );
        tmux(&["new-session", "-d", "-x", "120", "-y", "30", &script]);
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_there = |text: &str| tmux(&["capture-pane", "-p"]).contains(text);
        while !is_there("settings are the same") && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let screen = tmux(&["capture-pane", "-p"]);
        let flags = tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        tmux(&["kill-server"]);
        assert!(screen.contains("settings are the same"), "{screen}");
        assert!(screen.contains("in the middle of a frame"), "{screen}");
        assert_eq!(flags.trim(), "0 1");
    }
}
