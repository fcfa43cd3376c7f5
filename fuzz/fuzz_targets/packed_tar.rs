//! See `coracle_fuzz::packed_tar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::packed_tar(data));
