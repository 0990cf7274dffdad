//! This client as a driver for the load server: `driver echo URL N SIZE | firehose URL | paced URL`
//! prints one connection of JSON.
//!
//! Messages are taken by a handler on the reader thread. With `PULL=1` they are taken through
//! `events()`, with `BATCH=1` in its batches: sends then come from another thread than the
//! reader's. With `SPIN=1` the reader spins (`busy_poll`), with `STAMP=1` the kernel notes when it
//! gets what comes (`kernel_timestamps`), with `COMPRESS=1` the client offers compression. `CA`
//! names the root certificate. Times are CLOCK_MONOTONIC, CPU is that of the whole process.

mod engine;

use std::process::ExitCode;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tautline::{
    Builder, Client, Connection, Deflate, Error, ErrorKind, Event, EventRef, Handler, MessageRef,
};

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let end = match words.as_slice() {
        ["echo", url, count, size] => match (count.parse(), size.parse()) {
            (Ok(count), Ok(size)) => run(url, Echo::new(count, size)),
            _ => return usage(),
        },
        ["firehose", url] => run(url, Firehose::default()),
        ["paced", url] => run(url, Paced::default()),
        // `cargo bench` without arguments: nothing to measure against.
        [] => return ExitCode::SUCCESS,
        _ => return usage(),
    };
    if let Err(error) = end {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(url: &str, job: impl Job) -> Result<(), Error> {
    let mut builder = engine::chosen(Client::builder(url)).max_attempts(1);
    if url.starts_with("wss") {
        let file = std::env::var("CA").unwrap_or_else(|_| "certs/ca.pem".to_owned());
        builder = builder
            .tls_root(std::fs::read(file).expect("CA names a readable file"))
            .tls_only_given_roots();
    }
    if std::env::var_os("SPIN").is_some() {
        builder = builder.busy_poll();
    }
    if std::env::var_os("COMPRESS").is_some() {
        builder = builder.compress(Deflate::default());
    }
    #[cfg(target_os = "linux")]
    if std::env::var_os("STAMP").is_some() {
        builder = builder.kernel_timestamps();
    }
    match Way::chosen() {
        Way::Push => push(builder, job),
        Way::Pull => pull(builder, job),
        Way::Batch => pull_batches(builder, job),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: driver echo URL N SIZE | firehose URL | paced URL");
    ExitCode::from(2)
}

/// The measurements.
trait Job: Send + 'static {
    fn opened(&mut self) -> Next;
    fn message(&mut self, bytes: &[u8]) -> Next;

    /// The payload that is sent.
    fn payload(&self) -> &str {
        ""
    }
}

/// The next step of a job.
enum Next {
    Nothing,
    Send,
    Stop,
}

struct Bench<J>(J);

impl<J: Job> Bench<J> {
    #[inline]
    fn act(&self, next: Next, connection: &mut Connection<'_>) {
        match next {
            Next::Nothing => {}
            Next::Send => {
                if let Err(error) = connection.send_text(self.0.payload()) {
                    panic!("{error}");
                }
            }
            Next::Stop => connection.stop(),
        }
    }
}

impl<J: Job> Handler for Bench<J> {
    fn opened(&mut self, connection: &mut Connection<'_>) {
        let next = self.0.opened();
        self.act(next, connection);
    }

    #[inline]
    fn message(&mut self, connection: &mut Connection<'_>, message: MessageRef<'_>) {
        let next = self.0.message(message.bytes());
        self.act(next, connection);
    }
}

fn push(builder: Builder, job: impl Job) -> Result<(), Error> {
    let client = builder.start_with(Bench(job))?;
    let end = client.wait_closed(Duration::from_secs(600)).expect("it ends in time");
    // It stops when its job is done.
    if end.kind() == ErrorKind::Stopped { Ok(()) } else { Err(end) }
}

fn queued(builder: Builder) -> Result<Client, Error> {
    builder.queue_messages(1 << 20).when_full(tautline::WhenFull::Block).connect()
}

fn pull(builder: Builder, mut job: impl Job) -> Result<(), Error> {
    let client = queued(builder)?;
    for event in client.events() {
        let next = match event {
            Event::Opened(_) => job.opened(),
            Event::Message(message) => job.message(message.bytes()),
            Event::Disconnected(end) => return Err(end.error),
            _ => Next::Nothing,
        };
        if matches!(act(next, &client, &job), Flow::End) {
            break;
        }
    }
    Ok(())
}

fn pull_batches(builder: Builder, mut job: impl Job) -> Result<(), Error> {
    let client = queued(builder)?;
    let mut events = client.events();
    while let Some(batch) = events.next_batch() {
        for event in batch {
            let next = match event {
                EventRef::Opened(_) => job.opened(),
                EventRef::Message(message) => job.message(message.bytes()),
                EventRef::Disconnected(end) => return Err(end.error.clone()),
                _ => Next::Nothing,
            };
            if matches!(act(next, &client, &job), Flow::End) {
                return Ok(());
            }
        }
    }
    Ok(())
}

enum Flow {
    Continue,
    End,
}

#[inline]
fn act(next: Next, client: &Client, job: &impl Job) -> Flow {
    match next {
        Next::Nothing => {}
        Next::Send => {
            if let Err(error) = client.send_text(job.payload()) {
                panic!("{error}");
            }
        }
        Next::Stop => return Flow::End,
    }
    Flow::Continue
}

/// The way in which messages are taken.
enum Way {
    Push,
    Pull,
    Batch,
}

impl Way {
    fn chosen() -> Self {
        let is_set = |name| std::env::var_os(name).is_some();
        match (is_set("BATCH"), is_set("PULL")) {
            (true, _) => Way::Batch,
            (false, true) => Way::Pull,
            (false, false) => Way::Push,
        }
    }
}

fn name() -> &'static str {
    match Way::chosen() {
        Way::Push => "tautline",
        Way::Pull => "tautline-events",
        Way::Batch => "tautline-batches",
    }
}

/// Nanoseconds of a clock.
fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A moment, by the wall and by the CPU.
#[derive(Clone, Copy, Default)]
struct Since {
    wall: u64,
    cpu: u64,
}

impl Since {
    fn now() -> Self {
        Since { wall: nanos(ClockId::Monotonic), cpu: nanos(ClockId::ProcessCPUTime) }
    }

    fn seconds(self) -> (f64, f64) {
        let now = Since::now();
        ((now.wall - self.wall) as f64 * 1e-9, (now.cpu - self.cpu) as f64 * 1e-9)
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn percentile(sorted: &[u64], part: f64) -> u64 {
    sorted
        .get(((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}

/// Round trips one after the other; the first tenth warms up.
struct Echo {
    payload: String,
    count: usize,
    done: usize,
    sent_at: u64,
    times: Vec<u64>,
    since: Since,
}

impl Echo {
    fn new(count: usize, size: usize) -> Self {
        let text = r#"{"op":"order","sym":"BTCUSDT","px":60123.45,"qty":0.0123,"id":1234567890},"#;
        let payload = text.chars().cycle().take(size).collect();
        Echo {
            payload,
            count,
            done: 0,
            sent_at: 0,
            times: Vec::with_capacity(count),
            since: Since::default(),
        }
    }

    fn next(&mut self) -> Next {
        self.sent_at = nanos(ClockId::Monotonic);
        Next::Send
    }
}

impl Job for Echo {
    fn opened(&mut self) -> Next {
        self.next()
    }

    fn payload(&self) -> &str {
        &self.payload
    }

    fn message(&mut self, bytes: &[u8]) -> Next {
        let took = nanos(ClockId::Monotonic) - self.sent_at;
        assert_eq!(bytes.len(), self.payload.len());
        if self.done >= self.count / 10 {
            self.times.push(took);
        }
        self.done += 1;
        if self.done == self.count / 10 {
            self.since = Since::now();
        }
        if self.done < self.count {
            return self.next();
        }
        let (wall, cpu) = self.since.seconds();
        self.times.sort_unstable();
        println!(
            r#"{{"peer":"{}","mode":"echo","n":{},"p50_ns":{},"p99_ns":{},"p999_ns":{},"rtt_per_s":{:.0},"cpu_s":{cpu:.4},"rss_kb":{}}}"#,
            name(),
            self.times.len(),
            percentile(&self.times, 0.5),
            percentile(&self.times, 0.99),
            percentile(&self.times, 0.999),
            self.times.len() as f64 / wall,
            resident_kib()
        );
        Next::Stop
    }
}

/// Counts messages until `done`.
#[derive(Default)]
struct Firehose {
    messages: u64,
    since: Since,
    bytes: u64,
}

impl Job for Firehose {
    fn opened(&mut self) -> Next {
        self.since = Since::now();
        Next::Nothing
    }

    #[inline]
    fn message(&mut self, bytes: &[u8]) -> Next {
        if bytes == b"done" {
            return self.done();
        }
        self.messages += 1;
        self.bytes += bytes.len() as u64;
        Next::Nothing
    }
}

impl Firehose {
    #[cold]
    fn done(&self) -> Next {
        let (wall, cpu) = self.since.seconds();
        println!(
            r#"{{"peer":"{}","mode":"firehose","msgs":{},"bytes":{},"secs":{wall:.6},"msgs_per_s":{:.0},"cpu_s":{cpu:.4},"rss_kb":{}}}"#,
            name(),
            self.messages,
            self.bytes,
            self.messages as f64 / wall,
            resident_kib()
        );
        Next::Stop
    }
}

/// One-way times against the sender's clock, which is the first 20 digits of each message.
#[derive(Default)]
struct Paced {
    times: Vec<u64>,
    since: Since,
}

impl Job for Paced {
    fn opened(&mut self) -> Next {
        self.since = Since::now();
        Next::Nothing
    }

    fn message(&mut self, bytes: &[u8]) -> Next {
        let now = nanos(ClockId::Monotonic);
        if bytes == b"done" {
            let (wall, cpu) = self.since.seconds();
            let count = self.times.len();
            let mut kept = self.times.split_off(count / 10);
            kept.sort_unstable();
            println!(
                r#"{{"peer":"{}","mode":"paced","n":{count},"p50_ns":{},"p99_ns":{},"p999_ns":{},"max_ns":{},"secs":{wall:.6},"cpu_s":{cpu:.4},"rss_kb":{}}}"#,
                name(),
                percentile(&kept, 0.5),
                percentile(&kept, 0.99),
                percentile(&kept, 0.999),
                kept.last().copied().unwrap_or(0),
                resident_kib()
            );
            return Next::Stop;
        }
        let digits = bytes.get(..20).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(sent_at) = digits.and_then(|digits| digits.trim().parse::<u64>().ok()) {
            self.times.push(now.saturating_sub(sent_at));
        }
        Next::Nothing
    }
}
