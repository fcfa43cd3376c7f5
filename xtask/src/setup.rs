//! `cargo xtask setup`: installs what the other tasks need and a Debian machine with Rust may lack.
//!
//! Kernels and busybox are no part of it: `guest` unpacks them without installing anything.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, exists};

/// Installs what is missing; does nothing, fast, when nothing is.
///
/// # Errors
/// Something is missing and this user may not install it (the error is the command that does), or apt fails.
pub(crate) fn make_ready() -> Result<()> {
    provide(&NEEDS)
}

/// The same for what only the fuzz targets need.
pub(crate) fn make_ready_to_fuzz() -> Result<()> {
    provide(&NEEDS_OF_FUZZING)
}

fn provide(needs: &[Need]) -> Result<()> {
    let missing: Vec<_> =
        needs.iter().filter(|need| !exists(need.program)).map(|need| need.package).collect();
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
        // Most often there are no package lists yet, or they name versions that are gone.
        capture(apt_get().args(["-qq", "update"]))?;
        install(&missing)?;
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    capture(apt_get().args(["-qq", "-y", "--no-install-recommends", "install"]).args(packages)).map(drop)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt may be at work; it is worth a minute of waiting.
    command.arg("-oDPkg::Lock::Timeout=60").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_root() -> Result<bool> {
    let process =
        std::fs::metadata("/proc/self").context("cannot tell this process's user: /proc is not mounted")?;
    Ok(process.uid() == 0)
}

/// A program and the Debian package that it comes in.
struct Need {
    program: &'static str,
    package: &'static str,
}

const NEEDS: [Need; 1] = [
    // The emulated host, for machines whose KVM cannot run Linux, and for the tests that compare with such a
    // machine.
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86" },
];

// libFuzzer is C++.
const NEEDS_OF_FUZZING: [Need; 1] = [Need { program: "c++", package: "g++" }];
