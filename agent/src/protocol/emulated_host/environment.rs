//! The variables that the outer side adds to a command's environment.

/// Set for every command that runs on an emulated host.
pub const MARK: &str = "CORACLE_EMULATED_HOST";

/// The id of the user who started the emulated host: a command there works as root for that user.
pub const CALLER: &str = "CORACLE_EMULATED_HOST_CALLER";

/// On an emulated host, the id of the user who started it.
pub fn caller() -> Option<u32> {
    std::env::var(CALLER).ok()?.parse().ok()
}

/// Milliseconds from the start of QEMU until the emulated host ran programs.
pub const BOOT_TIME: &str = "CORACLE_EMULATED_HOST_BOOT_MS";
