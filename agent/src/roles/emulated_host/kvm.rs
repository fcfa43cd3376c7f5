//! Prepares this machine's KVM before the command can use it.

use std::fs;

use crate::report::report;

/// How far a vCPU's TSC frequency may be from the machine's, in millionths, before KVM has to scale it
/// (Linux, `arch/x86/kvm/x86.c`).
const TSC_TOLERANCE: &str = "/sys/module/kvm/parameters/tsc_tolerance_ppm";

/// The kernel takes a refined frequency only if it differs from that of early boot by at most 1 % (Linux,
/// `arch/x86/kernel/tsc.c`). KVM compares in relation to the refined one, so that a little more is needed.
const LARGEST_REFINEMENT: &str = "11000";

/// Lets vCPUs keep the frequency of early boot after the kernel has refined its own.
///
/// KVM notes the early frequency when it is loaded and gives it to every vCPU. On a busy host the early
/// measurement is often wrong by more than KVM's own 250 millionths. This machine has no TSC scaling; KVM
/// then leaves the vCPU without a usable clock ("user requested TSC rate below hardware speed"), and the
/// timers of its guest never end.
pub(super) fn tolerate_refined_tsc() {
    if let Err(error) = fs::write(TSC_TOLERANCE, LARGEST_REFINEMENT) {
        report(&format!("cannot write {TSC_TOLERANCE}: {error}; timers of guests may never end"));
    }
}
