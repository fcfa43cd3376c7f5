//! Unpacks a compressed tar into a file without a name, so that its members can be read in place.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::content::write_unless_zero;
use crate::compression::{MAX_WINDOW, XZ_BESIDE_KIB};

/// What a tar is packed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Xz,
    Zstd,
    Lz4,
}

impl Packing {
    /// Looks at the magic number of a file.
    pub(super) fn of(start: &[u8]) -> Option<Packing> {
        MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, packing)| *packing)
    }

    /// What people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Packing::Gzip => "gzip",
            Packing::Xz => "xz",
            Packing::Zstd => "zstd",
            Packing::Lz4 => "LZ4",
        }
    }
}

/// Why a tar was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is damaged, cut short, or the host cannot read it.
    #[error("its {packing} data cannot be unpacked")]
    Damaged {
        /// What it is packed by.
        packing: &'static str,
        /// What the decoder says.
        source: io::Error,
    },
    /// More comes out than any root has.
    #[error("its {packing} data gives more than {} GiB", MAX_UNPACKED >> 30)]
    TooLong {
        /// What it is packed by.
        packing: &'static str,
    },
    /// The host has no room.
    #[error("it cannot be unpacked to {folder} (TMPDIR chooses another folder)")]
    Write {
        /// Where it was to go.
        folder: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Up to `len` bytes of what comes out of `packed` first.
///
/// # Errors
/// The stream is damaged that early, or the host cannot read it.
pub(super) fn first_bytes(packing: Packing, packed: &File, len: u64) -> Result<Vec<u8>, UnpackError> {
    let mut source = BufReader::new(packed);
    let mut bytes = Vec::new();
    // So few bytes fill no window but that of Zstandard, which shows nothing before its window is full.
    let stream = room_for(packed).and_then(|room| decoder(packing, &mut source, room, MAX_WINDOW));
    match stream.and_then(|stream| stream.take(len).read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(source) => Err(UnpackError::Damaged { packing: packing.name(), source }),
    }
}

/// Most bytes that the decoder of a file may keep of what has come out, for later references to it (its window, its
/// dictionary): in proportion to the file, whatever the file says that it takes.
fn room_for(packed: &File) -> io::Result<u64> {
    let len = packed.metadata()?.len();
    Ok(len.saturating_mul(ROOM_PER_BYTE).saturating_add(MIN_ROOM).min(MAX_WINDOW))
}

/// More came out than there is room for while references to all of it were possible.
fn no_room(room: u64) -> io::Error {
    io::Error::other(format!(
        "that takes more than {} MiB of memory, the limit for a file of its size; pack it again with a smaller window, \
         as `zstd -19` and `xz -6` do",
        room >> 20
    ))
}

/// The stream that comes out of `source`: frames of Zstandard keep at most `room` bytes, and an .xz file may say that it
/// keeps `dictionary`, which costs no memory before so much has come out.
fn decoder<'a>(
    packing: Packing,
    source: &'a mut BufReader<&File>,
    room: u64,
    dictionary: u64,
) -> io::Result<Box<dyn Read + 'a>> {
    source.get_mut().rewind()?;
    Ok(match packing {
        Packing::Gzip => Box::new(GzipMembers { member: Some(GzDecoder::new(source)) }),
        Packing::Xz => {
            let source: &mut dyn Read = source;
            let limit = u32::try_from(dictionary >> 10).unwrap_or(u32::MAX).saturating_add(XZ_BESIDE_KIB);
            Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, limit))
        }
        Packing::Zstd => Box::new(ZstdFrames::new(source, room)),
        Packing::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(source)),
    })
}

/// Unpacks `packed` into the empty file `into`; returns the bytes that came out.
pub(super) fn unpack(packing: Packing, packed: &File, into: &File, folder: &str) -> Result<u64, UnpackError> {
    let damaged = |source| UnpackError::Damaged { packing: packing.name(), source };
    let room = room_for(packed).map_err(damaged)?;
    match unpack_within(packing, packed, (into, folder), (room, room), MAX_UNPACKED) {
        // `xz -9` says 64 MiB of everything, however little it is.
        Err(UnpackError::Damaged { source, .. }) if source.kind() == io::ErrorKind::OutOfMemory => {
            into.set_len(0).map_err(|source| UnpackError::Write { folder: folder.to_owned(), source })?;
            let unpacked =
                unpack_within(packing, packed, (into, folder), (room, MAX_WINDOW), xz_output(room));
            unpacked.map_err(|error| match error {
                UnpackError::TooLong { .. } => damaged(no_room(room)),
                other => other,
            })
        }
        unpacked => unpacked,
    }
}

/// What may come out of an .xz file that asks for a larger dictionary than `room`: the decoder has one of the next power of
/// two, and reads ahead.
fn xz_output(room: u64) -> u64 {
    let most = room.saturating_add(XZ_MORE);
    (1 << most.checked_ilog2().unwrap_or_default()) - (1 << 20)
}

/// Unpacks at most `limit` bytes within `room` and `dictionary`, as [`decoder`] takes them.
fn unpack_within(
    packing: Packing,
    packed: &File,
    (into, folder): (&File, &str),
    (room, dictionary): (u64, u64),
    limit: u64,
) -> Result<u64, UnpackError> {
    let mut source = BufReader::with_capacity(BUFFER, packed);
    let damaged = |source| UnpackError::Damaged { packing: packing.name(), source };
    let mut stream = decoder(packing, &mut source, room, dictionary).map_err(damaged)?;
    let name = packing.name();
    let mut buffer = vec![0; BUFFER];
    let mut len = 0_u64;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(damaged(source)),
        };
        let write = write_unless_zero(into, buffer.get(..count).unwrap_or_default(), len);
        write.map_err(|source| UnpackError::Write { folder: folder.to_owned(), source })?;
        len += count as u64;
        if len > limit {
            return Err(UnpackError::TooLong { packing: name });
        }
    }
    into.set_len(len).map_err(|source| UnpackError::Write { folder: folder.to_owned(), source })?;
    Ok(len)
}

/// One gzip member after the other (RFC 1952, 2.2). Zeroes after a member, up to a whole block of a tape say, are
/// nothing, as gzip and tar have it.
struct GzipMembers<R: BufRead> {
    /// None at the end.
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

/// Goes to the next byte that is not zero; false when there is none.
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

/// One Zstandard frame after the other (RFC 8878, 3.1).
struct ZstdFrames<R: BufRead> {
    source: R,
    frame: FrameDecoder,
    /// Most bytes that may be in the window.
    room: u64,
    /// Bytes that may have come out since some could be taken: all of them are in the window.
    kept: u64,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R, room: u64) -> ZstdFrames<R> {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(MAX_WINDOW);
        ZstdFrames { source, frame, room, kept: 0 }
    }

    /// Goes to the next frame; false when there is none.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            let source: &mut dyn Read = &mut self.source;
            match self.frame.init(source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.frame.can_collect() == 0 {
            if self.frame.is_finished() {
                let (read, made) =
                    (self.frame.get_checksum_from_data(), self.frame.get_calculated_checksum());
                if read.is_some() && read != made {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum is wrong"));
                }
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.kept = 0;
            } else {
                self.kept = self.kept.saturating_add(ZSTD_BLOCK);
                if self.kept > self.room {
                    return Err(no_room(self.room));
                }
                let step = BlockDecodingStrategy::UptoBlocks(1);
                let source: &mut dyn Read = &mut self.source;
                self.frame.decode_blocks(source, step).map_err(io::Error::other)?;
            }
        }
        self.kept = 0;
        self.frame.read(buffer)
    }
}

const MAGIC: [(&[u8], Packing); 4] = [
    (&[0x1f, 0x8b], Packing::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Packing::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
    (&[0x04, 0x22, 0x4d, 0x18], Packing::Lz4),
];

/// Most bytes of an unpacked tar: what a bomb may write to the disk before it is found out.
const MAX_UNPACKED: u64 = 64 << 30;
const BUFFER: usize = 256 << 10;
/// What a decoder may keep of any file: more than the 8 MiB that zstd and xz take unless they are told otherwise.
const MIN_ROOM: u64 = 16 << 20;
/// The same for each byte of the file. A root packs to a third or a quarter.
const ROOM_PER_BYTE: u64 = 7;
/// What the dictionary of xz may have beside these.
const XZ_MORE: u64 = 8 << 20;
/// Most bytes that come out of a block (RFC 8878, 3.1.1.2.4).
const ZSTD_BLOCK: u64 = 128 << 10;

#[cfg(test)]
mod tests;
