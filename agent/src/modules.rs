//! Loads the kernel modules that an initramfs brings, in every role.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use crate::console;

/// The list in the initramfs of the default guest and of the emulated host.
pub(crate) const LIST: &str = "/etc/coracle/modules";

/// Loads every module of a list: paths, one a line, each after those that it needs. One that does not load is reported
/// and left out: what needs it fails by itself later, and everything else works. One that finds nothing to drive on this
/// machine is not worth a word.
pub(crate) fn load_all(list: &str) {
    let Ok(list) = fs::read_to_string(list) else { return };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Err(error) = load(path) {
            console::report(&format!("cannot load the module {path}: {error}"));
        }
    }
}

fn load(path: &str) -> io::Result<()> {
    let module = File::open(path)?;
    // SAFETY: finit_module(2) takes a descriptor, a parameter string and flags; the string is a constant.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if result == 0 => Ok(()),
        Some(libc::EEXIST | libc::ENODEV) => Ok(()),
        _ => Err(error),
    }
}
