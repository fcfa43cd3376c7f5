//! Tars of every format, valid and hostile ones.

use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::rootfs::erofs;
use crate::rootfs::samples::{Listing, Scratch, file, listing};

/// A tar under construction.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

impl Tar {
    fn member(&mut self, kind: u8, name: &[u8], link: &[u8], content: &[u8]) -> &mut Tar {
        self.header(kind, name, link, content.len() as u64, |_| {});
        self.0.extend_from_slice(content);
        self.pad()
    }

    fn file(&mut self, name: &str, content: &[u8]) -> &mut Tar {
        self.member(b'0', name.as_bytes(), b"", content)
    }

    fn header(&mut self, kind: u8, name: &[u8], link: &[u8], size: u64, change: impl FnOnce(&mut [u8])) {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, b"0000640\0");
        put(108, b"0001750\0");
        put(116, b"0000144\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"14524612400\0");
        put(156, &[kind]);
        put(157, &link[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, b"0000010\0");
        put(337, b"0000003\0");
        change(&mut header);
        sign(&mut header);
        self.0.extend_from_slice(&header);
    }

    fn pad(&mut self) -> &mut Tar {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Adds a pax header with these records.
    fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Tar {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len =
                (1..).map(|digits| rest + digits).find(|len| len.to_string().len() + rest == *len).unwrap();
            text.extend_from_slice(format!("{len} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.member(b'x', b"pax", b"", &text)
    }

    fn end(&mut self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

fn sign(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn read_bytes(bytes: &[u8]) -> Result<(Tree, LeftOut), TarError> {
    let mut left_out = LeftOut::default();
    let len = bytes.len() as u64;
    let tree = read(&Arc::new(file(bytes)), len, Tree::limit_for(len), &mut left_out)?;
    Ok((tree, left_out))
}

fn listed(bytes: &[u8]) -> Listing {
    listing(&read_bytes(bytes).unwrap().0)
}

fn names(bytes: &[u8]) -> Vec<String> {
    listed(bytes).into_keys().skip(1).map(|name| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn every_kind_of_member_is_kept_without_privilege() {
    let mut tar = Tar::default();
    tar.member(b'5', b"./", b"", b"").member(b'5', b"etc/", b"", b"").file("etc/a", b"content");
    tar.member(b'1', b"etc/b", b"etc/a", b"").member(b'2', b"out", b"/../x", b"");
    tar.member(b'3', b"dev/c", b"", b"").member(b'4', b"dev/b", b"", b"").member(b'6', b"fifo", b"", b"");
    tar.member(0, b"old", b"", b"o").member(0, b"oldfolder/", b"", b"").member(
        b'7',
        b"contiguous",
        b"",
        b"c",
    );
    tar.member(b'V', b"label", b"", b"");
    let (tree, left_out) = read_bytes(&tar.end()).unwrap();
    let listing = listing(&tree);
    let of = |name: &str| listing[name.as_bytes()].clone();
    assert_eq!(of("").mode, 0o40_640, "the root has the attributes that the tar says");
    let a = of("etc/a");
    assert_eq!((a.mode, a.uid, a.gid, a.mtime), (0o100_640, 1000, 100, (0o14_524_612_400, 0)));
    assert_eq!((a.content.as_slice(), a.links, of("etc/b")), (&b"content"[..], 2, a.clone()));
    assert_eq!(of("out").content, b"/../x");
    assert_eq!((of("dev/c").mode >> 12, of("dev/c").device), (2, (8, 3)));
    assert_eq!((of("dev/b").mode >> 12, of("dev/b").device), (6, (8, 3)));
    assert_eq!(of("fifo").mode >> 12, 1);
    assert_eq!((of("old").content.as_slice(), of("oldfolder").mode >> 12), (&b"o"[..], 4));
    assert_eq!(left_out, LeftOut { members: 1, ..LeftOut::default() });
}

#[test]
fn long_names_come_in_each_form() {
    let long = "folder/".repeat(40) + "file";
    let mut gnu = Tar::default();
    gnu.member(b'L', b"././@LongLink", b"", format!("{long}\0").as_bytes()).file("short", b"x");
    gnu.member(b'K', b"././@LongLink", b"", format!("{long}\0").as_bytes()).member(b'2', b"l", b"cut", b"");
    let listing = listed(&gnu.end());
    assert_eq!(listing[long.as_bytes()].content, b"x");
    assert_eq!(listing[&b"l"[..]].content, long.as_bytes());
    let mut pax = Tar::default();
    pax.pax(&[("path", long.as_bytes())]).file("short", b"x");
    pax.pax(&[("linkpath", long.as_bytes())]).member(b'2', b"l", b"cut", b"");
    assert_eq!(listed(&pax.end()), listing);
    let mut ustar = Tar::default();
    ustar.header(b'0', b"file", b"", 0, |header| header[345..348].copy_from_slice(b"a/b"));
    assert_eq!(names(&ustar.end()), ["a", "a/b", "a/b/file"]);
}

#[test]
fn pax_says_ids_times_sizes_and_attributes() {
    let mut tar = Tar::default();
    tar.pax(&[
        ("uid", b"4000000000"),
        ("gid", b"70000"),
        ("mtime", b"1700000000.25"),
        ("size", b"3"),
        ("SCHILY.xattr.user.note", b"a\nb=\0c"),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n\n"),
        ("SCHILY.xattr.system.nfs4_acl", b"lost"),
        ("SCHILY.acl.access", b"user::rw-"),
        ("comment", b"nothing"),
    ]);
    tar.header(b'0', b"f", b"", 0, |_| {});
    tar.0.extend_from_slice(b"abc");
    tar.pad().file("plain", b"");
    let (tree, left_out) = read_bytes(&tar.end()).unwrap();
    let listing = listing(&tree);
    let entry = &listing[&b"f"[..]];
    assert_eq!((entry.uid, entry.gid, entry.mtime), (4_000_000_000, 70_000, (1_700_000_000, 250_000_000)));
    assert_eq!((entry.content.as_slice(), left_out.xattrs), (&b"abc"[..], 2));
    assert_eq!(entry.xattrs[&b"user.note"[..]], b"a\nb=\0c");
    assert_eq!(entry.xattrs[&b"security.capability"[..]], b"\x01\0\0\x02\n\n");
    assert_eq!(listing[&b"plain"[..]].uid, 1000, "what was said of one file is not said of the next");
}

#[test]
fn global_pax_header_is_for_all_that_follow() {
    let mut tar = Tar::default();
    tar.member(b'g', b"g", b"", b"9 uid=42\n")
        .file("a", b"")
        .pax(&[("uid", b"7")])
        .file("b", b"")
        .file("c", b"");
    let listing = listed(&tar.end());
    assert_eq!(["a", "b", "c"].map(|name| listing[name.as_bytes()].uid), [42, 7, 42]);
}

#[test]
fn names_that_leave_the_root_are_refused_and_named() {
    for name in ["../evil", "a/../../evil", "/../evil"] {
        let error = read_bytes(&Tar::default().file(name, b"").end()).err().unwrap().to_string();
        assert!(
            error.contains(&format!("its member {name:?} (at byte 0)")) && error.contains("`..`"),
            "{error}"
        );
    }
    assert_eq!(names(&Tar::default().file("/etc/passwd", b"").end()), ["etc", "etc/passwd"]);
    let outside = Tar::default().member(b'1', b"a", b"../../etc/shadow", b"").end();
    assert!(read_bytes(&outside).err().unwrap().to_string().contains("hard link to a file that does not"));
    // A link out of the root is only text; a file that is put behind it stays inside.
    let mut tar = Tar::default();
    tar.member(b'2', b"up", b"../../..", b"").file("up/x", b"");
    assert_eq!(names(&tar.end()), ["up", "x"]);
}

#[test]
fn tar_cut_anywhere_is_refused() {
    let mut tar = Tar::default();
    let whole = tar.pax(&[("mtime", b"1")]).file("a", &[7; 600]).file("b", b"x").end();
    read_bytes(&whole).unwrap();
    let with_mark = whole.len() - 1024 + 512;
    for len in (0..with_mark).step_by(7).chain([with_mark - 1]) {
        let error = read_bytes(&whole[..len]).err().unwrap();
        assert!(matches!(error, TarError::CutShort { .. }), "{len}: {error}");
    }
    read_bytes(&whole[..with_mark]).unwrap();
}

#[test]
fn damaged_headers_are_refused_with_their_place() {
    let mut bytes = Tar::default().file("a", b"x").file("b", b"").end();
    bytes[1024 + 3] ^= 1;
    let error = read_bytes(&bytes).err().unwrap().to_string();
    assert_eq!(error, "at byte 1024 there is no header of a tar (its checksum is wrong)");
    let mut tar = Tar::default();
    tar.header(b'0', b"a", b"", 0, |header| header[124..136].copy_from_slice(&[0xff; 12]));
    assert!(read_bytes(&tar.end()).err().unwrap().to_string().contains("size is -1, and has to be"));
    let mut tar = Tar::default();
    tar.header(b'0', b"a", b"", 0, |header| {
        header[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    });
    assert!(matches!(read_bytes(&tar.end()), Err(TarError::CutShort { .. })));
    let mut tar = Tar::default();
    tar.header(b'x', b"pax", b"", 2 << 20, |_| {});
    assert!(read_bytes(&tar.end()).err().unwrap().to_string().contains("longer than 1 MiB"));
}

#[test]
fn sparse_file_in_gnus_form_has_its_holes() {
    let mut tar = Tar::default();
    tar.header(b'S', b"sparse", b"", 1024, |header| {
        header[257..265].copy_from_slice(b"ustar  \0");
        for (at, number) in [(386, 512), (398, 512), (410, 4096), (422, 0), (434, 8192), (446, 500)] {
            header[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
        }
        header[458..482].fill(0);
        header[482] = 1;
        header[483..495].copy_from_slice(format!("{:011o}\0", 10_000).as_bytes());
    });
    let mut more = [0; 512];
    more[..24].copy_from_slice(format!("{:011o}\0{:011o}\0", 9000, 12).as_bytes());
    tar.0.extend_from_slice(&more);
    tar.0.extend_from_slice(&[[1; 512], [2; 512]].concat());
    let entry = listed(&tar.file("next", b"n").end());
    let mut expected = vec![0; 10_000];
    expected[512..1024].fill(1);
    expected[8192..8692].fill(2);
    expected[9000..9012].fill(2);
    assert!(entry[&b"sparse"[..]].content == expected);
    assert_eq!(entry[&b"next"[..]].content, b"n");
}

#[test]
fn headers_that_say_more_and_more_of_one_file_are_refused() {
    let value = vec![b'v'; 600 << 10];
    let tar = |kinds: &[u8]| {
        let mut tar = Tar::default();
        for (number, kind) in (0..).zip(kinds) {
            let start = tar.0.len();
            tar.pax(&[(&format!("comment.{number}"), &value)]);
            let header = &mut tar.0[start..start + 512];
            header[156] = *kind;
            sign(header);
            if *kind == b'f' {
                tar.0.truncate(start);
                tar.file(&format!("file{number}"), b"");
            }
        }
        tar.file("last", b"");
        read_bytes(&tar.end())
    };
    for kinds in [&b"xx"[..], b"gg", b"gfg", b"xL"] {
        assert!(tar(kinds).err().unwrap().to_string().contains("longer than 1 MiB"), "{kinds:?}");
    }
    for kinds in [&b"x"[..], b"xfx", b"gx"] {
        assert!(tar(kinds).is_ok(), "{kinds:?}");
    }
}

#[test]
fn number_out_of_range_is_named_with_its_member() {
    let mut pax = Tar::default();
    pax.pax(&[("uid", b"5000000000")]).file("etc/f", b"");
    let mut binary = Tar::default();
    binary.header(b'0', b"etc/f", b"", 0, |header| {
        header[108..116].copy_from_slice(b"\x80\0\0\x01\x2a\x05\xf2\0");
    });
    for (bytes, at) in [(pax.end(), 1024), (binary.end(), 0)] {
        assert_eq!(
            read_bytes(&bytes).err().unwrap().to_string(),
            format!(
                "its member \"etc/f\" (at byte {at}): uid is 5000000000, and has to be a number from 0 to 4294967295"
            )
        );
    }
    assert!(is_header(&binary.end()), "it is a tar, whatever a number in it is");
}

#[test]
fn global_header_that_is_about_one_file_is_refused() {
    for record in [
        &b"22 GNU.sparse.map=0,0\n"[..],
        b"11 path=ab\n",
        b"15 linkpath=ab\n",
        b"9 size=1\n",
        b"25 SCHILY.xattr.user.a=b\n",
    ] {
        let error = read_bytes(&Tar::default().member(b'g', b"g", b"", record).file("f", b"").end());
        assert!(matches!(error, Err(TarError::Global { at: 0, .. })), "{record:?}");
    }
}

#[test]
fn sparse_maps_that_do_not_fit_are_refused() {
    for map in ["0,9", "0,3,1,3", "0,1,5", "0,1,99,2"] {
        let mut tar = Tar::default();
        tar.pax(&[("GNU.sparse.realsize", b"100"), ("GNU.sparse.map", map.as_bytes())])
            .file("f", b"12345678");
        let error = read_bytes(&tar.end());
        assert!(matches!(error, Err(TarError::Header { .. } | TarError::Field { .. })), "{map}");
    }
}

/// GNU tar is installed on every Debian.
#[test]
fn gnu_tar_is_read_in_all_its_formats() {
    let scratch = Scratch::new();
    let tree = scratch.join("tree");
    std::fs::create_dir_all(tree.join("d".repeat(120))).unwrap();
    std::fs::write(tree.join("d".repeat(120)).join("file"), b"long").unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 3 << 20).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), tree.join("link")).unwrap();
    let run = |args: &[&str], out: &str| {
        let out = scratch.join(out);
        let mut command = Command::new("tar");
        let output = command.arg("-C").arg(&tree).arg("-cf").arg(&out).args(args).arg(".").output();
        assert!(output.as_ref().is_ok_and(|output| output.status.success()), "{output:?}");
        listed(&std::fs::read(out).unwrap())
    };
    let gnu = run(&["--format=gnu"], "gnu.tar");
    let link = &gnu[&b"link"[..]];
    assert_eq!((link.content.len(), gnu.len()), (150, 5));
    assert_eq!(gnu[&b"sparse"[..]].content.len(), (3 << 20) + 3);
    let without_nanos = |mut listing: Listing| {
        listing.values_mut().for_each(|entry| entry.mtime.1 = 0);
        listing
    };
    assert!(run(&["--format=gnu", "--sparse"], "gnu-sparse.tar") == gnu);
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        let pax = run(&["--format=posix", "--sparse", &version], "pax-sparse.tar");
        assert!(without_nanos(pax) == gnu, "{version}");
    }
    assert!(without_nanos(run(&["--format=posix"], "pax.tar")) == gnu);
}

/// Generates a member with a random type and name.
fn any_member() -> impl Strategy<Value = (u8, String, String, Vec<u8>)> {
    let part = prop_oneof!["[a-c]", Just("..".to_owned()), Just(".".to_owned()), "[d-f]{1,60}"];
    let name = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(vec![0, b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'V']);
    (kind, name.clone(), name, proptest::collection::vec(any::<u8>(), 0..6000))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_a_tar_says_is_what_its_image_has(members in proptest::collection::vec(any_member(), 1..30)) {
        let mut tar = Tar::default();
        for (kind, name, link, content) in &members {
            let has_content = matches!(kind, 0 | b'0' | b'7');
            let mut next = tar.clone();
            next.member(*kind, name.as_bytes(), link.as_bytes(), if has_content { content } else { &[] });
            // Members that are refused are left out, and the rest has to work.
            if read_bytes(&next.end()).is_ok() {
                tar = next;
            }
        }
        let (tree, _) = read_bytes(&tar.end()).unwrap();
        let image = file(b"");
        erofs::write(&tree, &image).unwrap();
        prop_assert!(erofs::reader::listing(&image) == listing(&tree));
    }

    #[test]
    fn damage_gives_a_tree_or_an_error(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        resign in any::<bool>(),
    ) {
        let mut tar = Tar::default();
        tar.pax(&[("path", b"x"), ("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"600")]);
        tar.file("a", b"1\n0\n5\n").member(b'2', b"l", b"..", b"").member(b'1', b"h", b"a", b"").file("l/b", &[1; 700]);
        let mut bytes = tar.end();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
            if resign {
                sign(&mut bytes[at / 512 * 512..][..512]);
            }
        }
        if let Ok((tree, _)) = read_bytes(&bytes) {
            let image = file(b"");
            // Contents may claim sizes that no image can have.
            if erofs::write(&tree, &image).is_ok() {
                erofs::reader::listing(&image);
            }
        }
    }
}
