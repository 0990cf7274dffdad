//! Two sessions at a simulated exchange that misbehaves, and their metrics for a scraper.
//!
//! `cargo run --release --manifest-path examples/metrics/Cargo.toml` serves the metrics until
//! SIGINT, and says where. One session follows a market, the other places an order four times a
//! second. Every few seconds the exchange shows another fault, so that the dashboard beside this
//! file has something to show.

// The file that a bot copies; this one uses a part of it.
#[path = "../../protocols/binance.rs"]
#[allow(dead_code, reason = "the whole protocol, of which this program uses a part")]
mod binance;
#[path = "../../protocols/reply.rs"]
#[allow(dead_code, reason = "the same")]
mod reply;
mod scrapes;

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossbeam_channel::{Receiver, after, bounded, never, select, tick};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tautline::session::Session;
use tautline::testing::exchange::{Exchange, Misbehavior};
use tautline::{Event, RateLimit};

use crate::binance::MarketOrder;

/// Follows a simulated market, and serves the metrics of that to a scraper
#[derive(Parser)]
#[command(name = "metrics")]
struct Options {
    /// The address to serve the metrics on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9184")]
    listen: SocketAddr,
    /// Stop after this long, and not at SIGINT alone
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

const TOPICS: [&str; 4] =
    ["btcusdt@bookTicker", "ethusdt@bookTicker", "btcusdt@depth", "nosuch@bookTicker"];

/// The time between two orders.
const BETWEEN_ORDERS: Duration = Duration::from_millis(250);

/// The time between two faults.
const BETWEEN_FAULTS: Duration = Duration::from_secs(3);

/// The faults come faster than a connection counts as stable: the backoff would soon be all that
/// there is to see.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);

/// The interval at which the recorder puts recorded times into their buckets, if no scrape does.
const UPKEEP: Duration = Duration::from_secs(5);

/// The longest wait for the threads of a session.
const STOP: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metrics: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    // Before the first client: each takes the recorder that there is when it starts.
    let metrics = recorder()?;
    let signals = signals()?;
    let scrapes = scrapes::serve(TcpListener::bind(options.listen)?, metrics.clone())?;
    println!("metrics: http://{}/metrics", scrapes.address());

    let exchange = Exchange::binance().tick(Duration::from_millis(5)).start();
    exchange.misbehave(Misbehavior::Refuse("nosuch@bookTicker".to_owned()));
    let market = binance::client(&exchange.url())
        .name("market")
        .retry_delay_max(RETRY_DELAY_MAX)
        .ping_interval(Duration::from_secs(2))
        .pong_timeout(Duration::from_secs(1))
        .send_limit(binance::message_limit())
        .session(binance::Streams)
        .batch(200, 16 << 10)
        .start()?;
    market.handle().subscribe(TOPICS)?;
    let orders = binance::client(&exchange.private_url())
        .name("orders")
        .retry_delay_max(RETRY_DELAY_MAX)
        .ping_interval(Duration::from_secs(2))
        .pong_timeout(Duration::from_secs(1))
        .send_limit(RateLimit::per_connection().window(3, Duration::from_secs(1)))
        .session(binance::WebSocketApi::new("key", |_| "signature".into()))
        .start()?;

    let (stopped, stop) = bounded(0);
    let reports = std::thread::scope(|scope| {
        scope.spawn(|| follow(&market));
        scope.spawn(|| follow(&orders));
        scope.spawn(|| place(&orders, &stop));
        misbehave(&exchange, &metrics, &signals, options.duration);
        drop(stopped);
        // Ends the loop over events, and the call that is under way.
        [market.stop(STOP), orders.stop(STOP)]
    });
    scrapes.stop();
    for report in reports {
        println!("stopped {report}");
        if !report.is_clean() {
            return Err("a thread did not stop".into());
        }
    }
    Ok(())
}

/// Installs the recorder. Without buckets a histogram would become a summary of quantiles, which
/// cannot be added up over clients.
fn recorder() -> Result<PrometheusHandle, Box<dyn Error>> {
    let bucket = |name: &str| Matcher::Full(name.to_owned());
    // 50 µs in a data center, and a second around the world over a bad network.
    let round_trip = [50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1];
    let round_trip = [&round_trip[..], &[0.25, 0.5, 1.0]].concat();
    // A lookup, TCP, TLS and the upgrade, within `connect_timeout`.
    let connect = [1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    // At once, or as long as the window of a limit.
    let wait = [1e-3, 10e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(bucket("tautline_round_trip_seconds"), &round_trip)?
        .set_buckets_for_metric(bucket("tautline_connect_duration_seconds"), &connect)?
        .set_buckets_for_metric(bucket("tautline_rate_limit_wait_seconds"), &wait)?
        .install_recorder()?;
    Ok(metrics)
}

/// Returns a channel that receives a token at SIGINT and SIGTERM.
fn signals() -> std::io::Result<Receiver<()>> {
    let (signaled, signals) = bounded(1);
    let mut watched = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for _ in watched.forever() {
            // A full channel means that the program is ending.
            let _ = signaled.try_send(());
        }
    });
    Ok(signals)
}

/// Reads the events of a session until it has stopped.
fn follow(session: &Session) {
    for event in session.events() {
        if let Event::Disconnected(disconnect) = event {
            println!("{disconnect}");
        }
    }
}

/// Places orders until `stop` disconnects.
fn place(orders: &Session, stop: &Receiver<()>) {
    let turns = tick(BETWEEN_ORDERS);
    for number in 1.. {
        select! {
            recv(stop) -> _ => return,
            recv(turns) -> _ => {}
        }
        let id = format!("bot{number}");
        let order = MarketOrder { symbol: "BTCUSDT", side: "BUY", quantity: "0.001", id: &id };
        // The metrics tell what became of it.
        let _ = orders.handle().call(order.place().within(Duration::from_secs(1)));
    }
}

/// Has the exchange show its faults, one after the other, until the program is told to end.
fn misbehave(
    exchange: &Exchange,
    metrics: &PrometheusHandle,
    signals: &Receiver<()>,
    duration: Option<Duration>,
) {
    let faults = [
        Misbehavior::LoseReplies(2),
        Misbehavior::Disconnect,
        Misbehavior::Close(1001),
        // What refuses the dials that follow the next fault for a while.
        Misbehavior::Maintenance(Duration::from_secs(4)),
        Misbehavior::Disconnect,
        Misbehavior::FallSilent,
    ];
    let mut faults = faults.into_iter().cycle();
    let (end, turns) = (duration.map_or_else(never, after), tick(BETWEEN_FAULTS));
    let upkeep = tick(UPKEEP);
    loop {
        select! {
            recv(end) -> _ => return,
            recv(signals) -> _ => return,
            recv(upkeep) -> _ => metrics.run_upkeep(),
            recv(turns) -> _ => {
                if let Some(fault) = faults.next() {
                    exchange.misbehave(fault);
                }
            }
        }
    }
}
