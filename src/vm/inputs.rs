//! The files that a virtual machine is made from: those that its configuration names, and those that are
//! found for it.

use std::path::PathBuf;

use coracle_arch::field::ROOT;
use coracle_arch::x86_64::cpu_template::CpuTemplate;
use coracle_arch::x86_64::image::KernelImage;
use coracle_arch::x86_64::initrd::InitrdFile;
use coracle_devices::journal;
use coracle_image::guest_data::{self, GuestData, GuestDataMissing};
use coracle_image::initramfs::check::check;
use coracle_image::initramfs::loader::{self, LoaderRequest};
use coracle_image::kernel_image::{self, KernelRequest};
use coracle_image::rootfs::{self, Root, RootError, RootRequest};

use super::BuildError;
use crate::config::{AgentConfig, AgentPlace, VmConfig, names_file_systems, root_device, root_file_systems};
use crate::cpu;
use crate::diagnosis;
use crate::virtio::specs;

/// The files that a virtual machine is made from, opened and checked.
pub(super) struct Inputs {
    pub(super) kernel: KernelImage,
    pub(super) initrds: Vec<InitrdFile>,
    pub(super) cpu: CpuTemplate,
    pub(super) root: Option<Root>,
}

impl Inputs {
    /// Opens and checks the files. With `is_for_build` false, for a mere check, it logs no warnings.
    ///
    /// # Errors
    /// The first of them that cannot be used.
    pub(super) fn open(
        config: &VmConfig,
        root: Option<Root>,
        is_for_build: bool,
    ) -> Result<Inputs, BuildError> {
        let VmConfig { protocol, kaslr, .. } = *config;
        let (path, initrds) = kernel_and_initrds(config)?;
        let kernel = kernel_image::open(KernelRequest { path: &path, protocol: protocol.chosen(), kaslr })?;
        let has_initrd = !initrds.is_empty();
        let mut initrds = initrds.iter().map(|path| InitrdFile::open(path)).collect::<Result<Vec<_>, _>>()?;
        if config.root.is_some() && !kernel.is_linux() {
            return Err(RootError::NotLinux { kernel: path }.into());
        }
        if kernel.is_linux() {
            initrds.iter().try_for_each(check)?;
        }
        let root = root.map(|root| root.placed(&mut initrds));
        let is_loaders = |agent: &&AgentConfig| agent.place != AgentPlace::DefaultGuest || config.has_root();
        let agent = config.agent.as_ref().filter(is_loaders);
        let mounts_root = mounts_root(config, has_initrd);
        if kernel.is_linux() {
            let modules = device_modules(config, root.as_ref());
            let file_systems = if mounts_root { root_file_systems(&config.cmdline) } else { Vec::new() };
            let request = LoaderRequest {
                kernel: &path,
                release: kernel.release(),
                folder: config.modules.as_deref(),
                modules: &modules,
                file_systems: &file_systems,
                has_initrd,
                program: agent.and_then(|agent| agent.program.as_deref()),
                is_agent: agent.is_some(),
                root: root.as_ref().map(Root::start),
                root_device: root_device(&config.cmdline)
                    .filter(|_| mounts_root && !names_file_systems(&config.cmdline)),
            };
            let loader = loader::initrd(&request)?;
            if let Some(why) = loader.without_modules.filter(|why| is_for_build && why.matters(&request)) {
                journal!(Host Warn, "{why}");
            }
            initrds.extend(loader.archive);
        }
        Ok(Inputs { kernel, initrds, cpu: cpu::template(&config.cpu)?, root })
    }
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
///
/// # Errors
/// There is no kernel, or it cannot be read.
pub(super) fn found_files(config: &VmConfig) -> Result<Vec<PathBuf>, BuildError> {
    let VmConfig { protocol, kaslr, .. } = *config;
    let (path, initrds) = kernel_and_initrds(config)?;
    let kernel = kernel_image::open(KernelRequest { path: &path, protocol: protocol.chosen(), kaslr })?;
    let mut found = Vec::new();
    if kernel.is_linux() {
        if config.modules.is_none() {
            found.extend(loader::modules_folder(&path, kernel.release()));
        }
        found.extend(diagnosis::config_beside(&path, kernel.release()));
    }
    if config.kernel.is_none() {
        found.push(path);
    }
    if config.has_default_initramfs() {
        found.extend(initrds.into_iter().next());
    }
    Ok(found)
}

/// Returns the kernel and the initrds to load: the default guest's initramfs first, if it applies, and then
/// the initrds that `config` names.
fn kernel_and_initrds(config: &VmConfig) -> Result<(PathBuf, Vec<PathBuf>), GuestDataMissing> {
    let kernel = match &config.kernel {
        Some(kernel) => kernel.clone(),
        None => guest_data::default_kernel(config.kaslr)?,
    };
    let mut initrds = Vec::new();
    if config.has_default_initramfs() {
        initrds.push(guest_data::find(GuestData::GuestInitramfs)?);
    }
    initrds.extend(config.initrds.iter().cloned());
    Ok((kernel, initrds))
}

/// Whether the loader, if the machine gets one, mounts the device that `root=` names. An initrd with its own
/// init mounts it itself; a root that was prepared for the machine needs no search.
fn mounts_root(config: &VmConfig, has_initrd: bool) -> bool {
    let is_first = config.agent.as_ref().is_some_and(|agent| agent.place == AgentPlace::FirstProcess);
    config.root.is_none() && (!has_initrd || is_first)
}

/// Returns the modules that the devices of the machine and its root need. A configured module directory adds
/// `virtio_mmio` even without a device.
fn device_modules(config: &VmConfig, root: Option<&Root>) -> Vec<&'static str> {
    let mut modules: Vec<&str> = specs(config, root).iter().map(|spec| spec.module()).collect();
    if !modules.is_empty() || config.modules.is_some() {
        modules.insert(0, "virtio_mmio");
    }
    modules.extend(root.map(Root::modules).unwrap_or_default());
    modules
}
