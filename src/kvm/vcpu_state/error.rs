//! The reasons why a vCPU cannot be saved or restored.

use coracle_arch::x86_64::vcpu_state::VcpuStateError;

use crate::kvm::KvmError;

/// The reason why the state of a vCPU cannot be saved, or not be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state has values that no vCPU has.
    #[error("vCPU {vcpu}: {source}")]
    Damaged {
        /// The index of the vCPU.
        vcpu: u32,
        /// The field and its value.
        r#source: VcpuStateError,
    },
    /// A call failed. At a restore, KVM refuses a state that the CPU cannot have.
    #[error("vCPU {vcpu}: {source}")]
    Kvm {
        /// The index of the vCPU.
        vcpu: u32,
        /// The call and the error that KVM returned.
        r#source: KvmError,
    },
    /// KVM has a model-specific register that another host saved, but not with this value.
    #[error(
        "vCPU {vcpu}: KVM refused {value:#x} for model-specific register {msr:#x}; a host with the CPU and the \
         kernel of the saved machine accepts it"
    )]
    Msr {
        /// The index of the vCPU.
        vcpu: u32,
        /// The number of the register.
        msr: u32,
        /// The saved value.
        value: u64,
    },
    /// The XSAVE area has a size that this host's KVM does not exchange.
    #[error(
        "vCPU {vcpu}: xsave: {saved} bytes were saved, and this host's KVM takes {expected}; a host with the CPU \
         of the saved machine accepts them"
    )]
    XsaveSize {
        /// The index of the vCPU.
        vcpu: u32,
        /// The number of bytes in the state.
        saved: usize,
        /// The number of bytes that KVM exchanges.
        expected: usize,
    },
    /// The host's time-stamp counter has another frequency and KVM cannot scale it.
    #[error(
        "vCPU {vcpu}: tsc.khz: the guest's time-stamp counter ran at {saved} kHz; this host's runs at {} kHz, and KVM \
         cannot scale it; use a host of the same frequency, or one whose CPU scales the counter",
        host.map_or_else(|| "an unknown number of".to_owned(), |khz| khz.to_string())
    )]
    TscFrequency {
        /// The index of the vCPU.
        vcpu: u32,
        /// The frequency in the state.
        saved: u32,
        /// The frequency of the vCPU here, if KVM reports it.
        host: Option<u32>,
    },
    /// The guest's time-stamp counter would go back.
    #[error(
        "vCPU {vcpu}: tsc.value: the guest's time-stamp counter was at {saved} and would go back to {now}, because \
         this KVM cannot move it; the host must not have been restarted since"
    )]
    TscBehind {
        /// The index of the vCPU.
        vcpu: u32,
        /// The value in the state.
        saved: u64,
        /// The value that the guest would see.
        now: u64,
    },
    /// The guest itself uses virtualization.
    #[error(
        "vCPU {vcpu}: the guest uses nested virtualization, whose state cannot be saved; unload its hypervisor \
         (modprobe -r kvm_intel kvm_amd), or give it a CPU template without VMX and SVM"
    )]
    NestedVirtualization {
        /// The index of the vCPU.
        vcpu: u32,
    },
    /// KVM has not finished the guest's last access to a device.
    #[error("vCPU {vcpu}: its last access to a device is not complete; complete it before the vCPU is saved")]
    AccessPending {
        /// The index of the vCPU.
        vcpu: u32,
    },
    /// KVM reports a value that this version does not know.
    #[error("vCPU {vcpu}: KVM reports {value} as {field}, which Coracle does not know; use a newer Coracle")]
    Unknown {
        /// The index of the vCPU.
        vcpu: u32,
        /// The name of the field.
        field: &'static str,
        /// The value.
        value: u32,
    },
    /// The state is that of a machine with another number of vCPUs.
    #[error("vcpus: the state is that of {saved} vCPUs, and this machine has {vcpus}; make it with {saved}")]
    Count {
        /// The number of vCPUs in the state.
        saved: usize,
        /// The number of vCPUs of the machine.
        vcpus: usize,
    },
}
