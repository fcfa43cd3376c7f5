//! The pages of this process, as the kernel lists them in `/proc/self/pagemap`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vmm_sys_util::ioctl_iowr_nr;

use super::copy::{PAGE, ZEROES};

/// The list of pages (proc_pid_pagemap(5)): 64 bits for each page of 4 KiB, whatever the size of the page
/// that the kernel has mapped.
pub(super) struct PageMap {
    file: File,
    entries: Vec<u8>,
}

impl PageMap {
    pub(super) fn open() -> io::Result<PageMap> {
        Ok(PageMap { file: File::open("/proc/self/pagemap")?, entries: Vec::new() })
    }

    /// Marks the pages from `address` that were touched: all that a mapping may have beyond what lies below
    /// it. Returns whether there are any.
    pub(super) fn mark_touched(&mut self, address: usize, pages: &mut [bool]) -> io::Result<bool> {
        self.mark(address, pages, |entry| entry & (PRESENT | SWAPPED) != 0)
    }

    /// Returns the ranges of the `bytes` bytes from `address` that a private mapping has pages of its own in,
    /// in bytes from `address`: those that were written, not those of the file below it.
    pub(super) fn own_pages(&mut self, address: usize, bytes: usize) -> io::Result<Vec<Range<u64>>> {
        match scan(&self.file, address, bytes) {
            // Linux before 6.7.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.read_own_pages(address, bytes)
            }
            result => result,
        }
    }

    /// [`PageMap::own_pages`] by reading the list, whose length is that of the memory.
    pub(super) fn read_own_pages(&mut self, address: usize, bytes: usize) -> io::Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        let mut pages = vec![false; WINDOW_PAGES];
        for start in (0..bytes).step_by(WINDOW_PAGES * PAGE) {
            let pages = pages.get_mut(..((bytes - start) / PAGE).min(WINDOW_PAGES)).unwrap_or_default();
            pages.fill(false);
            let is_own = |entry| entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0;
            if self.mark(address + start, pages, is_own)? {
                for (page, _) in pages.iter().enumerate().filter(|(_, is_own)| **is_own) {
                    add_range(&mut ranges, start + page * PAGE..start + (page + 1) * PAGE);
                }
            }
        }
        Ok(ranges)
    }

    fn mark(&mut self, address: usize, pages: &mut [bool], is_wanted: fn(u64) -> bool) -> io::Result<bool> {
        let Self { file, entries } = self;
        entries.resize(pages.len() * ENTRY, 0);
        file.read_exact_at(entries, (address / PAGE * ENTRY) as u64)?;
        let mut any = false;
        let blocks = entries.chunks(PAGE).zip(pages.chunks_mut(PAGE / ENTRY));
        // Most of a large memory is untouched, and is skipped as fast as memory can be compared.
        for (entries, pages) in blocks.filter(|(entries, _)| !ZEROES.starts_with(entries)) {
            for (entry, page) in entries.as_chunks().0.iter().zip(pages) {
                *page = is_wanted(u64::from_ne_bytes(*entry));
                any |= *page;
            }
        }
        Ok(any)
    }
}

/// Finds the pages of a private mapping with PAGEMAP_SCAN, whose time depends on the pages that exist.
fn scan(file: &File, address: usize, bytes: usize) -> io::Result<Vec<Range<u64>>> {
    let (start, end) = (address as u64, (address + bytes) as u64);
    let mut found = vec![PageRegion::default(); MAX_FOUND];
    let mut ranges = Vec::new();
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start,
        end,
        vec: found.as_mut_ptr().addr() as u64,
        vec_len: MAX_FOUND as u64,
        // Neither a page of the file, nor that of zeroes.
        category_inverted: IS_FILE | IS_ZERO_PAGE,
        category_mask: IS_FILE | IS_ZERO_PAGE,
        category_anyof_mask: IS_PRESENT | IS_SWAPPED,
        return_mask: IS_PRESENT,
        ..ScanArguments::default()
    };
    while arguments.start < end {
        // SAFETY: the structure has the length that it says, and the kernel writes at most `vec_len` regions
        // to `found`, which lives on.
        let count = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN(), &raw mut arguments) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for PageRegion { start: from, end: to, .. } in found.iter().take(count) {
            add_range(&mut ranges, (from - start) as usize..(to - start) as usize);
        }
        // So that a kernel that makes no progress does not keep this thread.
        if arguments.walk_end <= arguments.start {
            return Err(io::ErrorKind::InvalidData.into());
        }
        arguments.start = arguments.walk_end;
    }
    Ok(ranges)
}

fn add_range(ranges: &mut Vec<Range<u64>>, range: Range<usize>) {
    let range = range.start as u64..range.end as u64;
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

// `_IOWR('f', 16, struct pm_scan_arg)`, Documentation/admin-guide/mm/pagemap.rst.
ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, ScanArguments);

/// Categories of pages for PAGEMAP_SCAN.
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO_PAGE: u64 = 1 << 5;
/// The ranges that one call reports.
const MAX_FOUND: usize = 1024;

/// Bits of an entry of the list.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is one of a file, or of memory that is shared.
const OF_FILE: u64 = 1 << 61;
/// The bytes of an entry.
const ENTRY: usize = size_of::<u64>();
/// The pages whose entries are read at once.
const WINDOW_PAGES: usize = 8192;
