//! Rings and chains that no correct driver makes: each is dropped, or ends the queue with an error.

use super::*;

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
fn chain_of_all_descriptors_is_served_and_one_past_the_table_is_dropped() {
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

/// A second CPU of the guest can rewrite the ring at any time.
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
                // Descriptors, and entries of the available ring, but not its index.
                let offset = if random & 1 == 0 { random >> 8 & 0xf8 } else { 0x2004 + (random >> 8 & 0x1e) };
                let value = [random, random & 0xffff, BUFFERS, u64::MAX][(random >> 2 & 3) as usize];
                memory.mmap().write_slice(&value.to_le_bytes()[..2], GuestAddress(BASE + offset)).unwrap();
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
fn impossible_addresses_and_sizes_are_refused() {
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
    let fields: [fn(&mut QueueConfig) -> &mut u64; 3] =
        [|config| &mut config.descriptors, |config| &mut config.available, |config| &mut config.used];
    for (field, alignment) in fields.into_iter().zip([16, 2, 4]) {
        for address in
            [BASE + alignment / 2, LOW_RAM_LEN - alignment, LOW_RAM_LEN, 0xd000_0000, u64::MAX, u64::MAX - 15]
        {
            let mut config = good;
            *field(&mut config) = address;
            assert!(matches!(start(config), Err(QueueConfigError::Ring { .. })), "{address:#x}");
        }
    }
    // Rings that overlap harm only the driver itself.
    assert_eq!(start(QueueConfig { used: good.available, ..good }), Ok(()));
}

/// Offers 256 chains of the largest length, and pops them all.
fn longest_chains(it: &mut Setup) -> Vec<Chain> {
    let table: Vec<u8> =
        (0..1024_u16).flat_map(|at| descriptor_bytes(BUFFERS, 1, u16::from(at < 1023), at + 1)).collect();
    it.queue.memory().mmap().write_slice(&table, GuestAddress(BUFFERS)).unwrap();
    for head in 0..256 {
        it.ring.descriptor(head, BUFFERS, 16 * 1024, 4, 0);
        it.ring.offer_head(head);
    }
    let mut chains = Vec::new();
    while chains.len() < 256 {
        // A busy host may need several drains, because a turn can end early.
        it.queue.begin();
        chains.extend(std::iter::from_fn(|| it.queue.pop().unwrap()));
    }
    chains
}

/// However a guest builds its requests, the chains of a machine keep no more than their share of memory.
#[test]
fn chains_of_all_queues_count_together_and_few_are_kept() {
    let mut one = setup(256);
    let budget = one.queue.chain_budget().clone();
    let mut other = setup_with(256, |parts| parts.chains = budget.clone());
    let chains = longest_chains(&mut one);
    assert!((4 << 20..8 << 20).contains(&budget.bytes()), "{}", budget.bytes());
    assert!(!budget.is_used_up());
    let more = longest_chains(&mut other);
    assert!(budget.is_used_up());
    chains.into_iter().for_each(|chain| one.queue.complete(chain, 0));
    more.into_iter().for_each(|chain| other.queue.complete(chain, 0));
    assert!((1..4 << 20).contains(&budget.bytes()), "{}", budget.bytes());
    drop((one, other));
    assert_eq!(budget.bytes(), 0);
}
