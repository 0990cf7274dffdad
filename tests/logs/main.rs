//! Tests of what is logged and what is not, and that no thread wakes while the connection is down.
//!
//! These run in a process of their own, because the logger and the counted threads belong to the
//! whole process.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use tautline::testing::{Peer, Received, TestServer};
use tautline::{
    AppPing, Client, Connection, Endpoint, ErrorKind, Event, Handler, MessageRef, WokenContext,
};

const SOON: Duration = Duration::from_secs(20);
const SECRET: &str = "hunter2";

/// A logger that keeps every record.
struct Kept(Mutex<Vec<(Level, String)>>);

/// Makes the logger panic on the heartbeat thread.
static PANICS: AtomicBool = AtomicBool::new(false);

/// Makes the logger hold up the heartbeat thread of a client with a name, once, as if the process
/// had been asleep.
static SLEEPS: AtomicBool = AtomicBool::new(false);

impl Log for Kept {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        if name == "taut-heartbeat" && PANICS.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        let text = format!("{} {}", record.target(), record.args());
        if text.contains("sent Pong") {
            if let Some(sender) = SENDER.lock().take() {
                sender.send_text("from the logger").expect("the connection is open");
            }
        }
        let is_app_ping = name.ends_with("-hb") && text.ends_with("an application ping");
        self.0.lock().push((record.level(), text));
        if is_app_ping && SLEEPS.swap(false, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn flush(&self) {}
}

static KEPT: Kept = Kept(Mutex::new(Vec::new()));

/// Returns the records kept since the last call.
fn taken() -> Vec<(Level, String)> {
    std::mem::take(&mut KEPT.0.lock())
}

fn main() {
    log::set_logger(&KEPT).expect("it is the first logger");
    log::set_max_level(LevelFilter::Trace);
    secrets_stay_out_at_every_level();
    every_record_begins_with_the_name_of_its_client();
    a_client_without_a_name_logs_its_host();
    a_retry_loop_logs_one_line_for_each_dial();
    a_slow_handler_is_logged_as_a_warning_once();
    an_application_ping_that_is_too_long_is_logged_as_a_warning_once();
    a_handler_that_is_woken_often_is_not_taken_for_a_slow_one();
    a_logger_that_panics_on_the_heartbeat_thread_ends_the_client_with_its_reason();
    a_logger_may_send_by_the_client_that_it_logs();
    what_closures_return_is_not_logged();
    only_a_drop_that_leaves_a_thread_behind_is_logged_as_an_error();
    #[cfg(target_os = "linux")]
    no_thread_wakes_while_the_connection_is_down();
    #[cfg(target_os = "linux")]
    the_heartbeat_does_not_spin_while_a_busy_handler_hides_a_reset();
}

/// The path and query of the URL, headers, payloads, the body of a refusal and the reason of a
/// close stay out, whichever side sends them.
fn secrets_stay_out_at_every_level() {
    let script = |peer: &mut Peer| {
        if peer.number() == 0 {
            return peer.refuse(503, &format!("X-Secret: {SECRET}\r\n"), SECRET);
        }
        peer.upgrade_with(&format!("X-Session: {SECRET}\r\n"))?;
        peer.ping(SECRET.as_bytes())?;
        peer.send_text(SECRET)?;
        peer.receive_message()?;
        peer.close(4000, SECRET)?;
        peer.drain()
    };
    for builder in [TestServer::builder(), TestServer::builder().tls()] {
        let server = builder.start(script);
        let endpoint = Endpoint::new(format!("{}{SECRET}?key={SECRET}", server.url()));
        let client = Client::builder(endpoint.carry("token", SECRET))
            .tls_root(TestServer::root_pem())
            .header("Authorization", SECRET)
            .retry_delay_min(Duration::from_millis(1))
            .start()
            .expect("it starts");
        let mut events = client.events();
        let (mut refusals, mut ends) = (0, 0);
        while ends < 2 {
            match events.next_timeout(SOON).expect("an event comes") {
                Event::DialFailed(_) => refusals += 1,
                Event::Message(_) => {
                    client.send_text(SECRET).expect("the connection is open");
                }
                Event::Disconnected(_) => ends += 1,
                _ => {}
            }
        }
        assert_eq!(refusals, 1);
        drop(events);
        drop(client);
        let kept = taken();
        for level in [Level::Info, Level::Debug] {
            assert!(kept.iter().any(|(of, _)| *of == level), "nothing at {level}: {kept:?}");
        }
        let traced = [
            "received Ping(7 bytes)",
            "sent Pong(7 bytes)",
            "received Text(7 bytes)",
            "sent Text(7 bytes)",
        ];
        for what in traced.into_iter().chain(["received Close(4000)", "sent Close(2 bytes)"]) {
            assert!(
                kept.iter().any(|(of, text)| *of == Level::Trace && text.ends_with(what)),
                "{what}: {kept:?}"
            );
        }
        let leaks: Vec<_> = kept.iter().filter(|(_, text)| text.contains(SECRET)).collect();
        assert!(leaks.is_empty(), "{leaks:?}");
    }
}

/// Each of two clients of the same host logs what it can log, from the start of its threads to a
/// drop that leaves one of them behind.
fn every_record_begins_with_the_name_of_its_client() {
    for name in ["feed-one", "feed-two"] {
        let server = TestServer::builder().tls().start(|peer| match peer.number() {
            0 => peer.refuse(503, "", ""),
            1 => {
                peer.upgrade()?;
                peer.ping(b"ping")?;
                peer.send_text("text")?;
                // Application pings come before it.
                while !matches!(peer.receive_message()?, Received::Text(text) if text == "text") {}
                peer.close(4000, "")
            }
            2 => {
                peer.upgrade()?;
                peer.send_text("work")?;
                peer.drain()
            }
            _ => peer.refuse(404, "", ""),
        });
        let is_logged = |what: &str| KEPT.0.lock().iter().any(|(_, text)| text.contains(what));
        let handler = move |connection: &mut Connection<'_>, message: MessageRef<'_>| {
            if message.text() == Some("work") {
                wait_until(|| is_logged("been busy"));
                return connection.reconnect();
            }
            wait_until(|| is_logged("been asleep"));
            let batch = ["a", "batch"].map(Into::into);
            connection.send_batch(&batch).expect("the connection is open");
            connection.send_text("text").expect("the connection is open");
        };
        SLEEPS.store(true, Ordering::SeqCst);
        let builder = Client::builder(server.url())
            .name(name)
            .tls_root(TestServer::root_pem())
            .on_thread_start(|_| std::panic::resume_unwind(Box::new("on purpose")))
            .retry_delay_min(Duration::from_millis(1))
            .retry_delay_max(Duration::from_millis(1))
            .ping_interval(Duration::from_millis(20))
            .pong_timeout(Duration::from_millis(100))
            .app_ping(AppPing::text("ping", Duration::from_millis(20)));
        let client = builder.start_with(handler).expect("it starts");
        let reason = client.wait_closed(SOON).expect("it gives up");
        assert_eq!(reason.kind(), ErrorKind::Http, "{reason}");
        drop(client);

        let (release, held) = bounded::<()>(0);
        let (tell, told) = bounded(1);
        let late = Client::builder_from_fn(move |_| {
            tell.send(()).expect("the test waits");
            assert!(held.recv().is_err());
            Err("the test is over".into())
        });
        let late = late.name(name).drop_timeout(Duration::from_millis(50)).start();
        told.recv_timeout(SOON).expect("the closure is called");
        let late = late.expect("it starts");
        let stopper = late.stopper();
        drop(late);
        drop(release);
        assert!(stopper.stop(SOON).is_clean());

        let kept = taken();
        let address = server.address();
        // The host of the certificate.
        let target = format!("localhost:{}", address.port());
        let label = format!("{name} ({target}): ");
        let logged = [
            (Level::Error, format!("{name}: the hook for new threads panicked on taut-reader")),
            (Level::Debug, format!("{label}resolving")),
            (Level::Debug, format!("{label}connecting to {address}")),
            (Level::Debug, format!("{label}TLS handshake")),
            (Level::Debug, format!("{label}upgrade")),
            (Level::Debug, format!("{name}: Backoff")),
            (Level::Info, format!("{name}: dial 1 failed: {target} answered")),
            (Level::Info, format!("{label}open, epoch 1, after ")),
            (Level::Trace, format!("{label}received Ping(4 bytes)")),
            (Level::Trace, format!("{label}sent Pong(4 bytes)")),
            (Level::Trace, format!("{label}sent Ping(")),
            (Level::Trace, format!("{label}received Pong(")),
            (Level::Trace, format!("{label}received Text(4 bytes)")),
            (Level::Trace, format!("{label}sent Text(4 bytes)")),
            (Level::Trace, format!("{label}sent [Text(1 bytes), Text(5 bytes)]")),
            (Level::Trace, format!("{label}sent Text(4 bytes), an application ping")),
            (Level::Info, format!("{label}the process has been asleep")),
            (Level::Trace, format!("{label}received Close(4000)")),
            (Level::Trace, format!("{label}sent Close(2 bytes)")),
            (Level::Info, format!("{label}epoch 1 ended: {target} closed the connection")),
            (Level::Warn, format!("{label}the handler has been busy")),
            (Level::Info, format!("{label}epoch 2 ended: the program asked")),
            (Level::Warn, format!("{name}: giving up: {target} answered")),
            (Level::Error, format!("{name}: the client was dropped and not all")),
        ];
        for (level, what) in logged {
            let is_it = |(of, text): &&(Level, String)| {
                *of == level
                    && text.split_once(' ').is_some_and(|(_, text)| text.starts_with(&what))
            };
            assert!(kept.iter().any(|entry| is_it(&entry)), "{level} {what}: {kept:#?}");
        }
        let beginnings = [format!("{name}: "), label];
        for (level, text) in kept {
            // The target of the record is the module.
            let (module, text) = text.split_once(' ').expect("a module and a text");
            let is_named = beginnings.iter().any(|beginning| text.starts_with(beginning));
            assert!(is_named || !module.starts_with("tautline"), "{level} {module} {text}");
            // The state is a value, in which an error says its client too.
            let is_state = level == Level::Debug && text.contains(" { ");
            assert!(is_state || text.matches(name).count() == 1, "{level} {module} {text}");
        }
    }
}

/// Waits for what no event tells.
fn wait_until(is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() && began.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_client_without_a_name_logs_its_host() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.close(1000, "")
    });
    let client = Client::builder(server.url()).max_attempts(1).start().expect("it starts");
    assert!(client.wait_closed(SOON).is_some());
    drop(client);
    let target = server.address();
    let kept = taken();
    for what in ["open, epoch 1", "epoch 1 ended"] {
        let begins = format!(" {target}: {what}");
        assert!(kept.iter().any(|(_, text)| text.contains(&begins)), "{what}: {kept:?}");
    }
    for (level, text) in kept {
        let is_named = text.contains(" 127.0.0.1: ") || text.contains(&format!(" {target}: "));
        assert!(is_named || !text.starts_with("tautline"), "{level} {text}");
    }
}

fn a_retry_loop_logs_one_line_for_each_dial() {
    const DIALS: usize = 100;
    let server = TestServer::start(|peer| peer.refuse(503, "", ""));
    let client = Client::builder(server.url())
        .retry_delay_min(Duration::from_millis(1))
        .retry_delay_max(Duration::from_millis(1))
        .max_attempts(DIALS as u32)
        .start()
        .expect("it starts");
    let failed = client.events().filter(|event| matches!(event, Event::DialFailed(_))).count();
    assert_eq!(failed, DIALS);
    drop(client);
    let loud = taken().into_iter().filter(|(level, _)| *level <= Level::Info).count();
    // A few more lines say that the client starts, gives up and ends.
    assert!((1..=DIALS + 5).contains(&loud), "{loud} lines for {DIALS} dials");
}

fn a_slow_handler_is_logged_as_a_warning_once() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("work")?;
        peer.drain()
    });
    let is_warning = |(level, text): &(Level, String)| {
        *level == Level::Warn && text.contains("handler has been busy")
    };
    let handler = move |connection: &mut Connection<'_>, _: MessageRef<'_>| {
        // The handler is busy until the warning is logged, and then for some pings more.
        let wait = Duration::from_millis(5);
        let began = std::time::Instant::now();
        while !KEPT.0.lock().iter().any(is_warning) && began.elapsed() < SOON {
            std::thread::sleep(wait);
        }
        std::thread::sleep(60 * wait);
        connection.send_text("done").expect("the connection is open");
    };
    let client = Client::builder(server.url())
        .ping_interval(Duration::from_millis(20))
        .pong_timeout(Duration::from_millis(100))
        .start_with(handler)
        .expect("it starts");
    assert!(server.wait_for_messages(1, 2 * SOON));
    assert!(client.stop(SOON).is_clean());
    assert_eq!(taken().iter().filter(|entry| is_warning(entry)).count(), 1);
}

fn an_application_ping_that_is_too_long_is_logged_as_a_warning_once() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.drain()
    });
    let pings = AtomicUsize::new(0);
    // Two of three are too long.
    let make = move || match pings.fetch_add(1, Ordering::SeqCst) % 3 {
        2 => "short".to_owned(),
        _ => SECRET.repeat(10),
    };
    let client = Client::builder(server.url())
        .max_outgoing_message_size(10)
        .app_ping(AppPing::made_by(make, Duration::from_millis(5)))
        .connect()
        .expect("it opens");
    assert!(server.wait_for_messages(2, SOON));
    assert!(client.stop(SOON).is_clean());
    assert!(server.messages().iter().all(|message| message == b"short"));
    let records = taken();
    assert!(records.iter().all(|(_, text)| !text.contains(SECRET)));
    let is_warning = |(level, text): &&(Level, String)| {
        *level == Level::Warn && text.contains("an application ping is not sent")
    };
    assert_eq!(records.iter().filter(is_warning).count(), 1);
}

fn a_handler_that_is_woken_often_is_not_taken_for_a_slow_one() {
    struct Works;
    impl Handler for Works {
        fn opened(&mut self, connection: &mut Connection<'_>) {
            connection.wake_at(Instant::now());
        }
        fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {}
        fn woken(&mut self, context: &mut WokenContext<'_>) {
            std::thread::sleep(Duration::from_millis(4));
            context.wake_at(Instant::now() + Duration::from_millis(1));
        }
    }
    // No pong comes, and the time in the handler does not count against the server: no byte comes
    // for much longer than `pong_timeout`.
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.stall()
    });
    let client = Client::builder(server.url())
        .ping_interval(Duration::from_millis(20))
        .pong_timeout(Duration::from_millis(200))
        .max_attempts(1)
        .start_with(Works)
        .expect("it starts");
    let reason = client.wait_closed(SOON).expect("the connection is dead");
    assert_eq!(reason.kind(), ErrorKind::PongTimeout);
    drop(client);
    let kept = taken();
    assert!(!kept.iter().any(|(_, text)| text.contains("handler has been busy")), "{kept:?}");
}

/// HTTP clients put whole URLs, secrets included, into their errors.
fn what_closures_return_is_not_logged() {
    let asking = Client::builder_from_fn(|_| {
        Err(format!("GET https://a.example/token?key={SECRET} failed").into())
    });
    let resolving = Client::builder("ws://server.example/").resolver(|_: &str, _: u16| {
        Err(io::Error::other(format!("GET https://a.example/dns?key={SECRET} failed")))
    });
    for builder in [asking, resolving] {
        let error = builder
            .max_attempts(1)
            .start()
            .expect("it starts")
            .wait_closed(SOON)
            .expect("it gives up");
        assert!(!format!("{error:?} {}", error.chain()).contains(SECRET));
        assert!(
            std::error::Error::source(&error)
                .is_some_and(|source| source.to_string().contains(SECRET))
        );
        let kept = taken();
        assert!(kept.iter().any(|(level, _)| *level == Level::Warn), "{kept:?}");
        assert!(!kept.iter().any(|(_, text)| text.contains(SECRET)), "{kept:?}");
    }
}

fn only_a_drop_that_leaves_a_thread_behind_is_logged_as_an_error() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.send_text("work")?;
        peer.drain()
    });
    for is_late in [false, true] {
        let (release, held) = bounded::<()>(0);
        let (tell, told) = bounded(1);
        let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
            tell.send(()).expect("the test waits");
            assert!(!is_late || held.recv().is_err());
        };
        let settings = Client::builder(server.url()).close_timeout(Duration::from_millis(20));
        let drop_timeout = if is_late { Duration::from_millis(200) } else { SOON };
        let client = settings.drop_timeout(drop_timeout).start_with(handler).expect("it starts");
        told.recv_timeout(SOON).expect("the handler is called");
        let stopper = client.stopper();
        drop(client);
        let errors: Vec<_> =
            taken().into_iter().filter(|(level, _)| *level == Level::Error).collect();
        assert_eq!(errors.len(), usize::from(is_late), "{errors:?}");
        assert!(errors.iter().all(|(_, text)| text.contains("taut-reader LATE")), "{errors:?}");
        drop(release);
        assert!(stopper.stop(SOON).is_clean());
    }
}

#[cfg(target_os = "linux")]
fn no_thread_wakes_while_the_connection_is_down() {
    let refuse =
        |peer: &mut Peer| -> io::Result<()> { peer.refuse(503, "Retry-After: 3600\r\n", "") };
    let server = TestServer::start(refuse);
    let client =
        Client::builder(server.url()).retry_after_max(180 * SOON).start().expect("it starts");
    let failure = client.events().next_timeout(SOON).expect("the dial fails");
    assert!(matches!(failure, Event::DialFailed(_)), "{failure:?}");
    // It takes a moment until both threads have their names and fall asleep. The test passes once
    // neither has woken for half a second.
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let before = sleeps();
        std::thread::sleep(Duration::from_millis(500));
        if before.len() == 2 && sleeps() == before {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "they keep waking: {before:?}, {:?}",
            sleeps()
        );
    }
    drop(client);
}

/// The reader learns of a reset only when the handler returns. Until then pings fail, and whatever
/// is due after them stays due.
#[cfg(target_os = "linux")]
fn the_heartbeat_does_not_spin_while_a_busy_handler_hides_a_reset() {
    let (go, gone) = bounded::<()>(0);
    let server = TestServer::start(move |peer| {
        peer.upgrade()?;
        peer.send_text("work")?;
        assert!(gone.recv().is_err());
        peer.reset()
    });
    let (release, held) = bounded::<()>(0);
    let (tell, told) = bounded(1);
    let handler = move |_: &mut Connection<'_>, _: MessageRef<'_>| {
        tell.send(()).expect("the test waits");
        assert!(held.recv().is_err());
    };
    let interval = Duration::from_millis(20);
    let client = Client::builder(server.url())
        .ping_interval(interval)
        .app_ping(AppPing::text("ping", interval))
        .start_with(handler)
        .expect("it starts");
    told.recv_timeout(SOON).expect("the handler is called");
    drop(go);
    assert!(server.wait_until_all_closed(SOON));
    // Some pings later everything that can fail has failed. The test passes once the thread has
    // done little for half a second.
    std::thread::sleep(5 * interval);
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let before = heartbeat_ticks();
        std::thread::sleep(Duration::from_millis(500));
        if heartbeat_ticks() - before < 15 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the heartbeat spins");
    }
    drop(release);
    drop(client);
}

/// Returns the CPU time of the heartbeat thread, in hundredths of a second.
#[cfg(target_os = "linux")]
fn heartbeat_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
    tasks
        .filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            let (name, fields) = stat.rsplit_once(')')?;
            let fields: Vec<u64> = fields
                .split_whitespace()
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse().ok())
                .collect();
            name.ends_with("taut-heartbeat").then(|| fields.iter().sum::<u64>())
        })
        .sum()
}

/// Returns how often each thread of the library has gone to sleep.
#[cfg(target_os = "linux")]
fn sleeps() -> Vec<(String, String)> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let mut found: Vec<_> = tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
            name.starts_with("taut-").then(|| (name.trim().to_owned(), line.to_owned()))
        })
        .collect();
    found.sort();
    found
}

/// The heartbeat thread logs the ping that it writes.
fn a_logger_that_panics_on_the_heartbeat_thread_ends_the_client_with_its_reason() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.drain()
    });
    PANICS.store(true, Ordering::SeqCst);
    let client = Client::builder(server.url())
        .ping_interval(Duration::from_millis(1))
        .start()
        .expect("it starts");
    let reason = client.wait_closed(SOON).expect("the panic ends it");
    PANICS.store(false, Ordering::SeqCst);
    assert_eq!(reason.kind(), ErrorKind::Io, "{reason}");
    let told = client.events().find_map(|event| match event {
        Event::Stopped(stopped) => Some(stopped.reason.kind()),
        _ => None,
    });
    assert_eq!(told, Some(ErrorKind::Io));
    assert!(client.stop(SOON).is_clean());
}

/// The sender by which the logger sends a message when a pong is logged, once.
static SENDER: Mutex<Option<tautline::Sender>> = Mutex::new(None);

fn a_logger_may_send_by_the_client_that_it_logs() {
    let server = TestServer::start(|peer| {
        peer.upgrade()?;
        peer.ping(b"ping")?;
        peer.echo()
    });
    let client = Client::builder(server.url()).ping_interval(None).start().expect("it starts");
    *SENDER.lock() = Some(client.sender());
    let mut events = client.events();
    let began = std::time::Instant::now();
    loop {
        match events.next_timeout(SOON).expect("the server sends back what the logger sent") {
            Event::Message(message) => break assert_eq!(message.text(), Some("from the logger")),
            _ => continue,
        }
    }
    // Under a lock of the client's the logger's send would run into `send_timeout`.
    assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
    assert!(client.stop(SOON).is_clean());
}
