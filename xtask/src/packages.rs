//! Debian packages, downloaded and unpacked below the data directory, without root and without installing
//! them.
//!
//! An unpacked package is used until an update is requested, so that a machine that has it needs no network.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{capture, exists};

/// The directory of unpacked packages. Its owner holds the data directory's lock.
#[derive(Debug)]
pub(crate) struct PackageStore {
    folder: PathBuf,
}

/// An unpacked package.
#[derive(Debug)]
pub(crate) struct Package {
    /// Name and version, as `NAME_VERSION`.
    pub(crate) id: String,
    /// The directory that corresponds to `/` in an installed system.
    pub(crate) tree: PathBuf,
}

impl PackageStore {
    /// Opens the store in the data directory.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub(crate) fn open(data: &Path) -> Result<Self> {
        let folder = data.join("packages");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Returns the package `name`. For a metapackage that stands for the newest kernel
    /// (`linux-image-cloud-amd64`), returns that kernel's package.
    ///
    /// # Errors
    /// The package is missing and cannot be downloaded or unpacked.
    pub(crate) fn package(&self, name: &str, update: bool) -> Result<Package> {
        if let Some(package) = self.unpacked(name).filter(|_| !update) {
            return Ok(package);
        }
        self.fetch(name).with_context(|| format!("cannot get the Debian package {name}"))?;
        self.unpacked(name).with_context(|| format!("{name} is not in {} after all", self.folder.display()))
    }

    /// Follows the link `name` in the store.
    fn unpacked(&self, name: &str) -> Option<Package> {
        let id = fs::read_link(self.folder.join(name)).ok()?.to_str()?.to_owned();
        let tree = self.folder.join(&id);
        tree.is_dir().then_some(Package { id, tree })
    }

    fn fetch(&self, name: &str) -> Result<()> {
        for (program, package) in [("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg", "dpkg")] {
            ensure!(exists(program), "{program} is missing: this needs a Debian system (package {package})");
        }
        let scratch = Scratch::new(self.folder.join(".new"))?;
        let deb = download(name, &scratch.0)?;
        let id = deb.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.rsplit_once('_'));
        let (id, _architecture) = id.with_context(|| format!("{} has no version", deb.display()))?;
        let tree = self.folder.join(id);
        if !tree.is_dir() {
            let unpacked = scratch.0.join("tree");
            capture(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
            fs::rename(&unpacked, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
        }
        let link = scratch.0.join("link");
        symlink(id, &link)?;
        let former = self.unpacked(name);
        fs::rename(&link, self.folder.join(name)).with_context(|| format!("cannot link {name}"))?;
        match former {
            Some(former) if former.id != id => {
                fs::remove_dir_all(former.tree).context("cannot remove what it replaces")
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Downloads the package, using the machine's package lists or, if these are missing or outdated, fresh ones
/// of our own.
fn download(name: &str, folder: &Path) -> Result<PathBuf> {
    println!("downloading {name}");
    let Err(by_machine_lists) = Apt::with_machine_lists().download(name, folder) else {
        return only_deb(folder);
    };
    let fresh = Apt::with_fresh_lists(&folder.join("apt")).and_then(|apt| apt.download(name, folder));
    fresh.with_context(|| format!("with this machine's package lists: {by_machine_lists:#}"))?;
    only_deb(folder)
}

fn only_deb(folder: &Path) -> Result<PathBuf> {
    let is_deb = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "deb");
    let found = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).find(is_deb);
    found.context("apt-get download has left no package file")
}

/// The options for apt.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn with_machine_lists() -> Self {
        // As root, apt would download as the user _apt, which cannot write to our directory.
        Self { options: vec!["-oAPT::Sandbox::User=root".to_owned()] }
    }

    /// Downloads the package lists of the machine's sources into `folder`.
    fn with_fresh_lists(folder: &Path) -> Result<Self> {
        let mut apt = Self::with_machine_lists();
        for (option, below) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
            fs::create_dir_all(folder.join(below).join("partial"))?;
            let path = folder.join(below);
            apt.options
                .push(format!("-o{option}={}", path.to_str().context("the data folder is not UTF-8")?));
        }
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        capture(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    fn download(&self, name: &str, folder: &Path) -> Result<()> {
        let record = capture(self.command("apt-cache").args(["show", "--no-all-versions", name]))?;
        let name = newest_kernel(&record).unwrap_or(name);
        capture(self.command("apt-get").args(["-qq", "download", name]).current_dir(folder))?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// Returns the kernel image on which a metapackage depends, from its record in the package lists.
fn newest_kernel(record: &str) -> Option<&str> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    depends.split([',', ' ', '|']).find(|name| name.starts_with("linux-image-"))
}

/// A directory that is removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                bail!("cannot remove {}: {error}", path.display())
            }
            Ok(()) | Err(_) => {}
        }
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_is_what_the_package_depends_on() {
        let record =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(newest_kernel(record), Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn package_with_other_dependencies_stands_for_itself() {
        assert_eq!(newest_kernel("Package: busybox-static\nPriority: optional\n"), None);
        assert_eq!(newest_kernel("Depends: kmod, linux-base (>= 4.3~), initramfs-tools\n"), None);
    }
}
