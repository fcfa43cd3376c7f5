//! Runs a command to its end and collects its output, in steps that threads and tasks share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::Stream;

use super::channel::{Channel, Locked};
use super::error::{AgentError, ExecError, Written};
use super::exec::{ExecInput, Output};
use super::process;
use super::streams::feed;

/// A command in flight.
pub(super) struct Collector {
    channel: Arc<Channel>,
    /// Bytes for its input, and how many of them have been sent. `None` once everything and the end were
    /// sent.
    input: Option<(Vec<u8>, usize)>,
    written: Written,
    /// The largest output in bytes; `None` if the output is dropped.
    limit: Option<usize>,
}

impl Collector {
    pub(super) fn new(channel: Arc<Channel>, limit: Option<usize>) -> Collector {
        Collector { channel, input: None, written: Written::default(), limit }
    }

    /// # Errors
    /// The host starts no thread for an input that must be read.
    pub(super) fn give(&mut self, input: ExecInput) -> Result<(), ExecError> {
        match input {
            ExecInput::Bytes(bytes) => self.input = Some((bytes, 0)),
            ExecInput::Reader(reader) => {
                feed(self.channel.clone(), reader).map_err(AgentError::host("a thread"))?;
            }
            ExecInput::None | ExecInput::Piped => {}
        }
        Ok(())
    }

    pub(super) fn channel(&self) -> Arc<Channel> {
        self.channel.clone()
    }

    /// Runs the command to its end, or to its time limit.
    ///
    /// # Errors
    /// The errors of [`Collector::step`], or its time limit is over.
    pub(super) fn run(mut self, time: Option<(Duration, Instant)>) -> Result<Output, ExecError> {
        let channel = self.channel();
        let (mut locked, mut patience) = (channel.lock(), channel.patience());
        loop {
            let step = match self.step(&mut locked) {
                Ok(Some(output)) => return Ok(output),
                Ok(None) => locked.wait_for_command(time, &mut patience),
                Err(error) => Err(error),
            };
            locked = step.map_err(|error| self.at_end(error))?;
        }
    }

    /// Returns the error of a command that has no status, with its output until then.
    pub(super) fn at_end(&mut self, error: ExecError) -> ExecError {
        match error {
            ExecError::TimedOut { limit, .. } => ExecError::TimedOut { limit, written: self.take_written() },
            ExecError::OutputLimit { limit, .. } => {
                ExecError::OutputLimit { limit, written: self.take_written() }
            }
            ExecError::Agent { error, .. } => ExecError::Agent { error, written: self.take_written() },
            other => other,
        }
    }

    /// Sends and takes what is possible now. Returns the output once the command has ended and everything was
    /// taken.
    ///
    /// # Errors
    /// It could not be run, has written too much, or the agent or the machine has ended. The error is for
    /// [`Collector::at_end`].
    pub(super) fn step(&mut self, locked: &mut Locked<'_>) -> Result<Option<Output>, ExecError> {
        self.send(locked);
        let Written { stdout, stderr } = &mut self.written;
        locked.take_all(Stream::Stdout, stdout);
        locked.take_all(Stream::Stderr, stderr);
        match self.limit {
            None => {
                stdout.clear();
                stderr.clear();
            }
            Some(limit) if stdout.len().saturating_add(stderr.len()) > limit => {
                stdout.truncate(limit);
                stderr.truncate(limit.saturating_sub(stdout.len()));
                return Err(ExecError::OutputLimit { limit, written: Box::default() });
            }
            Some(_) => {}
        }
        let seen = locked.seen();
        let is_read = seen.is_at_end(Stream::Stdout) && seen.is_at_end(Stream::Stderr);
        let status = process::status(seen, is_read)?;
        Ok(status.map(|status| {
            let Written { stdout, stderr } = *self.take_written();
            Output { status, stdout, stderr }
        }))
    }

    fn take_written(&mut self) -> Box<Written> {
        Box::new(std::mem::take(&mut self.written))
    }

    fn send(&mut self, locked: &mut Locked<'_>) {
        let Some((bytes, sent)) = &mut self.input else { return };
        *sent += locked.send(bytes.get(*sent..).unwrap_or_default());
        if *sent >= bytes.len() {
            locked.end_input();
            self.input = None;
        }
    }
}
