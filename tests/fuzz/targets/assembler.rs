//! Messages assembled of any bytes, compressed or not, in pieces of any size.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tautline::internals::fuzz::messages(bytes));
