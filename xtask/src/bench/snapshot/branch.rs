//! Branches of a machine that runs on. Their time is the pause as the guest sees it: the longest time between
//! two looks at its serial port, by its time-stamp counter.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle::{ConsolePipe, Vm};
use coracle_floor::forks as floor;

use super::SnapshotPart;
use super::part::{Times, micros};

/// The guest that writes to its memory on command, in the directory of the other one.
pub(super) const PAYLOAD: &str = "branch-pages";

pub(super) fn branches(part: &SnapshotPart) -> Result<Times> {
    let dirty = u8::try_from(part.count)?;
    let mut writer = Writer::start(part)?;
    let mut machine = floor::Machine::start(&part.payload, usize::try_from(part.mib)?, false)?;
    // All that is ever written, so that no round has more to copy than is written in it.
    writer.write(64)?;
    drop(writer.vm.to_template()?);
    let ticks = ticks_per_micro();
    let mut times = Times::default();
    // The first is not counted: it warms the caches.
    for round in 0..=part.rounds {
        writer.write(dirty)?;
        // What came before does not count, and the guest has to be back at its serial port.
        writer.longest_gap()?;
        std::thread::sleep(Duration::from_millis(2));
        let template = writer.vm.to_template()?;
        let ours = writer.longest_gap()? / ticks;
        drop(template);
        let range = (16 << 20, usize::from(dirty) << 20);
        machine.dirty(range, round as u8)?;
        let start = Instant::now();
        let branch = machine.branch(range)?;
        let floor = micros(start);
        drop(branch);
        if round > 0 {
            times.ours.push(ours);
            times.floor.push(floor);
        }
    }
    Ok(times)
}

/// The machine of the guest that writes.
pub(super) struct Writer {
    pub(super) vm: Vm,
    pipe: ConsolePipe,
}

impl Writer {
    pub(super) fn start(part: &SnapshotPart) -> Result<Writer> {
        let payload = part.payload.with_file_name(format!("{PAYLOAD}.elf"));
        let mut vm = Vm::builder().kernel(payload).memory_mib(part.mib).console_piped().start()?;
        let pipe = vm.take_console().context("no console")?;
        let mut writer = Writer { vm, pipe };
        writer.expect(b'!')?;
        Ok(writer)
    }

    /// Lets the guest write to each page of `mib` MiB.
    pub(super) fn write(&mut self, mib: u8) -> Result<()> {
        self.pipe.input.write_all(&[b'w', mib])?;
        self.expect(b'.')
    }

    /// Returns the longest time between two looks at the serial port since the last call, in ticks.
    fn longest_gap(&mut self) -> Result<f64> {
        self.pipe.input.write_all(b"g")?;
        let mut line = [0; 17];
        self.pipe.output.read_exact(&mut line)?;
        Ok(u64::from_str_radix(str::from_utf8(&line)?.trim_end(), 16)? as f64)
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        let mut printed = [0];
        self.pipe.output.read_exact(&mut printed)?;
        ensure!(printed == [byte], "the guest printed {printed:?} in place of {byte}");
        Ok(())
    }
}

/// Measures the frequency of the host's time-stamp counter, which is that of its guests, in MHz.
fn ticks_per_micro() -> f64 {
    // SAFETY: every x86-64 CPU has the instruction.
    let now = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, before) = (Instant::now(), now());
    std::thread::sleep(Duration::from_millis(50));
    let (micros, after) = (micros(start), now());
    (after - before) as f64 / micros
}
