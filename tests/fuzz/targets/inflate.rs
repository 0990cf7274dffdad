//! Compressed messages beside a reference that inflates whole streams.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tautline::internals::fuzz::inflate(bytes));
