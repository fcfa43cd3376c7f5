//! Routes the interrupts of devices to the KVM virtual machine in which the guest runs at the time.
//!
//! A guest that is reset gets a new virtual machine ([`crate::vm`]), while its devices stay. The builder
//! makes this and connects each new virtual machine.
//!
//! Legacy devices pulse an input of the I/O APIC, which sends a message from here. A virtio device writes an
//! eventfd instead (irqfd), and KVM sends the message of the input's route, which follows the I/O APIC.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use coracle_devices::irq::{IrqLine, MsiMessage, MsiSink};
use coracle_devices::journal;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::KvmError;
use super::vm::KvmVm;

/// The devices' connection to the local APICs. A message while none is connected is lost, like one to a CPU
/// in reset.
#[derive(Default)]
pub(crate) struct Interrupts {
    vm: RwLock<Option<KvmVm>>,
    lines: Mutex<Lines>,
}

/// The inputs of the I/O APIC that eventfds raise.
#[derive(Default)]
struct Lines {
    events: BTreeMap<u8, Arc<EventLine>>,
    /// The messages of inputs that are not masked.
    routes: BTreeMap<u8, MsiMessage>,
}

impl Interrupts {
    /// Makes a line that raises the I/O APIC's input `pin` without the I/O APIC. Make all lines before
    /// [`Interrupts::connect`].
    ///
    /// # Errors
    /// The host has no more file descriptors.
    pub(crate) fn line(&self, pin: u8) -> std::io::Result<Arc<dyn IrqLine>> {
        let line = Arc::new(EventLine { event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)? });
        self.lines().events.insert(pin, line.clone());
        Ok(line)
    }

    /// Sends messages to `vm` from here on.
    ///
    /// # Errors
    /// KVM refuses one of the lines.
    pub(crate) fn connect(&self, vm: KvmVm) -> Result<(), KvmError> {
        let lines = self.lines();
        for (pin, line) in &lines.events {
            vm.connect_interrupt(&line.event, u32::from(*pin))?;
        }
        *self.vm.write().unwrap_or_else(PoisonError::into_inner) = Some(vm);
        Ok(())
    }

    /// Drops the virtual machine, so that it can be closed and another connected. An eventfd serves one at a
    /// time.
    pub(crate) fn disconnect(&self) {
        let vm = self.vm.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(vm) = vm else { return };
        for (pin, line) in &self.lines().events {
            if let Err(error) = vm.disconnect_interrupt(&line.event, u32::from(*pin)) {
                journal!(Host Warn, "{error}");
            }
        }
    }

    /// Drops the virtual machine at the end. KVM disconnects the lines when it is closed.
    pub(crate) fn close(&self) {
        *self.vm.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Locks the lines. A map that a panicked thread left is consistent at any time.
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
            // KVM accepts any message. It can only be out of memory.
            journal!(Guest Error, "interrupt {pin} of the guest is lost: {error}");
        }
    }
}

/// An interrupt that KVM raises when an eventfd is written.
struct EventLine {
    event: EventFd,
}

impl IrqLine for EventLine {
    fn pulse(&self) {
        // The only failure is a counter at its maximum: KVM has not taken the earlier pulses, so this one
        // merges with them.
        let _ = self.event.write(1);
    }

    fn event(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_a_virtio_device_is_pulsed_through_its_event() {
        let line = Interrupts::default().line(5).unwrap();
        line.pulse();
        line.pulse();
        assert_eq!(line.event().map(|event| event.read().unwrap()), Some(2));
    }
}
