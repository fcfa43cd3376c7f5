//! Why a template or a fork was not made.

use coracle_devices::state::StateError;

use crate::kvm::{KvmError, StateError as VcpuError};
use crate::memory::MemoryError;
use crate::vm::BuildError;
use crate::vm::vcpus::STOP_LIMIT;

/// Why a machine did not become a template, or a template has no fork. Unless said otherwise, the machine
/// runs on as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The machine has ended.
    #[error("snapshot: the machine has ended; take the snapshot while it runs")]
    Ended,
    /// The machine was not started yet.
    #[error("snapshot: the machine has not been started; call `resume` first")]
    NotStarted,
    /// The owner has paused the machine.
    #[error("snapshot: the machine is paused; call `resume` first, a snapshot pauses it by itself")]
    Paused,
    /// The machine has a device whose state cannot be saved.
    #[error("snapshot: the state of the device {device} cannot be saved; leave the device out")]
    Device {
        /// The name of the device.
        device: String,
    },
    /// A vCPU did not leave the guest in time.
    #[error("snapshot: a vCPU did not leave the guest within {} s; try again", STOP_LIMIT.as_secs())]
    Busy,
    /// The state of a vCPU cannot be saved or restored.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// KVM refuses a request.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The state of a device does not fit this version.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host cannot provide the memory. If the machine was to become a template, it has ended.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A fork cannot be built.
    #[error("fork {index}: {source}")]
    Fork {
        /// The index of the fork, from 0.
        index: usize,
        /// The cause.
        r#source: Box<SnapshotError>,
    },
    /// A part of a fork cannot be built as that of any machine.
    #[error(transparent)]
    Build(Box<BuildError>),
}
