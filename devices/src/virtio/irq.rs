//! The interrupt of a virtio device, shared by the device, its queues and its transport.

mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

pub(super) use self::state::IrqState;
use crate::irq::IrqLine;

/// The interrupt of one device. It is cheap to clone. Any thread may call any method, and none of them waits.
#[derive(Clone)]
pub struct VirtioIrq {
    shared: Arc<Shared>,
}

struct Shared {
    /// Bits of the interrupt status register (virtio 1.2, section 4.2.2).
    status: AtomicU32,
    /// DEVICE_NEEDS_RESET of the status register (virtio 1.2, section 2.1).
    needs_reset: AtomicBool,
    /// The number of changes of the configuration space.
    generation: AtomicU32,
    /// The line for changes of the configuration space, and for queues without a line of their own.
    line: Arc<dyn IrqLine>,
    /// The lines of the queues, by queue number.
    queues: Box<[Arc<dyn IrqLine>]>,
}

impl VirtioIrq {
    /// Makes an interrupt that pulses `line` whatever its cause, as over MMIO (virtio 1.2, section 4.2.2).
    /// The driver reads the cause in the interrupt status register.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self::with_queue_lines(line, Vec::new())
    }

    /// Makes an interrupt with a line for each queue, by queue number, as with MSI-X (virtio 1.2, section
    /// 4.1.4.3). `line` serves changes of the configuration space, and queues past the end of `queues`.
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

    /// Reports that the used ring of queue `index` has new entries.
    pub fn queue(&self, index: u16) {
        self.shared.status.fetch_or(USED_BUFFER, Ordering::AcqRel);
        self.queue_line(index).unwrap_or(&self.shared.line).pulse();
    }

    /// Returns the event descriptor that interrupts the driver on behalf of queue `index`. A queue that
    /// shares its line has none: its cause has to be in the status register before the line is pulsed.
    pub fn queue_event(&self, index: u16) -> Option<&EventFd> {
        self.queue_line(index)?.event()
    }

    /// Reports that the configuration space has changed. The driver may read it from here on.
    pub fn config(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.raise_config();
    }

    /// Reports that the device cannot go on before the driver has reset it.
    pub fn needs_reset(&self) {
        self.shared.needs_reset.store(true, Ordering::Release);
        self.raise_config();
    }

    /// Returns the interrupt status register.
    pub(super) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::Acquire)
    }

    /// Clears the bits that the driver has acknowledged.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Returns whether the device waits for a reset.
    pub(super) fn is_reset_needed(&self) -> bool {
        self.shared.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Clears everything but the generation, which only ever grows: a driver that reads the configuration
    /// space across a reset sees the change.
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

/// Bits of the interrupt status register (virtio 1.2, section 4.2.2).
const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGE: u32 = 1 << 1;
