//! Trees, tars and directories for tests, and the content of a tree in a form that can be compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::content::{Content, Part};
use super::tree::{Attributes, Device, Inode, InodeId, Kind, Tree};

/// Everything that a file system knows about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The bytes of a file, or the target of a link.
    pub(super) content: Vec<u8>,
}

/// Maps names, relative to the root, to what they refer to; the root's own name is empty.
pub(super) type Listing = BTreeMap<Vec<u8>, Entry>;

/// Lists the names of a tree.
pub(super) fn listing(tree: &Tree) -> Listing {
    let links: BTreeMap<InodeId, u32> =
        tree.reachable().iter().map(|reached| (reached.id, reached.links)).collect();
    let mut listing = Listing::new();
    let mut stack = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = stack.pop() {
        let inode = tree.inode(id);
        if let Kind::Directory(names) = &inode.kind {
            for (name, child) in names {
                stack.push((joined(&path, name), *child));
            }
        }
        listing.insert(path, entry(inode, links[&id]));
    }
    listing
}

pub(super) fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn entry(inode: &Inode, links: u32) -> Entry {
    let content = match &inode.kind {
        Kind::File(content) => content.open().unwrap().bytes(0, usize::MAX).unwrap(),
        Kind::Symlink(target) => target.clone(),
        _ => Vec::new(),
    };
    let device = match &inode.kind {
        Kind::CharacterDevice(device) | Kind::BlockDevice(device) => (device.major, device.minor),
        _ => (0, 0),
    };
    let Attributes { uid, gid, mtime, ref xattrs, .. } = inode.attributes;
    Entry { mode: inode.mode(), uid, gid, mtime, links, device, xattrs: xattrs.clone(), content }
}

/// Creates an unnamed file with these bytes.
pub(super) fn file(bytes: &[u8]) -> File {
    let file = coracle_arch::nameless_file::create_in(&std::env::temp_dir()).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// Creates the content of a regular file.
pub(super) fn content(bytes: &[u8]) -> Content {
    let len = bytes.len() as u64;
    Content::in_archive(&Arc::new(file(bytes)), len, Box::new([Part { at: 0, offset: 0, len }]))
}

pub(super) fn attributes(permissions: u16, uid: u32, gid: u32) -> Attributes {
    Attributes { permissions, uid, gid, mtime: (1_700_000_000, 5), ..Attributes::default() }
}

pub(super) fn plain(kind: Kind) -> Inode {
    Inode { kind, attributes: attributes(0o644, 1, 2) }
}

/// Creates a tree with a file of every kind, and with every way in which an image can store a content.
pub(super) fn sample_tree() -> Tree {
    let mut tree = Tree::new(attributes(0o1755, 0, 0));
    let mut put = |path: &str, inode| {
        tree.put(path.as_bytes(), inode).unwrap();
    };
    let bytes = |len: usize| (0..len).map(|at| (at % 251) as u8).collect::<Vec<u8>>();
    for len in [0, 1, 31, 4000, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 70_000] {
        put(&format!("sizes/{len}"), plain(Kind::File(content(&bytes(len)))));
    }
    let mut labelled = plain(Kind::File(content(b"labelled")));
    for (name, value) in [
        ("user.a", &b"1"[..]),
        ("user.long", &[b'x'; 3000]),
        ("security.capability", b"\x01\0\0\x02\0\0\n\0"),
        ("trusted.t", b""),
        ("system.posix_acl_access", b"\x02\0\0\0"),
    ] {
        labelled.attributes.xattrs.insert(name.as_bytes().to_vec(), value.to_vec());
    }
    put("labelled", labelled);
    let mut huge = plain(Kind::File(content(&bytes(100))));
    huge.attributes.xattrs.insert(b"user.huge".to_vec(), bytes(60_000));
    put("huge-label", huge);
    put("bin/su", Inode { kind: Kind::File(content(b"su")), attributes: attributes(0o4755, 0, 0) });
    put("ids", Inode { kind: Kind::File(content(b"")), attributes: attributes(0, u32::MAX - 1, 70_000) });
    let mut old = plain(Kind::Fifo);
    old.attributes.mtime = (-5, 999_999_999);
    put("run/fifo", old);
    put("dev/null", plain(Kind::CharacterDevice(Device { major: 1, minor: 3 })));
    put("dev/far", plain(Kind::BlockDevice(Device { major: 259, minor: 0x12345 })));
    put("lib", plain(Kind::Symlink(b"usr/lib".to_vec())));
    put("long-link", plain(Kind::Symlink(vec![b'l'; 4095])));
    put("empty", plain(Kind::Directory(BTreeMap::new())));
    for number in 0..600 {
        put(&format!("many/{}{number:04}", "n".repeat(number % 200)), plain(Kind::Symlink(b"x".to_vec())));
    }
    for name in ["!", ".-", "...", "\u{e9}", "\u{1}"] {
        put(&format!("odd/{name}"), plain(Kind::File(content(name.as_bytes()))));
    }
    tree.link(b"usr/lib/hard", b"sizes/4097").unwrap();
    tree.link(b"usr/hard", b"sizes/4097").unwrap();
    tree
}

/// A directory for a single test, removed at its end.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("coracle-rootfs-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(super) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
