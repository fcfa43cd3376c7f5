//! Saves RAM to a file and leaves it as it is: only the pages with content, not those that were never
//! touched, nor those that are zero.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use coracle_arch::x86_64::layout;
use vm_memory::{Bytes, GuestAddress};

use super::copy::{MAX_WRITE, PAGE, WINDOW, ZEROES, mark_data};
use super::frozen::Parts;
use super::page_map::PageMap;
use super::{FrozenRam, GuestRam, MappedRegion, MemoryError, Origin};
use crate::config::MemoryConfig;

/// The reason why RAM was not saved.
#[derive(Debug)]
pub(crate) enum SaveError {
    /// The RAM cannot be read.
    Ram(MemoryError),
    /// The file cannot be written.
    File(io::Error),
}

impl GuestRam {
    /// Writes the content to `file`, region by region, and leaves holes for what has no content. The file is
    /// as long as the RAM, or longer, and has only holes. Returns the parts with content, of which
    /// [`FrozenRam::of_file`] makes the same RAM.
    ///
    /// Neither a vCPU nor a device may write to the memory meanwhile.
    pub(crate) fn save(&self, file: &File) -> Result<Vec<Vec<Range<u64>>>, SaveError> {
        let memory = self.owned.memory;
        let page_map = PageMap::open().map_err(|source| MemoryError::TouchedPages { memory, source })?;
        let mut offset = 0;
        let mut regions = Vec::new();
        for region in self.regions() {
            regions.push((offset, region));
            offset += region.bytes;
        }
        save(memory, &mut Live { ram: self, regions, page_map }, file)
    }
}

impl FrozenRam {
    /// Writes the content to `file`, as [`GuestRam::save`] does.
    pub(crate) fn save(&self, file: &File) -> Result<Vec<Vec<Range<u64>>>, SaveError> {
        save(self.memory(), &mut Frozen(self), file)
    }

    /// Writes the content of `ranges` of each region to `file`, as [`GuestRam::save`] does.
    pub(crate) fn save_ranges(&self, ranges: &[Vec<Range<u64>>], file: &File) -> Result<(), SaveError> {
        let mut buffer = vec![0; MAX_WRITE];
        for (region, ranges) in self.regions().iter().zip(ranges) {
            for range in ranges {
                for start in (range.start..range.end).step_by(WINDOW) {
                    let end = range.end.min(start + WINDOW as u64);
                    let window = region.offset + start..region.offset + end;
                    save_window(self.memory(), &mut Frozen(self), &window, &mut buffer, file, &mut |_| ())?;
                }
            }
        }
        Ok(())
    }
}

/// RAM whose content can be read by its offset in the file.
trait Content {
    /// Marks the pages of `window`, which lies in one region, that may have content. Returns whether there
    /// are any.
    fn mark(&mut self, window: &Range<u64>, wanted: &mut [bool]) -> io::Result<bool>;

    /// Reads the pages from `offset`, of which some were marked.
    fn read(&self, offset: u64, pages: &mut [u8]) -> io::Result<()>;
}

/// The RAM of a machine that stands still.
struct Live<'a> {
    ram: &'a GuestRam,
    /// The regions with their offsets.
    regions: Vec<(u64, MappedRegion)>,
    page_map: PageMap,
}

impl Live<'_> {
    /// Returns the region at `offset`, and the offset in it.
    fn place(&self, offset: u64) -> io::Result<(MappedRegion, u64)> {
        let found = self.regions.iter().rev().find(|(start, _)| *start <= offset);
        let (start, region) = found.ok_or(io::ErrorKind::InvalidInput)?;
        Ok((*region, offset - start))
    }
}

impl Content for Live<'_> {
    fn mark(&mut self, window: &Range<u64>, wanted: &mut [bool]) -> io::Result<bool> {
        let (region, inside) = self.place(window.start)?;
        let address =
            usize::try_from(region.host_address + inside).map_err(|_| io::ErrorKind::InvalidInput)?;
        match &*self.ram.owned.origin() {
            Origin::Zeroes => self.page_map.mark_touched(address, wanted),
            Origin::Frozen(base) => {
                let touched = self.page_map.mark_touched(address, wanted)?;
                Ok(base.mark_data(window, wanted)? || touched)
            }
            // Another process may have written to it, too.
            Origin::File(file) => mark_data(file, window, wanted),
        }
    }

    fn read(&self, offset: u64, pages: &mut [u8]) -> io::Result<()> {
        let (region, inside) = self.place(offset)?;
        // Without a reference to the memory, which another process may still map.
        let read = self.ram.mmap.read_slice(pages, GuestAddress(region.guest_address + inside));
        read.map_err(io::Error::other)
    }
}

struct Frozen<'a>(&'a FrozenRam);

impl Content for Frozen<'_> {
    fn mark(&mut self, window: &Range<u64>, wanted: &mut [bool]) -> io::Result<bool> {
        self.0.mark_data(window, wanted)
    }

    fn read(&self, offset: u64, pages: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, pages)
    }
}

/// Writes the content of RAM to `file`, and returns the parts of each region with content.
fn save(
    memory: MemoryConfig,
    content: &mut dyn Content,
    file: &File,
) -> Result<Vec<Vec<Range<u64>>>, SaveError> {
    let mut buffer = vec![0; MAX_WRITE];
    let mut all = Vec::new();
    let mut base = 0;
    for region in layout::ram_regions(memory.bytes()) {
        let mut parts = Parts::new(region.len);
        for start in (0..region.len).step_by(WINDOW) {
            let window = base + start..base + region.len.min(start + WINDOW as u64);
            let mut add = |data: Range<u64>| {
                parts.add(data.start - base..data.end - base);
            };
            save_window(memory, content, &window, &mut buffer, file, &mut add)?;
        }
        all.push(parts.finish());
        base += region.len;
    }
    Ok(all)
}

/// Writes the content of a window of one region to `file`, and passes the ranges that it has written to
/// `add`.
fn save_window(
    memory: MemoryConfig,
    content: &mut dyn Content,
    window: &Range<u64>,
    buffer: &mut [u8],
    file: &File,
    add: &mut dyn FnMut(Range<u64>),
) -> Result<(), SaveError> {
    let read_error = |source| MemoryError::Read { memory, source };
    let mut wanted = vec![false; (window.end - window.start) as usize / PAGE];
    if !content.mark(window, &mut wanted).map_err(read_error)? {
        return Ok(());
    }
    for run in runs(&wanted, buffer.len() / PAGE) {
        let at = window.start + (run.start * PAGE) as u64;
        let pages = buffer.get_mut(..run.len() * PAGE).unwrap_or_default();
        content.read(at, pages).map_err(read_error)?;
        written(pages, at, file).map_err(SaveError::File)?.into_iter().for_each(&mut *add);
    }
    Ok(())
}

/// Returns the ranges of wanted pages, each of at most `most` pages.
fn runs(wanted: &[bool], most: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (page, _) in wanted.iter().enumerate().filter(|(_, is_wanted)| **is_wanted) {
        match runs.last_mut() {
            Some(run) if run.end == page && run.len() < most => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

/// Writes the pages that are not zero to `file`, from `offset` on. Returns the ranges that were written.
fn written(pages: &[u8], offset: u64, file: &File) -> io::Result<Vec<Range<u64>>> {
    let wanted: Vec<bool> = pages.chunks(PAGE).map(|page| page != ZEROES).collect();
    let mut ranges = Vec::new();
    for run in runs(&wanted, wanted.len()) {
        let bytes = run.start * PAGE..run.end * PAGE;
        let at = offset + bytes.start as u64;
        let end = offset + bytes.end as u64;
        file.write_all_at(pages.get(bytes).unwrap_or_default(), at)?;
        ranges.push(at..end);
    }
    Ok(ranges)
}

impl From<MemoryError> for SaveError {
    fn from(error: MemoryError) -> SaveError {
        SaveError::Ram(error)
    }
}
