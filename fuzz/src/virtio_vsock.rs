//! A driver that sends packets of any kind to a socket device, while the program of the host accepts, reads,
//! writes and closes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use coracle_devices::virtio::testing::{BUFFERS, Buffer, Machine, Ring};
use coracle_devices::virtio::vsock::Vsock;

/// After each step no table of the device is larger than its connections explain.
///
/// `data` is a list of steps of 16 bytes: action, operation, port of the guest, port of the host, flags,
/// type, length of the packet's bytes (16 bits), length as told (32 bits), room as told (16 bits), bytes
/// taken as told (16 bits).
pub fn virtio_vsock(data: &[u8]) {
    let vsock = Arc::new(Vsock::new(3, None).unwrap());
    let listener = vsock.switchboard().listen(0).unwrap();
    let machine = Machine::new(vsock.clone());
    let mut rings = start(&machine);
    let mut host: Vec<UnixStream> = Vec::new();
    for step in data.chunks_exact(16).take(MAX_STEPS) {
        let &[action, op, port, host_port, flags, kind, low, high, ref told @ ..] = step else { return };
        let len = u32::from(u16::from_le_bytes([low, high])) % 8192;
        match action % 16 {
            0 => {
                let stream = listener.accept_within(Duration::ZERO).unwrap();
                host.extend(stream.inspect(|stream| stream.set_nonblocking(true).unwrap()));
            }
            1 => drop(host.pop()),
            2 => host.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Write))),
            3 => host.iter_mut().for_each(|stream| drop(stream.read(&mut [0; 8192]))),
            4 => host.iter_mut().for_each(|stream| drop(stream.write(&vec![7; len as usize]))),
            5 => {
                assert!(machine.transport.pause().is_ok());
                machine.transport.resume();
            }
            6 if op == 0xff => rings = start(&machine),
            _ => {
                let told_len = u32::from_le_bytes(told[..4].try_into().unwrap());
                let header = [
                    &[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..],
                    &[port % 4, 0, 0, 0, host_port % 2, 0, 0, 0],
                    &if action & 0x80 == 0 { len } else { told_len }.to_le_bytes(),
                    &[1 + kind / 250, 0, op % 9, 0, flags, 0, 0, 0],
                    &[told[4], told[5], 0, 0, told[6], told[7], 0, 0],
                ];
                machine.put(PACKET, &header.concat());
                let cut = 1 + u64::from(flags) % 44;
                rings[1].offer(&[
                    Buffer::readable(PACKET, cut as u32),
                    Buffer::readable(PACKET + cut, 44 - cut as u32 + len),
                ]);
                machine.kick(1);
                while rings[1].completed().is_some() {}
            }
        }
        // With this bit the guest does not take what it is sent.
        if action & 0x40 == 0 {
            collect(&machine, &mut rings[0]);
        }
        vsock.assert_bounded();
        assert!(!machine.needs_reset());
    }
}

fn start(machine: &Machine) -> Vec<Ring> {
    let mut rings = machine.start(0);
    for index in 0..16 {
        rings[0].descriptor(index, BUFFERS + u64::from(index) * 4096, 4096, 2, 0);
        rings[0].offer_head(index);
    }
    machine.kick(0);
    rings
}

/// Takes the packets for the guest and offers their buffers again.
fn collect(machine: &Machine, ring: &mut Ring) {
    machine.settle();
    while let Some((head, len)) = ring.completed() {
        let packet = machine.bytes(BUFFERS + u64::from(head) * 4096, len as usize);
        assert!(packet.len() >= 44, "{len} bytes are not a packet");
        let told = u32::from_le_bytes(packet[24..28].try_into().unwrap());
        assert_eq!(told as usize, packet.len() - 44);
        ring.offer_head(head as u16);
    }
    machine.kick(0);
}

const PACKET: u64 = BUFFERS + (1 << 20);
const MAX_STEPS: usize = 400;
