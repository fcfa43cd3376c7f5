//! The memory that a decoder may keep of what has come out, for later references to it: its window, its
//! dictionary. The decoders of this module and of [`crate::rootfs`] follow it, whatever a file asks for.

use std::io;

/// Most bytes that the decoder of a packed file of `len` bytes may keep: in proportion to the file, and never
/// more than [`MAX_ROOM`]. Whoever has the file in memory meanwhile subtracts it.
pub(crate) fn room_for(len: u64) -> u64 {
    len.saturating_mul(ROOM_PER_BYTE).saturating_add(MIN_ROOM).min(MAX_ROOM)
}

/// The error for data that refers back to more than `window` bytes.
pub(crate) fn no_room(window: u64) -> io::Error {
    io::Error::other(format!(
        "that takes more than {} MiB of memory, the limit for a file of its size; pack it again with a smaller window, \
         as `zstd -19` and `xz -6` do",
        window >> 20
    ))
}

/// Linux's own build has decoders keep 128 MiB (`zstd -22 --ultra`, and xz since 6.12). That of Zstandard
/// allocates the next power of two, and touches as much as comes out.
pub(crate) const MAX_ROOM: u64 = 256 << 20;
/// More than the 8 MiB that zstd and xz take unless they are asked for more.
const MIN_ROOM: u64 = 24 << 20;
/// A kernel packs to a fourth or a sixth.
const ROOM_PER_BYTE: u64 = 8;
