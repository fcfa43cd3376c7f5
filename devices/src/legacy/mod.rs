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
/// The machine keeps all of them in one list, so that what is to happen to the state of every device (a reset
/// today; saving and restoring belong here, too) is one call on the list, and a device cannot be forgotten.
pub trait LegacyDevice: BusDevice {
    /// Puts the registers into the state in which a guest finds a new machine. No vCPU runs meanwhile. A
    /// device whose registers have no state, or a state that outlives a reset on a PC, does nothing.
    fn reset(&self);
}
