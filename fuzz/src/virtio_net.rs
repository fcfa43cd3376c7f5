//! A guest and a peer that give a network card frames, room and questions of any kind.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use coracle_devices::backend::net::Stream;
use coracle_devices::virtio::net::{MacAddress, Net, NetSettings};
use coracle_devices::virtio::poll::Poll;
use coracle_devices::virtio::testing::{BUFFERS, Buffer, Machine};

/// The first byte chooses the features; the rest is a list of steps of 8 bytes: kind, cut, length (16 bits),
/// value (32 bits).
pub fn virtio_net(data: &[u8]) {
    let Some((&choice, steps)) = data.split_first() else { return };
    let (ours, mut peer) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    peer.set_nonblocking(true).unwrap();
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
    let settings =
        NetSettings { name: "net".into(), mac, mtu: (choice & 1 == 1).then_some(1500), poll: Poll::DEFAULT };
    let net = Arc::new(Net::new(settings, Box::new(Stream::new(ours))));
    let machine = Machine::new(net.clone());
    let without = if choice & 2 == 2 { 1 << MRG_RXBUF } else { 0 };
    let mut rings = machine.start(without);
    machine.put(BUFFERS + OUTSIDE, &[0x5a; 4096]);
    for step in steps.chunks_exact(8).take(MAX_STEPS) {
        let &[kind, cut, low, high, ref value @ ..] = step else { return };
        let len = u16::from_le_bytes([low, high]).into();
        match kind % 8 {
            0 => drop(rings[0].offer(&buffers(BUFFERS, len, cut, true))),
            1 => {
                machine.put(FRAME, value);
                rings[1].offer(&buffers(FRAME, len, cut, cut & 0x80 != 0));
            }
            2 => {
                machine.put(FRAME, &[&[cut % 8, low % 4][..], value, &[high; 8]].concat());
                rings[2].offer(&[Buffer::readable(FRAME, len % 32), Buffer::writable(BUFFERS, 1)]);
            }
            3 => {
                let frame = vec![cut; usize::from(low) * 8];
                let _ = peer.write(&[&(frame.len() as u32).to_be_bytes(), &frame[..]].concat());
            }
            // Anything, which is hardly ever a frame.
            4 => drop(peer.write(value)),
            5 => drop(peer.read(&mut [0; 8192])),
            6 => {
                assert!(machine.transport.pause().is_ok());
                machine.transport.resume();
            }
            _ => rings = machine.start(without),
        }
        (0..3).for_each(|queue| machine.kick(queue));
        for ring in &mut rings {
            while ring.completed().is_some() {}
        }
    }
    assert_eq!(machine.bytes(BUFFERS + OUTSIDE, 4096), [0x5a; 4096], "written outside of the room");
    let mut rings = machine.start(without);
    let head = rings[2].offer(&[Buffer::readable(FRAME, 1), Buffer::writable(BUFFERS, 1)]);
    machine.kick(2);
    assert_eq!(rings[2].completed(), Some((head.into(), 1)));
}

/// `len` bytes in up to four parts.
fn buffers(address: u64, len: u32, cut: u8, writable: bool) -> Vec<Buffer> {
    let parts = u32::from(cut % 4) + 1;
    let part =
        |at: u32| Buffer { address: address + u64::from(at * (len / parts)), len: len / parts, writable };
    (0..parts).map(part).collect()
}

/// VIRTIO_NET_F_MRG_RXBUF.
const MRG_RXBUF: u64 = 15;
/// The address of the guest's frames and requests; the device must not touch the memory from [`OUTSIDE`] on.
const FRAME: u64 = BUFFERS + (1 << 20);
const OUTSIDE: u64 = 1 << 17;
const MAX_STEPS: usize = 500;
