//! See `coracle_fuzz::tap_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::tap_stream(data));
