//! Compressed tars, made by the compressors of the compression module and by those of this machine.

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

/// A single frame or stream, and two in a row.
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
    // The .xz format has such padding, too, in units of four bytes.
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
        // Without a checksum in the stream, damage may go unnoticed; the tar's own checksums then have to
        // find it.
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

/// Creates a Zstandard frame with `len` zeroes, one byte for each block, that then refers back by `FAR` bytes
/// in a window of 128 MiB.
fn zstd_far(len: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    for _ in 0..len.div_ceil(128 << 10) {
        frame.extend_from_slice(&((128_u32 << 10) << 3 | 1 << 1).to_le_bytes()[..3]);
        frame.push(0);
    }
    // The last block: no literals, and one sequence whose three codes are bytes (RFC 8878, 3.1.1.3.2.1): no
    // literals, an offset of 25 bits, and a match of three bytes. The bits of the offset are 0; the highest
    // bit marks the end.
    frame.extend_from_slice(&(10_u32 << 3 | 2 << 1 | 1).to_le_bytes()[..3]);
    frame.extend_from_slice(&[0, 1, 0x54, 0, 25, 0, 0, 0, 0, 2]);
    frame
}

/// Creates an .xz file whose last bytes repeat its first ones.
fn xz_far(len: usize) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.lzma_options.dict_size = 64 << 20;
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    let start: Vec<u8> = plain().into_iter().take(1000).collect();
    for part in [&start[..], &vec![0; len - start.len()], &start] {
        std::io::Write::write_all(&mut writer, part).unwrap();
    }
    writer.finish().unwrap()
}

/// The distance to which `zstd_far` refers back, which exceeds the window of a small file.
const FAR: usize = (32 << 20) - 3;

#[test]
fn window_is_as_large_as_the_file_is_worth_whatever_it_asks_for() {
    const LARGE: usize = 40 << 20;
    for (packed, most) in [(zstd_far(LARGE), 15), (xz_far(LARGE), 24)] {
        let error = unpacked(&packed).unwrap_err();
        let reason = error.to_string();
        let limit = format!("more than {most} MiB of memory");
        assert!(reason.contains(&limit) && reason.contains("smaller window"), "{reason}");
        assert!(first_bytes(Packing::of(&packed).unwrap(), &file(&packed), 512).is_ok());
    }
    // A file that is large enough, here because of skippable data, may have the window that it requests.
    let padding = [&b"\x50\x2a\x4d\x18\0\0\x60\0"[..], &vec![0; 6 << 20]].concat();
    let padded = [zstd_far(FAR.next_multiple_of(128 << 10)), padding].concat();
    assert_eq!(unpacked(&padded).unwrap().len(), FAR.next_multiple_of(128 << 10) + 3);
    assert_eq!(unpacked(&xz_far(20 << 20)).unwrap().len(), (20 << 20) + 1000);
}

#[test]
fn frames_that_state_too_much_are_cut_short_or_refused() {
    let skipped =
        unpacked(&[&pack(Compression::Zstd, &plain())[..], b"\x50\x2a\x4d\x18\x04\0\0\0abc"].concat());
    assert!(skipped.is_err());
    // Dictionary id 7.
    assert!(unpacked(b"\x28\xb5\x2f\xfd\x01\x00\x07\x01\x00\x00").is_err());
}
