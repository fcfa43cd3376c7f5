//! Finds the kernels and initramfs files that come with Coracle: those of the default guest and of the
//! emulated host. The command and the emulated host use it. It only searches, and never creates or downloads
//! anything (`cargo xtask guest` does).

mod agent_program;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

pub(crate) use agent_program::agent_program;
pub use agent_program::{AgentProgramError, IS_AGENT_BUNDLED};

/// The last directory to be searched: that of a system-wide installation.
const SYSTEM_FOLDER: &str = "/usr/share/coracle";

/// A file that comes with Coracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestData {
    /// The default guest's kernel, as ELF.
    GuestVmlinux,
    /// The default guest's kernel, as bzImage.
    GuestVmlinuz,
    /// The default guest's initramfs.
    GuestInitramfs,
    /// The static program that loads modules in the initramfs of a user's own kernel: the default guest's
    /// agent.
    Agent,
    /// The kernel configured for Coracle's machine, as ELF.
    TunedVmlinux,
    /// The kernel configured for Coracle's machine, as bzImage.
    TunedVmlinuz,
    /// The emulated host's kernel, as ELF.
    HostVmlinux,
    /// The emulated host's initramfs.
    HostInitramfs,
}

impl GuestData {
    /// Returns its path in a data directory.
    pub fn relative_path(self) -> &'static Path {
        Path::new(match self {
            Self::GuestVmlinux => "guest/vmlinux",
            Self::GuestVmlinuz => "guest/vmlinuz",
            Self::GuestInitramfs => "guest/initramfs.cpio",
            Self::Agent => "guest/agent",
            Self::TunedVmlinux => "tuned/vmlinux",
            Self::TunedVmlinuz => "tuned/vmlinuz",
            Self::HostVmlinux => "host/vmlinux",
            Self::HostInitramfs => "host/initramfs.cpio",
        })
    }

    /// Returns the command that creates it.
    fn maker(self) -> &'static str {
        match self {
            Self::TunedVmlinux | Self::TunedVmlinuz => "cargo xtask guest --tuned",
            Self::GuestVmlinux
            | Self::GuestVmlinuz
            | Self::GuestInitramfs
            | Self::Agent
            | Self::HostVmlinux
            | Self::HostInitramfs => "cargo xtask guest",
        }
    }
}

impl fmt::Display for GuestData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::GuestVmlinux | Self::GuestVmlinuz => "the default guest's kernel",
            Self::GuestInitramfs => "the default guest's initramfs",
            Self::Agent => "the module loader",
            Self::TunedVmlinux | Self::TunedVmlinuz => "the tuned kernel",
            Self::HostVmlinux => "the emulated host's kernel",
            Self::HostInitramfs => "the emulated host's initramfs",
        })
    }
}

/// A file that none of the data directories has.
#[derive(Debug, thiserror::Error)]
#[error(
    "{wanted} ({}) is in none of {}: `{}` makes it",
    wanted.relative_path().display(),
    listed(folders),
    wanted.maker()
)]
pub struct GuestDataMissing {
    /// The file.
    pub wanted: GuestData,
    /// The directories that were searched.
    pub folders: Vec<PathBuf>,
}

/// Finds a file in the first of these directories that has it: `$CORACLE_DATA`, `$XDG_CACHE_HOME/coracle` (or
/// `$HOME/.cache/coracle`), `/usr/share/coracle`.
///
/// # Errors
/// None of them has it; the message names the directories and the command that creates the file.
pub fn find(wanted: GuestData) -> Result<PathBuf, GuestDataMissing> {
    let folders = folders(|name| env::var_os(name));
    match folders.iter().map(|folder| folder.join(wanted.relative_path())).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(GuestDataMissing { wanted, folders }),
    }
}

/// The files from which the emulated host boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostData {
    /// Its kernel, as ELF: decompressing a bzImage would take three emulated seconds.
    pub kernel: PathBuf,
    /// Its initramfs, with that kernel's modules.
    pub initramfs: PathBuf,
}

/// Finds the emulated host's kernel and initramfs as [`find`] does, but both in the same directory: modules
/// match a single kernel.
///
/// # Errors
/// No directory has both; the message names a missing one.
pub fn find_host() -> Result<HostData, GuestDataMissing> {
    host_data_in(&folders(|name| env::var_os(name)))
}

fn host_data_in(folders: &[PathBuf]) -> Result<HostData, GuestDataMissing> {
    let file = |folder: &PathBuf, wanted: GuestData| {
        Some(folder.join(wanted.relative_path())).filter(|path| path.is_file())
    };
    let mut wanted = GuestData::HostVmlinux;
    for folder in folders {
        let Some(kernel) = file(folder, GuestData::HostVmlinux) else { continue };
        if let Some(initramfs) = file(folder, GuestData::HostInitramfs) {
            return Ok(HostData { kernel, initramfs });
        }
        wanted = GuestData::HostInitramfs;
    }
    Err(GuestDataMissing { wanted, folders: folders.to_vec() })
}

/// Returns the existing directories that hold the modules of the default guest's kernel, each release in its
/// own subdirectory.
pub(crate) fn module_folders() -> Vec<PathBuf> {
    folders(|name| env::var_os(name)).iter().map(|folder| modules_in(folder)).collect()
}

/// Returns whether the default kernel has drivers for all devices of a machine: the tuned kernel has them
/// built in, the stock kernel as modules, which a data directory may lack.
pub fn has_drivers(kaslr: bool) -> bool {
    has_drivers_in(&folders(|name| env::var_os(name)), kaslr)
}

fn has_drivers_in(folders: &[PathBuf], kaslr: bool) -> bool {
    let tuned = if kaslr { GuestData::TunedVmlinuz } else { GuestData::TunedVmlinux };
    let has = |folder: &PathBuf| folder.join(tuned.relative_path()).is_file() || modules_in(folder).is_dir();
    folders.iter().any(has)
}

/// Returns the path of the stock kernel's modules in a data directory.
fn modules_in(folder: &Path) -> PathBuf {
    folder.join("guest/modules")
}

/// Returns the data directories that exist.
pub fn existing_folders() -> impl Iterator<Item = PathBuf> {
    folders(|name| env::var_os(name)).into_iter().filter(|folder| folder.is_dir())
}

/// Finds the kernel that boots by default: the tuned one if it has been built, because it boots in a fraction
/// of the stock kernel's time, or else the stock one. Both boot the default guest's initramfs. For `kaslr` it
/// is the bzImage, whose own decompressor chooses the address.
///
/// # Errors
/// There is neither; the message names the stock kernel, which can be installed without a compiler.
pub fn default_kernel(kaslr: bool) -> Result<PathBuf, GuestDataMissing> {
    let (tuned, stock) = match kaslr {
        true => (GuestData::TunedVmlinuz, GuestData::GuestVmlinuz),
        false => (GuestData::TunedVmlinux, GuestData::GuestVmlinux),
    };
    find(tuned).or_else(|_| find(stock))
}

/// Returns the data directories that an environment names, in order and without duplicates.
fn folders(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The XDG Base Directory Specification says that relative paths are ignored.
    let cache = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("coracle"));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in set("CORACLE_DATA").into_iter().chain(cache).chain([PathBuf::from(SYSTEM_FOLDER)]) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders_of(environment: &[(&str, &str)]) -> Vec<PathBuf> {
        folders(|wanted| {
            environment.iter().find(|(name, _)| *name == wanted).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_users_choice_comes_first_and_the_system_last() {
        let folders =
            folders_of(&[("CORACLE_DATA", "/data"), ("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/me")]);
        assert_eq!(folders, ["/data", "/cache/coracle", SYSTEM_FOLDER].map(PathBuf::from));
    }

    #[test]
    fn a_folder_that_is_named_twice_is_looked_at_once() {
        let folders = folders_of(&[("CORACLE_DATA", "/cache/coracle/"), ("XDG_CACHE_HOME", "/cache")]);
        assert_eq!(folders, ["/cache/coracle", SYSTEM_FOLDER].map(PathBuf::from));
    }

    #[test]
    fn a_relative_or_empty_cache_folder_is_ignored() {
        for cache in ["", "relative"] {
            let folders = folders_of(&[("XDG_CACHE_HOME", cache), ("HOME", "/home/me")]);
            assert_eq!(folders, ["/home/me/.cache/coracle", SYSTEM_FOLDER].map(PathBuf::from));
        }
    }

    #[test]
    fn an_empty_environment_leaves_the_system_folder() {
        assert_eq!(folders_of(&[]), [PathBuf::from(SYSTEM_FOLDER)]);
    }

    #[test]
    fn the_emulated_hosts_files_come_from_one_folder() {
        let scratch = env::temp_dir().join(format!("coracle-guest-data-{}", std::process::id()));
        let [kernel_only, both] = ["kernel-only", "both"].map(|name| scratch.join(name));
        for file in
            [kernel_only.join("host/vmlinux"), both.join("host/vmlinux"), both.join("host/initramfs.cpio")]
        {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        let found = host_data_in(&[kernel_only.clone(), both.clone()]);
        let missing = host_data_in(&[kernel_only]);
        std::fs::remove_dir_all(&scratch).unwrap();
        assert_eq!(found.unwrap().kernel, both.join("host/vmlinux"));
        assert_eq!(missing.unwrap_err().wanted, GuestData::HostInitramfs);
    }

    #[test]
    fn drivers_are_modules_or_in_the_tuned_kernel() {
        let scratch = env::temp_dir().join(format!("coracle-guest-drivers-{}", std::process::id()));
        let [tuned, modules, neither] = ["tuned", "modules", "neither"].map(|name| scratch.join(name));
        std::fs::create_dir_all(tuned.join("tuned")).unwrap();
        std::fs::write(tuned.join("tuned/vmlinux"), "").unwrap();
        std::fs::create_dir_all(modules.join("guest/modules")).unwrap();
        let has = |folder: &Path, kaslr| has_drivers_in(&[neither.clone(), folder.to_owned()], kaslr);
        let found = [has(&tuned, false), has(&tuned, true), has(&modules, true), has(&neither, false)];
        std::fs::remove_dir_all(&scratch).unwrap();
        assert_eq!(found, [true, false, true, false]);
    }

    #[test]
    fn a_missing_file_names_folders_and_command() {
        let error =
            GuestDataMissing { wanted: GuestData::HostVmlinux, folders: vec!["/a".into(), "/b".into()] };
        assert_eq!(
            error.to_string(),
            "the emulated host's kernel (host/vmlinux) is in none of /a, /b: `cargo xtask guest` makes it"
        );
    }
}
