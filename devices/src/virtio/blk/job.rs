//! A request on its way: what is left of it, and how it is answered. Both engines carry it out piece by
//! piece, so that they can look for the wish to stop in between. When their queues are taken away, requests
//! that are not done are put back, unanswered, and begin again from their start.
//!
//! Every task may begin again: what it does to its range and to its buffers depends on the request alone, and
//! the driver uses neither until the request is answered. Requests in flight at the same time have no order,
//! so that one whose range overlaps may have been done in between. A task for which a second pass differs from
//! one pass would have to keep its position instead.

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
    /// Bytes that the driver has given room for, without the status.
    room: u64,
}

/// What the first look at a request makes of it.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is to be carried out.
    Job(Job),
    /// It was refused.
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
    /// Takes the request in `chain` of queue `queue`.
    pub(super) fn take(queue: usize, mut chain: Chain, limits: &Limits) -> Taken {
        let Some(Request { status, task }) = Request::parse(&mut chain, limits) else {
            // Without a place for a status there is no way to answer.
            return Taken::Answered(Answered { queue, chain, written: 0 });
        };
        let room = chain.writable.len();
        match task {
            Ok(task) => Taken::Job(Self { queue, chain, status, task, room }),
            Err(error) => Taken::Answered(Self { queue, chain, status, task: Task::Id, room }.answer(error)),
        }
    }

    /// Writes the status. The driver is told of the bytes that it may rely on: those from the first writable
    /// one that were all written, which ends with the status only when all of the room before it was.
    pub(super) fn answer(self, value: Status) -> Answered {
        let Self { queue, chain, status, task: _, room } = self;
        status.write(0, &[value as u8]);
        let written = if value == Status::Ok { room.saturating_sub(chain.writable.len()) } else { 0 };
        let relied_on = if written == room { written.saturating_add(1) } else { written };
        Answered { queue, chain, written: u32::try_from(relied_on).unwrap_or(u32::MAX) }
    }

    /// The buffers of the next piece.
    pub(super) fn spans(&self) -> Cow<'_, [Span]> {
        self.buffers().map(|buffers| buffers.first(MAX_PIECE)).unwrap_or_default()
    }

    /// Bytes of the next piece.
    pub(super) fn piece(&self) -> u64 {
        self.buffers().map_or(0, |buffers| buffers.len().min(MAX_PIECE))
    }

    /// What the task reads or writes.
    fn buffers(&self) -> Option<&Buffers> {
        match self.task {
            Task::Read { .. } => Some(&self.chain.writable),
            Task::Write { .. } => Some(&self.chain.readable),
            Task::Flush | Task::Id | Task::Discard { .. } | Task::WriteZeroes { .. } => None,
        }
    }

    /// The next `count` bytes are done; true when that is all.
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

/// Puts requests that are not done back to their queues, which give them again in this order.
pub(super) fn put_back(jobs: Vec<Job>, queues: &mut [VirtQueue]) {
    for Job { queue, chain, .. } in jobs.into_iter().rev() {
        if let Some(queue) = queues.get_mut(queue) {
            queue.put_back(chain);
        }
    }
}

impl Answered {
    /// Hands the chain back to its queue, and returns that.
    pub(super) fn complete(self, queues: &mut [VirtQueue]) -> Option<&mut VirtQueue> {
        let queue = queues.get_mut(self.queue)?;
        queue.complete(self.chain, self.written);
        Some(queue)
    }
}

/// The most bytes that one call of the host transfers: such a call cannot be interrupted, and a slow medium
/// does as much within a second.
pub(super) const MAX_PIECE: u64 = 1 << 20;
/// The most bytes that one call of the host clears or discards, which takes it no transfer.
pub(super) const MAX_CLEARED: u64 = 16 << 20;
