//! Tests of files that a run finds by itself, below the caller's `/tmp`: the machine has its own `/tmp`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use coracle::guest_data::{self, GuestData};

use super::{Run, Scratch, common, has_qemu, shown};

/// Returns the unpacked package of the emulated host's kernel, which has its drivers as modules.
fn package() -> Option<PathBuf> {
    let guest = guest_data::find(GuestData::HostVmlinux).ok()?;
    let packages = fs::canonicalize(guest).ok()?.parent()?.parent()?.join("packages");
    let names = fs::read_dir(packages).ok()?.flatten();
    let is_kernel = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("linux-image-") && !name.contains("cloud") && path.join("boot").is_dir()
    };
    names.map(|entry| entry.path()).find(is_kernel)
}

#[test]
fn modules_beside_a_kernel_are_shared() {
    needs_qemu!();
    let Some(package) = package() else {
        return common::skip("the package of the emulated host's kernel is not there");
    };
    let scratch = Scratch::new("modules");
    symlink(package.join("lib"), scratch.0.join("lib")).unwrap();
    fs::create_dir(scratch.0.join("boot")).unwrap();
    let image = fs::read_dir(package.join("boot")).unwrap().flatten().map(|entry| entry.path());
    let image = image.into_iter().find(|path| path.to_string_lossy().contains("/vmlinuz-")).unwrap();
    let kernel = scratch.0.join("boot/vmlinuz");
    fs::copy(image, &kernel).unwrap();
    let disk = scratch.0.join("disk.ext4");
    let made = Command::new("/usr/sbin/mkfs.ext4").arg("-q").arg(&disk).arg("8M").status();
    assert!(made.unwrap().success());
    let mut command = common::coracle();
    command
        .args(["run", "--accel", "emulate", "-a", "quiet root=/dev/vda", "--disk"])
        .arg(&disk)
        .arg(&kernel);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = Run::start(command).finish();
    // The disk and its file system have been found, and both need modules.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("kernel panicked: there is no init program on the root"), "{}", shown(&output));
    assert_eq!(output.status.code(), Some(110));
}
