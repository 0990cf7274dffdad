//! How long a send takes its thread: on a quiet line, on a line that is flooded at the same time, and with 1 to 16 threads that send at once.
//! `cargo bench --bench senders`; the server is a process of its own, which reads everything and, on `/flood`, sends as fast as it can.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tautline::{Client, Line, MessageRef, Pushed};
use tungstenite::handshake::derive_accept_key;

const SERVER: &str = "TAUTLINE_SENDERS_SERVER";

/// What is sent: an order.
const ORDER: &str = r#"{"id":"5494febb","method":"order.place","params":{"symbol":"BTCUSDT","side":"SELL","type":"LIMIT","quantity":"0.01"}}"#;

/// Single sends, one every so often, as a bot's are.
const SENDS: usize = 20_000;
const EVERY: Duration = Duration::from_micros(100);

/// How long many threads send.
const RUSH: Duration = Duration::from_secs(1);

/// Quiet and flooded take turns.
const ROUNDS: usize = 7;

fn main() {
    if std::env::var_os(SERVER).is_some() {
        return serve();
    }
    let server = Server::start();
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let quiet = single(&server.client("/quiet").0);
        let (client, received) = server.client("/flood");
        let flooded = single(&client);
        let taken = received.load(Ordering::Relaxed);
        ratios.push(flooded.1.as_secs_f64() / quiet.1.as_secs_f64());
        println!(
            "round {round}: p50 and p99 of send_text: quiet {:.1?} {:.1?}, flooded {:.1?} {:.1?} ({taken} messages came meanwhile)",
            quiet.0, quiet.1, flooded.0, flooded.1
        );
    }
    ratios.sort_by(f64::total_cmp);
    println!("p99 flooded over quiet: median {:.2}", ratios[ROUNDS / 2]);
    for threads in [1, 2, 4, 8, 16] {
        let (client, _) = server.client("/quiet");
        println!("{threads} threads: {:.2} million messages a second", rush(&client, threads) / 1e6);
    }
}

/// The median and the 99th percentile of what a send takes.
fn single(client: &Client<Pushed>) -> (Duration, Duration) {
    let mut times = Vec::with_capacity(SENDS);
    let mut due = Instant::now();
    for _ in 0..SENDS {
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        due += EVERY;
        let began = Instant::now();
        client.send_text(ORDER).expect("the line is open");
        times.push(began.elapsed());
    }
    times.sort();
    (times[SENDS / 2], times[SENDS * 99 / 100])
}

/// Messages a second that so many threads send together.
fn rush(client: &Client<Pushed>, threads: usize) -> f64 {
    let sent = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, sent) = (client.sender(), &sent);
            scope.spawn(move || {
                while began.elapsed() < RUSH {
                    for _ in 0..100 {
                        sender.send_text(ORDER).expect("the line is open");
                    }
                    sent.fetch_add(100, Ordering::Relaxed);
                }
            });
        }
    });
    sent.into_inner() as f64 / began.elapsed().as_secs_f64()
}

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Server {
        let own = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(own);
        let mut process = command.env(SERVER, "1").stdout(Stdio::piped()).spawn().expect("processes can be started");
        let mut address = String::new();
        let output = process.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut address).expect("it tells where it listens");
        Server { process, address: address.trim().to_owned() }
    }

    /// A client of a new line, and how many messages have come by it.
    fn client(&self, path: &str) -> (Client<Pushed>, Arc<AtomicU64>) {
        let received = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&received);
        let handler = move |_: &mut Line<'_>, _: MessageRef<'_>| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let client = Client::builder(format!("ws://{}{path}", self.address)).start(handler).expect("it starts");
        client.wait_open(Duration::from_secs(10)).expect("the server answers");
        (client, received)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends in no other way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("it is bound"));
    for socket in listener.incoming().flatten() {
        // The end of a connection is the end of its thread, and no news.
        std::thread::spawn(move || talk(socket).is_ok());
    }
}

fn talk(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let (mut key, mut is_flood) = (String::new(), false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        is_flood |= line.starts_with("GET /flood");
        match line.trim().split_once(": ") {
            Some(("Sec-WebSocket-Key", value)) => value.clone_into(&mut key),
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let accept = derive_accept_key(key.as_bytes());
    write!(
        socket,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    if is_flood {
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
