//! A driver that accesses the registers of a device in any order, while its machine is paused, saved,
//! restored, resumed and reset.

use coracle_devices::virtio::testing::BUFFERS;

use super::virtio_echo::machine;

/// `data` is a list of operations of 8 bytes: kind, offset (16 bits), width, value (32 bits).
pub fn virtio_mmio(data: &[u8]) {
    let machine = machine();
    for operation in data.chunks_exact(8).take(MAX_OPERATIONS) {
        let &[kind, low, high, width, ref value @ ..] = operation else { return };
        let offset = u64::from(u16::from_le_bytes([low, high])) % 0x1008;
        let number = u32::from_le_bytes(value.try_into().unwrap());
        let width = [4, 1, 2, 8, 3, 0][usize::from(width) % 6];
        match kind % 12 {
            0..4 => {
                let mut data = [0; 8];
                data[..4].copy_from_slice(value);
                machine.transport.write(offset, &data[..width]);
            }
            4 => {
                let (mut zeros, mut ones) = ([0; 8], [0xff; 8]);
                machine.transport.read(offset, &mut zeros[..width]);
                machine.transport.read(offset, &mut ones[..width]);
                assert_eq!((&zeros[width..], &ones[width..]), (&[0; 8][width..], &[0xff; 8][width..]));
            }
            // The driver that does the right thing, up to some point.
            5 => machine.negotiate(machine.offered() & !u64::from(number)),
            6 => drop(machine.start(u64::from(number))),
            7 => machine.put(u64::from(number) & 0xf_ffff, value),
            8 => machine.kick(u16::from_le_bytes([low, high]) % 4),
            9 => {
                assert!(machine.transport.pause().is_ok());
                // Any state that a driver can reach can be saved, and is accepted.
                let state = machine.transport.save().unwrap();
                if number & 1 == 1 {
                    machine.transport.prepare(&state).unwrap().apply();
                    assert_eq!(machine.transport.save(), Some(state));
                }
            }
            10 => machine.transport.resume(),
            _ => {
                assert!(machine.transport.disconnect().is_ok());
                assert_eq!(machine.status(), 0);
                machine.transport.connect(machine.memory.clone(), Box::new(|| {}));
            }
        }
        machine.settle();
    }
    machine.transport.resume();
    let mut rings = machine.start(0);
    assert_eq!(machine.status(), 15);
    let head = rings[1].offer(&[coracle_devices::virtio::testing::Buffer::writable(BUFFERS, 8)]);
    machine.kick(1);
    assert_eq!(rings[1].completed(), Some((head.into(), 8)));
}

const MAX_OPERATIONS: usize = 1000;
