//! Moves from an initramfs to the real root (`switch_root(8)`), for the emulated host and for a guest whose
//! root is on a device.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::mounts;

/// Moves the root mounted at `path` over the initramfs, and frees the memory of the initramfs.
///
/// # Errors
/// The step that failed, and its error.
pub(crate) fn enter(path: &str) -> Result<(), (&'static str, io::Error)> {
    let step = |step| move |source| (step, source);
    remove_initramfs();
    std::env::set_current_dir(path).map_err(step("enter the new root"))?;
    mounts::move_mount(path.as_ref(), "/".as_ref()).map_err(step("move the new root"))?;
    std::os::unix::fs::chroot(".").map_err(step("change the root"))?;
    std::env::set_current_dir("/").map_err(step("enter the root"))
}

/// Removes the files of the initramfs, without crossing into a mount: the new root is mounted below.
fn remove_initramfs() {
    let (Ok(root), Ok(entries)) = (fs::metadata("/"), fs::read_dir("/")) else { return };
    if mounts::is_in_memory("/") {
        entries.flatten().for_each(|entry| remove(&entry.path(), root.dev()));
    }
}

fn remove(path: &Path, device: u64) {
    let Ok(found) = fs::symlink_metadata(path) else { return };
    if found.dev() != device {
        return;
    }
    if !found.is_dir() {
        // A file that cannot be removed costs memory and nothing else.
        let _ = fs::remove_file(path);
        return;
    }
    if let Ok(entries) = fs::read_dir(path) {
        entries.flatten().for_each(|entry| remove(&entry.path(), device));
    }
    let _ = fs::remove_dir(path);
}
