//! Writes a snapshot: whole, or not at all.
//!
//! ```text
//! DIR/.coracle-snapshot-ID/   made, and claimed by a lock
//!     memory, disk-ID, state  written
//!     manifest.json           written; then all files are synced, and the folder
//! DIR/NAME                    the new folder, renamed, or exchanged with the old one; then DIR is synced
//! ```
//!
//! A process that is killed leaves either the old snapshot or the new one at the path, and perhaps a folder
//! with a temporary name, which the next snapshot in DIR removes.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use coracle_arch::x86_64::layout::VIRTIO_IRQS;

use super::error::At;
use super::folder::{Folder, name};
use super::manifest::{FileFacts, HostFacts, MachineFacts, Manifest, ParentFacts};
use super::state::{self, MAX_STATE, Section};
use super::{
    DeviceFacts, DiskFileError, FORMAT, Hash, MANIFEST, MEMORY, STATE, SnapshotFileError, SnapshotId, disks,
    file_name, ram,
};

/// A device of a snapshot that is being written.
#[derive(Debug)]
pub(crate) struct DraftDevice {
    /// Its facts, apart from those about its file.
    pub(crate) facts: DeviceFacts,
    /// The file with its blocks, and the size of the disk in bytes.
    pub(crate) blocks: Option<(File, u64)>,
}

/// A snapshot that is being written. Dropping it removes what there is of it.
#[derive(Debug)]
pub(crate) struct Draft {
    id: SnapshotId,
    path: PathBuf,
    /// The folder in which the snapshot is to be.
    parent: Folder,
    /// The name of the snapshot there.
    name: CString,
    /// The folder with the temporary name.
    folder: Folder,
    temporary: CString,
    memory: File,
    /// The snapshot that has the memory that did not change.
    over: Option<ParentFacts>,
}

impl Draft {
    /// Starts a snapshot at `path`: a path that is free, an empty folder, or an older snapshot, which this
    /// one is to replace. Removes what earlier processes that were killed have left beside it.
    ///
    /// # Errors
    /// There is something else at the path, or the host makes no files there.
    pub(crate) fn begin(path: &Path) -> Result<Draft, SnapshotFileError> {
        let at = At(path);
        let not_a_name = || SnapshotFileError::Name { path: path.to_owned() };
        let name = name(path.file_name().ok_or_else(not_a_name)?).map_err(|_| not_a_name())?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = Folder::open(parent).map_err(at.folder("made"))?;
        check_target(at, &parent, &name)?;
        remove_abandoned(&parent);
        let (id, temporary, folder) = make_claimed(&parent).map_err(at.folder("made"))?;
        let memory = match folder.create_file(file_name(MEMORY)) {
            Ok(memory) => memory,
            Err(error) => {
                remove(&parent, &temporary, &folder);
                return Err(at.write(MEMORY)(error));
            }
        };
        Ok(Draft { id, path: path.to_owned(), parent, name, folder, temporary, memory, over: None })
    }

    /// Lets the snapshot have only the memory that has changed since another one, its parent.
    pub(crate) fn lie_over(&mut self, parent: ParentFacts) {
        self.over = Some(parent);
    }

    /// Returns the identity of the snapshot.
    pub(crate) fn id(&self) -> SnapshotId {
        self.id
    }

    /// Returns the path of the snapshot.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file for the RAM, as long as `bytes` of RAM and all holes.
    pub(crate) fn memory(&self, bytes: u64) -> Result<&File, SnapshotFileError> {
        self.memory.set_len(bytes).map_err(At(&self.path).write(MEMORY))?;
        Ok(&self.memory)
    }

    /// Creates the file for the blocks of the disk with this id and size.
    pub(crate) fn disk(&self, id: &str, capacity: u64) -> Result<File, SnapshotFileError> {
        disks::create(&self.folder, &self.path, id, capacity)
    }

    /// Writes everything but the RAM and the blocks of disks, and gives the snapshot its name.
    ///
    /// # Errors
    /// The host cannot write the files. Then the path is as it was.
    pub(crate) fn finish(
        self,
        host: HostFacts,
        machine: MachineFacts,
        devices: Vec<DraftDevice>,
        sections: &[Section],
    ) -> Result<(), SnapshotFileError> {
        let at = At(&self.path);
        // All files are synced at the end, one after the other: the first of them waits for the file system's
        // journal, which then has the others, too.
        let mut disks = Vec::new();
        let mut complete = |DraftDevice { facts, blocks }| {
            let stored = blocks.map(|(file, capacity)| {
                let stored = disks::finish(&file, &self.id, capacity);
                disks.push((facts.id.clone(), file));
                stored
            });
            match stored.transpose() {
                Ok(stored) => Ok(DeviceFacts { stored, ..facts }),
                Err(error) => Err(at.disk(&facts.id, DiskFileError::Host(error))),
            }
        };
        let devices = devices.into_iter().map(&mut complete).collect::<Result<_, _>>()?;
        let bytes = machine.memory_mib << 20;
        let hash = ram::write_end(&self.memory, &self.id, bytes).map_err(at.write(MEMORY))?;
        let memory = FileFacts { bytes: ram::file_len(bytes), sha256: hash };
        let state = state::encode(&self.id, sections);
        let (len, most) = (state.len() as u64, MAX_STATE);
        if len > most {
            return Err(SnapshotFileError::TooLong { folder: self.path.clone(), file: STATE, len, most });
        }
        let state_file = self.write(STATE, &state)?;
        let manifest = Manifest {
            format: FORMAT,
            id: self.id,
            made_by: concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            host,
            machine,
            parent: self.over.clone(),
            devices,
            state: FileFacts { bytes: len, sha256: Hash::of(&state) },
            memory,
        };
        let manifest_file = self.write(MANIFEST, &manifest.encode().map_err(|error| at.manifest(error))?)?;
        for (file, name) in [(&self.memory, MEMORY), (&state_file, STATE), (&manifest_file, MANIFEST)] {
            file.sync_all().map_err(at.write(name))?;
        }
        for (id, file) in &disks {
            file.sync_all().map_err(|error| at.disk(id, DiskFileError::Host(error)))?;
        }
        self.folder.sync().map_err(at.folder("synced"))?;
        self.give_name()?;
        self.parent.sync().map_err(at.folder("synced"))
        // Dropping the draft removes what now has the temporary name: the old snapshot, if there was one.
    }

    /// Writes a whole file, which still has to be synced.
    fn write(&self, file: &'static str, bytes: &[u8]) -> Result<File, SnapshotFileError> {
        let write = || {
            let mut new = self.folder.create_file(file_name(file))?;
            new.write_all(bytes)?;
            Ok(new)
        };
        write().map_err(At(&self.path).write(file))
    }

    fn give_name(&self) -> Result<(), SnapshotFileError> {
        let Self { id: _, path, parent, name, folder: _, temporary, memory: _, over: _ } = self;
        match parent.rename(temporary, name, 0) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty || is_taken(&error) => {
                check_target(At(path), parent, name)?;
                let exchanged = parent.rename(temporary, name, libc::RENAME_EXCHANGE);
                exchanged.map_err(|source| SnapshotFileError::Exchange { folder: path.clone(), source })
            }
            result => result.map_err(At(path).folder("renamed")),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Whatever has the temporary name is not the snapshot: the draft before the rename, the old snapshot
        // after an exchange, and otherwise nothing.
        if let Ok(folder) = self.parent.open_folder(&self.temporary) {
            remove(&self.parent, &self.temporary, &folder);
        }
    }
}

/// Checks that a snapshot may take this place: it is free, an empty folder, or an older snapshot.
fn check_target(at: At<'_>, parent: &Folder, name: &CStr) -> Result<(), SnapshotFileError> {
    let occupied =
        |found: &str| SnapshotFileError::Occupied { folder: at.0.to_owned(), found: found.to_owned() };
    let folder = match parent.open_folder(name) {
        Ok(folder) => folder,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(()),
                Some(libc::ENOTDIR) => Err(occupied("a file or a link")),
                Some(libc::ELOOP) => Err(occupied("a link")),
                _ => Err(at.folder("opened")(error)),
            };
        }
    };
    let names = folder.names(FILES.len() + MAX_DISKS + 1).map_err(at.folder("listed"))?;
    let foreign = names.iter().find(|name| !is_of_snapshot(name));
    match foreign {
        None => Ok(()),
        Some(name) => Err(occupied(&format!("it has {}", name.to_string_lossy().escape_debug()))),
    }
}

/// Makes a folder with a temporary name, and claims it so that nobody takes it for an abandoned one.
fn make_claimed(parent: &Folder) -> io::Result<(SnapshotId, CString, Folder)> {
    // Another process may take it for abandoned before it is claimed, but hardly twice.
    let mut result = Err(io::ErrorKind::Interrupted.into());
    for _ in 0..ATTEMPTS {
        let id = SnapshotId::new()?;
        let temporary = CString::new(format!("{TEMPORARY}{id}"))?;
        parent.make_folder(&temporary)?;
        let folder = parent.open_folder(&temporary);
        let is_claimed = folder.as_ref().is_ok_and(|folder| {
            // Where there are no locks, nobody removes abandoned folders.
            folder.try_claim().unwrap_or(true) && folder.is_at_its_path().unwrap_or(false)
        });
        result = folder.map(|folder| (id, temporary.clone(), folder));
        if is_claimed {
            return result;
        }
        let _ = parent.remove_folder(&temporary);
    }
    result.and(Err(io::ErrorKind::Interrupted.into()))
}

/// Removes the folders with temporary names that belong to this user and to no process.
fn remove_abandoned(parent: &Folder) {
    let Ok(names) = parent.names(MAX_LISTED) else { return };
    for name in names.iter().filter(|name| name.to_bytes().starts_with(TEMPORARY.as_bytes())) {
        let Ok(folder) = parent.open_folder(name) else { continue };
        // SAFETY: the call cannot fail and touches no memory.
        let is_own = folder.owner().is_ok_and(|owner| owner == unsafe { libc::geteuid() });
        if is_own && folder.try_claim().unwrap_or(false) {
            remove(parent, name, &folder);
        }
    }
}

/// Removes the files of a snapshot, and then the folder. What cannot be removed is left: nobody takes it for
/// a snapshot, because its manifest goes first.
fn remove(parent: &Folder, name: &CStr, folder: &Folder) {
    for file in FILES {
        let _ = folder.remove_file(file_name(file));
    }
    for disk in folder.names(MAX_LISTED).unwrap_or_default().iter().filter(|name| disks::is_disk(name)) {
        let _ = folder.remove_file(disk);
    }
    let _ = parent.remove_folder(name);
}

/// Returns whether a file with this name can be one of a snapshot.
fn is_of_snapshot(name: &CStr) -> bool {
    disks::is_disk(name) || FILES.iter().any(|file| file_name(file) == name)
}

/// Whether a rename found a folder that is not empty. Some file systems report it so (rename(2)).
fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

/// In the order in which they are removed.
const FILES: [&str; 3] = [MANIFEST, STATE, MEMORY];
/// The start of the names of folders that are not snapshots yet, or no longer.
const TEMPORARY: &str = ".coracle-snapshot-";
/// The number of disks that a machine can have: that of its interrupts for virtio devices.
const MAX_DISKS: usize = VIRTIO_IRQS.len();
const ATTEMPTS: usize = 3;
/// How many entries of a folder are searched for abandoned ones.
const MAX_LISTED: usize = 10_000;
