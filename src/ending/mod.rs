//! How a virtual machine ended, and how far its guest came.
//!
//! Code that treats several endings alike asks for their [`EndingKind`], or for a fact such as
//! [`Ending::vcpu`]; only code that creates an ending names it. Adding an ending is therefore an edit of this
//! file and of the code that creates it.

mod phase;

use std::time::Duration;

use coracle_devices::guest_request::ResetSource;
use serde::Serialize;

use crate::exit_code;
use crate::kvm::{VcpuFault, VcpuRegisters};

pub use phase::Phase;

/// How a virtual machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The guest powered off.
    PoweredOff,
    /// The guest's workload ended with an exit code.
    Exited {
        /// The code that the guest wrote.
        code: u32,
    },
    /// The guest's kernel panicked.
    Panicked {
        /// How the panic was detected.
        evidence: PanicEvidence,
    },
    /// Every vCPU has halted with interrupts off, so that nothing can wake the guest.
    Halted,
    /// The guest crashed in a way that resets a physical machine: a triple fault.
    Crashed {
        /// The index of the vCPU.
        vcpu: u32,
        /// Its registers, if KVM still has them.
        registers: Option<Box<VcpuRegisters>>,
    },
    /// The guest requested a reset.
    Reset {
        /// The device by which it did so.
        source: ResetSource,
    },
    /// KVM could not continue the guest.
    CannotRun {
        /// The index of the vCPU.
        vcpu: u32,
        /// The reason that KVM gave.
        fault: VcpuFault,
        /// Its registers, if KVM still has them.
        registers: Option<Box<VcpuRegisters>>,
    },
    /// Coracle or its host failed while the guest ran.
    HostFailed {
        /// The failure.
        reason: HostFailure,
    },
    /// Stopped on request of the program or of the person that runs it.
    Stopped,
    /// Stopped because a time limit expired.
    TimedOut {
        /// The kind of limit.
        kind: TimeLimit,
        /// The length of the limit.
        limit: Duration,
    },
    /// The command for which the machine ran was killed by a signal.
    CommandKilled {
        /// The number of the signal.
        signal: u8,
    },
    /// The command for which the machine ran could not be started, or how it ended is unknown.
    CommandFailed {
        /// The exit code: 126 and 127 as in shells, 125 for wrong usage, 111 if the agent was lost.
        code: u8,
        /// The cause, for a person.
        reason: String,
    },
    /// Stopped because Coracle received a signal.
    Signalled {
        /// The number of the signal.
        signal: i32,
    },
}

/// The kinds of endings, for code that treats several endings alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndingKind {
    /// The guest finished: it powered off, or its workload ended.
    Finished,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest gave up, on purpose or not: it halted, or requested a reset.
    GaveUp,
    /// A vCPU could not continue.
    Died,
    /// A time limit expired.
    TimedOut,
    /// The program, or the person that runs it, asked for the end.
    Asked,
    /// Coracle or its host failed.
    HostFailed,
    /// The command for which the machine ran was killed, could not be started, or was lost.
    Command,
}

impl From<HostFailure> for Ending {
    fn from(reason: HostFailure) -> Ending {
        Ending::HostFailed { reason }
    }
}

/// A limit of a guest's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "kebab-case")]
pub enum TimeLimit {
    /// From the start of the guest to its end.
    Wall,
    /// From the start of the guest until its init runs.
    Boot,
    /// How long the guest may be idle.
    Idle,
    /// From the start of the command for which the machine runs to its end.
    Command,
}

/// How a kernel panic was detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "kebab-case")]
pub enum PanicEvidence {
    /// The guest reported it through the pvpanic device.
    Device,
    /// Its text on the console, or a crash kernel, and then a reset.
    Reset,
    /// Its text in the console's last line, and then silence.
    Silence,
}

/// The failures on the host's side while a guest runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostFailure {
    /// A thread of Coracle panicked: a defect.
    #[error("the thread {thread} panicked; this is a defect of Coracle")]
    ThreadPanicked {
        /// The name of the thread.
        thread: String,
    },
    /// A vCPU did not leave the guest in time.
    #[error("vCPU {vcpu} did not stop within {limit:?}")]
    VcpuStuck {
        /// The index of the vCPU.
        vcpu: u32,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The I/O thread did not end in time.
    #[error("the console did not take its last output within {limit:?}: what it is connected to hangs")]
    IoStuck {
        /// How long it was waited for.
        limit: Duration,
    },
    /// A device did not finish its requests in time.
    #[error("{device} did not finish its requests within {limit:?}: what it is connected to hangs")]
    DeviceStuck {
        /// The name of the device.
        device: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A file, socket or tap did not close in time. It stays open until the host lets it go.
    #[error(
        "the files and sockets of the machine did not close within {limit:?}: what one of them is on hangs"
    )]
    CloseStuck {
        /// How long they were waited for.
        limit: Duration,
    },
    /// The guest reset its machine, and creating the new guest failed.
    #[error("the guest reset its machine, which could not be restarted: {reason}")]
    Restart {
        /// The error of the step that failed.
        reason: String,
    },
    /// The command's output could not be delivered.
    #[error("command output cannot be written to {stream}: {reason}")]
    CommandOutput {
        /// `stdout` or `stderr`.
        stream: &'static str,
        /// The error that the host returned.
        reason: String,
    },
    /// The driver started a device whose thread the host did not start.
    #[error("the thread {thread} of a device could not be started: {reason}")]
    DeviceStart {
        /// The thread's name.
        thread: String,
        /// The host's reason.
        reason: String,
    },
    /// A vCPU's thread could not be prepared.
    #[error("vCPU {vcpu} could not be started: {reason}")]
    VcpuStart {
        /// The index of the vCPU.
        vcpu: u32,
        /// The error that KVM returned.
        reason: String,
    },
}

impl Ending {
    /// Returns the command's exit code for this ending: values from 100 up are the machine's own, lower
    /// values are the guest's.
    pub fn exit_code(&self) -> u8 {
        match self {
            Ending::PoweredOff => exit_code::POWERED_OFF,
            Ending::Exited { code } => exit_code::of_workload(*code),
            Ending::Panicked { .. } => exit_code::PANICKED,
            Ending::Crashed { .. } => exit_code::CRASHED,
            Ending::Reset { .. } => exit_code::RESET,
            Ending::CannotRun { .. } => exit_code::CANNOT_RUN,
            Ending::Halted => exit_code::HALTED,
            Ending::HostFailed { .. } => exit_code::HOST_FAILED,
            Ending::Stopped => exit_code::STOPPED,
            Ending::TimedOut { .. } => exit_code::TIMED_OUT,
            Ending::CommandKilled { signal } => exit_code::of_signal((*signal).into()),
            Ending::CommandFailed { code, .. } => *code,
            Ending::Signalled { signal } => exit_code::of_signal(*signal),
        }
    }

    /// Returns the name of the ending in the JSON object.
    pub fn name(&self) -> &'static str {
        match self {
            Ending::PoweredOff => "powered-off",
            Ending::Exited { .. } => "exited",
            Ending::Panicked { .. } => "panicked",
            Ending::Halted => "halted",
            Ending::Crashed { .. } => "crashed",
            Ending::Reset { .. } => "reset",
            Ending::CannotRun { .. } => "cannot-run",
            Ending::HostFailed { .. } => "host-failed",
            Ending::Stopped => "stopped",
            Ending::TimedOut { .. } => "timed-out",
            Ending::CommandKilled { .. } => "command-killed",
            Ending::CommandFailed { .. } => "command-failed",
            Ending::Signalled { .. } => "signalled",
        }
    }

    /// Returns the kind of the ending.
    pub fn kind(&self) -> EndingKind {
        match self {
            Ending::PoweredOff | Ending::Exited { .. } => EndingKind::Finished,
            Ending::Panicked { .. } => EndingKind::Panicked,
            Ending::Halted | Ending::Reset { .. } => EndingKind::GaveUp,
            Ending::Crashed { .. } | Ending::CannotRun { .. } => EndingKind::Died,
            Ending::TimedOut { .. } => EndingKind::TimedOut,
            Ending::Stopped | Ending::Signalled { .. } => EndingKind::Asked,
            Ending::HostFailed { .. } => EndingKind::HostFailed,
            Ending::CommandKilled { .. } | Ending::CommandFailed { .. } => EndingKind::Command,
        }
    }

    /// Returns the exit code of the workload, or of the command for which the machine ran, if it ended with
    /// one.
    pub fn workload_code(&self) -> Option<u32> {
        if let Ending::Exited { code } = self { Some(*code) } else { None }
    }

    /// Returns how the panic of the guest's kernel was detected, if it panicked.
    pub fn panic_evidence(&self) -> Option<PanicEvidence> {
        if let Ending::Panicked { evidence } = self { Some(*evidence) } else { None }
    }

    /// Returns the time limit that expired.
    pub fn time_limit(&self) -> Option<TimeLimit> {
        if let Ending::TimedOut { kind, .. } = self { Some(*kind) } else { None }
    }

    /// Returns the signal that Coracle received.
    pub fn signal(&self) -> Option<i32> {
        if let Ending::Signalled { signal } = self { Some(*signal) } else { None }
    }

    /// Returns the index of the vCPU that could not continue.
    pub fn vcpu(&self) -> Option<u32> {
        match self {
            Ending::Crashed { vcpu, .. } | Ending::CannotRun { vcpu, .. } => Some(*vcpu),
            _ => None,
        }
    }

    /// Returns the registers of that vCPU, if KVM still has them.
    pub fn registers(&self) -> Option<&VcpuRegisters> {
        match self {
            Ending::Crashed { registers, .. } | Ending::CannotRun { registers, .. } => registers.as_deref(),
            _ => None,
        }
    }

    /// Returns the reason why KVM could not run that vCPU.
    pub fn fault(&self) -> Option<&VcpuFault> {
        if let Ending::CannotRun { fault, .. } = self { Some(fault) } else { None }
    }

    /// Returns whether the place where this vCPU stood explains the ending: that of the one that died, or all
    /// of a guest that waited for something. One that asked for a reset stands at that request.
    pub(crate) fn concerns(&self, vcpu: u32) -> bool {
        match self {
            Ending::TimedOut { .. } | Ending::Halted => true,
            _ => self.vcpu() == Some(vcpu),
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::PoweredOff => write!(f, "the guest powered off"),
            Ending::Exited { code } => write!(f, "the guest's workload ended with code {code}"),
            Ending::Panicked { .. } => write!(f, "the guest's kernel panicked"),
            Ending::Halted => write!(f, "the guest halted: every vCPU has stopped with interrupts off"),
            Ending::Crashed { vcpu, registers } => {
                write!(f, "the guest crashed: triple fault on vCPU {vcpu}")?;
                write_registers(f, registers.as_deref())
            }
            Ending::Reset { source: ResetSource::I8042 } => {
                write!(f, "the guest asked for a reset (keyboard controller)")
            }
            Ending::Reset { source: ResetSource::AcpiRegister } => {
                write!(f, "the guest asked for a reset (ACPI)")
            }
            Ending::CannotRun { vcpu, fault, registers } => {
                write!(f, "KVM cannot run this guest: vCPU {vcpu}: {fault}")?;
                write_registers(f, registers.as_deref())
            }
            Ending::HostFailed { reason: reason @ HostFailure::CommandOutput { .. } } => reason.fmt(f),
            Ending::HostFailed { reason } => write!(f, "Coracle or its host failed: {reason}"),
            Ending::Stopped => write!(f, "stopped on request"),
            Ending::TimedOut { kind: TimeLimit::Wall, limit } => {
                write!(f, "timed out after {}", Seconds(*limit))
            }
            Ending::TimedOut { kind: TimeLimit::Boot, limit } => {
                write!(f, "timed out: the guest did not reach its init within {}", Seconds(*limit))
            }
            Ending::TimedOut { kind: TimeLimit::Idle, limit } => {
                write!(f, "timed out: the guest was idle for {}", Seconds(*limit))
            }
            Ending::TimedOut { kind: TimeLimit::Command, limit } => {
                write!(f, "timed out: the command was killed after {}", Seconds(*limit))
            }
            Ending::CommandKilled { signal } => {
                write!(f, "the command was killed by signal {}", signal_name((*signal).into()))
            }
            Ending::CommandFailed { reason, .. } => f.write_str(reason),
            Ending::Signalled { signal } => write!(f, "stopped by signal {}", signal_name(*signal)),
        }
    }
}

fn write_registers(f: &mut std::fmt::Formatter<'_>, registers: Option<&VcpuRegisters>) -> std::fmt::Result {
    registers.map_or(Ok(()), |registers| write!(f, " ({})", registers.place()))
}

/// Shows a duration in seconds, with its significant digits.
pub struct Seconds(pub Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs_f64();
        let decimals = if seconds >= 10.0 {
            1
        } else if seconds >= 1.0 {
            2
        } else {
            4
        };
        let text = format!("{seconds:.decimals$}");
        write!(f, "{} s", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Returns the number and the name of a signal.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "HUP",
        libc::SIGINT => "INT",
        libc::SIGQUIT => "QUIT",
        libc::SIGTERM => "TERM",
        libc::SIGKILL => "KILL",
        libc::SIGSEGV => "SEGV",
        libc::SIGABRT => "ABRT",
        libc::SIGPIPE => "PIPE",
        other => return other.to_string(),
    };
    format!("{signal} (SIG{name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_that_explains_an_ending_is_the_one_that_died_or_any_that_waited() {
        let concerned = |ending: &Ending| [0, 1].map(|vcpu| ending.concerns(vcpu));
        assert_eq!(concerned(&Ending::Crashed { vcpu: 1, registers: None }), [false, true]);
        assert_eq!(concerned(&Ending::Halted), [true, true]);
        let limit = Duration::from_secs(1);
        assert_eq!(concerned(&Ending::TimedOut { kind: TimeLimit::Boot, limit }), [true, true]);
        assert_eq!(concerned(&Ending::Reset { source: ResetSource::I8042 }), [false, false]);
        assert_eq!(concerned(&Ending::Panicked { evidence: PanicEvidence::Device }), [false, false]);
    }

    #[test]
    fn durations_are_said_with_the_digits_that_matter() {
        let said = |micros| Seconds(Duration::from_micros(micros)).to_string();
        assert_eq!(said(1_000_000), "1 s");
        assert_eq!(said(1_234_567), "1.23 s");
        assert_eq!(said(12_345_678), "12.3 s");
        assert_eq!(said(1_234), "0.0012 s");
    }
}
