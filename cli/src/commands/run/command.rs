//! `coracle run -- COMMAND`: a machine for a single command, with this process's streams, terminal, signals
//! and exit code.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use coracle::agent::{AgentError, Exec, ExecError, ExecInput, ExecStatus, Process, WindowSize};
use coracle::command::{RawTerminal, standard_input, terminal_size};
use coracle::config::{AgentConfig, AgentPlace, DiskAccess, RawConfig, Timeout, VmConfig};
use coracle::outcome::{Ending, HostFailure, Outcome};
use coracle::{Grace, Vm, VmBuilder};
use coracle_devices::signals::asks_for_end;

use super::command_ending::{
    AGENT_LOST, Run, ending_of, failed, not_ready, of_error, of_network_error, took_too_long,
};
use super::copying::{Copying, OutputFile, Rest};
use super::signals::{Blocked, ends};
use super::snapshots::Snapshots;
use super::watch::Watch;
use super::{close, report_ending, typed};
use crate::arguments::variable::name_and_value;
use crate::arguments::{CommandArgs, GuestIp, Surroundings};
use crate::commands::chain;
use crate::commands::settings::Failure;
use crate::memory;

/// Adds to the configuration what the machine needs to run a command: its agent, and the machine's own limits
/// in place of the command's.
pub(crate) fn prepare(config: &mut VmConfig, with_init: bool, uses_default_guest: bool) {
    let place = match (uses_default_guest, with_init) {
        (true, _) => AgentPlace::DefaultGuest,
        (false, true) => AgentPlace::BesideInit,
        (false, false) => AgentPlace::FirstProcess,
    };
    let boot_limit = config.boot_timeout.unwrap_or(BOOT_LIMIT);
    config.boot_timeout = Some(boot_limit);
    config.timeout = None;
    config.agent = Some(AgentConfig { ready_limit: boot_limit, ..AgentConfig::new(place) });
}

/// Boots the machine, runs the command and reports how it ended.
pub(super) fn run(
    raw: &RawConfig,
    builder: &VmBuilder,
    args: &CommandArgs,
    (signals, watch, snapshots): (Blocked, Watch, Snapshots),
) -> Result<u8, Failure> {
    let limit = raw.timeout.and_then(Timeout::limit);
    let outcome = outcome(builder, args, limit, (signals, watch, &snapshots))?;
    let code = if ended_quietly(&outcome) {
        super::report(raw, &outcome)
    } else {
        report_ending(raw, &outcome, true)
    };
    Ok(snapshots.finish(code))
}

/// Returns whether the command's exit code is the whole result, so that there is nothing more to report.
pub(crate) fn ended_quietly(outcome: &Outcome) -> bool {
    outcome.command.is_some() && outcome.ending.workload_code().is_some_and(|code| code < 100)
}

/// Boots the machine and runs the command, for at most `limit`, with our streams, terminal and signals.
///
/// # Errors
/// The machine cannot be built.
pub(crate) fn outcome(
    builder: &VmBuilder,
    args: &CommandArgs,
    limit: Option<Duration>,
    (signals, watch, snapshots): (Blocked, Watch, &Snapshots),
) -> Result<Outcome, Failure> {
    let has_terminal = standard_input().is_terminal() && io::stdout().is_terminal();
    let config = builder.config();
    let vm = builder.build();
    let vm = vm.map_err(|error| Failure { code: error.exit_code(), reason: chain(&error) })?;
    drop(watch);
    snapshots.attach(&signals, vm.handle());
    vm.handle().resume();
    // Not before, so that the steps are never longer than the guest's whole time.
    let entered = Instant::now();
    memory::give_back();
    let is_ready = wait_ready(&vm, &signals, config);
    let booted_in = is_ready.is_ok().then(|| entered.elapsed());
    let run = match is_ready.and_then(|()| network_up(&vm, &signals, args)) {
        Ok(()) => {
            snapshots.wait_branch_point(vm.handle());
            let mut exec = exec(&vm, &args.command, &args.surroundings, has_terminal);
            if let Some(limit) = limit {
                exec = exec.timeout(limit);
            }
            serve(&vm, &signals, has_terminal, (|| exec.spawn(), limit))?
        }
        Err(ending) => Run { ending, ..Run::default() },
    };
    let grace = if keeps_disks(config) { Grace::default() } else { Grace::NONE };
    let machine = end(vm, &run, grace);
    let times = run.times(entered, booted_in, machine.times);
    Ok(Outcome { times, ..run.outcome(machine) })
}

/// Starts the command, or takes it up, and runs it to its end, for at most the limit, with our streams,
/// terminal and signals.
///
/// # Errors
/// Our terminal, standard output or standard error cannot be used.
pub(in crate::commands) fn serve(
    vm: &Vm,
    signals: &Blocked,
    has_terminal: bool,
    command: (impl FnOnce() -> Result<Process, ExecError> + Send, Option<Duration>),
) -> Result<Run, Failure> {
    let raw_mode = if has_terminal { RawTerminal::enter(standard_input()) } else { Ok(None) };
    let _raw_mode = raw_mode.map_err(|error| Failure::of(&error))?;
    attend(vm, signals, command)
}

/// Ends a machine whose command has ended, with `grace` to power off, and returns its outcome.
pub(in crate::commands) fn end(vm: Vm, run: &Run, grace: Grace) -> Outcome {
    let machine = match run.ending {
        None => vm.wait(),
        Some(Ending::Signalled { signal }) => {
            vm.handle().stop_by_signal(signal);
            vm.wait()
        }
        Some(_) => vm.stop(grace),
    };
    close(vm);
    machine
}

/// Waits for the agent. The error is the ending of the run; `None` if the machine ended by itself.
fn wait_ready(vm: &Vm, signals: &Blocked, config: &VmConfig) -> Result<(), Option<Ending>> {
    let limit = config.agent.as_ref().map_or(BOOT_LIMIT, |agent| agent.ready_limit);
    // Waits a little longer than the machine's own limit, which explains itself better if the guest has not
    // reached its init.
    let deadline = Instant::now().checked_add(limit.saturating_add(OWN_LIMIT_FIRST));
    loop {
        match vm.wait_ready(TURN) {
            Ok(_) => return Ok(()),
            Err(AgentError::NotReady { .. }) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {
            }
            Err(AgentError::NotReady { .. }) => {
                return Err(Some(not_ready(limit)));
            }
            Err(AgentError::MachineEnded { .. }) => return Err(None),
            Err(error) => return Err(Some(failed(AGENT_LOST, &error))),
        }
        if let Some(signal) = signals.next().filter(|signal| ends(*signal)) {
            return Err(Some(Ending::Signalled { signal }));
        }
    }
}

/// Brings up the network, if requested. A DHCP server may keep the guest waiting, so signals are handled
/// meanwhile.
fn network_up(vm: &Vm, signals: &Blocked, args: &CommandArgs) -> Result<(), Option<Ending>> {
    let Some(GuestIp(settings)) = &args.surroundings.ip else { return Ok(()) };
    match hearing_signals(vm, signals, || vm.network_up(settings.clone()))? {
        Ok(_) => Ok(()),
        Err(error) => Err(of_network_error(&error)),
    }
}

/// Runs a call of the agent that may take long, and handles signals meanwhile: a signal ends the machine, and
/// with it the call.
fn hearing_signals<T: Send>(
    vm: &Vm,
    signals: &Blocked,
    call: impl FnOnce() -> T + Send,
) -> Result<T, Option<Ending>> {
    let (done, result) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        scope.spawn(move || done.send(call()).is_ok());
        loop {
            match result.recv_timeout(TURN) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Disconnected) => return Err(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(signal) = signals.next().filter(|signal| ends(*signal)) {
                vm.handle().stop_by_signal(signal);
                return Err(Some(Ending::Signalled { signal }));
            }
        }
    })
}

/// Prepares a command with our streams and terminal.
pub(in crate::commands) fn exec(
    vm: &Vm,
    command: &[OsString],
    surroundings: &Surroundings,
    has_terminal: bool,
) -> Exec {
    let exec = vm.exec(command.iter().cloned()).stdin(ExecInput::Piped);
    let mut exec = surrounded(exec, surroundings);
    if has_terminal {
        exec = exec.tty(window_size());
        if let Some(terminal) = std::env::var_os("TERM") {
            exec = exec.env("TERM", terminal);
        }
    }
    exec
}

/// Adds the variables, the user and the working directory to a command.
pub(crate) fn surrounded(mut exec: Exec, surroundings: &Surroundings) -> Exec {
    for (name, value) in surroundings.env.iter().filter_map(|variable| name_and_value(variable)) {
        exec = exec.env(name, value);
    }
    if let Some(user) = &surroundings.user {
        exec = exec.user(user.clone());
    }
    match &surroundings.workdir {
        Some(folder) => exec.cwd(folder.clone()),
        None => exec,
    }
}

/// Runs the command to its end, and waits until everything that it has written is delivered.
///
/// # Errors
/// Our standard output or standard error cannot be used.
fn attend(
    vm: &Vm,
    signals: &Blocked,
    (start, limit): (impl FnOnce() -> Result<Process, ExecError> + Send, Option<Duration>),
) -> Result<Run, Failure> {
    let deadline = limit.and_then(|limit| Some((limit, Instant::now().checked_add(limit)?)));
    let sinks = [OutputFile::stdout(), OutputFile::stderr()];
    let [stdout, stderr] = sinks.map(|sink| sink.map_err(|error| Failure::of(&error)));
    let (stdout, stderr) = (stdout?, stderr?);
    let mut process = match hearing_signals(vm, signals, start) {
        Ok(Ok(process)) => process,
        Ok(Err(error)) => return Ok(Run { ending: of_error(&error), ..Run::default() }),
        Err(ending) => return Ok(Run { ending, ..Run::default() }),
    };
    let began = Instant::now();
    let leaves = Arc::new(AtomicBool::new(false));
    if let Some(input) = process.stdin.take() {
        let leaves = leaves.clone();
        // The thread ends with this process, wherever it waits.
        let thread = thread::Builder::new().spawn(move || typed::copy(input, &leaves));
        thread.map_err(|error| Failure::of(&error))?;
    }
    let outputs = [
        process.stdout.take().map(|output| Copying::start(output, stdout)).transpose(),
        process.stderr.take().map(|output| Copying::start(output, stderr)).transpose(),
    ];
    let [stdout, stderr] = outputs.map(|output| output.map_err(|error| Failure::of(&error)));
    let outputs = [stdout?, stderr?];
    let (ending, status) = match supervise(&mut process, signals, &leaves, &outputs) {
        Ok(status) => (Some(ending_of(status)), Some(status)),
        Err(ending) => (ending, None),
    };
    // Output of the command, or of a guest that has ended, may still be on its way.
    let is_delivered = status.is_some() || ending.is_none();
    let instead = is_delivered.then(|| deliver(signals, &outputs, deadline)).flatten();
    let lost = lost_output(&outputs);
    let command = Some((began, began.elapsed()));
    Ok(Run { ending: instead.or(ending), was_started: true, status, lost, command })
}

/// Returns why a part of the output, of stdout and stderr, could not be delivered.
pub(in crate::commands) fn lost_output(outputs: &[Option<Copying>]) -> Option<HostFailure> {
    ["stdout", "stderr"].into_iter().zip(outputs).find_map(|(stream, output)| {
        let reason = output.as_ref()?.failure()?.to_string();
        Some(HostFailure::CommandOutput { stream, reason })
    })
}

/// Waits until all output has been taken. The error is the ending of the run: a signal, or the end of the
/// command's time.
fn deliver(
    signals: &Blocked,
    outputs: &[Option<Copying>],
    deadline: Option<(Duration, Instant)>,
) -> Option<Ending> {
    let mut rest = Rest::new();
    let mut turn = FIRST_TURN;
    while !rest.is_over(outputs) {
        thread::sleep(turn);
        turn = turn.saturating_mul(2).min(TURN);
        if let Some(signal) = signals.next().filter(|signal| ends(*signal)) {
            return Some(Ending::Signalled { signal });
        }
        if let Some((limit, _)) = deadline.filter(|(_, deadline)| Instant::now() >= *deadline) {
            return Some(took_too_long(limit));
        }
    }
    None
}

/// Forwards signals until the command has ended.
///
/// # Errors
/// The ending of the run; `None` if the machine ended by itself.
fn supervise(
    process: &mut Process,
    signals: &Blocked,
    leaves: &AtomicBool,
    outputs: &[Option<Copying>],
) -> Result<ExecStatus, Option<Ending>> {
    let mut asked = false;
    let mut pipe_is_reported = false;
    loop {
        match process.wait_timeout(TURN) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) => return Err(of_error(&error)),
        }
        if leaves.load(Ordering::Relaxed) {
            return Err(Some(Ending::Stopped));
        }
        if !pipe_is_reported && outputs.iter().flatten().any(Copying::has_no_reader) {
            // The kernel does the same to a program whose reader has gone.
            process.signal(SIGPIPE);
            pipe_is_reported = true;
        }
        while let Some(signal) = signals.next() {
            match signal {
                libc::SIGWINCH => process.resize(window_size()),
                signal if !is_for_command(signal) || (asks_for_end(signal) && asked) => {
                    return Err(Some(Ending::Signalled { signal }));
                }
                signal => {
                    asked |= asks_for_end(signal);
                    process.signal(u8::try_from(signal).unwrap_or(SIGTERM));
                }
            }
        }
    }
}

/// Returns whether the guest may have written to something that outlives it.
fn keeps_disks(config: &VmConfig) -> bool {
    config.disks.iter().any(|disk| disk.access == DiskAccess::ReadWrite)
}

/// Returns whether a signal is forwarded to the command while it runs. Any other signal ends the machine.
fn is_for_command(signal: i32) -> bool {
    let asks = matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT);
    asks || matches!(signal, libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGCONT)
}

pub(in crate::commands) fn window_size() -> WindowSize {
    let size = terminal_size(io::stdout().as_fd());
    size.map_or(WindowSize { rows: 24, columns: 80 }, |size| WindowSize {
        rows: size.rows,
        columns: size.columns,
    })
}

/// How long a guest may take until its agent is ready.
const BOOT_LIMIT: Duration = AgentConfig::DEFAULT_READY_LIMIT;
/// How much later than its deadline the machine's own limit may end it on a busy host.
const OWN_LIMIT_FIRST: Duration = Duration::from_secs(1);
/// How long the first wait for output on its way lasts; it is usually there at once.
const FIRST_TURN: Duration = Duration::from_millis(1);
/// How late a signal may be forwarded.
pub(crate) const TURN: Duration = Duration::from_millis(20);
pub(in crate::commands) const SIGPIPE: u8 = libc::SIGPIPE as u8;
const SIGTERM: u8 = libc::SIGTERM as u8;
