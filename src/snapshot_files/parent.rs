//! Snapshots that have only what has changed since another one, their parent.
//!
//! The manifest records the parent's id, the hash of its manifest, and the name of its folder. Nothing but
//! that name comes from the file, and it is only looked up in a directory that the user has named.

use std::ffi::{CString, OsStr};
use std::path::Path;

use super::error::At;
use super::folder::{Folder, name};
use super::manifest::{Manifest, ParentFacts};
use super::read::{self, Snapshot};
use super::{SnapshotFileError, SnapshotId};

impl ParentFacts {
    /// Returns the facts about the snapshot at `path`, over which another is to lie.
    ///
    /// # Errors
    /// There is no snapshot, or its folder has a name that cannot be recorded.
    pub(crate) fn of(path: &Path) -> Result<ParentFacts, SnapshotFileError> {
        let folder = Folder::open(path).map_err(At(path).folder("opened"))?;
        let (Manifest { id, .. }, sha256) = read::read_manifest_with_hash(&folder)?;
        let not_a_name = || SnapshotFileError::Name { path: path.to_owned() };
        let name = path.file_name().and_then(OsStr::to_str).ok_or_else(not_a_name)?.to_owned();
        Ok(ParentFacts { id, name, sha256 })
    }

    /// Returns whether the name is that of an entry of a directory.
    pub(super) fn has_name(&self) -> bool {
        let is_special = matches!(self.name.as_str(), "" | "." | "..");
        !is_special && !self.name.contains(['/', '\0']) && self.name.len() <= 255
    }

    /// Opens the parent of the snapshot at `child`, whose folder is in the directory `parents`.
    ///
    /// # Errors
    /// It is missing or damaged, or another snapshot has its place.
    pub(crate) fn open(&self, child: &Path, parents: Option<&Path>) -> Result<Snapshot, SnapshotFileError> {
        let Self { id, name: recorded, sha256 } = self;
        let (id, child) = (*id, child.to_owned());
        let Some(parents) = parents else {
            return Err(SnapshotFileError::NeedsParent { folder: child, name: recorded.clone(), id });
        };
        let path = parents.join(recorded);
        let open = || {
            let name: CString = name(OsStr::new(recorded))?;
            Folder::open(parents)?.open_folder(&name)
        };
        let folder = match open() {
            Ok(folder) => folder,
            Err(source) => return Err(SnapshotFileError::NoParent { folder: child, path, id, source }),
        };
        let snapshot = read::open(&folder)?;
        let found = snapshot.manifest.id;
        if found != id || snapshot.manifest_hash != *sha256 {
            return Err(SnapshotFileError::OtherParent { folder: child, path, id, found });
        }
        Ok(snapshot)
    }
}

/// Checks that a new snapshot at `path` does not replace one of `ids`.
///
/// # Errors
/// It would.
pub(crate) fn check_not_needed(path: &Path, ids: &[[u8; 16]]) -> Result<(), SnapshotFileError> {
    let there = Folder::open(path).ok().and_then(|folder| read::read_manifest_with_hash(&folder).ok());
    let is_needed = |id: SnapshotId| ids.contains(id.bytes());
    if there.is_some_and(|(manifest, _)| is_needed(manifest.id)) {
        return Err(SnapshotFileError::OwnParent { folder: path.to_owned() });
    }
    Ok(())
}

/// The most snapshots that lie over each other. A machine that goes on from them has an open file of each.
pub(crate) const MAX_CHAIN: usize = 64;
