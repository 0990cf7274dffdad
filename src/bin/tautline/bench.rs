//! `tautline bench`: what a feed brings.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::{Receiver, Sender, bounded, never, select, tick};
use parking_lot::Mutex;
use tautline::{
    Client, Connection, DialFailure, Disconnect, ErrorKind, Handler, MessageRef, Push, Stopped,
};

use crate::figures::{Bytes, Durations, Grouped, Short};
use crate::printer::{Printed, complain, print};
use crate::{Done, connection, help, notices, signals, stderr};

/// Lines that wait to be printed. Beyond them they are left out; nothing that is counted is.
const LINES: usize = 1024;

/// Measures a feed: messages, bytes, the time between them
#[derive(Args)]
#[command(help_template = help::TEMPLATE, after_help = help::connects!("  \
tautline bench --for 1m wss://stream.binance.com/ws/btcusdt@trade
  tautline bench -x '{\"type\":\"subscribe\"}' wss://stream.example.com/ws"))]
pub(crate) struct Options {
    /// The server: ws:// or wss://
    #[arg(hide = true)]
    url: String,
    /// Send TEXT whenever a connection opens [repeatable]
    #[arg(short = 'x', long, value_name = "TEXT")]
    send: Vec<String>,
    /// Stop after N messages
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after this long
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    for_duration: Option<Duration>,
    /// Count longer waits for a message as gaps
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    #[arg(default_value = "1s")]
    gap: Duration,
    /// Print the final table alone
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: connection::Options,
}

/// Returns true after a stop that was asked for, if a message came.
pub(crate) fn run(options: &Options) -> Result<Done, String> {
    let signaled = signals::watch(options.connection.stop_timeout())?;
    let builder = options.connection.builder(&options.url)?;
    let (tell, told) = bounded(LINES);
    let counts = Arc::new(Mutex::new(Counts::new(options.gap)));
    let meter = Meter {
        tell,
        counts: Arc::clone(&counts),
        greetings: options.send.clone(),
        most: options.count,
    };
    let client = builder.start_with(meter).map_err(|error| options.connection.unusable(&error))?;
    signals::stops(client.stopper());
    if let Some(wait) = options.for_duration {
        signals::end_after(wait, options.connection.stop_timeout());
    }
    follow(options, &client, &counts, &told, &signaled);
    // The stop is no part of what is measured.
    let ended = Instant::now();
    counts.lock().end_wait(ended);
    let report = client.stop(options.connection.stop_timeout());
    told.try_iter().for_each(|notice| complain(&notice));
    complain(&format!("stopped {report}"));
    let counts = counts.lock();
    let printed = print(&counts.table(ended, &client));
    let gave_up = client.stop_reason().is_some_and(|reason| reason.kind() != ErrorKind::Stopped);
    Ok(printed != Printed::Failed && counts.messages > 0 && !gave_up)
}

/// Shows the rates once a second, and what is told, until there is a reason to stop.
fn follow(
    options: &Options,
    client: &Client<Push>,
    counts: &Mutex<Counts>,
    told: &Receiver<String>,
    signaled: &Receiver<()>,
) {
    let end = signals::over(options.for_duration);
    let seconds = if options.quiet { never() } else { tick(Duration::from_secs(1)) };
    let mut before = Snapshot { at: Instant::now(), messages: 0, bytes: 0 };
    loop {
        select! {
            recv(signaled) -> _ => break,
            recv(end) -> _ => break,
            recv(seconds) -> _ => before = show(before, client, counts),
            recv(told) -> notice => match notice {
                Ok(notice) => complain(&notice),
                // The client has dropped its handler: it has ended.
                Err(_) => break,
            }
        }
    }
}

/// The counts at some time.
struct Snapshot {
    at: Instant,
    messages: u64,
    bytes: u64,
}

/// Shows the rates since `before` on standard error, and returns the counts of now.
fn show(before: Snapshot, client: &Client<Push>, counts: &Mutex<Counts>) -> Snapshot {
    let now = {
        let counts = counts.lock();
        Snapshot { at: Instant::now(), messages: counts.messages, bytes: counts.bytes }
    };
    let seconds = (now.at - before.at).as_secs_f64().max(1e-9);
    let messages = (now.messages - before.messages) as f64 / seconds;
    let bytes = (now.bytes - before.bytes) as f64 / seconds;
    let line = format!(
        "{} messages, {}/s, {}/s, epoch {}",
        Grouped(now.messages),
        Grouped(messages.round() as u64),
        Bytes(bytes),
        client.stats().epochs
    );
    stderr::live(&line);
    now
}

/// The figures of a feed.
struct Counts {
    began: Instant,
    messages: u64,
    bytes: u64,
    shortest: usize,
    longest: usize,
    /// The time from each message to the next one of the same connection.
    between: Durations,
    /// Waits that count as gaps are longer than this.
    gap: Duration,
    gaps: u64,
    /// The arrival of the latest message on this connection.
    latest: Option<Instant>,
    /// The time at which no connection was open any more.
    down_since: Option<Instant>,
    down: Duration,
}

impl Counts {
    fn new(gap: Duration) -> Self {
        let now = Instant::now();
        Counts {
            began: now,
            messages: 0,
            bytes: 0,
            shortest: usize::MAX,
            longest: 0,
            between: Durations::new(),
            gap,
            gaps: 0,
            latest: None,
            down_since: Some(now),
            down: Duration::ZERO,
        }
    }

    fn message(&mut self, message: MessageRef<'_>) {
        let (length, at) = (message.bytes().len(), message.received_at());
        self.messages += 1;
        self.bytes += length as u64;
        self.shortest = self.shortest.min(length);
        self.longest = self.longest.max(length);
        if let Some(latest) = self.latest.replace(at) {
            let wait = at.saturating_duration_since(latest);
            self.between.record(wait);
            self.gaps += u64::from(wait > self.gap);
        }
    }

    fn opened(&mut self) {
        if let Some(since) = self.down_since.take() {
            self.down += since.elapsed();
        }
    }

    /// Counts the wait that goes on as a gap, if it is one by now.
    fn end_wait(&mut self, at: Instant) {
        if let Some(latest) = self.latest.take() {
            self.gaps += u64::from(at.saturating_duration_since(latest) > self.gap);
        }
    }

    fn disconnected(&mut self) {
        self.end_wait(Instant::now());
        self.down_since = Some(Instant::now());
    }

    fn table(&self, ended: Instant, client: &Client<Push>) -> String {
        let stats = client.stats();
        let took = ended.saturating_duration_since(self.began);
        let seconds = took.as_secs_f64().max(1e-9);
        let per_second = |count: u64| Grouped((count as f64 / seconds).round() as u64);
        let down =
            self.down_since.map_or(Duration::ZERO, |since| ended.saturating_duration_since(since));
        let mut text = String::new();
        let mut row = |name: &str, value: std::fmt::Arguments<'_>| {
            writeln!(text, "{name:<14}{value}").expect("a String takes everything");
        };
        row(
            "time",
            format_args!("{}, {} of it without a connection", Short(took), Short(self.down + down)),
        );
        row("connections", format_args!("{}, {} dials failed", stats.epochs, stats.failed_dials));
        row(
            "messages",
            format_args!("{}, {} a second", Grouped(self.messages), per_second(self.messages)),
        );
        if let Some(mean) = self.bytes.checked_div(self.messages) {
            row(
                "bytes",
                format_args!(
                    "{}, {} a second",
                    Bytes(self.bytes as f64),
                    Bytes(self.bytes as f64 / seconds)
                ),
            );
            row("size", format_args!("min {}, mean {mean}, max {}", self.shortest, self.longest));
        }
        if self.between.count() > 0 {
            row("between", format_args!("{}", self.between.percentiles()));
        }
        row("gaps", format_args!("{} longer than {}", self.gaps, Short(self.gap)));
        if stats.round_trip.count > 0 {
            let trip = stats.round_trip;
            row(
                "round trip",
                format_args!(
                    "min {}, mean {}, max {}",
                    Short(trip.min),
                    Short(trip.mean),
                    Short(trip.max)
                ),
            );
        }
        let drops: Vec<String> = stats
            .drops
            .iter()
            .filter(|(kind, _)| **kind != ErrorKind::Stopped.as_str())
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        if !drops.is_empty() {
            row("drops", format_args!("{}", drops.join(", ")));
        }
        text
    }
}

struct Meter {
    tell: Sender<String>,
    counts: Arc<Mutex<Counts>>,
    greetings: Vec<String>,
    most: Option<u64>,
}

impl Meter {
    fn tell(&self, notice: String) {
        // Where nobody reads what is printed, the connection goes on.
        let _ = self.tell.try_send(notice);
    }
}

impl Handler for Meter {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.counts.lock().opened();
        self.tell(notices::opened(connection.opening()));
        for text in &self.greetings {
            if let Err(error) = connection.send_text(text) {
                self.tell(error.to_string());
            }
        }
    }

    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        let mut counts = self.counts.lock();
        counts.message(message);
        if self.most == Some(counts.messages) {
            connection.stop();
        }
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        self.counts.lock().disconnected();
        self.tell(notices::disconnected(disconnect));
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        if failure.retry_in.is_some() {
            self.tell(notices::dial_failed(failure));
        }
    }

    fn stopped(&mut self, stopped: &Stopped) {
        if stopped.reason.kind() != ErrorKind::Stopped {
            self.tell(notices::gave_up(&stopped.reason));
        }
    }
}
