//! See `coracle_fuzz::control_protocol`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::control_protocol(data));
