//! The only module that calls `/dev/kvm`. The builder, the vCPU threads and the host probe use it.
//!
//! It turns ioctls into typed calls and typed exits, and holds no policy: [`crate::vcpu`] decides what an
//! exit means to the virtual machine.

mod clock;
mod inspect;
mod interrupts;
mod kick;
mod module;
mod probe;
mod state;
mod system;
#[cfg(test)]
pub(crate) mod testing;
mod timer;
mod vcpu;
mod vcpu_state;
mod vm;

pub(crate) use inspect::{Activity, CodePlace};
pub(crate) use interrupts::Interrupts;
pub(crate) use kick::Kicker;
pub use module::module;
pub(crate) use probe::ProbeMachine;
pub(crate) use system::{Kvm, hides_xsave};
pub(crate) use vcpu::{Vcpu, VcpuExit};
pub use vcpu::{VcpuFault, VcpuRegisters};
pub use vcpu_state::StateError;
pub(crate) use vcpu_state::StateFormat;
pub(crate) use vcpu_state::restore_vcpus;
pub(crate) use vm::{KvmVm, WeakKvmVm};

use std::path::PathBuf;

use coracle_arch::field::ACCEL;
use vmm_sys_util::errno;

/// The reason why KVM could not be used, or a virtual machine not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmError {
    /// The device node does not exist.
    #[error(
        "{} does not exist: this kernel has no KVM, or its module is not loaded (modprobe kvm_intel or kvm_amd); \
         `{ACCEL} emulate` needs no KVM",
        path.display()
    )]
    Missing {
        /// The device node.
        path: PathBuf,
    },
    /// This user may not open the device node.
    #[error(
        "{} cannot be opened by this user: join its group (usermod -aG kvm $USER, then log in again) or ask for \
         read and write permission on it",
        path.display()
    )]
    Denied {
        /// The device node.
        path: PathBuf,
    },
    /// The device node cannot be opened for another reason.
    #[error("{} cannot be opened: {source}", path.display())]
    Open {
        /// The device node.
        path: PathBuf,
        /// The error that the kernel returned.
        r#source: errno::Error,
    },
    /// The device is not KVM, or a KVM from before 2007.
    #[error("{} has KVM API version {version}; Coracle needs 12", path.display())]
    ApiVersion {
        /// The device node.
        path: PathBuf,
        /// The version that it returned.
        version: i32,
    },
    /// KVM lacks a capability that every virtual machine needs.
    #[error("this KVM lacks {capability}, which Coracle needs: a newer host kernel has it")]
    Capability {
        /// The name in `linux/kvm.h`.
        capability: &'static str,
    },
    /// A call failed.
    #[error("KVM refused {call}: {source}")]
    Call {
        /// The ioctl and its purpose.
        call: &'static str,
        /// The error that KVM returned.
        r#source: errno::Error,
    },
    /// A model-specific register that the boot protocol or a CPU template sets was refused.
    #[error("KVM refused model-specific register {msr:#x}")]
    Msr {
        /// The number of the register.
        msr: u32,
    },
}

/// Names the ioctl that failed.
pub(crate) fn call<T>(call: &'static str, result: Result<T, errno::Error>) -> Result<T, KvmError> {
    result.map_err(|source| KvmError::Call { call, source })
}
