//! Tests of finding the modules of a kernel, and of the archive's content.

use super::super::samples::{RELEASE, Tree, object};
use super::*;

fn tree(test: &str) -> Tree {
    Tree::new(test, &[("virtio_mmio.ko", object("virtio,virtio_ring")), ("virtio_ring.ko", object("virtio"))])
}

fn request<'a>(kernel: &'a Path, folder: Option<&'a Path>) -> LoaderRequest<'a> {
    LoaderRequest {
        kernel,
        release: Some(RELEASE),
        folder,
        modules: &["virtio_mmio"],
        file_systems: &[],
        has_initrd: true,
        program: None,
        is_agent: false,
        root: None,
        root_device: None,
    }
}

#[test]
fn folder_may_be_the_release_s_or_hold_it_or_be_a_system_s_root() {
    let tree = tree("folder");
    for folder in [tree.release_folder(), tree.root.join("lib/modules"), tree.root.clone()] {
        let request = request(Path::new("/vmlinuz"), Some(&folder));
        assert_eq!(tree_folder(&request).unwrap(), tree.release_folder());
        let names: Vec<_> =
            modules_of(&request).unwrap().for_devices.into_iter().map(|module| module.path).collect();
        assert_eq!(names, ["kernel/virtio_ring.ko", "kernel/virtio_mmio.ko"]);
    }
}

#[test]
fn modules_beside_the_kernel_are_found() {
    let tree = tree("beside");
    for kernel in [tree.root.join("vmlinuz"), tree.root.join("boot/vmlinuz")] {
        assert_eq!(tree_folder(&request(&kernel, None)).unwrap(), tree.release_folder());
        assert_eq!(modules_folder(&kernel, Some(RELEASE)), Some(tree.release_folder()));
        assert_eq!(modules_folder(&kernel, Some("0.0.0-nowhere")), None);
    }
}

#[test]
fn modules_around_the_kernel_and_in_usr_are_found() {
    let tree = tree("around");
    let kernel = tree.release_folder().join("vmlinuz");
    assert_eq!(tree_folder(&request(&kernel, None)).unwrap(), tree.release_folder());
    for folder in ["usr/lib", "."] {
        let place = tree.root.join(folder);
        fs::create_dir_all(&place).unwrap();
        fs::rename(tree.root.join("lib/modules"), place.join("modules")).unwrap();
        let found = tree_folder(&request(&tree.root.join("vmlinuz"), None)).unwrap();
        assert_eq!(found, place.components().collect::<PathBuf>().join("modules").join(RELEASE));
        fs::rename(place.join("modules"), tree.root.join("lib/modules")).unwrap();
    }
}

#[test]
fn list_that_is_missing_is_named() {
    let tree = tree("unlisted");
    let folder = tree.release_folder();
    fs::remove_file(folder.join("modules.builtin")).unwrap();
    let elsewhere = tree.root.join("vmlinuz");
    for (kernel, named) in [
        (&elsewhere, None),
        (&elsewhere, Some(tree.root.as_path())),
        (&elsewhere, Some(folder.as_path())),
        (&folder.join("vmlinuz"), None),
    ] {
        let error = tree_folder(&request(kernel, named)).unwrap_err();
        let said = error.to_string();
        assert!(matches!(&error, LoaderError::NoList { tree } if *tree == folder), "{said}");
        assert!(said.contains("its file modules.builtin is missing"), "{said}");
    }
    let request = LoaderRequest { release: None, ..request(&elsewhere, Some(&folder)) };
    assert!(matches!(tree_folder(&request), Err(LoaderError::NoList { .. })));
}

#[test]
fn folder_of_another_release_is_refused() {
    let tree = tree("other");
    let request =
        LoaderRequest { release: Some("6.2.0"), ..request(Path::new("/vmlinuz"), Some(&tree.root)) };
    let error = tree_folder(&request).unwrap_err().to_string();
    assert!(
        error.starts_with("modules \"") && error.contains("the kernel's release, 6.2.0; it takes"),
        "{error}"
    );
    let file = tree.release_folder().join("modules.builtin");
    for (wrong, words) in [
        (Path::new("/nope"), "\"/nope\": No such file or directory"),
        (&file, "it is not a directory; it takes"),
    ] {
        let error = tree_folder(&LoaderRequest { folder: Some(wrong), ..request }).unwrap_err().to_string();
        assert!(error.starts_with("modules ") && error.contains(words), "{error}");
    }
    let folder = tree.release_folder();
    let error = modules_of(&LoaderRequest { folder: Some(&folder), ..request }).unwrap_err().to_string();
    assert!(error.contains("are of the release 6.1.0-test, but the kernel \"/vmlinuz\" is 6.2.0"), "{error}");
}

#[test]
fn kernel_without_modules_anywhere_names_the_module_and_the_folders() {
    let request =
        LoaderRequest { release: Some("0.0.0-nowhere"), ..request(Path::new("/a/boot/vmlinuz"), None) };
    let error = modules_of(&request).unwrap_err().to_string();
    for words in [
        "needs the module virtio_mmio",
        "/a/boot/lib/modules, ",
        "/a/usr/lib/modules, ",
        "/usr/lib/modules, ",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn kernel_that_does_not_say_its_release_needs_the_folder_itself() {
    let tree = tree("unsaid");
    let folder = tree.release_folder();
    let request = LoaderRequest { release: None, ..request(Path::new("/vmlinuz"), Some(&folder)) };
    assert_eq!(modules_of(&request).unwrap().for_devices.len(), 2);
    let error = tree_folder(&LoaderRequest { folder: Some(&tree.root), ..request }).unwrap_err();
    assert!(matches!(error, LoaderError::NoRelease { .. }), "{error}");
}

#[test]
fn built_in_modules_need_no_archive() {
    let tree = tree("builtin");
    let request = LoaderRequest { modules: &["virtio"], ..request(Path::new("/vmlinuz"), Some(&tree.root)) };
    assert_eq!(archive(&request, modules_of(&request)).unwrap(), None);
}

#[test]
fn root_s_file_systems_come_with_what_each_needs() {
    let soft = |depends, soft| object(&format!("{depends}\0softdep=pre: {soft}"));
    let modules = [
        ("drivers/virtio/virtio_mmio.ko", object("")),
        ("fs/ext4/ext4.ko", soft("jbd2", "crypto-crc32c nothing")),
        ("fs/jbd2/jbd2.ko", object("")),
        ("fs/xfs/xfs.ko", object("libcrc32c")),
        ("lib/libcrc32c.ko", soft("", "crc32c")),
        ("crypto/crc32c_generic.ko", object("")),
    ];
    let tree = Tree::new("roots", &modules);
    let file_systems = ["ext4", "xfs", "btrfs", "ext3"];
    let request =
        LoaderRequest { file_systems: &file_systems, ..request(Path::new("/vmlinuz"), Some(&tree.root)) };
    let archive = packed(b"program".to_vec(), modules_of(&request).unwrap(), &request).unwrap();
    let text = String::from_utf8_lossy(&archive);
    for (name, list) in [
        ("ext4", &["crypto/crc32c_generic", "fs/jbd2/jbd2", "fs/ext4/ext4"][..]),
        ("xfs", &["crypto/crc32c_generic", "lib/libcrc32c", "fs/xfs/xfs"]),
        ("ext3", &["crypto/crc32c_generic", "fs/jbd2/jbd2", "fs/ext4/ext4"]),
    ] {
        let lines: String = list.iter().map(|path| format!("/coracle/kernel/{path}.ko\n")).collect();
        let (_, rest) = text.split_once(&format!("coracle/filesystems/{name}\0")).unwrap();
        let (list, _) = rest.trim_start_matches('\0').split_at(lines.len());
        assert_eq!(list, lines, "{name}");
    }
    assert!(!text.contains("filesystems/btrfs"));
    assert_eq!(text.matches("coracle/kernel/crypto/crc32c_generic.ko\0").count(), 1);
}

#[test]
fn root_by_what_is_on_the_device_needs_the_loader_and_other_forms_are_refused() {
    let tree = tree("form");
    let with = |root_device, modules: &'static [&'static str]| {
        let request = LoaderRequest {
            root_device: Some(root_device),
            modules,
            program: Some(Path::new("/proc/self/exe")),
            ..request(Path::new("/vmlinuz"), Some(&tree.root))
        };
        initrd(&request).map(|loader| loader.archive.is_some())
    };
    // If the kernel has all drivers built in, a device that is named by its path needs no loader.
    assert!(!with("/dev/vda", &["virtio"]).unwrap() && !with("PARTUUID=1-1", &["virtio"]).unwrap());
    assert!(with("UUID=0123-ab", &["virtio"]).unwrap() && with("LABEL=root", &["virtio"]).unwrap());
    assert!(with("/dev/vda", &["virtio_mmio"]).unwrap());
    let error = with("vda", &["virtio_mmio"]).unwrap_err().to_string();
    assert!(error.starts_with("root=vda: this form is not known; write /dev/NAME, "), "{error}");
}

#[test]
fn archive_is_under_its_own_folder_unless_there_is_no_initrd() {
    let module = || Module { path: "kernel/drivers/x.ko".into(), object: b"object".to_vec() };
    let text_for = |has_initrd, root| {
        let request = LoaderRequest { has_initrd, root, ..request(Path::new("/vmlinuz"), None) };
        let modules = Modules { for_devices: vec![module()], ..Modules::default() };
        let archive = packed(b"program".to_vec(), modules, &request).unwrap();
        String::from_utf8(archive).unwrap()
    };
    let text = |has_initrd| text_for(has_initrd, None);
    let names = |archive: &str| archive.matches("070701").count();
    // Three directories, the program, the module, the list, the end.
    assert_eq!(names(&text(true)), 7);
    assert!(text(true).contains("/coracle/kernel/drivers/x.ko\n"));
    // In addition /init, /dev and the console.
    assert_eq!(names(&text(false)), 10);
    assert!(text(false).contains("coracle/init"));
    // A root on a device is like no initrd; a root that is the initramfs itself keeps its own /init.
    assert_eq!(names(&text_for(false, Some(RootStart::OnDevice))), 10);
    let here = text_for(false, Some(RootStart::Here));
    assert_eq!(names(&here), 10);
    assert!(here.contains("coracle/root-is-here\0") && !here.contains("init\0\0coracle/init"));
}
