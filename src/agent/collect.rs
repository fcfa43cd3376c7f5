//! A command that runs to its end while what it writes is collected: step by step, whoever waits between the steps.

use std::sync::Arc;

use coracle_agent::guest_protocol::Stream;

use super::channel::{Answer, Channel, Locked};
use super::error::{AgentError, ExecError};
use super::exec::{ExecInput, ExecStatus, Output};
use super::streams::feed;

/// A command under way.
pub(super) struct Collector {
    channel: Arc<Channel>,
    /// Bytes for its input, and how many of them have been sent; none when all have, and their end.
    input: Option<(Vec<u8>, usize)>,
    output: Output,
    /// The most that it may write; none: what it writes is dropped.
    limit: Option<usize>,
}

impl Collector {
    /// # Errors
    /// The host gives no thread for an input that has to be read.
    pub(super) fn new(
        channel: Channel,
        input: ExecInput,
        limit: Option<usize>,
    ) -> Result<Collector, ExecError> {
        let channel = Arc::new(channel);
        let input = match input {
            ExecInput::Bytes(bytes) => Some((bytes, 0)),
            ExecInput::Reader(reader) => {
                feed(channel.clone(), reader).map_err(AgentError::host("a thread"))?;
                None
            }
            ExecInput::None | ExecInput::Piped => None,
        };
        let output = Output { status: ExecStatus::Code(0), stdout: Vec::new(), stderr: Vec::new() };
        Ok(Collector { channel, input, output, limit })
    }

    pub(super) fn channel(&self) -> Arc<Channel> {
        self.channel.clone()
    }

    /// Sends and takes what can be now: the output, when it has ended and everything was taken.
    ///
    /// # Errors
    /// It could not be run, has written too much, or the agent or the machine has ended.
    pub(super) fn step(&mut self, locked: &mut Locked<'_>) -> Result<Option<Output>, ExecError> {
        self.send(locked);
        let Output { stdout, stderr, .. } = &mut self.output;
        locked.take_all(Stream::Stdout, stdout);
        locked.take_all(Stream::Stderr, stderr);
        match self.limit {
            None => {
                stdout.clear();
                stderr.clear();
            }
            Some(limit) if stdout.len().saturating_add(stderr.len()) > limit => {
                return Err(ExecError::OutputLimit { limit });
            }
            Some(_) => {}
        }
        let status = ended(locked)?;
        Ok(status.map(|status| Output {
            status,
            stdout: std::mem::take(&mut self.output.stdout),
            stderr: std::mem::take(&mut self.output.stderr),
        }))
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
