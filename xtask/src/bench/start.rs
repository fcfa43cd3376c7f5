//! How soon a bare guest prints, what that costs, and how much memory a waiting virtual machine holds, under
//! Coracle and under QEMU's microvm with the same ELF file, in turn, on the same KVM.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use coracle_payload::Payload;

use super::process_time::wait_cpu_time;
use super::statistics::Samples;
use crate::workspace::Workspace;
use crate::{process, static_build};

/// A virtual machine monitor to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Coracle,
    QemuMicrovm,
}

/// The results of one monitor.
#[derive(Debug, Default)]
struct Results {
    first_byte: Samples,
    whole_life: Samples,
    cpu: Samples,
}

/// The memory of a process apart from its guest's RAM.
#[derive(Debug, Default)]
struct Memory {
    pss_kib: u64,
    private_dirty_kib: u64,
}

/// Measures and prints the table.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    let coracle = static_build::coracle(workspace)?;
    // Pages of a file that has not been written back count as dirty memory of whoever maps them.
    File::open(&coracle)?.sync_all().context("cannot write the binary to disk")?;
    let folder = workspace.target.join("payloads");
    let speaks_and_ends = write_payload(&folder, "hello-exit")?;
    let speaks_and_waits = write_payload(&folder, "hello-halt")?;
    let mut vmms = vec![Vmm::Coracle];
    match process::exists(QEMU) {
        true => vmms.push(Vmm::QemuMicrovm),
        false => eprintln!("{QEMU} is not installed: Coracle is measured alone"),
    }

    let mut results: Vec<Results> = vmms.iter().map(|_| Results::default()).collect();
    for run in 0..runs {
        for (vmm, results) in vmms.iter().zip(&mut results) {
            // QEMU takes some thirty times as long, and a tenth of the runs gives a good median.
            if *vmm == Vmm::Coracle || run % 10 == 0 {
                measure(&mut vmm.command(&coracle, &speaks_and_ends), results)?;
            }
        }
    }
    println!(
        "One vCPU, {GUEST_MIB} MiB; medians of {runs} runs (QEMU: a tenth); memory without guest RAM, while waiting\n\n\
         {:14} {:>10} {:>8} {:>11} {:>8} {:>9} {:>14}",
        "", "first byte", "p95", "whole life", "CPU", "Pss", "private dirty"
    );
    for (vmm, results) in vmms.iter().zip(&results) {
        let memory = memory_while_waiting(&mut vmm.command(&coracle, &speaks_and_waits))?;
        println!(
            "{:14} {:7.2} ms {:5.2} ms {:8.2} ms {:5.2} ms {:6} KiB {:10} KiB",
            vmm.name(),
            results.first_byte.median_ms(),
            results.first_byte.percentile_ms(95),
            results.whole_life.median_ms(),
            results.cpu.median_ms(),
            memory.pss_kib,
            memory.private_dirty_kib,
        );
    }
    if let [ours, theirs] = results.as_slice() {
        let ratio = theirs.first_byte.median_ms() / ours.first_byte.median_ms();
        println!("\nQEMU microvm takes {ratio:.1} times as long to the first byte.");
    }
    let size = fs::metadata(&coracle).context("the binary")?.len();
    println!("Coracle's static binary: {:.2} MB", size as f64 / 1e6);
    Ok(())
}

impl Vmm {
    fn name(self) -> &'static str {
        match self {
            Vmm::Coracle => "coracle",
            Vmm::QemuMicrovm => "QEMU microvm",
        }
    }

    fn command(self, coracle: &Path, payload: &Path) -> Command {
        let memory = format!("{GUEST_MIB}M");
        match self {
            Vmm::Coracle => {
                let mut command = Command::new(coracle);
                command.args(["run", "--accel", "kvm", "--memory", &memory]).arg(payload);
                command
            }
            Vmm::QemuMicrovm => {
                let mut command = Command::new(QEMU);
                let machine = "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off";
                command.args([
                    "-M",
                    machine,
                    "-cpu",
                    QEMU_CPU,
                    "-m",
                    &memory,
                    "-nodefaults",
                    "-no-user-config",
                ]);
                command.args(["-display", "none", "-no-reboot", "-serial", "stdio"]);
                command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]).arg(payload);
                command
            }
        }
    }
}

pub(super) fn write_payload(folder: &Path, name: &str) -> Result<std::path::PathBuf> {
    let payload = Payload::named(name).with_context(|| format!("there is no payload {name}"))?;
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.elf"));
    fs::write(&path, payload.elf())?;
    Ok(path)
}

/// Runs the command to its end. Times start before the fork; CPU time is what the kernel accounts to the
/// child.
fn measure(command: &mut Command, results: &mut Results) -> Result<()> {
    let start = Instant::now();
    let (child, mut stdout) = spawn(command)?;
    read_first_byte(&mut stdout, command)?;
    let first_byte = start.elapsed();
    let cpu = wait_cpu_time(&child)?;
    results.whole_life.push(start.elapsed());
    results.first_byte.push(first_byte);
    results.cpu.push(cpu);
    Ok(())
}

fn memory_while_waiting(command: &mut Command) -> Result<Memory> {
    let (mut child, mut stdout) = spawn(command)?;
    read_first_byte(&mut stdout, command)?;
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", child.id()));
    child.kill()?;
    child.wait()?;
    Ok(Memory::parse(&smaps?, GUEST_MIB << 10))
}

impl Memory {
    /// Adds up the mappings of `/proc/PID/smaps`, except those with exactly the size of the guest's RAM.
    fn parse(smaps: &str, guest_kib: u64) -> Memory {
        let mut memory = Memory::default();
        let mut is_guest = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(kib)) = (words.next(), words.next().and_then(|kib| kib.parse::<u64>().ok()))
            else {
                continue;
            };
            match key {
                "Size:" => is_guest = kib == guest_kib,
                "Pss:" if !is_guest => memory.pss_kib += kib,
                "Private_Dirty:" if !is_guest => memory.private_dirty_kib += kib,
                _ => {}
            }
        }
        memory
    }
}

fn spawn(command: &mut Command) -> Result<(Child, File)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", process::line(command)))?;
    let stdout = child.stdout.take().context("the child's stdout")?;
    Ok((child, File::from(OwnedFd::from(stdout))))
}

fn read_first_byte(stdout: &mut File, command: &Command) -> Result<()> {
    let mut byte = [0];
    if stdout.read(&mut byte)? == 0 {
        bail!("`{}` ended without output", process::line(command));
    }
    Ok(())
}

const QEMU: &str = "qemu-system-x86_64";
/// The host's CPU, without an MSR that QEMU cannot set on every KVM.
const QEMU_CPU: &str = "host,arch-capabilities=off";
const GUEST_MIB: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out_of_the_sum() {
        let smaps = "7f00-7f01 rw-p 00000000 00:00 0\nSize: 131072 kB\nPss: 2048 kB\nPrivate_Dirty: 2048 kB\n\
                     5500-5501 r-xp 00000000 00:00 0\nSize: 64 kB\nPss: 60 kB\nPss_Dirty: 1 kB\nPrivate_Dirty: 4 kB\n";
        let memory = Memory::parse(smaps, 131_072);
        assert_eq!((memory.pss_kib, memory.private_dirty_kib), (60, 4));
    }
}
