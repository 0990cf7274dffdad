//! Messages that are compressed inside their frames, beside the decoders of flate2.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tautline::internals::fuzz::decode(bytes));
