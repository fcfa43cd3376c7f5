//! Requests of a guest to its machine: to power off, to reset, or to end with a code. A guest also reports
//! here that its kernel panics.
//!
//! Devices post a [`GuestRequest`] from the vCPU thread of the access, and the VMM implements
//! [`GuestRequestSink`]. The VMM's policy decides what follows.

/// A request that a guest made through a device register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// The guest entered the soft-off state (ACPI S5).
    PowerOff,
    /// The guest asked for a reset of the machine.
    Reset(ResetSource),
    /// The guest wrote this code to the debug exit port: the workload's own exit code.
    DebugExit(u32),
    /// The guest's kernel reports by pvpanic that it has panicked.
    Panicked,
    /// The guest's kernel reports by pvpanic that it has panicked and that a crash kernel goes on, up to a
    /// reset.
    CrashKernelTakesOver,
    /// The guest printed the text of a kernel panic, which may mean nothing; see
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
/// A vCPU thread calls [`post`](Self::post) in the middle of an exit, so it never waits, and takes no lock
/// that a stopping machine may hold. After a request that ends the machine, the caller's vCPU parks and does
/// not enter the guest again. (A kernel whose reset has no effect at once would try the next method, up to a
/// triple fault.) Several vCPUs may post: the first request counts, and later ones must be accepted without
/// effect.
pub trait GuestRequestSink: Send + Sync {
    /// Passes on one request and returns at once.
    fn post(&self, request: GuestRequest);
}
