//! A command that runs in a guest.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::{ProcessInfo, Stream, WindowSize};

use super::channel::{Answer, Channel, ChannelState, Locked};
use super::collect::Collector;
use super::error::{AgentError, ExecError};
use super::exec::{DEFAULT_OUTPUT_LIMIT, ExecInput, ExecStatus, Output};
use super::streams::{ProcessInput, ProcessOutput, feed};

/// A command that was started. Dropping it kills what still runs, with all processes that the command has
/// started.
///
/// ```no_run
/// # fn doc(vm: &coracle::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::{BufRead, BufReader, Write};
///
/// use coracle::agent::ExecInput;
///
/// let mut process = vm.exec(["bc"]).stdin(ExecInput::Piped).spawn()?;
/// let (stdin, stdout) = (process.stdin.as_mut(), process.stdout.take());
/// let (Some(stdin), Some(stdout)) = (stdin, stdout) else { return Err("no streams".into()) };
/// stdin.write_all(b"6 * 7\n")?;
/// let mut answer = String::new();
/// BufReader::new(stdout).read_line(&mut answer)?;
/// assert_eq!(answer, "42\n");
/// process.wait()?;                                     // its input ends first
/// # Ok(())
/// # }
/// ```
pub struct Process {
    /// Its input, if it was started with [`ExecInput::Piped`](super::ExecInput::Piped).
    pub stdin: Option<ProcessInput>,
    /// Its standard output; with a terminal, everything.
    pub stdout: Option<ProcessOutput>,
    /// Its standard error; `None` with a terminal.
    pub stderr: Option<ProcessOutput>,
    channel: Arc<Channel>,
    limits: ProcessLimits,
}

/// The limits of a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessLimits {
    /// The largest number of bytes that [`Process::wait_with_output`] collects.
    pub(super) output: usize,
    /// The time limit, and the time at which it is over.
    pub(super) time: Option<(Duration, Instant)>,
}

impl ProcessLimits {
    /// Returns the time limit of a process that starts now.
    pub(super) fn from_now(timeout: Option<Duration>) -> Option<(Duration, Instant)> {
        timeout.and_then(|limit| Some((limit, Instant::now().checked_add(limit)?)))
    }
}

impl Process {
    pub(super) fn new(channel: Channel, has_terminal: bool, piped: bool, limits: ProcessLimits) -> Process {
        let channel = Arc::new(channel);
        channel.set_time_limit(limits.time.map(|(limit, _)| limit));
        let output = |stream| ProcessOutput::new(channel.clone(), stream, limits.time);
        Process {
            stdin: piped.then(|| ProcessInput::new(channel.clone(), limits.time)),
            stdout: Some(output(Stream::Stdout)),
            stderr: (!has_terminal).then(|| output(Stream::Stderr)),
            limits,
            channel,
        }
    }

    /// Makes the handle of a command that is taken up.
    pub(super) fn attached(channel: Channel, info: &ProcessInfo) -> Process {
        let limits = ProcessLimits { output: DEFAULT_OUTPUT_LIMIT, time: None };
        Process::new(channel, info.has_terminal, info.has_stdin, limits)
    }

    /// Returns its process id in the guest.
    pub fn pid(&self) -> u32 {
        self.channel.lock().seen().pid.unwrap_or_default()
    }

    /// Sends a signal to its process group, or to the foreground of its terminal. An ended command gets none.
    pub fn signal(&self, signal: u8) {
        self.channel.signal(signal);
    }

    /// Kills it, with all processes that it has started.
    pub fn kill(&self) {
        self.channel.abandon();
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, size: WindowSize) {
        self.channel.resize(size);
    }

    /// Waits for the command's end. Its input is ended first, so that it does not wait for more. Unread
    /// output can still be read afterwards. A command that writes more than its streams hold waits for its
    /// reader.
    ///
    /// # Errors
    /// Its time limit is over ([`ExecError::TimedOut`]; it was killed), or the agent or the machine has
    /// ended.
    pub fn wait(&mut self) -> Result<ExecStatus, ExecError> {
        self.stdin = None;
        loop {
            if let Some(status) = self.wait_until(None)? {
                return Ok(status);
            }
        }
    }

    /// Returns the command's status, if it ends within `limit`. Its input stays open.
    ///
    /// # Errors
    /// The errors of [`Process::wait`].
    pub fn wait_timeout(&mut self, limit: Duration) -> Result<Option<ExecStatus>, ExecError> {
        self.wait_until(Instant::now().checked_add(limit))
    }

    /// Waits for the command's end and collects its output meanwhile, up to its
    /// [`output_limit`](super::Exec::output_limit).
    ///
    /// # Errors
    /// The errors of [`Process::wait`], or it has written more ([`ExecError::OutputLimit`]; it was killed).
    pub fn wait_with_output(mut self) -> Result<Output, ExecError> {
        self.stdin = None;
        self.collector().run(self.limits.time)
    }

    /// Feeds it its input, on a thread.
    pub(super) fn feed(&self, input: ExecInput) -> Result<(), AgentError> {
        let reader: Box<dyn Read + Send> = match input {
            ExecInput::None | ExecInput::Piped => return Ok(()),
            ExecInput::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
            ExecInput::Reader(reader) => reader,
        };
        feed(self.channel.clone(), reader).map_err(AgentError::host("a thread for the command's input"))
    }

    /// Returns whether it has been started.
    pub(super) fn started(locked: &mut Locked<'_>) -> Result<Option<()>, ExecError> {
        let seen = locked.seen();
        Ok((seen.pid.is_some() || status(seen, true)?.is_some()).then_some(()))
    }

    /// Returns the command's status, once it has ended.
    #[cfg(feature = "tokio")]
    pub(super) fn ended(locked: &mut Locked<'_>) -> Result<Option<ExecStatus>, ExecError> {
        status(locked.seen(), true)
    }

    #[cfg(feature = "tokio")]
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(super) fn collector(&self) -> Collector {
        Collector::new(self.channel.clone(), Some(self.limits.output))
    }

    #[cfg(feature = "tokio")]
    pub(super) fn limit(&self) -> Option<(Duration, Instant)> {
        self.limits.time
    }

    pub(super) fn wait_started(&self) -> Result<(), ExecError> {
        let (mut locked, mut patience) = (self.channel.lock(), self.channel.patience());
        loop {
            if Self::started(&mut locked)?.is_some() {
                return Ok(());
            }
            locked = locked.wait_for_command(self.limits.time, &mut patience)?;
        }
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<ExecStatus>, ExecError> {
        let own = self.limits.time.map(|(_, deadline)| deadline);
        let first = deadline.into_iter().chain(own).min();
        let mut locked = self.channel.lock();
        loop {
            if let Some(status) = status(locked.seen(), true)? {
                return Ok(Some(status));
            }
            let (next, in_time) = locked.wait(first);
            locked = next;
            if !in_time {
                break;
            }
        }
        drop(locked);
        if let Some((limit, at)) = self.limits.time
            && Instant::now() >= at
        {
            self.kill();
            return Err(ExecError::timed_out(limit));
        }
        Ok(None)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_if_running();
    }
}

impl Process {
    /// Kills the command if it runs. Streams that are kept give the rest of the output of an ended command.
    fn kill_if_running(&self) {
        let is_running = self.channel.lock().seen().answer.is_none();
        if is_running {
            self.channel.abandon();
        }
    }
}

/// Returns the status, if it is known and `may_report` is set.
pub(super) fn status(seen: &ChannelState, may_report: bool) -> Result<Option<ExecStatus>, ExecError> {
    match &seen.answer {
        Some(Answer::Exited(ending)) if may_report => Ok(Some(ExecStatus::of(*ending))),
        Some(Answer::Failed(failure)) => Err(ExecError::of(failure.clone())),
        // Its owner has killed it, so the agent's report is not waited for.
        None if seen.abandoned => match seen.time_limit.filter(|_| seen.is_out_of_time) {
            Some(limit) => Err(ExecError::timed_out(limit)),
            None => Ok(Some(ExecStatus::Signal(KILL))),
        },
        _ => match seen.lost() {
            Some(error) => Err(error.clone().into()),
            None => Ok(None),
        },
    }
}

const KILL: u8 = libc::SIGKILL as u8;
