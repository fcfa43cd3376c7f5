//! The costs of templates and forks of a bare guest, beside a floor: the bare calls of KVM and of memory that
//! no fork can do without (`xtask/floor/src/forks.rs`), in the same process and in turn.

mod branch;
mod calls;
mod files;
mod held;
mod part;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::files::Writes;
pub(super) use self::part::measure_here;
use self::part::{Crowd, Memory, Times};
use super::life::write_payload;
use super::statistics::Samples;
use crate::process::capture;
use crate::static_build;
use crate::workspace::Workspace;

/// A measurement that has a process of its own.
#[derive(Debug, Clone, Args)]
pub(crate) struct SnapshotPart {
    what: What,
    payload: PathBuf,
    /// The guest's memory.
    #[arg(long, default_value_t = SMALL)]
    mib: u64,
    /// Forks at once.
    #[arg(long, default_value_t = 1)]
    count: usize,
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The directory for snapshots.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The static programs whose guests go on from a snapshot.
    #[arg(long)]
    coracle: Option<PathBuf>,
    #[arg(long)]
    floor: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// A template of anonymous memory.
    FreezeAnonymous,
    /// A template of a memory file.
    FreezeMemfd,
    /// Forks, to the next byte of each.
    Forks,
    /// Branches of a machine that runs on, with as many MiB written since the last as `count`.
    Branch,
    /// Processes whose guests go on from a snapshot in files, to the next byte of each.
    Restore,
    /// Writing a snapshot of a machine with `count` MiB touched.
    Write,
    /// Writing what has changed: a tenth of `count` MiB.
    Increment,
    /// The memory of each of many forks.
    Memory,
    /// The descriptors and threads of each of many forks, and the time to make all.
    Crowd,
    /// Forks without any measurement, for a tracer.
    Calls,
}

/// Measures and prints the tables.
pub(super) fn run(workspace: &Workspace, rounds: u32) -> Result<()> {
    // The program that measures is built for release, as the library is.
    let payloads = workspace.target.join("payloads");
    let bench = Bench {
        program: static_build::tasks(workspace)?,
        payload: write_payload(&payloads, "fork-mark")?,
        coracle: static_build::coracle(workspace)?,
        floor: static_build::floor(workspace)?,
        folders: Folders { disk: workspace.target.clone(), memory: PathBuf::from("/dev/shm") },
    };
    write_payload(&payloads, branch::PAYLOAD)?;
    println!(
        "A bare guest with one vCPU and 8 MiB touched, on {} CPUs; {rounds} rounds, Coracle and its floor in turn\n",
        thread::available_parallelism()?
    );
    println!("{:32}{:>22}{:>22}{:>10}{:>9}", "", "coracle, ms", "floor, ms", "above the", "target");
    let head = format!("{:>11}{:>11}", "median", "p95");
    println!("{:32}{head}{head}{:>10}", "", "floor");
    for row in &ROWS {
        let Row { name, what, mib, count, share, target } = *row;
        let times: Times = bench.part(what, mib, count, (rounds / share).max(1))?;
        print_times(name, &times, target);
    }
    print_files(&bench, rounds)?;
    print_memory(&bench)?;
    let crowd: Crowd = bench.part(What::Crowd, SMALL, CROWD, 1)?;
    let Crowd { time, floor, descriptors, threads } = crowd;
    println!("{CROWD} forks: {:.2} s, floor {:.2} s; target 2.50 s", time.as_secs_f64(), floor.as_secs_f64());
    println!("{CROWD} forks, each: {descriptors:.1} descriptors, {threads:.1} threads and one of KVM\n");
    print_calls(&bench)
}

/// A row of the table of times.
struct Row {
    name: &'static str,
    what: What,
    mib: u64,
    count: usize,
    /// The rounds are divided by this.
    share: u32,
    target: &'static str,
}

const ROWS: [Row; 10] = [
    row("freeze, 128 MiB, anonymous", What::FreezeAnonymous, SMALL, 1, 4, "-"),
    row("freeze, 128 MiB, memfd", What::FreezeMemfd, SMALL, 1, 4, "-"),
    row("fork to next byte, 128 MiB", What::Forks, SMALL, 1, 1, "2.0"),
    row("fork to next byte, 4 GiB", What::Forks, 4 << 10, 1, 1, "+1.0"),
    row("fork to next byte, 64 GiB", What::Forks, 64 << 10, 1, 4, "+1.0"),
    row("4 forks to the last's byte", What::Forks, SMALL, 4, 4, "-"),
    row("16 forks to the last's byte", What::Forks, SMALL, 16, 8, "25"),
    row("branch, nothing written since", What::Branch, SMALL, 0, 1, "-"),
    row("branch, 8 MiB written since", What::Branch, SMALL, 8, 1, "3.0"),
    row("branch, 64 MiB written since", What::Branch, SMALL, 64, 4, "-"),
];

const fn row(
    name: &'static str,
    what: What,
    mib: u64,
    count: usize,
    share: u32,
    target: &'static str,
) -> Row {
    Row { name, what, mib, count, share, target }
}

/// The program that measures, and its guest.
struct Bench {
    program: PathBuf,
    payload: PathBuf,
    coracle: PathBuf,
    floor: PathBuf,
    folders: Folders,
}

/// The directories for snapshots.
struct Folders {
    /// On the medium of the workspace.
    disk: PathBuf,
    /// On a tmpfs, where syncing takes no time.
    memory: PathBuf,
}

impl Bench {
    fn command(&self, what: What, mib: u64, count: usize, rounds: u32) -> Result<Command> {
        let what = what.to_possible_value().context("the name of the measurement")?;
        let numbers = [("--mib", mib), ("--count", count as u64), ("--rounds", rounds.into())];
        let mut command = Command::new(&self.program);
        command.args(["bench", "part", "snapshot", what.get_name()]).arg(&self.payload);
        command.args(numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]));
        Ok(command)
    }

    /// Measures with snapshots in a directory below `folder`.
    fn files<T: DeserializeOwned>(
        &self,
        (what, folder): (What, &Path),
        (mib, count, rounds): (u64, usize, u32),
    ) -> Result<T> {
        let mut command = self.command(what, mib, count, rounds)?;
        command
            .arg("--folder")
            .arg(folder)
            .arg("--coracle")
            .arg(&self.coracle)
            .arg("--floor")
            .arg(&self.floor);
        serde_json::from_str(&capture(&mut command)?).with_context(|| format!("the results of {what:?}"))
    }

    fn part<T: DeserializeOwned>(&self, what: What, mib: u64, count: usize, rounds: u32) -> Result<T> {
        let json = capture(&mut self.command(what, mib, count, rounds)?)?;
        serde_json::from_str(&json).with_context(|| format!("the results of {what:?}"))
    }
}

fn print_times(name: &str, times: &Times, target: &str) {
    let samples = |micros: &[f64]| Samples::of_micros(micros.to_vec());
    let (ours, floor) = (samples(&times.ours), samples(&times.floor));
    let cells: String = [&ours, &floor]
        .iter()
        .map(|samples| format!("{:11.3}{:11.3}", samples.median_ms(), samples.percentile_ms(95)))
        .collect();
    let above = ours.median_ms() - floor.median_ms();
    println!("{name:32}{cells}{above:10.3}{target:>9}");
}

/// Prints the rows of snapshots in files. The floor of a restore is the program `kvm-floor`, and that of
/// writing is one write and sync of the same bytes.
fn print_files(bench: &Bench, rounds: u32) -> Result<()> {
    let Folders { disk, memory } = &bench.folders;
    let restores = [("exec to next byte, 128 MiB", SMALL, "3.0"), ("exec to next byte, 4 GiB", 4 << 10, "-")];
    for (name, mib, target) in restores {
        print_times(name, &bench.files((What::Restore, disk), (mib, 1, rounds))?, target);
    }
    let few = (rounds / 4).max(1);
    let rows =
        [("write 4 GiB, 64 touched, tmpfs", memory, "100"), ("write 4 GiB, 64 touched, disk", disk, "1.3x")];
    let mut grown = 0;
    for (name, folder, target) in rows {
        let Writes { times, grown_kib } = bench.files((What::Write, folder), (4 << 10, 64, few))?;
        print_times(name, &times, target);
        grown = grown.max(grown_kib);
    }
    let increment = bench.files((What::Increment, disk), (SMALL, 64, few))?;
    print_times("increment, 6 of 64 MiB, disk", &increment, "-");
    println!("\n{:48}{grown:8.1}   target 8192", "growth of the process while it writes, KiB");
    Ok(())
}

fn print_memory(bench: &Bench) -> Result<()> {
    let memory: Memory = bench.part(What::Memory, SMALL, MANY, 1)?;
    let Memory { private_kib, ram_kib, page_tables_kib } = memory;
    println!("\nof each of {MANY} forks that have printed a byte and wait, KiB");
    println!("{:48}{private_kib:8.1}   target 512", "private memory without the guest's RAM");
    println!("{:48}{ram_kib:8.1}", "guest RAM of its own");
    println!("{:48}{page_tables_kib:8.1}\n", "page tables");
    Ok(())
}

/// Prints the system calls of one more fork, which is the difference between two runs.
fn print_calls(bench: &Bench) -> Result<()> {
    for mib in SIZES {
        let count = |forks| -> Result<u32> {
            // Threads that meet at a lock make a few calls more.
            let runs = (0..5).map(|_| calls::of(&mut bench.command(What::Calls, mib, forks, 1)?));
            Ok(runs.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(0))
        };
        let (few, more) = (count(1)?, count(1 + STEP)?);
        ensure!(few < more, "{few} system calls of 1 fork, {more} of {}", 1 + STEP);
        println!(
            "{:48}{:8.1}",
            format!("system calls of a fork's life, {mib} MiB"),
            f64::from(more - few) / STEP as f64
        );
    }
    Ok(())
}

/// Prints a result for the process that started this one.
fn answer(result: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

/// The usual memory of the guest, in MiB.
const SMALL: u64 = 128;
const SIZES: [u64; 3] = [SMALL, 4 << 10, 64 << 10];
/// The forks whose memory is measured.
const MANY: usize = 64;
const CROWD: usize = 1000;
/// The forks by which two runs differ.
const STEP: usize = 8;
/// The bytes that the guest `fork-mark` prints first, and in a fork.
const FROZEN: u8 = b'!';
const GOES_ON: u8 = b'.';
/// The memory that it touches, which is the image and 8 MiB: offset and length.
const TOUCHED: [(usize, usize); 1] = [(1 << 20, 9 << 20)];
