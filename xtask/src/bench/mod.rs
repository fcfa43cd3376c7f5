//! `cargo xtask bench`: measurements that anyone can repeat. Each compares values from the same run, because
//! machines differ and drift. None of them is a test.

mod block;
mod boot;
mod churn;
mod exec;
mod exec_guest;
mod forks;
mod host_disk;
mod irqchip;
mod kvm_exits;
mod life;
mod net;
mod peers;
mod place;
mod process_time;
mod scale;
mod snapshot;
mod stage;
mod start;
mod statistics;
mod vmm;
mod vsock;
mod worker;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::workspace::Workspace;

/// The measurement to make.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Bench {
    /// From exec to the first byte that a bare guest prints; memory and size; compared with QEMU's microvm
    Start {
        /// Runs of each
        #[arg(long, default_value_t = 200)]
        runs: u32,
    },
    /// Coracle, the bare calls of KVM, QEMU's microvm and, if they are on the PATH, Firecracker, Cloud
    /// Hypervisor and kvmtool: a table of bare guests, and `boot`; the network card needs root
    Peers {
        /// Runs of each; a tenth for what takes longer than the life of one process
        #[arg(long, default_value_t = 50)]
        runs: u32,
        /// Also put the result into README.md, docs/benchmarks.md and docs/peers.svg
        #[arg(long)]
        publish: bool,
    },
    /// From exec to the first process of a Linux guest, with the tuned and the stock kernel, and the exits to
    /// there; compared with the peers that are on the PATH
    Boot {
        /// Boots of each
        #[arg(long, default_value_t = 9)]
        runs: u32,
    },
    /// Commands in a guest compared with its own processes, whole runs, the vsock device, and machines per
    /// second
    Exec {
        /// Commands of each kind; a twentieth of that for whole machines
        #[arg(long, default_value_t = 200)]
        runs: u32,
    },
    /// A virtio disk for a bare guest that polls, compared with QEMU's microvm and the host's own limit
    Block {
        /// Runs of each
        #[arg(long, default_value_t = 3)]
        runs: u32,
    },
    /// Frames per second between a bare guest and a tap, compared with QEMU's microvm and the tap's own
    /// limit; needs root
    Net {
        /// Runs of each
        #[arg(long, default_value_t = 5)]
        runs: u32,
    },
    /// Bytes per second between a bare guest's vsock device and a program, compared with a socket pair of the
    /// host
    Vsock {
        /// Runs of each
        #[arg(long, default_value_t = 5)]
        runs: u32,
    },
    /// The life of an empty virtual machine with each kind of interrupt controller
    Irqchip {
        /// Runs of each
        #[arg(long, default_value_t = 100)]
        runs: u32,
    },
    /// The cost of each of 1, 16, 64 and 256 waiting bare guests, in one process and in a process each
    Scale {
        /// Rounds of each number
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// Templates and forks of a bare guest, compared with the calls of KVM and of memory that a fork needs
    Snapshot {
        /// Forks of one; a part of that for what takes longer
        #[arg(long, default_value_t = 200)]
        rounds: u32,
    },
    /// A part of the others that runs as a separate program
    #[command(hide = true)]
    Part {
        #[command(subcommand)]
        part: Part,
    },
}

/// A measurement that runs in another place than its task: inside an emulated host, in a guest, or built for
/// release. It needs neither cargo nor the sources.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Part {
    Boot {
        #[arg(long)]
        runs: u32,
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        coracle: PathBuf,
    },
    ExecGuest {
        #[arg(long)]
        runs: u32,
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        coracle: PathBuf,
    },
    Forks {
        #[arg(long)]
        runs: u32,
        program: PathBuf,
    },
    Churn {
        #[arg(long)]
        rounds: u32,
        payload: PathBuf,
    },
    Scale {
        #[arg(long)]
        count: u32,
        payload: PathBuf,
    },
    Snapshot(snapshot::SnapshotPart),
}

/// Measures and prints a table.
///
/// # Errors
/// The subject of the measurement cannot be built or run.
pub(crate) fn run(workspace: &Workspace, bench: &Bench) -> Result<()> {
    match bench {
        Bench::Start { runs } => start::run(workspace, (*runs).max(1)),
        Bench::Peers { runs, publish } => peers::run(workspace, (*runs).max(1), *publish),
        Bench::Boot { runs } => boot::run(workspace, (*runs).max(1)),
        Bench::Exec { runs } => exec::run(workspace, (*runs).max(20)),
        Bench::Block { runs } => block::run(workspace, (*runs).max(1)),
        Bench::Net { runs } => net::run(workspace, (*runs).max(1)),
        Bench::Vsock { runs } => vsock::run(workspace, (*runs).max(1)),
        Bench::Irqchip { runs } => irqchip::run((*runs).max(1)),
        Bench::Scale { rounds } => scale::run(workspace, (*rounds).max(1)),
        Bench::Snapshot { rounds } => snapshot::run(workspace, (*rounds).max(1)),
        Bench::Part { part } => run_part(part),
    }
}

/// Measures and prints that part.
///
/// # Errors
/// The subject of the measurement cannot be run.
pub(crate) fn run_part(part: &Part) -> Result<()> {
    match part {
        Part::Boot { runs, data, coracle } => boot::measure_here(data, coracle, *runs),
        Part::ExecGuest { runs, data, coracle } => exec_guest::measure(data, coracle, *runs),
        Part::Forks { runs, program } => forks::measure(program, *runs),
        Part::Churn { rounds, payload } => churn::measure(payload, *rounds),
        Part::Scale { count, payload } => scale::measure_here(payload, *count),
        Part::Snapshot(part) => snapshot::measure_here(part),
    }
}
