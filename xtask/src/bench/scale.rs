//! The cost of one more machine beside many: bare guests that wait, in one process and in a process each.
//! The cost of a machine must not grow with their number.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle::config::SerialConfig;
use coracle::outcome::Ending;
use coracle::{Grace, Vm};
use serde::{Deserialize, Serialize};

use super::life::{Waiting, write_payload};
use super::process_time::{cpu_time_of, own_cpu_time};
use super::statistics::median;
use super::vmm::{Guest, Kind, Vmm};
use crate::process::capture;
use crate::static_build;
use crate::workspace::Workspace;

/// Measures and prints the tables.
pub(super) fn run(workspace: &Workspace, rounds: u32) -> Result<()> {
    let coracle = static_build::coracle(workspace)?;
    // The program that measures is built for release, as the library is.
    let tasks = static_build::tasks(workspace)?;
    let folder = workspace.target.join("payloads");
    println!(
        "Bare guests of {GUEST_MIB} MiB that wait, with one vCPU, on {} CPUs; medians; rounds: {rounds}",
        thread::available_parallelism()?
    );
    let payload = write_payload(&folder, "halt")?;
    measure("All in one process (the library)", rounds, |count| {
        let mut part = Command::new(&tasks);
        part.args(["bench", "part", "scale", "--count", &count.to_string()]).arg(&payload);
        serde_json::from_str(&capture(&mut part)?).context("the costs")
    })?;
    let guest = Guest::new(&write_payload(&folder, "hello-halt")?, GUEST_MIB)?;
    let vmm = Vmm::find(Kind::Coracle, &coracle).context("the program")?;
    measure("A process each (`coracle run`)", rounds, |count| processes(&vmm, &guest, count))
}

/// Measures this many machines in this process, which has had none, and prints the costs.
pub(super) fn measure_here(payload: &Path, count: u32) -> Result<()> {
    allow_open_files()?;
    println!("{}", serde_json::to_string(&machines(payload, count)?)?);
    Ok(())
}

/// The costs of a number of machines, divided by their number.
#[derive(Serialize, Deserialize)]
struct Costs {
    start: Duration,
    /// CPU time of the start and of [`WAIT`].
    cpu: Duration,
    /// CPU time in each second of waiting.
    idle: Duration,
    /// Memory that belongs to the machine, with what its guest has touched.
    memory_kib: f64,
    descriptors: f64,
    threads: f64,
    end: Duration,
}

/// A row of the table: its name, and what it shows of the costs.
type Row = (&'static str, fn(&Costs) -> f64);

/// Prints the medians of `rounds`, for each number of machines.
fn measure(title: &str, rounds: u32, costs: impl Fn(u32) -> Result<Costs>) -> Result<()> {
    let mut columns: Vec<Vec<Costs>> = COUNTS.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (&count, column) in COUNTS.iter().zip(&mut columns) {
            column.push(costs(count)?);
        }
    }
    let counts: String = COUNTS.iter().map(|count| format!("{count:>9}")).collect();
    println!("\n{title:38}{counts}    256/16");
    for (name, figure) in ROWS {
        let medians: Vec<f64> =
            columns.iter().map(|column| median(&column.iter().map(figure).collect::<Vec<_>>())).collect();
        let cells: String = medians.iter().map(|value| format!("{value:9.2}")).collect();
        // The slope: what one of the most costs beside one of sixteen.
        let slope = match medians.as_slice() {
            [_, base, .., last] if *base > 0.0 => format!("{:10.2}", last / base),
            _ => format!("{:>10}", "-"),
        };
        println!("{name:38}{cells}{slope}");
    }
    Ok(())
}

/// Starts machines in this process, one after the other; ends them all.
fn machines(payload: &Path, count: u32) -> Result<Costs> {
    let (before, cpu) = (Held::of("self")?, own_cpu_time());
    let start = Instant::now();
    let vms = (0..count).map(|_| machine(payload)).collect::<Result<Vec<_>>>()?;
    let started = start.elapsed();
    thread::sleep(WAIT);
    let (held, cpu) = (Held::of("self")?, own_cpu_time().saturating_sub(cpu));
    let idle = own_cpu_time();
    thread::sleep(WAIT);
    let idle = own_cpu_time().saturating_sub(idle);
    let start = Instant::now();
    for vm in &vms {
        let outcome = vm.stop(Grace::NONE);
        ensure!(outcome.ending == Ending::Stopped, "{}", outcome.reason());
    }
    drop(vms);
    let each = |time: Duration| time / count;
    Ok(Costs {
        start: each(started),
        cpu: each(cpu),
        idle: each(idle.div_f64(WAIT.as_secs_f64())),
        memory_kib: (held.memory_kib - before.memory_kib) / f64::from(count),
        descriptors: (held.descriptors - before.descriptors) / f64::from(count),
        threads: (held.threads - before.threads) / f64::from(count),
        end: each(start.elapsed()),
    })
}

fn machine(payload: &Path) -> Result<Vm> {
    let builder = Vm::builder().kernel(payload).memory_mib(GUEST_MIB);
    Ok(builder.configure(|config| config.serial = SerialConfig::Null).start()?)
}

/// Starts processes, one after the other; kills them all.
fn processes(vmm: &Vmm, guest: &Guest, count: u32) -> Result<Costs> {
    let start = Instant::now();
    let waiting = (0..count).map(|_| Waiting::start(&mut vmm.command(guest))).collect::<Result<Vec<_>>>()?;
    let started = start.elapsed();
    thread::sleep(WAIT);
    let cpu_time = || waiting.iter().map(|one| cpu_time_of(one.id())).sum::<Result<Duration>>();
    let cpu = cpu_time()?;
    thread::sleep(WAIT);
    let idle = cpu_time()?.saturating_sub(cpu);
    let mut all = Held::default();
    for one in &waiting {
        let held = Held::of(&one.id().to_string())?;
        all.memory_kib += held.memory_kib;
        all.descriptors += held.descriptors;
        all.threads += held.threads;
    }
    let start = Instant::now();
    drop(waiting);
    let each = |time: Duration| time / count;
    Ok(Costs {
        start: each(started),
        cpu: each(cpu),
        idle: each(idle.div_f64(WAIT.as_secs_f64())),
        memory_kib: all.memory_kib / f64::from(count),
        descriptors: all.descriptors / f64::from(count),
        threads: all.threads / f64::from(count),
        end: each(start.elapsed()),
    })
}

/// Lets this process open as many files as the system permits: a machine has a dozen.
pub(super) fn allow_open_files() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` has room for the answer.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the structure is valid.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(read == 0 && set == 0, "the limit of open files: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The memory, descriptors and threads of a process.
#[derive(Default)]
struct Held {
    memory_kib: f64,
    descriptors: f64,
    threads: f64,
}

impl Held {
    fn of(process: &str) -> Result<Held> {
        let file = |name: &str| Path::new("/proc").join(process).join(name);
        let entries = |name: &str| -> Result<f64> { Ok(fs::read_dir(file(name))?.count() as f64) };
        let rollup = fs::read_to_string(file("smaps_rollup")).context("the memory of a process")?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
        let memory_kib = pss.context("no Pss")?.parse()?;
        Ok(Held { memory_kib, descriptors: entries("fd")?, threads: entries("task")? })
    }
}

const ROWS: [Row; 7] = [
    ("start, one after the other, ms each", |costs| costs.start.as_secs_f64() * 1e3),
    ("CPU time of a start, ms each", |costs| costs.cpu.as_secs_f64() * 1e3),
    ("CPU time while waiting, us/s each", |costs| costs.idle.as_secs_f64() * 1e6),
    ("Pss with touched guest RAM, KiB each", |costs| costs.memory_kib),
    ("descriptors each", |costs| costs.descriptors),
    ("threads each", |costs| costs.threads),
    ("end of all, ms each", |costs| costs.end.as_secs_f64() * 1e3),
];
/// The numbers of machines. The second is the scale of the last column: a single machine also pays for what
/// a process needs once.
const COUNTS: [u32; 4] = [1, 16, 64, 256];
const GUEST_MIB: u64 = 16;
/// Longer than a machine takes to put away what it needed to start.
const WAIT: Duration = Duration::from_millis(500);
