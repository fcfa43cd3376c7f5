//! The saved states of transports: hostile ones, and devices that go on in the middle of their work.

use std::sync::Arc;

use event_manager::{EventOps, Events};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::state::{CoreState, MmioState};
use super::tests::Echo;
use crate::state::{Restoration, SavedState, StateError, no_state, prepare_no_state};
use crate::testing::saved;
use crate::virtio::queue::{Chain, Positions, RingError, VirtQueue};
use crate::virtio::state::{DriverState, SaveDevice, SavedDevice};
use crate::virtio::testing::{BUFFERS, Buffer, MODERN, Machine, Ring};
use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice, watch_doorbell};

const STATUS: u64 = 0x70;

type Make<'a> = &'a dyn Fn() -> Arc<dyn VirtioDevice>;

fn echo() -> Arc<dyn VirtioDevice> {
    Arc::new(Echo::default())
}

/// A device that was started and is paused, with the driver's side of its queues.
fn started() -> (Machine, Vec<Ring>) {
    let machine = Machine::new(echo());
    let mut rings = machine.start(0);
    for _ in 0..3 {
        rings[0].offer(&[Buffer::writable(BUFFERS, 4)]);
        machine.kick(0);
    }
    machine.transport.pause().unwrap();
    (machine, rings)
}

fn state_of(machine: &Machine) -> MmioState {
    MmioState::decode(&machine.transport.save().unwrap().transport).unwrap()
}

/// Returns the error of `machine`'s state after `change`; nothing has changed then.
#[track_caller]
fn refused(machine: &Machine, change: impl FnOnce(&mut CoreState)) -> String {
    let mut state = state_of(machine);
    change(&mut state.core);
    let SavedDevice { transport: _, device } = machine.transport.save().unwrap();
    let target = Machine::new(echo());
    let before = target.transport.save();
    let error = target.transport.prepare(&SavedDevice { transport: state.encode(), device }).err().unwrap();
    assert_eq!(target.transport.save(), before);
    error.to_string()
}

#[test]
fn version_1_keeps_its_layout() {
    let (machine, _) = started();
    machine.write(0x14, 7);
    machine.write(0x24, 0x80);
    machine.write(0x30, 1);
    let half_and_queue = [7, 0x80, 1, 1];
    let core = [3, 15, 0xa0, 0x80, 0x80, 0x80, 0x13, 1];
    let irq = [1, 0, 0];
    let first = [64, 16, 1, 0x80, 0x80, 4, 0x80, 0xc0, 4, 0x80, 0x80, 5, 1, 3, 3, 0];
    let second = [16, 16, 1, 0x80, 0x80, 8, 0x80, 0xc0, 8, 0x80, 0x80, 9, 1, 0, 0, 0];
    let bytes = [&half_and_queue[..], &core, &irq, &[2], &first, &second].concat();
    let state = machine.transport.save().unwrap();
    assert_eq!(state, SavedDevice { transport: saved(1, &bytes), device: saved(1, &[]) });
}

#[test]
fn device_that_runs_has_no_state() {
    let machine = Machine::new(echo());
    assert!(machine.transport.can_be_saved() && machine.transport.save().is_some(), "it was not started");
    machine.start(0);
    assert_eq!(machine.transport.save(), None);
    machine.transport.pause().unwrap();
    assert!(machine.transport.save().is_some());
    machine.transport.resume();
    assert_eq!(machine.transport.save(), None);
}

#[test]
fn values_that_no_driver_could_have_caused_are_refused_by_name() {
    let (machine, _) = started();
    let refused = |change: fn(&mut CoreState)| refused(&machine, change);
    assert_eq!(refused(|core| core.kind = 4), "field `kind` is 0x4: always 0x3 here");
    for status in [2, 4, 7, 8, 9, 12, 16, 64, 79] {
        let mut state = state_of(&machine);
        state.core.status = status;
        let state = SavedDevice { transport: state.encode(), device: saved(1, &[]) };
        let error = machine.transport.prepare(&state).err().unwrap().to_string();
        assert!(error.starts_with(&format!("field `status` is {status:#x}: ")), "{error}");
    }
    let features = "0x100000000 and any other bits of 0x130000020";
    let error = refused(|core| core.accepted |= 1 << 40);
    assert_eq!(error, format!("field `accepted` is 0x10130000020: {features}"));
    let error = refused(|core| core.accepted = 0x20);
    assert_eq!(error, format!("field `accepted` is 0x20: {features}"));
    assert_eq!(refused(|core| core.is_active = false), "field `needs_reset` is 0x0: always 0x1 here");
    let error = refused(|core| core.irq.status = 4);
    assert_eq!(error, "field `interrupt_status` is 0x4: only the bits of 0x3 can be set");
    let error = refused(|core| drop(core.queues.pop()));
    assert_eq!(error, "field `queues` has 1 entries: 2, one for each queue");
    let error = refused(|core| core.queues.extend(core.queues.clone()));
    assert_eq!(error, "field `queues` has 4 entries: 2, one for each queue");
}

#[test]
fn queues_that_no_driver_could_have_set_up_are_refused_by_name() {
    let (machine, _) = started();
    let refused = |change: fn(&mut CoreState)| refused(&machine, change);
    let error = refused(|core| core.queues[1].max_size = 64);
    assert_eq!(error, "field `queue_max_size[1]` is 0x40: always 0x10 here");
    for (size, shown) in [(0, "0x0"), (3, "0x3"), (128, "0x80")] {
        let mut state = state_of(&machine);
        state.core.queues[0].size = size;
        state.core.queues[0].positions = None;
        let state = SavedDevice { transport: state.encode(), device: saved(1, &[]) };
        let error = machine.transport.prepare(&state).err().unwrap().to_string();
        assert!(error.starts_with(&format!("field `queue_size[0]` is {shown}: ")), "{error}");
    }
    for (change, field) in [
        ((|core| core.queues[0].descriptors = 8) as fn(&mut CoreState), "descriptors[0]` is 0x8"),
        (|core| core.queues[0].descriptors = u64::MAX - 15, "descriptors[0]` is 0xfffffffffffffff0"),
        (|core| core.queues[1].available = 1, "available[1]` is 0x1"),
        (|core| core.queues[0].available = 0x40_0000, "available[0]` is 0x400000"),
        (|core| core.queues[1].used = 2, "used[1]` is 0x2"),
        (|core| core.queues[1].used = 0x3f_ff80, "used[1]` is 0x3fff80"),
    ] {
        let error = refused(change);
        assert!(error.starts_with(&format!("field `{field}: ")), "{error}");
    }
    let error = refused(|core| core.queues[1].ready = false);
    assert_eq!(error, "field `queue_ready[1]` is 0x0: always 0x1 here");
}

#[test]
fn positions_that_no_queue_could_have_are_refused_by_name() {
    let (machine, _) = started();
    let refused = |change: fn(&mut Positions)| {
        refused(&machine, |core| change(core.queues[0].positions.as_mut().unwrap()))
    };
    let error = refused(|positions| positions.next_available = 4);
    assert_eq!(error, "field `next_available[0]` is 0x4: always 0x3 here");
    let error = refused(|positions| positions.next_used = u16::MAX);
    assert_eq!(error, "field `next_available[0]` is 0x3: always 0xffff here");
    let error = refused(|positions| positions.returned = vec![1]);
    assert_eq!(error, "field `next_available[0]` is 0x3: always 0x4 here");
    let error = refused(|positions| positions.returned = vec![16]);
    assert_eq!(error, "field `returned[0]` is 0x10: at most 0xf");
    let error = refused(|positions| positions.returned = vec![2, 1, 2]);
    assert_eq!(error, "field `returned[0]` is 0x2: each head once");
    let error = refused(|positions| positions.returned = (0..17).collect());
    assert_eq!(error, "field `returned` has 17 entries: at most 16, the size of the queue");
}

#[test]
fn driver_that_has_not_come_so_far_has_no_later_state() {
    let machine = Machine::new(echo());
    let active = "field `is_active` is 0x1: always 0x0 here";
    for (status, features) in [(0, "field `accepted` is 0x1: always 0x0 here"), (3, "")] {
        machine.write(STATUS, status);
        assert_eq!(refused(&machine, |core| core.is_active = true), active);
        let error = refused(&machine, |core| core.irq.needs_reset = true);
        assert_eq!(error, "field `needs_reset` is 0x1: always 0x0 here");
        let error = refused(&machine, |core| core.irq.status = 1);
        assert_eq!(error, "field `interrupt_status` is 0x1: always 0x0 here");
        let error = refused(&machine, |core| core.queues[1].size = 8);
        assert_eq!(error, "field `queue_size[1]` is 0x8: always 0x10 here");
        let error = refused(&machine, |core| core.queues[0].ready = true);
        assert_eq!(error, "field `queue_ready[0]` is 0x1: always 0x0 here");
        let error = refused(&machine, |core| core.queues[0].used = 4096);
        assert_eq!(error, "field `used[0]` is 0x1000: always 0x0 here");
        if !features.is_empty() {
            assert_eq!(refused(&machine, |core| core.accepted = 1), features);
        }
    }
    machine.negotiate(MODERN);
    let positions = || Positions { next_available: 0, next_used: 0, returned: Vec::new() };
    let error = refused(&machine, |core| core.queues[0].positions = Some(positions()));
    assert_eq!(error, "field `queue_is_active[0]` is 0x0: always 0x1 here");
}

#[test]
fn registers_of_a_driver_under_way_are_kept_as_they_are() {
    for status in [0, 1, 3, 11] {
        for end in [0, 128] {
            let machine = Machine::new(echo());
            machine.write(STATUS, status.min(3));
            if status > 1 {
                // Features that the device does not offer are refused only later.
                machine.write(0x24, 1);
                machine.write(0x20, if status == 11 { 1 } else { u32::MAX });
                machine.write(STATUS, status);
            }
            if status == 11 {
                // Neither a size nor an address has to be possible before the queue is ready.
                machine.write(0x38, 0xffff);
                machine.write(0x84, u32::MAX);
            }
            machine.write(STATUS, status | end);
            let fork = machine.fork(echo()).unwrap();
            assert_eq!(fork.transport.save(), machine.transport.save());
            assert_eq!(fork.status(), status | end);
        }
    }
}

#[test]
fn device_that_needs_a_reset_needs_it_in_other_machines_too() {
    let without_queue = Machine::new(echo());
    without_queue.negotiate(MODERN);
    without_queue.write(STATUS, 15);
    let damaged = Machine::new(echo());
    let mut rings = damaged.start(0);
    rings[0].offer_head(99);
    damaged.kick(0);
    for machine in [without_queue, damaged] {
        assert!(machine.needs_reset());
        let fork = machine.fork(echo()).unwrap();
        assert!(fork.needs_reset() && fork.interrupts() == 1);
        fork.resume();
        assert!(fork.needs_reset());
        let mut rings = fork.start(0);
        rings[0].offer(&[Buffer::writable(BUFFERS, 4)]);
        fork.kick(0);
        assert_eq!((fork.status(), rings[0].completed()), (15, Some((0, 4))));
    }
}

#[test]
fn indices_of_a_restored_queue_wrap() {
    let mut machine = Machine::new(echo());
    let mut ring = machine.start(0).swap_remove(0);
    for round in 0..66_000_u32 {
        let head = ring.offer(&[Buffer::writable(BUFFERS, 4)]);
        machine.kick(0);
        assert_eq!(ring.completed(), Some((head.into(), 4)), "{round}");
        if round % 6_553 == 0 {
            let fork = machine.fork(echo()).unwrap();
            fork.resume();
            (ring, machine) = (ring.in_memory(fork.memory.clone()), fork);
        }
    }
}

#[test]
fn state_takes_the_place_of_that_of_a_running_device() {
    let (machine, _) = started();
    let state = machine.transport.save().unwrap();
    let target = Machine::new(echo());
    let mut ring = target.start(0).swap_remove(1);
    target.kick(1);
    target.transport.prepare(&state).unwrap().apply();
    assert_eq!(target.transport.save(), Some(state));
    ring.offer(&[Buffer::writable(BUFFERS, 4)]);
    target.kick(1);
    assert_eq!(ring.completed(), None, "the handlers before have gone");
}

#[test]
fn restored_device_without_work_interrupts_nobody() {
    let (machine, _) = started();
    machine.write(0x64, 3);
    let fork = machine.fork(echo()).unwrap();
    fork.resume();
    assert_eq!((fork.interrupts(), fork.read(0x60)), (0, 0));
}

/// A device like [`Echo`] that holds every chain until its handler has to stop. Then it completes those at
/// odd places without a word to the driver, and puts the others back.
struct Hoarder;

struct HoarderHandler(VirtQueue, Vec<Chain>);

impl VirtioDevice for Hoarder {
    fn kind(&self) -> DeviceKind {
        Echo::default().kind()
    }

    fn name(&self) -> String {
        "hoarder".into()
    }

    fn features(&self) -> u64 {
        Echo::default().features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        Echo::default().queue_sizes()
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        Ok(vec![Box::new(HoarderHandler(context.queues.take(0)?, Vec::new()))])
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

impl SaveDevice for Hoarder {
    fn save(&self) -> SavedState {
        no_state()
    }

    fn prepare(&self, state: &SavedState, _: &DriverState) -> Result<Restoration<'_>, StateError> {
        prepare_no_state(state)
    }
}

impl QueueHandler for HoarderHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        watch_doorbell(sources, &self.0, 0);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        self.0.begin();
        while let Some(chain) = self.0.pop()? {
            self.1.push(chain);
        }
        self.0.finish()
    }

    fn stop(mut self: Box<Self>) -> Vec<VirtQueue> {
        while let Some(chain) = self.1.pop() {
            if self.1.len() % 2 == 1 {
                self.0.complete(chain, 1);
            } else {
                self.0.put_back(chain);
            }
        }
        vec![self.0]
    }
}

#[test]
fn chains_that_a_device_held_are_served_by_the_next_in_their_order() {
    let machine = Machine::new(Arc::new(Hoarder));
    let mut ring = machine.start(0).swap_remove(0);
    let heads: Vec<u16> = (0..6).map(|_| ring.offer(&[Buffer::writable(BUFFERS, 4)])).collect();
    machine.kick(0);
    assert_eq!((ring.used_index(), machine.read(0x60)), (0, 0));
    let fork = machine.fork(Arc::new(Hoarder)).unwrap();
    let mut ring = ring.in_memory(fork.memory.clone());
    assert_eq!((ring.used_index(), fork.read(0x60)), (3, 1), "completions are announced in time");
    let Positions { next_available, next_used, returned } = positions(&fork);
    assert_eq!((next_available, next_used, returned), (6, 3, vec![heads[4], heads[2], heads[0]]));
    let fork = fork.fork(echo()).unwrap();
    ring = ring.in_memory(fork.memory.clone());
    fork.resume();
    let order: Vec<_> = std::iter::from_fn(|| ring.completed()).collect();
    let expected = [(5, 1), (3, 1), (1, 1), (0, 4), (2, 4), (4, 4)];
    assert_eq!(order, expected.map(|(place, len): (usize, u32)| (u32::from(heads[place]), len)));
    fork.transport.pause().unwrap();
    assert_eq!(positions(&fork), Positions { next_available: 6, next_used: 6, returned: Vec::new() });
}

fn positions(machine: &Machine) -> Positions {
    state_of(machine).core.queues.swap_remove(0).positions.unwrap()
}

/// Gives a device states of random bytes, and its own with random changes. One that it accepts is one that it
/// could have had: it saves the same, and works.
pub(in crate::virtio) fn survives_any_state(make: Make<'_>, own: &SavedDevice) {
    let bytes = |saved: &SavedState| {
        let own = saved.bytes().to_vec();
        let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
        let changed = (changes, -1..2_isize).prop_map(move |(changes, more)| {
            let mut bytes = own.clone();
            let len = bytes.len();
            changes.iter().filter(|_| len > 0).for_each(|(place, value)| bytes[place.index(len)] = *value);
            bytes.resize(len.saturating_add_signed(more), 0);
            bytes
        });
        let same = Just(saved.bytes().to_vec());
        prop_oneof![2 => same, 1 => proptest::collection::vec(any::<u8>(), 0..200), 3 => changed]
    };
    let version = || prop_oneof![9 => Just(1_u16), 1 => 0..4_u16];
    let strategy = (version(), bytes(&own.transport), version(), bytes(&own.device));
    let test = |(version, transport, device_version, device): (u16, Vec<u8>, u16, Vec<u8>)| {
        let state =
            SavedDevice { transport: saved(version, &transport), device: saved(device_version, &device) };
        let machine = Machine::new(make());
        let before = machine.transport.save();
        let prepared = machine.transport.prepare(&state);
        let Ok(prepared) = prepared else {
            drop(prepared);
            prop_assert_eq!(machine.transport.save(), before);
            return Ok(());
        };
        prepared.apply();
        let state = machine.transport.save().unwrap();
        let other = machine.fork(make()).unwrap();
        prop_assert_eq!(other.transport.save(), Some(state));
        for queue in 0..machine.queue_count() {
            machine.resume();
            machine.kick(queue);
            machine.transport.pause().unwrap();
        }
        let rings = machine.start(0);
        prop_assert_eq!((machine.status(), rings.is_empty()), (15, false));
        Ok(())
    };
    TestRunner::default().run(&strategy, test).unwrap();
}

/// Checks that a device refuses its own state in another version, cut, and with bytes after it.
pub(in crate::virtio) fn refuses_damaged_states(make: Make<'_>, own: &SavedDevice) {
    let machine = Machine::new(make());
    let before = machine.transport.save();
    for is_transport in [true, false] {
        let damaged = if is_transport { &own.transport } else { &own.device };
        let (version, bytes) = (damaged.version(), damaged.bytes());
        let refuses = |version, bytes: &[u8]| {
            let mut state = own.clone();
            *(if is_transport { &mut state.transport } else { &mut state.device }) = saved(version, bytes);
            let error = machine.transport.prepare(&state).err().unwrap();
            assert_eq!(machine.transport.save(), before);
            error
        };
        for other in [0, version + 1, u16::MAX] {
            assert_eq!(refuses(other, bytes), StateError::Version { version: other, newest: version });
        }
        for len in 0..bytes.len() {
            assert!(matches!(refuses(version, &bytes[..len]), StateError::Encoding { .. }), "{len} bytes");
        }
        assert_eq!(refuses(version, &[bytes, &[0]].concat()), StateError::TrailingBytes { extra: 1 });
    }
}

#[test]
fn hostile_states_are_refused_or_harmless() {
    let (machine, _) = started();
    let state = machine.transport.save().unwrap();
    refuses_damaged_states(&echo, &state);
    survives_any_state(&echo, &state);
}
