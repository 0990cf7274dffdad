//! HTX spot: market data at `/feed`. Every message that it sends is gzip in a binary frame, and
//! every few seconds it sends a ping of its own, which is a message.
//!
//! The rest is the simulator's own. Orders at `/ws/v2` have the shape of the requests of market
//! data: `{"req":"auth",...}` comes first, then `order.place` and `order.cancel`, each with a
//! client order id. `{"op":"close"}` announces the end of a connection.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use flate2::Crc;
use serde_json::{Value, json};

use super::connection::{Connection, Dialect, Profile, unix_millis};
use super::limits::{Arrivals, Limit};
use super::record::{OrderStatus, ViolationKind};
use crate::sync;
use crate::testing::peer::Peer;
use crate::time::after;

pub(super) const PROFILE: Profile = Profile {
    path: "/feed",
    private_path: "/ws/v2",
    // Its documents name none.
    connects: Limit { count: usize::MAX, per: Duration::ZERO },
    dialect,
};

/// The subscription requests of one connection.
const SUBSCRIBES: Limit = Limit { count: 40, per: Duration::from_secs(1) };

/// The interval of its pings.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The number of pings after which, none of them being answered, it closes instead of the next one.
const UNANSWERED_MAX: usize = 4;

fn dialect(path: &str) -> Option<Box<dyn Dialect>> {
    let is_private = match path {
        "/feed" => false,
        "/ws/v2" => true,
        _ => return None,
    };
    Some(Box::new(Htx {
        is_private,
        subscribes: Arrivals::default(),
        next_ping: None,
        unanswered: VecDeque::new(),
    }))
}

/// Acknowledges each topic by the id of its request.
struct Htx {
    is_private: bool,
    subscribes: Arrivals,
    /// `None` until the first turn.
    next_ping: Option<Instant>,
    /// The numbers of the last pings, none of which has been answered.
    unanswered: VecDeque<u64>,
}

impl Htx {
    fn subscribe(
        &mut self,
        connection: &mut Connection<'_>,
        id: &Value,
        topic: &str,
    ) -> io::Result<()> {
        let limit = connection.settings.message_limit_or(SUBSCRIBES);
        if !self.subscribes.add(limit, sync::now()) {
            connection.violation(ViolationKind::TooManyRequests, "sub");
            return connection.ack(&error(id, "too-many-requests", "too many requests"));
        }
        if !connection.ask(topic) || data(topic, 0).is_none() {
            return connection.ack(&invalid_topic(id, topic));
        }
        connection.subscribe(topic);
        connection.ack(&answer(id, "subbed", topic, None))
    }

    /// Notes the answer to a ping. It answers those before it too.
    fn pong(&mut self, connection: &Connection<'_>, number: &Value) {
        match self.unanswered.iter().position(|sent| number.as_u64() == Some(*sent)) {
            Some(position) => drop(self.unanswered.drain(..=position)),
            None => connection.violation(ViolationKind::Malformed, "a pong without its ping"),
        }
    }

    fn log_in(connection: &mut Connection<'_>, id: &Value, request: &Value) -> io::Result<()> {
        let has = |name: &str| request[name].as_str().is_some_and(|text| !text.is_empty());
        let is_whole = ["accessKey", "timestamp", "signature"].into_iter().all(has);
        if !is_whole {
            connection.violation(ViolationKind::Malformed, "auth");
        }
        let answer = match is_whole && connection.log_in() {
            true => answer(id, "rep", "auth", None),
            false => error(id, "auth-fail", "invalid signature"),
        };
        connection.send(&answer)
    }

    /// Carries out a call.
    fn call(
        connection: &mut Connection<'_>,
        id: &Value,
        name: &str,
        request: &Value,
    ) -> io::Result<()> {
        let data = &request["data"];
        let (Some(client_id), Some(symbol)) =
            (data["client-order-id"].as_str(), data["symbol"].as_str())
        else {
            connection.violation(ViolationKind::Malformed, "no client-order-id, or no symbol");
            return connection.reply(&error(id, "bad-request", "invalid data"));
        };
        let result = if name == "order.cancel" {
            connection.cancel(client_id).ok_or(("order-state-error", "it is not open"))
        } else {
            let is_market = data["type"].as_str().is_some_and(|kind| kind.ends_with("-market"));
            let status = if is_market { OrderStatus::Filled } else { OrderStatus::Resting };
            match connection.place(client_id, symbol, status) {
                (order, true) => Ok(order),
                (_, false) => Err(("order-duplicate", "duplicate client order id")),
            }
        };
        let reply = match result {
            Ok(order) => {
                let ids = json!({"order-id": order.id.to_string(), "client-order-id": client_id});
                answer(id, "rep", name, Some(ids))
            }
            Err((code, message)) => error(id, code, message),
        };
        connection.reply(&reply)
    }
}

impl Dialect for Htx {
    fn opened(&mut self, connection: &mut Connection<'_>, _target: &str) -> io::Result<()> {
        connection.write = send_gzip;
        Ok(())
    }

    fn turn(&mut self, connection: &mut Connection<'_>, now: Instant) -> io::Result<()> {
        let every = connection.settings.scaled(PING_EVERY);
        let due = *self.next_ping.get_or_insert_with(|| after(now, every));
        if now < due {
            return Ok(());
        }
        if self.unanswered.len() >= UNANSWERED_MAX {
            let detail = format!("{UNANSWERED_MAX} pings were not answered");
            return Err(connection.expel(ViolationKind::NoPong, 1003, &detail));
        }
        self.next_ping = Some(after(now, every));
        // No two pings have the same number, even if they come within a millisecond.
        let millis = u64::try_from(unix_millis()).unwrap_or_default();
        let number = self.unanswered.back().map_or(millis, |last| millis.max(last + 1));
        self.unanswered.push_back(number);
        connection.send(&json!({"ping": number}).to_string())
    }

    fn received(&mut self, connection: &mut Connection<'_>, text: &str) -> io::Result<()> {
        let message: Value = serde_json::from_str(text).unwrap_or_default();
        let (id, name) = (&message["id"], |key: &str| message[key].as_str());
        if !message["pong"].is_null() {
            self.pong(connection, &message["pong"]);
            return Ok(());
        }
        match (name("sub"), name("unsub"), name("req")) {
            (None, None, Some("auth")) if self.is_private => Self::log_in(connection, id, &message),
            _ if self.is_private && !connection.is_logged_in() => {
                connection.violation(ViolationKind::NotLoggedIn, "auth comes first");
                connection.reply(&error(id, "auth-fail", "auth comes first"))
            }
            (None, None, Some(call @ ("order.place" | "order.cancel"))) if self.is_private => {
                Self::call(connection, id, call, &message)
            }
            (Some(topic), None, None) if !self.is_private => self.subscribe(connection, id, topic),
            (None, Some(topic), None) if !self.is_private => {
                connection.unsubscribe(topic);
                connection.ack(&answer(id, "unsubbed", topic, None))
            }
            (None, None, Some(topic)) if !self.is_private => {
                let sent = connection.topic(topic).map_or(0, |topic| topic.sent);
                let reply = match is_book(topic) {
                    true => answer(id, "rep", topic, Some(snapshot(sent))),
                    false => invalid_topic(id, topic),
                };
                connection.reply(&reply)
            }
            _ => {
                connection.violation(ViolationKind::Malformed, "no JSON, or an unknown request");
                connection.ack(&error(id, "bad-request", "invalid request"))
            }
        }
    }

    fn data(&self, topic: &str, number: u64, _is_first: bool) -> Option<String> {
        data(topic, number)
    }

    fn shutdown_notice(&self) -> String {
        json!({"op": "close", "ts": unix_millis()}).to_string()
    }
}

/// Sends a message the way in which HTX sends all of them.
fn send_gzip(peer: &mut Peer, text: &str) -> io::Result<()> {
    peer.send_binary(&gzip(text.as_bytes()))
}

/// Returns a gzip member (RFC 1952) of stored blocks (RFC 1951 section 3.2.4): an encoder would
/// take most of the time of a test in a debug build.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = bytes.chunks(usize::from(u16::MAX)).peekable();
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        member.push(u8::from(blocks.peek().is_none()));
        member.extend(length.to_le_bytes().into_iter().chain((!length).to_le_bytes()));
        member.extend_from_slice(block);
    }
    let mut crc = Crc::new();
    crc.update(bytes);
    member.extend(crc.sum().to_le_bytes().into_iter().chain(crc.amount().to_le_bytes()));
    member
}

/// Returns the answer to a request that succeeded. It has the id of the request, if that has one.
fn answer(id: &Value, verb: &str, subject: &str, data: Option<Value>) -> String {
    let mut message = with_id(id);
    message["status"] = json!("ok");
    message[verb] = json!(subject);
    message["ts"] = json!(unix_millis());
    if let Some(data) = data {
        message["data"] = data;
    }
    message.to_string()
}

/// Returns the answer to a request that failed.
fn error(id: &Value, code: &str, text: &str) -> String {
    let mut message = with_id(id);
    message["status"] = json!("error");
    message["ts"] = json!(unix_millis());
    message["err-code"] = json!(code);
    message["err-msg"] = json!(text);
    message.to_string()
}

fn invalid_topic(id: &Value, topic: &str) -> String {
    error(id, "bad-request", &format!("invalid topic {topic}"))
}

fn with_id(id: &Value) -> Value {
    match id {
        Value::Null => json!({}),
        id => json!({"id": id}),
    }
}

/// Returns whether snapshots of a topic can be requested.
fn is_book(topic: &str) -> bool {
    topic.contains(".mbp.") && data(topic, 0).is_some()
}

/// Returns the book behind the message of a topic with this number.
fn snapshot(number: u64) -> Value {
    json!({"seqNum": number, "bids": [[618.37, 71.594]], "asks": [[618.4, 10.0]]})
}

/// Returns a message of a topic. Its number is the sequence number, or the id of the trade.
fn data(topic: &str, number: u64) -> Option<String> {
    let parts: Vec<&str> = topic.split('.').collect();
    let time = unix_millis();
    let tick = match parts[..] {
        [_, _, "mbp", "5" | "20" | "150" | "400"] => json!({
            "seqNum": number, "prevSeqNum": number.saturating_sub(1),
            "bids": [[618.37, 71.594]], "asks": [],
        }),
        [_, symbol, "bbo"] => json!({
            "seqId": number, "ask": 618.4, "askSize": 10.0, "bid": 618.37, "bidSize": 71.594,
            "quoteTime": time, "symbol": symbol,
        }),
        [_, _, "trade", "detail"] => json!({
            "id": number, "ts": time,
            "data": [{
                "id": number, "ts": time, "tradeId": number, "amount": 0.0099, "price": 401.74,
                "direction": "buy",
            }],
        }),
        _ => return None,
    };
    let is_market = parts[0] == "market" && !parts[1].is_empty();
    is_market.then(|| json!({"ch": topic, "ts": time, "tick": tick}).to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_message_of_any_length_is_one_gzip_member() {
        for length in [1, 65_535, 65_536, 200_000] {
            let (text, mut decoded) = ("abc ".repeat(length)[..length].to_owned(), String::new());
            let member = gzip(text.as_bytes());
            flate2::read::GzDecoder::new(&member[..]).read_to_string(&mut decoded).expect("gzip");
            assert!(decoded == text, "{length} bytes");
        }
    }

    #[test]
    fn topics_without_a_symbol_or_of_another_kind_have_no_data() {
        let known = ["market.a.mbp.150", "market.a.bbo", "market.a.trade.detail"];
        assert!(known.into_iter().all(|topic| data(topic, 1).is_some()));
        let unknown = ["", "market", "market..bbo", "other.a.bbo", "market.a.mbp.7", "market.a"];
        assert!(unknown.into_iter().all(|topic| data(topic, 1).is_none()));
    }
}
