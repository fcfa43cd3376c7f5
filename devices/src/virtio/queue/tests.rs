//! Queues against a driver that does everything right, and against one that does everything wrong.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
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
    /// Pops one chain from a drain of its own.
    #[track_caller]
    fn pop(&mut self) -> Chain {
        self.queue.begin();
        self.queue.pop().unwrap().expect("a chain")
    }

    /// Expects that what was offered is handed back with a length of 0, and that the next good chain is served.
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
fn buffers_are_used_up_across_their_bounds() {
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
fn one_drain_takes_as_many_chains_as_the_queue_has_and_rings_for_the_rest() {
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
        // The driver refills as fast as it can.
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
fn drain_that_used_its_share_up_exactly_asks_for_the_doorbell_again() {
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

#[test]
fn interrupts_are_left_out_on_request() {
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
fn loops_and_chains_without_end_are_dropped() {
    let mut it = setup(16);
    it.ring.descriptor(3, BUFFERS, 1, 1, 3);
    it.ring.offer_head(3);
    it.expect_dropped(3);
    it.ring.descriptor(3, BUFFERS, 1, 1, 4);
    it.ring.descriptor(4, BUFFERS, 1, 1, 3);
    it.ring.offer_head(4);
    it.expect_dropped(4);
    it.ring.descriptor(3, BUFFERS, 0, 1, 3);
    it.ring.offer_head(3);
    it.expect_dropped(3);
}

#[test]
fn chain_of_all_descriptors_is_served_and_one_that_names_more_is_dropped() {
    let mut it = setup(16);
    it.ring.offer(&[Buffer::readable(BUFFERS, 1); 16]);
    let chain = it.pop();
    assert_eq!(chain.readable.len(), 16);
    it.queue.complete(chain, 0);
    it.queue.finish().unwrap();
    it.ring.completed();
    for next in [16, 17, 0xffff] {
        it.ring.descriptor(5, BUFFERS, 1, 1, next);
        it.ring.offer_head(5);
        it.expect_dropped(5);
    }
}

#[test]
fn buffers_that_are_not_ram_are_dropped() {
    let mut it = setup(16);
    let cases = [
        (LOW_RAM_LEN, 1),
        (LOW_RAM_LEN - 1, 2),
        (LOW_RAM_LEN - 1, u32::MAX),
        (0, u32::MAX),
        (HIGH_RAM - 1, 2),
        (HIGH_RAM + HIGH_RAM_LEN - 1, 2),
        (0xd000_0000, 4),
        (u64::MAX, 1),
        (u64::MAX - 7, 16),
    ];
    for (address, len) in cases {
        for flags in [0, 2] {
            it.ring.descriptor(7, address, len, flags, 0);
            it.ring.offer_head(7);
            it.expect_dropped(7);
        }
    }
}

#[test]
fn lengths_of_zero_are_legal_anywhere_and_have_no_address() {
    let mut it = setup(16);
    it.ring.offer(&[
        Buffer::readable(u64::MAX, 0),
        Buffer::readable(BUFFERS, 4),
        Buffer::readable(0, 0),
        Buffer::writable(LOW_RAM_LEN, 0),
        Buffer::writable(BUFFERS, 4),
        Buffer::writable(u64::MAX, 0),
    ]);
    let chain = it.pop();
    assert_eq!((chain.readable.spans().len(), chain.writable.spans().len()), (1, 1));
    it.queue.complete(chain, 0);
}

#[test]
fn readable_buffer_after_a_writable_one_is_dropped() {
    let mut it = setup(16);
    let head = it.ring.offer(&[Buffer::writable(BUFFERS, 4), Buffer::readable(BUFFERS, 4)]);
    it.expect_dropped(head);
}

#[test]
fn buffers_that_lie_on_the_rings_are_served() {
    let mut it = setup(16);
    let used = it.ring.used();
    it.ring.offer(&[Buffer::readable(BASE, 64), Buffer::writable(used, 64)]);
    let mut chain = it.pop();
    assert_eq!(chain.writable.write(&[0xff; 64]), 64);
    it.queue.complete(chain, 64);
    it.queue.finish().unwrap();
    assert_eq!(it.ring.used_index(), 1, "the device's own index is not taken from the ring");
}

#[test]
fn chain_over_the_limit_of_its_device_is_dropped() {
    let mut it = setup(16);
    it.queue.limit_bytes(100);
    let head = it.ring.offer(&[Buffer::readable(BUFFERS, 60), Buffer::writable(BUFFERS, 41)]);
    it.expect_dropped(head);
    it.ring.offer(&[Buffer::readable(BUFFERS, 60), Buffer::writable(BUFFERS, 40)]);
    let chain = it.pop();
    it.queue.complete(chain, 0);
}

#[test]
fn total_above_4_gib_is_dropped() {
    let mut it = setup(256);
    it.queue.limit_bytes(64 << 20);
    let head = it.ring.offer(&[Buffer::writable(0, LOW_RAM_LEN as u32); 17]);
    it.expect_dropped(head);
}

#[test]
fn head_that_is_in_flight_is_dropped() {
    let mut it = setup(16);
    let head = it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    let chain = it.pop();
    it.ring.offer_head(head);
    it.queue.begin();
    assert!(it.queue.pop().unwrap().is_none());
    assert_eq!(it.queue.in_flight(), 1);
    it.queue.complete(chain, 4);
    it.queue.finish().unwrap();
    assert_eq!((it.ring.completed(), it.ring.completed()), (Some((head.into(), 0)), Some((head.into(), 4))));
    assert_eq!(it.queue.in_flight(), 0);
    it.ring.offer_head(head);
    let chain = it.pop();
    it.queue.complete(chain, 4);
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
fn chain_before_a_bad_one_cannot_be_put_back_and_comes_back_empty() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    let good = ring.offer(&[Buffer::writable(BUFFERS, 10)]);
    let bad = ring.offer(&[Buffer::writable(u64::MAX, 10)]);
    let last = ring.offer(&[Buffer::writable(BUFFERS, 10)]);
    queue.begin();
    let held: Vec<Chain> = std::iter::from_fn(|| queue.pop().unwrap()).collect();
    held.into_iter().rev().for_each(|chain| queue.put_back(chain));
    queue.announce();
    assert_eq!(ring.completed(), Some((bad.into(), 0)));
    assert_eq!(ring.completed(), Some((good.into(), 0)));
    assert_eq!(ring.completed(), None);
    queue.begin();
    let chain = queue.pop().unwrap().unwrap();
    queue.complete(chain, 3);
    queue.announce();
    assert_eq!(ring.completed(), Some((last.into(), 3)));
}

#[test]
fn damage_to_the_ring_is_an_error_and_not_a_loop() {
    let mut it = setup(16);
    it.ring.set_available_index(17);
    let error = RingError::AvailableIndex { queue: 0, offered: 17, size: 16 };
    assert_eq!(it.queue.pop().unwrap_err(), error);
    assert_eq!(it.queue.finish().unwrap_err(), error);
    let mut it = setup(16);
    it.ring.set_available_index(0xffff);
    assert!(matches!(it.queue.pop(), Err(RingError::AvailableIndex { offered: 0xffff, .. })));
    for head in [16, 17, 0xffff] {
        let mut it = setup(16);
        it.ring.offer_head(head);
        assert_eq!(it.queue.pop().unwrap_err(), RingError::Head { queue: 0, head, size: 16 });
    }
}

#[test]
fn indirect_tables_are_followed() {
    let mut it = setup(16);
    let table = [
        descriptor_bytes(BUFFERS, 16, 1, 2),
        descriptor_bytes(0, 0, 0, 0),
        descriptor_bytes(BUFFERS, 64, 2, 0),
    ];
    it.queue.memory().mmap().write_slice(&table.concat(), GuestAddress(BUFFERS + 0x101)).unwrap();
    it.ring.descriptor(0, BUFFERS, 8, 1, 1);
    it.ring.descriptor(1, BUFFERS + 0x101, 48, 4, 0);
    it.ring.offer_head(0);
    let chain = it.pop();
    assert_eq!(
        (chain.readable.len(), chain.writable.len()),
        (24, 64),
        "an odd address, after a direct descriptor"
    );
    it.queue.complete(chain, 0);
}

#[test]
fn indirect_tables_that_are_not_allowed_are_dropped() {
    let mut it = setup(16);
    let table = BUFFERS + 0x1000;
    let put = |it: &Setup, at: u64, bytes: [u8; 16]| {
        it.queue.memory().mmap().write_slice(&bytes, GuestAddress(table + at)).unwrap();
    };
    let offer = |it: &mut Setup, address, len, flags| {
        it.ring.descriptor(9, address, len, flags, 0);
        it.ring.offer_head(9);
        it.expect_dropped(9);
    };
    put(&it, 0, descriptor_bytes(BUFFERS, 1, 0, 0));
    for len in [0, 1, 15, 17, 16 * 1025, u32::MAX] {
        offer(&mut it, table, len, 4);
    }
    offer(&mut it, LOW_RAM_LEN - 8, 16, 4);
    offer(&mut it, u64::MAX, 16, 4);
    offer(&mut it, table, 16, 5);
    for inside in [
        descriptor_bytes(BUFFERS, 1, 1, 0),
        descriptor_bytes(BUFFERS, 1, 1, 1),
        descriptor_bytes(BUFFERS, 1, 1, 0xffff),
        descriptor_bytes(table, 16, 4, 0),
    ] {
        put(&it, 0, inside);
        offer(&mut it, table, 16, 4);
    }
    let mut it = setup_with(16, |parts| parts.indirect = false);
    put(&it, 0, descriptor_bytes(BUFFERS, 1, 0, 0));
    offer(&mut it, table, 16, 4);
}

#[test]
fn memory_of_a_long_chain_is_given_back() {
    let mut it = setup(16);
    let table: Vec<u8> =
        (0..1024_u16).flat_map(|at| descriptor_bytes(BUFFERS, 1, u16::from(at < 1023), at + 1)).collect();
    it.queue.memory().mmap().write_slice(&table, GuestAddress(BUFFERS)).unwrap();
    it.ring.descriptor(0, BUFFERS, 16 * 1024, 4, 0);
    it.ring.offer_head(0);
    let chain = it.pop();
    assert_eq!(chain.readable.len(), 1024);
    it.queue.complete(chain, 0);
    it.queue.finish().unwrap();
    it.ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    let chain = it.pop();
    assert!(chain.readable.spans_capacity() <= 64);
    it.queue.complete(chain, 0);
}

/// As a second CPU of the guest can do it.
#[test]
fn ring_that_is_rewritten_while_it_is_served_is_survived() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut it = setup(16);
    let (memory, stop) = (it.queue.memory().clone(), Arc::new(AtomicBool::new(false)));
    let rewriting = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            while !stop.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                // Descriptors, and the entries of the available ring, but not its index.
                let place = if random & 1 == 0 { random >> 8 & 0xf8 } else { 0x2004 + (random >> 8 & 0x1e) };
                let value = [random, random & 0xffff, BUFFERS, u64::MAX][(random >> 2 & 3) as usize];
                memory.mmap().write_slice(&value.to_le_bytes()[..2], GuestAddress(BASE + place)).unwrap();
                memory
                    .mmap()
                    .write_obj(random as u16 & 15, GuestAddress(BASE + 0x2004 + (random >> 20 & 0x1e)))
                    .unwrap();
            }
        }
    });
    let mut rounds = 0_u32;
    let mut offered = 0_u16;
    while rounds < 20_000 {
        rounds += 1;
        offered = offered.wrapping_add(1);
        it.ring.set_available_index(offered);
        it.queue.begin();
        loop {
            match it.queue.pop() {
                Ok(Some(mut chain)) => {
                    let len = chain.readable.len();
                    assert_eq!(
                        chain.readable.spans().iter().map(|span| u64::from(span.len())).sum::<u64>(),
                        len
                    );
                    chain.writable.write(&[1; 64]);
                    it.queue.complete(chain, 1);
                }
                Ok(None) => break,
                Err(_) => {
                    it = Setup {
                        queue: config(&it.ring)
                            .start(parts(it.queue.memory().clone(), it.line.clone()))
                            .unwrap(),
                        ..it
                    };
                    offered = 0;
                    break;
                }
            }
        }
        assert_eq!(it.queue.in_flight(), 0);
    }
    stop.store(true, Ordering::Relaxed);
    rewriting.join().unwrap();
}

#[test]
fn impossible_places_and_sizes_are_refused() {
    let good = {
        let memory = memory();
        config(&Ring::new(memory, BASE, 16))
    };
    let start = |config: QueueConfig| config.start(parts(memory(), Arc::new(Line::default()))).map(|_| ());
    assert_eq!(start(good), Ok(()));
    for size in [0, 3, 257, 512, 0xffff] {
        let error = QueueConfigError::Size { size, max_size: 256 };
        assert_eq!(start(QueueConfig { size, ..good }), Err(error));
    }
    let places: [fn(&mut QueueConfig) -> &mut u64; 3] =
        [|config| &mut config.descriptors, |config| &mut config.available, |config| &mut config.used];
    for (place, alignment) in places.into_iter().zip([16, 2, 4]) {
        for address in
            [BASE + alignment / 2, LOW_RAM_LEN - alignment, LOW_RAM_LEN, 0xd000_0000, u64::MAX, u64::MAX - 15]
        {
            let mut config = good;
            *place(&mut config) = address;
            assert!(matches!(start(config), Err(QueueConfigError::Ring { .. })), "{address:#x}");
        }
    }
    // Rings that overlap are the driver's own loss.
    assert_eq!(start(QueueConfig { used: good.available, ..good }), Ok(()));
}

/// A step of a driver: chains of that many buffers, then a drain that completes them.
fn step() -> impl Strategy<Value = Vec<(u8, u16)>> {
    proptest::collection::vec((1..4_u8, 0..600_u16), 0..4)
}

proptest! {
    /// rust-vmm's queue on a second ring with the same content sees the same chains, uses the same elements and wants
    /// the same interrupts and doorbells.
    #[test]
    fn agrees_with_another_implementation(
        event_idx: bool,
        steps in proptest::collection::vec((step(), any::<u16>()), 1..40),
    ) {
        let mut it = setup_with(16, |parts| parts.event_idx = event_idx);
        let memory = it.queue.memory().clone();
        let mut other_ring = Ring::new(memory.clone(), BASE + 0x8000, 16);
        let mut other = Queue::new(16).unwrap();
        other.try_set_desc_table_address(GuestAddress(other_ring.descriptors())).unwrap();
        other.try_set_avail_ring_address(GuestAddress(other_ring.available())).unwrap();
        other.try_set_used_ring_address(GuestAddress(other_ring.used())).unwrap();
        other.set_event_idx(event_idx);
        other.set_ready(true);
        let mut done = 0_u16;
        for (chains, ahead) in steps {
            it.ring.set_used_event(done.wrapping_add(ahead % 4));
            other_ring.set_used_event(done.wrapping_add(ahead % 4));
            for (count, len) in &chains {
                let buffers: Vec<Buffer> = (0..*count)
                    .map(|place| Buffer { address: BUFFERS, len: (*len).into(), writable: place > 0 })
                    .collect();
                it.ring.offer(&buffers);
                other_ring.offer(&buffers);
            }
            it.queue.begin();
            while let Some(chain) = it.queue.pop().unwrap() {
                let mut expected = other.iter(memory.mmap()).unwrap();
                let expected = expected.next().unwrap();
                let head = expected.head_index();
                let lens = expected.fold((0, 0), |(read, write), part| match part.is_write_only() {
                    true => (read, write + u64::from(part.len())),
                    false => (read + u64::from(part.len()), write),
                });
                prop_assert_eq!((chain.readable.len(), chain.writable.len()), lens);
                let written = chain.writable.len() as u32;
                it.queue.complete(chain, written);
                other.add_used(memory.mmap(), head, written).unwrap();
                done = done.wrapping_add(1);
            }
            prop_assert!(other.iter(memory.mmap()).unwrap().next().is_none());
            it.queue.finish().unwrap();
            let interrupt = !chains.is_empty() && other.needs_notification(memory.mmap()).unwrap();
            prop_assert_eq!(it.interrupts(), usize::from(interrupt));
            prop_assert!(!other.enable_notification(memory.mmap()).unwrap());
            prop_assert_eq!(it.ring.available_event(), other_ring.available_event());
            loop {
                let completed = it.ring.completed();
                prop_assert_eq!(completed, other_ring.completed());
                if completed.is_none() {
                    break;
                }
            }
        }
    }

    /// Whatever the driver writes: every pop ends, and the work of one drain is bounded.
    #[test]
    fn any_ring_content_is_survived(
        content in proptest::collection::vec((0..0x6000_u64, any::<u64>()), 0..200),
        index: u16,
        event_idx: bool,
    ) {
        let mut it = setup_with(16, |parts| parts.event_idx = event_idx);
        for (offset, value) in content {
            it.queue.memory().mmap().write_obj(value, GuestAddress(BASE + (offset & !7))).unwrap();
        }
        it.ring.set_available_index(index % 20);
        it.queue.begin();
        let mut popped = 0;
        while let Ok(Some(chain)) = it.queue.pop() {
            popped += 1;
            it.queue.complete(chain, 1);
        }
        let _ = it.queue.finish();
        prop_assert!(popped <= 16);
        prop_assert_eq!(it.queue.in_flight(), 0);
    }
}
