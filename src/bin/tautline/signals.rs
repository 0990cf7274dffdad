//! SIGINT, SIGTERM and SIGHUP end a command, which closes its connections first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never};
use parking_lot::Mutex;
use tautline::Stopper;

/// A second signal so soon is the same one: `timeout` signals its child, and then its group.
const SAME: Duration = Duration::from_millis(500);

/// The time for the end of a command, besides that for stopping its clients.
const ENDING: Duration = Duration::from_secs(1);

/// The clients that the first signal stops.
static CLIENTS: Mutex<Vec<Stopper>> = Mutex::new(Vec::new());

/// Returns a channel that receives a token at SIGINT, SIGTERM and, unless it is ignored, SIGHUP.
/// A second signal ends the program at once, and so does the time: clients have `limit` to stop,
/// and then a second is left, though nobody may read what the command still prints. Call it before
/// the first connection, so that no signal meets the default handler.
pub(crate) fn watch(limit: Duration) -> Result<Receiver<()>, String> {
    Ok(imp::watch(None, limit)?.signaled)
}

/// Has the first signal stop a client, whatever the command is busy with.
pub(crate) fn stops(client: Stopper) {
    CLIENTS.lock().push(client);
}

/// Returns a channel that is told when `wait` is over, and never without one. A duration beyond
/// what the clock can represent is never over.
pub(crate) fn over(wait: Option<Duration>) -> Receiver<Instant> {
    wait.and_then(|wait| Instant::now().checked_add(wait)).map_or_else(never, at)
}

/// Stops the clients after `wait`, and ends the program with the status 1 if it has not ended by
/// itself in the time that it has after a signal, too.
pub(crate) fn end_after(wait: Duration, limit: Duration) {
    // It ends with the program.
    thread::spawn(move || {
        thread::sleep(wait);
        stop_clients();
        thread::sleep(limit.saturating_add(ENDING));
        std::process::exit(1);
    });
}

fn stop_clients() {
    CLIENTS.lock().iter().for_each(Stopper::request_stop);
}

/// As [`watch`], for a command that has changed the terminal: every signal that would end it does,
/// `restore` is called before a second signal ends the program, and at SIGTSTP `suspend`, with a
/// function that stops the program until SIGCONT.
pub(crate) fn watch_on_screen(restore: fn(), suspend: fn(fn())) -> Result<Ending, String> {
    // The view is no longer drawn then, and a second signal ends the program.
    imp::watch(Some(OnScreen { restore, suspend }), Duration::MAX)
}

/// The end of a command, as signals ask for it.
pub(crate) struct Ending {
    pub(crate) signaled: Receiver<()>,
    has_begun: Arc<AtomicBool>,
}

impl Ending {
    /// Makes the next signal end the program at once, though it may be the first.
    pub(crate) fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }
}

/// The effects of signals on a command that has changed the terminal.
struct OnScreen {
    restore: fn(),
    suspend: fn(fn()),
}

#[cfg(unix)]
mod imp {
    use signal_hook::consts::{
        SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGXCPU,
    };
    use signal_hook::iterator::Signals;
    use signal_hook::low_level;

    use super::*;

    pub(super) fn watch(on_screen: Option<OnScreen>, limit: Duration) -> Result<Ending, String> {
        let others: &[_] = match &on_screen {
            Some(_) => &[SIGHUP, SIGQUIT, SIGTSTP, SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU],
            // `nohup` asks for that.
            None if ignores_hangup() => &[],
            None => &[SIGHUP],
        };
        let mut signals = Signals::new([SIGINT, SIGTERM].iter().chain(others))
            .map_err(|error: io::Error| format!("cannot watch for signals: {error}"))?;
        let (tell, signaled) = crossbeam_channel::bounded(1);
        let has_begun = Arc::new(AtomicBool::new(false));
        let ending = Ending { signaled, has_begun: Arc::clone(&has_begun) };
        thread::spawn(move || {
            let mut first: Option<Instant> = None;
            for signal in signals.forever() {
                let is_same = first.is_some_and(|first| first.elapsed() < SAME);
                match &on_screen {
                    Some(OnScreen { suspend, .. }) if signal == SIGTSTP => suspend(stop),
                    _ if !has_begun.swap(true, Ordering::Relaxed) => {
                        first = Some(Instant::now());
                        // A full channel holds a token already.
                        let _ = tell.try_send(());
                        if on_screen.is_none() {
                            stop_clients();
                            exit_after(limit, signal);
                        }
                    }
                    None if is_same => {}
                    // A terminal that goes away may say so twice, by the kernel and by a shell.
                    _ if signal == SIGHUP => {}
                    _ => {
                        if let Some(OnScreen { restore, .. }) = &on_screen {
                            restore();
                        }
                        std::process::exit(128 + signal);
                    }
                }
            }
        });
        Ok(ending)
    }

    fn exit_after(limit: Duration, signal: i32) {
        // It ends with the program.
        thread::spawn(move || {
            thread::sleep(limit.saturating_add(ENDING));
            std::process::exit(128 + signal);
        });
    }

    /// Returns whether the program was started with SIGHUP ignored. Where the system does not tell,
    /// it counts as ignored: a handler would end what was to go on.
    fn ignores_hangup() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_none_or(|mask| mask & 1 << (SIGHUP - 1) != 0)
    }

    /// Stops the program, as SIGTSTP does that nobody handles, and returns at SIGCONT.
    fn stop() {
        // It can fail for signals alone that do not exist.
        let _ = low_level::emulate_default_handler(SIGTSTP);
    }

    pub(super) fn raise_stop() {
        let _ = low_level::raise(SIGTSTP);
    }
}

/// Does what Ctrl-Z does where it is a signal.
pub(crate) fn raise_stop() {
    imp::raise_stop();
}

/// Signals are watched on Unix only. Elsewhere Ctrl-C ends the program at once.
#[cfg(not(unix))]
mod imp {
    use super::*;

    pub(super) fn watch(_: Option<OnScreen>, _: Duration) -> Result<Ending, String> {
        let signaled = crossbeam_channel::never();
        Ok(Ending { signaled, has_begun: Arc::default() })
    }

    pub(super) fn raise_stop() {}
}
