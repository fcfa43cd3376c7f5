//! The time-stamp counters of a machine: all of them go on from one instant, and none goes back.

use std::borrow::Borrow;

use coracle_arch::x86_64::vcpu_state::{TscState, VcpuState};
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use super::msrs::IA32_TSC;
use super::{StateError, StateFormat};
use crate::kvm::vcpu::Vcpu;

/// The instant at which the time-stamp counters of a restored machine go on: the last at which one of them
/// was saved. The time between saving and restoring does not pass for the guest, as it does not for its
/// kvm-clock. A KVM that gives guests the host's own counter (`kvm_pvm`) cannot do that, and there it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TscStart {
    /// The saved differences to the host's counter are moved by this many ticks.
    Shift(i64),
    /// Each counter is set to this value, because KVM does not report the differences. Within a second KVM
    /// takes equal values for the same instant.
    Value(u64),
}

impl TscStart {
    /// Chooses the instant for vCPUs with these states, of which `elapsed` nanoseconds more have passed.
    /// `first` is one of the vCPUs, which have the frequencies of their states.
    ///
    /// # Errors
    /// KVM refuses a call.
    pub(super) fn new(
        first: &Vcpu,
        states: &[impl Borrow<VcpuState>],
        elapsed: u64,
    ) -> Result<TscStart, StateError> {
        let khz = u128::from(first.tsc_khz().unwrap_or_default());
        let elapsed = (u128::from(elapsed).saturating_mul(khz) / 1_000_000) as u64;
        let saved: Vec<TscState> = states.iter().map(|state| state.borrow().tsc).collect();
        // The host's counter, in the guest's frequency, when each of them was saved.
        let hosts: Option<Vec<u64>> =
            saved.iter().map(|tsc| Some(host_ticks(tsc.value, tsc.offset?))).collect();
        if let (Some(hosts), Some(offset)) = (hosts, first.tsc_offset()) {
            let (stopped, now) = (latest(&hosts), host_ticks(first.tsc()?, offset));
            return Ok(TscStart::Shift(stopped.wrapping_sub(now).wrapping_add(elapsed).cast_signed()));
        }
        let values: Vec<u64> = saved.iter().map(|tsc| tsc.value).collect();
        let value = latest(&values).wrapping_add(elapsed);
        // Before Linux 6.8, KVM takes a first value of less than a second for that of a new vCPU. Setting a
        // value that is far away prevents that.
        first.write_msrs(&[(IA32_TSC, value ^ FAR)])?;
        Ok(TscStart::Value(value))
    }
}

impl Vcpu {
    /// Returns the time-stamp counter as it is now.
    pub(super) fn tsc_state(&self) -> Result<TscState, StateError> {
        Ok(TscState { khz: self.tsc_khz(), value: self.tsc()?, offset: self.tsc_offset() })
    }

    fn tsc(&self) -> Result<u64, StateError> {
        self.msr(IA32_TSC).map_err(|source| self.state_error(source))
    }

    /// Gives the vCPU the saved frequency, if it differs from its own by more than KVM tolerates.
    pub(super) fn match_tsc_frequency(
        &self,
        saved: Option<u32>,
        format: &StateFormat,
    ) -> Result<(), StateError> {
        let Some(saved) = saved else { return Ok(()) };
        let host = self.tsc_khz();
        if host.is_some_and(|host| is_tolerated(saved, host)) {
            return Ok(());
        }
        if !format.scales_tsc {
            return Err(StateError::TscFrequency { vcpu: self.index(), saved, host });
        }
        self.state_call("KVM_SET_TSC_KHZ", self.fd.set_tsc_khz(saved))
    }

    /// Lets the time-stamp counter go on from `start`.
    pub(super) fn start_tsc(&self, saved: &TscState, start: TscStart) -> Result<(), StateError> {
        match (start, saved.offset) {
            (TscStart::Shift(ticks), Some(offset)) => {
                let result = self.set_tsc_offset(offset.wrapping_add(ticks));
                self.state_call("KVM_SET_DEVICE_ATTR of the TSC offset", result)?;
            }
            (TscStart::Shift(_), None) => self.write_msrs(&[(IA32_TSC, saved.value)])?,
            (TscStart::Value(value), _) => self.write_msrs(&[(IA32_TSC, value)])?,
        }
        let now = self.tsc()?;
        if is_before(now, saved.value) {
            return Err(StateError::TscBehind { vcpu: self.index(), saved: saved.value, now });
        }
        Ok(())
    }

    /// Returns the difference to the host's counter; `None` before Linux 5.16.
    fn tsc_offset(&self) -> Option<i64> {
        let mut offset = 0i64;
        let attribute = tsc_offset_attribute(&raw mut offset);
        // SAFETY: the vCPU is open, and KVM writes 8 bytes to the address, which is that of `offset`.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &attribute) };
        (result == 0).then_some(offset)
    }

    fn set_tsc_offset(&self, mut offset: i64) -> Result<(), errno::Error> {
        let attribute = tsc_offset_attribute(&raw mut offset);
        // SAFETY: the vCPU is open, and KVM reads 8 bytes from the address, which is that of `offset`.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &attribute) };
        if result == 0 { Ok(()) } else { Err(errno::Error::last()) }
    }
}

/// KVM_VCPU_TSC_OFFSET, Documentation/virt/kvm/devices/vcpu.rst.
fn tsc_offset_attribute(offset: *mut i64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset.addr() as u64,
    }
}

fn host_ticks(value: u64, offset: i64) -> u64 {
    value.wrapping_sub(offset.cast_unsigned())
}

/// Returns the latest of some values of a counter that may wrap; 0 if there are none.
fn latest(values: &[u64]) -> u64 {
    let later = |one: u64, other: u64| if is_before(one, other) { other } else { one };
    values.iter().copied().reduce(later).unwrap_or(0)
}

/// Returns whether a counter that may wrap had the value `one` before `other`.
fn is_before(one: u64, other: u64) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// Returns whether two frequencies are the same for KVM, whose default `tsc_tolerance_ppm` is 250.
fn is_tolerated(saved: u32, host: u32) -> bool {
    let (saved, host) = (u64::from(saved), u64::from(host));
    saved.abs_diff(host).saturating_mul(1_000_000) <= host.saturating_mul(250)
}

/// More ticks than any CPU makes in a second.
const FAR: u64 = 1 << 62;

// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)` and `_IOW(KVMIO, 0xe2, ..)`, Documentation/virt/kvm/api.rst,
// 4.80 and 4.81; kvm-ioctls has no such call for the vCPUs of x86.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_wrap_are_compared() {
        assert_eq!(latest(&[5, 9, 7]), 9);
        assert_eq!(latest(&[u64::MAX - 1, 3, u64::MAX]), 3);
        assert!(is_before(u64::MAX, 0) && !is_before(0, u64::MAX) && !is_before(4, 4));
    }

    #[test]
    fn frequencies_within_250_ppm_are_the_same() {
        assert!(is_tolerated(2_600_000, 2_600_650) && is_tolerated(2_600_650, 2_600_000));
        assert!(!is_tolerated(2_600_000, 2_601_000) && !is_tolerated(2_601_000, 2_600_000));
        assert!(!is_tolerated(u32::MAX, 1) && !is_tolerated(1, u32::MAX));
    }
}
