//! See `coracle_fuzz::agent_host`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::agent_host(data));
