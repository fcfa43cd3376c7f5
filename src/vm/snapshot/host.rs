//! The host, as far as a snapshot depends on it.

use std::path::Path;

use coracle_arch::x86_64::cpuid;

use super::SnapshotError;
use super::state::MachineState;
use crate::kvm::{self, Kvm};
use crate::snapshot_files::HostFacts;
use crate::vcpu::SavedVcpu;

/// Returns the facts about this host.
pub(super) fn facts() -> HostFacts {
    HostFacts {
        architecture: std::env::consts::ARCH.to_owned(),
        kvm: kvm::module().map(str::to_owned),
        cpu: cpu_name(),
    }
}

/// Checks that a machine that ran on `saved` can go on here, as far as the host tells before KVM is asked.
///
/// # Errors
/// KVM is of another kind, or the CPU lacks something that the guest was shown.
pub(super) fn check(
    folder: &Path,
    saved: &HostFacts,
    machine: &MachineState,
    kvm: &Kvm,
) -> Result<(), SnapshotError> {
    let folder = folder.to_owned();
    if let (Some(saved), Some(host)) = (&saved.kvm, kvm::module())
        && saved != host
    {
        return Err(SnapshotError::KvmKind { folder, saved: saved.clone(), host });
    }
    let supported = kvm.supported_cpuid()?;
    for SavedVcpu { cpuid: shown, state: _ } in &machine.vcpus {
        let vendors = cpuid::vendor_name(shown).zip(cpuid::vendor_name(supported));
        if let Some((saved, host)) = vendors.filter(|(saved, host)| saved != host) {
            return Err(SnapshotError::CpuVendor { folder, saved, host });
        }
        if cpuid::missing_features(shown, supported).is_empty() {
            continue;
        }
        // This takes a virtual machine, so it is the second question.
        let features = cpuid::missing_features(shown, kvm.shown_cpuid()?);
        if !features.is_empty() {
            return Err(SnapshotError::CpuFeatures { folder, features });
        }
    }
    Ok(())
}

/// Returns the name that the CPU reports (Intel SDM volume 2A, CPUID, leaves 0x80000002 to 0x80000004).
fn cpu_name() -> String {
    if std::arch::x86_64::__cpuid(LAST_LEAF).eax < BRAND + 2 {
        return "unknown".to_owned();
    }
    let words = (BRAND..BRAND + 3).map(std::arch::x86_64::__cpuid).flat_map(|leaf| {
        let std::arch::x86_64::CpuidResult { eax, ebx, ecx, edx } = leaf;
        [eax, ebx, ecx, edx]
    });
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// The leaf with the last of its kind.
const LAST_LEAF: u32 = 0x8000_0000;
const BRAND: u32 = 0x8000_0002;
