//! SIGINT and SIGTERM end a command, which closes its connections first.

use std::io;
use std::thread;

use crossbeam_channel::Receiver;

/// Returns a channel that receives a token at SIGINT and SIGTERM. A second signal ends the program
/// at once. Call it before the first connection, so that no signal meets the default handler.
#[cfg(unix)]
pub(crate) fn watch() -> Result<Receiver<()>, String> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|error: io::Error| format!("cannot watch for signals: {error}"))?;
    let (tell, told) = crossbeam_channel::bounded(1);
    thread::spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(128 + signal);
            }
            // A full channel holds a token already.
            let _ = tell.try_send(());
        }
    });
    Ok(told)
}

/// Signals are watched on Unix only. Elsewhere Ctrl-C ends the program at once.
#[cfg(not(unix))]
pub(crate) fn watch() -> Result<Receiver<()>, String> {
    Ok(crossbeam_channel::never())
}
