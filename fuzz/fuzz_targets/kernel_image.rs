//! See `coracle_fuzz::kernel_image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::kernel_image(data));
