//! Reports to the machine that the guest has reached its first process.

use std::arch::asm;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use coracle_agent::boot_mark::{INIT_RUNS, PORT};

/// Writes the mark. `/dev` has to be mounted for kernels that give a process no access to ports
/// (`CONFIG_X86_IOPL_IOPERM` is off, or lockdown is on).
pub(crate) fn init_runs() {
    if !write_by_instruction() {
        write_by_file();
    }
}

/// Returns false where the kernel does not permit it.
fn write_by_instruction() -> bool {
    let port = libc::c_ulong::from(PORT);
    // SAFETY: asks for access to one port, which belongs to no device of the kernel's.
    if unsafe { libc::ioperm(port, 1, 1) } != 0 {
        return false;
    }
    write_port();
    // SAFETY: drops the access to one port; no memory is involved.
    unsafe { libc::ioperm(port, 1, 0) };
    true
}

fn write_port() {
    // SAFETY: the port is open to this process, and a byte written to it changes nothing in the guest.
    unsafe {
        asm!("out dx, al", in("dx") PORT, in("al") INIT_RUNS, options(nomem, nostack, preserves_flags));
    }
}

fn write_by_file() {
    // If there is no such file either, Coracle uses other signs.
    if let Ok(ports) = OpenOptions::new().write(true).open("/dev/port") {
        let _ = ports.write_at(&[INIT_RUNS], u64::from(PORT));
    }
}
