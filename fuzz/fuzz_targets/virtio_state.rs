//! See `coracle_fuzz::virtio_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::virtio_state(data));
