//! The errors of building a virtual machine.

use std::io;

use coracle_arch::field::{Field, MEMORY, VCPUS};
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

/// Why a virtual machine was not built. Everything that had been set up for it has been released. The message
/// includes the causes. [`crate::error`] re-exports the error types of other modules.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A value of the configuration is not valid.
    #[error("{field}: {source}")]
    Config {
        /// The setting.
        field: Field,
        /// The cause.
        r#source: ConfigError,
    },
    /// The default guest is needed but not installed.
    #[error(transparent)]
    DefaultGuest(#[from] GuestDataMissing),
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An initrd cannot be used.
    #[error(transparent)]
    Initrd(#[from] InputFileError),
    /// Linux cannot unpack an initrd.
    #[error(transparent)]
    InitrdKind(#[from] InitrdError),
    /// The root file system cannot be prepared.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The kernel modules that the devices need cannot be found or read.
    #[error(transparent)]
    Modules(#[from] LoaderError),
    /// The console cannot be connected.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host cannot give the guest this CPU model.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The configuration asks for more vCPUs than this KVM supports.
    #[error("{VCPUS} {wanted}: this KVM runs at most {most} vCPUs in one virtual machine")]
    TooManyVcpus {
        /// The configured number of vCPUs.
        wanted: u32,
        /// The host's limit, KVM_CAP_MAX_VCPUS.
        most: usize,
    },
    /// The vCPUs' threads cannot be bound to the configured CPUs of the host.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// A virtio device cannot be created.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// The agent cannot be attached.
    #[error(transparent)]
    Agent(#[from] AttachError),
    /// An agent is configured, but nothing that it could run in: neither a root nor an initrd nor a disk.
    #[error(
        "agent: a kernel of your own brings no system to run the agent in; give a root (`root_dir`, `root_tar`, \
         `root_image`), or an initrd or a disk that `root=` names with AgentPlace::FirstProcess or BesideInit"
    )]
    AgentWithoutRoot,
    /// KVM refuses a machine with this much memory.
    #[error("{MEMORY} {size}: {source}; give less memory")]
    MemoryRefused {
        /// The configured memory size.
        size: MemorySize,
        /// The error of the call to KVM.
        r#source: KvmError,
    },
    /// The host cannot provide the memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The legacy devices cannot be created.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The ACPI tables cannot be built.
    #[error("the ACPI tables cannot be written: {}", Whole(.0))]
    Acpi(AcpiError),
    /// The host has no random bytes.
    #[error("the host gives no random bytes for the machine's identity: {0}")]
    Random(std::io::Error),
    /// The MP table cannot be built.
    #[error("the MP table cannot be written: {}", Whole(.0))]
    MpTable(MpTableError),
    /// The kernel does not fit into the memory, or cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The host has run out of threads or event descriptors.
    #[error("the host cannot start {what}: {source}")]
    Thread {
        /// The purpose of the thread or descriptor.
        what: &'static str,
        /// The error of the system call.
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
    /// Returns the exit code that the command gives this error: 115 if KVM cannot be used, otherwise 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            BuildError::Kvm(error) | BuildError::Cpu(CpuError::Kvm(error)) => of_kvm(error),
            _ => exit_code::BAD_USAGE,
        }
    }
}

/// Returns the exit code that the command gives an error of KVM's: 115 if KVM cannot be used, otherwise 125.
pub(super) fn of_kvm(error: &KvmError) -> u8 {
    match error {
        KvmError::Missing { .. }
        | KvmError::Denied { .. }
        | KvmError::Open { .. }
        | KvmError::ApiVersion { .. }
        | KvmError::Capability { .. } => exit_code::NO_KVM,
        KvmError::Call { .. } | KvmError::Msr { .. } => exit_code::BAD_USAGE,
    }
}
