//! OKX v5: market data at `/ws/v5/public`, orders at `/ws/v5/private`.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::connection::{Connection, Dialect, Profile, unix_millis};
use super::limits::{Arrivals, Limit, Limits};
use super::record::{Order, OrderStatus, ViolationKind};
use crate::sync;

pub(super) const PROFILE: Profile = Profile {
    path: "/ws/v5/public",
    private_path: "/ws/v5/private",
    connects: Limit { count: 3, per: Duration::from_secs(1) },
    dialect,
};

/// The logins and subscription requests of one connection.
const REQUESTS: Limit = Limit { count: 480, per: Duration::from_secs(3600) };

fn dialect(path: &str) -> Option<Box<dyn Dialect>> {
    let is_private = match path {
        "/ws/v5/public" => false,
        "/ws/v5/private" => true,
        _ => return None,
    };
    Some(Box::new(Okx { is_private, requests: Arrivals::default() }))
}

/// Acknowledges each argument of a request by itself, by its echo. Errors carry the request's id.
struct Okx {
    is_private: bool,
    requests: Arrivals,
}

impl Okx {
    fn subscribe(
        &mut self,
        connection: &mut Connection<'_>,
        arg: &Value,
        id: &Value,
    ) -> io::Result<()> {
        let topic = topic_of(arg);
        let channel = arg["channel"].as_str().unwrap_or_default();
        let is_here = self.is_private == is_private(channel);
        let is_known =
            connection.ask(&topic) && (is_private(channel) || data(&topic, 0, true).is_some());
        if !is_here || !is_known {
            let msg = format!("Wrong URL or {} doesn't exist.", topic.replace(':', ",instId:"));
            return refuse(connection, id, "60018", &msg);
        }
        connection.subscribe(&topic);
        let ack = event(connection, "subscribe", &[("arg", arg)], id);
        connection.ack(&ack)
    }

    fn log_in(&mut self, connection: &mut Connection<'_>, arg: &Value) -> io::Result<()> {
        let has = |name: &str| arg[name].as_str().is_some_and(|text| !text.is_empty());
        let is_whole = ["apiKey", "passphrase", "timestamp", "sign"].into_iter().all(has);
        if !is_whole {
            connection.violation(ViolationKind::Malformed, "login");
        }
        let answer = match is_whole && connection.log_in() {
            true => event(
                connection,
                "login",
                &[("code", &json!("0")), ("msg", &json!(""))],
                &Value::Null,
            ),
            false => error(connection, &Value::Null, "60009", "Login failed."),
        };
        connection.send(&answer)
    }

    /// Carries out a call, and reports what has become of the order.
    fn call(&mut self, connection: &mut Connection<'_>, request: &Value) -> io::Result<()> {
        let arg = &request["args"][0];
        let (Some(client_id), Some(symbol)) = (arg["clOrdId"].as_str(), arg["instId"].as_str())
        else {
            connection.violation(ViolationKind::Malformed, "a call without clOrdId or instId");
            return refuse(connection, &request["id"], "60012", "Invalid request.");
        };
        let result = match request["op"].as_str() {
            Some("cancel-order") => {
                connection.cancel(client_id).ok_or(("51400", "It does not exist."))
            }
            _ => {
                let status = match arg["ordType"].as_str() {
                    Some("market") => OrderStatus::Filled,
                    _ => OrderStatus::Resting,
                };
                match connection.place(client_id, symbol, status) {
                    (order, true) => Ok(order),
                    (_, false) => Err(("51016", "Duplicated client order ID")),
                }
            }
        };
        let (code, order_id, s_code, s_msg) = match &result {
            Ok(order) => ("0", order.id.to_string(), "0", ""),
            Err((s_code, s_msg)) => ("1", String::new(), *s_code, *s_msg),
        };
        let data = json!({"clOrdId": client_id, "ordId": order_id, "sCode": s_code, "sMsg": s_msg});
        let reply = json!({
            "id": request["id"], "op": request["op"], "data": [data], "code": code, "msg": "",
        });
        connection.reply(&reply.to_string())?;
        match result {
            Ok(order) => self.report(connection, &order),
            Err(_) => Ok(()),
        }
    }

    fn report(&self, connection: &mut Connection<'_>, order: &Order) -> io::Result<()> {
        let (topic, state) = (
            "orders:ANY",
            match order.status {
                OrderStatus::Resting => "live",
                OrderStatus::Filled => "filled",
                OrderStatus::Canceled => "canceled",
            },
        );
        if !connection.is_subscribed(topic) {
            return Ok(());
        }
        let data = json!({
            "instId": order.symbol, "ordId": order.id.to_string(),
            "clOrdId": order.client_order_id, "state": state, "uTime": unix_millis().to_string(),
        });
        let arg = json!({"channel": "orders", "instType": "ANY"});
        connection.send(&json!({"arg": arg, "data": [data]}).to_string())
    }
}

impl Dialect for Okx {
    fn limits(&self) -> Limits {
        Limits { silence: Some((Duration::from_secs(30), 4004)), ..Limits::default() }
    }

    fn received(&mut self, connection: &mut Connection<'_>, text: &str) -> io::Result<()> {
        if text == "ping" {
            return connection.send("pong");
        }
        let request: Value = serde_json::from_str(text).unwrap_or_default();
        let (op, id) = (request["op"].as_str().unwrap_or_default(), &request["id"]);
        let is_request = matches!(op, "login" | "subscribe" | "unsubscribe");
        if is_request && !self.requests.add(connection.scaled_limit(REQUESTS), sync::now()) {
            connection.violation(ViolationKind::TooManyRequests, op);
            return refuse(connection, id, "60014", "Requests too frequent");
        }
        if op != "login" && self.is_private && !connection.is_logged_in() {
            connection.violation(ViolationKind::NotLoggedIn, op);
            return refuse(connection, id, "60011", "Please log in");
        }
        let args: Vec<&Value> = request["args"].as_array().into_iter().flatten().collect();
        match op {
            "login" => self.log_in(connection, &request["args"][0]),
            "subscribe" => args.iter().try_for_each(|arg| self.subscribe(connection, arg, id)),
            "unsubscribe" => args.iter().try_for_each(|arg| {
                connection.unsubscribe(&topic_of(arg));
                let ack = event(connection, "unsubscribe", &[("arg", arg)], id);
                connection.ack(&ack)
            }),
            "order" | "cancel-order" if self.is_private => self.call(connection, &request),
            _ => {
                connection.violation(ViolationKind::Malformed, "no JSON, or an unknown op");
                refuse(connection, id, "60012", "Invalid request.")
            }
        }
    }

    fn data(&self, topic: &str, number: u64, is_first: bool) -> Option<String> {
        data(topic, number, is_first)
    }

    fn shutdown_notice(&self) -> String {
        let msg = "The connection will soon be closed for a service upgrade. Please reconnect.";
        json!({"event": "notice", "code": "64008", "msg": msg, "connId": "a4d3ae55"}).to_string()
    }
}

/// Answers a request with an error.
fn refuse(connection: &mut Connection<'_>, id: &Value, code: &str, msg: &str) -> io::Result<()> {
    let text = error(connection, id, code, msg);
    connection.ack(&text)
}

fn error(connection: &Connection<'_>, id: &Value, code: &str, msg: &str) -> String {
    event(connection, "error", &[("code", &json!(code)), ("msg", &json!(msg))], id)
}

/// Returns a message that names an event. It has the id of the request that it answers, if that has
/// one.
fn event(
    connection: &Connection<'_>,
    event: &str,
    fields: &[(&str, &Value)],
    id: &Value,
) -> String {
    let mut message = json!({"event": event});
    for (key, value) in fields {
        message[*key] = (*value).clone();
    }
    message["connId"] = json!(format!("{:08x}", connection.number()));
    if !id.is_null() {
        message["id"] = id.clone();
    }
    message.to_string()
}

fn is_private(channel: &str) -> bool {
    matches!(channel, "account" | "orders" | "positions")
}

/// Returns the name of the topic that an argument stands for: its channel, a colon, and its
/// instrument or type of instruments.
fn topic_of(arg: &Value) -> String {
    let text = |name: &str| arg[name].as_str();
    let channel = text("channel").unwrap_or_default();
    match text("instId").or(text("instType")) {
        Some(instrument) => format!("{channel}:{instrument}"),
        None => channel.to_owned(),
    }
}

/// Returns a message of a topic. Its number is the sequence number, or the id of the trade.
fn data(topic: &str, number: u64, is_first: bool) -> Option<String> {
    let (channel, instrument) = topic.split_once(':').filter(|(_, id)| id.contains('-'))?;
    let arg = json!({"channel": channel, "instId": instrument});
    let time = unix_millis().to_string();
    let message = match channel {
        "books" => {
            let (action, previous) = match is_first {
                true => ("snapshot", json!(-1)),
                false => ("update", json!(number.saturating_sub(1))),
            };
            let entry = json!({
                "asks": [["411.8", "10", "0", "4"]], "bids": [], "ts": time, "checksum": 0,
                "prevSeqId": previous, "seqId": number,
            });
            json!({"arg": arg, "action": action, "data": [entry]})
        }
        "tickers" => {
            let entry = json!({
                "instType": "SPOT", "instId": instrument, "last": "9999.99", "askPx": "9999.99",
                "bidPx": "8888.88", "ts": time, "seqId": number,
            });
            json!({"arg": arg, "data": [entry]})
        }
        "trades" => {
            let entry = json!({
                "instId": instrument, "tradeId": number.to_string(), "px": "42219.9",
                "sz": "0.12", "side": "buy", "ts": time, "seqId": number,
            });
            json!({"arg": arg, "data": [entry]})
        }
        _ => return None,
    };
    Some(message.to_string())
}
