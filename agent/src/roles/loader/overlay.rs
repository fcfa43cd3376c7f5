//! A root that is only read, with writes in memory (Linux, Documentation/filesystems/overlayfs.rst).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use super::root::{NEW_ROOT, RootError};
use crate::mounts::{self, Mount};

const LOWER: &str = "/coracle/lower";
const MEMORY: &str = "/coracle/memory";
const UPPER: &str = "/coracle/memory/upper";
const WORK: &str = "/coracle/memory/work";

const TMPFS: Mount<'static> = Mount { source: "tmpfs", target: MEMORY, kind: "tmpfs", options: "mode=0700" };
const OVERLAY: Mount<'static> = Mount {
    source: "overlay",
    target: NEW_ROOT,
    kind: "overlay",
    options: "lowerdir=/coracle/lower,upperdir=/coracle/memory/upper,workdir=/coracle/memory/work",
};

/// Mounts the overlay over the file system that `mount_lower` mounts.
///
/// # Errors
/// The errors of `mount_lower`, or a step that is impossible, for example without overlayfs in the kernel.
pub(super) fn mount(mount_lower: impl FnOnce(&str) -> Result<(), RootError>) -> Result<(), RootError> {
    let step = |step| move |source: io::Error| RootError::Switch { step, source };
    fs::create_dir_all(LOWER).map_err(step("make a directory for the image"))?;
    mount_lower(LOWER)?;
    TMPFS.make_with_directory().map_err(step("mount a tmpfs for what is written"))?;
    make_layers().map_err(step("make the directories of the overlay"))?;
    OVERLAY.make_with_directory().map_err(step("mount an overlay over the root"))?;
    // The overlay keeps both alive.
    mounts::unmount(LOWER.as_ref());
    mounts::unmount(MEMORY.as_ref());
    Ok(())
}

/// Makes the layers. The attributes of the root directory come from the upper layer.
fn make_layers() -> io::Result<()> {
    fs::create_dir(UPPER)?;
    fs::create_dir(WORK)?;
    let lower = fs::metadata(LOWER)?;
    chown(UPPER, Some(lower.uid()), Some(lower.gid()))?;
    fs::set_permissions(UPPER, fs::Permissions::from_mode(lower.mode() & 0o7777))
}
