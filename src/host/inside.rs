//! Facts about the emulated host on which this process may run. Its outer side sets these variables.

use std::time::Duration;

use coracle_agent::protocol::emulated_host::environment::{BOOT_TIME, MARK};

/// Returns whether this process runs on an emulated host.
pub fn on_emulated_host() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Returns the time from the start of QEMU until the emulated host ran programs; `None` on any other host.
pub(crate) fn boot_time() -> Option<Duration> {
    std::env::var(BOOT_TIME).ok()?.parse().ok().map(Duration::from_millis)
}
