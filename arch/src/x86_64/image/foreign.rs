//! Files that are not a kernel for this machine: what they are, and what the user can do about it.
//!
//! The marks come from the formats' own specifications; only the start of the file is looked at.

use std::fmt;

use super::super::bytes::{has_at, u16_at, u32_at};
use crate::field::{APPEND, DISKS, INITRDS, ROOT};

/// The kind of a file that cannot be booted. It displays as "what it is; what would work".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// A 32-bit ELF file without a PVH entry.
    Elf32,
    /// A big-endian ELF file.
    ElfBigEndian,
    /// An ELF file for another processor. The value is its number in the ELF registry.
    ElfMachine(u16),
    /// An ELF file that is not executable, such as a kernel module, an object file or a core dump. The value
    /// is its `e_type`.
    ElfType(u16),
    /// An ELF program that needs a dynamic loader.
    ElfProgram,
    /// A 64-bit ARM kernel.
    Arm64Image,
    /// A RISC-V kernel.
    RiscvImage,
    /// Packed data.
    Packed(Packing),
    /// A file of a known kind, which the user may have swapped with the kernel. The value names the kind,
    /// with its article.
    Named(&'static str),
    /// A file that belongs to another setting. The first value is its kind, with its article.
    Elsewhere(&'static str, Home),
    /// A file of none of the known kinds.
    Unknown,
}

/// The setting that takes a file which is not a kernel. It displays as advice on how to use the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// The root file system.
    Root,
    /// A disk with the root on it, or on a partition of it.
    Disk,
    /// A disk, once it is a raw image.
    RawDisk,
    /// An initrd.
    Initrd,
}

/// The packers whose output is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// RFC 1952.
    Gzip,
    /// The .xz format.
    Xz,
    /// RFC 8878.
    Zstd,
    /// LZ4, current or legacy frame.
    Lz4,
    /// bzip2.
    Bzip2,
}

const WHAT_WORKS: &str = "give an x86-64 vmlinux or bzImage";

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf32 => {
                write!(f, "a 32-bit ELF file without a PVH entry (an ELF note of Xen's); {WHAT_WORKS}")
            }
            Self::ElfBigEndian => write!(f, "a big-endian ELF file; {WHAT_WORKS}"),
            Self::ElfMachine(machine) => match machine_name(*machine) {
                Some(name) => write!(f, "an ELF file for {name}; {WHAT_WORKS}"),
                None => write!(f, "an ELF file for another processor (machine {machine}); {WHAT_WORKS}"),
            },
            Self::ElfType(1) => write!(f, "an ELF object file or kernel module; {WHAT_WORKS}"),
            Self::ElfType(4) => write!(f, "an ELF core dump; {WHAT_WORKS}"),
            Self::ElfType(other) => write!(f, "an ELF file of type {other}, not executable; {WHAT_WORKS}"),
            Self::ElfProgram => write!(f, "a program that runs under Linux, not a kernel; {WHAT_WORKS}"),
            Self::Arm64Image => write!(f, "a kernel for 64-bit ARM; {WHAT_WORKS}"),
            Self::RiscvImage => write!(f, "a kernel for RISC-V; {WHAT_WORKS}"),
            Self::Packed(packing) => {
                let (name, command) = packing.name_and_command();
                write!(f, "{name} data; unpack it with `{command}` and give the result")
            }
            Self::Named(name) => write!(f, "{name}; {WHAT_WORKS}"),
            Self::Elsewhere(name, how) => write!(f, "{name}; {how}"),
            Self::Unknown => write!(f, "in no format that is known here; {WHAT_WORKS}"),
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => write!(f, "`{ROOT} FILE` boots it as a root, with or without a kernel of yours"),
            Self::Disk => write!(
                f,
                "`{DISKS} FILE` and `{APPEND} root=/dev/vda`, or /dev/vda1 for a partition, boot the system on it"
            ),
            Self::RawDisk => write!(f, "`qemu-img convert -O raw` makes a file of it that {DISKS} takes"),
            Self::Initrd => write!(f, "`{INITRDS} FILE` beside a kernel boots that kernel with it"),
        }
    }
}

impl Packing {
    fn name_and_command(self) -> (&'static str, &'static str) {
        match self {
            Self::Gzip => ("gzip-packed", "gunzip"),
            Self::Xz => ("xz-packed", "unxz"),
            Self::Zstd => ("zstd-packed", "unzstd"),
            Self::Lz4 => ("LZ4-packed", "unlz4"),
            Self::Bzip2 => ("bzip2-packed", "bunzip2"),
        }
    }
}

/// Identifies a file that starts with `head` and is neither an ELF file nor a bzImage.
pub(super) fn identify(head: &[u8]) -> Foreign {
    // These two come before the marks at offset 0: such kernels are EFI programs too.
    if has_at(head, 0x38, b"ARM\x64") {
        return Foreign::Arm64Image;
    }
    if has_at(head, 0x38, b"RSC\x05") {
        return Foreign::RiscvImage;
    }
    if let Some((_, found)) = MARKS.iter().find(|(mark, _)| head.starts_with(mark)) {
        return *found;
    }
    if u16_at(head, EXT4_MAGIC_OFFSET) == Some(EXT4_MAGIC) {
        return Foreign::Elsewhere("an ext2, ext3 or ext4 file system image", Home::Root);
    }
    if has_at(head, 0x101, b"ustar") {
        return Foreign::Elsewhere("a tar archive", Home::Root);
    }
    if u16_at(head, 0x1fe) == Some(0xaa55) {
        return Foreign::Elsewhere("a disk image or boot sector", Home::Disk);
    }
    if is_text(head) {
        return Foreign::Named("a text file");
    }
    if u32_at(head, 0) == Some(0) && head.iter().all(|byte| *byte == 0) {
        return Foreign::Named("a file of zeros");
    }
    Foreign::Unknown
}

/// The magic of ext2, ext3 and ext4, in the superblock at 1024 (Linux,
/// Documentation/filesystems/ext4/super.rst).
const EXT4_MAGIC: u16 = 0xef53;
const EXT4_MAGIC_OFFSET: usize = 0x438;

const MARKS: [(&[u8], Foreign); 19] = [
    (b"\x1f\x8b", Foreign::Packed(Packing::Gzip)),
    (b"\xfd7zXZ\0", Foreign::Packed(Packing::Xz)),
    (b"\x28\xb5\x2f\xfd", Foreign::Packed(Packing::Zstd)),
    (b"\x04\x22\x4d\x18", Foreign::Packed(Packing::Lz4)),
    (b"\x02\x21\x4c\x18", Foreign::Packed(Packing::Lz4)),
    (b"BZh", Foreign::Packed(Packing::Bzip2)),
    (b"070701", Foreign::Elsewhere("a cpio archive, as an initramfs is", Home::Initrd)),
    (b"070702", Foreign::Elsewhere("a cpio archive, as an initramfs is", Home::Initrd)),
    (b"070707", Foreign::Elsewhere("a cpio archive, as an initramfs is", Home::Initrd)),
    (b"hsqs", Foreign::Elsewhere("a squashfs file system image", Home::Root)),
    (b"XFSB", Foreign::Elsewhere("an XFS file system image", Home::Disk)),
    (b"QFI\xfb", Foreign::Elsewhere("a qcow2 disk image", Home::RawDisk)),
    (
        b"!<arch>\n",
        Foreign::Named("an archive such as a Debian package, which may hold a kernel under boot/"),
    ),
    (b"\xed\xab\xee\xdb", Foreign::Named("an RPM package, which may hold a kernel under boot/")),
    (b"PK\x03\x04", Foreign::Named("a zip archive")),
    (b"#!", Foreign::Named("a script")),
    (b"\x27\x05\x19\x56", Foreign::Named("a U-Boot image")),
    (b"\xd0\x0d\xfe\xed", Foreign::Named("a device tree or U-Boot FIT image")),
    (b"MZ", Foreign::Named("an EFI or Windows program, or a bzImage that was cut off")),
];

/// Returns whether all of `head` is ASCII text.
fn is_text(head: &[u8]) -> bool {
    head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

/// Returns the name of a processor for which users are likely to have kernels (gABI, "e_machine").
fn machine_name(machine: u16) -> Option<&'static str> {
    Some(match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "IBM Z",
        40 => "32-bit ARM",
        183 => "64-bit ARM",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::ImageError;
    use super::super::samples::open_bytes;

    fn with_mark(offset: usize, mark: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x90; 2048];
        bytes.splice(offset..offset + mark.len(), mark.iter().copied());
        bytes
    }

    fn message(bytes: &[u8]) -> String {
        let error = open_bytes(bytes).unwrap_err();
        assert!(matches!(error, ImageError::Foreign { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn every_known_kind_is_named_with_what_works() {
        let cases: [(usize, &[u8], &str); 16] = [
            (0, b"\x1f\x8b\x08", "`gunzip`"),
            (0, b"\xfd7zXZ\0", "`unxz`"),
            (0, b"\x28\xb5\x2f\xfd", "`unzstd`"),
            (0, b"\x04\x22\x4d\x18", "`unlz4`"),
            (0, b"\x02\x21\x4c\x18", "`unlz4`"),
            (0, b"BZh9", "`bunzip2`"),
            (0, b"070701", "cpio archive, as an initramfs is; `initrds FILE`"),
            (0, b"QFI\xfb", "qcow2 disk image; `qemu-img convert"),
            (0, b"!<arch>\n", "Debian package"),
            (0, b"#!/bin/sh\n", "script"),
            (0, b"MZ", "EFI"),
            (0x38, b"ARM\x64", "64-bit ARM"),
            (0x38, b"RSC\x05", "RISC-V"),
            (0x101, b"ustar", "tar archive; `root FILE`"),
            (0x1fe, b"\x55\xaa", "boot sector; `disks FILE` and `append root="),
            (0x438, b"\x53\xef", "ext4 file system image; `root FILE`"),
        ];
        for (offset, mark, expected) in cases {
            let message = message(&with_mark(offset, mark));
            assert!(message.contains(expected), "{expected}: {message}");
            assert!(message.contains("give ") || message.contains("; `"), "{message}");
        }
    }

    #[test]
    fn arm64_image_that_is_also_an_efi_program_is_named_arm64() {
        let mut bytes = with_mark(0x38, b"ARM\x64");
        bytes[..2].copy_from_slice(b"MZ");
        assert!(message(&bytes).contains("64-bit ARM"));
    }

    #[test]
    fn text_zeros_and_noise_are_told_apart() {
        assert!(message(b"root=/dev/vda quiet\n").contains("a text file"));
        assert!(message(&[0; 512]).contains("a file of zeros"));
        assert!(message(&[0x90; 512]).contains("no format that is known"));
    }

    #[test]
    fn one_byte_is_identified_without_harm() {
        assert!(message(&[0x7f]).contains("no format that is known"));
    }
}
