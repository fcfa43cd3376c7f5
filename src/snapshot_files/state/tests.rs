//! The codec of the file `state`: what is written is read, and nothing else is.

use proptest::prelude::*;

use super::*;

fn id() -> SnapshotId {
    SnapshotId::from_bytes(*b"0123456789abcdef")
}

fn section(name: &str, is_required: bool, version: u16, bytes: &[u8]) -> Section {
    Section { name: name.to_owned(), is_required, content: SavedState::from_parts(version, bytes.to_vec()) }
}

fn sections() -> Vec<Section> {
    vec![
        section("vcpus", true, 1, &[7; 300]),
        section("a-name-of-24-characters0", true, u16::MAX, &[]),
        section("notes", false, 3, b"text"),
    ]
}

fn decode(bytes: &[u8]) -> Result<Sections, StateFileError> {
    Sections::decode(bytes, &id())
}

fn refusal(bytes: &[u8]) -> String {
    decode(bytes).unwrap_err().to_string()
}

/// Changes the header of the first section and corrects its checksum.
fn with_section_header(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut file = encode(&id(), &sections());
    change(&mut file[HEADER..HEADER + SECTION]);
    let checksum = crc32fast::hash(&file[HEADER..HEADER + SECTION - 4]);
    file[HEADER + SECTION - 4..HEADER + SECTION].copy_from_slice(&checksum.to_le_bytes());
    file
}

/// Changes the header of the file and corrects its checksum.
fn with_header(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut file = encode(&id(), &sections());
    change(&mut file[..HEADER]);
    let checksum = crc32fast::hash(&file[..HEADER - 4]);
    file[HEADER - 4..HEADER].copy_from_slice(&checksum.to_le_bytes());
    file
}

#[test]
fn sections_come_back_as_they_were() {
    let Sections(found) = decode(&encode(&id(), &sections())).unwrap();
    assert_eq!(found, sections());
    assert_eq!(decode(&encode(&id(), &[])).unwrap().0, []);
}

#[test]
fn layout_is_that_of_format_1() {
    let file = encode(&id(), &[section("ab", true, 0x102, &[9])]);
    let mut expected = b"CORASTAT\x01\0\0\0\x3e\0\x01\x000123456789abcdef\0\0\0\0".to_vec();
    // From here on, the checksums are those of Python's `zlib.crc32`.
    expected.extend(0x953b_3a8c_u32.to_le_bytes());
    let mut header = b"ab".to_vec();
    header.extend([0; 22]);
    header.extend([2, 1, 1, 0, 1, 0, 0, 0]);
    header.extend(0xabde_5729_u32.to_le_bytes());
    let checksum = crc32fast::hash(&header).to_le_bytes();
    expected.extend(header);
    expected.extend(checksum);
    expected.push(9);
    assert_eq!(file, expected);
}

#[test]
fn optional_sections_are_skipped_and_required_ones_refused_by_name() {
    let mut known = decode(&encode(&id(), &sections())).unwrap();
    assert_eq!(known.take("vcpus", 300).unwrap().unwrap().bytes(), [7; 300]);
    assert!(known.take("vcpus", 300).unwrap().is_none());
    assert_eq!(
        known.finish().unwrap_err().to_string(),
        "it needs the section `a-name-of-24-characters0`, which this version does not know; use a newer Coracle"
    );
    let mut known = decode(&encode(&id(), &sections())).unwrap();
    assert!(known.take("a-name-of-24-characters0", 0).unwrap().is_some());
    let too_long = known.take("vcpus", 299).unwrap_err();
    assert_eq!(
        too_long.to_string(),
        "section `vcpus` has 300 bytes, and at most 299 are possible; it is damaged"
    );
    assert!(known.finish().is_ok(), "`notes` is optional");
}

#[test]
fn every_cut_is_an_error() {
    let file = encode(&id(), &sections());
    for len in 0..file.len() {
        let error = decode(&file[..len]).unwrap_err();
        assert!(matches!(error, StateFileError::Cut { len: all, .. } if all == len), "{len}: {error}");
    }
    assert_eq!(
        refusal(&file[..200]),
        "it ends after 200 bytes, in the middle of the section `vcpus`; it was copied in part"
    );
}

#[test]
fn every_flipped_bit_is_an_error() {
    let file = encode(&id(), &sections());
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn headers_that_lie_are_refused_by_field() {
    for (file, expected) in [
        (with_header(|header| header[0] = 0), "it does not begin as the state of a snapshot does"),
        (with_header(|header| header[8] = 2), "its format is 2, and this version reads 1 to 1;"),
        (with_header(|header| header[8] = 0), "its format is 0,"),
        (with_header(|header| header[12] = 183), "it is that of a machine with number 183"),
        (with_header(|header| header[14] = 65), "the number of sections is 0x41: 0x40 at most"),
        (
            with_header(|header| header[14] = 4),
            "it ends after 464 bytes, in the middle of the header of section 3",
        ),
        (with_header(|header| header[14] = 2), "44 bytes follow the last section"),
        (with_header(|header| header[16] = b'x'), "it belongs to the snapshot 783132333435"),
        (
            with_header(|header| header[35] = 1),
            "the field before the checksum of its header is 0x1000000: always 0",
        ),
        (
            with_section_header(|header| header[26] = 3),
            "the field of flags of the section `vcpus` is 0x3: 0 or 1",
        ),
        (
            with_section_header(|header| header[31] = 0xff),
            "it ends after 464 bytes, in the middle of the section",
        ),
        (with_section_header(|header| header[28] = 0x2b), "the checksum of the section `vcpus` is"),
        (with_section_header(|header| header[0] = b'V'), "the name of section 0 is `Vcpus`: a name has"),
        (with_section_header(|header| header[..5].fill(0)), "the name of section 0 is ``"),
        (
            with_section_header(|header| header[9] = b'x'),
            "the name of section 0 is `vcpus\\x00\\x00\\x00\\x00x`",
        ),
        (
            with_section_header(|header| header[..5].copy_from_slice(b"notes")),
            "there are two sections `notes`",
        ),
    ] {
        let found = refusal(&file);
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn longest_file_of_empty_sections_is_refused_at_once() {
    let many: Vec<Section> = (0..u16::MAX).map(|n| section(&format!("n{n}"), false, 1, &[])).collect();
    assert!(refusal(&encode(&id(), &many)).starts_with("the number of sections is 0xffff"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let mut file = encode(&id(), &sections());
        file.truncate(HEADER);
        file.extend(bytes);
        prop_assert!(decode(&file).is_err());
    }
}
