//! A bot that follows a market, places an order when the spread is wide, and survives the failures
//! of its venue.
//!
//! `cargo run --release --example market_feed` simulates a venue in the same process. Within
//! fifteen seconds it announces a shutdown, resets the connection and falls silent, once each. With
//! `--url` and `--subscribe` the bot follows a real venue instead, and places no orders.

mod exchange;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use crossbeam_channel::{after, select, tick};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tautline::{Client, Connection, Disconnect, ErrorKind, Handler, MessageRef, State};

/// Follows a market on a simulated or a real venue, and prints statistics twice a second
#[derive(Parser)]
#[command(name = "market_feed", version)]
struct Options {
    /// The URL of a real venue, for example wss://stream.binance.com:9443/ws
    #[arg(long, requires = "subscribe")]
    url: Option<String>,
    /// The streams to subscribe to, for example btcusdt@bookTicker
    #[arg(long, value_name = "STREAM", num_args = 1.., requires = "url")]
    subscribe: Vec<String>,
    /// Stop after this long
    #[arg(long = "for", value_name = "DURATION", default_value = "15s")]
    #[arg(value_parser = humantime::parse_duration)]
    duration: Duration,
    /// The smallest spread at which the bot orders, in the quote currency
    #[arg(long, default_value_t = 0.30)]
    threshold: f64,
}

/// The time in which the simulated venue goes through all of its failures.
const FULL_RUN: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    env_logger::init();
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("market_feed: {}", error.chain());
            ExitCode::from(2)
        }
    }
}

/// Runs the bot. Returns true if the client stopped cleanly, did not give up before, and survived
/// every failure of the simulated venue.
fn run(options: &Options) -> Result<bool, tautline::Error> {
    let figures = Arc::new(Mutex::new(Figures::default()));
    let (client, simulation) = match &options.url {
        Some(url) => {
            let bot = Bot::new(options.subscribe.clone(), f64::INFINITY, Arc::clone(&figures));
            (Client::builder(url).name("market_feed").start_with(bot)?, None)
        }
        None => {
            let streams = ["btcusdt", "ethusdt", "solusdt", "bnbusdt"]
                .map(|symbol| format!("{symbol}@bookTicker"));
            let bot = Bot::new(streams.to_vec(), options.threshold, Arc::clone(&figures));
            let (venue, ledger) = exchange::open();
            // Short limits, so that fifteen seconds are enough to see everything.
            let client = Client::builder(venue.url())
                .name("market_feed")
                .ping_interval(Duration::from_millis(500))
                .pong_timeout(Duration::from_millis(700))
                .start_with(bot)?;
            (client, Some((venue, ledger)))
        }
    };

    show_until(&client, &figures, options.duration);

    let report = client.stop(Duration::from_secs(5));
    let gave_up = client.stop_reason().filter(|end| end.kind() != ErrorKind::Stopped);
    if let Some(reason) = &gave_up {
        eprintln!("market_feed: gave up: {}", reason.chain());
    }
    println!("stopped {report}");
    let stats = client.stats();
    let trip = match stats.round_trip.count {
        0 => "not measured".to_owned(),
        _ => format!("{:.1?} to {:.1?}", stats.round_trip.min, stats.round_trip.max),
    };
    let (messages, epochs) = (stats.messages_received, stats.epochs);
    println!("{messages} messages in {epochs} epochs; drops: {:?}; round trip {trip}", stats.drops);
    let figures = figures.lock();
    if let Some((_, ledger)) = &simulation {
        let executed = ledger.orders.load(std::sync::atomic::Ordering::Relaxed);
        let (sent, acknowledged) = (figures.orders, figures.acknowledged);
        println!(
            "{sent} orders sent, {acknowledged} acknowledged, {executed} executed by the venue"
        );
        // A full run meets every failure, with orders in between. A shorter one does not.
        let failures = ["closed", "io", "pong_timeout"];
        let has_seen_all =
            epochs >= 4 && failures.iter().all(|kind| stats.drops.contains_key(kind));
        if options.duration >= FULL_RUN
            && !(has_seen_all && acknowledged > 0 && executed >= acknowledged)
        {
            eprintln!("market_feed: the run did not meet every failure of the venue");
            return Ok(false);
        }
    }
    Ok(report.is_clean() && gave_up.is_none())
}

/// Prints the statistics twice a second. On a terminal they stay on one line.
fn show_until(client: &Client<tautline::Push>, figures: &Mutex<Figures>, duration: Duration) {
    let (end, ticks) = (after(duration), tick(Duration::from_millis(500)));
    let began = Instant::now();
    let (mut last_messages, mut last_at) = (0, began);
    let is_terminal = io::stdout().is_terminal();
    loop {
        select! {
            recv(end) -> _ => break,
            recv(ticks) -> _ => {}
        }
        if client.state() == State::Closed {
            break;
        }
        let stats = client.stats();
        let now = Instant::now();
        let rate = (stats.messages_received - last_messages) as f64
            / now.duration_since(last_at).as_secs_f64();
        (last_messages, last_at) = (stats.messages_received, now);
        let figures = figures.lock();
        let drops: u64 = stats.drops.values().sum();
        let line = format!(
            "{:4.1} s  {rate:6.0} msg/s  round trip {:>8.1?}  epoch {}  drops {drops}  \
             orders {}/{}  {}",
            began.elapsed().as_secs_f64(),
            stats.round_trip.last,
            stats.epochs,
            figures.acknowledged,
            figures.orders,
            figures.best(),
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

/// The figures that the bot shows.
#[derive(Default)]
struct Figures {
    /// The best bid and ask of each symbol.
    book: BTreeMap<String, (f64, f64)>,
    orders: usize,
    acknowledged: usize,
    last_drop: Option<String>,
}

impl Figures {
    fn best(&self) -> String {
        let quotes = self
            .book
            .iter()
            .take(2)
            .map(|(symbol, (bid, ask))| format!("{symbol} {bid:.2}/{ask:.2}"));
        let quotes = quotes.collect::<Vec<_>>().join("  ");
        match &self.last_drop {
            Some(kind) => format!("{quotes}  (last drop: {kind})"),
            None => quotes,
        }
    }
}

/// The strategy. Only the reader thread calls it.
struct Bot {
    streams: Vec<String>,
    threshold: f64,
    /// The orders of this epoch that are not acknowledged yet, by id.
    open_orders: BTreeMap<u64, String>,
    next_id: u64,
    figures: Arc<Mutex<Figures>>,
}

impl Bot {
    fn new(streams: Vec<String>, threshold: f64, figures: Arc<Mutex<Figures>>) -> Self {
        Bot { streams, threshold, open_orders: BTreeMap::new(), next_id: 1, figures }
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn quote(&mut self, connection: &mut Connection<'_>, symbol: &str, bid: f64, ask: f64) {
        self.figures.lock().book.insert(symbol.to_owned(), (bid, ask));
        if ask - bid >= self.threshold && self.open_orders.is_empty() {
            self.order(connection, symbol, bid);
        }
    }

    fn order(&mut self, connection: &mut Connection<'_>, symbol: &str, price: f64) {
        let id = self.next_id();
        let price = format!("{price:.2}");
        let params = json!({"symbol": symbol, "side": "BUY", "price": price, "quantity": "0.01"});
        let order = json!({"id": id, "method": "order.place", "params": params});
        match connection.send_text(&order.to_string()) {
            Ok(_) => {
                self.open_orders.insert(id, symbol.to_owned());
                self.figures.lock().orders += 1;
            }
            // `examples/orders.rs` shows how to handle `NotSent` and `Unknown`.
            Err(error) => log::warn!("order {id}: {error}: {}", error.reason().chain()),
        }
    }

    fn acknowledge(&mut self, id: u64) {
        if self.open_orders.remove(&id).is_some() {
            self.figures.lock().acknowledged += 1;
        }
    }
}

impl Handler for Bot {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        // A new connection has no subscriptions, and the prices of the last one are stale.
        self.figures.lock().book.clear();
        let subscribe = json!({"method": "SUBSCRIBE", "params": self.streams, "id": 1});
        if let Err(error) = connection.send_text(&subscribe.to_string()) {
            log::warn!("subscribe: {error}");
        }
    }

    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        let Some(Ok(parsed)) = message.text().map(serde_json::from_str::<Value>) else { return };
        if parsed["e"] == "serverShutdown" {
            // Reconnect before the server closes: the new connection opens sooner.
            connection.reconnect();
            return;
        }
        let number = |key: &str| parsed[key].as_str().and_then(|text| text.parse::<f64>().ok());
        match (parsed["s"].as_str(), number("b"), number("a")) {
            (Some(symbol), Some(bid), Some(ask)) => self.quote(connection, symbol, bid, ask),
            _ => {
                if let Some(id) = parsed["id"].as_u64() {
                    self.acknowledge(id);
                }
            }
        }
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        for (id, symbol) in std::mem::take(&mut self.open_orders) {
            log::warn!("order {id} for {symbol} is in doubt: its status has to be queried");
        }
        self.figures.lock().last_drop = Some(disconnect.error.kind().to_string());
    }
}
