//! Why a template or a fork was not made.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use coracle_arch::x86_64::cpuid::CpuFeature;
use coracle_devices::event_loop::HAND_BACK_LIMIT;
use coracle_devices::state::StateError;

use crate::agent::AgentError;
use crate::exit_code;
use crate::kvm::{KvmError, StateError as VcpuError};
use crate::memory::MemoryError;
use crate::snapshot_files::{SnapshotFileError, SnapshotId};
use crate::virtio::{BranchError, RepointError};
use crate::vm::BuildError;
use crate::vm::build_error::of_kvm;
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
    #[error(
        "snapshot: the state of the device {device} cannot be saved; leave it out, or, if it is a disk with 64 \
         overlays over each other, let a machine go on from its last snapshot in files"
    )]
    Device {
        /// The name of the device.
        device: String,
    },
    /// A vCPU did not leave the guest in time.
    #[error("snapshot: a vCPU did not leave the guest within {} s; try again", STOP_LIMIT.as_secs())]
    Busy,
    /// A device did not finish its requests in time.
    #[error(
        "snapshot: the device {device} did not finish what it had begun within {} s; try again",
        HAND_BACK_LIMIT.as_secs()
    )]
    DeviceBusy {
        /// The name of the device.
        device: String,
    },
    /// The agent in the guest of a fork did not confirm its identity.
    #[error(
        "the guest has not taken over its identity, for which it has {} s: {source}; look at its console, or fork a \
         machine without an agent",
        limit.as_secs()
    )]
    Identity {
        /// The time that it has.
        limit: Duration,
        /// The error of the agent.
        r#source: Box<AgentError>,
    },
    /// Another snapshot of the machine is being made.
    #[error("snapshot: another snapshot of this machine is being made; wait until it is complete")]
    InProgress,
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
    /// The files of a snapshot cannot be written, or be used.
    #[error(transparent)]
    Files(#[from] SnapshotFileError),
    /// The machine does not go on from the snapshot over which another is to lie.
    #[error(
        "snapshot {}: nobody knows what has changed since this snapshot ({id}), because the machine neither was \
         restored from it nor has written it last; take one with all memory (snapshot_base)",
        parent.display()
    )]
    OtherParent {
        /// The path of the snapshot that was to be the parent.
        parent: PathBuf,
        /// Its id.
        id: SnapshotId,
    },
    /// The host starts no thread for the work.
    #[error("snapshot: the host cannot start a thread to write it: {0}")]
    Thread(io::Error),
    /// The machine ran on another kind of KVM.
    #[error(
        "snapshot {}: the machine ran on {saved}, and this host has {host}; restore it on a host with {saved}",
        folder.display()
    )]
    KvmKind {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The kernel's module on that host.
        saved: String,
        /// The kernel's module on this host.
        host: &'static str,
    },
    /// The guest was shown the CPU of another vendor.
    #[error(
        "snapshot {}: the guest was shown a CPU of {saved}, and that of this host is of {host}; restore it on a host \
         with a CPU of {saved}",
        folder.display()
    )]
    CpuVendor {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The vendor that the guest was shown.
        saved: String,
        /// The vendor of this host's CPU.
        host: String,
    },
    /// The CPU of this host lacks features that the guest was shown.
    #[error(
        "snapshot {}: this host's CPU lacks what the guest was shown: {}; restore it on a host that has it, or \
         take snapshots of machines with the CPU model baseline",
        folder.display(),
        list(features)
    )]
    CpuFeatures {
        /// The path of the snapshot.
        folder: PathBuf,
        /// The missing features; at most 64.
        features: Vec<CpuFeature>,
    },
    /// A device cannot be connected to the host.
    #[error(transparent)]
    Repoint(#[from] RepointError),
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

impl From<BranchError> for SnapshotError {
    fn from(error: BranchError) -> SnapshotError {
        match error {
            BranchError::Refused(device) => SnapshotError::Device { device },
            BranchError::Layer(error) => BuildError::from(error).into(),
        }
    }
}

impl SnapshotError {
    /// Returns the exit code that the command gives this error: 115 if KVM cannot be used, otherwise 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            SnapshotError::Kvm(error) => of_kvm(error),
            SnapshotError::Build(error) => error.exit_code(),
            SnapshotError::Fork { index: _, source } => source.exit_code(),
            _ => exit_code::BAD_USAGE,
        }
    }
}

fn list(features: &[CpuFeature]) -> String {
    features.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
