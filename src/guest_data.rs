//! Where the kernels and initramfs files are that Coracle did not get from its user: those of the default guest
//! and of the emulated host. Used by the command line and by [`crate::emulated_host`]; it only looks, and
//! never makes or downloads anything (`cargo xtask guest` does).

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// The last place that is looked at: what a system-wide installation fills.
const SYSTEM_FOLDER: &str = "/usr/share/coracle";

/// A file that Coracle brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestData {
    /// The default guest's kernel as ELF.
    GuestVmlinux,
    /// The default guest's kernel as bzImage.
    GuestVmlinuz,
    /// The default guest's initramfs.
    GuestInitramfs,
    /// The emulated host's kernel as ELF.
    HostVmlinux,
    /// The emulated host's kernel as bzImage.
    HostVmlinuz,
    /// The emulated host's initramfs.
    HostInitramfs,
}

impl GuestData {
    /// Its place in a data folder.
    pub fn relative_path(self) -> &'static Path {
        Path::new(match self {
            Self::GuestVmlinux => "guest/vmlinux",
            Self::GuestVmlinuz => "guest/vmlinuz",
            Self::GuestInitramfs => "guest/initramfs.cpio",
            Self::HostVmlinux => "host/vmlinux",
            Self::HostVmlinuz => "host/vmlinuz",
            Self::HostInitramfs => "host/initramfs.cpio",
        })
    }
}

impl fmt::Display for GuestData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::GuestVmlinux | Self::GuestVmlinuz => "the default guest's kernel",
            Self::GuestInitramfs => "the default guest's initramfs",
            Self::HostVmlinux | Self::HostVmlinuz => "the emulated host's kernel",
            Self::HostInitramfs => "the emulated host's initramfs",
        })
    }
}

/// A file that is in none of the data folders.
#[derive(Debug, thiserror::Error)]
#[error("{wanted} ({}) is in none of {}: `cargo xtask guest` makes it", wanted.relative_path().display(), listed(folders))]
pub struct GuestDataMissing {
    /// The file.
    pub wanted: GuestData,
    /// The folders that were looked at.
    pub folders: Vec<PathBuf>,
}

/// Finds a file in `$CORACLE_DATA`, else in `$XDG_CACHE_HOME/coracle` (`$HOME/.cache/coracle`), else in
/// `/usr/share/coracle`: in the first of them that has it.
///
/// # Errors
/// None has it; the message names all three and the command that makes the file.
pub fn find(wanted: GuestData) -> Result<PathBuf, GuestDataMissing> {
    let folders = folders(|name| env::var_os(name));
    match folders.iter().map(|folder| folder.join(wanted.relative_path())).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(GuestDataMissing { wanted, folders }),
    }
}

/// The data folders that an environment names, in order.
fn folders(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The XDG Base Directory Specification has relative paths ignored.
    let cache = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("coracle"));
    set("CORACLE_DATA").into_iter().chain(cache).chain([PathBuf::from(SYSTEM_FOLDER)]).collect()
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
    fn a_missing_file_names_folders_and_command() {
        let error =
            GuestDataMissing { wanted: GuestData::HostVmlinuz, folders: vec!["/a".into(), "/b".into()] };
        assert_eq!(
            error.to_string(),
            "the emulated host's kernel (host/vmlinuz) is in none of /a, /b: `cargo xtask guest` makes it"
        );
    }
}
