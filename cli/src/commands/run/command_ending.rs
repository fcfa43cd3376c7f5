//! The ending of a run for one command, derived from what happened to the command, its agent and its machine.
//! The subcommands that run commands in a guest call this.

use std::time::{Duration, Instant};

use coracle::agent::{AgentError, ExecError, ExecStatus};
use coracle::exit_code;
use coracle::outcome::{Ending, HostFailure, Outcome, Phase, TimeLimit, Times};

use crate::commands::chain;

/// The known facts about the command.
#[derive(Default)]
pub(in crate::commands) struct Run {
    /// The ending of the run; `None` if the machine ended by itself.
    pub(in crate::commands) ending: Option<Ending>,
    pub(in crate::commands) was_started: bool,
    /// How the command ended.
    pub(in crate::commands) status: Option<ExecStatus>,
    /// Why a part of its output could not be delivered.
    pub(in crate::commands) lost: Option<HostFailure>,
    /// When the command was started, and how long it took.
    pub(in crate::commands) command: Option<(Instant, Duration)>,
}

impl Run {
    /// Divides the rest of the machine's times: the guest was entered at `entered`, and its agent was ready
    /// after `booted_in`.
    pub(super) fn times(&self, entered: Instant, booted_in: Option<Duration>, machine: Times) -> Times {
        let Some(booted_in) = booted_in else { return machine };
        Times {
            init: machine.kernel.map(|kernel| booted_in.saturating_sub(kernel)),
            agent: self.command.map(|(began, _)| began.duration_since(entered).saturating_sub(booted_in)),
            command: self.command.map(|(_, took)| took),
            ..machine
        }
    }

    /// Turns the machine's outcome into that of a machine for a command. A failure of the host takes
    /// precedence.
    pub(in crate::commands) fn outcome(self, machine: Outcome) -> Outcome {
        let ending = match (machine.ending, self.lost, self.ending) {
            (failed @ Ending::HostFailed { .. }, _, _) => failed,
            (_, Some(reason), _) => Ending::HostFailed { reason },
            (own, None, None) => before_command(own, machine.signal, self.was_started),
            (_, None, Some(ending)) => ending,
        };
        let phase = if self.was_started { Phase::Command } else { machine.phase };
        Outcome { ending, phase, command: self.status, ..machine }
    }
}

/// The ending of a guest that ended by itself before its command did. An ending that reports success would
/// not be true of the command.
fn before_command(ending: Ending, signal: Option<i32>, was_started: bool) -> Ending {
    let says_all_is_well = match ending {
        Ending::PoweredOff => signal.is_none(),
        Ending::Exited { code } => code == 0,
        _ => false,
    };
    if !says_all_is_well {
        return ending;
    }
    let missing = if was_started { "ended" } else { "started" };
    Ending::CommandFailed { code: AGENT_LOST, reason: format!("{ending} before the command had {missing}") }
}

/// Returns the ending that belongs to the status of a command.
pub(crate) fn ending_of(status: ExecStatus) -> Ending {
    match status {
        ExecStatus::Code(code) => Ending::Exited { code: code.into() },
        ExecStatus::Signal(signal) => Ending::CommandKilled { signal },
    }
}

/// Returns the ending of a run whose network does not come up; `None` if the machine ended by itself.
pub(crate) fn of_network_error(error: &AgentError) -> Option<Ending> {
    (!has_ended(error)).then(|| failed(exit_code::BAD_USAGE, error))
}

/// Returns the ending of a run whose command has no status; `None` if the machine ended by itself.
pub(crate) fn of_error(error: &ExecError) -> Option<Ending> {
    Some(match error {
        ExecError::Agent { error, .. } if has_ended(error) => return None,
        ExecError::TimedOut { limit, .. } => took_too_long(*limit),
        ExecError::NotFound { .. } => failed(exit_code::NOT_FOUND, error),
        ExecError::NotExecutable { .. } => failed(exit_code::NOT_EXECUTABLE, error),
        ExecError::NoCommand | ExecError::Directory { .. } | ExecError::UnknownUser { .. } => {
            failed(exit_code::BAD_USAGE, error)
        }
        _ => failed(AGENT_LOST, error),
    })
}

/// How a run ends whose guest has no agent that is ready within `limit`.
pub(super) fn not_ready(limit: Duration) -> Ending {
    Ending::TimedOut { kind: TimeLimit::Boot, limit }
}

/// How a run ends whose command has not ended within `limit`.
pub(super) fn took_too_long(limit: Duration) -> Ending {
    Ending::TimedOut { kind: TimeLimit::Command, limit }
}

/// Returns whether the machine has ended, and the agent with it.
fn has_ended(error: &AgentError) -> bool {
    matches!(error, AgentError::MachineEnded { .. })
}

pub(super) fn failed(code: u8, error: &dyn std::error::Error) -> Ending {
    Ending::CommandFailed { code, reason: chain(error) }
}

/// The exit code if the guest has lost its agent, or has ended before its command.
pub(super) const AGENT_LOST: u8 = exit_code::CRASHED;
