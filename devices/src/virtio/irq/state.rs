//! The saved state of a device's interrupt: its registers.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{CONFIG_CHANGE, Shared, USED_BUFFER, VirtioIrq};
use crate::state::{StateError, exactly, only_bits};

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::virtio) struct IrqState {
    /// The interrupt status register.
    pub(in crate::virtio) status: u32,
    /// DEVICE_NEEDS_RESET of the status register.
    pub(in crate::virtio) needs_reset: bool,
    /// The configuration generation, which counts on through resets.
    pub(in crate::virtio) generation: u32,
}

impl IrqState {
    /// Checks the registers of a device that its driver has started, or has not.
    pub(in crate::virtio) fn check(&self, is_started: bool) -> Result<(), StateError> {
        let Self { status, needs_reset, generation: _ } = self;
        if is_started {
            return only_bits("interrupt_status", *status, USED_BUFFER | CONFIG_CHANGE);
        }
        exactly("interrupt_status", *status, 0)?;
        exactly("needs_reset", *needs_reset, false)
    }
}

impl VirtioIrq {
    /// Returns the registers.
    pub(in crate::virtio) fn save(&self) -> IrqState {
        let Shared { status, needs_reset, generation, line: _, queues: _ } = &*self.shared;
        IrqState {
            status: status.load(Ordering::Acquire),
            needs_reset: needs_reset.load(Ordering::Acquire),
            generation: generation.load(Ordering::Acquire),
        }
    }

    /// Sets the registers. An interrupt that the driver has not acknowledged is raised again, because it may
    /// not have arrived at a CPU when the state was saved.
    pub(in crate::virtio) fn restore(&self, state: &IrqState) {
        let Shared { status, needs_reset, generation, line, queues: _ } = &*self.shared;
        status.store(state.status, Ordering::Release);
        needs_reset.store(state.needs_reset, Ordering::Release);
        generation.store(state.generation, Ordering::Release);
        if state.status != 0 {
            line.pulse();
        }
    }
}
