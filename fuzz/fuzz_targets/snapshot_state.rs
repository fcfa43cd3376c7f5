//! See `coracle_fuzz::snapshot_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::snapshot_state(data));
