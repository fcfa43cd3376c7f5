//! The files of disks, `disk-ID`: what the guest has written to an overlay, or a whole disk that was made for
//! the machine. Each is as the file `memory` is: the blocks at their offsets, with holes, and then the id and
//! the hashes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::Path;

use coracle_devices::backend::disk::FileIdentity;
use serde::{Deserialize, Serialize};

use super::error::At;
use super::folder::{Folder, lock_shared};
use super::manifest::shown;
use super::{Hash, MemoryFileError, SnapshotFileError, SnapshotId, ram};
use crate::config::DeviceId;

/// A virtio device in the manifest. Paths are for people, and for whoever takes them as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceFacts {
    pub(crate) id: String,
    pub(crate) kind: String,
    /// The connection to the first machine's host, as an option of the command.
    pub(crate) recorded: Option<String>,
    /// The file of a disk.
    pub(crate) file: Option<FileIdentity>,
    /// The blocks in the snapshot.
    pub(crate) stored: Option<StoredFacts>,
}

/// The file with the blocks of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredFacts {
    /// The size of the disk in bytes.
    pub(crate) capacity: u64,
    /// The length of the file.
    pub(crate) bytes: u64,
    /// The hash of what follows the blocks.
    #[serde(with = "shown")]
    pub(crate) sha256: Hash,
}

/// The reason why the file of a disk is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskFileError {
    /// The file cannot be opened, read or written.
    #[error("{0}")]
    Host(io::Error),
    /// Another program has locked it for writing.
    #[error("another program has locked it for writing; wait until it has ended")]
    Locked,
    /// The disk is too large to be stored.
    #[error("the disk has {capacity} bytes, and at most {MAX_DISK} can be in a snapshot; leave it out")]
    TooLarge {
        /// The size in bytes.
        capacity: u64,
    },
    /// Its content is refused.
    #[error(transparent)]
    Content(#[from] MemoryFileError),
}

impl DeviceFacts {
    /// Returns the name of the file of the disk with this id.
    pub(super) fn file_name(&self) -> CString {
        name_of(&self.id)
    }
}

/// Returns whether a name is that of the file of a disk.
pub(super) fn is_disk(name: &std::ffi::CStr) -> bool {
    let id = name.to_str().ok().and_then(|name| name.strip_prefix(PREFIX));
    id.is_some_and(|id| id.parse::<DeviceId>().is_ok())
}

/// Creates the file of a disk.
pub(super) fn create(
    folder: &Folder,
    path: &Path,
    id: &str,
    capacity: u64,
) -> Result<File, SnapshotFileError> {
    let failed = |source| At(path).disk(id, source);
    if capacity > MAX_DISK {
        return Err(failed(DiskFileError::TooLarge { capacity }));
    }
    folder.create_file(&name_of(id)).map_err(|error| failed(DiskFileError::Host(error)))
}

/// Completes the file of a disk with all of its blocks. It still has to be synced.
pub(super) fn finish(file: &File, id: &SnapshotId, capacity: u64) -> io::Result<StoredFacts> {
    let sha256 = ram::write_end(file, id, capacity)?;
    Ok(StoredFacts { capacity, bytes: ram::file_len(capacity), sha256 })
}

/// Opens the file of a disk, locked against writers, and checks that it is that of the snapshot.
pub(super) fn open(
    folder: &Folder,
    id: &SnapshotId,
    device: &DeviceFacts,
    stored: &StoredFacts,
) -> Result<File, DiskFileError> {
    let &StoredFacts { capacity, bytes: stated, sha256: _ } = stored;
    if capacity > MAX_DISK {
        return Err(DiskFileError::TooLarge { capacity });
    }
    let expected = ram::file_len(capacity);
    let (file, _) = folder.open_file(&device.file_name()).map_err(DiskFileError::Host)?;
    if !lock_shared(&file).map_err(DiskFileError::Host)? {
        return Err(DiskFileError::Locked);
    }
    let len = file.metadata().map_err(DiskFileError::Host)?.len();
    if len != expected || stated != expected {
        return Err(MemoryFileError::Length { len, expected }.into());
    }
    ram::check_end(&file, id, capacity).map_err(DiskFileError::Host)??;
    Ok(file)
}

/// Reads all blocks, and compares them with their hashes.
pub(super) fn check(file: &File, stored: &StoredFacts) -> Result<(), DiskFileError> {
    let StoredFacts { capacity, bytes: _, sha256 } = stored;
    let all = 0..*capacity;
    let checked = ram::check_blocks(file, *capacity, sha256, std::slice::from_ref(&all));
    Ok(checked.map_err(DiskFileError::Host)??)
}

fn name_of(id: &str) -> CString {
    CString::new([PREFIX, id].concat()).unwrap_or_default()
}

/// The start of the names of files of disks.
const PREFIX: &str = "disk-";
/// The largest disk in a snapshot, in bytes: as the largest RAM, with 16 MiB of hashes.
const MAX_DISK: u64 = 1 << 40;
