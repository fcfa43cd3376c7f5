//! Tests of the ELF parser: sound files, files of other kinds, and damaged ones.
#![allow(clippy::arithmetic_side_effects)]

use std::path::Path;

use proptest::prelude::*;

use super::super::samples::{Elf, Header, note, open_bytes};
use super::super::{BootProtocol, ImageError, ImageFormat, KernelImage};
use super::*;

fn defect_of(elf: &Elf) -> ElfDefect {
    defect_of_bytes(&elf.bytes())
}

fn defect_of_bytes(bytes: &[u8]) -> ElfDefect {
    match open_bytes(bytes).unwrap_err() {
        ImageError::Elf { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

fn foreign(offset: usize, value: u16) -> Foreign {
    let mut bytes = Elf::payload().bytes();
    bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    match open_bytes(&bytes).unwrap_err() {
        ImageError::Foreign { found, .. } => found,
        other => panic!("{other}"),
    }
}

fn edited(edit: impl FnOnce(&mut Header)) -> Elf {
    let mut elf = Elf::payload();
    edit(&mut elf.headers[0]);
    elf
}

#[test]
fn payload_without_note_uses_its_64_bit_entry() {
    let image = open_bytes(&Elf::payload().bytes()).unwrap();
    assert_eq!(image.format(), ImageFormat::Elf);
    assert!(!image.is_linux());
    assert_eq!((image.protocol(), image.entry()), (BootProtocol::Linux64, Elf::ADDRESS));
    assert_eq!(image.memory_end(), Elf::ADDRESS + 512);
    assert_eq!(image.pvh_entry(), None);
}

#[test]
fn payload_with_note_uses_its_pvh_entry() {
    let image = open_bytes(&Elf::payload().with_pvh_entry(0x20_0010).bytes()).unwrap();
    assert_eq!((image.protocol(), image.entry()), (BootProtocol::Pvh, 0x20_0010));
}

#[test]
fn file_of_32_bits_is_entered_by_its_note_and_in_no_other_way() {
    let elf = Elf::payload().with_pvh_entry(0x20_0010);
    let image = open_bytes(&elf.bytes_32()).unwrap();
    let of_64_bits = open_bytes(&elf.bytes()).unwrap();
    assert_eq!((image.protocol(), image.entry()), (BootProtocol::Pvh, 0x20_0010));
    assert_eq!(image.segments(), of_64_bits.segments());
    let error = image.with_protocol(BootProtocol::Linux64).unwrap_err();
    assert!(matches!(error, ImageError::No64BitEntry { .. }), "{error}");
    let error = open_bytes(&Elf::payload().bytes_32()).unwrap_err();
    assert!(matches!(error, ImageError::Foreign { found: Foreign::Elf32, .. }), "{error}");
}

#[test]
fn file_of_32_bits_cut_at_any_header_byte_is_refused() {
    let bytes = Elf::payload().with_pvh_entry(0x20_0000).bytes_32();
    for len in 1..52 + 2 * 32 {
        open_bytes(&bytes[..len]).expect_err(&format!("{len} bytes were accepted"));
    }
}

#[test]
fn linux_with_note_uses_its_64_bit_entry() {
    let image = open_bytes(&Elf::payload().linked_as_linux(100).with_pvh_entry(0x20_0010).bytes()).unwrap();
    assert!(image.is_linux());
    assert_eq!((image.protocol(), image.entry()), (BootProtocol::Linux64, Elf::ADDRESS));
    assert_eq!(image.pvh_entry(), Some(0x20_0010));
}

#[test]
fn protocol_that_is_asked_for_wins_where_the_image_has_it() {
    let open = |elf: &Elf| open_bytes(&elf.bytes()).unwrap();
    let both = Elf::payload().with_pvh_entry(0x20_0010);
    let image = open(&both).with_protocol(BootProtocol::Linux64).unwrap();
    assert_eq!((image.protocol(), image.entry()), (BootProtocol::Linux64, Elf::ADDRESS));
    let image = open(&both.linked_as_linux(100)).with_protocol(BootProtocol::Pvh).unwrap();
    assert_eq!((image.protocol(), image.entry()), (BootProtocol::Pvh, 0x20_0010));
    let error = open(&Elf::payload()).with_protocol(BootProtocol::Pvh).unwrap_err();
    assert!(error.to_string().contains("has no PVH entry: leave"), "{error}");
}

#[test]
fn entry_of_the_other_protocol_is_checked_when_it_is_asked_for() {
    let linux = Elf::payload().linked_as_linux(100).with_pvh_entry(0x30_0000);
    let error = open_bytes(&linux.bytes()).unwrap().with_protocol(BootProtocol::Pvh).unwrap_err();
    assert!(matches!(error, ImageError::Elf { defect: ElfDefect::EntryOutside(0x30_0000), .. }), "{error}");
    let mut payload = Elf::payload().with_pvh_entry(0x20_0010);
    payload.entry = 0;
    let error = open_bytes(&payload.bytes()).unwrap().with_protocol(BootProtocol::Linux64).unwrap_err();
    assert!(matches!(error, ImageError::Elf { defect: ElfDefect::EntryOutside(0), .. }), "{error}");
}

#[test]
fn release_follows_the_banner_and_formats_are_no_banner() {
    let image = open_bytes(&Elf::payload().linked_as_linux(100).bytes()).unwrap();
    assert_eq!(image.release(), Some("6.1.0"));
    let mut elf = Elf::payload().linked_as_linux(100);
    elf.body[..20].copy_from_slice(b"Linux version %s (%s");
    assert_eq!(open_bytes(&elf.bytes()).unwrap().release(), Some("6.1.0"));
    elf.body[114] = b'%';
    let image = open_bytes(&elf.bytes()).unwrap();
    assert_eq!((image.release(), image.is_linux()), (None, false));
}

#[test]
fn bytes_and_a_file_of_them_are_the_same_image() {
    let bytes = Elf::payload().with_pvh_entry(0x20_0010).bytes();
    let (file, memory) =
        (open_bytes(&bytes).unwrap(), KernelImage::from_bytes(Path::new("/a/vmlinuz"), bytes).unwrap());
    assert_eq!((file.entry(), file.segments()), (memory.entry(), memory.segments()));
    let error = KernelImage::from_bytes(Path::new("/a/vmlinuz"), b"\x7fELF".to_vec()).unwrap_err();
    assert!(error.to_string().contains(r#""/a/vmlinuz""#), "{error}");
}

#[test]
fn kernel_at_linux_addresses_without_banner_is_not_linux() {
    let elf = edited(|header| header.virtual_address = 0xffff_ffff_8020_0000);
    assert!(!open_bytes(&elf.bytes()).unwrap().is_linux());
}

#[test]
fn payload_with_banner_at_low_addresses_is_not_linux() {
    let mut elf = Elf::payload().linked_as_linux(100);
    elf.headers[0].virtual_address = Elf::ADDRESS;
    assert!(!open_bytes(&elf.bytes()).unwrap().is_linux());
}

#[test]
fn banner_across_the_end_of_a_chunk_is_found() {
    for offset in [SEARCH_CHUNK - 14, SEARCH_CHUNK - 7, SEARCH_CHUNK - 1, SEARCH_CHUNK, 2 * SEARCH_CHUNK - 20]
    {
        let mut elf = Elf::payload();
        elf.body.resize(3 * SEARCH_CHUNK, 0x90);
        elf.headers[0].file_len = elf.body.len() as u64;
        elf.headers[0].memory_len = elf.body.len() as u64;
        assert!(open_bytes(&elf.linked_as_linux(offset).bytes()).unwrap().is_linux(), "banner at {offset}");
    }
}

#[test]
fn pvh_note_is_found_behind_others_and_with_8_bytes() {
    let mut notes = note(b"GNU\0", 3, &[1; 20]);
    notes.extend(note(b"Xen\0", 6, b"linux\0"));
    notes.extend(note(b"Xen\0", 18, &0x20_0020u64.to_le_bytes()));
    let image = open_bytes(&Elf::payload().with_notes(&notes, 4).bytes()).unwrap();
    assert_eq!(image.pvh_entry(), Some(0x20_0020));
}

#[test]
fn pvh_note_is_found_in_a_later_segment() {
    let property = note(b"GNU\0", 5, &[0; 16]);
    let elf = Elf::payload().with_notes(&property, 8).with_pvh_entry(0x20_0030);
    assert_eq!(open_bytes(&elf.bytes()).unwrap().pvh_entry(), Some(0x20_0030));
}

#[test]
fn damaged_notes_name_no_pvh_entry() {
    let cases = [
        note(b"Xen\0", 18, &[0; 3]),
        note(b"Xen\0", 18, &u64::MAX.to_le_bytes()),
        note(b"Zen\0", 18, &[0; 4]),
        [u32::MAX.to_le_bytes(); 3].concat(),
        [4u32.to_le_bytes(), u32::MAX.to_le_bytes(), 18u32.to_le_bytes()].concat(),
        vec![0; 12],
        vec![0; 5],
    ];
    for notes in cases {
        let image = open_bytes(&Elf::payload().with_notes(&notes, 4).bytes()).unwrap();
        assert_eq!(image.pvh_entry(), None, "{notes:x?}");
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    assert_eq!(foreign(4, 0x0101), Foreign::Elf32);
    assert_eq!(foreign(5, 0x0102), Foreign::ElfBigEndian);
    assert_eq!(foreign(18, 183), Foreign::ElfMachine(183));
    assert_eq!(foreign(16, 1), Foreign::ElfType(1));
    assert!(Foreign::ElfMachine(183).to_string().contains("64-bit ARM"));
    assert!(Foreign::ElfMachine(9999).to_string().contains("machine 9999"));
}

#[test]
fn dynamic_program_is_named() {
    let mut elf = Elf::payload();
    elf.headers.push(Header { kind: 3, ..elf.headers[0] });
    let error = open_bytes(&elf.bytes()).unwrap_err();
    assert!(matches!(error, ImageError::Foreign { found: Foreign::ElfProgram, .. }), "{error}");
}

#[test]
fn impossible_segments_are_refused() {
    let low = defect_of(&edited(|header| header.address = 0x8000));
    assert_eq!(low, ElfDefect::SegmentTooLow(0, 0x8000));
    let hole = defect_of(&edited(|header| header.address = MMIO_HOLE - 511));
    assert_eq!(hole, ElfDefect::SegmentTooHigh(0, MMIO_HOLE - 511, 512));
    let huge = defect_of(&edited(|header| header.memory_len = u64::MAX));
    assert_eq!(huge, ElfDefect::SegmentTooHigh(0, Elf::ADDRESS, u64::MAX));
    let short = defect_of(&edited(|header| header.memory_len = 255));
    assert_eq!(short, ElfDefect::SegmentShorterThanFile(0));
    let wraps = defect_of(&edited(|header| header.offset = u64::MAX));
    assert_eq!(wraps, ElfDefect::SegmentFileRange(0));
}

#[test]
fn segment_that_ends_at_the_hole_is_accepted() {
    let mut elf = edited(|header| header.address = MMIO_HOLE - 512);
    elf.entry = MMIO_HOLE - 512;
    assert_eq!(open_bytes(&elf.bytes()).unwrap().memory_end(), MMIO_HOLE);
}

#[test]
fn segment_past_the_end_of_the_file_is_truncated() {
    let elf = edited(|header| header.offset = Elf::BODY + 1);
    let error = open_bytes(&elf.bytes()).unwrap_err();
    let ImageError::Truncated { needed, len, .. } = error else { panic!("{error}") };
    assert_eq!((needed, len), (Elf::BODY + 257, Elf::BODY + 256));
}

#[test]
fn overlapping_segments_are_refused_in_any_order() {
    let mut elf = Elf::payload();
    elf.headers.insert(0, Header { address: Elf::ADDRESS + 511, ..elf.headers[0] });
    assert_eq!(defect_of(&elf), ElfDefect::SegmentsOverlap(Elf::ADDRESS + 511));
    elf.headers[0].address = Elf::ADDRESS + 512;
    assert!(open_bytes(&elf.bytes()).is_ok());
}

#[test]
fn entry_outside_the_file_bytes_is_refused() {
    for entry in [0, Elf::ADDRESS - 1, Elf::ADDRESS + 256, u64::MAX] {
        assert_eq!(defect_of(&Elf { entry, ..Elf::payload() }), ElfDefect::EntryOutside(entry));
    }
    let elf = Elf::payload().with_pvh_entry(0x1000);
    assert_eq!(defect_of(&elf), ElfDefect::EntryOutside(0x1000));
}

#[test]
fn program_header_counts_that_lie_are_refused() {
    let mut bytes = Elf::payload().bytes();
    bytes[56] = 0;
    assert_eq!(defect_of_bytes(&bytes), ElfDefect::NoSegments);
    bytes[56] = 129;
    assert_eq!(defect_of_bytes(&bytes), ElfDefect::ProgramHeaderCount(129));
    bytes[56] = 128;
    assert!(matches!(open_bytes(&bytes).unwrap_err(), ImageError::Truncated { .. }));
    bytes[56] = 1;
    bytes[54] = 32;
    assert_eq!(defect_of_bytes(&bytes), ElfDefect::ProgramHeaderSize(32));
    assert_eq!(defect_of(&edited(|header| header.kind = 2)), ElfDefect::NoSegments);
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let bytes = Elf::payload().with_pvh_entry(0x20_0000).bytes();
    for len in 1..bytes.len() {
        open_bytes(&bytes[..len]).expect_err(&format!("{len} bytes were accepted"));
    }
}

proptest! {
    #[test]
    fn damaged_headers_give_an_error_or_a_sound_image(
        damage in proptest::collection::vec((4usize..(64 + 3 * 56), any::<u8>()), 1..6),
        tail in proptest::collection::vec(any::<u8>(), 24),
    ) {
        let mut elf = Elf::payload().with_pvh_entry(0x20_0010);
        elf.headers.push(Header { address: 0x30_0000, ..elf.headers[0] });
        let mut bytes = elf.bytes();
        for (offset, value) in damage {
            bytes[offset] = value;
        }
        // The note lies at the end of the file.
        let end = bytes.len();
        bytes[end - tail.len() + 12..].copy_from_slice(&tail[12..]);
        if let Ok(image) = open_bytes(&bytes) {
            prop_assert!(!image.segments().is_empty());
            for segment in image.segments() {
                prop_assert!(segment.file_offset + segment.file_len <= bytes.len() as u64);
                prop_assert!(segment.file_len <= segment.memory_len);
                prop_assert!(segment.address >= HIGH_MEMORY);
                prop_assert!(segment.address + segment.memory_len <= image.memory_end());
            }
            for pair in image.segments().windows(2) {
                prop_assert!(pair[0].address + pair[0].memory_len <= pair[1].address);
            }
            prop_assert!(image.memory_end() <= MMIO_HOLE);
            prop_assert!(image.contents.has_file_bytes_at(image.entry()));
        }
    }
}
