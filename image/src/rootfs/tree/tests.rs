//! Names from hostile archives, and how they are handled.

use super::*;
use crate::rootfs::samples::{attributes, content, listing, plain};

fn tree() -> Tree {
    Tree::new(attributes(0o755, 0, 0))
}

fn file() -> Inode {
    plain(Kind::File(content(b"x")))
}

fn link(target: &str) -> Inode {
    plain(Kind::Symlink(target.into()))
}

fn names(tree: &Tree) -> Vec<String> {
    listing(tree).into_keys().map(|name| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn names_are_taken_from_the_root_however_they_begin() {
    let mut tree = tree();
    for name in [&b"/etc/passwd"[..], b"./usr//bin/x", b"a/./b"] {
        tree.put(name, file()).unwrap();
    }
    assert_eq!(names(&tree), ["", "a", "a/b", "etc", "etc/passwd", "usr", "usr/bin", "usr/bin/x"]);
}

#[test]
fn names_that_go_up_are_refused() {
    let mut tree = tree();
    for name in [&b"../x"[..], b"a/../../x", b"a/..", b"/.."] {
        assert_eq!(tree.put(name, file()), Err(EntryError::Up), "{name:?}");
        tree.put(b"f", file()).unwrap();
        assert_eq!(tree.link(name, b"f"), Err(EntryError::Up));
        assert_eq!(tree.link(b"g", name), Err(EntryError::NoTarget));
    }
}

#[test]
fn links_lead_nowhere_but_into_the_root() {
    let mut tree = tree();
    tree.put(b"a", link("../../etc")).unwrap();
    tree.put(b"b", link("/etc")).unwrap();
    tree.put(b"c/d", link("../etc")).unwrap();
    tree.put(b"etc/x", file()).unwrap();
    for (index, folder) in ["a", "b", "c/d"].into_iter().enumerate() {
        tree.put(format!("{folder}/{index}").as_bytes(), file()).unwrap();
    }
    assert_eq!(names(&tree), ["", "a", "b", "c", "c/d", "etc", "etc/0", "etc/1", "etc/2", "etc/x"]);
}

#[test]
fn folders_behind_a_link_to_nothing_are_made_where_it_leads() {
    let mut tree = tree();
    tree.put(b"lib", link("usr/lib")).unwrap();
    tree.put(b"lib/x", file()).unwrap();
    assert_eq!(names(&tree), ["", "lib", "usr", "usr/lib", "usr/lib/x"]);
}

#[test]
fn circles_of_links_are_refused() {
    let mut tree = tree();
    tree.put(b"a", link("b")).unwrap();
    tree.put(b"b", link("a")).unwrap();
    tree.put(b"self", link("self/x")).unwrap();
    tree.put(b"up", link("nothing/../x")).unwrap();
    for name in [&b"a/x"[..], b"self/x", b"up/x"] {
        assert_eq!(tree.put(name, file()), Err(EntryError::Circle), "{name:?}");
    }
}

#[test]
fn last_one_of_a_name_wins() {
    let mut tree = tree();
    tree.put(b"d/inside", file()).unwrap();
    tree.put(b"d", Inode { kind: Kind::Directory(BTreeMap::new()), attributes: attributes(0o700, 5, 6) })
        .unwrap();
    assert_eq!(listing(&tree)[&b"d"[..]].uid, 5);
    assert_eq!(names(&tree), ["", "d", "d/inside"]);
    tree.put(b"d", link("elsewhere")).unwrap();
    assert_eq!(names(&tree), ["", "d"]);
    tree.put(b"d", file()).unwrap();
    tree.put(b"d/f", file()).unwrap();
    assert_eq!(names(&tree), ["", "d", "d/f"]);
}

#[test]
fn hard_links_need_a_file_and_share_it() {
    let mut tree = tree();
    assert_eq!(tree.link(b"b", b"a"), Err(EntryError::NoTarget));
    tree.put(b"d/a", file()).unwrap();
    tree.link(b"e/b", b"/d/a").unwrap();
    assert_eq!(tree.link(b"c", b"d"), Err(EntryError::DirectoryLink));
    let listing = listing(&tree);
    assert_eq!((listing[&b"d/a"[..]].links, listing[&b"e/b"[..]].links), (2, 2));
    assert_eq!(listing[&b""[..]].links, 4);
}

#[test]
fn impossible_names_are_refused() {
    let mut tree = tree();
    assert_eq!(tree.put(&[b'n'; 256], file()), Err(EntryError::Name));
    assert_eq!(tree.put(b"a\0b", file()), Err(EntryError::Name));
    assert_eq!(tree.put(&b"d/".repeat(2000), file()), Err(EntryError::Depth));
    // A link that stands for many parts counts as many.
    tree.put(b"long", link(&"d/../".repeat(700))).unwrap();
    tree.put(b"d/x", file()).unwrap();
    assert_eq!(tree.put(b"long/x", file()), Err(EntryError::Depth));
    assert_eq!(tree.put(b"./", file()), Err(EntryError::Root));
    assert_eq!(tree.link(b"/", b"x"), Err(EntryError::NoTarget));
}

#[test]
fn tree_takes_no_more_memory_than_it_may() {
    let mut tree = tree();
    let mut labelled = file();
    labelled.attributes.xattrs.insert(b"user.a".to_vec(), vec![0; 60 << 20]);
    let fit = (0..30).take_while(|_| tree.put(b"same", labelled.clone()).is_ok()).count();
    assert_eq!(fit, 17);
    // A name takes less memory than the file that did not fit.
    tree.put(b"small", file()).unwrap();
    tree.room = 100;
    assert_eq!(tree.link(&[b'n'; 100], b"small"), Err(EntryError::TooMany { mib: 1024 }));
    assert_eq!(tree.put(b"another", file()), Err(EntryError::TooMany { mib: 1024 }));
}
