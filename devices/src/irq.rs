//! How devices raise interrupts: a line that is pulsed, or a message (MSI).
//!
//! Devices hold an [`IrqLine`]; the I/O APIC and message-signalled devices hold the [`MsiSink`] that the VMM
//! implements. No device knows how an interrupt reaches a vCPU.

/// An edge-triggered interrupt input of an interrupt controller.
///
/// Called from vCPU and I/O threads at once. Callers hold no lock of theirs, so an implementation may make a
/// system call, but it must not wait for a vCPU or an I/O thread.
pub trait IrqLine: Send + Sync {
    /// Raises the line and lowers it again: one edge, at most one interrupt.
    fn pulse(&self);
}

/// A message-signalled interrupt as the local APICs decode it (Intel SDM volume 3, "Message Signalled
/// Interrupts").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Address of the write: `0xfee00000` with the destination and its addressing mode.
    pub address: u64,
    /// Value of the write: vector, delivery mode and trigger mode.
    pub data: u32,
}

/// Delivers messages to the local APICs. Implemented by the VMM.
pub trait MsiSink: Send + Sync {
    /// Delivers `message` once. A message that no local APIC accepts is lost, as on hardware.
    fn send(&self, message: MsiMessage);

    /// Tells that pulses of I/O APIC input `pin` now become `message`, or none while it is masked.
    ///
    /// Called in the order of the guest's writes, only when the message really changed; every pin starts with
    /// `None`. The I/O APIC's write lock is held: the call must not write to the I/O APIC.
    fn route_changed(&self, pin: u8, message: Option<MsiMessage>);
}
