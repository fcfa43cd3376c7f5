//! The one-shot timer of a local APIC, whose expiry KVM keeps for itself until the next entry into the guest.

use coracle_arch::x86_64::lapic;

use super::kick;
use super::vcpu::{Vcpu, VcpuExit};

impl Vcpu {
    /// Lets KVM raise the interrupt of a one-shot timer that has expired. Afterwards such a timer has nothing
    /// left to do, which [`Vcpu::save`] takes into account until the next entry into the guest.
    ///
    /// KVM raises it on the way into the guest. A kick that is pending ends that way before the first
    /// instruction. The caller's thread blocks all signals, and [`Vcpu::allow_kicks`] was called.
    pub(crate) fn settle_timer(&mut self) -> Option<VcpuExit<'_>> {
        if self.timer_is_done || !self.fd.get_lapic().is_ok_and(|page| lapic::has_expired_timer(&page.regs)) {
            return None;
        }
        kick::kick_this_thread();
        let result = self.fd.run().map(drop);
        if !matches!(&result, Err(error) if error.errno() == libc::EINTR) {
            return Some(self.exit(result));
        }
        self.exit(result);
        self.timer_is_done = true;
        None
    }
}
