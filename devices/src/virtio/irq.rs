//! How a virtio device interrupts its driver. Shared by the device, its queues and its transport.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::irq::IrqLine;

/// The interrupt of one device. Cheap to clone; every call may come from any thread, and waits for nobody.
#[derive(Clone)]
pub struct VirtioIrq {
    shared: Arc<Shared>,
}

struct Shared {
    /// Bits of the interrupt status register (virtio 1.2, 4.2.2).
    status: AtomicU32,
    /// DEVICE_NEEDS_RESET of the status register (virtio 1.2, 2.1).
    needs_reset: AtomicBool,
    /// Counts changes of the configuration space.
    generation: AtomicU32,
    /// Pulsed for changes of the configuration space, and for queues without a line of their own.
    line: Arc<dyn IrqLine>,
    /// The lines of the queues, by number.
    queues: Box<[Arc<dyn IrqLine>]>,
}

impl VirtioIrq {
    /// An interrupt that pulses `line` whatever its cause, as over MMIO (virtio 1.2, 4.2.2): the driver reads
    /// the cause in the interrupt status register.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self::with_queue_lines(line, Vec::new())
    }

    /// An interrupt with a line for each queue, by number, as MSI-X has them (virtio 1.2, 4.1.4.3). `line` is
    /// for changes of the configuration space, and for the queues past the end of `queues`.
    pub fn with_queue_lines(line: Arc<dyn IrqLine>, queues: Vec<Arc<dyn IrqLine>>) -> Self {
        let shared = Shared {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            line,
            queues: queues.into(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The used ring of queue `index` has something new.
    pub fn queue(&self, index: u16) {
        self.shared.status.fetch_or(USED_BUFFER, Ordering::AcqRel);
        self.queue_line(index).unwrap_or(&self.shared.line).pulse();
    }

    /// The event descriptor that interrupts the driver on behalf of queue `index`. There is none for a queue
    /// that shares its line: the cause of such an interrupt has to be in the status register before the line
    /// is pulsed.
    pub fn queue_event(&self, index: u16) -> Option<&EventFd> {
        self.queue_line(index)?.event()
    }

    /// The configuration space has changed, and may be read by the driver from here on.
    pub fn config(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.raise_config();
    }

    /// The device cannot go on before the driver has reset it.
    pub fn needs_reset(&self) {
        self.shared.needs_reset.store(true, Ordering::Release);
        self.raise_config();
    }

    /// The interrupt status register.
    pub(super) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::Acquire)
    }

    /// Clears the bits that the driver has seen.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Whether the device waits for a reset.
    pub(super) fn is_reset_needed(&self) -> bool {
        self.shared.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Forgets everything but the generation, which only ever grows.
    pub(super) fn reset(&self) {
        let Shared { status, needs_reset, generation: _, line: _, queues: _ } = &*self.shared;
        status.store(0, Ordering::Release);
        needs_reset.store(false, Ordering::Release);
    }

    fn queue_line(&self, index: u16) -> Option<&Arc<dyn IrqLine>> {
        self.shared.queues.get(usize::from(index))
    }

    fn raise_config(&self) {
        self.shared.status.fetch_or(CONFIG_CHANGE, Ordering::AcqRel);
        self.shared.line.pulse();
    }
}

impl fmt::Debug for VirtioIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { status, needs_reset, generation, line: _, queues: _ } = &*self.shared;
        f.debug_struct("VirtioIrq")
            .field("status", status)
            .field("needs_reset", needs_reset)
            .field("generation", generation)
            .finish_non_exhaustive()
    }
}

/// Bits of the interrupt status register.
const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGE: u32 = 1 << 1;
