//! `tautline replay`: serves a recording.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tautline::testing::{Pace, Peer, TestServer, check_recording};

use crate::printer::{Printed, complain, print};
use crate::{Done, help, signals};

/// The limit for ending the connections.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a recording to any client, as the server did
#[derive(Args)]
#[command(help_template = help::TEMPLATE, after_help = "\
Each client gets all messages from the start, those of several connections as
one, then a close frame with code 1000. What it sends is read and not answered.
`cat` joins the files of a recording that was rotated.

Examples:
  tautline replay btc.jsonl.zst
  tautline replay --speed 10 --address 127.0.0.1:9000 btc.jsonl
  tautline replay --fast btc.jsonl   # as fast as clients read")]
#[command(override_usage = "tautline replay [OPTIONS] <FILE>")]
pub(crate) struct Options {
    /// A recording, of `tautline record` or `tautline tail --json`
    #[arg(hide = true, value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Listen here [default: a free port of 127.0.0.1]
    #[arg(short, long, value_name = "ADDRESS")]
    address: Option<SocketAddr>,
    /// Send N times as fast as it was recorded [default: 1]
    #[arg(short, long, value_name = "N", value_parser = parse_speed)]
    speed: Option<f64>,
    /// Send as fast as clients read
    #[arg(short, long, conflicts_with = "speed")]
    fast: bool,
    /// Begin again at the end of the recording
    #[arg(short, long = "loop")]
    repeat: bool,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed: &f64| speed.is_finite() && *speed > 0.0);
    speed.ok_or_else(|| "it must be a positive number".to_owned())
}

/// Returns true after a signal. An error is wrong usage.
pub(crate) fn run(options: Options) -> Result<Done, String> {
    let signaled = signals::watch(STOP_TIMEOUT)?;
    let pace = match options.speed {
        _ if options.fast => Pace::Unpaced,
        Some(speed) => Pace::Times(speed),
        None => Pace::Recorded,
    };
    // A wrong file is to be told now, not when the first client comes.
    check_recording(&options.file).map_err(|error| error.to_string())?;
    let wanted = options.address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
    let listener =
        TcpListener::bind(wanted).map_err(|error| format!("cannot listen on {wanted}: {error}"))?;
    let script = move |peer: &mut Peer| serve(peer, &options, pace);
    let server = TestServer::builder().discard_messages().start_on(listener, script);
    if print(&format!("serving {}\n", server.url())) != Printed::Whole {
        return Ok(false);
    }
    // The channel is there as long as the program.
    let _ = signaled.recv();
    drop(server);
    Ok(true)
}

/// Serves one client, and says on standard error that it comes and that it goes.
fn serve(peer: &mut Peer, options: &Options, pace: Pace) -> io::Result<()> {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};

    peer.upgrade_with_first_subprotocol()?;
    let client = format!("client {}", peer.number() + 1);
    complain(&format!("{client} comes from {}", peer.address()?));
    let replayed = replay(peer, options, pace);
    match &replayed {
        Ok(()) => complain(&format!("{client} has got the whole recording")),
        Err(error) => match error.kind() {
            ConnectionAborted | UnexpectedEof | BrokenPipe | ConnectionReset => {
                complain(&format!("{client} goes"));
            }
            _ => complain(&format!("{client} is disconnected: {error}")),
        },
    }
    replayed
}

fn replay(peer: &mut Peer, options: &Options, pace: Pace) -> io::Result<()> {
    // A recording without messages would repeat itself without end.
    while peer.replay(&options.file, pace)? > 0 && options.repeat {}
    peer.close_and_wait(1000, "the recording is over")
}
