//! The errors of a snapshot's files. Each message begins with the folder and the file.

use std::io;
use std::path::{Path, PathBuf};

use super::parent::MAX_CHAIN;
use super::{DiskFileError, ManifestError, MemoryFileError, SnapshotId, StateFileError};

/// The reason why a snapshot was not written, or its files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFileError {
    /// The path does not name a folder.
    #[error(
        "snapshot {}: this path does not end with the name of a folder; write one as in snapshots/first",
        path.display()
    )]
    Name {
        /// The given path.
        path: PathBuf,
    },
    /// Something else is at the path of a new snapshot.
    #[error(
        "snapshot {}: there is something at this path that is not a snapshot ({found}); remove it, or use another path",
        folder.display()
    )]
    Occupied {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The thing that is there.
        found: String,
    },
    /// A folder cannot be made, opened, renamed or synced.
    #[error("snapshot {}: the folder cannot be {step}: {source}{}", folder.display(), advice_on(step, r#source))]
    Folder {
        /// The path of the folder.
        folder: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The file system cannot exchange two folders.
    #[error(
        "snapshot {}: its file system cannot replace a folder in one step: {source}; remove the old snapshot first, or \
         use another path",
        folder.display()
    )]
    Exchange {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// A file cannot be written. Nothing is left of the new snapshot, and an old one is as it was.
    #[error("snapshot {}: {file} cannot be written: {source}{}", folder.display(), advice(r#source))]
    Write {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The name of the file.
        file: &'static str,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// A file is missing.
    #[error("snapshot {}: it has no {file}; it was copied in part, or this is not a snapshot", folder.display())]
    Missing {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The name of the file.
        file: &'static str,
    },
    /// A file cannot be opened or read.
    #[error("snapshot {}: {file} cannot be read: {source}", folder.display())]
    Read {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The name of the file.
        file: &'static str,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// A file is longer than any of its kind.
    #[error(
        "snapshot {}: {file} has {len} bytes, and at most {most} are possible; it is another file, or damaged",
        folder.display()
    )]
    TooLong {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The name of the file.
        file: &'static str,
        /// The length of the file in bytes.
        len: u64,
        /// The largest length in bytes.
        most: u64,
    },
    /// A file is not the one whose length and hash the manifest has.
    #[error(
        "snapshot {}: {file} has {len} bytes with the hash {found}, and the manifest says {expected_len} with \
         {expected}; it is damaged, or belongs to another snapshot",
        folder.display()
    )]
    Differs {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The name of the file.
        file: &'static str,
        /// The length of the file in bytes.
        len: u64,
        /// The SHA-256 of the file.
        found: String,
        /// The length in the manifest.
        expected_len: u64,
        /// The SHA-256 in the manifest.
        expected: String,
    },
    /// Another program has locked the memory for writing.
    #[error("snapshot {}: another program has locked memory for writing; wait until it has ended", folder.display())]
    Locked {
        /// The path of the snapshot.
        folder: PathBuf,
    },
    /// The snapshot has only the memory that changed, and nobody has named the directory of the other one.
    #[error(
        "snapshot {}: it has only what has changed since the snapshot {name} ({id}); name the directory that has the \
         folder {name} (Restore::parents_in), or merge the two",
        folder.display()
    )]
    NeedsParent {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The name of the folder of the parent.
        name: String,
        /// The id of the parent.
        id: SnapshotId,
    },
    /// The snapshot that has the rest of the memory is not there.
    #[error(
        "snapshot {}: its parent, the snapshot {id}, should be at {}, which cannot be opened: {source}; restore that \
         folder, or name the directory that has it",
        folder.display(),
        path.display()
    )]
    NoParent {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The path at which the parent was looked for.
        path: PathBuf,
        /// The id of the parent.
        id: SnapshotId,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// There is another snapshot in place of the one that has the rest of the memory.
    #[error(
        "snapshot {}: its parent is the snapshot {id}, and at {} there is {}; restore the first one, or name the \
         directory that has it",
        folder.display(),
        path.display(),
        if found == id { "one of this id that was edited".to_owned() } else { format!("the snapshot {found}") }
    )]
    OtherParent {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The path at which the parent was looked for.
        path: PathBuf,
        /// The id of the parent.
        id: SnapshotId,
        /// The id of the snapshot that is there.
        found: SnapshotId,
    },
    /// The snapshot would replace one that it needs.
    #[error(
        "snapshot {}: the snapshot there has memory that the new one needs; use another path",
        folder.display()
    )]
    OwnParent {
        /// The path of the snapshot.
        folder: PathBuf,
    },
    /// Too many snapshots lie over each other.
    #[error(
        "snapshot {}: more than {MAX_CHAIN} snapshots lie over each other; merge them (snapshot::merge), or take a \
         snapshot with all memory",
        folder.display()
    )]
    ChainTooLong {
        /// The path of the snapshot.
        folder: PathBuf,
    },
    /// The manifest is refused.
    #[error("snapshot {}: manifest.json: {source}", folder.display())]
    Manifest {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The reason.
        r#source: ManifestError,
    },
    /// The state is refused.
    #[error("snapshot {}: state: {source}", folder.display())]
    State {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The reason.
        r#source: StateFileError,
    },
    /// The file of a disk cannot be written, or is refused.
    #[error("snapshot {}: disk-{id}: {source}", folder.display())]
    Disk {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The id of the disk.
        id: String,
        /// The reason.
        r#source: DiskFileError,
    },
    /// The memory is refused.
    #[error("snapshot {}: memory: {source}", folder.display())]
    Memory {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The reason.
        r#source: MemoryFileError,
    },
}

/// Makes the errors of one snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a>(pub(crate) &'a Path);

impl At<'_> {
    pub(crate) fn folder(self, step: &'static str) -> impl FnOnce(io::Error) -> SnapshotFileError {
        let folder = self.0.to_owned();
        move |source| SnapshotFileError::Folder { folder, step, source }
    }

    pub(crate) fn write(self, file: &'static str) -> impl FnOnce(io::Error) -> SnapshotFileError {
        let folder = self.0.to_owned();
        move |source| SnapshotFileError::Write { folder, file, source }
    }

    pub(crate) fn read(self, file: &'static str) -> impl FnOnce(io::Error) -> SnapshotFileError {
        let folder = self.0.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => SnapshotFileError::Missing { folder, file },
            _ => SnapshotFileError::Read { folder, file, source },
        }
    }

    pub(crate) fn manifest(self, source: ManifestError) -> SnapshotFileError {
        SnapshotFileError::Manifest { folder: self.0.to_owned(), source }
    }

    pub(crate) fn state(self, source: StateFileError) -> SnapshotFileError {
        SnapshotFileError::State { folder: self.0.to_owned(), source }
    }

    pub(crate) fn disk(self, id: &str, source: DiskFileError) -> SnapshotFileError {
        SnapshotFileError::Disk { folder: self.0.to_owned(), id: id.to_owned(), source }
    }

    pub(crate) fn memory(self, source: MemoryFileError) -> SnapshotFileError {
        SnapshotFileError::Memory { folder: self.0.to_owned(), source }
    }
}

/// Returns what helps if a folder cannot be opened, or written, after a semicolon.
fn advice_on(step: &str, error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound if step == OPENED => "; give the path of a snapshot that exists",
        io::ErrorKind::PermissionDenied if step == OPENED => "; use a snapshot of this user",
        _ => advice(error),
    }
}

/// The step of reading a snapshot.
const OPENED: &str = "opened";

/// Returns what helps against an error of a write, after a semicolon.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; free space there, or use another file system",
        io::ErrorKind::QuotaExceeded => "; free space of this user there, or use another file system",
        io::ErrorKind::FileTooLarge => {
            "; raise the limit of this process (ulimit -f), or use a file system with larger files"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; use a folder that this user may write to"
        }
        io::ErrorKind::NotFound => "; make the folder that it is to be in first",
        _ => "",
    }
}
