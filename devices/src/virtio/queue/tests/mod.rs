//! Queues with a correct driver. The modules below have a driver that does everything wrong, and random ones.

mod hostile;
mod random;

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::VirtioIrq;
use crate::virtio::testing::{
    BUFFERS, Buffer, HIGH_RAM, HIGH_RAM_LEN, LOW_RAM_LEN, Line, Ring, descriptor_bytes, memory,
};
use vm_memory::{Bytes, GuestAddress};

const BASE: u64 = 0x1_0000;

struct Setup {
    queue: VirtQueue,
    ring: Ring,
    line: Arc<Line>,
}

fn config(ring: &Ring) -> QueueConfig {
    QueueConfig {
        size: ring.size(),
        descriptors: ring.descriptors(),
        available: ring.available(),
        used: ring.used(),
        ..QueueConfig::new(256)
    }
}

fn parts(memory: GuestMemoryOf, line: Arc<Line>) -> QueueParts {
    QueueParts {
        chains: ChainBudget::default(),
        index: 0,
        memory,
        irq: VirtioIrq::new(line),
        doorbell: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        event_idx: false,
        indirect: true,
    }
}

type GuestMemoryOf = crate::memory::GuestMemory;

fn setup_with(size: u16, change: impl FnOnce(&mut QueueParts)) -> Setup {
    let (memory, line) = (memory(), Arc::new(Line::default()));
    let ring = Ring::new(memory.clone(), BASE, size);
    let mut parts = parts(memory, line.clone());
    change(&mut parts);
    Setup { queue: config(&ring).start(parts).unwrap(), ring, line }
}

fn setup(size: u16) -> Setup {
    setup_with(size, |_| ())
}

impl Setup {
    /// Pops one chain in a drain of its own.
    #[track_caller]
    fn pop(&mut self) -> Chain {
        self.queue.begin();
        self.queue.pop().unwrap().expect("a chain")
    }

    /// Expects that the offered chain is completed with a length of 0, and that the next good chain is
    /// served.
    #[track_caller]
    fn expect_dropped(&mut self, head: u16) {
        self.queue.begin();
        assert!(self.queue.pop().unwrap().is_none());
        self.queue.finish().unwrap();
        assert_eq!(self.ring.completed(), Some((head.into(), 0)));
        assert_eq!(self.queue.in_flight(), 0);
        let head = self.ring.offer(&[Buffer::writable(BUFFERS, 8)]);
        let chain = self.pop();
        self.queue.complete(chain, 8);
        self.queue.finish().unwrap();
        assert_eq!(self.ring.completed(), Some((head.into(), 8)));
    }

    fn rung(&self) -> bool {
        self.queue.doorbell().read().is_ok()
    }

    fn interrupts(&self) -> usize {
        self.line.take()
    }
}

/// A disk completes requests out of order, and puts the others back at a pause.
#[test]
fn chains_that_others_have_overtaken_are_put_back_in_their_order() {
    let mut setup = setup(32);
    let mut offered: Vec<(u16, u32)> = Vec::new();
    for round in 0..4 {
        while offered.len() < 6 {
            let len = round * 8 + offered.len() as u32 + 1;
            offered.push((setup.ring.offer(&[Buffer::writable(BUFFERS, len)]), len));
        }
        let mut chains: Vec<_> = (0..6).map(|_| setup.pop()).collect();
        let lens = chains.iter().map(|chain| chain.writable.len());
        assert!(lens.eq(offered.iter().map(|(_, len)| u64::from(*len))), "{offered:?}");
        for done in [4, 2, 0] {
            let (head, _) = offered.remove(done);
            setup.queue.complete(chains.remove(done), 1);
            setup.queue.announce();
            assert_eq!(setup.ring.completed(), Some((head.into(), 1)));
        }
        chains.into_iter().rev().for_each(|chain| setup.queue.put_back(chain));
        assert_eq!(setup.queue.in_flight(), 0);
        assert!(setup.queue.is_offered());
    }
    for (head, len) in offered {
        let chain = setup.pop();
        assert_eq!(chain.writable.len(), u64::from(len));
        setup.queue.complete(chain, 1);
        setup.queue.finish().unwrap();
        assert_eq!(setup.ring.completed(), Some((head.into(), 1)));
    }
    assert!(!setup.queue.is_offered());
}

#[test]
fn chain_that_was_put_back_is_the_next_one_again() {
    let mut setup = setup(4);
    let first = setup.ring.offer(&[Buffer::writable(BUFFERS, 8)]);
    let second = setup.ring.offer(&[Buffer::writable(BUFFERS, 16)]);
    for _ in 0..10 {
        let chain = setup.pop();
        assert_eq!(chain.writable.len(), 8);
        setup.queue.put_back(chain);
        assert_eq!(setup.queue.in_flight(), 0);
    }
    for head in [first, second] {
        let chain = setup.pop();
        setup.queue.complete(chain, 1);
        setup.queue.announce();
        assert_eq!(setup.ring.completed(), Some((head.into(), 1)));
    }
    assert!(setup.queue.pop().unwrap().is_none());
}

#[test]
fn chain_lists_its_buffers_and_comes_back_with_a_length() {
    let mut it = setup(16);
    let buffers =
        [Buffer::readable(BUFFERS, 16), Buffer::readable(HIGH_RAM, 5), Buffer::writable(BUFFERS + 4096, 512)];
    let head = it.ring.offer(&buffers);
    let chain = it.pop();
    assert_eq!((chain.readable.len(), chain.writable.len()), (21, 512));
    assert_eq!(it.queue.in_flight(), 1);
    it.queue.complete(chain, 512);
    assert_eq!(it.ring.completed(), None, "not shown yet");
    it.queue.publish();
    assert_eq!(it.ring.completed(), Some((head.into(), 512)));
    assert_eq!((it.queue.in_flight(), it.interrupts()), (0, 0));
    it.queue.finish().unwrap();
    assert_eq!(it.interrupts(), 1);
}

#[test]
fn buffers_are_consumed_across_their_bounds() {
    let mut it = setup(16);
    let readable = [(0, 3), (3, 0), (8, 1), (16, 7)].map(|(at, len)| Buffer::readable(BUFFERS + at, len));
    let writable = [(0, 1), (4, 5), (16, 2)].map(|(at, len)| Buffer::writable(BUFFERS + 0x1000 + at, len));
    it.queue.memory().mmap().write_slice(b"abc.....d.......efghijk", GuestAddress(BUFFERS)).unwrap();
    it.ring.offer(&[&readable[..], &writable].concat());
    let mut chain = it.pop();
    assert_eq!(chain.readable.read_array(), Some(*b"abcde"));
    assert_eq!(chain.readable.read_array::<7>(), None);
    chain.readable.skip(2);
    let mut rest = [0; 16];
    assert_eq!(chain.readable.read(&mut rest), 4);
    assert_eq!((&rest[..4], chain.readable.is_empty()), (&b"hijk"[..], true));

    let last = chain.writable.split_last().unwrap();
    assert_eq!(chain.writable.write(b"0123456789"), 7);
    assert_eq!(last.write(0, b"L!"), 1);
    assert!(chain.writable.split_last().is_none());
    let mut seen = [0; 20];
    it.queue.memory().mmap().read_slice(&mut seen, GuestAddress(BUFFERS + 0x1000)).unwrap();
    assert_eq!(&seen, b"0\0\0\x0012345\0\0\0\0\0\0\x006L\0\0");
}

#[test]
fn rest_returns_whether_the_driver_has_offered_more_and_finish_rings_for_it() {
    let mut it = setup(4);
    let offer = |it: &mut Setup| it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    offer(&mut it);
    let chain = it.pop();
    it.queue.complete(chain, 4);
    assert_eq!((it.queue.rest(), it.rung(), it.interrupts()), (Ok(false), false, 1));
    offer(&mut it);
    let chain = it.pop();
    offer(&mut it);
    it.queue.complete(chain, 4);
    assert_eq!((it.queue.rest(), it.rung(), it.interrupts()), (Ok(true), false, 1));
    it.queue.finish().unwrap();
    assert!(it.rung());
}

#[test]
fn indices_wrap_over_70_000_requests() {
    let mut it = setup(4);
    for count in 0..70_000_u32 {
        let head = it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
        let chain = it.pop();
        it.queue.complete(chain, count);
        it.queue.finish().unwrap();
        assert_eq!(it.ring.completed(), Some((head.into(), count)));
    }
    assert_eq!(it.interrupts(), 70_000);
}

#[test]
fn one_drain_takes_as_many_chains_as_the_queue_has_descriptors_and_rings_for_the_rest() {
    let mut it = setup(4);
    for _ in 0..4 {
        it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    }
    it.queue.begin();
    let mut served = 0;
    while let Some(chain) = it.queue.pop().unwrap() {
        it.queue.complete(chain, 0);
        it.queue.publish();
        served += 1;
        // The driver offers more as fast as it can.
        it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    }
    assert_eq!(served, 4);
    assert!(!it.rung());
    it.queue.finish().unwrap();
    assert!(it.rung());
}

#[test]
fn doorbell_is_refused_during_a_drain_and_wanted_after_it() {
    let mut it = setup(4);
    it.queue.begin();
    assert!(it.ring.refuses_doorbells());
    it.queue.finish().unwrap();
    assert!(!it.ring.refuses_doorbells() && !it.rung());

    let mut it = setup_with(4, |parts| parts.event_idx = true);
    for count in 0..10 {
        assert_eq!(it.ring.available_event(), count);
        it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
        let chain = it.pop();
        it.queue.complete(chain, 0);
        it.queue.finish().unwrap();
    }
}

#[test]
fn drain_that_uses_exactly_its_share_wants_the_doorbell_again() {
    let mut it = setup(2);
    for _ in 0..2 {
        it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    }
    it.queue.begin();
    while let Some(chain) = it.queue.pop().unwrap() {
        it.queue.complete(chain, 0);
    }
    it.queue.finish().unwrap();
    assert!(!it.ring.refuses_doorbells() && !it.rung());
}

/// The other devices of the thread get their turn however much a driver offers.
#[test]
fn drain_ends_with_the_turn_and_rings_for_the_rest() {
    let mut it = setup(4);
    for _ in 0..4 {
        it.ring.offer(&[Buffer::writable(BUFFERS, 64 << 10)]);
    }
    it.queue.begin();
    let chain = it.queue.pop().unwrap().unwrap();
    it.queue.complete(chain, 0);
    std::thread::sleep(crate::virtio::poll::TURN * 2);
    assert!(it.queue.pop().unwrap().is_none());
    it.queue.finish().unwrap();
    assert!(it.rung());
    it.queue.begin();
    assert!(it.queue.pop().unwrap().is_some());
}

#[test]
fn interrupts_are_suppressed_on_request() {
    let mut it = setup(4);
    it.ring.refuse_interrupts(true);
    it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    let chain = it.pop();
    it.queue.complete(chain, 0);
    it.queue.finish().unwrap();
    assert_eq!(it.interrupts(), 0);

    let mut it = setup_with(8, |parts| parts.event_idx = true);
    it.ring.set_used_event(2);
    for expected in [0, 0, 1, 0] {
        it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
        let chain = it.pop();
        it.queue.complete(chain, 0);
        it.queue.finish().unwrap();
        assert_eq!(it.interrupts(), expected);
    }
    it.queue.finish().unwrap();
    assert_eq!(it.interrupts(), 0, "nothing new");
}

#[test]
fn chains_that_are_put_back_are_popped_again_in_their_order() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    let heads: Vec<u16> = (0..3).map(|_| ring.offer(&[Buffer::writable(BUFFERS, 10)])).collect();
    queue.begin();
    let mut held: Vec<Chain> = std::iter::from_fn(|| queue.pop().unwrap()).collect();
    assert_eq!((held.len(), queue.in_flight()), (3, 3));
    held[2].writable.skip(4);
    queue.put_back(held.pop().unwrap());
    queue.put_back(held.pop().unwrap());
    assert_eq!(queue.in_flight(), 1);
    queue.complete(held.pop().unwrap(), 10);
    queue.finish().unwrap();
    assert_eq!(ring.completed(), Some((heads[0].into(), 10)));
    queue.begin();
    for head in &heads[1..] {
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.writable.len(), chain.writable.spans().len()), (10, 1));
        queue.complete(chain, 1);
        queue.announce();
        assert_eq!(ring.completed(), Some(((*head).into(), 1)));
    }
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn chain_before_a_bad_one_is_put_back_too() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    let good = ring.offer(&[Buffer::writable(BUFFERS, 10)]);
    let bad = ring.offer(&[Buffer::writable(u64::MAX, 10)]);
    let last = ring.offer(&[Buffer::writable(BUFFERS, 10)]);
    queue.begin();
    let held: Vec<Chain> = std::iter::from_fn(|| queue.pop().unwrap()).collect();
    held.into_iter().rev().for_each(|chain| queue.put_back(chain));
    queue.announce();
    assert_eq!(ring.completed(), Some((bad.into(), 0)));
    assert_eq!(ring.completed(), None);
    for head in [good, last] {
        queue.begin();
        let chain = queue.pop().unwrap().unwrap();
        queue.complete(chain, 3);
        queue.announce();
        assert_eq!(ring.completed(), Some((head.into(), 3)));
    }
}
