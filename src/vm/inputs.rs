//! The parts of a virtual machine in addition to the files that its configuration names ([`Files`]): its
//! root, and the modules that are found for it.

use std::path::PathBuf;

use coracle_arch::field::ROOT;
use coracle_arch::x86_64::image::KernelImage;
use coracle_arch::x86_64::initrd::InitrdFile;
use coracle_devices::journal;
use coracle_image::initramfs::LoaderError;
use coracle_image::initramfs::loader::{self, LoaderRequest};
use coracle_image::rootfs::{self, Root, RootError, RootRequest};

use super::files::Files;
use crate::config::{AgentConfig, AgentPlace, VmConfig, names_file_systems, root_device, root_file_systems};
use crate::diagnosis;
use crate::virtio::Specs;

/// The files that a virtual machine is made from, opened and checked.
pub(super) struct Inputs {
    pub(super) kernel: KernelImage,
    pub(super) initrds: Vec<InitrdFile>,
    pub(super) root: Option<Root>,
}

/// Makes the initrd with the modules that the devices of `specs` and the root need, and with the program that
/// loads them; `None` if nothing needs it. With `is_for_build` false, for a mere check, it logs no warnings.
///
/// # Errors
/// A part of the initrd is not available.
pub(super) fn module_loader(
    config: &VmConfig,
    (kernel, root): (&KernelImage, Option<&Root>),
    specs: &Specs<'_>,
    is_for_build: bool,
) -> Result<Option<InitrdFile>, LoaderError> {
    if !kernel.is_linux() {
        return Ok(None);
    }
    let is_loaders = |agent: &&AgentConfig| agent.place != AgentPlace::DefaultGuest || config.has_root();
    let agent = config.agent.as_ref().filter(is_loaders);
    let has_initrd = config.has_default_initramfs() || !config.initrds.is_empty();
    let mounts_root = mounts_root(config, has_initrd);
    let modules = modules(config, root, specs);
    let file_systems = if mounts_root { root_file_systems(&config.cmdline) } else { Vec::new() };
    let loader = loader::initrd(&LoaderRequest {
        kernel: kernel.path(),
        release: kernel.release(),
        folder: config.modules.as_deref(),
        modules: &modules,
        file_systems: &file_systems,
        has_initrd,
        program: agent.and_then(|agent| agent.program.as_deref()),
        is_agent: agent.is_some(),
        root: root.map(Root::start),
        root_device: root_device(&config.cmdline)
            .filter(|_| mounts_root && !names_file_systems(&config.cmdline)),
    })?;
    if let Some(why) = loader.without_modules.filter(|why| is_for_build && why.matters(kernel, &modules)) {
        journal!(Host Warn, "{why}");
    }
    Ok(loader.archive)
}

/// Checks that the root of a configuration is available, without creating anything.
///
/// # Errors
/// The root is missing or of the wrong kind. Its content is not read.
pub(super) fn check_root(config: &VmConfig) -> Result<(), RootError> {
    root_request(config).map_or(Ok(()), |request| rootfs::check(&request))
}

/// Prepares the root of a configuration. Files of the source that the root leaves out are logged as warnings.
///
/// # Errors
/// The source cannot be read, or there is no room for the image.
pub(super) fn prepare_root(config: &VmConfig) -> Result<Option<Root>, RootError> {
    let Some(request) = root_request(config) else { return Ok(None) };
    let (root, left_out) = rootfs::prepare(&request)?;
    if !left_out.is_nothing() {
        journal!(Host Warn, "{ROOT} {}: {left_out}", request.source.path.display());
    }
    Ok(Some(root))
}

fn root_request(config: &VmConfig) -> Option<RootRequest<'_>> {
    let root = config.root.as_ref()?;
    Some(RootRequest {
        source: root.into(),
        cmdline: &config.cmdline,
        has_initrd: !config.initrds.is_empty(),
        memory: config.memory.bytes(),
    })
}

/// Lists the files that the machine of `config` reads in addition to those that `config` names.
pub(super) fn found_files(config: &VmConfig, files: &Files) -> Vec<PathBuf> {
    let Files { kernel, initrds, .. } = files;
    let mut found = Vec::new();
    if kernel.is_linux() {
        if config.modules.is_none() {
            found.extend(loader::modules_folder(kernel.path(), kernel.release()));
        }
        found.extend(diagnosis::config_beside(kernel.path(), kernel.release()));
    }
    if config.kernel.is_none() {
        found.push(kernel.path().to_owned());
    }
    if config.has_default_initramfs() {
        found.extend(initrds.first().map(|initrd| initrd.file().path().to_owned()));
    }
    found
}

/// Returns whether the loader, if the machine gets one, mounts the device that `root=` names. An initrd with
/// its own init mounts it itself; a root that was prepared for the machine needs no search.
fn mounts_root(config: &VmConfig, has_initrd: bool) -> bool {
    let is_first = config.agent.as_ref().is_some_and(|agent| agent.place == AgentPlace::FirstProcess);
    config.root.is_none() && (!has_initrd || is_first)
}

/// Returns the modules that the devices of the machine and its root need. A configured module directory adds
/// `virtio_mmio` even without a device.
fn modules(config: &VmConfig, root: Option<&Root>, specs: &Specs<'_>) -> Vec<&'static str> {
    let mut modules: Vec<&str> = specs.iter().map(|spec| spec.module()).collect();
    if !modules.is_empty() || config.modules.is_some() {
        modules.insert(0, "virtio_mmio");
    }
    modules.extend(root.map(Root::modules).unwrap_or_default());
    modules
}
