//! A bot that handles `NotSent` and `Unknown`: it never sends an order twice, and never forgets
//! one.
//!
//! `cargo run --example orders` trades on a simulated venue that is down at first, later stops
//! reading, and once resets the connection after executing an order.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tautline::session::{
    CallContext, CallError, Class, Context, Outgoing, Protocol, Request, SessionHandle,
    SubscriptionRequest,
};
use tautline::testing::{Peer, Received, TestServer};
use tautline::{Client, MessageRef};

const ORDERS: u64 = 8;

/// The size of an order's note: enough to fill both kernel buffers when the venue stops reading.
const NOTE: usize = 8 << 20;

/// The time for an order, or for a question about one.
const WITHIN: Duration = Duration::from_secs(5);

/// The venue is ready again within this time, whatever happens.
const SOON: Duration = Duration::from_secs(20);

fn main() {
    env_logger::init();
    let executed = Arc::new(Mutex::new(BTreeMap::new()));
    let ledger = Arc::clone(&executed);
    let venue = TestServer::start(move |peer| play(peer, &ledger));
    let session = Client::builder(venue.url())
        .send_timeout(Duration::from_millis(300))
        // The send buffer is too small for a whole order.
        .tcp_send_buffer(64 * 1024)
        // A venue that falls silent is noticed within a second.
        .ping_interval(Duration::from_millis(300))
        .pong_timeout(Duration::from_millis(600))
        .retry_delay_min(Duration::from_millis(50))
        .session(Desk)
        .start()
        .expect("the settings are good");

    for order in 1..=ORDERS {
        trade(session.handle(), order);
    }

    println!("executed by the venue, by client order id: {:?}", executed.lock());
    assert!(executed.lock().values().all(|&times| times == 1), "an order was executed twice");
    assert_eq!(executed.lock().len() as u64, ORDERS, "an order was forgotten");
    println!("every order was executed exactly once; {}", session.stop(Duration::from_secs(5)));
}

/// The protocol of the venue: each request has an id, and its reply repeats it.
struct Desk;

impl Protocol for Desk {
    fn classify<'m>(&self, message: MessageRef<'m>, _: &Context) -> Class<'m> {
        parse(message)["id"].as_u64().map_or(Class::Data, Class::Reply)
    }

    fn subscription_request(&self, _: &SubscriptionRequest, _: &Context) -> Outgoing {
        Outgoing::nothing()
    }
}

fn parse(message: MessageRef<'_>) -> Value {
    serde_json::from_slice(message.bytes()).unwrap_or_default()
}

/// Places an order, until it is known to be executed.
fn trade(handle: &SessionHandle, order: u64) {
    loop {
        // While the session is not ready, a call fails at once with `NotSent`. Nothing is queued.
        let placed = handle.call(request("order.place", order, &"x".repeat(NOTE)));
        match placed {
            Ok(reply) => {
                println!(
                    "order {order}: {} after {:.1?}",
                    status(reply.message.as_ref()),
                    reply.took
                );
                return;
            }
            Err(CallError::NotSent(reason)) => {
                println!("order {order}: not sent ({reason}): it is safe to send again");
            }
            // It may have arrived: the venue is asked before anything else is sent.
            Err(error) => {
                println!("order {order}: {error} ({})", error.reason());
                if is_executed(handle, order) {
                    return;
                }
            }
        }
        let epoch = handle.wait_ready(SOON).expect("the venue comes back");
        println!("connection {epoch} is ready");
    }
}

/// Asks the venue what became of an order, on whatever connection is ready.
fn is_executed(handle: &SessionHandle, order: u64) -> bool {
    loop {
        handle.wait_ready(SOON).expect("the venue comes back");
        match handle.call(request("order.status", order, "")) {
            Ok(reply) => {
                let status = status(reply.message.as_ref());
                println!("order {order}: the venue says {status}");
                return status == "FILLED";
            }
            // A question may be repeated.
            Err(error) => println!("order {order}: {error} ({})", error.reason()),
        }
    }
}

fn request(
    method: &str,
    order: u64,
    note: &str,
) -> Request<impl FnOnce(&CallContext<'_>) -> Outgoing> {
    let mut request = json!({"method": method, "order": order, "note": note});
    let make = move |context: &CallContext<'_>| {
        request["id"] = context.id().into();
        request.to_string().into()
    };
    Request::new(make).within(WITHIN)
}

fn status(message: MessageRef<'_>) -> String {
    parse(message)["status"].as_str().unwrap_or("without a status").to_owned()
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
        let order = request["order"].as_u64().unwrap_or_default();
        let status = match request["method"].as_str() {
            Some("order.place") => {
                *executed.lock().entry(order).or_insert(0) += 1;
                "FILLED"
            }
            _ if executed.lock().contains_key(&order) => "FILLED",
            _ => "UNKNOWN",
        };
        match (peer.number(), count) {
            // The order is executed, and the connection breaks before the answer.
            (2, 3) => return peer.reset(),
            _ => peer.send_text(&json!({"id": request["id"], "status": status}).to_string())?,
        }
        if (peer.number(), count) == (1, 2) {
            return peer.stall();
        }
    }
    Ok(())
}
