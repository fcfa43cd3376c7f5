//! Takes the state out of the vCPUs of a stopped machine, and puts it into those of another.
//!
//! A vCPU is saved by its own thread while it is parked (`crate::vcpu`). A machine is restored before its
//! threads start: memory, CPUID and the clock ([`KvmVm::set_clock`]) come first, then [`restore_vcpus`].
//! The state itself is plain data, `coracle_arch::x86_64::vcpu_state`.
//!
//! [`KvmVm::set_clock`]: super::KvmVm::set_clock

mod convert;
mod error;
mod events;
mod format;
mod msrs;
mod restore;
mod save;
mod tsc;

pub use error::StateError;
pub(crate) use format::StateFormat;
pub(crate) use restore::restore_vcpus;
pub(crate) use tsc::TscStart;

use vmm_sys_util::errno;

use super::vcpu::Vcpu;
use super::{KvmError, call};

impl Vcpu {
    /// Names the vCPU and the ioctl that failed.
    fn state_call<T>(&self, name: &'static str, result: Result<T, errno::Error>) -> Result<T, StateError> {
        call(name, result).map_err(|source| self.state_error(source))
    }

    fn state_error(&self, source: KvmError) -> StateError {
        StateError::Kvm { vcpu: self.index(), source }
    }
}

#[cfg(test)]
mod tests;
