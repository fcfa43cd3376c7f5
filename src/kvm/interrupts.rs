//! Where the interrupts of the devices go: to the virtual machine of KVM's that the guest runs in at the time.
//!
//! A guest that is reset gets a new one ([`crate::vm`]), while its devices stay. Made by the builder, which connects
//! each new virtual machine.

use std::sync::{PoisonError, RwLock};

use coracle_devices::irq::{MsiMessage, MsiSink};

use super::vm::KvmVm;

/// The devices' way to the local APICs. A message that comes while none is connected is lost, like one to a CPU in reset.
#[derive(Default)]
pub(crate) struct Interrupts {
    vm: RwLock<Option<KvmVm>>,
}

impl Interrupts {
    /// Messages go to `vm` from here on.
    pub(crate) fn connect(&self, vm: KvmVm) {
        *self.vm.write().unwrap_or_else(PoisonError::into_inner) = Some(vm);
    }

    /// Lets go of the virtual machine, so that it can be closed.
    pub(crate) fn disconnect(&self) {
        *self.vm.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl MsiSink for Interrupts {
    fn send(&self, message: MsiMessage) {
        if let Some(vm) = &*self.vm.read().unwrap_or_else(PoisonError::into_inner) {
            vm.signal(message);
        }
    }

    fn route_changed(&self, _pin: u8, _message: Option<MsiMessage>) {
        // No device of this machine has an irqfd: every line goes through `send`.
    }
}
