//! The measurements, each in a process of its own.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle::config::{MemoryBacking, MemoryConfig, MemorySize};
use coracle::{ConsolePipe, Template, Vm};
use coracle_floor::forks as floor;
use serde::{Deserialize, Serialize};

use super::branch::branches;
use super::files::{increments, restores, writes};
use super::held::Held;
use super::{FROZEN, GOES_ON, SnapshotPart, TOUCHED, What, answer};
use crate::bench::scale::allow_open_files;

/// Times in microseconds, in the order in which they were taken.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) ours: Vec<f64>,
    pub(super) floor: Vec<f64>,
}

/// The memory of one of many forks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) private_kib: f64,
    pub(super) ram_kib: f64,
    pub(super) page_tables_kib: f64,
}

/// The costs of many forks; descriptors and threads are those of one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Crowd {
    pub(super) time: Duration,
    pub(super) floor: Duration,
    pub(super) descriptors: f64,
    pub(super) threads: f64,
}

/// Measures in this process, and prints the result as JSON.
pub(in crate::bench) fn measure_here(part: &SnapshotPart) -> Result<()> {
    allow_open_files()?;
    match part.what {
        What::FreezeAnonymous => answer(&freezes(part, MemoryBacking::Anonymous)?),
        What::FreezeMemfd => answer(&freezes(part, MemoryBacking::Memfd)?),
        What::Forks => answer(&forks(part)?),
        What::Branch => answer(&branches(part)?),
        What::Restore => answer(&restores(part)?),
        What::Write => answer(&writes(part)?),
        What::Increment => answer(&increments(part)?),
        What::Memory => answer(&memory(part)?),
        What::Crowd => answer(&crowd(part)?),
        What::Calls => Marked::fork(&template(part)?, part.count).map(drop),
    }
}

/// Freezes machines that have touched their memory.
fn freezes(part: &SnapshotPart, backing: MemoryBacking) -> Result<Times> {
    let mut times = Times::default();
    for _ in 0..part.rounds {
        let machine = Marked::start(part, backing)?;
        let start = Instant::now();
        let template = machine.vm.freeze()?;
        times.ours.push(micros(start));
        drop((template, machine));
        let machine =
            floor::Machine::start(&part.payload, part.mib as usize, backing == MemoryBacking::Memfd)?;
        let start = Instant::now();
        let frozen = machine.freeze(&TOUCHED)?;
        times.floor.push(micros(start));
        drop(frozen);
    }
    Ok(times)
}

/// Forks, each until it has printed its next byte.
fn forks(part: &SnapshotPart) -> Result<Times> {
    let template = template(part)?;
    let floor = floor_template(part)?;
    let mut times = Times::default();
    // The first is not counted: it warms the caches.
    for round in 0..=part.rounds {
        let start = Instant::now();
        let forks = Marked::fork(&template, part.count)?;
        let ours = micros(start);
        drop(forks);
        let start = Instant::now();
        let forks = floor_forks(&floor, part.count)?;
        let floor = micros(start);
        drop(forks);
        if round > 0 {
            times.ours.push(ours);
            times.floor.push(floor);
        }
    }
    Ok(times)
}

fn memory(part: &SnapshotPart) -> Result<Memory> {
    let template = template(part)?;
    // What the process needs once.
    let first = Marked::fork(&template, 1)?;
    let before = Held::now()?;
    let forks = Marked::fork(&template, part.count)?;
    let after = Held::now()?;
    drop((first, forks));
    let each =
        |figure: fn(&Held) -> u64| figure(&after).saturating_sub(figure(&before)) as f64 / part.count as f64;
    Ok(Memory {
        private_kib: each(|held| held.private_kib),
        ram_kib: each(|held| held.ram_kib),
        page_tables_kib: each(|held| held.page_tables_kib),
    })
}

fn crowd(part: &SnapshotPart) -> Result<Crowd> {
    let template = template(part)?;
    let counts = || -> Result<(f64, f64)> {
        let descriptors = fs::read_dir("/proc/self/fd")?.count();
        // KVM adds a thread of its own to each machine (`kvm-nx-lpage-recovery`).
        let is_ours = |name: &String| !name.starts_with("kvm-");
        let names = fs::read_dir("/proc/self/task")?
            .map(|task| fs::read_to_string(task?.path().join("comm")))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((descriptors as f64, names.iter().filter(|name| is_ours(name)).count() as f64))
    };
    let before = counts()?;
    let start = Instant::now();
    let forks = template.fork(part.count, |_, fork| fork)?;
    let time = start.elapsed();
    let after = counts()?;
    drop((forks, template));
    let floor = floor_template(part)?;
    let start = Instant::now();
    let forks = (0..part.count).map(|_| floor.fork()).collect::<Result<Vec<_>, _>>()?;
    let floor = start.elapsed();
    drop(forks);
    let each = |after: f64, before: f64| (after - before) / part.count as f64;
    Ok(Crowd { time, floor, descriptors: each(after.0, before.0), threads: each(after.1, before.1) })
}

/// A machine whose guest has printed a byte.
struct Marked {
    vm: Vm,
    pipe: ConsolePipe,
}

impl Marked {
    fn start(part: &SnapshotPart, backing: MemoryBacking) -> Result<Marked> {
        let memory = MemoryConfig::new(MemorySize::from_mib(part.mib)?, backing)?;
        let builder = Vm::builder().kernel(&part.payload).console_piped();
        let builder = builder.configure(|config| config.memory = memory);
        let mut marked = Marked::of(builder.start()?)?;
        marked.expect(FROZEN)?;
        Ok(marked)
    }

    /// Makes forks, all of which have printed a byte.
    fn fork(template: &Template, count: usize) -> Result<Vec<Marked>> {
        let forks = template.fork(count, |_, fork| fork.console_piped())?;
        let mut forks = forks.into_iter().map(Marked::of).collect::<Result<Vec<_>>>()?;
        forks.iter_mut().try_for_each(|fork| fork.expect(GOES_ON))?;
        Ok(forks)
    }

    fn of(mut vm: Vm) -> Result<Marked> {
        let pipe = vm.take_console().context("no console")?;
        Ok(Marked { vm, pipe })
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        let mut printed = [0];
        self.pipe.output.read_exact(&mut printed)?;
        ensure!(printed == [byte], "the guest printed {printed:?} in place of {byte}");
        Ok(())
    }
}

pub(super) fn template(part: &SnapshotPart) -> Result<Template> {
    Ok(Marked::start(part, MemoryBacking::Anonymous)?.vm.freeze()?)
}

fn floor_template(part: &SnapshotPart) -> Result<floor::Template> {
    let machine = floor::Machine::start(&part.payload, part.mib as usize, true)?;
    Ok(machine.freeze(&TOUCHED)?.0)
}

fn floor_forks(template: &floor::Template, count: usize) -> Result<Vec<floor::Fork>> {
    let mut forks = (0..count).map(|_| template.fork()).collect::<Result<Vec<_>, _>>()?;
    for fork in &mut forks {
        let byte = fork.run_to_byte()?;
        ensure!(byte == GOES_ON, "the floor's guest printed {byte}");
    }
    Ok(forks)
}

pub(super) fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}
