//! The content of a disk that never changes again, from which other disks go on: that of a read-only file, or
//! of an overlay whose machine has stopped for good.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::open::{FileLock, open};
use super::{DiskBackend, DiskOpenError, Overlay, OverlayError, OverlayLayer, OverlaySize, RawDisk};

/// The content of a disk that stays as it is. Cheap to clone. It keeps the disk's file open, and its lock.
#[derive(Debug, Clone)]
pub struct FrozenDisk {
    pub(super) base: Arc<File>,
    pub(super) capacity: u64,
    /// The writes of former guests, the newest first; `None` if the disk is read-only.
    pub(super) layers: Option<Vec<Arc<FrozenLayer>>>,
}

/// The writes of a guest to its overlay.
#[derive(Debug)]
pub struct FrozenLayer {
    pub(super) file: Arc<File>,
    /// A bit per cluster, set if the file has it.
    pub(super) present: Box<[u64]>,
}

impl FrozenDisk {
    /// Makes a read-only disk of an open file, whose first `capacity` bytes it is.
    pub fn read_only(file: Arc<File>, capacity: u64) -> FrozenDisk {
        Self { base: file, capacity, layers: None }
    }

    /// Opens `path` for reading, below `layers`, the newest first, which are those of a disk of the same
    /// capacity.
    ///
    /// # Errors
    /// It cannot be a disk, or another user writes to it.
    pub fn over(path: &Path, layers: &[Arc<FrozenLayer>]) -> Result<FrozenDisk, DiskOpenError> {
        let (base, capacity) = open(path, FileLock::Shared)?;
        Ok(Self { base: Arc::new(base), capacity, layers: Some(layers.to_vec()) })
    }

    /// Returns the layers, the newest first; `None` for a read-only disk.
    pub fn layers(&self) -> Option<&[Arc<FrozenLayer>]> {
        self.layers.as_deref()
    }

    /// Returns the file at the bottom.
    pub fn base(&self) -> &Arc<File> {
        &self.base
    }

    /// Opens another disk with this content. The writes of its guest go to the layer that `make_layer` makes;
    /// a read-only disk needs none. `size` limits this layer alone.
    ///
    /// # Errors
    /// The layer cannot be made, or cannot be an overlay.
    pub fn open<'a>(
        &self,
        make_layer: impl FnOnce() -> Result<OverlayLayer<'a>, OverlayError>,
        size: OverlaySize,
    ) -> Result<Box<dyn DiskBackend>, OverlayError> {
        let Self { base, capacity, layers } = self;
        Ok(match layers {
            None => Box::new(RawDisk::read_only(base.clone(), *capacity)),
            Some(layers) => {
                Box::new(Overlay::over((base.clone(), *capacity), layers.clone(), make_layer()?, size)?)
            }
        })
    }
}

impl FrozenLayer {
    pub(super) fn has(&self, cluster: u64) -> bool {
        let word = usize::try_from(cluster >> 6).ok().and_then(|word| self.present.get(word));
        word.is_some_and(|word| word >> (cluster & 63) & 1 == 1)
    }
}

/// The largest number of layers below an overlay, which is the number of generations of forks. A read looks a
/// cluster up in each of them, which takes less time than the read itself up to here; and each has an open
/// file.
pub(super) const MAX_LAYERS: usize = 64;
