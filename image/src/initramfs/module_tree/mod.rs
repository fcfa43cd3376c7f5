//! Kernel modules: finds those that the requested ones depend on, and returns them in load order as
//! uncompressed `.ko` files.
//!
//! Dependencies are read from the modules themselves (the lines `depends=` and `softdep=` of the `.modinfo`
//! section): a kernel package that was unpacked but not installed lacks `modules.dep` and `modules.softdep`,
//! which `depmod` derives from the same lines.

use std::collections::HashSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use coracle_arch::regular_file;

use super::module_files::{Files, MAX_MODULES};
use crate::compression::{Compression, DecompressError};

/// The modules of one kernel release.
#[derive(Debug)]
pub struct ModuleTree {
    root: PathBuf,
    files: Files,
    built_in: HashSet<String>,
    /// How many bytes modules may still decompress to.
    room: usize,
}

/// A module to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The path relative to the release's directory, with a plain `.ko` ending: `kernel/drivers/net/tun.ko`.
    pub path: String,
    /// The ELF object, never compressed.
    pub object: Vec<u8>,
}

/// Why modules cannot be found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModulesError {
    /// A file or directory cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Read {
        /// The path.
        path: PathBuf,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// A module is neither in the tree nor built into the kernel.
    #[error(
        "there is no kernel module {name}{} in {root:?}",
        needed_by.as_ref().map(|by| format!(", which {by} needs,")).unwrap_or_default()
    )]
    Missing {
        /// The name of the module.
        name: String,
        /// The module that depends on it; `None` if it was requested itself.
        needed_by: Option<String>,
        /// The directory of the tree.
        root: PathBuf,
    },
    /// The dependencies form a longer chain than in any kernel.
    #[error(
        "the kernel module {name} in {root:?} needs others in a chain of more than {MAX_DEPTH}; install it again"
    )]
    TooDeep {
        /// The last module of the chain.
        name: String,
        /// The directory of the tree.
        root: PathBuf,
    },
    /// A compressed module is damaged.
    #[error("the kernel module {path:?} is damaged; install it again: {source}")]
    Damaged {
        /// The path of the module.
        path: PathBuf,
        /// The decoder's error.
        r#source: DecompressError,
    },
    /// `modules.dep` names a file outside the tree.
    #[error("{list:?} has the module {path:?}, which is outside its folder; run depmod again")]
    Outside {
        /// The path of the list.
        list: PathBuf,
        /// The path in the list.
        path: PathBuf,
    },
    /// There are more modules than in any kernel.
    #[error("{list:?} lists more than {MAX_MODULES} modules; is it the right folder?")]
    TooMany {
        /// The list, or the directory.
        list: PathBuf,
    },
    /// A file that should be a module is not one.
    #[error("{path:?} is not a kernel module: it does not say what it depends on")]
    NoModule {
        /// The path of the file.
        path: PathBuf,
    },
}

impl ModuleTree {
    /// The file in which `modules_install` lists the modules that are built into the kernel.
    pub(crate) const LIST: &str = "modules.builtin";

    /// Lists the modules in the directory of a release (`lib/modules/RELEASE`).
    ///
    /// # Errors
    /// The directory or its `modules.builtin` cannot be read.
    pub fn open(root: &Path) -> Result<Self, ModulesError> {
        let list = root.join(Self::LIST);
        let built_in = read_text(&list)?;
        let built_in: HashSet<_> = built_in
            .lines()
            .filter_map(|path| module_name(Path::new(path)))
            .take(MAX_MODULES.saturating_add(1))
            .collect();
        if built_in.len() > MAX_MODULES {
            return Err(ModulesError::TooMany { list });
        }
        let list = root.join(DEPENDENCIES);
        let files = match read_text(&list) {
            Ok(text) => Files::of_list(&list, &text)?,
            Err(ModulesError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Files::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { root: root.to_owned(), files, built_in, room: MIN_UNPACKED })
    }

    /// Returns whether `folder` is the directory of a release, recognized by the list that every kernel's
    /// `modules_install` writes.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(Self::LIST).is_file()
    }

    /// Returns whether this module is built into the kernel.
    pub fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&canonical(name))
    }

    /// Returns the requested modules and their dependencies, each after those that it needs, and otherwise in
    /// the given order. Built-in modules and missing soft dependencies are left out.
    ///
    /// # Errors
    /// A module is neither in the tree nor built in, or cannot be read.
    pub fn closure(&mut self, wanted: &[&str]) -> Result<Vec<Module>, ModulesError> {
        let mut order = LoadOrder::new(self);
        for name in wanted {
            order.add(&canonical(name), &mut Vec::new())?;
        }
        Ok(order.modules)
    }

    /// Returns the module of a file system and its dependencies, in the order of [`closure`](Self::closure).
    /// Returns nothing if the tree has no such module in its usual directory or the kernel has it built in.
    /// The rest of the tree is not searched.
    ///
    /// # Errors
    /// The module or one of its dependencies cannot be read, or a dependency is missing.
    pub fn file_system(&mut self, name: &str) -> Result<Vec<Module>, ModulesError> {
        let module = file_system_module(name);
        let directory = Path::new("kernel/fs").join(module);
        let is_there = !self.is_built_in(module)
            && self.files.find_in(&self.root, &canonical(module), &[&directory])?.is_some();
        if is_there { self.closure(&[module]) } else { Ok(Vec::new()) }
    }

    /// Returns the modules that a soft dependency may stand for: its name is that of a module, or an alias by
    /// which the kernel requests a cipher or checksum. Without `depmod`'s table of aliases, this relies on
    /// the kernel's naming of such modules.
    fn soft(&mut self, name: &str) -> Result<Vec<String>, ModulesError> {
        let directories = SOFT_DIRECTORIES.map(Path::new);
        let mut found = Vec::new();
        for candidate in implementations(name) {
            if !self.built_in.contains(&candidate)
                && self.files.find_in(&self.root, &candidate, &directories)?.is_some()
            {
                found.push(candidate);
            }
        }
        Ok(found)
    }

    /// Reads a module. It may decompress to the remaining room plus [`MAX_RATIO`] times its own size.
    fn read(&mut self, path: &Path) -> Result<Module, ModulesError> {
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(ModulesError::Outside { list: self.root.join(DEPENDENCIES), path: path.to_owned() });
        }
        let full_path = self.root.join(path);
        let stored = regular_file::read(&full_path, MAX_MODULE as u64)
            .map_err(|error| ModulesError::Read { path: full_path.clone(), source: error.into() })?;
        let object = match Compression::of(&stored) {
            None => stored,
            Some(compression) => {
                self.room = self.room.saturating_add(stored.len().saturating_mul(MAX_RATIO));
                let object = compression
                    .decompress(&stored, self.room.min(MAX_MODULE))
                    .map_err(|source| ModulesError::Damaged { path: full_path, source })?;
                self.room = self.room.saturating_sub(object.len());
                object
            }
        };
        let path = path.to_string_lossy();
        let plain = ENDINGS.iter().find_map(|ending| path.strip_suffix(ending)).unwrap_or(&path);
        Ok(Module { path: plain.to_owned(), object })
    }
}

impl Module {
    /// Returns the kernel release for which the module was built, from its `vermagic=` line.
    pub fn release(&self) -> Option<&str> {
        let mut lines = info(&self.object)?.split(|&byte| byte == 0);
        let line = lines.find_map(|line| line.strip_prefix(b"vermagic="))?;
        str::from_utf8(line).ok()?.split(' ').next()
    }
}

/// The modules so far, each after those that it needs.
struct LoadOrder<'a> {
    tree: &'a mut ModuleTree,
    seen: HashSet<String>,
    modules: Vec<Module>,
}

impl<'a> LoadOrder<'a> {
    fn new(tree: &'a mut ModuleTree) -> LoadOrder<'a> {
        LoadOrder { tree, seen: HashSet::new(), modules: Vec::new() }
    }

    /// Adds a module on which the last module of `chain` depends.
    fn add(&mut self, name: &str, chain: &mut Vec<String>) -> Result<(), ModulesError> {
        if self.tree.built_in.contains(name) || self.seen.contains(name) {
            return Ok(());
        }
        let root = &self.tree.root;
        let Some(path) = self.tree.files.find(root, name)? else {
            let needed_by = chain.last().cloned();
            return Err(ModulesError::Missing { name: name.to_owned(), needed_by, root: root.clone() });
        };
        if chain.len() >= MAX_DEPTH {
            return Err(ModulesError::TooDeep { name: name.to_owned(), root: root.clone() });
        }
        let module = self.tree.read(&path)?;
        let Some(Needs { before, hard, after }) = Needs::of(&module.object) else {
            return Err(ModulesError::NoModule { path: self.tree.root.join(path) });
        };
        self.seen.insert(name.to_owned());
        chain.push(name.to_owned());
        self.add_soft(&before, chain)?;
        for needed in hard {
            self.add(&needed, chain)?;
        }
        self.modules.push(module);
        self.add_soft(&after, chain)?;
        chain.pop();
        Ok(())
    }

    /// Adds the modules that the last one of `chain` works better with, or needs for some of its features.
    fn add_soft(&mut self, names: &[String], chain: &mut Vec<String>) -> Result<(), ModulesError> {
        for name in names {
            for module in self.tree.soft(name)? {
                let depth = chain.len();
                match self.add(&module, chain) {
                    Err(ModulesError::Missing { .. }) => chain.truncate(depth),
                    added => added?,
                }
            }
        }
        Ok(())
    }
}

/// The dependencies that a module states (`modinfo(8)`, `modprobe.d(5)`).
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    /// Soft dependencies that are loaded before it.
    before: Vec<String>,
    /// Modules that it cannot be loaded without.
    hard: Vec<String>,
    /// Soft dependencies that are loaded after it.
    after: Vec<String>,
}

impl Needs {
    /// Reads the dependencies; `None` if the object is not a module or names more modules than any module
    /// does.
    fn of(object: &[u8]) -> Option<Needs> {
        let lines = info(object)?;
        let text = |key: &'static [u8]| {
            let lines = lines.split(|&byte| byte == 0).filter_map(move |line| line.strip_prefix(key));
            lines.map(str::from_utf8)
        };
        let mut needs = Needs::default();
        let mut count: usize = 0;
        let mut fits = || {
            count = count.saturating_add(1);
            (count <= MAX_NEEDED).then_some(())
        };
        for name in text(b"depends=").next()?.ok()?.split(',').filter(|name| !name.is_empty()) {
            fits()?;
            needs.hard.push(canonical(name));
        }
        for line in text(b"softdep=") {
            let mut list = None;
            for word in line.ok()?.split_ascii_whitespace() {
                match (word, &mut list) {
                    ("pre:", _) => list = Some(&mut needs.before),
                    ("post:", _) => list = Some(&mut needs.after),
                    (name, Some(list)) => {
                        fits()?;
                        list.push(canonical(name));
                    }
                    (_, None) => {}
                }
            }
        }
        Some(needs)
    }
}

/// Returns the possible names of the module behind a soft dependency: `crypto-crc32c` is `crc32c_generic`
/// and, on a CPU with the instruction, `crc32c_intel`; `blake2b-256` is `blake2b_generic`.
fn implementations(name: &str) -> [String; 5] {
    let name = name.strip_prefix("crypto_").unwrap_or(name);
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('_');
    let stem = if stem.len() == name.len() { "" } else { stem };
    let named = |stem: &str, ending| format!("{stem}{ending}");
    [
        named(name, ""),
        named(name, "_generic"),
        named(stem, "_generic"),
        named(name, "_intel"),
        named(name, "_pclmul"),
    ]
}

/// Returns the name of a file system's module, if it differs from that of the file system.
fn file_system_module(name: &str) -> &str {
    match name {
        "ext2" | "ext3" => "ext4",
        "iso9660" => "isofs",
        other => other,
    }
}

/// Returns the name of the module in a file; `None` if the file is not a module.
pub(super) fn module_name(path: &Path) -> Option<String> {
    let (stem, ending) = path.file_name()?.to_str()?.split_once(".ko")?;
    (ending.is_empty() || ENDINGS.contains(&ending)).then(|| canonical(stem))
}

/// Replaces `-` by `_`, as the kernel does: both refer to the same module.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the module's information: lines that each end with a zero byte.
fn info(object: &[u8]) -> Option<&[u8]> {
    section(object, b".modinfo")
}

fn read_text(path: &Path) -> Result<String, ModulesError> {
    regular_file::read_text(path, MAX_LIST)
        .map_err(|error| ModulesError::Read { path: path.to_owned(), source: error.into() })
}

/// Returns a section of a little-endian ELF64 file by its name (ELF-64 Object File Format 1.5, sections 3 and
/// 5).
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

/// Endings that the kernel's build may append to `.ko`.
const ENDINGS: [&str; 3] = [".xz", ".zst", ".gz"];

/// The file in which `depmod` lists each module's dependencies.
const DEPENDENCIES: &str = "modules.dep";

/// The maximum size of such a list, in bytes. Debian's have less than one MiB.
const MAX_LIST: u64 = 8 << 20;

/// The directories of modules that file systems and drivers name as soft dependencies.
const SOFT_DIRECTORIES: [&str; 3] = ["kernel/crypto", "kernel/arch/x86/crypto", "kernel/lib"];

/// How many bytes all loaded modules may decompress to: this many, plus [`MAX_RATIO`] for each compressed
/// byte. xz and zstd compress modules to a third or a fifth.
const MIN_UNPACKED: usize = 16 << 20;
const MAX_RATIO: usize = 7;

/// The maximum size of a decompressed module, in bytes. The largest, graphics drivers with debugging
/// information, have a few hundred MiB.
const MAX_MODULE: usize = 512 << 20;

/// The maximum number of dependencies of one module. The most in a kernel are some thirty.
const MAX_NEEDED: usize = 1024;

/// The maximum length of a chain of dependencies; a kernel's longest has about ten.
const MAX_DEPTH: usize = 64;

const E_SHOFF: usize = 0x28;
const E_SHNUM: usize = 0x3c;
const E_SHSTRNDX: usize = 0x3e;
const SECTION_HEADER: usize = 64;
const SH_NAME: usize = 0;
const SH_OFFSET: usize = 0x18;
const SH_SIZE: usize = 0x20;

#[cfg(test)]
mod tests;
