//! Restoring the vCPUs of a machine. Whoever builds the machine calls this, before their threads start.

use std::borrow::Borrow;

use coracle_arch::x86_64::lapic;
use coracle_arch::x86_64::vcpu_state::{VcpuState, Xcr};
use kvm_bindings::{kvm_lapic_state, kvm_mp_state, kvm_xcr, kvm_xcrs, kvm_xsave};

use super::convert::{kvm_debug_registers, kvm_mp_state_of, kvm_registers, kvm_special_registers};
use super::events::kvm_events;
use super::msrs::IA32_TSC_DEADLINE;
use super::save::{GUEST_SSP, xsave_area};
use super::{StateError, StateFormat, TscStart};
use crate::kvm::vcpu::Vcpu;

/// Gives each vCPU its state, after which `elapsed` nanoseconds have passed for it. The machine has its
/// memory and its clock, the vCPUs have their CPUID, and none has run.
///
/// # Errors
/// The state is damaged, belongs to another number of vCPUs, or cannot exist on this host.
pub(crate) fn restore_vcpus(
    vcpus: &[Vcpu],
    states: &[impl Borrow<VcpuState>],
    format: &StateFormat,
    elapsed: u64,
) -> Result<(), StateError> {
    if vcpus.len() != states.len() {
        return Err(StateError::Count { saved: states.len(), vcpus: vcpus.len() });
    }
    for (vcpu, state) in vcpus.iter().zip(states) {
        let state = state.borrow();
        vcpu.check(state, format)?;
        // Timers and deadlines are computed with it.
        vcpu.match_tsc_frequency(state.tsc.khz, format)?;
    }
    let Some(first) = vcpus.first() else { return Ok(()) };
    let tsc = TscStart::new(first, states, elapsed)?;
    vcpus.iter().zip(states).try_for_each(|(vcpu, state)| vcpu.restore(state.borrow(), tsc, elapsed))
}

impl Vcpu {
    /// Refuses a state that no vCPU, or none of this host, can have.
    fn check(&self, state: &VcpuState, format: &StateFormat) -> Result<(), StateError> {
        state.check().map_err(|source| StateError::Damaged { vcpu: self.index(), source })?;
        let (saved, expected) = (state.xsave.len(), format.xsave_bytes);
        if saved == expected {
            Ok(())
        } else {
            Err(StateError::XsaveSize { vcpu: self.index(), saved, expected })
        }
    }

    /// Gives the vCPU a state that was checked. It must have its CPUID and the frequency of its time-stamp
    /// counter, and must not have run.
    ///
    /// The order matters: KVM checks some parts against others that it has, and setting some changes others.
    ///
    /// # Errors
    /// The state cannot exist on this host.
    fn restore(&self, state: &VcpuState, tsc: TscStart, elapsed: u64) -> Result<(), StateError> {
        let VcpuState {
            mp_state,
            registers,
            special_registers,
            shadow_stack_pointer,
            xsave,
            xcrs,
            debug_registers,
            local_apic,
            events,
            msrs,
            tsc: saved_tsc,
        } = state;
        // The mode of the local APIC is in APIC_BASE. With PAE paging outside long mode, KVM loads the four
        // page directory pointers from memory here, as a MOV to CR3 does.
        let sregs = kvm_special_registers(special_registers);
        self.state_call("KVM_SET_SREGS", self.fd.set_sregs(&sregs))?;
        self.set_xcrs(xcrs)?;
        self.set_xsave(xsave)?;
        // The timer goes on from its current count. The mode of a deadline timer is in here.
        self.set_local_apic(local_apic, elapsed)?;
        self.start_tsc(saved_tsc, tsc)?;
        // The deadline of a timer is compared with the time-stamp counter, so it comes after any other
        // register that moves that.
        let is_deadline = |(msr, _): &&(u32, u64)| *msr == IA32_TSC_DEADLINE;
        let others = msrs.iter().filter(|entry| !is_deadline(entry));
        let ordered: Vec<(u32, u64)> = others.chain(msrs.iter().filter(is_deadline)).copied().collect();
        self.write_msrs(&ordered)?;
        // This drops a pending exception, so the events come later.
        self.state_call("KVM_SET_REGS", self.fd.set_regs(&kvm_registers(registers)))?;
        let debug = kvm_debug_registers(debug_registers);
        self.state_call("KVM_SET_DEBUGREGS", self.fd.set_debug_regs(&debug))?;
        if let Some(pointer) = shadow_stack_pointer {
            let result = self.fd.set_one_reg(GUEST_SSP, &pointer.to_le_bytes());
            self.state_call("KVM_SET_ONE_REG of the shadow stack pointer", result)?;
        }
        self.state_call("KVM_SET_VCPU_EVENTS", self.fd.set_vcpu_events(&kvm_events(events)))?;
        let mp_state = kvm_mp_state { mp_state: kvm_mp_state_of(*mp_state) };
        self.state_call("KVM_SET_MP_STATE", self.fd.set_mp_state(mp_state))?;
        self.report_pause();
        Ok(())
    }

    /// Sets the extended control registers. A host without XSAVE has none, and refuses the call.
    fn set_xcrs(&self, xcrs: &[Xcr]) -> Result<(), StateError> {
        if xcrs.is_empty() {
            return Ok(());
        }
        let mut list = kvm_xcrs { nr_xcrs: xcrs.len() as u32, ..Default::default() };
        for (to, from) in list.xcrs.iter_mut().zip(xcrs) {
            *to = kvm_xcr { xcr: from.number, value: from.value, ..Default::default() };
        }
        self.state_call("KVM_SET_XCRS", self.fd.set_xcrs(&list))
    }

    /// Sets the XSAVE area, which has the size that KVM takes.
    fn set_xsave(&self, bytes: &[u8]) -> Result<(), StateError> {
        let mut area = xsave_area(bytes.len(), self)?;
        let (first, more) = bytes.split_at(bytes.len().min(size_of::<kvm_xsave>()));
        // SAFETY: only words of the area are changed, and not its length.
        let region = unsafe { &mut area.as_mut_fam_struct().xsave.region };
        copy_words(region, first);
        copy_words(area.as_mut_slice(), more);
        // SAFETY: the area has the size that KVM_CAP_XSAVE2 has reported (`Vcpu::check`).
        let result = unsafe { self.fd.set_xsave2(&area) };
        self.state_call("KVM_SET_XSAVE", result)
    }

    fn set_local_apic(&self, bytes: &[u8], elapsed: u64) -> Result<(), StateError> {
        let mut bytes = bytes.to_vec();
        lapic::pass_time(&mut bytes, elapsed);
        let mut page = kvm_lapic_state::default();
        for (to, from) in page.regs.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        self.state_call("KVM_SET_LAPIC", self.fd.set_lapic(&page))
    }
}

fn copy_words(to: &mut [u32], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from.as_chunks::<4>().0) {
        *to = u32::from_le_bytes(*from);
    }
}
