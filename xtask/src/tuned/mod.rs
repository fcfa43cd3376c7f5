//! `cargo xtask guest --tuned`: a Linux kernel with a configuration of our own, built from Debian's kernel
//! source.
//!
//! It is the asset directory `tuned` (see [`crate::assets`]) with `vmlinux`, `vmlinuz`, `config` and
//! `manifest.json`, and a `lib/modules` that declares every module built in. Its key is derived from
//! everything that affects the result, so that a kernel is built once and then found.

mod build;
mod config;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::build::{Built, Compiler, SourceTree};
use self::config::Fragment;
use crate::assets::{self, AssetFolder, read, sha256, write};
use crate::packages::{Package, PackageStore};
use crate::setup;
use crate::workspace::Workspace;

/// Builds the kernel if it is missing; with `update`, from the newest source package.
///
/// # Errors
/// The source or a program of the build is missing, the configuration contradicts itself, or the kernel does
/// not build.
pub(crate) fn make(workspace: &Workspace, update: bool) -> Result<()> {
    setup::make_ready_for_kernel()?;
    let fragment = Fragment::parse(&read_text(&workspace.root.join(FRAGMENT))?).context(FRAGMENT)?;
    let data = &workspace.data;
    let _lock = assets::lock(data)?;
    let package = PackageStore::open(data)?.package(SOURCE_PACKAGE, update)?;
    let compiler = Compiler::find()?;
    let key = key(&package.id, &fragment, &compiler);
    if let Some(folder) = AssetFolder::with_key(data, ROLE, &key)? {
        folder.put_in_use()?;
        println!("tuned kernel: {} (current)", folder.path().display());
        return Ok(());
    }
    println!("building the tuned kernel of {} with {compiler}; this takes minutes", package.id);
    let built = build(data, &package, &fragment).context("cannot build the tuned kernel")?;
    let folder = AssetFolder::new(data, ROLE, &built.release, &key);
    folder.make(|scratch| write_all(scratch, &built, &package, &compiler))?;
    folder.put_in_use()?;
    println!("tuned kernel: {} (new)", folder.path().display());
    Ok(())
}

fn key(package: &str, fragment: &Fragment, compiler: &Compiler) -> String {
    let settings = fragment.settings();
    assets::key(&[package.as_bytes(), settings.as_bytes(), compiler.to_string().as_bytes(), &[build::RECIPE]])
}

fn build(data: &Path, package: &Package, fragment: &Fragment) -> Result<Built> {
    let tree = SourceTree::unpack(&archive(&package.tree)?, &data.join(".tuned.build"))?;
    let config = tree.configure(fragment)?;
    let overruled = fragment.overruled(&config);
    if !overruled.is_empty() {
        bail!("the kernel's own rules overrule lines of {FRAGMENT}:\n{}", overruled.join("\n"));
    }
    tree.build(config)
}

/// Returns the only archive that the source package installs.
fn archive(package: &Path) -> Result<std::path::PathBuf> {
    let folder = package.join("usr/src");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_archive = |path: &std::path::PathBuf| path.to_string_lossy().ends_with(".tar.xz");
    paths.find(is_archive).with_context(|| format!("{} holds no kernel source", folder.display()))
}

fn write_all(folder: &Path, built: &Built, package: &Package, compiler: &Compiler) -> Result<()> {
    let Built { release, config, vmlinux, vmlinuz, built_in } = built;
    let manifest = Manifest {
        role: ROLE,
        release,
        source: &package.id,
        compiler: compiler.to_string(),
        config_sha256: sha256(config.as_bytes()),
        vmlinux_sha256: sha256(vmlinux),
        vmlinuz_sha256: sha256(vmlinuz),
    };
    write(&folder.join("vmlinux"), vmlinux)?;
    write(&folder.join("vmlinuz"), vmlinuz)?;
    write(&folder.join("config"), config.as_bytes())?;
    // The place in which modules are looked for beside a kernel. An empty list means that no module is
    // needed, which differs from finding no list.
    let modules = folder.join("lib/modules").join(release);
    fs::create_dir_all(modules.join("kernel"))
        .with_context(|| format!("cannot make {}", modules.display()))?;
    write(&modules.join("modules.builtin"), built_in.as_bytes())?;
    let manifest = serde_json::to_string_pretty(&manifest)?;
    write(&folder.join("manifest.json"), format!("{manifest}\n").as_bytes())
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The ingredients of the directory, for people and bug reports.
#[derive(Serialize)]
struct Manifest<'a> {
    role: &'a str,
    release: &'a str,
    source: &'a str,
    compiler: String,
    config_sha256: String,
    vmlinux_sha256: String,
    vmlinuz_sha256: String,
}

const ROLE: &str = "tuned";

/// The long-term kernel from which the default guest's stock kernel is built too, so that the two can be
/// compared.
const SOURCE_PACKAGE: &str = "linux-source-6.1";

const FRAGMENT: &str = "resources/kernel/guest-x86_64.config";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_source_settings_and_compiler_and_not_on_comments() {
        let fragment = |text| Fragment::parse(text).unwrap();
        let compiler = |line: &str| Compiler::named(line);
        let first = key("linux-source-6.1_6.1.1-1", &fragment("CONFIG_A=y\n"), &compiler("gcc 12"));
        let same = key("linux-source-6.1_6.1.1-1", &fragment("# Why.\n\nCONFIG_A=y\n"), &compiler("gcc 12"));
        assert_eq!(first, same);
        for other in [
            key("linux-source-6.1_6.1.1-2", &fragment("CONFIG_A=y\n"), &compiler("gcc 12")),
            key("linux-source-6.1_6.1.1-1", &fragment("CONFIG_A=y\nCONFIG_B=y\n"), &compiler("gcc 12")),
            key("linux-source-6.1_6.1.1-1", &fragment("CONFIG_A=y\n"), &compiler("gcc 13")),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn fragment_in_the_repository_is_valid() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let fragment = Fragment::parse(&read_text(&root.join(FRAGMENT)).unwrap()).unwrap();
        assert!(fragment.settings().contains("CONFIG_VIRTIO_MMIO=y\n"));
    }
}
