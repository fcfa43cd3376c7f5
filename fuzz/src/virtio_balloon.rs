//! A guest that gives a balloon any pages, and reports any memory.

use std::sync::Arc;

use coracle_devices::virtio::balloon::Balloon;
use coracle_devices::virtio::testing::{BUFFERS, Buffer, HIGH_RAM_LEN, LOW_RAM_LEN, Machine};

/// `data` is a list of steps: a kind, a count of numbers and the numbers (32 bits each), which are pages, or
/// places and lengths.
pub fn virtio_balloon(data: &[u8]) {
    let balloon = Arc::new(Balloon::new(LOW_RAM_LEN + HIGH_RAM_LEN));
    let machine = Machine::new(balloon.clone());
    let mut rings = machine.start(0);
    let mut rest = data;
    for _ in 0..MAX_STEPS {
        let Some((&[kind, count], after)) = rest.split_first_chunk() else { break };
        let (numbers, after) = after.split_at(after.len().min(4 * usize::from(count)));
        rest = after;
        let queue = u16::from(kind % 4).min(2);
        let ring = &mut rings[usize::from(queue)];
        if queue == 2 {
            let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
            let pairs = numbers.chunks_exact(8);
            let buffer = |pair: &[u8]| Buffer {
                address: number(&pair[..4]).into(),
                len: number(&pair[4..]),
                writable: kind & 0x80 == 0,
            };
            ring.offer(&pairs.map(buffer).chain([Buffer::writable(BUFFERS, 1)]).take(16).collect::<Vec<_>>());
        } else {
            machine.put(BUFFERS, numbers);
            ring.offer(&[Buffer::readable(BUFFERS, numbers.len() as u32)]);
        }
        machine.kick(queue);
        balloon.set_target(u64::from(count) << 12);
        let completed = rings[usize::from(queue)].completed();
        // The rings are memory that can be given, too.
        if completed.is_none() {
            rings = machine.start(0);
        }
    }
    assert!(balloon.status().target_bytes <= LOW_RAM_LEN + HIGH_RAM_LEN);
    let mut rings = machine.start(0);
    let head = rings[1].offer(&[Buffer::readable(BUFFERS, 4)]);
    machine.kick(1);
    assert_eq!(rings[1].completed(), Some((head.into(), 0)));
}

const MAX_STEPS: usize = 300;
