//! The events of a vCPU that an entry into the guest continues (KVM_GET_VCPU_EVENTS, with
//! KVM_CAP_EXCEPTION_PAYLOAD and KVM_CAP_X86_TRIPLE_FAULT_EVENT).
//!
//! An event is *pending* while the CPU may still choose another first, and *injected* once its delivery has
//! begun and has to be completed. A field of an `Option` is `None` if KVM does not report it.

use serde::{Deserialize, Serialize};

/// Events that are pending or injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VcpuEvents {
    /// An exception of the guest's own code.
    pub exception: ExceptionEvent,
    /// An external or a software interrupt.
    pub interrupt: InterruptEvent,
    /// Non-maskable interrupts.
    pub nmi: NmiEvent,
    /// The vector of a start-up interrupt.
    pub sipi_vector: Option<u32>,
    /// System management mode.
    pub smm: Option<SmmState>,
    /// Whether a triple fault is pending.
    pub triple_fault: Option<bool>,
}

/// An exception. Pending and injected exceptions have the same fields, and at most one of them exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExceptionEvent {
    /// Whether its delivery has begun.
    pub injected: bool,
    /// Whether it waits for its delivery. `None` if KVM reports such an exception as injected.
    pub pending: Option<bool>,
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code, if the exception has one.
    pub error_code: Option<u32>,
    /// The value that its delivery puts into CR2 or DR6.
    pub payload: Option<u64>,
}

/// An interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InterruptEvent {
    /// Whether its delivery has begun.
    pub injected: bool,
    /// The vector.
    pub vector: u8,
    /// Whether an instruction (INT n) raised it.
    pub soft: bool,
    /// The instruction that holds interrupts off until the next one has completed: 0 for none, 1 for MOV SS,
    /// 2 for STI, 3 for both.
    pub shadow: Option<u8>,
}

/// Non-maskable interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NmiEvent {
    /// Whether the delivery of one has begun.
    pub injected: bool,
    /// How many are pending: a CPU latches one while it handles another.
    pub pending: Option<u8>,
    /// Whether the CPU handles one, and blocks others until IRET.
    pub masked: bool,
}

/// System management mode (Intel SDM volume 3C, chapter 31).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SmmState {
    /// Whether the CPU is in system management mode.
    pub active: bool,
    /// Whether a system management interrupt is pending.
    pub pending: bool,
    /// Whether the mode was entered from the handler of a non-maskable interrupt.
    pub inside_nmi: bool,
    /// Whether an INIT waits for the end of the mode.
    pub latched_init: bool,
}
