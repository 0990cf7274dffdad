//! Measures how old quotes are when a consumer that is ten times too slow gets them: with
//! `Builder::conflate`, and without.
//!
//! `cargo bench --bench conflation` runs it. The server is a process of its own. Each quote says
//! when it was sent; its age is the time from then until the consumer has it, by the same clock.
//! The server and the reading thread share a CPU, and the consumer has another.

mod process;
mod server;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use tautline::{Builder, Client, Event, WhenFull};

use process::{ServerProcess, stay_on};
use server::{listen, read_request};

/// The environment variable of the server's process.
const SERVER: &str = "TAUTLINE_CONFLATION_SERVER";

/// The number of instruments that quotes are for. Each quote is for one of them, at random.
const KEYS: usize = 100;

/// The size of a quote.
const SIZE: usize = 200;

/// The quotes that are sent each second.
const RATE: u64 = 20_000;

/// The time that the consumer works on a quote.
const WORK: Duration = Duration::from_micros(10 * 1_000_000 / RATE);

/// The server sends the quotes of so much time at once.
const TICK: Duration = Duration::from_millis(1);

/// The time that a run takes.
const RUN: Duration = Duration::from_secs(10);

/// The number of messages that the queue holds: the default.
const QUEUE: usize = 65_536;

/// The places of the key and of the time in a quote.
const KEY: std::ops::Range<usize> = 6..12;
const SENT_AT: std::ops::Range<usize> = 19..39;

/// The CPU of the server and of the thread that reads.
const READING: usize = 0;

/// The CPU of the consumer.
const CONSUMING: usize = 1;

fn main() {
    if std::env::var_os(SERVER).is_some() {
        return serve();
    }
    let server = Server::start();
    stay_on(&[CONSUMING]);
    println!(
        "{KEYS} keys, {RATE} quotes per second, {} consumed per second. A pass over the keys takes \
         {:.0?}, the queue holds the quotes of {:.2?}.\n",
        Duration::from_secs(1).as_micros() / WORK.as_micros(),
        WORK * KEYS as u32,
        Duration::from_secs(QUEUE as u64) / RATE as u32,
    );
    println!("age in ms, in the tenth of the run that ends at");
    println!("                                10%             50%            100%");
    println!("                             p50     max     p50     max     p50     max");
    let conflated = || server.builder().conflate(|message| message.bytes().get(KEY));
    measure("conflate, iterated", conflated(), Taking::Iterated);
    measure("conflate, polled", conflated(), Taking::Polled);
    measure("without", server.builder(), Taking::Iterated);
}

/// The way in which the consumer takes events.
#[derive(Clone, Copy)]
enum Taking {
    /// By iterating. It takes a chunk of messages at once, and those are not replaced any more.
    Iterated,
    /// By waiting for `Events::ready`. It takes one message, and the others stay in the queue.
    Polled,
}

fn measure(name: &str, builder: Builder, taking: Taking) {
    let client = builder.connect().expect("the server answers");
    let mut events = client.events();
    let ready = matches!(taking, Taking::Polled).then(|| events.ready());
    let began = now();
    let mut tenths: [Vec<Duration>; 10] = Default::default();
    loop {
        let event = match &ready {
            None => events.next().expect("the client runs"),
            Some(ready) => {
                ready.recv().expect("the client runs");
                // It is ready now and then when no event waits.
                let Ok(event) = events.try_next() else { continue };
                event
            }
        };
        let taken_at = now();
        let tenth = (taken_at - began).as_nanos() * 10 / RUN.as_nanos();
        let Some(ages) = tenths.get_mut(tenth as usize) else { break };
        if let Event::Message(message) = event {
            ages.push(taken_at - sent_at(message.bytes()));
            while now() - taken_at < WORK {
                std::hint::spin_loop();
            }
        }
    }
    print!("{name:<25}");
    for tenth in [0, 4, 9] {
        let ages = &mut tenths[tenth];
        ages.sort();
        for age in [ages.get(ages.len() / 2), ages.last()] {
            print!("{:>8}", age.map_or(0, Duration::as_millis));
        }
    }
    let stats = client.stats();
    println!("    {} conflated, {} lost", stats.messages_conflated, stats.messages_lost);
}

/// The time, by a clock that all processes share.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn quote(key: usize, sent_at: Duration) -> String {
    let mut quote = format!(r#"{{"s":"KEY{key:03}","t":"{:020}","b":""#, sent_at.as_nanos());
    quote.extend(std::iter::repeat_n('1', SIZE - quote.len() - 2));
    quote + "\"}"
}

fn sent_at(quote: &[u8]) -> Duration {
    let digits = quote.get(SENT_AT).and_then(|digits| std::str::from_utf8(digits).ok());
    let nanos = digits.and_then(|digits| digits.parse().ok());
    Duration::from_nanos(nanos.expect("a quote says when it was sent"))
}

struct Server(ServerProcess);

impl Server {
    fn start() -> Server {
        Server(ServerProcess::start(SERVER))
    }

    fn builder(&self) -> Builder {
        Client::builder(format!("ws://{}/", self.0.address))
            // Then all that the server gets is a close frame.
            .ping_interval(None)
            .queue_messages(QUEUE)
            .when_full(WhenFull::DropOldest)
            .on_thread_start(|_| stay_on(&[READING]))
    }
}

fn serve() {
    stay_on(&[READING]);
    for socket in listen().incoming().flatten() {
        // It fails when the client has gone.
        let _ = serve_connection(socket);
    }
}

fn serve_connection(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = std::io::BufReader::new(socket.try_clone()?);
    let request = read_request(&mut reader)?;
    socket.write_all(request.acceptance("").as_bytes())?;
    let ends = socket.try_clone()?;
    std::thread::spawn(move || {
        // The close frame, or the end.
        let _ = reader.read(&mut [0; 128]);
        ends.shutdown(Shutdown::Both)
    });
    let mut rng = StdRng::seed_from_u64(16);
    let (began, mut sent) = (now(), 0);
    let mut frames = Vec::new();
    loop {
        std::thread::sleep(TICK);
        let due = (now() - began).as_nanos() * u128::from(RATE) / 1_000_000_000;
        frames.clear();
        for _ in sent..due as u64 {
            frames.extend_from_slice(&[0x81, 126, 0, SIZE as u8]);
            frames.extend_from_slice(quote(rng.random_range(0..KEYS), now()).as_bytes());
        }
        sent = due as u64;
        socket.write_all(&frames)?;
    }
}
