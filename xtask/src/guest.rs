//! `cargo xtask guest`: the default guest and the emulated host's system, made of Debian's kernels, the agent
//! and busybox.
//!
//! Each is a folder of the data folder named after kernel release and content,
//! `guest-6.1.0-56-cloud-amd64-0123456789ab`, with a link `guest` to the one in use. A folder appears
//! complete or not at all, and never changes afterwards.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use coracle::initramfs::ModuleTree;
use coracle::{KernelImage, kernel_image};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::initramfs::Initramfs;
use crate::packages::{Package, PackageStore};
use crate::static_build;
use crate::workspace::Workspace;

/// Makes both systems where they are not current; with `update`, of the newest packages.
///
/// # Errors
/// The agent does not build, or a package is neither there nor to be had, or is not as expected.
pub(crate) fn make(workspace: &Workspace, update: bool) -> Result<()> {
    let agent = static_build::agent(workspace)?;
    let agent = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let data = &workspace.data;
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    let lock =
        File::create(data.join("lock")).with_context(|| format!("cannot write to {}", data.display()))?;
    lock.lock().context("cannot lock the data folder")?;
    let store = PackageStore::open(data)?;
    for role in ROLES {
        role.make(data, &store, &agent, update)
            .with_context(|| format!("cannot make the {}", role.purpose))?;
    }
    Ok(())
}

/// A system that the agent is PID 1 of.
struct Role {
    /// The role's name in its initramfs and in the data folder.
    name: &'static str,
    purpose: &'static str,
    kernel_package: &'static str,
    /// Modules to load, besides those that they need.
    modules: &'static [&'static str],
    has_busybox: bool,
    /// Whether the agent and the kernel's modules are kept as files too: the agent loads modules for users' kernels.
    has_loader: bool,
}

const ROLES: [Role; 2] = [
    Role {
        name: "guest",
        purpose: "default guest",
        kernel_package: "linux-image-cloud-amd64",
        // Besides the bus of its devices: what tells the agent of the power button, and the host of a panic.
        modules: &["virtio_mmio", "button", "evdev", "pvpanic-mmio"],
        has_busybox: true,
        has_loader: true,
    },
    // The cloud kernel has no 9p, by which the emulated host shares the caller's files.
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

/// What a folder was made of, for people and bug reports.
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
    /// The initramfs is always made anew, which takes a fraction of a second: whether a folder is current is
    /// then a matter of its name.
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

        let mut content = Sha256::new();
        content.update(LAYOUT);
        content.update(&vmlinuz);
        content.update(&initramfs);
        let key = hex(&content.finalize());
        let name = format!("{}-{}-{}", self.name, kernel.release, &key[..KEY_DIGITS]);
        let folder = data.join(&name);
        let is_new = !folder.is_dir();
        if is_new {
            let manifest = Manifest {
                role: self.name,
                release: &kernel.release,
                kernel: &package.id,
                busybox: busybox.as_ref().map(|package| package.id.as_str()),
                modules: &module_paths,
                agent_sha256: hex(&Sha256::digest(agent)),
                vmlinuz_sha256: hex(&Sha256::digest(&vmlinuz)),
                initramfs_sha256: hex(&Sha256::digest(&initramfs)),
            };
            let modules = Path::new("../../packages").join(&package.id).join(&kernel.place);
            let loader = self.has_loader.then_some(Loader { agent, modules, release: &kernel.release });
            self.write(&folder, &vmlinuz, &initramfs, loader.as_ref(), &manifest)?;
        }
        self.use_folder(data, &name)?;
        println!("{}: {} ({})", self.purpose, folder.display(), if is_new { "new" } else { "current" });
        Ok(())
    }

    fn write(
        &self,
        folder: &Path,
        vmlinuz: &[u8],
        initramfs: &[u8],
        loader: Option<&Loader<'_>>,
        manifest: &Manifest<'_>,
    ) -> Result<()> {
        let scratch = folder.with_file_name(format!(".{}.new", self.name));
        if scratch.exists() {
            fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        }
        fs::create_dir(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        write(&scratch.join("vmlinuz"), vmlinuz)?;
        let image = KernelImage::from_bytes(&folder.join("vmlinuz"), vmlinuz.to_vec())?;
        write(&scratch.join("vmlinux"), &kernel_image::unpack(&image)?)?;
        write(&scratch.join("initramfs.cpio"), initramfs)?;
        if let Some(loader) = loader {
            loader.write(&scratch)?;
        }
        write(
            &scratch.join("manifest.json"),
            format!("{}\n", serde_json::to_string_pretty(manifest)?).as_bytes(),
        )?;
        fs::rename(&scratch, folder).with_context(|| format!("cannot make {}", folder.display()))
    }

    /// Points the role's link to the folder `name` and removes the folders that it replaces.
    fn use_folder(&self, data: &Path, name: &str) -> Result<()> {
        let link = data.join(self.name);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
            return Ok(());
        }
        let new_link = data.join(format!(".{}.link", self.name));
        let _ = fs::remove_file(&new_link);
        symlink(name, &new_link).with_context(|| format!("cannot make {}", new_link.display()))?;
        fs::rename(&new_link, &link).with_context(|| format!("cannot replace {}", link.display()))?;
        for entry in fs::read_dir(data)? {
            let entry = entry?;
            let is_ours = entry
                .file_name()
                .to_str()
                .is_some_and(|entry| entry != name && is_folder_name(self.name, entry));
            if is_ours {
                fs::remove_dir_all(entry.path())
                    .with_context(|| format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(())
    }
}

/// What loads the modules of a user's own kernel of the same release.
struct Loader<'a> {
    agent: &'a [u8],
    /// The modules, as seen from the folder that they are linked in.
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
    /// The folder of its modules.
    modules: PathBuf,
    /// The same, seen from the package.
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

fn find_busybox(tree: &Path) -> Result<Vec<u8>> {
    let places = ["bin/busybox", "usr/bin/busybox"].map(|place| tree.join(place));
    let place = places.iter().find(|place| place.is_file()).context("the package has no busybox")?;
    read(place)
}

/// True for `ROLE-RELEASE-KEY`.
fn is_folder_name(role: &str, name: &str) -> bool {
    let rest = name.strip_prefix(role).and_then(|rest| rest.strip_prefix('-'));
    rest.and_then(|rest| rest.rsplit_once('-')).is_some_and(|(release, key)| {
        let is_key =
            key.len() == KEY_DIGITS && key.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        is_key && release.starts_with(|first: char| first.is_ascii_digit())
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, data: &[u8]) -> Result<()> {
    fs::write(path, data).with_context(|| format!("cannot write {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts the changes of what a folder holds, so that one of an older kind is not taken for current.
const LAYOUT: &[u8] = &[2];

/// 48 bits: enough to tell the few versions on one machine apart.
const KEY_DIGITS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_our_naming_are_ours() {
        assert!(is_folder_name("guest", "guest-6.1.0-56-cloud-amd64-0123456789ab"));
        for other in [
            "guest",
            "guest-0123456789ab",
            "guest-mine-0123456789ab",
            "guest-6.1-0123456789AB",
            "guest-6.1-0123",
            "host-6.1-0123456789ab",
        ] {
            assert!(!is_folder_name("guest", other), "{other}");
        }
    }

    #[test]
    fn new_folder_replaces_those_of_our_naming_only() {
        let data = std::env::temp_dir().join(format!("coracle-guest-{}", std::process::id()));
        let [old, new, of_host, foreign] =
            ["guest-6.1-0123456789ab", "guest-6.2-ba9876543210", "host-6.1-0123456789ab", "guest-mine"];
        for folder in [old, new, of_host, foreign] {
            fs::create_dir_all(data.join(folder)).unwrap();
        }
        let [guest, _host] = &ROLES;
        guest.use_folder(&data, old).unwrap();
        fs::create_dir_all(data.join(new)).unwrap();
        guest.use_folder(&data, new).unwrap();

        let there = [old, new, of_host, foreign].map(|folder| data.join(folder).exists());
        let link = fs::read_link(data.join("guest")).unwrap();
        fs::remove_dir_all(&data).unwrap();
        assert_eq!(there, [false, true, true, true]);
        assert_eq!(link, Path::new(new));
    }
}
