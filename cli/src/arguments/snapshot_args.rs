//! The options of the subcommands about snapshots.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, RangedI64ValueParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use coracle::config::{Accel, CpuAffinity, CpuQuota, SerialConfig, parse_duration};

use super::per_fork::PerFork;
use super::variable::named;
use super::vm_args::accel_values;
use super::{DeviceArgs, GuestIp, Surroundings};

#[derive(Debug, Args)]
#[command(after_help = include_str!("examples/restore.txt").trim_end())]
pub(crate) struct RestoreArgs {
    /// Folder of the snapshot
    pub snapshot: PathBuf,
    /// Start N machines that go on from the snapshot, each by itself; each line of their output begins with
    /// the index of its machine
    #[arg(long, value_name = "N", value_parser = fork_count(), allow_hyphen_values = true)]
    pub fork: Option<u16>,
    /// Directory with the snapshots that this one lies over
    #[arg(long, value_name = "DIR")]
    pub parents: Option<PathBuf>,
    #[command(flatten)]
    pub devices: DeviceArgs,
    /// Host name for the guest, which its agent sets; `{i}` is the index of the fork [default: it keeps its
    /// name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<PerFork<String>>,
    /// Variable of commands that start from now on, and of a branch point: NAME=VALUE, or NAME for its value
    /// here; can be repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    #[arg(value_parser = OsStringValueParser::new().try_map(named))]
    pub env: Vec<OsString>,
    /// Address for the first network card, which the guest's agent sets, as with `coracle run --ip`; `{i}` is
    /// the index of the fork
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<PerFork<GuestIp>>,
    /// User for the command in the guest, as with `coracle run` [default: root]
    #[arg(short, long, value_name = "USER", requires = "command")]
    pub user: Option<OsString>,
    /// Working directory of the command in the guest [default: /]
    #[arg(short, long, value_name = "DIR", requires = "command")]
    pub workdir: Option<PathBuf>,
    /// Time of the guest since the snapshot: stands, or elapsed (has passed) [default: stands; the agent sets
    /// the wall clock in any case]
    #[arg(long, value_name = "TIME")]
    pub time: Option<TimeArg>,
    /// Connection of the serial port: stdio, pty, file=PATH, socket=PATH or null [default: stdio; null for a
    /// machine with a virtio console, which stdio belongs to, or with a command]
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
    /// Host of the guest: auto (this one; an emulated one if the snapshot was taken there), kvm or emulate
    /// [default: auto]
    #[arg(long, value_parser = accel_values(), default_value = "auto", hide_default_value = true)]
    pub accel: Accel,
    /// File for the outcome, as JSON; with --fork an array
    #[arg(long, value_name = "FILE")]
    pub outcome: Option<PathBuf>,
    /// Write a snapshot of the machine to this folder at each SIGUSR1, as with `coracle run`
    #[arg(long, value_name = "FOLDER", conflicts_with = "fork")]
    pub snapshot_on_signal: Option<PathBuf>,
    /// Write a snapshot of the machine to this folder when its command calls `coracle-agent branch-here`, as
    /// with `coracle run`
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["fork", "serial"])]
    pub snapshot_on_ready: Option<PathBuf>,
    /// Report on stderr how the time was spent, and more; -vv adds debug messages, -vvv traces
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Command to run in the guest, with the streams of this command; the machine ends with it [default: the
    /// command of the snapshot, if it was taken of `coracle run ... -- COMMAND`]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl RestoreArgs {
    /// Returns the surroundings of the command. The guest's agent adds the variables of all commands.
    pub(crate) fn surroundings(&self) -> Surroundings {
        Surroundings { user: self.user.clone(), workdir: self.workdir.clone(), ..Surroundings::default() }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TimeArg {
    Stands,
    Elapsed,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Print the facts about a snapshot as a JSON object; only its manifest is read
    Info {
        /// Folder of the snapshot
        snapshot: PathBuf,
    },
    /// Write a snapshot and those that it lies over as a single one
    Merge {
        /// Folder of the snapshot
        snapshot: PathBuf,
        /// Folder of the new snapshot
        merged: PathBuf,
        /// Directory with the snapshots that this one lies over
        #[arg(long, value_name = "DIR")]
        parents: PathBuf,
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
