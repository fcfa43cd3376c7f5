//! `coracle run`: decides where the guest runs, runs it, and reports how it ended.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use coracle::command::{RawTerminal, standard_input};
use coracle::config::{ConsoleDevice, RawConfig, SerialConfig, Timeout};
use coracle::exit_code;
use coracle::host::on_emulated_host;
use coracle::outcome::{EndingKind, Outcome, OutcomeReport, Seconds};
use coracle::{Vm, VmBuilder};
use coracle_image::guest_data;
use serde::Serialize;

use self::signals::Blocked;
use self::snapshots::Snapshots;
use self::watch::Watch;
use super::crossing::Crossing;
use super::place::{Place, place};
use super::report_file::{self, READER_LIMIT, READER_LIMIT_AT_END};
use super::settings::{self, Failure};
use super::{chain, say};
use crate::arguments::RunArgs;
use crate::stderr::{self, Weight};
use crate::{logger, memory};

pub(super) mod command;
pub(super) mod command_ending;
pub(super) mod copying;
pub(super) mod signals;
pub(super) mod snapshots;
mod typed;
pub(super) mod watch;

/// Runs the guest and returns the exit code of its outcome.
pub(crate) fn run(args: &RunArgs) -> u8 {
    logger::start(args.vm.verbose);
    let raw = match raw(args) {
        Ok(raw) => with_terminal(raw, args),
        Err(failure) => return report_failure(args.outcome.as_deref(), failure),
    };
    // Before the check, which creates a file for a moment.
    let signals = match Blocked::new() {
        Ok(signals) => signals,
        Err(error) => return report_failure(raw.outcome.as_deref(), Failure::of(&error)),
    };
    if let Err(failure) = report_file::check("--outcome", raw.outcome.as_deref()) {
        say(&failure.reason);
        return failure.code;
    }
    try_run(args, &raw, signals).unwrap_or_else(|failure| report_failure(raw.outcome.as_deref(), failure))
}

/// Returns the settings of the flags and the config file, including those that only this subcommand has.
fn raw(args: &RunArgs) -> Result<RawConfig, Failure> {
    let (console, serial, outcome) = (args.console, args.serial.clone(), args.outcome.clone());
    let own = RawConfig { console, serial, outcome, ..RawConfig::default() };
    settings::raw(&args.vm).map(|below| own.over(below))
}

/// Chooses the virtio console for the shell of the default guest if the user has chosen none and the terminal
/// has a size, which a serial line cannot convey. The serial port still gets the kernel's messages.
fn with_terminal(raw: RawConfig, args: &RunArgs) -> RawConfig {
    let is_shell = is_default_guest(&raw) && args.command.command.is_empty() && raw.cmdline.is_none();
    let is_chosen = raw.console.is_some() || raw.serial.is_some();
    let has_drivers = || guest_data::has_drivers(raw.kaslr.unwrap_or_default());
    if !is_shell || is_chosen || !standard_input().is_terminal() || !has_drivers() {
        return raw;
    }
    RawConfig { console: Some(ConsoleDevice::Virtio), serial: Some(SerialConfig::Stdio), ..raw }
}

/// Returns whether the user has named nothing to boot.
pub(super) fn is_default_guest(raw: &RawConfig) -> bool {
    raw.kernel.is_none() && raw.initrds.is_none() && !settings::has_root(raw)
}

/// The kernel parameters of the default guest: a shell for a person, a report for a program.
pub(super) fn default_words() -> &'static str {
    if standard_input().is_terminal() { "quiet coracle.init=shell" } else { "quiet" }
}

pub(super) fn report_failure(outcome: Option<&Path>, failure: Failure) -> u8 {
    say(&failure.reason);
    let report = OutcomeReport::not_run(failure.code, failure.reason, on_emulated_host());
    write_report(outcome, &report, failure.code, READER_LIMIT)
}

fn try_run(args: &RunArgs, raw: &RawConfig, signals: Blocked) -> Result<u8, Failure> {
    let has_command = !args.command.command.is_empty();
    let watch = Watch::preparation(&signals, raw.outcome.clone()).map_err(|error| Failure::of(&error))?;
    let mut config = settings::config(raw, if has_command { "quiet" } else { default_words() })?;
    if has_command {
        // Standard output belongs to the command.
        config.serial = raw.serial.clone().unwrap_or(SerialConfig::Null);
        command::prepare(&mut config, args.command.init, is_default_guest(raw));
    }
    // Report everything that is wrong with the settings before anything starts.
    if args.command.surroundings.ip.is_some() && config.nets.is_empty() {
        return Err(Failure::usage("--ip: this machine has no network card; add --net"));
    }
    let builder = VmBuilder::new(config).open_files().map_err(|error| Failure::of(&error))?;
    // Whoever chooses the command's user lets it ask.
    let any_user = args.command.surroundings.user.is_some();
    let snapshots = Snapshots::new(&args.snapshot_on_signal, (&args.snapshot_on_ready, any_user))?;
    match place(raw.accel.unwrap_or_default(), builder.kernel_image()) {
        Place::Here if has_command => command::run(raw, &builder, &args.command, (signals, watch, snapshots)),
        Place::Here => run_here(raw, builder, (signals, watch, snapshots)),
        Place::EmulatedHost { because } => {
            builder.check_files().map_err(|error| Failure::of(&error))?;
            let mut crossing = Crossing::because(because);
            crossing.boot_limit(raw.host_timeout);
            crossing.time_limit(raw.timeout.and_then(Timeout::limit));
            crossing.add(&builder)?;
            crossing.add_read("--config ", &args.vm.config);
            crossing.add_written("--outcome ", &raw.outcome);
            crossing.add_snapshot("--snapshot-on-signal ", args.snapshot_on_signal.as_deref());
            crossing.add_snapshot("--snapshot-on-ready ", args.snapshot_on_ready.as_deref());
            if has_command {
                crossing.for_command(raw.outcome.as_deref());
            }
            crossing.run(Some(watch))
        }
    }
}

fn run_here(
    raw: &RawConfig,
    builder: VmBuilder,
    (signals, watch, snapshots): (Blocked, Watch, Snapshots),
) -> Result<u8, Failure> {
    let config = builder.config();
    let is_on_stdio = config.console == ConsoleDevice::Virtio || config.serial == SerialConfig::Stdio;
    let interactive = is_on_stdio && standard_input().is_terminal();
    // The kernel's messages go to the serial port; a virtio console gets them only once its driver runs.
    let unseen = config.serial != SerialConfig::Stdio;
    let outcome = attended(is_on_stdio, (signals, watch, &snapshots), |begin| {
        let run = builder.console_escape(interactive).run_with(|vm| begin(vm));
        run.map_err(|error| Failure { code: error.exit_code(), reason: chain(&error) })
    })?;
    Ok(snapshots.finish(report_ending(raw, &outcome, unseen)))
}

/// Runs a machine, whose console `is_on_stdio` or elsewhere, and passes signals to it. `run` builds it and
/// calls the closure before its vCPUs run.
pub(super) fn attended(
    is_on_stdio: bool,
    (signals, watch, snapshots): (Blocked, Watch, &Snapshots),
    run: impl FnOnce(&mut dyn FnMut(&mut Vm)) -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let interactive = is_on_stdio && standard_input().is_terminal();
    let mut raw_mode = Ok(None);
    let mut attend = Some((signals, watch));
    let outcome = run(&mut |vm| {
        let handle = vm.handle();
        if let Some((signals, watch)) = attend.take() {
            snapshots.attach(&signals, handle.clone());
            watch.attend(signals, handle.clone());
        }
        raw_mode = if interactive { RawTerminal::enter(standard_input()) } else { Ok(None) };
        if raw_mode.is_err() {
            return handle.stop();
        }
        if let Some(path) = vm.console_path() {
            say(&format!("the serial console is {}", path.display()));
        }
        signals::forward_size(&handle);
        memory::give_back_stack();
        handle.resume();
    })?;
    drop(raw_mode.map_err(|error| Failure::of(&error))?);
    if is_on_stdio && outcome.console_is_in_line && io::stdout().is_terminal() && io::stderr().is_terminal() {
        // The ending begins on a new line.
        stderr::write(Weight::Sentence, "\n");
    }
    Ok(outcome)
}

/// Closes a machine that has ended. Exiting while the control thread does so takes up to 20 ms longer for one
/// run in three: the kernel then closes KVM's part and frees the address space in two threads at once, and
/// each waits for the readers of the other's list of memory (SRCU).
pub(super) fn close(vm: Vm) {
    drop(vm);
}

/// Reports the ending: a line on stderr, the explanation, with the end of the console if it is `unseen`, and
/// the outcome file if it is requested.
pub(super) fn report_ending(raw: &RawConfig, outcome: &Outcome, unseen: bool) -> u8 {
    let place = if on_emulated_host() { ", on an emulated host" } else { "" };
    say(&format!("{} ({}{place})", outcome.reason(), Seconds(outcome.duration)));
    outcome.explanation(unseen).iter().for_each(|line| say(line));
    if outcome.disk_errors > 0 {
        say(&format!("{} requests to disks failed on the host", outcome.disk_errors));
    }
    if outcome.console_bytes_dropped > 0 {
        say(&format!("{} bytes of console output were lost", outcome.console_bytes_dropped));
    }
    report(raw, outcome)
}

/// Writes the outcome file if it is requested.
pub(super) fn report(raw: &RawConfig, outcome: &Outcome) -> u8 {
    logger::info(&format!("time: {}", outcome.times));
    logger::info(&format!("exits: {}", outcome.exits));
    let report = OutcomeReport::of(outcome, on_emulated_host());
    let limit = if was_asked_to_end(outcome) { READER_LIMIT_AT_END } else { READER_LIMIT };
    write_report(raw.outcome.as_deref(), &report, outcome.exit_code(), limit)
}

/// Writes the outcomes of many machines to the file, if it is requested.
pub(super) fn report_all(path: Option<&Path>, outcomes: &[Outcome], code: u8) -> u8 {
    let on_emulated_host = on_emulated_host();
    let reports: Vec<_> =
        outcomes.iter().map(|outcome| OutcomeReport::of(outcome, on_emulated_host)).collect();
    let is_urgent = outcomes.iter().any(was_asked_to_end);
    write_report(path, &reports, code, if is_urgent { READER_LIMIT_AT_END } else { READER_LIMIT })
}

/// Returns whether the user asked for the end, and therefore does not want to wait for a slow reader of the
/// outcome file.
fn was_asked_to_end(outcome: &Outcome) -> bool {
    let is_own = matches!(outcome.ending.kind(), EndingKind::TimedOut | EndingKind::Asked);
    is_own || outcome.signal.is_some()
}

/// Writes the outcome file and returns `code`, or the code for bad usage if it cannot be written. A FIFO
/// waits for its reader, for at most `limit`; a signal ends the wait.
fn write_report(path: Option<&Path>, report: &impl Serialize, code: u8, limit: Duration) -> u8 {
    let Some(path) = path else { return code };
    let is_file = fs::metadata(path).map_or(true, |found| found.is_file());
    let _watch = if is_file { None } else { Watch::report().ok() };
    let json = serde_json::to_string_pretty(report).map_err(io::Error::other);
    match json.and_then(|json| report_file::write(path, (json + "\n").as_bytes(), limit)) {
        Ok(()) => code,
        Err(error) => {
            say(&format!("--outcome {}: it cannot be written: {error}", path.display()));
            if code == 0 { exit_code::BAD_USAGE } else { code }
        }
    }
}

/// Writes the outcome file for a process that has to end now. Whatever cannot be written without waiting is
/// lost.
fn write_report_at_once(path: &Path, report: &OutcomeReport<'_>) {
    let Ok(json) = serde_json::to_string_pretty(report) else { return };
    let _ = report_file::write(path, (json + "\n").as_bytes(), Duration::ZERO);
}
