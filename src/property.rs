//! Property tests: what has to hold in many random cases.

use std::ops::Range;
use std::thread;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng, make_rng};

/// The environment variable with the seed of the one case that is to run.
const SEED: &str = "PROPERTY_SEED";

/// Runs `property` in this many cases, each with a generator of its own. A case that panics prints
/// its seed, and the command that runs it alone.
pub(crate) fn check(cases: u32, property: impl FnMut(&mut StdRng)) {
    match std::env::var(SEED) {
        Ok(seed) => run([seed.parse().expect("the seed is a number")], property),
        Err(_) => {
            let mut seeds: StdRng = make_rng();
            run((0..cases).map(|_| seeds.random()), property);
        }
    }
}

fn run(seeds: impl IntoIterator<Item = u64>, mut property: impl FnMut(&mut StdRng)) {
    for seed in seeds {
        let _case = Case { seed };
        property(&mut StdRng::seed_from_u64(seed));
    }
}

/// Returns a list of random length.
pub(crate) fn vec<T>(
    rng: &mut StdRng,
    len: Range<usize>,
    mut item: impl FnMut(&mut StdRng) -> T,
) -> Vec<T> {
    let len = rng.random_range(len);
    (0..len).map(|_| item(rng)).collect()
}

/// Returns random bytes of random length.
pub(crate) fn bytes(rng: &mut StdRng, len: Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(len)];
    rng.fill(&mut bytes[..]);
    bytes
}

struct Case {
    seed: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = thread::current();
            let test = thread.name().unwrap_or_default();
            eprintln!("repeat it with {SEED}={} cargo test --lib {test}", self.seed);
        }
    }
}
