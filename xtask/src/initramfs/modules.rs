//! Kernel modules: which ones are needed for the wanted ones, in the order in which they load, as plain `.ko`
//! files.
//!
//! What a module needs is read from the module itself (the `depends=` line of its `.modinfo` section): a
//! kernel package that was unpacked but not installed has no `modules.dep`, which `depmod` makes of the same
//! lines.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::decompress::Compression;

/// The modules of one kernel release.
#[derive(Debug)]
pub(crate) struct ModuleTree {
    root: PathBuf,
    /// Name to path below `root`.
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
}

/// A module that is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Below the release's folder, with a plain `.ko` ending: `kernel/drivers/net/tun.ko`.
    pub(crate) path: String,
    /// The ELF object, never compressed.
    pub(crate) object: Vec<u8>,
}

impl ModuleTree {
    /// Lists the modules in the folder of a release (`lib/modules/RELEASE`).
    ///
    /// # Errors
    /// The folder or its `modules.builtin` cannot be read.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let built_in = root.join("modules.builtin");
        let built_in =
            fs::read_to_string(&built_in).with_context(|| format!("cannot read {}", built_in.display()))?;
        let built_in = built_in.lines().filter_map(|path| module_name(Path::new(path))).collect();
        let mut tree = Self { root: root.to_owned(), files: HashMap::new(), built_in };
        tree.list(Path::new("kernel"))?;
        Ok(tree)
    }

    /// The wanted modules and all they need, each after those that it needs and otherwise in the given order.
    /// What is built into the kernel is left out.
    ///
    /// # Errors
    /// A module is neither in the tree nor built in, or cannot be read.
    pub(crate) fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut load_order = Vec::new();
        let mut seen = HashSet::new();
        for name in wanted {
            self.add(&canonical(name), &mut seen, &mut load_order)?;
        }
        Ok(load_order)
    }

    fn add(&self, name: &str, seen: &mut HashSet<String>, load_order: &mut Vec<Module>) -> Result<()> {
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            bail!("there is no kernel module {name} in {}", self.root.display());
        };
        let module = self.read(path)?;
        let needs =
            needs(&module.object).with_context(|| format!("cannot read what {} needs", path.display()))?;
        for needed in needs {
            self.add(&needed, seen, load_order).with_context(|| format!("{name} needs {needed}"))?;
        }
        load_order.push(module);
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<Module> {
        let full_path = self.root.join(path);
        let stored = fs::read(&full_path).with_context(|| format!("cannot read {}", full_path.display()))?;
        let object = match Compression::of(&stored) {
            None => stored,
            Some(compression) => compression
                .decompress(&stored)
                .with_context(|| format!("{} is damaged", full_path.display()))?,
        };
        let path = path.to_str().context("a module's path is not UTF-8")?;
        let path = path.trim_end_matches(".xz").trim_end_matches(".zst").to_owned();
        Ok(Module { path, object })
    }

    fn list(&mut self, folder: &Path) -> Result<()> {
        let full_path = self.root.join(folder);
        let entries =
            fs::read_dir(&full_path).with_context(|| format!("cannot list {}", full_path.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.list(&path)?;
            } else if let Some(name) = module_name(&path) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }
}

/// The name of the module in a file; `None` when the file is not a module.
fn module_name(path: &Path) -> Option<String> {
    let (stem, ending) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst").then(|| canonical(stem))
}

/// Modules are found by either of `-` and `_`; the kernel itself uses `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The names on the `depends=` line of a module.
fn needs(object: &[u8]) -> Result<Vec<String>> {
    let modinfo = section(object, b".modinfo").context("no .modinfo section")?;
    let line = modinfo.split(|&byte| byte == 0).find_map(|line| line.strip_prefix(b"depends="));
    let line = line.context("no depends= line")?;
    let names = str::from_utf8(line).context("the depends= line is not text")?.split(',');
    Ok(names.filter(|name| !name.is_empty()).map(canonical).collect())
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

const E_SHOFF: usize = 0x28;
const E_SHNUM: usize = 0x3c;
const E_SHSTRNDX: usize = 0x3e;
const SECTION_HEADER: usize = 64;
const SH_NAME: usize = 0;
const SH_OFFSET: usize = 0x18;
const SH_SIZE: usize = 0x20;

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF object of two sections: the names, and a `.modinfo` with this `depends=` line.
    fn object(depends: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let modinfo = format!("license=GPL\0depends={depends}\0name=x\0");
        let mut object = vec![0; 64];
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = object.len() as u64;
        object.extend_from_slice(names);
        let modinfo_at = object.len() as u64;
        object.extend_from_slice(modinfo.as_bytes());
        let table = object.len() as u64;
        for (name, offset, size) in
            [(0_u32, 0, 0), (10, names_at, names.len()), (1, modinfo_at, modinfo.len())]
        {
            let mut header = [0; SECTION_HEADER];
            header[SH_NAME..][..4].copy_from_slice(&name.to_le_bytes());
            header[SH_OFFSET..][..8].copy_from_slice(&offset.to_le_bytes());
            header[SH_SIZE..][..8].copy_from_slice(&(size as u64).to_le_bytes());
            object.extend_from_slice(&header);
        }
        object[E_SHOFF..][..8].copy_from_slice(&table.to_le_bytes());
        object[E_SHNUM..][..2].copy_from_slice(&3_u16.to_le_bytes());
        object[E_SHSTRNDX..][..2].copy_from_slice(&1_u16.to_le_bytes());
        object
    }

    /// A tree of its own for each test, removed at its end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(test: &str, modules: &[(&str, Vec<u8>)]) -> Self {
            let root = std::env::temp_dir().join(format!("coracle-modules-{test}-{}", std::process::id()));
            for (path, stored) in modules {
                let path = root.join("kernel").join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, stored).unwrap();
            }
            fs::write(root.join("modules.builtin"), "kernel/drivers/virtio/virtio.ko\n").unwrap();
            Self(root)
        }

        fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>> {
            ModuleTree::open(&self.0).unwrap().closure(wanted)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
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
        let error = format!("{:#}", tree.closure(&["a"]).unwrap_err());
        assert!(error.contains("a needs b_c") && error.contains("no kernel module b_c"), "{error}");
    }

    #[test]
    fn circle_of_modules_ends() {
        let tree = Tree::new("circle", &[("a.ko", object("b")), ("b.ko", object("a"))]);
        assert_eq!(paths(&tree.closure(&["a"]).unwrap()), ["kernel/b.ko", "kernel/a.ko"]);
    }

    #[test]
    fn compressed_module_is_unpacked() {
        use std::io::Write;

        let plain = object("");
        let options = lzma_rust2::XzOptions::with_preset(0);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        xz.write_all(&plain).unwrap();
        let xz = xz.finish().unwrap();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let zst = ruzstd::encoding::compress_to_vec(plain.as_slice(), level);

        let tree = Tree::new("compressed", &[("a.ko.xz", xz), ("b.ko.zst", zst)]);
        let order = tree.closure(&["a", "b"]).unwrap();
        assert_eq!(paths(&order), ["kernel/a.ko", "kernel/b.ko"]);
        assert!(order.iter().all(|module| module.object == plain));
    }

    #[test]
    fn object_cut_at_any_length_is_refused() {
        let whole = object("kvm");
        assert_eq!(needs(&whole).unwrap(), ["kvm"]);
        for length in 0..whole.len() {
            assert!(needs(&whole[..length]).is_err(), "{length}");
        }
    }
}
