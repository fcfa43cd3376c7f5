//! One-shot decompression of kernels and kernel modules, told by their magic number. [`crate::kernel_image`] and
//! [`crate::initramfs`] call it with data that nobody vouches for: what comes out is limited by the caller, what the
//! decoders take meanwhile by [`MAX_WINDOW`], and no data makes them panic.

use std::error::Error;
use std::fmt;
use std::io::{self, Read};

/// What the first bytes of a file say about its compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz file format, with any of its branch filters.
    Xz,
    /// RFC 8878.
    Zstd,
    /// The "legacy" LZ4 frame that Linux uses: blocks of at most 8 MiB behind their compressed length.
    Lz4Legacy,
}

/// Why data could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The stream is damaged, cut off, or needs more memory than [`MAX_WINDOW`] to decode.
    #[error("its {compression} data cannot be decompressed")]
    Damaged {
        /// What it claims to be.
        compression: Compression,
        /// What the decoder says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// More comes out than may.
    #[error("its {compression} data gives more than {limit} bytes")]
    TooLong {
        /// What it is.
        compression: Compression,
        /// Bytes that may come out.
        limit: usize,
    },
    /// The host has no memory for what comes out.
    #[error("the host has no {bytes} bytes of memory for it")]
    NoMemory {
        /// Bytes that were asked for.
        bytes: usize,
    },
}

impl Compression {
    /// Looks at the magic number; `None` is data of another kind, most often not compressed at all.
    pub fn of(data: &[u8]) -> Option<Self> {
        MAGIC.iter().find(|(magic, _)| data.starts_with(magic)).map(|&(_, compression)| compression)
    }

    /// Decompresses `data`, which ends where its compressed stream ends, into at most `limit` bytes.
    ///
    /// # Errors
    /// The stream is damaged or gives more.
    pub fn decompress(self, data: &[u8], limit: usize) -> Result<Vec<u8>, DecompressError> {
        let out = Output::new(self, data, limit)?;
        // The decoders are large: those that others use with files are the same ones.
        let mut rest = data;
        let stream: &mut dyn Read = &mut rest;
        match self {
            Self::Gzip => out.read_all(flate2::read::GzDecoder::new(data)),
            Self::Xz => out.read_all(lzma_rust2::XzReader::new_mem_limit(stream, false, XZ_MEMORY_KIB)),
            Self::Zstd => {
                let stream = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(stream, MAX_WINDOW);
                let stream = stream.map_err(|error| self.damaged(error))?;
                out.read_all(stream)
            }
            Self::Lz4Legacy => out.lz4_legacy(data),
        }
    }

    fn damaged(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> DecompressError {
        DecompressError::Damaged { compression: self, source: source.into() }
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

/// What has come out so far.
struct Output {
    compression: Compression,
    limit: usize,
    bytes: Vec<u8>,
}

impl Output {
    /// Room for what is likely to come out of `data`; it costs no memory until it is written to.
    fn new(compression: Compression, data: &[u8], limit: usize) -> Result<Output, DecompressError> {
        let likely = data.len().saturating_mul(USUAL_RATIO).min(limit);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(likely).map_err(|_| DecompressError::NoMemory { bytes: likely })?;
        Ok(Output { compression, limit, bytes })
    }

    fn read_all(mut self, stream: impl Read) -> Result<Vec<u8>, DecompressError> {
        let most = (self.limit as u64).saturating_add(1);
        stream.take(most).read_to_end(&mut self.bytes).map_err(|error| self.compression.damaged(error))?;
        if self.bytes.len() > self.limit { Err(self.too_long()) } else { Ok(self.bytes) }
    }

    /// Source: "LZ4 Frame Format Description", section "Legacy frame".
    fn lz4_legacy(mut self, data: &[u8]) -> Result<Vec<u8>, DecompressError> {
        let cut_off = |what: String| Compression::Lz4Legacy.damaged(io::Error::other(what));
        let mut rest = data.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some((packed, tail)) = tail.split_at_checked(length) else {
                return Err(cut_off(format!("a block of {length} bytes is cut off after {}", tail.len())));
            };
            self.lz4_block(packed)?;
            rest = tail;
        }
        if rest.is_empty() {
            Ok(self.bytes)
        } else {
            Err(cut_off(format!("{} stray bytes follow the last block", rest.len())))
        }
    }

    fn lz4_block(&mut self, packed: &[u8]) -> Result<(), DecompressError> {
        let start = self.bytes.len();
        let room = self.limit.saturating_sub(start).min(LZ4_LEGACY_BLOCK);
        self.bytes.try_reserve(room).map_err(|_| DecompressError::NoMemory { bytes: room })?;
        self.bytes.resize(start.saturating_add(room), 0);
        let block = self.bytes.get_mut(start..).unwrap_or_default();
        match lz4_flex::block::decompress_into(packed, block) {
            Ok(made) => {
                self.bytes.truncate(start.saturating_add(made));
                Ok(())
            }
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if room < LZ4_LEGACY_BLOCK => {
                Err(self.too_long())
            }
            Err(error) => Err(self.compression.damaged(error)),
        }
    }

    fn too_long(&self) -> DecompressError {
        DecompressError::TooLong { compression: self.compression, limit: self.limit }
    }
}

/// The most that a stream may have its decoder remember of what has come out: what Linux's own build asks for at the
/// most (`zstd -22 --ultra`, and xz since 6.12, 128 MiB).
pub const MAX_WINDOW: u64 = 128 << 20;

/// [`MAX_WINDOW`] and what the xz decoder has beside it.
const XZ_MEMORY_KIB: u32 = (MAX_WINDOW >> 10) as u32 + XZ_BESIDE_KIB;
/// What the xz decoder takes beside its dictionary, and more.
pub(crate) const XZ_BESIDE_KIB: u32 = 1024;

/// A kernel packed by xz, the densest, unpacks to about this many times its size.
const USUAL_RATIO: usize = 8;

const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

const MAGIC: [(&[u8], Compression); 4] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (LZ4_LEGACY_MAGIC, Compression::Lz4Legacy),
];

/// The block size that the legacy frame fixes.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

#[cfg(test)]
pub(crate) mod samples {
    //! Packers for the tests of this module and of those that use it.

    use std::io::Write;

    use super::Compression;

    /// "coracle\n" 64 times over, packed by the gzip, xz, zstd and lz4 (`-l`) programs.
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

    /// Every compression that there is.
    pub(crate) const ALL: [Compression; 4] =
        [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4Legacy];

    /// Packs `plain`, xz with the x86 filter as Linux's build does.
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
                for block in plain.chunks(super::LZ4_LEGACY_BLOCK) {
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

    /// Bytes with matches near and far, and some x86 calls for the filter.
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
        assert!(error.source().unwrap().to_string().contains("cut off"), "{error}");
    }

    #[test]
    fn windows_beyond_the_limit_are_refused() {
        // Window descriptor 0x90 is 2^28 bytes (RFC 8878, 3.1.1.1.2); the xz property 36 is 256 MiB.
        let zstd = b"\x28\xb5\x2f\xfd\x00\x90\x01\x00\x00";
        assert!(Compression::Zstd.decompress(zstd, 1 << 20).is_err());
        let (sample, _) = PACKED_ELSEWHERE[1];
        let mut xz = sample.to_vec();
        xz[16] = 36;
        let crc = crc32(&xz[12..20]);
        xz[20..24].copy_from_slice(&crc.to_le_bytes());
        let error = Compression::Xz.decompress(&xz, 1 << 20).unwrap_err();
        assert!(error.source().unwrap().to_string().contains("memory"), "{:?}", error.source());
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
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
