//! The CPU time of a message of 1 KiB that is compressed by gzip inside its frame: as the client
//! decodes it, by the engine alone, and by a `GzDecoder` for each message. `cargo bench
//! --manifest-path benches/parts/Cargo.toml --bench decode`.
//!
//! They take turns, and the least of all rounds counts: what else the machine does adds to a
//! round and takes nothing from it.

use std::time::{Duration, Instant};

use tautline_parts::DecodeWork;

/// Decodes all messages, and returns the number of bytes.
type Way = fn(&mut DecodeWork) -> usize;

const ROUNDS: usize = 400;
const MESSAGES: u32 = 1000;

fn main() {
    let mut work = DecodeWork::new();
    let ways: [(&str, Way); 4] = [
        ("decoded", DecodeWork::decode),
        ("by the engine alone", DecodeWork::inflate),
        ("by a GzDecoder and a vector each", DecodeWork::decoder_each),
        ("by a GzDecoder each", DecodeWork::decoder_each_into_one_vector),
    ];
    let mut least = [Duration::MAX; 4];
    for _ in 0..ROUNDS {
        for ((_, run), least) in ways.iter().zip(&mut least) {
            let began = Instant::now();
            assert_eq!(run(&mut work), 1024 * MESSAGES as usize);
            *least = began.elapsed().min(*least);
        }
    }
    for ((name, _), time) in ways.iter().zip(least) {
        let ratio = time.as_secs_f64() / least[0].as_secs_f64();
        println!("{name}: {:?} a message, {ratio:.3} of the time of the first", time / MESSAGES);
    }
}
