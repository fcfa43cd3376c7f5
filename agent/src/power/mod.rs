//! The ways in which a machine ends on request (`reboot(2)`). Only PID 1 calls these, when there is nothing
//! left to save.

mod button;
mod request;

use std::fs;
use std::time::{Duration, Instant};

pub(crate) use button::PowerButton;
pub(crate) use request::{requested, signal_events};

use crate::mounts;
use crate::report::report;

/// Ends all other processes, and then the machine by calling `ending`.
pub(crate) fn shut_down(ending: fn() -> !) -> ! {
    // A shell at a terminal ignores SIGTERM and obeys SIGHUP. A stopped process must be woken for either.
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGCONT] {
        // SAFETY: signals every process but this one; no memory is involved.
        unsafe { libc::kill(-1, signal) };
    }
    let deadline = Instant::now() + PATIENCE;
    while has_children() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: signals every process but this one; no memory is involved.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    ending()
}

/// Writes back all data and powers off.
pub(crate) fn power_off() -> ! {
    if fs::metadata(ACPI).is_err() {
        write_back();
        power_off_without_acpi();
    }
    end(libc::RB_POWER_OFF, "power off")
}

/// Writes back all data and restarts.
pub(crate) fn restart() -> ! {
    end(libc::RB_AUTOBOOT, "restart")
}

/// Writes back all data and halts.
pub(crate) fn halt() -> ! {
    end(libc::RB_HALT_SYSTEM, "halt")
}

/// Waits forever.
pub(crate) fn wait_for_ever() -> ! {
    loop {
        // SAFETY: waits for a signal; no memory is involved.
        unsafe { libc::pause() };
    }
}

fn end(how: libc::c_int, name: &str) -> ! {
    write_back();
    // SAFETY: the flag is one of the kernel's; no memory is involved.
    unsafe { libc::reboot(how) };
    report(&format!("cannot {name}: {}", std::io::Error::last_os_error()));
    wait_for_ever()
}

/// Waits until file systems are on their disks and the last lines on the console.
fn write_back() {
    // SAFETY: flushes file systems; no memory is involved.
    unsafe { libc::sync() };
    mounts::make_read_only();
    // SAFETY: waits for the terminal on stdout; no memory is involved. It fails where there is none.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
}

/// Reaps processes that have ended. Returns false when no child is left.
fn has_children() -> bool {
    loop {
        // SAFETY: asks about any child; a null status pointer is allowed.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            0 => return true,
            reaped if reaped > 0 => {}
            _ => return false,
        }
    }
}

/// Powers off a machine whose kernel has no ACPI. Such a kernel does not know how, and halts, although
/// Coracle's machine has the register (`docs/machine.md`). On another machine this writes to a port without a
/// device, and the halt follows.
fn power_off_without_acpi() {
    // SAFETY: opens one port to this process; no memory is involved.
    if unsafe { libc::ioperm(libc::c_ulong::from(SLEEP_CONTROL_PORT), 1, 1) } == 0 {
        // SAFETY: the port is open to this process, and the instruction touches neither memory nor flags.
        unsafe {
            std::arch::asm!(
                "out dx, al",
                in("dx") SLEEP_CONTROL_PORT,
                in("al") POWER_OFF,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// The directory in which a kernel with ACPI shows its tables.
const ACPI: &str = "/sys/firmware/acpi";
/// The sleep control register: SLP_EN with the sleep type of power-off.
const SLEEP_CONTROL_PORT: u16 = 0x600;
const POWER_OFF: u8 = 0x34;
/// The time that processes get to end. A guest has five seconds from the press of its button.
const PATIENCE: Duration = Duration::from_secs(1);
