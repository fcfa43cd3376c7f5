//! See `coracle_fuzz::agent_guest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::agent_guest(data));
