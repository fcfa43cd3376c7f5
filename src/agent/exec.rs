//! Commands to run in a guest.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_agent::guest_protocol::{Ending, ExecRequest, Request, Stream, WindowSize};

use super::channel::{Answer, Channel, Locked};
use super::client::AgentClient;
use super::error::{AgentError, ExecError};
use super::process::Process;
use super::streams::feed;

/// A command, to be run by [`Exec::output`], [`Exec::status`] or [`Exec::spawn`].
///
/// It runs in `/` as the user of the agent, root, with `PATH`, `HOME`, `USER`, `LOGNAME` and `SHELL` set for that user,
/// unless it is told otherwise. A guest that is still booting is waited for.
#[must_use = "nothing runs before one of `output`, `status` and `spawn`"]
pub struct Exec {
    agent: Result<AgentClient, AgentError>,
    request: ExecRequest,
    input: ExecInput,
    timeout: Option<Duration>,
    output_limit: usize,
}

/// What a command reads.
#[derive(Default)]
pub enum ExecInput {
    /// Nothing: it is at its end.
    #[default]
    None,
    /// These bytes, and then the end.
    Bytes(Vec<u8>),
    /// What this gives, to its end. It is read on a thread of its own, which may stay in its last read.
    Reader(Box<dyn Read + Send>),
    /// What is written to [`Process::stdin`]. Only [`Exec::spawn`] gives that; for the others it is nothing.
    Piped,
}

/// A command that has ended, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExecStatus,
    /// What it wrote to its standard output; with a terminal, everything.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl Exec {
    pub(crate) fn new<A: Into<OsString>>(
        agent: Result<AgentClient, AgentError>,
        argv: impl IntoIterator<Item = A>,
    ) -> Exec {
        let argv = argv.into_iter().map(Into::into).collect();
        Exec {
            agent,
            request: ExecRequest { argv, ..ExecRequest::default() },
            input: ExecInput::None,
            timeout: None,
            output_limit: DEFAULT_OUTPUT_LIMIT,
        }
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Exec {
        self.request.env.push((name.into(), value.into()));
        self
    }

    /// Sets variables.
    pub fn envs<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Exec {
        self.request.env.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Sets no variables but those that are given: before or after this.
    pub fn env_clear(mut self) -> Exec {
        self.request.clear_env = true;
        self
    }

    /// Runs it in this folder.
    pub fn cwd(mut self, path: impl Into<PathBuf>) -> Exec {
        self.request.cwd = Some(path.into());
        self
    }

    /// Runs it as this user: a name or a number, and if wanted a group behind a colon. Names are looked up in the guest's
    /// `/etc/passwd` and `/etc/group`.
    pub fn user(mut self, user: impl Into<OsString>) -> Exec {
        self.request.user = Some(user.into());
        self
    }

    /// Gives it a terminal of this size for its three streams.
    pub fn tty(mut self, size: WindowSize) -> Exec {
        self.request.terminal = Some(size);
        self
    }

    /// What it reads.
    pub fn stdin(mut self, input: impl Into<ExecInput>) -> Exec {
        self.input = input.into();
        self
    }

    /// Kills it, and all that it has started, when it runs for longer.
    pub fn timeout(mut self, limit: Duration) -> Exec {
        self.timeout = Some(limit);
        self
    }

    /// The most that it may write for [`Exec::output`], to both outputs together: 16 MiB unless this says otherwise.
    pub fn output_limit(mut self, bytes: usize) -> Exec {
        self.output_limit = bytes;
        self
    }

    /// Runs it to its end and collects what it writes.
    ///
    /// # Errors
    /// It could not be run, was killed for its limits, or the agent or the machine has ended.
    pub fn output(self) -> Result<Output, ExecError> {
        let limit = self.output_limit;
        self.run(|_, count| count <= limit, limit)
    }

    /// Runs it to its end and drops what it writes.
    ///
    /// # Errors
    /// As [`Exec::output`], without its limit.
    pub fn status(self) -> Result<ExecStatus, ExecError> {
        let drop_it = |output: &mut Output, _| {
            output.stdout.clear();
            output.stderr.clear();
            true
        };
        self.run(drop_it, usize::MAX).map(|output| output.status)
    }

    /// Starts it.
    ///
    /// # Errors
    /// It could not be started, or the agent or the machine has ended.
    pub fn spawn(mut self) -> Result<Process, ExecError> {
        let input = std::mem::take(&mut self.input);
        let piped = matches!(input, ExecInput::Piped);
        let (size, timeout) = (self.request.terminal, self.timeout);
        let channel = self.open(!matches!(input, ExecInput::None))?;
        let process = Process::new(channel, size.is_some(), piped, timeout);
        process.wait_started()?;
        match input {
            ExecInput::None | ExecInput::Piped => {}
            ExecInput::Bytes(bytes) => process.feed(std::io::Cursor::new(bytes))?,
            ExecInput::Reader(reader) => process.feed(reader)?,
        }
        Ok(process)
    }

    fn open(self, has_input: bool) -> Result<Channel, ExecError> {
        if self.request.argv.first().is_none_or(|program| program.is_empty()) {
            return Err(ExecError::NoCommand);
        }
        let request = ExecRequest { stdin: has_input, ..self.request };
        Ok(Channel::open(self.agent?.link(), Request::Exec(Box::new(request)))?)
    }

    /// Runs it; `keep` sees what has been collected, and how much came in all, and says whether that is still allowed.
    fn run(
        mut self,
        keep: impl Fn(&mut Output, usize) -> bool,
        output_limit: usize,
    ) -> Result<Output, ExecError> {
        let timeout = self.timeout;
        let input = std::mem::take(&mut self.input);
        let has_input = matches!(input, ExecInput::Bytes(_) | ExecInput::Reader(_));
        let channel = std::sync::Arc::new(self.open(has_input)?);
        let mut bytes = None;
        match input {
            ExecInput::Bytes(given) => bytes = Some(given),
            ExecInput::Reader(reader) => {
                feed(channel.clone(), reader).map_err(AgentError::host("a thread"))?;
            }
            ExecInput::None | ExecInput::Piped => {}
        }
        let mut left = bytes.as_deref();
        let deadline = timeout.and_then(|limit| Instant::now().checked_add(limit));
        let mut output = Output { status: ExecStatus::Code(0), stdout: Vec::new(), stderr: Vec::new() };
        let mut count: usize = 0;
        let mut locked = channel.lock();
        loop {
            left = left.and_then(|bytes| send_some(&mut locked, bytes));
            let stdout = locked.take_all(Stream::Stdout, &mut output.stdout);
            let stderr = locked.take_all(Stream::Stderr, &mut output.stderr);
            count = count.saturating_add(stdout).saturating_add(stderr);
            if !keep(&mut output, count) {
                return Err(ExecError::OutputLimit { limit: output_limit });
            }
            if let Some(status) = ended(&mut locked)? {
                return Ok(Output { status, ..output });
            }
            let (next, in_time) = locked.wait(deadline);
            locked = next;
            if let (false, Some(limit)) = (in_time, timeout) {
                return Err(ExecError::TimedOut { limit });
            }
        }
    }
}

impl ExecStatus {
    /// Whether it exited with code 0.
    pub fn success(self) -> bool {
        self == ExecStatus::Code(0)
    }

    /// The code that it exited with.
    pub fn code(self) -> Option<u8> {
        match self {
            ExecStatus::Code(code) => Some(code),
            ExecStatus::Signal(_) => None,
        }
    }

    /// The signal that killed it.
    pub fn signal(self) -> Option<u8> {
        match self {
            ExecStatus::Code(_) => None,
            ExecStatus::Signal(signal) => Some(signal),
        }
    }

    pub(super) fn of(ending: Ending) -> ExecStatus {
        match ending {
            Ending::Code(code) => ExecStatus::Code(code),
            Ending::Signal(signal) => ExecStatus::Signal(signal),
        }
    }
}

impl std::fmt::Display for ExecStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExecStatus::Code(code) => write!(f, "exit code {code}"),
            ExecStatus::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl From<Vec<u8>> for ExecInput {
    fn from(bytes: Vec<u8>) -> Self {
        ExecInput::Bytes(bytes)
    }
}

impl From<&[u8]> for ExecInput {
    fn from(bytes: &[u8]) -> Self {
        ExecInput::Bytes(bytes.to_vec())
    }
}

impl<const N: usize> From<&[u8; N]> for ExecInput {
    fn from(bytes: &[u8; N]) -> Self {
        ExecInput::Bytes(bytes.to_vec())
    }
}

impl From<&str> for ExecInput {
    fn from(text: &str) -> Self {
        ExecInput::Bytes(text.as_bytes().to_vec())
    }
}

/// Sends what there is room for: what is left then; none when that was all, and the end has been said.
fn send_some<'a>(locked: &mut Locked<'_>, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let sent = locked.send(bytes);
    let left = bytes.get(sent..).unwrap_or_default();
    if left.is_empty() {
        locked.end_input();
    }
    Some(left).filter(|left| !left.is_empty())
}

/// How the command ended, once all that it wrote has been taken.
fn ended(locked: &mut Locked<'_>) -> Result<Option<ExecStatus>, ExecError> {
    let seen = locked.seen();
    let is_read = seen.is_at_end(Stream::Stdout) && seen.is_at_end(Stream::Stderr);
    match &seen.answer {
        Some(Answer::Exited(ending)) if is_read => Ok(Some(ExecStatus::of(*ending))),
        Some(Answer::Failed(failure)) => Err(ExecError::of(failure.clone())),
        _ => match seen.lost() {
            Some(error) => Err(error.clone().into()),
            None => Ok(None),
        },
    }
}

/// A test's or a snippet's output, and no more of the program's memory.
const DEFAULT_OUTPUT_LIMIT: usize = 16 << 20;
