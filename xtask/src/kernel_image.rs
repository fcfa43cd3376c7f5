//! The `vmlinux` inside a bzImage, unpacked on the host. Source of all offsets: "The Linux/x86 Boot
//! Protocol".

use anyhow::{Context, Result, ensure};

use crate::decompress::Compression;

/// Takes the kernel's ELF image out of a bzImage.
///
/// # Errors
/// The image is no bzImage of protocol 2.08 or newer, its payload is outside the file, or is compressed in a
/// way that is not known here, or what comes out is not ELF.
pub(crate) fn vmlinux(bzimage: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        bzimage.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS"),
        "not a bzImage: no \"HdrS\" at 0x202"
    );
    let version = field::<2>(bzimage, VERSION).map(u16::from_le_bytes)?;
    ensure!(
        version >= 0x208,
        "boot protocol {version:#x} is older than 0x208: its header does not name the payload"
    );
    let setup_sectors = match field::<1>(bzimage, SETUP_SECTORS)? {
        [0] => 4, // what zero stands for, by the protocol
        [count] => usize::from(count),
    };
    let offset = field::<4>(bzimage, PAYLOAD_OFFSET).map(u32::from_le_bytes)? as usize;
    let length = field::<4>(bzimage, PAYLOAD_LENGTH).map(u32::from_le_bytes)? as usize;
    let start = (setup_sectors + 1) * 512 + offset;
    let payload = bzimage
        .get(start..)
        .and_then(|rest| rest.get(..length))
        .with_context(|| format!("the payload at {start:#x} ({length} bytes) ends outside the image"))?;

    let image = unpack(payload)?;
    ensure!(image.starts_with(b"\x7fELF"), "the payload is not an ELF image");
    Ok(image)
}

/// The kernel build writes the unpacked size, 4 bytes little-endian, behind every stream that does not end
/// with it by itself, as gzip's does.
fn unpack(payload: &[u8]) -> Result<Vec<u8>> {
    let compression = Compression::of(payload).context("the payload is compressed in an unknown way")?;
    let (stream, size) = payload.split_last_chunk::<4>().context("the payload is empty")?;
    let image = match compression {
        Compression::Gzip => Compression::Gzip.decompress(payload)?,
        Compression::Xz | Compression::Zstd | Compression::Lz4Legacy => compression.decompress(stream)?,
    };
    let size = u32::from_le_bytes(*size) as usize;
    ensure!(image.len() == size, "the payload unpacks to {} bytes, but says {size}", image.len());
    Ok(image)
}

fn field<const N: usize>(bzimage: &[u8], offset: usize) -> Result<[u8; N]> {
    let bytes = bzimage.get(offset..).and_then(|rest| rest.first_chunk::<N>());
    bytes.copied().with_context(|| format!("the image ends before its header's field at {offset:#x}"))
}

const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

#[cfg(test)]
mod tests {
    use super::*;

    /// One setup sector, then a payload: an LZ4 block of literals only, and the size behind it.
    fn bzimage(literals: &[u8], size: u32) -> Vec<u8> {
        let token = u8::try_from(literals.len()).unwrap() << 4;
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        payload.extend_from_slice(&(literals.len() as u32 + 1).to_le_bytes());
        payload.push(token);
        payload.extend_from_slice(literals);
        payload.extend_from_slice(&size.to_le_bytes());

        let mut image = vec![0; 1024 + 16];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC..][..4].copy_from_slice(b"HdrS");
        image[VERSION..][..2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..][..4].copy_from_slice(&16_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&payload);
        image
    }

    #[test]
    fn payload_is_found_by_the_setup_header() {
        assert_eq!(vmlinux(&bzimage(b"\x7fELFkernel", 10)).unwrap(), b"\x7fELFkernel");
    }

    #[test]
    fn size_that_differs_is_refused() {
        let error = vmlinux(&bzimage(b"\x7fELFkernel", 11)).unwrap_err().to_string();
        assert!(error.contains("10 bytes, but says 11"), "{error}");
    }

    #[test]
    fn payload_that_is_not_elf_is_refused() {
        assert!(vmlinux(&bzimage(b"kernel", 6)).unwrap_err().to_string().contains("not an ELF"));
    }

    #[test]
    fn image_cut_at_any_length_is_refused() {
        let image = bzimage(b"\x7fELFkernel", 10);
        for length in 0..image.len() {
            assert!(vmlinux(&image[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn payload_outside_the_image_is_refused() {
        let mut image = bzimage(b"\x7fELFkernel", 10);
        image[PAYLOAD_OFFSET..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(vmlinux(&image).unwrap_err().to_string().contains("outside the image"));
    }
}
