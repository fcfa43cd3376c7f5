//! Whether a file is still the one that it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// The file behind a disk at one moment. Two that are equal are the same file with the same content, as far
/// as its file system records changes: some record times to a few milliseconds only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// The number of the device that the file is on.
    pub device: u64,
    /// The number of the inode.
    pub inode: u64,
    /// The length in bytes.
    pub bytes: u64,
    /// The time of the last write to its content, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// The time of its last change of any kind, in nanoseconds since 1970. Nobody can set it.
    pub changed_ns: i64,
}

impl FileIdentity {
    /// Returns the present identity of an open file; `None` for a block device, whose content changes
    /// without a trace.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn of(file: &File) -> io::Result<Option<FileIdentity>> {
        let metadata = file.metadata()?;
        let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Ok(metadata.is_file().then(|| FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }))
    }

    /// Returns whether both are the same file, perhaps with another content.
    pub fn is_same_file(&self, other: &FileIdentity) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}
