//! The ends of a command's streams, with back-pressure both ways: neither end buffers more than a window.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_agent::protocol::agent::Stream;

use super::channel::{Channel, Locked};
use super::waits::{Waits, block_on};
use crate::thread::ThreadKind;

/// The input of the command. Dropping it ends the input.
pub struct ProcessInput {
    channel: Arc<Channel>,
    deadline: Option<Instant>,
}

/// An output of the command. Reading waits for it, and a command whose output is read slowly waits too.
pub struct ProcessOutput {
    channel: Arc<Channel>,
    stream: Stream,
    deadline: Option<Instant>,
}

impl ProcessInput {
    pub(super) fn new(channel: Arc<Channel>, limit: Option<(Duration, Instant)>) -> ProcessInput {
        ProcessInput { channel, deadline: limit.map(|(_, at)| at) }
    }

    /// Sends as much as there is space for. Returns `None` if that is nothing.
    pub(super) fn write_now(&mut self, locked: &mut Locked<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
        let seen = locked.seen();
        if let Some(error) = seen.lost() {
            return Err(io::Error::new(ErrorKind::ConnectionAborted, error.clone()));
        }
        if seen.input_refused || seen.abandoned || seen.answer.is_some() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let sent = if bytes.is_empty() { 0 } else { locked.send(bytes) };
        Ok((sent > 0 || bytes.is_empty()).then_some(sent))
    }
}

#[cfg(feature = "tokio")]
impl ProcessInput {
    /// Ends the command's input.
    pub(super) fn end_now(&mut self, locked: &mut Locked<'_>) -> io::Result<Option<()>> {
        locked.end_input();
        Ok(Some(()))
    }
}

impl ProcessOutput {
    pub(super) fn new(
        channel: Arc<Channel>,
        stream: Stream,
        limit: Option<(Duration, Instant)>,
    ) -> ProcessOutput {
        ProcessOutput { channel, stream, deadline: limit.map(|(_, at)| at) }
    }

    /// Takes available bytes. Returns `None` if there are none yet, and 0 at the end.
    pub(super) fn read_now(
        &mut self,
        locked: &mut Locked<'_>,
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let count = locked.take(self.stream, buffer);
        let seen = locked.seen();
        if count > 0 || buffer.is_empty() || seen.is_at_end(self.stream) {
            return Ok(Some(count));
        }
        match seen.lost() {
            Some(error) => Err(io::Error::new(ErrorKind::ConnectionAborted, error.clone())),
            None => Ok(None),
        }
    }
}

impl Write for ProcessInput {
    /// Waits until the command's side has space.
    ///
    /// # Errors
    /// [`ErrorKind::BrokenPipe`]: the command does not read any more, or has ended.
    /// [`ErrorKind::ConnectionAborted`]: the agent or the machine has ended. [`ErrorKind::TimedOut`]: the
    /// time limit of the command is over; it was killed.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(self, |input, locked| input.write_now(locked, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ProcessInput {
    fn drop(&mut self) {
        self.channel.lock().end_input();
    }
}

impl Read for ProcessOutput {
    /// Waits until there are bytes, or the end.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionAborted`]: the agent or the machine has ended. [`ErrorKind::TimedOut`]: the
    /// time limit of the command is over; it was killed.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        block_on(self, |output, locked| output.read_now(locked, buffer))
    }
}

impl Waits for ProcessInput {
    fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    fn wait_until(&mut self) -> io::Result<Option<Instant>> {
        until(self.deadline)
    }
}

impl Waits for ProcessOutput {
    fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    fn wait_until(&mut self) -> io::Result<Option<Instant>> {
        until(self.deadline)
    }
}

/// Returns the end of a command's time, if it has a limit. A wait for a stream then kills the command.
fn until(deadline: Option<Instant>) -> io::Result<Option<Instant>> {
    match deadline {
        Some(at) if Instant::now() >= at => Err(ErrorKind::TimedOut.into()),
        at => Ok(at),
    }
}

/// Feeds the command the bytes of `reader`, to its end, on a thread of its own.
pub(super) fn feed(channel: Arc<Channel>, mut reader: impl Read + Send + 'static) -> io::Result<()> {
    let mut input = ProcessInput::new(channel, None);
    ThreadKind::AgentInput
        .spawn(move || {
            // A reader that fails ends the input. A command that reads no more is not a failure.
            let _ = io::copy(&mut reader, &mut input);
        })
        .map(drop)
}
