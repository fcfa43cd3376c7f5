//! Coracle: a lightweight virtual machine monitor for Linux KVM.
//!
//! A [`Vm`] is built from a [`VmConfig`], runs on threads of its own, and ends with an [`Outcome`].
//! Besides the state of its machines, the library keeps only the CPUID that
//! KVM supports, which it reads once. It installs no signal handler, never ends the process and prints
//! nothing, so that many virtual machines can live in one program.
//!
//! ```
//! use std::time::Duration;
//!
//! use coracle::{Ending, Grace, Vm};
//!
//! # if coracle::host::check_kvm().is_err() { return Ok(()) }
//! # let kernel = std::env::temp_dir().join(format!("coracle-doc-{}.elf", std::process::id()));
//! # std::fs::write(&kernel, coracle_payload::Payload::named("hello-halt").unwrap().elf())?;
//! let vm = Vm::builder()
//!     .kernel(&kernel)                       // without it: the default guest
//!     .memory_mib(64)
//!     .cpus(2)
//!     .timeout(Duration::from_secs(20))
//!     .console_callback(|bytes| print!("{}", String::from_utf8_lossy(bytes)))
//!     .start()?;
//! let handle = vm.handle();                  // for other threads: pause, resume, stop, wait, events
//! assert!(handle.pause());
//! handle.resume();
//! let outcome = vm.stop(Grace::NONE);        // dropping the Vm stops it too
//! assert_eq!(outcome.ending, Ending::Stopped);
//! # std::fs::remove_file(&kernel)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Contents
//!
//! - Describe a machine: [`Vm::builder`], [`VmBuilder`] for common settings, [`VmConfig`] for all settings;
//!   [`Disk`], [`Net`], [`Root`], [`AgentConfig`].
//! - Make sure that there is a KVM first: [`host::ensure_kvm`], [`host::check_kvm`]. [`guest_data`] finds the
//!   default guest.
//! - Run it: [`Vm`], [`VmHandle`] for other threads, [`Event`] and [`Subscription`], [`Grace`].
//! - See how it is stuck: [`VmHandle::registers`] of a paused machine, [`VmBuilder::boot_timeout`] and
//!   [`VmBuilder::idle_timeout`] for the diagnosis of one that makes no progress.
//! - Learn how it ended: [`Outcome`], [`Ending`], [`diagnosis::Diagnosis`], [`exit_code`].
//! - Run commands in the guest and move files: [`Vm::exec`], [`Vm::read_file`], [`agent`].
//! - Read and feed the console: [`VmBuilder::console_callback`], [`ConsolePipe`], [`ConsoleStreams`].
//! - Talk to ports of the guest: [`vsock`], [`VmHandle::connect`], [`VmHandle::listen`].
//! - Keep its state: [`Vm::freeze`] and [`Template`], [`Vm::snapshot_to`] and [`Vm::restore`], [`snapshot`].
//! - Measure it: [`ExitCounts`], [`NetCounts`], [`BalloonStatus`].
//! - Prepare root file systems in advance: [`rootfs::write_image`].
//! - Handle errors: [`BuildError`], [`host::EnsureKvmError`], and [`error`] for the errors that they contain.
//!
//! The feature `tokio` adds calls for async tasks, whose names end in `_async`, beside the blocking ones.
//! The feature `bundled-agent` puts the guest agent into the library. The command is a package of its own,
//! `coracle-cli`.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("Coracle runs on x86-64 Linux");

pub mod agent;
pub mod config;
mod console;
mod cpu;
pub mod diagnosis;
mod emulated_host;
mod ending;
pub mod error;
pub mod exit_code;
mod gate;
pub mod host;
mod io_loop;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod kvm;
mod memory;
mod snapshot_files;
mod terminal;
mod thread;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod vcpu;
mod virtio;
mod vm;

/// Parts of the library that only the command uses. They are not an interface: they change whenever the
/// package `coracle-cli`, which is built from the same tree, needs it.
#[doc(hidden)]
pub mod command {
    pub use crate::cpu::dump as dump_cpu;
    pub use crate::ending::signal_name;
    pub use crate::terminal::{Asked, Escape, RawTerminal, standard_input, terminal_mode, terminal_size};

    /// Running a command on an emulated host. Programs call [`ensure_kvm`](crate::host::ensure_kvm) instead.
    pub mod emulated_host {
        pub use crate::emulated_host::{
            EmulatedExit, EmulatedHostArgs, check, default_cpus, default_memory_mib, run,
        };
    }
}

/// Parts of the library that fuzz targets drive without a machine. They are not an interface either.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::vm::{LegacyPlatform, read_manifest, read_state, show_state};
}

/// Finding the files of the default guest, which come with Coracle.
pub mod guest_data {
    pub use coracle_image::guest_data::{
        AgentProgramError, GuestData, GuestDataMissing, IS_AGENT_BUNDLED, find,
    };
}

/// Root file systems of guests, prepared before the machines: [`rootfs::write_image`].
pub mod rootfs {
    pub use coracle_image::rootfs::{
        DirectoryError, EntryError, ImageError, ImageReport, LeftOut, RootError, RootSource, TarError,
        UnpackError, kind_of, write_image,
    };
}

/// The files of snapshots: what is in them, and whether they are whole. [`VmHandle::snapshot_to`] and
/// [`Template::save_to`] write them, [`Vm::restore`] and [`Template::load`] use them.
pub mod snapshot {
    pub use crate::snapshot_files::{
        DiskFileError, HostFacts, MachineFacts, ManifestError, MemoryFileError, ParentFacts,
        SnapshotFileError, SnapshotId, StateFileError,
    };
    pub use crate::vm::{RecordedDevice, SnapshotInfo, check, check_free, info, merge};
}

/// Connections between this program and ports of the guest: [`VmHandle::connect`], [`VmHandle::listen`].
pub mod vsock {
    pub use coracle_devices::virtio::listener::{ListenError, PortListener};
    pub use coracle_devices::virtio::vsock::{ConnectError, HostSocketError, VsockError};

    pub use crate::virtio::VsockPortError;
}

pub use config::{AgentConfig, DiskConfig as Disk, NetConfig as Net, RootConfig as Root, VmConfig};
pub use console::{ConsoleError, ConsolePipe, ConsoleStreams};
pub use coracle_arch::x86_64::image::KernelImage;
pub use coracle_devices::virtio::balloon::BalloonStatus;
pub use coracle_devices::virtio::console::TerminalSize;
pub use coracle_devices::virtio::net::NetCounts;
pub use cpu::CpuError;
pub use kvm::{KvmError, StateError as VcpuStateError, VcpuFault, VcpuRegisters};
pub use memory::MemoryError;
pub use vcpu::{AffinityError, ExitCounts};
pub use virtio::{DeviceInfo, RepointError, VirtioError};
pub use vm::outcome::{Ending, Outcome};
pub use vm::{
    BuildError, Event, Fork, Grace, GuestTime, PlatformError, RegistersError, Restore, SnapshotError,
    Subscription, Template, Vm, VmBuilder, VmHandle, outcome,
};
