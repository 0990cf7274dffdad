//! A feed of book updates, compressed with context takeover (RFC 7692): what `peers.py` measures
//! clients with.
//!
//! - `compressed serve N` prints its address and sends N updates, then `done`, on each connection.
//! - `compressed floor N` inflates the same payloads in memory and prints one line of JSON, as a
//!   driver does.
//!
//! The updates are compressed once, before anything is measured, and sent again and again: the
//! first of them refers to nothing before it, so they stay valid in any window. The client's own
//! driver is `COMPRESS=1 driver firehose`, that of Boost.Beast is `beast.cpp`.

mod cpu;
mod server;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Instant;

use flate2::{Compress, Compression, FlushCompress};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zlib_rs::{Inflate, InflateFlush, Status};

use cpu::cpu;
use server::{listen, read_request};

/// The size of an update.
const SIZE: usize = 250;

/// The number of different updates, which are sent in turn.
const UPDATES: usize = 50_000;

/// The end of a compressed message, which is left out on the wire (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [work, count] => match (*work, count.parse()) {
            ("serve", Ok(count)) => serve(count),
            ("floor", Ok(count)) => floor(count),
            _ => return usage(),
        },
        // `cargo bench` without arguments: nothing to measure against.
        [] => {}
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: compressed serve N | floor N");
    ExitCode::from(2)
}

/// Messages one behind the other.
#[derive(Default)]
struct Messages {
    bytes: Vec<u8>,
    /// The place at which each of them ends.
    ends: Vec<usize>,
}

/// Returns all updates, each as `put` appends it, which gets its payload.
fn updates(mut put: impl FnMut(&mut Vec<u8>, &[u8])) -> Messages {
    let mut engine = Compress::new_with_window_bits(Compression::new(6), false, 15);
    let mut book = Book::new();
    let mut payload = Vec::with_capacity(2 * SIZE);
    let mut updates = Messages::default();
    for _ in 0..UPDATES {
        let update = book.next();
        assert_eq!(update.len(), SIZE);
        payload.clear();
        engine
            .compress_vec(update.as_bytes(), &mut payload, FlushCompress::Sync)
            .expect("it is used as it should be");
        assert!(payload.len() < payload.capacity(), "all of it has been flushed");
        put(&mut updates.bytes, payload.strip_suffix(&TAIL).expect("a flush ends in it"));
        updates.ends.push(updates.bytes.len());
    }
    updates
}

/// The changes of an order book, as an exchange sends them: each level is one that has changed, so
/// its size is new, and its price is near the middle, which walks.
struct Book {
    rng: StdRng,
    millis: u64,
    /// In cents.
    middle: u64,
}

impl Book {
    fn new() -> Self {
        Book { rng: StdRng::seed_from_u64(16), millis: 0, middle: 6_012_345 }
    }

    fn next(&mut self) -> String {
        self.millis += self.rng.random_range(0..30);
        self.middle = self.middle + self.rng.random_range(0..=20) - 10;
        let mut changes = Vec::new();
        for side in ["buy", "buy", "buy", "sell", "sell"] {
            let distance = self.rng.random_range(1..500);
            let price = if side == "buy" { self.middle - distance } else { self.middle + distance };
            let size = self.rng.random_range(1..100_000_000);
            let (units, cents) = (price / 100, price % 100);
            changes.push(format!(r#"["{side}","{units}.{cents:02}","0.{size:08}"]"#));
        }
        let (seconds, millis) = (self.millis / 1000, self.millis % 1000);
        let time = format!("2026-11-25T14:{:02}:{:02}.{millis:03}Z", seconds / 60, seconds % 60);
        let changes = changes.join(",");
        format!(
            r#"{{"type":"l2update","product_id":"BTC-USD","changes":[{changes}],"time":"{time}"}}"#
        )
    }
}

fn floor(count: usize) {
    let updates = updates(|bytes, payload| bytes.extend(payload));
    let mut engine = Inflate::new(false, 15);
    let mut output = [0; 8 * 1024];
    let (began, before) = (Instant::now(), cpu());
    let mut start = 0;
    for &end in updates.ends.iter().cycle().take(count) {
        let before = engine.total_out();
        for input in [&updates.bytes[start..end], &TAIL] {
            let status = engine.decompress(input, &mut output, InflateFlush::SyncFlush);
            assert_eq!(status, Ok(Status::Ok));
        }
        assert_eq!(engine.total_out() - before, SIZE as u64);
        start = end % updates.bytes.len();
    }
    let (secs, cpu) = (began.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64());
    println!(
        r#"{{"peer":"raw-zlib","mode":"floor","msgs":{count},"bytes":{},"secs":{secs:.6},"msgs_per_s":{:.0},"cpu_s":{cpu:.4}}}"#,
        count * SIZE,
        count as f64 / secs,
    );
}

fn serve(count: usize) {
    let frames = updates(|bytes, payload| {
        // FIN, RSV1, text.
        bytes.push(0xc1);
        match payload.len() {
            len @ 0..=125 => bytes.push(len as u8),
            len => {
                bytes.push(126);
                bytes.extend((len as u16).to_be_bytes());
            }
        }
        bytes.extend(payload);
    });
    for socket in listen().incoming().flatten() {
        if let Err(error) = serve_connection(socket, &frames, count) {
            eprintln!("{error}");
        }
    }
}

fn serve_connection(mut socket: TcpStream, frames: &Messages, count: usize) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = std::io::BufReader::new(socket.try_clone()?);
    let request = read_request(&mut reader)?;
    let offer = request.header("Sec-WebSocket-Extensions").unwrap_or_default();
    if !offer.contains("permessage-deflate") {
        return Err(std::io::Error::other("the client does not offer permessage-deflate"));
    }
    let answer = request.acceptance("Sec-WebSocket-Extensions: permessage-deflate\r\n");
    socket.write_all(answer.as_bytes())?;
    for _ in 0..count / UPDATES {
        socket.write_all(&frames.bytes)?;
    }
    if let Some(last) = (count % UPDATES).checked_sub(1) {
        socket.write_all(&frames.bytes[..frames.ends[last]])?;
    }
    // Uncompressed, which any message may be.
    socket.write_all(b"\x81\x04done")?;
    // The client's close frame, and the answer to it.
    if reader.read(&mut [0; 128])? > 0 {
        socket.write_all(b"\x88\x02\x03\xe8")?;
    }
    Ok(())
}
