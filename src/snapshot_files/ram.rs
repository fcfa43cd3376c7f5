//! The file `memory`: the RAM, region by region, with holes for what is zero; then the end, which makes the
//! file that of its snapshot, and has a hash for each block of 2 MiB.
//!
//! ```text
//! RAM, as many bytes as the guest has
//! end, 64 bytes:   magic (8), format (4), length of a block (4), id (16), length of the RAM (8), 0 (20),
//!                  CRC-32 of these (4)
//! 32 bytes for each block: the SHA-256 of the block, or zeroes if the block is zero
//! ```
//!
//! A restore reads the 64 bytes only. The manifest has the hash of the whole end, so that a flipped bit in
//! the file is found by reading all of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::{FORMAT, Hash, SnapshotId};
use crate::memory::next_data;

/// The reason why the file `memory` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryFileError {
    /// The file has another length.
    #[error("it has {len} bytes, and the manifest says {expected}; it was copied in part, or is damaged")]
    Length {
        /// The length of the file.
        len: u64,
        /// The length in the manifest.
        expected: u64,
    },
    /// The length in the manifest does not fit the RAM of the machine.
    #[error(
        "machine.memory_mib: {ram} bytes of RAM make a file of {expected}, and memory.bytes is {stated}; the manifest \
         was edited"
    )]
    Stated {
        /// The length of the RAM.
        ram: u64,
        /// The length of its file.
        expected: u64,
        /// The length in the manifest.
        stated: u64,
    },
    /// The bytes after the RAM are damaged.
    #[error("the {END} bytes after the RAM, at offset {offset}, are damaged")]
    End {
        /// Their offset in the file.
        offset: u64,
    },
    /// The format is newer than this version.
    #[error("its format is {format}, and this version reads 1 to {FORMAT}; use a newer Coracle")]
    Format {
        /// The format.
        format: u32,
    },
    /// The file belongs to another snapshot.
    #[error("it belongs to the snapshot {id}, and the manifest to {expected}; copy the files together")]
    OtherSnapshot {
        /// The id in the file.
        id: SnapshotId,
        /// The id in the manifest.
        expected: SnapshotId,
    },
    /// The list of hashes is damaged.
    #[error("the hashes after the RAM, from offset {offset}, do not match the manifest; they are damaged")]
    Hashes {
        /// The offset of the first.
        offset: u64,
    },
    /// A block of RAM is damaged.
    #[error("the {len} bytes from offset {offset} do not match their hash; they are damaged")]
    Block {
        /// The offset in the file.
        offset: u64,
        /// The length of the block.
        len: u64,
    },
    /// There is content where the state says that there is none.
    #[error("there is content at offset {offset}, where the state has none; the files do not fit each other")]
    Content {
        /// The offset in the file.
        offset: u64,
    },
}

/// Returns the length of the file for `ram` bytes of RAM, at most 1 TiB.
pub(crate) fn file_len(ram: u64) -> u64 {
    ram + (END + HASH * block_count(ram)) as u64
}

/// Writes the end of a file that has all of its RAM. Returns the hash of the end.
///
/// The RAM is read once more, so that the machine does not have to wait for its hashes. It is on its way to
/// the medium meanwhile.
pub(crate) fn write_end(file: &File, id: &SnapshotId, ram: u64) -> io::Result<Hash> {
    begin_writing(file);
    let mut end = header(id, ram);
    let mut blocks = Blocks::of(file, ram);
    while let Some((_, hash)) = blocks.next_hash()? {
        end.extend_from_slice(&hash);
    }
    file.write_all_at(&end, ram)?;
    Ok(Hash::of(&end))
}

/// Lets the host begin to write what is in memory of this file. Only the sync that follows tells whether that
/// worked.
fn begin_writing(file: &File) {
    // SAFETY: the descriptor is open; the range is the whole file.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Checks that the open file is that of the snapshot `id` with `ram` bytes of RAM. Reads 64 bytes.
pub(crate) fn check_end(file: &File, id: &SnapshotId, ram: u64) -> io::Result<Result<(), MemoryFileError>> {
    let mut found = [0; END];
    file.read_exact_at(&mut found, ram)?;
    Ok(compare_end(&found, id, ram))
}

fn compare_end(found: &[u8; END], id: &SnapshotId, ram: u64) -> Result<(), MemoryFileError> {
    let damaged = MemoryFileError::End { offset: ram };
    let field = |range: Range<usize>| found.get(range).unwrap_or_default();
    let checksum = crc32fast::hash(field(0..END - 4)).to_le_bytes();
    if field(0..8) != MAGIC || field(END - 4..END) != checksum {
        return Err(damaged);
    }
    let format =
        found.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes));
    if !(1..=FORMAT).contains(&format) {
        return Err(MemoryFileError::Format { format });
    }
    let own = found.get(16..).and_then(|rest| rest.first_chunk()).copied().map(SnapshotId::from_bytes);
    match own {
        Some(own) if own != *id => Err(MemoryFileError::OtherSnapshot { id: own, expected: *id }),
        _ if found[..] == header(id, ram)[..] => Ok(()),
        _ => Err(damaged),
    }
}

/// Compares all RAM with its hashes, and those with `end`, their hash in the manifest. Outside of `content`,
/// ranges of the file in order, there has to be none.
pub(crate) fn check_blocks(
    file: &File,
    ram: u64,
    end: &Hash,
    content: &[Range<u64>],
) -> io::Result<Result<(), MemoryFileError>> {
    let mut stored = vec![0; END + HASH * block_count(ram)];
    file.read_exact_at(&mut stored, ram)?;
    if Hash::of(&stored) != *end {
        return Ok(Err(MemoryFileError::Hashes { offset: ram }));
    }
    let mut blocks = Blocks::of(file, ram);
    for stored in stored.get(END..).unwrap_or_default().chunks(HASH) {
        let Some((block, hash)) = blocks.next_hash()? else { break };
        if hash != stored {
            let len = block.end - block.start;
            return Ok(Err(MemoryFileError::Block { offset: block.start, len }));
        }
        let is_inside = |part: &Range<u64>| part.start <= block.start && block.end <= part.end;
        if hash != ZERO_BLOCK && !content.iter().any(is_inside) {
            return Ok(Err(MemoryFileError::Content { offset: block.start }));
        }
    }
    Ok(Ok(()))
}

fn header(id: &SnapshotId, ram: u64) -> Vec<u8> {
    let mut end = Vec::with_capacity(END + HASH * block_count(ram));
    end.extend_from_slice(MAGIC);
    end.extend_from_slice(&FORMAT.to_le_bytes());
    end.extend_from_slice(&(BLOCK as u32).to_le_bytes());
    end.extend_from_slice(id.bytes());
    end.extend_from_slice(&ram.to_le_bytes());
    end.resize(END - 4, 0);
    end.extend_from_slice(&crc32fast::hash(&end).to_le_bytes());
    end
}

/// The blocks of RAM in a file, and their hashes in order. Holes are not read.
struct Blocks<'a> {
    file: &'a File,
    ram: u64,
    at: u64,
    /// The first range with data that ends after `at`.
    data: Option<Range<u64>>,
    buffer: Vec<u8>,
}

impl Blocks<'_> {
    fn of(file: &File, ram: u64) -> Blocks<'_> {
        Blocks { file, ram, at: 0, data: Some(0..0), buffer: Vec::new() }
    }

    fn next_hash(&mut self) -> io::Result<Option<(Range<u64>, [u8; HASH])>> {
        let Self { file, ram, at, data, buffer } = self;
        let block = *at..(*at + BLOCK).min(*ram);
        if block.is_empty() {
            return Ok(None);
        }
        *at = block.end;
        if data.as_ref().is_some_and(|data| data.end <= block.start) {
            *data = next_data(file, &(block.start..*ram))?;
        }
        if data.as_ref().is_none_or(|data| data.start >= block.end) {
            return Ok(Some((block, ZERO_BLOCK)));
        }
        buffer.resize((block.end - block.start) as usize, 0);
        file.read_exact_at(buffer, block.start)?;
        let is_zero = buffer.iter().all(|byte| *byte == 0);
        let hash = if is_zero { ZERO_BLOCK } else { Hash::of(buffer).0 };
        Ok(Some((block, hash)))
    }
}

fn block_count(ram: u64) -> usize {
    ram.div_ceil(BLOCK) as usize
}

const MAGIC: &[u8; 8] = b"CORAMEM\n";
/// The bytes of a block: a large page, so that a list of hashes is short and a block is read quickly.
const BLOCK: u64 = 2 << 20;
/// The bytes between the RAM and the hashes.
const END: usize = 64;
const HASH: usize = 32;
/// The hash of a block of zeroes, which nobody has to compute.
const ZERO_BLOCK: [u8; HASH] = [0; HASH];

#[cfg(test)]
mod tests;
