//! The clock that all vCPUs of a machine share.

use serde::{Deserialize, Serialize};

/// The clock behind kvm-clock, at one instant (KVM_GET_CLOCK).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VmClockState {
    /// Nanoseconds since the machine was made, without the times in which its clock stood still.
    pub nanoseconds: u64,
    /// Whether each vCPU sees exactly this clock, because the host's time-stamp counter is reliable.
    pub is_stable: bool,
    /// CLOCK_REALTIME of the host at that instant, in nanoseconds: by KVM if it reports it.
    pub realtime_nanoseconds: Option<u64>,
    /// The host's time-stamp counter at that instant, if KVM reports it.
    pub host_tsc: Option<u64>,
}
