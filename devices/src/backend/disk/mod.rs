//! What a disk keeps its blocks in. Opened by the VMM, used by `virtio::blk`.

mod open;
mod overlay;
mod raw;
mod vectored;

pub use open::{DiskOpenError, FileLock};
pub use overlay::{Overlay, OverlayError, OverlayLayer, OverlaySize};
pub use raw::RawDisk;

use std::io;
use std::os::fd::RawFd;

use crate::memory::Span;

/// Bytes of a sector: the unit of everything that a driver says about a disk (virtio 1.2, 5.2).
pub const SECTOR: u64 = 512;

/// Blocks by their offset in bytes. Several threads may call it at once.
///
/// Offsets and lengths come from the guest. The device has checked them against [`capacity`](Self::capacity); a back
/// end checks them again, never panics, and never makes a file longer than it was when it was opened. Calls wait for
/// the host; they run on a thread of the disk's own.
pub trait DiskBackend: Send + Sync {
    /// Bytes, a multiple of [`SECTOR`]. It never changes.
    fn capacity(&self) -> u64;

    /// True when writes are refused, whatever the driver has negotiated.
    fn is_read_only(&self) -> bool;

    /// Fills all of `spans` from `offset` on.
    ///
    /// # Errors
    /// Those of the host; end of file when the file has become shorter.
    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()>;

    /// Writes all of `spans` from `offset` on. It is durable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// Those of the host; end of file when the file has become shorter.
    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()>;

    /// Makes everything that was written before durable.
    ///
    /// # Errors
    /// Those of the host. What was written since the last success may be lost then.
    fn flush(&self) -> io::Result<()>;

    /// Says that the content of a range is not needed any more. It reads as anything afterwards.
    ///
    /// # Errors
    /// Those of the host; not that it has no use for it.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeroes, or the first part of it where the host has to write them: returns how many bytes,
    /// at least one of a range that has any. With `unmap` the host may free what held it.
    ///
    /// # Errors
    /// Those of the host.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<u64>;

    /// The descriptor that offsets are the same in, for an engine that reads and writes it by itself; `None` when there
    /// is no single one.
    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    /// What [`write`](Self::write) looks at before it writes, for such an engine.
    ///
    /// # Errors
    /// The write would be refused.
    fn admit_write(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// The end of a range that lies inside `capacity`.
pub(crate) fn end_inside(offset: u64, len: u64, capacity: u64) -> Option<u64> {
    offset.checked_add(len).filter(|end| *end <= capacity)
}

fn out_of_range() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

#[cfg(test)]
mod tests;
