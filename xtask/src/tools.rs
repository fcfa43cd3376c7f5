//! `cargo xtask guest --tools`: a disk image with the programs by which guests of the tests use their devices
//! as users do: busybox, and this machine's own fio and iperf3 with their libraries. Its init is a shell on
//! the console.
//!
//! It is the asset directory `tools` (see [`crate::assets`]). It is made here and not by the tests, because
//! they may run on an emulated host, where copying 80 MB of libraries takes half a minute.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::assets::{self, AssetFolder, write};
use crate::guest::find_busybox;
use crate::packages::PackageStore;
use crate::process::capture;
use crate::setup;
use crate::workspace::Workspace;

/// Creates the image if it is not current.
///
/// # Errors
/// A program is missing, or the image cannot be created.
pub(crate) fn make(workspace: &Workspace) -> Result<()> {
    setup::make_ready()?;
    let data = &workspace.data;
    let _lock = assets::lock(data)?;
    let busybox = PackageStore::open(data)?.package("busybox-static", false)?;
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        files.insert(PathBuf::from(program));
        files.extend(libraries(&capture(Command::new("ldd").arg(program))?));
    }
    let mut parts = vec![LAYOUT.to_owned(), INIT.to_owned(), busybox.id];
    for file in &files {
        parts.push(identity(file)?);
    }
    let key = assets::key(&parts.iter().map(String::as_bytes).collect::<Vec<_>>());
    let folder = AssetFolder::new(data, ROLE, "1", &key);
    let is_new = !folder.exists();
    if is_new {
        let busybox = find_busybox(&busybox.tree)?;
        folder
            .make(|scratch| write_image(scratch, &files, &busybox))
            .context("cannot make the tests' tools")?;
    }
    folder.put_in_use()?;
    println!("tests' tools: {} ({})", folder.path().display(), if is_new { "new" } else { "current" });
    Ok(())
}

/// Returns the paths in the output of `ldd`.
fn libraries(said: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let found = line.split_once(" => ").map_or(line, |(_, found)| found);
        Some(found.split_whitespace().next()?.to_owned()).filter(|path| path.starts_with('/'))
    };
    said.lines().filter_map(path).map(PathBuf::from).collect()
}

/// Returns an identity that changes when a file is replaced. Reading all files would take seconds at every
/// start of the tests.
fn identity(file: &Path) -> Result<String> {
    let found = fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?;
    Ok(format!("{} {} {}.{}", file.display(), found.len(), found.mtime(), found.mtime_nsec()))
}

fn write_image(folder: &Path, files: &BTreeSet<PathBuf>, busybox: &[u8]) -> Result<()> {
    let tree = folder.join("tree");
    for place in PLACES {
        fs::create_dir_all(tree.join(place))?;
    }
    write_program(&tree.join("bin/busybox"), busybox)?;
    write_program(&tree.join("sbin/init"), INIT.as_bytes())?;
    // busybox is static, so it can run here to list its names.
    for name in capture(Command::new(tree.join("bin/busybox")).arg("--list"))?.lines() {
        if name != "busybox" {
            symlink("busybox", tree.join("bin").join(name))?;
        }
    }
    let mut bytes = busybox.len() as u64;
    for file in files {
        let copy = tree.join(file.strip_prefix("/").context("a library's path is relative")?);
        copy.parent().map_or(Ok(()), fs::create_dir_all)?;
        bytes += fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    // Leaves room for the file system's own structures.
    let mib = (bytes * 5 / 4).div_ceil(1 << 20) + 8;
    let mut mkfs = Command::new("mkfs.ext4");
    // Debian omits `sbin` from an ordinary user's PATH.
    mkfs.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(["-q", "-E", "root_owner=0:0", "-d"]).arg(&tree);
    capture(mkfs.arg(folder.join("tools.ext4")).arg(format!("{mib}M")))?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

fn write_program(path: &Path, content: &[u8]) -> Result<()> {
    write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

const ROLE: &str = "tools";

/// The paths in Debian's packages.
const PROGRAMS: [&str; 2] = ["/usr/bin/fio", "/usr/bin/iperf3"];

const PLACES: [&str; 8] = ["bin", "dev", "mnt/a", "mnt/b", "proc", "sbin", "sys", "tmp"];

/// The root is read-only; the module loader has mounted `/dev`.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
cd /tmp
sh
poweroff -f
";

/// Counts the changes to the layout of the image, so that an old one is not taken for current.
const LAYOUT: &str = "2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_files_that_ldd_names_and_the_loader() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f33)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f34)\n\tlibnone.so => not found\n";
        let expected = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(said), expected);
    }
}
