//! The ends of a command's streams: with back-pressure both ways, since neither holds more than a window.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_agent::guest_protocol::Stream;

use super::channel::{Channel, Locked};
use crate::kvm::spawn_with_signals_blocked;

/// What is written here, the command reads. Dropping it ends the command's input.
pub struct ProcessInput {
    channel: Arc<Channel>,
    deadline: Deadline,
}

/// What the command writes is read here. Reading waits for it, and a command that is read slowly waits, too.
pub struct ProcessOutput {
    channel: Arc<Channel>,
    stream: Stream,
    deadline: Deadline,
}

/// The end of a command's time, if it has one: whoever waits for a stream then kills the command.
pub(super) struct Deadline {
    at: Option<Instant>,
    /// Wakes the task that waits.
    #[cfg(feature = "tokio")]
    timer: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Deadline {
    fn new(limit: Option<(Duration, Instant)>) -> Deadline {
        Deadline {
            at: limit.map(|(_, at)| at),
            #[cfg(feature = "tokio")]
            timer: None,
        }
    }

    /// Waits until something has come on the channel.
    fn wait<'a>(&self, channel: &Channel, locked: Locked<'a>) -> io::Result<Locked<'a>> {
        let (locked, in_time) = locked.wait(self.at);
        if in_time {
            return Ok(locked);
        }
        drop(locked);
        channel.abandon();
        Err(ErrorKind::TimedOut.into())
    }

    /// The same for a task, which has looked at the channel already.
    #[cfg(feature = "tokio")]
    pub(super) fn poll(
        &mut self,
        channel: &Channel,
        task: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Error> {
        use std::task::Poll;

        let Some(at) = self.at else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        timer.as_mut().poll(task).map(|()| {
            channel.abandon();
            ErrorKind::TimedOut.into()
        })
    }
}

impl ProcessInput {
    pub(super) fn new(channel: Arc<Channel>, limit: Option<(Duration, Instant)>) -> ProcessInput {
        ProcessInput { channel, deadline: Deadline::new(limit) }
    }

    /// Sends what there is room for; none when that is nothing.
    pub(super) fn write_now(locked: &mut Locked<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
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

    #[cfg(feature = "tokio")]
    pub(super) fn parts(&mut self) -> (&Channel, &mut Deadline) {
        (&self.channel, &mut self.deadline)
    }
}

impl ProcessOutput {
    #[cfg(feature = "tokio")]
    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    pub(super) fn new(
        channel: Arc<Channel>,
        stream: Stream,
        limit: Option<(Duration, Instant)>,
    ) -> ProcessOutput {
        ProcessOutput { channel, stream, deadline: Deadline::new(limit) }
    }

    /// Takes what is there; none when there is nothing yet, and 0 at the end.
    pub(super) fn read_now(
        stream: Stream,
        locked: &mut Locked<'_>,
        buffer: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let count = locked.take(stream, buffer);
        let seen = locked.seen();
        if count > 0 || buffer.is_empty() || seen.is_at_end(stream) {
            return Ok(Some(count));
        }
        match seen.lost() {
            Some(error) => Err(io::Error::new(ErrorKind::ConnectionAborted, error.clone())),
            None => Ok(None),
        }
    }

    #[cfg(feature = "tokio")]
    pub(super) fn parts(&mut self) -> (&Channel, &mut Deadline) {
        (&self.channel, &mut self.deadline)
    }
}

impl Write for ProcessInput {
    /// Waits until the command's side has room.
    ///
    /// # Errors
    /// [`ErrorKind::BrokenPipe`]: the command does not read any more, or has ended. [`ErrorKind::ConnectionAborted`]:
    /// the agent or the machine has. [`ErrorKind::TimedOut`]: the time of the command is over; it was killed.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut locked = self.channel.lock();
        loop {
            if let Some(sent) = Self::write_now(&mut locked, bytes)? {
                return Ok(sent);
            }
            locked = self.deadline.wait(&self.channel, locked)?;
        }
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
    /// Waits until there is something, or the end.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectionAborted`]: the agent or the machine has ended. [`ErrorKind::TimedOut`]: the time of the
    /// command is over; it was killed.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut locked = self.channel.lock();
        loop {
            if let Some(count) = Self::read_now(self.stream, &mut locked, buffer)? {
                return Ok(count);
            }
            locked = self.deadline.wait(&self.channel, locked)?;
        }
    }
}

/// Gives the command what `reader` has, to its end, on a thread of its own.
pub(super) fn feed(channel: Arc<Channel>, mut reader: impl Read + Send + 'static) -> io::Result<()> {
    let mut input = ProcessInput::new(channel, None);
    spawn_with_signals_blocked("agent-stdin".into(), move || {
        // A reader that fails ends the input. A command that reads no more is no failure.
        let _ = io::copy(&mut reader, &mut input);
    })
    .map(drop)
}
