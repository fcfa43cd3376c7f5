//! The end of the file `memory`, and the check of its blocks.

use std::os::unix::fs::MetadataExt;

use coracle_arch::nameless_file;

use super::*;

const MIB: u64 = 1 << 20;
const RAM: u64 = 9 * MIB;

fn id() -> SnapshotId {
    SnapshotId::from_bytes([5; 16])
}

/// Makes a file with content at 3 MiB and in the last block, which is short.
fn file() -> (File, Hash) {
    let file = nameless_file::create_in(&std::env::temp_dir()).unwrap();
    file.set_len(RAM).unwrap();
    file.write_all_at(&[1; 5000], 3 * MIB).unwrap();
    file.write_all_at(&[2], RAM - 1).unwrap();
    let hash = write_end(&file, &id(), RAM).unwrap();
    (file, hash)
}

const CONTENT: [Range<u64>; 2] = [2 * MIB..4 * MIB, 8 * MIB..RAM];

fn check(file: &File, hash: &Hash) -> Result<(), MemoryFileError> {
    check_end(file, &id(), RAM).unwrap()?;
    check_blocks(file, RAM, hash, &CONTENT).unwrap()
}

#[test]
fn file_that_was_not_changed_passes_and_its_holes_stay() {
    let (file, hash) = file();
    assert_eq!(check(&file, &hash), Ok(()));
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), file_len(RAM));
    assert_eq!(file_len(RAM), RAM + 64 + 5 * 32);
    assert!(metadata.blocks() * 512 <= 5 * 4096, "{}", metadata.blocks());
    // A copy without holes is the same snapshot.
    let mut bytes = vec![0; RAM as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    assert_eq!(check(&file, &hash), Ok(()));
}

#[test]
fn layout_is_that_of_format_1() {
    let (file, hash) = file();
    let mut end = vec![0; 64 + 5 * 32];
    file.read_exact_at(&mut end, RAM).unwrap();
    assert_eq!(Hash::of(&end), hash);
    assert_eq!(end[..16], *b"CORAMEM\n\x01\0\0\0\0\0\x20\0");
    assert_eq!(
        (&end[16..32], &end[32..40], &end[40..60]),
        (&[5; 16][..], &RAM.to_le_bytes()[..], &[0; 20][..])
    );
    let mut block = vec![0; 2 << 20];
    block[1 << 20..][..5000].fill(1);
    assert_eq!(end[64 + 32..64 + 64], Hash::of(&block).0);
    block.fill(0);
    block[(1 << 20) - 1] = 2;
    assert_eq!(end[64 + 4 * 32..], Hash::of(&block[..1 << 20]).0, "the last block has 1 MiB");
    assert!(end[64..64 + 32].iter().chain(&end[64 + 64..64 + 4 * 32]).all(|byte| *byte == 0));
}

#[test]
fn every_flipped_bit_is_found_by_its_offset() {
    let (file, hash) = file();
    let flip = |offset: u64, bit: u32| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], offset).unwrap();
    };
    for (offset, block) in
        [(0, 0), (MIB, 0), (3 * MIB + 77, 2 * MIB), (8 * MIB - 1, 6 * MIB), (RAM - 1, 8 * MIB)]
    {
        flip(offset, 3);
        let len = (block + 2 * MIB).min(RAM) - block;
        assert_eq!(check(&file, &hash), Err(MemoryFileError::Block { offset: block, len }));
        flip(offset, 3);
        assert_eq!(check(&file, &hash), Ok(()));
    }
    for offset in RAM..file_len(RAM) {
        flip(offset, (offset % 8) as u32);
        let error = check(&file, &hash).unwrap_err();
        let is_end = matches!(error, MemoryFileError::End { offset: RAM });
        let is_hash = matches!(error, MemoryFileError::Hashes { offset: RAM });
        assert_eq!((is_end, is_hash), (offset < RAM + 64, offset >= RAM + 64), "{offset}: {error}");
        flip(offset, (offset % 8) as u32);
    }
}

#[test]
fn file_of_another_snapshot_or_format_is_refused() {
    let (file, hash) = file();
    let other = SnapshotId::from_bytes([6; 16]);
    let error = check_end(&file, &other, RAM).unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "it belongs to the snapshot 05050505050505050505050505050505, and the manifest to \
         06060606060606060606060606060606; copy the files together"
    );
    for (at, byte, expected) in [
        (8, 2, MemoryFileError::Format { format: 2 }),
        (12, 1, MemoryFileError::End { offset: RAM }),
        (33, 1, MemoryFileError::End { offset: RAM }),
    ] {
        let mut end: [u8; END] = header(&id(), RAM).try_into().unwrap();
        end[at] = byte;
        let checksum = crc32fast::hash(&end[..END - 4]);
        end[END - 4..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(compare_end(&end, &id(), RAM), Err(expected));
    }
    assert_eq!(
        check_blocks(&file, RAM, &hash, &CONTENT[..1]).unwrap(),
        Err(MemoryFileError::Content { offset: 8 * MIB })
    );
    file.set_len(RAM + 63).unwrap();
    assert!(check_end(&file, &id(), RAM).is_err());
}
