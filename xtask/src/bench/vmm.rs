//! The virtual machine monitors that are compared: Coracle and its peers, each with the fastest settings that
//! boot the same guest.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use serde_json::json;

use super::stage::Stage;
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
    /// The folder of the program's own libraries and firmware, if they are not the system's.
    folder: Option<PathBuf>,
}

/// A guest with one vCPU, whose first serial port is the monitor's stdout.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) kernel: PathBuf,
    memory_mib: u64,
    linux: Option<Linux>,
}

/// The rest of a guest that is a Linux.
#[derive(Debug)]
pub(super) struct Linux {
    pub(super) initramfs: PathBuf,
    pub(super) cmdline: String,
    /// Coracle's own arguments.
    pub(super) coracle: Vec<OsString>,
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
        Guest { kernel: kernel.to_owned(), memory_mib, linux: None }.with_config()
    }

    /// The same for a Linux.
    pub(super) fn linux(kernel: &Path, memory_mib: u64, linux: Linux) -> std::io::Result<Guest> {
        Guest { kernel: kernel.to_owned(), memory_mib, linux: Some(linux) }.with_config()
    }

    fn with_config(self) -> std::io::Result<Guest> {
        let kernel = &self.kernel;
        let boot = match &self.linux {
            None => json!({ "kernel_image_path": kernel }),
            Some(Linux { initramfs, cmdline, .. }) => {
                json!({ "kernel_image_path": kernel, "initrd_path": initramfs, "boot_args": cmdline })
            }
        };
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": self.memory_mib });
        let config = json!({ "boot-source": boot, "drives": [], "machine-config": machine });
        std::fs::write(self.firecracker_config(), config.to_string())?;
        Ok(self)
    }

    fn firecracker_config(&self) -> PathBuf {
        self.kernel.with_extension("firecracker.json")
    }
}

impl Vmm {
    /// Returns the monitor, unless it is not on the PATH. Coracle is `coracle`.
    pub(super) fn find(kind: Kind, coracle: &Path) -> Option<Vmm> {
        let program = match kind.program() {
            None => coracle.to_owned(),
            Some(name) => process::exists(name).then(|| name.into())?,
        };
        Some(Vmm { kind, program, folder: None })
    }

    /// Returns the monitor, as copied to the stage, unless it is not on the PATH.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub(super) fn staged(kind: Kind, stage: &Stage) -> Result<Option<Vmm>> {
        let Some(name) = kind.program() else {
            return Ok(Some(Vmm { kind, program: stage.coracle(), folder: None }));
        };
        if !process::exists(name) {
            return Ok(None);
        }
        stage.take_program(name)?;
        if kind == Kind::QemuMicrovm {
            stage.take(Path::new(QEMU_FIRMWARE), "bios-microvm.bin")?;
        }
        Ok(Some(Vmm { kind, program: stage.path(name), folder: Some(stage.path("")) }))
    }

    /// Returns the first line that the program says about its version.
    pub(super) fn version(&self) -> String {
        let output = Command::new(&self.program).arg("--version").stdin(Stdio::null()).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
    }

    /// Returns the command that boots the guest.
    pub(super) fn command(&self, guest: &Guest) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(folder) = &self.folder {
            command.env("LD_LIBRARY_PATH", folder.join("lib"));
        }
        match self.kind {
            Kind::Coracle => coracle(&mut command, guest),
            Kind::QemuMicrovm => {
                if let Some(folder) = &self.folder {
                    command.arg("-L").arg(folder);
                }
                qemu(&mut command, guest);
            }
            Kind::Firecracker => {
                command.args(["--no-api", "--level", "Error", "--config-file"]);
                command.arg(guest.firecracker_config());
            }
            Kind::CloudHypervisor => cloud_hypervisor(&mut command, guest),
        }
        command
    }
}

impl Kind {
    /// Returns the name of the program on the PATH; Coracle's is given by its path.
    fn program(self) -> Option<&'static str> {
        match self {
            Kind::Coracle => None,
            Kind::QemuMicrovm => Some("qemu-system-x86_64"),
            Kind::Firecracker => Some("firecracker"),
            Kind::CloudHypervisor => Some("cloud-hypervisor"),
        }
    }
}

fn coracle(command: &mut Command, guest: &Guest) {
    let memory = format!("{}M", guest.memory_mib);
    command.args(["run", "--accel", "kvm", "--memory", &memory]).arg(&guest.kernel);
    if let Some(Linux { initramfs, cmdline, coracle }) = &guest.linux {
        command.arg("-i").arg(initramfs).args(["--cmdline", cmdline]).args(coracle);
    }
}

fn qemu(command: &mut Command, guest: &Guest) {
    let memory = format!("{}M", guest.memory_mib);
    let machine = guest.linux.as_ref().map_or(QEMU_BARE, |_| QEMU_LINUX);
    command.args(["-M", machine, "-cpu", QEMU_CPU, "-m", &memory, "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]).arg(&guest.kernel);
    if let Some(Linux { initramfs, cmdline, .. }) = &guest.linux {
        command.arg("-initrd").arg(initramfs).args(["-append", cmdline]);
    }
}

fn cloud_hypervisor(command: &mut Command, guest: &Guest) {
    let memory = format!("size={}M", guest.memory_mib);
    command.args(["--cpus", "boot=1", "--memory", &memory]);
    command.args(["--serial", "tty", "--console", "off", "--kernel"]).arg(&guest.kernel);
    if let Some(Linux { initramfs, cmdline, .. }) = &guest.linux {
        command.arg("--initramfs").arg(initramfs).args(["--cmdline", cmdline]);
    }
}

/// The fastest settings that run a bare guest.
const QEMU_BARE: &str = "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off";
/// The fastest settings that boot both kernels. Without its legacy timer and interrupt controller, Linux
/// takes nearly twice as long: 6.3 s instead of 3.5 s with the tuned kernel, with or without ACPI.
const QEMU_LINUX: &str =
    "microvm,accel=kvm,x-option-roms=off,pit=on,pic=on,rtc=on,acpi=on,auto-kernel-cmdline=off";
/// The firmware of QEMU's microvm, at the path in Debian's package.
const QEMU_FIRMWARE: &str = "/usr/share/qemu/bios-microvm.bin";
/// The host's CPU, without an MSR that QEMU cannot set on every KVM.
const QEMU_CPU: &str = "host,arch-capabilities=off";
