//! Follows another init to its root. An init that moves from an initramfs to a disk takes no other process
//! along, and a process cannot see that it was left behind. But `/proc` shows the root of process 1.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use crate::mounts::{self, Mount};

/// A way to the root of process 1 that survives all mounts and unmounts of the system.
#[derive(Debug)]
pub(crate) struct InitRoot {
    processes: File,
}

impl InitRoot {
    /// Opens the list of processes, even if it is not mounted yet.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let open = |path| OpenOptions::new().read(true).custom_flags(flags).open(path);
        PRIVATE.make_with_directory()?;
        let processes = open(PRIVATE.target);
        mounts::unmount(PRIVATE.target.as_ref());
        let _ = fs::remove_dir(PRIVATE.target);
        Ok(Self { processes: processes? })
    }

    /// Moves to the root of process 1, if that has changed.
    pub(super) fn follow(&self) {
        // A system that is just moving has no root for a moment. The next request finds it.
        let _ = self.enter();
    }

    fn enter(&self) -> io::Result<()> {
        // SAFETY: the path ends with a zero byte and outlives the call.
        let fd = unsafe {
            libc::openat(self.processes.as_raw_fd(), c"1/root".as_ptr(), libc::O_PATH | libc::O_CLOEXEC)
        };
        let root = super::transport::owned(fd)?;
        let (theirs, ours) = (root.metadata()?, fs::metadata("/")?);
        if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
            return Ok(());
        }
        // SAFETY: the call takes a descriptor only.
        if unsafe { libc::fchdir(root.as_raw_fd()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        std::os::unix::fs::chroot(".")
    }
}

/// A mount point in the directory of the loader's own files.
const PRIVATE: Mount<'static> = Mount { source: "proc", target: "/coracle/proc", kind: "proc", options: "" };
