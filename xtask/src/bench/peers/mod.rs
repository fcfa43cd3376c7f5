//! Coracle, its floor and its peers in one table: the same guests, in turn, on the same KVM. A peer that is
//! not on the PATH is a column that says so.

mod bare;
mod chart;
mod io;
mod publish;
mod table;

use std::fmt::Write;
use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::boot;
use super::vmm::{Kind, Vmm};
use crate::static_build;
use crate::workspace::Workspace;
use bare::{Figures, GUEST_MIB, Guests};
use table::{Cell, Table};

/// Measures and prints the tables; with `publish`, they go into the documents as well.
pub(super) fn run(workspace: &Workspace, runs: u32, publish: bool) -> Result<()> {
    let mut columns = columns(workspace)?;
    let host = host()?;
    let introduction = introduction(&columns, &host, runs)?;
    print!("{introduction}");
    eprintln!("measuring; with 50 runs, the table comes after some 3 minutes");
    let limit = CpuLimit::set()?;
    let guests = Guests::new(&workspace.target.join("payloads"))?;
    // The first round, which is not counted, warms the caches and shows which peers can run the guests.
    for column in &mut columns {
        column.measure(|vmm, figures| figures.take(vmm, &guests, 0, runs))?;
        column.figures = Figures::default();
    }
    for round in 0..runs {
        for column in &mut columns {
            column.measure(|vmm, figures| figures.take(vmm, &guests, round, runs))?;
        }
    }
    let mut table = table(&columns);
    io::add_rows(&mut table, &columns, workspace, runs.div_ceil(10))?;
    drop(limit);
    println!("{table}\n");
    // The table of the bare guests is good without it.
    let boot = boot::table(workspace, runs.div_ceil(10));
    let boot = boot.unwrap_or_else(|error| format!("The boot of Linux was not measured: {error:#}\n"));
    println!("{}", boot.trim_end());
    if publish {
        publish::publish(workspace, &table, &host, &format!("{introduction}{table}\n\n{boot}"))?;
    }
    Ok(())
}

/// A monitor and what was measured of it.
struct Column {
    kind: Kind,
    vmm: Result<Vmm, &'static str>,
    figures: Figures,
}

impl Column {
    /// Measures the monitor if it is here. A failure of Coracle or the floor is an error; a peer that fails
    /// is left out.
    fn measure(&mut self, one: impl FnOnce(&Vmm, &mut Figures) -> Result<()>) -> Result<()> {
        let Ok(vmm) = &self.vmm else { return Ok(()) };
        match one(vmm, &mut self.figures) {
            Err(error) if is_peer(self.kind) => {
                eprintln!("{} is left out: {error:#}", self.kind);
                self.vmm = Err("failed");
                Ok(())
            }
            result => result,
        }
    }
}

/// A limit of the CPU time of each child, so that a peer whose guest spins for ever fails. The emulated host
/// takes more, and comes after it. The limit is lifted on drop.
struct CpuLimit {
    before: libc::rlimit,
}

impl CpuLimit {
    fn set() -> Result<CpuLimit> {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `before` has room for the answer.
        let read = unsafe { libc::getrlimit(libc::RLIMIT_CPU, &raw mut before) };
        ensure!(read == 0, "the limit of CPU time: {}", std::io::Error::last_os_error());
        let limit = libc::rlimit { rlim_cur: CPU_SECONDS.min(before.rlim_max), ..before };
        // SAFETY: the call only reads the limit.
        unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) };
        Ok(CpuLimit { before })
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        // SAFETY: the call only reads the limit.
        unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const self.before) };
    }
}

/// Returns whether the monitor may fail: Coracle and the floor may not.
fn is_peer(kind: Kind) -> bool {
    !matches!(kind, Kind::Coracle | Kind::Floor)
}

/// Finds the monitors. Coracle and the floor are built.
fn columns(workspace: &Workspace) -> Result<Vec<Column>> {
    let (coracle, floor) = (static_build::coracle(workspace)?, static_build::floor(workspace)?);
    for program in [&coracle, &floor] {
        // Pages of a file that has not been written back count as dirty memory of whoever maps them.
        File::open(program)?.sync_all().context("cannot write the binary to disk")?;
    }
    let built = |kind| -> &PathBuf { if kind == Kind::Floor { &floor } else { &coracle } };
    let column = |kind| Column {
        kind,
        vmm: Vmm::find(kind, built(kind)).ok_or("not here"),
        figures: Figures::default(),
    };
    Ok(KINDS.into_iter().map(column).collect())
}

/// Returns the lines above the table: what is compared, where, and in which versions.
fn introduction(columns: &[Column], host: &str, runs: u32) -> Result<String> {
    let mut text = format!(
        "One vCPU, {GUEST_MIB} MiB, bare guests; medians of {runs} runs in turn; rows that are not a time of one \
         process: of a tenth of them\n{host}\n"
    );
    for Column { kind, vmm, .. } in columns {
        let version = vmm.as_ref().map_or_else(|why| (*why).to_owned(), Vmm::version);
        writeln!(text, "{kind}: {version}")?;
    }
    text.push('\n');
    Ok(text)
}

/// Returns the line that describes this machine.
fn host() -> Result<String> {
    let cpus = thread::available_parallelism()?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let linux = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let (model, kvm) = (cpu_model(&cpuinfo), kind_of_kvm(&cpuinfo));
    Ok(format!("Host: {model}, {cpus} CPUs, {kvm}, Linux {}", linux.trim()))
}

fn cpu_model(cpuinfo: &str) -> &str {
    cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU")
}

/// Returns the kind of KVM that a host with these CPUs has.
fn kind_of_kvm(cpuinfo: &str) -> &'static str {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags\t\t: ")).unwrap_or_default();
    match flags.split(' ').any(|flag| matches!(flag, "vmx" | "svm")) {
        true => "hardware KVM",
        false => "software KVM",
    }
}

fn table(columns: &[Column]) -> Table {
    let mut table = Table::new(columns.iter().map(|column| column.kind.to_string()));
    for (name, better, figure) in bare::ROWS {
        let cell = |column: &Column| -> Cell {
            column.vmm.as_ref().map(|_| figure(&column.figures)).map_err(|why| *why)
        };
        table.row(name, better, columns.iter().map(cell));
    }
    table
}

/// Many times what the longest load takes, and what this process takes for all of them.
const CPU_SECONDS: u64 = 600;

/// The columns: Coracle, the floor, and then the peers.
const KINDS: [Kind; 6] =
    [Kind::Coracle, Kind::Floor, Kind::QemuMicrovm, Kind::Firecracker, Kind::CloudHypervisor, Kind::Kvmtool];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_line_is_read_from_cpuinfo() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu svm nx\n";
        assert_eq!((cpu_model(cpuinfo), kind_of_kvm(cpuinfo)), ("A CPU", "hardware KVM"));
        assert_eq!(kind_of_kvm(&cpuinfo.replace(" svm", " svm_lock")), "software KVM");
        assert_eq!(cpu_model(""), "unknown CPU");
    }
}
