//! The names of the metrics: those that are described, documented, and shown on the dashboard.

use std::collections::{BTreeMap, BTreeSet};

use metrics::Unit;
use serde_json::Value;
use tautline::Client;

use crate::recorder::Kept;

const METRICS: [(&str, &str, Unit); 17] = [
    ("tautline_calls_total", "counter", Unit::Count),
    ("tautline_connect_duration_seconds", "histogram", Unit::Seconds),
    ("tautline_connections_ended_total", "counter", Unit::Count),
    ("tautline_connections_opened_total", "counter", Unit::Count),
    ("tautline_dials_failed_total", "counter", Unit::Count),
    ("tautline_last_byte_timestamp_seconds", "gauge", Unit::Seconds),
    ("tautline_messages_lost_total", "counter", Unit::Count),
    ("tautline_messages_received_total", "counter", Unit::Count),
    ("tautline_messages_sent_total", "counter", Unit::Count),
    ("tautline_queue_events", "gauge", Unit::Count),
    ("tautline_rate_limit_wait_seconds", "histogram", Unit::Seconds),
    ("tautline_received_bytes_total", "counter", Unit::Bytes),
    ("tautline_round_trip_seconds", "histogram", Unit::Seconds),
    ("tautline_send_failures_total", "counter", Unit::Count),
    ("tautline_sent_bytes_total", "counter", Unit::Bytes),
    ("tautline_subscriptions", "gauge", Unit::Count),
    ("tautline_up", "gauge", Unit::Count),
];

/// Returns what looks like the name of a metric.
fn names_in(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !is_part(c)).filter(|word| word.starts_with("tautline_")).collect()
}

fn names() -> BTreeSet<&'static str> {
    METRICS.iter().map(|(name, ..)| *name).collect()
}

#[test]
fn every_metric_is_described_with_its_type_and_unit() {
    let kept = Kept::installed();
    let unused = Client::builder("ws://127.0.0.1:1").name("described").start();
    drop(unused.expect("it starts"));
    let expected: BTreeMap<String, _> = METRICS
        .iter()
        .map(|(name, kind, unit)| ((*name).to_owned(), (*kind, Some(*unit))))
        .collect();
    assert_eq!(kept.described(), expected);
}

#[test]
fn the_front_page_of_the_docs_has_every_metric() {
    let page = include_str!("../../src/lib.rs");
    let documented: BTreeSet<&str> = page
        .lines()
        .filter_map(|row| row.strip_prefix("//! | `tautline_"))
        .filter_map(|row| row.split(['`', '{']).next())
        .collect();
    let expected: BTreeSet<&str> =
        names().into_iter().filter_map(|name| name.strip_prefix("tautline_")).collect();
    assert_eq!(documented, expected);
}

/// Calls `visit` for each value of an object with this key, however deep.
fn visit<'v>(value: &'v Value, key: &str, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == key => found.push(text),
                    _ => visit(field, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| visit(item, key, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_shows_every_metric_and_none_that_does_not_exist() {
    let dashboard = include_str!("../../examples/metrics/dashboard.json");
    let dashboard: Value = serde_json::from_str(dashboard).expect("it is JSON");
    let mut expressions = Vec::new();
    visit(&dashboard, "expr", &mut expressions);
    visit(&dashboard, "query", &mut expressions);
    let mut shown = BTreeSet::new();
    for expression in expressions {
        for name in names_in(expression) {
            let kind =
                METRICS.iter().find(|(metric, ..)| *metric == name).map(|(_, kind, _)| *kind);
            let series = ["_bucket", "_sum", "_count"];
            let whole = series.into_iter().find_map(|suffix| name.strip_suffix(suffix));
            match (kind, whole) {
                (Some("counter" | "gauge"), _) => shown.insert(name),
                (_, Some(whole)) => shown.insert(whole),
                _ => panic!("{name} has no series of its own: {expression}"),
            };
        }
    }
    assert_eq!(shown, names());
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
}
