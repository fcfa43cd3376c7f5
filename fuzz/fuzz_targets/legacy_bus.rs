//! See `coracle_fuzz::legacy_bus`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::legacy_bus(data));
