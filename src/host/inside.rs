//! What this process knows when it runs on an emulated host, whose outer side sets these variables.

use std::time::Duration;

use coracle_agent::protocol::emulated_host::environment::{BOOT_TIME, MARK};

/// Whether this process runs on an emulated host.
pub fn on_emulated_host() -> bool {
    std::env::var_os(MARK).is_some()
}

/// On an emulated host, the time from the start of QEMU until it ran programs.
pub(crate) fn boot_time() -> Option<Duration> {
    std::env::var(BOOT_TIME).ok()?.parse().ok().map(Duration::from_millis)
}
