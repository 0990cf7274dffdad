//! Help: the topics that would not fit into the help of a command, and completions for shells.
//!
//! Each help fits on a screen of 80 columns and 24 rows, which `tests/cli` checks.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::printer::{Printed, print};
use crate::{Done, Program, connection};

/// The help of every command: what it does, its usage, its options, and examples.
pub(crate) const TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

{options}{after-help}";

/// The help of the program itself.
pub(crate) const PROGRAM_TEMPLATE: &str = "\
{about}

{usage-heading} {usage}

{subcommands}{after-help}";

/// Behind the help of the program itself.
pub(crate) const PROGRAM: &str = "\
Examples:
  tautline tail --help
  tautline tail wss://stream.binance.com/ws/btcusdt@trade
  tautline record wss://stream.binance.com/ws/btcusdt@trade btc.jsonl.zst
  tautline replay btc.jsonl.zst

SIGINT and SIGTERM close connections and end the program; a second signal ends
it at once. The exit status is 0 after success or a stop that was asked for, 1
after a failure, 2 for wrong usage. RUST_LOG=tautline=debug logs to standard
error.";

/// Behind the help of a command that connects, before its examples.
macro_rules! connects {
    ($examples:literal) => {
        concat!(
            "-H HEADER, -s SUBPROTOCOL, -k, TLS, proxies: see `tautline help connection`.\n",
            "Timeouts, pings, retries: `tautline help timing`.\n\nExamples:\n",
            $examples
        )
    };
}
pub(crate) use connects;

const TOPICS: [&str; 10] = [
    "tail",
    "ping",
    "bench",
    "record",
    "replay",
    "watch",
    "help",
    "completions",
    "connection",
    "timing",
];

/// Prints help on a command, and on the options that several have
#[derive(Args)]
#[command(help_template = TEMPLATE, after_help = "\
Examples:
  tautline help tail
  tautline help connection   # headers, subprotocols, TLS, proxies, compression
  tautline help timing       # timeouts, pings, retries")]
pub(crate) struct Options {
    /// A command, `connection` or `timing`
    #[arg(hide = true, value_parser = TOPICS)]
    topic: Option<String>,
}

/// Prints completions for bash, zsh or fish
#[derive(Args)]
#[command(help_template = TEMPLATE, after_help = "\
Examples:
  source <(tautline completions bash)               # a line for ~/.bashrc
  tautline completions zsh > ~/.zfunc/_tautline     # a folder of $fpath
  tautline completions fish > ~/.config/fish/completions/tautline.fish")]
pub(crate) struct CompletionsOptions {
    #[arg(hide = true)]
    shell: CompletedShell,
}

#[derive(Clone, Copy, ValueEnum)]
enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(options: &Options) -> Result<Done, String> {
    let mut program = Program::command();
    // Subcommands get their full names.
    program.build();
    let mut command = match options.topic.as_deref() {
        None => program,
        Some("connection") => topic::<connection::Handshake>(
            "connection",
            "Options of all commands that connect: what is agreed on with the server",
            "A pin is sha256/ and the hash of the key in base64; a wrong one, such as\n\
             sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, has the right one printed.\n\
             A proxy is http://, https://, socks5:// (looks hosts up here) or socks5h://,\n\
             perhaps user:password@, then host:port. With `env` the variables https_proxy,\n\
             http_proxy, all_proxy and no_proxy say it.",
        ),
        Some("timing") => topic::<connection::Timing>(
            "timing",
            "Options of all commands that connect: timeouts, pings, retries",
            "Write durations as 300ms, 15s, 2m or 1h.",
        ),
        Some(name) => program.find_subcommand(name).expect("the others are commands").clone(),
    };
    let text = command.render_help();
    Ok(print(&text.to_string()) != Printed::Failed)
}

/// Prints what is wrong with the command line, without what could be a secret in it.
pub(crate) fn wrong_usage(error: &clap::Error) -> ExitCode {
    // Help and the version are asked for by flags, and are no errors.
    if !error.use_stderr() {
        return match print(&error.to_string()) {
            Printed::Failed => ExitCode::from(1),
            _ => ExitCode::SUCCESS,
        };
    }
    let mut text = error.to_string();
    for argument in std::env::args_os().skip(1) {
        let argument = argument.to_string_lossy();
        // `--header=...` too.
        for part in [&argument[..], argument.split_once('=').map_or("", |(_, value)| value)] {
            let is_plain = part.len() < 16 && !part.contains([':', '?', '=', ' ', '@']);
            if !is_plain && !part.starts_with('-') {
                text = text.replace(part, "[...]");
            }
        }
    }
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(2)
}

/// Returns a command whose help shows the options of `Shown`.
fn topic<Shown: Args>(name: &'static str, about: &'static str, more: &'static str) -> Command {
    Shown::augment_args(Command::new(name))
        .about(about)
        .after_help(more)
        .disable_help_flag(true)
        .help_template("{about}\n\n{options}{after-help}")
        .mut_args(|arg| arg.hide(false))
}

pub(crate) fn complete(options: &CompletionsOptions) -> Result<Done, String> {
    let shell = match options.shell {
        CompletedShell::Bash => Shell::Bash,
        CompletedShell::Zsh => Shell::Zsh,
        CompletedShell::Fish => Shell::Fish,
    };
    // Hidden options are to be completed as well.
    let names: Vec<String> =
        Program::command().get_subcommands().map(|each| each.get_name().to_owned()).collect();
    let mut program = Program::command();
    for name in names {
        program = program.mut_subcommand(name, |command| command.mut_args(|arg| arg.hide(false)));
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "tautline", &mut script);
    let script = String::from_utf8(script).expect("clap writes UTF-8");
    Ok(print(&script) != Printed::Failed)
}
