//! What can go wrong when a virtual machine is built.

use std::io;

use coracle_arch::field::{MEMORY, VCPUS};
use coracle_arch::x86_64::acpi::AcpiError;
use coracle_arch::x86_64::input_file::InputFileError;
use coracle_arch::x86_64::load::LoadError;
use coracle_arch::x86_64::mptable::MpTableError;
use coracle_image::guest_data::GuestDataMissing;
use coracle_image::initramfs::{InitrdError, LoaderError};
use coracle_image::kernel_image::KernelError;
use coracle_image::rootfs::RootError;

use super::platform::PlatformError;
use crate::agent::AttachError;
use crate::config::{ConfigError, MemorySize};
use crate::console::ConsoleError;
use crate::cpu::CpuError;
use crate::error::Whole;
use crate::exit_code;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::vcpu::AffinityError;
use crate::virtio::VirtioError;

/// Why a virtual machine was not built. Nothing of it is left. Its text has the causes, too; those that are
/// types of other modules are in [`crate::error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A value cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The default guest was asked for, and is not there.
    #[error(transparent)]
    DefaultGuest(#[from] GuestDataMissing),
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An initrd cannot be used.
    #[error(transparent)]
    Initrd(#[from] InputFileError),
    /// Linux would not unpack an initrd.
    #[error(transparent)]
    InitrdKind(#[from] InitrdError),
    /// The root file system cannot be had.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The modules that the devices need cannot be had.
    #[error(transparent)]
    Modules(#[from] LoaderError),
    /// The console cannot be connected.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest cannot have this CPU.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// More vCPUs than this KVM can run.
    #[error("{VCPUS} {wanted}: this KVM runs at most {most} vCPUs in one virtual machine")]
    TooManyVcpus {
        /// As configured.
        wanted: u32,
        /// KVM_CAP_MAX_VCPUS.
        most: usize,
    },
    /// The vCPUs cannot run on these CPUs of the host.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// A virtio device cannot be had.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// The agent cannot be had.
    #[error(transparent)]
    Agent(#[from] AttachError),
    /// The agent was asked for with a kernel that has no system for it.
    #[error(
        "agent: a kernel of one's own has no system to run the agent in; give a root (`root_dir`, `root_tar`, \
         `root_image`), or an initrd or a disk that `root=` names with AgentPlace::FirstProcess or BesideInit"
    )]
    AgentWithoutRoot,
    /// KVM does not take a machine with so much memory.
    #[error("{MEMORY} {size}: {source}; give less memory")]
    MemoryRefused {
        /// What the configuration asks for.
        size: MemorySize,
        /// What KVM said.
        r#source: KvmError,
    },
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The devices cannot be made.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The ACPI tables cannot be written.
    #[error("the ACPI tables cannot be written: {}", Whole(.0))]
    Acpi(AcpiError),
    /// The MP table cannot be written.
    #[error("the MP table cannot be written: {}", Whole(.0))]
    MpTable(MpTableError),
    /// The kernel does not fit, or cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The host gives no more threads or event descriptors.
    #[error("the host cannot start {what}: {source}")]
    Thread {
        /// What was to be started.
        what: &'static str,
        /// What the system said.
        r#source: io::Error,
    },
}

impl From<MpTableError> for BuildError {
    fn from(error: MpTableError) -> BuildError {
        BuildError::MpTable(error)
    }
}

impl From<AcpiError> for BuildError {
    fn from(error: AcpiError) -> BuildError {
        BuildError::Acpi(error)
    }
}

impl BuildError {
    /// The process exit code for it: 115 when there is no usable KVM, else 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            BuildError::Kvm(error) | BuildError::Cpu(CpuError::Kvm(error)) => match error {
                KvmError::Missing { .. }
                | KvmError::Denied { .. }
                | KvmError::Open { .. }
                | KvmError::ApiVersion { .. }
                | KvmError::Capability { .. } => exit_code::NO_KVM,
                KvmError::Call { .. } | KvmError::Msr { .. } => exit_code::BAD_USAGE,
            },
            _ => exit_code::BAD_USAGE,
        }
    }
}
