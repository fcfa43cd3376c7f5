//! The RAM of a snapshot that has only what has changed since its parent, which may have a parent too.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::sections::RamContent;
use crate::config::MemoryConfig;
use crate::memory::FrozenRam;
use crate::snapshot_files::{
    At, MAX_CHAIN, Manifest, ParentFacts, Snapshot, SnapshotFileError, SnapshotId, StateFileError,
};

/// The memory of one snapshot of a chain.
struct Layer {
    path: PathBuf,
    id: SnapshotId,
    file: File,
    content: RamContent,
}

/// The memory of a snapshot with all that lies below it.
#[derive(Debug)]
pub(super) struct ChainRam {
    pub(super) ram: FrozenRam,
    /// The ids of the snapshot and of those below it, the newest first.
    pub(super) ids: Vec<[u8; 16]>,
}

impl ChainRam {
    /// Puts the RAM of the snapshot at `path` together. Its parents are in the directory `parents`, and every
    /// one of them is the one whose hash its child has.
    ///
    /// # Errors
    /// A parent is missing, damaged or another one, or nobody has named the directory.
    pub(super) fn open(
        path: &Path,
        (manifest, memory): (&Manifest, MemoryConfig),
        (file, content): (File, RamContent),
        parents: Option<&Path>,
    ) -> Result<ChainRam, SnapshotFileError> {
        let mut layers = vec![Layer { path: path.to_owned(), id: manifest.id, file, content }];
        let mut next = manifest.parent.clone();
        while let Some(parent) = next {
            if layers.len() >= MAX_CHAIN {
                return Err(SnapshotFileError::ChainTooLong { folder: path.to_owned() });
            }
            let child = layers.last().map_or(path, |layer| &layer.path);
            let (layer, below) = Layer::open(&parent, child, parents, memory)?;
            layers.push(layer);
            next = below;
        }
        let ids = layers.iter().map(|layer| *layer.id.bytes()).collect();
        let mut ram = None;
        for Layer { path, id: _, file, content } in layers.into_iter().rev() {
            let over = content.of_file(memory, file, ram.as_ref());
            ram = Some(over.ok_or_else(|| no_such_ram(&path, memory))?);
        }
        let ram = ram.ok_or_else(|| no_such_ram(path, memory))?;
        Ok(ChainRam { ram, ids })
    }
}

impl Layer {
    fn open(
        parent: &ParentFacts,
        child: &Path,
        parents: Option<&Path>,
        memory: MemoryConfig,
    ) -> Result<(Layer, Option<ParentFacts>), SnapshotFileError> {
        let Snapshot { path, manifest, mut sections, memory: file, .. } = parent.open(child, parents)?;
        let Manifest { id, parent, machine, .. } = manifest;
        if machine.memory_mib != memory.size().mib() {
            return Err(no_such_ram(&path, memory));
        }
        let content = RamContent::take(&mut sections, parent.is_some());
        let content = content.map_err(|error| At(&path).state(error))?;
        Ok((Layer { path, id, file, content }, parent))
    }
}

fn no_such_ram(path: &Path, memory: MemoryConfig) -> SnapshotFileError {
    At(path).state(StateFileError::Ram { ram: memory.bytes() })
}
