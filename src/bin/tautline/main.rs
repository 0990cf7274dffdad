//! The program `tautline`: looks into WebSocket feeds, measures, records and replays them.
//!
//! - `connection` has the options of everything that connects, and makes a `Builder` of them.
//! - `help` has the topics that are too long for the help of a command, and the completions.
//! - `objects` turns events into JSON, `notices` into words, and `visible` makes what a server says
//!   safe for a terminal.
//! - `figures` has durations, counts and their distribution.
//! - `printer` writes to standard output, and says when that fails.
//! - `stderr` writes to standard error, whether or not anybody reads it.
//! - `recording` writes the files of a recording.
//! - The other modules are a command each.

mod bench;
mod connection;
mod figures;
mod help;
mod notices;
mod objects;
mod ping;
mod printer;
mod record;
mod recording;
mod replay;
mod signals;
mod stderr;
mod tail;
mod visible;
mod watch;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Looks into WebSocket feeds, measures, records and replays them.
#[derive(Parser)]
#[command(name = "tautline", version, disable_help_subcommand = true)]
#[command(help_template = help::PROGRAM_TEMPLATE, after_help = help::PROGRAM)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Tail(Box<tail::Options>),
    Ping(Box<ping::Options>),
    Bench(Box<bench::Options>),
    Record(Box<record::Options>),
    Replay(replay::Options),
    Watch(Box<watch::Options>),
    Help(help::Options),
    Completions(help::CompletionsOptions),
}

/// The result of a command that was used rightly: whether it did what was asked for.
type Done = bool;

fn main() -> ExitCode {
    let command = match Program::try_parse() {
        Ok(program) => program.command,
        Err(error) => return help::wrong_usage(&error),
    };
    // A recording without its end is worth a line by itself.
    let log = env_logger::Env::default().default_filter_or("error,tautline::testing=warn");
    let mut logger = env_logger::Builder::from_env(log);
    // Into a file or a pipe it goes as it does elsewhere.
    if matches!(command, Command::Watch(_)) && io::stderr().is_terminal() {
        logger.target(env_logger::Target::Pipe(Box::new(watch::LogWriter)));
    }
    logger.init();
    let done = match command {
        Command::Tail(options) => tail::run(&options),
        Command::Ping(options) => ping::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Record(options) => record::run(&options),
        Command::Replay(options) => replay::run(options),
        Command::Watch(options) => watch::run(&options),
        Command::Help(options) => help::run(&options),
        Command::Completions(options) => help::complete(&options),
    };
    let status = match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(usage) => {
            printer::complain(&usage);
            ExitCode::from(2)
        }
    };
    stderr::finish();
    status
}
