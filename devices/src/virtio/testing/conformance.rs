//! The behaviour that all virtio devices share. Each device's tests call [`conform`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Buffer, Machine, Ring, transport};
use crate::event_loop::EventLoop;
use crate::virtio::{VirtioDevice, feature};

/// A request that the device under test completes at once.
pub struct Usual {
    /// The queue that the request is sent to.
    pub queue: u16,
    /// Writes the request's content into RAM.
    pub prepare: fn(&Machine),
    /// The buffers of the request.
    pub buffers: Vec<Buffer>,
}

/// Runs every case with fresh devices from `make`.
pub fn conform(make: &dyn Fn() -> Arc<dyn VirtioDevice>, usual: &Usual) {
    registers_identify_the_device(&make());
    requests_are_served_with_every_ring_feature(make, usual);
    reset_and_start_again_works(&Machine::new(make()), usual);
    paused_device_serves_nothing_and_goes_on(&Machine::new(make()), usual);
    damaged_ring_needs_a_reset_which_helps(&Machine::new(make()), usual);
    bad_chains_are_dropped_and_good_ones_served(&Machine::new(make()), usual);
    any_register_access_is_survived(&Machine::new(make()), usual);
    reset_works_while_another_device_floods(make, usual);
    if make().saving().is_some() {
        saved_device_goes_on_in_other_machines(make, usual);
        device_is_saved_at_every_step_of_its_driver(make);
    }
}

/// Sends one usual request and expects its completion.
#[track_caller]
fn serve_one(machine: &Machine, rings: &mut [Ring], usual: &Usual) {
    (usual.prepare)(machine);
    let ring = ring_of(rings, usual);
    let head = ring.offer(&usual.buffers);
    machine.kick(usual.queue);
    let completed = ring.completed();
    assert_eq!(completed.map(|(id, _)| id), Some(head.into()), "status {:#x}", machine.status());
}

#[track_caller]
#[expect(clippy::expect_used, reason = "it is a test")]
fn ring_of<'a>(rings: &'a mut [Ring], usual: &Usual) -> &'a mut Ring {
    rings.get_mut(usize::from(usual.queue)).expect("the queue of the usual request")
}

fn registers_identify_the_device(device: &Arc<dyn VirtioDevice>) {
    let machine = Machine::new(device.clone());
    assert_eq!((machine.read(0), machine.read(4)), (0x7472_6976, 2));
    assert_eq!(machine.read(8), device.kind() as u32);
    assert_eq!((machine.status(), machine.read(0x60)), (0, 0));
    let queues = machine.queue_count();
    assert!(queues > 0);
    for absent in [u32::from(queues), 0xffff, u32::MAX] {
        machine.write(0x30, absent);
        assert_eq!((machine.read(0x34), machine.read(0x44)), (0, 0), "queue {absent}");
    }
    assert_ne!(machine.offered() & 1 << feature::VERSION_1, 0);
}

fn requests_are_served_with_every_ring_feature(make: &dyn Fn() -> Arc<dyn VirtioDevice>, usual: &Usual) {
    for without in [0, 1 << feature::EVENT_IDX, 1 << feature::INDIRECT_DESC] {
        let machine = Machine::new(make());
        let mut rings = machine.start(without);
        assert_eq!(machine.status(), 15);
        machine.interrupts();
        serve_one(&machine, &mut rings, usual);
        assert_eq!(machine.interrupts(), 1, "without {without:#x}");
        assert_eq!(machine.read(0x60), 1);
        machine.write(0x64, 1);
        assert_eq!(machine.read(0x60), 0);
    }
}

fn reset_and_start_again_works(machine: &Machine, usual: &Usual) {
    for _ in 0..100 {
        let mut rings = machine.start(0);
        serve_one(machine, &mut rings, usual);
        ring_of(&mut rings, usual).offer(&usual.buffers);
        machine.write(super::STATUS, 0);
        assert_eq!((machine.status(), machine.read(0x60)), (0, 0));
        machine.kick(usual.queue);
    }
}

fn paused_device_serves_nothing_and_goes_on(machine: &Machine, usual: &Usual) {
    let mut rings = machine.start(0);
    for _ in 0..40 {
        serve_one(machine, &mut rings, usual);
        assert!(machine.transport.pause().is_ok());
        let ring = ring_of(&mut rings, usual);
        ring.offer(&usual.buffers);
        machine.kick(usual.queue);
        assert_eq!(ring.completed(), None);
        machine.transport.resume();
        machine.settle();
        assert!(ring.completed().is_some(), "chains offered during the pause are served after it");
    }
    assert!(machine.transport.pause().is_ok());
    machine.write(super::STATUS, 0);
    machine.transport.resume();
    assert_eq!(machine.status(), 0, "a reset ends a pause");
}

/// A chain of machines, each made of the one before, while a request is in the ring, its doorbell is rung,
/// and an interrupt is not acknowledged. The machines before go on, too.
#[expect(clippy::expect_used, reason = "it is a test")]
fn saved_device_goes_on_in_other_machines(make: &dyn Fn() -> Arc<dyn VirtioDevice>, usual: &Usual) {
    for without in [0, 1 << feature::EVENT_IDX, 1 << feature::INDIRECT_DESC] {
        let mut machine = Machine::new(make());
        let mut rings = machine.start(without);
        for generation in 0..40_u16 {
            serve_one(&machine, &mut rings, usual);
            (usual.prepare)(&machine);
            // Either the handler has the time to see the doorbell, or not.
            let is_missed = generation.is_multiple_of(2);
            assert!(!is_missed || machine.transport.pause().is_ok());
            ring_of(&mut rings, usual).offer(&usual.buffers);
            machine.write(super::MmioTransport::QUEUE_NOTIFY, usual.queue.into());
            let fork = machine.fork(make()).expect("a fork");
            assert_eq!(fork.transport.save(), machine.transport.save());
            assert_eq!(registers(&fork), registers(&machine));
            assert_eq!((fork.interrupts(), fork.read(0x60)), (1, 1), "it is not acknowledged");
            let mut copies: Vec<Ring> =
                rings.iter().map(|ring| ring.in_memory(fork.memory.clone())).collect();
            for (machine, rings) in [(&machine, &mut rings), (&fork, &mut copies)] {
                let before = ring_of(rings, usual).completed();
                assert!(!is_missed || before.is_none());
                machine.resume();
                let after = ring_of(rings, usual).completed();
                assert_eq!(before.iter().chain(&after).count(), 1, "generation {generation}");
                serve_one(machine, rings, usual);
            }
            assert_eq!(fork.status(), 15);
            (machine, rings) = (fork, copies);
        }
        machine.write(super::STATUS, 0);
        serve_one(&machine, &mut machine.start(without), usual);
    }
}

/// Reads the registers that a driver can read, and the start of the configuration space.
fn registers(machine: &Machine) -> Vec<u32> {
    let queue = |index: u32| {
        machine.write(0x30, index);
        [machine.read(0x34), machine.read(0x44)]
    };
    let queues = (0..u32::from(machine.queue_count())).flat_map(queue);
    queues.chain((0..0x140).step_by(4).map(|offset| machine.read(offset))).collect()
}

/// A driver that is interrupted after any of its writes goes on in another machine.
#[expect(clippy::expect_used, reason = "it is a test")]
fn device_is_saved_at_every_step_of_its_driver(make: &dyn Fn() -> Arc<dyn VirtioDevice>) {
    let offered = Machine::new(make()).offered();
    let ring = Ring::new(super::memory(), 1 << 16, 16);
    let set_up = |index: u32| {
        let address = [(0x80, ring.descriptors()), (0x90, ring.available()), (0xa0, ring.used())];
        let writes = address.into_iter().map(|(register, address)| (register, address as u32));
        [(0x30, index), (0x38, 16)].into_iter().chain(writes).chain([(0x44, 1)])
    };
    let features = [(0x24, 0), (0x20, offered as u32), (0x24, 1), (0x20, (offered >> 32) as u32)];
    let queues = u32::from(Machine::new(make()).queue_count());
    let steps = [(super::STATUS, 1), (0x14, 1), (super::STATUS, 3)].into_iter().chain(features);
    let steps = steps.chain([(super::STATUS, 11)]).chain((0..queues).flat_map(set_up));
    let (mut machine, mut selected) = (Machine::new(make()), 0);
    for (register, value) in steps.chain([(super::STATUS, 15), (super::STATUS, 0)]) {
        machine.write(register, value);
        if register == 0x30 {
            selected = value;
        }
        let fork = machine.fork(make()).expect("a fork");
        assert_eq!(fork.transport.save(), machine.transport.save(), "{register:#x}");
        fork.resume();
        assert_eq!(registers(&fork), registers(&machine), "{value:#x} in {register:#x}");
        // Reading all of them has selected another queue.
        fork.write(0x30, selected);
        machine = fork;
    }
    assert_eq!(machine.status(), 0);
}

fn damaged_ring_needs_a_reset_which_helps(machine: &Machine, usual: &Usual) {
    let damages: [fn(&mut Ring); 4] = [
        |ring| ring.set_available_index(ring.size().wrapping_add(1)),
        |ring| ring.set_available_index(0xffff),
        |ring| ring.offer_head(ring.size()),
        |ring| ring.offer_head(0xffff),
    ];
    for damage in damages {
        let mut rings = machine.start(0);
        machine.interrupts();
        damage(ring_of(&mut rings, usual));
        machine.kick(usual.queue);
        assert!(machine.needs_reset());
        assert_eq!((machine.interrupts(), machine.read(0x60)), (1, 2), "a configuration change reports it");
        machine.kick(usual.queue);
        assert_eq!(machine.interrupts(), 0, "nothing happens until the reset");
        let mut rings = machine.start(0);
        assert!(!machine.needs_reset());
        serve_one(machine, &mut rings, usual);
    }
}

fn bad_chains_are_dropped_and_good_ones_served(machine: &Machine, usual: &Usual) {
    let mut rings = machine.start(0);
    type BadChain = fn(&Ring, u16);
    let bad: [BadChain; 5] = [
        |ring, at| ring.descriptor(at, super::BUFFERS, 1, 1, at),
        |ring, at| ring.descriptor(at, super::BUFFERS, 1, 1, ring.size()),
        |ring, at| ring.descriptor(at, super::LOW_RAM_LEN.wrapping_sub(1), 2, 2, 0),
        |ring, at| ring.descriptor(at, u64::MAX, 1, 2, 0),
        |ring, at| ring.descriptor(at, super::BUFFERS, 17, 4, 0),
    ];
    for make_bad in bad {
        let ring = ring_of(&mut rings, usual);
        make_bad(ring, 15);
        ring.offer_head(15);
        machine.kick(usual.queue);
        assert_eq!(ring.completed(), Some((15, 0)));
        assert!(!machine.needs_reset());
        serve_one(machine, &mut rings, usual);
    }
}

fn any_register_access_is_survived(machine: &Machine, usual: &Usual) {
    machine.start(0);
    for offset in (0..0x120).chain([0xffc, 0xfff, u64::MAX]) {
        for width in [1, 2, 3, 4, 8] {
            for fill in [0_u8, 1, 2, 0x55, 0x80, 0xff] {
                let mut data = vec![fill; width];
                machine.transport.write(offset, &data);
                machine.transport.read(offset, &mut data);
            }
        }
    }
    let mut rings = machine.start(0);
    serve_one(machine, &mut rings, usual);
}

/// Both devices are on one thread, as in a virtual machine.
#[expect(clippy::expect_used, reason = "it is a test")]
fn reset_works_while_another_device_floods(make: &dyn Fn() -> Arc<dyn VirtioDevice>, usual: &Usual) {
    let mut event_loop = EventLoop::new().expect("an event loop");
    let handle = event_loop.handle();
    let stop = Arc::new(AtomicBool::new(false));
    let io = thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::Acquire) {
                event_loop.run_once(100);
            }
        }
    });
    let other = Machine::new(make());
    let (flooding, memory, _) = transport(make(), Arc::new(handle.clone()));
    let mut other_rings = Vec::new();
    let flooded = Machine { transport: flooding, memory, host: other.host.clone(), line: other.line.clone() };
    let mut rings = flooded.start(0);
    (usual.prepare)(&flooded);
    let mut served = 0_u32;
    let (resetting, memory, _) = transport(make(), Arc::new(handle.clone()));
    let reset = Machine { transport: resetting, memory, host: other.host.clone(), line: other.line.clone() };
    let start = Instant::now();
    while served < 200 || other_rings.len() < 50 {
        assert!(start.elapsed() < Duration::from_secs(60), "{served} served, {} resets", other_rings.len());
        let ring = ring_of(&mut rings, usual);
        if u32::from(ring.used_index()) == served & 0xffff {
            ring.offer(&usual.buffers);
            served = served.saturating_add(1);
        }
        flooded.write(0x50, usual.queue.into());
        other_rings.push(reset.start(0));
        reset.write(super::STATUS, 0);
        assert_eq!((reset.status(), flooded.status()), (0, 15));
    }
    drop((flooded, reset));
    stop.store(true, Ordering::Release);
    handle.wake();
    assert!(io.join().is_ok());
}
