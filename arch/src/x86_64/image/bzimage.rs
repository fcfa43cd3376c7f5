//! The bzImage format: the header of a packed Linux kernel (Linux, Documentation/arch/x86/boot.rst, "The
//! Real-Mode Kernel Header").
//!
//! Only the header of the real-mode part is read, and that part is not loaded: the kernel is entered at its
//! 64-bit entry.

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::super::bytes::{u16_at, u32_at, u64_at};
use super::super::input_file::InputFile;
use super::super::layout::{HIGH_MEMORY, MMIO_HOLE};
use super::{Contents, Defect, ImageSegment, release};

/// The offset of the header's magic.
pub(super) const MAGIC_OFFSET: usize = 0x202;
/// The header's magic.
pub(super) const MAGIC: &[u8] = b"HdrS";

/// The offset of the header.
const HEADER_OFFSET: usize = 0x1f1;
/// The offset of the byte with the header's length, which counts from [`MAGIC_OFFSET`].
const HEADER_LEN_OFFSET: usize = 0x201;
/// The end of the header in protocol 2.12, the oldest with a 64-bit entry.
const HEADER_END_2_12: usize = 0x268;
/// The oldest protocol with the flag [`XLF_KERNEL_64`].
const OLDEST_PROTOCOL: u16 = 0x020c;
/// `loadflags`: the protected-mode part belongs at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry, [`ENTRY_64_OFFSET`] bytes into the protected-mode part.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64_OFFSET: u64 = 0x200;
/// Bytes of a sector, the unit of `setup_sects`.
const SECTOR: u64 = 512;
/// The number of set-up sectors that a `setup_sects` of 0 means.
const DEFAULT_SETUP_SECTORS: u8 = 4;
/// The unit of `syssize`.
const PARAGRAPH: u64 = 16;

/// The fields of a bzImage header that decide how it is loaded, and the header itself.
#[derive(Debug, Clone, Copy)]
pub struct BzImageHeader {
    /// Boot protocol, major version in the upper byte.
    pub version: u16,
    /// Bytes from [`BzImageHeader::pref_address`] on that the kernel needs before it reads its memory map.
    pub init_size: u32,
    /// The address that the kernel prefers, and at which it is loaded.
    pub pref_address: u64,
    /// The longest command line in bytes, without its NUL.
    pub cmdline_size: u32,
    /// The highest address that a byte of the initrd may have.
    pub initrd_addr_max: u32,
    /// The packed kernel in the file; `None` if the header names none.
    pub payload: Option<BzImagePayload>,
    /// The header that goes into the zero page.
    pub(crate) raw: setup_header,
}

/// The position of the packed kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BzImagePayload {
    /// The offset at which it starts in the file.
    pub file_offset: u64,
    /// Its length in bytes. It ends inside the file.
    pub len: u64,
}

pub(super) fn parse(file: &InputFile, head: &[u8]) -> Result<Contents, Defect> {
    let mut header = parse_header(head)?;
    let segment = protected_mode_segment(file, &header)?;
    header.payload = payload(&header.raw, &segment)?;
    let kernel_end = header
        .pref_address
        .checked_add(segment.memory_len)
        .filter(|end| header.pref_address >= HIGH_MEMORY && *end <= MMIO_HOLE)
        .ok_or(Defect::BzImageField { field: "pref_address", value: header.pref_address })?;
    let text = version_text(file, head, segment.file_offset);
    Ok(Contents {
        memory_end: kernel_end,
        // The segment is longer than the offset of the entry, so this cannot pass its end.
        entry: header.pref_address.saturating_add(ENTRY_64_OFFSET),
        has_64_bit_entry: true,
        pvh_entry: None,
        is_linux: true,
        names_other: text.as_deref().is_some_and(|text| release::parse(text).is_none()),
        release: text.as_deref().and_then(release::parse),
        segments: vec![segment],
        bzimage: Some(header),
    })
}

/// Reads and checks the header. `head` is the start of the file, and is shorter than a header only if the
/// file is.
fn parse_header(head: &[u8]) -> Result<BzImageHeader, Defect> {
    let truncated = || Defect::Truncated { needed: HEADER_END_2_12 as u64 };
    let version = u16_at(head, 0x206).ok_or_else(truncated)?;
    if version < OLDEST_PROTOCOL {
        let [minor, major] = version.to_le_bytes();
        return Err(Defect::BzImageTooOld { major, minor });
    }
    if head.len() < HEADER_END_2_12 {
        return Err(truncated());
    }
    let length_byte = head.get(HEADER_LEN_OFFSET).copied().ok_or_else(truncated)?;
    let header_end = MAGIC_OFFSET.saturating_add(usize::from(length_byte));
    if header_end < HEADER_END_2_12 {
        return Err(Defect::BzImageField { field: "the header's length", value: u64::from(length_byte) });
    }
    let loadflags = head.get(0x211).copied().ok_or_else(truncated)?;
    let xloadflags = u16_at(head, 0x236).ok_or_else(truncated)?;
    if xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Defect::BzImageNot64Bit);
    }
    if loadflags & LOADED_HIGH == 0 {
        return Err(Defect::BzImageField { field: "loadflags", value: u64::from(loadflags) });
    }
    let raw = head.get(HEADER_OFFSET..header_end).ok_or(Defect::Truncated { needed: header_end as u64 })?;
    Ok(BzImageHeader {
        version,
        initrd_addr_max: u32_at(head, 0x22c).ok_or_else(truncated)?,
        cmdline_size: u32_at(head, 0x238).ok_or_else(truncated)?,
        pref_address: u64_at(head, 0x258).ok_or_else(truncated)?,
        init_size: u32_at(head, 0x260).ok_or_else(truncated)?,
        payload: None,
        raw: setup_header_from(raw),
    })
}

/// Returns where `payload_offset` and `payload_length` place the packed kernel.
fn payload(raw: &setup_header, segment: &ImageSegment) -> Result<Option<BzImagePayload>, Defect> {
    let (offset, len) = (u64::from(raw.payload_offset), u64::from(raw.payload_length));
    if len == 0 {
        return Ok(None);
    }
    if offset.saturating_add(len) > segment.file_len {
        return Err(Defect::BzImageField { field: "payload_length", value: len });
    }
    Ok(Some(BzImagePayload { file_offset: segment.file_offset.saturating_add(offset), len }))
}

/// Returns the text that `kernel_version` points to, in the real-mode part, cut to the length of the longest
/// release. The text is for people, so a damaged one is not a defect.
fn version_text(file: &InputFile, head: &[u8], setup_len: u64) -> Option<Vec<u8>> {
    let offset = u64::from(u16_at(head, 0x20e).filter(|offset| *offset != 0)?).checked_add(SECTOR)?;
    let len = setup_len.checked_sub(offset)?.min(release::TEXT_LEN as u64);
    let mut text = vec![0; usize::try_from(len).ok()?];
    file.read_at(offset, &mut text).ok()?;
    Some(text).filter(|text| text.first().is_some_and(u8::is_ascii_graphic))
}

/// Returns the part of the file that is loaded: everything after the real-mode part. It goes to the preferred
/// address, so that a kernel that cannot be relocated works as well.
fn protected_mode_segment(file: &InputFile, header: &BzImageHeader) -> Result<ImageSegment, Defect> {
    let setup_sectors = match header.raw.setup_sects {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors,
    };
    let setup_len = u64::from(setup_sectors).saturating_add(1).saturating_mul(SECTOR);
    let announced = u64::from(header.raw.syssize).saturating_mul(PARAGRAPH);
    let needed = setup_len.saturating_add(announced);
    if announced <= ENTRY_64_OFFSET {
        return Err(Defect::BzImageField { field: "syssize", value: u64::from(header.raw.syssize) });
    }
    // A signed image has its signature after the announced bytes, which is loaded too and does no harm. Some
    // builds round `syssize` down, and others up, past the end of the file by less than one paragraph.
    let file_len = file
        .len()
        .checked_sub(setup_len)
        .filter(|len| len.saturating_add(PARAGRAPH) > announced)
        .ok_or(Defect::Truncated { needed })?;
    Ok(ImageSegment {
        file_offset: setup_len,
        file_len,
        address: header.pref_address,
        memory_len: file_len.max(u64::from(header.init_size)),
    })
}

/// Returns the header as a struct. Fields of later protocols are cut, and fields that the file lacks are
/// zero.
fn setup_header_from(bytes: &[u8]) -> setup_header {
    let mut header = setup_header::default();
    for (to, from) in header.as_mut_slice().iter_mut().zip(bytes) {
        *to = *from;
    }
    header
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples::{bzimage, open_bytes};
    use super::super::{BootProtocol, ImageError, ImageFormat};
    use super::*;

    fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = bzimage();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        image
    }

    #[test]
    fn bzimage_is_linux_and_enters_at_0x200() {
        let image = open_bytes(&bzimage()).unwrap();
        assert_eq!(image.format(), ImageFormat::BzImage);
        assert_eq!(image.protocol(), BootProtocol::Linux64);
        assert!(image.is_linux());
        assert_eq!(image.entry(), 0x100_0200);
        assert_eq!(image.memory_end(), 0x100_0000 + 0x20_0000);
        let expected =
            ImageSegment { file_offset: 1024, file_len: 4096, address: 0x100_0000, memory_len: 0x20_0000 };
        assert_eq!(image.segments(), [expected]);
        let header = image.bzimage().unwrap();
        assert_eq!((header.version, header.cmdline_size, header.initrd_addr_max), (0x20f, 2047, 0x7fff_ffff));
    }

    #[test]
    fn payload_is_where_the_header_says() {
        let image = open_bytes(&bzimage()).unwrap();
        assert_eq!(image.payload_len(), None);
        assert!(image.read_payload(0, &mut [0]).is_err());
        let mut bytes = patched(0x248, &[0x10, 0, 0, 0, 5, 0, 0, 0]);
        bytes[1024 + 0x10..][..5].copy_from_slice(b"stuff");
        let image = open_bytes(&bytes).unwrap();
        assert_eq!(image.bzimage().unwrap().payload, Some(BzImagePayload { file_offset: 1040, len: 5 }));
        assert_eq!(image.payload_len(), Some(5));
        let read = |offset, mut bytes: Vec<u8>| image.read_payload(offset, &mut bytes).map(|()| bytes);
        assert_eq!(read(0, vec![0; 5]).unwrap(), b"stuff");
        assert_eq!(read(3, vec![0; 2]).unwrap(), b"ff");
        for (offset, len) in [(0, 6), (5, 1), (u64::MAX, 2)] {
            assert!(read(offset, vec![0; len]).is_err(), "{offset}, {len}");
        }
    }

    #[test]
    fn payload_that_ends_outside_the_file_is_refused() {
        for (offset, len) in [(4096u32, 1u32), (0, 4097), (u32::MAX, u32::MAX)] {
            let fields = [offset.to_le_bytes(), len.to_le_bytes()].concat();
            let error = open_bytes(&patched(0x248, &fields)).unwrap_err();
            assert!(matches!(error, ImageError::BzImageField { field: "payload_length", .. }), "{error}");
        }
        let whole = [0u32.to_le_bytes(), 4096u32.to_le_bytes()].concat();
        let mut payload = [0; 4096];
        open_bytes(&patched(0x248, &whole)).unwrap().read_payload(0, &mut payload).unwrap();
        assert_eq!(payload, [0xcc; 4096]);
    }

    #[test]
    fn release_is_read_from_the_set_up_part_only() {
        let mut bytes = patched(0x20e, &0x180u16.to_le_bytes());
        bytes[0x380..][..26].copy_from_slice(b"6.1.0-56-amd64 (someone) #");
        assert_eq!(open_bytes(&bytes).unwrap().release(), Some("6.1.0-56-amd64"));
        assert_eq!(open_bytes(&bzimage()).unwrap().release(), None);
        for outside in [0x200u16, 0xffff] {
            bytes[0x20e..0x210].copy_from_slice(&outside.to_le_bytes());
            assert_eq!(open_bytes(&bytes).unwrap().release(), None, "{outside:#x}");
        }
    }

    #[test]
    fn text_that_is_not_a_release_names_another_program() {
        let mut bytes = patched(0x20e, &0x180u16.to_le_bytes());
        assert!(!open_bytes(&bytes).unwrap().names_other_program(), "an empty text says nothing");
        bytes[0x380..][..18].copy_from_slice(b"6.1.0-56-amd64 (x)");
        assert!(!open_bytes(&bytes).unwrap().names_other_program());
        bytes[0x380..][..18].copy_from_slice(b"Memtest86+ v6.10\0\0");
        let image = open_bytes(&bytes).unwrap();
        assert!(image.names_other_program() && image.is_linux() && image.release().is_none());
        assert!(!open_bytes(&bzimage()).unwrap().names_other_program());
    }

    #[test]
    fn bzimage_has_no_pvh_entry() {
        let image = open_bytes(&bzimage()).unwrap().with_protocol(BootProtocol::Linux64).unwrap();
        let error = image.with_protocol(BootProtocol::Pvh).unwrap_err();
        assert!(error.to_string().contains("has no PVH entry: a bzImage"), "{error}");
    }

    #[test]
    fn signature_after_the_announced_bytes_is_accepted() {
        let mut bytes = bzimage();
        bytes.extend([0x5a; 1472]);
        assert_eq!(open_bytes(&bytes).unwrap().segments()[0].file_len, 4096 + 1472);
    }

    #[test]
    fn protocol_2_11_is_too_old() {
        let error = open_bytes(&patched(0x206, &[0x0b, 0x02])).unwrap_err();
        assert!(matches!(error, ImageError::BzImageTooOld { major: 2, minor: 11, .. }), "{error}");
        assert!(error.to_string().contains("2.11"), "{error}");
    }

    #[test]
    fn image_without_64_bit_entry_is_refused() {
        let error = open_bytes(&patched(0x236, &[0, 0])).unwrap_err();
        assert!(matches!(error, ImageError::BzImageNot64Bit { .. }), "{error}");
    }

    #[test]
    fn fields_that_cannot_be_right_are_refused() {
        let cases: [(usize, &[u8], &str); 6] = [
            (0x201, &[0x10], "the header's length"),
            (0x211, &[0], "loadflags"),
            (0x1f4, &[0; 4], "syssize"),
            (0x258, &[0xff; 8], "pref_address"),
            (0x258, &[0; 8], "pref_address"),
            (0x260, &[0xff; 4], "pref_address"),
        ];
        for (offset, bytes, name) in cases {
            let error = open_bytes(&patched(offset, bytes)).unwrap_err();
            let ImageError::BzImageField { field, .. } = error else { panic!("{error}") };
            assert_eq!(field, name);
        }
    }

    #[test]
    fn file_shorter_than_announced_is_truncated() {
        let bytes = bzimage();
        let error = open_bytes(&bytes[..bytes.len() - 16]).unwrap_err();
        let ImageError::Truncated { needed, len, .. } = error else { panic!("{error}") };
        assert_eq!((needed, len), (5120, 5104));
    }

    #[test]
    fn length_that_was_rounded_up_to_paragraphs_is_accepted() {
        let bytes = bzimage();
        for missing in 1..16 {
            let image = open_bytes(&bytes[..bytes.len() - missing]).unwrap();
            assert_eq!(image.segments()[0].file_len, 4096 - missing as u64);
        }
    }

    #[test]
    fn truncation_at_every_header_byte_is_an_error() {
        let bytes = bzimage();
        for len in 1..bytes.len() - 15 {
            open_bytes(&bytes[..len]).expect_err(&format!("{len} bytes were accepted"));
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_give_an_error_or_a_sound_image(
            damage in proptest::collection::vec((0x1f1usize..0x270, any::<u8>()), 1..6),
        ) {
            let mut bytes = bzimage();
            for (offset, value) in damage {
                bytes[offset] = value;
            }
            if let Ok(image) = open_bytes(&bytes) {
                let [segment] = image.segments() else { panic!("{image:?}") };
                prop_assert!(segment.file_offset + segment.file_len <= bytes.len() as u64);
                prop_assert!(segment.address >= HIGH_MEMORY && image.memory_end() <= MMIO_HOLE);
                prop_assert!(segment.address < image.entry() && image.entry() < image.memory_end());
            }
        }
    }
}
