//! Recognizes what a root is made from by examining the file, which the user has named as a root. (The
//! content of a guest's disks is never examined.)

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use coracle_arch::field::INITRDS;

use super::content::read_up_to;
use super::tar;
use super::unpack::{self, Packing};
use super::{RootError, RootKind, spool_file};

/// An open source.
#[derive(Debug)]
pub(super) enum Source {
    Directory,
    /// A tar and its length, in bytes.
    Tar(File, u64),
    PackedTar(Packing, File),
    Image(FileSystem),
}

/// The file system of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileSystem {
    Ext4,
    Erofs,
    Squashfs,
}

impl Source {
    /// Opens the source at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or is not of a kind that a root can be.
    pub(super) fn open(path: &Path) -> Result<Source, RootError> {
        let failed = |source| RootError::Open { path: path.to_owned(), source };
        // Do not wait for the other end of a FIFO.
        let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).clone();
        let file = options.open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Ok(Source::Directory);
        }
        let other = |found: &str| RootError::Kind { path: path.to_owned(), found: found.to_owned() };
        if !kind.is_file() && !kind.is_block_device() {
            return Err(other("neither a file nor a directory"));
        }
        let mut start = vec![0; START];
        let read = read_up_to(&file, &mut start, 0).map_err(failed)?;
        start.truncate(read);
        if let Some(file_system) = FileSystem::of(&start) {
            return Ok(Source::Image(file_system));
        }
        if let Some(packing) = Packing::of(&start) {
            let inside = unpack::first_bytes(packing, &file, HEADER)
                .map_err(|source| RootError::Unpack { path: path.to_owned(), source })?;
            if !tar::is_header(&inside) {
                return Err(other(&format!("{} data with {} in it", packing.name(), content_name(&inside))));
            }
            return Ok(Source::PackedTar(packing, file));
        }
        if tar::is_header(&start) {
            return Ok(Source::Tar(file, metadata.len()));
        }
        Err(other(&content_name(&start)))
    }

    /// Returns the length of the archive, compressed or not, in bytes; `None` if the source is not an
    /// archive.
    pub(super) fn archive_len(&self) -> Option<u64> {
        match self {
            Source::Tar(_, len) => Some(*len),
            Source::PackedTar(_, file) => Some(file.metadata().map_or(0, |metadata| metadata.len())),
            Source::Directory | Source::Image(_) => None,
        }
    }

    pub(super) fn kind(&self) -> RootKind {
        match self {
            Source::Directory => RootKind::Directory,
            Source::Tar(..) | Source::PackedTar(..) => RootKind::Tar,
            Source::Image(_) => RootKind::Image,
        }
    }
}

impl FileSystem {
    fn of(start: &[u8]) -> Option<FileSystem> {
        let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
        if has(0, b"hsqs") {
            Some(FileSystem::Squashfs)
        } else if has(1024, &[0xe2, 0xe1, 0xf5, 0xe0]) {
            Some(FileSystem::Erofs)
        } else if has(1024 + 0x38, &[0x53, 0xef]) {
            Some(FileSystem::Ext4)
        } else {
            None
        }
    }

    /// Returns its name for mount(8), which is also the name of its module.
    pub(super) fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Erofs => "erofs",
            FileSystem::Squashfs => "squashfs",
        }
    }

    /// Returns whether it can only be read.
    pub(super) fn is_read_only(self) -> bool {
        self != FileSystem::Ext4
    }
}

/// Decompresses a tar into an unnamed file, and returns the file and its length.
///
/// # Errors
/// The tar is damaged, or there is no room for it.
pub(super) fn unpacked(path: &Path, packing: Packing, packed: &File) -> Result<(File, u64), RootError> {
    let (folder, file) = spool_file()?;
    let len = unpack::unpack(packing, packed, &file, &folder.display().to_string());
    Ok((file, len.map_err(|source| RootError::Unpack { path: path.to_owned(), source })?))
}

/// Describes a file that cannot be the source of a root.
fn content_name(start: &[u8]) -> String {
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let name = if start.is_empty() {
        "an empty file"
    } else if start.iter().all(|byte| *byte == 0) {
        "nothing but zeroes where a tar or an image begins"
    } else if has(0, b"07070") {
        return format!("a cpio archive, which {INITRDS} takes");
    } else {
        let sign = SIGNS.iter().find(|(at, magic, _)| has(*at, magic));
        sign.map_or("something else", |(_, _, name)| name)
    };
    name.to_owned()
}

/// The signatures of other files: their offset, their bytes, and the description of the file.
const SIGNS: [(usize, &[u8], &str); 9] = [
    (0, b"\x7fELF", "an ELF program or kernel"),
    (0, b"#!", "a script"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"BZh", "bzip2 data, which is not unpacked here"),
    (0, b"QFI\xfb", "a qcow2 image (`qemu-img convert -O raw` makes a raw one)"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0, b"XFSB", "an XFS image"),
    (0x1_0040, b"_BHRfS_M", "a btrfs image"),
    (510, &[0x55, 0xaa], "an image with partitions; give the image of the one with the root"),
];
/// The length of a tar's first header, in bytes.
const HEADER: u64 = 512;
/// How many bytes of a file are examined: as far as the signatures of images reach.
const START: usize = 0x1_0100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_told_by_their_magic() {
        let image = |at: usize, magic: &[u8]| {
            let mut start = vec![0; 4096];
            start[at..at + magic.len()].copy_from_slice(magic);
            FileSystem::of(&start)
        };
        assert_eq!(image(0, b"hsqs"), Some(FileSystem::Squashfs));
        assert_eq!(image(1024, &0xe0f5_e1e2_u32.to_le_bytes()), Some(FileSystem::Erofs));
        assert_eq!(image(1080, &0xef53_u16.to_le_bytes()), Some(FileSystem::Ext4));
        assert_eq!(image(1080, b"xx"), None);
        assert_eq!(FileSystem::of(b"hs"), None);
    }
}
