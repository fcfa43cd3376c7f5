//! Needs root and changes its machine: what one would rather not test on one's own.

use std::ffi::CString;
use std::io;

/// Sets the machine's name, which every process on it sees.
///
/// # Errors
/// The system refuses: only root may.
pub fn set_hostname(name: &str) -> io::Result<()> {
    std::fs::write("/proc/sys/kernel/hostname", name)
}

/// The machine's name.
///
/// # Errors
/// There is no `/proc`.
pub fn hostname() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}

/// Mounts an empty file system in memory on a folder.
///
/// # Errors
/// The system refuses: only root may, and the folder has to be there.
pub fn mount_tmpfs(folder: &str) -> io::Result<()> {
    // From the C library, which every program of this target is linked to: no crate is needed.
    unsafe extern "C" {
        fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
    }
    let (kind, target) = (CString::new("tmpfs")?, CString::new(folder)?);
    // SAFETY: the strings end with a zero byte and outlive the call, and this file system needs no data.
    let result = unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
