//! Serves the queues of a disk by io_uring. Reads and writes run at the same time, as many as the driver
//! offers and [`InFlight`] has tags for. Flushes run one after the other, each for all flushes that were
//! requested before it began.
//!
//! If the ring does not carry out a piece as a whole (a short transfer, an error, an unsupported operation),
//! [`Disk::perform`] does it again, since it handles all of these cases. So errors are handled in one place.

use std::borrow::Cow;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use io_uring::{IoUring, opcode, squeue, types};

use super::Disk;
use super::handler::{PUBLISH_EVERY, Served, after, rest};
use super::in_flight::{ENTRIES, InFlight, Pending};
use super::job::{Job, Taken, put_back};
use super::pace::{Batch, Writes};
use super::request::{Limits, Status, Task};
use crate::event_loop::watch;
use crate::journal;
use crate::memory::Span;
use crate::virtio::poll::{Poll, TURN};
use crate::virtio::queue::{RingError, VirtQueue};
use crate::virtio::{QueueHandler, StopFlag, watch_doorbell};

/// The handler of all queues of one disk.
pub(super) struct UringHandler {
    queues: Vec<VirtQueue>,
    /// The index of the queue that is served next.
    next: usize,
    disk: Arc<Disk>,
    limits: Limits,
    /// The descriptor of the disk's file.
    file: RawFd,
    /// The ring, made on the handler's own thread: the kernel does not let a thread end that has made a ring
    /// while another thread waits in it. Without a ring, [`Disk::perform`] carries out every request.
    ring: Option<IoUring>,
    in_flight: InFlight,
    batch: Batch,
    writes: Writes,
    /// Flushes that were requested while one was in flight.
    flushes: Vec<Job>,
    /// Requests that a stop or a fault holds. They are put back when the handler stops.
    waiting: Vec<Job>,
    stop: StopFlag,
    /// Whether a queue may have chains that found no free tag.
    has_more: bool,
    /// Counts answers, by which the driver is shown them from time to time.
    unpublished: u8,
    poll: Poll,
}

/// Returns an error unless this kernel has io_uring and lets this process use it.
pub(super) fn is_allowed() -> io::Result<()> {
    IoUring::new(1).map(drop)
}

impl UringHandler {
    /// Makes a handler for `file`, the descriptor of the disk's back end.
    pub(super) fn new(
        queues: Vec<VirtQueue>,
        disk: Arc<Disk>,
        limits: Limits,
        (file, stop): (RawFd, StopFlag),
    ) -> Self {
        let poll = Poll::new(disk.poll);
        Self {
            queues,
            next: 0,
            disk,
            limits,
            file,
            ring: None,
            in_flight: InFlight::new(),
            batch: Batch::new(),
            writes: Writes::new(),
            flushes: Vec::new(),
            waiting: Vec::new(),
            stop,
            has_more: false,
            unpublished: 0,
            poll,
        }
    }

    /// Continues the requests that wait. Returns false if some still do.
    fn retry(&mut self) -> bool {
        std::mem::take(&mut self.waiting).into_iter().for_each(|job| self.perform(job));
        self.announce();
        if self.waiting.is_empty() {
            // Doorbells that rang meanwhile were ignored.
            self.queues.iter().for_each(VirtQueue::ring);
        }
        self.waiting.is_empty()
    }

    /// Returns whether no request may be begun.
    fn has_to_rest(&self) -> bool {
        !self.waiting.is_empty() || self.stop.is_raised()
    }

    /// Returns whether the turn is over. This is asked after each request, so that one look at the clock also
    /// measures the writes.
    fn is_turn_over(&mut self) -> bool {
        let time = self.poll.turn_time();
        self.writes.measure(time);
        time > TURN
    }

    /// Returns whether requests in flight have to end before others are begun.
    fn is_full(&self) -> bool {
        let is_used_up = |queue: &VirtQueue| queue.chain_budget().is_used_up();
        self.in_flight.is_full()
            || (!self.in_flight.is_empty() && self.queues.first().is_some_and(is_used_up))
    }

    /// Serves all queues in turn until they stay empty for a while, or until the turn is over.
    fn serve(&mut self) -> Result<(), RingError> {
        self.poll.begin_turn();
        loop {
            let mut has_begun = false;
            for _ in 0..self.queues.len() {
                has_begun |= self.drain(self.next)?;
                self.next = after(self.next, self.queues.len());
            }
            self.announce();
            self.has_more |= self.is_full();
            if self.is_full() || self.has_to_rest() {
                // The event of a completion continues from here.
                return Ok(());
            }
            if self.is_turn_over() {
                // Another event continues after the loop has served its commands.
                self.queues.first().into_iter().for_each(VirtQueue::ring);
                return Ok(());
            }
            let Self { poll, queues, ring, .. } = self;
            let mut is_done = || ring.as_mut().is_some_and(|ring| !ring.completion().is_empty());
            if !has_begun
                && !poll.look(|| queues.iter_mut().any(VirtQueue::is_offered) || is_done())
                && !rest(queues)?
            {
                return Ok(());
            }
        }
    }

    /// Passes the requests of a queue to the kernel, at most as many as it has descriptors, and answers those
    /// that are done. Returns whether there was any.
    fn drain(&mut self, index: usize) -> Result<bool, RingError> {
        self.queues.get_mut(index).into_iter().for_each(VirtQueue::begin);
        let mut has_begun = false;
        while !self.has_to_rest() && !self.is_full() && !self.is_turn_over() {
            let Some(chain) = self.queues.get_mut(index).map_or(Ok(None), VirtQueue::pop)? else { break };
            has_begun = true;
            match Job::take(index, chain, &self.limits) {
                Taken::Job(job) => self.begin(job),
                Taken::Answered(answered) => {
                    answered.complete(&mut self.queues).into_iter().for_each(VirtQueue::publish);
                }
            }
            if self.batch.is_full() {
                self.submit();
            }
        }
        // Requests whose blocks are in the page cache are done when this returns.
        self.submit();
        self.reap();
        Ok(has_begun)
    }

    /// Passes the rest of a request to the kernel, or carries it out at once.
    fn begin(&mut self, job: Job) {
        if job.task == Task::Flush && self.in_flight.has_flush() {
            self.flushes.push(job);
            return;
        }
        self.push(Pending { job, len: 0, piece: Vec::new(), followers: Vec::new() });
    }

    /// Passes the next piece of a request to the kernel, or carries out all of it at once.
    fn push(&mut self, mut pending: Pending) {
        if matches!(pending.job.task, Task::Write { .. }) && self.writes.are_direct() {
            return self.write(pending);
        }
        let entry = self.in_flight.has_tag().then(|| self.entry(&mut pending)).flatten();
        let Some(entry) = entry else { return self.perform_all(pending) };
        let len = pending.len;
        let Some(tag) = self.in_flight.insert(pending) else { return };
        // SAFETY: the buffers are guest RAM, and their list belongs to the pending request. It keeps both in
        // place until the kernel has returned its tag.
        let push = |ring: &mut IoUring| unsafe { ring.submission().push(&entry.user_data(tag.into())) };
        let is_pushed = self.ring.as_mut().is_some_and(|ring| push(ring).is_ok());
        if is_pushed {
            self.batch.add(len);
        } else if let Some(pending) = self.in_flight.take(tag) {
            // The ring is full, although it has as many entries as there are tags.
            self.perform_all(pending);
        }
    }

    /// Carries out a write at once.
    fn write(&mut self, pending: Pending) {
        let bytes = pending.job.bytes();
        self.perform_all(pending);
        self.writes.note(bytes);
        self.batch.note_delay(bytes);
    }

    /// Returns the entry for the next piece of a request, and notes the piece's length and buffers in
    /// `pending`. Returns `None` for an operation that the ring does not carry out.
    fn entry(&self, pending: &mut Pending) -> Option<squeue::Entry> {
        self.ring.as_ref()?;
        let file = types::Fd(self.file);
        let Pending { job, len, piece, followers: _ } = pending;
        *len = u32::try_from(job.piece()).ok()?;
        let (offset, is_write) = match job.task {
            Task::Read { offset } => (offset, false),
            Task::Write { offset } => {
                self.disk.backend.admit_write(offset, (*len).into()).ok()?;
                (offset, true)
            }
            Task::Flush if !self.disk.has_flush_failed() && !self.disk.backend.is_read_only() => {
                return Some(opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build());
            }
            Task::Flush | Task::Id | Task::Discard { .. } | Task::WriteZeroes { .. } => return None,
        };
        if *len == 0 {
            return None;
        }
        let spans: &[Span] = match job.spans() {
            Cow::Borrowed(spans) => spans,
            Cow::Owned(spans) => {
                *piece = spans;
                piece
            }
        };
        let iovecs = Span::iovecs(spans);
        let count = u32::try_from(iovecs.len()).ok()?;
        Some(if is_write {
            opcode::Writev::new(file, iovecs.as_ptr(), count).offset(offset).build()
        } else {
            opcode::Readv::new(file, iovecs.as_ptr(), count).offset(offset).build()
        })
    }

    /// Passes new entries to the kernel.
    fn submit(&mut self) {
        let Some(ring) = self.ring.as_mut().filter(|_| !self.batch.is_empty()) else { return };
        self.batch.begin_next();
        while !ring.submission().is_empty() {
            match ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory, or of space for completions. The entries go with the next
                // turn, which the doorbell begins.
                Err(_) => {
                    self.queues.first().into_iter().for_each(VirtQueue::ring);
                    // The entries that wait belong to the next batch.
                    self.batch.add(0);
                    return;
                }
            }
        }
        self.batch.note_submitted();
    }

    /// Answers requests that the kernel has finished, until the turn is over, and continues those that have
    /// more pieces.
    fn reap(&mut self) {
        // Completions that arrive meanwhile give another event.
        let mut left = self.ring.as_mut().map_or(0, |ring| ring.completion().len());
        while left > 0 && !self.is_turn_over() {
            left = left.saturating_sub(1);
            let Some(entry) = self.ring.as_mut().and_then(|ring| ring.completion().next()) else { return };
            let tag = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            if let Some(pending) = self.in_flight.take(tag) {
                self.finish(pending, entry.result());
            }
            if self.batch.is_full() {
                self.submit();
            }
        }
        self.submit();
    }

    /// Handles the completion of a piece of a request, whether or not it succeeded.
    fn finish(&mut self, mut pending: Pending, result: i32) {
        let is_flush = pending.job.task == Task::Flush;
        if u32::try_from(result) != Ok(pending.len) {
            if is_flush && !is_passing(result) {
                // The kernel reports lost writes only once: another flush would succeed.
                self.disk.fail_flushes();
            }
            self.perform_all(pending);
        } else if pending.job.advance(pending.len.into()) {
            pending.into_jobs().for_each(|job| self.answer(job, Status::Ok));
        } else if self.stop.is_raised() {
            self.waiting.extend(pending.into_jobs());
        } else {
            self.push(pending);
        }
        if is_flush {
            self.flush_next();
        }
    }

    /// Begins one flush for all flushes that were requested while the last one was in flight.
    fn flush_next(&mut self) {
        let mut followers = std::mem::take(&mut self.flushes);
        if self.stop.is_raised() {
            self.waiting.append(&mut followers);
        }
        if let Some(job) = followers.pop() {
            self.push(Pending { job, len: 0, piece: Vec::new(), followers });
        }
    }

    /// Carries out requests without the ring.
    fn perform_all(&mut self, pending: Pending) {
        pending.into_jobs().for_each(|job| self.perform(job));
    }

    fn perform(&mut self, mut job: Job) {
        match self.disk.perform(&mut job, &self.stop) {
            Served::Done(status) => self.answer(job, status),
            Served::Waits => self.waiting.push(job),
        }
    }

    fn answer(&mut self, job: Job, status: Status) {
        let queue = job.answer(status).complete(&mut self.queues);
        self.unpublished = self.unpublished.wrapping_add(1);
        if self.unpublished.is_multiple_of(PUBLISH_EVERY) {
            queue.into_iter().for_each(VirtQueue::publish);
        }
    }

    fn announce(&mut self) {
        self.queues.iter_mut().for_each(VirtQueue::announce);
    }

    fn on_completions(&mut self) {
        self.poll.extend_turn();
        self.reap();
        self.announce();
        if self.has_more && !self.is_full() && !self.has_to_rest() {
            self.has_more = false;
            self.queues.iter().for_each(VirtQueue::ring);
        }
    }

    /// Asks the kernel to cancel requests that it has not started. They wait, as do those that it never got.
    fn cancel(&mut self) {
        self.submit();
        self.waiting.append(&mut self.flushes);
        let Some(ring) = &mut self.ring else { return };
        for tag in self.in_flight.tags() {
            let entry = opcode::AsyncCancel::new(tag.into()).build().user_data(CANCELLATION);
            // SAFETY: the entry refers to no memory. Without space for it, the request runs to its end.
            let _ = unsafe { ring.submission().push(&entry) };
            self.batch.add(0);
        }
        self.submit();
    }
}

impl QueueHandler for UringHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        for (index, queue) in (0..).zip(&self.queues) {
            watch_doorbell(sources, queue, index);
        }
        match IoUring::new(ENTRIES.into()) {
            Ok(ring) => {
                // A kernel before 5.15 does not know the limit, and uses as many as it likes.
                let _ = ring.submitter().register_iowq_max_workers(&mut [MAX_WORKERS, MAX_WORKERS]);
                watch(sources, &ring, COMPLETIONS, EventSet::IN);
                self.ring = Some(ring);
            }
            Err(error) => {
                journal!(Guest Warn,
                    "{}: io_uring is no longer available, so requests run one after the other: {error}",
                    self.disk.name
                );
            }
        }
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        if event.data() == COMPLETIONS {
            self.on_completions();
            return Ok(());
        }
        if self.stop.is_raised() || (!self.waiting.is_empty() && !self.retry()) {
            return Ok(());
        }
        self.serve()
    }

    fn quiesce(&mut self, quiet: bool) {
        if quiet {
            self.stop.raise();
            self.cancel();
        } else {
            self.stop.lower();
            self.queues.iter().for_each(VirtQueue::ring);
        }
    }

    fn is_drained(&self) -> bool {
        self.in_flight.is_empty()
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        let Self { mut queues, waiting, .. } = *self;
        put_back(waiting, &mut queues);
        queues
    }
}

/// Returns whether a negative result says nothing about the disk, but only that the ring did not carry out
/// the operation.
fn is_passing(result: i32) -> bool {
    let errno = result.wrapping_neg();
    matches!(
        errno,
        libc::EINTR | libc::EAGAIN | libc::ECANCELED | libc::ENOMEM | libc::EINVAL | libc::EOPNOTSUPP
    )
}

/// The event data of the ring. Smaller numbers are indexes of queues.
const COMPLETIONS: u32 = u32::MAX;
/// The largest number of kernel threads for requests that the kernel cannot carry out otherwise. These
/// requests cannot be cancelled, and a host that serves them one after the other has to finish them before a
/// stop of the disk times out.
const MAX_WORKERS: u32 = 16;
/// The tag of the completion of a cancellation. No request has it.
const CANCELLATION: u64 = u64::MAX;
