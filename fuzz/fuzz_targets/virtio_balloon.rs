//! See `coracle_fuzz::virtio_balloon`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::virtio_balloon(data));
