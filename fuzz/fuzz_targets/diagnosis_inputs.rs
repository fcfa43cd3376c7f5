//! See `coracle_fuzz::diagnosis_inputs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::diagnosis_inputs(data));
