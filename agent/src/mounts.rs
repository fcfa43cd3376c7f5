//! Mounting, for both roles.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, ptr};

/// A mount to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mount<'a> {
    /// The source, as `/proc/mounts` shows it.
    pub(crate) source: &'a str,
    /// The directory to mount on.
    pub(crate) target: &'a str,
    /// The type of the file system.
    pub(crate) kind: &'a str,
    /// Options, both those of all file systems (`nosuid`) and those of this type.
    pub(crate) options: &'a str,
}

impl Mount<'_> {
    /// Makes the mount. Its directory must exist.
    pub(crate) fn make(&self) -> io::Result<()> {
        let (flags, options) = split_options(self.options);
        mount(self.source.as_ref(), self.target.as_ref(), self.kind, flags, &options)
    }

    /// Makes the mount, and its directory if that is missing.
    pub(crate) fn make_with_directory(&self) -> io::Result<()> {
        fs::create_dir_all(self.target)?;
        self.make()
    }

    /// Makes the mount like [`Mount::make_with_directory`], and reports a failure: the machine can do without
    /// it. An existing mount is not an error.
    pub(crate) fn make_or_report(&self) {
        if !is_mount_point(self.target.as_ref()) {
            self.report(self.make_with_directory());
        }
    }

    /// Reports a mount that failed.
    pub(crate) fn report(&self, made: io::Result<()>) {
        if let Err(error) = made {
            crate::report::report(&format!("cannot mount {} on {}: {error}", self.kind, self.target));
        }
    }
}

/// Returns whether another file system begins at `path`.
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    let here = device(path);
    here.is_some() && here != device(&path.join(".."))
}

/// Makes `source` visible at `target` too. Both must exist, and either both are directories or neither is.
pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(source.as_os_str(), target.as_os_str(), "", libc::MS_BIND, "")
}

/// Moves the mount at `source` to `target`.
pub(crate) fn move_mount(source: &Path, target: &Path) -> io::Result<()> {
    mount(source.as_os_str(), target.as_os_str(), "", libc::MS_MOVE, "")
}

/// Detaches a mount from the file tree. Processes that use it keep it. A path that is not a mount point stays
/// as it is.
pub(crate) fn unmount(target: &Path) {
    if let Ok(target) = CString::new(target.as_os_str().as_bytes()) {
        // SAFETY: the path ends with a zero byte and outlives the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Makes each file system on a device read-only, so that it is consistent when the power goes. A busy one
/// stays as it is.
pub(crate) fn make_read_only() {
    let mounted = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let on_devices = mounted.lines().filter(|line| line.starts_with("/dev/"));
    // Mounts are undone in reverse order.
    for target in on_devices.filter_map(|line| line.split(' ').nth(1)).rev() {
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        let _ = mount("none".as_ref(), target.as_ref(), "", flags, "");
    }
}

/// Returns whether a path is in memory: on a tmpfs, a ramfs (to which an initramfs is unpacked) or a device
/// file system, which is one of these.
pub(crate) fn is_in_memory(path: &str) -> bool {
    let Ok(path) = CString::new(path) else { return false };
    // SAFETY: an all-zero structure is valid: it is plain data.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and the structure has room for the answer.
    let is_known = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } == 0;
    is_known && [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&stat.f_type)
}

/// Splits mount options into those of all file systems, which mount(2) takes as flags, and the rest.
pub(crate) fn split_options(options: &str) -> (libc::c_ulong, String) {
    let bit = |word| GENERIC_OPTIONS.iter().find(|(name, _)| *name == word).map(|(_, bit)| *bit);
    let bits = options.split(',').filter_map(bit).fold(0, |bits, bit| bits | bit);
    let own: Vec<&str> = options.split(',').filter(|word| bit(word).is_none()).collect();
    (bits, own.join(","))
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
    // SAFETY: all pointers are to strings that end with a zero byte and outlive the call, or null for no
    // data.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The file system of an initramfs on kernels without tmpfs (Linux, include/uapi/linux/magic.h).
const RAMFS_MAGIC: i64 = 0x8584_58f6;

const GENERIC_OPTIONS: [(&str, libc::c_ulong); 7] = [
    ("noatime", libc::MS_NOATIME),
    ("nodiratime", libc::MS_NODIRATIME),
    ("relatime", libc::MS_RELATIME),
    ("nosuid", libc::MS_NOSUID),
    ("nodev", libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC),
    ("sync", libc::MS_SYNCHRONOUS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_in_memory_are_told_from_others() {
        assert!(is_in_memory("/dev/shm"));
        assert!(!is_in_memory("/proc") && !is_in_memory("/no/such/folder"));
    }

    #[test]
    fn mount_point_is_where_another_file_system_begins() {
        let is_mount_point = |path: &str| super::is_mount_point(path.as_ref());
        assert!(is_mount_point("/proc") && is_mount_point("/dev/pts"));
        assert!(!is_mount_point("/proc/self") && !is_mount_point("/no/such/folder"));
    }

    #[test]
    fn options_of_every_file_system_become_bits_and_others_pass() {
        assert_eq!(split_options(""), (0, String::new()));
        let (bits, own) = split_options("noatime,data=ordered,nodev");
        assert_eq!((bits, own.as_str()), (libc::MS_NOATIME | libc::MS_NODEV, "data=ordered"));
    }
}
