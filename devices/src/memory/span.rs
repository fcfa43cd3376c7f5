//! A range of guest RAM by its address in this process, which is the form of a checked descriptor.
//!
//! The guest may write to it at any time. So bytes are copied out once, and never examined in place.

use std::sync::atomic::{AtomicU16, AtomicU32};

use vm_memory::VolatileSlice;

/// Bytes of guest RAM, laid out like the `iovec` of system calls.
///
/// Only [`GuestMemory::span`](crate::memory::GuestMemory::span) makes one. It is valid while that memory
/// lives: a holder of a span also holds a clone of the memory, as queues and chains do.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Span(libc::iovec);

// SAFETY: guest RAM is shared memory without an owner; every access goes through volatile or atomic
// operations, or through the kernel.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    /// Makes a span of the `len` bytes from `start`.
    ///
    /// # Safety
    /// The bytes must be mapped, readable and writable, for as long as the span or a copy of it is used. No
    /// Rust reference to them may exist.
    pub(crate) unsafe fn new(start: *mut u8, len: u32) -> Self {
        Self(libc::iovec { iov_base: start.cast(), iov_len: len as usize })
    }

    /// Returns the length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks a span whether it is empty")]
    pub fn len(self) -> u32 {
        // Made from 32 bits, and only ever shortened.
        self.0.iov_len as u32
    }

    /// Copies bytes from `offset` into `buffer`, as many as there are. Returns the number of bytes.
    pub fn read(self, offset: u32, buffer: &mut [u8]) -> usize {
        self.from(offset).map_or(0, |rest| rest.volatile().copy_to(buffer))
    }

    /// Copies `data` to `offset`, as far as there is space. Returns the number of bytes.
    pub fn write(self, offset: u32, data: &[u8]) -> usize {
        let Some(rest) = self.from(offset) else { return 0 };
        let count = data.len().min(rest.0.iov_len);
        rest.volatile().copy_from(data.get(..count).unwrap_or_default());
        count
    }

    /// Sets all of it to zero.
    pub fn clear(self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut offset = 0_u32;
        while let count @ 1.. = self.write(offset, &ZEROES) {
            offset = offset.saturating_add(count as u32);
        }
    }

    /// Returns the bytes after the first `offset`.
    pub fn from(self, offset: u32) -> Option<Self> {
        let len = self.len().checked_sub(offset)?;
        // SAFETY: it is a part of this span.
        Some(unsafe { Self::new(self.start().wrapping_add(offset as usize), len) })
    }

    /// Returns the first `len` bytes, or all of them.
    #[must_use]
    pub fn up_to(self, len: u32) -> Self {
        // SAFETY: it is a part of this span.
        unsafe { Self::new(self.start(), self.len().min(len)) }
    }

    /// Returns the same ranges for `preadv` and its kin.
    pub fn iovecs(spans: &[Self]) -> &[libc::iovec] {
        // SAFETY: `Span` is a transparent wrapper, so a slice of it has the layout of a slice of `iovec`.
        unsafe { std::slice::from_raw_parts(spans.as_ptr().cast(), spans.len()) }
    }

    /// Returns the 16-bit cell at `offset`, which is a multiple of 2 in a span that starts at one; `None`
    /// past the end.
    pub(crate) fn cell16(&self, offset: u32) -> Option<&AtomicU16> {
        let cell = self.cell(offset, 2)?;
        // SAFETY: aligned and inside the span, as just checked; all other accesses are atomic or volatile.
        Some(unsafe { AtomicU16::from_ptr(cell.cast()) })
    }

    /// Returns the 32-bit cell at `offset`, which is a multiple of 4 in a span that starts at one; `None`
    /// past the end.
    pub(crate) fn cell32(&self, offset: u32) -> Option<&AtomicU32> {
        let cell = self.cell(offset, 4)?;
        // SAFETY: as above.
        Some(unsafe { AtomicU32::from_ptr(cell.cast()) })
    }

    /// Returns the address of `bytes` bytes at `offset`, which is a multiple of `bytes`.
    fn cell(&self, offset: u32, bytes: u32) -> Option<*mut u8> {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.len());
        let cell = self.start().wrapping_add(offset as usize);
        (fits && cell.addr() & (bytes as usize).wrapping_sub(1) == 0).then_some(cell)
    }

    fn start(self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    fn volatile(&self) -> VolatileSlice<'_> {
        // SAFETY: the memory is mapped for as long as the span is used, which is the contract of `new`.
        unsafe { VolatileSlice::new(self.start(), self.0.iov_len) }
    }
}
