//! The kernel's own build, in a folder that is removed again: unpack, configure, make.

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

/// Counts the changes of this file that change the kernel it builds.
pub(super) const RECIPE: u8 = 1;

/// The C compiler, as its first line of `--version` names it.
#[derive(Debug)]
pub(super) struct Compiler {
    version: String,
}

impl Compiler {
    /// Asks the compiler that the kernel's build uses.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn find() -> Result<Self> {
        let version = capture(Command::new("gcc").arg("--version"))?;
        Ok(Self { version: version.lines().next().context("gcc does not tell its version")?.to_owned() })
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
    /// As `uname -r` tells it.
    pub(super) release: String,
    /// The whole configuration.
    pub(super) config: String,
    /// ELF, with its symbols and without relocations.
    pub(super) vmlinux: Vec<u8>,
    /// bzImage.
    pub(super) vmlinuz: Vec<u8>,
    /// The list of what would be modules, were it not built in (`Documentation/kbuild/kbuild.rst`).
    pub(super) built_in: String,
}

/// An unpacked kernel source, removed when it is dropped.
#[derive(Debug)]
pub(super) struct SourceTree {
    folder: PathBuf,
    /// Seconds since 1970: the kernel's banner has it in place of the time of the build, so that one source
    /// gives one kernel.
    time: i64,
}

impl SourceTree {
    /// Unpacks an archive into `folder`, which is emptied first: a build that was broken off may have left
    /// it.
    ///
    /// # Errors
    /// The folder cannot be emptied, or the archive not be unpacked.
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

    /// Makes the configuration in which everything is off but the fragment's settings and what they need.
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
    /// It does not build; the error holds what the compiler says.
    pub(super) fn build(&self, config: String) -> Result<Built> {
        capture(&mut self.make("bzImage"))?;
        let release = capture(&mut self.make("kernelrelease"))?.trim().to_owned();
        let vmlinux = self.folder.join("vmlinux.bare");
        // The relocations are for KASLR, which takes them from the bzImage; they are half of the file.
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
        // What the caller's own make, if there is one, tells its children.
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        command
    }
}

impl Drop for SourceTree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
