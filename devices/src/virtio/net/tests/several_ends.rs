//! A back end of two sockets, with an epoll descriptor of its own.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::backend::net::{Interest, LinkLost, NetBackend, Offloads, Received, Sent};
use crate::memory::{Buffers, Span};

/// A network of two ends. The first byte of a frame selects the end.
struct TwoEnds {
    epoll: Epoll,
    ends: [UnixDatagram; 2],
    /// A frame that its end has not taken.
    held: Option<Vec<u8>>,
}

impl TwoEnds {
    fn new(ends: [UnixDatagram; 2]) -> Self {
        let epoll = Epoll::new().unwrap();
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        for end in &ends {
            end.set_nonblocking(true).unwrap();
            epoll.ctl(ControlOperation::Add, end.as_raw_fd(), EpollEvent::new(events, 0)).unwrap();
        }
        Self { epoll, ends, held: None }
    }

    fn give(&mut self, frame: Vec<u8>) {
        if self.ends[usize::from(frame[0])].send(&frame).is_err() {
            self.held = Some(frame);
        }
    }
}

impl NetBackend for TwoEnds {
    fn interest(&self, _: bool) -> Interest {
        Interest { descriptor: self.epoll.as_raw_fd(), events: EventSet::IN }
    }

    fn ready(&mut self, events: EventSet) -> Result<(), LinkLost> {
        assert_eq!(events, EventSet::IN, "an epoll descriptor is never writable");
        self.epoll.wait(0, &mut [EpollEvent::default(); 2]).unwrap();
        if let Some(frame) = self.held.take() {
            self.give(frame);
        }
        Ok(())
    }

    fn possible_offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn set_offloads(&mut self, _: Offloads) {}

    fn receive(&mut self, room: &[Span]) -> Result<Received, LinkLost> {
        let mut frame = [0; 2000];
        let Some(len) = self.ends.iter().find_map(|end| end.recv(&mut frame).ok()) else {
            return Ok(Received::Nothing);
        };
        room[0].write(0, &[0; HEADER_LEN as usize]);
        room[0].write(HEADER, &frame[..len]);
        Ok(Received::Frame(HEADER + len as u32))
    }

    fn overflow(&self) -> &[u8] {
        &[]
    }

    fn send(&mut self, frame: &mut Buffers) -> Result<Sent, LinkLost> {
        frame.skip(HEADER.into());
        let mut bytes = vec![0; frame.len() as usize];
        frame.read(&mut bytes);
        self.give(bytes);
        Ok(Sent::Done)
    }

    fn is_blocked(&self) -> bool {
        self.held.is_some()
    }
}

struct TwoPeers {
    machine: Machine,
    rings: Vec<Ring>,
    peers: [UnixDatagram; 2],
}

fn two_peers() -> TwoPeers {
    let (first, second) = (UnixDatagram::pair().unwrap(), UnixDatagram::pair().unwrap());
    let peers = [first.1, second.1];
    peers.iter().for_each(|peer| peer.set_nonblocking(true).unwrap());
    let backend = Box::new(TwoEnds::new([first.0, second.0]));
    let machine = Machine::new(Arc::new(Net::new(settings("net 0"), backend)));
    let rings = machine.start(0);
    TwoPeers { machine, rings, peers }
}

impl TwoPeers {
    /// Offers a frame for an end, and rings the doorbell.
    fn send(&mut self, end: u8) {
        self.machine.put(FRAMES + u64::from(HEADER), &[end; 1000]);
        self.rings[1].offer(&[Buffer::readable(FRAMES, HEADER + 1000)]);
        self.machine.kick(1);
    }

    fn has_sent(&mut self) -> bool {
        self.rings[1].completed().is_some()
    }

    fn received(&self, end: usize) -> usize {
        let mut frame = [0; 2000];
        (0..).take_while(|_| self.peers[end].recv(&mut frame).is_ok()).count()
    }
}

#[test]
fn frames_of_each_end_wake_the_card() {
    let mut setup = two_peers();
    for round in 0..3 {
        for end in [1, 0] {
            setup.rings[0].offer(&[Buffer::writable(BUFFERS, 2000)]);
            setup.machine.kick(0);
            setup.peers[end].send(&frame(60 + round, end as u8)).unwrap();
            setup.machine.settle();
            let (_, len) = setup.rings[0].completed().unwrap();
            assert_eq!(len, HEADER + 60 + round as u32);
            let received = setup.machine.bytes(BUFFERS + u64::from(HEADER), 60 + round);
            assert_eq!(received, frame(60 + round, end as u8));
        }
    }
}

#[test]
fn frames_for_each_end_arrive_and_wait_for_the_one_that_is_full() {
    let mut setup = two_peers();
    for end in [0, 1] {
        setup.send(end);
        assert!(setup.has_sent());
        assert_eq!(setup.received(end.into()), 1);
    }
    let mut taken = 0;
    // The last frame that is taken is held by the back end.
    loop {
        setup.send(1);
        if !setup.has_sent() {
            break;
        }
        taken += 1;
        assert!(taken < 100_000);
    }
    setup.machine.settle();
    assert!(!setup.has_sent(), "it waits in the guest's queue");
    let mut received = 0;
    until(|| {
        received += setup.received(1);
        setup.machine.settle();
        received == taken + 1
    });
    assert!(setup.has_sent());
    setup.send(0);
    assert!(setup.has_sent());
    assert_eq!(setup.received(0), 1, "the card keeps working");
}
