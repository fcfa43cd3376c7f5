//! Why something could not be done in a guest.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_agent::protocol::agent::{Failure, OpenError, SessionError, Step};

use crate::ending::{Ending, TimeLimit};
use crate::exit_code;

/// The agent cannot be asked, or has gone.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The machine was built without one.
    #[error("this machine has no agent; set `agent` in its configuration")]
    NoAgent,
    /// It has not said that it is ready.
    #[error(
        "the guest's agent was not ready within {limit:?}; look at the guest's console for why, or set a longer {}",
        .of.setting()
    )]
    NotReady {
        /// How long was waited.
        limit: Duration,
        /// Where the limit comes from.
        of: ReadyLimit,
    },
    /// It has too much to do now. The same call may succeed later, when others have ended.
    #[error("the guest's agent takes no more requests now; try again later: {0}")]
    Busy(OpenError),
    /// It was asked, and was not done in time.
    #[error(
        "the guest's agent was not done within {limit:?}: the guest hangs, is paused, or is busier than `answer_limit` and \
         `least_rate` allow"
    )]
    NoAnswer {
        /// How long was waited in all.
        limit: Duration,
    },
    /// Its connection has ended, and the machine runs on: where a machine loses its agent, its end is waited for, for up
    /// to 3 s.
    #[error("the connection to the guest's agent has ended: the agent was killed, or the guest was reset")]
    Lost,
    /// The machine has.
    #[error("the machine has ended: {ending}{}{}", said(.panic), setting(.ending))]
    MachineEnded {
        /// How, as far as it was known then; the outcome has the last word.
        ending: Box<Ending>,
        /// What the kernel gave as the reason of its panic, where it printed one.
        panic: Option<String>,
    },
    /// It broke a rule, and was cut off.
    #[error("the guest's agent broke a rule and was cut off: {0}")]
    Protocol(SessionError),
    /// It cannot be asked for this: it would be too long, or the agent is too old.
    #[error(transparent)]
    Open(OpenError),
    /// It could not do it.
    #[error("the guest's agent cannot {}{}: {source}", words(.step), named(.subject))]
    Refused {
        /// What it tried.
        step: Step,
        /// With what.
        subject: OsString,
        /// Why.
        r#source: Arc<io::Error>,
    },
    /// The host has too little of something.
    #[error("the host cannot make {what}: {source}")]
    Host {
        /// What.
        what: &'static str,
        /// What the system said.
        r#source: Arc<io::Error>,
    },
}

impl From<SessionError> for AgentError {
    fn from(error: SessionError) -> AgentError {
        AgentError::Protocol(error)
    }
}

/// The limit that a call waited for an agent that is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadyLimit {
    /// That of the machine: [`AgentConfig::ready_limit`](crate::config::AgentConfig::ready_limit).
    Config,
    /// The one that the call was given.
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

/// What lengthens the limit that has ended a machine.
fn setting(ending: &Ending) -> &'static str {
    match ending {
        Ending::TimedOut { of: TimeLimit::Boot, .. } => "; a longer `boot_timeout` lets it boot longer",
        Ending::TimedOut { of: TimeLimit::Wall, .. } => "; a longer `timeout` lets it run longer",
        Ending::TimedOut { of: TimeLimit::Idle, .. } => "; a longer `idle_timeout` lets it wait longer",
        _ => "",
    }
}

fn said(panic: &Option<String>) -> String {
    panic.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// What a command had written when it was killed for a limit, or was lost with its agent or its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// To its standard output; with a terminal, everything.
    pub stdout: Vec<u8>,
    /// To its standard error.
    pub stderr: Vec<u8>,
}

/// Why a command has no status.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// A limit that the command itself is beyond.
    #[error("`{limit}(0)` leaves nothing for the command itself; give at least 1, or leave the limit out")]
    LimitOfNothing {
        /// The call that sets it.
        limit: &'static str,
    },
    /// There is no command without a name.
    #[error("there is no command: give at least its name")]
    NoCommand,
    /// The guest has no such program: 127 in a shell.
    #[error("the guest has no program {program:?}")]
    NotFound {
        /// As given.
        program: OsString,
    },
    /// The program cannot be executed: 126 in a shell.
    #[error("the guest cannot execute {program:?}: {source}")]
    NotExecutable {
        /// As given.
        program: OsString,
        /// What its system said.
        r#source: Arc<io::Error>,
    },
    /// The working directory cannot be entered.
    #[error("the guest cannot enter the working directory {path:?}: {source}")]
    Directory {
        /// As given.
        path: PathBuf,
        /// What its system said.
        r#source: Arc<io::Error>,
    },
    /// There is no such user or group.
    #[error("the guest has no user or group {user:?}")]
    UnknownUser {
        /// As given.
        user: OsString,
    },
    /// Its time was over. The command was killed, with all processes that it had started.
    #[error("the command was killed after {limit:?}")]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// What had come of it by then, where it was collected.
        written: Box<Written>,
    },
    /// It wrote more than it was allowed, and was killed.
    #[error("the command was killed: it wrote more than the {limit} bytes that `output_limit` allows")]
    OutputLimit {
        /// The limit.
        limit: usize,
        /// So much of what it wrote as the limit allows.
        written: Box<Written>,
    },
    /// The agent cannot be asked, has gone, or could not do it; a command that ran has ended with its machine
    /// ([`AgentError::MachineEnded`]), or is lost.
    #[error("{error}")]
    Agent {
        /// Why.
        error: AgentError,
        /// What had come of the command by then, where it was collected.
        written: Box<Written>,
    },
}

impl From<AgentError> for ExecError {
    fn from(error: AgentError) -> ExecError {
        ExecError::Agent { error, written: Box::default() }
    }
}

/// Why a file or folder of a guest could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The guest's system refuses.
    #[error("the guest cannot {action} {path:?}: {source}")]
    Guest {
        /// What was tried.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// What its system said.
        r#source: Arc<io::Error>,
    },
    /// The file, or the list of a folder, is larger than the caller wants it.
    #[error("the guest's {path:?} has more than the {limit} bytes that are allowed")]
    TooLarge {
        /// Its path.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// There are more files than the caller wants.
    #[error(
        "the guest's {path:?} and what was copied before has more than the {limit} entries that are allowed"
    )]
    TooMany {
        /// The directory that was listed last.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The caller's reader or writer failed, or a file of this host.
    #[error("the host's end of the transfer of {path:?} failed: {source}")]
    Local {
        /// The guest's path, or this host's in a copy of a directory.
        path: PathBuf,
        /// What it said.
        r#source: Arc<io::Error>,
    },
    /// A copy of a directory has stopped at this entry.
    #[error("cannot copy {from:?} of {} to {to:?} of {}: {error}", .by.ends()[0], .by.ends()[1])]
    Copy {
        /// What is copied.
        from: PathBuf,
        /// What it was to become.
        to: PathBuf,
        /// Which way.
        by: CopyWay,
        /// Why.
        error: Box<FileError>,
    },
    /// The agent cannot be asked, or has gone.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Which way a directory is copied.
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
    /// The same, with what to do about a DHCP server that has not answered within `limit`.
    pub(super) fn of_lease(self, limit: Duration) -> AgentError {
        match self {
            AgentError::Refused { step: Step::Lease, subject, source }
                if source.kind() == io::ErrorKind::TimedOut =>
            {
                let text = format!(
                    "no DHCP server answered within {limit:?}; see that one runs on this network, or give it longer with \
                     `--ip dhcp,timeout=TIME` or `NetworkSettings::lease_limit`"
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

    /// What the command had written when it was killed for its time or its output limit, or was lost.
    pub fn written(&self) -> Option<&Written> {
        match self {
            ExecError::TimedOut { written, .. }
            | ExecError::OutputLimit { written, .. }
            | ExecError::Agent { written, .. } => Some(written),
            _ => None,
        }
    }

    /// What a shell's status would be: 127 where there is no such program, 126 where it cannot be executed.
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

    /// The same as that of an entry of a copy. A machine that has ended has nothing to do with the entry.
    pub(super) fn of_copy(self, by: CopyWay, from: &Path, to: &Path) -> FileError {
        match self {
            FileError::Copy { .. } | FileError::Agent(_) => self,
            error => FileError::Copy { from: from.to_owned(), to: to.to_owned(), by, error: Box::new(error) },
        }
    }

    pub(super) fn local(path: &Path, source: io::Error) -> FileError {
        FileError::Local { path: path.to_owned(), source: Arc::new(source) }
    }

    /// What the guest's system said, if it was the one that refused.
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
    }
}

fn named(subject: &OsString) -> String {
    if subject.is_empty() { String::new() } else { format!(" {subject:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_an_error_has_its_reason() {
        let failure = |step, errno| Failure { step, subject: "/x".into(), errno };
        let denied = ExecError::of(failure(Step::Execute, libc::EACCES));
        assert!(denied.to_string().contains("\"/x\": Permission denied"), "{denied}");
        let missing = FileError::of(failure(Step::Open, libc::ENOENT));
        assert!(missing.to_string().contains("\"/x\": No such file"), "{missing}");
        let refused = ExecError::of(failure(Step::Limits, libc::EOPNOTSUPP));
        assert!(refused.to_string().contains("limit \"/x\": Operation not supported"), "{refused}");
        let broken = AgentError::from(SessionError::Restarted);
        assert!(broken.to_string().contains(&SessionError::Restarted.to_string()), "{broken}");
        assert_eq!(crate::error::whole(&denied), denied.to_string());
    }

    #[test]
    fn what_may_succeed_later_is_a_variant() {
        let full = Failure { step: Step::Channel, subject: "".into(), errno: libc::EAGAIN };
        assert!(matches!(ExecError::of(full.clone()), ExecError::Agent { error: AgentError::Busy(_), .. }));
        assert!(matches!(FileError::of(full), FileError::Agent(AgentError::Busy(_))));
        assert!(matches!(OpenError::Clogged { waiting: 1 }.into(), AgentError::Busy(_)));
        assert!(matches!(OpenError::TooLong { length: 1 }.into(), AgentError::Open(_)));
    }
}
