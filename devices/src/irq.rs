//! The ways in which devices raise interrupts: a line that is pulsed, or a message (MSI).
//!
//! Devices hold an [`IrqLine`]. The I/O APIC and message-signalled devices hold the [`MsiSink`] that the VMM
//! implements. No device knows how an interrupt reaches a vCPU.

use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt input of an interrupt controller.
///
/// vCPU and I/O threads call it, also at the same time. Callers hold no lock of their own, so an
/// implementation may make a system call. It must not wait for a vCPU or an I/O thread.
pub trait IrqLine: Send + Sync {
    /// Raises the line and lowers it again: one edge, at most one interrupt.
    fn pulse(&self);

    /// The event descriptor that pulses this line when it is written, for a line that has one: KVM reads it
    /// (irqfd), and a device that runs in another process (vhost-user) can be given a copy. None by default.
    fn event(&self) -> Option<&EventFd> {
        None
    }
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

    /// Reports that pulses of I/O APIC input `pin` now send `message`, or nothing while the input is masked.
    ///
    /// Calls come in the order of the guest's writes, and only when the message changed. Every pin starts
    /// with `None`. When the I/O APIC gets a saved state, each pin that has a message then or had one before
    /// is reported, changed or not. The I/O APIC's write lock is held, so the call must not write to the
    /// I/O APIC.
    fn route_changed(&self, pin: u8, message: Option<MsiMessage>);
}
