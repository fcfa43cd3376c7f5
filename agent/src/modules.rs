//! Loads the kernel modules in an initramfs, in every role.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use crate::report::report;

/// The list in the initramfs of the default guest and of the emulated host.
pub(crate) const LIST: &str = "/etc/coracle/modules";

/// The list that Coracle adds for the devices of a machine (`image/src/initramfs/loader/mod.rs` of the VMM).
pub(crate) const OF_DEVICES: &str = "/coracle/modules";

/// Lists of the same kind for the file systems that a root may have, by their names.
const OF_FILE_SYSTEMS: &str = "/coracle/filesystems";

/// The running kernel's release, as `uname -r` prints it (`proc(5)`).
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Loads each module of a list that belongs to the running kernel's release. The list has one path a line,
/// each after those that it depends on. Modules of another release are skipped: the default guest's initramfs
/// also serves kernels that have everything built in. A module that does not load is reported and left out;
/// whatever needs it fails later, and everything else works. A module that finds no device on this machine is
/// not reported.
pub(crate) fn load_all(list: &str) {
    let Ok(list) = fs::read_to_string(list) else { return };
    let release = fs::read_to_string(RELEASE).unwrap_or_default();
    let paths = list.lines().map(str::trim).filter(|line| !line.is_empty());
    for path in paths.filter(|path| is_of_release(path, release.trim())) {
        if let Err(error) = load(path) {
            report(&format!("cannot load the module {path}: {error}"));
        }
    }
}

/// Loads the modules of a file system, if the archive has them.
pub(crate) fn load_file_system(kind: &str) {
    if !kind.contains('/') {
        load_all(&format!("{OF_FILE_SYSTEMS}/{kind}"));
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

/// Returns whether a module lies in the directory of this release. A module outside such directories fits
/// each release, and so does every module if the release is not known.
fn is_of_release(path: &str, release: &str) -> bool {
    let folder = path.strip_prefix("/lib/modules/").and_then(|rest| rest.split_once('/'));
    folder.is_none_or(|(folder, _)| release.is_empty() || folder == release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_another_release_are_left_out() {
        let of = |path| is_of_release(path, "6.1.0-56-cloud-amd64");
        assert!(of("/lib/modules/6.1.0-56-cloud-amd64/kernel/drivers/virtio/virtio_mmio.ko"));
        assert!(!of("/lib/modules/6.1.0-56-amd64/kernel/drivers/virtio/virtio_mmio.ko"));
        assert!(!of("/lib/modules/6.1.0-56-cloud-amd64.old/virtio.ko"));
    }

    #[test]
    fn module_outside_of_any_release_or_with_an_unknown_one_is_tried() {
        assert!(is_of_release("/modules/virtio.ko", "6.1.0"));
        assert!(is_of_release("/lib/modules/6.1.0/virtio.ko", ""));
    }
}
