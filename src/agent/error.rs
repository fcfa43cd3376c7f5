//! Errors of requests to a guest.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_agent::protocol::agent::{Failure, OpenError, SessionError, Step};
use coracle_arch::field::{BOOT_TIMEOUT, IDLE_TIMEOUT, LEASE_LIMIT, TIMEOUT};

use crate::ending::{Ending, TimeLimit};
use crate::exit_code;

/// The agent cannot be asked, or the connection to it has ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The machine was built without an agent.
    #[error("this machine has no agent; set `agent` in its configuration")]
    NoAgent,
    /// The agent has not reported that it is ready.
    #[error(
        "the guest's agent was not ready within {limit:?}; look at the guest's console for why, or set a longer {}",
        .of.setting()
    )]
    NotReady {
        /// The time waited.
        limit: Duration,
        /// The source of the limit.
        of: ReadyLimit,
    },
    /// The agent has too many requests now. The same call may succeed later, when others have ended.
    #[error("the guest's agent takes no more requests now; try again later: {0}")]
    Busy(OpenError),
    /// The agent has not answered in time.
    #[error(
        "the guest's agent was not done within {limit:?}: the guest hangs, is paused, or is busier than \
         `answer_limit` and `min_rate` allow"
    )]
    NoAnswer {
        /// The time waited in all.
        limit: Duration,
    },
    /// The connection has ended, and the machine runs on. A machine that loses its agent may be about to end,
    /// so that is waited for, for up to 3 s.
    #[error("the connection to the guest's agent has ended: the agent was killed, or the guest was reset")]
    Lost,
    /// No process of the guest has reached its branch point in time.
    #[error(
        "no process of the guest has reached a branch point within {limit:?}; `coracle-agent branch-here` is one, \
         as root"
    )]
    NoBranchPoint {
        /// The limit of the call.
        limit: Duration,
    },
    /// The machine has ended.
    #[error("the machine has ended: {ending}{}{}", said(.panic), setting(.ending))]
    MachineEnded {
        /// The ending, as far as it was known then. The outcome has the final one.
        ending: Box<Ending>,
        /// The reason of the kernel's panic, if it printed one.
        panic: Option<String>,
    },
    /// The agent broke a rule of the protocol, and was disconnected.
    #[error("the guest's agent broke the protocol and was disconnected: {0}")]
    Protocol(SessionError),
    /// The request is too long, or the agent is too old for it.
    #[error(transparent)]
    Open(OpenError),
    /// The guest could not carry out the request.
    #[error("the guest's agent cannot {}{}: {source}", words(.step), named(.subject))]
    Refused {
        /// The step that failed.
        step: Step,
        /// The object of the step: a path, program or user.
        subject: OsString,
        /// The error that the guest returned.
        r#source: Arc<io::Error>,
    },
    /// The host lacks a resource.
    #[error("the host cannot make {what}: {source}")]
    Host {
        /// The resource.
        what: &'static str,
        /// The error that the host returned.
        r#source: Arc<io::Error>,
    },
}

impl From<SessionError> for AgentError {
    fn from(error: SessionError) -> AgentError {
        AgentError::Protocol(error)
    }
}

/// The source of the limit that a call waited for an agent to become ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadyLimit {
    /// The limit of the machine: [`AgentConfig::ready_limit`](crate::config::AgentConfig::ready_limit).
    Config,
    /// The limit that the call was given.
    Call,
}

impl ReadyLimit {
    fn setting(self) -> &'static str {
        match self {
            ReadyLimit::Config => "`AgentConfig::ready_limit`",
            ReadyLimit::Call => "limit for the call",
        }
    }
}

impl From<OpenError> for AgentError {
    fn from(error: OpenError) -> AgentError {
        match error {
            OpenError::TooMany | OpenError::Clogged { .. } => AgentError::Busy(error),
            _ => AgentError::Open(error),
        }
    }
}

/// Returns the advice about the limit that ended a machine.
fn setting(ending: &Ending) -> String {
    let (limit, does) = match ending.time_limit() {
        Some(TimeLimit::Boot) => (BOOT_TIMEOUT, "boot"),
        Some(TimeLimit::Wall) => (TIMEOUT, "run"),
        Some(TimeLimit::Idle) => (IDLE_TIMEOUT, "wait"),
        _ => return String::new(),
    };
    format!("; a longer `{limit}` lets it {does} longer")
}

fn said(panic: &Option<String>) -> String {
    panic.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// The output of a command until it was killed for a limit, or was lost with its agent or its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Its standard output; with a terminal, everything.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// The reason why a command has no status.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// A limit is too low for the command itself.
    #[error("`{limit}(0)` leaves nothing for the command itself; give at least 1, or leave the limit out")]
    LimitOfNothing {
        /// The call that sets the limit.
        limit: &'static str,
    },
    /// The list of program and arguments is empty.
    #[error("there is no command: give at least its name")]
    NoCommand,
    /// The guest has no such program: 127 in a shell.
    #[error("the guest has no program {program:?}")]
    NotFound {
        /// The name of the program.
        program: OsString,
    },
    /// The program cannot be executed: 126 in a shell.
    #[error("the guest cannot execute {program:?}: {source}")]
    NotExecutable {
        /// The name of the program.
        program: OsString,
        /// The error that the guest returned.
        r#source: Arc<io::Error>,
    },
    /// The working directory cannot be entered.
    #[error("the guest cannot enter the working directory {path:?}: {source}")]
    Directory {
        /// The path of the directory.
        path: PathBuf,
        /// The error that the guest returned.
        r#source: Arc<io::Error>,
    },
    /// There is no such user or group.
    #[error("the guest has no user or group {user:?}")]
    UnknownUser {
        /// The user, as the caller gave it.
        user: OsString,
    },
    /// The command's time limit was over. It was killed, with all processes that it had started.
    #[error("the command was killed after {limit:?}")]
    TimedOut {
        /// The time limit.
        limit: Duration,
        /// The output until then, if it was collected.
        written: Box<Written>,
    },
    /// The command wrote more than it was allowed, and was killed.
    #[error("the command was killed: it wrote more than the {limit} bytes that `output_limit` allows")]
    OutputLimit {
        /// The limit in bytes.
        limit: usize,
        /// The output, cut to the limit.
        written: Box<Written>,
    },
    /// The agent cannot be asked, has gone, or could not run the command. A command that ran has ended with
    /// its machine ([`AgentError::MachineEnded`]), or is lost.
    #[error("{error}")]
    Agent {
        /// The error of the agent.
        error: AgentError,
        /// The output until then, if it was collected.
        written: Box<Written>,
    },
}

impl From<AgentError> for ExecError {
    fn from(error: AgentError) -> ExecError {
        ExecError::Agent { error, written: Box::default() }
    }
}

/// The reason why a file or directory of a guest could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The guest's system refuses the action.
    #[error("the guest cannot {action} {path:?}: {source}")]
    Guest {
        /// The action.
        action: &'static str,
        /// The path in the guest.
        path: PathBuf,
        /// The error that the guest returned.
        r#source: Arc<io::Error>,
    },
    /// The file, or the list of a directory, is larger than the caller allows.
    #[error("the guest's {path:?} has more than the {limit} bytes that are allowed")]
    TooLarge {
        /// The path in the guest.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// There are more files than the caller allows.
    #[error(
        "the guest's {path:?} and what was copied before have more than the {limit} entries that are allowed"
    )]
    TooMany {
        /// The directory that was listed last.
        path: PathBuf,
        /// The largest number of entries.
        limit: u64,
    },
    /// The caller's reader or writer failed, or a file of this host did.
    #[error("the host's end of the transfer of {path:?} failed: {source}")]
    Local {
        /// The guest's path, or this host's in a copy of a directory.
        path: PathBuf,
        /// The error of the reader, writer or host.
        r#source: Arc<io::Error>,
    },
    /// A copy of a directory has stopped at this entry.
    #[error("cannot copy {from:?} of {} to {to:?} of {}: {error}", .by.ends()[0], .by.ends()[1])]
    Copy {
        /// The path of the source.
        from: PathBuf,
        /// The path of the copy.
        to: PathBuf,
        /// The direction of the copy.
        by: CopyWay,
        /// The error at this entry.
        error: Box<FileError>,
    },
    /// The agent cannot be asked, or has gone.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// The direction in which a directory is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyWay {
    /// From the host into the guest.
    In,
    /// Out of the guest to the host.
    Out,
}

impl CopyWay {
    fn ends(self) -> [&'static str; 2] {
        match self {
            CopyWay::In => ["the host", "the guest"],
            CopyWay::Out => ["the guest", "the host"],
        }
    }
}

impl AgentError {
    /// Returns the error with advice about a DHCP server that has not answered within `limit`.
    pub(super) fn of_lease(self, limit: Duration) -> AgentError {
        match self {
            AgentError::Refused { step: Step::Lease, subject, source }
                if source.kind() == io::ErrorKind::TimedOut =>
            {
                let text = format!(
                    "no DHCP server answered within {limit:?}; see that one runs on this network, or give it \
                     longer with `{LEASE_LIMIT}`"
                );
                let source = Arc::new(io::Error::new(io::ErrorKind::TimedOut, text));
                AgentError::Refused { step: Step::Lease, subject, source }
            }
            other => other,
        }
    }

    pub(super) fn of(failure: Failure) -> AgentError {
        if failure.step == Step::Channel && failure.errno == libc::EAGAIN {
            return OpenError::TooMany.into();
        }
        let source = Arc::new(io::Error::from_raw_os_error(failure.errno));
        AgentError::Refused { step: failure.step, subject: failure.subject, source }
    }

    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> AgentError {
        move |source| AgentError::Host { what, source: Arc::new(source) }
    }
}

impl ExecError {
    pub(super) fn of(failure: Failure) -> ExecError {
        let Failure { step, subject, errno } = failure;
        let source = Arc::new(io::Error::from_raw_os_error(errno));
        match step {
            Step::User => ExecError::UnknownUser { user: subject },
            Step::Directory => ExecError::Directory { path: subject.into(), source },
            Step::Execute if errno == libc::ENOENT => ExecError::NotFound { program: subject },
            Step::Execute => ExecError::NotExecutable { program: subject, source },
            _ => AgentError::of(Failure { step, subject, errno }).into(),
        }
    }

    pub(super) fn timed_out(limit: Duration) -> ExecError {
        ExecError::TimedOut { limit, written: Box::default() }
    }

    /// Returns the command's output until it was killed for its time or its output limit, or was lost.
    pub fn written(&self) -> Option<&Written> {
        match self {
            ExecError::TimedOut { written, .. }
            | ExecError::OutputLimit { written, .. }
            | ExecError::Agent { written, .. } => Some(written),
            _ => None,
        }
    }

    /// Returns the status that a shell would have: 127 if there is no such program, 126 if it cannot be
    /// executed.
    pub fn shell_code(&self) -> Option<u8> {
        match self {
            ExecError::NotFound { .. } => Some(exit_code::NOT_FOUND),
            ExecError::NotExecutable { .. } => Some(exit_code::NOT_EXECUTABLE),
            _ => None,
        }
    }
}

impl FileError {
    pub(super) fn of(failure: Failure) -> FileError {
        let Failure { step, subject, errno } = failure;
        let source = Arc::new(io::Error::from_raw_os_error(errno));
        match step {
            Step::Open | Step::Read | Step::Write | Step::Rename | Step::Make | Step::Remove => {
                FileError::Guest { action: words(&step), path: subject.into(), source }
            }
            _ => AgentError::of(Failure { step, subject, errno }).into(),
        }
    }

    /// Returns the error as that of an entry of a copy. The end of the machine is not about the entry.
    pub(super) fn of_copy(self, by: CopyWay, from: &Path, to: &Path) -> FileError {
        match self {
            FileError::Copy { .. } | FileError::Agent(_) => self,
            error => FileError::Copy { from: from.to_owned(), to: to.to_owned(), by, error: Box::new(error) },
        }
    }

    pub(super) fn local(path: &Path, source: io::Error) -> FileError {
        FileError::Local { path: path.to_owned(), source: Arc::new(source) }
    }

    /// Returns the error of the guest's system, if that refused.
    pub fn guest_error(&self) -> Option<io::ErrorKind> {
        match self {
            FileError::Guest { source, .. } => Some(source.kind()),
            FileError::Copy { error, .. } => error.guest_error(),
            _ => None,
        }
    }
}

fn words(step: &Step) -> &'static str {
    match step {
        Step::Channel => "take another request",
        Step::User => "find the user",
        Step::Identity => "become the user that is to run",
        Step::Streams => "make the streams of",
        Step::Directory => "enter",
        Step::Execute => "execute",
        Step::Open => "open",
        Step::Read => "read",
        Step::Write | Step::Resolver => "write",
        Step::Rename => "put into place",
        Step::Clock => "set the clock",
        Step::Interface => "set up the network interface",
        Step::Lease => "get an address by DHCP on",
        Step::Route => "set the route by",
        Step::Power => "end the machine",
        Step::Limits => "limit",
        Step::Make => "make",
        Step::Remove => "remove",
        Step::Machine => "take over the identity of the machine:",
        Step::Process => "take up the command",
    }
}

fn named(subject: &OsString) -> String {
    if subject.is_empty() { String::new() } else { format!(" {subject:?}") }
}

#[cfg(test)]
mod tests;
