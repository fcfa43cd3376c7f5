//! A reader of EROFS images for the tests. It follows the description of the format and shares no code with
//! the writer.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::rootfs::samples::{Entry, Listing, joined};

/// Reads everything in an image.
pub(in crate::rootfs) fn listing(image: &File) -> Listing {
    let reader = Reader { image };
    assert_eq!(reader.u32(1024), 0xe0f5_e1e2);
    assert_eq!(reader.bytes(1036, 1), [12], "blocks of 4 KiB");
    assert_eq!(u64::from(reader.u32(1024 + 36)) * 4096, image.metadata().unwrap().len());
    assert_eq!(reader.u32(1024 + 80), 0, "no feature that a reader has to know");
    let root = u64::from(reader.u16(1024 + 14));
    let mut listing = Listing::new();
    let mut stack = vec![(Vec::new(), root, root)];
    while let Some((path, nid, parent)) = stack.pop() {
        let entry = reader.inode(nid);
        if entry.mode & 0o170_000 == 0o040_000 {
            let names = reader.names(&entry.content);
            assert!(names.is_sorted_by(|a, b| a.0 < b.0), "{path:?} is not sorted");
            assert_eq!(names.iter().find(|name| name.0 == b".").unwrap().1, nid);
            assert_eq!(names.iter().find(|name| name.0 == b"..").unwrap().1, parent);
            for (name, child, kind) in names.into_iter().filter(|name| name.0 != b"." && name.0 != b"..") {
                let mode = reader.inode(child).mode >> 12;
                assert_eq!(kind, [0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7][usize::from(mode)]);
                stack.push((joined(&path, &name), child, nid));
            }
            listing.insert(path, Entry { content: Vec::new(), ..entry });
        } else {
            listing.insert(path, entry);
        }
    }
    listing
}

struct Reader<'a> {
    image: &'a File,
}

impl Reader<'_> {
    fn inode(&self, nid: u64) -> Entry {
        let at = nid * 32;
        let format = self.u16(at);
        assert_eq!(format & 1, 1, "the extended form");
        let mode = self.u16(at + 4);
        let size = self.u64(at + 8);
        let place = self.u32(at + 16);
        let count = u64::from(self.u16(at + 2));
        let xattrs_len = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        let is_device = matches!(mode >> 12, 2 | 6);
        let content = if is_device { Vec::new() } else { self.content(at, format, size, place, xattrs_len) };
        let device = ((place >> 8) & 0xfff, place & 0xff | (place >> 12) & 0xf_ff00);
        Entry {
            mode,
            uid: self.u32(at + 24),
            gid: self.u32(at + 28),
            mtime: (self.u64(at + 32) as i64, self.u32(at + 40)),
            links: self.u32(at + 44),
            device: if is_device { device } else { (0, 0) },
            xattrs: self.xattrs(at + 64, xattrs_len),
            content,
        }
    }

    fn content(&self, at: u64, format: u16, size: u64, block: u32, xattrs_len: u64) -> Vec<u8> {
        let start = u64::from(block) * 4096;
        match format >> 1 {
            0 => self.bytes(start, size),
            2 => {
                let whole = size / 4096 * 4096;
                let tail = at + 64 + xattrs_len;
                assert!(tail % 4096 + size - whole <= 4096, "the end of a content crosses a block");
                [self.bytes(start, whole), self.bytes(tail, size - whole)].concat()
            }
            other => panic!("layout {other}"),
        }
    }

    fn xattrs(&self, at: u64, len: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut xattrs = BTreeMap::new();
        let mut next = at + 12;
        while next < at + len {
            let [name_len, index, ..] = self.bytes(next, 4)[..] else { unreachable!() };
            let value_len = self.u16(next + 2);
            let prefix = match index {
                1 => &b"user."[..],
                2 => b"system.posix_acl_access",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("index {other}"),
            };
            let name = [prefix, &self.bytes(next + 4, name_len.into())].concat();
            let value = self.bytes(next + 4 + u64::from(name_len), value_len.into());
            xattrs.insert(name, value);
            next += (4 + u64::from(name_len) + u64::from(value_len)).next_multiple_of(4);
        }
        xattrs
    }

    /// Parses names, inode numbers and types.
    fn names(&self, content: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut names = Vec::new();
        for block in content.chunks(4096) {
            let field = |at: usize| usize::from(u16::from_le_bytes([block[at + 8], block[at + 9]]));
            let count = field(0) / 12;
            for entry in 0..count {
                let at = entry * 12;
                let end = if entry + 1 < count { field(at + 12) } else { block.len() };
                let name = &block[field(at)..end];
                let name = name.split(|byte| *byte == 0).next().unwrap();
                let nid = u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
                names.push((name.to_vec(), nid, block[at + 10]));
            }
        }
        names
    }

    fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.image.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes(at, 2).try_into().unwrap())
    }

    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }
}
