//! The order of a host's addresses after dials that failed or succeeded.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tautline::internals::fuzz::addresses(bytes));
