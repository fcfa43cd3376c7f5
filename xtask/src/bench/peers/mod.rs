//! Coracle and its peers in one table: the same bare guests, in turn, on the same KVM. A peer that is not on
//! the PATH is a column that says so.

mod table;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use super::boot;
use super::life::{Lives, Waiting, write_payload};
use super::statistics::median;
use super::vmm::{self, Guest, Kind, Vmm};
use crate::static_build;
use crate::workspace::Workspace;
use table::{Better, Table};

/// Measures and prints the table.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    let coracle = static_build::coracle(workspace)?;
    // Pages of a file that has not been written back count as dirty memory of whoever maps them.
    File::open(&coracle)?.sync_all().context("cannot write the binary to disk")?;
    let guests = Guests::new(&workspace.target.join("payloads"))?;
    let mut columns: Vec<Column> = vmm::ALL
        .into_iter()
        .map(|kind| Column { kind, vmm: Vmm::find(kind, &coracle), figures: Figures::default() })
        .collect();
    introduce(&columns, runs)?;
    // A first round, which is not counted, warms the caches and shows which peers can run the guests.
    for column in &mut columns {
        column.measure(|vmm, figures| figures.take(vmm, &guests, 0, runs))?;
        column.figures = Figures::default();
    }
    for round in 0..runs {
        for column in &mut columns {
            column.measure(|vmm, figures| figures.take(vmm, &guests, round, runs))?;
        }
    }
    println!("{}\n", table(&columns));
    boot::run(workspace, runs.div_ceil(10))
}

/// A monitor and what was measured of it.
struct Column {
    kind: Kind,
    /// Empty if the program is not here, or cannot run the guests.
    vmm: Option<Vmm>,
    figures: Figures,
}

impl Column {
    /// Measures the monitor if it is here. A failure of Coracle is an error; a peer that fails is left out.
    fn measure(&mut self, one: impl FnOnce(&Vmm, &mut Figures) -> Result<()>) -> Result<()> {
        let Some(vmm) = &self.vmm else { return Ok(()) };
        match one(vmm, &mut self.figures) {
            Err(error) if self.kind != Kind::Coracle => {
                eprintln!("{} is left out: {error:#}", self.kind);
                self.vmm = None;
                Ok(())
            }
            result => result,
        }
    }
}

/// The guests of the measurement.
struct Guests {
    speaks_and_ends: Guest,
    speaks_and_waits: Guest,
    prints: Guest,
}

impl Guests {
    fn new(folder: &Path) -> Result<Guests> {
        let guest = |name| -> Result<Guest> { Ok(Guest::new(&write_payload(folder, name)?, GUEST_MIB)?) };
        Ok(Guests {
            speaks_and_ends: guest("hello-exit")?,
            speaks_and_waits: guest("hello-halt")?,
            prints: guest("serial-20000")?,
        })
    }
}

/// The figures of one monitor; each figure has a sample for each time that it was taken.
#[derive(Default)]
struct Figures {
    lives: Lives,
    printing: Lives,
    pss_kib: Vec<f64>,
    private_dirty_kib: Vec<f64>,
    guest_ram_kib: Vec<f64>,
    threads: Vec<f64>,
    crowd_pss_kib: Vec<f64>,
    lives_a_second: Vec<f64>,
}

impl Figures {
    /// Takes a sample of each figure in a tenth of the rounds, and of the times in all of them.
    fn take(&mut self, vmm: &Vmm, guests: &Guests, round: u32, runs: u32) -> Result<()> {
        self.lives.measure(&mut vmm.command(&guests.speaks_and_ends))?;
        if !round.is_multiple_of(runs.div_ceil(10)) {
            return Ok(());
        }
        let held = Waiting::start(&mut vmm.command(&guests.speaks_and_waits))?.held(GUEST_MIB)?;
        self.pss_kib.push(held.pss_kib as f64);
        self.private_dirty_kib.push(held.private_dirty_kib as f64);
        self.guest_ram_kib.push(held.guest_ram_kib as f64);
        self.threads.push(held.threads as f64);
        self.crowd_pss_kib.push(crowd_pss_kib(vmm, &guests.speaks_and_waits)?);
        self.lives_a_second.push(lives_a_second(vmm, &guests.speaks_and_ends)?);
        self.printing.measure(on_one_cpu(&mut vmm.command(&guests.prints)))
    }
}

/// Returns the mean memory of a monitor, apart from guest RAM, while [`CROWD`] of them wait.
fn crowd_pss_kib(vmm: &Vmm, guest: &Guest) -> Result<f64> {
    let waiting: Vec<Waiting> =
        (0..CROWD).map(|_| Waiting::start(&mut vmm.command(guest))).collect::<Result<_>>()?;
    let mut sum = 0;
    for one in &waiting {
        sum += one.held(GUEST_MIB)?.pss_kib;
    }
    Ok(sum as f64 / CROWD as f64)
}

/// Returns how many processes run a whole life in a second, [`AT_ONCE`] at a time.
fn lives_a_second(vmm: &Vmm, guest: &Guest) -> Result<f64> {
    let one = || -> Result<()> {
        let mut command = vmm.command(guest);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        // QEMU's own debug-exit device ends with an odd code.
        ensure!(status.code().is_some(), "{} was killed: {status}", vmm.kind);
        Ok(())
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let share = || (0..LIVES_EACH).try_for_each(|_| one());
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(share)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok((AT_ONCE * LIVES_EACH) as f64 / start.elapsed().as_secs_f64())
}

/// Lets the command run on the first CPU only.
fn on_one_cpu(command: &mut Command) -> &mut Command {
    let pin = || {
        // SAFETY: the set has only numbers, for which zero is a valid value.
        let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: CPU 0 is within the set.
        unsafe { libc::CPU_SET(0, &mut cpus) };
        // SAFETY: the set lives through the call.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call, which is safe after a fork.
    unsafe { command.pre_exec(pin) }
}

fn introduce(columns: &[Column], runs: u32) -> Result<()> {
    let cpus = thread::available_parallelism()?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU");
    let linux = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!(
        "One vCPU, {GUEST_MIB} MiB, bare guests; medians of {runs} runs in turn, of every tenth for what is not a time \
         of one process\nHost: {model}, {cpus} CPUs, Linux {}",
        linux.trim()
    );
    for Column { kind, vmm, .. } in columns {
        let version = vmm.as_ref().map_or("not here".to_owned(), Vmm::version);
        println!("{kind}: {version}");
    }
    println!();
    Ok(())
}

fn table(columns: &[Column]) -> Table {
    let mut table = Table::new(columns.iter().map(|column| column.kind.to_string()));
    let mut row = |name: &str, better, figure: fn(&Figures) -> f64| {
        let value = |column: &Column| column.vmm.as_ref().map(|_| figure(&column.figures));
        table.row(name, better, columns.iter().map(value));
    };
    row("exec to first guest byte, ms", Better::Less, |figures| figures.lives.first_byte.median_ms());
    row("  the same, 95 of 100", Better::Less, |figures| figures.lives.first_byte.percentile_ms(95));
    row("whole life, ms", Better::Less, |figures| figures.lives.whole.median_ms());
    row("CPU time of a whole life, ms", Better::Less, |figures| figures.lives.cpu.median_ms());
    row("lives a second, 8 at once", Better::More, |figures| median(&figures.lives_a_second));
    row("private dirty, waiting, KiB", Better::Less, |figures| median(&figures.private_dirty_kib));
    row("Pss, waiting, KiB", Better::Less, |figures| median(&figures.pss_kib));
    row("mean Pss of 16 at once, KiB", Better::Less, |figures| median(&figures.crowd_pss_kib));
    row("guest RAM held, KiB", Better::Less, |figures| median(&figures.guest_ram_kib));
    row("threads", Better::Less, |figures| median(&figures.threads));
    row("20,000 serial characters, ms", Better::Less, |figures| {
        figures.printing.after_first_byte.median_ms()
    });
    table
}

const GUEST_MIB: u64 = 128;
/// The number of waiting machines of "at once".
const CROWD: usize = 16;
const AT_ONCE: usize = 8;
const LIVES_EACH: usize = 10;
