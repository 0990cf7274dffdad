//! A simulated venue on a loopback port: hundreds of symbols, messages in Binance's format, the
//! rules of a real venue, and its failures.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tautline::testing::{Peer, Received, TestServer};

/// The number of symbols.
pub(crate) const SYMBOLS: usize = 299;

/// The interval at which the venue sends a round of quotes.
const ROUND: Duration = Duration::from_millis(5);

/// The number of quotes in a round.
const QUOTES: u64 = 16;

/// The age at which a connection fails. The first three fail, each in its own way.
const FAILS_AFTER: Duration = Duration::from_millis(3500);

/// At most this many messages may come within a second, pongs and pings included.
pub(crate) const MESSAGES_PER_SECOND: u32 = 5;

/// The venue's record of its clients, for comparison with the bot's.
#[derive(Default)]
pub(crate) struct Ledger {
    inner: Mutex<Books>,
}

#[derive(Default, Clone)]
pub(crate) struct Books {
    /// The orders that were executed, by the bot's own ids.
    pub(crate) orders: BTreeSet<String>,
    /// Orders that came twice.
    pub(crate) repeated: usize,
    /// Connections that were closed because they sent too much.
    pub(crate) violations: usize,
}

impl Ledger {
    pub(crate) fn books(&self) -> Books {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Books) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the venue.
pub(crate) fn open() -> (TestServer, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    let kept = Arc::clone(&ledger);
    (TestServer::start(move |peer| Connection::new(peer, &ledger).run()), kept)
}

/// Returns the stream of a symbol.
pub(crate) fn stream(symbol: usize) -> String {
    format!("sym{symbol:03}usdt@bookTicker")
}

/// One connection, from the venue's side.
struct Connection<'a> {
    peer: &'a mut Peer,
    ledger: &'a Ledger,
    quotes: Vec<Quote>,
    /// Counts the updates, as `u` of a book ticker does.
    update: u64,
    is_logged_on: bool,
    /// The times at which messages came within the last second.
    came: VecDeque<Instant>,
    began: Instant,
    pinged_at: Instant,
}

struct Quote {
    mid: i64,
    is_subscribed: bool,
}

impl<'a> Connection<'a> {
    fn new(peer: &'a mut Peer, ledger: &'a Ledger) -> Self {
        let quote = |symbol| Quote { mid: 10_000 + 211 * symbol as i64, is_subscribed: false };
        let now = Instant::now();
        Connection {
            peer,
            ledger,
            quotes: (0..SYMBOLS).map(quote).collect(),
            update: 0,
            is_logged_on: false,
            came: VecDeque::new(),
            began: now,
            pinged_at: now,
        }
    }

    fn run(mut self) -> io::Result<()> {
        self.peer.upgrade()?;
        loop {
            while let Some(received) = self.peer.receive_timeout(ROUND)? {
                if let Received::Close(code, _) = received {
                    return self.peer.close(code.unwrap_or(1000), "");
                }
                if self.is_too_much() {
                    self.ledger.change(|books| books.violations += 1);
                    return self.peer.close(1008, "Too many requests");
                }
                match received {
                    Received::Text(text) => self.answer(&text)?,
                    Received::Ping(payload) => self.peer.pong(&payload)?,
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

    fn is_too_much(&mut self) -> bool {
        let now = Instant::now();
        let is_old = |at: &Instant| now.duration_since(*at) >= Duration::from_secs(1);
        while self.came.front().is_some_and(is_old) {
            self.came.pop_front();
        }
        self.came.push_back(now);
        self.came.len() > MESSAGES_PER_SECOND as usize
    }

    /// Answers a request of the bot.
    fn answer(&mut self, text: &str) -> io::Result<()> {
        let answer = match serde_json::from_str::<Value>(text) {
            Ok(request) => self.carry_out(&request),
            Err(error) => json!({"code": 3, "msg": format!("Invalid JSON: {error}")}),
        };
        self.peer.send_text(&answer.to_string())
    }

    fn carry_out(&mut self, request: &Value) -> Value {
        let (id, params) = (&request["id"], &request["params"]);
        let refused =
            |code: i64, msg: &str| json!({"id": id, "status": 400, "code": code, "msg": msg});
        let order_id = params["newClientOrderId"].as_str().unwrap_or_default().to_owned();
        match request["method"].as_str() {
            Some("session.logon") => {
                self.is_logged_on = true;
                json!({"id": id, "status": 200, "result": {"apiKey": params["apiKey"]}})
            }
            _ if !self.is_logged_on => refused(-2015, "log on first"),
            Some("SUBSCRIBE") => {
                let names: Vec<&str> =
                    params.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let symbols =
                    names.iter().map(|name| (0..SYMBOLS).find(|symbol| stream(*symbol) == *name));
                // One stream that there is not, and none of them is subscribed.
                let Some(symbols) = symbols.collect::<Option<Vec<usize>>>() else {
                    return refused(2, "Invalid request: unknown stream");
                };
                symbols.into_iter().for_each(|symbol| self.quotes[symbol].is_subscribed = true);
                json!({"result": null, "id": id})
            }
            Some("order.place") => self.ledger.change(|books| {
                if !books.orders.insert(order_id) {
                    books.repeated += 1;
                }
                let result = json!({"orderId": books.orders.len(), "status": "FILLED"});
                json!({"id": id, "status": 200, "result": result})
            }),
            Some("order.status") => match self.ledger.books().orders.contains(&order_id) {
                true => json!({"id": id, "status": 200, "result": {"status": "FILLED"}}),
                false => refused(-2013, "Order does not exist."),
            },
            _ => refused(-1100, "unknown method"),
        }
    }

    /// Sends a round of quotes: a random walk that is the same in each run.
    fn send_quotes(&mut self) -> io::Result<()> {
        for _ in 0..QUOTES {
            self.update += 1;
            let update = self.update;
            let random = (update.wrapping_mul(6_364_136_223_846_793_005) >> 33) as i64;
            let symbol = random as usize % SYMBOLS;
            let quote = &mut self.quotes[symbol];
            if !quote.is_subscribed {
                continue;
            }
            quote.mid += random % 5 - 2;
            // The bot orders at the wide spread that comes now and then.
            let spread = if random % 997 == 0 { 40 } else { 1 + random % 4 };
            let (bid, ask) = (quote.mid, quote.mid + spread);
            let text = format!(
                r#"{{"u":{update},"s":"SYM{symbol:03}USDT","b":"{}","B":"31","a":"{}","A":"4"}}"#,
                price(bid),
                price(ask),
            );
            self.peer.send_text(&text)?;
        }
        if self.pinged_at.elapsed() >= Duration::from_secs(20) {
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
                Some(Received::Close(code, _)) => {
                    return self.peer.close(code.unwrap_or(1000), "");
                }
                Some(Received::End) => return Ok(()),
                Some(Received::Text(text)) => self.answer(&text)?,
                _ => self.send_quotes()?,
            }
        }
        self.peer.close(1001, "shutdown")
    }
}

fn price(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
