//! The initramfs that loads the modules which a stock kernel needs for its machine's devices, and then starts
//! the system on the device that `root=` names, or the one that is around it. It goes after the user's own
//! archives and replaces nothing in them: all of it is under `/coracle`, but for an `/init` where the user
//! has brought no initrd at all. Of file systems it has the modules of all that the root may be; the loader
//! loads those of the one that it is.
//!
//! The program in it is Coracle's agent (`agent/src/roles/loader`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use coracle_agent::root_device::RootDevice;
use coracle_arch::x86_64::initrd::InitrdFile;

use super::built_in::missing_of;
use super::{Archive, ArchiveError, Module, ModuleTree, ModulesError};
use crate::guest_data::{self, AgentProgramError, agent_program};
use crate::rootfs::{self, RootKind, RootStart};

/// What the archive is to be made of.
#[derive(Debug, Clone, Copy)]
pub struct LoaderRequest<'a> {
    /// The kernel image.
    pub kernel: &'a Path,
    /// Its release, if it says so.
    pub release: Option<&'a str>,
    /// Where its modules are, if the user has said so.
    pub folder: Option<&'a Path>,
    /// The modules that the devices need.
    pub modules: &'a [&'a str],
    /// The file systems that the root which the loader mounts may have.
    pub file_systems: &'a [&'a str],
    /// Whether the user has an initrd.
    pub has_initrd: bool,
    /// The program, if the user has said so.
    pub program: Option<&'a Path>,
    /// Whether the program is wanted without modules, too: it is the guest's agent.
    pub is_agent: bool,
    /// Where the root is that it starts in any case, modules or not.
    pub root: Option<RootStart>,
    /// The block device that `root=` names, where that is the loader's to mount.
    pub root_device: Option<&'a str>,
}

/// The archive, and what it lacks.
#[derive(Debug, Default)]
pub struct Loader {
    /// The initrd with the modules that a machine's devices need, and the program that loads them; none when
    /// they need none, or the kernel has all of them built in, and the program has nothing else to do.
    pub archive: Option<InitrdFile>,
    /// Why no modules are in it, where that matters only if the kernel does not have them built in.
    pub without_modules: Option<LoaderError>,
}

impl LoaderRequest<'_> {
    /// Whether the program is wanted without modules, too.
    fn needs_program(&self) -> bool {
        let form = self.root_device.and_then(RootDevice::parse);
        self.is_agent || self.root.is_some() || form.is_some_and(|form| form.needs_initramfs())
    }

    /// Looks whether the loader will know what `root=` means.
    fn check_root_device(&self) -> Result<(), LoaderError> {
        match self.root_device {
            Some(root) if RootDevice::parse(root).is_none() => {
                Err(LoaderError::RootForm { root: root.to_owned() })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Why there is no such archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// The kernel's modules are nowhere.
    #[error(
        "the kernel {kernel:?} ({release}) needs the module {module}, unless it has it built in, and there is \
         no {release} in any of {}; --modules names the folder",
        listed(places)
    )]
    NoTree {
        /// The kernel's path.
        kernel: PathBuf,
        /// Its release.
        release: String,
        /// The first module that its devices need.
        module: String,
        /// Folders that were looked at.
        places: Vec<PathBuf>,
    },
    /// The user's folder is not there, or is not a folder.
    #[error(
        "--modules {folder:?}: {found}; it takes the directory of the kernel's modules (lib/modules/RELEASE), one that \
         holds it, or the root of a system"
    )]
    NoFolder {
        /// What the user has named.
        folder: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// The user's folder holds no modules of this kernel.
    #[error(
        "--modules {folder:?}: it holds no modules of the kernel's release, {release}; it takes the directory of that \
         release (lib/modules/{release}), one that holds it, or the root of a system"
    )]
    NotInFolder {
        /// The folder.
        folder: PathBuf,
        /// The kernel's release.
        release: String,
    },
    /// The folder of the release has not everything that it needs.
    #[error(
        "the modules in {tree:?} cannot be used: its file {} is missing, which `make modules_install` writes beside \
         them; copy the whole folder",
        ModuleTree::LIST
    )]
    NoList {
        /// The folder of the release.
        tree: PathBuf,
    },
    /// The kernel does not tell its release.
    #[error(
        "the kernel {kernel:?} does not say its release, so its module {module} cannot be found; give \
         --modules the folder of its release"
    )]
    NoRelease {
        /// The kernel's path.
        kernel: PathBuf,
        /// The first module that its devices need.
        module: String,
    },
    /// The modules are those of another kernel.
    #[error("the modules in {tree:?} are of the release {found}, but the kernel {kernel:?} is {release}")]
    OtherRelease {
        /// The folder of the modules.
        tree: PathBuf,
        /// What they were built for.
        found: String,
        /// The kernel's path.
        kernel: PathBuf,
        /// Its release.
        release: String,
    },
    /// `root=` names its device in a form that is not known.
    #[error("root={root}: this form is not known; write {}", RootDevice::FORMS)]
    RootForm {
        /// The value.
        root: String,
    },
    /// A module cannot be had.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// The program that loads them cannot be had.
    #[error(transparent)]
    Program(#[from] AgentProgramError),
    /// The archive cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Makes the archive. The kernel may do without modules that are nowhere and that nobody has named: ask
/// [`LoaderError::matters`] whether to warn of it.
///
/// # Errors
/// The user has said where the modules are, and they are not available; or `root=` has a form that the loader
/// does not know.
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
    /// Whether the machine of this request may lack something for it: not when its kernel has every module
    /// built in. Reads the kernel to see.
    pub fn matters(&self, request: &LoaderRequest<'_>) -> bool {
        !self.is_nowhere() || !missing_of(request.kernel, request.modules).is_empty()
    }

    /// Whether there are no modules of the kernel at all.
    fn is_nowhere(&self) -> bool {
        matches!(self, LoaderError::NoTree { .. } | LoaderError::NoRelease { .. })
    }

    /// Whether a kernel that has everything built in would do without what is missing.
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

/// Makes the archive; `None` when the kernel has everything built in, no agent is wanted, and there is no
/// root to start.
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

/// The modules that an archive has, each after those that it needs.
#[derive(Debug, Default)]
struct Modules {
    /// Loaded in any case.
    for_devices: Vec<Module>,
    /// By the kind of file system that needs them.
    for_roots: Vec<(String, Vec<Module>)>,
}

impl Modules {
    fn are_none(&self) -> bool {
        self.for_devices.is_empty() && self.for_roots.is_empty()
    }
}

/// The list of modules by which the loader finds them; their objects go to `objects`, by path.
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

/// The folder of the kernel's release: in the user's folder, else in the default guest's, else beside the
/// kernel, else in the host's, else the one that the kernel is in (`modules/RELEASE/vmlinuz`).
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
        // A folder of modules may be the release's own and lack its list.
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

/// Says what the user has named, where that is not a folder.
fn check_folder(folder: &Path) -> Result<(), LoaderError> {
    let found = match fs::metadata(folder) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(found) if has_file_system(folder, &found) => {
            "it is a disk image with a file system, which --root or --disk takes".to_owned()
        }
        Ok(_) => "it is not a directory".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(LoaderError::NoFolder { folder: folder.to_owned(), found })
}

fn has_file_system(path: &Path, found: &fs::Metadata) -> bool {
    found.is_file() && matches!(rootfs::kind_of(path), Ok(RootKind::Image))
}

/// The folder of a kernel's modules where nobody has named one, if there is any.
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

/// Where a system at `root` has its modules; the last is where some build systems put them.
fn module_folders(root: &Path) -> [PathBuf; 3] {
    ["lib/modules", "usr/lib/modules", "modules"].map(|folder| root.join(folder))
}

fn listed(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Where the loader finds a list of modules for each kind of file system (`agent/src/modules.rs`).
const FILE_SYSTEMS: &str = "coracle/filesystems";

/// Tells the loader that the initramfs which it is in is the root (`agent/src/roles/loader`).
const ROOT_IS_HERE: &str = "coracle/root-is-here";

#[cfg(test)]
mod tests {
    use super::super::samples::{RELEASE, Tree, object};
    use super::*;

    fn tree(test: &str) -> Tree {
        Tree::new(
            test,
            &[("virtio_mmio.ko", object("virtio,virtio_ring")), ("virtio_ring.ko", object("virtio"))],
        )
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
            error.starts_with("--modules \"") && error.contains("the kernel's release, 6.2.0; it takes"),
            "{error}"
        );
        let file = tree.release_folder().join("modules.builtin");
        for (wrong, words) in [
            (Path::new("/nope"), "\"/nope\": No such file or directory"),
            (&file, "it is not a directory; it takes"),
        ] {
            let error =
                tree_folder(&LoaderRequest { folder: Some(wrong), ..request }).unwrap_err().to_string();
            assert!(error.starts_with("--modules ") && error.contains(words), "{error}");
        }
        let folder = tree.release_folder();
        let error = modules_of(&LoaderRequest { folder: Some(&folder), ..request }).unwrap_err().to_string();
        assert!(
            error.contains("are of the release 6.1.0-test, but the kernel \"/vmlinuz\" is 6.2.0"),
            "{error}"
        );
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
        let request =
            LoaderRequest { modules: &["virtio"], ..request(Path::new("/vmlinuz"), Some(&tree.root)) };
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
        // What the kernel has built in is enough for a device by its name.
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
        // Three folders, the program, the module, the list, the end.
        assert_eq!(names(&text(true)), 7);
        assert!(text(true).contains("/coracle/kernel/drivers/x.ko\n"));
        // Also /init, /dev and the console.
        assert_eq!(names(&text(false)), 10);
        assert!(text(false).contains("coracle/init"));
        // A root on a device is as without an initrd; one that is the initramfs itself keeps its own /init.
        assert_eq!(names(&text_for(false, Some(RootStart::OnDevice))), 10);
        let here = text_for(false, Some(RootStart::Here));
        assert_eq!(names(&here), 10);
        assert!(here.contains("coracle/root-is-here\0") && !here.contains("init\0\0coracle/init"));
    }
}
