//! Checks whether Linux can unpack an initrd, as far as that is cheap: its format, and whether it is
//! complete. The builder calls this before it creates a machine. Nothing is unpacked, and unknown formats
//! pass: they are left to the kernel.
//!
//! Sources: Linux, Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c; RFC 8878,
//! 3.1.1; the .xz file format 1.2.0, 2.1.2.

use std::path::PathBuf;

use coracle_arch::field::{INITRDS, ROOT};
use coracle_arch::x86_64::initrd::InitrdFile;
use coracle_arch::x86_64::input_file::InputFile;

/// Why Linux would not unpack an initrd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// The initrd is an archive of another format.
    #[error("{INITRDS} {path:?} is {found}, which Linux does not unpack; {fix}")]
    Kind {
        /// The path of the initrd.
        path: PathBuf,
        /// The format that was found.
        found: &'static str,
        /// How to fix it.
        fix: String,
    },
    /// The initrd is cut short.
    #[error(
        "{INITRDS} {path:?} is cut short: the part that begins at byte {at} goes beyond the end of the file, \
         which has {len} bytes; copy or make it again"
    )]
    Cut {
        /// The path of the initrd.
        path: PathBuf,
        /// The offset of the part that is cut.
        at: u64,
        /// The length of the file, in bytes.
        len: u64,
    },
}

/// Checks an initrd.
///
/// # Errors
/// Linux would not unpack it.
pub fn check(initrd: &InitrdFile) -> Result<(), InitrdError> {
    let file = initrd.file();
    let path = file.path();
    let head = bytes::<512>(file, 0).unwrap_or_else(|| {
        let mut head = [0; 512];
        let len = usize::try_from(file.len()).unwrap_or(head.len()).min(head.len());
        // A file that is shorter than the buffer is complete in it.
        let _ = head.get_mut(..len).map(|head| file.read_at(0, head));
        head
    });
    if let Some((found, fix)) = foreign(&head) {
        return Err(InitrdError::Kind { path: path.to_owned(), found, fix });
    }
    let cut = match head {
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => cut_cpio(file),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => cut_zstd(file),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => cut_xz(file),
        [0x02, 0x21, 0x4c, 0x18, ..] => cut_lz4(file),
        _ => None,
    };
    cut.map_or(Ok(()), |at| Err(InitrdError::Cut { path: path.to_owned(), at, len: file.len() }))
}

/// Recognizes archive formats that Linux cannot unpack, and returns how to fix them.
fn foreign(head: &[u8; 512]) -> Option<(&'static str, String)> {
    let is_tar = head.get(257..262) == Some(b"ustar");
    [
        (is_tar, "a tar archive", format!("give it as {ROOT}, or pack its files with")),
        (head.starts_with(b"PK\x03\x04"), "a zip archive", "pack its files with".to_owned()),
        (
            head.starts_with(b"070707"),
            "a cpio archive in the old portable format (odc)",
            "make it again with".to_owned(),
        ),
        (
            head.starts_with(b"\xc7\x71") || head.starts_with(b"\x71\xc7"),
            "a cpio archive in the old binary format",
            "make it again with".to_owned(),
        ),
    ]
    .into_iter()
    .find_map(|(is_it, found, fix)| is_it.then(|| (found, format!("{fix} `cpio -o -H newc`"))))
}

/// Finds the entry of a cpio archive whose name or content does not fit into the file, and returns its
/// offset. What follows the last entry, such as zeroes or another archive, is not examined.
fn cut_cpio(file: &InputFile) -> Option<u64> {
    let mut at = 0_u64;
    for _ in 0..MAX_ENTRIES {
        let left = file.len().saturating_sub(at);
        if left < CPIO_HEADER {
            // Another file may continue here with the next entry, or some padding is left.
            let magic: [u8; 4] = bytes(file, at)?;
            return (magic == *b"0707").then_some(at);
        }
        let header: [u8; CPIO_HEADER as usize] = bytes(file, at)?;
        if !header.starts_with(b"07070") {
            return None;
        }
        let field = |index: usize| {
            let digits = header.get(6..)?.chunks_exact(8).nth(index)?;
            u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok().map(u64::from)
        };
        let (name_len, len) = (field(11)?, field(6)?);
        let name_at = at.saturating_add(CPIO_HEADER);
        let data = name_at.saturating_add(name_len).next_multiple_of(4);
        let end = data.saturating_add(len);
        if end > file.len() {
            // The last entry has no content, and may lack padding.
            return (name_at.saturating_add(name_len) > file.len() || len > 0).then_some(at);
        }
        if name_len == CPIO_END.len() as u64 && bytes(file, name_at).as_ref() == Some(CPIO_END) {
            return None;
        }
        at = end.next_multiple_of(4);
    }
    None
}

/// Finds the block of a Zstandard frame that does not fit into the file, and returns its offset.
fn cut_zstd(file: &InputFile) -> Option<u64> {
    let [descriptor] = bytes(file, 4)?;
    let is_single = descriptor & 0x20 != 0;
    let dictionary = match descriptor & 3 {
        3 => 4,
        len => u64::from(len),
    };
    let size = match (descriptor >> 6, is_single) {
        (0, true) => 1,
        (0, false) => 0,
        (1, _) => 2,
        (2, _) => 4,
        _ => 8,
    };
    let mut at = [5, u64::from(!is_single), dictionary, size].into_iter().sum::<u64>();
    let checksum = u64::from(descriptor & 4);
    for _ in 0..MAX_BLOCKS {
        let Some([low, middle, high]) = bytes(file, at) else { return Some(at) };
        let block = u32::from_le_bytes([low, middle, high, 0]);
        // A block of a repeated byte takes one byte, whatever its length.
        let len = if (block >> 1) & 3 == 1 { 1 } else { u64::from(block >> 3) };
        let end = at.saturating_add(3).saturating_add(len);
        let is_last = block & 1 == 1;
        if end.saturating_add(if is_last { checksum } else { 0 }) > file.len() {
            return Some(at);
        }
        if is_last {
            return None;
        }
        at = end;
    }
    None
}

/// Returns the offset of an .xz file that has no end mark. If a plain archive follows, as some tools append
/// one, the end is not searched for.
fn cut_xz(file: &InputFile) -> Option<u64> {
    let start = file.len().saturating_sub(TAIL as u64);
    let mut tail = vec![0; usize::try_from(file.len().min(TAIL as u64)).ok()?];
    file.read_at(start, &mut tail).ok()?;
    let end = tail.iter().rposition(|byte| *byte != 0).map_or(0, |at| at.saturating_add(1));
    let has_end = tail.get(..end)?.ends_with(b"YZ") || memchr::memmem::find(&tail, CPIO_END).is_some();
    (!has_end).then_some(0)
}

/// Finds the block of a legacy LZ4 frame that does not fit into the file, and returns its offset.
fn cut_lz4(file: &InputFile) -> Option<u64> {
    let mut at = 4;
    for _ in 0..MAX_BLOCKS {
        let len = u32::from_le_bytes(bytes(file, at)?);
        let end = at.saturating_add(4).saturating_add(u64::from(len));
        // An incompressible block of 8 MiB grows a little. A larger length is not that of a block.
        if len == 0 || len > (9 << 20) {
            return None;
        }
        if end > file.len() {
            return Some(at);
        }
        at = end;
    }
    None
}

fn bytes<const LEN: usize>(file: &InputFile, at: u64) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
    file.read_at(at, &mut bytes).ok()?;
    Some(bytes)
}

const CPIO_HEADER: u64 = 110;
/// The name of the entry that ends an archive.
const CPIO_END: &[u8; 11] = b"TRAILER!!!\0";
/// The maximum number of entries that are examined; most initrds have some thousands.
const MAX_ENTRIES: u32 = 1 << 16;
/// The maximum number of blocks that are examined; each holds some 100 KiB.
const MAX_BLOCKS: u32 = 1 << 16;
/// How many bytes before the end of a file are searched for the end mark, which padding may follow.
const TAIL: usize = 4096;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::compression::Compression;
    use crate::compression::samples::pack;
    use crate::initramfs::Archive;

    use super::*;

    fn said(bytes: &[u8]) -> Result<(), String> {
        let initrd = InitrdFile::from_bytes(Path::new("/boot/initrd"), bytes.to_vec()).unwrap();
        check(&initrd).map_err(|error| error.to_string())
    }

    fn cpio() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file("/init", 0o755, (0..20_000_u32).flat_map(u32::to_le_bytes).collect());
        archive.symlink("/bin/sh", "busybox");
        archive.finish().unwrap()
    }

    #[test]
    fn archives_of_other_kinds_are_named_with_what_works() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, found) in [
            (&tar[..], "a tar archive, which Linux does not unpack; give it as root, or"),
            (b"PK\x03\x04 and so on", "a zip archive"),
            (b"0707070000", "old portable format (odc), which Linux does not unpack; make it again with"),
            (b"\xc7\x71\0\0", "old binary format"),
        ] {
            let said = said(bytes).unwrap_err();
            assert!(said.starts_with("initrds \"/boot/initrd\" is ") && said.contains(found), "{said}");
        }
    }

    #[test]
    fn what_linux_takes_passes() {
        let cpio = cpio();
        let padded = |bytes: &[u8]| [bytes, &[0; 700]].concat();
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4Legacy] {
            let packed = pack(compression, &cpio);
            said(&packed).unwrap();
            said(&padded(&packed)).unwrap();
            // An uncompressed archive with microcode comes first.
            said(&[&cpio[..], &packed].concat()).unwrap();
            said(&[&packed[..], &cpio].concat()).unwrap();
        }
        said(&cpio).unwrap();
        said(&padded(&cpio)).unwrap();
        said(&[&cpio[..], &cpio].concat()).unwrap();
        // An entry may continue in the next initrd; file systems and other formats are left to the kernel.
        let end = memchr::memmem::rfind(&cpio, b"070701").unwrap();
        said(&cpio[..end]).unwrap();
        said(b"hsqs").unwrap();
        said(&[0; 3]).unwrap();
    }

    #[test]
    fn what_is_cut_anywhere_is_named() {
        let cpio = cpio();
        let end = memchr::memmem::rfind(&cpio, b"070701").unwrap();
        let starts: Vec<usize> = memchr::memmem::find_iter(&cpio, b"070701").collect();
        for len in (200..end).step_by(97).chain([end - 1, end + 50]) {
            // At the end of an entry, and in the three bytes of padding after it, nothing is missing yet.
            if starts.iter().any(|start| (0..=7).contains(&(*start as isize + 3 - len as isize))) {
                continue;
            }
            let error = said(&cpio[..len]).expect_err(&len.to_string());
            assert!(error.contains("is cut short"), "{error}");
        }
        for compression in [Compression::Xz, Compression::Zstd, Compression::Lz4Legacy] {
            let packed = pack(compression, &cpio);
            for len in (6..packed.len()).step_by(packed.len() / 50).chain([packed.len() - 1]) {
                // A frame without an end does not show that a further block is missing.
                if compression == Compression::Lz4Legacy && len < 8 {
                    continue;
                }
                assert!(said(&packed[..len]).is_err(), "{compression} cut to {len}");
            }
        }
    }
}
