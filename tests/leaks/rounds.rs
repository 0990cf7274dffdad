//! A hundred clients connect to one loopback server, exchange messages and stop, ten rounds in a
//! row: threads, descriptors, live heap bytes and resident memory stay flat. The same with `Drop`,
//! with the server gone first, over TLS, and over dials by the hundred that fail, at every step of
//! a dial.

use std::alloc::System;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tautline::testing::{Peer, ResourceSnapshot, TestServer, TestServerBuilder, assert_no_leaks};
use tautline::{Client, Event, RetryDecision};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Set for the run that counts.
const TUNED: &str = "TAUTLINE_LEAKS_TUNED";

const CLIENTS: usize = 100;
const ROUNDS: usize = 10;
const SOON: Duration = Duration::from_secs(20);

/// What the heap may have grown by in ten rounds: far less than one client holds.
const HEAP_SLACK: isize = 64 * 1024;

/// What resident memory may have grown by between the first and the last round.
const RESIDENT_SLACK: usize = 2 << 20;

pub(crate) fn run() {
    if std::env::var_os(TUNED).is_none() {
        std::process::exit(run_tuned());
    }
    a_leak_behind_what_has_gone_is_found();
    park_many_threads();
    let echo = || {
        TestServer::start(|peer| {
            peer.upgrade()?;
            peer.echo()
        })
    };
    let server = echo();
    check("stop", || round(&server, |clients, _| clients.iter().for_each(stop)));
    check("drop", || round(&server, |clients, _| clients.clear()));
    drop(server);
    check("the server gone first", || {
        let server = echo();
        round(&server, |clients, server| {
            server.abort_all();
            clients.iter().for_each(stop);
        });
    });
    let server = TestServer::builder().tls().start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    check("TLS", || round(&server, |clients, _| clients.iter().for_each(stop)));
    drop(server);
    check("dials that nobody answers", dials_that_nobody_answers);
    let fails =
        |name: &str, builder: TestServerBuilder, script: fn(&mut Peer) -> io::Result<()>| {
            let server = builder.start(script);
            check(name, || dials_that_fail(&server, 100, SOON));
        };
    fails("refusals", TestServer::builder(), |peer| peer.refuse(503, "", "busy"));
    fails("refusals over TLS", TestServer::builder().tls(), |peer| peer.refuse(503, "", "busy"));
    fails("ends in the upgrade", TestServer::builder().tls(), |peer| peer.read_request().map(drop));
    let server = TestServer::start(|peer| peer.drain());
    check("silence in the upgrade", || dials_that_fail(&server, 100, Duration::from_millis(2)));
    // Each of these reads the roots anew, a tenth of a second of work: a few have to do.
    let server = TestServer::builder().tls_wrong_host().start(|_| Ok(()));
    check("certificates of strangers", || dials_that_fail(&server, 5, SOON));
}

/// Each thread and each descriptor counts for itself: that others have gone meanwhile makes up for
/// nothing.
fn a_leak_behind_what_has_gone_is_found() {
    let early = File::open("/dev/null").expect("it is there");
    let before = ResourceSnapshot::take();
    drop(early);
    let leaked = TcpListener::bind("127.0.0.1:0").expect("a port");
    let more = before.wait_for_no_leaks().expect_err("a socket is left behind");
    assert!(more.contains("socket:["), "{more}");
    drop(leaked);
}

/// Runs this program again with a C library that gives back what it does not need: what it keeps
/// for later (arenas, stacks of ended threads) varies by megabytes from round to round, and would
/// hide a leak or be taken for one.
fn run_tuned() -> i32 {
    let tunables = "glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=131072:glibc.pthread.stack_cache_size=0";
    let program = std::env::current_exe().expect("the system knows it");
    let mut command = Command::new(program);
    command.env("GLIBC_TUNABLES", tunables).env(TUNED, "1");
    let status = command.status().expect("it can be run again");
    status.code().unwrap_or(1)
}

/// parking_lot's table of waiting threads grows with the largest number of them there has been, and
/// never shrinks: let it grow now.
fn park_many_threads() {
    let gate = (Mutex::new(0), Condvar::new());
    let threads = 10 * CLIENTS;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let small = std::thread::Builder::new().stack_size(64 * 1024);
            let parked = small.spawn_scoped(scope, || {
                let mut parked = gate.0.lock();
                *parked += 1;
                gate.1.notify_all();
                while *parked < threads {
                    gate.1.wait(&mut parked);
                }
            });
            parked.expect("there are threads");
        }
    });
}

/// Runs a warm-up round and ten more, and checks that nothing grows.
fn check(name: &str, mut round: impl FnMut()) {
    println!("{name}");
    round();
    let heap_before = live_heap();
    let mut resident_after_first = 0;
    for number in 1..=ROUNDS {
        assert_no_leaks(&mut round);
        if number == 1 {
            resident_after_first = resident();
        }
    }
    let grown = live_heap() - heap_before;
    let resident_grown = resident().saturating_sub(resident_after_first);
    println!("    heap {grown:+} bytes, resident +{} KiB", resident_grown / 1024);
    assert!(grown <= HEAP_SLACK, "{name}: the heap has grown by {grown} bytes");
    assert!(
        resident_grown <= RESIDENT_SLACK,
        "{name}: resident memory has grown by {resident_grown} bytes"
    );
}

fn round(server: &TestServer, end: impl FnOnce(&mut Vec<Client>, &TestServer)) {
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            Client::builder(server.url())
                .tls_root(TestServer::root_pem())
                // Reading the system's roots a thousand times is not what is tested.
                .tls_only_given_roots()
                .thread_stack_size(256 * 1024)
                .connect()
                .expect("it opens")
        })
        .collect();
    for client in &clients {
        client.send_text("hello").expect("the connection is open");
    }
    for client in &clients {
        let echo = client.events().find_map(|event| match event {
            Event::Message(message) => message.into_text().ok(),
            _ => None,
        });
        assert_eq!(echo.as_deref(), Some("hello"));
    }
    end(&mut clients, server);
    for client in &clients {
        assert_eq!(client.live_threads(), 0);
    }
    drop(clients);
    assert!(server.wait_until_all_closed(SOON));
    // What the server remembers is its own.
    server.clear_messages();
}

fn stop(client: &Client) {
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
}

/// A hundred dials where nobody listens: a thousand in ten rounds.
fn dials_that_nobody_answers() {
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port");
    failing_dials(&format!("ws://localhost:{}/", address.port()), 100, SOON);
}

/// Dials that fail at the step where the server makes them fail.
fn dials_that_fail(server: &TestServer, count: usize, timeout: Duration) {
    failing_dials(&server.url(), count, timeout);
    assert!(server.wait_until_all_closed(SOON));
    server.clear_messages();
}

fn failing_dials(url: &str, count: usize, timeout: Duration) {
    let builder = Client::builder(url)
        .tls_root(TestServer::root_pem())
        .tls_only_given_roots()
        // Whatever it is that fails, and be it that a busy machine is late.
        .retry_policy(|_, _| RetryDecision::Retry)
        .connect_timeout(timeout);
    let builder = builder
        .retry_delay_min(Duration::from_nanos(1))
        .retry_delay_max(Duration::from_nanos(1))
        .max_attempts(count as u32);
    let client = builder.start().expect("it starts");
    assert_eq!(
        client.events().filter(|event| matches!(event, Event::DialFailed(_))).count(),
        count
    );
    stop(&client);
}

fn live_heap() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// Resident memory in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells it");
    let kib: usize =
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kib * 1024
}
