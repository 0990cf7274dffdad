//! The terminal while the view is on it, and its way back, whatever ends the program.
//!
//! There is one terminal, which panics and signals have to find: its state is that of the process.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Stdout, Write};
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
static IS_UP: AtomicBool = AtomicBool::new(false);

/// Held while a frame is drawn, and while the screen is entered or left.
static TURN: Mutex<()> = Mutex::new(());

/// Another program may have drawn since the last frame.
static IS_STALE: AtomicBool = AtomicBool::new(false);

/// The time that leaving waits for a frame that is being drawn. A panic in the middle of one, or a
/// terminal that takes nothing, is not waited for any longer.
const FRAME: Duration = Duration::from_millis(200);

/// The time for which an exit at once waits for a terminal that takes nothing.
const EXIT: Duration = Duration::from_millis(500);

/// The alternate screen. Its drop brings back the other one.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    pub(crate) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let previous = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                // First: its text would vanish with the alternate screen.
                leave();
                previous(panic);
            }));
        });
        let screen = Screen { terminal: Terminal::new(CrosstermBackend::new(io::stdout()))? };
        let _turn = TURN.lock();
        up()?;
        Ok(screen)
    }

    /// Draws a frame.
    pub(crate) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        let _turn = TURN.lock();
        if !IS_UP.load(Ordering::Relaxed) {
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
        leave();
    }
}

/// Returns whether the view can be drawn here.
pub(crate) fn is_terminal() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb
}

fn up() -> io::Result<()> {
    // What fails midway is undone as well.
    IS_UP.store(true, Ordering::Relaxed);
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, Hide)?;
    IS_STALE.store(true, Ordering::Relaxed);
    Ok(())
}

/// Leaves the terminal as it was. Does nothing if that has been done.
pub(crate) fn leave() {
    let _turn = TURN.try_lock_for(FRAME);
    down();
}

fn down() {
    if IS_UP.swap(false, Ordering::Relaxed) {
        // A terminal that has gone is in no state.
        let _ = disable_raw_mode();
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        LOG.write_kept();
    }
}

/// Leaves the terminal as it was, unless that takes too long, for a program that ends at once.
pub(crate) fn leave_at_once() {
    let (done, is_done) = crossbeam_channel::bounded::<()>(0);
    thread::spawn(move || {
        leave();
        drop(done);
    });
    // Only the drop wakes it.
    let _ = is_done.recv_timeout(EXIT);
}

/// Leaves the screen, calls `stop`, which returns when the program is to go on, and enters it again.
pub(crate) fn suspend(stop: impl FnOnce()) {
    let _turn = TURN.lock();
    let was_up = IS_UP.load(Ordering::Relaxed);
    down();
    stop();
    if was_up && up().is_err() {
        // The next frame ends the program.
        down();
    }
}

/// The log while the view is on the terminal. The latest records are kept, and written to standard
/// error once the terminal is as it was.
pub(crate) struct Log;

static LOG: KeptLog = KeptLog(Mutex::new(Kept { records: VecDeque::new(), bytes: 0, lost: 0 }));

struct KeptLog(Mutex<Kept>);

struct Kept {
    records: VecDeque<Vec<u8>>,
    /// The bytes of all of them, at most `KEPT_BYTES`.
    bytes: usize,
    lost: u64,
}

const KEPT_BYTES: usize = 64 << 10;

impl KeptLog {
    fn keep(&self, record: &[u8]) {
        let mut kept = self.0.lock();
        kept.bytes += record.len();
        kept.records.push_back(record.to_vec());
        while kept.bytes > KEPT_BYTES {
            let Some(oldest) = kept.records.pop_front() else { break };
            kept.bytes -= oldest.len();
            kept.lost += 1;
        }
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

impl Write for Log {
    /// Takes a whole record.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        match IS_UP.load(Ordering::Relaxed) {
            true => LOG.keep(record),
            false => io::stderr().write_all(record)?,
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_log_records_are_kept_within_their_bound() {
        let log = KeptLog(Mutex::new(Kept { records: VecDeque::new(), bytes: 0, lost: 0 }));
        for number in 0..10_000 {
            log.keep(format!("record {number:04}\n").as_bytes());
        }
        let kept = log.0.lock();
        assert_eq!(kept.records.len(), KEPT_BYTES / 12);
        assert_eq!(kept.lost, 10_000 - kept.records.len() as u64);
        assert_eq!(kept.records.back().map(Vec::as_slice), Some(&b"record 9999\n"[..]));
        drop(kept);
        log.keep(&[b'x'; KEPT_BYTES + 1]);
        let kept = log.0.lock();
        assert_eq!((kept.records.len(), kept.bytes, kept.lost), (0, 0, 10_001));
    }
}
