//! Coracle: a lightweight virtual machine monitor for Linux KVM.
//!
//! A [`Vm`] is built from a [`VmConfig`](config::VmConfig), runs on threads of its own, and ends with an
//! [`Outcome`](outcome::Outcome). The library has no global state, installs no signal handler, never ends the
//! process and prints nothing: many virtual machines can live in one program.
//!
//! ```no_run
//! use coracle::{Vm, config::VmConfig};
//!
//! let mut config = VmConfig::new("vmlinux");
//! config.memory = "512M".parse()?;
//! let outcome = Vm::builder(config).run()?;
//! println!("{}", outcome.ending);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("Coracle runs on x86-64 Linux");

pub mod agent;
pub mod compression;
pub mod config;
mod console;
mod control;
pub mod cpu;
pub mod diagnosis;
pub mod emulated_host;
pub mod guest_data;
pub mod host;
pub mod initramfs;
mod io_loop;
pub mod kernel_image;
mod kvm;
mod memory;
pub mod terminal;
mod vcpu;
mod virtio;
mod vm;

/// Connections between this program and ports of the guest: [`VmHandle::connect`], [`VmHandle::listen`].
pub mod vsock {
    pub use coracle_devices::virtio::vsock::{ConnectError, ListenError, PortListener};

    pub use crate::virtio::VsockPortError;
}

pub use console::{ConsoleError, ConsoleStreams};
pub use coracle_arch::x86_64::image::KernelImage;
pub use coracle_devices::virtio::balloon::BalloonStatus;
pub use coracle_devices::virtio::net::NetCounts;
pub use kvm::{KvmError, VcpuFault, VcpuRegisters};
pub use memory::MemoryError;
pub use vcpu::{AffinityError, ExitCounts};
pub use virtio::VirtioError;
pub use vm::{BuildError, Vm, VmBuilder, VmHandle, outcome};
