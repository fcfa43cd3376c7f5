//! The waits of tasks for the agent. They are woken when something has arrived on a channel, or when their
//! time is over.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::{Sleep, sleep_until};

use super::channel::{Channel, Locked};
use super::error::AgentError;
use super::patience::Patience;

/// Wakes a task.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Makes the task wake at `end`, or at once if that has passed.
    pub(super) fn wake_at(&mut self, end: Instant, task: &mut Context<'_>) {
        let end = end.into();
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        if timer.as_mut().poll(task).is_ready() {
            task.waker().wake_by_ref();
        }
    }
}

/// Returns the result of `step`, which is tried whenever something has arrived on the channel.
pub(super) async fn come<T, E>(
    channel: &Channel,
    mut step: impl FnMut(&mut Locked<'_>) -> Result<Option<T>, E>,
) -> Result<T, E> {
    poll_fn(|task| poll(channel, task, &mut step)).await
}

/// Returns the result of `step`, within the limit of a call's patience, which each step may change.
pub(super) async fn answer<T, E: From<AgentError>>(
    channel: &Channel,
    mut step: impl FnMut(&mut Locked<'_>, &mut Patience) -> Result<Option<T>, E>,
) -> Result<T, E> {
    let (mut patience, mut timer) = (channel.patience(), Timer::default());
    poll_fn(|task| {
        let result = poll(channel, task, |locked| step(locked, &mut patience));
        if result.is_ready() {
            return result;
        }
        match patience.wait() {
            Ok(end) => timer.wake_at(end, task),
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        Poll::Pending
    })
    .await
}

/// Tries once. The task is woken when something arrives.
pub(super) fn poll<T, E>(
    channel: &Channel,
    task: &mut Context<'_>,
    step: impl FnOnce(&mut Locked<'_>) -> Result<Option<T>, E>,
) -> Poll<Result<T, E>> {
    let mut locked = channel.lock();
    let result = step(&mut locked).transpose();
    if result.is_none() {
        locked.wake_next(task.waker());
    }
    result.map_or(Poll::Pending, Poll::Ready)
}
