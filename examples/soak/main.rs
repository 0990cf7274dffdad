//! Runs many connections against a server that misbehaves at random, and sessions with exchanges
//! that do, and checks every message, send, epoch, topic and call, and the use of threads,
//! descriptors and memory.
//!
//! `cargo run --release --example soak -- --connections 100 --for 30m` is the long run; without
//! options it takes ten seconds. The seed decides what the server does to each connection. The
//! timing varies from run to run.

mod delivery;
mod sessions;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
#[cfg(target_os = "linux")]
use tautline::testing::ResourceSnapshot;
use tautline::testing::{Peer, Received, TestServer};
use tautline::{
    Client, Connection, Disconnect, EventRef, Handler, MessageRef, Opened, SendError, Sender,
    StopReport, Stopped, WokenContext,
};

use delivery::Running;

const HELP: &str = "\
Runs many connections against a server that misbehaves at random, and checks that no message is
lost, repeated or misreported. The exit status is 0 if every check passed, and 1 otherwise

Usage: soak [OPTIONS]

Options:
      --connections <CONNECTIONS>  The number of clients, each with one connection [default: 20]
      --for <DURATION>             Stop after this long [default: 10s]
      --seed <SEED>                The seed of the server's misbehavior [default: 1]
      --senders <SENDERS>          The number of threads that send, each through every client
                                   [default: 4]
      --sessions <SESSIONS>        The number of sessions, each with a simulated exchange of its own
                                   [default: 10, one of each kind]
  -h, --help                       Print help
  -V, --version                    Print version
";

struct Options {
    connections: usize,
    duration: Duration,
    seed: u64,
    senders: usize,
    sessions: usize,
}

impl Options {
    fn parse() -> Result<Self, lexopt::Error> {
        let mut options = Options {
            connections: 20,
            duration: Duration::from_secs(10),
            seed: 1,
            senders: 4,
            sessions: sessions::DEFAULT,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("connections") => options.connections = parser.value()?.parse()?,
                Long("for") => {
                    options.duration = parser.value()?.parse_with(humantime::parse_duration)?;
                }
                Long("seed") => options.seed = parser.value()?.parse()?,
                Long("senders") => options.senders = parser.value()?.parse()?,
                Long("sessions") => options.sessions = parser.value()?.parse()?,
                Short('h') | Long("help") => {
                    print!("{HELP}");
                    process::exit(0);
                }
                Short('V') | Long("version") => {
                    println!("soak {}", env!("CARGO_PKG_VERSION"));
                    process::exit(0);
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    env_logger::init();
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("soak: {error}; --help lists the options");
            return ExitCode::from(2);
        }
    };
    let (report, leaks) = counting(|| run(&options));
    report.print(&options);
    match &leaks {
        Ok(()) => println!("threads and descriptors: as before"),
        Err(difference) => println!("LEFT BEHIND: {difference}"),
    }
    if report.faults.is_empty() && leaks.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Calls `run`, and also returns a description of the threads and descriptors that it left behind.
#[cfg(target_os = "linux")]
fn counting<T>(run: impl FnOnce() -> T) -> (T, Result<(), String>) {
    let before = ResourceSnapshot::take();
    let result = run();
    (result, before.wait_for_no_leaks())
}

/// Elsewhere only the clients' own threads are counted.
#[cfg(not(target_os = "linux"))]
fn counting<T>(run: impl FnOnce() -> T) -> (T, Result<(), String>) {
    (run(), Ok(()))
}

/// Everything known about one client and its connections, from both ends.
#[derive(Default)]
struct Record {
    sends: Mutex<Sends>,
    /// The number of messages of each epoch that pongs have confirmed.
    confirmed: Mutex<BTreeMap<u64, u64>>,
    messages: AtomicU64,
    /// The number of messages that a full queue lost, as told.
    lost: AtomicU64,
    woken: AtomicU64,
    openings: AtomicU64,
    ends: Mutex<BTreeMap<&'static str, u64>>,
    faults: Mutex<Vec<String>>,
    has_stopped: AtomicBool,
}

/// The age at which a send is settled. No connection lives this long, so the server has read the
/// message by then or never will.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// The sends of one client. Settled sends are only counted, so that memory stays flat in a long
/// run.
#[derive(Default)]
struct Sends {
    /// The id of the first send in the queue.
    first: usize,
    unsettled: VecDeque<Send>,
    settled: BTreeMap<&'static str, u64>,
}

struct Send {
    began: Instant,
    outcome: Outcome,
    /// The number of times that the server has read it.
    arrivals: u8,
    /// Its position among the messages that the server has read from that connection, from 1.
    place: u64,
}

impl Sends {
    fn begin(&mut self) -> usize {
        self.unsettled.push_back(Send {
            began: Instant::now(),
            outcome: Outcome::Begun,
            arrivals: 0,
            place: 0,
        });
        self.first + self.unsettled.len() - 1
    }

    fn find(&mut self, id: usize) -> Option<&mut Send> {
        self.unsettled.get_mut(id.checked_sub(self.first)?)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// The send has not returned yet.
    Begun,
    Taken {
        epoch: u64,
        sequence: u64,
    },
    NotSent,
    Unknown,
}

impl Record {
    fn fault(&self, what: String) {
        let mut faults = self.faults.lock();
        // A single broken check may fail a million times.
        if faults.len() < 20 {
            faults.push(what);
        }
    }

    /// Checks the sends that began before this time: each arrived once or not at all, as its
    /// outcome promises.
    fn settle(&self, before: Instant) {
        let mut sends = self.sends.lock();
        let confirmed = self.confirmed.lock();
        while sends.unsettled.front().is_some_and(|send| send.began < before) {
            let Some(Send { outcome, arrivals, place, .. }) = sends.unsettled.pop_front() else {
                break;
            };
            let id = sends.first;
            sends.first += 1;
            let is_confirmed = matches!(outcome, Outcome::Taken { epoch, sequence }
                if confirmed.get(&epoch).is_some_and(|confirmed| sequence <= *confirmed));
            // The n-th message read from a connection is the n-th sent on it: nothing is lost,
            // repeated or reordered.
            if let (Outcome::Taken { sequence, .. }, 1) = (outcome, arrivals) {
                if place != sequence {
                    self.fault(format!(
                        "send {id} was sent as number {sequence} and read as number {place}"
                    ));
                }
            }
            let kind = match (outcome, arrivals) {
                (Outcome::Taken { .. }, 1) => "taken by the kernel, read by the server",
                (Outcome::Taken { .. }, 0) if !is_confirmed => {
                    "taken by the kernel, lost with the connection"
                }
                (Outcome::NotSent, 0) => "not sent",
                (Outcome::Unknown, 0) => "unknown, and lost",
                (Outcome::Unknown, 1) => "unknown, and read by the server",
                _ => {
                    let note = if is_confirmed { " and confirmed" } else { "" };
                    self.fault(format!("send {id}: {outcome:?}{note}, read {arrivals} times"));
                    "FAULTY"
                }
            };
            *sends.settled.entry(kind).or_default() += 1;
        }
    }
}

/// The receiver of a client's events. Checks that messages come in order, that the loss of each
/// that does not come is told in its place, that epochs rise by one, and that each opening has one
/// end.
struct Check {
    record: Arc<Record>,
    epoch: u64,
    is_open: bool,
    /// The server's number for the current connection, taken from its first message.
    server_connection: Option<u64>,
    /// The number of the next message.
    next: u64,
    /// The number of messages since the last end of a batch.
    in_batch: u64,
}

impl Check {
    fn event(&mut self, event: EventRef<'_>) {
        match event {
            EventRef::Opened(opened) => self.note_opened(opened),
            EventRef::Message(message) => self.note_message(message),
            EventRef::Disconnected(disconnect) => self.note_disconnected(disconnect),
            EventRef::Lagged(lag) => {
                self.next += lag.lost;
                self.record.lost.fetch_add(lag.lost, Ordering::Relaxed);
                if lag.lost_notices > 0 {
                    self.record.fault(format!("{} notices were lost", lag.lost_notices));
                }
            }
            EventRef::Stopped(_) => self.note_stopped(),
            _ => {}
        }
    }

    fn note_opened(&mut self, opened: &Opened) {
        if self.is_open || opened.epoch != self.epoch + 1 {
            self.record.fault(format!(
                "epoch {} opened after {} (open: {})",
                opened.epoch, self.epoch, self.is_open
            ));
        }
        (self.epoch, self.is_open, self.server_connection, self.next) =
            (opened.epoch, true, None, 0);
        self.record.openings.fetch_add(1, Ordering::Relaxed);
    }

    fn note_message(&mut self, message: MessageRef<'_>) {
        let mut words = message.text().unwrap_or_default().split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(server_connection), Some(number)) = (number(), number()) else {
            self.record.fault("a message that nobody has sent".to_owned());
            return;
        };
        let known = *self.server_connection.get_or_insert(server_connection);
        if !self.is_open
            || message.epoch() != self.epoch
            || known != server_connection
            || number != self.next
        {
            let expected = self.next;
            self.record.fault(format!(
                "message {number} of server connection {server_connection} came instead of \
                 {expected} of {known}"
            ));
        }
        self.next = number + 1;
        self.record.messages.fetch_add(1, Ordering::Relaxed);
    }

    fn note_disconnected(&mut self, disconnect: &Disconnect) {
        if !self.is_open || disconnect.epoch != self.epoch {
            self.record.fault(format!(
                "epoch {} ended after {} (open: {})",
                disconnect.epoch, self.epoch, self.is_open
            ));
        }
        if disconnect.confirmed > disconnect.sent {
            self.record
                .fault(format!("{} confirmed of {} sent", disconnect.confirmed, disconnect.sent));
        }
        self.is_open = false;
        let mut confirmed = self.record.confirmed.lock();
        confirmed.insert(disconnect.epoch, disconnect.confirmed);
        // Sends of older epochs are settled by then, because reconnecting takes a moment.
        while confirmed.len() > 1_000 {
            confirmed.pop_first();
        }
        drop(confirmed);
        *self.record.ends.lock().entry(disconnect.error.kind().as_str()).or_default() += 1;
    }

    fn note_stopped(&mut self) {
        if self.is_open || self.record.has_stopped.swap(true, Ordering::Relaxed) {
            self.record.fault("stopped twice, or with a connection open".to_owned());
        }
    }
}

impl Handler for Check {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        self.note_opened(connection.opening());
        self.in_batch = 0;
        connection.wake_at(Instant::now());
    }

    fn message(&mut self, _: &mut Connection<'_>, message: MessageRef<'_>) {
        self.note_message(message);
        self.in_batch += 1;
    }

    fn batch_end(&mut self, _: &mut Connection<'_>) {
        if std::mem::take(&mut self.in_batch) == 0 {
            self.record.fault("the end of a batch without messages".to_owned());
        }
    }

    fn woken(&mut self, context: &mut WokenContext<'_>) {
        if context.connection().is_some() != self.is_open {
            self.record.fault(format!("woken: {context:?} (open: {})", self.is_open));
        }
        self.record.woken.fetch_add(1, Ordering::Relaxed);
        context.wake_at(Instant::now() + Duration::from_millis(50));
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        self.note_disconnected(disconnect);
    }

    fn stopped(&mut self, _: &Stopped) {
        self.note_stopped();
    }
}

fn run(options: &Options) -> Report {
    let records: Arc<Vec<Arc<Record>>> =
        Arc::new((0..options.connections).map(|_| Arc::default()).collect());
    let (seed, kept) = (options.seed, Arc::clone(&records));
    let server =
        TestServer::builder().discard_messages().start(move |peer| misbehave(peer, seed, &kept));
    let mut clients: Vec<Running> = records
        .iter()
        .enumerate()
        .map(|(index, record)| {
            let check = Check {
                record: Arc::clone(record),
                epoch: 0,
                is_open: false,
                server_connection: None,
                next: 0,
                in_batch: 0,
            };
            let builder = Client::builder(format!("{}{index}", server.url()))
                .retry_delay_min(Duration::from_millis(5))
                .retry_delay_max(Duration::from_millis(100))
                .ping_interval(Duration::from_millis(100))
                .pong_timeout(Duration::from_millis(300))
                .send_timeout(Duration::from_millis(100))
                .close_timeout(Duration::from_millis(100))
                .tcp_send_buffer(16 * 1024)
                .thread_stack_size(256 * 1024);
            Running::start(builder, check, seed.wrapping_add(index as u64))
        })
        .collect();

    let mut samples = Vec::new();
    let began = Instant::now();
    let is_over = AtomicBool::new(false);
    let totals = thread::scope(|scope| {
        let sessions = scope.spawn(|| sessions::run(options.sessions, seed, &is_over));
        for _ in 0..options.senders {
            scope.spawn(|| send(&clients, &records, &is_over));
        }
        let interval = (options.duration / 60).max(Duration::from_millis(100));
        while began.elapsed() < options.duration {
            thread::park_timeout(interval.min(options.duration.saturating_sub(began.elapsed())));
            let settled = Instant::now().checked_sub(SETTLED_AFTER);
            records
                .iter()
                .for_each(|record| settled.into_iter().for_each(|before| record.settle(before)));
            samples.push(Sample::take(&clients));
        }
        is_over.store(true, Ordering::Relaxed);
        sessions.join().expect("it does not panic")
    });
    let stops: Vec<StopReport> =
        clients.iter_mut().map(|client| client.stop(Duration::from_secs(10))).collect();
    let connections = server.connections();
    drop(clients);
    // Messages in flight arrive, or are lost with their connection.
    server.wait_until_all_closed(Duration::from_secs(10));
    drop(server);
    Report::new(options, &records, &stops, connections, totals, samples, began.elapsed())
}

/// The pause of a sending thread between two rounds over all connections.
const PAUSE: Duration = Duration::from_millis(10);

/// Sends numbered messages on every connection in turn, and records the outcome of each.
fn send(clients: &[Running], records: &[Arc<Record>], is_over: &AtomicBool) {
    let senders: Vec<Sender> = clients.iter().map(Running::sender).collect();
    while !is_over.load(Ordering::Relaxed) {
        for (sender, record) in senders.iter().zip(records) {
            let id = record.sends.lock().begin();
            // Most messages are small, and some are larger than a socket buffer.
            let padding = if id % 101 == 0 { 200_000 } else { id % 300 };
            let outcome = match sender.send_text(&format!("{id} {}", "x".repeat(padding))) {
                Ok(receipt) => Outcome::Taken { epoch: receipt.epoch, sequence: receipt.sequence },
                Err(SendError::NotSent(_)) => Outcome::NotSent,
                Err(_) => Outcome::Unknown,
            };
            if id % 7 == 0 {
                // Only clients with a handler can be woken.
                let _ = sender.wake();
            }
            match record.sends.lock().find(id) {
                Some(send) => send.outcome = outcome,
                None => record.fault(format!("send {id} took longer than {SETTLED_AFTER:?}")),
            }
        }
        // The server keeps up most of the time: faults are tested, not load.
        thread::park_timeout(PAUSE);
    }
}

/// Plays the server's side of one connection.
fn misbehave(peer: &mut Peer, seed: u64, records: &[Arc<Record>]) -> io::Result<()> {
    let mut rng =
        StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(peer.number() as u64));
    match rng.random_range(0..20) {
        0 => return peer.refuse(503, "Retry-After: 0\r\n", "busy"),
        1 => return Ok(()),
        2 => {
            peer.read_request()?;
            return peer.write(b"HTTP/1.1 101 Swit");
        }
        _ => {}
    }
    let request = peer.upgrade()?;
    // Buffers on both sides are small, so that some sends break off in the middle.
    peer.limit_receive_buffer(16 * 1024)?;
    let index: usize = request.path.trim_start_matches('/').parse().map_err(io::Error::other)?;
    let record = records.get(index).ok_or(io::ErrorKind::NotFound)?;
    let lifetime = Duration::from_millis(rng.random_range(0..1500));
    let began = Instant::now();
    let (mut number, mut read) = (0u64, 0u64);
    while began.elapsed() < lifetime {
        for _ in 0..rng.random_range(0..20) {
            let text =
                format!("{} {number} {}", peer.number(), "y".repeat(rng.random_range(0..300)));
            number += 1;
            peer.send_text(&text)?;
        }
        while let Some(received) = peer.receive_timeout(Duration::from_millis(1))? {
            match received {
                Received::Text(text) => {
                    read += 1;
                    arrived(record, &text, read);
                }
                Received::Ping(payload) => peer.pong(&payload)?,
                Received::Close(code, _) => return peer.close(code.unwrap_or(1000), ""),
                Received::End => return Ok(()),
                _ => {}
            }
            if began.elapsed() >= lifetime {
                break;
            }
        }
    }
    match rng.random_range(0..8) {
        0 => peer.reset(),
        1 => peer.half_close(),
        2 => {
            peer.close(1012, "restart")?;
            peer.wait(Duration::from_millis(50))
        }
        // The connection is half-open for longer than `pong_timeout`.
        3 | 4 => peer.wait(Duration::from_secs(1)),
        // One frame violates the protocol, the other is incomplete.
        5 => peer.write(&[0xff, 0xff, 0xff]),
        6 => peer.write(&[0x81, 100, b'x']),
        _ => {
            // The server floods the client, and does not read.
            for _ in 0..20_000 {
                let text = format!("{} {number} flood", peer.number());
                number += 1;
                peer.send_text(&text)?;
            }
            Ok(())
        }
    }
}

/// Records that the server has read a message, as the `place`-th of its connection.
fn arrived(record: &Record, text: &str, place: u64) {
    let Some(id) = text.split(' ').next().and_then(|word| word.parse::<usize>().ok()) else {
        record.fault("the server read a message that nobody has sent".to_owned());
        return;
    };
    match record.sends.lock().find(id) {
        Some(send) => (send.arrivals, send.place) = (send.arrivals.saturating_add(1), place),
        None => record
            .fault(format!("send {id} was read more than {SETTLED_AFTER:?} after it had begun")),
    }
}

/// The use of memory, threads and descriptors at one moment.
struct Sample {
    resident_kib: u64,
    /// The number of the clients' threads, without those of the server.
    threads: u64,
    descriptors: u64,
}

impl Sample {
    fn take(clients: &[Running]) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
        };
        Sample {
            resident_kib: field("VmRSS:"),
            threads: clients.iter().map(|client| client.live_threads() as u64).sum(),
            #[cfg(target_os = "linux")]
            descriptors: ResourceSnapshot::take().descriptors.len() as u64,
            #[cfg(not(target_os = "linux"))]
            descriptors: 0,
        }
    }
}

/// Resident memory may grow by this much, and by a tenth, in the last third of a run, because
/// connections that happen to be flooded have full buffers.
const GROWTH_MAX_KIB: u64 = 16 * 1024;

/// The results of a run.
struct Report {
    took: Duration,
    connections: usize,
    openings: u64,
    messages: u64,
    lost: u64,
    woken: u64,
    ends: BTreeMap<&'static str, u64>,
    sends: BTreeMap<&'static str, u64>,
    sessions: sessions::Totals,
    slowest_stop: Duration,
    samples: Vec<Sample>,
    faults: Vec<String>,
}

impl Report {
    fn new(
        options: &Options,
        records: &[Arc<Record>],
        stops: &[StopReport],
        connections: usize,
        mut sessions: sessions::Totals,
        samples: Vec<Sample>,
        took: Duration,
    ) -> Self {
        let mut report = Report {
            took,
            connections,
            openings: 0,
            messages: 0,
            lost: 0,
            woken: 0,
            ends: BTreeMap::new(),
            sends: BTreeMap::new(),
            slowest_stop: stops.iter().map(StopReport::took).max().unwrap_or_default(),
            samples,
            faults: std::mem::take(&mut sessions.faults),
            sessions,
        };
        for stop in stops.iter().filter(|stop| !stop.is_clean()) {
            report.faults.push(format!("a stop was not clean: {stop}"));
        }
        for (index, record) in records.iter().enumerate() {
            report.add(index, record);
        }
        report.check_flatness(options);
        report
    }

    fn add(&mut self, index: usize, record: &Record) {
        self.messages += record.messages.load(Ordering::Relaxed);
        self.lost += record.lost.load(Ordering::Relaxed);
        self.woken += record.woken.load(Ordering::Relaxed);
        let openings = record.openings.load(Ordering::Relaxed);
        self.openings += openings;
        let ends = record.ends.lock();
        if ends.values().sum::<u64>() != openings {
            self.faults.push(format!("client {index}: {openings} openings, ends {ends:?}"));
        }
        for (kind, count) in ends.iter() {
            *self.ends.entry(kind).or_default() += count;
        }
        if !record.has_stopped.load(Ordering::Relaxed) {
            self.faults.push(format!("client {index}: `stopped` was not called"));
        }
        // All clients have stopped, so no message is in flight any more.
        record.settle(Instant::now());
        for (kind, count) in &record.sends.lock().settled {
            *self.sends.entry(kind).or_default() += count;
        }
        self.faults
            .extend(record.faults.lock().iter().map(|fault| format!("client {index}: {fault}")));
    }

    /// Checks that threads and descriptors stay within bounds, and that memory does not keep
    /// growing.
    fn check_flatness(&mut self, options: &Options) {
        let (connections, sessions) = (options.connections as u64, options.sessions as u64);
        // Both ends of a connection are in this process, and a dial needs a pair of descriptors to
        // be woken by. The server's end of an ended connection may linger.
        let descriptors = 100 + 10 * (connections + sessions);
        for sample in &self.samples {
            if sample.threads > 2 * connections || sample.descriptors > descriptors {
                let Sample { threads, descriptors, .. } = sample;
                self.faults.push(format!(
                    "{threads} threads and {descriptors} descriptors for {connections} clients \
                     and {sessions} sessions"
                ));
            }
        }
        // Memory may grow in the first third.
        let settled = &self.samples[self.samples.len() / 3..];
        let (early, late) = settled.split_at(settled.len() / 2);
        let highest = |samples: &[Sample]| {
            samples.iter().map(|sample| sample.resident_kib).max().unwrap_or(0)
        };
        let growth = highest(late).saturating_sub(highest(early));
        if self.samples.len() >= 30 && growth > GROWTH_MAX_KIB + highest(early) / 10 {
            self.faults.push(format!("resident memory grew by {growth} KiB in the last third"));
        }
    }

    fn print(&self, options: &Options) {
        println!(
            "{} clients, {} senders, seed {}, {:.1?}",
            options.connections, options.senders, options.seed, self.took
        );
        println!(
            "{} TCP connections, {} openings, {} messages in order, {} lost to full queues",
            self.connections, self.openings, self.messages, self.lost
        );
        println!("handlers woken {} times", self.woken);
        println!("ends by kind: {:?}", self.ends);
        for (kind, count) in &self.sends {
            println!("  sends {kind}: {count}");
        }
        let sessions::Totals { connections, messages, calls, .. } = &self.sessions;
        println!(
            "{} sessions: {connections} connections, {messages} messages in order, calls {calls:?}",
            options.sessions
        );
        println!("slowest stop: {:.1?}", self.slowest_stop);
        print_chart("memory, KiB", self.samples.iter().map(|sample| sample.resident_kib));
        print_chart("descriptors", self.samples.iter().map(|sample| sample.descriptors));
        print_chart("threads", self.samples.iter().map(|sample| sample.threads));
        match self.faults.as_slice() {
            [] => println!("every check passed"),
            faults => {
                println!("{} FAULTS:", faults.len());
                faults.iter().take(20).for_each(|fault| println!("  {fault}"));
            }
        }
    }
}

/// Prints a chart on one line. The lowest value is the lowest bar.
fn print_chart(name: &str, values: impl Iterator<Item = u64>) {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<u64> = values.collect();
    let (Some(&low), Some(&high)) = (values.iter().min(), values.iter().max()) else { return };
    let span = (high - low).max(1);
    let chart: String =
        values.iter().map(|value| BARS[((value - low) * 7 / span) as usize]).collect();
    println!("{name:>12} {low} to {high}: {chart}");
}
