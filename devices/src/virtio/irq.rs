//! How a virtio device interrupts its driver. Shared by the device, its queues and its transport.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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
    line: Arc<dyn IrqLine>,
}

impl VirtioIrq {
    /// An interrupt that pulses `line`.
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        let shared = Shared {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            line,
        };
        Self { shared: Arc::new(shared) }
    }

    /// A used ring has something new.
    pub fn queue(&self) {
        self.raise(USED_BUFFER);
    }

    /// The configuration space has changed, and may be read by the driver from here on.
    pub fn config(&self) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE);
    }

    /// The device cannot go on before the driver has reset it.
    pub fn needs_reset(&self) {
        self.shared.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGE);
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
        let Shared { status, needs_reset, generation: _, line: _ } = &*self.shared;
        status.store(0, Ordering::Release);
        needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self, bit: u32) {
        self.shared.status.fetch_or(bit, Ordering::AcqRel);
        self.shared.line.pulse();
    }
}

impl fmt::Debug for VirtioIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { status, needs_reset, generation, line: _ } = &*self.shared;
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
