//! The running parts: the machine, which lives from the build to the end, and the guest in it, which a reset
//! replaces.

use std::sync::Arc;
use std::time::Duration;

use super::outcome::Origin;
use super::platform::Platform;
use super::recipe::Recipe;
use super::watch::Limits;
use crate::config::{HaltPolicy, VmConfig};
use crate::console::Pump;
use crate::diagnosis::Subject;
use crate::io_loop::IoLoop;
use crate::kvm::{Interrupts, KvmError, KvmVm};
use crate::memory::GuestRam;
use crate::vcpu::ExitCounts;
use crate::virtio::VirtioDevices;

/// Everything that a virtual machine owns from its build to its end. The control thread owns it; handles
/// reach the parts that they need through [`Shared`](super::shared::Shared).
pub(super) struct Machine {
    pub(super) io_loop: IoLoop,
    pub(super) pump: Option<Pump>,
    pub(super) platform: Platform,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) virtio: Arc<VirtioDevices>,
    /// `None` only while a reset replaces the guest.
    pub(super) guest: Option<Guest>,
    /// How to make the next guest; `None` if the first reset ends the machine.
    pub(super) recipe: Option<Arc<Recipe>>,
    pub(super) config: VmConfig,
    pub(super) limits: Limits,
    pub(super) on_halt: HaltPolicy,
    pub(super) subject: Subject,
    /// The origin of the guest, if it was not booted here.
    pub(super) origin: Option<Origin>,
    /// How long building the machine took.
    pub(super) prepared_in: Duration,
}

/// The parts that exist from one reset to the next. The guest's vCPUs belong to their threads, whose handles
/// are in [`Shared`](super::shared::Shared).
pub(super) struct Guest {
    // Fields drop in declaration order: the virtual machine before its memory.
    pub(super) kvm: KvmVm,
    pub(super) ram: GuestRam,
}

impl Guest {
    /// Connects the devices to this guest.
    pub(super) fn connect(&self, interrupts: &Interrupts, virtio: &VirtioDevices) -> Result<(), KvmError> {
        interrupts.connect(self.kvm.clone())?;
        virtio.connect(&self.kvm, &self.ram.for_devices());
        Ok(())
    }
}

/// Totals of the guests before the last reset.
#[derive(Default)]
pub(super) struct Past {
    pub(super) exits: ExitCounts,
    pub(super) resets: u64,
}
