//! `coracle restore` of a machine with an agent: its command goes on with this process's streams, or another
//! one is run in it.

use std::io::{self, IsTerminal};

use coracle::agent::{ExecError, ExecInput, Process, ProcessInfo};
use coracle::command::standard_input;
use coracle::outcome::Outcome;
use coracle::{Grace, Restore, Vm};

use super::failure::failure;
use crate::arguments::RestoreArgs;
use crate::commands::run::command::{self, end, serve};
use crate::commands::run::command_ending::{Run, of_error};
use crate::commands::run::signals::Blocked;
use crate::commands::run::snapshots::Snapshots;
use crate::commands::run::watch::Watch;
use crate::commands::settings::Failure;

/// The command of a restored machine.
pub(super) enum Command {
    /// That of the arguments.
    New,
    /// That of the first machine, which has gone on.
    TakenUp(ProcessInfo),
    /// The machine has none.
    None,
}

impl Command {
    /// Chooses the command: the arguments' own, or else the first one of the machine that was saved.
    ///
    /// # Errors
    /// The agent does not answer.
    pub(super) fn of(args: &RestoreArgs, vm: &Vm) -> Result<Command, ExecError> {
        if !args.command.is_empty() {
            return Ok(Command::New);
        }
        let first = vm.processes()?.into_iter().min_by_key(|process| process.pid);
        Ok(first.map_or(Command::None, Command::TakenUp))
    }

    fn has_terminal(&self) -> bool {
        let is_at_terminal = || standard_input().is_terminal() && io::stdout().is_terminal();
        match self {
            Command::New => is_at_terminal(),
            Command::TakenUp(process) => process.has_terminal && is_at_terminal(),
            Command::None => false,
        }
    }

    /// Starts the command with this input, or takes it up. `None` if there is none.
    ///
    /// # Errors
    /// The guest has no such program, or cannot start it; or the agent does not answer.
    pub(super) fn start(
        &self,
        args: &RestoreArgs,
        vm: &Vm,
        (input, has_terminal): (ExecInput, bool),
    ) -> Result<Option<Process>, ExecError> {
        let process = match self {
            Command::New => {
                let exec = command::exec(vm, &args.command, &args.surroundings(), has_terminal);
                exec.stdin(input).spawn()?
            }
            Command::TakenUp(process) => vm.attach(process)?,
            Command::None => return Ok(None),
        };
        if has_terminal {
            process.resize(command::window_size());
        }
        Ok(Some(process))
    }
}

/// Starts the machine and runs its command. A machine without one runs until it ends by itself.
pub(super) fn run(
    args: &RestoreArgs,
    restore: Restore,
    (signals, watch, snapshots): (Blocked, Watch, &Snapshots),
) -> Result<Outcome, Failure> {
    let vm = restore.start().map_err(|error| failure(&error))?;
    drop(watch);
    snapshots.attach(&signals, vm.handle());
    snapshots.wait_branch_point(vm.handle());
    let run = match Command::of(args, &vm) {
        Ok(Command::None) => {
            signals.wait(&vm.handle()).map_err(|error| Failure::of(&error))?;
            Run::default()
        }
        Ok(command) => {
            let has_terminal = command.has_terminal();
            let start = || {
                let process = command.start(args, &vm, (ExecInput::Piped, has_terminal));
                process.and_then(|process| process.ok_or(ExecError::NoCommand))
            };
            serve(&vm, &signals, has_terminal, (start, None))?
        }
        Err(error) => Run { ending: of_error(&error), ..Run::default() },
    };
    // What the guest has written to a disk of its own is to be kept.
    let grace =
        if args.devices.reopen || !args.devices.disks.is_empty() { Grace::default() } else { Grace::NONE };
    let machine = end(vm, &run, grace);
    Ok(run.outcome(machine))
}
