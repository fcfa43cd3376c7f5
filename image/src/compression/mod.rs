//! Decompression of kernels and kernel modules, whose format is recognized by its magic number.
//! [`crate::kernel_image`] and [`crate::initramfs`] call it with untrusted data: the output goes to a file in
//! memory and is limited by the caller, the decoders' memory is limited in proportion to the data, and no
//! data makes them panic.

mod lz4_legacy;
mod room;
mod xz;
mod zstd;

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use coracle_arch::nameless_file;

use self::lz4_legacy::Lz4Legacy;
pub(crate) use self::room::room_for;
pub(crate) use self::xz::Xz;
pub(crate) use self::zstd::ZstdFrames;
use crate::sparse::write_unless_zero;

/// The compression of a file, according to its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// The .xz file format, with any branch filter.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
    /// The "legacy" LZ4 frame that Linux uses: blocks of at most 8 MiB, each preceded by its compressed
    /// length.
    Lz4Legacy,
}

/// Why data could not be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// The stream is damaged or cut off, or needs more memory to decode than data of its length may use.
    #[error("its {compression} data cannot be decompressed: {source}")]
    Damaged {
        /// The compression of the data, according to its magic number.
        compression: Compression,
        /// The decoder's error.
        r#source: Box<dyn Error + Send + Sync>,
    },
    /// The output is longer than the limit.
    #[error("its {compression} data gives more than {limit} bytes")]
    TooLong {
        /// The compression of the data.
        compression: Compression,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The host cannot provide memory for the output.
    #[error("the host has no memory for what its {compression} data gives: {source}{}", fix(source))]
    NoMemory {
        /// The compression of the data.
        compression: Compression,
        /// The error of the system call.
        r#source: io::Error,
    },
}

impl Compression {
    /// Recognizes the compression by its magic number; `None` for other data, which is most often not
    /// compressed.
    pub fn of(data: &[u8]) -> Option<Self> {
        MAGIC.iter().find(|(magic, _)| data.starts_with(magic)).map(|&(_, compression)| compression)
    }

    /// Decompresses `data`, which must end where its compressed stream ends, into at most `limit` bytes.
    ///
    /// # Errors
    /// The stream is damaged or longer than `limit`, or the host cannot provide memory for it.
    pub fn decompress(self, data: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
        let held = data.len() as u64;
        let room = room_for(held).saturating_sub(held);
        // Decompress to a file first: the decoder and its window are freed before the output is in this
        // process's memory.
        let (file, len) = self.unpack(&mut { data }, room, limit as u64)?;
        let no_memory = |source| DecompressError::NoMemory { compression: self, source };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| no_memory(io::ErrorKind::OutOfMemory.into()))?;
        bytes.resize(len, 0);
        file.read_exact_at(&mut bytes, 0).map_err(no_memory)?;
        Ok(bytes)
    }

    /// Decompresses `packed` into a file that exists in memory only. Returns the file and its length, which
    /// is at most `limit` bytes. The decoder keeps at most `room` bytes of output for back-references.
    pub(crate) fn unpack(
        self,
        packed: &mut dyn BufRead,
        room: u64,
        limit: u64,
    ) -> Result<(File, u64), DecompressError> {
        let no_memory = |source| DecompressError::NoMemory { compression: self, source };
        let file = nameless_file::create_in_memory(c"coracle-unpacked", 0).map_err(no_memory)?;
        let mut stream = self.stream(packed, room).map_err(|error| self.damaged(error))?;
        match write_out(&mut *stream, &file, limit) {
            Ok(len) => Ok((file, len)),
            Err(WriteOutError::Read(source)) => Err(self.damaged(source)),
            Err(WriteOutError::Write(source)) => Err(no_memory(source)),
            Err(WriteOutError::TooLong) => Err(DecompressError::TooLong { compression: self, limit }),
        }
    }

    fn stream<'a>(self, packed: &'a mut dyn BufRead, room: u64) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(packed)),
            Self::Xz => Box::new(Xz::new(packed, false, room)?),
            Self::Zstd => Box::new(ZstdFrames::new(packed, room)),
            Self::Lz4Legacy => Box::new(Lz4Legacy::new(packed)),
        })
    }

    fn damaged(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> DecompressError {
        DecompressError::Damaged { compression: self, source: source.into() }
    }
}

/// Returns advice for a host that gives no memory.
fn fix(error: &io::Error) -> &'static str {
    // A file in memory counts as a file.
    if error.kind() == io::ErrorKind::FileTooLarge {
        "; raise the limit of file sizes (ulimit -f)"
    } else {
        ""
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "LZ4",
        })
    }
}

/// Why the output of a decoder was not written completely.
pub(crate) enum WriteOutError {
    /// The decoder failed.
    Read(io::Error),
    Write(io::Error),
    TooLong,
}

/// Writes the output of a decoder, at most `limit` bytes, to the empty file `into`. Returns the number of
/// bytes.
pub(crate) fn write_out(stream: &mut dyn Read, into: &File, limit: u64) -> Result<u64, WriteOutError> {
    let mut buffer = vec![0; BUFFER];
    let mut len = 0_u64;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(WriteOutError::Read(error)),
        };
        let end = len.saturating_add(count as u64);
        if end > limit {
            return Err(WriteOutError::TooLong);
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        write_unless_zero(into, bytes, len).map_err(WriteOutError::Write)?;
        len = end;
    }
    into.set_len(len).map_err(WriteOutError::Write)?;
    Ok(len)
}

/// The size of a write, in bytes: large enough that the cost of system calls does not matter.
const BUFFER: usize = 256 << 10;

const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

const MAGIC: [(&[u8], Compression); 4] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (LZ4_LEGACY_MAGIC, Compression::Lz4Legacy),
];

#[cfg(test)]
pub(crate) mod samples {
    //! Compressors for the tests of this module and of its users.

    use std::io::Write;

    use super::Compression;

    /// "coracle\n" 64 times, compressed by the programs gzip, xz, zstd and lz4 (`-l`).
    pub(crate) const PACKED_ELSEWHERE: [(&[u8], Compression); 4] = [
        (
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03K\xce/JL\xceI\xe5J\x1e\xa5G$\x0d\x004\xe61V\x00\
              \x02\x00\x00",
            Compression::Gzip,
        ),
        (
            b"\xfd7zXZ\x00\x00\x01i\x22\xde6\x02\x00!\x01\x16\x00\x00\x00t/\xe5\xa3\xe0\x01\xff\x00\
              \x10]\x001\x9b\xca\xaa\x98\xd48Wt\xadV'\xf6\x9b\xf8\x00\x004\xe61V\x00\x01(\x80\x04\x00\
              \x00\x00Ct.\x16>0\x0d\x8b\x02\x00\x00\x00\x00\x01YZ",
            Compression::Xz,
        ),
        (b"(\xb5/\xfd\x04X}\x00\x00@coracle\x0a\x01\x00\xf5S\x0b\x17\xc7t7\x1c", Compression::Zstd),
        (b"\x02!L\x18\x13\x00\x00\x00\x8fcoracle\x0a\x08\x00\xff\xe1Pacle\x0a", Compression::Lz4Legacy),
    ];

    /// Every compression that is supported.
    pub(crate) const ALL: [Compression; 4] =
        [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4Legacy];

    /// Compresses `plain`; xz with the x86 filter, as Linux's build does.
    pub(crate) fn pack(compression: Compression, plain: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(plain).unwrap();
                out.finish().unwrap()
            }
            Compression::Xz => {
                let mut options = lzma_rust2::XzOptions::with_preset(0);
                options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
                let mut out = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                out.write_all(plain).unwrap();
                out.finish().unwrap()
            }
            Compression::Zstd => {
                ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
            }
            Compression::Lz4Legacy => {
                let mut out = super::LZ4_LEGACY_MAGIC.to_vec();
                for block in plain.chunks(super::lz4_legacy::BLOCK) {
                    let packed = lz4_flex::block::compress(block);
                    out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
                    out.extend_from_slice(&packed);
                }
                out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{ALL, PACKED_ELSEWHERE, pack};
    use super::*;

    /// Returns bytes with near and far matches, and some x86 calls for the filter.
    fn plain(len: usize) -> Vec<u8> {
        let word = |index: usize| (index as u32).wrapping_mul(0x9e37_79b9) >> (index % 23);
        let mut bytes: Vec<u8> = (0..len / 8)
            .flat_map(|index| [&[0xe8, 0x90, 0, 0][..], &word(index).to_le_bytes()].concat())
            .collect();
        bytes.resize(len, 0x5a);
        bytes
    }

    #[test]
    fn what_other_programs_have_packed_unpacks() {
        for (packed, compression) in PACKED_ELSEWHERE {
            assert_eq!(Compression::of(packed), Some(compression));
            assert_eq!(
                compression.decompress(packed, 512).unwrap(),
                b"coracle\n".repeat(64),
                "{compression}"
            );
        }
    }

    #[test]
    fn several_lz4_blocks_unpack() {
        let plain = plain(9 << 20);
        let packed = pack(Compression::Lz4Legacy, &plain);
        assert!(Compression::Lz4Legacy.decompress(&packed, plain.len()).unwrap() == plain);
    }

    #[test]
    fn code_that_went_through_the_x86_filter_unpacks() {
        let plain = plain(300_000);
        let packed = pack(Compression::Xz, &plain);
        assert!(packed.get(12..40).unwrap().contains(&4), "the filter's number is not in the block's header");
        assert!(Compression::Xz.decompress(&packed, plain.len()).unwrap() == plain);
    }

    #[test]
    fn other_data_has_no_compression() {
        for data in [&b""[..], b"\x7fELF", b"\x1f", b"\x02\x21\x4c"] {
            assert_eq!(Compression::of(data), None, "{data:?}");
        }
    }

    #[test]
    fn truncated_streams_are_refused() {
        for (packed, compression) in PACKED_ELSEWHERE {
            for length in compression.magic_len()..packed.len() {
                let result = compression.decompress(&packed[..length], 512);
                let is_lz4_without_blocks = compression == Compression::Lz4Legacy && length == 4;
                assert!(result.is_err() || is_lz4_without_blocks, "{compression} cut at {length}");
            }
        }
    }

    #[test]
    fn one_byte_more_than_allowed_is_refused() {
        let plain = plain(20_000);
        for compression in ALL {
            let packed = pack(compression, &plain);
            compression.decompress(&packed, 20_000).unwrap();
            let error = compression.decompress(&packed, 19_999).unwrap_err();
            assert!(
                matches!(error, DecompressError::TooLong { limit: 19_999, .. }),
                "{compression}: {error}"
            );
        }
    }

    #[test]
    fn lz4_block_that_claims_more_than_there_is_is_refused() {
        let mut packed = LZ4_LEGACY_MAGIC.to_vec();
        packed.extend_from_slice(&u32::MAX.to_le_bytes());
        let error = Compression::Lz4Legacy.decompress(&packed, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("cut off"), "{error}");
    }

    #[test]
    fn streams_that_ask_for_more_than_there_is_room_for_unpack() {
        let plain = plain(300_000);
        // Window descriptor 0xff means 3.75 TiB (RFC 8878, 3.1.1.1.2).
        let zstd = [&b"\x28\xb5\x2f\xfd\x00\xff\x38\x00\x00"[..], b"windows", b"\x01\x00\x00"].concat();
        assert_eq!(Compression::Zstd.decompress(&zstd, 7).unwrap(), b"windows");
        // LZMA2's property 40, after the x86 filter in a block header of 12 bytes, means 4 GiB.
        let mut xz = pack(Compression::Xz, &plain);
        assert_eq!(xz[12..19], [2, 1, 4, 0, 0x21, 1, 12]);
        xz[18] = 40;
        assert!(Compression::Xz.decompress(&xz, plain.len()).is_err(), "its checksum is wrong");
        let mut crc = flate2::Crc::new();
        crc.update(&xz[12..20]);
        xz[20..24].copy_from_slice(&crc.sum().to_le_bytes());
        assert!(Compression::Xz.decompress(&xz, plain.len()).unwrap() == plain);
    }

    impl Compression {
        fn magic_len(self) -> usize {
            MAGIC.iter().find(|(_, compression)| *compression == self).unwrap().0.len()
        }
    }

    proptest! {
        #[test]
        fn damaged_streams_end_in_bytes_within_the_limit_or_an_error(
            which in 0usize..4,
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<proptest::sample::Index>(),
        ) {
            let compression = ALL[which];
            let mut packed = pack(compression, &plain(40_000));
            for (at, value) in damage {
                let at = at.index(packed.len());
                packed[at] = value;
            }
            packed.truncate(packed.len() - cut.index(packed.len()) / 8);
            if let Ok(bytes) = compression.decompress(&packed, 50_000) {
                prop_assert!(bytes.len() <= 50_000);
            }
        }

        #[test]
        fn noise_behind_a_magic_number_does_no_harm(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            for (magic, compression) in MAGIC {
                let data = [magic, &noise].concat();
                if let Ok(bytes) = compression.decompress(&data, 4096) {
                    prop_assert!(bytes.len() <= 4096);
                }
            }
        }
    }
}
