//! How long a Linux guest takes from exec to its first process, under Coracle and its peers: the same
//! kernels, the same initramfs, the same kernel parameters, in turn, on the same KVM.
//!
//! If `/dev/kvm` is not hardware, everything runs inside one emulated host. Nothing that is measured there
//! reads from the network file system: programs, libraries, kernels and initramfs are copied to memory first,
//! for all monitors.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use coracle::config::default_cmdline_with;
use serde::Deserialize;

use super::kvm_exits::{self, KvmExits};
use super::place;
use super::stage::Stage;
use super::statistics::Samples;
use super::vmm::{self, Guest, Kind, Linux, Vmm};
use crate::process::line;
use crate::static_build;
use crate::workspace::Workspace;

/// Measures and prints the table, on this host's hardware or else inside an emulated host.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    let coracle = static_build::coracle(workspace)?;
    let part = part(workspace, &coracle, runs)?;
    place::run_where_linux_boots(workspace, &coracle, part)
}

/// Measures there, and returns the table.
pub(super) fn table(workspace: &Workspace, runs: u32) -> Result<String> {
    let coracle = static_build::coracle(workspace)?;
    let part = part(workspace, &coracle, runs)?;
    place::capture_where_linux_boots(workspace, &coracle, part)
}

fn part(workspace: &Workspace, coracle: &Path, runs: u32) -> Result<Command> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut part = Command::new(program);
    part.args(["bench", "part", "boot", "--runs", &runs.to_string(), "--data"]).arg(&workspace.data);
    part.arg("--coracle").arg(coracle);
    Ok(part)
}

/// Measures on this host's KVM.
pub(super) fn measure_here(data: &Path, coracle: &Path, runs: u32) -> Result<()> {
    kvm_exits::prepare();
    let stage = Stage::new(coracle)?;
    let mut vmms: Vec<Vmm> = Vec::new();
    for kind in vmm::ALL {
        match Vmm::staged(kind, &stage)? {
            Some(vmm) => vmms.push(vmm),
            None => println!("{kind}: not here"),
        }
    }
    let initramfs = stage.take(&data.join("guest/initramfs.cpio"), "initramfs")?;
    let mut measured: Vec<Measured<'_>> = Vec::new();
    for kernel in &KERNELS {
        let path = data.join(kernel.path);
        if !path.is_file() {
            println!("no {} kernel: {MAKE_TUNED} makes it", kernel.name);
            continue;
        }
        let path = stage.take(&path, kernel.name)?;
        let outcome = stage.path("outcome.json");
        let mut coracle: Vec<OsString> = kernel.args.iter().map(OsString::from).collect();
        coracle.extend(["--outcome".into(), outcome.clone().into()]);
        let linux = Linux { initramfs: initramfs.clone(), cmdline: cmdline(), coracle };
        let guest = Guest::linux(&path, GUEST_MIB, linux)?;
        // kvmtool takes packed kernels only, and the others are compared with unpacked ones.
        let is_measured = |vmm: &&Vmm| match vmm.kind {
            Kind::Coracle => true,
            Kind::Kvmtool => kernel.packed && kernel.args.is_empty(),
            _ => !kernel.packed,
        };
        let vmms = vmms.iter().filter(is_measured);
        measured.extend(vmms.map(|vmm| Measured::new(vmm, kernel, &guest, outcome.clone())));
    }
    // One extra round, which is not counted, warms the caches and shows which peers boot the guests.
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
    vmm: &'a Vmm,
    kernel: &'static Kernel,
    command: Command,
    /// Coracle's report.
    outcome: PathBuf,
    first_process: Samples,
    /// The exits up to the first process.
    kvm_exits: Option<KvmExits>,
    /// The exits of a whole life in Coracle.
    exits: Option<Exits>,
    /// Whether it is left out, because the monitor does not boot the kernel.
    has_failed: bool,
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

impl<'a> Measured<'a> {
    fn new(vmm: &'a Vmm, kernel: &'static Kernel, guest: &Guest, outcome: PathBuf) -> Self {
        Self {
            vmm,
            kernel,
            command: vmm.command(guest),
            outcome,
            first_process: Samples::default(),
            kvm_exits: None,
            exits: None,
            has_failed: false,
        }
    }

    /// Boots once to the mark, and waits for the end. A failure of Coracle is an error; a peer that fails is
    /// left out.
    fn run_once(&mut self, counts: bool) -> Result<()> {
        if self.has_failed {
            return Ok(());
        }
        match self.boot(counts) {
            Err(error) if self.vmm.kind != Kind::Coracle => {
                println!("{} does not boot the {} kernel: {error:#}", self.vmm.kind, self.kernel.name);
                self.has_failed = true;
                Ok(())
            }
            result => result,
        }
    }

    fn boot(&mut self, counts: bool) -> Result<()> {
        let start = Instant::now();
        let mut child = spawn(&mut self.command)?;
        let mut stdout = File::from(OwnedFd::from(child.stdout.take().context("the child's stdout")?));
        let result = read_until_mark(&mut stdout);
        let elapsed = start.elapsed();
        self.kvm_exits = KvmExits::of(child.id()).or(self.kvm_exits);
        if self.vmm.kind != Kind::Coracle || result.is_err() {
            child.kill()?;
        }
        child.wait()?;
        result.with_context(|| format!("`{}` never reached its first process", line(&self.command)))?;
        if counts {
            self.first_process.push(elapsed);
        }
        if self.vmm.kind == Kind::Coracle {
            let report = fs::read(&self.outcome).context("cannot read the outcome")?;
            self.exits = Some(serde_json::from_slice::<Report>(&report).context("the outcome")?.exits);
        }
        Ok(())
    }
}

fn print(measured: &[Measured<'_>], runs: u32) {
    println!(
        "From exec to the guest's first process: one vCPU, {GUEST_MIB} MiB, {runs} boots of each, in turn; exits to \
         there as KVM counts them\n\n{:16} {:16} {:>10} {:>10} {:>10} {:>7} {:>9} {:>7} {:>7}",
        "kernel", "", "median", "least", "p95", "ratio", "exits", "ports", "MMIO"
    );
    for one in measured.iter().filter(|one| !one.has_failed) {
        let median = one.first_process.median_ms();
        let ours = measured.iter().find(|other| is_coracle_with(other, one.kernel));
        let ratio = ours.map_or(1.0, |ours| median / ours.first_process.median_ms());
        print!(
            "{:16} {:16} {median:7.0} ms {:7.0} ms {:7.0} ms {ratio:7.2}",
            one.kernel.name,
            one.vmm.kind,
            one.first_process.percentile_ms(0),
            one.first_process.percentile_ms(95),
        );
        match one.kvm_exits {
            Some(KvmExits { all, ports, mmio }) => println!(" {all:9} {ports:7} {mmio:7}"),
            None => println!(),
        }
    }
    println!("\nThe ratio is to Coracle's median. Exits of a whole life in Coracle, from boot to power-off:");
    for one in measured {
        let Some(Exits { port_in, port_out, mmio_read, mmio_write }) = one.exits else { continue };
        println!(
            "{:16} {} in all: ports {port_in} in, {port_out} out; MMIO {mmio_read} read, {mmio_write} written",
            one.kernel.name,
            port_in + port_out + mmio_read + mmio_write
        );
    }
}

fn is_coracle_with(one: &Measured<'_>, kernel: &Kernel) -> bool {
    one.vmm.kind == Kind::Coracle && one.kernel.name == kernel.name
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

const GUEST_MIB: u64 = 256;

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
