//! RAM that never changes again: the memory of a template, which any number of forks map privately.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use coracle_arch::x86_64::layout::{self, RamRegion};

use super::MemoryError;
use super::baseline::Baseline;
use super::copy::{PAGE, mark_data};
use super::layers::{Piece, lay_over};
use super::mapping::HUGE_PAGE;
use crate::config::{MemoryBacking, MemoryConfig};

/// The content of a guest's RAM in a file that never changes: a memory file that is sealed against every
/// change, or the file of a snapshot. Cheap to clone.
///
/// What was zero and what was never touched are holes in the file.
///
/// The content may also lie in several such files, each of which has the pages that were written since the
/// one before it. A page is at the same offset in all of them.
#[derive(Debug, Clone)]
pub(crate) struct FrozenRam {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: MemoryConfig,
    /// The files with content that is not hidden by a later one, the oldest first.
    files: Vec<Arc<File>>,
    regions: Vec<FrozenRegion>,
    baseline: Option<Arc<Baseline>>,
}

/// A range of frozen RAM without holes in the guest's addresses.
#[derive(Debug, Clone)]
pub(crate) struct FrozenRegion {
    pub guest_address: u64,
    pub bytes: u64,
    /// The offset in the files.
    pub offset: u64,
    /// The parts with content, in order. All else is zero.
    pub pieces: Vec<Piece>,
}

impl FrozenRegion {
    /// Makes a region with one file, which has content in `parts`.
    fn new(region: &RamRegion, offset: u64, file: &Arc<File>, parts: Vec<Range<u64>>) -> FrozenRegion {
        let pieces = parts.into_iter().map(|range| Piece { range, file: file.clone() }).collect();
        FrozenRegion { guest_address: region.start, bytes: region.len, offset, pieces }
    }

    /// Returns the parts of `window`, in bytes from the start of the region, that have content, each with the
    /// file that has it.
    pub(super) fn pieces_in(&self, window: Range<u64>) -> impl Iterator<Item = (Range<u64>, &File)> {
        let cut = move |piece: &Range<u64>| piece.start.max(window.start)..piece.end.min(window.end);
        let pieces = self.pieces.iter().map(move |piece| (cut(&piece.range), &*piece.file));
        pieces.filter(|(range, _)| !range.is_empty())
    }
}

impl FrozenRam {
    /// Returns whether memory of this configuration can be frozen, so that a machine which cannot become a
    /// template is refused while it still runs.
    ///
    /// # Errors
    /// The memory is in reserved huge pages, of which each fork would need its own for every byte that it
    /// writes; and there may be none left.
    pub(crate) fn check(memory: MemoryConfig) -> Result<(), MemoryError> {
        match memory.backing() {
            MemoryBacking::Anonymous | MemoryBacking::Memfd => Ok(()),
            MemoryBacking::HugePages(_) => Err(MemoryError::FrozenHugePages { memory }),
        }
    }

    /// Seals `file`, which has the content of the RAM region by region, and which nobody may map for writing.
    pub(super) fn seal(memory: MemoryConfig, file: File) -> Result<FrozenRam, MemoryError> {
        let seal_error = |source| MemoryError::Seal { memory, source };
        seal(&file).map_err(seal_error)?;
        let file = Arc::new(file);
        let mut offset = 0;
        let mut regions = Vec::new();
        for region in layout::ram_regions(memory.bytes()) {
            let parts = parts(&file, offset..offset + region.len).map_err(seal_error)?;
            regions.push(FrozenRegion::new(&region, offset, &file, parts));
            offset += region.len;
        }
        Ok(FrozenRam { shared: Arc::new(Shared { memory, files: vec![file], regions, baseline: None }) })
    }

    /// Returns RAM that is zero.
    pub(crate) fn zeroes(memory: MemoryConfig) -> FrozenRam {
        let mut offset = 0;
        let mut regions = Vec::new();
        for RamRegion { start, len } in layout::ram_regions(memory.bytes()) {
            regions.push(FrozenRegion { guest_address: start, bytes: len, offset, pieces: Vec::new() });
            offset += len;
        }
        FrozenRam { shared: Arc::new(Shared { memory, files: Vec::new(), regions, baseline: None }) }
    }

    /// Returns the RAM that has the pages of `layer` in the ranges of `runs`, which are in order for each
    /// region, and its present content elsewhere.
    pub(super) fn with_layer(&self, layer: File, runs: &[Vec<Range<u64>>]) -> FrozenRam {
        let Shared { memory, files, regions, baseline } = &*self.shared;
        let baseline = baseline.clone();
        let layer = Arc::new(layer);
        let mut regions = regions.clone();
        for (region, runs) in regions.iter_mut().zip(runs) {
            region.pieces = lay_over(&region.pieces, runs, &layer);
        }
        let mut files: Vec<Arc<File>> = files.iter().cloned().chain([layer]).collect();
        let pieces = regions.iter().flat_map(|region| &region.pieces);
        files.retain(|file| pieces.clone().any(|piece| Arc::ptr_eq(&piece.file, file)));
        FrozenRam { shared: Arc::new(Shared { memory: *memory, files, regions, baseline }) }
    }

    /// Uses a file that begins with the RAM, region by region, and of which only `parts` have content, as
    /// [`Parts`] finds them. The file may be anybody's. Nothing is read.
    ///
    /// Returns `None` if memory of this size cannot have these parts.
    ///
    /// Nobody may write to the file or cut it while it is mapped. If somebody does all the same, the guest
    /// may see the writes. An access to what was cut off is an error of `KVM_RUN` for the guest, and SIGBUS
    /// for a thread of this process.
    pub(crate) fn of_file(
        memory: MemoryConfig,
        file: File,
        parts: Vec<Vec<Range<u64>>>,
    ) -> Option<FrozenRam> {
        let ram = layout::ram_regions(memory.bytes());
        if parts.len() != ram.len() {
            return None;
        }
        let file = Arc::new(file);
        let mut offset = 0;
        let mut regions = Vec::with_capacity(ram.len());
        for (region, parts) in ram.into_iter().zip(parts) {
            if !are_possible(&parts, region.len) {
                return None;
            }
            regions.push(FrozenRegion::new(&region, offset, &file, parts));
            offset += region.len;
        }
        Some(FrozenRam { shared: Arc::new(Shared { memory, files: vec![file], regions, baseline: None }) })
    }

    /// Returns the configuration of the machine whose RAM it was, and of its forks.
    pub(crate) fn memory(&self) -> MemoryConfig {
        self.shared.memory
    }

    /// Returns the files with content, the oldest first. Their holes are zero; [`next_data`] finds what is
    /// not. The RAM may be only the beginning of a file.
    pub(crate) fn files(&self) -> &[Arc<File>] {
        &self.shared.files
    }

    /// Returns the snapshot that it is, or goes on from.
    pub(crate) fn baseline(&self) -> Option<&Arc<Baseline>> {
        self.shared.baseline.as_ref()
    }

    /// Returns the same RAM, which goes on from `baseline`.
    pub(super) fn with_baseline(&self, baseline: Arc<Baseline>) -> FrozenRam {
        let Shared { memory, files, regions, baseline: _ } = &*self.shared;
        let (files, regions) = (files.clone(), regions.clone());
        FrozenRam { shared: Arc::new(Shared { memory: *memory, files, regions, baseline: Some(baseline) }) }
    }

    /// Marks the pages of `window`, by its offset in the files, that may have content. It lies in one region.
    /// Returns whether there are any.
    pub(super) fn mark_data(&self, window: &Range<u64>, wanted: &mut [bool]) -> io::Result<bool> {
        let Some(region) = self.region_at(window.start) else { return Ok(false) };
        let inside = window.start - region.offset..window.end - region.offset;
        let mut any = false;
        for (range, file) in region.pieces_in(inside) {
            let range = range.start + region.offset..range.end + region.offset;
            let pages = page_of(range.start - window.start)..page_of(range.end - window.start);
            let wanted = wanted.get_mut(pages).ok_or(io::ErrorKind::InvalidData)?;
            any |= mark_data(file, &range, wanted)?;
        }
        Ok(any)
    }

    /// Reads the content from `offset`, in one region.
    pub(super) fn read(&self, offset: u64, pages: &mut [u8]) -> io::Result<()> {
        pages.fill(0);
        let Some(region) = self.region_at(offset) else { return Ok(()) };
        let start = offset - region.offset;
        for (range, file) in region.pieces_in(start..start + pages.len() as u64) {
            let bytes = (range.start - start) as usize..(range.end - start) as usize;
            let pages = pages.get_mut(bytes).unwrap_or_default();
            file.read_exact_at(pages, region.offset + range.start)?;
        }
        Ok(())
    }

    fn region_at(&self, offset: u64) -> Option<&FrozenRegion> {
        self.regions().iter().rev().find(|region| region.offset <= offset)
    }

    /// Returns the regions, by guest address.
    pub(crate) fn regions(&self) -> &[FrozenRegion] {
        &self.shared.regions
    }
}

/// Protects a memory file, which nobody may map for writing, from every change.
pub(super) fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the call changes nothing but the file.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn page_of(bytes: u64) -> usize {
    usize::try_from(bytes / PAGE as u64).unwrap_or(usize::MAX)
}

/// Returns the parts of `region` of the file that have content, as [`are_possible`].
pub(super) fn parts(file: &File, region: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut parts = Parts::new(region.end - region.start);
    let mut at = region.start;
    while let Some(data) = next_data(file, &(at..region.end))? {
        at = region.start + parts.add(data.start - region.start..data.end - region.start);
    }
    Ok(parts.finish())
}

/// The parts of a region with content: all of it except for the largest holes. They are at most
/// [`MAX_PARTS`], in order, in multiples of [`HUGE_PAGE`] up to the end of the region.
pub(super) struct Parts {
    region: u64,
    /// From the first content to the last so far.
    content: Option<Range<u64>>,
    /// The largest holes in it.
    holes: Vec<Range<u64>>,
}

impl Parts {
    /// Starts with a region of `region` bytes without content.
    pub(super) fn new(region: u64) -> Parts {
        Parts { region, content: None, holes: Vec::new() }
    }

    /// Adds content after what was added before. Returns the end of the content.
    pub(super) fn add(&mut self, data: Range<u64>) -> u64 {
        let Self { region, content, holes } = self;
        let page = HUGE_PAGE as u64;
        let start = data.start / page * page;
        let content = content.get_or_insert(start..start);
        if start > content.end {
            keep_largest(holes, content.end..start);
        }
        content.end = data.end.next_multiple_of(page).min(*region).max(content.end);
        content.end
    }

    /// Returns the parts in order.
    pub(super) fn finish(self) -> Vec<Range<u64>> {
        let Self { region: _, content, mut holes } = self;
        holes.sort_by_key(|hole| hole.start);
        let Some(Range { mut start, end }) = content else { return Vec::new() };
        let mut parts = Vec::with_capacity(holes.len() + 1);
        for hole in holes {
            parts.push(start..hole.start);
            start = hole.end;
        }
        parts.push(start..end);
        parts
    }
}

/// Returns whether a region of `region` bytes can have these parts.
fn are_possible(parts: &[Range<u64>], region: u64) -> bool {
    let is_limit = |at: u64| at.is_multiple_of(HUGE_PAGE as u64) || at == region;
    let fits = |part: &Range<u64>| is_limit(part.start) && is_limit(part.end) && part.end <= region;
    let starts = parts.iter().skip(1).map(|part| part.start).chain([region]);
    let in_order = parts.iter().zip(starts).all(|(part, next)| part.start < part.end && part.end <= next);
    parts.len() <= MAX_PARTS && in_order && parts.iter().all(fits)
}

/// Adds `hole` to `holes`, of which the smallest is left out if they are too many.
fn keep_largest(holes: &mut Vec<Range<u64>>, hole: Range<u64>) {
    holes.push(hole);
    if holes.len() == MAX_PARTS {
        let sizes = holes.iter().enumerate().map(|(index, hole)| (hole.end - hole.start, index));
        if let Some((_, smallest)) = sizes.min() {
            holes.swap_remove(smallest);
        }
    }
}

/// Returns the first range of `file` in `range` that is not a hole; `None` if there is none.
pub(crate) fn next_data(file: &File, range: &Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match seek(file, range.start, libc::SEEK_DATA) {
        Ok(start) if start < range.end => start,
        Ok(_) => return Ok(None),
        // The rest of the file is one hole (lseek(2)).
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(start..seek(file, start, libc::SEEK_HOLE)?.min(range.end)))
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call changes nothing but the position of the file, which nobody uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// The number of parts of a region that a fork maps from the file, so that neither the time to map it nor
/// its mappings, of which a process has 65,530 (`vm.max_map_count`), grow with the RAM.
pub(super) const MAX_PARTS: usize = 8;
