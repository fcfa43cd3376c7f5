//! The files that a configuration names for the boot: kernel, initrds and CPU template. A builder opens each
//! once, so that it loads what it has checked, even if another file has taken the name.

use std::path::PathBuf;

use coracle_arch::x86_64::cpu_template::CpuTemplate;
use coracle_arch::x86_64::image::KernelImage;
use coracle_arch::x86_64::initrd::InitrdFile;
use coracle_arch::x86_64::input_file::InputFileError;
use coracle_image::guest_data::{self, GuestData, GuestDataMissing};
use coracle_image::initramfs::check::check;
use coracle_image::initramfs::loader::check_folder;
use coracle_image::kernel_image::{self, KernelRequest};
use coracle_image::rootfs::RootError;

use super::BuildError;
use crate::config::{CpuModel, KernelProtocol, VmConfig};
use crate::cpu;

/// The files, open and checked. A clone reads from the same open files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    named: Named,
    pub(super) kernel: KernelImage,
    /// The initrds of the configuration, after the default guest's.
    pub(super) initrds: Vec<InitrdFile>,
    pub(super) cpu: CpuTemplate,
}

/// The settings on which the files depend, apart from the initrds, which their paths identify.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    kernel: PathBuf,
    protocol: KernelProtocol,
    kaslr: bool,
    cpu: CpuModel,
}

impl Files {
    /// Opens and checks the files of `config`, except for those that are open in `before`.
    ///
    /// # Errors
    /// The first of them that cannot be used.
    pub(super) fn open(config: &VmConfig, before: Option<&Files>) -> Result<Files, BuildError> {
        let (path, initrds) = kernel_and_initrds(config)?;
        let VmConfig { protocol, kaslr, .. } = *config;
        let named = Named { kernel: path, protocol, kaslr, cpu: config.cpu.clone() };
        let before = before.filter(|before| before.named == named);
        let kernel = match before {
            Some(before) => before.kernel.clone(),
            None => {
                kernel_image::open(KernelRequest { path: &named.kernel, protocol: protocol.chosen(), kaslr })?
            }
        };
        let initrds = initrds.iter().map(|path| match before.and_then(|before| before.initrd(path)) {
            Some(initrd) => Ok((initrd.clone(), false)),
            None => Ok((InitrdFile::open(path)?, true)),
        });
        let initrds = initrds.collect::<Result<Vec<_>, InputFileError>>()?;
        if config.root.is_some() && !kernel.is_linux() {
            return Err(RootError::NotLinux { kernel: named.kernel }.into());
        }
        if kernel.is_linux() {
            initrds.iter().filter(|(_, is_new)| *is_new).try_for_each(|(initrd, _)| check(initrd))?;
        }
        if kernel.is_linux() {
            config.modules.as_deref().map_or(Ok(()), check_folder)?;
        }
        let cpu = before.map_or_else(|| cpu::template(&config.cpu), |before| Ok(before.cpu.clone()))?;
        Ok(Files { named, kernel, initrds: initrds.into_iter().map(|(initrd, _)| initrd).collect(), cpu })
    }

    fn initrd(&self, path: &PathBuf) -> Option<&InitrdFile> {
        self.initrds.iter().find(|initrd| initrd.file().path() == path)
    }
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
