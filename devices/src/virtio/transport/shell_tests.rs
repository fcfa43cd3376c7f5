//! A transport of another kind: a shell with doorbells and interrupts unlike those of MMIO, behind the same
//! trait.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Doorbell, OnStart, Transport, TransportCore, TransportParts};
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::lock;
use crate::memory::GuestMemory;
use crate::state::{Restoration, StateError};
use crate::testing::PulseCount;
use crate::virtio::handler::{IfLate, Stuck};
use crate::virtio::queue::ChainBudget;
use crate::virtio::state::SavedDevice;
use crate::virtio::testing::{BUFFERS, Buffer, InlineHost, MODERN, Ring, memory};
use crate::virtio::transport::tests::Echo;
use crate::virtio::{VirtioDevice, VirtioIrq};

/// A shell without registers: its driver calls the core. Each queue has a doorbell at an offset of its own,
/// as over PCI.
struct Direct {
    device: Arc<Echo>,
    core: Mutex<TransportCore>,
    doorbells: Vec<Arc<EventFd>>,
}

impl BusDevice for Direct {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, _: &[u8]) {
        let doorbell = self.doorbells().into_iter().find(|doorbell| doorbell.offset == offset);
        doorbell.unwrap().event.write(1).unwrap();
    }
}

impl Transport for Direct {
    fn name(&self) -> String {
        self.device.name()
    }

    fn window_len(&self) -> u64 {
        64
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let doorbell = |(queue, event): (u32, &Arc<EventFd>)| Doorbell {
            offset: u64::from(queue) * 4,
            value: queue,
            event: event.clone(),
        };
        (0..).zip(&self.doorbells).map(doorbell).collect()
    }

    fn connect(&self, memory: GuestMemory, on_start: OnStart) {
        lock(&self.core).connect(memory, on_start);
    }

    fn disconnect(&self) -> Result<(), Stuck> {
        lock(&self.core).disconnect()
    }

    fn ask_for_queues(&self, if_late: IfLate) {
        lock(&self.core).ask_for_queues(if_late);
    }

    fn pause(&self) -> Result<(), Stuck> {
        lock(&self.core).pause()
    }

    fn resume(&self) {
        lock(&self.core).resume();
    }

    fn can_be_saved(&self) -> bool {
        false
    }

    fn save(&self) -> Option<SavedDevice> {
        None
    }

    fn prepare(&self, _: &SavedDevice) -> Result<Restoration<'_>, StateError> {
        Err(StateError::Unsupported)
    }
}

/// A line that has an event descriptor, as the VMM's have.
struct Eventful(EventFd);

impl IrqLine for Eventful {
    fn pulse(&self) {
        self.0.write(1).unwrap();
    }

    fn event(&self) -> Option<&EventFd> {
        Some(&self.0)
    }
}

struct Bench {
    transport: Arc<dyn Transport>,
    host: Arc<InlineHost>,
    irq: VirtioIrq,
    config: Arc<PulseCount>,
    /// The line of the first queue; the second has an event.
    first: Arc<PulseCount>,
    rings: Vec<Ring>,
}

/// A device that its driver has started, with two queues.
fn bench() -> Bench {
    let (device, host) = (Arc::new(Echo::default()), Arc::new(InlineHost::new()));
    let (config, first) = (Arc::new(PulseCount::default()), Arc::new(PulseCount::default()));
    let second = Arc::new(Eventful(EventFd::new(EFD_NONBLOCK).unwrap()));
    let irq = VirtioIrq::with_queue_lines(config.clone(), vec![first.clone(), second]);
    let doorbells: Vec<_> = (0..2).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).collect();
    let core = TransportCore::new(TransportParts {
        device: device.clone(),
        host: host.clone(),
        irq: irq.clone(),
        doorbells: doorbells.clone(),
        chains: ChainBudget::default(),
    });
    let direct = Direct { device, core: Mutex::new(core), doorbells };
    let memory = memory();
    direct.connect(memory.clone(), Box::new(|| {}));
    let rings: Vec<_> = (1..=2).map(|at| Ring::new(memory.clone(), at << 16, 16)).collect();
    let mut core = lock(&direct.core);
    core.write_status(3);
    core.write_features(1, (MODERN >> 32) as u32);
    core.write_status(11);
    for (index, ring) in (0..).zip(&rings) {
        core.set_up_queue(index, |queue| {
            queue.size = ring.size();
            (queue.descriptors, queue.available, queue.used) =
                (ring.descriptors(), ring.available(), ring.used());
        });
        core.set_queue_ready(index, true);
    }
    core.write_status(15);
    assert_eq!(core.status(), 15);
    drop(core);
    host.settle();
    Bench { transport: Arc::new(direct), host, irq, config, first, rings }
}

impl Bench {
    /// Offers a buffer, and rings by the write that the transport names.
    fn offer(&mut self, queue: usize) {
        self.rings[queue].offer(&[Buffer::writable(BUFFERS, 4)]);
        let doorbell = self.transport.doorbells().swap_remove(queue);
        self.transport.write(doorbell.offset, &doorbell.value.to_le_bytes());
        self.host.settle();
    }

    fn is_served(&mut self, queue: usize) -> bool {
        self.rings[queue].completed().is_some()
    }

    /// Interrupts since the last call: of the configuration space, of the first queue, of the second.
    fn interrupts(&self) -> [usize; 3] {
        let second = self.irq.queue_event(1).unwrap().read().unwrap_or(0);
        [self.config.take(), self.first.take(), second as usize]
    }
}

#[test]
fn queue_raises_its_own_line() {
    let mut bench = bench();
    assert_eq!(bench.interrupts(), [0, 0, 0]);
    for (queue, expected) in [(0, [0, 1, 0]), (1, [0, 0, 1])] {
        bench.offer(queue);
        assert!(bench.is_served(queue));
        assert_eq!(bench.interrupts(), expected);
    }
    bench.irq.config();
    assert_eq!(bench.interrupts(), [1, 0, 0]);
    bench.irq.queue(2);
    assert_eq!(bench.interrupts(), [1, 0, 0], "a queue without a line of its own has the device's");
}

#[test]
fn only_a_line_that_no_other_queue_shares_is_available_as_an_event() {
    let bench = bench();
    assert!(bench.irq.queue_event(0).is_none(), "its line has no event");
    assert!(bench.irq.queue_event(1).is_some());
    let shared = VirtioIrq::new(Arc::new(Eventful(EventFd::new(EFD_NONBLOCK).unwrap())));
    assert!(shared.queue_event(0).is_none(), "the status register has to be written first");
}

#[test]
fn device_with_another_shell_is_paused_resumed_and_disconnected_by_the_trait() {
    let mut bench = bench();
    let transport = bench.transport.clone();
    assert_eq!((transport.name(), transport.window_len()), ("echo".into(), 64));
    transport.ask_for_queues(IfLate::Continue);
    transport.pause().unwrap();
    bench.offer(1);
    assert!(!bench.is_served(1));
    transport.resume();
    bench.host.settle();
    assert!(bench.is_served(1));
    transport.disconnect().unwrap();
    bench.offer(0);
    assert!(!bench.is_served(0));
}
