//! The transport with drivers that take steps in the wrong order or at the wrong time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::MmioTransport;
use crate::state::{Restoration, SavedState, StateError, no_state, prepare_no_state};
use crate::virtio::queue::RingError;
use crate::virtio::state::{DriverState, SaveDevice};
use crate::virtio::testing::{BUFFERS, Buffer, LOW_RAM_LEN, MODERN, Machine, Ring};
use crate::virtio::{
    ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtQueue, VirtioDevice, feature,
    watch_doorbell,
};
use event_manager::{EventOps, Events};

const STATUS: u64 = 0x70;
const INTERRUPT_STATUS: u64 = 0x60;

/// A device of two queues, of which the second is optional. It completes each chain at once. Its
/// configuration space has 10 bytes.
#[derive(Default)]
pub(super) struct Echo {
    activations: AtomicUsize,
    resets: AtomicUsize,
    written: AtomicUsize,
}

struct EchoHandler(Vec<VirtQueue>);

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn name(&self) -> String {
        "echo".into()
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 16]
    }

    fn config(&self) -> Vec<u8> {
        (1..=10).collect()
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.written.store(offset * 100 + data.len(), Ordering::Relaxed);
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let first = context.queues.take(0)?;
        self.activations.fetch_add(1, Ordering::Relaxed);
        Ok(vec![Box::new(EchoHandler(std::iter::once(first).chain(context.queues.into_rest()).collect()))])
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

impl SaveDevice for Echo {
    fn save(&self) -> SavedState {
        no_state()
    }

    fn prepare(&self, state: &SavedState, _: &DriverState) -> Result<Restoration<'_>, StateError> {
        prepare_no_state(state)
    }
}

impl QueueHandler for EchoHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        for queue in &self.0 {
            watch_doorbell(sources, queue, queue.index().into());
        }
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        let queue = self.0.iter_mut().find(|queue| u32::from(queue.index()) == event.data()).unwrap();
        queue.begin();
        while let Some(chain) = queue.pop()? {
            let written = chain.writable.len() as u32;
            queue.complete(chain, written);
        }
        queue.finish()
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        self.0
    }
}

fn machine() -> (Machine, Arc<Echo>) {
    let device = Arc::new(Echo::default());
    (Machine::new(device.clone()), device)
}

fn ring(machine: &Machine, index: u64) -> Ring {
    Ring::new(machine.memory.clone(), (index + 1) << 16, 16)
}

#[track_caller]
fn serves(machine: &Machine, ring: &mut Ring, queue: u16) {
    let head = ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    machine.kick(queue);
    assert_eq!(ring.completed(), Some((head.into(), 4)));
}

#[test]
fn status_takes_steps_only_in_their_order() {
    let (machine, _) = machine();
    for (written, read) in
        [(2, 0), (8, 0), (4, 0), (14, 0), (16, 0), (0xff, 0), (1, 1), (9, 1), (3, 3), (7, 3)]
    {
        machine.write(STATUS, written);
        assert_eq!(machine.status(), read, "after {written:#x}");
    }
    machine.write(STATUS, 11);
    assert_eq!(machine.status(), 3, "without VERSION_1 the features are not taken");
    machine.write(0x24, 1);
    machine.write(0x20, 1);
    machine.write(STATUS, 11);
    assert_eq!(machine.status(), 11);
    for written in [1, 3, 10, 0x100, 0x10b, 0xffff_ff00, 0x1b] {
        machine.write(STATUS, written);
        assert_eq!(machine.status(), 11, "after {written:#x}");
    }
    machine.write(STATUS, 0);
    assert_eq!(machine.status(), 0);
    machine.write(STATUS, 3);
    assert_eq!(machine.status(), 3, "two steps at once");
}

#[test]
fn device_that_the_driver_gave_up_works_only_after_a_reset() {
    let (machine, device) = machine();
    machine.negotiate(MODERN);
    machine.write(STATUS, 11 | 128);
    machine.write(STATUS, 15 | 128);
    assert_eq!((machine.status(), device.activations.load(Ordering::Relaxed)), (139, 0));
    let mut rings = machine.start(0);
    serves(&machine, &mut rings[0], 0);
}

#[test]
fn features_that_are_not_offered_are_not_negotiated() {
    for bit in [0, 6, 24, 33, 38, 63] {
        let (machine, _) = machine();
        machine.negotiate(MODERN | 1 << bit);
        assert_eq!(machine.status(), 3, "feature {bit}");
        machine.negotiate(MODERN | 1 << 5);
        assert_eq!(machine.status(), 11);
    }
}

#[test]
fn features_are_fixed_once_they_are_negotiated() {
    let (machine, _) = machine();
    machine.negotiate(MODERN);
    machine.write(0x24, 0);
    machine.write(0x20, 1 << feature::EVENT_IDX);
    let mut ring = ring(&machine, 0);
    machine.set_up_queue(0, &ring);
    machine.write(STATUS, 15);
    ring.refuse_interrupts(true);
    machine.interrupts();
    serves(&machine, &mut ring, 0);
    assert_eq!(machine.interrupts(), 0, "the flag still counts, not the index");
}

#[test]
fn only_64_feature_bits_exist() {
    let (machine, _) = machine();
    let expected = 1 << 5 | 1 << 28 | 1 << 29 | 1_u64 << 32;
    assert_eq!(machine.offered(), expected);
    for word in [2, 3, 0xffff_ffff] {
        machine.write(0x14, word);
        assert_eq!(machine.read(0x10), 0);
    }
}

#[test]
fn queues_can_be_set_up_only_between_the_features_and_the_start() {
    let (machine, _) = machine();
    let first = ring(&machine, 0);
    machine.set_up_queue(0, &first);
    assert_eq!(machine.read(0x44), 0, "before the features");
    machine.negotiate(MODERN);
    machine.set_up_queue(0, &first);
    assert_eq!(machine.read(0x44), 1);
    machine.write(0x38, 8);
    machine.write(0x80, 0x8_0000);
    machine.write(STATUS, 15);
    let mut first = first;
    serves(&machine, &mut first, 0);
}

/// Registers that reach a running queue are a defect of many devices.
#[test]
fn registers_do_not_reach_a_running_queue() {
    let (machine, _) = machine();
    let mut rings = machine.start(0);
    machine.write(0x30, 0);
    for value in [0, 1, 3, 0x7fff_ffff, 0xffff_ffff, LOW_RAM_LEN as u32 - 16] {
        for register in [0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
            machine.write(register, value);
        }
        machine.write(0x44, 0);
        machine.write(0x44, 1);
        assert_eq!(machine.read(0x44), 1);
        serves(&machine, &mut rings[0], 0);
    }
    machine.write(STATUS, 15);
    serves(&machine, &mut rings[0], 0);
}

#[test]
fn queue_that_cannot_run_does_not_become_ready() {
    let (machine, device) = machine();
    machine.negotiate(MODERN);
    for (register, value) in [
        (0x38, 0),
        (0x38, 3),
        (0x38, 65),
        (0x38, 0x1_0010),
        (0x80, 8),
        (0x84, 1),
        (0x90, 1),
        (0xa0, 2),
        (0xa0, 0xd000_0000),
    ] {
        let good = ring(&machine, 0);
        machine.set_up_queue(0, &good);
        machine.write(0x44, 0);
        machine.write(register, value);
        machine.write(0x44, 1);
        assert_eq!(machine.read(0x44), 0, "{value:#x} in {register:#x}");
        machine.write(0x84, 0);
    }
    machine.write(STATUS, 15);
    assert_eq!(device.activations.load(Ordering::Relaxed), 0);
    assert!(machine.needs_reset(), "the first queue is missing");
    let mut rings = machine.start(0);
    serves(&machine, &mut rings[0], 0);
}

#[test]
fn queue_without_addresses_lies_at_0_where_there_is_ram() {
    let (machine, _) = machine();
    machine.negotiate(MODERN);
    machine.write(0x30, 0);
    machine.write(0x44, 1);
    machine.write(STATUS, 15);
    machine.kick(0);
    assert_eq!(machine.status() & !64, 15);
}

#[test]
fn optional_queue_may_be_left_out() {
    let (machine, device) = machine();
    machine.negotiate(MODERN);
    let mut first = ring(&machine, 0);
    machine.set_up_queue(0, &first);
    machine.write(STATUS, 15);
    assert_eq!(device.activations.load(Ordering::Relaxed), 1);
    serves(&machine, &mut first, 0);
    machine.kick(1);
}

#[test]
fn doorbells_at_any_time_and_of_any_queue_are_harmless() {
    let (machine, _) = machine();
    for queue in [0, 1, 2, 63, 0xffff] {
        machine.kick(queue);
    }
    machine.write(MmioTransport::QUEUE_NOTIFY, u32::MAX);
    let mut rings = machine.start(0);
    (0..100_000).for_each(|_| machine.write(MmioTransport::QUEUE_NOTIFY, 0));
    serves(&machine, &mut rings[0], 0);
    machine.write(STATUS, 0);
    rings[0].offer(&[Buffer::writable(BUFFERS, 4)]);
    machine.kick(0);
    assert_eq!(rings[0].completed(), None);
}

#[test]
fn chains_offered_before_the_start_are_served_without_a_doorbell() {
    let (machine, _) = machine();
    machine.negotiate(MODERN);
    let mut ring = ring(&machine, 0);
    ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    machine.set_up_queue(0, &ring);
    machine.write(STATUS, 15);
    machine.settle();
    assert_eq!(ring.completed(), Some((0, 4)));
}

#[test]
fn device_works_after_a_thousand_resets() {
    let (machine, device) = machine();
    for _ in 0..1000 {
        machine.write(STATUS, 0);
    }
    for _ in 0..100 {
        machine.start(0);
    }
    assert_eq!(device.activations.load(Ordering::Relaxed), 100);
    assert_eq!(device.resets.load(Ordering::Relaxed), 1100);
    let mut rings = machine.start(0);
    serves(&machine, &mut rings[1], 1);
}

#[test]
fn interrupt_status_reports_causes_until_they_are_acknowledged() {
    let (machine, _) = machine();
    let mut rings = machine.start(0);
    assert_eq!(machine.read(INTERRUPT_STATUS), 0);
    serves(&machine, &mut rings[0], 0);
    machine.write(0x64, 2);
    assert_eq!(machine.read(INTERRUPT_STATUS), 1);
    machine.write(0x64, 0xffff_ffff);
    assert_eq!(machine.read(INTERRUPT_STATUS), 0);
    serves(&machine, &mut rings[0], 0);
    machine.write(STATUS, 0);
    assert_eq!(machine.read(INTERRUPT_STATUS), 0);
}

#[test]
fn configuration_space_is_bounded_for_any_width() {
    let (machine, device) = machine();
    let read = |offset: u64, width: usize| {
        let mut data = vec![0xee; width];
        machine.transport.read(0x100 + offset, &mut data);
        data
    };
    assert_eq!(read(0, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read(8, 4), [9, 10, 0, 0]);
    assert_eq!(read(9, 1), [10]);
    assert_eq!((read(10, 2), read(0xeff, 1)), (vec![0, 0], vec![0]));
    for (offset, width, expected) in
        [(0, 1, 1), (8, 2, 802), (9, 2, 0), (10, 1, 0), (u64::MAX - 0x100, 1, 0), (3, 8, 0)]
    {
        device.written.store(0, Ordering::Relaxed);
        machine.transport.write(offset + 0x100, &[0; 8][..width]);
        assert_eq!(device.written.load(Ordering::Relaxed), expected, "{width} at {offset}");
    }
}

#[test]
fn registers_have_32_bits_at_their_own_offset() {
    let (machine, _) = machine();
    machine.negotiate(MODERN);
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 2), (0x70, 1), (0x71, 4), (0x6e, 4)] {
        let mut data = vec![0; width];
        machine.transport.write(offset, &data);
        machine.transport.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0xff), "{width} at {offset:#x}");
    }
    assert_eq!(machine.status(), 11, "no narrow write has reset it");
    for undefined in [0x18, 0x50, 0x64, 0x80, 0xac, 0xb0, 0xb4, 0xb8, 0xbc, 0xf8] {
        assert_eq!(machine.read(undefined), u32::MAX, "{undefined:#x}");
    }
}

#[test]
fn vmm_takes_part_in_the_first_start_of_each_life() {
    let (machine, device) = machine();
    let starts = Arc::new(AtomicUsize::new(0));
    for life in 1..=2 {
        machine.transport.disconnect().unwrap();
        let count = starts.clone();
        let on_start = Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed));
        machine.transport.connect(machine.memory.clone(), on_start);
        machine.negotiate(MODERN);
        assert_eq!(starts.load(Ordering::Relaxed), life - 1, "the driver has not started the device");
        machine.write(0x70, 0);
        for _ in 0..3 {
            machine.start(0);
            machine.write(0x70, 0);
        }
        assert_eq!(starts.load(Ordering::Relaxed), life);
    }
    assert_eq!(device.activations.load(Ordering::Relaxed), 6);
}

#[test]
fn device_has_no_memory_between_two_lives_of_the_guest() {
    let (machine, device) = machine();
    machine.start(0);
    machine.transport.disconnect().unwrap();
    assert_eq!(machine.status(), 0);
    machine.negotiate(MODERN);
    machine.set_up_queue(0, &ring(&machine, 0));
    assert_eq!(machine.read(0x44), 0, "there is no memory");
    machine.transport.connect(machine.memory.clone(), Box::new(|| {}));
    let mut rings = machine.start(0);
    serves(&machine, &mut rings[0], 0);
    assert_eq!(device.activations.load(Ordering::Relaxed), 2);
}
