//! Errors of emulated hosts, as sentences for their users.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use coracle_agent::protocol::emulated_host::{self, ProtocolError, StartFailure, StartStep};
use coracle_arch::field::BOOT_LIMIT;
use coracle_image::guest_data::GuestDataMissing;

use super::EmulatedExit;
use crate::ending::{Seconds, signal_name};
use crate::exit_code;

/// The reason why a command has no ending.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulatedHostError {
    /// No command was given.
    #[error("no command was given for the emulated host")]
    NoCommand,
    /// A path cannot be shared.
    #[error("cannot share {path} with the emulated host: {problem}", path = .path.display())]
    Share {
        /// The path that the user gave.
        path: PathBuf,
        /// The reason.
        problem: ShareProblem,
    },
    /// QEMU is not installed.
    #[error(
        "the emulated host needs qemu-system-x86_64, which is not installed: `apt install qemu-system-x86`"
    )]
    NoQemu,
    /// The machine's kernel or initramfs is missing.
    #[error(transparent)]
    NoData(#[from] GuestDataMissing),
    /// A system call of this process failed.
    #[error("cannot {step} for the emulated host: {source}")]
    Local {
        /// The step that failed.
        step: &'static str,
        /// The error that this host returned.
        r#source: io::Error,
    },
    /// The machine did not boot in time.
    #[error(
        "the emulated host did not come up within {} s; {BOOT_LIMIT} gives it more", limit.as_secs_f64()
    )]
    BootTimeout {
        /// The time limit.
        limit: Duration,
        /// The last lines of the machine's log.
        last_words: LastWords,
    },
    /// The machine ended before the command was started.
    #[error("the emulated host ended while it booted (QEMU: {status})")]
    BootFailed {
        /// How QEMU ended.
        status: ExitStatus,
        /// The last lines of the machine's log.
        last_words: LastWords,
    },
    /// The machine ended before the command did.
    #[error("the emulated host ended before the command did (QEMU: {status})")]
    Lost {
        /// How QEMU ended.
        status: ExitStatus,
        /// The last lines of the machine's log.
        last_words: LastWords,
    },
    /// A signal arrived before the command ran.
    #[error("stopped by signal {} before the emulated host was up", signal_name(*signal))]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
    /// A signal for the command arrived, and the machine did not pass it on.
    #[error("stopped by signal {}: the emulated host does not answer any more", signal_name(*signal))]
    Silent {
        /// The signal's number.
        signal: i32,
    },
    /// The command's time limit was over, and the machine did not answer any more.
    #[error("timed out after {}: the emulated host does not answer any more", Seconds(*limit))]
    TimedOut {
        /// The command's time limit.
        limit: Duration,
    },
    /// The command has ended, and a part of its output could not be written on this host.
    #[error("command output cannot be written to {stream}: {source}")]
    OutputLost {
        /// `stdout` or `stderr`.
        stream: &'static str,
        /// The error that this host returned.
        r#source: io::Error,
        /// How the command ended.
        exit: EmulatedExit,
    },
    /// The machine's agent has another version.
    #[error(
        "the emulated host's initramfs speaks version {theirs} of the control protocol and this program version \
         {}: `cargo xtask guest` makes the right one",
        emulated_host::VERSION
    )]
    Version {
        /// The agent's version.
        theirs: u32,
    },
    /// The machine's agent, or a program in its place, breaks the protocol.
    #[error("the emulated host's agent does not follow the control protocol: {0}")]
    Protocol(ProtocolError),
    /// The machine's agent sent a message at the wrong time.
    #[error("the emulated host's agent sent a message out of turn")]
    OutOfTurn,
    /// The command does not exist.
    #[error("{}: command not found", command.display())]
    CommandNotFound {
        /// The name of the program.
        command: OsString,
    },
    /// The command cannot be executed.
    #[error("{} cannot be executed on the emulated host: {source}", command.display())]
    NotExecutable {
        /// The name of the program.
        command: OsString,
        /// The error that the emulated host returned.
        r#source: io::Error,
    },
    /// The command's surroundings cannot be prepared.
    #[error("the emulated host cannot {step} {}: {source}", subject.display())]
    Surroundings {
        /// The step that failed.
        step: &'static str,
        /// The object of the step.
        subject: OsString,
        /// The error that the emulated host returned.
        r#source: io::Error,
    },
}

/// The reason why a path cannot be shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareProblem {
    /// The path cannot be inspected.
    #[error("{0}")]
    Unreachable(io::Error),
    /// The path is one of the machine's own directories as a whole.
    #[error("/tmp, /run and /dev/shm are the machine's own; name what is needed inside")]
    WholePrivateDirectory,
    /// The path is a device, an inherited descriptor or another object of the caller's kernel.
    #[error("it belongs to this machine's kernel; devices, taps and inherited descriptors do not cross")]
    OfThisKernel,
    /// The path is a socket, a FIFO or a device.
    #[error("only files and directories can be shared; sockets, FIFOs and devices do not cross")]
    SpecialFile,
}

/// The last output of the machine's kernel and of QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWords {
    /// Last lines of the machine's serial console.
    pub console: Vec<String>,
    /// Last lines of QEMU's own stderr.
    pub qemu: Vec<String>,
}

impl EmulatedHostError {
    /// Returns the exit code for a program that ends because of this error: 115 for no emulated host, 117 for
    /// one that was lost, 125 for wrong usage, and 126 and 127 for the command, as in shells.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoCommand | Self::Share { .. } | Self::Surroundings { .. } => exit_code::BAD_USAGE,
            Self::NoQemu
            | Self::NoData(_)
            | Self::Local { .. }
            | Self::BootTimeout { .. }
            | Self::BootFailed { .. }
            | Self::Version { .. } => exit_code::NO_KVM,
            Self::Lost { .. } | Self::OutputLost { .. } | Self::Protocol(_) | Self::OutOfTurn => {
                exit_code::HOST_FAILED
            }
            Self::TimedOut { .. } => exit_code::TIMED_OUT,
            Self::NotExecutable { .. } => exit_code::NOT_EXECUTABLE,
            Self::CommandNotFound { .. } => exit_code::NOT_FOUND,
            Self::Interrupted { signal } | Self::Silent { signal } => exit_code::of_signal(*signal),
        }
    }

    /// Returns the machine's last output, if that explains the error.
    pub fn last_words(&self) -> Option<&LastWords> {
        match self {
            Self::BootTimeout { last_words, .. }
            | Self::BootFailed { last_words, .. }
            | Self::Lost { last_words, .. } => Some(last_words),
            Self::NoCommand
            | Self::Share { .. }
            | Self::NoQemu
            | Self::NoData(_)
            | Self::Local { .. }
            | Self::OutputLost { .. }
            | Self::Version { .. }
            | Self::Protocol(_)
            | Self::OutOfTurn
            | Self::Interrupted { .. }
            | Self::Silent { .. }
            | Self::TimedOut { .. }
            | Self::CommandNotFound { .. }
            | Self::NotExecutable { .. }
            | Self::Surroundings { .. } => None,
        }
    }
}

impl From<StartFailure> for EmulatedHostError {
    fn from(failure: StartFailure) -> Self {
        let StartFailure { step, subject, errno } = failure;
        let source = io::Error::from_raw_os_error(errno);
        match step {
            StartStep::Execute if errno == libc::ENOENT => Self::CommandNotFound { command: subject },
            StartStep::Execute => Self::NotExecutable { command: subject, source },
            StartStep::Share => Self::Surroundings { step: "show", subject, source },
            StartStep::Streams => Self::Surroundings { step: "make", subject, source },
            StartStep::EnterDirectory => Self::Surroundings { step: "enter", subject, source },
        }
    }
}
