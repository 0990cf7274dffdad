//! Measures how long one connection takes to open and to stop, and then many connections in one
//! process: how long they take to open, to exchange messages, to come back after the server has
//! dropped them all, and to stop, and how much memory each of them uses.
//!
//! `cargo bench --bench connections [-- COUNT]` runs it, with 1,000 connections by default. The
//! server is a process of its own. With `--features rustls` and `ENGINE=rustls` in the environment
//! rustls does TLS.

mod cpu;
mod engine;

use std::alloc::System;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tautline::testing::TestServer;
use tautline::{Builder, Client, Connection, Disconnect, Handler, MessageRef, Push};

use cpu::cpu;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The environment variable of the server's process.
const SERVER: &str = "TAUTLINE_CONNECTIONS_SERVER";

/// The number of times that a single connection is opened and stopped.
const ROUNDS: usize = 201;

/// The number of messages that each connection sends and gets back.
const EXCHANGES: usize = 10;

fn main() {
    // A connection takes two descriptors, and two more while it dials.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("the soft limit may be raised");
    match std::env::var(SERVER).as_deref() {
        Ok(kind) => serve(kind == "tls"),
        _ => {
            let count = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1000);
            measure(count, false);
            measure(count, true);
        }
    }
}

/// Runs the server. Each line of standard input makes it drop every connection.
fn serve(is_tls: bool) {
    let builder = TestServer::builder().discard_messages();
    let builder = if is_tls { builder.tls() } else { builder };
    let server = builder.start(|peer| {
        peer.upgrade()?;
        peer.echo()
    });
    println!("{}", server.url());
    for _ in std::io::stdin().lock().lines().map_while(Result::ok) {
        server.abort_all();
    }
}

struct Server {
    process: Child,
    orders: ChildStdin,
    url: String,
}

impl Server {
    fn start(is_tls: bool) -> Server {
        let own = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(own);
        command
            .env(SERVER, if is_tls { "tls" } else { "plain" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = command.spawn().expect("the server's process can be started");
        let mut url = String::new();
        let output = process.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut url).expect("it prints its URL");
        let orders = process.stdin.take().expect("it is piped");
        Server { process, orders, url: url.trim().to_owned() }
    }
}

enum Progress {
    Opened,
    Answered,
    Ended,
}

/// Reports the progress of a connection.
struct Reporter {
    to: Sender<Progress>,
    answers: usize,
}

impl Handler for Reporter {
    fn opened(&mut self, _: &mut Connection<'_>) {
        self.answers = 0;
        self.to.send(Progress::Opened).ok();
    }

    fn message(&mut self, _: &mut Connection<'_>, _: MessageRef<'_>) {
        self.answers += 1;
        if self.answers == EXCHANGES {
            self.to.send(Progress::Answered).ok();
        }
    }

    fn disconnected(&mut self, _: &Disconnect) {
        self.to.send(Progress::Ended).ok();
    }
}

fn measure(count: usize, is_tls: bool) {
    let mut server = Server::start(is_tls);
    let (to, progress) = channel();
    let reporter = || Reporter { to: to.clone(), answers: 0 };
    let builder = engine::chosen(Client::builder(server.url.as_str()))
        .tls_root(TestServer::root_pem())
        .thread_stack_size(256 * 1024);
    // The first connection pays for what the process keeps, such as the roots of TLS. It is not
    // counted.
    let first = builder.clone().start_with(reporter()).expect("it starts");
    await_all(&progress, 1, &mut 0, |step| matches!(step, Progress::Opened));
    measure_one(&server.url, &builder, is_tls);
    let (heap, resident) = (live_heap(), field("VmRSS:"));
    let mut threads = 0;

    let opening = Instant::now();
    let clients: Vec<Client<Push>> = (0..count)
        .map(|_| builder.clone().start_with(reporter()).expect("there are threads"))
        .collect();
    await_all(&progress, count, &mut threads, |step| matches!(step, Progress::Opened));
    let opened = opening.elapsed();
    let heap = (live_heap() - heap) / count;
    let resident = (field("VmRSS:") - resident) / count;

    let exchanging = Instant::now();
    for _ in 0..EXCHANGES {
        clients.iter().for_each(|client| drop(client.send_text("hello")));
    }
    await_all(&progress, count, &mut threads, |step| matches!(step, Progress::Answered));
    let exchanged = exchanging.elapsed();

    let dropping = Instant::now();
    writeln!(server.orders, "drop").expect("the server lives");
    await_all(&progress, count + 1, &mut threads, |step| matches!(step, Progress::Opened));
    let back = dropping.elapsed();

    let stopping = Instant::now();
    clients.iter().for_each(|client| client.stopper().request_stop());
    let clean =
        clients.iter().filter(|client| client.stop(Duration::from_secs(5)).is_clean()).count();
    let stopped = stopping.elapsed();
    drop(first);
    println!(
        "{count} connections, {}: open after {opened:.2?}, {EXCHANGES} answers on each after \
         {exchanged:.2?}, all back {back:.2?} after a drop of all, stopped after {stopped:.2?} \
         ({clean} clean); {threads} threads at most, {:.1} KiB of live heap and {resident} KiB \
         resident per connection",
        if is_tls { "TLS" } else { "plain" },
        heap as f64 / 1024.0,
    );
    drop(server.orders);
    server.process.wait().expect("it is a child of ours");
}

/// Measures one connection at a time, and tungstenite's blocking client, which starts no thread,
/// for comparison. Neither reads the system's roots while it is measured.
fn measure_one(url: &str, builder: &Builder, is_tls: bool) {
    let address = url.split('/').nth(2).expect("a URL has a host");
    let root =
        native_tls::Certificate::from_pem(TestServer::root_pem()).expect("it is a certificate");
    let connector = native_tls::TlsConnector::builder()
        .disable_built_in_roots(true)
        .add_root_certificate(root)
        .build();
    let connector = connector.expect("the settings are good");
    let (mut opened, mut stopped, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut our_cpu, mut their_cpu) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let (dialing, before) = (Instant::now(), cpu());
        let client = builder.clone().connect().expect("the server listens");
        opened.push(dialing.elapsed());
        let stopping = Instant::now();
        assert!(client.stop(Duration::from_secs(5)).is_clean());
        stopped.push(stopping.elapsed());
        our_cpu += cpu() - before;

        let (dialing, before) = (Instant::now(), cpu());
        let tcp = TcpStream::connect(address).expect("the server listens");
        tcp.set_nodelay(true).expect("it is connected");
        if is_tls {
            let tls = connector.connect("localhost", tcp).expect("the certificate is known");
            tungstenite::client(url, tls).expect("the server answers");
        } else {
            tungstenite::client(url, tcp).expect("the server answers");
        }
        theirs.push(dialing.elapsed());
        their_cpu += cpu() - before;
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[ROUNDS / 2]
    };
    println!(
        "one connection, {}: open after {:.1?} (tungstenite's blocking client {:.1?}), \
         stopped after {:.1?}; medians of {ROUNDS}. CPU of opening and stopping {:.1?} \
         ({:.1?})",
        if is_tls { "TLS" } else { "plain" },
        median(&mut opened),
        median(&mut theirs),
        median(&mut stopped),
        our_cpu / ROUNDS as u32,
        their_cpu / ROUNDS as u32,
    );
}

/// Waits for `count` reports of one kind, and records the highest number of threads seen.
fn await_all(
    progress: &Receiver<Progress>,
    count: usize,
    threads: &mut usize,
    is_kind: impl Fn(&Progress) -> bool,
) {
    let mut left = count;
    while left > 0 {
        let next =
            progress.recv_timeout(Duration::from_secs(60)).expect("progress within a minute");
        left -= usize::from(is_kind(&next));
        if left % 100 == 0 {
            *threads = (*threads).max(field("Threads:"));
        }
    }
}

fn live_heap() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Returns a field of `/proc/self/status`, in its own unit.
fn field(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}
