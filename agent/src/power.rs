//! The ways a machine ends on request (`reboot(2)`). Only PID 1 calls these, when nothing is left to save.

use crate::console;

/// Writes everything back and powers off.
pub(crate) fn power_off() -> ! {
    end(libc::RB_POWER_OFF, "power off")
}

/// Writes everything back and restarts.
pub(crate) fn restart() -> ! {
    end(libc::RB_AUTOBOOT, "restart")
}

/// Waits for ever.
pub(crate) fn wait_for_ever() -> ! {
    loop {
        // SAFETY: waits for a signal; no memory is involved.
        unsafe { libc::pause() };
    }
}

fn end(how: libc::c_int, name: &str) -> ! {
    // SAFETY: flushes file systems; no memory is involved.
    unsafe { libc::sync() };
    // SAFETY: the flag is one of the kernel's; no memory is involved.
    unsafe { libc::reboot(how) };
    console::report(&format!("cannot {name}: {}", std::io::Error::last_os_error()));
    wait_for_ever()
}
