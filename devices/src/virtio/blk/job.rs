//! A request that is being carried out: the rest of its work, and its answer.
//!
//! Both engines carry a request out piece by piece, and check between the pieces whether they have to stop.
//! When their queues are taken away, requests that are not done are put back, unanswered, and begin again
//! from their start.
//!
//! Every task may begin again: its effect on its range and on its buffers depends only on the request, and
//! the driver uses neither until the request is answered. Requests in flight at the same time have no order,
//! so another one with an overlapping range may have been done in between. A task with a different result in
//! a second pass would have to keep its position instead.

use std::borrow::Cow;

use super::request::{Limits, Request, Status, Task};
use crate::memory::{Buffers, Span};
use crate::virtio::queue::{Chain, VirtQueue};

/// A request that can be carried out.
#[derive(Debug)]
pub(super) struct Job {
    queue: usize,
    pub chain: Chain,
    status: Span,
    pub task: Task,
    /// The number of bytes that the driver has given space for, without the status.
    room: u64,
}

/// The result of parsing a request.
#[derive(Debug)]
pub(super) enum Taken {
    /// The request has to be carried out.
    Job(Job),
    /// The request was refused, and has its status.
    Answered(Answered),
}

/// A request that has its status.
#[derive(Debug)]
pub(super) struct Answered {
    queue: usize,
    chain: Chain,
    written: u32,
}

impl Job {
    /// Takes the request in `chain`, which comes from the queue with index `queue`.
    pub(super) fn take(queue: usize, mut chain: Chain, limits: &Limits) -> Taken {
        let Some(Request { status, task }) = Request::parse(&mut chain, limits) else {
            // Without space for a status there is no way to answer.
            return Taken::Answered(Answered { queue, chain, written: 0 });
        };
        let room = chain.writable.len();
        match task {
            Ok(task) => Taken::Job(Self { queue, chain, status, task, room }),
            Err(error) => Taken::Answered(Self { queue, chain, status, task: Task::Id, room }.answer(error)),
        }
    }

    /// Writes the status. The driver learns how many bytes it may rely on: those from the first writable byte
    /// that were all written. They include the status only if all bytes before it were written.
    pub(super) fn answer(self, value: Status) -> Answered {
        let Self { queue, chain, status, task: _, room } = self;
        status.write(0, &[value as u8]);
        let written = if value == Status::Ok { room.saturating_sub(chain.writable.len()) } else { 0 };
        let relied_on = if written == room { written.saturating_add(1) } else { written };
        Answered { queue, chain, written: u32::try_from(relied_on).unwrap_or(u32::MAX) }
    }

    /// Returns the buffers of the next piece.
    pub(super) fn spans(&self) -> Cow<'_, [Span]> {
        self.buffers().map(|buffers| buffers.first(MAX_PIECE)).unwrap_or_default()
    }

    /// Returns the length of the next piece in bytes.
    pub(super) fn piece(&self) -> u64 {
        self.buffers().map_or(0, |buffers| buffers.len().min(MAX_PIECE))
    }

    /// Returns the number of bytes that are still to be read or written.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers().map_or(0, Buffers::len)
    }

    /// Returns the buffers that the task reads or writes.
    fn buffers(&self) -> Option<&Buffers> {
        match self.task {
            Task::Read { .. } => Some(&self.chain.writable),
            Task::Write { .. } => Some(&self.chain.readable),
            Task::Flush | Task::Id | Task::Discard { .. } | Task::WriteZeroes { .. } => None,
        }
    }

    /// Notes that the next `count` bytes are done. Returns whether nothing is left.
    pub(super) fn advance(&mut self, count: u64) -> bool {
        match &mut self.task {
            Task::Read { offset } => {
                *offset = offset.saturating_add(count);
                self.chain.writable.skip(count);
                self.chain.writable.is_empty()
            }
            Task::Write { offset } => {
                *offset = offset.saturating_add(count);
                self.chain.readable.skip(count);
                self.chain.readable.is_empty()
            }
            Task::Discard { offset, len } | Task::WriteZeroes { offset, len, unmap: _ } => {
                *offset = offset.saturating_add(count);
                *len = len.saturating_sub(count);
                *len == 0
            }
            Task::Flush | Task::Id => true,
        }
    }
}

/// Puts requests that are not done back to their queues, which will return them in this order.
pub(super) fn put_back(jobs: Vec<Job>, queues: &mut [VirtQueue]) {
    for Job { queue, chain, .. } in jobs.into_iter().rev() {
        if let Some(queue) = queues.get_mut(queue) {
            queue.put_back(chain);
        }
    }
}

impl Answered {
    /// Completes the chain in its queue, and returns the queue.
    pub(super) fn complete(self, queues: &mut [VirtQueue]) -> Option<&mut VirtQueue> {
        let queue = queues.get_mut(self.queue)?;
        queue.complete(self.chain, self.written);
        Some(queue)
    }
}

/// The largest number of bytes that one call to the host transfers. Such a call cannot be interrupted, and
/// even a slow medium transfers so much within a second.
pub(super) const MAX_PIECE: u64 = 1 << 20;
/// The largest number of bytes that one call to the host clears or discards. It is larger than [`MAX_PIECE`],
/// because usually no data is transferred.
pub(super) const MAX_CLEARED: u64 = 16 << 20;
