//! Opens a snapshot that may be anybody's.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::At;
use super::folder::{Folder, lock_shared};
use super::manifest::Manifest;
use super::state::{MAX_STATE, Sections};
use super::{
    DeviceFacts, DiskFileError, Hash, MANIFEST, MEMORY, MemoryFileError, STATE, SnapshotFileError,
    StoredFacts, disks, file_name, ram,
};

/// A snapshot whose files are open and belong together. Its RAM has not been read.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) path: PathBuf,
    pub(crate) manifest: Manifest,
    /// The hash of the file with the manifest.
    pub(crate) manifest_hash: Hash,
    pub(crate) sections: Sections,
    /// The file with the RAM, locked against writers that respect locks.
    pub(crate) memory: File,
    /// The files with the blocks of disks, locked as well, in the order of the devices that have one.
    pub(crate) disks: Vec<File>,
    /// The bytes of the files on the medium, without holes.
    pub(crate) stored_bytes: u64,
}

/// A manifest, and the space that the files take.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) manifest: Manifest,
    /// The bytes of the files on the medium, without holes.
    pub(crate) stored_bytes: u64,
}

impl Snapshot {
    /// Opens the snapshot at `path`. Of the memory, 64 bytes are read.
    ///
    /// # Errors
    /// A file is missing, damaged, of a newer format, or of another snapshot.
    pub(crate) fn open(path: &Path) -> Result<Snapshot, SnapshotFileError> {
        unless_replaced(path, open)
    }
}

impl Summary {
    /// Reads the manifest of the snapshot at `path`.
    ///
    /// # Errors
    /// A file is missing, or the manifest is damaged.
    pub(crate) fn read(path: &Path) -> Result<Summary, SnapshotFileError> {
        unless_replaced(path, |folder| {
            let manifest = read_manifest(folder)?;
            let stored_bytes = stored_bytes(folder, &manifest)?;
            Ok(Summary { manifest, stored_bytes })
        })
    }
}

/// Reads all RAM of the snapshot at `path`, which is in `file`, and compares it with its hashes. Outside of
/// `content`, ranges in order, there has to be none.
///
/// # Errors
/// A block is damaged, or cannot be read.
pub(crate) fn check_memory(
    path: &Path,
    manifest: &Manifest,
    file: &File,
    content: &[Range<u64>],
) -> Result<(), SnapshotFileError> {
    let ram = manifest.machine.memory_mib << 20;
    let checked = ram::check_blocks(file, ram, &manifest.memory.sha256, content);
    checked.map_err(At(path).read(MEMORY))?.map_err(|error| At(path).memory(error))
}

/// Reads all blocks of a disk of the snapshot at `path`, which are in `file`, and compares them with their
/// hashes.
///
/// # Errors
/// A block is damaged, or cannot be read.
pub(crate) fn check_disk(path: &Path, device: &DeviceFacts, file: &File) -> Result<(), SnapshotFileError> {
    let Some(stored) = &device.stored else { return Ok(()) };
    disks::check(file, stored).map_err(|error| At(path).disk(&device.id, error))
}

/// Opens the folder at `path` and uses it. If that fails because another snapshot has taken its place
/// meanwhile, uses that one.
fn unless_replaced<T>(
    path: &Path,
    mut use_folder: impl FnMut(&Folder) -> Result<T, SnapshotFileError>,
) -> Result<T, SnapshotFileError> {
    let mut attempts = ATTEMPTS;
    loop {
        let folder = Folder::open(path).map_err(At(path).folder("opened"))?;
        attempts -= 1;
        match use_folder(&folder) {
            Err(_) if attempts > 0 && !folder.is_at_its_path().unwrap_or(true) => {}
            result => return result,
        }
    }
}

pub(super) fn open(folder: &Folder) -> Result<Snapshot, SnapshotFileError> {
    let path = folder.path();
    let at = At(path);
    let (manifest, manifest_hash) = read_manifest_with_hash(folder)?;
    let ram = manifest.machine.memory_mib << 20;
    let (expected, stated) = (ram::file_len(ram), manifest.memory.bytes);
    if stated != expected {
        return Err(at.memory(MemoryFileError::Stated { ram, expected, stated }));
    }
    let state = read(folder, STATE, MAX_STATE)?;
    let (len, found) = (state.len() as u64, Hash::of(&state));
    if len != manifest.state.bytes || found != manifest.state.sha256 {
        return Err(SnapshotFileError::Differs {
            folder: path.to_owned(),
            file: STATE,
            len,
            found: found.to_string(),
            expected_len: manifest.state.bytes,
            expected: manifest.state.sha256.to_string(),
        });
    }
    let sections = Sections::decode(&state, &manifest.id).map_err(|error| at.state(error))?;
    let (memory, metadata) = folder.open_file(file_name(MEMORY)).map_err(at.read(MEMORY))?;
    // Before its length is looked at, so that a program that respects locks does not change it afterwards.
    if !lock_shared(&memory).map_err(at.read(MEMORY))? {
        return Err(SnapshotFileError::Locked { folder: path.to_owned() });
    }
    let len = memory.metadata().unwrap_or(metadata).len();
    if len != expected {
        return Err(at.memory(MemoryFileError::Length { len, expected }));
    }
    let checked = ram::check_end(&memory, &manifest.id, ram).map_err(at.read(MEMORY))?;
    checked.map_err(|error| at.memory(error))?;
    let with_file = manifest.devices.iter().filter_map(|device| Some((device, device.stored.as_ref()?)));
    let open_disk = |(device, stored): (&DeviceFacts, &StoredFacts)| {
        let opened = disks::open(folder, &manifest.id, device, stored);
        opened.map_err(|error| at.disk(&device.id, error))
    };
    let disks = with_file.map(open_disk).collect::<Result<_, _>>()?;
    let (path, stored_bytes) = (path.to_owned(), stored_bytes(folder, &manifest)?);
    Ok(Snapshot { path, manifest, manifest_hash, sections, memory, disks, stored_bytes })
}

fn stored_bytes(folder: &Folder, manifest: &Manifest) -> Result<u64, SnapshotFileError> {
    let mut bytes = 0_u64;
    for device in manifest.devices.iter().filter(|device| device.stored.is_some()) {
        let opened = folder.open_file(&device.file_name());
        let (_, metadata) =
            opened.map_err(|error| At(folder.path()).disk(&device.id, DiskFileError::Host(error)))?;
        bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
    }
    for file in [MANIFEST, STATE, MEMORY] {
        let (_, metadata) = folder.open_file(file_name(file)).map_err(At(folder.path()).read(file))?;
        bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
    }
    Ok(bytes)
}

fn read_manifest(folder: &Folder) -> Result<Manifest, SnapshotFileError> {
    read_manifest_with_hash(folder).map(|(manifest, _)| manifest)
}

/// Reads the manifest, and returns it with the hash of its file.
pub(super) fn read_manifest_with_hash(folder: &Folder) -> Result<(Manifest, Hash), SnapshotFileError> {
    let file = read(folder, MANIFEST, Manifest::MAX_BYTES)?;
    let manifest = Manifest::decode(&file).map_err(|error| At(folder.path()).manifest(error))?;
    Ok((manifest, Hash::of(&file)))
}

/// Reads a file of at most `most` bytes.
fn read(folder: &Folder, file: &'static str, most: u64) -> Result<Vec<u8>, SnapshotFileError> {
    let at = At(folder.path());
    let (open, metadata) = folder.open_file(file_name(file)).map_err(at.read(file))?;
    let too_long = |len| SnapshotFileError::TooLong { folder: folder.path().to_owned(), file, len, most };
    if metadata.len() > most {
        return Err(too_long(metadata.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    let all: io::Result<usize> = open.take(most.saturating_add(1)).read_to_end(&mut bytes);
    all.map_err(at.read(file))?;
    if bytes.len() as u64 > most { Err(too_long(bytes.len() as u64)) } else { Ok(bytes) }
}

/// How often a folder may be replaced while it is opened.
const ATTEMPTS: usize = 5;
