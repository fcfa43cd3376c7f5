//! See `coracle_fuzz::virtio_net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::virtio_net(data));
