//! Compressed files: as usual encoders write them, and with the largest windows, dictionaries and blocks that
//! a format can state, built by hand if an encoder refuses.

use std::io::Write;

/// Returns the compressions of a tar, as usual encoders write them.
pub(crate) fn usual(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let zstd = ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest);
    vec![("gzip", gzip(plain)), ("xz", xz(plain)), ("zstd", zstd), ("LZ4", lz4(plain, false))]
}

/// Returns the compressions of a tar, each with the most memory that its decoder can be asked for.
pub(crate) fn greedy_tars(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = greedy(plain);
    all.push(("LZ4, linked blocks of 4 MiB", lz4(plain, true)));
    all
}

/// Returns the same for a kernel and its modules.
pub(crate) fn greedy_kernels(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = greedy(plain);
    all.push(("LZ4, blocks of 8 MiB", lz4_legacy(plain)));
    all
}

fn greedy(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (first, rest) = plain.split_at(1 << 10);
    let small_first = [zstd(first, &window(0)), zstd(rest, &window(17 << 3))].concat();
    vec![
        ("gzip", gzip(plain)),
        ("xz, 128 MiB", with_dictionary(xz(plain), 30)),
        ("xz, 4 GiB", with_dictionary(xz(plain), 40)),
        // RFC 8878, 3.1.1.1.2: 1 KiB shifted by the upper five bits, plus as many eighths of it as the lower
        // three bits say.
        ("zstd, 128 MiB", zstd(plain, &window(17 << 3))),
        ("zstd, 240 MiB", zstd(plain, &window(17 << 3 | 7))),
        ("zstd, 3.75 TiB", zstd(plain, &window(0xff))),
        ("zstd, one segment", zstd(plain, &one_segment(plain.len() as u64))),
        ("zstd, one segment of 16 EiB", zstd(plain, &one_segment(u64::MAX))),
        ("zstd, a small window first", small_first),
        ("zstd, blocks of 1 MiB", zstd_literals(plain, &window(17 << 3))),
        ("zstd, blocks of 1 MiB in 8 MiB", zstd_literals(plain, &window(13 << 3))),
        ("zstd, blocks of 1 MiB in 3.75 TiB", zstd_literals(plain, &window(0xff))),
    ]
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(plain).unwrap();
    gzip.finish().unwrap()
}

fn xz(plain: &[u8]) -> Vec<u8> {
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(plain).unwrap();
    xz.finish().unwrap()
}

/// Returns the .xz file with another dictionary size (5.3.1): after a header of 12 bytes, a block's own
/// header of 12 bytes without optional fields.
fn with_dictionary(mut xz: Vec<u8>, bits: u8) -> Vec<u8> {
    assert_eq!(xz[12..16], [2, 0, 0x21, 1]);
    xz[16] = bits;
    let mut crc = flate2::Crc::new();
    crc.update(&xz[12..20]);
    xz[20..24].copy_from_slice(&crc.sum().to_le_bytes());
    xz
}

fn lz4(plain: &[u8], is_greedy: bool) -> Vec<u8> {
    let mut info = lz4_flex::frame::FrameInfo::new();
    if is_greedy {
        info = info
            .block_size(lz4_flex::frame::BlockSize::Max4MB)
            .block_mode(lz4_flex::frame::BlockMode::Linked);
    }
    let mut lz4 = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    lz4.write_all(plain).unwrap();
    lz4.finish().unwrap()
}

fn lz4_legacy(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in plain.chunks(8 << 20) {
        let packed = lz4_flex::block::compress(block);
        out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        out.extend_from_slice(&packed);
    }
    out
}

/// Returns the bytes after the magic number of a frame with a window.
fn window(descriptor: u8) -> Vec<u8> {
    vec![0, descriptor]
}

/// Returns the same for a frame whose window is as large as its content.
fn one_segment(len: u64) -> Vec<u8> {
    [&[0b1110_0000][..], &len.to_le_bytes()].concat()
}

/// Returns a frame with blocks of 128 KiB, which take one byte each if all their bytes are the same.
fn zstd(plain: &[u8], header: &[u8]) -> Vec<u8> {
    let mut frame = [&[0x28, 0xb5, 0x2f, 0xfd], header].concat();
    for block in plain.chunks(128 << 10) {
        match block.iter().all(|byte| *byte == block[0]) {
            true => push_block(&mut frame, 1, block.len(), &block[..1]),
            false => push_block(&mut frame, 0, block.len(), block),
        }
    }
    end(frame)
}

/// Returns a frame with blocks without sequences, whose literals are one byte, up to 2^20 - 1 times
/// (3.1.1.3.1.1). That is more than a block may have, but decoders are known to accept it.
fn zstd_literals(plain: &[u8], header: &[u8]) -> Vec<u8> {
    let mut frame = [&[0x28, 0xb5, 0x2f, 0xfd], header].concat();
    let (start, rest) = plain.split_at(plain.len().min(128 << 10));
    push_block(&mut frame, 0, start.len(), start);
    for block in rest.chunks((1 << 20) - 1) {
        assert!(block.iter().all(|byte| *byte == block[0]));
        let literals = ((block.len() as u32) << 4 | 0b1101).to_le_bytes();
        push_block(&mut frame, 2, 5, &[&literals[..3], &[block[0], 0]].concat());
    }
    end(frame)
}

fn push_block(frame: &mut Vec<u8>, kind: u32, size: usize, content: &[u8]) {
    frame.extend_from_slice(&((size as u32) << 3 | kind << 1).to_le_bytes()[..3]);
    frame.extend_from_slice(content);
}

/// The last block is empty.
fn end(mut frame: Vec<u8>) -> Vec<u8> {
    frame.extend_from_slice(&[1, 0, 0]);
    frame
}
