//! Images are read back by the reader of the tests and, if they are installed, by the programs of
//! erofs-utils.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use super::*;
use crate::rootfs::content::Content;
use crate::rootfs::samples::{Scratch, content, file, listing, plain, sample_tree};

fn written(tree: &Tree) -> (File, Written) {
    let image = file(b"");
    let written = write(tree, &image).unwrap();
    (image, written)
}

#[test]
fn everything_in_a_tree_is_in_its_image() {
    let tree = sample_tree();
    let (image, written) = written(&tree);
    let (expected, found) = (listing(&tree), reader::listing(&image));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, entry) in &expected {
        assert!(found[name] == *entry, "{}", String::from_utf8_lossy(name));
    }
    assert_eq!(written.inodes + 2, expected.len() as u64, "one inode has three names");
    assert_eq!((written.shortened, written.lost_xattrs), (0, 0));
}

#[test]
fn same_tree_gives_the_same_bytes() {
    let bytes = |tree: &Tree| content_of(&written(tree).0);
    assert!(bytes(&sample_tree()) == bytes(&sample_tree()));
}

#[test]
fn image_of_an_empty_root_is_an_image() {
    let tree = Tree::new(crate::rootfs::samples::attributes(0o755, 0, 0));
    assert_eq!(reader::listing(&written(&tree).0), listing(&tree));
}

#[test]
fn attributes_without_room_are_counted_and_the_others_kept() {
    let mut tree = Tree::new(crate::rootfs::samples::attributes(0o755, 0, 0));
    let mut inode = plain(Kind::File(content(b"x")));
    for (name, len) in
        [("user.a", 65_536), ("user.b", 65_000), ("user.c", 65_000), ("user.d", 2000), ("user.e", 5)]
    {
        inode.attributes.xattrs.insert(name.into(), vec![b'v'; len]);
    }
    tree.put(b"f", inode).unwrap();
    let (image, written) = written(&tree);
    assert_eq!(written.lost_xattrs, 2);
    let found = reader::listing(&image);
    let names: Vec<&Vec<u8>> = found[&b"f"[..]].xattrs.keys().collect();
    assert_eq!(names, [b"user.b", b"user.c", b"user.e"]);
}

#[test]
fn file_too_large_for_an_image_is_refused() {
    let mut tree = Tree::new(crate::rootfs::samples::attributes(0o755, 0, 0));
    let huge = Content::in_archive(&std::sync::Arc::new(file(b"")), 1 << 45, Box::default());
    tree.put(b"huge", plain(Kind::File(huge))).unwrap();
    assert!(matches!(write(&tree, &file(b"")), Err(ImageError::TooLarge)));
}

#[test]
fn holes_take_no_room() {
    let mut tree = Tree::new(crate::rootfs::samples::attributes(0o755, 0, 0));
    let hole = Content::in_archive(&std::sync::Arc::new(file(b"")), 1 << 30, Box::default());
    tree.put(b"hole", plain(Kind::File(hole))).unwrap();
    let (image, written) = written(&tree);
    assert!(written.bytes > 1 << 30 && image.metadata().unwrap().blocks() < 100);
}

/// Needs erofs-utils, which `cargo xtask setup` installs, and root, which alone can create devices and set
/// owners.
#[test]
fn fsck_extracts_what_was_put_in() {
    let scratch = Scratch::new();
    let path = scratch.join("root.erofs");
    let tree = sample_tree();
    write(&tree, &File::create_new(&path).unwrap()).unwrap();
    let out = scratch.join("out");
    let mut command = Command::new("fsck.erofs");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("--preserve");
    let output = command.arg(format!("--extract={}", out.display())).arg(&path).output();
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let Some(output) = output.ok().filter(|_| is_root) else {
        crate::rootfs::tests::skip("there is no fsck.erofs here, or no root");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    for (name, entry) in listing(&tree) {
        let path = out.join(std::ffi::OsStr::new(str::from_utf8(&name).unwrap()));
        let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // fsck.erofs sets owners last, which clears the set-user-id bit, and Linux has no permissions for
        // links.
        let seen = if found.is_symlink() { 0xf000 } else { 0xf1ff };
        assert_eq!(found.mode() & seen, u32::from(entry.mode) & seen, "{}", path.display());
        assert_eq!((found.uid(), found.gid()), (entry.uid, entry.gid), "{}", path.display());
        if !found.is_dir() {
            // fsck.erofs extracts hard links as separate files, and changes the times of directories.
            assert_eq!((found.mtime(), found.mtime_nsec() as u32), entry.mtime, "{}", path.display());
        }
        if found.is_file() {
            assert!(fs::read(&path).unwrap() == entry.content, "{}", path.display());
        }
        if found.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            assert_eq!(target.as_os_str().as_encoded_bytes(), entry.content);
        }
        let kind = found.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            let device = (libc::major(found.rdev()), libc::minor(found.rdev()));
            assert_eq!(device, entry.device);
        }
    }
}

fn content_of(image: &File) -> Vec<u8> {
    let mut bytes = vec![0; image.metadata().unwrap().len() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
