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
    /// The bare calls of KVM (`xtask/floor`), which run bare guests without devices only.
    Floor,
    QemuMicrovm,
    Firecracker,
    CloudHypervisor,
    Kvmtool,
}

/// All that boot a Linux, in the order of the tables' columns.
pub(super) const ALL: [Kind; 5] =
    [Kind::Coracle, Kind::QemuMicrovm, Kind::Firecracker, Kind::CloudHypervisor, Kind::Kvmtool];

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
    device: Option<Device>,
}

/// The virtio device of a bare guest.
#[derive(Debug, Clone)]
pub(super) enum Device {
    Disk {
        path: PathBuf,
        /// Whether a Coracle may poll. The other monitors cannot.
        polls: bool,
    },
    Tap(&'static str),
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
            Kind::Floor => "floor",
            Kind::QemuMicrovm => "QEMU microvm",
            Kind::Firecracker => "Firecracker",
            Kind::CloudHypervisor => "Cloud Hypervisor",
            Kind::Kvmtool => "kvmtool",
        })
    }
}

impl Guest {
    /// Creates the guest, with the files that the monitors need beside its kernel.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn new(kernel: &Path, memory_mib: u64) -> std::io::Result<Guest> {
        Guest { kernel: kernel.to_owned(), memory_mib, linux: None, device: None }.with_config()
    }

    /// The same with a device.
    pub(super) fn with_device(kernel: &Path, memory_mib: u64, device: Device) -> std::io::Result<Guest> {
        Guest { kernel: kernel.to_owned(), memory_mib, linux: None, device: Some(device) }.with_config()
    }

    /// The same for a Linux.
    pub(super) fn linux(kernel: &Path, memory_mib: u64, linux: Linux) -> std::io::Result<Guest> {
        Guest { kernel: kernel.to_owned(), memory_mib, linux: Some(linux), device: None }.with_config()
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
        let (mut drives, mut cards) = (Vec::new(), Vec::new());
        match &self.device {
            None => {}
            Some(Device::Disk { path, .. }) => drives.push(json!({
                "drive_id": "disk", "path_on_host": path, "is_root_device": false, "is_read_only": false
            })),
            Some(Device::Tap(name)) => cards.push(json!({ "iface_id": "net", "host_dev_name": name })),
        }
        let config = json!({
            "boot-source": boot, "drives": drives, "network-interfaces": cards, "machine-config": machine
        });
        std::fs::write(self.firecracker_config(), config.to_string())?;
        Ok(self)
    }

    fn firecracker_config(&self) -> PathBuf {
        self.kernel.with_extension("firecracker.json")
    }
}

impl Vmm {
    /// Returns the monitor, unless it is not on the PATH. `built` is Coracle's program, or the floor's.
    pub(super) fn find(kind: Kind, built: &Path) -> Option<Vmm> {
        let program = match kind.program() {
            None => built.to_owned(),
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
        let argument = match self.kind {
            Kind::Floor => return "the bare calls of KVM, by a static program (xtask/floor)".to_owned(),
            Kind::Kvmtool => "version",
            _ => "--version",
        };
        let output = Command::new(&self.program).arg(argument).stdin(Stdio::null()).output();
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
            Kind::Floor => {
                command.arg(guest.memory_mib.to_string()).arg(&guest.kernel);
            }
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
            Kind::Kvmtool => kvmtool(&mut command, guest),
        }
        command
    }
}

impl Kind {
    /// Returns the name of the program on the PATH; those that are built here have paths.
    fn program(self) -> Option<&'static str> {
        match self {
            Kind::Coracle | Kind::Floor => None,
            Kind::QemuMicrovm => Some("qemu-system-x86_64"),
            Kind::Firecracker => Some("firecracker"),
            Kind::CloudHypervisor => Some("cloud-hypervisor"),
            Kind::Kvmtool => Some("lkvm"),
        }
    }
}

fn coracle(command: &mut Command, guest: &Guest) {
    let memory = format!("{}M", guest.memory_mib);
    command.args(["run", "--accel", "kvm", "--memory", &memory]).arg(&guest.kernel);
    match &guest.device {
        None => {}
        Some(Device::Disk { path, polls }) => {
            let polling = if *polls { "" } else { ",poll=off" };
            command.arg("--disk").arg(format!("path={}{polling}", path.display()));
        }
        Some(Device::Tap(name)) => {
            command.args(["--net", &format!("tap={name}")]);
        }
    }
    if let Some(Linux { initramfs, cmdline, coracle }) = &guest.linux {
        command.arg("-i").arg(initramfs).args(["--cmdline", cmdline]).args(coracle);
    }
}

fn qemu(command: &mut Command, guest: &Guest) {
    let memory = format!("{}M", guest.memory_mib);
    let machine = match (&guest.linux, &guest.device) {
        (Some(_), _) => QEMU_LINUX,
        (None, None) => QEMU_BARE,
        (None, Some(_)) => QEMU_DEVICE,
    };
    command.args(["-M", machine, "-cpu", QEMU_CPU, "-m", &memory, "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot", "-serial", "stdio"]);
    if guest.device.is_some() {
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
    }
    match &guest.device {
        None => {}
        Some(Device::Disk { path, .. }) => {
            let path = path.display();
            let file = format!("driver=file,node-name=d,filename={path},aio=io_uring,cache.direct=off");
            command.args(["-object", "iothread,id=io", "-blockdev", &file]);
            command.args(["-device", "virtio-blk-device,drive=d,iothread=io"]);
        }
        Some(Device::Tap(name)) => {
            command.args(["-netdev", &format!("tap,id=net,ifname={name},script=no,downscript=no")]);
            command.args(["-device", "virtio-net-device,netdev=net"]);
        }
    }
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]).arg(&guest.kernel);
    if let Some(Linux { initramfs, cmdline, .. }) = &guest.linux {
        command.arg("-initrd").arg(initramfs).args(["-append", cmdline]);
    }
}

fn cloud_hypervisor(command: &mut Command, guest: &Guest) {
    let memory = format!("size={}M", guest.memory_mib);
    command.args(["--cpus", "boot=1", "--memory", &memory]);
    command.args(["--serial", "tty", "--console", "off", "--kernel"]).arg(&guest.kernel);
    match &guest.device {
        None => {}
        Some(Device::Disk { path, .. }) => {
            command.arg("--disk").arg(format!("path={}", path.display()));
        }
        Some(Device::Tap(name)) => {
            command.args(["--net", &format!("tap={name}")]);
        }
    }
    if let Some(Linux { initramfs, cmdline, .. }) = &guest.linux {
        command.arg("--initramfs").arg(initramfs).args(["--cmdline", cmdline]);
    }
}

/// Follows kvmtool's source (`builtin-run.c`); this command line has not been run, because no machine of the
/// project has kvmtool. It takes no ELF file: a bare guest's bzImage lies beside its ELF file.
fn kvmtool(command: &mut Command, guest: &Guest) {
    let kernel = match &guest.linux {
        None => guest.kernel.with_extension("bzImage"),
        Some(_) => guest.kernel.clone(),
    };
    command.args(["run", "--cpus", "1", "--mem", &guest.memory_mib.to_string(), "--console", "serial"]);
    command.args(["--nodefaults", "--kernel"]).arg(kernel);
    match &guest.device {
        Some(Device::Tap(name)) => {
            command.args(["--virtio-transport", "mmio", "--network", &format!("mode=tap,tapif={name}")])
        }
        Some(Device::Disk { path, .. }) => {
            command.args(["--virtio-transport", "mmio", "--network", "mode=none", "--disk"]).arg(path)
        }
        None => command.args(["--network", "mode=none"]),
    };
    if let Some(Linux { initramfs, cmdline, .. }) = &guest.linux {
        command.arg("--initrd").arg(initramfs).args(["--params", cmdline]);
    }
}

/// The fastest settings that run a bare guest.
const QEMU_BARE: &str = "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off";
/// The same with the devices where the payloads look for them.
const QEMU_DEVICE: &str = "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off";
/// The fastest settings that boot both kernels. Without its legacy timer and interrupt controller, Linux
/// takes nearly twice as long: 6.3 s instead of 3.5 s with the tuned kernel, with or without ACPI.
const QEMU_LINUX: &str =
    "microvm,accel=kvm,x-option-roms=off,pit=on,pic=on,rtc=on,acpi=on,auto-kernel-cmdline=off";
/// The firmware of QEMU's microvm, at the path in Debian's package.
const QEMU_FIRMWARE: &str = "/usr/share/qemu/bios-microvm.bin";
/// The host's CPU, without an MSR that QEMU cannot set on every KVM.
const QEMU_CPU: &str = "host,arch-capabilities=off";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(kind: Kind, guest: &Guest) -> String {
        let vmm = Vmm { kind, program: "vmm".into(), folder: None };
        process::line(&vmm.command(guest)).replace(&folder(), "")
    }

    /// The directory of the tests' files, with a slash.
    fn folder() -> String {
        format!("{}/", std::env::temp_dir().display())
    }

    fn guest(name: &str, device: Option<Device>) -> Guest {
        let kernel = std::env::temp_dir().join(format!("vmm-{}-{name}.elf", std::process::id()));
        match device {
            None => Guest::new(&kernel, 64),
            Some(device) => Guest::with_device(&kernel, 64, device),
        }
        .unwrap()
    }

    /// Removes the files that a guest has made.
    fn remove(guest: &Guest) {
        fs::remove_file(guest.firecracker_config()).unwrap();
    }

    #[test]
    fn each_monitor_gets_the_guest_in_the_form_that_it_takes() {
        let bare = guest("bare", None);
        let name = bare.kernel.file_stem().unwrap().to_str().unwrap();
        let expected = [
            (Kind::Coracle, format!("vmm run --accel kvm --memory 64M {name}.elf")),
            (Kind::Floor, format!("vmm 64 {name}.elf")),
            (
                Kind::CloudHypervisor,
                format!("vmm --cpus boot=1 --memory size=64M --serial tty --console off --kernel {name}.elf"),
            ),
            (
                Kind::Kvmtool,
                format!(
                    "vmm run --cpus 1 --mem 64 --console serial --nodefaults --kernel {name}.bzImage \
                     --network mode=none"
                ),
            ),
            (Kind::Firecracker, format!("vmm --no-api --level Error --config-file {name}.firecracker.json")),
        ];
        for (kind, expected) in expected {
            assert_eq!(line(kind, &bare), expected);
        }
        remove(&bare);
    }

    #[test]
    fn disk_and_card_reach_every_monitor_that_has_them() {
        let disk = guest("disk", Some(Device::Disk { path: "/d.img".into(), polls: false }));
        assert!(line(Kind::Coracle, &disk).ends_with("--disk path=/d.img,poll=off"));
        assert!(line(Kind::QemuMicrovm, &disk).contains("filename=/d.img"));
        assert!(line(Kind::Kvmtool, &disk).ends_with("--disk /d.img"));
        assert!(line(Kind::CloudHypervisor, &disk).ends_with("--disk path=/d.img"));
        let config = fs::read_to_string(disk.firecracker_config()).unwrap();
        assert!(config.contains("\"path_on_host\":\"/d.img\""), "{config}");
        remove(&disk);

        let card = guest("card", Some(Device::Tap("tap7")));
        assert!(line(Kind::Coracle, &card).ends_with("--net tap=tap7"));
        assert!(line(Kind::QemuMicrovm, &card).contains("ifname=tap7"));
        assert!(line(Kind::Kvmtool, &card).ends_with("--network mode=tap,tapif=tap7"));
        assert!(line(Kind::CloudHypervisor, &card).ends_with("--net tap=tap7"));
        let config = fs::read_to_string(card.firecracker_config()).unwrap();
        assert!(config.contains("\"host_dev_name\":\"tap7\""), "{config}");
        remove(&card);
    }
}
