//! The initramfs that loads the modules which a stock kernel needs for its machine's devices, and then starts
//! the system on the device that `root=` names, or the one in the initramfs itself. It comes after the user's
//! own archives and replaces nothing in them: everything in it is below `/coracle`, except an `/init` if the
//! user has no initrd. It has the modules of every file system that the root may have; the loader loads those
//! of the one that it finds.
//!
//! The program in it is Coracle's agent (`agent/src/roles/loader`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use coracle_agent::root_device::RootDevice;
use coracle_arch::field::{DISKS, MODULES, ROOT};
use coracle_arch::x86_64::image::KernelImage;
use coracle_arch::x86_64::initrd::InitrdFile;

use super::built_in::missing_of;
use super::{Archive, ArchiveError, Module, ModuleTree, ModulesError};
use crate::guest_data::{self, AgentProgramError, agent_program};
use crate::rootfs::{self, RootKind, RootStart};

/// The ingredients of the archive.
#[derive(Debug, Clone, Copy)]
pub struct LoaderRequest<'a> {
    /// The kernel image.
    pub kernel: &'a Path,
    /// The kernel's release, if the kernel names it.
    pub release: Option<&'a str>,
    /// The directory of the kernel's modules, if the user has named one.
    pub folder: Option<&'a Path>,
    /// The modules that the devices need.
    pub modules: &'a [&'a str],
    /// The file systems that the root may have, if the loader mounts it.
    pub file_systems: &'a [&'a str],
    /// Whether the user has an initrd.
    pub has_initrd: bool,
    /// The path of the program, if the user has named one.
    pub program: Option<&'a Path>,
    /// Whether the program is needed even without modules, because it is the guest's agent.
    pub is_agent: bool,
    /// The place of the root that the program starts, with or without modules.
    pub root: Option<RootStart>,
    /// The block device that `root=` names, if the loader mounts it.
    pub root_device: Option<&'a str>,
}

/// The archive, and what is missing from it.
#[derive(Debug, Default)]
pub struct Loader {
    /// The initrd with the modules for a machine's devices and the program that loads them. `None` if no
    /// modules are needed, or all are built into the kernel, and the program has nothing else to do.
    pub archive: Option<InitrdFile>,
    /// Why the archive has no modules. This matters only if the kernel does not have them built in.
    pub without_modules: Option<LoaderError>,
}

impl LoaderRequest<'_> {
    /// Returns whether the program is needed even without modules.
    fn needs_program(&self) -> bool {
        let form = self.root_device.and_then(RootDevice::parse);
        self.is_agent || self.root.is_some() || form.is_some_and(|form| form.needs_initramfs())
    }

    /// Checks that the loader understands the value of `root=`.
    fn check_root_device(&self) -> Result<(), LoaderError> {
        match self.root_device {
            Some(root) if RootDevice::parse(root).is_none() => {
                Err(LoaderError::RootForm { root: root.to_owned() })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Why the archive cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// The kernel's modules cannot be found.
    #[error(
        "the kernel {kernel:?} ({release}) needs the module {module}, unless that is built in, and there is \
         no {release} in any of {}; {MODULES} names the directory",
        listed(places)
    )]
    NoTree {
        /// The path of the kernel.
        kernel: PathBuf,
        /// The release of the kernel.
        release: String,
        /// The first module that its devices need.
        module: String,
        /// The directories that were searched.
        places: Vec<PathBuf>,
    },
    /// The user's directory does not exist or is not a directory.
    #[error(
        "{MODULES} {folder:?}: {found}; it takes the directory of the kernel's modules (lib/modules/RELEASE), one that \
         holds it, or the root of a system"
    )]
    NoFolder {
        /// The path that the user has named.
        folder: PathBuf,
        /// The defect that was found.
        found: String,
    },
    /// The user's directory has no modules of this kernel.
    #[error(
        "{MODULES} {folder:?}: it holds no modules of the kernel's release, {release}; it takes the directory of that \
         release (lib/modules/{release}), one that holds it, or the root of a system"
    )]
    NotInFolder {
        /// The directory.
        folder: PathBuf,
        /// The release of the kernel.
        release: String,
    },
    /// The directory of the release is incomplete.
    #[error(
        "the modules in {tree:?} cannot be used: its file {} is missing, which `make modules_install` writes beside \
         them; copy the whole directory",
        ModuleTree::LIST
    )]
    NoList {
        /// The directory of the release.
        tree: PathBuf,
    },
    /// The kernel does not name its release.
    #[error(
        "the kernel {kernel:?} does not name its release, so its module {module} cannot be found; give \
         {MODULES} the directory of its release"
    )]
    NoRelease {
        /// The path of the kernel.
        kernel: PathBuf,
        /// The first module that its devices need.
        module: String,
    },
    /// The modules belong to another kernel.
    #[error("the modules in {tree:?} are of the release {found}, but the kernel {kernel:?} is {release}")]
    OtherRelease {
        /// The directory of the modules.
        tree: PathBuf,
        /// The release for which they were built.
        found: String,
        /// The path of the kernel.
        kernel: PathBuf,
        /// The release of the kernel.
        release: String,
    },
    /// `root=` names its device in an unknown form.
    #[error("root={root}: this form is not known; write {}", RootDevice::FORMS)]
    RootForm {
        /// The value of `root=`.
        root: String,
    },
    /// A module cannot be found or read.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// The program that loads the modules is not available.
    #[error(transparent)]
    Program(#[from] AgentProgramError),
    /// The archive cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Builds the archive. Modules that cannot be found, and that the user has not named, are not an error,
/// because the kernel may have them built in; [`LoaderError::matters`] tells whether to warn about them.
///
/// # Errors
/// The user has named a directory of modules that cannot be used, or `root=` has a form that the loader does
/// not know.
pub fn initrd(request: &LoaderRequest<'_>) -> Result<Loader, LoaderError> {
    if request.modules.is_empty() && !request.needs_program() {
        return Ok(Loader::default());
    }
    let (made, without_modules) = match archive(request, modules_of(request)) {
        Err(error) if request.folder.is_none() && (!request.needs_program() || error.is_about_modules()) => {
            (archive(request, Ok(Modules::default()))?, Some(error))
        }
        made => (made?, None),
    };
    let archive = made.and_then(|bytes| InitrdFile::from_bytes("module loader".as_ref(), bytes).ok());
    Ok(Loader { archive, without_modules })
}

impl LoaderError {
    /// Returns whether a machine that needs `modules` may lack something because of this error: not if its
    /// kernel has all of them built in. Reads the kernel to find out.
    pub fn matters(&self, kernel: &KernelImage, modules: &[&str]) -> bool {
        !self.is_nowhere() || !missing_of(kernel.file(), modules).is_empty()
    }

    /// Returns whether there are no modules of the kernel at all.
    fn is_nowhere(&self) -> bool {
        matches!(self, LoaderError::NoTree { .. } | LoaderError::NoRelease { .. })
    }

    /// Returns whether a kernel with everything built in could do without what is missing.
    fn is_about_modules(&self) -> bool {
        match self {
            LoaderError::NoTree { .. }
            | LoaderError::NoFolder { .. }
            | LoaderError::NotInFolder { .. }
            | LoaderError::NoList { .. }
            | LoaderError::NoRelease { .. }
            | LoaderError::OtherRelease { .. }
            | LoaderError::Modules(_) => true,
            LoaderError::RootForm { .. } | LoaderError::Program(_) | LoaderError::Archive(_) => false,
        }
    }
}

/// Builds the archive; `None` if the kernel has everything built in, no agent is needed, and there is no root
/// to start.
///
/// # Errors
/// A module or the program that loads it cannot be found or read.
fn archive(
    request: &LoaderRequest<'_>,
    modules: Result<Modules, LoaderError>,
) -> Result<Option<Vec<u8>>, LoaderError> {
    let modules = modules?;
    if modules.are_none() && !request.needs_program() {
        return Ok(None);
    }
    request.check_root_device()?;
    Ok(Some(packed(agent_program(request.program)?, modules, request)?))
}

fn packed(program: Vec<u8>, modules: Modules, request: &LoaderRequest<'_>) -> Result<Vec<u8>, ArchiveError> {
    let mut archive = Archive::default();
    archive.file("coracle/init", 0o755, program);
    if !request.has_initrd {
        archive.character_device("dev/console", 0o600, 5, 1);
    }
    match request.root {
        None if request.has_initrd => {}
        None | Some(RootStart::OnDevice) => archive.symlink("init", "coracle/init"),
        Some(RootStart::Here) => archive.file(ROOT_IS_HERE, 0o644, Vec::new()),
    }
    let mut objects = BTreeMap::new();
    let for_devices = load_order(modules.for_devices, &mut objects);
    archive.file("coracle/modules", 0o644, for_devices);
    for (name, modules) in modules.for_roots {
        let list = load_order(modules, &mut objects);
        archive.file(format!("{FILE_SYSTEMS}/{name}"), 0o644, list);
    }
    for (path, object) in objects {
        archive.file(&path, 0o644, object);
    }
    archive.finish()
}

/// The modules in an archive, each after those that it needs.
#[derive(Debug, Default)]
struct Modules {
    /// The modules that are always loaded.
    for_devices: Vec<Module>,
    /// The modules of each type of file system.
    for_roots: Vec<(String, Vec<Module>)>,
}

impl Modules {
    fn are_none(&self) -> bool {
        self.for_devices.is_empty() && self.for_roots.is_empty()
    }
}

/// Returns the list by which the loader finds modules; their objects are added to `objects`, by path.
fn load_order(modules: Vec<Module>, objects: &mut BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut list = String::new();
    for module in modules {
        let path = format!("/coracle/{}", module.path);
        list.push_str(&path);
        list.push('\n');
        objects.insert(path, module.object);
    }
    list.into_bytes()
}

fn modules_of(request: &LoaderRequest<'_>) -> Result<Modules, LoaderError> {
    let &LoaderRequest { kernel, release, modules, .. } = request;
    if modules.is_empty() {
        return Ok(Modules::default());
    }
    let folder = tree_folder(request)?;
    let mut tree = ModuleTree::open(&folder)?;
    let for_devices = tree.closure(modules)?;
    let mut for_roots = Vec::new();
    for name in request.file_systems {
        let modules = tree.file_system(name)?;
        if !modules.is_empty() {
            for_roots.push(((*name).to_owned(), modules));
        }
    }
    let all = || for_devices.iter().chain(for_roots.iter().flat_map(|(_, modules)| modules));
    let found = all().find_map(Module::release).map(str::to_owned);
    match found.zip(release) {
        Some((found, release)) if found != release => Err(LoaderError::OtherRelease {
            tree: folder,
            found,
            kernel: kernel.to_owned(),
            release: release.to_owned(),
        }),
        Some(_) | None => Ok(Modules { for_devices, for_roots }),
    }
}

/// Returns the directory of the kernel's release: the first that exists in the user's directory, the default
/// guest's, next to the kernel, in the host's, or the one that contains the kernel
/// (`modules/RELEASE/vmlinuz`).
fn tree_folder(request: &LoaderRequest<'_>) -> Result<PathBuf, LoaderError> {
    let &LoaderRequest { kernel, release, folder, modules, .. } = request;
    if let Some(folder) = folder.filter(|folder| ModuleTree::is_at(folder)) {
        return Ok(folder.to_owned());
    }
    folder.map_or(Ok(()), check_folder)?;
    let module = modules.first().copied().unwrap_or_default().to_owned();
    let places = match folder {
        Some(folder) => std::iter::once(folder.to_owned()).chain(module_folders(folder)).collect(),
        None => places_to_look(kernel),
    };
    let Some(release) = release else {
        // The directory may be that of the release, but lack its list.
        return Err(match folder.filter(|folder| folder.join("kernel").is_dir()) {
            Some(folder) => LoaderError::NoList { tree: folder.to_owned() },
            None => LoaderError::NoRelease { kernel: kernel.to_owned(), module },
        });
    };
    let own = folder.map_or_else(|| kernel.parent(), Some).filter(|own| own.ends_with(release));
    let trees = || places.iter().map(|place| place.join(release)).chain(own.map(Path::to_owned));
    if let Some(found) = trees().find(|tree| ModuleTree::is_at(tree)) {
        return Ok(found);
    }
    let release = release.to_owned();
    Err(match (trees().find(|tree| tree.is_dir()), folder) {
        (Some(tree), _) => LoaderError::NoList { tree },
        (None, Some(folder)) => LoaderError::NotInFolder { folder: folder.to_owned(), release },
        (None, None) => LoaderError::NoTree { kernel: kernel.to_owned(), release, module, places },
    })
}

/// Checks that the user has named a directory.
///
/// # Errors
/// It does not exist, or is not a directory.
pub fn check_folder(folder: &Path) -> Result<(), LoaderError> {
    let found = match fs::metadata(folder) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(found) if has_file_system(folder, &found) => {
            format!("it is a disk image with a file system, which {ROOT} or {DISKS} takes")
        }
        Ok(_) => "it is not a directory".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(LoaderError::NoFolder { folder: folder.to_owned(), found })
}

fn has_file_system(path: &Path, found: &fs::Metadata) -> bool {
    found.is_file() && matches!(rootfs::kind_of(path), Ok(RootKind::Image))
}

/// Returns the directory of a kernel's modules if the user has named none; `None` if there is none.
pub fn modules_folder(kernel: &Path, release: Option<&str>) -> Option<PathBuf> {
    let request = LoaderRequest {
        kernel,
        release,
        folder: None,
        modules: &[],
        file_systems: &[],
        has_initrd: false,
        program: None,
        is_agent: false,
        root: None,
        root_device: None,
    };
    tree_folder(&request).ok()
}

fn places_to_look(kernel: &Path) -> Vec<PathBuf> {
    let mut places = guest_data::module_folders();
    // In an unpacked package the kernel is in `boot`, next to `lib`.
    for beside in kernel.ancestors().skip(1).take(2) {
        places.extend(module_folders(beside));
    }
    places.extend(module_folders(Path::new("/")));
    places
}

/// Returns the directories in which a system at `root` may have its modules; the last is that of some build
/// systems.
fn module_folders(root: &Path) -> [PathBuf; 3] {
    ["lib/modules", "usr/lib/modules", "modules"].map(|folder| root.join(folder))
}

fn listed(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The path of the lists of modules for each type of file system, relative to the initramfs
/// (`agent/src/modules.rs`).
const FILE_SYSTEMS: &str = "coracle/filesystems";

/// The file that tells the loader that its own initramfs is the root (`agent/src/roles/loader`).
const ROOT_IS_HERE: &str = "coracle/root-is-here";

#[cfg(test)]
mod tests;
