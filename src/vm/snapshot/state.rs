//! The state of a whole machine as plain data.

use coracle_arch::x86_64::vcpu_state::VmClockState;
use coracle_devices::state::SavedState;
use coracle_devices::virtio::state::SavedDevice;
use serde::{Deserialize, Serialize};

use crate::vcpu::SavedVcpu;

/// The state of a machine, apart from its RAM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MachineState {
    /// The vCPUs in the order of their indices.
    pub(super) vcpus: Vec<SavedVcpu>,
    /// The clock that all vCPUs share.
    pub(super) clock: VmClockState,
    /// The legacy devices with their names.
    pub(super) legacy: Vec<(String, SavedState)>,
    /// The virtio devices with their names, in their order.
    pub(super) virtio: Vec<(String, SavedDevice)>,
    /// The token of the session with the guest's agent, if there was one.
    pub(super) agent: Option<u64>,
}
