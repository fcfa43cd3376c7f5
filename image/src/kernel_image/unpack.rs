//! Decompresses the `vmlinux` inside a bzImage (Linux, Documentation/arch/x86/boot.rst, `payload_offset` and
//! `payload_length`).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;

use coracle_arch::field::KERNEL;
use coracle_arch::x86_64::image::{ImageError, KernelImage};

use crate::compression::{Compression, DecompressError, room_for};

/// Why a kernel could not be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ImageError),
    /// The image contains nothing that can be decompressed here.
    #[error(
        "{KERNEL} {path:?} contains no kernel compressed with gzip, xz, zstd or LZ4; others can only decompress \
         themselves"
    )]
    Unknown {
        /// The path of the kernel.
        path: PathBuf,
    },
    /// The compressed kernel is damaged.
    #[error("{KERNEL} {path:?} is damaged; copy or build it again: {source}")]
    Damaged {
        /// The path of the kernel.
        path: PathBuf,
        /// The decoder's error.
        r#source: DecompressError,
    },
    /// The uncompressed length that follows the compressed kernel cannot be right.
    #[error(
        "{KERNEL} {path:?} is damaged: it claims to have {size} bytes when decompressed, more than the {most} \
         that it reserves or that its compressed size allows; copy or build it again"
    )]
    Size {
        /// The path of the kernel.
        path: PathBuf,
        /// The claimed length, in bytes.
        size: u64,
        /// The length for which its header reserves memory, in bytes.
        most: u64,
    },
    /// The decompressed kernel is shorter than claimed.
    #[error(
        "{KERNEL} {path:?} is damaged: it decompresses to {got} bytes instead of {size}; copy or build it again"
    )]
    Short {
        /// The path of the kernel.
        path: PathBuf,
        /// The claimed length, in bytes.
        size: u64,
        /// The actual length, in bytes.
        got: u64,
    },
}

/// Decompresses the ELF file in the bzImage `image` into a file that exists in memory only, positioned at its
/// start.
///
/// # Errors
/// There is none, it is damaged, or it is compressed with something other than gzip, xz, zstd or LZ4.
pub fn unpack(image: &KernelImage) -> Result<File, UnpackError> {
    unpack_known(image)?.ok_or_else(|| UnpackError::Unknown { path: image.path().to_owned() })
}

/// Decompresses the ELF file in `image` as [`unpack`] does. Returns `None` if the image has nothing that can
/// be decompressed.
pub(super) fn unpack_known(image: &KernelImage) -> Result<Option<File>, UnpackError> {
    let Some((compression, stream_len, size)) = packing(image)? else { return Ok(None) };
    let path = || image.path().to_owned();
    let init_size = image.bzimage().map_or(0, |header| header.init_size);
    let given = stream_len.saturating_mul(MAX_RATIO).saturating_add(MIN_UNPACKED);
    let most = u64::from(init_size).min(MAX_UNPACKED).min(given);
    if size > most {
        return Err(UnpackError::Size { path: path(), size, most });
    }
    let mut packed = BufReader::with_capacity(BUFFER, Payload { image, at: 0 }.take(stream_len));
    let (elf, got) = compression
        .unpack(&mut packed, room_for(stream_len), size)
        .map_err(|source| UnpackError::Damaged { path: path(), source })?;
    if got == size { Ok(Some(elf)) } else { Err(UnpackError::Short { path: path(), size, got }) }
}

/// Returns the kernel's compression, the length of the compressed stream, and the length of its content. The
/// kernel's build appends that length, in 4 little-endian bytes, to every stream that does not itself end
/// with it, as gzip's does.
fn packing(image: &KernelImage) -> Result<Option<(Compression, u64, u64)>, UnpackError> {
    let len = image.payload_len().unwrap_or_default();
    let Some(stream_len) = len.checked_sub(4) else { return Ok(None) };
    let mut head = [0; HEAD_LEN];
    let head = head.get_mut(..usize::try_from(len).unwrap_or(HEAD_LEN).min(HEAD_LEN)).unwrap_or_default();
    image.read_payload(0, head)?;
    let Some(compression) = Compression::of(head) else { return Ok(None) };
    let mut size = [0; 4];
    image.read_payload(stream_len, &mut size)?;
    let stream_len = match compression {
        Compression::Gzip => len,
        Compression::Xz | Compression::Zstd | Compression::Lz4Legacy => stream_len,
    };
    Ok(Some((compression, stream_len, u64::from(u32::from_le_bytes(size)))))
}

/// The compressed kernel, from `at` on.
struct Payload<'a> {
    image: &'a KernelImage,
    at: u64,
}

impl Read for Payload<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.image.payload_len().unwrap_or_default().saturating_sub(self.at);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..count).unwrap_or_default();
        self.image.read_payload(self.at, buffer).map_err(io::Error::other)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

/// Longer than the longest magic number.
const HEAD_LEN: usize = 16;
const BUFFER: usize = 256 << 10;

/// The maximum size of a decompressed kernel, in bytes, in addition to the memory that its header reserves
/// (`init_size`): far above any kernel (53 MiB is usual), and far below what would hurt a host.
const MAX_UNPACKED: u64 = 1 << 30;
/// The limit in proportion to the compressed size: this many bytes, plus a multiple of the compressed size.
/// xz, the strongest, compresses a kernel to a sixth.
const MIN_UNPACKED: u64 = 16 << 20;
const MAX_RATIO: u64 = 7;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use coracle_payload::Payload;
    use proptest::prelude::*;

    use super::*;
    use crate::compression::samples::{ALL, pack};

    fn open(bytes: Vec<u8>) -> KernelImage {
        KernelImage::from_bytes(Path::new("/boot/vmlinuz"), bytes).unwrap()
    }

    fn bzimage(packed: &[u8]) -> KernelImage {
        open(Payload::named("exit-7").unwrap().bzimage(packed))
    }

    fn elf() -> Vec<u8> {
        Payload::named("hello-exit").unwrap().elf()
    }

    fn bytes(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Compresses as the kernel's build does: the length follows all formats except gzip.
    fn payload(compression: Compression, plain: &[u8], size: usize) -> Vec<u8> {
        let mut payload = pack(compression, plain);
        if compression != Compression::Gzip {
            payload.extend_from_slice(&(size as u32).to_le_bytes());
        }
        payload
    }

    #[test]
    fn each_packing_unpacks_to_the_same_elf() {
        let elf = elf();
        for compression in ALL {
            let image = bzimage(&payload(compression, &elf, elf.len()));
            assert!(bytes(unpack(&image).unwrap()) == elf, "{compression}");
        }
    }

    #[test]
    fn other_packing_and_elf_files_are_left_alone() {
        for image in [bzimage(b"BZh9 and so on"), bzimage(b""), bzimage(b"\x02\x21\x4c"), open(elf())] {
            assert!(unpack_known(&image).unwrap().is_none());
            let error = unpack(&image).unwrap_err().to_string();
            assert!(error.contains("\"/boot/vmlinuz\" contains no kernel compressed with gzip"), "{error}");
        }
    }

    #[test]
    fn length_that_differs_is_refused_with_the_user_s_path() {
        for compression in [Compression::Xz, Compression::Zstd, Compression::Lz4Legacy] {
            let error = unpack(&bzimage(&payload(compression, b"kernel", 7))).unwrap_err();
            assert_eq!(
                error.to_string(),
                "kernel \"/boot/vmlinuz\" is damaged: it decompresses to 6 bytes instead of 7; copy or build \
                 it again"
            );
            let error = unpack(&bzimage(&payload(compression, b"kernel", 5))).unwrap_err();
            assert!(matches!(error, UnpackError::Damaged { .. }), "{error}");
        }
    }

    #[test]
    fn length_beyond_what_the_header_reserves_is_refused_before_unpacking() {
        let error = unpack(&bzimage(&payload(Compression::Lz4Legacy, b"kernel", 9 << 20))).unwrap_err();
        assert!(matches!(error, UnpackError::Size { size: 0x90_0000, most: 0x80_0000, .. }), "{error}");
        // A decompression bomb: 100 MiB of zeros that claim to be few.
        let error = unpack(&bzimage(&payload(Compression::Lz4Legacy, &vec![0; 100 << 20], 64))).unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
    }

    proptest! {
        #[test]
        fn damaged_kernels_give_an_elf_of_the_stated_length_or_an_error(
            which in 0usize..4,
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let elf = elf();
            let mut packed = payload(ALL[which], &elf, elf.len());
            for (at, value) in damage {
                let at = at.index(packed.len());
                packed[at] = value;
            }
            if let Ok(file) = unpack(&bzimage(&packed)) {
                prop_assert!(file.metadata().unwrap().len() <= 0x80_0000);
            }
        }
    }
}
