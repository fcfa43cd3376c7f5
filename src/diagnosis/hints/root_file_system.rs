//! The file system of the disk that `root=` names, as far as a kernel may lack it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use coracle_arch::regular_file;

/// A file system that Linux can have as its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootFileSystem {
    /// Its name, as `rootfstype=` takes it.
    pub name: &'static str,
    /// The kernel's option for it.
    pub option: &'static str,
    /// The offset of its magic number, and the number.
    mark: (u64, &'static [u8]),
}

/// Returns what the file of a disk holds; `None` for block devices, other contents, and what cannot be read.
pub(super) fn find(disk: &Path) -> Option<&'static RootFileSystem> {
    let (file, _) = regular_file::open(disk).ok()?;
    KNOWN.iter().find(|known| {
        let (at, mark) = known.mark;
        let mut found = [0; LONGEST_MARK];
        found
            .get_mut(..mark.len())
            .is_some_and(|found| file.read_exact_at(found, at).is_ok() && found == mark)
    })
}

const LONGEST_MARK: usize = 8;
/// The superblocks of Linux: fs/xfs/libxfs/xfs_format.h, include/uapi/linux/btrfs_tree.h, fs/ext4/ext4.h,
/// include/linux/f2fs_fs.h, fs/erofs/erofs_fs.h, fs/squashfs/squashfs_fs.h.
const KNOWN: [RootFileSystem; 6] = [
    RootFileSystem { name: "xfs", option: "CONFIG_XFS_FS", mark: (0, b"XFSB") },
    RootFileSystem { name: "btrfs", option: "CONFIG_BTRFS_FS", mark: (0x1_0040, b"_BHRfS_M") },
    RootFileSystem { name: "ext4", option: "CONFIG_EXT4_FS", mark: (0x438, b"\x53\xef") },
    RootFileSystem { name: "f2fs", option: "CONFIG_F2FS_FS", mark: (0x400, b"\x10\x20\xf5\xf2") },
    RootFileSystem { name: "erofs", option: "CONFIG_EROFS_FS", mark: (0x400, b"\xe2\xe1\xf5\xe0") },
    RootFileSystem { name: "squashfs", option: "CONFIG_SQUASHFS", mark: (0, b"hsqs") },
];

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn file_system_is_known_by_its_superblock() {
        for known in &KNOWN {
            let disk = TempFile::new().unwrap();
            disk.as_file().set_len(1 << 20).unwrap();
            assert_eq!(find(disk.as_path()), None);
            disk.as_file().write_all_at(known.mark.1, known.mark.0).unwrap();
            assert_eq!(find(disk.as_path()), Some(known));
            disk.as_file().set_len(known.mark.0 + 1).unwrap();
            assert_eq!(find(disk.as_path()), None);
        }
        assert_eq!(find("/dev/zero".as_ref()), None);
        assert_eq!(find("/no/such/disk".as_ref()), None);
    }
}
