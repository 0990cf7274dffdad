//! The metrics of clients, compared with what servers did.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use tautline::testing::{Peer, Received, TestServer};
use tautline::{
    Builder, Client, Connection, Endpoint, ErrorKind, Event, Events, Handler, MessageRef,
    RateLimit, SendError, WhenFull,
};

use crate::recorder::{Kept, PANICS, PANICS_ON_DROP, REFUSED, SOON, Value};

const MS: Duration = Duration::from_millis(1);

fn builder(server: &TestServer, name: &str) -> Builder {
    Kept::installed();
    Client::builder(server.url()).name(name).retry_delay_min(MS).retry_delay_max(MS)
}

/// A server whose connections stay open until the client ends them.
fn quiet() -> TestServer {
    TestServer::start(|peer| {
        peer.upgrade()?;
        peer.echo()
    })
}

fn next(events: &mut Events) -> Event {
    events.next_timeout(SOON).expect("an event comes")
}

fn opened(events: &mut Events) -> tautline::Opened {
    match next(events) {
        Event::Opened(opened) => opened,
        other => panic!("expected an opening, got {other:?}"),
    }
}

#[test]
fn messages_and_bytes_are_those_that_the_server_sent_and_received() {
    const TEXTS: [&str; 5] = ["one", "two", "three", "", "five"];
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.ping(b"not counted")?;
        for text in TEXTS {
            peer.send_text(text)?;
        }
        peer.send_binary(&[7; 1000])?;
        loop {
            peer.receive_message()?;
        }
    });
    let (kept, labels) = (Kept::installed(), [("client", "traffic")]);
    let client = builder(&server, "traffic").connect().expect("it opens");
    // Without an end, and without anything that would wake the heartbeat thread.
    kept.wait_count("tautline_messages_received_total", &labels, 6);
    let bytes = TEXTS.iter().map(|text| text.len() as u64).sum::<u64>() + 1000;
    kept.wait_count("tautline_received_bytes_total", &labels, bytes);
    for text in ["a", "bc"] {
        client.send_text(text).expect("the connection is open");
    }
    client.send_batch(&["def".into(), (&[0_u8; 200][..]).into()]).expect("it is open");
    let pieces = ["in ", "pieces"].map(Into::into);
    client.sender().send_fragmented(pieces).expect("it is open");
    assert!(server.wait_for_messages(5, SOON));
    kept.wait_count("tautline_messages_sent_total", &labels, 5);
    // A head of 2 bytes and a key of 4, for each of 6 frames; 2 bytes more of one that is long.
    let bytes = (1 + 2 + 3 + 200 + 9) + 6 * 6 + 2;
    kept.wait_count("tautline_sent_bytes_total", &labels, bytes);
    assert!(client.stop(SOON).is_clean());
    let stats = client.stats();
    for (name, counted) in [
        ("tautline_messages_received_total", stats.messages_received),
        ("tautline_received_bytes_total", stats.bytes_received),
        ("tautline_messages_sent_total", stats.messages_sent),
        ("tautline_sent_bytes_total", stats.bytes_sent),
        ("tautline_messages_lost_total", 0),
        ("tautline_connections_opened_total", 1),
    ] {
        assert_eq!(kept.count(name, &labels), counted, "{name}");
    }
}

#[test]
fn what_came_last_is_published_before_a_stop_returns() {
    let (kept, labels) = (Kept::installed(), [("client", "last")]);
    let server = quiet();
    for round in 1..=20 {
        let client = builder(&server, "last").connect().expect("it opens");
        let mut events = client.events();
        opened(&mut events);
        client.send_text("echo").expect("the connection is open");
        assert!(matches!(next(&mut events), Event::Message(_)));
        assert!(client.stop(SOON).is_clean());
        for name in ["messages_received", "messages_sent", "connections_opened"] {
            assert_eq!(kept.count(&format!("tautline_{name}_total"), &labels), round, "{name}");
        }
        let ended = [("client", "last"), ("kind", "stopped")];
        assert_eq!(kept.count("tautline_connections_ended_total", &ended), round);
        assert_eq!(kept.gauge("tautline_up", &labels), 0.0);
    }
}

#[test]
fn up_is_1_while_a_connection_is_open() {
    let (kept, labels) = (Kept::installed(), [("client", "up")]);
    let (end, ends) = channel::<()>();
    let ends = std::sync::Mutex::new(ends);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        let _ = ends.lock().expect("no script panics").recv();
        peer.reset()
    });
    let client = builder(&server, "up")
        .retry_delay_min(Duration::from_secs(3600))
        .retry_delay_max(Duration::from_secs(3600))
        .start()
        .expect("it starts");
    let mut events = client.events();
    opened(&mut events);
    assert_eq!(kept.gauge("tautline_up", &labels), 1.0, "the program has heard of it");
    end.send(()).expect("the server waits");
    assert!(matches!(next(&mut events), Event::Disconnected(_)));
    assert_eq!(kept.gauge("tautline_up", &labels), 0.0, "the program has heard of it");
    drop(client);
    assert_eq!(kept.gauge("tautline_up", &labels), 0.0);
}

#[test]
fn up_falls_at_a_stop_though_the_handler_does_not_return() {
    let (kept, labels) = (Kept::installed(), [("client", "busy")]);
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("busy")?;
        peer.drain()
    });
    let ((entered, enter), (finish, finished)) = (channel(), channel::<()>());
    let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
        entered.send(()).expect("the test waits");
        let _ = finished.recv();
    };
    let client = builder(&server, "busy").start_with(handler).expect("it starts");
    enter.recv_timeout(SOON).expect("the message comes");
    assert_eq!(kept.gauge("tautline_up", &labels), 1.0);
    assert!(!client.stop(300 * MS).is_clean(), "the handler holds it up");
    kept.wait_gauge("tautline_up", &labels, 0.0);
    finish.send(()).expect("the handler waits");
    assert!(client.stop(SOON).is_clean());
    assert_eq!(kept.count("tautline_messages_received_total", &labels), 1);
}

#[test]
fn clients_of_one_name_add_up() {
    let (kept, labels) = (Kept::installed(), [("client", "twins")]);
    let server = quiet();
    let clients = [(); 2].map(|()| builder(&server, "twins").connect().expect("it opens"));
    for client in &clients {
        client.send_text("echo").expect("the connection is open");
    }
    kept.wait_count("tautline_messages_received_total", &labels, 2);
    kept.wait_gauge("tautline_queue_events", &labels, 4.0);
    assert_eq!(kept.gauge("tautline_up", &labels), 2.0);
    let [one, other] = clients;
    drop(one);
    assert_eq!(kept.gauge("tautline_up", &labels), 1.0);
    assert_eq!(kept.gauge("tautline_queue_events", &labels), 2.0);
    drop(other);
    assert_eq!(kept.gauge("tautline_up", &labels), 0.0);
    assert_eq!(kept.gauge("tautline_queue_events", &labels), 0.0);
}

#[test]
fn ends_are_counted_by_their_kind() {
    let kept = Kept::installed();
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        match peer.number() {
            0 => {
                peer.close(1001, "secret")?;
                peer.drain()
            }
            1 => peer.send_frame(0xc1, b"a reserved bit"),
            2 => peer.send_binary(&[0; 2000]),
            _ => peer.echo(),
        }
    });
    let client = builder(&server, "ends").max_message_size(1000).start().expect("it starts");
    let mut events = client.events();
    let mut ends = Vec::new();
    while ends.len() < 3 {
        if let Event::Disconnected(disconnect) = next(&mut events) {
            ends.push(disconnect.error.kind());
        }
    }
    assert_eq!(ends, [ErrorKind::Closed, ErrorKind::Protocol, ErrorKind::TooBig]);
    client.wait_open(SOON).expect("it opens again");
    assert!(client.stop(SOON).is_clean());
    for kind in ["closed", "protocol", "too_big", "stopped"] {
        let labels = [("client", "ends"), ("kind", kind)];
        assert_eq!(kept.count("tautline_connections_ended_total", &labels), 1, "{kind}");
    }
    for kind in ["io", "pong_timeout", "idle"] {
        let labels = [("client", "ends"), ("kind", kind)];
        assert_eq!(kept.count("tautline_connections_ended_total", &labels), 0, "{kind}");
    }
    let opened = kept.count("tautline_connections_opened_total", &[("client", "ends")]);
    assert_eq!(opened, 4);
}

#[test]
fn failed_dials_are_counted_by_their_kind() {
    let kept = Kept::installed();
    let server = TestServer::start(|peer| match peer.number() {
        0 | 1 => peer.refuse(503, "X-Secret: hunter2\r\n", "hunter2"),
        2 => {
            peer.read_request()?;
            peer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        }
        _ => {
            peer.upgrade()?;
            peer.echo()
        }
    });
    let client = builder(&server, "dials").start().expect("it starts");
    client.wait_open(SOON).expect("the fourth dial opens");
    drop(client);
    let free = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = free.local_addr().expect("it has an address");
    drop(free);
    let refused = Client::builder(format!("ws://{address}")).name("dials").connect();
    assert_eq!(refused.map(drop).expect_err("nobody listens").kind(), ErrorKind::Connect);
    // A kind that no dial begins with has no series before it happens.
    let invalid = Client::builder_from_fn(|_| Ok(Endpoint::new("http://not.a.websocket")));
    let invalid = invalid.name("dials").connect();
    assert_eq!(invalid.map(drop).expect_err("no such scheme").kind(), ErrorKind::Config);
    for (kind, count) in [("http", 2), ("upgrade", 1), ("connect", 1), ("config", 1), ("tls", 0)] {
        let labels = [("client", "dials"), ("kind", kind)];
        assert_eq!(kept.count("tautline_dials_failed_total", &labels), count, "{kind}");
    }
    let labels = [("client", "dials")];
    assert_eq!(kept.count("tautline_connections_opened_total", &labels), 1);
    assert_eq!(kept.recorded("tautline_connect_duration_seconds", &labels).len(), 1);
}

#[test]
fn failed_sends_are_counted_by_their_outcome() {
    let kept = Kept::installed();
    let labels = |outcome| [("client", "sends"), ("outcome", outcome)];
    let failures = |outcome| kept.count("tautline_send_failures_total", &labels(outcome));
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.stall()
    });
    let client = builder(&server, "sends")
        .send_timeout(100 * MS)
        .max_outgoing_message_size(100 << 20)
        .connect()
        .expect("it opens");
    client.send_text("this one goes").expect("there is room");
    assert_eq!((failures("not_sent"), failures("unknown")), (0, 0));
    // More than the buffers of both kernels hold.
    let large = vec![0; 64 << 20];
    let error = client.sender().send_binary(&large).expect_err("nobody reads");
    assert!(matches!(error, SendError::Unknown(_)), "{error:?}");
    assert_eq!((failures("not_sent"), failures("unknown")), (0, 1));
    let too_long = vec![0; (100 << 20) + 1];
    // Not the connection that is being aborted.
    kept.wait_count("tautline_connections_opened_total", &[("client", "sends")], 2);
    client.wait_open(SOON).expect("it opens again");
    client.send_binary(&too_long).expect_err("it is too long");
    client.sender().send_fragmented([]).expect_err("there is nothing to send");
    client.send_batch(&[]).expect_err("there is nothing to send");
    assert_eq!((failures("not_sent"), failures("unknown")), (3, 1));
    // A ping is no message.
    client.ping().expect("the connection is open");
    assert!(client.stop(SOON).is_clean());
    client.send_text("late").expect_err("the client has ended");
    client.send_batch(&["late".into()]).expect_err("the client has ended");
    client.ping().expect_err("the client has ended");
    assert_eq!((failures("not_sent"), failures("unknown")), (5, 1));
}

#[test]
fn the_queue_has_the_events_that_nobody_has_read() {
    let (kept, labels) = (Kept::installed(), [("client", "queue")]);
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for _ in 0..7 {
            peer.send_text("quote")?;
        }
        peer.echo()
    });
    let client = builder(&server, "queue").connect().expect("it opens");
    // The opening and the messages.
    kept.wait_gauge("tautline_queue_events", &labels, 8.0);
    let mut events = client.events();
    for _ in 0..8 {
        next(&mut events);
    }
    kept.wait_gauge("tautline_queue_events", &labels, 0.0);
    client.send_text("one more").expect("the connection is open");
    kept.wait_gauge("tautline_queue_events", &labels, 1.0);
    assert!(client.stop(SOON).is_clean());
    assert_eq!(client.stats().queue_depth, 3, "the message, the end and the stop");
    assert_eq!(kept.gauge("tautline_queue_events", &labels), 0.0, "the client has ended");
}

/// An event that nobody reads does not keep the heartbeat thread awake, and its depth is told all
/// the same: whoever reads it wakes the thread.
#[cfg(target_os = "linux")]
#[test]
fn nothing_wakes_while_events_lie_unread() {
    let kept = Kept::installed();
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.drain()
    });
    let open = builder(&server, "unread").ping_interval(None).connect().expect("it opens");
    let refusing = TestServer::start(|peer| peer.refuse(503, "Retry-After: 3600\r\n", ""));
    let down = builder(&refusing, "down").retry_after_max(180 * SOON).start().expect("it starts");
    for (name, client) in [("unread", &open), ("down", &down)] {
        let labels = [("client", name)];
        kept.wait_gauge("tautline_queue_events", &labels, 1.0);
        wait_asleep(name);
        next(&mut client.events());
        kept.wait_gauge("tautline_queue_events", &labels, 0.0);
    }
    open.send_text("and nothing comes back").expect("the connection is open");
    kept.wait_count("tautline_messages_sent_total", &[("client", "unread")], 1);
    wait_asleep("unread");
}

/// A reader that waits for room has counted what it waits with.
#[cfg(target_os = "linux")]
#[test]
fn messages_that_find_no_room_after_a_silence_are_published_while_they_wait() {
    let (kept, labels) = (Kept::installed(), [("client", "no room")]);
    let (go, going) = channel::<()>();
    let going = std::sync::Mutex::new(going);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        let _ = going.lock().expect("no script panics").recv();
        peer.write(&b"\x81\x05quote".repeat(100))?;
        peer.drain()
    });
    let client = builder(&server, "no room").queue_messages(10).when_full(WhenFull::Block);
    let client = client.ping_interval(None).connect().expect("it opens");
    wait_asleep("no room");
    go.send(()).expect("the server waits");
    kept.wait(
        "tautline_messages_received_total",
        &labels,
        |value| matches!(value, Value::Counter(count) if *count > 0),
    );
    assert!(client.stats().queue_depth <= 11);
}

/// Waits until the heartbeat thread of a client has not woken for longer than the time between two
/// publications.
#[cfg(target_os = "linux")]
fn wait_asleep(client: &str) {
    let (name, deadline) = (format!("{client}-hb"), Instant::now() + SOON);
    let sleeps = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
        tasks.into_iter().find_map(|task| {
            let path = task.ok()?.path();
            let comm = std::fs::read_to_string(path.join("comm")).ok()?;
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let count = status.lines().find(|text| text.starts_with("voluntary_ctxt_switches"))?;
            (comm.trim() == name).then(|| count.to_owned())
        })
    };
    loop {
        let before = sleeps();
        std::thread::sleep(1500 * MS);
        if before.is_some() && sleeps() == before {
            return;
        }
        assert!(Instant::now() < deadline, "{name} keeps waking: {before:?}");
    }
}

#[test]
fn messages_that_a_full_queue_loses_are_counted() {
    let (kept, labels) = (Kept::installed(), [("client", "lossy")]);
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        for _ in 0..100 {
            peer.send_text("quote")?;
        }
        peer.drain()
    });
    let client = builder(&server, "lossy")
        .queue_messages(10)
        .when_full(WhenFull::DropOldest)
        .connect()
        .expect("it opens");
    kept.wait_count("tautline_messages_lost_total", &labels, 90);
    assert_eq!(client.stats().messages_lost, 90);
    drop(client);
    assert_eq!(kept.count("tautline_messages_lost_total", &labels), 90);
}

fn now_unix() -> f64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.expect("it is later than 1970").as_secs_f64()
}

#[test]
fn the_time_of_the_last_byte_is_in_unix_seconds_and_moves_on() {
    let (kept, labels) = (Kept::installed(), [("client", "clock")]);
    let (go, going) = channel::<()>();
    let going = std::sync::Mutex::new(going);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        for _ in 0..2 {
            let _ = going.lock().expect("no script panics").recv();
            // Half of a message, and then a ping inside of it: no data message comes.
            peer.send_frame(0x01, b"half")?;
            peer.ping(b"")?;
            peer.send_frame(0x80, b"")?;
        }
        peer.echo()
    });
    let began = now_unix();
    let client = builder(&server, "clock").connect().expect("it opens");
    kept.wait("tautline_last_byte_timestamp_seconds", &labels, |value| *value != Value::Gauge(0.0));
    for _ in 0..2 {
        let before = kept.gauge("tautline_last_byte_timestamp_seconds", &labels);
        // Clocks are read one after the other.
        assert!((began - 0.01..now_unix() + 0.01).contains(&before), "{before}");
        let sent = now_unix();
        go.send(()).expect("the server waits");
        kept.wait(
            "tautline_last_byte_timestamp_seconds",
            &labels,
            |value| matches!(value, Value::Gauge(at) if *at > sent - 0.01 && *at > before),
        );
    }
    assert!(client.stop(SOON).is_clean());
    let last = kept.gauge("tautline_last_byte_timestamp_seconds", &labels);
    assert!(last > began, "it stays after the end");
}

#[test]
fn round_trips_and_openings_are_recorded_as_their_events_tell_them() {
    let (kept, labels) = (Kept::installed(), [("client", "times")]);
    let server = quiet();
    let client = builder(&server, "times").ping_interval(None).connect().expect("it opens");
    let took = opened(&mut client.events()).took.as_secs_f64();
    assert_eq!(kept.recorded("tautline_connect_duration_seconds", &labels), [took]);
    assert!(kept.recorded("tautline_round_trip_seconds", &labels).is_empty());
    client.ping().expect("the connection is open");
    kept.wait(
        "tautline_round_trip_seconds",
        &labels,
        |value| matches!(value, Value::Histogram(values) if values.len() == 1),
    );
    assert!(client.stop(SOON).is_clean());
    let trip = client.stats().round_trip;
    assert_eq!(trip.count, 1);
    let recorded = kept.recorded("tautline_round_trip_seconds", &labels);
    assert_eq!(recorded, [trip.last.as_secs_f64()]);
}

#[test]
fn waits_for_a_rate_limit_are_recorded() {
    let (kept, labels) = (Kept::installed(), [("client", "limited")]);
    let server = quiet();
    let window = 50 * MS;
    let limit = RateLimit::per_connection().window(1, window).margin(Duration::ZERO);
    let limited = builder(&server, "limited").send_limit(limit);
    let client = limited.send_timeout(SOON).connect().expect("it opens");
    for _ in 0..2 {
        client.send_text("order").expect("it waits for its turn");
    }
    let waits = kept.recorded("tautline_rate_limit_wait_seconds", &labels);
    assert_eq!(waits.len(), 2);
    assert!(waits[0] < waits[1] && waits[1] > 0.0, "{waits:?}");
    drop(client);
    let client = builder(&server, "unlimited").connect().expect("it opens");
    client.send_text("at once").expect("there is no limit");
    let waits = kept.recorded("tautline_rate_limit_wait_seconds", &[("client", "unlimited")]);
    assert!(waits.is_empty(), "{waits:?}");
}

/// A client is labelled with its host where it has no name. Paths, queries, headers, payloads and
/// reasons are in no label.
#[test]
fn labels_have_names_and_kinds_and_nothing_else() {
    const SECRET: &str = "hunter2";
    let kept = Kept::installed();
    let server = TestServer::start(|peer| {
        if peer.number() == 0 {
            return peer.refuse(503, &format!("X-Secret: {SECRET}\r\n"), SECRET);
        }
        peer.upgrade_with(&format!("X-Session: {SECRET}\r\n"))?;
        peer.send_text(SECRET)?;
        peer.close(4000, SECRET)?;
        peer.drain()
    });
    let client = Client::builder(format!("{}{SECRET}?key={SECRET}", server.url()))
        .header("Authorization", SECRET)
        .retry_delay_min(MS)
        .start()
        .expect("it starts");
    let mut events = client.events();
    while !matches!(next(&mut events), Event::Disconnected(_)) {}
    drop((events, client));
    let series = kept.series();
    let of_host = ("client".to_owned(), "127.0.0.1".to_owned());
    assert!(series.keys().any(|(_, labels)| labels.contains(&of_host)), "{series:?}");
    for (name, labels) in series.keys() {
        assert!(!format!("{name}{labels:?}").contains(SECRET), "{name} {labels:?}");
        let keys: Vec<&str> = labels.iter().map(|(key, _)| key.as_str()).collect();
        let second = match name.as_str() {
            "tautline_connections_ended_total" | "tautline_dials_failed_total" => Some("kind"),
            "tautline_send_failures_total" | "tautline_calls_total" => Some("outcome"),
            "tautline_subscriptions" => Some("state"),
            _ => None,
        };
        let expected: Vec<&str> = ["client"].into_iter().chain(second).collect();
        assert_eq!(keys, expected, "{name}");
    }
}

#[test]
fn a_recorder_that_panics_does_not_end_the_client() {
    let (kept, server) = (Kept::installed(), quiet());
    let client = builder(&server, PANICS).connect().expect("it opens");
    let mut events = client.events();
    opened(&mut events);
    for _ in 0..3 {
        client.send_text("echo").expect("the send is told as it was");
        assert!(matches!(next(&mut events), Event::Message(_)));
    }
    client.ping().expect("the connection is open");
    while client.stats().round_trip.count == 0 {
        std::thread::yield_now();
    }
    assert!(client.stop(SOON).is_clean());
    assert_eq!(client.take_panic().map(drop), None);
    // Both threads may have called it at the same time. It is not called again.
    let panics = kept.panics.load(Ordering::Relaxed);
    assert!((1..=2).contains(&panics), "{panics} panics");
    assert_eq!(client.stop_reason().map(|reason| reason.kind()), Some(ErrorKind::Stopped));
}

#[test]
fn a_recorder_that_panics_at_registration_leaves_the_client_without_metrics() {
    let (kept, server) = (Kept::installed(), quiet());
    let client = builder(&server, REFUSED).connect().expect("it opens");
    client.send_text("echo").expect("it is open");
    let mut events = client.events();
    opened(&mut events);
    assert!(matches!(next(&mut events), Event::Message(_)));
    assert!(client.stop(SOON).is_clean());
    assert_eq!(client.take_panic().map(drop), None);
    let of_client = ("client".to_owned(), REFUSED.to_owned());
    assert!(!kept.series().keys().any(|(_, labels)| labels.contains(&of_client)));
}

#[test]
fn handles_that_panic_when_they_are_dropped_are_all_dropped() {
    let (kept, server) = (Kept::installed(), quiet());
    let client = builder(&server, PANICS_ON_DROP).connect().expect("it opens");
    assert!(client.stop(SOON).is_clean());
    drop(client);
    let of_client = ("client".to_owned(), PANICS_ON_DROP.to_owned());
    let series = kept.series().into_keys().filter(|(_, labels)| labels.contains(&of_client));
    assert_eq!(kept.drops.load(Ordering::Relaxed), series.count());
}

/// A client whose recorder hangs on one of its threads, by the end of the thread's name. Returns
/// what lets go of the thread.
fn hangs_on(kept: &Kept, client: &Client, name: &'static str, thread: &'static str) -> Sender<()> {
    let (enter, entered) = channel();
    let (release, released) = channel::<()>();
    let released = std::sync::Mutex::new(released);
    kept.set_hook(name, move || {
        if std::thread::current().name().is_some_and(|name| name.ends_with(thread)) {
            let _ = enter.send(());
            let _ = released.lock().expect("no hook panics").recv();
        }
    });
    // The reader records the round trip, and the heartbeat thread publishes the message.
    client.ping().expect("the connection is open");
    client.send_text("echo").expect("the connection is open");
    entered.recv_timeout(SOON).expect("the recorder is called on that thread");
    release
}

#[test]
fn a_recorder_that_hangs_makes_a_stop_late_and_no_later() {
    for (name, thread, is_closed) in [("hang-a", "-rd", false), ("hang-b", "-hb", true)] {
        let kept = Kept::installed();
        let (end, ended) = channel();
        let server = TestServer::start(move |peer| {
            peer.upgrade()?;
            let echoed = peer.echo();
            let _ = end.send(());
            echoed
        });
        let client = builder(&server, name).connect().expect("it opens");
        let release = hangs_on(kept, &client, name, thread);
        let began = Instant::now();
        let report = client.stop(500 * MS);
        assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
        assert!(!report.is_clean(), "{report}");
        ended.recv_timeout(SOON).expect("the connection is closed all the same");
        // The end is that of the reader.
        assert_eq!(client.wait_closed(50 * MS).is_some(), is_closed, "{thread}");
        drop(release);
        assert!(client.stop(SOON).is_clean());
        assert!(client.wait_closed(SOON).is_some());
        assert_eq!(kept.gauge("tautline_up", &[("client", name)]), 0.0);
        kept.remove_hook(name);
    }
}

/// The recorder is code of the program's: it may use the client that it is told about, which would
/// wait for itself if it were called under a lock.
#[test]
fn a_recorder_may_use_the_client_that_it_is_told_about() {
    const NAME: &str = "reentrant";
    struct Bot;
    impl Handler for Bot {
        fn message(&mut self, connection: &mut Connection<'_>, _: MessageRef<'_>) {
            connection.send_text("from the handler").ok();
        }
    }
    fn script(peer: &mut Peer) -> io::Result<()> {
        if peer.number() == 1 {
            return peer.refuse(503, "", "");
        }
        peer.upgrade()?;
        peer.send_text("hello")?;
        if peer.number() > 1 {
            return peer.echo();
        }
        while !matches!(peer.receive_message()?, Received::Text(text) if text == "end") {}
        peer.reset()
    }
    let kept = Kept::installed();
    let server = TestServer::start(script);
    let limit = RateLimit::per_connection().window(1000, MS).margin(Duration::ZERO);
    let client = builder(&server, NAME).send_limit(limit).start_with(Bot).expect("it starts");
    let (sender, calls) = (client.sender(), channel());
    kept.set_hook(NAME, move || {
        let _ = sender.state();
        let _ = sender.ping();
        let sent = sender.send_text("from the recorder");
        let _ = calls.0.send(sent.err().and_then(|error| error.reason().timeout()));
    });
    client.wait_open(SOON).expect("it opens");
    client.sender().send_fragmented(["a", "b"].map(Into::into)).expect("it is open");
    client.send_batch(&["c".into(), "d".into()]).expect("it is open");
    client.send_text("end").expect("it is open");
    let labels = [("client", NAME)];
    kept.wait("tautline_connections_opened_total", &labels, |value| *value == Value::Counter(2));
    client.wait_open(SOON).expect("it opens again");
    kept.wait(
        "tautline_round_trip_seconds",
        &labels,
        |value| matches!(value, Value::Histogram(values) if !values.is_empty()),
    );
    assert!(client.stop(SOON).is_clean());
    let timeouts: Vec<_> = calls.1.try_iter().collect();
    assert!(timeouts.len() > 10);
    // A send that waited for the writer would have waited for itself.
    assert!(timeouts.iter().all(Option::is_none), "{timeouts:?}");
    kept.remove_hook(NAME);
}
