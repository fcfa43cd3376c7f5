//! `coracle restore --fork`: many machines that go on from one snapshot.

use std::io::{self, Write};
use std::thread;
use std::time::Instant;

use coracle::agent::{ExecError, ExecInput, ExecStatus, Process};
use coracle::outcome::{HostFailure, Outcome, Seconds};
use coracle::{Template, Vm, VmHandle};

use super::Work;
use super::command::Command;
use super::devices::Ends;
use super::failure::failure;
use super::settings_of;
use crate::arguments::RestoreArgs;
use crate::commands::report_file::READER_LIMIT_AT_END;
use crate::commands::run::command::{SIGPIPE, TURN, lost_output};
use crate::commands::run::command_ending::{Run, ending_of, of_error};
use crate::commands::run::copying::{Copying, OutputFile, Rest};
use crate::commands::run::report_all;
use crate::commands::run::signals::{Blocked, ends};
use crate::commands::run::watch::Watch;
use crate::commands::say;
use crate::commands::settings::Failure;

/// Starts `count` machines, whose output is on the standard streams, and waits for all of them.
pub(super) fn run(
    args: &RestoreArgs,
    (count, ends, work): (usize, &Ends<'_>, Work),
    (signals, watch): (&Blocked, Watch),
) -> Result<u8, Failure> {
    let template = match &args.parents {
        Some(parents) => Template::load_over(&args.snapshot, parents),
        None => Template::load(&args.snapshot),
    };
    let template = template.map_err(|error| failure(&error))?;
    let forks = template.fork(count, |index, fork| {
        let fork = settings_of(ends.connect(fork, Some(index)), args, Some(index));
        match work {
            Work::Machine => fork.console_piped(),
            Work::Command => fork,
        }
    });
    let mut forks = forks.map_err(|error| failure(&error))?;
    drop(watch);
    let outcomes = match work {
        Work::Machine => run_machines(&mut forks, signals)?,
        Work::Command => run_commands(args, &forks, signals)?,
    };
    drop(forks);
    for (index, outcome) in outcomes.iter().enumerate() {
        say(&format!("fork {index}: {} ({})", outcome.reason(), Seconds(outcome.duration)));
        outcome.explanation(false).iter().for_each(|line| say(line));
        if outcome.console_bytes_dropped > 0 {
            say(&format!(
                "fork {index}: {} bytes of console output were lost",
                outcome.console_bytes_dropped
            ));
        }
    }
    let code = outcomes.iter().map(Outcome::exit_code).find(|code| *code != 0).unwrap_or(0);
    Ok(report_all(args.outcome.as_deref(), &outcomes, code))
}

fn wait_all(forks: &[Vm], signals: &Blocked) -> Result<(), Failure> {
    let handles: Vec<VmHandle> = forks.iter().map(Vm::handle).collect();
    signals.wait_all(&handles).map_err(|error| Failure::of(&error))
}

/// Waits for the machines, and delivers what they print.
fn run_machines(forks: &mut [Vm], signals: &Blocked) -> Result<Vec<Outcome>, Failure> {
    let copy = |(index, vm): (usize, &mut Vm)| {
        let output = vm.take_console().map(|pipe| pipe.output);
        output.map(|output| Copying::start(output, Prefixed::new(index, OutputFile::stdout))).transpose()
    };
    let outputs = forks.iter_mut().enumerate().map(copy).collect::<io::Result<Vec<_>>>();
    let outputs = outputs.map_err(|error| no_thread(&error))?;
    wait_all(forks, signals)?;
    let outcomes: Vec<Outcome> = forks.iter().map(Vm::wait).collect();
    let was_asked = outcomes.iter().any(|outcome| outcome.signal.is_some());
    let limit = was_asked.then(|| Instant::now() + READER_LIMIT_AT_END);
    let mut rest = Rest::new();
    while !rest.is_over(&outputs) {
        let is_late = limit.is_some_and(|limit| Instant::now() >= limit);
        if is_late || signals.next().is_some_and(ends) {
            break;
        }
        thread::sleep(TURN);
    }
    let failed = outputs.iter().flatten().find_map(Copying::failure);
    if let Some(error) = failed {
        say(&format!("warning: console output is lost: stdout cannot be written: {error}"));
    }
    Ok(outcomes)
}

fn no_thread(error: &io::Error) -> Failure {
    Failure::usage(format!("--fork: a thread cannot be started: {error}"))
}

/// Runs a command in each fork, on a thread for each, and ends the fork with it.
fn run_commands(args: &RestoreArgs, forks: &[Vm], signals: &Blocked) -> Result<Vec<Outcome>, Failure> {
    thread::scope(|scope| {
        let threads = forks.iter().enumerate().map(|(index, vm)| {
            let run = move || {
                let run = run_command(args, index, vm);
                if run.ending.is_some() || run.lost.is_some() {
                    vm.handle().stop();
                }
                run
            };
            thread::Builder::new().spawn_scoped(scope, run)
        });
        let threads = threads.collect::<Result<Vec<_>, _>>();
        if threads.is_err() {
            // The threads that there are end with their machines.
            forks.iter().for_each(|vm| vm.handle().stop());
        }
        let threads = threads.map_err(|error| no_thread(&error))?;
        wait_all(forks, signals)?;
        let runs = threads.into_iter().map(|thread| thread.join().unwrap_or_default());
        Ok(runs.zip(forks).map(|(run, vm)| run.outcome(vm.wait())).collect())
    })
}

/// Runs the command of one fork to its end, and delivers its output.
fn run_command(args: &RestoreArgs, index: usize, vm: &Vm) -> Run {
    let started = Command::of(args, vm).and_then(|command| command.start(args, vm, (ExecInput::None, false)));
    match started {
        Ok(Some(process)) => attend(index, vm, process),
        // The fork goes on as a machine.
        Ok(None) => Run::default(),
        Err(error) => Run { ending: of_error(&error), ..Run::default() },
    }
}

fn attend(index: usize, vm: &Vm, mut process: Process) -> Run {
    drop(process.stdin.take());
    let outputs = [
        ("stdout", process.stdout.take(), OutputFile::stdout as fn() -> io::Result<OutputFile>),
        ("stderr", process.stderr.take(), OutputFile::stderr),
    ];
    let mut lost = None;
    let outputs = outputs.map(|(stream, output, to)| {
        let copying = output.map(|output| Copying::start(output, Prefixed::new(index, to))).transpose();
        copying.unwrap_or_else(|error| {
            lost = Some(HostFailure::CommandOutput { stream, reason: error.to_string() });
            None
        })
    });
    if lost.is_some() {
        return Run { lost, was_started: true, ..Run::default() };
    }
    let (ending, status) = match until_end(&mut process, &outputs) {
        Ok(status) => (Some(ending_of(status)), Some(status)),
        Err(error) => (of_error(&error), None),
    };
    // A machine that has been stopped meanwhile waits for no reader of ours.
    let mut rest = Rest::new();
    while !rest.is_over(&outputs) && vm.handle().wait_for(TURN).is_none() {}
    Run { ending, was_started: true, status, lost: lost_output(&outputs), ..Run::default() }
}

/// Waits for the end of the command, and tells it when nobody reads its output.
fn until_end(process: &mut Process, outputs: &[Option<Copying>]) -> Result<ExecStatus, ExecError> {
    let mut pipe_is_reported = false;
    loop {
        if let Some(status) = process.wait_timeout(TURN)? {
            return Ok(status);
        }
        if !pipe_is_reported && outputs.iter().flatten().any(Copying::has_no_reader) {
            process.signal(SIGPIPE);
            pipe_is_reported = true;
        }
    }
}

/// Writes the output of one machine among many: whole lines, each after the same prefix.
struct Prefixed {
    prefix: String,
    line: Vec<u8>,
    to: fn() -> io::Result<OutputFile>,
}

impl Prefixed {
    fn new(index: usize, to: fn() -> io::Result<OutputFile>) -> Prefixed {
        let prefix = format!("{index}: ");
        Prefixed { line: prefix.clone().into_bytes(), prefix, to }
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.line.push(b'\n');
        let written = (self.to)().and_then(|mut to| to.write_all(&self.line));
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
