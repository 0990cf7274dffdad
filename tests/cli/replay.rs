//! `tautline replay`: what clients get, how fast, and how it ends.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tautline::testing::TestServer;

use crate::support::*;

/// Writes a recording of these texts, one every `every`.
fn write_recording(path: &str, texts: &[&str], every: Duration) {
    let mut content = "{\"event\":\"started\",\"unix_ns\":1}\n".to_owned();
    for (number, text) in (0..).zip(texts) {
        let ns = u64::try_from((every * number).as_nanos()).expect("it is short");
        let message = json!({"event": "message", "epoch": 1, "ns": ns, "text": text});
        content += &format!("{message}\n");
    }
    std::fs::write(path, content).expect("there is room for a file");
}

/// Returns the payloads of messages.
fn payloads(objects: &[Value]) -> Vec<(&Value, &Value)> {
    let messages = objects.iter().filter(|object| object["event"] == "message");
    messages.map(|message| (&message["text"], &message["binary"])).collect()
}

#[test]
fn a_recorded_feed_comes_back_as_it_was() {
    let folder = Folder::new("round-trip");
    let long = "é".repeat(512 << 10);
    let server = {
        let long = long.clone();
        TestServer::start(move |peer| {
            peer.upgrade()?;
            peer.send_text("plain")?;
            peer.send_text("\u{0}\u{1b}[2J \u{2028} \"\\\" 日本 🦀")?;
            peer.send_binary(&(0..=255).collect::<Vec<u8>>())?;
            peer.send_text("")?;
            peer.send_binary(&[])?;
            peer.send_text(&long)?;
            peer.send_binary(long.as_bytes())?;
            peer.send_text("last")?;
            peer.close(1000, "")?;
            peer.drain()
        })
    };
    let arguments = ["--json", "--max-attempts", "1"];
    let (_, sent, _) = run_to_end(&[&[server.url().as_str()], &arguments[..]].concat());
    assert_eq!(payloads(&sent).len(), 8);
    for name in ["feed.jsonl", "feed.jsonl.zst"] {
        let file = folder.path(name);
        let recorded = tautline(&["record", &server.url(), &file, "--max-attempts", "1"])
            .output()
            .expect("it starts");
        assert_eq!(recorded.status.code(), Some(1), "the server has closed the connection");
        let mut replay = tautline(&["replay", &file]).spawn().expect("it starts");
        let url = served(&mut replay);
        let (_, got, _) = run_to_end(&[&[url.as_str()], &arguments[..]].concat());
        assert!(payloads(&got) == payloads(&sent), "{name}");
        end(replay);
    }
}

#[test]
fn a_replay_keeps_its_pace() {
    let folder = Folder::new("pace");
    let file = folder.path("feed.jsonl");
    write_recording(&file, &["tick"; 21], Duration::from_millis(100));
    // Two seconds; and as fast as it can.
    for (pace, least) in [(&["--speed", "10"][..], 200), (&["--fast"], 0)] {
        let mut replay = tautline(&[&["replay", &file], pace].concat()).spawn().expect("it starts");
        let url = served(&mut replay);
        let begin = Instant::now();
        let (_, got, _) = run_to_end(&[&url, "--json", "--max-attempts", "1"]);
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(least) && took < SOON, "{pace:?} took {took:?}");
        assert_eq!(payloads(&got).len(), 21);
        end(replay);
    }
}

#[test]
fn clients_that_come_and_go_are_told_of() {
    let folder = Folder::new("clients");
    let file = folder.path("feed.jsonl");
    write_recording(&file, &["one", "two"], Duration::from_secs(3600));
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    let mut replay =
        tautline(&["replay", &file, "--address", &address.to_string()]).spawn().expect("it starts");
    assert_eq!(served(&mut replay), format!("ws://{address}/"));
    let mut told = BufReader::new(replay.stderr.take().expect("it is piped")).lines();
    let (status, got, _) = run_to_end(&[&format!("ws://{address}/any/path?query"), "--json", "-1"]);
    assert_eq!((status, payloads(&got).len()), (0, 1));
    let mut next = || told.next().expect("more comes").expect("it can be read");
    assert!(next().starts_with("tautline: client 1 comes from 127.0.0.1:"));
    assert_eq!(next(), "tautline: client 1 goes");
    // A client that is there does not keep it from ending.
    let mut client = tail(&[&format!("ws://{address}/"), "--json"]).spawn().expect("it starts");
    let mut lines = lines_of(&mut client);
    read_until("message", &mut lines);
    end(replay);
    signal(&client, rustix::process::Signal::INT);
    assert_eq!(client.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_replay_begins_again_with_loop() {
    let folder = Folder::new("loop");
    let file = folder.path("feed.jsonl");
    write_recording(&file, &["one", "two"], Duration::from_millis(1));
    let mut replay = tautline(&["replay", &file, "--loop"]).spawn().expect("it starts");
    let url = served(&mut replay);
    let (_, got, _) = run_to_end(&[&url, "--json", "-n", "5", "--close-timeout", "1s"]);
    let texts: Vec<&Value> = payloads(&got).into_iter().map(|(text, _)| text).collect();
    assert_eq!(texts, ["one", "two", "one", "two", "one"]);
    end(replay);
    // One without messages ends all the same.
    write_recording(&file, &[], Duration::ZERO);
    let mut replay = tautline(&["replay", &file, "--loop"]).spawn().expect("it starts");
    let url = served(&mut replay);
    let (_, got, _) = run_to_end(&[&url, "--json", "--max-attempts", "1"]);
    assert_eq!(kinds(&got), ["opened", "disconnected", "gave_up", "stopped"]);
    end(replay);
}

#[test]
fn a_damaged_recording_is_told_to_the_client_and_on_standard_error() {
    let folder = Folder::new("damaged");
    let file = folder.path("feed\u{1b}[2J.jsonl");
    write_recording(&file, &["one"], Duration::ZERO);
    let good = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, format!("{good}{{\"event\n{good}")).expect("there is room");
    let mut replay = tautline(&["replay", &file]).spawn().expect("it starts");
    let url = served(&mut replay);
    let (_, got, _) = run_to_end(&[&url, "--json", "--max-attempts", "1"]);
    assert_eq!(kinds(&got), ["opened", "message", "disconnected", "gave_up", "stopped"]);
    assert_eq!(got[2]["code"], 1011);
    signal(&replay, rustix::process::Signal::TERM);
    let output = replay.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("feed\\u{1b}[2J.jsonl, line 3: "), "{told}");
    assert!(!told.contains('\u{1b}'), "{told}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_cannot_be_served_is_wrong_usage() {
    let folder = Folder::new("served");
    let (file, other) = (folder.path("feed.jsonl"), folder.path("other.jsonl"));
    write_recording(&file, &["one"], Duration::ZERO);
    std::fs::write(&other, "time,price\n").expect("there is room for a file");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).expect("a port");
    for (arguments, reason) in [
        (&["/does/not/exist"][..], "/does/not/exist"),
        (&[&other], "line 1"),
        (&[&file, "--address", &taken.1], "cannot listen"),
        (&[&file, "--speed", "0"], "positive number"),
        (&[&file, "--speed", "nan"], "positive number"),
        (&[&file, "--speed", "2", "--fast"], "--fast"),
    ] {
        let output = tautline(&[&["replay"], arguments].concat()).output().expect("it starts");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(reason) && output.stdout.is_empty(), "{complaint}");
    }
}
