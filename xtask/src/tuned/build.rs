//! The kernel's own build, in a directory that is removed afterwards: unpack, configure, make.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::config::Fragment;
use super::read_text;
use crate::assets::{read, write};
use crate::process::capture;

/// Counts the changes to this file that change the kernel it builds.
pub(super) const RECIPE: u8 = 1;

/// The C compiler, as the first line of its `--version` identifies it.
#[derive(Debug)]
pub(super) struct Compiler {
    version: String,
}

impl Compiler {
    /// Asks the compiler that the kernel's build uses for its version.
    ///
    /// # Errors
    /// There is no compiler.
    pub(super) fn find() -> Result<Self> {
        let version = capture(Command::new("gcc").arg("--version"))?;
        Ok(Self { version: version.lines().next().context("gcc does not print its version")?.to_owned() })
    }

    #[cfg(test)]
    pub(super) fn named(version: &str) -> Self {
        Self { version: version.to_owned() }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.version)
    }
}

/// A finished kernel.
#[derive(Debug)]
pub(super) struct Built {
    /// The release, as printed by `uname -r`.
    pub(super) release: String,
    /// The whole configuration.
    pub(super) config: String,
    /// The ELF image, with its symbols and without relocations.
    pub(super) vmlinux: Vec<u8>,
    /// The bzImage.
    pub(super) vmlinuz: Vec<u8>,
    /// The list of code that is built in but could be a module (`Documentation/kbuild/kbuild.rst`).
    pub(super) built_in: String,
}

/// An unpacked kernel source, removed on drop.
#[derive(Debug)]
pub(super) struct SourceTree {
    folder: PathBuf,
    /// Seconds since 1970. The kernel's banner shows this instead of the time of the build, so that the same
    /// source gives the same kernel.
    time: i64,
}

impl SourceTree {
    /// Unpacks an archive into `folder`, which is emptied first: an interrupted build may have left it.
    ///
    /// # Errors
    /// The directory cannot be emptied, or the archive cannot be unpacked.
    pub(super) fn unpack(archive: &Path, folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let time = fs::metadata(archive)?.mtime();
        let tree = Self { folder: folder.to_owned(), time };
        let mut tar = Command::new("tar");
        tar.args(["-xJf"]).arg(archive).arg("-C").arg(folder).arg("--strip-components=1");
        capture(&mut tar)?;
        Ok(tree)
    }

    /// Creates the configuration in which everything is off except the fragment's settings and what they
    /// need.
    ///
    /// # Errors
    /// The kernel's configuration tool fails.
    pub(super) fn configure(&self, fragment: &Fragment) -> Result<String> {
        let settings = self.folder.join(".fragment");
        write(&settings, fragment.settings().as_bytes())?;
        capture(self.make("allnoconfig").env("KCONFIG_ALLCONFIG", &settings))?;
        read_text(&self.folder.join(".config"))
    }

    /// Builds the configured kernel.
    ///
    /// # Errors
    /// It does not build; the error contains the compiler's output.
    pub(super) fn build(&self, config: String) -> Result<Built> {
        capture(&mut self.make("bzImage"))?;
        let release = capture(&mut self.make("kernelrelease"))?.trim().to_owned();
        let vmlinux = self.folder.join("vmlinux.bare");
        // The relocations are half of the file. Only KASLR needs them, and it takes them from the bzImage.
        let mut objcopy = Command::new("objcopy");
        objcopy
            .args(["--strip-debug", "--remove-section=.rela*"])
            .arg(self.folder.join("vmlinux"))
            .arg(&vmlinux);
        capture(&mut objcopy)?;
        let vmlinuz = read(&self.folder.join("arch/x86/boot/bzImage"))?;
        let built_in = read_text(&self.folder.join("modules.builtin"))?;
        Ok(Built { release, config, vmlinux: read(&vmlinux)?, vmlinuz, built_in })
    }

    fn make(&self, target: &str) -> Command {
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut command = Command::new("make");
        command.current_dir(&self.folder).args(["--silent", &format!("--jobs={jobs}"), target]);
        command.env("LC_ALL", "C").env("ARCH", "x86_64");
        command.env("KBUILD_BUILD_TIMESTAMP", format!("@{}", self.time));
        command.env("KBUILD_BUILD_USER", "coracle").env("KBUILD_BUILD_HOST", "xtask");
        // Variables that the caller's own make, if there is one, sets for its children.
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        command
    }
}

impl Drop for SourceTree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
