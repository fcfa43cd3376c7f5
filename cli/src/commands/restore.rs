//! `coracle restore`: lets one machine or many go on from a snapshot.

use std::io::{self, IsTerminal, Write};

use coracle::command::standard_input;
use coracle::config::{RawConfig, SerialConfig};
use coracle::outcome::{Outcome, Seconds};
use coracle::snapshot::SnapshotInfo;
use coracle::{Fork, SnapshotError, Template, Vm, VmHandle, snapshot};

use super::run::copying::OutputFile;
use super::run::signals::Blocked;
use super::run::snapshots::Snapshots;
use super::run::watch::Watch;
use super::run::{attended, report_all, report_ending, report_failure};
use super::settings::Failure;
use super::{chain, report_file, say};
use crate::arguments::RestoreArgs;
use crate::logger;

/// Runs the machines, and returns the exit code of the outcome: with many, that of the first that has failed.
pub(crate) fn run(args: &RestoreArgs) -> u8 {
    logger::start(args.verbose);
    let signals = match Blocked::new() {
        Ok(signals) => signals,
        Err(error) => return report_failure(args.outcome.as_deref(), Failure::of(&error)),
    };
    if let Err(failure) = report_file::check("--outcome", args.outcome.as_deref()) {
        say(&failure.reason);
        return failure.code;
    }
    let ran = match args.fork {
        None => restore(args, signals),
        Some(count) => fork(args, usize::from(count), &signals),
    };
    ran.unwrap_or_else(|failure| report_failure(args.outcome.as_deref(), failure))
}

/// Restores a machine with its console on the standard streams.
fn restore(args: &RestoreArgs, signals: Blocked) -> Result<u8, Failure> {
    let watch = Watch::preparation(&signals, args.outcome.clone()).map_err(|error| Failure::of(&error))?;
    let SnapshotInfo { machine, .. } = snapshot::info(&args.snapshot).map_err(|error| failure(&error))?;
    let default = if machine.virtio_console { SerialConfig::Null } else { SerialConfig::Stdio };
    let serial = args.serial.clone().unwrap_or(default);
    let is_on_stdio = machine.virtio_console || serial == SerialConfig::Stdio;
    let is_interactive = is_on_stdio && standard_input().is_terminal();
    let restore = Vm::restore(&args.snapshot)
        .console_escape(is_interactive)
        .with(|machine| limited(machine.serial(serial), args));
    let outcome = attended(is_on_stdio, (signals, watch, &Snapshots::default()), |begin| {
        restore.run_with(|vm| begin(vm)).map_err(|error| failure(&error))
    })?;
    let raw = RawConfig { outcome: args.outcome.clone(), ..RawConfig::default() };
    Ok(report_ending(&raw, &outcome, !is_on_stdio))
}

/// Starts `count` machines, whose consoles are on standard output, and waits for all of them.
fn fork(args: &RestoreArgs, count: usize, signals: &Blocked) -> Result<u8, Failure> {
    let watch = Watch::preparation(signals, args.outcome.clone()).map_err(|error| Failure::of(&error))?;
    let template = Template::load(&args.snapshot).map_err(|error| failure(&error))?;
    let forks = template
        .fork(count, |index, fork| limited(fork, args).console_writer(Prefixed::new(format!("{index}: "))));
    let forks = forks.map_err(|error| failure(&error))?;
    drop(watch);
    let handles: Vec<VmHandle> = forks.iter().map(Vm::handle).collect();
    signals.wait_all(&handles).map_err(|error| Failure::of(&error))?;
    let outcomes: Vec<Outcome> = forks.iter().map(Vm::wait).collect();
    drop(forks);
    for (index, outcome) in outcomes.iter().enumerate() {
        say(&format!("fork {index}: {} ({})", outcome.reason(), Seconds(outcome.duration)));
        outcome.explanation(false).iter().for_each(|line| say(line));
    }
    let code = outcomes.iter().map(Outcome::exit_code).find(|code| *code != 0).unwrap_or(0);
    Ok(report_all(args.outcome.as_deref(), &outcomes, code))
}

/// Applies the limits that the arguments set.
fn limited(mut fork: Fork, args: &RestoreArgs) -> Fork {
    if let Some(limit) = args.timeout {
        fork = fork.timeout(limit);
    }
    if let Some(limit) = args.idle_timeout {
        fork = fork.idle_timeout(limit);
    }
    if let Some(affinity) = &args.cpu_affinity {
        fork = fork.cpu_affinity(affinity.clone());
    }
    match args.cpu_quota {
        Some(quota) => fork.cpu_quota(quota),
        None => fork,
    }
}

fn failure(error: &SnapshotError) -> Failure {
    Failure { code: error.exit_code(), reason: chain(error) }
}

/// Writes the console of one machine among many to standard output: whole lines, each after the same prefix.
struct Prefixed {
    prefix: String,
    line: Vec<u8>,
}

impl Prefixed {
    fn new(prefix: String) -> Prefixed {
        Prefixed { line: prefix.clone().into_bytes(), prefix }
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.line.push(b'\n');
        let written = OutputFile::stdout().and_then(|mut stdout| stdout.write_all(&self.line));
        self.line.clear();
        self.line.extend_from_slice(self.prefix.as_bytes());
        written
    }
}

impl Write for Prefixed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            match byte {
                b'\r' => {}
                b'\n' => self.end_line()?,
                _ if self.line.len() >= MAX_LINE => {
                    self.end_line()?;
                    self.line.push(*byte);
                }
                _ => self.line.push(*byte),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Prefixed {
    fn drop(&mut self) {
        if self.line.len() > self.prefix.len() {
            // There is nobody left to tell if it fails.
            let _ = self.end_line();
        }
    }
}

/// A longer line is written in pieces.
const MAX_LINE: usize = 4 << 10;
