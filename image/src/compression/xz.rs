//! Decompresses .xz streams with a dictionary as large as the caller has room for, whatever the first block
//! requests. Data that then refers back further is an error; most data does not, since `xz -9` requests 64
//! MiB for any file.
//!
//! Source: the .xz file format 1.2.0, 2.1.1, 3.1 and 5.3.1.

use std::io::{self, Read};

use lzma_rust2::XzReader;

use super::room::no_room;

/// The decompressed content of an .xz file.
pub(crate) struct Xz<'a> {
    reader: XzReader<Box<dyn Read + 'a>>,
    dictionary: u64,
    /// Whether the first block requested more than it got.
    is_short: bool,
}

impl<'a> Xz<'a> {
    /// Decompresses `source`, a single stream or several, with a dictionary of at most `room` bytes. Later
    /// blocks must not request more than the first.
    ///
    /// # Errors
    /// The source cannot be read.
    pub(crate) fn new(mut source: impl Read + 'a, is_many: bool, room: u64) -> io::Result<Xz<'a>> {
        let (bits, dictionary) = dictionary_within(room);
        let mut start = Vec::new();
        source.by_ref().take(STREAM_HEADER + 1).read_to_end(&mut start)?;
        let header_len = start.last().map_or(0, |len| u64::from(*len).saturating_add(1).saturating_mul(4));
        source.by_ref().take(header_len.saturating_sub(1)).read_to_end(&mut start)?;
        let block = start.get_mut(STREAM_HEADER as usize..).unwrap_or_default();
        let is_short = lower_dictionary(block, bits).is_some();
        let source: Box<dyn Read> = Box::new(io::Cursor::new(start).chain(source));
        let limit = u32::try_from(dictionary >> 10).unwrap_or(u32::MAX).saturating_add(BESIDE_KIB);
        Ok(Xz { reader: XzReader::new_mem_limit(source, is_many, limit), dictionary, is_short })
    }
}

impl Read for Xz<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => no_room(self.dictionary),
            // A reference beyond the dictionary has this error kind; damage has others.
            io::ErrorKind::Other if self.is_short => no_room(self.dictionary),
            _ => error,
        })
    }
}

/// Returns the largest dictionary within `room`, and its encoding in a header (5.3.1): a shifted two-bit
/// number.
fn dictionary_within(room: u64) -> (u8, u64) {
    let size = |bits: u8| (2 | u64::from(bits & 1)) << (bits / 2).saturating_add(11);
    let bits = (0..MAX_BITS).rev().find(|bits| size(*bits) <= room).unwrap_or_default();
    (bits, size(bits))
}

/// Lowers the dictionary size in a block header to `bits` if it is larger. Returns `None` if it is not, or if
/// the header is not valid: the decoder then reports the error.
fn lower_dictionary(block: &mut [u8], bits: u8) -> Option<()> {
    let (header, crc) = block.split_last_chunk_mut::<4>()?;
    if crc32(header) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut at = 2;
    let flags = *header.get(1)?;
    for _ in 0..(flags >> 6).count_ones() {
        number(header, &mut at)?;
    }
    for _ in 0..flags & 3 {
        number(header, &mut at)?;
        let len = number(header, &mut at)?;
        at = at.checked_add(usize::try_from(len).ok()?)?;
    }
    // The last filter is LZMA2.
    let [LZMA2, 1, stated] = header.get_mut(at..)?.first_chunk_mut::<3>()? else { return None };
    if *stated <= bits {
        return None;
    }
    *stated = bits;
    *crc = crc32(header).to_le_bytes();
    Some(())
}

/// Reads a number of variable length (1.2) at `at`, which it advances.
fn number(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at = at.checked_add(1)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

const STREAM_HEADER: u64 = 12;
const LZMA2: u8 = 0x21;
/// The encoding of 4 GiB - 1, the largest dictionary.
const MAX_BITS: u8 = 40;
/// More than the decoder needs besides its dictionary, in KiB.
const BESIDE_KIB: u32 = 1024;
