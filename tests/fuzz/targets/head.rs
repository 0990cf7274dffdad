//! The head of an answer to the opening handshake, and its judgement.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tautline::internals::fuzz::head(bytes));
