//! The state of a vCPU and of the clock of its machine, as plain data that outlives the process.
//!
//! `src/kvm` of the `coracle` crate fills it from KVM and gives it back to KVM. The names are those of the
//! Intel SDM; where KVM adds something, they are those of Documentation/virt/kvm/api.rst. Nothing here knows
//! KVM's structures, whose layout changes with its versions.
//!
//! A state that was read back is untrusted. Its lists have limits while they are decoded. After that,
//! [`VcpuState::check`] refuses values that no CPU has. KVM itself checks what depends on the CPU's features.

mod check;
mod clock;
mod events;
mod limited;
mod registers;

use serde::{Deserialize, Serialize};

pub use check::VcpuStateError;
pub use clock::VmClockState;
pub use events::{ExceptionEvent, InterruptEvent, NmiEvent, SmmState, VcpuEvents};
pub use registers::{
    DebugRegisters, DescriptorTableRegister, GeneralRegisters, SegmentRegister, SpecialRegisters, Xcr,
};

/// Everything that a vCPU keeps between two instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Whether the vCPU runs, halts, or waits to be started.
    pub mp_state: MpState,
    /// General registers, instruction pointer and flags.
    pub registers: GeneralRegisters,
    /// Segments, descriptor tables and control registers.
    pub special_registers: SpecialRegisters,
    /// The shadow stack pointer (SSP), if the CPU has shadow stacks.
    pub shadow_stack_pointer: Option<u64>,
    /// The XSAVE area in its standard format (Intel SDM volume 1, 13.4): x87, SSE, AVX and later states.
    #[serde(deserialize_with = "limited::list::<_, _, { VcpuState::MAX_XSAVE_BYTES }>")]
    pub xsave: Vec<u8>,
    /// Extended control registers; none on a host without XSAVE.
    #[serde(deserialize_with = "limited::list::<_, _, { VcpuState::MAX_XCRS }>")]
    pub xcrs: Vec<Xcr>,
    /// Breakpoints.
    pub debug_registers: DebugRegisters,
    /// The register page of the local APIC: [`LAPIC_PAGE_LEN`](super::lapic::LAPIC_PAGE_LEN) bytes, each
    /// register at its offset (Intel SDM volume 3A, table 11-1).
    #[serde(deserialize_with = "limited::list::<_, _, { super::lapic::LAPIC_PAGE_LEN }>")]
    pub local_apic: Vec<u8>,
    /// Events that are pending or that the CPU is about to deliver.
    pub events: VcpuEvents,
    /// Numbers and values of the model-specific registers, without the time-stamp counter.
    #[serde(deserialize_with = "limited::list::<_, _, { VcpuState::MAX_MSRS }>")]
    pub msrs: Vec<(u32, u64)>,
    /// The time-stamp counter.
    pub tsc: TscState,
}

impl VcpuState {
    /// The smallest XSAVE area: the size that KVM exchanged before it had larger states.
    pub const MIN_XSAVE_BYTES: usize = 4096;
    /// The largest XSAVE area. The states of today's CPUs, with the tiles of AMX, take 11,008 bytes.
    pub const MAX_XSAVE_BYTES: usize = 64 << 10;
    /// The largest number of extended control registers: KVM exchanges no more (KVM_MAX_XCRS).
    pub const MAX_XCRS: usize = 16;
    /// The largest number of model-specific registers. KVM lists fewer than 400, and the machine check banks
    /// and memory types beside its list are 160.
    pub const MAX_MSRS: usize = 1024;
}

/// Whether a vCPU runs (KVM_GET_MP_STATE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// The vCPU runs.
    Runnable,
    /// The vCPU waits for its first INIT.
    Uninitialized,
    /// The vCPU has had its INIT and waits for its start-up interrupt.
    InitReceived,
    /// The vCPU has executed HLT and waits for an interrupt.
    Halted,
    /// The vCPU has had its start-up interrupt, and runs at its next entry.
    SipiReceived,
}

/// The time-stamp counter of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscState {
    /// Ticks per millisecond; `None` if KVM does not report the frequency.
    pub khz: Option<u32>,
    /// The value, at some time after the vCPU had stopped.
    pub value: u64,
    /// The difference to the host's counter, in which the vCPUs of a machine can be compared; `None` if KVM
    /// does not report it (before Linux 5.16).
    pub offset: Option<i64>,
}

#[cfg(test)]
mod tests;
