//! Kraken v2: market data and orders at `/v2`.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::connection::{Connection, Dialect, Profile};
use super::limits::Limit;
use super::record::{Order, OrderStatus, State, ViolationKind};
use crate::sync;
use crate::time::after;

pub(super) const PROFILE: Profile = Profile {
    path: "/v2",
    private_path: "/v2",
    connects: Limit { count: 150, per: Duration::from_secs(600) },
    dialect,
};

/// The time without a message of the exchange after which it sends a heartbeat.
const QUIET: Duration = Duration::from_secs(1);

/// The topic of the orders of the client. It has no symbol.
const EXECUTIONS: &str = "executions";

const TIME: &str = "2023-10-06T17:35:55.440295Z";

fn dialect(path: &str) -> Option<Box<dyn Dialect>> {
    let kraken = || Kraken { system: "" };
    (path == "/v2").then(|| Box::new(kraken()) as Box<dyn Dialect>)
}

/// Acknowledges each symbol of a request by itself.
struct Kraken {
    /// The status that the client knows.
    system: &'static str,
}

/// The result of a request, or the text of its error.
type Outcome = Result<Value, &'static str>;

const INVALID: &str = "EGeneral:Invalid arguments";

impl Kraken {
    /// Tells the client of the status, if that is news.
    fn tell_status(&mut self, connection: &mut Connection<'_>) -> io::Result<()> {
        let system = match connection.record.read(State::is_in_maintenance) {
            true => "maintenance",
            false => "online",
        };
        if system == self.system {
            return Ok(());
        }
        self.system = system;
        connection.send(&status(system, connection.number()))
    }

    /// Subscribes or unsubscribes. Answers each symbol.
    fn change(&self, connection: &mut Connection<'_>, request: &Value) -> io::Result<()> {
        let params = &request["params"];
        let Some(channel) = params["channel"].as_str() else {
            return refuse(connection, request, "a request without one channel");
        };
        if channel == EXECUTIONS {
            let outcome = check_token(connection, request).map(|()| {
                set_active(connection, request, EXECUTIONS);
                json!({"channel": channel})
            });
            return connection.ack(&answer(request, outcome));
        }
        let symbols: Vec<&str> =
            params["symbol"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if symbols.is_empty() {
            return refuse(connection, request, "a request without symbols");
        }
        for symbol in symbols {
            let outcome = match set_active(connection, request, &format!("{channel}/{symbol}")) {
                true => Ok(json!({"channel": channel, "symbol": symbol})),
                false => Err("Currency pair not supported"),
            };
            let mut answer = answered(request, outcome);
            if answer["success"] == false {
                answer["symbol"] = json!(symbol);
            }
            connection.ack(&answer.to_string())?;
        }
        Ok(())
    }

    /// Carries out a call, and reports what has become of the order.
    fn call(&self, connection: &mut Connection<'_>, request: &Value) -> io::Result<()> {
        let params = &request["params"];
        let outcome = check_token(connection, request).and_then(|()| {
            let id = params["cl_ord_id"].as_str().or(params["cl_ord_id"][0].as_str());
            let Some(id) = id.filter(|id| !id.is_empty()) else {
                connection.violation(ViolationKind::Malformed, "a call without cl_ord_id");
                return Err(INVALID);
            };
            match request["method"].as_str() {
                Some("query_orders") => connection.order(id).ok_or("EOrder:Unknown order"),
                Some("cancel_order") => connection.cancel(id).ok_or("EOrder:Unknown order"),
                _ => place(connection, id, params),
            }
        });
        let result = outcome.as_ref().map(shown).map_err(|error| *error);
        connection.reply(&answer(request, result))?;
        let is_query = request["method"] == "query_orders";
        match outcome {
            Ok(order) if !is_query && connection.is_subscribed(EXECUTIONS) => {
                let message = json!({
                    "channel": EXECUTIONS, "type": "update", "data": [shown(&order)],
                });
                connection.send(&message.to_string())
            }
            _ => Ok(()),
        }
    }

    /// Sets the time at which all orders are canceled. 0 lifts it.
    fn cancel_all_after(&self, connection: &Connection<'_>, request: &Value) -> Outcome {
        check_token(connection, request)?;
        let Some(timeout) = request["params"]["timeout"].as_u64().filter(|time| *time <= 86_400)
        else {
            connection.violation(ViolationKind::Malformed, "cancel_all_orders_after");
            return Err(INVALID);
        };
        let time = connection.settings.scaled(Duration::from_secs(timeout));
        let cancel_at = (timeout > 0).then(|| after(sync::now(), time));
        connection.change(|state, _| state.cancel_at = cancel_at);
        Ok(json!({"currentTime": TIME, "triggerTime": TIME}))
    }
}

impl Dialect for Kraken {
    fn opened(&mut self, connection: &mut Connection<'_>, _: &str) -> io::Result<()> {
        self.tell_status(connection)
    }

    fn turn(&mut self, connection: &mut Connection<'_>, now: Instant) -> io::Result<()> {
        self.tell_status(connection)?;
        if after(connection.sent_at, connection.settings.scaled(QUIET)) <= now {
            connection.send(r#"{"channel":"heartbeat"}"#)?;
        }
        Ok(())
    }

    fn received(&mut self, connection: &mut Connection<'_>, text: &str) -> io::Result<()> {
        connection.record.cancel_due();
        let request: Value = serde_json::from_str(text).unwrap_or_default();
        match request["method"].as_str() {
            Some("ping") => {
                let pong = json!({"method": "pong", "req_id": request["req_id"]});
                connection.send(&pong.to_string())
            }
            Some("subscribe" | "unsubscribe") => self.change(connection, &request),
            Some("add_order" | "cancel_order" | "query_orders") => self.call(connection, &request),
            Some("cancel_all_orders_after") => {
                let outcome = self.cancel_all_after(connection, &request);
                connection.send(&answer(&request, outcome))
            }
            _ => refuse(connection, &request, "no JSON, or an unknown method"),
        }
    }

    fn data(&self, topic: &str, number: u64, is_first: bool) -> Option<String> {
        data(topic, number, is_first)
    }

    fn shutdown_notice(&self) -> String {
        status("maintenance", 0)
    }

    fn opens_in_maintenance(&self) -> bool {
        true
    }
}

fn status(system: &str, connection: usize) -> String {
    let data = json!({
        "system": system, "api_version": "v2", "connection_id": connection, "version": "2.0.0",
    });
    json!({"channel": "status", "type": "update", "data": [data]}).to_string()
}

/// Returns an error unless the request has a token. The first one on a connection is its login.
fn check_token(connection: &Connection<'_>, request: &Value) -> Result<(), &'static str> {
    let has_token = request["params"]["token"].as_str().is_some_and(|token| !token.is_empty());
    if !has_token {
        let method = request["method"].as_str().unwrap_or_default();
        connection.violation(ViolationKind::NotLoggedIn, method);
    }
    match has_token && (connection.is_logged_in() || connection.log_in()) {
        true => Ok(()),
        false => Err("ESession:Invalid session"),
    }
}

/// Makes a topic active or ends it. Returns whether there is such a topic.
fn set_active(connection: &Connection<'_>, request: &Value, topic: &str) -> bool {
    if request["method"] == "unsubscribe" {
        connection.unsubscribe(topic);
        return true;
    }
    let is_known = connection.ask(topic) && (topic == EXECUTIONS || data(topic, 1, true).is_some());
    if is_known {
        connection.subscribe(topic);
    }
    is_known
}

fn place(connection: &Connection<'_>, id: &str, params: &Value) -> Result<Order, &'static str> {
    let Some(symbol) = params["symbol"].as_str() else {
        connection.violation(ViolationKind::Malformed, "an order without a symbol");
        return Err(INVALID);
    };
    let status = match params["order_type"].as_str() {
        Some("market") => OrderStatus::Filled,
        _ => OrderStatus::Resting,
    };
    match connection.place(id, symbol, status) {
        (order, true) => Ok(order),
        (_, false) => Err("EOrder:Duplicate client order id"),
    }
}

/// Refuses a request that is not understood.
fn refuse(connection: &mut Connection<'_>, request: &Value, detail: &str) -> io::Result<()> {
    connection.violation(ViolationKind::Malformed, detail);
    connection.ack(&answer(request, Err(INVALID)))
}

fn answer(request: &Value, outcome: Outcome) -> String {
    answered(request, outcome).to_string()
}

fn answered(request: &Value, outcome: Outcome) -> Value {
    let mut message = json!({"method": request["method"]});
    let (key, value, success) = match outcome {
        Ok(result) => ("result", result, true),
        Err(error) => ("error", json!(error), false),
    };
    message[key] = value;
    message["success"] = json!(success);
    if request["req_id"].is_u64() {
        message["req_id"] = request["req_id"].clone();
    }
    message
}

fn shown(order: &Order) -> Value {
    let status = match order.status {
        OrderStatus::Resting => "new",
        OrderStatus::Filled => "filled",
        OrderStatus::Canceled => "canceled",
    };
    json!({
        "order_id": format!("O{:05}", order.id), "cl_ord_id": order.client_order_id,
        "symbol": order.symbol, "order_status": status,
    })
}

/// Returns a message of a topic. Its number is the quantity of the bid, or the id of the trade.
fn data(topic: &str, number: u64, is_first: bool) -> Option<String> {
    let (channel, symbol) = topic.split_once('/')?;
    let (base, quote) = symbol.split_once('/')?;
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_name(base) || !is_name(quote) {
        return None;
    }
    let entry = match channel {
        "book" => {
            let bid = format!(r#""bids":[{{"price":105944.20,"qty":{number}.00000000}}]"#);
            let asks = match is_first {
                true => r#""asks":[{"price":105944.30,"qty":1.00000000}]"#,
                false => r#""asks":[]"#,
            };
            let checksum = checksum(number);
            format!(r#"{bid},{asks},"checksum":{checksum},"timestamp":"{TIME}""#)
        }
        "ticker" => format!(r#""bid":105944.20,"bid_qty":{number}.00000000,"last":105944.20"#),
        "trade" => {
            let trade = r#""side":"sell","price":105944.20,"qty":0.25000000"#;
            format!(r#"{trade},"trade_id":{number},"timestamp":"{TIME}""#)
        }
        _ => return None,
    };
    let kind = if is_first && channel != "trade" { "snapshot" } else { "update" };
    Some(format!(
        r#"{{"channel":"{channel}","type":"{kind}","data":[{{"symbol":"{symbol}",{entry}}}]}}"#
    ))
}

/// Returns the CRC32 of the book: the digits of its prices and quantities without leading zeros,
/// asks first.
fn checksum(number: u64) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(format!("1059443010000000010594420{number}00000000").as_bytes());
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_decimal_text() {
        for number in [1, 90, 12_345] {
            // The first message has the whole book.
            let text = data("book/BTC/USD", number, true).expect("there is such a book");
            let entry = |side: &str| {
                let entry = text.split(side).nth(1).and_then(|rest| rest.split('}').next());
                let values = entry.expect("an entry").split(':').skip(1);
                let digits = values.map(|value| value.replace(|c: char| !c.is_ascii_digit(), ""));
                digits.map(|digits| digits.trim_start_matches('0').to_owned()).collect::<String>()
            };
            let book = entry(r#""asks":[{"#) + &entry(r#""bids":[{"#);
            let mut crc = flate2::Crc::new();
            crc.update(book.as_bytes());
            assert!(text.contains(&format!(r#""checksum":{},"#, crc.sum())), "{text}");
        }
    }
}
