//! Coracle: a lightweight virtual machine monitor for Linux KVM.
//!
//! A [`Vm`] is built from a [`VmConfig`](config::VmConfig), runs on threads of its own, and ends with an
//! [`Outcome`](outcome::Outcome). The library keeps no state but that of its machines (and what KVM says of
//! the host's CPU, asked once), installs no signal handler, never ends the process and prints nothing: many
//! virtual machines can live in one program.
//!
//! ```
//! use std::time::Duration;
//!
//! use coracle::{Grace, Vm};
//! use coracle::outcome::Ending;
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
//! - Describe a machine: [`Vm::builder`], [`VmBuilder`] for what programs set most, [`config::VmConfig`] for
//!   everything; [`Disk`], [`Net`], [`Root`].
//! - Make sure of KVM first: [`host::ensure_kvm`], [`host::check_kvm`].
//! - Run it: [`Vm`], [`VmHandle`] for other threads, [`Event`] and [`Subscription`], [`Grace`].
//! - Learn how it ended: [`outcome::Outcome`], [`outcome::Ending`], [`diagnosis::Diagnosis`], [`exit_code`].
//! - Run commands in the guest and move files: [`Vm::exec`], [`Vm::read_file`], [`agent`].
//! - Read and feed the console: [`VmBuilder::console_callback`], [`ConsolePipe`], [`ConsoleStreams`].
//! - Talk to ports of the guest: [`vsock`], [`VmHandle::connect`], [`VmHandle::listen`].
//! - Measure it: [`ExitCounts`], [`NetCounts`], [`BalloonStatus`], [`VmHandle::registers`].
//! - Make root file systems ahead: [`rootfs::write_image`].
//! - Handle what goes wrong: [`BuildError`] and [`error`].
//!
//! [`cpu`], [`emulated_host`], [`guest_data`] and [`terminal`] are what the command is made of; a program
//! seldom needs more of them than their errors.
//!
//! The feature `tokio` adds calls for tasks beside those that wait on a thread: their names end in `_async`.
//! The feature `bundled-agent` puts the guest agent into the library. The command is a package of its own,
//! `coracle-cli`.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("Coracle runs on x86-64 Linux");

pub mod agent;
pub mod config;
mod console;
pub mod cpu;
pub mod diagnosis;
pub mod emulated_host;
mod ending;
pub mod error;
pub mod exit_code;
mod gate;
pub mod host;
mod io_loop;
mod kvm;
mod memory;
pub mod terminal;
mod thread;
mod vcpu;
mod virtio;
mod vm;

/// The files that Coracle brings: the default guest's and the emulated host's.
pub mod guest_data {
    pub use coracle_image::guest_data::{
        AgentProgramError, GuestData, GuestDataMissing, HostData, IS_AGENT_BUNDLED, default_kernel, find,
        find_host, has_drivers,
    };
}

/// Root file systems of guests, made ahead of the machines: [`rootfs::write_image`].
pub mod rootfs {
    pub use coracle_image::rootfs::{
        DirectoryError, EntryError, ImageError, ImageReport, LeftOut, RootError, RootSource, TarError,
        UnpackError, kind_of, write_image,
    };
}

/// Connections between this program and ports of the guest: [`VmHandle::connect`], [`VmHandle::listen`].
pub mod vsock {
    pub use coracle_devices::virtio::vsock::{ConnectError, ListenError, PortListener};

    pub use crate::virtio::VsockPortError;
}

pub use config::{DiskConfig as Disk, NetConfig as Net, RootConfig as Root};
pub use console::{ConsoleError, ConsolePipe, ConsoleStreams};
#[doc(hidden)]
pub use coracle_arch::regular_file;
pub use coracle_arch::x86_64::image::KernelImage;
pub use coracle_devices::virtio::balloon::BalloonStatus;
pub use coracle_devices::virtio::console::TerminalSize;
pub use coracle_devices::virtio::net::NetCounts;
pub use kvm::{KvmError, VcpuFault, VcpuRegisters};
pub use memory::MemoryError;
pub use vcpu::{AffinityError, ExitCounts};
pub use virtio::VirtioError;
pub use vm::{
    BuildError, Event, Grace, PlatformError, RegistersError, Subscription, Vm, VmBuilder, VmHandle, outcome,
};
