//! Commands to run in a guest.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_agent::protocol::agent::{Ending, ExecLimits, ExecRequest, Request, WindowSize};

use super::channel::Channel;
use super::client::AgentClient;
use super::collect::Collector;
use super::error::{AgentError, ExecError};
use super::process::{Process, ProcessLimits};

/// A command, which [`Exec::output`], [`Exec::status`] or [`Exec::spawn`] runs.
///
/// By default it runs in `/` as the user of the agent, root, with `PATH`, `HOME`, `USER`, `LOGNAME` and
/// `SHELL` set for that user. A guest that is still booting is waited for.
///
/// ```no_run
/// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use coracle::agent::ExecError;
///
/// let exec = vm.exec(["sh", "-c", "sort; echo $NAME >&2"]).env("NAME", "value").cwd("/tmp").user("nobody");
/// match exec.stdin("b\na\n").timeout(Duration::from_secs(5)).output() {
///     Ok(output) => println!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout)),
///     Err(error @ ExecError::TimedOut { .. }) => println!("{error}; until then: {:?}", error.written()),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing runs before one of `output`, `status` and `spawn`"]
pub struct Exec {
    pub(super) agent: Result<AgentClient, AgentError>,
    request: ExecRequest,
    pub(super) input: ExecInput,
    pub(super) timeout: Option<Duration>,
    /// The time to wait for an agent that is not ready; `None` for the machine's own limit.
    pub(super) ready_limit: Option<Duration>,
    pub(super) output_limit: usize,
}

/// The input of a command.
#[derive(Default)]
#[non_exhaustive]
pub enum ExecInput {
    /// No input: it is at its end.
    #[default]
    None,
    /// The given bytes, and then the end.
    Bytes(Vec<u8>),
    /// The bytes of a reader, to its end. They are read on a thread of its own, which may stay in its last
    /// read.
    Reader(Box<dyn Read + Send>),
    /// The bytes that are written to [`Process::stdin`]. Only [`Exec::spawn`] provides that; for the others
    /// there is no input.
    Piped,
}

/// The status and output of a command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The status of the command.
    pub status: ExecStatus,
    /// Its standard output; with a terminal, everything.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// The status with which a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecStatus {
    /// The command exited with this code.
    Code(u8),
    /// The command was killed by this signal.
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
            ready_limit: None,
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

    /// Removes the default variables. Those set by calls before or after this stay.
    pub fn env_clear(mut self) -> Exec {
        self.request.clear_env = true;
        self
    }

    /// Sets the working directory.
    pub fn cwd(mut self, path: impl Into<PathBuf>) -> Exec {
        self.request.cwd = Some(path.into());
        self
    }

    /// Sets the user: a name or a number, and if wanted a colon and a group. Names are looked up in the
    /// guest's `/etc/passwd` and `/etc/group`.
    pub fn user(mut self, user: impl Into<OsString>) -> Exec {
        self.request.user = Some(user.into());
        self
    }

    /// Sets up a terminal of this size for its three streams.
    pub fn tty(mut self, size: WindowSize) -> Exec {
        self.request.terminal = Some(size);
        self
    }

    pub(super) fn limits(&mut self) -> &mut ExecLimits {
        &mut self.request.limits
    }

    /// Sets its input.
    pub fn stdin(mut self, input: impl Into<ExecInput>) -> Exec {
        self.input = input.into();
        self
    }

    /// Sets a time limit, after which the command and all processes that it started are killed.
    pub fn timeout(mut self, limit: Duration) -> Exec {
        self.timeout = Some(limit);
        self
    }

    /// Sets the largest output in bytes for [`Exec::output`] and [`Process::wait_with_output`], both streams
    /// together. The default is 16 MiB.
    pub fn output_limit(mut self, bytes: usize) -> Exec {
        self.output_limit = bytes;
        self
    }

    /// Runs the command to its end and collects its output.
    ///
    /// # Errors
    /// It could not be run, was killed for its limits, or the agent or the machine has ended. The error [has
    /// its output](ExecError::written) until then.
    pub fn output(self) -> Result<Output, ExecError> {
        let limit = self.output_limit;
        self.collect(Some(limit))
    }

    /// Runs the command to its end and drops its output.
    ///
    /// # Errors
    /// The errors of [`Exec::output`], without its limit.
    pub fn status(self) -> Result<ExecStatus, ExecError> {
        self.collect(None).map(|output| output.status)
    }

    /// Starts the command.
    ///
    /// # Errors
    /// It could not be started, or the agent or the machine has ended.
    pub fn spawn(mut self) -> Result<Process, ExecError> {
        let input = std::mem::take(&mut self.input);
        let process = self.start(&input)?;
        process.wait_started()?;
        process.feed(input)?;
        Ok(process)
    }

    /// Asks for a process that may not have been started yet.
    pub(super) fn start(self, input: &ExecInput) -> Result<Process, ExecError> {
        let (has_terminal, timeout) = (self.request.terminal.is_some(), self.timeout);
        let output_limit = self.output_limit;
        let channel = self.open(!matches!(input, ExecInput::None))?;
        let limits = ProcessLimits { output: output_limit, time: ProcessLimits::from_now(timeout) };
        Ok(Process::new(channel, has_terminal, matches!(input, ExecInput::Piped), limits))
    }

    fn open(self, has_input: bool) -> Result<Channel, ExecError> {
        if self.request.argv.first().is_none_or(|program| program.is_empty()) {
            return Err(ExecError::NoCommand);
        }
        super::limits::check(&self.request.limits)?;
        let request = ExecRequest { stdin: has_input, ..self.request };
        let agent = self.agent?;
        let limit = self.ready_limit.unwrap_or(agent.link().limits.ready);
        Ok(Channel::open_within(agent.link(), Request::Exec(Box::new(request)), limit)?)
    }

    /// Starts running it to its end. Without a limit, its output is dropped.
    pub(super) fn start_collecting(mut self, output_limit: Option<usize>) -> Result<Collector, ExecError> {
        let input = std::mem::take(&mut self.input);
        let has_input = matches!(input, ExecInput::Bytes(_) | ExecInput::Reader(_));
        let mut collector = Collector::new(Arc::new(self.open(has_input)?), output_limit);
        collector.give(input)?;
        Ok(collector)
    }

    fn collect(self, output_limit: Option<usize>) -> Result<Output, ExecError> {
        let time = ProcessLimits::from_now(self.timeout);
        self.start_collecting(output_limit)?.run(time)
    }
}

impl ExecStatus {
    /// Returns whether it exited with code 0.
    pub fn success(self) -> bool {
        self == ExecStatus::Code(0)
    }

    /// Returns its exit code; `None` if a signal killed it.
    pub fn code(self) -> Option<u8> {
        match self {
            ExecStatus::Code(code) => Some(code),
            ExecStatus::Signal(_) => None,
        }
    }

    /// Returns the signal that killed it; `None` if it exited.
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

/// The default limit in bytes: enough for the output of a test or a snippet, and a bound on the program's
/// memory.
pub(super) const DEFAULT_OUTPUT_LIMIT: usize = 16 << 20;
