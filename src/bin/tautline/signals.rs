//! SIGINT and SIGTERM end a command, which closes its connections first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::Receiver;

/// Returns a channel that receives a token at SIGINT and SIGTERM. A second signal ends the program
/// at once. Call it before the first connection, so that no signal meets the default handler.
pub(crate) fn watch() -> Result<Receiver<()>, String> {
    Ok(imp::watch(None)?.signaled)
}

/// As [`watch`], for a command that has changed the terminal: SIGHUP and SIGQUIT end it too,
/// `restore` is called before a second signal ends the program, and at SIGTSTP `suspend`, with a
/// function that stops the program until SIGCONT.
pub(crate) fn watch_on_screen(restore: fn(), suspend: fn(fn())) -> Result<Ending, String> {
    imp::watch(Some(OnScreen { restore, suspend }))
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
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level;

    use super::*;

    pub(super) fn watch(on_screen: Option<OnScreen>) -> Result<Ending, String> {
        let of_screens: &[_] = if on_screen.is_some() { &[SIGHUP, SIGQUIT, SIGTSTP] } else { &[] };
        let mut signals = Signals::new([SIGINT, SIGTERM].iter().chain(of_screens))
            .map_err(|error: io::Error| format!("cannot watch for signals: {error}"))?;
        let (tell, signaled) = crossbeam_channel::bounded(1);
        let has_begun = Arc::new(AtomicBool::new(false));
        let ending = Ending { signaled, has_begun: Arc::clone(&has_begun) };
        thread::spawn(move || {
            for signal in signals.forever() {
                match &on_screen {
                    Some(OnScreen { suspend, .. }) if signal == SIGTSTP => suspend(stop),
                    _ if !has_begun.swap(true, Ordering::Relaxed) => {
                        // A full channel holds a token already.
                        let _ = tell.try_send(());
                    }
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

    pub(super) fn watch(_: Option<OnScreen>) -> Result<Ending, String> {
        let signaled = crossbeam_channel::never();
        Ok(Ending { signaled, has_begun: Arc::default() })
    }

    pub(super) fn raise_stop() {}
}
