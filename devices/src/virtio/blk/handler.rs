//! Serves the queues of a disk, one request after the other, on the disk's own thread.

use std::hint;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, Events};

use super::job::{Job, MAX_CLEARED, Taken, put_back};
use super::request::{Limits, Status, Task};
use super::{Disk, FaultAction, Operation};
use crate::journal;
use crate::memory::Span;
use crate::virtio::poll::Poll;
use crate::virtio::queue::{RingError, VirtQueue};
use crate::virtio::{QueueHandler, StopFlag, watch_doorbell};

/// The handler of all queues of one disk.
pub(super) struct BlockHandler {
    queues: Vec<VirtQueue>,
    /// The index of the queue that is served next.
    next: usize,
    disk: Arc<Disk>,
    limits: Limits,
    /// Requests that a stop or a fault holds. While there are any, nothing else is served.
    waiting: Vec<Job>,
    stop: StopFlag,
    poll: Poll,
}

impl BlockHandler {
    pub(super) fn new(queues: Vec<VirtQueue>, disk: Arc<Disk>, limits: Limits, stop: StopFlag) -> Self {
        let poll = Poll::new(disk.poll);
        Self { queues, next: 0, disk, limits, waiting: Vec::new(), stop, poll }
    }

    /// Continues the requests that wait. Returns false if some still do.
    fn retry(&mut self) -> bool {
        for job in std::mem::take(&mut self.waiting) {
            self.perform(job);
            self.queues.iter_mut().for_each(VirtQueue::announce);
        }
        if self.waiting.is_empty() {
            // Doorbells that rang meanwhile were ignored.
            self.queues.iter().for_each(VirtQueue::ring);
        }
        self.waiting.is_empty()
    }

    fn perform(&mut self, mut job: Job) {
        match self.disk.perform(&mut job, &self.stop) {
            Served::Done(status) => {
                job.answer(status).complete(&mut self.queues);
            }
            Served::Waits => self.waiting.push(job),
        }
    }

    /// Returns whether no request may be begun.
    fn has_to_rest(&self) -> bool {
        !self.waiting.is_empty() || self.stop.is_raised()
    }

    /// Serves all queues in turn until they stay empty for a while, or until the turn is over. So a queue
    /// that is never empty does not hold up the others.
    fn serve(&mut self) -> Result<(), RingError> {
        self.poll.begin_turn();
        loop {
            for _ in 0..self.queues.len() {
                self.drain(self.next)?;
                self.next = after(self.next, self.queues.len());
                if self.has_to_rest() {
                    return Ok(());
                }
                if self.poll.is_turn_over() {
                    // Another event continues after the loop has served its commands.
                    self.queues.first().into_iter().for_each(VirtQueue::ring);
                    return Ok(());
                }
            }
            let is_offered = self.poll.look(|| self.queues.iter_mut().any(VirtQueue::is_offered));
            if !is_offered && !rest(&mut self.queues)? {
                return Ok(());
            }
        }
    }

    /// Serves the requests of a queue, at most as many as it has descriptors, and interrupts the driver.
    fn drain(&mut self, index: usize) -> Result<(), RingError> {
        self.queues.get_mut(index).into_iter().for_each(VirtQueue::begin);
        let mut unpublished = 0_u8;
        while !self.has_to_rest() {
            let Some(chain) = self.queues.get_mut(index).map_or(Ok(None), VirtQueue::pop)? else { break };
            match Job::take(index, chain, &self.limits) {
                Taken::Job(job) => self.perform(job),
                Taken::Answered(answered) => {
                    answered.complete(&mut self.queues);
                }
            }
            // A driver that polls, or that is awake, goes on while the rest is being served.
            unpublished = unpublished.wrapping_add(1);
            if unpublished.is_multiple_of(PUBLISH_EVERY) {
                self.queues.get_mut(index).into_iter().for_each(VirtQueue::publish);
            }
            if self.poll.is_turn_over() {
                break;
            }
        }
        self.queues.get_mut(index).into_iter().for_each(VirtQueue::announce);
        Ok(())
    }
}

impl QueueHandler for BlockHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        for (index, queue) in (0..).zip(&self.queues) {
            watch_doorbell(sources, queue, index);
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        if self.stop.is_raised() || (!self.waiting.is_empty() && !self.retry()) {
            return Ok(());
        }
        self.serve()
    }

    fn quiesce(&mut self, quiet: bool) {
        if !quiet {
            self.stop.lower();
            self.queues.iter().for_each(VirtQueue::ring);
        }
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        let Self { mut queues, waiting, .. } = *self;
        put_back(waiting, &mut queues);
        queues
    }
}

/// The result of carrying out a request.
pub(super) enum Served {
    /// The request can be answered.
    Done(Status),
    /// A stop or a fault holds the request. It begins again after the pause, or continues if the stop is
    /// given up.
    Waits,
}

impl Disk {
    /// Carries out the rest of a request, until the disk has to stop.
    pub(super) fn perform(&self, job: &mut Job, stop: &StopFlag) -> Served {
        loop {
            if stop.is_raised() {
                return Served::Waits;
            }
            match self.step(job) {
                Ok(true) => return Served::Done(Status::Ok),
                Ok(false) => {}
                Err((operation, error)) => {
                    return match self.faults.failed(operation, &error) {
                        FaultAction::Report => {
                            journal!(Guest Warn, "{}: a request failed ({operation}): {error}", self.name);
                            Served::Done(Status::IoError)
                        }
                        FaultAction::Hold => Served::Waits,
                    };
                }
            }
        }
    }

    /// Carries out the next piece of a request. Returns whether it was the last.
    fn step(&self, job: &mut Job) -> Result<bool, (Operation, io::Error)> {
        let len = job.piece();
        let (operation, result) = match job.task {
            Task::Read { offset } => (Operation::Read, self.backend.read(offset, &job.spans()).map(|()| len)),
            Task::Write { offset } => (Operation::Write, self.write(offset, &job.spans()).map(|()| len)),
            Task::Flush => (Operation::Flush, self.flush().map(|()| 0)),
            Task::Id => (Operation::Read, Ok(job.chain.writable.write(&self.id) as u64)),
            Task::Discard { offset, len } => {
                let len = len.min(MAX_CLEARED);
                (Operation::Write, self.backend.discard(offset, len).map(|()| len))
            }
            Task::WriteZeroes { offset, len, unmap } => {
                (Operation::Write, self.backend.write_zeroes(offset, len.min(MAX_CLEARED), unmap))
            }
        };
        result.map(|done| job.advance(done)).map_err(|error| (operation, error))
    }

    fn write(&self, offset: u64, spans: &[Span]) -> io::Result<()> {
        if self.backend.is_read_only() {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.backend.write(offset, spans)
    }

    /// Returns whether a flush has failed since the last reset.
    pub(super) fn has_flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    fn flush(&self) -> io::Result<()> {
        if self.has_flush_failed() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let result = self.backend.flush();
        if result.is_err() {
            self.fail_flushes();
        }
        result
    }

    /// Makes all later flushes fail, until the next reset.
    pub(super) fn fail_flushes(&self) {
        self.flush_failed.store(true, Ordering::Release);
    }
}

/// Asks the driver to ring again, and takes a last look. Returns whether the driver has offered more. A
/// thread that goes on with that saves a sleep, which costs far more than the look, and the system calls by
/// which it would wake itself.
pub(super) fn rest(queues: &mut [VirtQueue]) -> Result<bool, RingError> {
    let is_offered =
        queues.iter_mut().try_fold(false, |is_offered, queue| Ok(queue.rest()? || is_offered))?;
    let mut is_offered_now = || {
        hint::spin_loop();
        queues.iter_mut().any(VirtQueue::is_offered)
    };
    Ok(is_offered || (0..LAST_LOOKS).any(|_| is_offered_now()))
}

/// Returns the index after `index`, in a cycle of `count`.
pub(super) fn after(index: usize, count: usize) -> usize {
    let next = index.saturating_add(1);
    if next < count { next } else { 0 }
}

/// The looks at each queue before the thread sleeps. They take about half a microsecond: less than the CPU
/// needs to put the thread to sleep and to wake it, and enough for a driver that polls.
const LAST_LOOKS: u32 = 16;
/// Requests after which the driver sees what is done. Each publication costs it a cache miss, so not after
/// every request.
pub(super) const PUBLISH_EVERY: u8 = 4;
