//! Turns the configured CPU model into the CPUID and registers of a vCPU. The builder and `coracle cpu dump`
//! call it. `coracle_arch::x86_64::cpu_template` applies the templates.

use std::io;
use std::path::PathBuf;

use coracle_arch::field::CPU;
use coracle_arch::regular_file;
use coracle_arch::x86_64::cpu_template::{CpuTemplate, CpuTemplateError};
use coracle_arch::x86_64::cpuid::{self, CpuIdentity, CpuidEntry};

use crate::config::CpuModel;
use crate::kvm::{Kvm, KvmError, Vcpu};

/// The reason why a guest cannot have the configured CPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The template's file cannot be read.
    #[error("the CPU template {} cannot be read: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error that the host returned.
        r#source: io::Error,
    },
    /// The file is not a template.
    #[error("the CPU template {} cannot be used: {source}", path.display())]
    Syntax {
        /// The path of the file.
        path: PathBuf,
        /// The reason.
        r#source: CpuTemplateError,
    },
    /// The host lacks a feature of the template.
    #[error("{CPU} {model} is not possible on this host: {source}")]
    Host {
        /// The configured model.
        model: CpuModel,
        /// The features that are missing.
        r#source: CpuTemplateError,
    },
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Returns the CPU that a guest with one vCPU would have on this host, as a template that gives the same CPU
/// elsewhere.
///
/// # Errors
/// KVM cannot be used, or the model is impossible on this host.
pub fn dump(model: &CpuModel) -> Result<CpuTemplate, CpuError> {
    let template = template(model)?;
    let kvm = Kvm::open()?;
    let vm = kvm.create_vm()?;
    vm.create_local_apics()?;
    let vcpu = vm.create_vcpu(0)?;
    let features = CpuFeatures::new(model, template, &kvm)?;
    let cpuid = features.give(&vcpu, 1)?;
    let has_arch_capabilities =
        cpuid.iter().any(|leaf| (leaf.function, leaf.index) == (7, 0) && leaf.edx & ARCH_CAPABILITIES != 0);
    let mut msrs = features.msrs(&vcpu)?;
    if has_arch_capabilities && msrs.iter().all(|(msr, _)| *msr != IA32_ARCH_CAPABILITIES) {
        msrs.push((IA32_ARCH_CAPABILITIES, vcpu.msr(IA32_ARCH_CAPABILITIES)?));
    }
    Ok(CpuTemplate::exact(&cpuid, &msrs))
}

/// Reads and checks the template of a model.
pub(crate) fn template(model: &CpuModel) -> Result<CpuTemplate, CpuError> {
    match model {
        CpuModel::Host => Ok(CpuTemplate::host()),
        CpuModel::Baseline => Ok(CpuTemplate::baseline()),
        CpuModel::Template(path) => {
            let text = regular_file::read_text(path, MAX_BYTES)
                .map_err(|error| CpuError::Read { path: path.clone(), source: error.into() })?;
            CpuTemplate::from_json(&text).map_err(|source| CpuError::Syntax { path: path.clone(), source })
        }
    }
}

/// The features that all vCPUs of a machine share.
pub(crate) struct CpuFeatures {
    template: CpuTemplate,
    cpuid: Vec<CpuidEntry>,
    tsc_deadline: bool,
}

impl CpuFeatures {
    /// Applies `template`, that of `model`, to this host's CPU.
    pub(crate) fn new(model: &CpuModel, template: CpuTemplate, kvm: &Kvm) -> Result<CpuFeatures, CpuError> {
        let cpuid = template
            .apply(kvm.supported_cpuid()?)
            .map_err(|source| CpuError::Host { model: model.clone(), source })?;
        Ok(CpuFeatures { template, cpuid, tsc_deadline: kvm.has_tsc_deadline_timer() })
    }

    /// Returns whether the CPU offers kvm-clock.
    pub(crate) fn has_kvm_clock(&self) -> bool {
        cpuid::has_kvm_clock(&self.cpuid)
    }

    /// Sets and returns the CPUID of one of `count` vCPUs.
    pub(crate) fn give(&self, vcpu: &Vcpu, count: u32) -> Result<Vec<CpuidEntry>, KvmError> {
        let identity = CpuIdentity {
            apic_id: vcpu.index(),
            count,
            tsc_deadline: self.tsc_deadline,
            tsc_khz: vcpu.tsc_khz(),
        };
        let cpuid = cpuid::for_vcpu(&self.cpuid, &identity);
        vcpu.set_cpuid(&cpuid)?;
        Ok(cpuid)
    }

    /// Returns the registers that the template sets. The vCPU must have its CPUID, on which their first
    /// values depend.
    pub(crate) fn msrs(&self, vcpu: &Vcpu) -> Result<Vec<(u32, u64)>, KvmError> {
        let initial =
            |rule: &coracle_arch::x86_64::cpu_template::MsrRule| Ok((rule.msr, vcpu.msr(rule.msr)?));
        let initial: Vec<(u32, u64)> =
            self.template.msrs.iter().map(initial).collect::<Result<_, KvmError>>()?;
        let value = |msr| initial.iter().find(|(number, _)| *number == msr).map_or(0, |(_, value)| *value);
        Ok(self.template.msr_values(value))
    }
}

/// The largest file of a template. One with every leaf written out has some 50 KB.
const MAX_BYTES: u64 = 1 << 20;
/// Leaf 7 EDX: the register below exists.
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// The register that lists the CPU's defects of speculative execution (Intel SDM volume 4, table 2-2).
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_no_file_or_too_long_is_refused() {
        let refusal = |path: &Path| template(&CpuModel::Template(path.into())).unwrap_err();
        assert!(matches!(refusal(Path::new("/no/such/cpu.json")), CpuError::Read { .. }));
        assert!(matches!(refusal(Path::new("/dev/zero")), CpuError::Read { .. }));
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
        assert!(matches!(refusal(file.as_path()), CpuError::Syntax { .. }));
        std::fs::write(file.as_path(), vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(matches!(refusal(file.as_path()), CpuError::Read { .. }));
    }
}
