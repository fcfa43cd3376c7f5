//! What a guest asks of its machine: to be powered off, to be reset, to end with a code. And what it says of itself:
//! that its kernel panics.
//!
//! Devices post a [`GuestRequest`] from the vCPU thread that did the access; the VMM implements
//! [`GuestRequestSink`]. Nothing here decides what follows: that is the VMM's policy.

/// A request that a guest made through a device register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// The guest entered the soft-off state (ACPI S5).
    PowerOff,
    /// The guest asked for a reset of the machine.
    Reset(ResetSource),
    /// The guest wrote this code to the debug exit port: the workload's own exit code.
    DebugExit(u32),
    /// The guest's kernel says by pvpanic that it has panicked.
    Panicked,
    /// The guest's kernel says by pvpanic that it has panicked and that a crash kernel goes on, up to a reset.
    CrashKernelTakesOver,
    /// The guest printed the text of a kernel panic, which may mean nothing: see
    /// [`ConsoleBuffer::stops_in_panic`](crate::backend::console_buffer::ConsoleBuffer::stops_in_panic).
    PanicText,
}

/// The register through which a guest asked for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetSource {
    /// The reset pulse of the i8042 keyboard controller.
    I8042,
    /// The reset register that the FADT names.
    AcpiRegister,
}

/// Receives the requests of a guest.
///
/// [`post`](Self::post) is called on a vCPU thread in the middle of an exit: it never waits, and takes no
/// lock that a stopping machine may hold. After a request that ends the machine the caller's vCPU parks and does
/// not enter the guest again (a kernel whose reset was not obeyed at once tries the next method, up to a triple
/// fault). More than one vCPU may post: the first request counts, later ones must be accepted and are of no effect.
pub trait GuestRequestSink: Send + Sync {
    /// Hands over one request and returns at once.
    fn post(&self, request: GuestRequest);
}
