//! Deribit v2: JSON-RPC at `/ws/api/v2`, market data and orders.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::connection::{Connection, Dialect, Profile, unix_millis};
use super::limits::{Arrivals, Limit};
use super::record::{Order, OrderStatus, ViolationKind};
use crate::sync;
use crate::time::after;

pub(super) const PROFILE: Profile = Profile {
    path: "/ws/api/v2",
    private_path: "/ws/api/v2",
    // It limits the number of open connections, not of handshakes.
    connects: Limit { count: usize::MAX, per: Duration::ZERO },
    dialect,
};

/// The requests to subscribe of one connection: 3.3 a second, and 10 at once.
const SUBSCRIBES: Limit = Limit { count: 10, per: Duration::from_secs(3) };

/// The shortest interval of test requests, in seconds.
const HEARTBEAT_MIN: u64 = 10;

/// The topic of the orders of the client.
const ORDERS: &str = "user.orders.any.any.raw";

/// A channel that announces maintenance. It streams no data, so it is no topic of the record.
const PLATFORM_STATE: &str = "platform_state";

fn dialect(path: &str) -> Option<Box<dyn Dialect>> {
    let deribit = || Deribit { subscribes: Arrivals::default(), heartbeat: None };
    (path == "/ws/api/v2").then(|| Box::new(deribit()) as Box<dyn Dialect>)
}

/// Acknowledges by id, with the channels that are accepted.
struct Deribit {
    subscribes: Arrivals,
    heartbeat: Option<Heartbeat>,
}

/// The test requests that a client has asked for.
struct Heartbeat {
    every: Duration,
    next: Instant,
    /// The last test request has been answered.
    is_answered: bool,
}

/// The result of a request, or the code and text of its error.
type Outcome = Result<Value, (i64, &'static str)>;

impl Deribit {
    /// Makes channels active. Returns the ones that are accepted.
    fn subscribe(&mut self, connection: &Connection<'_>, method: &str, params: &Value) -> Outcome {
        let limit = connection.settings.message_limit;
        let limit = limit.unwrap_or_else(|| connection.scaled_limit(SUBSCRIBES));
        if !self.subscribes.add(limit, sync::now()) {
            let detail = format!("more than {} within {:?}", limit.count, limit.per);
            connection.violation(ViolationKind::TooManyRequests, &detail);
            return Err((10028, "too_many_requests"));
        }
        let mut accepted = Vec::new();
        for channel in channels(params) {
            if channel == PLATFORM_STATE {
                accepted.push(channel);
                continue;
            }
            let is_known = match channel {
                ORDERS => method == "private/subscribe",
                _ => data(channel, 1, true).is_some(),
            };
            if connection.ask(channel) && is_known {
                connection.subscribe(channel);
                accepted.push(channel);
            }
        }
        Ok(json!(accepted))
    }

    fn log_in(&self, connection: &Connection<'_>, params: &Value) -> Outcome {
        let has = |name: &&str| match &params[*name] {
            Value::String(text) => !text.is_empty(),
            other => other.is_u64(),
        };
        let needed: &[&str] = match params["grant_type"].as_str() {
            Some("client_signature") => &["client_id", "timestamp", "signature"],
            Some("client_credentials") => &["client_id", "client_secret"],
            _ => &["a grant_type that is known"],
        };
        if !needed.iter().all(has) {
            connection.violation(ViolationKind::Malformed, "public/auth");
            return Err((-32602, "Invalid params"));
        }
        if !connection.log_in() {
            return Err((13004, "invalid_credentials"));
        }
        Ok(json!({
            "token_type": "bearer", "scope": "trade:read_write", "access_token": "access",
            "refresh_token": "refresh", "expires_in": 31_536_000,
        }))
    }

    fn set_heartbeat(&mut self, connection: &Connection<'_>, params: &Value) -> Outcome {
        let interval = params["interval"].as_u64().filter(|interval| *interval >= HEARTBEAT_MIN);
        let Some(interval) = interval else {
            connection.violation(ViolationKind::Malformed, "an interval below 10 seconds");
            return Err((-32602, "Invalid params"));
        };
        let every = connection.settings.scaled(Duration::from_secs(interval));
        let next = after(sync::now(), every);
        self.heartbeat = Some(Heartbeat { every, next, is_answered: true });
        Ok(json!("ok"))
    }

    /// Answers a request that is no call of orders.
    fn answer(
        &mut self,
        connection: &mut Connection<'_>,
        method: &str,
        request: &Value,
    ) -> io::Result<()> {
        let params = &request["params"];
        let outcome = match method {
            "public/subscribe" | "private/subscribe" => {
                let outcome = self.subscribe(connection, method, params);
                // A step of the setup is no subscription.
                if channels(params).any(|channel| channel != PLATFORM_STATE) {
                    return connection.ack(&answer(request, outcome));
                }
                outcome
            }
            "public/unsubscribe" | "private/unsubscribe" => {
                for channel in channels(params) {
                    connection.unsubscribe(channel);
                }
                let ended: Vec<&str> = channels(params).collect();
                return connection.ack(&answer(request, Ok(json!(ended))));
            }
            "public/auth" => self.log_in(connection, params),
            "public/set_heartbeat" => self.set_heartbeat(connection, params),
            "public/disable_heartbeat" => {
                self.heartbeat = None;
                Ok(json!("ok"))
            }
            "public/test" => {
                if let Some(heartbeat) = &mut self.heartbeat {
                    heartbeat.is_answered = true;
                }
                Ok(json!({"version": "1.2.26"}))
            }
            "private/enable_cancel_on_disconnect" => {
                connection.change(|state, number| {
                    state.connections[number].cancels_on_disconnect = true;
                });
                Ok(json!("ok"))
            }
            _ => {
                connection.violation(ViolationKind::Malformed, "no JSON, or an unknown method");
                Err((-32601, "Method not found"))
            }
        };
        connection.send(&answer(request, outcome))
    }

    /// Carries out a call, and reports what has become of the order.
    fn call(
        &mut self,
        connection: &mut Connection<'_>,
        method: &str,
        request: &Value,
    ) -> io::Result<()> {
        let params = &request["params"];
        let Some(label) = params["label"].as_str().filter(|label| !label.is_empty()) else {
            connection.violation(ViolationKind::Malformed, "a call without a label");
            return connection.reply(&answer(request, Err((-32602, "Invalid params"))));
        };
        let (outcome, changed) = match method {
            "private/get_order_state_by_label" => {
                let found = connection.order(label);
                (Ok(found.iter().map(shown).collect()), None)
            }
            "private/cancel_by_label" => {
                let canceled = connection.cancel(label);
                (Ok(json!(canceled.iter().count())), canceled)
            }
            _ => self.place(connection, label, params),
        };
        connection.reply(&answer(request, outcome))?;
        match changed {
            Some(order) if connection.is_subscribed(ORDERS) => {
                connection.send(&notification(ORDERS, shown(&order)))
            }
            _ => Ok(()),
        }
    }

    fn place(
        &self,
        connection: &Connection<'_>,
        label: &str,
        params: &Value,
    ) -> (Outcome, Option<Order>) {
        let Some(instrument) = params["instrument_name"].as_str() else {
            connection.violation(ViolationKind::Malformed, "an order without an instrument");
            return (Err((-32602, "Invalid params")), None);
        };
        let status = match params["type"].as_str() {
            Some("market") => OrderStatus::Filled,
            _ => OrderStatus::Resting,
        };
        match connection.place(label, instrument, status) {
            (order, true) => (Ok(json!({"order": shown(&order), "trades": []})), Some(order)),
            (_, false) => (Err((10009, "duplicate label")), None),
        }
    }
}

impl Dialect for Deribit {
    fn turn(&mut self, connection: &mut Connection<'_>, now: Instant) -> io::Result<()> {
        let Some(heartbeat) = self.heartbeat.as_mut().filter(|heartbeat| heartbeat.next <= now)
        else {
            return Ok(());
        };
        if !heartbeat.is_answered {
            let detail = "a test_request was not answered";
            return Err(connection.expel(ViolationKind::NoPong, 4000, detail));
        }
        heartbeat.next = after(now, heartbeat.every);
        heartbeat.is_answered = false;
        let params = json!({"type": "test_request"});
        let request = json!({"jsonrpc": "2.0", "method": "heartbeat", "params": params});
        connection.send(&request.to_string())
    }

    fn received(&mut self, connection: &mut Connection<'_>, text: &str) -> io::Result<()> {
        let request: Value = serde_json::from_str(text).unwrap_or_default();
        let method = request["method"].as_str().unwrap_or_default();
        if method.starts_with("private/") && !connection.is_logged_in() {
            connection.violation(ViolationKind::NotLoggedIn, method);
            let refusal = answer(&request, Err((13009, "unauthorized")));
            return match method {
                "private/subscribe" | "private/unsubscribe" => connection.ack(&refusal),
                _ => connection.reply(&refusal),
            };
        }
        match method {
            "private/buy"
            | "private/sell"
            | "private/get_order_state_by_label"
            | "private/cancel_by_label" => self.call(connection, method, &request),
            _ => self.answer(connection, method, &request),
        }
    }

    fn data(&self, topic: &str, number: u64, is_first: bool) -> Option<String> {
        data(topic, number, is_first)
    }

    fn shutdown_notice(&self) -> String {
        notification(PLATFORM_STATE, json!({"maintenance": true}))
    }
}

fn channels(params: &Value) -> impl Iterator<Item = &str> {
    params["channels"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn answer(request: &Value, outcome: Outcome) -> String {
    let mut message = json!({"jsonrpc": "2.0", "id": request["id"]});
    match outcome {
        Ok(result) => message["result"] = result,
        Err((code, text)) => message["error"] = json!({"code": code, "message": text}),
    }
    message["testnet"] = json!(true);
    message.to_string()
}

fn notification(channel: &str, data: Value) -> String {
    let params = json!({"channel": channel, "data": data});
    json!({"jsonrpc": "2.0", "method": "subscription", "params": params}).to_string()
}

fn shown(order: &Order) -> Value {
    let state = match order.status {
        OrderStatus::Resting => "open",
        OrderStatus::Filled => "filled",
        OrderStatus::Canceled => "cancelled",
    };
    json!({
        "order_id": order.id.to_string(), "label": order.client_order_id,
        "instrument_name": order.symbol, "order_state": state,
        "last_update_timestamp": unix_millis(),
    })
}

/// Returns a message of a channel. Its number is the id of the change, or of the trade.
fn data(channel: &str, number: u64, is_first: bool) -> Option<String> {
    let mut parts = channel.split('.');
    let (kind, instrument, interval) = (parts.next()?, parts.next()?, parts.next()?);
    if instrument.is_empty() || !matches!(interval, "100ms" | "agg2") || parts.next().is_some() {
        return None;
    }
    let time = unix_millis();
    let data = match kind {
        "book" => {
            let mut book = json!({
                "type": if is_first { "snapshot" } else { "change" },
                "instrument_name": instrument, "timestamp": time, "change_id": number,
            });
            if !is_first {
                book["prev_change_id"] = json!(number.saturating_sub(1));
            }
            let action = if is_first { "new" } else { "change" };
            book["bids"] = json!([[action, 42500.0, 950.0]]);
            book["asks"] = json!([]);
            book
        }
        "trades" => json!([{
            "trade_seq": number, "trade_id": number.to_string(), "timestamp": time,
            "instrument_name": instrument, "price": 42500.0, "amount": 10.0, "direction": "buy",
        }]),
        _ => return None,
    };
    Some(notification(channel, data))
}
