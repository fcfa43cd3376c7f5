//! How long a Linux guest takes from exec to its first process, under Coracle and under QEMU's microvm: the
//! same kernels, the same initramfs, the same kernel parameters, in turn, on the same KVM.
//!
//! If `/dev/kvm` is not hardware, everything runs inside one emulated host. Nothing that is measured there
//! reads from the network file system: programs, libraries, kernels and initramfs are copied to memory first,
//! for both monitors.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use coracle::config::default_cmdline_with;
use serde::Deserialize;

use super::place;
use super::stage::Stage;
use super::statistics::Samples;
use crate::process::line;
use crate::static_build;
use crate::workspace::Workspace;

/// Measures and prints the table, on this host's hardware or else inside an emulated host.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    let coracle = static_build::coracle(workspace)?;
    let program = std::env::current_exe().context("this program's own path")?;
    let mut part = Command::new(program);
    part.args(["bench", "part", "boot", "--runs", &runs.to_string(), "--data"]).arg(&workspace.data);
    part.arg("--coracle").arg(&coracle);
    place::run_where_linux_boots(workspace, &coracle, part)
}

/// Measures on this host's KVM.
pub(super) fn measure_here(data: &Path, coracle: &Path, runs: u32) -> Result<()> {
    let stage = Stage::new(coracle)?.with_qemu()?;
    let initramfs = stage.take(&data.join("guest/initramfs.cpio"), "initramfs")?;
    let mut measured: Vec<Measured<'_>> = Vec::new();
    for kernel in &KERNELS {
        let path = data.join(kernel.path);
        if !path.is_file() {
            println!("no {} kernel: {MAKE_TUNED} makes it", kernel.name);
            continue;
        }
        let path = stage.take(&path, kernel.name)?;
        for vmm in Vmm::all(&stage, kernel) {
            let outcome = stage.path("outcome.json");
            let guest = Guest { kernel, path: path.clone(), initramfs: &initramfs, outcome };
            measured.push(Measured::new(*vmm, vmm.command(&stage, &guest), guest));
        }
    }
    // One extra round, which is not counted, warms the caches.
    for round in 0..=runs {
        for measured in &mut measured {
            measured.run_once(round > 0)?;
        }
    }
    print(&measured, runs);
    Ok(())
}

/// A kernel under a virtual machine monitor.
struct Measured<'a> {
    vmm: Vmm,
    command: Command,
    guest: Guest<'a>,
    first_process: Samples,
    exits: Option<Exits>,
}

/// The files of a guest.
struct Guest<'a> {
    kernel: &'static Kernel,
    path: PathBuf,
    initramfs: &'a Path,
    outcome: PathBuf,
}

/// The exit counts in Coracle's outcome report.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Exits {
    port_in: u64,
    port_out: u64,
    mmio_read: u64,
    mmio_write: u64,
}

#[derive(Deserialize)]
struct Report {
    exits: Exits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Coracle,
    QemuMicrovm,
}

impl<'a> Measured<'a> {
    fn new(vmm: Vmm, command: Command, guest: Guest<'a>) -> Self {
        Self { vmm, command, guest, first_process: Samples::default(), exits: None }
    }

    /// Boots once to the mark, and waits for the end.
    fn run_once(&mut self, counts: bool) -> Result<()> {
        let start = Instant::now();
        let mut child = spawn(&mut self.command)?;
        let mut stdout = File::from(OwnedFd::from(child.stdout.take().context("the child's stdout")?));
        let result = read_until_mark(&mut stdout);
        let elapsed = start.elapsed();
        if self.vmm == Vmm::QemuMicrovm || result.is_err() {
            child.kill()?;
        }
        child.wait()?;
        result.with_context(|| format!("`{}` never reached its first process", line(&self.command)))?;
        if counts {
            self.first_process.push(elapsed);
        }
        if self.vmm == Vmm::Coracle {
            let report = fs::read(&self.guest.outcome).context("cannot read the outcome")?;
            self.exits = Some(serde_json::from_slice::<Report>(&report).context("the outcome")?.exits);
        }
        Ok(())
    }
}

impl Vmm {
    fn all(stage: &Stage, kernel: &Kernel) -> &'static [Self] {
        match stage.has_qemu() && !kernel.packed {
            true => &[Self::Coracle, Self::QemuMicrovm],
            false => &[Self::Coracle],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Coracle => "coracle",
            Self::QemuMicrovm => "QEMU microvm",
        }
    }

    fn command(self, stage: &Stage, guest: &Guest<'_>) -> Command {
        let memory = format!("{GUEST_MIB}M");
        let Guest { kernel, path, initramfs, outcome } = guest;
        match self {
            Self::Coracle => {
                let mut command = Command::new(stage.coracle());
                command
                    .args(["run", "--accel", "kvm", "--memory", &memory])
                    .args(kernel.args)
                    .arg(path)
                    .arg("-i")
                    .arg(initramfs);
                command.args(["--cmdline", &cmdline(), "--outcome"]).arg(outcome);
                command
            }
            Self::QemuMicrovm => {
                let mut command = stage.qemu();
                command.args([
                    "-M",
                    QEMU_MACHINE,
                    "-cpu",
                    "host",
                    "-m",
                    &memory,
                    "-nodefaults",
                    "-no-user-config",
                ]);
                command.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-append", &cmdline()]);
                command.arg("-kernel").arg(path).arg("-initrd").arg(initramfs);
                command
            }
        }
    }
}

fn print(measured: &[Measured<'_>], runs: u32) {
    println!(
        "From exec to the guest's first process: one vCPU, {GUEST_MIB} MiB, {runs} boots of each, in turn\n\n\
         {:16} {:14} {:>10} {:>10} {:>10} {:>7}",
        "kernel", "", "median", "least", "p95", "ratio"
    );
    for one in measured {
        let median = one.first_process.median_ms();
        let of_qemu =
            measured.iter().find(|other| other.guest.path == one.guest.path && other.vmm == Vmm::QemuMicrovm);
        let ratio = of_qemu.map(|qemu| format!("{:.2}", median / qemu.first_process.median_ms()));
        println!(
            "{:16} {:14} {median:7.0} ms {:7.0} ms {:7.0} ms {:>7}",
            one.guest.kernel.name,
            one.vmm.name(),
            one.first_process.percentile_ms(0),
            one.first_process.percentile_ms(95),
            ratio.unwrap_or_default(),
        );
    }
    println!("\nExits of a whole life in Coracle, from boot to power-off:");
    for one in measured {
        let Some(Exits { port_in, port_out, mmio_read, mmio_write }) = one.exits else { continue };
        println!(
            "{:16} {} in all: ports {port_in} in, {port_out} out; MMIO {mmio_read} read, {mmio_write} written",
            one.guest.kernel.name,
            port_in + port_out + mmio_read + mmio_write
        );
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start `{}`", line(command)))
}

/// Reads a guest's console up to the mark of its first process.
fn read_until_mark(console: &mut impl Read) -> Result<()> {
    let mut seen = Vec::new();
    let mut piece = [0; 256];
    loop {
        let count = console.read(&mut piece)?;
        if count == 0 {
            bail!("its console ended with {:?}", String::from_utf8_lossy(&seen));
        }
        seen.extend_from_slice(piece.get(..count).unwrap_or_default());
        if seen.windows(MARK.len()).any(|window| window == MARK.as_bytes()) {
            return Ok(());
        }
        ensure!(seen.len() < CONSOLE_LIMIT, "its console has told {CONSOLE_LIMIT} bytes of other things");
    }
}

/// A kernel, and how it is entered.
struct Kernel {
    name: &'static str,
    /// The path in the data directory.
    path: &'static str,
    /// Whether it is a bzImage; for these, both of Coracle's ways to boot one are compared.
    packed: bool,
    args: &'static [&'static str],
}

const KERNELS: [Kernel; 6] = [
    Kernel { name: "tuned", path: "tuned/vmlinux", packed: false, args: &[] },
    Kernel { name: "stock", path: "guest/vmlinux", packed: false, args: &[] },
    Kernel { name: "tuned, packed", path: "tuned/vmlinuz", packed: true, args: &[] },
    Kernel { name: "tuned, unpacked", path: "tuned/vmlinuz", packed: true, args: UNPACKED },
    Kernel { name: "stock, packed", path: "guest/vmlinuz", packed: true, args: &[] },
    Kernel { name: "stock, unpacked", path: "guest/vmlinuz", packed: true, args: UNPACKED },
];

/// Lets Coracle decompress the kernel.
const UNPACKED: &[&str] = &["--protocol", "pvh"];

const MAKE_TUNED: &str = "`cargo xtask guest --tuned`";

/// The parameters of Coracle's default, so that both kernels skip the same probes, and those for the agent:
/// print the mark first of all, and then power off.
fn cmdline() -> String {
    default_cmdline_with(["quiet", "coracle.init=poweroff", "CORACLE_MARK=1"])
}

const MARK: &str = "coracle-agent: first process";

/// The maximum length of the console up to the mark; the text of a panic is shorter.
const CONSOLE_LIMIT: usize = 64 << 10;

/// The fastest of QEMU's settings that boots both kernels. Without its legacy timer and interrupt controller,
/// Linux takes nearly twice as long: 6.3 s instead of 3.5 s with the tuned kernel, with or without ACPI.
const QEMU_MACHINE: &str =
    "microvm,accel=kvm,x-option-roms=off,pit=on,pic=on,rtc=on,acpi=on,auto-kernel-cmdline=off";

const GUEST_MIB: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_found_behind_other_lines_and_across_reads() {
        let console = format!("[    0.1] a warning\n{MARK}\n");
        let (head, tail) = console.as_bytes().split_at(30);
        read_until_mark(&mut head.chain(tail)).unwrap();
    }

    #[test]
    fn console_that_ends_without_the_mark_is_an_error_with_its_text() {
        let error = read_until_mark(&mut &b"Kernel panic"[..]).unwrap_err();
        assert!(error.to_string().contains("Kernel panic"), "{error}");
    }

    #[test]
    fn console_that_tells_other_things_for_ever_is_an_error() {
        assert!(read_until_mark(&mut std::io::repeat(b'x')).is_err());
    }
}
