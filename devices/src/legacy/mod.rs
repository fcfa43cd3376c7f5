//! The fixed devices of a PC that a kernel expects at well-known ports and addresses.

use crate::bus::BusDevice;
use crate::state::{Restoration, SavedState, StateError};

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
/// The machine keeps all of them in one list. So one call on the list resets, saves or restores every device,
/// and no device can be forgotten.
pub trait LegacyDevice: BusDevice {
    /// Puts the registers into the state in which a guest finds a new machine. No vCPU runs meanwhile. A
    /// device whose registers have no state, or a state that outlives a reset on a PC, does nothing.
    fn reset(&self);

    /// Returns the state that the guest can observe, now or later: registers, and data that it has not read.
    /// No vCPU runs meanwhile. What belongs to the host's side is left out: output that the host has not
    /// taken, input that the device has not taken, the time.
    fn save(&self) -> SavedState;

    /// Checks a state and returns the step that puts the device into it. No vCPU runs when it is applied. The
    /// local APICs have their states by then, and the I/O APIC has its own before the devices that pulse it.
    ///
    /// A device whose interrupt is still to be served according to its state pulses its line again, because
    /// it cannot know whether the state was saved before or after the pulse arrived. So a guest may take an
    /// interrupt without a cause, as with a shared line, but never misses one.
    ///
    /// # Errors
    /// The device could not have been in this state.
    fn prepare(&self, state: &SavedState) -> Result<Restoration<'_>, StateError>;

    /// Puts the device into a state, or changes nothing: see [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// The device could not have been in this state.
    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        self.prepare(state).map(Restoration::apply)
    }
}
