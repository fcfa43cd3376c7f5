//! See `coracle_fuzz::suite_toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::suite_toml(data));
