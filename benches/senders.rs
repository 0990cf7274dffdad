//! Measures how long a send occupies its thread: on a quiet connection, on a flooded one, and with
//! 1 to 16 threads that send at once.
//!
//! `cargo bench --bench senders` runs it. The server is a process of its own, which reads
//! everything and, on `/flood`, sends as fast as it can. A bare socket, with a thread that reads
//! and one that writes, is measured for comparison. The sending thread has a CPU of its own, and
//! the server and the reading thread share another, so that no wait for a CPU is measured.

mod process;
mod server;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tautline::{Client, Connection, MessageRef, Push};

use process::{ServerProcess, stay_on};
use server::{listen, read_request};

/// The environment variable of the server's process.
const SERVER: &str = "TAUTLINE_SENDERS_SERVER";

/// The message that is sent: an order.
const ORDER: &str = concat!(
    r#"{"id":"5494febb","method":"order.place","params":"#,
    r#"{"symbol":"BTCUSDT","side":"SELL","type":"LIMIT","quantity":"0.01"}}"#
);

/// The number of single sends in a round.
const SENDS: usize = 20_000;

/// The interval between single sends.
const INTERVAL: Duration = Duration::from_micros(100);

/// The time for which several threads send.
const RUSH: Duration = Duration::from_secs(1);

/// The number of rounds. Each measures the quiet and the flooded connection.
const ROUNDS: usize = 7;

/// The CPU of the server and of the threads that read.
const READING: usize = 0;

/// The CPU of the thread that sends.
const SENDING: usize = 1;

fn main() {
    if std::env::var_os(SERVER).is_some() {
        return serve();
    }
    let server = Server::start();
    stay_on(&[SENDING]);
    let mut rounds: [Vec<Single>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (path, (ours, bare)) in [("/quiet", (0, 1)), ("/flood", (2, 3))] {
            let client = server.client(path);
            rounds[ours].push(single(|| {
                client.send_text(ORDER).expect("the connection is open");
            }));
            drop(client);
            let (mut socket, reader) = server.bare(path);
            rounds[bare]
                .push(single(|| socket.write_all(&frame(ORDER)).expect("the connection is open")));
            socket.shutdown(Shutdown::Both).expect("it is connected");
            reader.join().expect("it ends with the connection");
        }
    }
    let median = |round: usize, of: fn(&Single) -> Duration| {
        let mut all: Vec<_> = rounds[round].iter().map(of).collect();
        all.sort();
        all[ROUNDS / 2]
    };
    println!(
        "medians of {ROUNDS} rounds    p50 quiet  p99 quiet  p50 flooded  p99 flooded  \
         p99 flooded over quiet"
    );
    for (name, quiet, flooded) in [("send_text", 0, 2), ("bare socket", 1, 3)] {
        let (calm, busy) =
            (median(quiet, |single| single.p99), median(flooded, |single| single.p99));
        println!(
            "{name:<22} {:>9.1?}  {calm:>9.1?}  {:>11.1?}  {busy:>11.1?}  {:.2}",
            median(quiet, |single| single.p50),
            median(flooded, |single| single.p50),
            busy.as_secs_f64() / calm.as_secs_f64(),
        );
    }
    stay_on(&[READING, SENDING]);
    for threads in [1, 2, 4, 8, 16] {
        let client = server.client("/quiet");
        println!(
            "{threads} threads: {:.2} million messages per second",
            rush(&client, threads) / 1e6
        );
    }
}

/// The time that a single send takes.
struct Single {
    p50: Duration,
    p99: Duration,
}

fn single(mut send: impl FnMut()) -> Single {
    let mut times = Vec::with_capacity(SENDS);
    let mut due = Instant::now();
    for _ in 0..SENDS {
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        due += INTERVAL;
        let began = Instant::now();
        send();
        times.push(began.elapsed());
    }
    times.sort();
    Single { p50: times[SENDS / 2], p99: times[SENDS * 99 / 100] }
}

/// Returns a masked frame of the same size as the client's.
fn frame(text: &str) -> Vec<u8> {
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

/// Returns how many messages per second `threads` threads send together.
fn rush(client: &Client<Push>, threads: usize) -> f64 {
    let sent = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, sent) = (client.sender(), &sent);
            scope.spawn(move || {
                while began.elapsed() < RUSH {
                    for _ in 0..100 {
                        sender.send_text(ORDER).expect("the connection is open");
                    }
                    sent.fetch_add(100, Ordering::Relaxed);
                }
            });
        }
    });
    sent.into_inner() as f64 / began.elapsed().as_secs_f64()
}

struct Server(ServerProcess);

impl Server {
    fn start() -> Server {
        Server(ServerProcess::start(SERVER))
    }

    /// Opens a connection with a client.
    fn client(&self, path: &str) -> Client<Push> {
        let builder = Client::builder(format!("ws://{}{path}", self.0.address))
            .on_thread_start(|_| stay_on(&[READING]));
        let client =
            builder.start_with(|_: &mut Connection<'_>, _: MessageRef<'_>| {}).expect("it starts");
        client.wait_open(Duration::from_secs(10)).expect("the server answers");
        client
    }

    /// Opens a connection without a library, and starts a thread that reads from it.
    fn bare(&self, path: &str) -> (TcpStream, JoinHandle<()>) {
        let mut socket = TcpStream::connect(&self.0.address).expect("the server listens");
        socket.set_nodelay(true).expect("it is connected");
        write!(socket, "GET {path} HTTP/1.1\r\nSec-WebSocket-Key: x\r\n\r\n")
            .expect("it is connected");
        let mut reading = socket.try_clone().expect("there are descriptors");
        let reader = std::thread::spawn(move || {
            stay_on(&[READING]);
            let mut bytes = vec![0; 128 * 1024];
            while reading.read(&mut bytes).is_ok_and(|count| count > 0) {}
        });
        (socket, reader)
    }
}

fn serve() {
    stay_on(&[READING]);
    for socket in listen().incoming().flatten() {
        // The thread ends with its connection. Errors do not matter.
        std::thread::spawn(move || serve_connection(socket).is_ok());
    }
}

fn serve_connection(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = std::io::BufReader::new(socket.try_clone()?);
    let request = read_request(&mut reader)?;
    socket.write_all(request.acceptance("").as_bytes())?;
    if request.path == "/flood" {
        let mut writer = socket.try_clone()?;
        std::thread::spawn(move || {
            let frame = [&[0x81, 126, 0, 200][..], &[b'x'; 200]].concat().repeat(64);
            while writer.write_all(&frame).is_ok() {}
        });
    }
    let mut bytes = vec![0; 256 * 1024];
    while reader.read(&mut bytes)? > 0 {}
    Ok(())
}
