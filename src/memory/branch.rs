//! Branches: RAM of a machine that runs on becomes frozen RAM, over which other machines go on too.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use coracle_arch::nameless_file;

use super::copy::{MAX_WRITE, PAGE, WINDOW};
use super::frozen::{FrozenRegion, parts, seal};
use super::layers::{files_to_replace, ranges_to_copy, with_pieces_of};
use super::mapping::Mapping;
use super::page_map::PageMap;
use super::{FrozenRam, GuestRam, MemoryError, Origin, Owned};

impl GuestRam {
    /// Makes the file for the next [`branch`](GuestRam::branch), with pages for what the guest has written so
    /// far. The guest may run, so that it stands still for less time afterwards. `None` if that does not
    /// help.
    pub(crate) fn next_layer(&self) -> Option<NextLayer> {
        let origin = self.owned.origin();
        let Origin::Frozen(base) = &*origin else { return None };
        let mut page_map = PageMap::open().ok()?;
        let file = nameless_file::create_in_memory(NAME, self.owned.memory.bytes()).ok()?;
        for (mapping, region) in self.owned.mappings.iter().zip(base.regions()) {
            let own = page_map.own_pages(mapping.address().addr(), mapping.bytes()).ok()?;
            // Not those outside of the content: the kernel gives the guest huge pages there, of which it may
            // use a little.
            let inside = own.iter().flat_map(|range| region.pieces_in(range.clone())).map(|(range, _)| range);
            for range in inside.take(MAX_MAPPINGS) {
                allocate(&file, region.offset + range.start..region.offset + range.end).ok()?;
            }
        }
        Some(NextLayer(file))
    }

    /// Makes frozen RAM of the present content. This RAM goes on as a private mapping of it, at the same
    /// addresses, so that the next call copies only what was written since. Pages are mapped in place of
    /// those that were copied: a guest touches each as if for the first time.
    ///
    /// The pages that were written take memory twice for a moment, at most [`WINDOW`] bytes.
    ///
    /// The guest stands still, and so does everything else that uses the memory. What lay below it before
    /// goes to `before`: freeing it may take as long as this call, and can wait until the guest runs.
    ///
    /// `is_over` is asked every [`WINDOW`] bytes whether the machine has been asked to end: then nobody wants
    /// the result.
    ///
    /// # Errors
    /// The content is as before, and the machine can go on.
    ///
    /// - [`MemoryError::Over`]: `is_over` said so.
    /// - [`MemoryError::FrozenHugePages`]: see [`FrozenRam::check`].
    /// - [`MemoryError::TouchedPages`], [`MemoryError::Freeze`]: the host refuses the copy.
    /// - [`MemoryError::MapFork`]: the host refuses a mapping.
    /// - [`MemoryError::Seal`]: another process has mapped the file of this memory for writing.
    pub(crate) fn branch(
        &self,
        layer: Option<NextLayer>,
        before: &mut Option<FrozenRam>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<FrozenRam, MemoryError> {
        FrozenRam::check(self.owned.memory)?;
        let mut origin = self.owned.origin();
        let (frozen, result) = match &*origin {
            Origin::File(file) => (self.owned.make_private(file)?, Ok(())),
            Origin::Zeroes => self.owned.add_layer(&FrozenRam::zeroes(self.owned.memory), layer, is_over)?,
            Origin::Frozen(base) => self.owned.add_layer(base, layer, is_over)?,
        };
        // Even after an error, a part of the memory shows the new layer.
        if let Origin::Frozen(old) = std::mem::replace(&mut *origin, Origin::Frozen(frozen.clone())) {
            *before = Some(old);
        }
        result.map(|()| frozen)
    }
}

/// A file that the next branch fills.
pub(crate) struct NextLayer(File);

/// Gives a memory file pages for `range`, which read as zeroes. They are not data until they are written.
fn allocate(file: &File, range: Range<u64>) -> io::Result<()> {
    let offset = |at: u64| libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput);
    let (at, len) = (offset(range.start)?, offset(range.end - range.start)?);
    // SAFETY: the call takes numbers and an open descriptor.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, at, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Owned {
    /// Moves the pages that are not those of `base` to a new layer. Returns the RAM with that layer, and
    /// whether it has all pages: otherwise some have stayed where they are.
    fn add_layer(
        &self,
        base: &FrozenRam,
        layer: Option<NextLayer>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<(FrozenRam, Result<(), MemoryError>), MemoryError> {
        let memory = self.memory;
        let list_error = |source| MemoryError::TouchedPages { memory, source };
        let mut page_map = PageMap::open().map_err(list_error)?;
        let mut own = Vec::with_capacity(self.mappings.len());
        for mapping in &self.mappings {
            own.push(page_map.own_pages(mapping.address().addr(), mapping.bytes()).map_err(list_error)?);
        }
        if own.iter().all(Vec::is_empty) {
            return Ok((base.clone(), Ok(())));
        }
        let layer = match layer {
            Some(NextLayer(file)) => Ok(file),
            None => nameless_file::create_in_memory(NAME, memory.bytes()),
        };
        let layer = layer.map_err(|source| MemoryError::Freeze { memory, source })?;
        let pieces: Vec<_> = base.regions().iter().map(|region| &*region.pieces).collect();
        let replaced = files_to_replace(&pieces, base.files(), MAX_FILES);
        let mut moved = vec![Vec::new(); own.len()];
        let mut result = Ok(());
        for (((mapping, region), own), moved) in
            self.mappings.iter().zip(base.regions()).zip(own).zip(&mut moved)
        {
            let wanted = with_pieces_of(own.clone(), &region.pieces, &replaced);
            let room = MAX_MAPPINGS / pieces.len();
            let runs = ranges_to_copy(region.bytes, &region.pieces, &wanted, room);
            result = result
                .and_then(|()| Move { base, region, mapping, own, layer: &layer, is_over }.all(&runs, moved));
        }
        let sealed = seal(&layer).map_err(|source| MemoryError::Seal { memory, source });
        let result = result.and(sealed);
        Ok((base.with_layer(layer, &moved), result))
    }

    /// Turns shared mappings of `file` into private ones, without a copy.
    fn make_private(&self, file: &File) -> Result<FrozenRam, MemoryError> {
        let memory = self.memory;
        let map_error = |source| MemoryError::MapFork { memory, source };
        let file = file.try_clone().map_err(|source| MemoryError::Freeze { memory, source })?;
        let remapped = self.map_privately(&file).map_err(map_error);
        let frozen = remapped.and_then(|()| FrozenRam::seal(memory, file.try_clone().map_err(map_error)?));
        if frozen.is_err() {
            // Nobody has written to the private mappings. They are replaced by what was there before.
            let mut offset = 0;
            for mapping in &self.mappings {
                mapping.replace(0..mapping.bytes(), Some((&file, offset)), true).map_err(map_error)?;
                offset += mapping.bytes() as u64;
            }
        }
        frozen
    }

    fn map_privately(&self, file: &File) -> io::Result<()> {
        let mut offset = 0;
        for mapping in &self.mappings {
            let bytes = mapping.bytes() as u64;
            let mut at = 0;
            for part in parts(file, offset..offset + bytes)? {
                map_zeroes(mapping, at..part.start)?;
                mapping.replace(bytes_of(&part)?, Some((file, offset + part.start)), false)?;
                at = part.end;
            }
            map_zeroes(mapping, at..bytes)?;
            offset += bytes;
        }
        Ok(())
    }
}

fn map_zeroes(mapping: &Mapping, range: Range<u64>) -> io::Result<()> {
    let range = bytes_of(&range)?;
    if range.is_empty() {
        return Ok(());
    }
    mapping.replace(range.clone(), None, false)?;
    mapping.advise_range(&range)
}

/// Moves pages of a region to a layer.
struct Move<'a> {
    base: &'a FrozenRam,
    region: &'a FrozenRegion,
    mapping: &'a Mapping,
    /// The pages that are not those of `base`.
    own: Vec<Range<u64>>,
    layer: &'a File,
    is_over: &'a dyn Fn() -> bool,
}

impl Move<'_> {
    /// Copies the content of `runs` to the layer and maps it there, step by step. Adds each finished step to
    /// `moved`.
    fn all(self, runs: &[Range<u64>], moved: &mut Vec<Range<u64>>) -> Result<(), MemoryError> {
        let memory = self.base.memory();
        for run in runs {
            for start in (run.start..run.end).step_by(WINDOW) {
                if (self.is_over)() {
                    return Err(MemoryError::Over);
                }
                let window = start..run.end.min(start + WINDOW as u64);
                self.copy(&window).map_err(|source| MemoryError::Freeze { memory, source })?;
                self.show(&window).map_err(|source| MemoryError::MapFork { memory, source })?;
                moved.push(window);
            }
        }
        Ok(())
    }

    /// Writes the content of `window` to the layer, and leaves holes for zeroes.
    fn copy(&self, window: &Range<u64>) -> io::Result<()> {
        let mut wanted = vec![false; bytes_of(window)?.len() / PAGE];
        let first = self.own.partition_point(|range| range.end <= window.start);
        let own = self.own.get(first..).unwrap_or_default();
        let inside = own.iter().take_while(|range| range.start < window.end);
        let inside = inside.map(|range| range.start.max(window.start)..range.end.min(window.end));
        for range in inside {
            let pages = bytes_of(&(range.start - window.start..range.end - window.start))?;
            wanted.get_mut(pages.start / PAGE..pages.end / PAGE).unwrap_or_default().fill(true);
        }
        if wanted.contains(&false) {
            let in_file = self.region.offset + window.start..self.region.offset + window.end;
            self.base.mark_data(&in_file, &mut wanted)?;
        }
        let window = bytes_of(window)?;
        let mut run = window.start..window.start;
        for (index, is_wanted) in wanted.into_iter().enumerate() {
            let start = window.start + index * PAGE;
            if !is_wanted || self.mapping.is_zero(&(start..start + PAGE))? {
                continue;
            }
            if run.end != start || run.len() >= MAX_WRITE {
                self.write(&run)?;
                run.start = start;
            }
            run.end = start + PAGE;
        }
        self.write(&run)
    }

    fn write(&self, run: &Range<usize>) -> io::Result<()> {
        self.mapping.write_to(run, self.layer, self.region.offset + run.start as u64)
    }

    /// Maps the layer in place of the pages of `window`.
    fn show(&self, window: &Range<u64>) -> io::Result<()> {
        self.mapping.replace(bytes_of(window)?, Some((self.layer, self.region.offset + window.start)), false)
    }
}

fn bytes_of(range: &Range<u64>) -> io::Result<Range<usize>> {
    let bytes = |bytes: u64| usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(bytes(range.start)?..bytes(range.end)?)
}

/// The name of the files in `/proc`.
const NAME: &std::ffi::CStr = c"coracle-branch";
/// The most mappings of a machine's RAM: a process has 65,530 (`vm.max_map_count`), for all of its machines.
pub(super) const MAX_MAPPINGS: usize = 1000;
/// The most files with content of a machine's RAM.
pub(super) const MAX_FILES: usize = 64;
