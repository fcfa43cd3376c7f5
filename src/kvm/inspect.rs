//! Inspects a vCPU that has left the guest: its position, its mode, and the memory there.
//!
//! The report on a guest that died calls this (`crate::diagnosis`) after the vCPU's thread has ended, and
//! that thread itself when it parks. The results come from the guest, so nothing in them is trusted.

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE};

use super::vcpu::Vcpu;

/// The position and mode of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CodePlace {
    /// The instruction pointer.
    pub rip: u64,
    /// The linear address of the instruction. It differs from `rip` only outside 64-bit mode.
    pub linear: u64,
    /// The width for decoding the instruction: 16, 32 or 64.
    pub bits: u32,
    /// The privilege level of the code segment.
    pub ring: u8,
    /// Whether interrupts are enabled.
    pub interrupts: bool,
    /// The physical address of the root of its page tables, in 64-bit mode.
    pub page_table: Option<u64>,
}

/// Whether a vCPU was ever started, and what it does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// The vCPU waits for its first start-up interrupt.
    NotStarted,
    /// The vCPU runs.
    Running,
    /// The vCPU waits for an interrupt.
    Halted,
}

impl Vcpu {
    /// Returns the position. `None` if KVM does not return it, or shows a vCPU that was reset (see
    /// [`Vcpu::registers`]).
    pub(crate) fn code_place(&self) -> Option<CodePlace> {
        let (registers, sregs) = self.raw_registers()?;
        let long_mode = sregs.efer & EFER_LMA != 0;
        let bits = match (long_mode && sregs.cs.l != 0, sregs.cs.db != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        };
        let linear = match bits {
            64 => registers.rip,
            _ => u64::from(sregs.cs.base.wrapping_add(registers.rip) as u32),
        };
        Some(CodePlace {
            rip: registers.rip,
            linear,
            bits,
            ring: sregs.cs.dpl,
            interrupts: registers.rflags & RFLAGS_IF != 0,
            page_table: long_mode.then_some(sregs.cr3 & CR3_ADDRESS),
        })
    }

    /// Translates a linear address by the guest's own page tables. KVM walks them, in a bounded number of
    /// steps whatever they hold.
    pub(crate) fn translate(&self, linear: u64) -> Option<u64> {
        let translation = self.fd.translate_gva(linear).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    /// Returns whether it was ever started, and what it does. `None` if KVM does not return it.
    pub(crate) fn activity(&self) -> Option<Activity> {
        match self.fd.get_mp_state().ok()?.mp_state {
            KVM_MP_STATE_RUNNABLE => Some(Activity::Running),
            KVM_MP_STATE_HALTED => Some(Activity::Halted),
            _ => Some(Activity::NotStarted),
        }
    }

    /// Returns whether only another vCPU can make this one run on, because it was never started, or has
    /// halted with interrupts off. An unknown state counts as running.
    pub(crate) fn has_halted_for_good(&self) -> bool {
        match self.activity() {
            Some(Activity::NotStarted) => true,
            Some(Activity::Halted) => self.fd.get_regs().is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0),
            Some(Activity::Running) | None => false,
        }
    }
}

/// Long mode is active (Intel SDM vol. 3, 2.2.1).
const EFER_LMA: u64 = 1 << 10;
/// The interrupt flag (Intel SDM vol. 1, 3.4.3.3).
const RFLAGS_IF: u64 = 1 << 9;
/// The address bits of CR3 (Intel SDM vol. 3, 4.5.2); the others are flags and the PCID.
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
