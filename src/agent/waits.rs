//! The waits of streams for the agent, on a thread or as a task. Each step runs under the session's lock, and
//! the wait for more is the same for all.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::channel::{Channel, Locked};

/// A stream of a channel.
pub(super) trait Waits {
    fn channel(&self) -> &Arc<Channel>;

    /// Returns the time until which to wait; `None` for forever.
    ///
    /// # Errors
    /// The time limit is over.
    fn wait_until(&mut self) -> io::Result<Option<Instant>>;

    /// Ends the wait: something has arrived, or the wait was given up.
    fn end_wait(&mut self) {}
}

/// Returns the result of `step`, which is tried whenever something has arrived. A stream whose time is over
/// ends its channel.
pub(super) fn block_on<S: Waits, T>(
    stream: &mut S,
    mut step: impl FnMut(&mut S, &mut Locked<'_>) -> io::Result<Option<T>>,
) -> io::Result<T> {
    let channel = stream.channel().clone();
    let mut locked = channel.lock();
    loop {
        if let Some(result) = step(stream, &mut locked)? {
            return Ok(result);
        }
        match stream.wait_until() {
            Ok(end) => (locked, _) = locked.wait(end),
            Err(error) => {
                drop(locked);
                channel.run_out_of_time();
                return Err(error);
            }
        }
        stream.end_wait();
    }
}

/// Polls `step` once for a task, and arranges for the task to be woken when something arrives or the time is
/// over. This is the asynchronous form of [`block_on`].
#[cfg(feature = "tokio")]
pub(super) fn poll_on<S: Waits, T>(
    stream: &mut S,
    timer: &mut super::tasks::Timer,
    task: &mut std::task::Context<'_>,
    step: impl FnOnce(&mut S, &mut Locked<'_>) -> io::Result<Option<T>>,
) -> std::task::Poll<io::Result<T>> {
    use std::task::Poll;

    let channel = stream.channel().clone();
    let result = super::tasks::poll(&channel, task, |locked| step(stream, locked));
    if result.is_ready() {
        stream.end_wait();
        return result;
    }
    match stream.wait_until() {
        Ok(None) => {}
        Ok(Some(end)) => timer.wake_at(end, task),
        Err(error) => {
            channel.run_out_of_time();
            return Poll::Ready(Err(error));
        }
    }
    Poll::Pending
}
