//! Serves the queues of a disk, one request after the other, on the disk's own thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, Events};

use super::request::{Limits, Request, Status, Task};
use super::{Disk, FaultAction, Operation};
use crate::journal;
use crate::lock;
use crate::virtio::poll::Poll;
use crate::virtio::queue::{Chain, RingError, Span, VirtQueue};
use crate::virtio::{QueueHandler, watch_doorbell};

/// The handler of all queues of one disk.
pub(super) struct BlockHandler {
    queues: Vec<VirtQueue>,
    disk: Arc<Disk>,
    limits: Limits,
    /// While there are any, nothing else is served.
    held: Vec<Held>,
    poll: Poll,
}

/// A request that failed, and is to be tried again when the device has been paused and goes on.
pub(super) struct Held {
    pub queue: usize,
    pub chain: Chain,
    pub status: Span,
    pub task: Task,
}

impl BlockHandler {
    pub(super) fn new(queues: Vec<VirtQueue>, disk: Arc<Disk>, limits: Limits) -> Self {
        let held = std::mem::take(&mut *lock(&disk.held));
        let poll = Poll::new(disk.poll);
        Self { queues, disk, limits, held, poll }
    }

    /// Tries the held requests again. False when one has failed again.
    fn retry(&mut self) -> bool {
        for Held { queue, mut chain, status, task } in std::mem::take(&mut self.held) {
            match self.disk.perform(task, status, &mut chain) {
                Served::Done { written } => {
                    if let Some(queue) = self.queues.get_mut(queue) {
                        queue.complete(chain, written);
                        queue.announce();
                    }
                }
                Served::Held => self.held.push(Held { queue, chain, status, task }),
            }
        }
        if self.held.is_empty() {
            // Rings that came meanwhile were not heard.
            self.queues.iter().for_each(VirtQueue::ring);
        }
        self.held.is_empty()
    }

    /// Serves all queues until they are empty and stay so for a while: one that is never empty does not hold up the
    /// others.
    fn serve(&mut self) -> Result<(), RingError> {
        self.poll.begin_turn();
        loop {
            for place in 0..self.queues.len() {
                self.drain(place)?;
                if !self.held.is_empty() {
                    return Ok(());
                }
            }
            if self.poll.is_turn_over() {
                // Goes on when the loop has looked after itself.
                self.queues.first().into_iter().for_each(VirtQueue::ring);
                return Ok(());
            }
            if !self.poll.look(|| self.queues.iter_mut().any(VirtQueue::is_offered)) {
                return self.queues.iter_mut().try_for_each(VirtQueue::finish);
            }
        }
    }

    /// Serves what a queue has, up to its size, and tells the driver.
    fn drain(&mut self, place: usize) -> Result<(), RingError> {
        let Some(queue) = self.queues.get_mut(place) else { return Ok(()) };
        queue.begin();
        let mut unpublished = 0_u8;
        while let Some(mut chain) = queue.pop()? {
            let written = match Request::parse(&mut chain, &self.limits) {
                Some(Request { status, task: Ok(task) }) => match self.disk.perform(task, status, &mut chain)
                {
                    Served::Done { written } => written,
                    Served::Held => {
                        queue.announce();
                        self.held.push(Held { queue: place, chain, status, task });
                        return Ok(());
                    }
                },
                Some(Request { status, task: Err(error) }) => answer(status, error, 0, chain.writable.len()),
                // Without a place for a status there is no way to answer.
                None => 0,
            };
            queue.complete(chain, written);
            // A driver that polls, or that has been woken up, goes on while the rest is being served.
            unpublished = unpublished.wrapping_add(1);
            if unpublished.is_multiple_of(PUBLISH_EVERY) {
                queue.publish();
            }
        }
        queue.announce();
        Ok(())
    }
}

impl QueueHandler for BlockHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        for (place, queue) in (0..).zip(&self.queues) {
            watch_doorbell(sources, queue, place);
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        if !self.held.is_empty() && !self.retry() {
            return Ok(());
        }
        self.serve()
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        *lock(&self.disk.held) = self.held;
        self.queues
    }
}

/// What became of a request.
pub(super) enum Served {
    Done { written: u32 },
    Held,
}

impl Disk {
    /// Does what a request wants, and writes its status.
    pub(super) fn perform(&self, task: Task, status: Span, chain: &mut Chain) -> Served {
        let room = chain.writable.len();
        let (operation, result) = match task {
            Task::Read { offset } => {
                let result = self.backend.read(offset, chain.writable.spans());
                (Operation::Read, result.map(|()| room))
            }
            Task::Write { offset } => (Operation::Write, self.write(offset, chain).map(|()| 0)),
            Task::Flush => (Operation::Flush, self.flush().map(|()| 0)),
            Task::Id => (Operation::Read, Ok(chain.writable.write(&self.id) as u64)),
            Task::Discard { offset, len } => {
                (Operation::Write, self.backend.discard(offset, len).map(|()| 0))
            }
            Task::WriteZeroes { offset, len, unmap } => {
                (Operation::Write, self.backend.write_zeroes(offset, len, unmap).map(|()| 0))
            }
        };
        let written = match result {
            Ok(written) => answer(status, Status::Ok, written, room),
            Err(error) => match self.faults.failed(operation, &error) {
                FaultAction::Report => {
                    journal!(Guest Warn, "{}: a request failed ({operation:?}): {error}", self.name);
                    answer(status, Status::IoError, 0, room)
                }
                FaultAction::Hold => return Served::Held,
            },
        };
        Served::Done { written }
    }

    fn write(&self, offset: u64, chain: &Chain) -> io::Result<()> {
        if self.backend.is_read_only() {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.backend.write(offset, chain.readable.spans())
    }

    /// True when a flush has failed since the last reset.
    pub(super) fn has_flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    fn flush(&self) -> io::Result<()> {
        if self.has_flush_failed() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let result = self.backend.flush();
        if result.is_err() {
            self.flush_has_failed();
        }
        result
    }

    /// Makes all later flushes fail, up to the next reset.
    pub(super) fn flush_has_failed(&self) {
        self.flush_failed.store(true, Ordering::Release);
    }
}

/// Writes the status; returns what the driver may rely on: the bytes from the first writable one that were all written,
/// which ends with the status only when all of the `room` before it was.
pub(super) fn answer(status: Span, value: Status, written: u64, room: u64) -> u32 {
    status.write(0, &[value as u8]);
    let relied_on = if written == room { written.saturating_add(1) } else { written };
    u32::try_from(relied_on).unwrap_or(u32::MAX)
}

/// Requests between two looks that a driver can take at what is done.
const PUBLISH_EVERY: u8 = 4;
