//! `cargo xtask guest`: the default guest and the emulated host's system, made from Debian's kernels, the
//! agent and busybox.
//!
//! Each is an asset directory (see [`crate::assets`]).

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use coracle::KernelImage;
use coracle_image::initramfs::ModuleTree;
use coracle_image::kernel_image;
use serde::Serialize;

use crate::assets::{self, AssetFolder, read, sha256, write};
use crate::initramfs::Initramfs;
use crate::packages::{Package, PackageStore};
use crate::static_build;
use crate::workspace::Workspace;

/// Creates both systems if they are not current; with `update`, from the newest packages.
///
/// # Errors
/// The agent does not build, or a package cannot be downloaded or has unexpected content.
pub(crate) fn make(workspace: &Workspace, update: bool) -> Result<()> {
    let agent = static_build::agent(workspace)?;
    let agent = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let data = &workspace.data;
    let _lock = assets::lock(data)?;
    let store = PackageStore::open(data)?;
    for role in ROLES {
        role.make(data, &store, &agent, update)
            .with_context(|| format!("cannot make the {}", role.purpose))?;
    }
    Ok(())
}

/// A system in which the agent is PID 1.
struct Role {
    /// The role's name in its initramfs and in the data directory.
    name: &'static str,
    purpose: &'static str,
    kernel_package: &'static str,
    /// The modules to load, besides those that they depend on.
    modules: &'static [&'static str],
    has_busybox: bool,
    /// Whether the agent and the kernel's modules are also kept as files: the agent is the module loader for
    /// users' kernels.
    has_loader: bool,
}

const ROLES: [Role; 2] = [
    Role {
        name: "guest",
        purpose: "default guest",
        kernel_package: "linux-image-cloud-amd64",
        // Besides the bus of its devices: the modules that report the power button to the agent, and a panic
        // to the host.
        modules: &["virtio_mmio", "button", "evdev", "pvpanic-mmio"],
        has_busybox: true,
        has_loader: true,
    },
    // The cloud kernel lacks 9p, by which the emulated host shares the caller's files.
    Role {
        name: "host",
        purpose: "emulated host",
        kernel_package: "linux-image-amd64",
        modules: &[
            "irqbypass",
            "ccp",
            "kvm",
            "kvm-amd",
            "virtio_ring",
            "virtio",
            "virtio_pci",
            "virtio_console",
            "netfs",
            "fscache",
            "9pnet",
            "9pnet_virtio",
            "9p",
            "tun",
            "loop",
            "llc",
            "stp",
            "bridge",
            "veth",
            "dummy",
        ],
        has_busybox: false,
        has_loader: false,
    },
];

/// The ingredients of a directory, for people and bug reports.
#[derive(Serialize)]
struct Manifest<'a> {
    role: &'a str,
    release: &'a str,
    kernel: &'a str,
    busybox: Option<&'a str>,
    modules: &'a [String],
    agent_sha256: String,
    vmlinuz_sha256: String,
    initramfs_sha256: String,
}

impl Role {
    /// The initramfs is always built, which takes a fraction of a second: the directory's name then tells
    /// whether it is current.
    fn make(&self, data: &Path, store: &PackageStore, agent: &[u8], update: bool) -> Result<()> {
        let package = store.package(self.kernel_package, update)?;
        let kernel = Kernel::find(&package)?;
        let busybox = self.has_busybox.then(|| store.package("busybox-static", update)).transpose()?;
        let vmlinuz = read(&package.tree.join("boot").join(format!("vmlinuz-{}", kernel.release)))?;
        let modules = ModuleTree::open(&kernel.modules)?.closure(self.modules)?;
        let module_paths: Vec<_> = modules.iter().map(|module| module.path.clone()).collect();
        let initramfs = Initramfs {
            role: self.name,
            release: &kernel.release,
            agent: agent.to_vec(),
            busybox: busybox.as_ref().map(|package| find_busybox(&package.tree)).transpose()?,
            modules,
        };
        let initramfs = initramfs.build()?;

        let key = assets::key(&[LAYOUT, &vmlinuz, &initramfs]);
        let folder = AssetFolder::new(data, self.name, &kernel.release, &key);
        let is_new = !folder.exists();
        if is_new {
            let manifest = Manifest {
                role: self.name,
                release: &kernel.release,
                kernel: &package.id,
                busybox: busybox.as_ref().map(|package| package.id.as_str()),
                modules: &module_paths,
                agent_sha256: sha256(agent),
                vmlinuz_sha256: sha256(&vmlinuz),
                initramfs_sha256: sha256(&initramfs),
            };
            let modules = Path::new("../../packages").join(&package.id).join(&kernel.place);
            let loader = self.has_loader.then_some(Loader { agent, modules, release: &kernel.release });
            folder.make(|scratch| write_all(scratch, &vmlinuz, &initramfs, loader.as_ref(), &manifest))?;
        }
        folder.put_in_use()?;
        println!(
            "{}: {} ({})",
            self.purpose,
            folder.path().display(),
            if is_new { "new" } else { "current" }
        );
        Ok(())
    }
}

fn write_all(
    folder: &Path,
    vmlinuz: &[u8],
    initramfs: &[u8],
    loader: Option<&Loader<'_>>,
    manifest: &Manifest<'_>,
) -> Result<()> {
    let vmlinuz_path = folder.join("vmlinuz");
    write(&vmlinuz_path, vmlinuz)?;
    let image = KernelImage::from_bytes(&vmlinuz_path, vmlinuz.to_vec())?;
    let mut vmlinux = Vec::new();
    kernel_image::unpack(&image)?.read_to_end(&mut vmlinux)?;
    write(&folder.join("vmlinux"), &vmlinux)?;
    write(&folder.join("initramfs.cpio"), initramfs)?;
    if let Some(loader) = loader {
        loader.write(folder)?;
    }
    let manifest = serde_json::to_string_pretty(manifest)?;
    write(&folder.join("manifest.json"), format!("{manifest}\n").as_bytes())
}

/// The loader of the modules for a user's own kernel of the same release.
struct Loader<'a> {
    agent: &'a [u8],
    /// The modules, relative to the directory that links to them.
    modules: PathBuf,
    release: &'a str,
}

impl Loader<'_> {
    fn write(&self, folder: &Path) -> Result<()> {
        write(&folder.join("agent"), self.agent)?;
        let modules = folder.join("modules");
        fs::create_dir(&modules).with_context(|| format!("cannot make {}", modules.display()))?;
        let link = modules.join(self.release);
        symlink(&self.modules, &link).with_context(|| format!("cannot make {}", link.display()))
    }
}

/// A kernel in an unpacked package.
struct Kernel {
    release: String,
    /// The directory of its modules.
    modules: PathBuf,
    /// The same directory, relative to the package.
    place: PathBuf,
}

impl Kernel {
    fn find(package: &Package) -> Result<Self> {
        let Some(folder) =
            ["lib/modules", "usr/lib/modules"].into_iter().find(|folder| package.tree.join(folder).is_dir())
        else {
            bail!("{} has no kernel modules", package.id);
        };
        let mut releases: Vec<_> =
            fs::read_dir(package.tree.join(folder))?.collect::<std::io::Result<_>>()?;
        ensure!(releases.len() == 1, "{} holds {} kernel releases instead of 1", package.id, releases.len());
        let release = releases.remove(0).file_name();
        let release = release.to_str().context("the kernel's release is not UTF-8")?;
        let place = Path::new(folder).join(release);
        Ok(Self { release: release.to_owned(), modules: package.tree.join(&place), place })
    }
}

/// Returns the program from its unpacked package.
///
/// # Errors
/// The package does not contain it.
pub(crate) fn find_busybox(tree: &Path) -> Result<Vec<u8>> {
    let places = ["bin/busybox", "usr/bin/busybox"].map(|place| tree.join(place));
    let place = places.iter().find(|place| place.is_file()).context("the package has no busybox")?;
    read(place)
}

/// Counts the changes to the layout of these directories, so that an old one is not taken for current.
const LAYOUT: &[u8] = &[2];
