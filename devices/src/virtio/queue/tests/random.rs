//! Random drivers: they see the same as with another implementation, and nothing that they write does harm.

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::*;

/// A step of a driver: chains, each of so many buffers of one length, then a drain that completes them.
fn step() -> impl Strategy<Value = Vec<(u8, u16)>> {
    proptest::collection::vec((1..4_u8, 0..600_u16), 0..4)
}

proptest! {
    /// rust-vmm's queue on a second ring with the same content has to see the same chains, write the same
    /// used elements, and want the same interrupts and doorbells.
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
                    .map(|index| Buffer { address: BUFFERS, len: (*len).into(), writable: index > 0 })
                    .collect();
                it.ring.offer(&buffers);
                other_ring.offer(&buffers);
            }
            it.queue.begin();
            loop {
                let Some(chain) = it.queue.pop().unwrap() else {
                    if it.queue.is_offered() {
                        // The host was busy, so the turn ended early.
                        it.queue.begin();
                        continue;
                    }
                    break;
                };
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

    /// Whatever the driver writes, every pop ends and the work of one drain is bounded.
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
