//! The root file system of a guest: its source, and how it gets into the guest.

use std::path::PathBuf;
use std::str::FromStr;

use coracle_image::rootfs::RootSource;
pub use coracle_image::rootfs::{RootAccess, RootForm, RootKind};

use super::keyed::{ID, Key, Keyed, Kind, with_words};
use super::memory_size::size_in_bytes;
use super::setting::{setting, text};
use super::words::{Word, path_and_words};
use super::{ConfigError, DeviceId};

/// A root file system. The kind of `path` is recognized from its content: a directory, a tar (plain, or
/// compressed with gzip, xz, zstd or LZ4), or an image of ext4, EROFS or squashfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootConfig {
    /// The directory, tar or image.
    pub path: PathBuf,
    /// The required kind; `None` accepts any.
    pub kind: Option<RootKind>,
    /// The destination of the guest's writes.
    pub access: RootAccess,
    /// How a directory or tar gets into the guest.
    pub form: RootForm,
    /// Whether it is an error if the owner of a file in a directory cannot be determined. If it is not, files
    /// of an unprivileged caller belong to root in the guest.
    pub keep_ids: bool,
    /// The id of the disk, if the root becomes one; `None` for `root`.
    pub id: Option<DeviceId>,
}

impl RootConfig {
    /// Creates the configuration of a root whose source is not modified.
    pub fn new(path: impl Into<PathBuf>) -> RootConfig {
        RootConfig {
            path: path.into(),
            kind: None,
            access: RootAccess::default(),
            form: RootForm::default(),
            keep_ids: false,
            id: None,
        }
    }
}

impl<'a> From<&'a RootConfig> for RootSource<'a> {
    fn from(config: &'a RootConfig) -> RootSource<'a> {
        let &RootConfig { ref path, kind, access, form, keep_ids, id: _ } = config;
        RootSource { path, kind, access, form, keep_ids }
    }
}

impl FromStr for RootConfig {
    type Err = ConfigError;

    /// Parses `PATH`, or `path=PATH` followed by a comma-separated list of the other keys. A comma in the
    /// path is doubled.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let split = path_and_words(text).ok_or_else(|| ConfigError::RootPath { text: text.into() });
        let (path, words) = split?;
        with_words(RootDraft { root: RootConfig::new(path), says_cow: false }, words)
    }
}

/// A root, and whether `cow` was given: it is the default, but contradicts `rw`.
pub(super) struct RootDraft {
    root: RootConfig,
    says_cow: bool,
}

setting!(RootConfig keyed RootConfig, text(), |root, change| change(&mut root.path));

impl Keyed for RootConfig {
    type Draft = RootDraft;

    const KEYS: &'static [Key] = &[
        Key { name: "path", kind: Kind::Text, about: "Directory, tar or image" },
        Key { name: "rw", kind: Kind::Flag, about: "Whether the guest's writes go to the image" },
        Key {
            name: "cow",
            kind: Kind::Flag,
            about: "Whether the guest's writes are discarded with the machine, which is the default",
        },
        Key {
            name: "cow-size",
            kind: Kind::Quantity,
            about: "How much the guest may write; a number is in MiB",
        },
        Key {
            name: "as",
            kind: Kind::Choice(&["initramfs", "disk"]),
            about: "How a directory or tar gets into the guest",
        },
        Key {
            name: "keep-ids",
            kind: Kind::Flag,
            about: "Whether it is an error if the owner of a file cannot be determined",
        },
        ID,
    ];

    const NEEDS: &'static [&'static str] = &["path"];

    fn draft() -> RootDraft {
        RootDraft { root: RootConfig::new(PathBuf::new()), says_cow: false }
    }

    fn set(RootDraft { root, says_cow }: &mut RootDraft, word: &Word) -> Option<Result<(), ConfigError>> {
        match (word.key(), word.value(), root.access) {
            ("path", Some(""), _) if root.path.as_os_str().is_empty() => {
                return Some(Err(ConfigError::RootPath { text: String::new() }));
            }
            ("path", Some(path), _) if root.path.as_os_str().is_empty() => root.path = path.into(),
            ("rw", None, RootAccess::Private) if !*says_cow => root.access = RootAccess::Image,
            ("cow", None, RootAccess::Private | RootAccess::PrivateUpTo(_)) => *says_cow = true,
            ("cow-size", Some(size), RootAccess::Private) => match size_in_bytes(size) {
                Ok(most) => root.access = RootAccess::PrivateUpTo(most),
                Err(error) => return Some(Err(error)),
            },
            ("as", Some("initramfs"), _) => root.form = RootForm::Initramfs,
            ("as", Some("disk"), _) => root.form = RootForm::Disk,
            ("keep-ids", None, _) => root.keep_ids = true,
            ("id", Some(id), _) => return Some(id.parse().map(|id| root.id = Some(id))),
            _ => return None,
        }
        Some(Ok(()))
    }

    fn refused(word: &str) -> ConfigError {
        ConfigError::RootWord { word: word.into() }
    }

    fn finish(draft: RootDraft) -> Result<RootConfig, ConfigError> {
        Ok(draft.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> Result<RootConfig, ConfigError> {
        text.parse()
    }

    #[test]
    fn path_may_be_all_there_is() {
        for text in ["rootfs", "path=rootfs", "rootfs,cow"] {
            assert_eq!(root(text), Ok(RootConfig::new("rootfs")), "{text}");
        }
    }

    #[test]
    fn every_word_is_read() {
        assert_eq!(root("a.img,rw").unwrap().access, RootAccess::Image);
        assert_eq!(root("a.img,cow,cow-size=1M").unwrap().access, RootAccess::PrivateUpTo(1 << 20));
        assert_eq!(root("a,,b,rw").unwrap().path, PathBuf::from("a,b"));
        let config = root("path=dir,keep-ids,as=disk").unwrap();
        assert_eq!((config.form, config.keep_ids), (RootForm::Disk, true));
        assert_eq!(root("dir,as=initramfs").unwrap().form, RootForm::Initramfs);
        assert_eq!(root("a.img,id=system").unwrap().id.unwrap().as_str(), "system");
    }

    #[test]
    fn other_words_are_refused_and_named() {
        for word in ["ro", "rw=1", "as=ram", "as", "keep-ids=1", "size=1", ""] {
            assert_eq!(root(&format!("a,{word}")), Err(ConfigError::RootWord { word: word.into() }));
        }
        for text in ["a,rw,cow", "a,cow,rw", "a,rw,cow-size=1M", "a,as=disk,as=disk", "a,cow-size=0"] {
            assert!(root(text).is_err(), "{text}");
        }
        for text in ["", "path=", ",rw"] {
            assert!(matches!(root(text), Err(ConfigError::RootPath { .. })), "{text}");
        }
    }
}
