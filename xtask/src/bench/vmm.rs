//! The virtual machine monitors that are compared: Coracle and its peers, each with the fastest settings that
//! boot the same guest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::process;

/// A virtual machine monitor to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Coracle,
    QemuMicrovm,
    Firecracker,
    CloudHypervisor,
}

/// All, in the order of the tables' columns.
pub(super) const ALL: [Kind; 4] =
    [Kind::Coracle, Kind::QemuMicrovm, Kind::Firecracker, Kind::CloudHypervisor];

/// A monitor's program.
#[derive(Debug, Clone)]
pub(super) struct Vmm {
    pub(super) kind: Kind,
    program: PathBuf,
}

/// A bare guest with one vCPU.
#[derive(Debug)]
pub(super) struct Guest {
    kernel: PathBuf,
    memory_mib: u64,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Coracle => "coracle",
            Kind::QemuMicrovm => "QEMU microvm",
            Kind::Firecracker => "Firecracker",
            Kind::CloudHypervisor => "Cloud Hypervisor",
        })
    }
}

impl Guest {
    /// Creates the guest, with the files that the monitors need beside its kernel.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn new(kernel: &Path, memory_mib: u64) -> std::io::Result<Guest> {
        let guest = Guest { kernel: kernel.to_owned(), memory_mib };
        let config = json!({
            "boot-source": { "kernel_image_path": kernel },
            "drives": [],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": memory_mib },
        });
        std::fs::write(guest.firecracker_config(), config.to_string())?;
        Ok(guest)
    }

    fn firecracker_config(&self) -> PathBuf {
        self.kernel.with_extension("firecracker.json")
    }
}

impl Vmm {
    /// Returns the monitor, unless it is not on the PATH. Coracle is `coracle`.
    pub(super) fn find(kind: Kind, coracle: &Path) -> Option<Vmm> {
        let name = match kind {
            Kind::Coracle => return Some(Vmm { kind, program: coracle.to_owned() }),
            Kind::QemuMicrovm => "qemu-system-x86_64",
            Kind::Firecracker => "firecracker",
            Kind::CloudHypervisor => "cloud-hypervisor",
        };
        process::exists(name).then(|| Vmm { kind, program: name.into() })
    }

    /// Returns the first line that the program says about its version.
    pub(super) fn version(&self) -> String {
        let output = Command::new(&self.program).arg("--version").stdin(Stdio::null()).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
    }

    /// Returns the command that boots the guest with its first serial port as stdout.
    pub(super) fn command(&self, guest: &Guest) -> Command {
        let mut command = Command::new(&self.program);
        let mib = guest.memory_mib;
        match self.kind {
            Kind::Coracle => {
                command.args(["run", "--accel", "kvm", "--memory", &format!("{mib}M")]).arg(&guest.kernel);
            }
            Kind::QemuMicrovm => {
                command.args(["-M", QEMU_MACHINE, "-cpu", QEMU_CPU, "-m", &format!("{mib}M")]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
                command.args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
                command.arg("-kernel").arg(&guest.kernel);
            }
            Kind::Firecracker => {
                command.args(["--no-api", "--level", "Error", "--config-file"]);
                command.arg(guest.firecracker_config());
            }
            Kind::CloudHypervisor => {
                command.args(["--cpus", "boot=1", "--memory", &format!("size={mib}M")]);
                command.args(["--serial", "tty", "--console", "off", "--kernel"]).arg(&guest.kernel);
            }
        }
        command
    }
}

const QEMU_MACHINE: &str = "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off";
/// The host's CPU, without an MSR that QEMU cannot set on every KVM.
const QEMU_CPU: &str = "host,arch-capabilities=off";
