//! Mounting, for both roles.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, ptr};

use crate::console;

/// One mount to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mount<'a> {
    /// What `/proc/mounts` names as its source.
    pub(crate) source: &'a str,
    /// Where: a directory.
    pub(crate) target: &'a str,
    /// Kind of file system.
    pub(crate) kind: &'a str,
    /// Options of that kind.
    pub(crate) options: &'a str,
}

impl Mount<'_> {
    /// Makes the mount. Its directory must be there.
    pub(crate) fn make(&self) -> io::Result<()> {
        mount(self.source.as_ref(), self.target.as_ref(), self.kind, 0, self.options)
    }

    /// Makes the mount, and its directory if that is missing.
    pub(crate) fn make_with_directory(&self) -> io::Result<()> {
        fs::create_dir_all(self.target)?;
        self.make()
    }

    /// As [`Mount::make_with_directory`], for what a machine can do without.
    pub(crate) fn make_or_report(&self) {
        self.report(self.make_with_directory());
    }

    /// Reports a mount that could not be made.
    pub(crate) fn report(&self, made: io::Result<()>) {
        if let Err(error) = made {
            console::report(&format!("cannot mount {} on {}: {error}", self.kind, self.target));
        }
    }
}

/// Shows `source` at `target` too. Both exist; both are directories or both are not.
pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(source.as_os_str(), target.as_os_str(), "", libc::MS_BIND, "")
}

/// Moves the mount at `source` to `target`.
pub(crate) fn move_mount(source: &Path, target: &Path) -> io::Result<()> {
    mount(source.as_os_str(), target.as_os_str(), "", libc::MS_MOVE, "")
}

/// Takes a mount away from the tree of files; whoever uses it keeps it. What is no mount stays as it is.
pub(crate) fn unmount(target: &Path) {
    if let Ok(target) = CString::new(target.as_os_str().as_bytes()) {
        // SAFETY: the path ends with a zero byte and outlives the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Makes every file system on a device read-only, so that it is whole when the power goes. One that is busy stays as it is.
pub(crate) fn make_read_only() {
    let mounted = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let on_devices = mounted.lines().filter(|line| line.starts_with("/dev/"));
    // The last one mounted is the first to go.
    for target in on_devices.filter_map(|line| line.split(' ').nth(1)).rev() {
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        let _ = mount("none".as_ref(), target.as_ref(), "", flags, "");
    }
}

/// Whether a folder has something in it, and is in memory.
pub(crate) fn holds_files_in_memory(folder: &str) -> bool {
    let is_filled = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    let Ok(path) = CString::new(folder) else { return false };
    // SAFETY: plain numbers, for which zero is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and the structure has room for the answer.
    let is_known = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } == 0;
    is_filled && is_known && [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&stat.f_type)
}

/// Mounts a file system with flags of `mount(2)`.
pub(crate) fn mount_with(
    source: &Path,
    target: &Path,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    mount(source.as_os_str(), target.as_os_str(), kind, flags, options)
}

fn mount(source: &OsStr, target: &OsStr, kind: &str, flags: libc::c_ulong, options: &str) -> io::Result<()> {
    let source = CString::new(source.as_bytes())?;
    let target = CString::new(target.as_bytes())?;
    let kind = CString::new(kind)?;
    let options = CString::new(options)?;
    let data = if options.is_empty() { ptr::null() } else { options.as_ptr().cast() };
    // SAFETY: all pointers are to strings that end with a zero byte and outlive the call, or null for no data.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The root of an initramfs on kernels without tmpfs (Linux, include/uapi/linux/magic.h).
const RAMFS_MAGIC: i64 = 0x8584_58f6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_in_memory_with_something_in_it_holds_files_there() {
        assert!(!holds_files_in_memory("/proc"), "it is filled, but not with files of an initramfs");
        assert!(!holds_files_in_memory("/no/such/folder"));
        let folder = format!("/dev/shm/coracle-mounts-{}", std::process::id());
        fs::create_dir(&folder).unwrap();
        let empty = holds_files_in_memory(&folder);
        fs::write(format!("{folder}/file"), "").unwrap();
        let filled = holds_files_in_memory(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((empty, filled), (false, true));
    }
}
