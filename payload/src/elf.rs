//! Wraps an image as an ELF64 executable with a PVH note. Called by `Payload::elf`.

use crate::tables::{BASE, Image, put};

/// Builds a file of one loadable segment and one note: first the headers, then the note, then the image.
pub(crate) fn file(image: &Image) -> Vec<u8> {
    let note = pvh_note(image.entry32);
    let mut file = vec![0u8; IMAGE_OFFSET];
    let header: Vec<u8> = [
        b"\x7fELF\x02\x01\x01".to_vec(),
        vec![0; 9],
        le16(&[2, 62]), // ET_EXEC, EM_X86_64
        1u32.to_le_bytes().to_vec(),
        le64(&[image.entry64, HEADER_BYTES as u64, 0]),
        0u32.to_le_bytes().to_vec(),
        le16(&[HEADER_BYTES as u16, PROGRAM_HEADER_BYTES as u16, 2, 64, 0, 0]),
        program_header(PT_LOAD, 7, IMAGE_OFFSET, BASE, image.bytes.len() as u64, image.memory_size, 0x1000),
        // QEMU refuses a PVH note in a segment with an alignment of 8.
        program_header(PT_NOTE, 4, NOTE_OFFSET, 0, note.len() as u64, note.len() as u64, 4),
    ]
    .concat();
    put(&mut file, 0, &header);
    put(&mut file, NOTE_OFFSET, &note);
    file.extend_from_slice(&image.bytes);
    file
}

/// XEN_ELFNOTE_PHYS32_ENTRY (Xen, `public/elfnote.h`): the physical address of the 32-bit entry.
fn pvh_note(entry32: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&entry32.to_le_bytes());
    note
}

fn program_header(
    kind: u32,
    flags: u32,
    offset: usize,
    address: u64,
    file: u64,
    memory: u64,
    align: u64,
) -> Vec<u8> {
    let mut header = Vec::with_capacity(PROGRAM_HEADER_BYTES);
    header.extend_from_slice(&kind.to_le_bytes());
    header.extend_from_slice(&flags.to_le_bytes());
    header.extend(le64(&[offset as u64, address, address, file, memory, align]));
    header
}

fn le16(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn le64(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const NOTE_OFFSET: usize = HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
const IMAGE_OFFSET: usize = 0x1000;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ALL, Ring};

    #[test]
    fn every_payload_makes_an_elf_file_whose_entries_lie_in_its_segment() {
        for payload in ALL {
            let image = Image::new((payload.body)(), payload.ring);
            let end = BASE + image.bytes.len() as u64;
            assert!((BASE..end).contains(&image.entry64), "{}", payload.name);
            assert!((BASE..end).contains(&u64::from(image.entry32)), "{}", payload.name);
            assert_eq!(file(&image).len(), IMAGE_OFFSET + image.bytes.len());
        }
    }

    #[test]
    fn names_are_unique_and_bodies_are_not_empty() {
        for (index, payload) in ALL.iter().enumerate() {
            assert!(!(payload.body)().is_empty(), "{}", payload.name);
            assert!(ALL[..index].iter().all(|other| other.name != payload.name), "{}", payload.name);
        }
        assert!(ALL.iter().any(|payload| payload.ring == Ring::Three));
    }
}
