//! `tautline tail`: its output, its exit status, and how signals end it.

use std::io::{Read, Write};
use std::process::Stdio;

use serde_json::{Value, json};
use tautline::testing::{Received, TestServer};

use crate::support::*;

#[test]
fn every_event_is_an_object_and_stopped_comes_last() {
    let server = TestServer::start(|peer| {
        peer.upgrade_with("Sec-WebSocket-Protocol: v2\r\n")?;
        assert_eq!(peer.receive_message()?, Received::Text("hello".into()));
        peer.send_text("a \"quoted\" text")?;
        peer.send_binary(&[0, 1, 255])?;
        peer.close(4000, "bye")?;
        peer.drain()
    });
    let (status, objects, _) = run_to_end(&[
        &server.url(),
        "--json",
        "--send",
        "hello",
        "--subprotocol",
        "v2",
        "--max-attempts",
        "1",
    ]);
    assert_ends_clean(&objects);
    let events: Vec<_> = objects[..objects.len() - 1].iter().cloned().map(stripped).collect();
    let expected = [
        json!({"event": "opened", "epoch": 1, "subprotocol": "v2"}),
        json!({"event": "message", "epoch": 1, "text": "a \"quoted\" text"}),
        json!({"event": "message", "epoch": 1, "binary": "AAH/"}),
        json!({
            "event": "disconnected", "epoch": 1, "kind": "closed",
            "code": 4000, "reason": "bye",
        }),
        json!({"event": "gave_up", "kind": "closed"}),
    ];
    assert_eq!(events, expected);
    assert_eq!(status, 1);
}

#[test]
fn a_permanent_refusal_gives_up_at_once() {
    let server = TestServer::start(|peer| peer.refuse(401, "", "no such key"));
    let (status, objects, _) = run_to_end(&[&server.url(), "--json"]);
    assert_eq!(kinds(&objects), ["gave_up", "stopped"]);
    let gave_up = json!({"event": "gave_up", "kind": "http", "status": 401, "body": "no such key"});
    assert_eq!(stripped(objects[0].clone()), gave_up);
    assert_ends_clean(&objects);
    assert_eq!(status, 1);
}

#[test]
fn the_last_failed_dial_is_reported_as_giving_up() {
    let server = TestServer::start(|peer| peer.refuse(503, "", ""));
    let arguments =
        ["--json", "--max-attempts", "3", "--retry-delay-min", "1ms", "--retry-delay-max", "1ms"];
    let (status, objects, _) = run_to_end(&[&[server.url().as_str()], &arguments[..]].concat());
    assert_eq!(kinds(&objects), ["dial_failed", "dial_failed", "gave_up", "stopped"]);
    assert_eq!(
        stripped(objects[1].clone()),
        json!({"event": "dial_failed", "attempt": 2, "kind": "http", "status": 503})
    );
    assert!(objects[1]["retry_in_ms"].is_u64() && objects[1]["detail"].is_string());
    assert_eq!(status, 1);
}

#[test]
fn a_signal_closes_the_connection_and_exits_0() {
    for which in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let server = TestServer::start(|peer| {
            peer.upgrade()?;
            peer.send_text("tick")?;
            peer.echo()
        });
        let mut child = tail(&[&server.url(), "--json"]).spawn().expect("it starts");
        let mut lines = lines_of(&mut child);
        read_until("message", &mut lines);
        signal(&child, which);
        let rest: Vec<Value> = lines.map(|line| object(&line.expect("a line"))).collect();
        assert_eq!(kinds(&rest), ["disconnected", "stopped"]);
        assert_eq!((&rest[0]["kind"], &rest[0]["retry_in_ms"]), (&json!("stopped"), &Value::Null));
        assert_ends_clean(&rest);
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
        assert!(server.wait_until_all_closed(SOON));
        assert_eq!(server.closes(), [Some(1000)]);
    }
}

#[test]
fn wrong_usage_exits_2_and_says_what_is_wrong() {
    let not_a_root = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (arguments, word) in [
        (&[][..], "URL"),
        (&["http://127.0.0.1/"], "ws://"),
        (&["ws://127.0.0.1:1/", "--ca", "/does/not/exist"], "--ca /does/not/exist"),
        (&["wss://127.0.0.1:1/", "--ca", not_a_root], "--ca"),
        (&["ws://127.0.0.1:1/", "--for", "soon"], "--for"),
        (&["ws://127.0.0.1:1/", "--count", "0"], "--count"),
        (&["ws://127.0.0.1:1/", "--ping-interval", "0s"], "ping_interval"),
        (&["ws://127.0.0.1:1/", "--header", "X"], "NAME: VALUE"),
        (&["ws://127.0.0.1:1/", "--no-such-flag"], "--no-such-flag"),
    ] {
        let (status, objects, complaint) = run_to_end(arguments);
        assert_eq!((status, objects.len()), (2, 0), "{arguments:?}: {complaint}");
        assert!(complaint.contains(word), "{arguments:?}: {complaint}");
    }
}

#[test]
fn lines_of_standard_input_are_sent_or_reported() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    // More than a clock can represent counts as no limit.
    let for_ever = "18446744073709551615s";
    let mut child =
        tail(&[&server.url(), "--json", "--interactive", "--count", "2", "--for", for_ever])
            .stdin(Stdio::piped())
            .spawn()
            .expect("it starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(b"first\n\xe9\nsecond\n").expect("it reads");
    // The end of standard input does not end the program.
    drop(stdin);
    let objects: Vec<Value> =
        lines_of(&mut child).map(|line| object(&line.expect("a line"))).collect();
    let texts: Vec<_> = objects.iter().filter_map(|object| object["text"].as_str()).collect();
    assert_eq!(texts, ["first", "second"]);
    let failed: Vec<_> = objects.iter().filter(|object| object["event"] == "send_failed").collect();
    assert!(failed.len() == 1 && failed[0]["outcome"] == "not_sent", "{failed:?}");
    // A line was not sent.
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

#[test]
fn a_closed_standard_output_ends_the_program_cleanly() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        while peer.send_text("tick").is_ok() {}
        Ok(())
    });
    let mut child = tail(&[&server.url(), "--close-timeout", "50ms"]).spawn().expect("it starts");
    let mut first = [0; 5];
    let mut stdout = child.stdout.take().expect("it is piped");
    stdout.read_exact(&mut first).expect("a message comes");
    drop(stdout);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn roots_given_by_option_are_trusted() {
    let server = TestServer::builder().tls().start(|peer| {
        peer.upgrade()?;
        peer.send_text("tick")?;
        peer.drain()
    });
    let roots = std::env::temp_dir().join(format!("tautline-tail-{}.pem", std::process::id()));
    std::fs::write(&roots, TestServer::root_pem()).expect("there is room for a file");
    let path = roots.to_str().expect("it is UTF-8");
    let url = server.url();
    for trust in [&["--ca", path][..], &["--insecure"]] {
        let arguments =
            [&[url.as_str(), "--json", "--count", "1", "--close-timeout", "50ms"], trust].concat();
        let (status, objects, _) = run_to_end(&arguments);
        assert_eq!(kinds(&objects), ["opened", "message", "disconnected", "stopped"]);
        assert_eq!(status, 0);
    }
    std::fs::remove_file(&roots).expect("it is still there");
    let (status, objects, _) = run_to_end(&[&server.url(), "--json", "--retry-delay-max", "1ms"]);
    assert_eq!((status, kinds(&objects)), (1, vec!["dial_failed", "gave_up", "stopped"]));
    assert_eq!(objects[1]["kind"], "tls");
}

#[test]
fn only_messages_go_to_standard_output_without_json() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("one")?;
        peer.send_text("two")?;
        peer.drain()
    });
    for (quiet, expected) in [(None, "one\ntwo\n"), (Some("--quiet"), "")] {
        let url = server.url();
        let arguments: Vec<&str> = [url.as_str(), "--count", "2", "--close-timeout", "50ms"]
            .into_iter()
            .chain(quiet)
            .collect();
        let output = tail(&arguments).output().expect("it starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        let notices = String::from_utf8_lossy(&output.stderr);
        assert!(
            notices.contains("open, epoch 1") && notices.contains("stopped 127.0.0.1: clean"),
            "{notices}"
        );
        assert_eq!(
            notices.contains("2 messages, epoch 1, round trip not measured"),
            quiet.is_some(),
            "{notices}"
        );
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn at_the_end_of_the_input_it_waits_for_the_answers() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    for (more, expected) in [(&[][..], "first\nsecond\n"), (&["--once"], "first\n")] {
        let url = server.url();
        let arguments = [&[url.as_str(), "-i", "--exit-on-eof"], more].concat();
        let mut child = tail(&arguments).stdin(Stdio::piped()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(b"first\nsecond\n").expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn a_count_that_is_not_reached_is_a_failure() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    let (status, objects, _) = run_to_end(&[&server.url(), "--json", "--once", "--for", "50ms"]);
    assert_eq!(status, 1);
    assert_ends_clean(&objects);
}

#[test]
fn a_signal_ends_it_though_nobody_reads_what_it_prints() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.flood(1000)
    });
    let arguments = [&server.url(), "--stop-timeout", "100ms", "--close-timeout", "50ms"];
    let mut child = tail(&arguments).spawn().expect("it starts");
    // More than a pipe holds has come by then.
    assert!(server.wait_for_openings(1, SOON));
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().expect("it is piped");
    stdout.read_exact(&mut first).expect("a message comes");
    signal(&child, rustix::process::Signal::TERM);
    assert!(server.wait_until_all_closed(SOON), "the connection is closed");
    let status = child.wait().expect("it ends");
    assert!([Some(0), Some(143)].contains(&status.code()), "{status:?}");
    drop(stdout);
}

#[test]
fn two_signals_at_once_are_one() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("tick")?;
        peer.echo()
    });
    let mut child = tail(&[&server.url(), "--json"]).spawn().expect("it starts");
    let mut lines = lines_of(&mut child);
    read_until("message", &mut lines);
    signal(&child, rustix::process::Signal::TERM);
    signal(&child, rustix::process::Signal::HUP);
    signal(&child, rustix::process::Signal::INT);
    let rest: Vec<Value> = lines.map(|line| object(&line.expect("a line"))).collect();
    assert_ends_clean(&rest);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn no_secret_is_in_a_usage_error() {
    let secret = "S3CRETS3CRETS3CRET";
    let url = format!("ws://127.0.0.1:1/?token={secret}");
    let header = format!("Authorization Bearer {secret}");
    let attached = format!("--header={header}");
    for arguments in [
        &["tail", &url, &url][..],
        &["tail", "-H", &header, &url],
        &["tail", &attached, &url],
        &["tail", "-H", "Authorization:", "Bearer", secret, &url],
        &["tail", &url, "--count", &url],
        &[&url],
        &["help", &url],
        &["replay", &url, &url],
        &["record", "x.jsonl", &url],
        &["record", &url, "x.jsonl", secret],
    ] {
        let output = tautline(arguments).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(!text.contains(secret) && !text.is_empty(), "{arguments:?}: {text}");
    }
}
