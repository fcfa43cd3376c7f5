//! One-shot decompression of kernels and kernel modules, told by their magic number.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

/// What the first bytes of a file say about its compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz file format.
    Xz,
    /// RFC 8878.
    Zstd,
    /// The "legacy" LZ4 frame that Linux uses: blocks of at most 8 MiB behind their compressed length.
    Lz4Legacy,
}

impl Compression {
    /// Looks at the magic number; `None` is data of another kind, most often not compressed at all.
    pub(crate) fn of(data: &[u8]) -> Option<Self> {
        MAGIC.iter().find(|(magic, _)| data.starts_with(magic)).map(|&(_, compression)| compression)
    }

    /// Decompresses `data`, which ends where its compressed stream ends.
    ///
    /// # Errors
    /// The stream is damaged or makes more than 1 GiB.
    pub(crate) fn decompress(self, data: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Gzip => read_all(flate2::read::GzDecoder::new(data)),
            Self::Xz => read_all(lzma_rust2::XzReader::new(data, false)),
            Self::Zstd => read_all(ruzstd::decoding::StreamingDecoder::new(data)?),
            Self::Lz4Legacy => lz4_legacy(data),
        }
        .with_context(|| format!("cannot decompress {self:?} data"))
    }
}

fn read_all(stream: impl Read) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    stream.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut out)?;
    ensure!(out.len() <= MAX_OUTPUT, "more than {MAX_OUTPUT} bytes come out");
    Ok(out)
}

/// Source: "LZ4 Frame Format Description", section "Legacy frame".
fn lz4_legacy(data: &[u8]) -> Result<Vec<u8>> {
    let mut rest = data.get(LZ4_LEGACY_MAGIC.len()..).context("no magic number")?;
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK];
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((packed, tail)) = tail.split_at_checked(length) else {
            bail!("a block of {length} bytes is cut off after {} bytes", tail.len());
        };
        let made = lz4_flex::block::decompress_into(packed, &mut block)?;
        out.extend_from_slice(block.get(..made).context("a block is larger than 8 MiB")?);
        ensure!(out.len() <= MAX_OUTPUT, "more than {MAX_OUTPUT} bytes come out");
        rest = tail;
    }
    ensure!(rest.is_empty(), "{} stray bytes follow the last block", rest.len());
    Ok(out)
}

const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

const MAGIC: [(&[u8], Compression); 4] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (LZ4_LEGACY_MAGIC, Compression::Lz4Legacy),
];

/// The block size that the legacy frame fixes.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// Far above any kernel (53 MiB is usual), far below what would hurt the machine.
const MAX_OUTPUT: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    /// "coracle\n" 64 times over, packed by the gzip, xz, zstd and lz4 (`-l`) programs.
    const SAMPLES: [(&[u8], Compression); 4] = [
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

    #[test]
    fn gzip_xz_zstd_and_lz4_samples_unpack() {
        for (packed, compression) in SAMPLES {
            assert_eq!(Compression::of(packed), Some(compression));
            assert_eq!(compression.decompress(packed).unwrap(), b"coracle\n".repeat(64), "{compression:?}");
        }
    }

    #[test]
    fn other_data_has_no_compression() {
        for data in [&b""[..], b"\x7fELF", b"\x1f", b"\x02\x21\x4c"] {
            assert_eq!(Compression::of(data), None, "{data:?}");
        }
    }

    #[test]
    fn truncated_streams_are_refused() {
        for (packed, compression) in SAMPLES {
            let cut = &packed[..packed.len() - 5];
            assert!(compression.decompress(cut).is_err(), "{compression:?}");
        }
    }

    #[test]
    fn lz4_block_that_claims_more_than_there_is_is_refused() {
        let mut packed = LZ4_LEGACY_MAGIC.to_vec();
        packed.extend_from_slice(&u32::MAX.to_le_bytes());
        let error = Compression::Lz4Legacy.decompress(&packed).unwrap_err();
        assert!(format!("{error:#}").contains("cut off"), "{error:#}");
    }
}
