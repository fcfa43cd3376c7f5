//! Trees of modules, valid and hostile ones.

use std::fs;

use std::process::Command;

use crate::compression::samples::pack;

use super::*;
use crate::initramfs::samples::{RELEASE, Tree, object};

impl Tree {
    fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>, ModulesError> {
        ModuleTree::open(&self.release_folder()).unwrap().closure(wanted)
    }
}

fn paths(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|module| module.path.as_str()).collect()
}

#[test]
fn needed_modules_come_first_and_once() {
    let tree = Tree::new(
        "order",
        &[
            ("arch/kvm-amd.ko", object("kvm,ccp")),
            ("arch/kvm.ko", object("irqbypass")),
            ("crypto/ccp.ko", object("")),
            ("virt/irqbypass.ko", object("")),
        ],
    );
    let order = tree.closure(&["kvm_amd", "kvm", "irqbypass"]).unwrap();
    assert_eq!(
        paths(&order),
        ["kernel/virt/irqbypass.ko", "kernel/arch/kvm.ko", "kernel/crypto/ccp.ko", "kernel/arch/kvm-amd.ko"]
    );
}

#[test]
fn hyphen_and_underscore_are_alike() {
    let tree = Tree::new("hyphen", &[("kvm-amd.ko", object("my_dep")), ("my-dep.ko", object(""))]);
    assert_eq!(paths(&tree.closure(&["kvm-amd"]).unwrap()), ["kernel/my-dep.ko", "kernel/kvm-amd.ko"]);
}

#[test]
fn built_in_module_is_left_out() {
    let tree = Tree::new(
        "builtin",
        &[("virtio_mmio.ko", object("virtio,virtio_ring")), ("virtio_ring.ko", object("virtio"))],
    );
    let order = tree.closure(&["virtio", "virtio_mmio"]).unwrap();
    assert_eq!(paths(&order), ["kernel/virtio_ring.ko", "kernel/virtio_mmio.ko"]);
}

#[test]
fn unknown_module_is_named() {
    let tree = Tree::new("unknown", &[("a.ko", object("b-c"))]);
    let error = tree.closure(&["a"]).unwrap_err().to_string();
    assert!(error.contains("there is no kernel module b_c, which a needs, in "), "{error}");
    let error = tree.closure(&["d"]).unwrap_err().to_string();
    assert!(error.contains("there is no kernel module d in "), "{error}");
}

#[test]
fn circle_of_modules_ends() {
    let tree = Tree::new("circle", &[("a.ko", object("b")), ("b.ko", object("a"))]);
    assert_eq!(paths(&tree.closure(&["a"]).unwrap()), ["kernel/b.ko", "kernel/a.ko"]);
}

#[test]
fn compressed_module_is_unpacked() {
    let plain = object("");
    let packed = |compression| pack(compression, &plain);
    let tree = Tree::new(
        "compressed",
        &[
            ("a.ko.xz", packed(Compression::Xz)),
            ("b.ko.zst", packed(Compression::Zstd)),
            ("c.ko.gz", packed(Compression::Gzip)),
        ],
    );
    let order = tree.closure(&["a", "b", "c"]).unwrap();
    assert_eq!(paths(&order), ["kernel/a.ko", "kernel/b.ko", "kernel/c.ko"]);
    assert!(order.iter().all(|module| module.object == plain));
}

#[test]
fn damaged_module_is_named() {
    let mut xz = pack(Compression::Xz, &object(""));
    xz.truncate(60);
    let tree = Tree::new("damaged", &[("a.ko.xz", xz), ("b.ko", b"text".to_vec())]);
    let error = tree.closure(&["a"]).unwrap_err();
    assert!(matches!(error, ModulesError::Damaged { .. }), "{error}");
    let error = tree.closure(&["b"]).unwrap_err().to_string();
    assert!(error.contains("kernel/b.ko\" is not a kernel module"), "{error}");
}

#[test]
fn list_of_depmod_spares_the_walk_and_finds_other_folders() {
    let tree = Tree::new("list", &[("a.ko", object(""))]);
    fs::create_dir_all(tree.release_folder().join("updates")).unwrap();
    fs::write(tree.release_folder().join("updates/b.ko"), object("a")).unwrap();
    fs::write(tree.release_folder().join("modules.dep"), "updates/b.ko: kernel/a.ko\nkernel/a.ko:\n")
        .unwrap();
    assert_eq!(paths(&tree.closure(&["b"]).unwrap()), ["kernel/a.ko", "updates/b.ko"]);
}

#[test]
fn chain_without_end_is_refused() {
    let names: Vec<String> = (0..=MAX_DEPTH).map(|index| format!("m{index}.ko")).collect();
    let modules: Vec<_> = (1..)
        .zip(&names)
        .map(|(next, name)| {
            let needed = if next > MAX_DEPTH { String::new() } else { format!("m{next}") };
            (name.as_str(), object(&needed))
        })
        .collect();
    let tree = Tree::new("chain", &modules);
    assert_eq!(tree.closure(&["m1"]).unwrap().len(), MAX_DEPTH);
    assert!(matches!(tree.closure(&["m0"]), Err(ModulesError::TooDeep { .. })));
}

#[test]
fn release_is_the_first_word_of_the_magic_line() {
    let module = |object| Module { path: "kernel/a.ko".into(), object };
    assert_eq!(module(object("")).release(), Some(RELEASE));
    assert_eq!(module(b"text".to_vec()).release(), None);
}

#[test]
fn object_cut_at_any_length_is_refused() {
    let whole = object("kvm");
    assert_eq!(Needs::of(&whole).unwrap().hard, ["kvm"]);
    for length in 0..whole.len() {
        assert!(Needs::of(&whole[..length]).is_none(), "{length}");
    }
}

#[test]
fn names_of_a_list_stay_in_their_folder() {
    let tree = Tree::new("outside", &[("a.ko", object(""))]);
    fs::write(tree.root.join("outside.ko"), object("")).unwrap();
    let list = |text: &str| fs::write(tree.release_folder().join("modules.dep"), text).unwrap();
    for path in ["../../../outside.ko", "kernel/../kernel/a.ko", "/etc/a.ko", "./../b.ko"] {
        list(&format!("{path}:\n"));
        let name = module_name(Path::new(path)).unwrap();
        let error = tree.closure(&[&name]).unwrap_err();
        assert!(
            matches!(&error, ModulesError::Outside { path: named, .. } if named == Path::new(path)),
            "{error}"
        );
    }
    list("kernel/a.ko:\n");
    assert_eq!(paths(&tree.closure(&["a"]).unwrap()), ["kernel/a.ko"]);
}

#[test]
fn what_is_no_regular_file_is_neither_waited_for_nor_read() {
    let tree = Tree::new("special", &[("a.ko", object(""))]);
    let folder = tree.release_folder();
    let fifo = |path: PathBuf| {
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    fifo(folder.join("kernel/fifo.ko"));
    std::os::unix::fs::symlink("/dev/zero", folder.join("kernel/zero.ko")).unwrap();
    for name in ["fifo", "zero"] {
        let error = tree.closure(&[name]).unwrap_err();
        assert!(
            matches!(&error, ModulesError::Read { path, .. } if path.ends_with(format!("{name}.ko"))),
            "{error}"
        );
    }
    for list in ["modules.dep", "modules.builtin"] {
        let path = folder.join(list);
        let _ = fs::remove_file(&path);
        fifo(path.clone());
        let error = ModuleTree::open(&folder).unwrap_err();
        assert!(matches!(&error, ModulesError::Read { path: named, .. } if *named == path), "{error}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn lists_and_modules_have_limits() {
    let bomb = pack(Compression::Gzip, &vec![0; MIN_UNPACKED + (1 << 20)]);
    let many: String = (0..2000).map(|number| format!("m{number},")).collect();
    let soft = soft_object("", &["pre: a b", &"post: c ".repeat(1023)]);
    let tree = Tree::new("limits", &[("bomb.ko.gz", bomb), ("many.ko", object(&many)), ("soft.ko", soft)]);
    assert!(matches!(tree.closure(&["bomb"]), Err(ModulesError::Damaged { .. })));
    assert!(matches!(tree.closure(&["many"]), Err(ModulesError::NoModule { .. })));
    assert!(matches!(tree.closure(&["soft"]), Err(ModulesError::NoModule { .. })));
    let list: String = (0..=MAX_MODULES).map(|number| format!("{number}.ko:\n")).collect();
    fs::write(tree.release_folder().join("modules.dep"), list).unwrap();
    assert!(matches!(ModuleTree::open(&tree.release_folder()), Err(ModulesError::TooMany { .. })));
}

#[test]
fn tree_is_walked_only_for_what_is_in_no_likely_folder() {
    let tree = Tree::new(
        "likely",
        &[
            ("drivers/virtio/virtio_mmio.ko", object("vsock")),
            ("net/vmw_vsock/vsock.ko", object("")),
            ("drivers/gpu/drm/xe.ko", object("")),
        ],
    );
    let mut modules = ModuleTree::open(&tree.release_folder()).unwrap();
    let found = ["kernel/net/vmw_vsock/vsock.ko", "kernel/drivers/virtio/virtio_mmio.ko"];
    assert_eq!(paths(&modules.closure(&["virtio_mmio"]).unwrap()), found);
    assert_eq!(modules.file_system("btrfs").unwrap(), []);
    assert!(!modules.files.knows("xe"), "the whole tree was walked");
    assert_eq!(modules.closure(&["virtio_mmio", "xe"]).unwrap().len(), 3);
}

/// Creates an object that depends on `depends`, with lines of soft dependencies.
fn soft_object(depends: &str, lines: &[&str]) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("\0softdep={line}")).collect();
    object(&format!("{depends}{lines}"))
}

#[test]
fn soft_dependencies_come_before_and_after_and_may_be_missing() {
    let lines = ["pre: crypto-crc32c blake2b-256 post: late", "post: broken", "pre: xxhash64 gone sha256"];
    let tree = Tree::new(
        "soft",
        &[
            ("fs/btrfs/btrfs.ko", soft_object("xor", &lines)),
            ("crypto/xor.ko", object("")),
            ("crypto/crc32c_generic.ko", object("")),
            ("arch/x86/crypto/crc32c-intel.ko", object("")),
            ("crypto/blake2b_generic.ko", object("")),
            ("crypto/xxhash_generic.ko", object("")),
            ("lib/late.ko", soft_object("", &["pre: btrfs"])),
            ("lib/broken.ko", object("nowhere")),
        ],
    );
    let mut modules = ModuleTree::open(&tree.release_folder()).unwrap();
    let expected = [
        "kernel/crypto/crc32c_generic.ko",
        "kernel/arch/x86/crypto/crc32c-intel.ko",
        "kernel/crypto/blake2b_generic.ko",
        "kernel/crypto/xxhash_generic.ko",
        "kernel/crypto/xor.ko",
        "kernel/fs/btrfs/btrfs.ko",
        "kernel/lib/late.ko",
    ];
    assert_eq!(paths(&modules.file_system("btrfs").unwrap()), expected);
}

#[test]
fn file_system_that_is_built_in_or_missing_needs_nothing() {
    let tree = Tree::new("kinds", &[("fs/isofs/isofs.ko", object("")), ("fs/ext4/ext4.ko", object("lost"))]);
    let list = tree.release_folder().join("modules.builtin");
    fs::write(list, "kernel/fs/xfs/xfs.ko\n").unwrap();
    let mut modules = ModuleTree::open(&tree.release_folder()).unwrap();
    assert_eq!(paths(&modules.file_system("iso9660").unwrap()), ["kernel/fs/isofs/isofs.ko"]);
    assert_eq!(modules.file_system("xfs").unwrap(), []);
    assert_eq!(modules.file_system("erofs").unwrap(), []);
    assert!(matches!(modules.file_system("ext2"), Err(ModulesError::Missing { needed_by: Some(_), .. })));
}
