//! The options of the subcommands about snapshots.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedI64ValueParser;
use clap::{Args, Subcommand};
use coracle::config::{CpuAffinity, CpuQuota, SerialConfig, parse_duration};

#[derive(Debug, Args)]
#[command(after_help = include_str!("examples/restore.txt").trim_end())]
pub(crate) struct RestoreArgs {
    /// Folder of the snapshot
    pub snapshot: PathBuf,
    /// Start N machines that go on from the snapshot, each by itself; each line of their consoles begins with
    /// the index of its machine
    #[arg(long, value_name = "N", value_parser = fork_count(), allow_hyphen_values = true)]
    pub fork: Option<u16>,
    /// Connection of the serial port: stdio, pty, file=PATH, socket=PATH or null [default: stdio; null for a
    /// machine with a virtio console, which stdio belongs to]
    #[arg(long, value_name = "TO", conflicts_with = "fork")]
    pub serial: Option<SerialConfig>,
    /// How long the machine may run, from the restore, as in 20s or 5m [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    pub timeout: Option<Duration>,
    /// How long the machine may be idle: all vCPUs together use less than 2 % of one CPU [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    pub idle_timeout: Option<Duration>,
    /// CPUs of the host for the vCPUs, as with `coracle run`
    #[arg(long, value_name = "CPUS", allow_hyphen_values = true)]
    pub cpu_affinity: Option<CpuAffinity>,
    /// CPU time that all vCPUs of a machine together may use, in percent of one CPU [default: no limit]
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true)]
    pub cpu_quota: Option<CpuQuota>,
    /// File for the outcome, as JSON; with --fork an array
    #[arg(long, value_name = "FILE")]
    pub outcome: Option<PathBuf>,
    /// Report on stderr how the time was spent, and more; -vv adds debug messages, -vvv traces
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Print the facts about a snapshot as a JSON object; only its manifest is read
    Info {
        /// Folder of the snapshot
        snapshot: PathBuf,
    },
    /// Read a whole snapshot, compare it with its checksums, and print `ok`, or what is wrong (exit code 125)
    Check {
        /// Folder of the snapshot
        snapshot: PathBuf,
    },
}

fn fork_count() -> RangedI64ValueParser<u16> {
    RangedI64ValueParser::new().range(1..=MAX_FORKS)
}

/// Each machine takes some ten descriptors and three threads; most hosts have fewer than this allows for.
const MAX_FORKS: i64 = 10_000;
