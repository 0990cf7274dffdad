//! `tautline ping`: round trips by ping frames.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;
use tautline::{Connection, DialFailure, Disconnect, ErrorKind, Handler, MessageRef, Stopped};

use crate::figures::{Durations, Short};
use crate::printer::{Printed, complain, print};
use crate::{Done, connection, help, notices, signals};

/// Lines that wait to be printed. Beyond them they are left out; no round trip is.
const LINES: usize = 1024;

/// Measures round trips by ping frames
#[derive(Args)]
#[command(help_template = help::TEMPLATE, after_help = help::connects!("  \
tautline ping wss://stream.binance.com/ws
  tautline ping -n 100 -i 100ms wss://ws.okx.com:8443/ws/v5/public"))]
pub(crate) struct Options {
    /// The server: ws:// or wss://
    #[arg(hide = true)]
    url: String,
    /// Stop after N pongs
    #[arg(short = 'n', short_alias = 'c', long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Send a ping this often
    #[arg(short, long, value_name = "TIME", value_parser = humantime::parse_duration)]
    #[arg(default_value = "1s")]
    interval: Duration,
    /// Stop after this long
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    for_duration: Option<Duration>,
    /// Print the summary alone
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connection: connection::Options,
}

/// Returns true after a stop that was asked for, if a pong came.
pub(crate) fn run(options: &Options) -> Result<Done, String> {
    options.connection.leaves_pings()?;
    let signaled = signals::watch(options.connection.stop_timeout())?;
    let builder = options.connection.builder(&options.url)?.ping_interval(options.interval);
    let (tell, told) = bounded(LINES);
    let trips = Arc::new(Mutex::new(Durations::new()));
    let pinger = Pinger { tell, trips: Arc::clone(&trips), count: options.count };
    let client = builder.start_with(pinger).map_err(|error| options.connection.unusable(&error))?;
    signals::stops(client.stopper());
    if let Some(wait) = options.for_duration {
        signals::end_after(wait, options.connection.stop_timeout());
    }
    let mut printed = follow(options, &told, &signaled);
    let report = client.stop(options.connection.stop_timeout());
    // Whatever the stop has told.
    while let (Printed::Whole, Ok(news)) = (printed, told.try_recv()) {
        printed = tell_user(news, options.quiet);
    }
    complain(&format!("stopped {report}"));
    let (trips, stats) = (trips.lock(), client.stats());
    let mut summary = format!("pongs {}, connections {}", trips.count(), stats.epochs);
    for (kind, count) in &stats.drops {
        if *kind != ErrorKind::Stopped.as_str() {
            write!(summary, ", {kind} {count}").expect("a String takes everything");
        }
    }
    summary.push('\n');
    if trips.count() > 0 {
        summary = format!("{summary}{}\n{}", trips.percentiles(), trips.histogram());
    }
    if printed == Printed::Whole {
        printed = print(&summary);
    }
    let gave_up = client.stop_reason().is_some_and(|reason| reason.kind() != ErrorKind::Stopped);
    Ok(printed != Printed::Failed && trips.count() > 0 && !gave_up)
}

/// Prints what is told until there is a reason to stop. Returns how the last print went.
fn follow(options: &Options, told: &Receiver<News>, signaled: &Receiver<()>) -> Printed {
    let end = signals::over(options.for_duration);
    loop {
        select! {
            recv(signaled) -> _ => return Printed::Whole,
            recv(end) -> _ => return Printed::Whole,
            recv(told) -> news => match news.map(|news| tell_user(news, options.quiet)) {
                Ok(Printed::Whole) => {}
                Ok(printed) => return printed,
                // The client has dropped its handler: it has ended.
                Err(_) => return Printed::Whole,
            }
        }
    }
}

/// The news of a handler.
enum News {
    Pong { number: u64, round_trip: Duration },
    Notice(String),
}

fn tell_user(news: News, is_quiet: bool) -> Printed {
    match news {
        News::Pong { .. } if is_quiet => Printed::Whole,
        News::Pong { number, round_trip } => {
            print(&format!("pong {number}: {}\n", Short(round_trip)))
        }
        News::Notice(text) => {
            complain(&text);
            Printed::Whole
        }
    }
}

struct Pinger {
    tell: Sender<News>,
    trips: Arc<Mutex<Durations>>,
    count: Option<u64>,
}

impl Pinger {
    fn tell(&self, news: News) {
        // Where nobody reads what is printed, the connection goes on.
        let _ = self.tell.try_send(news);
    }
}

impl Handler for Pinger {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.tell(News::Notice(notices::opened(connection.opening())));
        // The next one is due after the interval. If the connection has ended, its end is told.
        let _ = connection.ping();
    }

    fn message(&mut self, _connection: &mut Connection<'_>, _message: MessageRef<'_>) {}

    fn pong(&mut self, connection: &mut Connection<'_>, round_trip: Duration) {
        let number = {
            let mut trips = self.trips.lock();
            trips.record(round_trip);
            trips.count()
        };
        self.tell(News::Pong { number, round_trip });
        if self.count == Some(number) {
            connection.stop();
        }
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        self.tell(News::Notice(notices::disconnected(disconnect)));
    }

    fn dial_failed(&mut self, failure: &DialFailure) {
        if failure.retry_in.is_some() {
            self.tell(News::Notice(notices::dial_failed(failure)));
        }
    }

    fn stopped(&mut self, stopped: &Stopped) {
        if stopped.reason.kind() != ErrorKind::Stopped {
            self.tell(News::Notice(notices::gave_up(&stopped.reason)));
        }
    }
}
