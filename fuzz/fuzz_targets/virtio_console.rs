//! See `coracle_fuzz::virtio_console`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::virtio_console(data));
