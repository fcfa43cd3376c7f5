//! A driver that writes anything into the ring of a device that runs.

use coracle_devices::virtio::feature;
use coracle_devices::virtio::testing::{BUFFERS, Ring};

use super::virtio_echo::machine;

/// The first byte chooses features; the rest is a list of steps of 12 bytes: kind, index, place (16 bits),
/// value (64 bits).
pub fn virtio_ring(data: &[u8]) {
    let Some((&features, steps)) = data.split_first() else { return };
    let machine = machine();
    let without = [0, 1 << feature::EVENT_IDX, 1 << feature::INDIRECT_DESC][usize::from(features) % 3];
    let mut rings = machine.start(without);
    for step in steps.chunks_exact(12).take(MAX_STEPS) {
        let (head, value) = step.split_at(4);
        let &[kind, index, low, high] = head else { return };
        let (place, value) = (u16::from_le_bytes([low, high]), u64::from_le_bytes(value.try_into().unwrap()));
        let ring: &mut Ring = &mut rings[0];
        let descriptor = ring.descriptors() + u64::from(index % 16) * 16;
        match kind % 10 {
            0 => machine.put(descriptor, &value.to_le_bytes()),
            1 => machine.put(descriptor + 8, &value.to_le_bytes()),
            2 => machine.put(ring.available() + u64::from(place % 48), &value.to_le_bytes()[..2]),
            3 => ring.set_available_index(place),
            4 => ring.offer_head(place % 20),
            5 => machine.kick(0),
            // Where indirect tables may be.
            6 => machine.put(BUFFERS + u64::from(place), &value.to_le_bytes()),
            7 => machine.put(ring.used() + u64::from(place % 140), &value.to_le_bytes()[..2]),
            8 => ring.set_used_event(place),
            _ => rings = machine.start(without),
        }
    }
    machine.kick(0);
    // Whatever was done to it, the device works after a reset.
    rings = machine.start(without);
    let head = rings[0].offer(&[coracle_devices::virtio::testing::Buffer::writable(BUFFERS, 8)]);
    machine.kick(0);
    assert_eq!(rings[0].completed(), Some((head.into(), 8)));
}

/// Each start clears rings of 48 KiB, so that an input cannot take for ever.
const MAX_STEPS: usize = 2000;
