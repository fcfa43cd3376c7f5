//! Commands in a Linux guest: a command in a running guest, compared with a process that the guest starts by
//! itself; and `coracle run` with a command, compared with a guest that only powers off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle::config::{AgentConfig, MemorySize, VmConfig, default_cmdline_with};
use coracle::{Grace, Vm, VmBuilder};

use super::forks;
use super::stage::Stage;
use super::statistics::Samples;
use crate::process::line;

/// Measures on this host's KVM and prints both tables.
///
/// # Errors
/// There is no tuned kernel, or a guest does not behave as expected.
pub(super) fn measure(data: &Path, coracle: &Path, runs: u32) -> Result<()> {
    let stage = Stage::new(coracle)?;
    let kernel = data.join(TUNED);
    ensure!(kernel.is_file(), "{} is not there: `cargo xtask guest --tuned` makes it", kernel.display());
    // Where `coracle` finds the files by itself.
    for folder in ["tuned", "guest"] {
        fs::create_dir(stage.path(folder))?;
    }
    let guest = Guest {
        kernel: stage.take(&kernel, TUNED)?,
        initramfs: stage.take(&data.join(INITRAMFS), INITRAMFS)?,
        coracle: stage.coracle(),
        data: stage.path(""),
    };
    commands(&guest, runs)?;
    whole_runs(&guest, runs / RUNS_PER_MACHINE)
}

struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
    coracle: PathBuf,
    data: PathBuf,
}

/// Measures commands by the agent and processes by `fork`, in alternating blocks.
fn commands(guest: &Guest, runs: u32) -> Result<()> {
    let vm = guest.start()?;
    vm.wait_ready(LIMIT)?;
    let own = std::env::current_exe().context("this program's own path")?;
    vm.write_file(IN_GUEST, fs::read(own).context("this program")?)?;
    vm.exec(["chmod", "755", IN_GUEST]).status()?;
    let block = runs.div_ceil(BLOCKS).to_string();
    let (mut forked, mut executed) = (Samples::default(), Samples::default());
    // One extra block, which is not counted, warms the caches.
    for round in 0..=BLOCKS {
        let forks = [IN_GUEST, "bench", "part", "forks", "--runs", &block, PROGRAM];
        let output = vm.exec(forks).timeout(LIMIT).output()?;
        ensure!(output.status.success(), "{IN_GUEST}: {}", String::from_utf8_lossy(&output.stderr));
        let times = forks::parse(std::str::from_utf8(&output.stdout)?)?;
        for time in times {
            let start = Instant::now();
            let status = vm.exec([PROGRAM]).status()?;
            let elapsed = start.elapsed();
            ensure!(status.success(), "{PROGRAM}: {status}");
            if round > 0 {
                forked.push(time);
                executed.push(elapsed);
            }
        }
    }
    vm.stop(Grace::NONE);
    println!(
        "`{PROGRAM}` in a guest that runs: the tuned kernel, one vCPU, {GUEST_MIB} MiB; {runs} runs of each\n"
    );
    println!("{:44} {:>10} {:>10} {:>7}", "", "median", "p99", "ratio");
    row("fork, exec and wait in the guest", &forked, &forked);
    row("Vm::exec from the host to its status", &executed, &forked);
    Ok(())
}

/// Measures from the exec of `coracle` to its end.
fn whole_runs(guest: &Guest, runs: u32) -> Result<()> {
    let mut power_off = guest.run();
    power_off.args(["--cmdline", &default_cmdline_with(["quiet", "coracle.init=poweroff"])]);
    let mut command = guest.run();
    command.args(["--", "true"]);
    let (mut without, mut with) = (Samples::default(), Samples::default());
    for round in 0..=runs {
        for (command, samples) in [(&mut power_off, &mut without), (&mut command, &mut with)] {
            let time = time(command)?;
            if round > 0 {
                samples.push(time);
            }
        }
    }
    println!("\nWhole runs with the tuned kernel, from exec to exit; {runs} of each, in turn\n");
    println!("{:44} {:>10} {:>10} {:>7}", "", "median", "p99", "ratio");
    row("coracle run of a guest that powers off", &without, &without);
    row("coracle run -- true", &with, &without);
    Ok(())
}

impl Guest {
    fn start(&self) -> Result<Vm> {
        let config = VmConfig {
            initrds: vec![self.initramfs.clone()],
            cmdline: default_cmdline_with(["quiet"]),
            agent: Some(AgentConfig::default()),
            memory: MemorySize::from_mib(GUEST_MIB)?.into(),
            ..VmConfig::new(&self.kernel)
        };
        Ok(VmBuilder::new(config).console_callback(|_| ()).start()?)
    }

    /// Returns the command for the default guest with the tuned kernel, without further arguments.
    fn run(&self) -> Command {
        let mut command = Command::new(&self.coracle);
        command.env("CORACLE_DATA", &self.data);
        command.args(["run", "--accel", "kvm", "--memory", &format!("{GUEST_MIB}M")]);
        command
    }
}

fn time(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output().with_context(|| format!("cannot start `{}`", line(command)))?;
    let elapsed = start.elapsed();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}`: {}\n{stderr}", line(command), output.status);
    Ok(elapsed)
}

fn row(name: &str, samples: &Samples, limit: &Samples) {
    let (median, p99) = (samples.median_ms(), samples.percentile_ms(99));
    println!("{name:44} {median:7.2} ms {p99:7.2} ms {:7.2}", median / limit.median_ms());
}

/// The path in the data directory.
const TUNED: &str = "tuned/vmlinux";
const INITRAMFS: &str = "guest/initramfs.cpio";
/// The program to run: it does as little as a process can.
const PROGRAM: &str = "/bin/true";
/// The path of this program in the guest.
const IN_GUEST: &str = "/tmp/bench";
const GUEST_MIB: u64 = 128;
const BLOCKS: u32 = 10;
/// The factor by which whole machines take longer than commands.
const RUNS_PER_MACHINE: u32 = 20;
/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(100);
