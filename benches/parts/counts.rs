//! The instructions that the parts take for a thousand messages, counted by callgrind. The limits
//! are 5% above what was counted when they were last set: who raises one says why in the commit.
//!
//! `cargo bench --manifest-path benches/parts/Cargo.toml --bench counts`; needs valgrind and
//! `gungraun-runner`, of gungraun's own version.

use std::hint::black_box;

use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use tautline::internals::parts::Delivering;
use tautline_parts::{DecodeWork, Work, delivering, delivering_apart};

/// The work is handed back, so that dropping it is not counted.
fn limit(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions + instructions / 20)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark]
#[bench::small(args = (200, false), setup = Work::new, config = limit(HEADS))]
fn heads(work: Work) -> (usize, Work) {
    (black_box(work.heads()), work)
}

#[library_benchmark]
#[bench::small(args = (200, false), setup = Work::new, config = limit(READ_200))]
#[bench::medium(args = (2048, false), setup = Work::new, config = limit(READ_2048))]
#[bench::compressed(args = (200, true), setup = Work::new, config = limit(READ_COMPRESSED))]
fn read(mut work: Work) -> (usize, Work) {
    (black_box(work.read()), work)
}

#[library_benchmark]
#[bench::small(args = (200, false), setup = Work::new, config = limit(WRITE_200))]
#[bench::medium(args = (2048, false), setup = Work::new, config = limit(WRITE_2048))]
fn write(mut work: Work) -> (usize, Work) {
    (black_box(work.write()), work)
}

#[library_benchmark]
#[bench::medium(args = (2048, false), setup = Work::new, config = limit(CHECK_2048))]
fn check_text(work: Work) -> (usize, Work) {
    (black_box(work.check_text()), work)
}

#[library_benchmark]
#[bench::medium(args = (), setup = DecodeWork::new, config = limit(DECODE_1024))]
fn decode(mut work: DecodeWork) -> (usize, DecodeWork) {
    (black_box(work.decode()), work)
}

// What a session adds to a message is the difference between the two.
#[library_benchmark]
#[bench::handler(args = (200, false), setup = delivering, config = limit(DELIVER))]
#[bench::session(args = (200, true), setup = delivering, config = limit(DELIVER_SESSION))]
fn deliver(mut delivering: Delivering) -> (u64, Delivering) {
    (black_box(delivering.deliver()), delivering)
}

// A hundred messages, each by a `recv` of its own. What the kernel does is not counted.
#[library_benchmark]
#[bench::handler(args = (200), setup = delivering_apart, config = limit(DELIVER_APART))]
fn deliver_apart(mut delivering: Delivering) -> (u64, Delivering) {
    (black_box(delivering.deliver()), delivering)
}

const HEADS: u64 = 33_126;
const READ_200: u64 = 122_530;
const READ_2048: u64 = 350_530;
const READ_COMPRESSED: u64 = 2_359_061;
const WRITE_200: u64 = 254_625;
const WRITE_2048: u64 = 961_422;
const CHECK_2048: u64 = 322_463;
const DECODE_1024: u64 = 44_168_183;
const DELIVER: u64 = 136_957;
const DELIVER_SESSION: u64 = 162_145;
const DELIVER_APART: u64 = 87_310;

library_benchmark_group!(
    name = parts,
    benchmarks = [heads, read, write, check_text, decode, deliver, deliver_apart]
);
main!(library_benchmark_groups = parts);
