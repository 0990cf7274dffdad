//! A bot that handles `NotSent` and `Unknown`: it never sends an order twice, and never forgets
//! one.
//!
//! `cargo run --example orders` trades on a simulated venue that is down at first, later stops
//! reading, and once resets the connection after executing an order.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tautline::testing::{Peer, Received, TestServer};
use tautline::{Client, Event, SendError};

const ORDERS: u64 = 8;

/// The size of an order's note: enough to fill both kernel buffers when the venue stops reading.
const NOTE: usize = 8 << 20;

fn main() {
    env_logger::init();
    let executed = Arc::new(Mutex::new(BTreeMap::new()));
    let books = Arc::clone(&executed);
    let venue = TestServer::start(move |peer| play(peer, &books));
    let client = Client::builder(venue.url())
        .send_timeout(Duration::from_millis(300))
        // The send buffer is too small for a whole order.
        .tcp_send_buffer(64 * 1024)
        // A venue that falls silent is noticed within a second.
        .ping_interval(Duration::from_millis(300))
        .pong_timeout(Duration::from_millis(600))
        .retry_delay_min(Duration::from_millis(50))
        .start()
        .expect("the settings are good");

    let mut desk = Desk {
        client: &client,
        open: (1..=ORDERS).collect(),
        in_doubt: Vec::new(),
        done: Vec::new(),
    };
    desk.trade(Duration::from_secs(20));

    println!("executed by the venue, by client order id: {:?}", executed.lock());
    assert!(executed.lock().values().all(|&times| times == 1), "an order was executed twice");
    assert_eq!(desk.done.len() as u64, ORDERS, "an order was forgotten");
    println!("every order was executed exactly once; {}", client.stop(Duration::from_secs(5)));
}

/// The bot's orders: those to send, those in doubt, and those done.
struct Desk<'a> {
    client: &'a Client,
    /// Orders that were never sent or are known not to have arrived. They are safe to send.
    open: Vec<u64>,
    /// Orders that may have arrived. Their status is queried before anything else is sent.
    in_doubt: Vec<u64>,
    done: Vec<u64>,
}

impl Desk<'_> {
    fn trade(&mut self, timeout: Duration) {
        // While no connection is open, every send fails at once with `NotSent`. Nothing is queued.
        self.send_next();
        let deadline = Instant::now() + timeout;
        let mut events = self.client.events();
        while (self.done.len() as u64) < ORDERS {
            let left = deadline.saturating_duration_since(Instant::now());
            match events.next_timeout(left).expect("the venue answers in time") {
                Event::Opened(opened) => {
                    println!("connection {} is open", opened.epoch);
                    // Orders in doubt come first: the answers decide what is sent again.
                    for id in self.in_doubt.clone() {
                        self.request(&json!({"method": "order.status", "id": id}));
                    }
                    if self.in_doubt.is_empty() {
                        self.send_next();
                    }
                }
                Event::Message(message) => self.answer(message.text().unwrap_or_default()),
                Event::Disconnected(disconnect) => {
                    println!(
                        "{disconnect}; {} sent, {} confirmed: those in between are in doubt",
                        disconnect.sent, disconnect.confirmed
                    );
                }
                Event::DialFailed(failure) => println!("{failure}"),
                _ => {}
            }
        }
    }

    /// Sends the next open order. Orders go out one at a time, so at most one is in doubt when a
    /// connection ends.
    fn send_next(&mut self) {
        let Some(id) = self.open.pop() else { return };
        let order = json!({"method": "order.place", "id": id, "note": "x".repeat(NOTE)});
        match self.client.send_text(&order.to_string()) {
            Ok(receipt) => {
                // The kernel has taken it. It is in doubt until the venue acknowledges it.
                println!("order {id}: sent as {}.{}", receipt.epoch, receipt.sequence);
                self.in_doubt.push(id);
            }
            Err(SendError::NotSent(reason)) => {
                println!("order {id}: not sent ({reason}); it stays open");
                self.open.push(id);
            }
            Err(error) => {
                println!("order {id}: {error} ({}); it is in doubt", error.reason());
                self.in_doubt.push(id);
            }
        }
    }

    fn answer(&mut self, text: &str) {
        let Ok(answer) = serde_json::from_str::<Value>(text) else { return };
        let (Some(id), Some(status)) = (answer["id"].as_u64(), answer["status"].as_str()) else {
            return;
        };
        // The venue may answer both the order and the query. The second answer is ignored.
        let Some(place) = self.in_doubt.iter().position(|&doubtful| doubtful == id) else { return };
        self.in_doubt.remove(place);
        match status {
            "FILLED" => {
                println!("order {id}: filled");
                self.done.push(id);
            }
            // The venue has not received it, so it is safe to send again.
            _ => {
                println!("order {id}: unknown to the venue; it is open again");
                self.open.push(id);
            }
        }
        if self.in_doubt.is_empty() {
            self.send_next();
        }
    }

    fn request(&self, request: &Value) {
        if let Err(error) = self.client.send_text(&request.to_string()) {
            // A query may be repeated, and is when the next connection opens.
            println!("query failed: {error}");
        }
    }
}

/// Plays the venue: it refuses the first connection, stops reading on the second, and resets the
/// third after executing an order.
fn play(peer: &mut Peer, executed: &Mutex<BTreeMap<u64, u32>>) -> io::Result<()> {
    if peer.number() == 0 {
        return peer.refuse(503, "Retry-After: 1\r\n", "back in a moment");
    }
    peer.upgrade()?;
    peer.limit_receive_buffer(64 * 1024)?;
    for count in 1.. {
        let Received::Text(text) = peer.receive_message()? else { continue };
        let request: Value = serde_json::from_str(&text).map_err(io::Error::other)?;
        let id = request["id"].as_u64().unwrap_or_default();
        let status = match request["method"].as_str() {
            Some("order.place") => {
                *executed.lock().entry(id).or_insert(0) += 1;
                "FILLED"
            }
            _ if executed.lock().contains_key(&id) => "FILLED",
            _ => "UNKNOWN",
        };
        match (peer.number(), count) {
            // The order is executed, and the connection breaks before the answer.
            (2, 3) => return peer.reset(),
            _ => peer.send_text(&json!({"id": id, "status": status}).to_string())?,
        }
        if (peer.number(), count) == (1, 2) {
            return peer.stall();
        }
    }
    Ok(())
}
