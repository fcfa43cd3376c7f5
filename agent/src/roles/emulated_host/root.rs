//! Makes the caller's files this machine's root, with its own kernel file systems and scratch directories.
//!
//! The root is moved and not merely changed (`switch_root(8)`), because the kernel refuses new user
//! namespaces to a process in a chroot.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use coracle_agent::protocol::emulated_host::{ROOT_TAG, SYSTEM_DIRECTORY, SYSTEM_TAG, Share};

use crate::furnish::{DEVICE_LINKS, KERNEL_MOUNTS};
use crate::mounts::{self, Mount};
use crate::new_root;

/// The first mount point of the share. It stays reachable through [`OuterRoot`] once the root is another.
const OUTER: &str = "/outer";

const NEW_ROOT: &str = "/newroot";

/// Mount options for the caller's files.
/// - `msize`: the largest value of the virtio transport of Linux 6.1 (125 pages), so that reading a program
///   takes few round trips.
/// - `cache=mmap`: nothing that the caller may change outside is cached, but files can be mapped shared and
///   writable, which the default (`none`) refuses.
const SHARE_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap";

/// Mount options for the installed system. `cache=loose` caches names and contents.
const SYSTEM_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";

/// Mounts over directories that the caller's root must have, because none are created there.
const ON_ROOT: [Mount<'static>; 5] = [
    Mount { source: "dev", target: "/newroot/dev", kind: "devtmpfs", options: "" },
    Mount { source: "proc", target: "/newroot/proc", kind: "proc", options: "" },
    Mount { source: "sys", target: "/newroot/sys", kind: "sysfs", options: "" },
    Mount { source: "tmp", target: "/newroot/tmp", kind: "tmpfs", options: "mode=1777" },
    Mount { source: "run", target: "/newroot/run", kind: "tmpfs", options: "mode=755" },
];

/// Mounts inside the new root's own device file system.
const ON_DEVICES: [Mount<'static>; 2] = [
    Mount {
        source: "devpts",
        target: "/newroot/dev/pts",
        kind: "devpts",
        options: "gid=5,mode=620,ptmxmode=666",
    },
    Mount { source: "shm", target: "/newroot/dev/shm", kind: "tmpfs", options: "mode=1777" },
];

/// Mounts that nothing here needs, but that programs may use.
const OPTIONAL: [Mount<'static>; 2] = [
    Mount { source: "cgroup2", target: "/sys/fs/cgroup", kind: "cgroup2", options: "" },
    Mount { source: "debugfs", target: "/sys/kernel/debug", kind: "debugfs", options: "" },
];

/// Device nodes that any user of the machine may open.
const PUBLIC_DEVICES: [&str; 2] = ["/dev/kvm", "/dev/net/tun"];

/// The reason why there is no root.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    #[error("cannot mount {kind} on {target}: {source}")]
    Mount { kind: &'static str, target: &'static str, source: io::Error },
    #[error("cannot {step}: {source}")]
    Switch { step: &'static str, source: io::Error },
}

/// The caller's files without any private directory over them.
#[derive(Debug)]
pub(super) struct OuterRoot {
    directory: File,
}

impl OuterRoot {
    /// Makes a path of the caller visible at its place under one of the private directories.
    pub(super) fn show(&self, share: &Share) -> io::Result<()> {
        let inside = share.source.strip_prefix("/").unwrap_or(&share.source);
        let source = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd())).join(inside);
        if fs::metadata(&source)?.is_dir() {
            fs::create_dir_all(&share.target)?;
        } else {
            if let Some(parent) = share.target.parent() {
                fs::create_dir_all(parent)?;
            }
            // The target exists already if a directory above it is shared too. A running program cannot be
            // opened to write.
            match File::options().write(true).create_new(true).open(&share.target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        mounts::bind(&source, &share.target)
    }
}

/// Mounts the file systems that the initramfs needs before its modules are loaded.
pub(super) fn mount_early() {
    KERNEL_MOUNTS.iter().for_each(Mount::make_or_report);
}

/// Mounts the share and makes it the root of this process and all its children.
pub(super) fn switch() -> Result<OuterRoot, RootError> {
    step(
        "make the directories of the roots",
        fs::create_dir_all(OUTER).and_then(|()| fs::create_dir_all(NEW_ROOT)),
    )?;
    made(&Mount { source: ROOT_TAG, target: OUTER, kind: "9p", options: SHARE_OPTIONS }, Mount::make)?;
    let directory =
        File::open(OUTER).map_err(|source| RootError::Switch { step: "open the share", source })?;
    step("show the share as the new root", mounts::bind(OUTER.as_ref(), NEW_ROOT.as_ref()))?;
    let system = [NEW_ROOT, SYSTEM_DIRECTORY].concat();
    // This mount is only for speed: without it, the other share has the same files.
    let system = Mount { source: SYSTEM_TAG, target: &system, kind: "9p", options: SYSTEM_OPTIONS };
    system.report(system.make());
    ON_ROOT.iter().try_for_each(|mount| made(mount, Mount::make))?;
    ON_DEVICES.iter().try_for_each(|mount| made(mount, Mount::make_with_directory))?;
    new_root::enter(NEW_ROOT).map_err(|(step, source)| RootError::Switch { step, source })?;
    OPTIONAL.iter().for_each(Mount::make_or_report);
    furnish();
    Ok(OuterRoot { directory })
}

fn made(mount: &Mount<'static>, make: fn(&Mount<'static>) -> io::Result<()>) -> Result<(), RootError> {
    make(mount).map_err(|source| RootError::Mount { kind: mount.kind, target: mount.target, source })
}

/// Adds what a running system has in its directories and a fresh mount lacks.
fn furnish() {
    for (target, link) in DEVICE_LINKS {
        report(link, symlink(target, link));
    }
    for device in PUBLIC_DEVICES {
        report(device, fs::set_permissions(device, fs::Permissions::from_mode(0o666)));
    }
    let lock = "/run/lock";
    report(lock, fs::create_dir_all(lock));
    report(lock, fs::set_permissions(lock, fs::Permissions::from_mode(0o1777)));
    report("the host name", fs::write("/proc/sys/kernel/hostname", "coracle-host"));
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        crate::report::report(&format!("cannot set up {what}: {error}"));
    }
}

fn step<T>(step: &'static str, result: io::Result<T>) -> Result<T, RootError> {
    result.map_err(|source| RootError::Switch { step, source })
}
