//! Tests of stock kernels with virtio devices, whose drivers are modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle::guest_data::GuestData;

use super::common::{self, coracle, finish, scratch};
use super::shell::Shell;
use super::{data, no_linux, run};

#[test]
fn default_guest_finds_its_devices_by_acpi() {
    needs_linux!();
    let disk = scratch().join("empty.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let run = run("report", &["--rng", "--disk", &format!("path={},ro,queues=2", disk.display())]);
    run.expect(0, "the guest powered off");
    let text = run.text();
    assert!(text.contains("virtio   virtio0 (virtio_blk) virtio1 (virtio_rng)"), "{text}");
    assert!(text.contains("block    vda"), "{text}");
}

#[test]
fn root_on_a_disk_boots_and_keeps_what_was_written() {
    needs_linux!();
    let Some(disk) = root_image("kept.img", "rw") else { return };
    let run = finish(boot_from(&disk, "").args(["-a", "rw"]));
    run.expect(0, "the guest powered off");
    let text = run.text();
    let said =
        text.lines().find_map(|line| line.trim().strip_prefix("sum ")).unwrap_or_else(|| panic!("{text}"));
    host("fsck.ext4", &["-fn", disk.to_str().unwrap()]);
    let copy = disk.with_extension("data");
    host("debugfs", &["-R", &format!("dump /data {}", copy.display()), disk.to_str().unwrap()]);
    let sum = host("sha256sum", &[copy.to_str().unwrap()]);
    assert!(said.starts_with(sum.split(' ').next().unwrap()), "{said} is not {sum}");
}

#[test]
fn overlay_leaves_the_disk_below_as_it_was() {
    needs_linux!();
    let Some(disk) = root_image("below.img", "cow") else { return };
    let before = fs::read(&disk).unwrap();
    let mut command = boot_from(&disk, ",cow,cow-size=64M");
    let run = finish(command.env("TMPDIR", "/dev/shm").args(["-a", "rw"]));
    run.expect(0, "the guest powered off");
    assert!(run.text().contains("sum "), "{}", run.text());
    assert!(fs::read(&disk).unwrap() == before);
}

/// The blocks are in files of the host, in which flushed data can be seen from outside.
#[test]
fn loop_device_has_what_the_guest_has_flushed_and_a_read_only_one_stays_as_it_was() {
    needs_linux!();
    let folder = Scratch::new("loop");
    let (written, read) = (folder.disk("written"), folder.disk("read"));
    let content: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    fs::write(&read, &content).unwrap();
    let Some(device) = LoopDevice::over(&written, &[]) else { return };
    let Some(read_only) = LoopDevice::over(&read, &["--read-only"]) else { return };
    let refused = run("report", &["--disk", &format!("path={}", read_only.0)]);
    refused.expect(125, &format!("--disk {}: the device is read-only", read_only.0));

    let disks = [format!("path={}", device.0), format!("path={},ro", read_only.0)];
    let mut guest = Shell::start(&["--disk", &disks[0], "--disk", &disks[1]]);
    guest.run("dd if=/dev/urandom of=/dev/vda bs=64k seek=3 count=32 conv=fsync");
    let said = guest.run("sha256sum < /dev/vda");
    let sum = host("sha256sum", &[written.to_str().unwrap()]);
    assert!(said.contains(sum.split(' ').next().unwrap()), "{said} is not {sum}");
    let said = guest.run("sha256sum < /dev/vdb && grep 1 /sys/block/vdb/ro");
    let sum = host("sha256sum", &[read.to_str().unwrap()]);
    assert!(said.contains(sum.split(' ').next().unwrap()), "{said} is not {sum}");
    guest.run("! dd if=/dev/urandom of=/dev/vdb bs=64k count=1 conv=fsync");
    guest.end();
    assert!(fs::read(&read).unwrap() == content);
}

/// A block device whose blocks are in a file, which it releases at the end.
struct LoopDevice(String);

impl LoopDevice {
    /// Returns `None`, after printing why, if there are none.
    fn over(file: &Path, words: &[&str]) -> Option<LoopDevice> {
        let mut command = Command::new("/usr/sbin/losetup");
        let output = command.args(words).args(["--find", "--show"]).arg(file).output();
        let Some(output) = output.ok().filter(|output| output.status.success()) else {
            common::skip("this machine has no loop devices, or this user may not make them");
            return None;
        };
        Some(LoopDevice(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").args(["--detach", &self.0]).status();
    }
}

/// Returns the stock kernel without an initrd, with its root on the disk.
fn boot_from(disk: &Path, words: &str) -> Command {
    let mut command = coracle();
    command.args(["run", "--accel", "kvm", "--timeout", "200s"]).arg(data(GuestData::GuestVmlinuz));
    command.args(["--disk", &format!("path={}{words}", disk.display())]);
    command.args(["-a", "quiet root=/dev/vda"]);
    command
}

/// Creates an ext4 image from a directory, whose init writes 4 MiB, prints their hash and powers off.
fn root_image(name: &str, folder: &str) -> Option<PathBuf> {
    let init = "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n\
                dd if=/dev/urandom of=/data bs=64k count=64 conv=fsync 2>/dev/null\n\
                echo sum $(sha256sum /data)\nsync\nmount -o remount,ro /\npoweroff -f\n";
    image_with_init(name, folder, init)
}

/// Creates an ext4 image of a system with busybox and this init.
pub(super) fn image_with_init(name: &str, folder: &str, init: &str) -> Option<PathBuf> {
    let tree = scratch().join(folder);
    for part in ["bin", "sbin", "proc", "dev", "sys"] {
        fs::create_dir_all(tree.join(part)).unwrap();
    }
    let Some(busybox) = busybox() else {
        common::skip("the packages of the default guest are not there");
        return None;
    };
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    fs::write(tree.join("sbin/init"), init).unwrap();
    host("chmod", &["755", tree.join("sbin/init").to_str().unwrap()]);
    let image = scratch().join(name);
    let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
    host("mkfs.ext4", &["-q", "-E", "root_owner=0:0", "-d", tree, path, "24M"]);
    Some(image)
}

/// Returns the default guest's busybox, from the package that it was taken from.
pub(super) fn busybox() -> Option<PathBuf> {
    package("busybox-static", "bin/busybox")
}

/// Returns a file of an unpacked package from which the guests are made, in its latest version.
pub(super) fn package(name: &str, file: &str) -> Option<PathBuf> {
    packages(name, file).into_iter().max()
}

/// Returns the same file of every package whose name begins in this way.
pub(super) fn packages(name: &str, file: &str) -> Vec<PathBuf> {
    let guest = fs::canonicalize(data(GuestData::GuestVmlinuz)).unwrap();
    let entries = fs::read_dir(guest.ancestors().nth(2).unwrap().join("packages")).into_iter().flatten();
    let trees = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(name));
    trees.map(|entry| entry.path().join(file)).filter(|path| path.exists()).collect()
}

/// Runs a program of the host that has to succeed, and returns its output.
#[track_caller]
pub(super) fn host(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A directory in memory for disks, because other directories of an emulated host are slow. It is removed at
/// the end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Scratch {
        let path = PathBuf::from(format!("/dev/shm/coracle-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    /// Creates an empty disk.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
