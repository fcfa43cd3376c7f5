//! The changes of RAM since a snapshot of it was written to files, or read from them.
//!
//! Frozen RAM consists of files, each of which has the pages that were written since the last, so a page has
//! not changed if the same file still shows it. The files themselves need not be there any more.

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Weak};

use coracle_arch::nameless_file;

use super::branch::MAX_MAPPINGS;
use super::copy::PAGE;
use super::frozen::seal;
use super::layers::{Piece, ranges_to_copy};
use super::{FrozenRam, GuestRam, MemoryError, Origin, Owned, SaveError};

/// The content of RAM when a snapshot was taken.
#[derive(Debug)]
pub(crate) struct Baseline {
    /// The ids of the snapshot and of those over which it lies, the newest first.
    pub(crate) ids: Vec<[u8; 16]>,
    /// The pieces of each region.
    pieces: Vec<Vec<(Range<u64>, Weak<File>)>>,
}

impl FrozenRam {
    /// Returns the same RAM, which is that of the snapshot with the first of `ids`, over those after it.
    pub(crate) fn of_snapshot(&self, ids: Vec<[u8; 16]>) -> FrozenRam {
        let piece = |piece: &Piece| (piece.range.clone(), Arc::downgrade(&piece.file));
        let pieces = self.regions().iter().map(|region| region.pieces.iter().map(piece).collect());
        self.with_baseline(Arc::new(Baseline { ids, pieces: pieces.collect() }))
    }

    /// Returns the ranges of each region that may have changed since `baseline`.
    pub(crate) fn changes_since(&self, baseline: &Baseline) -> Vec<Vec<Range<u64>>> {
        let regions = self.regions().iter().zip(&baseline.pieces);
        regions.map(|(region, then)| changes(&region.pieces, then)).collect()
    }

    /// Returns the RAM that has the pages of `file` in `ranges` of each region, where a snapshot lies over
    /// this one. The file may be anybody's; see [`FrozenRam::of_file`]. `None` if no snapshot has these
    /// ranges.
    pub(crate) fn with_file(&self, file: File, ranges: &[Vec<Range<u64>>]) -> Option<FrozenRam> {
        let count: usize = ranges.iter().map(Vec::len).sum();
        let regions = self.regions();
        if regions.len() != ranges.len() || count > MAX_RANGES {
            return None;
        }
        let is_page = |at: u64| at.is_multiple_of(PAGE as u64);
        for (region, ranges) in regions.iter().zip(ranges) {
            let mut at = 0;
            for Range { start, end } in ranges {
                if *start < at || start >= end || *end > region.bytes || !is_page(*start) || !is_page(*end) {
                    return None;
                }
                at = *end;
            }
        }
        Some(self.with_layer(file, ranges))
    }

    /// Returns the same RAM in so few pieces that a machine can map them. Where they are too small, they are
    /// read, and copied to a memory file.
    ///
    /// # Errors
    /// The host refuses the file, or the content cannot be read.
    pub(crate) fn with_few_pieces(self) -> Result<FrozenRam, MemoryError> {
        let memory = self.memory();
        let room = MAX_MAPPINGS / self.regions().len().max(1);
        let small = |region: &super::FrozenRegion| {
            if region.pieces.is_empty() {
                return Vec::new();
            }
            ranges_to_copy(region.bytes, &region.pieces, &[], room)
        };
        let ranges: Vec<_> = self.regions().iter().map(small).collect();
        if ranges.iter().all(Vec::is_empty) {
            return Ok(self);
        }
        let freeze_error = |source| MemoryError::Freeze { memory, source };
        let file = nameless_file::create_in_memory(c"coracle-restored", memory.bytes());
        let file = file.map_err(freeze_error)?;
        self.save_ranges(&ranges, &file).map_err(|error| match error {
            SaveError::Ram(error) => error,
            SaveError::File(source) => freeze_error(source),
        })?;
        seal(&file).map_err(|source| MemoryError::Seal { memory, source })?;
        Ok(self.with_layer(file, &ranges))
    }
}

/// RAM that may be gone.
pub(crate) struct WeakRam(Weak<Owned>);

impl GuestRam {
    pub(crate) fn downgrade(&self) -> WeakRam {
        WeakRam(Arc::downgrade(&self.owned))
    }
}

impl WeakRam {
    /// Notes that `frozen`, which was made of this RAM, is that of a snapshot, as [`FrozenRam::of_snapshot`]
    /// does.
    pub(crate) fn went_to_snapshot(&self, frozen: &FrozenRam, ids: Vec<[u8; 16]>) {
        let Some(owned) = self.0.upgrade() else { return };
        let noted = frozen.of_snapshot(ids);
        let mut origin = owned.origin();
        if let (Origin::Frozen(now), Some(baseline)) = (&*origin, noted.baseline()) {
            let now = now.with_baseline(baseline.clone());
            *origin = Origin::Frozen(now);
        }
    }
}

/// Returns the ranges that other files show now, in order.
fn changes(now: &[Piece], then: &[(Range<u64>, Weak<File>)]) -> Vec<Range<u64>> {
    let mut changes: Vec<Range<u64>> = Vec::new();
    let mut add = |range: Range<u64>| match changes.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => changes.push(range),
    };
    for Piece { range, file } in now {
        let mut at = range.start;
        let first = then.partition_point(|(range, _)| range.end <= at);
        let others = then.get(first..).unwrap_or_default();
        for (same, of) in others.iter().take_while(|(then, _)| then.start < range.end) {
            // The weak reference keeps another file from having the same address.
            if of.as_ptr() == Arc::as_ptr(file) {
                add(at..same.start.max(at));
                at = same.end.min(range.end);
            }
        }
        add(at..range.end);
    }
    changes
}

/// The most ranges of a snapshot that lies over another. A machine writes far fewer, because its RAM has few
/// mappings.
pub(crate) const MAX_RANGES: usize = 4096;
