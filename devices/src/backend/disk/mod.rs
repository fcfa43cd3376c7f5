//! Storage of a disk's blocks. The VMM opens it, and `virtio::blk` uses it.

mod frozen;
mod identity;
mod open;
mod overlay;
mod raw;
mod stored;
mod vectored;

pub use frozen::{FrozenDisk, FrozenLayer};
pub use identity::FileIdentity;
pub use open::{DiskOpenError, FileLock};
pub use overlay::{Overlay, OverlayError, OverlayLayer, OverlaySize};
pub use raw::RawDisk;
pub use stored::copy_data;

use std::io;
use std::os::fd::RawFd;

use crate::memory::Span;

/// The size of a sector in bytes, the unit of a driver's requests (virtio 1.2, section 5.2).
pub const SECTOR: u64 = 512;

/// The blocks of a disk, by their offset in bytes. Several threads may call it at the same time.
///
/// Offsets and lengths come from the guest, and the device has checked them against
/// [`capacity`](Self::capacity). A back end checks them again, never panics, and never makes a file longer
/// than it was when it was opened. Calls may block on the host, and run on a thread of the disk's own.
pub trait DiskBackend: Send + Sync {
    /// Returns the size in bytes, a multiple of [`SECTOR`]. It never changes.
    fn capacity(&self) -> u64;

    /// Returns whether writes are refused, whatever the driver has negotiated.
    fn is_read_only(&self) -> bool;

    /// Fills `spans` with the blocks from `offset`.
    ///
    /// # Errors
    /// The errors of the host, and end of file if the file has become shorter.
    fn read(&self, offset: u64, spans: &[Span]) -> io::Result<()>;

    /// Writes `spans` from `offset`. The data is durable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// The errors of the host, and end of file if the file has become shorter.
    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()>;

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    /// The errors of the host. Writes since the last success may be lost then.
    fn flush(&self) -> io::Result<()>;

    /// Declares the content of a range unused. Afterwards the range may read as any bytes.
    ///
    /// # Errors
    /// The errors of the host. A host that cannot use the hint is not an error.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeroes, or only its first part if the host has to write them. Returns the number
    /// of bytes, which is at least one unless the range is empty. With `unmap`, the host may free the
    /// storage.
    ///
    /// # Errors
    /// The errors of the host.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<u64>;

    /// Returns the descriptor in which the blocks have the same offsets, for an engine that reads and writes
    /// it directly. `None` if there is no single one.
    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    /// Makes the checks of [`write`](Self::write), for such an engine.
    ///
    /// # Errors
    /// The write would be refused.
    fn admit_write(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns the present identity of the file with the blocks, or of that below an overlay; `None` for a
    /// back end without one.
    ///
    /// # Errors
    /// The host does not tell.
    fn identity(&self) -> io::Result<Option<FileIdentity>> {
        Ok(None)
    }

    /// Returns whether other disks can go on from here: from the content of this one, or from its file, which
    /// they are given.
    fn can_be_continued(&self) -> bool {
        true
    }

    /// Returns the present content, from which other disks go on; `None` if only one disk can have it. This
    /// disk must not be written to any more.
    fn freeze(&self) -> Option<FrozenDisk> {
        None
    }

    /// Returns whether the writes of the guest go to a layer of this disk, which [`branch`](Self::branch)
    /// replaces.
    fn has_layer(&self) -> bool {
        false
    }

    /// Returns the present content, as [`freeze`](Self::freeze) does, while no request is in flight. This
    /// disk goes on too: its next writes go to `layer`, which `size` limits.
    ///
    /// # Errors
    /// `layer` cannot be an overlay. The disk goes on as before.
    fn branch(
        &self,
        _layer: OverlayLayer<'_>,
        _size: OverlaySize,
    ) -> Result<Option<FrozenDisk>, OverlayError> {
        // A disk with an own layer overrides this. Others never change if they can be frozen.
        Ok(self.freeze())
    }
}

/// Returns the end of a range that lies inside `capacity`.
pub(crate) fn end_inside(offset: u64, len: u64, capacity: u64) -> Option<u64> {
    offset.checked_add(len).filter(|end| *end <= capacity)
}

fn out_of_range() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

#[cfg(test)]
mod tests;
