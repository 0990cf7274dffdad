//! A simulated venue on a loopback port: several symbols, messages in Binance's format, and the
//! failures of a real venue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tautline::testing::{Peer, Received, TestServer};

/// The symbols and their initial prices in cents.
const SYMBOLS: [(&str, i64); 4] =
    [("BTCUSDT", 6_412_350), ("ETHUSDT", 318_420), ("SOLUSDT", 14_210), ("BNBUSDT", 58_730)];

/// The interval at which the venue sends a round of quotes.
const ROUND: Duration = Duration::from_millis(5);

/// The age at which a connection fails. The first three fail, each in its own way.
const FAILS_AFTER: Duration = Duration::from_millis(3500);

/// Counts what the venue has executed, for comparison with the bot's own count.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) orders: AtomicUsize,
}

/// Starts the venue.
pub(crate) fn open() -> (TestServer, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    let kept = Arc::clone(&ledger);
    (TestServer::start(move |peer| Session::new(peer, &ledger).run()), kept)
}

/// One connection, from the venue's side.
struct Session<'a> {
    peer: &'a mut Peer,
    ledger: &'a Ledger,
    quotes: Vec<Quote>,
    /// Counts the updates, as `u` of a book ticker does.
    update: u64,
    began: Instant,
    pinged_at: Instant,
}

struct Quote {
    symbol: &'static str,
    mid: i64,
    spread: i64,
    is_subscribed: bool,
}

impl<'a> Session<'a> {
    fn new(peer: &'a mut Peer, ledger: &'a Ledger) -> Self {
        let quotes = SYMBOLS
            .iter()
            .map(|&(symbol, mid)| Quote { symbol, mid, spread: 1, is_subscribed: false })
            .collect();
        let now = Instant::now();
        Session { peer, ledger, quotes, update: 0, began: now, pinged_at: now }
    }

    fn run(mut self) -> io::Result<()> {
        self.peer.upgrade()?;
        loop {
            while let Some(received) = self.peer.receive_timeout(ROUND)? {
                match received {
                    Received::Text(text) => self.answer(&text)?,
                    Received::Ping(payload) => self.peer.pong(&payload)?,
                    Received::Close(code, _) => return self.peer.close(code.unwrap_or(1000), ""),
                    Received::End => return Ok(()),
                    _ => {}
                }
            }
            if self.began.elapsed() >= FAILS_AFTER {
                match self.peer.number() {
                    // The shutdown is announced, so that a client can reconnect before it.
                    0 => return self.shut_down(),
                    1 => return self.peer.reset(),
                    // Half-open: the kernel still acknowledges, and nothing is sent.
                    2 => return self.peer.stall(),
                    _ => {}
                }
            }
            self.send_quotes()?;
        }
    }

    /// Answers a request of the bot.
    fn answer(&mut self, text: &str) -> io::Result<()> {
        let request: Value = match serde_json::from_str(text) {
            Ok(request) => request,
            Err(error) => {
                return self.peer.send_text(
                    &json!({"code": 3, "msg": format!("Invalid JSON: {error}")}).to_string(),
                );
            }
        };
        let answer = match request["method"].as_str() {
            Some("SUBSCRIBE") => {
                for stream in
                    request["params"].as_array().into_iter().flatten().filter_map(Value::as_str)
                {
                    for quote in &mut self.quotes {
                        quote.is_subscribed |=
                            stream == format!("{}@bookTicker", quote.symbol.to_lowercase());
                    }
                }
                json!({"result": null, "id": request["id"]})
            }
            Some("order.place") => {
                let number = self.ledger.orders.fetch_add(1, Ordering::Relaxed) + 1;
                let symbol = &request["params"]["symbol"];
                let result = json!({"orderId": number, "symbol": symbol, "status": "FILLED"});
                json!({"id": request["id"], "status": 200, "result": result})
            }
            _ => {
                let error = json!({"code": -1100, "msg": "unknown method"});
                json!({"id": request["id"], "status": 400, "error": error})
            }
        };
        self.peer.send_text(&answer.to_string())
    }

    /// Sends a round of quotes: a random walk that is the same in each run.
    fn send_quotes(&mut self) -> io::Result<()> {
        for _ in 0..4 {
            for index in 0..self.quotes.len() {
                self.update += 1;
                let update = self.update;
                let quote = &mut self.quotes[index];
                if !quote.is_subscribed {
                    continue;
                }
                let random = (update.wrapping_mul(6_364_136_223_846_793_005) >> 33) as i64;
                quote.mid += random % 5 - 2;
                // The bot orders at the wide spread that comes now and then.
                quote.spread = if random % 997 == 0 { 40 } else { 1 + random % 4 };
                let (bid, ask) = (quote.mid, quote.mid + quote.spread);
                let text = format!(
                    r#"{{"u":{update},"s":"{}","b":"{}","B":"31.21","a":"{}","A":"40.66"}}"#,
                    quote.symbol,
                    price(bid),
                    price(ask),
                );
                self.peer.send_text(&text)?;
            }
        }
        if self.pinged_at.elapsed() >= Duration::from_secs(1) {
            self.pinged_at = Instant::now();
            self.peer.ping(b"1770123456789")?;
        }
        Ok(())
    }

    fn shut_down(mut self) -> io::Result<()> {
        self.peer.send_text(r#"{"e":"serverShutdown","E":1770123456789}"#)?;
        // A client that stays is closed after a second.
        self.began = Instant::now();
        while self.began.elapsed() < Duration::from_secs(1) {
            match self.peer.receive_timeout(ROUND)? {
                Some(Received::Close(..) | Received::End) => return Ok(()),
                _ => self.send_quotes()?,
            }
        }
        self.peer.close(1001, "shutdown")
    }
}

fn price(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
