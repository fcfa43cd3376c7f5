//! Tests of every kernel format end to end: the code of a bzImage exits with 7 and its compressed kernel with
//! 0, so that the exit code shows which of the two has run.

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use common::{coracle, file, finish, kvm_or_skip, payload};
use coracle_image::compression::Compression;
use coracle_payload::Payload;

macro_rules! needs_kvm {
    () => {
        if !kvm_or_skip() {
            return;
        }
    };
}

const ALL: [Compression; 4] = [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4Legacy];

/// Compresses a kernel as Linux's build does: the uncompressed length follows all formats except gzip.
fn packed(compression: Compression) -> Vec<u8> {
    let elf = Payload::named("hello-exit").unwrap().elf();
    let mut packed = match compression {
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            out.write_all(&elf).unwrap();
            return out.finish().unwrap();
        }
        Compression::Xz => {
            let mut options = lzma_rust2::XzOptions::with_preset(6);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut out = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            out.write_all(&elf).unwrap();
            out.finish().unwrap()
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(elf.as_slice(), ruzstd::encoding::CompressionLevel::Fastest)
        }
        Compression::Lz4Legacy => {
            let block = lz4_flex::block::compress(&elf);
            [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat()
        }
        other => panic!("nothing here packs {other}"),
    };
    packed.extend_from_slice(&(elf.len() as u32).to_le_bytes());
    packed
}

fn bzimage(name: &str, packed: &[u8]) -> PathBuf {
    file(name, &Payload::named("exit-7").unwrap().bzimage(packed))
}

fn run(kernel: &PathBuf, args: &[&str]) -> Command {
    let mut command = coracle();
    command.args(["run", "--accel", "kvm"]).arg(kernel).args(args);
    command
}

/// Converts an ELF64 file's program headers and segments to an ELF32 file.
fn elf_32(elf: &[u8]) -> Vec<u8> {
    let number = |at: usize, len: usize| {
        let bytes = elf[at..at + len].iter().rev();
        bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) as u32
    };
    let (table, count) = (number(32, 8) as usize, number(56, 2) as usize);
    let shift = 52 + 32 * count as u32;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2_u16, 3].map(u16::to_le_bytes).concat());
    // There is no 64-bit entry point, and nothing requests another.
    file.extend([1_u32, 0, 52, 0, 0].map(u32::to_le_bytes).concat());
    file.extend([52_u16, 32, count as u16, 0, 0, 0].map(u16::to_le_bytes).concat());
    for at in (0..count).map(|index| table + 56 * index) {
        let fields = [8, 24, 24, 32, 40].map(|offset| number(at + offset, 8));
        let [offset, virtual_address, address, file_len, memory_len] = fields;
        let fields = [number(at, 4), offset + shift, virtual_address, address, file_len, memory_len, 7, 4];
        file.extend(fields.map(u32::to_le_bytes).concat());
    }
    file.extend(elf);
    file
}

#[test]
fn elf_file_of_32_bits_is_entered_by_its_pvh_note() {
    needs_kvm!();
    let kernel = file("elf32", &elf_32(&Payload::named("hello-exit").unwrap().elf()));
    for args in [&[][..], &["--protocol", "pvh"]] {
        let hello = finish(&mut run(&kernel, args));
        assert!(hello.expect(0, "code 0").stdout == b"!", "{hello:?}");
    }
    let refused = finish(&mut run(&kernel, &["--protocol", "linux"]));
    refused.expect(125, "is a 32-bit ELF file, which has a PVH entry only");
}

#[test]
fn bzimage_whose_length_was_rounded_up_runs() {
    needs_kvm!();
    let mut image = Payload::named("exit-7").unwrap().bzimage(&packed(Compression::Gzip));
    let paragraphs = u32::from_le_bytes(image[0x1f4..0x1f8].try_into().unwrap()) + 1;
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image.truncate(image.len() / 16 * 16);
    for (len, code) in [(image.len() + 1, 7), (image.len(), 125)] {
        image.resize(len, 0);
        finish(&mut run(&file("rounded", &image), &[])).expect(code, "");
    }
}

#[test]
fn each_packing_unpacks_itself_or_is_unpacked_here_for_its_pvh_entry() {
    needs_kvm!();
    for compression in ALL {
        let kernel = bzimage("vmlinuz", &packed(compression));
        for args in [&[][..], &["--kaslr"], &["--protocol", "linux"]] {
            finish(&mut run(&kernel, args)).expect(7, "code 7");
        }
        let unpacked = finish(&mut run(&kernel, &["--protocol", "pvh"]));
        assert_eq!(unpacked.expect(0, "code 0").text(), "!", "{compression}");
    }
}

#[test]
fn unknown_packing_unpacks_itself() {
    needs_kvm!();
    finish(&mut run(&bzimage("vmlinuz", b"BZh91AY"), &[])).expect(7, "code 7");
}

#[test]
fn elf_image_is_entered_by_either_protocol() {
    needs_kvm!();
    let kernel = payload("exit-7");
    for protocol in ["auto", "linux", "pvh"] {
        finish(&mut run(&kernel, &["--protocol", protocol])).expect(7, "code 7");
    }
}

#[track_caller]
fn refused(kernel: &PathBuf, args: &[&str], words: &str) {
    let run = finish(&mut run(kernel, args));
    run.expect(125, words).expect(125, kernel.to_str().unwrap());
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
}

#[test]
fn protocols_that_an_image_does_not_have_are_refused() {
    let mut elf = Payload::named("exit-7").unwrap().elf();
    let note = elf.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
    elf[note] = b'Y';
    refused(&file("no-note", &elf), &["--protocol", "pvh"], "has no PVH entry");
    refused(&bzimage("unknown", b"BZh91AY"), &["--protocol", "pvh"], "has no PVH entry");
    let kernel = bzimage("kaslr", &packed(Compression::Gzip));
    refused(&kernel, &["--protocol", "pvh", "--kaslr"], "has no PVH entry");
    refused(&payload("exit-7"), &["--kaslr"], "--kaslr needs a kernel that decompresses itself");
    let run = finish(&mut run(&kernel, &["--protocol", "multiboot"]));
    run.expect(125, "use auto, linux or pvh");
}

#[test]
fn damaged_packed_kernels_are_refused_in_one_sentence() {
    let good = packed(Compression::Lz4Legacy);
    let mut size = good.clone();
    let at = size.len() - 4;
    size[at] ^= 1;
    refused(&bzimage("size", &size), &["--protocol", "pvh"], "is damaged");
    let mut large = good.clone();
    large[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(&bzimage("large", &large), &["--protocol", "pvh"], "more than the 8388608 that it reserves");
    let mut gzip = packed(Compression::Gzip);
    gzip[40] ^= 0x10;
    refused(&bzimage("gzip", &gzip), &["--protocol", "pvh"], "gzip data cannot be decompressed");
    let mut whole = Payload::named("exit-7").unwrap().bzimage(&good);
    whole.truncate(whole.len() - 16);
    refused(&file("cut", &whole), &[], "is truncated");
}

#[test]
fn modules_that_are_not_there_are_refused() {
    let kernel = bzimage("modules", &packed(Compression::Gzip));
    let folder = common::scratch();
    // The compressed kernel is not Linux, which alone has modules.
    let args = ["--rng", "--protocol", "pvh", "--modules", folder.to_str().unwrap()];
    finish(&mut run(&kernel, &args)).expect(0, "code 0");
    let run = finish(&mut self::run(&kernel, &["--rng", "--modules", folder.to_str().unwrap()]));
    run.expect(125, "it holds no modules of the kernel's release, 0.0.0-payload");
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
}
