//! Copies private RAM into a file, and only the pages with content: not those that were never touched, nor
//! those that are zero.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use coracle_arch::nameless_file;

use super::mapping::Mapping;
use super::page_map::PageMap;
use super::{FrozenRam, MemoryError, next_data};
use crate::config::MemoryConfig;

/// Copies the content of `mappings`, by guest address, into a new memory file. If they are laid over `base`,
/// they show its content where they have no pages of their own, and it is copied too.
///
/// Each window is returned to the host once it is copied, so that memory does not exist twice.
pub(super) fn copy(
    memory: MemoryConfig,
    mappings: Vec<Mapping>,
    base: Option<&FrozenRam>,
) -> Result<File, MemoryError> {
    let freeze_error = |source| MemoryError::Freeze { memory, source };
    let list_error = |source| MemoryError::TouchedPages { memory, source };
    let mut page_map = PageMap::open().map_err(list_error)?;
    let file = nameless_file::create_in_memory(c"coracle-template", memory.bytes()).map_err(freeze_error)?;
    let mut offset = 0;
    for mut mapping in mappings {
        for start in (0..mapping.bytes()).step_by(WINDOW) {
            let window = start..mapping.bytes().min(start + WINDOW);
            let file_window = offset + window.start as u64..offset + window.end as u64;
            let mut wanted = vec![false; window.len() / PAGE];
            let address = mapping.address().addr() + start;
            let touched = page_map.mark_touched(address, &mut wanted).map_err(list_error)?;
            let inherited = base.map_or(Ok(false), |base| base.mark_data(&file_window, &mut wanted));
            if touched || inherited.map_err(freeze_error)? {
                let content = mapping.content(&window).map_err(freeze_error)?;
                write_wanted(content, &wanted, &file, file_window.start).map_err(freeze_error)?;
                mapping.release(&window).map_err(freeze_error)?;
            }
        }
        offset += mapping.bytes() as u64;
    }
    Ok(file)
}

/// Marks the pages of `window` of the file `base` that are data. Returns whether there are any.
pub(super) fn mark_data(base: &File, window: &Range<u64>, wanted: &mut [bool]) -> io::Result<bool> {
    let mut rest = window.clone();
    let page = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
    while let Some(data) = next_data(base, &rest)? {
        // The blocks of a file system may be smaller than pages.
        let start = (data.start - window.start) / PAGE as u64;
        let end = (data.end - window.start).div_ceil(PAGE as u64);
        let pages = wanted.get_mut(page(start)..page(end));
        pages.ok_or(io::ErrorKind::InvalidData)?.fill(true);
        rest.start = data.end;
    }
    Ok(wanted.contains(&true))
}

/// Writes the wanted pages of `content` to `file`, from `offset` on, except those that are zero.
fn write_wanted(content: &[u8], wanted: &[bool], file: &File, offset: u64) -> io::Result<()> {
    let write = |run: &Range<usize>| {
        let pages = content.get(run.clone()).ok_or(io::ErrorKind::InvalidData)?;
        file.write_all_at(pages, offset + run.start as u64)
    };
    let mut run = 0..0;
    for (index, (page, is_wanted)) in content.chunks(PAGE).zip(wanted).enumerate() {
        if !is_wanted || page == ZEROES {
            continue;
        }
        let start = index * PAGE;
        if run.end != start || run.len() >= MAX_WRITE {
            write(&run)?;
            run = start..start;
        }
        run.end = start + page.len();
    }
    write(&run)
}

/// The size of the pages that are copied or left out, in bytes.
pub(super) const PAGE: usize = 4096;
pub(super) const ZEROES: [u8; PAGE] = [0; PAGE];
/// The bytes that are copied before their memory is returned: their entries take 64 KiB.
pub(super) const WINDOW: usize = 32 << 20;
/// The most bytes of one write: they are still in the cache, where the search for zeroes has brought them.
pub(super) const MAX_WRITE: usize = 256 << 10;
