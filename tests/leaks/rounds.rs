//! A hundred clients connect to one loopback server, exchange messages and stop, ten rounds in a
//! row. Threads, descriptors, live heap bytes and resident memory stay flat. The same holds with
//! `Drop`, if the server goes first, over TLS, and for hundreds of dials that fail at each step.

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

/// The environment variable of the run that counts.
const TUNED: &str = "TAUTLINE_LEAKS_TUNED";

const CLIENTS: usize = 100;
const ROUNDS: usize = 10;
const SOON: Duration = Duration::from_secs(20);

/// The largest growth of the heap in ten rounds that passes: far less than one client holds.
const HEAP_SLACK: isize = 64 * 1024;

/// The largest growth of resident memory between the first and the last round that passes.
const RESIDENT_SLACK: usize = 2 << 20;

pub(crate) fn run() {
    if std::env::var_os(TUNED).is_none() {
        std::process::exit(run_tuned());
    }
    a_leak_is_found_even_if_something_else_has_gone_meanwhile();
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
    check("the server goes first", || {
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
    check("refused connections", refused_dials);
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
    // Each of these dials reads the system's roots anew, which takes a tenth of a second, so there
    // are only a few of them.
    let server = TestServer::builder().tls_wrong_host().start(|_| Ok(()));
    check("certificates for another host", || dials_that_fail(&server, 5, SOON));
}

/// Each thread and descriptor is compared by its identity: one that has gone does not offset one
/// that has leaked.
fn a_leak_is_found_even_if_something_else_has_gone_meanwhile() {
    let early = File::open("/dev/null").expect("it is there");
    let before = ResourceSnapshot::take();
    drop(early);
    let leaked = TcpListener::bind("127.0.0.1:0").expect("a port");
    let more = before.wait_for_no_leaks().expect_err("a socket is left behind");
    assert!(more.contains("socket:["), "{more}");
    drop(leaked);
}

/// Runs this program again with a C library that returns free memory to the system. Its caches
/// otherwise (arenas, stacks of ended threads) vary by megabytes from round to round, and could
/// hide a leak or look like one.
fn run_tuned() -> i32 {
    let tunables = [
        "glibc.malloc.arena_max=1",
        "glibc.malloc.trim_threshold=131072",
        "glibc.pthread.stack_cache_size=0",
    ];
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.env("GLIBC_TUNABLES", tunables.join(":")).env(TUNED, "1");
    let status = command.status().expect("it can be run again");
    status.code().unwrap_or(1)
}

/// Makes parking_lot's table of waiting threads grow now. It grows with the largest number of
/// threads that have existed, and never shrinks.
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

/// Opens a hundred clients, exchanges a message on each, and ends them with `end`.
fn round(server: &TestServer, end: impl FnOnce(&mut Vec<Client>, &TestServer)) {
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|_| {
            Client::builder(server.url())
                .name("leaks")
                .tls_root(TestServer::root_pem())
                // Reading the system's roots for every client would take too long.
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
    // What the server remembers is not the client's memory.
    server.clear_messages();
}

fn stop(client: &Client) {
    let report = client.stop(SOON);
    assert!(report.is_clean(), "{report}");
}

/// Dials a port that nobody listens on a hundred times, so a thousand times in ten rounds.
fn refused_dials() {
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port");
    failing_dials(&format!("ws://localhost:{}/", address.port()), 100, SOON);
}

/// Dials a server `count` times. Every dial fails at the step at which the server breaks it.
fn dials_that_fail(server: &TestServer, count: usize, timeout: Duration) {
    failing_dials(&server.url(), count, timeout);
    assert!(server.wait_until_all_closed(SOON));
    server.clear_messages();
}

/// Dials `count` times, which all have to fail, and stops the client.
fn failing_dials(url: &str, count: usize, timeout: Duration) {
    let builder = Client::builder(url)
        .tls_root(TestServer::root_pem())
        .tls_only_given_roots()
        // Retried whatever the error, which may be a timeout on a busy machine.
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

/// Returns the resident memory of the process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let row = status.lines().find(|row| row.starts_with("VmRSS:")).expect("Linux tells it");
    let kib: usize =
        row.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kib * 1024
}
