//! The clock that the vCPUs of a machine share. Freezing a machine reads it, restoring one sets it.

use coracle_arch::x86_64::vcpu_state::VmClockState;
use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, kvm_clock_data};

use super::{KvmError, KvmVm, call};

impl KvmVm {
    /// Returns the clock behind kvm-clock. Read it after all vCPUs have stopped, so that none has seen a
    /// later time.
    pub(crate) fn clock(&self) -> Result<VmClockState, KvmError> {
        let clock = call("KVM_GET_CLOCK", self.fd.get_clock())?;
        let kvm_clock_data { clock: nanoseconds, flags, realtime, host_tsc, pad0: _, pad: _ } = clock;
        let has = |flag: u32| flags & flag != 0;
        Ok(VmClockState {
            nanoseconds,
            is_stable: has(KVM_CLOCK_TSC_STABLE),
            realtime_nanoseconds: has(KVM_CLOCK_REALTIME).then_some(realtime),
            host_tsc: has(KVM_CLOCK_HOST_TSC).then_some(host_tsc),
        })
    }

    /// Makes the clock go on from where it was. The time since then has not passed for the guest: what waits
    /// for a time goes on waiting as long as it would have.
    ///
    /// Set it before the vCPUs are restored. Their registers for kvm-clock make KVM write the date of the
    /// guest's start to the guest's memory, computed from this clock and the host's.
    ///
    /// # Errors
    /// KVM refuses the call.
    pub(crate) fn set_clock(&self, state: &VmClockState) -> Result<(), KvmError> {
        // The others describe the host of that instant.
        let &VmClockState { nanoseconds, is_stable: _, realtime_nanoseconds: _, host_tsc: _ } = state;
        let clock = kvm_clock_data { clock: nanoseconds, ..Default::default() };
        call("KVM_SET_CLOCK", self.fd.set_clock(&clock))
    }
}
