//! A whole connection, from the socket to the handler, whose server sends any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tautline::internals::fuzz::connection(bytes));
