//! A bot that logs on, follows hundreds of topics, places an order when the spread is wide, and
//! survives the failures of its venue.
//!
//! `cargo run --release --example market_feed` simulates a venue in the same process. It takes five
//! messages a second and refuses one topic of three hundred; within fifteen seconds it announces a
//! shutdown, resets the connection and falls silent, once each. In the end the bot and the venue
//! agree on every order. With `--url` and `--subscribe` the bot follows a real venue instead, and
//! places no orders.

mod exchange;
mod protocol;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, select, tick};
use lexopt::prelude::*;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tautline::session::{
    CallContext, CallError, Outgoing, Request, Session, SessionBuilder, SessionHandle,
    SubscriptionState,
};
use tautline::{
    Client, Connection, Disconnect, ErrorKind, Handler, MessageRef, Push, RateLimit, State, Stats,
};

use protocol::{Spot, parse};

const HELP: &str = "\
Follows a market on a simulated or a real venue, and prints statistics twice a second

Usage: market_feed [OPTIONS]

Options:
      --url <URL>              The URL of a real venue, for example
                               wss://stream.binance.com:9443/ws
      --subscribe <STREAM>...  The streams to subscribe to, for example btcusdt@bookTicker
      --for <DURATION>         Stop after this long [default: 15s]
      --threshold <THRESHOLD>  The smallest spread at which the bot orders, in the quote currency
                               [default: 0.3]
  -h, --help                   Print help
  -V, --version                Print version
";

struct Options {
    /// Given together with `subscribe`.
    url: Option<String>,
    subscribe: Vec<String>,
    duration: Duration,
    threshold: f64,
}

impl Options {
    fn parse() -> Result<Self, lexopt::Error> {
        let (url, subscribe, duration, threshold) = (None, Vec::new(), FULL_RUN, 0.3);
        let mut options = Options { url, subscribe, duration, threshold };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("url") => options.url = Some(parser.value()?.string()?),
                Long("subscribe") => {
                    for stream in parser.values()? {
                        options.subscribe.push(stream.string()?);
                    }
                }
                Long("for") => {
                    options.duration = parser.value()?.parse_with(humantime::parse_duration)?;
                }
                Long("threshold") => options.threshold = parser.value()?.parse()?,
                Short('h') | Long("help") => {
                    print!("{HELP}");
                    process::exit(0);
                }
                Short('V') | Long("version") => {
                    println!("market_feed {}", env!("CARGO_PKG_VERSION"));
                    process::exit(0);
                }
                other => return Err(other.unexpected()),
            }
        }
        if options.url.is_some() == options.subscribe.is_empty() {
            return Err("--url and --subscribe go together".into());
        }
        Ok(options)
    }
}

/// The least time between two orders.
const BETWEEN_ORDERS: Duration = Duration::from_secs(1);

/// The time in which the simulated venue goes through all of its failures.
const FULL_RUN: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    env_logger::init();
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("market_feed: {error}; --help lists the options");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("market_feed: {}", error.chain());
            ExitCode::from(2)
        }
    }
}

/// Runs the bot. Returns true if the session stopped cleanly, did not give up before, survived
/// every failure of the simulated venue, and agrees with it on every order.
fn run(options: &Options) -> Result<bool, tautline::Error> {
    let figures = Arc::new(Mutex::new(Figures::default()));
    let (session, ledger) = match &options.url {
        Some(url) => {
            let builder = Client::builder(url).name("market_feed").session(Spot { key: None });
            let session = builder.batch(50, 16 << 10);
            session.handle().subscribe(&options.subscribe)?;
            (start(session, f64::INFINITY, &figures)?, None)
        }
        None => {
            let (venue, ledger) = exchange::open();
            // The venue counts pings too, which never wait: one a second at most is left to them.
            // Of the rest one is kept for an order.
            let limit = RateLimit::per_connection()
                .window(exchange::MESSAGES_PER_SECOND - 1, Duration::from_secs(1))
                .keep(1)
                .counting_pings();
            // Short times, so that fifteen seconds are enough to see everything.
            let builder = Client::builder(venue.url())
                .name("market_feed")
                .ping_interval(Duration::from_millis(1500))
                .pong_timeout(Duration::from_millis(700))
                .send_limit(limit);
            let session =
                builder.session(Spot { key: Some("key".to_owned()) }).batch(100, 16 << 10);
            let streams = (0..exchange::SYMBOLS).map(exchange::stream);
            session.handle().subscribe(streams.chain(["delisted@bookTicker".to_owned()]))?;
            (start(session, options.threshold, &figures)?, Some((venue, ledger)))
        }
    };

    let is_full = options.url.is_none() && options.duration >= FULL_RUN;
    show_until(&session, &figures, options.duration, is_full);
    // Orders in doubt are asked for on whatever connection is ready.
    settle_orders(session.handle(), &figures);

    let report = session.stop(Duration::from_secs(5));
    let end = session.client().stop_reason();
    let gave_up = end.filter(|end| end.kind() != ErrorKind::Stopped);
    if let Some(reason) = &gave_up {
        eprintln!("market_feed: gave up: {}", reason.chain());
    }
    println!("stopped {report}");
    let stats = session.stats();
    let trip = match stats.round_trip.count {
        0 => "not measured".to_owned(),
        _ => format!("{:.1?} to {:.1?}", stats.round_trip.min, stats.round_trip.max),
    };
    let (messages, epochs) = (stats.messages_received, stats.epochs);
    println!("{messages} messages in {epochs} epochs; drops: {:?}; round trip {trip}", stats.drops);
    let mut is_good = report.is_clean() && gave_up.is_none();
    if let Some((_, ledger)) = ledger {
        let (figures, books) = (figures.lock(), ledger.books());
        let Figures { placed, refused, .. } = &*figures;
        println!(
            "{} orders placed, {} of them executed by the venue, which has {}; {} topics active, \
             {refused} refused",
            placed.len(),
            placed.intersection(&books.orders).count(),
            books.orders.len(),
            figures.active,
        );
        if books.repeated > 0 || books.violations > 0 || *placed != books.orders {
            eprintln!("market_feed: the bot and the venue do not agree");
            is_good = false;
        }
        if is_full && !figures.has_met_all(&stats) {
            eprintln!("market_feed: the run did not meet every failure of the venue");
            is_good = false;
        }
    }
    Ok(is_good)
}

fn start(
    session: SessionBuilder<Spot>,
    threshold: f64,
    figures: &Arc<Mutex<Figures>>,
) -> Result<Session<Push>, tautline::Error> {
    let bot = Bot {
        handle: session.handle(),
        threshold,
        next_order_at: Instant::now(),
        figures: Arc::clone(figures),
    };
    session.start_with(bot)
}

/// Asks the venue what became of the orders that are in doubt.
fn settle_orders(handle: &SessionHandle, figures: &Mutex<Figures>) {
    let in_doubt = std::mem::take(&mut figures.lock().in_doubt);
    for id in in_doubt {
        if handle.wait_ready(Duration::from_secs(3)).is_err() {
            return;
        }
        match handle.call(Request::new(status_of(&id))) {
            Ok(reply) => figures.lock().settle(id, &parse(reply.message.as_ref())),
            Err(error) => {
                eprintln!("market_feed: order {id}: {error}: {}", error.reason().chain());
            }
        }
    }
}

fn status_of(id: &str) -> impl FnOnce(&CallContext<'_>) -> Outgoing + use<> {
    let params = json!({"newClientOrderId": id});
    move |context| {
        json!({"id": context.id(), "method": "order.status", "params": params}).to_string().into()
    }
}

/// Prints the statistics twice a second. On a terminal they stay on one line. A full run may take
/// up to four times as long, until every failure of the venue was met: a busy machine is slow.
fn show_until(
    session: &Session<Push>,
    figures: &Mutex<Figures>,
    duration: Duration,
    is_full: bool,
) {
    let client = session.client();
    let (end, ticks) = (after(duration), tick(Duration::from_millis(500)));
    let began = Instant::now();
    let (mut last_messages, mut last_at) = (0, began);
    let is_terminal = io::stdout().is_terminal();
    let mut is_over = false;
    loop {
        select! {
            recv(end) -> _ => is_over = true,
            recv(ticks) -> _ => {}
        }
        let stats = client.stats();
        let goes_on =
            is_full && began.elapsed() < 4 * duration && !figures.lock().has_met_all(&stats);
        if client.state() == State::Closed || is_over && !goes_on {
            break;
        }
        let now = Instant::now();
        let rate = (stats.messages_received - last_messages) as f64
            / now.duration_since(last_at).as_secs_f64();
        (last_messages, last_at) = (stats.messages_received, now);
        let states = session.handle().subscriptions();
        let count = |is: fn(&SubscriptionState) -> bool| {
            states.iter().filter(|(_, state)| is(state)).count()
        };
        let mut figures = figures.lock();
        figures.active = count(|state| matches!(state, SubscriptionState::Active { .. }));
        figures.refused = count(|state| matches!(state, SubscriptionState::Rejected(_)));
        let drops: u64 = stats.drops.values().sum();
        let line = format!(
            "{:4.1} s  {rate:5.0} msg/s  epoch {}  drops {drops}  topics {}/{}  orders {}/{}  {}",
            began.elapsed().as_secs_f64(),
            stats.epochs,
            figures.active,
            states.len(),
            figures.placed.len(),
            figures.sent,
            figures.last(),
        );
        if is_terminal {
            print!("\r\x1b[K{line}");
        } else {
            println!("{line}");
        }
        // A failed flush does not stop the bot.
        let _ = io::stdout().flush();
    }
    if is_terminal {
        println!();
    }
}

/// The figures that the bot shows, and its view of its orders.
#[derive(Default)]
struct Figures {
    /// The latest bid and ask.
    quote: Option<(String, f64, f64)>,
    last_drop: Option<String>,
    active: usize,
    refused: usize,
    /// The number of orders that were sent.
    sent: usize,
    /// The orders that the venue has executed.
    placed: BTreeSet<String>,
    /// The orders of which nobody knows.
    in_doubt: BTreeSet<String>,
}

impl Figures {
    /// Returns whether the run has met every failure of the simulated venue, with orders in
    /// between.
    fn has_met_all(&self, stats: &Stats) -> bool {
        let failures = ["closed", "io", "pong_timeout"];
        stats.epochs >= 4
            && failures.iter().all(|kind| stats.drops.contains_key(kind))
            && (self.active, self.refused) == (exchange::SYMBOLS, 1)
            && !self.placed.is_empty()
    }

    fn last(&self) -> String {
        let quote = match &self.quote {
            Some((symbol, bid, ask)) => format!("{symbol} {bid:.2}/{ask:.2}"),
            None => String::new(),
        };
        match &self.last_drop {
            Some(kind) => format!("{quote}  (last drop: {kind})"),
            None => quote,
        }
    }

    /// The venue has said what became of an order.
    fn settle(&mut self, id: String, reply: &Value) {
        if reply["status"] == 200 {
            self.placed.insert(id);
        }
    }
}

/// The strategy. Only the reader thread calls it.
struct Bot {
    handle: SessionHandle,
    threshold: f64,
    /// One order at a time, and not too soon after the last.
    next_order_at: Instant,
    figures: Arc<Mutex<Figures>>,
}

impl Bot {
    fn quote(&mut self, epoch: u64, symbol: &str, bid: f64, ask: f64) {
        self.figures.lock().quote = Some((symbol.to_owned(), bid, ask));
        let now = Instant::now();
        if ask - bid >= self.threshold && self.next_order_at <= now {
            self.next_order_at = now + BETWEEN_ORDERS;
            self.order(epoch, symbol, bid);
        }
    }

    /// Places an order on the connection that the quote came by, and keeps what becomes of it.
    fn order(&mut self, epoch: u64, symbol: &str, price: f64) {
        let price = format!("{price:.2}");
        let id = {
            let mut figures = self.figures.lock();
            figures.sent += 1;
            format!("bot-{}", figures.sent)
        };
        let params = json!({
            "symbol": symbol, "side": "BUY", "price": price, "quantity": "0.01",
            "newClientOrderId": id,
        });
        let request = Request::new(|context| {
            json!({"id": context.id(), "method": "order.place", "params": params})
                .to_string()
                .into()
        });
        let (figures, order) = (Arc::clone(&self.figures), id.clone());
        let sent = self.handle.call_with(
            request.within(Duration::from_secs(2)).on_epoch(epoch),
            move |fate| match fate {
                Ok(reply) => figures.lock().settle(order, &parse(reply.message)),
                Err(CallError::NotSent(_)) => {}
                // Asked for later, by the id that the bot gave it.
                Err(_) => {
                    figures.lock().in_doubt.insert(order);
                }
            },
        );
        match sent {
            Ok(_) => {}
            // Not ready, or over the limit of the venue: the price will have moved anyway.
            Err(error) if error.is_not_sent() => self.figures.lock().sent -= 1,
            Err(_) => {
                self.figures.lock().in_doubt.insert(id);
            }
        }
    }
}

impl Handler for Bot {
    fn ready(&mut self, _: &mut Connection<'_>) {
        let in_doubt = std::mem::take(&mut self.figures.lock().in_doubt);
        for id in in_doubt {
            let (figures, order) = (Arc::clone(&self.figures), id.clone());
            let request = Request::new(status_of(&id));
            let sent = self.handle.call_with(request, move |fate| match fate {
                Ok(reply) => figures.lock().settle(order, &parse(reply.message)),
                Err(_) => {
                    figures.lock().in_doubt.insert(order);
                }
            });
            if sent.is_err() {
                self.figures.lock().in_doubt.insert(id);
            }
        }
    }

    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        let quote = parse(message);
        let number = |key: &str| quote[key].as_str().and_then(|text| text.parse::<f64>().ok());
        if let (Some(symbol), Some(bid), Some(ask)) =
            (quote["s"].as_str(), number("b"), number("a"))
        {
            self.quote(connection.epoch(), symbol, bid, ask);
        }
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        let mut figures = self.figures.lock();
        // The prices of the last connection are stale.
        figures.quote = None;
        figures.last_drop = Some(disconnect.error.kind().to_string());
    }
}
