//! Decompresses a tar into an unnamed file, so that its members can be read in place.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use flate2::bufread::GzDecoder;

use crate::compression::{WriteOutError, Xz, ZstdFrames, room_for, write_out};
use crate::temporary;

/// The compression of a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Xz,
    Zstd,
    Lz4,
}

impl Packing {
    /// Recognizes the compression by the magic number of a file.
    pub(super) fn of(start: &[u8]) -> Option<Packing> {
        MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, packing)| *packing)
    }

    /// Returns its common name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Packing::Gzip => "gzip",
            Packing::Xz => "xz",
            Packing::Zstd => "zstd",
            Packing::Lz4 => "LZ4",
        }
    }
}

/// Why a tar cannot be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The stream is damaged or cut short, or the host cannot read it.
    #[error("its {packing} data cannot be unpacked: {source}")]
    Damaged {
        /// The compression.
        packing: &'static str,
        /// The decoder's error.
        r#source: io::Error,
    },
    /// The output is larger than any root.
    #[error("its {packing} data gives more than {} GiB", MAX_UNPACKED >> 30)]
    TooLong {
        /// The compression.
        packing: &'static str,
    },
    /// The host has no room for the output.
    #[error("it cannot be unpacked to {folder}: {source}{}", temporary::advice())]
    Write {
        /// The directory for the output.
        folder: String,
        /// The error of the system call.
        r#source: io::Error,
    },
}

/// Returns up to `len` bytes from the start of the decompressed content.
///
/// # Errors
/// The stream is damaged that early, or the host cannot read it.
pub(super) fn first_bytes(packing: Packing, packed: &File, len: u64) -> Result<Vec<u8>, UnpackError> {
    let mut source = BufReader::new(packed);
    let mut bytes = Vec::new();
    // So few bytes fit into any window; but the Zstandard decoder returns nothing before its window is full.
    match decoder(packing, &mut source).and_then(|stream| stream.take(len).read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(source) => Err(UnpackError::Damaged { packing: packing.name(), source }),
    }
}

/// Returns the decompressed stream of `source`. The decoder's memory is limited in proportion to the file's
/// length, whatever the file requests.
fn decoder<'a>(packing: Packing, source: &'a mut BufReader<&File>) -> io::Result<Box<dyn Read + 'a>> {
    let room = room_for(source.get_ref().metadata()?.len());
    source.get_mut().rewind()?;
    let source: &mut dyn BufRead = source;
    Ok(match packing {
        Packing::Gzip => Box::new(GzipMembers { member: Some(GzDecoder::new(source)) }),
        Packing::Xz => Box::new(Xz::new(source, true, room)?),
        Packing::Zstd => Box::new(ZstdFrames::new(source, room)),
        Packing::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(source)),
    })
}

/// Decompresses `packed` into the empty file `into`, and returns the number of bytes written.
pub(super) fn unpack(packing: Packing, packed: &File, into: &File, folder: &str) -> Result<u64, UnpackError> {
    let damaged = |source| UnpackError::Damaged { packing: packing.name(), source };
    let mut source = BufReader::with_capacity(BUFFER, packed);
    let mut stream = decoder(packing, &mut source).map_err(damaged)?;
    write_out(&mut *stream, into, MAX_UNPACKED).map_err(|error| match error {
        WriteOutError::Read(source) => damaged(source),
        WriteOutError::Write(source) => UnpackError::Write { folder: folder.to_owned(), source },
        WriteOutError::TooLong => UnpackError::TooLong { packing: packing.name() },
    })
}

/// Consecutive gzip members (RFC 1952, 2.2). Zeroes after a member, such as the padding of a tape block, are
/// ignored, as in gzip and tar.
struct GzipMembers<R: BufRead> {
    /// `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(mut member) = self.member.take() {
            let count = member.read(buffer);
            if !matches!(count, Ok(0)) || buffer.is_empty() {
                self.member = Some(member);
                return count;
            }
            let mut source = member.into_inner();
            if skip_zeroes(&mut source)? {
                self.member = Some(GzDecoder::new(source));
            }
        }
        Ok(0)
    }
}

/// Skips to the next byte that is not zero; `false` if there is none.
fn skip_zeroes(source: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = source.fill_buf()?;
        let zeroes = bytes.iter().take_while(|byte| **byte == 0).count();
        let (is_end, is_found) = (bytes.is_empty(), zeroes < bytes.len());
        source.consume(zeroes);
        if is_end || is_found {
            return Ok(is_found);
        }
    }
}

const MAGIC: [(&[u8], Packing); 4] = [
    (&[0x1f, 0x8b], Packing::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Packing::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
    (&[0x04, 0x22, 0x4d, 0x18], Packing::Lz4),
];

/// The maximum size of a decompressed tar, in bytes, which is how much a decompression bomb can write to the
/// disk.
const MAX_UNPACKED: u64 = 64 << 30;
const BUFFER: usize = 256 << 10;

#[cfg(test)]
mod tests;
