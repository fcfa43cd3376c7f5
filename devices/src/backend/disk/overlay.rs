//! A disk whose file is only read: writes of the guest go to a private overlay, which vanishes with the
//! machine.
//!
//! The overlay is a sparse file without a name. It has the blocks at the same offsets as the disk, and a bit
//! for each cluster decides which of the two has its content. A cluster is copied when the guest writes a
//! part of it.
//!
//! A machine that goes on from another one has an overlay over the overlay of that one, which does not change
//! any more. If the other one runs on, it does so with a new overlay of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::frozen::{FrozenLayer, MAX_LAYERS};
use super::open::{DiskOpenError, FileLock, open};
use super::raw::total;
use super::vectored::{read_all, write_all, write_zero_bytes};
use super::{DiskBackend, FileIdentity, FrozenDisk, end_inside, out_of_range};
use crate::lock;
use crate::memory::Span;

/// A disk with a private overlay.
#[derive(Debug)]
pub struct Overlay {
    /// Replaced while no request is in flight.
    stack: RwLock<Arc<Stack>>,
}

/// The files of a disk with an overlay.
#[derive(Debug)]
struct Stack {
    base: Arc<File>,
    /// The overlays of former machines between the two, the newest first.
    below: Vec<Arc<FrozenLayer>>,
    layer: Arc<File>,
    capacity: u64,
    /// The binary logarithm of a cluster's size in bytes.
    cluster_shift: u32,
    /// A bit per cluster, set if the overlay has it.
    present: Box<[AtomicU64]>,
    /// Held while clusters are copied, so that none is copied twice.
    room: Mutex<Room>,
}

/// The space that the overlay may still take.
#[derive(Debug)]
struct Room {
    /// The number of clusters.
    left: u64,
    /// The number of clusters before the free space of the file system is checked again.
    until_look: u64,
}

/// The file for the writes of a guest.
#[derive(Debug)]
pub struct OverlayLayer<'a> {
    /// An empty file without a name.
    pub file: File,
    /// The directory that it was created in, for errors.
    pub folder: &'a Path,
}

/// The largest size of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlaySize {
    /// The size of the disk. The last 5 % of the overlay's file system stay free.
    Unlimited,
    /// This many bytes, rounded up to clusters. The last 5 % of the file system stay free too.
    Bytes(u64),
}

/// The reason why a disk has no overlay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// The disk below cannot be opened.
    #[error(transparent)]
    Base(#[from] DiskOpenError),
    /// The overlay's file cannot be made.
    #[error("its overlay cannot be made in {}: {source}", folder.display())]
    Layer {
        /// The directory in which it was to be.
        folder: PathBuf,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The directory is in memory, and no limit was given for the overlay.
    #[error(
        "its overlay would be in {}, which is in memory, and needs a limit there: give cow-size=",
        folder.display()
    )]
    InMemory {
        /// The directory in which it was to be.
        folder: PathBuf,
    },
}

/// The error of a write that would use the reserved part of the host's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the overlay does not take the last {RESERVE} % of its file system")]
struct ReserveReached;

impl Overlay {
    /// Opens `path` for reading. Writes of the guest go to `layer`.
    ///
    /// # Errors
    /// The file cannot be a disk, or `layer` cannot be its overlay.
    pub fn open(path: &Path, layer: OverlayLayer<'_>, size: OverlaySize) -> Result<Self, OverlayError> {
        let (base, capacity) = open(path, FileLock::Shared)?;
        Self::over((Arc::new(base), capacity), Vec::new(), layer, size)
    }

    /// Makes an overlay over `base` with its capacity, and the overlays on it.
    ///
    /// # Errors
    /// `layer` cannot be an overlay.
    pub(super) fn over(
        base: (Arc<File>, u64),
        below: Vec<Arc<FrozenLayer>>,
        layer: OverlayLayer<'_>,
        size: OverlaySize,
    ) -> Result<Self, OverlayError> {
        let stack = Stack::new(base, below, layer, size)?;
        Ok(Self { stack: RwLock::new(Arc::new(stack)) })
    }

    fn stack(&self) -> Arc<Stack> {
        self.stack.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Stack {
    fn new(
        (base, capacity): (Arc<File>, u64),
        below: Vec<Arc<FrozenLayer>>,
        layer: OverlayLayer<'_>,
        size: OverlaySize,
    ) -> Result<Self, OverlayError> {
        let OverlayLayer { file: layer, folder } = layer;
        let failed = |source| OverlayError::Layer { folder: folder.into(), source };
        if size == OverlaySize::Unlimited && is_in_memory(&layer).map_err(failed)? {
            return Err(OverlayError::InMemory { folder: folder.into() });
        }
        layer.set_len(capacity).map_err(failed)?;
        let cluster_shift = cluster_shift(capacity);
        let clusters = capacity.div_ceil(1 << cluster_shift);
        let words = usize::try_from(clusters.div_ceil(64)).unwrap_or_default();
        let left = match size {
            OverlaySize::Unlimited => clusters,
            OverlaySize::Bytes(bytes) => bytes.div_ceil(1 << cluster_shift),
        };
        let room = Room { left, until_look: 0 };
        let present = std::iter::repeat_with(AtomicU64::default).take(words).collect();
        let (layer, room) = (Arc::new(layer), Mutex::new(room));
        Ok(Self { base, below, layer, capacity, cluster_shift, present, room })
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<u64> {
        end_inside(offset, len, self.capacity).ok_or_else(out_of_range)
    }

    fn cluster_of(&self, offset: u64) -> u64 {
        offset >> self.cluster_shift
    }

    /// Returns the first byte of a cluster. Past the last cluster, it is the end of the disk.
    fn start_of(&self, cluster: u64) -> u64 {
        cluster.checked_shl(self.cluster_shift).unwrap_or(u64::MAX).min(self.capacity)
    }

    fn has(&self, cluster: u64) -> bool {
        let word = usize::try_from(cluster >> 6).ok().and_then(|word| self.present.get(word));
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (cluster & 63) & 1 == 1)
    }

    fn mark(&self, cluster: u64) {
        if let Some(word) = usize::try_from(cluster >> 6).ok().and_then(|word| self.present.get(word)) {
            word.fetch_or(1 << (cluster & 63), Ordering::AcqRel);
        }
    }

    /// Returns the file below the overlay that has a cluster.
    fn file_below(&self, cluster: u64) -> &Arc<File> {
        let layer = self.below.iter().find(|layer| layer.has(cluster));
        layer.map_or(&self.base, |layer| &layer.file)
    }

    fn file_of(&self, cluster: u64) -> &Arc<File> {
        if self.has(cluster) { &self.layer } else { self.file_below(cluster) }
    }

    /// Returns the file that has the byte at `offset`, and the offset where another file begins or the range
    /// ends.
    fn run_at(&self, offset: u64, end: u64) -> (BorrowedFd<'_>, u64) {
        let first = self.cluster_of(offset);
        let file = self.file_of(first);
        let last = self.cluster_of(end.saturating_sub(1));
        let next = (first..=last).find(|cluster| !Arc::ptr_eq(self.file_of(*cluster), file));
        (file.as_fd(), next.map_or(end, |cluster| self.start_of(cluster)))
    }

    /// Adds all clusters of a range to the overlay, so that it can be written. The parts of the first and the
    /// last cluster that lie outside the range are copied.
    fn prepare(&self, offset: u64, end: u64) -> io::Result<()> {
        let clusters = self.cluster_of(offset)..=self.cluster_of(end.saturating_sub(1));
        if offset == end || clusters.clone().all(|cluster| self.has(cluster)) {
            return Ok(());
        }
        let mut room = lock(&self.room);
        let missing: u64 = clusters.clone().map(|cluster| u64::from(!self.has(cluster))).sum();
        let left =
            room.left.checked_sub(missing).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        let until_look = self.look_at_file_system(room.until_look, missing)?;
        for cluster in clusters {
            if self.has(cluster) {
                continue;
            }
            let (start, next) = (self.start_of(cluster), self.start_of(cluster.saturating_add(1)));
            self.copy(start, offset.min(next))?;
            self.copy(end.max(start), next)?;
        }
        *room = Room { left, until_look };
        Ok(())
    }

    /// Takes `missing` clusters from those that may be written before the file system is checked again, and
    /// checks it if they are not enough.
    fn look_at_file_system(&self, until_look: u64, missing: u64) -> io::Result<u64> {
        if let Some(left) = until_look.checked_sub(missing) {
            return Ok(left);
        }
        let bytes = missing.checked_shl(self.cluster_shift).unwrap_or(u64::MAX);
        let room = room_before_reserve(&self.layer)?;
        if room < bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, ReserveReached));
        }
        Ok(room.min(BYTES_PER_LOOK).saturating_sub(bytes) >> self.cluster_shift)
    }

    /// Copies a part of a cluster from below.
    fn copy(&self, start: u64, end: u64) -> io::Result<()> {
        let file = self.file_below(self.cluster_of(start));
        let mut bytes = [0; 4096];
        let mut at = start;
        while at < end {
            let count = end.saturating_sub(at).min(bytes.len() as u64);
            let piece = bytes.get_mut(..count as usize).unwrap_or_default();
            file.read_exact_at(piece, at)?;
            self.layer.write_all_at(piece, at)?;
            at = at.saturating_add(count);
        }
        Ok(())
    }

    /// Marks a range as part of the overlay, once its content is there.
    fn keep(&self, offset: u64, end: u64) {
        if offset < end {
            (self.cluster_of(offset)..=self.cluster_of(end.saturating_sub(1)))
                .for_each(|cluster| self.mark(cluster));
        }
    }

    /// Frees the overlay's storage of a range, which reads as zeroes from then on.
    fn punch(&self, offset: u64, end: u64) -> io::Result<()> {
        let at = libc::off_t::try_from(offset).map_err(|_| out_of_range())?;
        let len = libc::off_t::try_from(end.saturating_sub(offset)).map_err(|_| out_of_range())?;
        if len == 0 {
            return Ok(());
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call takes numbers and an open descriptor.
        let result = unsafe { libc::fallocate(self.layer.as_raw_fd(), mode, at, len) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        let end = self.check(offset, total(spans))?;
        let (file, run_end) = self.run_at(offset, end);
        if run_end >= end {
            return read_all(file, offset, spans);
        }
        let mut at = offset;
        for span in spans {
            let mut rest = *span;
            while rest.len() > 0 {
                let span_end = at.saturating_add(rest.len().into());
                let (file, run_end) = self.run_at(at, span_end);
                let count = run_end.saturating_sub(at) as u32;
                read_all(file, at, &[rest.up_to(count)])?;
                at = run_end;
                rest = rest.from(count).ok_or_else(out_of_range)?;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        let end = self.check(offset, total(spans))?;
        self.prepare(offset, end)?;
        write_all(self.layer.as_fd(), offset, spans)?;
        self.keep(offset, end);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // Only clusters in the overlay take space. They still count towards the limit afterwards.
        let end = self.check(offset, len)?;
        let is_ours = offset < end
            && (self.cluster_of(offset)..=self.cluster_of(end.saturating_sub(1)))
                .all(|cluster| self.has(cluster));
        if is_ours { self.punch(offset, end).or(Ok(())) } else { Ok(()) }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<u64> {
        let end = self.check(offset, len)?;
        self.prepare(offset, end)?;
        let done = self
            .punch(offset, end)
            .map_or_else(|_| write_zero_bytes(&self.layer, offset, len), |()| Ok(len))?;
        self.keep(offset, offset.saturating_add(done));
        Ok(done)
    }

    fn freeze(&self) -> FrozenDisk {
        let Self { base, below, layer, capacity, cluster_shift: _, present, room: _ } = self;
        let present: Box<[u64]> = present.iter().map(|word| word.load(Ordering::Acquire)).collect();
        // A layer without a cluster would only be looked at in vain.
        let has_any = present.iter().any(|word| *word != 0);
        let newest = has_any.then(|| Arc::new(FrozenLayer { file: layer.clone(), present }));
        let layers = newest.into_iter().chain(below.iter().cloned()).collect();
        FrozenDisk { base: base.clone(), capacity: *capacity, layers: Some(layers) }
    }
}

impl DiskBackend for Overlay {
    fn capacity(&self) -> u64 {
        self.stack().capacity
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.stack().read(offset, spans)
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        self.stack().write(offset, spans)
    }

    /// Nothing has to be durable: the overlay vanishes with the machine.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.stack().discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<u64> {
        self.stack().write_zeroes(offset, len)
    }

    fn admit_write(&self, offset: u64, len: u64) -> io::Result<()> {
        self.stack().check(offset, len).map(drop)
    }

    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        FileIdentity::of(&self.stack().base)
    }

    fn can_be_continued(&self) -> bool {
        self.stack().below.len() < MAX_LAYERS
    }

    fn freeze(&self) -> Option<FrozenDisk> {
        self.can_be_continued().then(|| self.stack().freeze())
    }

    fn has_layer(&self) -> bool {
        true
    }

    fn branch(&self, layer: OverlayLayer<'_>, size: OverlaySize) -> Result<Option<FrozenDisk>, OverlayError> {
        let Some(frozen) = self.freeze() else { return Ok(None) };
        let before = self.stack();
        let below = frozen.layers.clone().unwrap_or_default();
        if below.len() > before.below.len() {
            let stack = Stack::new((before.base.clone(), before.capacity), below, layer, size)?;
            *self.stack.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(stack);
        }
        Ok(Some(frozen))
    }
}

/// Returns whether the blocks of a file are pages of memory.
fn is_in_memory(file: &File) -> io::Result<bool> {
    // SAFETY: all fields are numbers, for which zero is a valid value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has space for the answer.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type == libc::TMPFS_MAGIC || stat.f_type == RAMFS_MAGIC)
}

/// Returns the number of bytes that a file may grow by before its file system is down to the [`RESERVE`].
fn room_before_reserve(file: &File) -> io::Result<u64> {
    // SAFETY: all fields are numbers, for which zero is a valid value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has space for the answer.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if stat.f_blocks == 0 {
        // The file system does not count its blocks.
        return Ok(u64::MAX);
    }
    let reserve = stat.f_blocks.saturating_mul(RESERVE).div_ceil(100);
    Ok(stat.f_bavail.saturating_sub(reserve).saturating_mul(stat.f_frsize))
}

/// The part of a file system, in percent, that overlays leave to others. A guest can fill its disk at will,
/// and the host must keep working.
const RESERVE: u64 = 5;
/// The number of bytes written between two checks of the file system: the checks are rare, and the number is
/// far below the reserve of a usual disk.
const BYTES_PER_LOOK: u64 = 16 << 20;

/// Returns the binary logarithm of the cluster size in bytes. The size is 4 KiB, the page of most file
/// systems, so that usual writes need no copy. Disks above 32 GiB have larger clusters, so that the bits take
/// at most 1 MiB.
pub(super) fn cluster_shift(capacity: u64) -> u32 {
    const MIN: u32 = 12;
    const MAX_CLUSTERS: u64 = 1 << 23;
    let enough = (MIN..63).find(|shift| capacity >> shift <= MAX_CLUSTERS);
    enough.unwrap_or(63)
}

/// The magic number of ramfs in `linux/magic.h`, for which the C library has no name.
const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;
