//! Directories, tars and refusals, from source to image.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::samples::{Scratch, file, listing};
use super::*;

/// Reports that a test has not run, in a way that the test harness does not capture.
pub(super) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Creates a request for a machine of 256 MiB.
fn request(source: RootSource<'_>) -> RootRequest<'_> {
    RootRequest { source, cmdline: "", has_initrd: false, memory: 256 << 20 }
}

fn refusal(request: &RootRequest<'_>) -> String {
    let text = check(request).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

fn sample_folder() -> Scratch {
    let scratch = Scratch::new();
    for folder in ["etc", "empty", "deep/er"] {
        fs::create_dir_all(scratch.join(folder)).unwrap();
    }
    fs::write(scratch.join("etc/a"), b"content").unwrap();
    fs::set_permissions(scratch.join("etc/a"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(scratch.join("etc/a"), scratch.join("deep/er/b")).unwrap();
    symlink("/etc/passwd", scratch.join("out")).unwrap();
    symlink("../../..", scratch.join("deep/up")).unwrap();
    fs::write(scratch.join("big"), vec![b'z'; 200_000]).unwrap();
    scratch
}

#[test]
fn folder_is_read_with_all_that_is_in_it_and_nothing_else() {
    let scratch = sample_folder();
    drop(UnixListener::bind(scratch.join("socket")).unwrap());
    let mut left_out = LeftOut::default();
    let tree = directory::read(&scratch.0, &Caller::here(), false, &mut left_out).unwrap();
    let listing = listing(&tree);
    let names: Vec<_> = listing.keys().map(|name| str::from_utf8(name).unwrap()).collect();
    assert_eq!(names, ["", "big", "deep", "deep/er", "deep/er/b", "deep/up", "empty", "etc", "etc/a", "out"]);
    assert_eq!(listing[&b"out"[..]].content, b"/etc/passwd");
    assert_eq!(listing[&b"deep/up"[..]].content, b"../../..");
    let file = &listing[&b"etc/a"[..]];
    assert_eq!((file.mode, file.links, file.content.as_slice()), (0o104_711, 2, &b"content"[..]));
    assert_eq!(file.mtime.0, fs::metadata(scratch.join("etc/a")).unwrap().mtime());
    assert_eq!(left_out, LeftOut { sockets: 1, ..LeftOut::default() });
}

#[test]
fn unprivileged_callers_files_are_roots_unless_ids_are_to_be_kept() {
    let scratch = sample_folder();
    let owner = fs::metadata(scratch.join("big")).unwrap().uid();
    // Root's own files have known ids, so test with a caller that is not root.
    let caller = Caller::of(if owner == 0 { 4711 } else { owner });
    if owner == 0 && std::os::unix::fs::chown(scratch.join("big"), Some(4711), Some(4712)).is_err() {
        skip("this root cannot change owners");
        return;
    }
    let read = |keep_ids| directory::read(&scratch.0, &caller, keep_ids, &mut LeftOut::default());
    let file = listing(&read(false).unwrap())[&b"big"[..]].clone();
    assert_eq!((file.uid, file.gid), (0, 0));
    let error = read(true).unwrap_err().to_string();
    assert!(error.contains("keep-ids: the owner of ") && error.contains("you, who are not root"), "{error}");
}

#[test]
fn file_that_is_exchanged_is_not_read() {
    let scratch = sample_folder();
    let tree = directory::read(&scratch.0, &Caller::here(), false, &mut LeftOut::default()).unwrap();
    // Keep the renamed file, so that its inode number is not reused.
    fs::rename(scratch.join("big"), scratch.join("elsewhere")).unwrap();
    symlink("/etc/passwd", scratch.join("big")).unwrap();
    assert!(matches!(erofs::write(&tree, &file(b"")), Err(ImageError::Source { .. })));
    fs::remove_file(scratch.join("big")).unwrap();
    fs::write(scratch.join("big"), b"another").unwrap();
    let error = erofs::write(&tree, &file(b"")).unwrap_err().to_string();
    assert!(error.contains("(big)"), "{error}");
}

#[test]
fn file_that_became_shorter_ends_in_zeroes_and_is_counted() {
    let scratch = sample_folder();
    let tree = directory::read(&scratch.0, &Caller::here(), false, &mut LeftOut::default()).unwrap();
    fs::OpenOptions::new().write(true).open(scratch.join("big")).unwrap().set_len(10).unwrap();
    let image = file(b"");
    assert_eq!(erofs::write(&tree, &image).unwrap().shortened, 1);
    let content = &erofs::reader::listing(&image)[&b"big"[..]].content;
    assert_eq!((content.len(), &content[8..12]), (200_000, &b"zz\0\0"[..]));
}

#[test]
fn small_root_is_an_initramfs_and_a_large_or_chosen_one_a_disk() {
    let scratch = sample_folder();
    let made = |form, mib: u64| {
        let root = RootSource { form, ..RootSource::new(&scratch.0) };
        prepare(&RootRequest { memory: mib << 20, ..request(root) }).unwrap().0
    };
    assert!(matches!(made(RootForm::Auto, 256), Root::Initramfs(_)));
    assert!(matches!(made(RootForm::Initramfs, 256), Root::Initramfs(_)));
    let disk = made(RootForm::Disk, 256);
    assert_eq!(
        disk.cmdline_words(2),
        "root=/dev/vdc rootfstype=erofs ro coracle.overlay rdinit=/coracle/init"
    );
    assert_eq!(disk.modules(), ["erofs", "overlay"]);
    fs::write(scratch.join("bigger"), vec![1; 5 << 20]).unwrap();
    assert!(matches!(made(RootForm::Auto, 32), Root::Disk(_)));
    assert!(matches!(made(RootForm::Auto, 64), Root::Initramfs(_)));
    assert!(matches!(made(RootForm::Initramfs, 6), Root::Initramfs(_)));
    let root = RootSource { form: RootForm::Initramfs, ..RootSource::new(&scratch.0) };
    let error = prepare(&RootRequest { memory: 4 << 20, ..request(root) }).unwrap_err().to_string();
    assert!(error.contains("takes 6 MiB, and the guest has 4 MiB of memory"), "{error}");
}

#[test]
fn image_is_used_as_it_is() {
    let scratch = Scratch::new();
    let image = |name: &str, at: usize, magic: &[u8]| {
        let mut bytes = vec![0; 8192];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(scratch.join(name), bytes).unwrap();
        scratch.join(name)
    };
    let ext4 = image("ext4", 1080, b"\x53\xef");
    let ext4 = RootSource::new(&ext4);
    let words = |root: RootSource<'_>| prepare(&request(root)).unwrap().0.cmdline_words(0);
    let private = "root=/dev/vda rootfstype=ext4 rw coracle.private rdinit=/coracle/init";
    assert_eq!(words(ext4), private);
    let access = |access| image_access(access, FileSystem::Ext4);
    assert_eq!(access(RootAccess::Private), ImageAccess::Overlay { max_bytes: None });
    assert_eq!(access(RootAccess::Image), ImageAccess::ReadWrite);
    let rw = RootSource { access: RootAccess::Image, ..ext4 };
    assert_eq!(words(rw), "root=/dev/vda rootfstype=ext4 rw rdinit=/coracle/init");
    let squashfs = image("squashfs", 0, b"hsqs");
    let squashfs = RootSource::new(&squashfs);
    assert_eq!(words(squashfs), "root=/dev/vda rootfstype=squashfs ro coracle.overlay rdinit=/coracle/init");
    let rw = RootSource { access: RootAccess::Image, ..squashfs };
    assert!(refusal(&request(rw)).contains("rw goes with an image of ext4 only, and this is squashfs"));
}

#[test]
fn what_is_no_root_is_named() {
    let scratch = Scratch::new();
    let named = |name: &str, content: &[u8]| {
        fs::write(scratch.join(name), content).unwrap();
        refusal(&request(RootSource::new(&scratch.join(name))))
    };
    for (content, words) in [
        (&b""[..], "an empty file"),
        (&b"\x7fELF"[..], "an ELF program"),
        (b"#!/bin/sh\n", "a script"),
        (b"070701000", "a cpio archive, which initrds takes"),
        (b"QFI\xfb\0\0\0\x03", "a qcow2 image"),
        (b"BZh91AY", "bzip2 data"),
        (b"hello", "something else"),
        (&[0; 4096], "nothing but zeroes"),
    ] {
        let said = named("file", content);
        assert!(said.contains(words) && said.contains("root "), "{said}");
    }
    let refused = |path: &Path| refusal(&request(RootSource::new(path)));
    assert!(refused(Path::new("/no/such")).contains("root /no/such: it cannot be opened: No such"));
    fs::create_dir(scratch.join("empty")).unwrap();
    assert!(refused(&scratch.join("empty")).ends_with("there is nothing in it"));
    assert!(refused(Path::new("/dev/null")).contains("neither a file nor a directory"));
}

#[test]
fn options_that_contradict_a_root_are_refused() {
    let scratch = sample_folder();
    let root = RootSource::new(&scratch.0);
    let with_initrd = RootRequest { has_initrd: true, ..request(root) };
    assert!(refusal(&with_initrd).contains("root goes without initrds"));
    for word in ["root=/dev/vdb", "rdinit=/x"] {
        let cmdline = format!("quiet {word}");
        assert!(
            refusal(&RootRequest { cmdline: &cmdline, ..request(root) })
                .contains(&format!("root goes without {word}"))
        );
    }
    let behind = RootRequest { cmdline: "quiet init=/bin/sh -- root=x", ..request(root) };
    check(&behind).unwrap();
    let rw = RootSource { access: RootAccess::Image, ..root };
    assert!(refusal(&request(rw)).contains("rw goes with an image of ext4 only, and this is a directory"));
    let tar = RootSource { kind: Some(RootKind::Tar), ..root };
    assert!(refusal(&request(tar)).contains("is a directory, but a tar is needed"));
}

#[test]
fn image_for_many_machines_can_be_made_of_a_folder_and_not_of_an_image() {
    let scratch = sample_folder();
    let path = scratch.join("out.erofs");
    let folder = scratch.join("etc");
    let report = write_image(RootSource::new(&folder), &File::create_new(&path).unwrap()).unwrap();
    assert_eq!((report.bytes, report.files), (fs::metadata(&path).unwrap().len(), 2));
    assert!(report.left_out.is_nothing());
    assert!(matches!(write_image(RootSource::new(&path), &file(b"")), Err(RootError::OtherKind { .. })));
}
