//! `cargo xtask setup`: installs what the other tasks need and a Debian machine with Rust may lack.
//!
//! Kernels and busybox are not included: `guest` unpacks them without installing anything.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, exists};

/// Installs what is missing; returns quickly if nothing is.
///
/// # Errors
/// Something is missing and this user cannot install it (the error contains the command to run), or apt
/// fails.
pub(crate) fn make_ready() -> Result<()> {
    install_missing(&NEEDS)
}

/// Installs the packages that the fuzz targets need, as [`make_ready`] does for the tests.
pub(crate) fn make_ready_to_fuzz() -> Result<()> {
    install_missing(&FUZZING_NEEDS)
}

/// Installs the packages that a build of the kernel needs, as [`make_ready`] does for the tests.
///
/// # Errors
/// See [`make_ready`].
pub(crate) fn make_ready_for_kernel() -> Result<()> {
    install_missing(&KERNEL_NEEDS)
}

fn install_missing(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !is_root()? {
        let line = format!("sudo apt-get install --no-install-recommends {packages}");
        bail!("programs are missing; this installs them:\n{line}");
    }
    println!("installing {packages}");
    if install(&missing).is_err() {
        // Usually there are no package lists yet, or they name versions that no longer exist.
        capture(apt_get().args(["-qq", "update"]))?;
        install(&missing)?;
    }
    Ok(())
}

/// Returns the packages whose programs or files are missing.
fn missing(needs: &[Need]) -> Vec<&'static str> {
    let is_there = |need: &&Need| match need.sign {
        Sign::Program(program) => exists(program),
        Sign::File(path) => Path::new(path).exists(),
    };
    needs.iter().filter(|need| !is_there(need)).map(|need| need.package).collect()
}

fn install(packages: &[&str]) -> Result<()> {
    capture(apt_get().args(["-qq", "-y", "--no-install-recommends", "install"]).args(packages)).map(drop)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt may be running; wait up to a minute for it.
    command.arg("-oDPkg::Lock::Timeout=60").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_root() -> Result<bool> {
    let process =
        std::fs::metadata("/proc/self").context("cannot tell this process's user: /proc is not mounted")?;
    Ok(process.uid() == 0)
}

/// A Debian package, and how to tell that it or an equivalent is installed.
struct Need {
    sign: Sign,
    package: &'static str,
}

enum Sign {
    Program(&'static str),
    File(&'static str),
}

const NEEDS: [Need; 9] = [
    // The emulated host, for machines whose KVM cannot run Linux, and for the tests that compare with one.
    Need { sign: Sign::Program("qemu-system-x86_64"), package: "qemu-system-x86" },
    // Networks for the tests, and an unprivileged network for their guests.
    Need { sign: Sign::Program("ip"), package: "iproute2" },
    Need { sign: Sign::Program("passt"), package: "passt" },
    // Images to boot from and to compare Coracle's own with, and the tool that shows extended attributes in a
    // guest.
    Need { sign: Sign::Program("fsck.erofs"), package: "erofs-utils" },
    Need { sign: Sign::Program("mksquashfs"), package: "squashfs-tools" },
    Need { sign: Sign::Program("getfattr"), package: "attr" },
    // The programs by which guests of the tests use their disks and network cards, and the disk that carries
    // them.
    Need { sign: Sign::Program("fio"), package: "fio" },
    Need { sign: Sign::Program("iperf3"), package: "iperf3" },
    Need { sign: Sign::Program("mkfs.ext4"), package: "e2fsprogs" },
];

/// libFuzzer is written in C++.
const FUZZING_NEEDS: [Need; 1] = [Need { sign: Sign::Program("c++"), package: "g++" }];

/// The programs that the kernel's build runs besides the compiler and linker that Rust also needs.
const KERNEL_NEEDS: [Need; 7] = [
    Need { sign: Sign::Program("make"), package: "make" },
    Need { sign: Sign::Program("xz"), package: "xz-utils" },
    Need { sign: Sign::Program("flex"), package: "flex" },
    Need { sign: Sign::Program("bison"), package: "bison" },
    Need { sign: Sign::Program("bc"), package: "bc" },
    // The compressor of the bzImage.
    Need { sign: Sign::Program("lz4c"), package: "lz4" },
    // objtool, which prepares stack traces and patched branches, is built against it.
    Need { sign: Sign::File("/usr/include/gelf.h"), package: "libelf-dev" },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_missing_by_program_or_by_file() {
        let need = |sign, package| Need { sign, package };
        let needs = [
            need(Sign::Program("sh"), "there"),
            need(Sign::Program("no-such-program-of-coracle"), "no-program"),
            need(Sign::File("/proc/self"), "there"),
            need(Sign::File("/no/such/file"), "no-file"),
        ];
        assert_eq!(missing(&needs), ["no-program", "no-file"]);
    }
}
