//! The performance of a disk for a guest that polls: a bare payload in ring 3, where code runs natively on
//! any KVM, under Coracle and under QEMU's microvm with an I/O thread, with the same file in the page cache;
//! and the performance of the host's own system calls on that file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_payload::Payload;

use super::host_disk::{self, HostWay};
use super::process_time::wait_cpu_time;
use crate::process::{exists, line};
use crate::static_build;
use crate::workspace::Workspace;

/// Measures and prints the tables.
pub(super) fn run(workspace: &Workspace, runs: u32) -> Result<()> {
    let coracle = static_build::coracle(workspace)?;
    let disk = Disk::new(&workspace.target)?;
    let mut vmms = vec![Vmm::CoracleSync, Vmm::CoracleAsleep, Vmm::CoracleUring, Vmm::CoracleUringAsleep];
    match exists(QEMU) {
        true => vmms.extend([Vmm::QemuThreads, Vmm::QemuUring]),
        false => println!("{QEMU} is not installed: Coracle is measured alone"),
    }
    let cycles_per_second = cycles_per_second();
    println!(
        "A file of {DISK_MIB} MiB in the page cache, one vCPU that polls; medians of {runs} runs, in turn\n\
         ratio: to the better QEMU; rings: doorbells a request; CPU: of the whole process, its start included"
    );
    for load in &LOADS {
        let payload = write_payload(&workspace.target.join("payloads"), load.payload)?;
        let mut rows: Vec<Row> = vmms.iter().map(|vmm| Row { vmm: *vmm, runs: Vec::new() }).collect();
        for _ in 0..runs {
            for row in &mut rows {
                if load.is_cold {
                    disk.leave_the_page_cache()?;
                }
                let mut command = row.vmm.command(&coracle, &payload, &disk.path);
                row.runs.push(measure(&mut command, load, cycles_per_second)?);
            }
        }
        let ways = if load.is_cold { &[] } else { load.host };
        let hosts = ways.iter().map(|way| {
            host_disk::operations_per_second(&disk.path, *way, load.bytes).map(|speed| (*way, speed))
        });
        print(load, &hosts.collect::<Result<Vec<_>>>()?, &rows);
    }
    Ok(())
}

/// A kind of load.
pub(super) struct Load {
    title: &'static str,
    pub(super) payload: &'static str,
    /// The number of requests that the payload makes.
    count: u32,
    /// The size of each request, in bytes.
    bytes: usize,
    /// The host's own limits: of a thread that is awake, and of one that has to be woken.
    host: &'static [HostWay],
    /// Whether the page cache has nothing of the file when the guest starts.
    is_cold: bool,
}

/// The result of one run of a payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) per_second: f64,
    median_us: f64,
    p99_us: f64,
    rings: f64,
    cpu_us: f64,
}

/// The results of one way of serving the disk.
struct Row {
    vmm: Vmm,
    runs: Vec<Run>,
}

impl Row {
    fn median(&self, value: impl Fn(&Run) -> f64) -> f64 {
        let mut values: Vec<f64> = self.runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    CoracleSync,
    /// Coracle without polling: a guest with one request at a time rings for each.
    CoracleAsleep,
    CoracleUring,
    /// The same without polling.
    CoracleUringAsleep,
    QemuThreads,
    QemuUring,
}

impl Vmm {
    fn name(self) -> &'static str {
        match self {
            Self::CoracleSync => "coracle, sync",
            Self::CoracleAsleep => "coracle, sync, poll=off",
            Self::CoracleUring => "coracle, io_uring",
            Self::CoracleUringAsleep => "coracle, io_uring, poll=off",
            Self::QemuThreads => "QEMU, threads",
            Self::QemuUring => "QEMU, io_uring",
        }
    }

    fn is_qemu(self) -> bool {
        matches!(self, Self::QemuThreads | Self::QemuUring)
    }

    fn command(self, coracle: &Path, payload: &Path, disk: &Path) -> Command {
        match self {
            Self::CoracleSync => coracle_command(coracle, payload, disk, "sync"),
            Self::CoracleAsleep => coracle_command(coracle, payload, disk, "sync,poll=off"),
            Self::CoracleUring => coracle_command(coracle, payload, disk, "io_uring"),
            Self::CoracleUringAsleep => coracle_command(coracle, payload, disk, "io_uring,poll=off"),
            Self::QemuThreads => qemu_command(payload, disk, "threads"),
            Self::QemuUring => qemu_command(payload, disk, "io_uring"),
        }
    }
}

fn coracle_command(coracle: &Path, payload: &Path, disk: &Path, engine: &str) -> Command {
    let mut command = Command::new(coracle);
    command.args(["run", "--accel", "kvm", "--memory", MEMORY]).arg(payload);
    command.arg("--disk").arg(format!("path={},engine={engine}", disk.display()));
    command
}

fn qemu_command(payload: &Path, disk: &Path, engine: &str) -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-M", "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off"]);
    command.args(["-cpu", "host,arch-capabilities=off", "-m", MEMORY, "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.args(["-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io"]);
    let path = disk.display();
    let file = format!("driver=file,node-name=d,filename={path},aio={engine},cache.direct=off");
    command.args(["-blockdev", &file, "-device", "virtio-blk-device,drive=d,iothread=io"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"]).arg(payload);
    command
}

/// Runs the command to its end.
pub(super) fn measure(command: &mut Command, load: &Load, cycles_per_second: f64) -> Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", line(command)))?;
    let (mut printed, mut said) = (String::new(), String::new());
    child.stdout.take().context("the child's stdout")?.read_to_string(&mut printed)?;
    child.stderr.take().context("the child's stderr")?.read_to_string(&mut said)?;
    let cpu = wait_cpu_time(&child)?;
    let numbers: Vec<f64> = printed
        .split_whitespace()
        .filter_map(|word| u64::from_str_radix(word, 16).ok())
        .map(|number| number as f64)
        .collect();
    // A monitor may have printed something of its own before.
    let [.., cycles, rings, median, p99] = numbers.as_slice() else {
        bail!("`{}` printed {printed:?} and no results: {said}", line(command));
    };
    let count = f64::from(load.count);
    Ok(Run {
        per_second: count / (cycles / cycles_per_second),
        median_us: median / cycles_per_second * 1e6,
        p99_us: p99 / cycles_per_second * 1e6,
        rings: rings / count,
        cpu_us: cpu.as_secs_f64() * 1e6 / count,
    })
}

fn print(load: &Load, hosts: &[(HostWay, f64)], rows: &[Row]) {
    let speed = |per_second: f64| match load.bytes {
        0..MIB => format!("{:.1} k/s", per_second / 1e3),
        bytes => format!("{:.2} GB/s", per_second * bytes as f64 / 1e9),
    };
    println!(
        "\n{:34} {:>11} {:>6} {:>9} {:>9} {:>6} {:>8}",
        load.title, "", "ratio", "p50", "p99", "rings", "CPU"
    );
    for (way, per_second) in hosts {
        println!("{:34} {:>11}", format!("  host, {}", way.name()), speed(*per_second));
    }
    let qemu = rows.iter().filter(|row| row.vmm.is_qemu()).map(|row| row.median(|run| run.per_second));
    let best = qemu.fold(f64::NAN, f64::max);
    for row in rows {
        let per_second = row.median(|run| run.per_second);
        println!(
            "  {:32} {:>11} {:6.2} {:6.1} us {:6.1} us {:6.2} {:5.1} us",
            row.vmm.name(),
            speed(per_second),
            per_second / best,
            row.median(|run| run.median_us),
            row.median(|run| run.p99_us),
            row.median(|run| run.rings),
            row.median(|run| run.cpu_us),
        );
    }
}

/// The file, removed on drop.
pub(super) struct Disk {
    pub(super) path: PathBuf,
}

impl Disk {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let disk = Self { path: folder.join("bench-disk.img") };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&disk.path);
        let file = file.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", disk.path.display()))?;
        let block: Vec<u8> = (0..MIB).map(|index| (index % 251) as u8).collect();
        for _ in 0..DISK_MIB {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        Ok(disk)
    }

    fn leave_the_page_cache(&self) -> Result<()> {
        let file = File::open(&self.path)?;
        // Pages that are not written back yet would stay in the cache, and earlier loads may have left some.
        file.sync_all()?;
        // SAFETY: the call takes an open descriptor and numbers.
        match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            error => bail!("posix_fadvise: {}", std::io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn write_payload(folder: &Path, name: &str) -> Result<PathBuf> {
    let payload = Payload::named(name).with_context(|| format!("there is no payload {name}"))?;
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.elf"));
    File::create(&path)?.write_all(&payload.elf())?;
    Ok(path)
}

/// Measures the frequency of the TSC against the host's clock.
pub(super) fn cycles_per_second() -> f64 {
    // SAFETY: reads the TSC, which every x86-64 CPU has.
    let now = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, cycles) = (Instant::now(), now());
    std::thread::sleep(Duration::from_millis(100));
    (now() - cycles) as f64 / start.elapsed().as_secs_f64()
}

const QEMU: &str = "qemu-system-x86_64";
const MEMORY: &str = "256M";
const MIB: usize = 1 << 20;
/// The part of the disk that the payloads read and write.
const DISK_MIB: usize = 64;

pub(super) const LOADS: [Load; 6] = [
    Load {
        title: "4 KiB random reads, one at a time",
        payload: "block-read-1",
        count: 20_000,
        bytes: 4096,
        host: &[HostWay::Read, HostWay::ReadWhenWoken],
        is_cold: false,
    },
    Load {
        title: "4 KiB random reads, 32 at a time",
        payload: "block-read-32",
        count: 500_000,
        bytes: 4096,
        host: &[HostWay::UringRead],
        is_cold: false,
    },
    Load {
        title: "4 KiB random writes, 32 at a time",
        payload: "block-write-32",
        count: 100_000,
        bytes: 4096,
        host: &[HostWay::Write],
        is_cold: false,
    },
    Load {
        title: "1 MiB reads, 8 at a time",
        payload: "block-stream-read",
        count: 8000,
        bytes: MIB,
        host: &[HostWay::Read],
        is_cold: false,
    },
    Load {
        title: "1 MiB writes, 8 at a time",
        payload: "block-stream-write",
        count: 2000,
        bytes: MIB,
        host: &[HostWay::Write],
        is_cold: false,
    },
    Load {
        title: "4 KiB random reads, not in the cache",
        payload: "block-read-cold",
        count: 8000,
        bytes: 4096,
        host: &[HostWay::UringRead],
        is_cold: true,
    },
];
