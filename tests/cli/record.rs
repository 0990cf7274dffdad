//! `tautline record`: its files, its exit status, and what is left of them after a kill.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc;

use serde_json::{Value, json};
use tautline::testing::{Peer, Received, TestServer};

use crate::support::*;

/// Returns the objects of a recording, the first included. The last line may be incomplete.
fn objects(path: &Path) -> Vec<Value> {
    let content = content(path);
    let mut lines: Vec<&str> = content.lines().collect();
    if !content.ends_with('\n') {
        lines.pop();
    }
    lines.into_iter().map(object).collect()
}

/// Returns what can be read of a recording.
fn content(path: &Path) -> String {
    let file = fs::File::open(path).expect("it exists");
    let mut content = Vec::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        let read = zstd::Decoder::new(file).expect("a decoder").read_to_end(&mut content);
        // The end may be missing.
        let is_cut = |error: &std::io::Error| error.kind() == std::io::ErrorKind::UnexpectedEof;
        assert!(read.is_ok() || read.as_ref().is_err_and(is_cut), "{read:?}");
    } else {
        content = fs::read(path).expect("it can be read");
    }
    // A character of the last line may be cut.
    String::from_utf8_lossy(&content).into_owned()
}

fn texts(objects: &[Value]) -> Vec<String> {
    objects.iter().filter_map(|object| Some(object["text"].as_str()?.to_owned())).collect()
}

/// The servers of these tests do not answer close frames.
const QUICK: [&str; 2] = ["--close-timeout", "50ms"];

/// Runs `record` to its end, and returns its exit status and its standard error.
fn record(arguments: &[&str]) -> (i32, String) {
    let output = tautline(&["record"]).args(arguments).args(QUICK).output().expect("it starts");
    assert!(output.stdout.is_empty(), "nothing goes to standard output");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it exits"), complaint)
}

/// Sends texts, and waits until the client ends the connection.
fn send(peer: &mut Peer, texts: &[&str]) -> std::io::Result<()> {
    peer.upgrade()?;
    for text in texts {
        peer.send_text(text)?;
    }
    peer.drain()
}

/// Sends numbers for as long as the connection lasts.
fn count(peer: &mut Peer) -> std::io::Result<()> {
    peer.upgrade()?;
    let mut burst = Vec::new();
    for number in 0.. {
        let text = format!("{number:0>100}");
        burst.extend_from_slice(&[0x81, 100]);
        burst.extend_from_slice(text.as_bytes());
        if number % 100 == 99 {
            peer.write(&burst)?;
            burst.clear();
        }
    }
    Ok(())
}

/// Checks that texts are the numbers of [`count`], and returns how many there are.
fn assert_counts(texts: &[String]) -> usize {
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(*text, format!("{number:0>100}"));
    }
    texts.len()
}
#[test]
fn a_recording_holds_the_objects_of_json() {
    for name in ["plain.jsonl", "compressed.jsonl.zst"] {
        let folder = Folder::new("objects");
        let file = folder.path(name);
        let server = TestServer::start(|peer| {
            peer.upgrade()?;
            peer.send_text("a \"quoted\" text")?;
            peer.send_binary(&[0, 1, 255])?;
            peer.close(4000, "bye")?;
            peer.drain()
        });
        let (status, complaint) = record(&[&server.url(), &file, "--max-attempts", "1"]);
        assert_eq!(status, 1, "{complaint}");
        assert!(complaint.contains("recorded 2 of 2 messages"), "{complaint}");
        let mut objects = objects(file.as_ref());
        let started = objects.remove(0);
        let address = server.address().to_string();
        assert_eq!((&started["event"], &started["server"]), (&json!("started"), &json!(address)));
        assert!(started["unix_ns"].is_u64() && started.as_object().map(|it| it.len()) == Some(3));
        assert_ends_clean(&objects);
        objects.pop();
        let expected = [
            json!({"event": "opened", "epoch": 1}),
            json!({"event": "message", "epoch": 1, "text": "a \"quoted\" text"}),
            json!({"event": "message", "epoch": 1, "binary": "AAH/"}),
            json!({
                "event": "disconnected", "epoch": 1, "kind": "closed",
                "code": 4000, "reason": "bye",
            }),
            json!({"event": "gave_up", "kind": "closed"}),
        ];
        assert_eq!(objects.into_iter().map(stripped).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_recording_holds_no_secret_unless_it_is_asked_to() {
    let folder = Folder::new("secrets");
    // The first dial is refused by a server that repeats the request, as many do.
    let server = TestServer::start(|peer| match peer.number() % 2 {
        0 => {
            let request = peer.read_request()?;
            let text = format!("cannot serve {}: {:?}", request.path, request.headers);
            let len = text.len();
            let head = format!("HTTP/1.1 503 Busy\r\nContent-Length: {len}\r\n\r\n");
            peer.write(format!("{head}{text}").as_bytes())
        }
        _ => {
            peer.upgrade_with_first_subprotocol()?;
            peer.receive_message()?;
            peer.send_text("tick")?;
            peer.drain()
        }
    });
    let url = format!("{}s1-path?s2=query", server.url());
    for (file, flags, expected) in
        [("without.jsonl", &[][..], false), ("with.jsonl", &["--with-sent"], true)]
    {
        let file = folder.path(file);
        let arguments = [
            &[&url, &file, "-H", "X-Key: s3-header", "-s", "s4-protocol", "-x", "s5-sent"][..],
            &["--retry-delay-min", "1ms", "-n", "1"],
            flags,
        ]
        .concat();
        let (status, complaint) = record(&arguments);
        let (objects, content) = (objects(file.as_ref()), content(file.as_ref()));
        assert_eq!((status, texts(&objects).last()), (0, Some(&"tick".to_owned())), "{complaint}");
        assert!(objects.iter().any(|object| object["status"] == 503), "{content}");
        let found: Vec<usize> =
            (1..=5).filter(|number| content.contains(&format!("s{number}"))).collect();
        assert_eq!(found, if expected { &[5][..] } else { &[] }, "{content}");
        let sent = objects.iter().find(|object| object["event"] == "sent").cloned();
        let is_wanted = json!({"event": "sent", "epoch": 1, "text": "s5-sent"});
        assert_eq!(sent.map(stripped), expected.then_some(is_wanted));
    }
}

#[test]
fn a_kill_takes_nothing_of_what_a_quiet_feed_has_sent() {
    for name in ["feed.jsonl", "feed.jsonl.zst"] {
        let folder = Folder::new("quiet");
        let file = folder.path(name);
        let server = TestServer::start(|peer| send(peer, &["one", "two", "three"]));
        let mut child = tautline(&["record", &server.url(), &file]).spawn().expect("it starts");
        until("three messages are in the file", || {
            Path::new(&file).exists() && texts(&objects(file.as_ref())).len() == 3
        });
        signal(&child, rustix::process::Signal::KILL);
        assert_eq!(child.wait().expect("it ends").code(), None);
        let objects = objects(file.as_ref());
        assert_eq!(kinds(&objects), ["started", "opened", "message", "message", "message"]);
        assert_eq!(texts(&objects), ["one", "two", "three"]);
    }
}

#[test]
fn a_kill_in_a_flood_takes_no_more_than_the_last_line_of_the_file() {
    for (name, least) in [("feed.jsonl", 256 << 10), ("feed.jsonl.zst", 16 << 10)] {
        let folder = Folder::new("kill");
        let file = folder.path(name);
        let server = TestServer::start(count);
        let mut child = tautline(&["record", &server.url(), &file]).spawn().expect("it starts");
        until("the file grows", || fs::metadata(&file).is_ok_and(|found| found.len() > least));
        signal(&child, rustix::process::Signal::KILL);
        assert_eq!(child.wait().expect("it ends").code(), None);

        let objects = objects(file.as_ref());
        assert_eq!(kinds(&objects[..2]), ["started", "opened"]);
        let recorded = assert_counts(&texts(&objects));
        assert!(recorded > 1000, "{recorded} messages in {name}");
        assert_eq!(recorded, objects.len() - 2, "a flood of messages alone");

        // It can be replayed.
        let mut replay = tautline(&["replay", &file, "--fast"]).spawn().expect("it starts");
        let url = served(&mut replay);
        let (status, replayed, _) = run_to_end(&[&url, "--json", "--max-attempts", "1"]);
        let replayed = assert_counts(&texts(&replayed));
        assert!(status == 1 && replayed == recorded, "{replayed} of {recorded}");
        end(replay);
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_messages_are_counted_on() {
    let folder = Folder::new("full");
    let compressed = folder.path("full.jsonl.zst");
    symlink("/dev/full", &compressed).expect("a link can be made");
    for file in ["/dev/full", &compressed] {
        let server = TestServer::start(|peer| send(peer, &["one", "two", "three"]));
        let (status, complaint) = record(&[&server.url(), file, "-n", "3"]);
        assert_eq!(status, 1, "{complaint}");
        let error = format!("tautline: cannot write {file}: No space left on device");
        assert_eq!(complaint.matches(&error).count(), 1, "{complaint}");
        assert!(complaint.contains("recorded at least 0 of 3 messages"), "{complaint}");
    }
}

#[test]
fn a_disk_that_fills_up_ends_the_recording_and_not_the_feed() {
    let folder = Folder::new("limit");
    let file = folder.path("feed.jsonl");
    let server = TestServer::start(count);
    // The shell ignores the signal that would end the program in place of an error.
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" record "$1" "$2" -n 50000"#;
    let output = std::process::Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_tautline"), &server.url(), &file])
        .args(QUICK)
        .output()
        .expect("bash starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert_eq!(complaint.matches("File too large").count(), 1, "{complaint}");
    let told = complaint.split_once("recorded at least ").expect("a summary").1;
    let (told, rest) = told.split_once(' ').expect("a number");
    assert!(rest.starts_with("of 50000 messages"), "{complaint}");
    // What had been handed to the kernel is there, and more of the lines that did not fit whole.
    let recorded = assert_counts(&texts(&objects(file.as_ref())));
    assert!(told.parse().is_ok_and(|told: usize| told <= recorded), "{recorded}: {complaint}");
    assert!((100..600).contains(&recorded), "{recorded} messages in 64 KiB");
}

#[test]
fn messages_that_a_slow_disk_has_no_time_for_are_counted_where_they_are_missing() {
    /// More than wait in memory.
    const SENT: u64 = 300_000;

    let folder = Folder::new("slow");
    // A pipe that nobody reads is as slow as a disk can be.
    let file = folder.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo starts");
    assert!(made.success());
    let (tell, told) = mpsc::channel();
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        peer.write(&[0x81, 0].repeat(SENT as usize))?;
        // Its pong says that all of them have been read.
        peer.ping(b"")?;
        while peer.receive()? != Received::Pong(Vec::new()) {}
        tell.send(()).map_err(std::io::Error::other)?;
        peer.drain()
    });
    // A pipe that is open for both is opened without the other side.
    let pipe = fs::OpenOptions::new().read(true).write(true).open(&file).expect("it exists");
    let child = tautline(&["record", &server.url(), &file, "-q"]).args(QUICK).spawn();
    let child = child.expect("it starts");
    told.recv_timeout(SOON).expect("everything is read");
    // What waits is written before it ends.
    signal(&child, rustix::process::Signal::INT);
    let (mut recorded, mut lost) = (0, 0);
    let mut lines = BufReader::new(pipe).lines();
    for text in lines.by_ref().map_while(Result::ok) {
        if text.contains("\"message\"") {
            recorded += 1;
        } else if text.contains("\"lag\"") {
            lost += object(&text)["lost"].as_u64().expect("a number");
        } else if text.contains("\"stopped\",\"ns\"") {
            break;
        }
    }
    assert!(lost > 0 && recorded + lost == SENT, "{recorded} recorded, {lost} lost");
    let output = child.wait_with_output().expect("it ends");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{complaint}");
    let recorded = format!("recorded {recorded} of {recorded} messages, ");
    assert!(complaint.contains(&recorded), "{complaint}");
    assert!(complaint.contains(&format!(" in 1 file, {lost} lost")), "{complaint}");
}

#[test]
fn a_file_that_cannot_be_written_is_wrong_usage_before_a_connection_is_made() {
    let folder = Folder::new("usage");
    let exists = folder.path("exists.jsonl");
    fs::write(&exists, "precious\n").expect("there is room");
    let other = folder.path("other.jsonl.zst");
    fs::write(&other, "precious\n").expect("there is room");
    let server = TestServer::start(|peer| peer.drain());
    let url = server.url();
    for (arguments, reason) in [
        (&["/does/not/exist/feed.jsonl"][..], "No such file or directory"),
        (&[&folder.path("")], "directory"),
        (&[&exists], "exists: choose another file, --append or --overwrite"),
        (&[&exists, "--append"], "is no recording"),
        (&[&other, "--append"], "cannot append to"),
        (&["/does/not/exist/feed.jsonl", "--rotate-size", "1M"], "No such file or directory"),
        (&["new.jsonl", "--rotate-size", "0"], "--rotate-size"),
        (&["new.jsonl", "--rotate-size", "1X"], "100M"),
        (&["new.jsonl", "--rotate-every", "0s"], "--rotate-every"),
        (&["new.jsonl", "--rotate-every", "1h", "--append"], "--append"),
        (&["new.jsonl", "--append", "--overwrite"], "--overwrite"),
        (&["new.jsonl", "--with-sent"], "--send"),
    ] {
        let (status, complaint) = record(&[&[url.as_str()], arguments].concat());
        assert_eq!(status, 2, "{arguments:?}: {complaint}");
        assert!(complaint.contains(reason), "{arguments:?}: {complaint}");
    }
    assert_eq!(server.connections(), 0);
    assert_eq!(fs::read_to_string(&exists).expect("it is there"), "precious\n");
    // Other wrong usage leaves no file behind.
    let new = folder.path("new.jsonl");
    for wrong in
        [&["ws://127.0.0.1:1/", &new, "--ping-interval", "0s"], &["http://x/", &new, "-n", "1"]]
    {
        assert_eq!(record(wrong).0, 2);
        assert!(!Path::new(&new).exists());
    }
}

#[test]
fn a_recording_can_be_continued_or_replaced() {
    for name in ["feed.jsonl", "feed.jsonl.zst"] {
        let folder = Folder::new("append");
        let file = folder.path(name);
        for (run, text) in ["first", "second", "third"].into_iter().enumerate() {
            let server = TestServer::start(move |peer| send(peer, &[text]));
            let flag = if text == "third" { "--overwrite" } else { "--append" };
            let (status, complaint) = record(&[&server.url(), &file, "-n", "1", flag]);
            assert_eq!(status, 0, "{complaint}");
            let objects = objects(file.as_ref());
            let kinds = kinds(&objects);
            let starts = kinds.iter().filter(|kind| **kind == "started").count();
            let expected = [&["first"][..], &["first", "second"], &["third"]][run];
            assert_eq!(
                (texts(&objects), starts),
                (expected.iter().map(|it| (*it).to_owned()).collect(), expected.len())
            );
        }
    }
}

#[test]
fn what_a_kill_left_of_a_line_is_cut_off_before_more_is_appended() {
    let folder = Folder::new("torn");
    let file = folder.path("feed.jsonl");
    let message = r#"{"event":"message","ns":1,"text":"old"}"#;
    let whole = format!("{{\"event\":\"started\",\"unix_ns\":1}}\n{message}\n");
    // Longer than what is read at once to find the end.
    let torn =
        format!("{whole}{{\"event\":\"message\",\"ns\":2,\"text\":\"{}", "x".repeat(200_000));
    fs::write(&file, torn).expect("there is room");
    let server = TestServer::start(|peer| send(peer, &["new"]));
    let (status, complaint) = record(&[&server.url(), &file, "-n", "1", "--append"]);
    assert_eq!(status, 0, "{complaint}");
    assert!(content(file.as_ref()).starts_with(&format!("{whole}{{\"event\":\"started\"")));
    assert_eq!(texts(&objects(file.as_ref())), ["old", "new"]);

    // No frame can follow one without an end.
    let file = folder.path("feed.jsonl.zst");
    let mut frame = zstd::encode_all(whole.as_bytes(), 3).expect("it can be compressed");
    frame.truncate(frame.len() - 1);
    fs::write(&file, &frame).expect("there is room");
    let (status, complaint) = record(&[&server.url(), &file, "--append"]);
    assert!(status == 2 && complaint.contains("record to another file"), "{complaint}");
    assert_eq!(fs::read(&file).expect("it is there"), frame);
}

#[test]
fn files_rotate_by_size_and_each_can_be_read_alone() {
    for name in ["feed.jsonl", "feed.jsonl.zst"] {
        let folder = Folder::new("rotate");
        let file = folder.path(name);
        let server = TestServer::start(count);
        let size = if name.ends_with(".zst") { "2K" } else { "100K" };
        let (status, complaint) =
            record(&[&server.url(), &file, "--rotate-size", size, "-n", "5000"]);
        assert_eq!(status, 0, "{complaint}");
        assert!(!Path::new(&file).exists());
        let numbered = |number| name.replace("feed.", &format!("feed.{number:06}."));
        let files = folder.files();
        assert!(files.len() > 2, "{files:?}");
        assert!(complaint.contains(&format!("in {} files", files.len())), "{complaint}");
        let mut all = Vec::new();
        for (number, path) in files.iter().enumerate() {
            assert_eq!(path.to_str(), Some(folder.path(&numbered(number + 1)).as_str()));
            let objects = objects(path);
            // All of them count from the same time.
            assert_eq!(objects[0], self::objects(&files[0])[0]);
            all.extend(texts(&objects));
        }
        assert_eq!(assert_counts(&all), 5000);

        // Another run goes on behind them, whatever else is in the folder.
        fs::write(folder.path("feed.1000000000000000000000.jsonl"), "").expect("there is room");
        let (status, complaint) =
            record(&[&server.url(), &file, "--rotate-size", "1G", "-n", "10"]);
        assert_eq!(status, 0, "{complaint}");
        let next = numbered(files.len() + 1);
        assert_eq!(assert_counts(&texts(&objects(folder.path(&next).as_ref()))), 10);
    }
}

#[test]
fn files_rotate_by_time_even_when_nothing_comes() {
    let folder = Folder::new("time");
    let file = folder.path("feed.jsonl");
    let server = TestServer::start(|peer| send(peer, &["one"]));
    let mut child = tautline(&["record", &server.url(), &file, "--rotate-every", "1ms"])
        .args(QUICK)
        .spawn()
        .expect("it starts");
    // The count comes once a second, and the next file with it.
    let mut shown = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let files = |text: &str| {
        let before = text.split_once(" files, ")?.0;
        before.rsplit_once(" bytes in ")?.1.parse::<u64>().ok()
    };
    let mut counts = shown.by_ref().map_while(Result::ok).filter_map(|text| files(&text));
    let first = counts.next().expect("it shows a count");
    assert!(counts.next().is_some_and(|next| next > first));
    drop(counts);
    signal(&child, rustix::process::Signal::INT);
    let rest: Vec<String> = shown.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{rest:?}");
    let all: Vec<Value> = folder.files().iter().flat_map(|path| objects(path)).collect();
    assert_eq!(texts(&all), ["one"]);
    assert_eq!(all.last().map(|last| &last["event"]), Some(&json!("stopped")));
}
