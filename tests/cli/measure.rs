//! `tautline ping` and `tautline bench`: what they count, and their exit status.

use std::io::{BufRead, BufReader, Read};
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use tautline::testing::TestServer;

use crate::support::*;

fn run(arguments: &[&str]) -> (Output, String, String) {
    let output = tautline(arguments).output().expect("it starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, printed, complaints)
}

/// Returns the row of a table that begins with `name`, without it.
fn row<'a>(table: &'a str, name: &str) -> &'a str {
    let row = table.lines().find_map(|line| line.strip_prefix(name));
    row.unwrap_or_else(|| panic!("no {name} in {table}")).trim()
}

#[test]
fn ping_prints_each_round_trip_and_a_histogram_of_all() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    let (output, printed, complaints) = run(&["ping", &server.url(), "-n", "5", "-i", "10ms"]);
    assert_eq!(output.status.code(), Some(0), "{complaints}");
    let lines: Vec<&str> = printed.lines().collect();
    for number in 1..=5 {
        assert!(lines[number - 1].starts_with(&format!("pong {number}: ")), "{printed}");
    }
    assert_eq!(lines[5], "pongs 5, connections 1");
    assert!(lines[6].starts_with("min ") && lines[6].contains(", p99 "), "{printed}");
    let counted: u64 = lines[7..]
        .iter()
        .map(|line| line.split_whitespace().nth(3).expect("a count").parse::<u64>().expect("one"))
        .sum();
    assert_eq!(counted, 5, "{printed}");
    assert!(complaints.contains("open, epoch 1") && complaints.contains("stopped"), "{complaints}");
    assert_eq!(server.pings(), 5);
}

#[test]
fn ping_without_an_answer_fails_and_says_why() {
    let server = TestServer::start(|peer| peer.refuse(403, "", ""));
    let (output, printed, complaints) = run(&["ping", &server.url()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(printed, "pongs 0, connections 0\n");
    assert!(complaints.contains("gave up") && complaints.contains("403"), "{complaints}");
}

#[test]
fn ping_is_ended_by_a_signal_and_sums_up() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    let mut child = tautline(&["ping", &server.url(), "-i", "5ms"]).spawn().expect("it starts");
    let mut printed = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    printed.read_line(&mut line).expect("a pong comes");
    signal(&child, Signal::INT);
    printed.read_to_string(&mut line).expect("the rest comes");
    assert!(line.contains(", connections 1\nmin "), "{line}");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert_eq!(server.closes(), [Some(1000)]);
}

#[test]
fn bench_counts_messages_bytes_gaps_and_connections() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        // Each connection waits to be asked, so that nothing is lost between two of them.
        peer.receive_message()?;
        peer.send_text("four")?;
        peer.send_binary(&[0; 10])?;
        if peer.number() == 0 {
            peer.close(1001, "")?;
            return peer.drain();
        }
        peer.wait(Duration::from_millis(30))?;
        peer.send_text("")?;
        peer.drain()
    });
    let (output, table, complaints) = run(&[
        "bench",
        &server.url(),
        "-x",
        "subscribe",
        "-n",
        "5",
        "--gap",
        "20ms",
        "--retry-delay-max",
        "1ms",
        "--close-timeout",
        "50ms",
    ]);
    assert_eq!(output.status.code(), Some(0), "{complaints}");
    assert!(row(&table, "connections").starts_with("2, 0 dials failed"), "{table}");
    assert!(row(&table, "messages").starts_with("5, "), "{table}");
    assert!(row(&table, "bytes").starts_with("28 B, "), "{table}");
    assert_eq!(row(&table, "size"), "min 0, mean 5, max 10");
    // The wait from one connection to the next is none between messages.
    assert_eq!(row(&table, "gaps"), "1 longer than 20.0ms");
    assert!(row(&table, "between").contains("max "), "{table}");
    assert_eq!(row(&table, "drops"), "closed 1");
    assert_eq!(server.messages(), [b"subscribe", b"subscribe"]);
}

#[test]
fn bench_of_a_feed_that_brings_nothing_fails() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.drain()
    });
    let arguments = ["bench", &server.url(), "--for", "50ms", "-q", "--close-timeout", "50ms"];
    let (output, table, _) = run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(row(&table, "messages").starts_with("0, "), "{table}");
    assert!(!table.contains("between"), "{table}");
}

#[test]
fn a_feed_that_has_gone_silent_has_a_gap_until_the_end() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("the last")?;
        peer.drain()
    });
    let close = ["--close-timeout", "50ms"];
    let url = server.url();
    let (_, table, _) =
        run(&[&["bench", &url, "--for", "300ms", "--gap", "50ms"][..], &close].concat());
    assert_eq!(row(&table, "gaps"), "1 longer than 50.0ms");
}
