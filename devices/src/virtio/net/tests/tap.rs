//! The card on a tap: frames of a real interface, with its offloads.

use std::net::UdpSocket;

use super::*;
use crate::backend::net::testing::{Interface, frame, in_own_network, ip, wait_until_up};
use crate::backend::net::{Offloads, Tap};

struct TapSetup {
    machine: Machine,
    rings: Vec<Ring>,
    net: Arc<Net>,
    interface: Interface,
}

fn setup(without: u64) -> TapSetup {
    let interface = Interface::new("tap0");
    let net = Arc::new(Net::new(settings("net tap=tap0"), Box::new(Tap::open("tap0").unwrap())));
    wait_until_up("tap0");
    let machine = Machine::new(net.clone());
    let rings = machine.start(without);
    TapSetup { machine, rings, net, interface }
}

impl TapSetup {
    fn offer_room(&mut self, count: u64, len: u32) {
        for at in 0..count {
            self.rings[0].offer(&[Buffer::writable(BUFFERS + at * u64::from(len), len)]);
        }
        self.machine.kick(0);
    }

    /// Returns the next frame that the guest receives. The kernel may take its time.
    #[track_caller]
    fn received(&mut self) -> (u32, u32) {
        let mut completed = None;
        until(|| {
            self.machine.settle();
            completed = self.rings[0].completed();
            completed.is_some()
        });
        completed.unwrap()
    }

    /// Returns the next frame that the kernel receives.
    #[track_caller]
    fn sent(&mut self) -> Vec<u8> {
        let mut frame = None;
        until(|| {
            frame = self.interface.receive();
            frame.is_some()
        });
        frame.unwrap()
    }

    fn send(&mut self, header: &[u8; 12], frame: &[u8]) {
        self.machine.put(FRAMES, header);
        self.machine.put(FRAMES + 12, frame);
        let head = self.rings[1]
            .offer(&[Buffer::readable(FRAMES, 12), Buffer::readable(FRAMES + 12, frame.len() as u32)]);
        self.machine.kick(1);
        assert_eq!(self.rings[1].completed(), Some((head.into(), 0)));
    }
}

const PLAIN: [u8; 12] = [0; 12];

#[test]
fn frames_go_both_ways_and_nothing_is_added() {
    in_own_network(|| {
        let mut setup = setup(0);
        setup.offer_room(8, 2048);
        for len in [60, 1514, 9014] {
            setup.send(&PLAIN, &frame(len, 1));
            assert_eq!(setup.sent(), frame(len, 1));
        }
        assert!(setup.interface.send(&frame(60, 2)) && setup.interface.send(&frame(5000, 3)));
        assert_eq!(setup.received(), (0, 72));
        assert_eq!(setup.machine.bytes(BUFFERS + 12, 60), frame(60, 2));
        assert_eq!(setup.machine.bytes(BUFFERS + 10, 2), [1, 0]);
        let lens = [setup.received(), setup.received(), setup.received()];
        assert_eq!(lens, [(1, 2048), (2, 2048), (3, 5012 - 4096)]);
        assert_eq!(setup.machine.bytes(BUFFERS + 2048 + 10, 2), [3, 0]);
        assert_eq!(
            setup.machine.bytes(BUFFERS + 2048 + 12, 5000),
            frame(5000, 3),
            "buffers are side by side"
        );
    });
}

#[test]
fn invalid_header_costs_only_its_frame() {
    in_own_network(|| {
        let mut setup = setup(0);
        let senseless: [[u8; 12]; 5] = [
            [0xff; 12],
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
            [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        ];
        for (header, dropped) in senseless.iter().zip(1..) {
            setup.send(header, &frame(100, 1));
            assert_eq!(setup.net.counts().send_dropped, dropped, "{header:?}");
        }
        setup.send(&PLAIN, &frame(100, 2));
        assert_eq!(setup.sent(), frame(100, 2));
    });
}

/// The kernel leaves the checksum of UDP to a receiver that can finish it, and finishes it for one that
/// cannot.
#[test]
fn checksums_are_left_to_a_driver_that_accepts_the_offload() {
    for (without, is_left) in [(0, true), (1 << GUEST_CSUM, false)] {
        in_own_network(move || {
            let mut setup = setup(without);
            setup.offer_room(8, 2048);
            ip("addr add 10.9.0.1/24 dev tap0");
            ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev tap0");
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            socket.send_to(b"hello", "10.9.0.2:9").unwrap();
            let datagram = loop {
                let (head, _) = setup.received();
                let bytes = setup.machine.bytes(BUFFERS + u64::from(head) * 2048, 64);
                if bytes[24..26] == [8, 0] && bytes[12 + 14 + 9] == 17 {
                    break bytes;
                }
            };
            assert_eq!(datagram[0] & 1 == 1, is_left, "{datagram:02x?}");
            assert_eq!(&datagram[12 + 14 + 28..][..5], b"hello");
        });
    }
}

#[test]
fn offloads_follow_the_driver_and_its_control_queue() {
    in_own_network(|| {
        let mut setup = setup(0);
        let all = 1_u64 << GUEST_CSUM | 1 << GUEST_TSO4 | 1 << GUEST_TSO6 | 1 << GUEST_ECN;
        let mut ask = |bits: u64| {
            setup.machine.put(BUFFERS, &[&[5, 0][..], &bits.to_le_bytes()].concat());
            setup.rings[2].offer(&[Buffer::readable(BUFFERS, 10), Buffer::writable(BUFFERS + 64, 1)]);
            setup.machine.kick(2);
            assert!(setup.rings[2].completed().is_some());
            setup.machine.bytes(BUFFERS + 64, 1)[0]
        };
        assert_eq!((ask(0), ask(1 << GUEST_CSUM), ask(all)), (0, 0, 0));
        assert_eq!((ask(1 << 10), ask(u64::MAX)), (1, 1), "UFO was not negotiated");
    });
    assert_eq!(accepted_offloads(0), Offloads::default());
    assert_eq!(
        accepted_offloads(1 << GUEST_TSO4),
        Offloads::default(),
        "without checksums there are no segments"
    );
    assert_eq!(accepted_offloads(u64::MAX), Offloads::ALL);
}

#[test]
fn flood_without_buffers_is_dropped_by_the_host_and_the_card_recovers() {
    in_own_network(|| {
        let mut setup = setup(0);
        for _ in 0..10_000 {
            setup.interface.send(&frame(1000, 1));
        }
        setup.machine.settle();
        assert_eq!(setup.net.counts(), NetCounts::default());
        for round in 0..100 {
            setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2048)]);
            setup.machine.kick(0);
            assert_eq!(setup.received(), (round % 16, 1012));
        }
        setup.send(&PLAIN, &frame(100, 2));
        until(|| setup.interface.receive() == Some(frame(100, 2)));
    });
}

#[test]
fn link_goes_down_when_the_tap_is_removed() {
    for with_room in [true, false] {
        in_own_network(move || {
            let mut setup = setup(0);
            if with_room {
                setup.offer_room(4, 2048);
            }
            setup.machine.settle();
            assert!(setup.net.is_up());
            ip("link del tap0");
            until(|| {
                setup.machine.settle();
                !setup.net.is_up()
            });
            assert_eq!(setup.machine.read(0x104) >> 16 & 1, 0);
            setup.send(&PLAIN, &frame(60, 1));
            assert!(!setup.machine.needs_reset());
        });
    }
}

#[test]
fn interface_that_is_down_costs_frames_and_comes_back() {
    in_own_network(|| {
        let mut setup = setup(0);
        ip("link set tap0 down");
        setup.send(&PLAIN, &frame(60, 1));
        assert_eq!(setup.net.counts().send_dropped, 1);
        assert!(setup.net.is_up());
        ip("link set tap0 up");
        setup.send(&PLAIN, &frame(60, 2));
        assert_eq!(setup.net.counts().sent, 1);
    });
}

#[test]
fn reset_forgets_frames_that_were_meant_for_another_driver() {
    in_own_network(|| {
        let mut setup = setup(0);
        assert!(setup.interface.send(&frame(60, 1)));
        let descriptor = lock(&setup.net.backend).interest(false).descriptor;
        until(|| {
            let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
            // SAFETY: the call writes to one `pollfd`.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        });
        setup.rings = setup.machine.start(0);
        setup.offer_room(2, 2048);
        assert_eq!(setup.rings[0].completed(), None);
        assert!(setup.interface.send(&frame(60, 2)));
        assert_eq!(setup.received(), (0, 72));
        assert_eq!(setup.machine.bytes(BUFFERS + 12, 60), frame(60, 2));
    });
}
