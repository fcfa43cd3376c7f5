//! What runs: the machine, which lives from the build to the end, and the guest in it, which a reset
//! replaces.

use std::sync::Arc;
use std::time::Duration;

use super::platform::Platform;
use super::recipe::Recipe;
use super::watch::Limits;
use crate::config::HaltPolicy;
use crate::console::Pump;
use crate::diagnosis::Subject;
use crate::io_loop::IoLoop;
use crate::kvm::{Interrupts, KvmError, KvmVm};
use crate::memory::GuestRam;
use crate::vcpu::ExitCounts;
use crate::virtio::VirtioDevices;

/// Everything that a virtual machine has from its build to its end. The control thread owns it; the handles
/// reach what they need by [`Shared`](super::shared::Shared).
pub(super) struct Machine {
    pub(super) io_loop: IoLoop,
    pub(super) pump: Option<Pump>,
    pub(super) platform: Platform,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) virtio: Arc<VirtioDevices>,
    /// None only while a reset replaces it.
    pub(super) guest: Option<Guest>,
    /// What the guest is made from, in a machine that outlives a reset.
    pub(super) recipe: Option<Recipe>,
    pub(super) limits: Limits,
    pub(super) on_halt: HaltPolicy,
    pub(super) subject: Subject,
    /// How long its building took.
    pub(super) prepared_in: Duration,
}

/// What a guest runs in, from one reset to the next. Its vCPUs belong to their threads, whose handles are in
/// [`Shared`](super::shared::Shared).
pub(super) struct Guest {
    // Dropped in this order: the virtual machine before its memory.
    pub(super) kvm: KvmVm,
    pub(super) ram: GuestRam,
}

impl Guest {
    /// Connects the devices to this life of the guest.
    pub(super) fn connect(&self, interrupts: &Interrupts, virtio: &VirtioDevices) -> Result<(), KvmError> {
        interrupts.connect(self.kvm.clone())?;
        virtio.connect(&self.kvm, &self.ram.for_devices())
    }
}

/// What is left of the guest from before its resets.
#[derive(Default)]
pub(super) struct Past {
    pub(super) exits: ExitCounts,
    pub(super) resets: u64,
}
