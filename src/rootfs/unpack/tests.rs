//! Packed tars, from the packers of the compression module and from those of this machine.

use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use super::*;
use crate::compression::Compression;
use crate::compression::samples::pack;
use crate::rootfs::samples::file;

fn plain() -> Vec<u8> {
    let words = (0..50_000_u32).flat_map(|number| ((number * number) >> 7).to_le_bytes());
    words.chain(std::iter::repeat_n(0, 300_000)).chain([1]).collect()
}

fn unpacked(packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let into = file(b"");
    let packing = Packing::of(packed).unwrap();
    let len = unpack(packing, &file(packed), &into, "here")?;
    let mut bytes = vec![0; len as usize];
    into.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(into.metadata().unwrap().len(), len);
    Ok(bytes)
}

/// What frames and streams come from: one, and two of them in a row.
fn packed() -> Vec<(Packing, Vec<u8>)> {
    let lz4 = |plain: &[u8]| {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        std::io::Write::write_all(&mut encoder, plain).unwrap();
        encoder.finish().unwrap()
    };
    vec![
        (Packing::Gzip, pack(Compression::Gzip, &plain())),
        (Packing::Xz, pack(Compression::Xz, &plain())),
        (Packing::Zstd, pack(Compression::Zstd, &plain())),
        (Packing::Lz4, lz4(&plain())),
    ]
}

#[test]
fn every_packing_is_unpacked_with_holes_where_zeroes_are() {
    for (packing, packed) in packed() {
        assert_eq!(Packing::of(&packed), Some(packing));
        assert!(unpacked(&packed).unwrap() == plain(), "{packing:?}");
    }
}

#[test]
fn several_streams_in_a_row_are_one() {
    let twice = [plain(), plain()].concat();
    for (packing, packed) in packed().into_iter().filter(|(packing, _)| *packing != Packing::Lz4) {
        assert!(unpacked(&[packed.clone(), packed].concat()).unwrap() == twice, "{packing:?}");
    }
    let (_, zstd) = packed().into_iter().find(|(packing, _)| *packing == Packing::Zstd).unwrap();
    let skipped = [&zstd[..], b"\x50\x2a\x4d\x18\x03\0\0\0abc"].concat();
    assert!(unpacked(&skipped).unwrap() == plain());
}

#[test]
fn zeroes_after_a_gzip_member_are_nothing_and_other_bytes_are_refused() {
    let gzip = pack(Compression::Gzip, &plain());
    for zeroes in [1, 511, 600_000] {
        let padded = [&gzip[..], &vec![0; zeroes]].concat();
        assert!(unpacked(&padded).unwrap() == plain(), "{zeroes}");
        assert!(unpacked(&[&padded[..], &gzip].concat()).unwrap() == [plain(), plain()].concat());
        assert!(unpacked(&[&padded[..], b"x"].concat()).is_err());
    }
    // The .xz format has such a padding, too, in fours.
    let xz = pack(Compression::Xz, &plain());
    assert!(unpacked(&[&xz[..], &[0; 512]].concat()).unwrap() == plain());
}

#[test]
fn streams_cut_short_or_damaged_are_refused() {
    for (packing, packed) in packed() {
        let cut = unpacked(&packed[..packed.len() / 2]);
        assert!(matches!(cut, Err(UnpackError::Damaged { .. })), "{packing:?}");
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        // Without a checksum in the stream damage may go by: then the tar's own sums have to hold.
        assert!(unpacked(&damaged).map_or(true, |bytes| bytes != plain()), "{packing:?}");
    }
}

#[test]
fn what_other_programs_pack_is_unpacked() {
    for program in ["gzip", "xz", "zstd", "lz4"] {
        let mut command = Command::new(program);
        let spawned =
            command.arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut child) = spawned else {
            crate::rootfs::tests::skip(&format!("there is no {program} here"));
            continue;
        };
        let mut stdin = child.stdin.take().unwrap();
        let feed = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &plain()).unwrap());
        let output = child.wait_with_output().unwrap();
        feed.join().unwrap();
        assert!(unpacked(&output.stdout).unwrap() == plain(), "{program}");
    }
}

/// Frames of Zstandard that have `len` zeroes in all and ask for a window of 1 KiB << `exponent`, one byte for each block.
fn zstd_zeroes(len: usize, exponent: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3];
    let blocks = len.div_ceil(128 << 10);
    for block in 1..=blocks {
        let header = (128_u32 << 10) << 3 | 1 << 1 | u32::from(block == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

fn xz_zeroes(len: usize, dictionary: u32) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.lzma_options.dict_size = dictionary;
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    std::io::Write::write_all(&mut writer, &vec![0; len]).unwrap();
    writer.finish().unwrap()
}

#[test]
fn window_is_as_large_as_the_file_is_worth_whatever_it_asks_for() {
    const LARGE: usize = 40 << 20;
    for (what, bomb) in [("zstd", zstd_zeroes(LARGE, 17)), ("xz", xz_zeroes(LARGE, 64 << 20))] {
        let error = unpacked(&bomb).unwrap_err();
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            reason.contains("more than 16 MiB of memory") && reason.contains("smaller window"),
            "{what}: {reason}"
        );
    }
    let error = first_bytes(Packing::Zstd, &file(&zstd_zeroes(LARGE, 17)), 512).unwrap_err();
    assert!(matches!(error, UnpackError::Damaged { .. }), "{error}");
    // The usual window, any number of times; and a large one in which little is.
    for packed in [zstd_zeroes(LARGE, 13), xz_zeroes(LARGE, 8 << 20)] {
        assert_eq!(unpacked(&packed).unwrap().len(), LARGE);
    }
    for packed in [zstd_zeroes(8 << 20, 17), xz_zeroes(8 << 20, 64 << 20)] {
        assert_eq!(unpacked(&packed).unwrap().len(), 8 << 20);
        assert_eq!(first_bytes(Packing::of(&packed).unwrap(), &file(&packed), 512).unwrap(), [0; 512]);
    }
    // xz rounds what it keeps up to a power of two.
    assert_eq!([16, 23, 24, 100].map(|room| xz_output(room << 20) >> 20), [15, 15, 31, 63]);
    // A file that is large enough may have what it asks for.
    let frame = zstd_zeroes(LARGE, 17);
    let padding = [&b"\x50\x2a\x4d\x18\0\0\x50\0"[..], &vec![0; 5 << 20]].concat();
    assert_eq!(unpacked(&[frame, padding].concat()).unwrap().len(), LARGE);
}
