//! Functions that need root and change the machine: what one would rather not test on one's own machine.

use std::ffi::CString;
use std::io;

/// Sets the machine's name, which every process on it sees.
///
/// # Errors
/// The call is refused: it needs root.
pub fn set_hostname(name: &str) -> io::Result<()> {
    std::fs::write("/proc/sys/kernel/hostname", name)
}

/// Returns the machine's name.
///
/// # Errors
/// `/proc` is not mounted.
pub fn hostname() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}

/// Mounts an empty file system in memory on a directory.
///
/// # Errors
/// The call is refused: it needs root, and the directory has to exist.
pub fn mount_tmpfs(folder: &str) -> io::Result<()> {
    // Declared here, so that no crate is needed: every program of this target links the C library.
    unsafe extern "C" {
        fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
    }
    let (kind, target) = (CString::new("tmpfs")?, CString::new(folder)?);
    // SAFETY: the strings are nul-terminated and outlive the call, and this file system takes no data.
    let result = unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
