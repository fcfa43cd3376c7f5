//! Guests and peers that break every rule.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::backend::net::{Interest, LinkLost, NetBackend, Offloads, Received, Sent};
use crate::memory::{Buffers, Span};
use crate::virtio::testing::{HIGH_RAM, LOW_RAM_LEN};

#[test]
fn frames_of_impossible_lengths_are_dropped() {
    let mut setup = setup();
    let mut dropped = 0;
    for len in [0, 1, 11, 12, 13, 12 + 13] {
        let head = setup.rings[1].offer(&[Buffer::readable(FRAMES, len)]);
        setup.machine.kick(1);
        assert_eq!(setup.rings[1].completed(), Some((head.into(), 0)));
        dropped += 1;
        assert_eq!(setup.net.counts().send_dropped, dropped, "{len}");
    }
    for len in [65_551, 1 << 20] {
        let head = setup.rings[1].offer(&[Buffer::readable(BUFFERS, HEADER + len)]);
        setup.machine.kick(1);
        assert_eq!(setup.rings[1].completed(), Some((head.into(), 0)));
    }
    assert_eq!(setup.net.counts().sent, 0);
    setup.expect_alive();
}

#[test]
fn longest_and_shortest_frame_go_out() {
    let mut setup = setup();
    for len in [14, 65_550] {
        setup.send(&frame(len, 5));
        let mut peer = setup.peer.try_clone().unwrap();
        let reading = thread::spawn(move || from_the_wire(&mut peer));
        until(|| {
            setup.machine.settle();
            reading.is_finished()
        });
        assert_eq!(reading.join().unwrap(), frame(len, 5));
    }
}

#[test]
fn buffers_without_space_come_back_and_good_buffers_are_used() {
    let mut setup = setup();
    let useless = [
        vec![Buffer::writable(BUFFERS, 1)],
        vec![Buffer::writable(BUFFERS, 11)],
        vec![Buffer::readable(BUFFERS, 2000)],
        vec![Buffer::writable(BUFFERS, 0)],
        vec![Buffer::writable(LOW_RAM_LEN - 1, 2000)],
        vec![Buffer::writable(HIGH_RAM - 1, 2000)],
        vec![Buffer::writable(u64::MAX - 1, 2000)],
    ];
    setup.peer.write_all(&on_the_wire(&frame(60, 1))).unwrap();
    for buffers in useless {
        let head = setup.rings[0].offer(&buffers);
        setup.machine.kick(0);
        assert_eq!(setup.rings[0].completed(), Some((head.into(), 0)), "{buffers:?}");
    }
    let head = setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2000)]);
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), Some((head.into(), HEADER + 60)));
    setup.expect_alive();
}

#[test]
fn small_buffers_take_a_frame_in_many_pieces() {
    let mut setup = setup();
    for at in 0..6 {
        setup.rings[0].offer(&[Buffer::writable(BUFFERS + at * 64, 12)]);
    }
    setup.machine.kick(0);
    setup.peer.write_all(&on_the_wire(&frame(60, 1))).unwrap();
    setup.machine.settle();
    for head in 0..6 {
        assert_eq!(setup.rings[0].completed(), Some((head, 12)));
    }
    assert_eq!(setup.machine.bytes(BUFFERS + 10, 2), [6, 0]);
    assert!((1..6).all(|at| setup.machine.bytes(BUFFERS + at * 64 + 12, 4) == [0; 4]));
}

#[test]
fn card_recovers_from_a_flood_with_an_empty_receive_ring() {
    let mut setup = setup();
    let mut peer = setup.peer.try_clone().unwrap();
    let flood = thread::spawn(move || {
        (0..20_000_u32).try_for_each(|_| peer.write_all(&on_the_wire(&frame(1000, 1)))).is_ok()
    });
    for _ in 0..50 {
        setup.machine.settle();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(setup.net.counts(), NetCounts::default());
    let (mut offered, mut received) = (0, 0);
    until(|| {
        while setup.rings[0].completed().is_some() {
            received += 1;
        }
        while offered - received < 8 {
            setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2000)]);
            offered += 1;
        }
        setup.machine.kick(0);
        received >= 20_000
    });
    assert_eq!(setup.net.counts(), NetCounts { received, ..NetCounts::default() });
    assert!(flood.join().unwrap());
    assert!(!setup.machine.needs_reset());
}

/// The end of a card whose guest offers a frame for each one that has been sent, for a long time.
struct Endless {
    socket: UnixStream,
    ring: Arc<Mutex<Option<Ring>>>,
    since: Instant,
    sent: u32,
    is_over: Arc<AtomicBool>,
}

impl NetBackend for Endless {
    fn interest(&self, is_full: bool) -> Interest {
        Interest::of_end(&self.socket, is_full)
    }

    fn possible_offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn set_offloads(&mut self, _: Offloads) {}

    fn receive(&mut self, _: &[Span]) -> Result<Received, LinkLost> {
        Ok(Received::Nothing)
    }

    fn overflow(&self) -> &[u8] {
        &[]
    }

    fn send(&mut self, _: &mut Buffers) -> Result<Sent, LinkLost> {
        // Of 16 chains 8 are in flight.
        self.sent += 1;
        let head = (self.sent + 7) % 16;
        if self.since.elapsed() > Duration::from_secs(10) {
            self.is_over.store(true, Ordering::Release);
        } else if let Some(ring) = &mut *self.ring.lock().unwrap() {
            ring.offer_head(head as u16);
        }
        Ok(Sent::Done)
    }
}

/// A guest that always has frames gets its turn and no more, because other devices are on the same thread.
#[test]
fn flood_of_the_guest_leaves_the_thread_to_others() {
    for poll in [Duration::ZERO, Poll::DEFAULT, Poll::MAX] {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let (ring, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let end = Endless {
            socket,
            ring: Arc::clone(&ring),
            since: Instant::now(),
            sent: 0,
            is_over: is_over.clone(),
        };
        let settings = NetSettings { poll, ..settings("net 0") };
        let machine = Machine::new(Arc::new(Net::new(settings, Box::new(end))));
        let mut sending = machine.start(0).remove(1);
        let heads: Vec<u16> =
            (0..16).map(|_| sending.place(&[Buffer::readable(FRAMES, HEADER + 60)])).collect();
        heads.iter().take(8).for_each(|head| sending.offer_head(*head));
        *ring.lock().unwrap() = Some(sending);
        machine.kick(1);
        assert!(!is_over.load(Ordering::Acquire), "the handler has kept the thread");
        ring.lock().unwrap().take();
    }
}

#[test]
fn identical_heads_are_served_once() {
    let mut setup = setup();
    let head = setup.rings[0].offer(&[Buffer::writable(BUFFERS, 40)]);
    (0..5).for_each(|_| setup.rings[0].offer_head(head));
    setup.machine.kick(0);
    setup.peer.write_all(&on_the_wire(&frame(60, 1))).unwrap();
    setup.machine.settle();
    for _ in 0..5 {
        assert_eq!(setup.rings[0].completed(), Some((head.into(), 0)));
    }
    assert_eq!(setup.rings[0].completed(), None, "the frame waits for more room");
    setup.rings[0].offer(&[Buffer::writable(BUFFERS + 4096, 32)]);
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), Some((head.into(), 40)));
    assert_eq!(setup.rings[0].completed(), Some((1, 32)));
    setup.expect_alive();
}

#[test]
fn ring_damaged_while_chains_are_held_needs_a_reset_which_helps() {
    let mut setup = setup();
    setup.rings[0].offer(&[Buffer::writable(BUFFERS, 40)]);
    setup.machine.kick(0);
    setup.peer.write_all(&on_the_wire(&frame(60, 1))).unwrap();
    setup.machine.settle();
    setup.rings[0].offer_head(0xffff);
    setup.machine.kick(0);
    assert!(setup.machine.needs_reset());
    setup.rings = setup.machine.start(0);
    setup.expect_alive();
}

#[test]
fn peer_that_speaks_another_protocol_takes_the_link_down() {
    for start in [[0xff; 4], *b"GET ", 65_551_u32.to_be_bytes()] {
        let mut setup = setup();
        setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2000)]);
        setup.machine.kick(0);
        setup.peer.write_all(&start).unwrap();
        setup.machine.settle();
        assert!(!setup.net.is_up(), "{start:?}");
        assert_eq!(setup.rings[0].completed(), None);
        setup.send(&frame(60, 1));
    }
}

#[test]
fn frames_without_length_are_counted_and_others_pass() {
    let mut setup = setup();
    for len in [0, 1, 13] {
        setup.peer.write_all(&on_the_wire(&frame(len, 1))).unwrap();
    }
    setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2000)]);
    setup.peer.write_all(&on_the_wire(&frame(14, 1))).unwrap();
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), Some((0, HEADER + 14)));
    assert_eq!(setup.net.counts(), NetCounts { received: 1, receive_dropped: 3, ..NetCounts::default() });
}

/// A step of a guest and its peer.
#[derive(Debug, Clone)]
enum Step {
    Room(Vec<(u16, bool)>),
    Send(Vec<(u16, bool)>),
    Peer(u16, usize),
    Read,
    Pause,
    Kick(u16),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let buffers = || prop::collection::vec((0..4000_u16, prop::bool::weighted(0.8)), 1..5);
    prop_oneof![
        4 => buffers().prop_map(Step::Room),
        4 => buffers().prop_map(Step::Send),
        4 => (0..4000_u16, 1..9000_usize).prop_map(|(len, cut)| Step::Peer(len, cut)),
        2 => Just(Step::Read),
        1 => Just(Step::Pause),
        2 => (0..4_u16).prop_map(Step::Kick),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever arrives in whatever pieces, nothing outside the buffers is written, and the guest receives
    /// exactly the bytes that were sent.
    #[test]
    fn any_order_of_steps_keeps_frames_whole(steps in prop::collection::vec(step(), 1..60)) {
        let mut setup = setup();
        setup.peer.set_nonblocking(true).unwrap();
        // Half a frame may wait for its other half.
        let mut wire: Vec<u8> = Vec::new();
        setup.machine.put(BUFFERS + (1 << 20), &[0x5a; 4096]);
        for step in steps {
            match step {
                Step::Room(buffers) => {
                    let buffers: Vec<Buffer> = buffers.iter().map(|(len, writable)| Buffer {
                        address: BUFFERS, len: (*len).into(), writable: *writable }).collect();
                    setup.rings[0].offer(&buffers);
                }
                Step::Send(buffers) => {
                    let buffers: Vec<Buffer> = buffers.iter().map(|(len, readable)| Buffer {
                        address: FRAMES, len: (*len).into(), writable: !*readable }).collect();
                    setup.rings[1].offer(&buffers);
                }
                Step::Peer(len, cut) => {
                    wire.extend(on_the_wire(&frame(len.into(), 1)));
                    let now: Vec<u8> = wire.drain(..cut.min(wire.len())).collect();
                    let taken = setup.peer.write(&now).unwrap_or(0);
                    wire.splice(0..0, now[taken..].iter().copied());
                }
                Step::Read => {
                    let mut bytes = [0; 8192];
                    let _ = setup.peer.read(&mut bytes);
                }
                Step::Pause => {
                    prop_assert!(setup.machine.transport.pause().is_ok());
                    setup.machine.transport.resume();
                }
                Step::Kick(queue) => setup.machine.kick(queue),
                Step::Restart => setup.rings = setup.machine.start(0),
            }
            setup.machine.settle();
            while setup.rings[0].completed().is_some() {}
            while setup.rings[1].completed().is_some() {}
        }
        prop_assert_eq!(setup.machine.bytes(BUFFERS + (1 << 20), 4096), vec![0x5a; 4096]);
        setup.rings = setup.machine.start(0);
        prop_assert!(!setup.machine.needs_reset());
    }
}
