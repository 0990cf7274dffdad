//! Binance spot: streams at `/stream` and `/ws`, and the WebSocket API at `/ws-api/v3`.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::connection::{Connection, Dialect, Profile, unix_millis};
use super::limits::{Limit, Limits};
use super::record::{Order, OrderStatus, ViolationKind};

pub(super) const PROFILE: Profile = Profile {
    path: "/stream",
    private_path: "/ws-api/v3",
    connects: Limit { count: 300, per: Duration::from_secs(300) },
    dialect,
};

/// The topics that one connection may have.
const TOPICS_MAX: usize = 1024;

const LIMITS: Limits = Limits {
    messages: Some(Limit { count: 5, per: Duration::from_secs(1) }),
    message_size: 64 << 10,
    ping: Some((Duration::from_secs(20), Duration::from_secs(60))),
    silence: None,
    shutdown: Duration::from_secs(60),
};

fn dialect(path: &str) -> Option<Box<dyn Dialect>> {
    match path {
        "/ws-api/v3" => Some(Box::new(WebSocketApi { has_user_data: false })),
        "/stream" => Some(Box::new(Streams { is_combined: true })),
        _ if path == "/ws" || path.starts_with("/ws/") => {
            Some(Box::new(Streams { is_combined: false }))
        }
        _ => None,
    }
}

/// Market data. Acknowledges by id.
struct Streams {
    /// Data is wrapped in an object that names its stream.
    is_combined: bool,
}

impl Streams {
    /// Makes topics active. All or none of them.
    fn subscribe(&self, connection: &mut Connection<'_>, topics: &[&str]) -> io::Result<bool> {
        let asked: Vec<bool> =
            topics.iter().map(|topic| connection.ask(topic) && has_data(topic)).collect();
        if asked.contains(&false) {
            return Ok(false);
        }
        for topic in topics {
            connection.subscribe(topic);
        }
        let count = connection.subscriptions().len();
        if count > TOPICS_MAX {
            let detail = format!("{count} streams");
            return Err(connection.expel(ViolationKind::TooManyTopics, 1008, &detail));
        }
        Ok(true)
    }

    /// Answers a request with an error. Nobody waits for it by a wrong id, or by none.
    fn refuse(connection: &mut Connection<'_>, id: &Value, code: i64, msg: &str) -> io::Result<()> {
        let mut error = json!({"code": code, "msg": msg});
        if !id.is_null() {
            error["id"] = id.clone();
        }
        connection.ack(&error.to_string())
    }
}

impl Dialect for Streams {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn opened(&mut self, connection: &mut Connection<'_>, target: &str) -> io::Result<()> {
        let names = target.strip_prefix("/stream?streams=").or(target.strip_prefix("/ws/"));
        let topics: Vec<&str> = names.map(|names| names.split('/').collect()).unwrap_or_default();
        // Nobody would tell the client of an unknown name in the URL: it gets no data.
        self.subscribe(connection, &topics).map(|_| ())
    }

    fn received(&mut self, connection: &mut Connection<'_>, text: &str) -> io::Result<()> {
        let Ok(request) = serde_json::from_str::<Value>(text) else {
            connection.violation(ViolationKind::Malformed, "no JSON");
            let msg = "Invalid JSON: expected value at line 1 column 1";
            return Self::refuse(connection, &Value::Null, 3, msg);
        };
        let id = &request["id"];
        let topics: Vec<&str> =
            request["params"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match request["method"].as_str() {
            Some("SUBSCRIBE") => {
                if !self.subscribe(connection, &topics)? {
                    return Self::refuse(connection, id, 2, "Invalid request: unknown stream");
                }
                connection.ack(&json!({"result": null, "id": id}).to_string())
            }
            Some("UNSUBSCRIBE") => {
                for topic in topics {
                    connection.unsubscribe(topic);
                }
                connection.ack(&json!({"result": null, "id": id}).to_string())
            }
            Some("LIST_SUBSCRIPTIONS") => {
                let result = connection.subscriptions();
                connection.reply(&json!({"result": result, "id": id}).to_string())
            }
            _ => {
                connection.violation(ViolationKind::Malformed, "an unknown method");
                Self::refuse(connection, id, 2, "Invalid request: unknown variant")
            }
        }
    }

    fn data(&self, topic: &str, number: u64, _: bool) -> Option<String> {
        let data = data(topic, number)?;
        Some(match self.is_combined {
            true => format!(r#"{{"stream":"{topic}","data":{data}}}"#),
            false => data,
        })
    }

    fn shutdown_notice(&self) -> String {
        shutdown_notice()
    }
}

/// Returns whether there is such a stream: a symbol in lower case, and a kind that is known here.
fn has_data(topic: &str) -> bool {
    let symbol = topic.split('@').next().unwrap_or_default();
    let is_symbol = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !symbol.is_empty() && symbol.bytes().all(is_symbol) && data(topic, 0).is_some()
}

/// Returns a message of a stream. Its number is the id of the trade, or of the update.
fn data(topic: &str, number: u64) -> Option<String> {
    let (symbol, kind) = topic.split_once('@')?;
    let (symbol, time) = (symbol.to_uppercase(), unix_millis());
    let message = match kind {
        "aggTrade" => json!({
            "e": "aggTrade", "E": time, "s": symbol, "a": number, "p": "0.001", "q": "100",
            "f": number, "l": number, "T": time, "m": true, "M": true,
        }),
        "trade" => json!({
            "e": "trade", "E": time, "s": symbol, "t": number, "p": "0.001", "q": "100",
            "T": time, "m": true, "M": true,
        }),
        "bookTicker" => json!({
            "u": number, "s": symbol, "b": "25.351", "B": "31.21", "a": "25.366", "A": "40.66",
        }),
        "depth" | "depth@100ms" => json!({
            "e": "depthUpdate", "E": time, "s": symbol, "U": number, "u": number,
            "b": [["0.0024", "10"]], "a": [],
        }),
        _ => return None,
    };
    Some(message.to_string())
}

fn shutdown_notice() -> String {
    json!({"e": "serverShutdown", "E": unix_millis()}).to_string()
}

/// Orders, as calls with ids.
struct WebSocketApi {
    /// The client has asked for execution reports.
    has_user_data: bool,
}

/// The status, the result or error, and an execution report that follows.
type Outcome = (u16, Value, Option<Value>);

impl WebSocketApi {
    fn carry_out(&mut self, connection: &Connection<'_>, method: &str, params: &Value) -> Outcome {
        let done = |result: Value| (200, result, None);
        let needs_login = !matches!(method, "session.logon" | "session.status" | "ping" | "time");
        if needs_login && !connection.is_logged_in() {
            connection.violation(ViolationKind::NotLoggedIn, method);
            return error(401, -2015, "Invalid API-key, IP, or permissions for action.");
        }
        let text = |name: &str| params[name].as_str().filter(|text| !text.is_empty());
        match method {
            "ping" => done(json!({})),
            "time" => done(json!({"serverTime": unix_millis()})),
            "session.status" => done(json!({"authorizedSince": null, "serverTime": unix_millis()})),
            "session.logon" => {
                let is_whole =
                    text("apiKey").and(text("signature")).is_some() && params["timestamp"].is_u64();
                if !is_whole {
                    connection.violation(ViolationKind::Malformed, method);
                    return error(400, -1102, "A mandatory parameter was not sent.");
                }
                if !connection.log_in() {
                    return error(401, -1022, "Signature for this request is not valid.");
                }
                let now = unix_millis();
                done(json!({"apiKey": params["apiKey"], "authorizedSince": now, "serverTime": now}))
            }
            "userDataStream.subscribe" => {
                self.has_user_data = true;
                done(json!({"subscriptionId": 0}))
            }
            "order.place" => {
                let (Some(id), Some(symbol)) = (text("newClientOrderId"), text("symbol")) else {
                    connection.violation(ViolationKind::Malformed, method);
                    return error(400, -1102, "A mandatory parameter was not sent.");
                };
                let status = match text("type") {
                    Some("MARKET") => OrderStatus::Filled,
                    _ => OrderStatus::Resting,
                };
                match connection.place(id, symbol, status) {
                    (order, true) => (200, shown(&order, id), self.report(&order)),
                    (_, false) => error(400, -2010, "Duplicate order sent."),
                }
            }
            "order.status" | "order.cancel" => {
                let Some(id) = text("origClientOrderId") else {
                    connection.violation(ViolationKind::Malformed, method);
                    return error(400, -1102, "A mandatory parameter was not sent.");
                };
                let order = match method {
                    "order.status" => connection.order(id),
                    _ => connection.cancel(id),
                };
                match (order, method) {
                    (Some(order), "order.status") => done(shown(&order, id)),
                    (Some(order), _) => (200, shown(&order, id), self.report(&order)),
                    (None, "order.status") => error(400, -2013, "Order does not exist."),
                    (None, _) => error(400, -2011, "Unknown order sent."),
                }
            }
            _ => {
                connection.violation(ViolationKind::Malformed, method);
                error(400, -1100, "Unknown method.")
            }
        }
    }

    /// Returns the execution report of an order, if the client wants it.
    fn report(&self, order: &Order) -> Option<Value> {
        let event = json!({
            "e": "executionReport", "E": unix_millis(), "s": order.symbol,
            "c": order.client_order_id, "i": order.id, "X": status_name(order.status),
        });
        self.has_user_data.then(|| json!({"subscriptionId": 0, "event": event}))
    }
}

impl Dialect for WebSocketApi {
    fn limits(&self) -> Limits {
        Limits { messages: None, ..LIMITS }
    }

    fn received(&mut self, connection: &mut Connection<'_>, text: &str) -> io::Result<()> {
        let request: Value = serde_json::from_str(text).unwrap_or_default();
        let Some(method) = request["method"].as_str() else {
            connection.violation(ViolationKind::Malformed, "no JSON, or no method");
            let (status, error, _) = error(400, -1135, "Malformed request.");
            let reply = json!({"id": null, "status": status, "error": error});
            return connection.reply(&reply.to_string());
        };
        let (status, outcome, report) = self.carry_out(connection, method, &request["params"]);
        let key = if status == 200 { "result" } else { "error" };
        let mut reply = json!({"id": request["id"], "status": status});
        reply[key] = outcome;
        reply["rateLimits"] = json!([]);
        // The steps of a login are no calls.
        match method {
            "session.logon" | "userDataStream.subscribe" => connection.send(&reply.to_string())?,
            _ => connection.reply(&reply.to_string())?,
        }
        report.map_or(Ok(()), |report| connection.send(&report.to_string()))
    }

    fn data(&self, _: &str, _: u64, _: bool) -> Option<String> {
        None
    }

    fn shutdown_notice(&self) -> String {
        shutdown_notice()
    }
}

fn error(status: u16, code: i64, msg: &str) -> Outcome {
    (status, json!({"code": code, "msg": msg}), None)
}

fn shown(order: &Order, id: &str) -> Value {
    json!({
        "symbol": order.symbol, "orderId": order.id, "clientOrderId": id,
        "transactTime": unix_millis(), "status": status_name(order.status),
    })
}

fn status_name(status: OrderStatus) -> &'static str {
    match status {
        OrderStatus::Resting => "NEW",
        OrderStatus::Filled => "FILLED",
        OrderStatus::Canceled => "CANCELED",
    }
}
