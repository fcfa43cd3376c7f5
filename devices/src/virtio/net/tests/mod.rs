//! The network card through its rings, with a socket or a tap as its other end.

mod hostile;
mod several_ends;
mod tap;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::handler::PATIENCE;
use super::*;
use crate::backend::net::{HEADER_LEN, MAX_FRAME_LEN, Stream};
use crate::virtio::feature;
use crate::virtio::poll::Poll;
use crate::virtio::testing::{BUFFERS, Buffer, Machine, Ring, Usual, conform};

const HEADER: u32 = HEADER_LEN;
/// The address of the guest's frames.
const FRAMES: u64 = BUFFERS + (2 << 20);

fn settings(name: &str) -> NetSettings {
    NetSettings {
        name: name.into(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        mtu: None,
        poll: Poll::DEFAULT,
    }
}

/// Makes a card, and the program at its other end.
fn card() -> (Arc<Net>, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (Arc::new(Net::new(settings("net 0"), Box::new(Stream::new(ours)))), peer)
}

/// A machine with a started card.
struct Setup {
    machine: Machine,
    rings: Vec<Ring>,
    net: Arc<Net>,
    peer: UnixStream,
}

fn setup_without(features: u64) -> Setup {
    let (net, peer) = card();
    let machine = Machine::new(net.clone());
    let rings = machine.start(features);
    Setup { machine, rings, net, peer }
}

fn setup() -> Setup {
    setup_without(0)
}

/// Bytes that show where they were.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn on_the_wire(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn from_the_wire(peer: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    peer.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

impl Setup {
    /// Offers a frame to send, after an empty header.
    fn offer_frame(&mut self, frame: &[u8]) -> u16 {
        self.machine.put(FRAMES, &[0; HEADER_LEN as usize]);
        self.machine.put(FRAMES + u64::from(HEADER), frame);
        self.rings[1].offer(&[Buffer::readable(FRAMES, HEADER + frame.len() as u32)])
    }

    /// Sends a frame, and expects its completion.
    #[track_caller]
    fn send(&mut self, frame: &[u8]) {
        let head = self.offer_frame(frame);
        self.machine.kick(1);
        assert_eq!(self.rings[1].completed(), Some((head.into(), 0)));
    }

    /// Sends a command to the control queue, and returns the answer.
    fn ask(&mut self, command: &[u8]) -> Option<u8> {
        self.machine.put(BUFFERS, command);
        self.machine.put(BUFFERS + 4096, &[0xee]);
        self.rings[2]
            .offer(&[Buffer::readable(BUFFERS, command.len() as u32), Buffer::writable(BUFFERS + 4096, 1)]);
        self.machine.kick(2);
        let (_, written) = self.rings[2].completed()?;
        (written == 1).then(|| self.machine.bytes(BUFFERS + 4096, 1)[0])
    }

    /// A round trip of one frame each way shows that the card works.
    #[track_caller]
    fn expect_alive(&mut self) {
        self.send(&frame(60, 1));
        assert_eq!(from_the_wire(&mut self.peer), frame(60, 1));
        self.rings[0].offer(&[Buffer::writable(BUFFERS, 2000)]);
        self.machine.kick(0);
        self.peer.write_all(&on_the_wire(&frame(60, 2))).unwrap();
        self.machine.settle();
        let (_, len) = self.rings[0].completed().unwrap();
        assert_eq!(len, HEADER + 60);
        assert_eq!(self.machine.bytes(BUFFERS + u64::from(HEADER), 60), frame(60, 2));
    }
}

/// Waits for a condition, for a time in which it becomes true on any host.
#[track_caller]
fn until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn conforms_on_the_transmit_queue() {
    let make = || -> Arc<dyn VirtioDevice> {
        let (net, mut peer) = card();
        thread::spawn(move || {
            peer.set_read_timeout(None).unwrap();
            std::io::copy(&mut peer, &mut std::io::sink())
        });
        net
    };
    conform(&make, &Usual { queue: 1, prepare: |_| (), buffers: vec![Buffer::readable(BUFFERS, 72)] });
}

#[test]
fn conforms_on_the_control_queue() {
    let make = || -> Arc<dyn VirtioDevice> {
        let (net, peer) = card();
        // The link is up for as long as the device lives.
        std::mem::forget(peer);
        net
    };
    let prepare = |machine: &Machine| machine.put(BUFFERS, &[0, 0, 1]);
    let buffers = vec![Buffer::readable(BUFFERS, 3), Buffer::writable(BUFFERS + 64, 1)];
    conform(&make, &Usual { queue: 2, prepare, buffers });
}

#[test]
fn configuration_has_address_link_and_mtu() {
    let (ours, _peer) = UnixStream::pair().unwrap();
    let settings = NetSettings { mtu: Some(9000), ..settings("net 0") };
    let net = Net::new(settings, Box::new(Stream::new(ours)));
    assert_eq!(net.config(), [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23]);
    assert_eq!(net.features() >> MTU & 1, 1);
    let (net, _peer) = card();
    assert_eq!(net.features() >> MTU & 1, 0);
    assert_eq!(net.features() & (1 << CSUM | 1 << GUEST_CSUM | 1 << HOST_TSO4 | 1 << GUEST_TSO4), 0);
}

#[test]
fn frame_goes_out_whatever_its_framing() {
    let mut setup = setup();
    let data = frame(100, 7);
    setup.machine.put(FRAMES, &[0xff; HEADER_LEN as usize]);
    setup.machine.put(FRAMES + u64::from(HEADER), &data);
    let total = HEADER + 100;
    for cut in [1, 5, 11, 12, 13, 60, total - 1] {
        let parts = [Buffer::readable(FRAMES, cut), Buffer::readable(FRAMES + u64::from(cut), total - cut)];
        let head = setup.rings[1].offer(&parts);
        setup.machine.kick(1);
        assert_eq!(setup.rings[1].completed(), Some((head.into(), 0)));
        assert_eq!(from_the_wire(&mut setup.peer), data, "cut at {cut}");
    }
    assert_eq!(setup.net.counts().sent, 7);
}

#[test]
fn frames_arrive_with_a_header_that_counts_their_buffers() {
    let mut setup = setup();
    for at in 0..4 {
        setup.rings[0].offer(&[Buffer::writable(BUFFERS + at * 4096, 1500)]);
    }
    setup.machine.kick(0);
    setup.peer.write_all(&on_the_wire(&frame(60, 1))).unwrap();
    setup.peer.write_all(&on_the_wire(&frame(4000, 2))).unwrap();
    setup.machine.settle();
    assert_eq!(setup.rings[0].completed(), Some((0, HEADER + 60)));
    assert_eq!(setup.machine.bytes(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(setup.machine.bytes(BUFFERS + 12, 60), frame(60, 1));
    let rest = HEADER + 4000 - 3000;
    for (head, len) in [(1, 1500), (2, 1500), (3, rest)] {
        assert_eq!(setup.rings[0].completed(), Some((head, len)));
    }
    assert_eq!(setup.machine.bytes(BUFFERS + 4096, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    let parts = [(4096 + 12, 1488), (2 * 4096, 1500), (3 * 4096, rest as usize)];
    let got: Vec<u8> = parts.iter().flat_map(|(at, len)| setup.machine.bytes(BUFFERS + at, *len)).collect();
    assert_eq!(got, frame(4000, 2));
    assert_eq!(setup.net.counts().received, 2);
}

#[test]
fn header_and_frame_fill_buffers_of_any_framing() {
    let mut setup = setup();
    for cut in [1_u32, 10, 11, 12, 13, 40] {
        let len = HEADER + 60;
        let head = setup.rings[0]
            .offer(&[Buffer::writable(BUFFERS, cut), Buffer::writable(BUFFERS + 4096, len - cut)]);
        setup.machine.kick(0);
        setup.peer.write_all(&on_the_wire(&frame(60, cut as u8))).unwrap();
        setup.machine.settle();
        assert_eq!(setup.rings[0].completed(), Some((head.into(), len)));
        let first = setup.machine.bytes(BUFFERS, cut as usize);
        let got = [first, setup.machine.bytes(BUFFERS + 4096, (len - cut) as usize)].concat();
        assert_eq!((got[10], &got[12..]), (1, &frame(60, cut as u8)[..]));
    }
}

#[test]
fn driver_without_merged_buffers_gets_each_frame_in_one() {
    let mut setup = setup_without(1 << MRG_RXBUF);
    for at in 0..3 {
        setup.rings[0].offer(&[Buffer::writable(BUFFERS + at * 4096, 1600)]);
    }
    setup.machine.kick(0);
    for len in [1588, 1589, 60] {
        setup.peer.write_all(&on_the_wire(&frame(len, 9))).unwrap();
    }
    setup.machine.settle();
    assert_eq!(setup.rings[0].completed(), Some((0, 1600)));
    assert_eq!(setup.machine.bytes(BUFFERS + 10, 2), [1, 0]);
    assert_eq!(setup.rings[0].completed(), Some((1, HEADER + 60)), "the frame that is too long is dropped");
    assert_eq!(setup.machine.bytes(BUFFERS + 4096 + 12, 60), frame(60, 9));
    assert_eq!(setup.rings[0].completed(), None);
    let counts = NetCounts { received: 2, receive_dropped: 1, ..NetCounts::default() };
    assert_eq!(setup.net.counts(), counts);
}

#[test]
fn frames_wait_for_room_and_come_in_their_order() {
    let mut setup = setup();
    for seed in 0..5 {
        setup.peer.write_all(&on_the_wire(&frame(100, seed))).unwrap();
    }
    setup.machine.settle();
    assert_eq!(setup.rings[0].completed(), None);
    for seed in 0..5 {
        let head = setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2048)]);
        setup.machine.kick(0);
        assert_eq!(setup.rings[0].completed(), Some((head.into(), HEADER + 100)));
        assert_eq!(setup.machine.bytes(BUFFERS + 12, 100), frame(100, seed));
    }
}

#[test]
fn long_frame_waits_for_more_buffers_and_is_dropped_if_none_come() {
    let mut setup = setup();
    let long = frame(MAX_FRAME_LEN as usize, 3);
    let peer = setup.peer.try_clone().unwrap();
    let feed = |data: Vec<u8>| {
        let mut peer = peer.try_clone().unwrap();
        thread::spawn(move || peer.write_all(&data).unwrap())
    };
    setup.rings[0].offer(&[Buffer::writable(BUFFERS, 30_000)]);
    setup.machine.kick(0);
    let feeding = feed(on_the_wire(&long));
    until(|| {
        setup.machine.settle();
        feeding.is_finished()
    });
    setup.machine.settle();
    assert_eq!(setup.rings[0].completed(), None);
    setup.rings[0].offer(&[Buffer::writable(BUFFERS + 30_000, 30_000)]);
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), None);
    setup.rings[0].offer(&[Buffer::writable(BUFFERS + 60_000, 30_000)]);
    setup.machine.kick(0);
    let rest = HEADER + MAX_FRAME_LEN - 60_000;
    for (head, len) in [(0, 30_000), (1, 30_000), (2, rest)] {
        assert_eq!(setup.rings[0].completed(), Some((head, len)));
    }
    assert_eq!(setup.machine.bytes(BUFFERS + 12, long.len()), long);

    setup.rings[0].offer(&[Buffer::writable(BUFFERS, 30_000)]);
    setup.machine.kick(0);
    let feeding = feed([on_the_wire(&long), on_the_wire(&frame(60, 4))].concat());
    until(|| {
        setup.machine.settle();
        feeding.is_finished()
    });
    let start = Instant::now();
    let mut completed = None;
    until(|| {
        setup.machine.settle();
        completed = setup.rings[0].completed();
        completed.is_some()
    });
    assert!(start.elapsed() >= PATIENCE / 2, "{:?}", start.elapsed());
    assert_eq!(completed, Some((3, HEADER + 60)));
    assert_eq!(setup.net.counts().receive_dropped, 1);
}

#[test]
fn guest_waits_for_a_slow_peer_and_loses_nothing() {
    let mut setup = setup();
    let (mut sent, mut received) = (0_usize, 0_usize);
    let data = |number: usize| frame(9000, number as u8);
    // Until both the socket and the queue are full.
    while sent - received < 200 {
        let before = setup.rings[1].used_index();
        setup.offer_frame(&data(sent));
        setup.machine.kick(1);
        if setup.rings[1].used_index() == before {
            break;
        }
        sent += 1;
    }
    assert!(sent > 3 && sent < 200, "{sent}");
    // The frame that is not taken stays in the queue, and is sent when there is space.
    while received < sent {
        assert_eq!(from_the_wire(&mut setup.peer), data(received));
        received += 1;
        setup.machine.settle();
    }
    assert_eq!(from_the_wire(&mut setup.peer), data(sent));
    assert_eq!(setup.net.counts().send_dropped, 0);
    while setup.rings[1].completed().is_some() {}
    setup.expect_alive();
}

#[test]
fn stopped_peer_costs_the_guest_frames_and_does_not_freeze_it() {
    let mut setup = setup();
    let start = Instant::now();
    let mut offered = 0_u64;
    until(|| {
        if u64::from(setup.rings[1].used_index()) == offered {
            setup.offer_frame(&frame(9000, 1));
            offered += 1;
        }
        setup.machine.kick(1);
        setup.net.counts().send_dropped > 10
    });
    assert!(start.elapsed() >= PATIENCE / 2);
    // The peer wakes up: the stream is intact, and frames are sent again.
    let sent = setup.net.counts().sent;
    for _ in 0..sent {
        assert_eq!(from_the_wire(&mut setup.peer), frame(9000, 1));
        setup.machine.settle();
    }
    while setup.rings[1].completed().is_some() {}
    setup.expect_alive();
}

#[test]
fn link_goes_down_with_its_peer_and_frames_are_dropped() {
    let mut setup = setup();
    setup.machine.interrupts();
    setup.peer.write_all(&on_the_wire(&frame(60, 1))).unwrap();
    setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2000)]);
    drop(std::mem::replace(&mut setup.peer, UnixStream::pair().unwrap().0));
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), Some((0, HEADER + 60)), "frames that came before are delivered");
    assert!(!setup.net.is_up());
    assert_eq!(setup.machine.read(0x60), 3, "a used buffer and a change of the configuration");
    assert_eq!(setup.machine.read(0x104) >> 16 & 1, 0, "the link is down");
    setup.send(&frame(60, 1));
    assert_eq!(setup.net.counts().send_dropped, 1);
    // After a reset as well.
    setup.rings = setup.machine.start(0);
    setup.send(&frame(60, 1));
    assert!(!setup.machine.needs_reset());
}

#[test]
fn peer_that_closes_while_there_is_no_room_does_not_spin() {
    let mut setup = setup();
    for _ in 0..3 {
        setup.peer.write_all(&on_the_wire(&frame(60, 1))).unwrap();
    }
    setup.machine.settle();
    drop(std::mem::replace(&mut setup.peer, UnixStream::pair().unwrap().0));
    until(|| {
        setup.machine.settle();
        !setup.net.is_up()
    });
    assert_eq!(setup.net.counts().receive_dropped, 3);
}

#[test]
fn peer_that_closes_while_frames_wait_for_it_frees_the_guest() {
    let mut setup = setup();
    let mut head = 0;
    loop {
        let before = setup.rings[1].used_index();
        setup.offer_frame(&frame(9000, 1));
        setup.machine.kick(1);
        if setup.rings[1].used_index() == before {
            break;
        }
        head += 1;
    }
    drop(std::mem::replace(&mut setup.peer, UnixStream::pair().unwrap().0));
    setup.machine.settle();
    assert_eq!(setup.rings[1].used_index(), head + 1);
    assert!(!setup.net.is_up());
}

#[test]
fn driver_changes_its_address_and_a_reset_takes_it_back() {
    let mut setup = setup();
    assert_eq!(setup.ask(&[1, 1, 2, 0, 0, 0, 0, 9]), Some(0));
    assert_eq!(setup.machine.read(0x104) & 0xffff, 0x0900);
    assert_eq!(setup.ask(&[1, 1, 3, 0, 0, 0, 0, 9]), Some(1), "a group address");
    assert_eq!(setup.ask(&[1, 1, 2, 0, 0]), Some(1), "half an address");
    assert_eq!(setup.machine.read(0x104) & 0xffff, 0x0900);
    setup.rings = setup.machine.start(0);
    assert_eq!(setup.machine.read(0x104) & 0xffff, 0x0100);
}

#[test]
fn commands_of_linux_are_answered_and_others_refused() {
    let mut setup = setup();
    let table = [&[1, 0][..], &1_u32.to_le_bytes(), &[2, 0, 0, 0, 0, 1], &0_u32.to_le_bytes()].concat();
    let lying = [&[1, 0][..], &u32::MAX.to_le_bytes(), &[0; 40]].concat();
    let cases: [(&[u8], u8); 11] = [
        (&[0, 0, 1], 0),
        (&[0, 1, 0], 0),
        (&[0, 2, 0], 1),
        (&[0, 0], 1),
        (&table, 0),
        (&lying, 1),
        (&[2, 0, 1, 0], 1),
        (&[4, 0, 1, 0], 1),
        (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
        (&[0xff; 64], 1),
        (&[0], 1),
    ];
    for (command, answer) in cases {
        assert_eq!(setup.ask(command), Some(answer), "{command:?}");
    }
    let mut setup = setup_without(1 << CTRL_RX | 1 << CTRL_MAC_ADDR);
    for command in [&[0, 0, 1][..], &table, &[1, 1, 2, 0, 0, 0, 0, 9]] {
        assert_eq!(setup.ask(command), Some(1), "not negotiated: {command:?}");
    }
}

#[test]
fn pause_keeps_frames_and_room() {
    let mut setup = setup();
    for at in 0..8 {
        setup.rings[0].offer(&[Buffer::writable(BUFFERS + at * 4096, 2048)]);
    }
    setup.machine.kick(0);
    for round in 0..8_u8 {
        assert!(setup.machine.transport.pause().is_ok());
        setup.peer.write_all(&on_the_wire(&frame(100, round))).unwrap();
        assert_eq!(setup.rings[0].completed(), None, "round {round}");
        setup.machine.transport.resume();
        setup.machine.settle();
        assert_eq!(setup.rings[0].completed(), Some((round.into(), HEADER + 100)));
        assert_eq!(setup.machine.bytes(BUFFERS + u64::from(round) * 4096 + 12, 100), frame(100, round));
    }
    assert_eq!(setup.net.counts(), NetCounts { received: 8, ..NetCounts::default() });
    assert!(!setup.machine.needs_reset());
}

#[test]
fn card_works_without_a_control_queue_and_needs_the_other_two() {
    let (net, _peer) = card();
    let machine = Machine::new(net);
    let rings = machine.start(0);
    for (queues, works) in [(&[0, 1][..], true), (&[1], false), (&[0], false)] {
        machine.negotiate(machine.offered() & !(1 << feature::EVENT_IDX));
        for index in queues {
            machine.set_up_queue(*index, &rings[usize::from(*index)]);
        }
        machine.write(0x70, 15);
        machine.settle();
        assert_eq!(machine.needs_reset(), !works, "{queues:?}");
    }
}
