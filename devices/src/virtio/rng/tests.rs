//! The entropy device through its ring.

use std::sync::Arc;

use super::Rng;
use crate::virtio::testing::{BUFFERS, Buffer, Machine, Usual, conform};

#[test]
fn conforms() {
    let usual = Usual { queue: 0, prepare: |_| (), buffers: vec![Buffer::writable(BUFFERS, 32)] };
    conform(&|| Arc::new(Rng), &usual);
}

#[test]
fn buffers_are_filled_and_nothing_after_them() {
    let machine = Machine::new(Arc::new(Rng));
    let mut rings = machine.start(0);
    rings[0].offer(&[Buffer::writable(BUFFERS, 100), Buffer::writable(BUFFERS + 4096, 5000)]);
    machine.kick(0);
    assert_eq!(rings[0].completed(), Some((0, 5100)));
    for (start, len) in [(BUFFERS, 100), (BUFFERS + 4096, 5000)] {
        let bytes = machine.bytes(start, len);
        assert!(bytes.windows(16).all(|window| window.iter().any(|byte| *byte != 0)));
        assert!(machine.bytes(start + len as u64, 64).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn long_request_gets_64_kib() {
    let machine = Machine::new(Arc::new(Rng));
    let mut rings = machine.start(0);
    let pieces: Vec<Buffer> = (0..10).map(|_| Buffer::writable(BUFFERS, 1 << 20)).collect();
    rings[0].offer(&pieces);
    machine.kick(0);
    assert_eq!(rings[0].completed(), Some((0, 64 << 10)));
    assert!(machine.bytes(BUFFERS + (64 << 10), 4096).iter().all(|byte| *byte == 0));
}

#[test]
fn request_without_space_comes_back_empty() {
    let machine = Machine::new(Arc::new(Rng));
    let mut rings = machine.start(0);
    for buffer in [Buffer::writable(BUFFERS, 0), Buffer::readable(BUFFERS, 64)] {
        let head = rings[0].offer(&[buffer]);
        machine.kick(0);
        assert_eq!(rings[0].completed(), Some((head.into(), 0)));
    }
}

#[test]
fn endless_demand_is_served_at_a_bounded_rate_and_goes_on() {
    let machine = Machine::new(Arc::new(Rng));
    let mut rings = machine.start(0);
    let start = std::time::Instant::now();
    let (mut bytes, mut waiting) = (0_u64, 0);
    // Four times the bytes of one period.
    while bytes < 4 << 20 {
        while let Some((_, len)) = rings[0].completed() {
            bytes += u64::from(len);
            waiting -= 1;
        }
        while waiting < 16 {
            rings[0].offer(&[Buffer::writable(BUFFERS, 64 << 10)]);
            waiting += 1;
        }
        machine.kick(0);
        assert!(start.elapsed().as_secs() < 60);
    }
    assert!(start.elapsed().as_millis() >= 3 * 62, "{:?}", start.elapsed());
}
