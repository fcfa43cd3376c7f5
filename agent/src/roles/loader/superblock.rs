//! Identifies the content of a block device by the marks at its start: the type of its file system with
//! identity and label, or another known format. Nothing that is read sizes or leads to anything: offsets and
//! lengths are those of the formats.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The content of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// A file system.
    FileSystem(Superblock),
    /// Something else, described in words.
    Other(&'static str),
    /// Partitions. The value names the kind of the table.
    Partitions(&'static str),
    /// Nothing that is known here.
    Unknown,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The type, as `rootfstype=` names it.
    pub(super) kind: &'static str,
    /// The identity, as `UUID=` has it: lower case, with hyphens.
    pub(super) uuid: Option<String>,
    /// The label.
    pub(super) label: Option<String>,
}

impl Content {
    /// Reads the content of the device behind a node.
    ///
    /// # Errors
    /// The device cannot be read.
    pub(super) fn of(node: &Path) -> io::Result<Self> {
        let device = File::open(node)?;
        let mut head = vec![0; HEAD];
        let mut len = 0;
        while let Some(rest) = head.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match device.read_at(rest, len as u64) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        head.truncate(len);
        Ok(Self::identify(&head))
    }

    /// Identifies the first bytes of a device.
    fn identify(head: &[u8]) -> Self {
        if let Some(format) = FILE_SYSTEMS.iter().find(|format| format.is_at(head)) {
            return Self::FileSystem(format.read(head));
        }
        if let Some((.., what)) = OTHERS.iter().find(|(at, mark, _)| has(head, *at, mark)) {
            return Self::Other(what);
        }
        match TABLES.iter().find(|(at, mark, _)| has(head, *at, mark)) {
            Some((.., table)) => Self::Partitions(table),
            None => Self::Unknown,
        }
    }
}

/// Returns the text of an identity of 16 bytes.
pub(super) fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The offsets of a file system's mark, identity (16 bytes) and label (with its length; a zero byte ends it
/// early).
struct Format {
    kind: &'static str,
    mark: (usize, &'static [u8]),
    uuid: Option<usize>,
    label: Option<(usize, usize)>,
}

impl Format {
    fn is_at(&self, head: &[u8]) -> bool {
        let (at, mark) = self.mark;
        has(head, at, mark)
    }

    fn read(&self, head: &[u8]) -> Superblock {
        let uuid_bytes = self.uuid.and_then(|at| head.get(at..)?.first_chunk::<16>());
        let label = self.label.and_then(|(at, len)| head.get(at..)?.get(..len));
        let label = label.and_then(|label| label.split(|&byte| byte == 0).next());
        Superblock {
            kind: self.kind,
            uuid: uuid_bytes.map(|bytes| uuid(*bytes)),
            label: label
                .filter(|label| !label.is_empty())
                .map(|label| String::from_utf8_lossy(label).into_owned()),
        }
    }
}

fn has(head: &[u8], at: usize, mark: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(mark))
}

/// The number of bytes that the marks below need. Those of btrfs are the last.
const HEAD: usize = 0x1_1000;

/// Linux: fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, include/uapi/linux/btrfs_tree.h, fs/erofs/erofs_fs.h,
/// fs/squashfs/squashfs_fs.h, include/linux/f2fs_fs.h; ECMA-119, 8.
const FILE_SYSTEMS: [Format; 7] = [
    Format { kind: "xfs", mark: (0, b"XFSB"), uuid: Some(0x20), label: Some((0x6c, 12)) },
    Format { kind: "squashfs", mark: (0, b"hsqs"), uuid: None, label: None },
    Format { kind: "ext4", mark: (0x438, b"\x53\xef"), uuid: Some(0x468), label: Some((0x478, 16)) },
    Format { kind: "erofs", mark: (0x400, b"\xe2\xe1\xf5\xe0"), uuid: Some(0x430), label: Some((0x440, 16)) },
    Format { kind: "f2fs", mark: (0x400, b"\x10\x20\xf5\xf2"), uuid: Some(0x46c), label: None },
    Format {
        kind: "btrfs",
        mark: (0x1_0040, b"_BHRfS_M"),
        uuid: Some(0x1_0020),
        label: Some((0x1_012b, 256)),
    },
    Format { kind: "iso9660", mark: (0x8001, b"CD001"), uuid: None, label: None },
];

/// Formats that people pass as a disk and that are not a file system.
const OTHERS: [(usize, &[u8], &str); 7] = [
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0x218, b"LVM2 001", "a physical volume of LVM"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0, b"QFI\xfb", "an image in the format qcow2; `qemu-img convert -O raw` makes a disk of it"),
    (0, b"KDMV", "an image in the format VMDK; `qemu-img convert -O raw` makes a disk of it"),
    (0, b"vhdxfile", "an image in the format VHDX; `qemu-img convert -O raw` makes a disk of it"),
    (0x101, b"ustar", "a tar; --root takes it"),
];

/// Marks of partition tables: UEFI 2.10, 5.3.2 (with logical blocks of 512 and 4096 bytes) and 5.2.1.
const TABLES: [(usize, &[u8], &str); 3] =
    [(0x200, b"EFI PART", "GPT"), (0x1000, b"EFI PART", "GPT"), (0x1fe, b"\x55\xaa", "MBR")];

#[cfg(test)]
mod tests {
    use super::*;

    fn device(pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, piece) in pieces {
            head[*at..][..piece.len()].copy_from_slice(piece);
        }
        head
    }

    #[test]
    fn file_systems_have_a_kind_an_identity_and_a_label() {
        let id: Vec<u8> = (0..16).collect();
        for Format { kind, mark, uuid, label } in FILE_SYSTEMS {
            let mut pieces = vec![mark];
            pieces.extend(uuid.map(|at| (at, &id[..])));
            pieces.extend(label.map(|(at, _)| (at, &b"my root\0x"[..])));
            let expected = Superblock {
                kind,
                uuid: uuid.map(|_| "00010203-0405-0607-0809-0a0b0c0d0e0f".to_owned()),
                label: label.map(|_| "my root".to_owned()),
            };
            assert_eq!(Content::identify(&device(&pieces)), Content::FileSystem(expected));
        }
    }

    #[test]
    fn what_is_not_a_file_system_is_named() {
        assert_eq!(Content::identify(&device(&[])), Content::Unknown);
        assert_eq!(Content::identify(b""), Content::Unknown);
        assert_eq!(Content::identify(&device(&[(0x1fe, b"\x55\xaa")])), Content::Partitions("MBR"));
        let protective: [(usize, &[u8]); 2] = [(0x1fe, b"\x55\xaa"), (0x200, b"EFI PART")];
        assert_eq!(Content::identify(&device(&protective)), Content::Partitions("GPT"));
        let qcow2 = Content::identify(&device(&[(0, b"QFI\xfb")]));
        assert!(matches!(qcow2, Content::Other(what) if what.contains("qcow2")));
    }

    #[test]
    fn boot_sector_before_a_file_system_hides_nothing() {
        let head = device(&[(0x1fe, b"\x55\xaa"), (0x438, b"\x53\xef")]);
        assert!(matches!(Content::identify(&head), Content::FileSystem(Superblock { kind: "ext4", .. })));
    }

    #[test]
    fn device_that_ends_early_is_read_as_far_as_it_goes() {
        let path = std::env::temp_dir().join(format!("coracle-superblock-{}", std::process::id()));
        for len in [0, 0x438, 0x439, 0x470, 0x500] {
            std::fs::write(&path, &device(&[(0x438, b"\x53\xef")])[..len]).unwrap();
            let found = Content::of(&path).unwrap();
            assert_eq!(matches!(found, Content::FileSystem(_)), len >= 0x43a, "{len}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
