//! `tautline tail`: prints what a server sends and what happens to the connection.

use std::io::{self, BufRead, IsTerminal};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, Sender as ChannelSender, after, never, select, tick};
use tautline::{Client, Error, ErrorKind, Event, Opened, Sender, State, TryNextError};

use crate::objects::NotSent;
use crate::printer::{Form, Printer};
use crate::{Done, connection, help, notices, signals, stderr};

/// The longest wait for answers at the end of the input.
const ANSWERS: Duration = Duration::from_secs(2);

/// Prints what a server sends, and stays connected
#[derive(Args)]
#[command(help_template = help::TEMPLATE, after_help = help::connects!("  \
tautline tail wss://stream.binance.com/ws/btcusdt@trade
  tautline tail --json -x '{\"op\":\"ping\"}' wss://ws.okx.com/ws/v5/public | jq ."))]
pub(crate) struct Options {
    /// The server: ws:// or wss://
    #[arg(hide = true)]
    url: String,
    /// Send TEXT whenever a connection opens [repeatable]
    #[arg(short = 'x', long, value_name = "TEXT")]
    send: Vec<String>,
    /// Send each line of standard input; Ctrl-D ends the program
    #[arg(short, long)]
    interactive: bool,
    /// Also end at the end of a pipe or a file
    #[arg(long, requires = "interactive")]
    exit_on_eof: bool,
    /// Stop after N messages
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after the first message
    #[arg(short = '1', long, conflicts_with = "count")]
    once: bool,
    /// Stop after this long
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    for_duration: Option<Duration>,
    /// Print a count of the messages, not the messages
    #[arg(short, long)]
    quiet: bool,
    /// Print everything to standard output, as JSON
    #[arg(long)]
    json: bool,
    /// Begin each line with the time of day
    #[arg(short, long, conflicts_with = "json")]
    timestamps: bool,
    /// Print messages as they came, to a pipe or a file
    #[arg(long, conflicts_with_all = ["json", "timestamps"])]
    raw: bool,
    #[command(flatten)]
    connection: connection::Options,
}

impl Options {
    fn form(&self) -> Result<Form, String> {
        Ok(match (self.json, self.raw) {
            (true, _) => Form::Json,
            (_, true) if io::stdout().is_terminal() => {
                return Err(
                    "--raw would let the server steer this terminal: write to a pipe or a \
                            file"
                        .to_owned(),
                );
            }
            (_, true) => Form::Raw,
            _ => Form::Visible { timestamps: self.timestamps },
        })
    }

    fn count(&self) -> Option<u64> {
        if self.once { Some(1) } else { self.count }
    }
}

/// Returns true after a stop that was asked for, and false if the client gave up or standard output
/// could not be written. An error is wrong usage.
pub(crate) fn run(options: &Options) -> Result<Done, String> {
    let signaled = signals::watch(options.connection.stop_timeout())?;
    let builder = options.connection.builder(&options.url)?;
    let form = options.form()?;
    let client = options.connection.start(builder)?;
    signals::stops(client.stopper());
    if let Some(wait) = options.for_duration {
        signals::end_after(wait, options.connection.stop_timeout());
    }
    let printer = Arc::new(Printer::new(form));
    let (at_end, input_ended) = crossbeam_channel::bounded(1);
    if options.interactive {
        let ends_program = options.exit_on_eof || io::stdin().is_terminal();
        let (sender, printer) = (client.sender(), Arc::clone(&printer));
        // A read of standard input cannot be interrupted, so this thread is not joined. It prints
        // nothing once the printer is done.
        thread::spawn(move || send_lines(&sender, &printer, ends_program.then_some(at_end)));
    }
    let mut tail = Tail {
        options,
        client: &client,
        printer: &printer,
        messages: 0,
        was_signaled: false,
        gave_up: false,
    };
    tail.follow(&signaled, &if options.interactive { input_ended } else { never() });
    // A stop that was asked for is a success, however little has come.
    let is_enough = tail.was_signaled
        || !signaled.is_empty()
        || options.count().is_none_or(|count| tail.messages >= count);
    let report = client.stop(options.connection.stop_timeout());
    tail.drain();
    if options.quiet {
        stderr::line(format_args!("{}", tail.count()));
    }
    let gave_up = tail.gave_up;
    printer.last(|clock| clock.stopped(&report), || format!("stopped {report}"));
    Ok(!gave_up && is_enough && !printer.has_failed())
}

struct Tail<'a> {
    options: &'a Options,
    client: &'a Client,
    printer: &'a Printer,
    messages: u64,
    was_signaled: bool,
    gave_up: bool,
}

impl Tail<'_> {
    /// Prints events until there is a reason to stop.
    fn follow(&mut self, signaled: &Receiver<()>, input_ended: &Receiver<()>) {
        let mut events = self.client.events();
        let ready = events.ready();
        let end = signals::over(self.options.for_duration);
        let counting = if self.options.quiet { tick(Duration::from_secs(1)) } else { never() };
        let mut input_ended = input_ended.clone();
        // The server has answered everything before it answers the ping that follows it.
        let (mut answering, mut pongs) = (never(), u64::MAX);
        let mut answered = never();
        loop {
            select! {
                recv(signaled) -> _ => {
                    self.was_signaled = true;
                    return;
                }
                recv(end) -> _ => return,
                recv(answered) -> _ => return,
                recv(answering) -> _ => {
                    if self.client.stats().round_trip.count > pongs {
                        // What came before the pong is in the queue by now.
                        answered = after(Duration::ZERO);
                    }
                }
                recv(input_ended) -> told => {
                    input_ended = never();
                    // The end of other input is no reason to stop.
                    if told.is_ok() {
                        pongs = self.client.stats().round_trip.count;
                        answering = tick(Duration::from_millis(5));
                        answered = after(match self.client.ping() {
                            Ok(()) => ANSWERS,
                            Err(_) => Duration::ZERO,
                        });
                    }
                }
                recv(counting) -> _ => stderr::live(&self.count()),
                recv(ready) -> _ => {}
            }
            loop {
                // A signal takes precedence over events that are already queued.
                if !signaled.is_empty() || !end.is_empty() {
                    return;
                }
                match events.try_next() {
                    Ok(event) => {
                        self.print(event);
                        if self.options.count().is_some_and(|count| self.messages >= count)
                            || self.printer.is_broken()
                        {
                            return;
                        }
                    }
                    Err(TryNextError::Disconnected) => return,
                    Err(_) => break,
                }
            }
            self.printer.flush();
        }
    }

    /// Prints what is left after the stop: openings and ends of connections, so that each opening
    /// has its end, and why the client ended.
    fn drain(&mut self) {
        let mut events = self.client.events();
        // After a complete stop every event is queued. The wait serves a stop that ran out of time.
        while let Ok(event) = events.next_timeout(Duration::from_millis(100)) {
            match event {
                Event::Opened(opened) => self.print_opened(&opened),
                Event::Disconnected(_) | Event::Stopped(_) => self.print(event),
                _ => {}
            }
        }
    }

    fn print(&mut self, event: Event) {
        match event {
            Event::Opened(opened) => {
                self.print_opened(&opened);
                self.send_greetings(opened.epoch);
            }
            Event::Message(message) => {
                self.messages += 1;
                if !self.options.quiet {
                    self.printer.message(&message);
                }
            }
            Event::Disconnected(disconnect) => self.printer.notice(
                |clock| clock.disconnected(&disconnect),
                || notices::disconnected(&disconnect),
            ),
            // The last failed dial is reported as `gave_up` only.
            Event::DialFailed(failure) if failure.retry_in.is_none() => {}
            Event::DialFailed(failure) => self
                .printer
                .notice(|clock| clock.dial_failed(&failure), || notices::dial_failed(&failure)),
            Event::Lagged(lagged) => {
                self.printer.notice(|clock| clock.lag(&lagged), || notices::lagged(&lagged));
            }
            Event::Stopped(stopped) => self.print_reason(&stopped.reason),
            // A client without a session has no other.
            _ => {}
        }
    }

    fn print_reason(&mut self, reason: &Error) {
        if reason.kind() == ErrorKind::Stopped {
            return;
        }
        self.gave_up = true;
        self.printer.notice(|clock| clock.gave_up(reason), || notices::gave_up(reason));
    }

    fn print_opened(&self, opened: &Opened) {
        self.printer.notice(|clock| clock.opened(opened), || notices::opened(opened));
    }

    fn send_greetings(&self, epoch: u64) {
        // The texts go out on this connection only. Later connections send them again.
        let sender = self.client.sender().pinned_to(epoch);
        for text in &self.options.send {
            if let Err(error) = sender.send_text(text) {
                print_not_sent(self.printer, &error.into());
            }
        }
    }

    fn count(&self) -> String {
        let stats = self.client.stats();
        let trip = match stats.round_trip.count {
            0 => "not measured".to_owned(),
            _ => format!("{:.1?}", stats.round_trip.last),
        };
        format!("{} messages, epoch {}, round trip {trip}", self.messages, stats.epochs)
    }
}

fn print_not_sent(printer: &Printer, error: &NotSent) {
    printer.notice(|clock| clock.send_failed(error), || notices::not_sent(error));
}

/// Sends each line of standard input. A line that could not be sent is reported and not repeated.
/// `at_end` is told at the end of the input.
fn send_lines(sender: &Sender, printer: &Printer, at_end: Option<ChannelSender<()>>) {
    // `echo hello | tautline tail -i URL` has to work, so the first dial ends before the first line
    // is read.
    while matches!(sender.state(), State::Connecting { attempt: 1 })
        && !sender.stopper().is_stopping()
    {
        if sender.wait_open(Duration::from_millis(50)).is_ok() {
            break;
        }
    }
    for line in io::stdin().lock().split(b'\n') {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                stderr::line(format_args!("tautline: standard input: {error}"));
                break;
            }
        };
        let sent = match std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(&line)) {
            Ok(text) => sender.send_text(text).map_err(NotSent::from),
            Err(_) => Err(NotSent {
                is_certain: true,
                detail: "the line is not UTF-8, which a text message has to be".to_owned(),
            }),
        };
        match sent {
            Ok(_) => {}
            // Nothing can be sent any more, and the stop is reported elsewhere.
            Err(_) if sender.stopper().is_stopping() => return,
            Err(error) => {
                print_not_sent(printer, &error);
                printer.fail();
            }
        }
    }
    if let Some(at_end) = at_end {
        // The program may have ended for another reason.
        let _ = at_end.send(());
    }
}
