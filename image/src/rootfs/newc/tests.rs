//! Archives are read back by the cpio program, if there is one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::*;
use crate::rootfs::samples::{Scratch, attributes, content, plain};
use crate::rootfs::tree::Device;

fn tree() -> Tree {
    let mut tree = Tree::new(attributes(0o700, 0, 0));
    tree.put(b"etc/a", plain(Kind::File(content(b"first\n")))).unwrap();
    tree.link(b"etc/b", b"etc/a").unwrap();
    tree.put(b"dev/null", plain(Kind::CharacterDevice(Device { major: 1, minor: 3 }))).unwrap();
    tree.put(b"sh", plain(Kind::Symlink(b"bin/busybox".to_vec()))).unwrap();
    tree
}

#[test]
fn attributes_and_links_are_in_the_headers() {
    let mut shortened = 0;
    let archive = write(&tree(), 0, &mut shortened).unwrap();
    let text = String::from_utf8(archive).unwrap();
    // Inode, mode, owner, group, links, time, size, -, -, device, length of the name, checksum.
    let first = "0707010000000600008\
                 1a4";
    assert!(text.contains(&first.replace(' ', "")[6..19]) || text.contains("000081a4"), "{text}");
    let header = |name: &str| {
        let at = text.find(&format!("{name}\0")).unwrap();
        (0..13)
            .map(|field| u32::from_str_radix(&text[at - 104 + field * 8..][..8], 16).unwrap())
            .collect::<Vec<_>>()
    };
    let (a, b) = (header("etc/a"), header("etc/b"));
    assert_eq!(a[1..6], [0o100_644, 1, 2, 2, 1_700_000_000]);
    assert_eq!((a[0], a[4], a[6]), (b[0], b[4], 6), "one inode, two links");
    assert_eq!(b[6], 0, "the content is there once");
    assert_eq!(header("dev/null")[9..11], [1, 3]);
    assert_eq!(header("sh")[6], 11);
    assert_eq!(header(".")[1], 0o040_700);
    assert_eq!(likely_len(&tree()).map(|len| len.abs_diff(text.len() as u64) < 200), Some(true));
}

#[test]
fn extended_attributes_and_long_names_have_no_place() {
    let mut tree = tree();
    let mut inode = plain(Kind::File(content(b"")));
    inode.attributes.xattrs.insert(b"user.a".to_vec(), Vec::new());
    tree.put(b"x", inode).unwrap();
    assert_eq!(likely_len(&tree), None);
    let mut tree = self::tree();
    tree.put(&b"folder/".repeat(600), plain(Kind::Directory(Default::default()))).unwrap();
    assert_eq!(likely_len(&tree), None);
}

#[test]
fn content_with_several_names_counts_once() {
    let mut tree = Tree::new(attributes(0o755, 0, 0));
    tree.put(b"a", plain(Kind::File(content(&[1; 10_000])))).unwrap();
    (0..9).for_each(|number| tree.link(format!("a{number}").as_bytes(), b"a").unwrap());
    assert!((10_000..12_000).contains(&likely_len(&tree).unwrap()));
}

#[test]
fn many_names_in_a_deep_folder_take_no_memory_for_their_paths() {
    let mut tree = Tree::new(attributes(0o755, 0, 0));
    let folder = || plain(Kind::Directory(Default::default()));
    let mut deepest = Tree::ROOT;
    for _ in 0..1000 {
        deepest = tree.add(deepest, vec![b'd'; 255], folder()).unwrap();
    }
    for number in 0..200_000 {
        tree.add(deepest, format!("{number}").into_bytes(), plain(Kind::Fifo)).unwrap();
    }
    // As whole paths they would have 50 GB.
    assert_eq!(likely_len(&tree), None);
}

#[test]
fn cpio_program_unpacks_it_when_there_is_one() {
    let scratch = Scratch::new();
    let mut cpio = Command::new("cpio");
    let spawned = cpio.args(["-idm", "--quiet"]).current_dir(&scratch.0).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        crate::rootfs::tests::skip("no cpio program on this machine");
        return;
    };
    child.stdin.take().unwrap().write_all(&write(&tree(), 0, &mut 0).unwrap()).unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read(scratch.join("etc/b")).unwrap(), b"first\n");
    let inode = |name| fs::metadata(scratch.join(name)).unwrap().ino();
    assert_eq!(inode("etc/a"), inode("etc/b"));
    assert_eq!(fs::read_link(scratch.join("sh")).unwrap().to_str(), Some("bin/busybox"));
}
