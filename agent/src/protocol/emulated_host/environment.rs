//! Variables that the outer side adds to a command's environment.

/// Marks each command that runs on an emulated host.
pub const MARK: &str = "CORACLE_EMULATED_HOST";

/// The id of the user who started the emulated host. A command there runs as root, for that user.
pub const CALLER: &str = "CORACLE_EMULATED_HOST_CALLER";

/// Returns the id of the user who started the emulated host; `None` on any other host.
pub fn caller() -> Option<u32> {
    std::env::var(CALLER).ok()?.parse().ok()
}

/// Milliseconds from the start of QEMU until the emulated host could run programs.
pub const BOOT_TIME: &str = "CORACLE_EMULATED_HOST_BOOT_MS";
