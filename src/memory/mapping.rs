//! Memory of this process that is a guest's RAM: mapped, advised, and unmapped on drop.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::HugePageSize;

/// The source of pages of the usual size.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Anonymous,
    SharedFile { file: &'a File, offset: u64 },
}

/// Memory of this process that is unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory, and all accesses to it while others may have its address are volatile.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps pages of the usual size, at an address that suits transparent huge pages.
    pub(super) fn small_pages(bytes: usize, from: Source<'_>) -> io::Result<Mapping> {
        match from {
            Source::Anonymous => Mapping::aligned(bytes, READ_WRITE),
            Source::SharedFile { file, offset } => {
                let mapping = Mapping::aligned(bytes, libc::PROT_NONE)?;
                mapping.place(0..bytes, libc::MAP_SHARED, Some((file, offset)))?;
                Ok(mapping)
            }
        }
    }

    /// Maps anonymous memory at a multiple of [`HUGE_PAGE`]. Since Linux 6.7 the kernel chooses such an
    /// address by itself, if the length is a multiple too. Elsewhere a part of a larger mapping is kept. The
    /// kernel informs all virtual machines of a process of each part that is unmapped.
    fn aligned(bytes: usize, access: i32) -> io::Result<Mapping> {
        let first = Mapping { address: map_anonymous(bytes, access)?, bytes };
        if first.address.align_offset(HUGE_PAGE) == 0 {
            return Ok(first);
        }
        drop(first);
        let padded = bytes.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let raw = map_anonymous(padded, access)?;
        let before = raw.align_offset(HUGE_PAGE);
        let address = raw.wrapping_add(before);
        if before > 0 {
            // SAFETY: the pages before the aligned address are part of the mapping above, and nothing uses
            // them.
            unsafe { libc::munmap(raw.cast(), before) };
        }
        // SAFETY: the pages after the last wanted byte are part of the mapping above too, and nothing uses
        // them.
        unsafe { libc::munmap(address.wrapping_add(bytes).cast(), HUGE_PAGE - before) };
        Ok(Mapping { address, bytes })
    }

    /// Asks for transparent huge pages, except for the first `small` bytes.
    pub(super) fn advise(&self, small: usize) {
        let small = self.bytes.min(small);
        let rest = self.address.wrapping_add(small);
        // Advice that the host does not take changes nothing but costs.
        if small > 0 {
            // SAFETY: advice on pages of this mapping.
            unsafe { libc::madvise(self.address.cast(), small, libc::MADV_NOHUGEPAGE) };
        }
        // SAFETY: as above.
        unsafe { libc::madvise(rest.cast(), self.bytes - small, libc::MADV_HUGEPAGE) };
    }

    /// Maps reserved huge pages, none of which is allocated yet.
    pub(super) fn huge_pages(bytes: usize, page: HugePageSize) -> io::Result<Mapping> {
        let size = match page {
            HugePageSize::Size2M => libc::MAP_HUGE_2MB,
            HugePageSize::Size1G => libc::MAP_HUGE_1GB,
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | size;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), bytes, READ_WRITE, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { address: raw.cast(), bytes })
    }

    /// Maps the content of `file` from `offset` privately in place of the pages of `range`, whose content is
    /// lost.
    pub(super) fn lay_over(&mut self, range: Range<usize>, file: &File, offset: u64) -> io::Result<()> {
        self.place(range, libc::MAP_PRIVATE, Some((file, offset)))
    }

    /// Maps `file` from `offset`, or zeroes without a file, in place of the pages of `range`, which have the
    /// same content. With `is_shared`, writes go to the file.
    ///
    /// The guest stands still, and so does everything else that writes to the memory: what it wrote meanwhile
    /// would be lost.
    pub(super) fn replace(
        &self,
        range: Range<usize>,
        from: Option<(&File, u64)>,
        is_shared: bool,
    ) -> io::Result<()> {
        let flags = match (from, is_shared) {
            (None, _) => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            (Some(_), false) => libc::MAP_PRIVATE,
            (Some(_), true) => libc::MAP_SHARED,
        };
        self.place(range, flags, from)
    }

    /// Asks for transparent huge pages in `range`.
    pub(super) fn advise_range(&self, range: &Range<usize>) -> io::Result<()> {
        let (address, bytes) = self.part(range)?;
        // SAFETY: advice on pages of this mapping.
        unsafe { libc::madvise(address.cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(())
    }

    /// Maps something else in place of the pages of `range`.
    fn place(&self, range: Range<usize>, flags: i32, from: Option<(&File, u64)>) -> io::Result<()> {
        let (address, bytes) = self.part(&range)?;
        let flags = flags | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let (fd, offset) = from.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: it replaces a part of this mapping in one step by memory that can be read and written too.
        // No reference points to it: the one that `content` returns needs an exclusive `self`.
        let placed = unsafe { libc::mmap(address.cast(), bytes, READ_WRITE, flags, fd, offset) };
        if placed == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Returns the content of `range`. No guest and no other process may write to it any more.
    pub(super) fn content(&mut self, range: &Range<usize>) -> io::Result<&[u8]> {
        let (address, bytes) = self.part(range)?;
        // SAFETY: the pages are mapped and readable for as long as `self` is, and nothing writes to them:
        // `self` is exclusive, and the guest is gone.
        Ok(unsafe { std::slice::from_raw_parts(address, bytes) })
    }

    /// Writes the bytes of `range`, which are a whole number of words, to `file` from `offset` on.
    pub(super) fn write_to(&self, range: &Range<usize>, file: &File, offset: u64) -> io::Result<()> {
        let (address, bytes) = self.part(range)?;
        let mut done = 0;
        while done < bytes {
            let at = libc::off_t::try_from(offset + done as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
            let from = address.wrapping_add(done);
            // SAFETY: the kernel reads bytes of this mapping.
            let result = unsafe { libc::pwrite(file.as_raw_fd(), from.cast(), bytes - done, at) };
            match usize::try_from(result).map_err(|_| io::Error::last_os_error()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns whether `range`, which consists of whole pages, is zero.
    pub(super) fn is_zero(&self, range: &Range<usize>) -> io::Result<bool> {
        let (address, bytes) = self.part(range)?;
        let words = address.cast::<AtomicU64>();
        // SAFETY: the words lie in the mapping, which is aligned to pages, and everybody else who accesses
        // them does so by volatile or atomic operations, or by the kernel.
        let word = |index: usize| unsafe { (*words.wrapping_add(index)).load(Ordering::Relaxed) };
        Ok((0..bytes / size_of::<u64>()).all(|index| word(index) == 0))
    }

    /// Returns the pages of `range` to the host. They are private, and their content is of no more use.
    pub(super) fn release(&mut self, range: &Range<usize>) -> io::Result<()> {
        let (address, bytes) = self.part(range)?;
        // A program that has locked its memory keeps them until they are unmapped.
        // SAFETY: the pages are part of this mapping, and no reference points to them, for `self` is
        // exclusive.
        unsafe { libc::madvise(address.cast(), bytes, libc::MADV_DONTNEED) };
        Ok(())
    }

    /// Returns the address of its first byte.
    pub(super) fn address(&self) -> *mut u8 {
        self.address
    }

    /// Returns its length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns address and length of `range`, if that is inside.
    fn part(&self, range: &Range<usize>) -> io::Result<(*mut u8, usize)> {
        let is_inside = range.start <= range.end && range.end <= self.bytes;
        let part = is_inside.then(|| (self.address.wrapping_add(range.start), range.end - range.start));
        part.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by a constructor and unmapped once, after the last user (`vm::stop`).
        unsafe { libc::munmap(self.address.cast(), self.bytes) };
    }
}

/// Maps memory at an address of the kernel's choice, none of which is allocated yet.
fn map_anonymous(bytes: usize, access: i32) -> io::Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let raw = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
    if raw == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(raw.cast()) }
}

/// The size of an x86-64 large page.
pub(super) const HUGE_PAGE: usize = 2 << 20;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
