//! The bare guests without devices: start, life, memory, density, serial output.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};

use super::table::Better;
use crate::bench::life::{Lives, Waiting, write_payload};
use crate::bench::statistics::median;
use crate::bench::vmm::{Guest, Vmm};

/// The guests of the measurement.
pub(super) struct Guests {
    speaks_and_ends: Guest,
    speaks_and_waits: Guest,
    prints: Guest,
}

impl Guests {
    pub(super) fn new(folder: &Path) -> Result<Guests> {
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
pub(super) struct Figures {
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
    /// Takes a sample of each figure in a tenth of the rounds, and of the times in all of them. A life that
    /// does not count comes before it: otherwise each monitor's times depend on the caches that the one
    /// before it in the round has left.
    pub(super) fn take(&mut self, vmm: &Vmm, guests: &Guests, round: u32, runs: u32) -> Result<()> {
        Lives::default().measure(&mut vmm.command(&guests.speaks_and_ends))?;
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

/// A row of the table: its name, which values are better, and the value of one monitor.
type Row = (&'static str, Better, fn(&Figures) -> f64);

/// The rows, in the table's order.
pub(super) const ROWS: [Row; 13] = [
    (FIRST_BYTE, Better::Less, |figures| figures.lives.first_byte.median_ms()),
    ("  the same, 95 of 100", Better::Less, |figures| figures.lives.first_byte.percentile_ms(95)),
    (WHOLE_LIFE, Better::Less, |figures| figures.lives.whole.median_ms()),
    ("  the same, 95 of 100", Better::Less, |figures| figures.lives.whole.percentile_ms(95)),
    (CPU_TIME, Better::Less, |figures| figures.lives.cpu.median_ms()),
    (LIVES_A_SECOND, Better::More, |figures| median(&figures.lives_a_second)),
    (PRIVATE_DIRTY, Better::Less, |figures| median(&figures.private_dirty_kib)),
    ("Pss, waiting, KiB", Better::Less, |figures| median(&figures.pss_kib)),
    (CROWD_PSS, Better::Less, |figures| median(&figures.crowd_pss_kib)),
    ("guest RAM held, KiB", Better::Less, |figures| median(&figures.guest_ram_kib)),
    ("threads", Better::Less, |figures| median(&figures.threads)),
    (SERIAL, Better::Less, |figures| figures.printing.after_first_byte.median_ms()),
    ("  the same, 95 of 100", Better::Less, |figures| figures.printing.after_first_byte.percentile_ms(95)),
];

pub(super) const FIRST_BYTE: &str = "exec to first guest byte, ms";
pub(super) const WHOLE_LIFE: &str = "whole life, ms";
pub(super) const CPU_TIME: &str = "CPU time of a whole life, ms";
pub(super) const LIVES_A_SECOND: &str = "lives a second, 8 at once";
pub(super) const PRIVATE_DIRTY: &str = "private dirty, waiting, KiB";
pub(super) const CROWD_PSS: &str = "mean Pss of 16 at once, KiB";
pub(super) const SERIAL: &str = "20,000 serial characters, ms";

pub(super) const GUEST_MIB: u64 = 128;
/// The number of waiting machines of "at once".
const CROWD: usize = 16;
const AT_ONCE: usize = 8;
const LIVES_EACH: usize = 10;
