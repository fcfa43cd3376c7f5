//! Kernel modules: which ones are needed for the wanted ones, in the order in which they load, as plain `.ko` files.
//!
//! What a module needs is read from the module itself (the `depends=` line of its `.modinfo` section): a kernel package
//! that was unpacked but not installed has no `modules.dep`, which `depmod` makes of the same lines.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::compression::{Compression, DecompressError};

/// The modules of one kernel release.
#[derive(Debug)]
pub struct ModuleTree {
    root: PathBuf,
    /// Name to path below `root`.
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
}

/// A module that is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Below the release's folder, with a plain `.ko` ending: `kernel/drivers/net/tun.ko`.
    pub path: String,
    /// The ELF object, never compressed.
    pub object: Vec<u8>,
}

/// Why modules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A file or folder cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A module is neither in the tree nor built into the kernel.
    #[error("there is no kernel module {name}{} in {root:?}", needed_by.as_ref().map(|by| format!(", which {by} needs,")).unwrap_or_default())]
    Missing {
        /// The module.
        name: String,
        /// The module that needs it; `None` when it was asked for itself.
        needed_by: Option<String>,
        /// The tree.
        root: PathBuf,
    },
    /// Modules need each other in a longer chain than any kernel has.
    #[error(
        "the kernel module {name} in {root:?} needs others in a chain of more than {MAX_DEPTH}; install it again"
    )]
    TooDeep {
        /// The last module of the chain.
        name: String,
        /// The tree.
        root: PathBuf,
    },
    /// A compressed module is damaged.
    #[error("the kernel module {path:?} is damaged; install it again")]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: DecompressError,
    },
    /// A file that should be a module is something else.
    #[error("{path:?} is no kernel module: it does not say what it depends on")]
    NoModule {
        /// Its path.
        path: PathBuf,
    },
}

impl ModuleTree {
    /// Lists the modules in the folder of a release (`lib/modules/RELEASE`).
    ///
    /// # Errors
    /// The folder or its `modules.builtin` cannot be read.
    pub fn open(root: &Path) -> Result<Self, ModulesError> {
        let built_in = read_text(&root.join(BUILT_IN_LIST))?;
        let built_in = built_in.lines().filter_map(|path| module_name(Path::new(path))).collect();
        let mut tree = Self { root: root.to_owned(), files: HashMap::new(), built_in };
        match fs::read_to_string(root.join("modules.dep")) {
            Ok(list) => tree.take_list(&list),
            Err(_) => tree.list(Path::new("kernel"))?,
        }
        Ok(tree)
    }

    /// Whether `folder` is one of a release, by the list that every kernel's `modules_install` writes.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(BUILT_IN_LIST).is_file()
    }

    /// Whether the kernel has this module built in.
    pub fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&canonical(name))
    }

    /// The wanted modules and all they need, each after those that it needs and otherwise in the given order.
    /// What is built into the kernel is left out.
    ///
    /// # Errors
    /// A module is neither in the tree nor built in, or cannot be read.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>, ModulesError> {
        let mut order = LoadOrder { tree: self, seen: HashSet::new(), modules: Vec::new() };
        for name in wanted {
            order.add(&canonical(name), &mut Vec::new())?;
        }
        Ok(order.modules)
    }

    fn read(&self, path: &Path) -> Result<Module, ModulesError> {
        let full_path = self.root.join(path);
        let stored =
            fs::read(&full_path).map_err(|source| ModulesError::Read { path: full_path.clone(), source })?;
        let object = match Compression::of(&stored) {
            None => stored,
            Some(compression) => compression
                .decompress(&stored, MAX_MODULE)
                .map_err(|source| ModulesError::Damaged { path: full_path, source })?,
        };
        let path = path.to_string_lossy();
        let plain = ENDINGS.iter().find_map(|ending| path.strip_suffix(ending)).unwrap_or(&path);
        Ok(Module { path: plain.to_owned(), object })
    }

    /// Takes the modules that `modules.dep` lists: `PATH: NEEDED...`.
    fn take_list(&mut self, list: &str) {
        for (path, _) in list.lines().filter_map(|line| line.split_once(':')) {
            if let Some(name) = module_name(Path::new(path)) {
                self.files.insert(name, path.into());
            }
        }
    }

    fn list(&mut self, folder: &Path) -> Result<(), ModulesError> {
        let full_path = self.root.join(folder);
        let failed = |source| ModulesError::Read { path: full_path.clone(), source };
        for entry in fs::read_dir(&full_path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = folder.join(entry.file_name());
            if entry.file_type().map_err(failed)?.is_dir() {
                self.list(&path)?;
            } else if let Some(name) = module_name(&path) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }
}

impl Module {
    /// The release of the kernel that it was built for, from its `vermagic=` line.
    pub fn release(&self) -> Option<&str> {
        let line = info(&self.object, b"vermagic=")?;
        str::from_utf8(line).ok()?.split(' ').next()
    }
}

/// The modules so far, each after those that it needs.
struct LoadOrder<'a> {
    tree: &'a ModuleTree,
    seen: HashSet<String>,
    modules: Vec<Module>,
}

impl LoadOrder<'_> {
    /// Adds a module, which the last one of `chain` needs.
    fn add(&mut self, name: &str, chain: &mut Vec<String>) -> Result<(), ModulesError> {
        let root = || self.tree.root.clone();
        if self.tree.built_in.contains(name) || self.seen.contains(name) {
            return Ok(());
        }
        let Some(path) = self.tree.files.get(name) else {
            let needed_by = chain.last().cloned();
            return Err(ModulesError::Missing { name: name.to_owned(), needed_by, root: root() });
        };
        if chain.len() >= MAX_DEPTH {
            return Err(ModulesError::TooDeep { name: name.to_owned(), root: root() });
        }
        let module = self.tree.read(path)?;
        let Some(needs) = needs(&module.object) else {
            return Err(ModulesError::NoModule { path: self.tree.root.join(path) });
        };
        self.seen.insert(name.to_owned());
        chain.push(name.to_owned());
        for needed in needs {
            self.add(&needed, chain)?;
        }
        chain.pop();
        self.modules.push(module);
        Ok(())
    }
}

/// The name of the module in a file; `None` when the file is not a module.
fn module_name(path: &Path) -> Option<String> {
    let (stem, ending) = path.file_name()?.to_str()?.split_once(".ko")?;
    (ending.is_empty() || ENDINGS.contains(&ending)).then(|| canonical(stem))
}

/// Modules are found by either of `-` and `_`; the kernel itself uses `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The names on the `depends=` line of a module.
fn needs(object: &[u8]) -> Option<Vec<String>> {
    let names = str::from_utf8(info(object, b"depends=")?).ok()?;
    Some(names.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

/// What follows `key` in the module's information.
fn info<'a>(object: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    section(object, b".modinfo")?.split(|&byte| byte == 0).find_map(|line| line.strip_prefix(key))
}

fn read_text(path: &Path) -> Result<String, ModulesError> {
    fs::read_to_string(path).map_err(|source| ModulesError::Read { path: path.to_owned(), source })
}

/// A section of a little-endian ELF64 file by its name (ELF-64 Object File Format 1.5, sections 3 and 5).
fn section<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !object.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64_at(object, E_SHOFF)?).ok()?;
    let count = usize::from(u16_at(object, E_SHNUM)?);
    let headers = object.get(table..)?.get(..count * SECTION_HEADER)?;
    let headers: Vec<_> = headers.chunks_exact(SECTION_HEADER).collect();
    let names = content(object, headers.get(usize::from(u16_at(object, E_SHSTRNDX)?))?)?;
    let header = headers.iter().find(|header| {
        let rest = u32_at(header, SH_NAME).and_then(|offset| names.get(offset as usize..));
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.first() == Some(&0))
    })?;
    content(object, header)
}

fn content<'a>(object: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let offset = usize::try_from(u64_at(header, SH_OFFSET)?).ok()?;
    let size = usize::try_from(u64_at(header, SH_SIZE)?).ok()?;
    object.get(offset..)?.get(..size)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|field| u16::from_le_bytes(*field))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|field| u64::from_le_bytes(*field))
}

/// What the kernel's build may append to `.ko`.
const ENDINGS: [&str; 3] = [".xz", ".zst", ".gz"];

/// Where `modules_install` lists what is no module but in the kernel itself.
const BUILT_IN_LIST: &str = "modules.builtin";

/// Most bytes of an unpacked module. The largest, graphics drivers with debugging information, have a few hundred MiB.
const MAX_MODULE: usize = 512 << 20;

/// Most modules that need one another in a row; a kernel's longest chain has about ten.
const MAX_DEPTH: usize = 64;

const E_SHOFF: usize = 0x28;
const E_SHNUM: usize = 0x3c;
const E_SHSTRNDX: usize = 0x3e;
const SECTION_HEADER: usize = 64;
const SH_NAME: usize = 0;
const SH_OFFSET: usize = 0x18;
const SH_SIZE: usize = 0x20;

#[cfg(test)]
mod tests {
    use crate::compression::samples::pack;

    use super::super::samples::{RELEASE, Tree, object};
    use super::*;

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
            [
                "kernel/virt/irqbypass.ko",
                "kernel/arch/kvm.ko",
                "kernel/crypto/ccp.ko",
                "kernel/arch/kvm-amd.ko"
            ]
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
        assert!(error.contains("kernel/b.ko\" is no kernel module"), "{error}");
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
        assert_eq!(needs(&whole).unwrap(), ["kvm"]);
        for length in 0..whole.len() {
            assert!(needs(&whole[..length]).is_none(), "{length}");
        }
    }
}
