//! The memory that a decoder may use to keep output for back-references: its window or dictionary. The
//! decoders of this module and of [`crate::rootfs`] follow this limit, whatever a file requests.

use std::io;

/// Returns how many bytes a decoder may keep for a compressed file of `len` bytes: in proportion to the file,
/// and at most [`MAX_ROOM`]. A caller that also holds the file in memory subtracts its length.
pub(crate) fn room_for(len: u64) -> u64 {
    len.saturating_mul(ROOM_PER_BYTE).saturating_add(MIN_ROOM).min(MAX_ROOM)
}

/// Creates the error for data that refers back by more than `window` bytes.
pub(crate) fn no_room(window: u64) -> io::Error {
    io::Error::other(format!(
        "that takes more than {} MiB of memory, the limit for a file of its size; compress it again with a smaller \
         window, as `zstd -19` and `xz -6` do",
        window >> 20
    ))
}

/// The upper limit, in bytes. Linux's own build makes decoders keep 128 MiB (`zstd -22 --ultra`, and xz since
/// 6.12); the Zstandard decoder allocates the next power of two, and touches only as much as it decodes.
pub(crate) const MAX_ROOM: u64 = 256 << 20;
/// The limit for small files, in bytes: more than the 8 MiB that zstd and xz use by default.
const MIN_ROOM: u64 = 24 << 20;
/// The limit in proportion to the file: a kernel compresses to a quarter or a sixth.
const ROOM_PER_BYTE: u64 = 8;
