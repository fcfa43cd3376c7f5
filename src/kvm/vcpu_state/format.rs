//! The facts of this host's KVM on which the state of a vCPU depends.

use std::sync::OnceLock;

use coracle_arch::x86_64::vcpu_state::VcpuState;
use kvm_ioctls::Cap;

use super::msrs;
use crate::kvm::{Kvm, KvmError};

/// The facts of this host's KVM on which saving and restoring depend. They do not change while the process
/// runs: Coracle never asks for the states that need permission (`arch_prctl`, ARCH_REQ_XCOMP_GUEST_PERM).
#[derive(Debug)]
pub(crate) struct StateFormat {
    /// The model-specific registers that are saved if they can be read.
    pub(super) msrs: Vec<u32>,
    /// The size of the XSAVE area, KVM_CAP_XSAVE2.
    pub(super) xsave_bytes: usize,
    /// Whether a vCPU's time-stamp counter can have another frequency than the host's, KVM_CAP_TSC_CONTROL.
    pub(super) scales_tsc: bool,
    /// Whether KVM reports the state of nested virtualization, KVM_CAP_NESTED_STATE.
    pub(super) reports_nesting: bool,
}

impl Kvm {
    /// Returns what this KVM exchanges as the state of a vCPU. KVM is asked once for the whole process.
    pub(crate) fn state_format(&self) -> Result<&'static StateFormat, KvmError> {
        if let Some(format) = FORMAT.get() {
            return Ok(format);
        }
        // Before Linux 5.17 the capability is unknown, and the size is that of the first states.
        let xsave_bytes = usize::try_from(self.fd.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let format = StateFormat {
            msrs: msrs::to_save(self.msr_index_list()?),
            xsave_bytes: xsave_bytes.max(VcpuState::MIN_XSAVE_BYTES),
            scales_tsc: self.fd.check_extension(Cap::TscControl),
            reports_nesting: self.fd.check_extension(Cap::NestedState),
        };
        Ok(FORMAT.get_or_init(|| format))
    }
}

/// Read once: it is a fact of the host, which no virtual machine changes.
static FORMAT: OnceLock<StateFormat> = OnceLock::new();
