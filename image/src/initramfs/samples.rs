//! Kernel modules and trees of them, built by hand for tests.

use std::fs;
use std::path::PathBuf;

/// The release of the trees.
pub(super) const RELEASE: &str = "6.1.0-test";

/// Creates an ELF object with two sections: the names, and a `.modinfo` with this `depends=` line.
pub(super) fn object(depends: &str) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let modinfo = format!("license=GPL\0depends={depends}\0name=x\0vermagic={RELEASE} SMP mod_unload \0");
    let mut object = vec![0; 64];
    object[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let names_at = object.len() as u64;
    object.extend_from_slice(names);
    let modinfo_at = object.len() as u64;
    object.extend_from_slice(modinfo.as_bytes());
    let table = object.len() as u64;
    for (name, offset, size) in [(0_u32, 0, 0), (10, names_at, names.len()), (1, modinfo_at, modinfo.len())] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..][..8].copy_from_slice(&offset.to_le_bytes());
        header[0x20..][..8].copy_from_slice(&(size as u64).to_le_bytes());
        object.extend_from_slice(&header);
    }
    object[0x28..][..8].copy_from_slice(&table.to_le_bytes());
    object[0x3c..][..2].copy_from_slice(&3_u16.to_le_bytes());
    object[0x3e..][..2].copy_from_slice(&1_u16.to_le_bytes());
    object
}

/// A system with a tree, for a single test, removed at its end. Its kernel has `virtio` built in.
pub(super) struct Tree {
    /// The root of the system.
    pub(super) root: PathBuf,
}

impl Tree {
    pub(super) fn new(test: &str, modules: &[(&str, Vec<u8>)]) -> Self {
        let root = std::env::temp_dir().join(format!("coracle-modules-{test}-{}", std::process::id()));
        let tree = Self { root };
        for (path, stored) in modules {
            let path = tree.release_folder().join("kernel").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, stored).unwrap();
        }
        let built_in = "kernel/drivers/virtio/virtio.ko\n";
        fs::write(tree.release_folder().join("modules.builtin"), built_in).unwrap();
        tree
    }

    pub(super) fn release_folder(&self) -> PathBuf {
        self.root.join("lib/modules").join(RELEASE)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}
