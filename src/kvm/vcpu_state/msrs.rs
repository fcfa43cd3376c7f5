//! The model-specific registers that belong to the state of a vCPU.
//!
//! KVM lists those that it can save (KVM_GET_MSR_INDEX_LIST). Others are part of another field of the state:
//! FS and GS base, IA32_EFER and IA32_APIC_BASE are special registers, and the registers of an x2APIC are
//! those of the local APIC's page.

use std::ops::RangeInclusive;

use kvm_bindings::{Msrs, kvm_msr_entry};

use super::StateError;
use crate::kvm::vcpu::Vcpu;

/// The time-stamp counter, which [`super::TscStart`] restores (Intel SDM volume 4, table 2-2).
pub(super) const IA32_TSC: u32 = 0x10;
/// The deadline of the local APIC's timer. It is compared with the time-stamp counter, and counts only in the
/// timer mode that the local APIC's page has.
pub(super) const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Registers that are not saved although KVM lists them.
const LEFT_OUT: [RangeInclusive<u32>; 2] = [
    // It stands in the state by itself.
    IA32_TSC..=IA32_TSC,
    // The registers of Hyper-V, which KVM offers only to a guest whose CPUID has the signature of Hyper-V
    // (`hyperv_enabled`); Coracle's guests have that of KVM. Reading one makes KVM allocate the state of them
    // all.
    0x4000_0000..=0x4000_01ff,
];

/// Registers that are saved although KVM does not list them (arch/x86/kvm/x86.c, `msrs_to_save_base`), which
/// a guest can set.
const UNLISTED: [RangeInclusive<u32>; 6] = [
    // Memory types: the variable and the fixed ranges, and the default, which firmware and the boot protocol
    // set (Intel SDM volume 3A, 11.11).
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
    // The 32 machine check banks that a vCPU of KVM has, four registers each (volume 3B, 15.3.2). Those for
    // corrected errors, from 0x280 on, exist only after KVM_X86_SETUP_MCE.
    0x400..=0x47f,
];

/// The most registers in one call: KVM takes fewer than 256 (MAX_IO_MSRS).
const BATCH: usize = 255;

/// Returns the registers to save, given those that KVM lists.
pub(super) fn to_save(listed: &[u32]) -> Vec<u32> {
    let is_left_out = |msr: &u32| LEFT_OUT.iter().any(|range| range.contains(msr));
    let mut msrs: Vec<u32> = listed.iter().copied().filter(|msr| !is_left_out(msr)).collect();
    let more = UNLISTED.into_iter().flatten().filter(|msr| !listed.contains(msr));
    msrs.extend(more);
    msrs
}

impl Vcpu {
    /// Returns the values of those of `msrs` that the vCPU has.
    pub(super) fn read_msrs(&self, msrs: &[u32]) -> Result<Vec<(u32, u64)>, StateError> {
        let mut values = Vec::with_capacity(msrs.len());
        let mut rest = msrs;
        while !rest.is_empty() {
            let (batch, _) = rest.split_at(rest.len().min(BATCH));
            let mut list = list_of(batch.iter().map(|msr| (*msr, 0)), self)?;
            let done = self.state_call("KVM_GET_MSRS", self.fd.get_msrs(&mut list))?;
            values.extend(list.as_slice().iter().take(done).map(|entry| (entry.index, entry.data)));
            // KVM stops at the first register that the vCPU does not have.
            let next = if done < batch.len() { done.saturating_add(1) } else { done };
            rest = rest.get(next..).unwrap_or_default();
        }
        Ok(values)
    }

    /// Sets registers in this order.
    ///
    /// # Errors
    /// KVM refuses a register that does not have its saved value already. A read-only register, which KVM
    /// lists as well, has it on every host where the state can be restored.
    pub(super) fn write_msrs(&self, values: &[(u32, u64)]) -> Result<(), StateError> {
        let mut rest = values;
        while !rest.is_empty() {
            let (batch, _) = rest.split_at(rest.len().min(BATCH));
            let list = list_of(batch.iter().copied(), self)?;
            let done = self.state_call("KVM_SET_MSRS", self.fd.set_msrs(&list))?;
            let Some(&(msr, value)) = batch.get(done) else {
                rest = rest.get(batch.len()..).unwrap_or_default();
                continue;
            };
            if self.read_msrs(&[msr])?.first() != Some(&(msr, value)) {
                return Err(StateError::Msr { vcpu: self.index(), msr, value });
            }
            rest = rest.get(done.saturating_add(1)..).unwrap_or_default();
        }
        Ok(())
    }
}

fn list_of(values: impl Iterator<Item = (u32, u64)>, vcpu: &Vcpu) -> Result<Msrs, StateError> {
    let entries: Vec<kvm_msr_entry> =
        values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let full = |_| vmm_sys_util::errno::Error::new(libc::E2BIG);
    vcpu.state_call("the list of model-specific registers", Msrs::from_entries(&entries).map_err(full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_beside_kvm_s_list_are_saved_once_and_those_of_hyper_v_are_not() {
        let msrs = to_save(&[0x174, 0x10, 0x4000_0020, 0x2ff, 0x4b56_4d01, 0x6e0]);
        assert_eq!(msrs[..4], [0x174, 0x2ff, 0x4b56_4d01, 0x6e0]);
        assert_eq!(msrs.len(), 4 + 16 + 1 + 2 + 8 + 128);
        assert!(msrs.contains(&0x200) && msrs.contains(&0x26f) && msrs.contains(&0x47f));
    }
}
