//! See `coracle_fuzz::root_tar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::root_tar(data));
