//! `coracle restore`: lets one machine or many go on from a snapshot.

mod command;
mod devices;
mod failure;
mod forks;

use std::io::IsTerminal;

use coracle::command::standard_input;
use coracle::config::{MemorySize, RawConfig, SerialConfig};
use coracle::snapshot::{self, MachineFacts, SnapshotInfo};
use coracle::{Fork, GuestTime, Restore, Vm};

use self::devices::Ends;
use self::failure::failure;
use super::crossing::Crossing;
use super::place::{Place, place_of_snapshot};
use super::run::command::ended_quietly;
use super::run::signals::Blocked;
use super::run::snapshots::Snapshots;
use super::run::watch::Watch;
use super::run::{attended, report, report_ending, report_failure};
use super::settings::Failure;
use super::{report_file, say};
use crate::arguments::variable::name_and_value;
use crate::arguments::{RestoreArgs, TimeArg};
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
    try_run(args, signals).unwrap_or_else(|failure| report_failure(args.outcome.as_deref(), failure))
}

/// The use of the standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Its console is on the standard streams until it ends.
    Machine,
    /// The streams of its command are, and it ends with the command.
    Command,
}

fn try_run(args: &RestoreArgs, signals: Blocked) -> Result<u8, Failure> {
    let watch = Watch::preparation(&signals, args.outcome.clone()).map_err(|error| Failure::of(&error))?;
    let info = snapshot::info(&args.snapshot).map_err(|error| failure(&error))?;
    let SnapshotInfo { machine, devices, .. } = &info;
    let forks = args.fork.map(usize::from);
    let ends = Ends::new((&args.devices, args.ip.as_ref()), devices, forks)?;
    let work = work(args, machine)?;
    if let Place::EmulatedHost { because } = place_of_snapshot(args.accel, info.host.kvm.as_deref()) {
        return cross(args, (&info, &ends, work), because)?.run(Some(watch));
    }
    ends.announce(devices);
    let snapshots = Snapshots::new(&args.snapshot_on_signal, (&args.snapshot_on_ready, args.user.is_some()))?;
    if let Some(count) = forks {
        return forks::run(args, (count, &ends, work), (&signals, watch));
    }
    let mut restore = Vm::restore(&args.snapshot);
    if let Some(parents) = &args.parents {
        restore = restore.parents_in(parents);
    }
    let restore = restore.with(|fork| settings_of(ends.connect(fork, None), args, None));
    let code = match work {
        Work::Command => {
            let outcome = command::run(args, restore, (signals, watch, &snapshots))?;
            if ended_quietly(&outcome) {
                report(&raw(args), &outcome)
            } else {
                report_ending(&raw(args), &outcome, true)
            }
        }
        Work::Machine => with_console(args, restore, machine, (signals, watch, &snapshots))?,
    };
    Ok(snapshots.finish(code))
}

/// Returns what the machines need on an emulated host.
///
/// # Errors
/// They need something that does not cross.
fn cross(
    args: &RestoreArgs,
    (info, ends, work): (&SnapshotInfo, &Ends<'_>, Work),
    because: Option<String>,
) -> Result<Crossing, Failure> {
    let mut crossing = Crossing::because(because);
    if let Ok(size) = MemorySize::from_mib(info.machine.memory_mib) {
        crossing.memory(size);
    }
    crossing.time_limit(args.timeout);
    crossing.add_read("", [&args.snapshot]);
    crossing.add_read("--parents ", &args.parents);
    ends.cross(&mut crossing, args.fork.map(usize::from), args.serial.as_ref())?;
    crossing.add_written("--outcome ", &args.outcome);
    crossing.add_snapshot("--snapshot-on-signal ", args.snapshot_on_signal.as_deref());
    crossing.add_snapshot("--snapshot-on-ready ", args.snapshot_on_ready.as_deref());
    if work == Work::Command {
        crossing.for_command(args.outcome.as_deref());
    }
    Ok(crossing)
}

/// Decides whose streams the standard streams are.
fn work(args: &RestoreArgs, machine: &MachineFacts) -> Result<Work, Failure> {
    let has_agent = machine.agent.is_some();
    if !args.command.is_empty() && !has_agent {
        return Err(Failure::usage(
            "-- COMMAND: the snapshot's machine has no agent; take the snapshot of a machine with one, as \
             `coracle run ... -- COMMAND` starts it",
        ));
    }
    let set_by_agent = [("--hostname", args.hostname.is_some()), ("--ip", args.ip.is_some())];
    if let Some((option, _)) = set_by_agent.iter().find(|(_, is_given)| *is_given && !has_agent) {
        return Err(Failure::usage(format!(
            "{option}: the snapshot's machine has no agent, which would set it"
        )));
    }
    // The serial port of a machine for a command is connected to nothing.
    let is_for_command =
        has_agent && args.serial.is_none() && machine.serial == SerialConfig::Null.to_string();
    if is_for_command || !args.command.is_empty() {
        return Ok(Work::Command);
    }
    if args.snapshot_on_ready.is_some() {
        return Err(Failure::usage(
            "--snapshot-on-ready: the snapshot's machine has no command that could ask for it; add -- COMMAND",
        ));
    }
    Ok(Work::Machine)
}

/// Runs a machine with its console on the standard streams.
fn with_console(
    args: &RestoreArgs,
    restore: Restore,
    machine: &MachineFacts,
    (signals, watch, snapshots): (Blocked, Watch, &Snapshots),
) -> Result<u8, Failure> {
    let default = if machine.virtio_console { SerialConfig::Null } else { SerialConfig::Stdio };
    let serial = args.serial.clone().unwrap_or(default);
    let is_on_stdio = machine.virtio_console || serial == SerialConfig::Stdio;
    let is_interactive = is_on_stdio && standard_input().is_terminal();
    let restore = restore.console_escape(is_interactive).with(|machine| machine.serial(serial));
    let outcome = attended(is_on_stdio, (signals, watch, snapshots), |begin| {
        restore.run_with(|vm| begin(vm)).map_err(|error| failure(&error))
    })?;
    Ok(report_ending(&raw(args), &outcome, !is_on_stdio))
}

fn raw(args: &RestoreArgs) -> RawConfig {
    RawConfig { outcome: args.outcome.clone(), ..RawConfig::default() }
}

/// Applies the limits and the identity that the arguments set to the fork with this index.
fn settings_of(mut fork: Fork, args: &RestoreArgs, index: Option<usize>) -> Fork {
    if let Some(limit) = args.timeout {
        fork = fork.timeout(limit);
    }
    if let Some(limit) = args.idle_timeout {
        fork = fork.idle_timeout(limit);
    }
    if let Some(affinity) = &args.cpu_affinity {
        fork = fork.cpu_affinity(affinity.clone());
    }
    if let Some(quota) = args.cpu_quota {
        fork = fork.cpu_quota(quota);
    }
    if let Some(time) = args.time {
        fork = fork.time(match time {
            TimeArg::Stands => GuestTime::Stands,
            TimeArg::Elapsed => GuestTime::Elapsed,
        });
    }
    if let Some(name) = &args.hostname {
        fork = fork.hostname(name.of(index));
    }
    for (name, value) in args.env.iter().filter_map(|variable| name_and_value(variable)) {
        fork = fork.env(name, value);
    }
    fork
}
