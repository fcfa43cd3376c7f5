//! The driver's side of virtio for tests and fuzz targets: a machine around one device, and a ring that a
//! test can set up right or wrong.

mod conformance;
mod ring;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use conformance::{Usual, conform};
pub use ring::{Buffer, Ring, descriptor_bytes};

use super::handler::{GroupId, HandlerGroup, HandlerHost, IfLate, Stuck};
use super::queue::ChainBudget;
use super::transport::{MmioTransport, Transport, TransportParts};
use super::{VirtQueue, VirtioDevice, VirtioIrq, feature};
use crate::event_loop::{Asked, EventLoop, LoopHandle};
use crate::irq::IrqLine;
use crate::lock;
use crate::memory::{GuestMemory, MappingKind};

/// The length of the low RAM of a [`Machine`] in bytes, from address 0. A second range begins at
/// [`HIGH_RAM`].
pub const LOW_RAM_LEN: u64 = 4 << 20;
/// The address at which RAM continues after a hole.
pub const HIGH_RAM: u64 = 16 << 20;
/// The length of the high RAM in bytes.
pub const HIGH_RAM_LEN: u64 = 1 << 20;
/// The address from which low RAM is free for buffers. The rings of the queues lie below.
pub const BUFFERS: u64 = 1 << 20;

/// Makes RAM with a hole in it.
pub fn memory() -> GuestMemory {
    let ranges = [(GuestAddress(0), LOW_RAM_LEN as usize), (GuestAddress(HIGH_RAM), HIGH_RAM_LEN as usize)];
    let mmap = GuestMemoryMmap::<()>::from_ranges(&ranges);
    GuestMemory::new(mmap.unwrap_or_default(), MappingKind::Private)
}

/// A machine with one virtio device, whose handlers run when the test lets them.
pub struct Machine {
    /// The registers of the device.
    pub transport: Arc<dyn Transport>,
    /// RAM.
    pub memory: GuestMemory,
    /// The thread of the handlers.
    pub host: Arc<InlineHost>,
    line: Arc<Line>,
}

impl Machine {
    /// Makes a machine whose driver has done nothing.
    pub fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let host = Arc::new(InlineHost::new());
        let (transport, memory, line) = transport(device, host.clone());
        Self { transport, memory, host, line }
    }

    /// Reads a register; all ones if there is none at `offset`.
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Returns the features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |half: u32| {
            self.write(0x14, half);
            u64::from(self.read(0x10))
        };
        half(0) | half(1) << 32
    }

    /// Resets the device and takes all steps up to FEATURES_OK with these features.
    pub fn negotiate(&self, features: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        self.write(0x24, 0);
        self.write(0x20, features as u32);
        self.write(0x24, 1);
        self.write(0x20, (features >> 32) as u32);
        self.write(STATUS, 11);
    }

    /// Sets up queue `index` with `ring`, and makes it ready.
    pub fn set_up_queue(&self, index: u16, ring: &Ring) {
        self.write(0x30, index.into());
        self.write(0x38, ring.size().into());
        for (low, address) in [(0x80, ring.descriptors()), (0x90, ring.available()), (0xa0, ring.used())] {
            self.write(low, address as u32);
            self.write(low.wrapping_add(4), (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// Starts the device with all of its queues, each of 16 descriptors, and with all features that it offers
    /// except those in `without`.
    pub fn start(&self, without: u64) -> Vec<Ring> {
        self.negotiate(self.offered() & !without);
        let count = self.queue_count();
        let ring = |index: u16| Ring::new(self.memory.clone(), u64::from(index).wrapping_add(1) << 16, 16);
        let rings: Vec<Ring> = (0..count).map(ring).collect();
        for (index, ring) in (0..).zip(&rings) {
            self.set_up_queue(index, ring);
        }
        self.write(STATUS, 15);
        self.settle();
        rings
    }

    /// Returns the number of the device's queues.
    pub fn queue_count(&self) -> u16 {
        let exists = |index: &u16| {
            self.write(0x30, (*index).into());
            self.read(0x34) != 0
        };
        (0..u16::MAX).take_while(exists).count() as u16
    }

    /// Returns the status register.
    pub fn status(&self) -> u32 {
        self.read(STATUS)
    }

    /// Returns whether the device reports that it needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.status() & 64 != 0
    }

    /// Rings the doorbell of a queue and lets the handlers run.
    pub fn kick(&self, queue: u16) {
        self.write(MmioTransport::QUEUE_NOTIFY, queue.into());
        self.settle();
    }

    /// Lets the handlers run until they have nothing to do, for a bounded number of rounds.
    pub fn settle(&self) {
        self.host.settle();
    }

    /// Returns the number of pulses of the interrupt since the last call.
    pub fn interrupts(&self) -> usize {
        self.line.take()
    }

    /// Has `answer` called at each pulse of the interrupt, as by a driver on another CPU that is as quick as
    /// possible.
    pub fn on_interrupt(&self, answer: impl FnMut() + Send + 'static) {
        *lock(&self.line.on_pulse) = Some(Box::new(answer));
    }

    /// Makes another machine around `device` that has the state and the RAM of this one. This one stays
    /// paused, and so is the other, until its [transport](Self::transport) is resumed.
    ///
    /// # Errors
    /// The device cannot be paused or saved, or `device` cannot have the state: its text.
    pub fn fork(&self, device: Arc<dyn VirtioDevice>) -> Result<Self, String> {
        self.transport.pause().map_err(|error| error.to_string())?;
        let state = self.transport.save().ok_or("it cannot be saved")?;
        let other = Self::new(device);
        for (address, len) in [(0, LOW_RAM_LEN), (HIGH_RAM, HIGH_RAM_LEN)] {
            other.put(address, &self.bytes(address, len as usize));
        }
        other.transport.prepare(&state).map_err(|error| error.to_string())?.apply();
        Ok(other)
    }

    /// Continues after a pause or a fork, and lets the handlers run.
    pub fn resume(&self) {
        self.transport.resume();
        self.settle();
    }

    /// Writes `data` to RAM.
    pub fn put(&self, address: u64, data: &[u8]) {
        let _ = self.memory.mmap().write_slice(data, GuestAddress(address));
    }

    /// Returns bytes of RAM; zeroes where there is no RAM.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let _ = self.memory.mmap().read_slice(&mut data, GuestAddress(address));
        data
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.transport.disconnect();
    }
}

/// Makes a transport around `device`, with its memory and its interrupt line.
pub fn transport(
    device: Arc<dyn VirtioDevice>,
    host: Arc<dyn HandlerHost>,
) -> (Arc<dyn Transport>, GuestMemory, Arc<Line>) {
    let line = Arc::new(Line::default());
    let queues = device.queue_sizes();
    let doorbells = queues.iter().filter_map(|_| EventFd::new(EFD_NONBLOCK).ok()).map(Arc::new).collect();
    let (irq, chains) = (VirtioIrq::new(line.clone()), ChainBudget::default());
    let parts = TransportParts { device, host, irq, doorbells, chains };
    let memory = memory();
    let transport = Arc::new(MmioTransport::new(parts));
    transport.connect(memory.clone(), Box::new(|| {}));
    (transport, memory, line)
}

/// An interrupt line that counts its pulses.
#[derive(Default)]
pub struct Line {
    pulses: AtomicUsize,
    on_pulse: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Line {
    /// Returns the number of pulses since the last call.
    pub fn take(&self) -> usize {
        self.pulses.swap(0, Ordering::Relaxed)
    }
}

impl IrqLine for Line {
    fn pulse(&self) {
        self.pulses.fetch_add(1, Ordering::Relaxed);
        if let Some(on_pulse) = &mut *lock(&self.on_pulse) {
            on_pulse();
        }
    }
}

/// Runs handlers on the thread of its caller.
pub struct InlineHost {
    event_loop: Mutex<EventLoop>,
    handle: LoopHandle,
}

impl InlineHost {
    #[expect(clippy::expect_used, reason = "a test cannot do without a loop")]
    pub(crate) fn new() -> Self {
        let event_loop = EventLoop::new().expect("an event loop");
        Self { handle: event_loop.handle(), event_loop: Mutex::new(event_loop) }
    }

    /// Lets the handlers serve the events that are ready now.
    pub fn round(&self) {
        lock(&self.event_loop).run_once(0);
    }

    /// Lets the handlers serve all events, for a bounded number of rounds.
    pub fn settle(&self) {
        let mut event_loop = lock(&self.event_loop);
        // One empty round is not enough: a command may have added sources that are ready in the next.
        let mut empty_rounds = 0_u32;
        for _ in 0..SETTLE_ROUNDS {
            empty_rounds = if event_loop.run_once(0) { 0 } else { empty_rounds.wrapping_add(1) };
            if empty_rounds == 2 {
                return;
            }
        }
    }
}

impl HandlerHost for InlineHost {
    fn start(&self, group: HandlerGroup) -> GroupId {
        let id = self.handle.start(group);
        lock(&self.event_loop).run_once(0);
        id
    }

    fn ask(&self, group: GroupId, if_late: IfLate) -> Asked {
        self.handle.ask(group, if_late)
    }

    fn wait(&self, asked: Asked) -> Result<Vec<VirtQueue>, Stuck> {
        let mut event_loop = lock(&self.event_loop);
        // Requests that the host carries out come back in their own time.
        while !asked.is_answered() {
            event_loop.run_once(10);
        }
        drop(event_loop);
        let queues = asked.wait()?;
        assert!(queues.iter().all(|queue| queue.in_flight() == 0), "a handler has kept a chain");
        Ok(queues)
    }
}

/// The number of rounds after which handlers that ring their own doorbells have come to rest.
const SETTLE_ROUNDS: u32 = 32;

const STATUS: u64 = 0x70;

/// The features that a current driver accepts, whatever the device.
pub const MODERN: u64 = 1 << feature::VERSION_1;
