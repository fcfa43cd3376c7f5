//! Where the interrupts of the devices go: to the virtual machine of KVM's that the guest runs in at the time.
//!
//! A guest that is reset gets a new one ([`crate::vm`]), while its devices stay. Made by the builder, which connects
//! each new virtual machine.
//!
//! Legacy devices pulse an input of the I/O APIC, which sends a message from here. A virtio device writes an event
//! descriptor instead (irqfd), and KVM sends the message of the input's route, which follows the I/O APIC.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use coracle_devices::irq::{IrqLine, MsiMessage, MsiSink};
use coracle_devices::journal;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::KvmError;
use super::vm::KvmVm;

/// The devices' way to the local APICs. A message that comes while none is connected is lost, like one to a CPU in reset.
#[derive(Default)]
pub(crate) struct Interrupts {
    vm: RwLock<Option<KvmVm>>,
    lines: Mutex<Lines>,
}

/// The inputs of the I/O APIC that event descriptors raise.
#[derive(Default)]
struct Lines {
    events: BTreeMap<u8, Arc<EventFd>>,
    /// Their messages, while they are not masked.
    routes: BTreeMap<u8, MsiMessage>,
}

impl Interrupts {
    /// A line that raises the I/O APIC's input `pin` without the I/O APIC. Ask for all of them before
    /// [`Interrupts::connect`].
    ///
    /// # Errors
    /// The host gives no more file descriptors.
    pub(crate) fn line(&self, pin: u8) -> std::io::Result<Arc<dyn IrqLine>> {
        let event = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        self.lines().events.insert(pin, event.clone());
        Ok(Arc::new(EventLine { event }))
    }

    /// Messages go to `vm` from here on.
    ///
    /// # Errors
    /// KVM refuses one of the lines.
    pub(crate) fn connect(&self, vm: KvmVm) -> Result<(), KvmError> {
        let lines = self.lines();
        for (pin, event) in &lines.events {
            vm.connect_interrupt(event, u32::from(*pin))?;
        }
        *self.vm.write().unwrap_or_else(PoisonError::into_inner) = Some(vm);
        Ok(())
    }

    /// Lets go of the virtual machine, so that it can be closed and another connected: a descriptor serves one at a time.
    pub(crate) fn disconnect(&self) {
        let vm = self.vm.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(vm) = vm else { return };
        for (pin, event) in &self.lines().events {
            if let Err(error) = vm.disconnect_interrupt(event, u32::from(*pin)) {
                journal!(Host Warn, "{error}");
            }
        }
    }

    /// A map that a thread left when it panicked is whole at any time.
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MsiSink for Interrupts {
    fn send(&self, message: MsiMessage) {
        if let Some(vm) = &*self.vm.read().unwrap_or_else(PoisonError::into_inner) {
            vm.signal(message);
        }
    }

    fn route_changed(&self, pin: u8, message: Option<MsiMessage>) {
        let mut lines = self.lines();
        if !lines.events.contains_key(&pin) {
            return;
        }
        match message {
            Some(message) => lines.routes.insert(pin, message),
            None => lines.routes.remove(&pin),
        };
        let routes = lines.routes.iter().map(|(pin, message)| (u32::from(*pin), *message));
        if let Some(vm) = &*self.vm.read().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = vm.set_routes(routes)
        {
            // KVM takes any message; it can only be out of memory.
            journal!(Guest Error, "interrupt {pin} of the guest is lost: {error}");
        }
    }
}

/// An interrupt that KVM raises when an event descriptor is written.
struct EventLine {
    event: Arc<EventFd>,
}

impl IrqLine for EventLine {
    fn pulse(&self) {
        // The only failure is a counter at its maximum: KVM has not taken the pulses before, so this one is one of them.
        let _ = self.event.write(1);
    }
}
