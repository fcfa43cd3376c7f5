//! Saving a vCPU. Its thread calls this, outside the guest.

use coracle_arch::x86_64::cpuid::CpuidEntry;
use coracle_arch::x86_64::lapic;
use coracle_arch::x86_64::vcpu_state::{VcpuState, Xcr};
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_GIF_SET, Xsave, kvm_sregs,
};

use super::convert::{debug_registers, general_registers, mp_state, special_registers};
use super::events::events;
use super::{StateError, StateFormat};
use crate::kvm::system::leaf;
use crate::kvm::vcpu::Vcpu;

impl Vcpu {
    /// Returns the whole state. The vCPU can go on afterwards.
    ///
    /// A timer of the local APIC in one-shot mode that has expired, but whose interrupt KVM has not raised,
    /// looks like one whose interrupt the guest has handled. KVM raises both at the restore. So the latter is
    /// saved as stopped, if [`Vcpu::settle_timer`] has found it. A deadline timer has no such doubt.
    ///
    /// # Errors
    /// The vCPU is in the middle of an access to a device ([`Vcpu::complete_exit`]) or uses nested
    /// virtualization, or KVM refuses a call.
    pub(crate) fn save(&self, format: &StateFormat) -> Result<VcpuState, StateError> {
        if self.has_access_pending() {
            return Err(StateError::AccessPending { vcpu: self.index() });
        }
        // First of all: KVM handles a pending INIT or start-up interrupt here, which changes the registers.
        let activity = self.state_call("KVM_GET_MP_STATE", self.fd.get_mp_state())?;
        let sregs = self.state_call("KVM_GET_SREGS", self.fd.get_sregs())?;
        self.refuse_nesting(&sregs, format)?;
        let vcpu_events = self.state_call("KVM_GET_VCPU_EVENTS", self.fd.get_vcpu_events())?;
        Ok(VcpuState {
            mp_state: mp_state(activity.mp_state, self.index())?,
            registers: general_registers(&self.state_call("KVM_GET_REGS", self.fd.get_regs())?),
            special_registers: special_registers(&sregs),
            shadow_stack_pointer: self.shadow_stack_pointer(),
            xsave: self.xsave(format)?,
            xcrs: self.xcrs()?,
            debug_registers: debug_registers(
                &self.state_call("KVM_GET_DEBUGREGS", self.fd.get_debug_regs())?,
            ),
            local_apic: self.local_apic()?,
            events: events(&vcpu_events),
            msrs: self.read_msrs(&format.msrs)?,
            tsc: self.tsc_state()?,
        })
    }

    /// Returns the CPUID leaves that the guest sees.
    ///
    /// # Errors
    /// KVM refuses the call.
    pub(crate) fn cpuid(&self) -> Result<Vec<CpuidEntry>, StateError> {
        let leaves = self.state_call("KVM_GET_CPUID2", self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?;
        Ok(leaves.as_slice().iter().map(leaf).collect())
    }

    /// Refuses a guest that runs guests of its own. On hardware, KVM offers it VMX or SVM unless the CPU
    /// template hides them.
    pub(super) fn refuse_nesting(&self, sregs: &kvm_sregs, format: &StateFormat) -> Result<(), StateError> {
        let is_nesting = if format.reports_nesting {
            let mut state = KvmNestedStateBuffer::empty();
            self.state_call("KVM_GET_NESTED_STATE", self.fd.nested_state(&mut state))?;
            if u32::from(state.format) == KVM_STATE_NESTED_FORMAT_VMX {
                // SAFETY: the format says that this member of the union is the valid one.
                let vmx = unsafe { state.hdr.vmx };
                vmx.vmxon_pa != NO_VMXON
            } else {
                // Interrupts are on at the level of the hypervisor, and no guest has been entered.
                u32::from(state.flags) != KVM_STATE_NESTED_GIF_SET
            }
        } else {
            sregs.cr4 & CR4_VMXE != 0 || sregs.efer & EFER_SVME != 0
        };
        if is_nesting { Err(StateError::NestedVirtualization { vcpu: self.index() }) } else { Ok(()) }
    }

    /// Returns the shadow stack pointer. KVM has offered shadow stacks since Linux 6.18, and refuses to
    /// return the pointer of a vCPU without them.
    fn shadow_stack_pointer(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.fd.get_one_reg(GUEST_SSP, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn xsave(&self, format: &StateFormat) -> Result<Vec<u8>, StateError> {
        let mut area = xsave_area(format.xsave_bytes, self)?;
        if format.xsave_bytes > VcpuState::MIN_XSAVE_BYTES {
            // SAFETY: the area has the size that KVM_CAP_XSAVE2 has reported, and this process asks for no
            // state that makes it larger.
            let result = unsafe { self.fd.get_xsave2(&mut area) };
            self.state_call("KVM_GET_XSAVE2", result)?;
            let words = area.as_fam_struct_ref().xsave.region.iter().chain(area.as_slice());
            return Ok(words.flat_map(|word| word.to_le_bytes()).collect());
        }
        let area = self.state_call("KVM_GET_XSAVE", self.fd.get_xsave())?;
        Ok(area.region.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    fn xcrs(&self) -> Result<Vec<Xcr>, StateError> {
        let xcrs = self.state_call("KVM_GET_XCRS", self.fd.get_xcrs())?;
        let list = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
        Ok(list.map(|xcr| Xcr { number: xcr.xcr, value: xcr.value }).collect())
    }

    fn local_apic(&self) -> Result<Vec<u8>, StateError> {
        let page = self.state_call("KVM_GET_LAPIC", self.fd.get_lapic())?;
        let mut page: Vec<u8> = page.regs.iter().map(|byte| byte.cast_unsigned()).collect();
        if self.timer_is_done {
            lapic::stop_timer(&mut page);
        }
        Ok(page)
    }
}

/// Returns an area of zeros for `bytes` bytes.
pub(super) fn xsave_area(bytes: usize, vcpu: &Vcpu) -> Result<Xsave, StateError> {
    let more = bytes.saturating_sub(VcpuState::MIN_XSAVE_BYTES).div_ceil(size_of::<u32>());
    let full = |_| vmm_sys_util::errno::Error::new(libc::ENOMEM);
    vcpu.state_call("memory for the XSAVE area", Xsave::new(more).map_err(full))
}

/// The number of the shadow stack pointer for KVM_GET_ONE_REG (Documentation/virt/kvm/api.rst, 4.68).
pub(super) const GUEST_SSP: u64 = 0x2030_0003_0000_0000;

/// The address of a VMXON region that does not exist (Documentation/virt/kvm/api.rst, KVM_GET_NESTED_STATE).
const NO_VMXON: u64 = u64::MAX;
/// CR4: VMX instructions are enabled (Intel SDM volume 3A, 2.5).
const CR4_VMXE: u64 = 1 << 13;
/// EFER: SVM instructions are enabled (AMD APM volume 2, 3.1.7).
const EFER_SVME: u64 = 1 << 12;
