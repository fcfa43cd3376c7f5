//! Makes the caller's files this machine's root, with kernel file systems and scratch directories of its own.
//!
//! The root is moved and not merely changed into (`switch_root(8)`), because the kernel refuses new user
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

/// Where the share is mounted first; stays reachable through [`OuterRoot`] when the root is another.
const OUTER: &str = "/outer";

const NEW_ROOT: &str = "/newroot";

/// Options of the caller's files.
/// - `msize`: the most that the virtio transport of Linux 6.1 takes (125 pages), so that reading a program takes
///   few round trips.
/// - `cache=mmap`: nothing that the caller may change outside is remembered, but files can be mapped shared
///   and writable, which the default (`none`) refuses.
const SHARE_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap";

/// Options of the installed system, where `cache=loose` remembers names and contents.
const SYSTEM_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";

/// Mounts over directories that the caller's root must have: nothing is made there.
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

/// Welcome, but nothing here needs them.
const OPTIONAL: [Mount<'static>; 2] = [
    Mount { source: "cgroup2", target: "/sys/fs/cgroup", kind: "cgroup2", options: "" },
    Mount { source: "debugfs", target: "/sys/kernel/debug", kind: "debugfs", options: "" },
];

/// Device nodes that any user of the machine may open.
const PUBLIC_DEVICES: [&str; 2] = ["/dev/kvm", "/dev/net/tun"];

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    #[error("cannot mount {kind} on {target}: {source}")]
    Mount { kind: &'static str, target: &'static str, source: io::Error },
    #[error("cannot {step}: {source}")]
    Switch { step: &'static str, source: io::Error },
}

/// The caller's files as they are, under no private directory.
#[derive(Debug)]
pub(super) struct OuterRoot {
    directory: File,
}

impl OuterRoot {
    /// Shows a path of the caller at its place under one of the private directories.
    pub(super) fn show(&self, share: &Share) -> io::Result<()> {
        let inside = share.source.strip_prefix("/").unwrap_or(&share.source);
        let source = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd())).join(inside);
        if fs::metadata(&source)?.is_dir() {
            fs::create_dir_all(&share.target)?;
        } else {
            if let Some(parent) = share.target.parent() {
                fs::create_dir_all(parent)?;
            }
            // It is there already where a folder above it is shared too; a program that runs cannot be opened to write.
            match File::options().write(true).create_new(true).open(&share.target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        mounts::bind(&source, &share.target)
    }
}

/// Mounts what the initramfs needs before its modules are loaded.
pub(super) fn mount_early() {
    KERNEL_MOUNTS.iter().for_each(Mount::make_or_report);
}

/// Mounts the share and makes it the root of this process and all that follow.
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
    // It is only faster: without it, the same files are there by the other share.
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

/// What a running system has in its directories that a fresh mount has not.
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
