//! The fixed devices of a PC that a kernel expects at well-known ports and addresses.

use crate::bus::BusDevice;

pub mod acpi;
pub mod debug_exit;
pub mod event;
pub mod i8042;
pub mod ioapic;
pub mod pvpanic;
pub mod rtc;
pub mod serial;

/// A device that the machine owns for its whole life, over every reset of the guest.
///
/// The machine keeps all of them in one list. So one call on the list resets the state of every device, and
/// no device can be forgotten. Saving and restoring the state belong here too.
pub trait LegacyDevice: BusDevice {
    /// Puts the registers into the state in which a guest finds a new machine. No vCPU runs meanwhile. A
    /// device whose registers have no state, or a state that outlives a reset on a PC, does nothing.
    fn reset(&self);
}
