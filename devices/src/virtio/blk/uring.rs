//! Serves the queues of a disk by io_uring: reads, writes and flushes run at the same time, as many as the driver offers.
//!
//! What the ring does not carry out as a whole (a short transfer, an error, an operation that it lacks) is done again by
//! the way of [`Disk::perform`], which knows about all of that. So there is one place for errors.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use io_uring::{IoUring, opcode, squeue, types};

use super::Disk;
use super::handler::{Held, Served, answer};
use super::request::{Limits, Request, Status, Task};
use crate::event_loop::watch;
use crate::journal;
use crate::lock;
use crate::virtio::poll::Poll;
use crate::virtio::queue::{Chain, RingError, Span, VirtQueue};
use crate::virtio::{QueueHandler, watch_doorbell};

/// The handler of all queues of one disk.
pub(super) struct UringHandler {
    queues: Vec<VirtQueue>,
    disk: Arc<Disk>,
    limits: Limits,
    /// The disk's file.
    file: RawFd,
    /// Made on the handler's own thread: the kernel does not let a thread end that has made a ring while another hangs in
    /// it. Without one, every request is carried out by the way of [`Disk::perform`].
    ring: Option<IoUring>,
    in_work: InWork,
    /// Failed requests that are to be tried again when the device has been paused and goes on.
    held: Vec<Held>,
    is_quiet: bool,
    /// A queue has chains that found no place in the ring.
    is_full: bool,
    poll: Poll,
}

/// Requests that the kernel has, by the number that it gives back.
struct InWork {
    slots: Vec<Option<Pending>>,
    free: Vec<u16>,
}

/// A request that the kernel reads or writes the buffers of.
struct Pending {
    queue: usize,
    chain: Chain,
    status: Span,
    task: Task,
    /// Bytes that it transfers.
    len: u32,
}

/// True when this kernel has io_uring and lets this process use it.
pub(super) fn is_allowed() -> io::Result<()> {
    IoUring::new(1).map(drop)
}

impl UringHandler {
    /// A handler for `file`, the descriptor of the disk's back end.
    pub(super) fn new(queues: Vec<VirtQueue>, disk: Arc<Disk>, limits: Limits, file: RawFd) -> Self {
        let held = std::mem::take(&mut *lock(&disk.held));
        let in_work =
            InWork { slots: (0..ENTRIES).map(|_| None).collect(), free: (0..ENTRIES).rev().collect() };
        let poll = Poll::new(disk.poll);
        Self { queues, disk, limits, file, ring: None, in_work, held, is_quiet: false, is_full: false, poll }
    }

    /// Tries the held requests again. False when one has failed again.
    fn retry(&mut self) -> bool {
        for Held { queue, mut chain, status, task } in std::mem::take(&mut self.held) {
            match self.disk.perform(task, status, &mut chain) {
                Served::Done { written } => self.complete(queue, chain, written),
                Served::Held => self.held.push(Held { queue, chain, status, task }),
            }
        }
        self.announce();
        if self.held.is_empty() {
            // Rings that came meanwhile were not heard.
            self.queues.iter().for_each(VirtQueue::ring);
        }
        self.held.is_empty()
    }

    /// Serves all queues until they are empty and stay so for a while.
    fn serve(&mut self) -> Result<(), RingError> {
        if self.is_quiet {
            return Ok(());
        }
        self.poll.begin_turn();
        loop {
            for place in 0..self.queues.len() {
                self.drain(place)?;
            }
            self.announce();
            self.is_full |= self.in_work.is_full();
            if self.in_work.is_full() || !self.held.is_empty() {
                // A completion goes on from here.
                return Ok(());
            }
            if self.poll.is_turn_over() {
                // Goes on when the loop has looked after itself.
                self.queues.first().into_iter().for_each(VirtQueue::ring);
                return Ok(());
            }
            let Self { poll, queues, ring, .. } = self;
            let mut is_done = || ring.as_mut().is_some_and(|ring| !ring.completion().is_empty());
            if !poll.look(|| queues.iter_mut().any(VirtQueue::is_offered) || is_done()) {
                return queues.iter_mut().try_for_each(VirtQueue::finish);
            }
        }
    }

    /// Hands what a queue has to the kernel, up to its size, and answers what is done.
    fn drain(&mut self, place: usize) -> Result<(), RingError> {
        if let Some(queue) = self.queues.get_mut(place) {
            queue.begin();
        }
        loop {
            let mut popped = false;
            while self.held.is_empty() && !self.in_work.is_full() {
                let Some(queue) = self.queues.get_mut(place) else { return Ok(()) };
                let Some(chain) = queue.pop()? else { break };
                popped = true;
                self.begin(place, chain);
            }
            // What the page cache has is done when this returns.
            self.submit();
            self.reap();
            if !popped || !self.held.is_empty() {
                return Ok(());
            }
        }
    }

    /// Gives a request to the kernel, or answers it at once.
    fn begin(&mut self, queue: usize, mut chain: Chain) {
        let Some(Request { status, task }) = Request::parse(&mut chain, &self.limits) else {
            // Without a place for a status there is no way to answer.
            return self.complete(queue, chain, 0);
        };
        let task = match task {
            Ok(task) => task,
            Err(error) => {
                let written = answer(status, error, 0, chain.writable.len());
                return self.complete(queue, chain, written);
            }
        };
        let ring_entry = self.ring.is_some().then(|| self.entry(task, &chain)).flatten();
        match ring_entry {
            Some((entry, len)) => {
                let number = self.in_work.insert(Pending { queue, chain, status, task, len });
                let Some(number) = number else { return };
                // SAFETY: the buffers are guest RAM, and their list belongs to the chain. The pending request keeps
                // both where they are until the kernel has given its number back.
                let push =
                    |ring: &mut IoUring| unsafe { ring.submission().push(&entry.user_data(number.into())) };
                let is_pushed = self.ring.as_mut().is_some_and(|ring| push(ring).is_ok());
                if !is_pushed && let Some(pending) = self.in_work.take(number) {
                    // No room in the ring, which has as many places as there are numbers.
                    self.perform(pending);
                }
            }
            None => self.perform(Pending { queue, chain, status, task, len: 0 }),
        }
    }

    /// What the ring is to do for a task, and the bytes that it transfers; `None` for what it does not do.
    fn entry(&self, task: Task, chain: &Chain) -> Option<(squeue::Entry, u32)> {
        let file = types::Fd(self.file);
        let (offset, spans, len) = match task {
            Task::Read { offset } => (offset, chain.writable.spans(), chain.writable.len()),
            Task::Write { offset } => (offset, chain.readable.spans(), chain.readable.len()),
            Task::Flush if !self.disk.has_flush_failed() && !self.disk.backend.is_read_only() => {
                return Some((opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(), 0));
            }
            Task::Flush | Task::Id | Task::Discard { .. } | Task::WriteZeroes { .. } => return None,
        };
        let len = u32::try_from(len).ok().filter(|len| *len > 0)?;
        let iovecs = Span::iovecs(spans);
        let count = u32::try_from(iovecs.len()).ok()?;
        let entry = if matches!(task, Task::Write { .. }) {
            self.disk.backend.admit_write(offset, len.into()).ok()?;
            opcode::Writev::new(file, iovecs.as_ptr(), count).offset(offset).build()
        } else {
            opcode::Readv::new(file, iovecs.as_ptr(), count).offset(offset).build()
        };
        Some((entry, len))
    }

    /// Hands new requests to the kernel.
    fn submit(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        while !ring.submission().is_empty() {
            match ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Short of memory, or of room for completions: they go with the next turn, which is asked for here.
                Err(_) => {
                    self.queues.first().into_iter().for_each(VirtQueue::ring);
                    return;
                }
            }
        }
    }

    /// Answers what the kernel has finished.
    fn reap(&mut self) {
        loop {
            let entry = self.ring.as_mut().and_then(|ring| ring.completion().next());
            let Some(entry) = entry else { return };
            let number = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            if let Some(pending) = self.in_work.take(number) {
                self.finish(pending, entry.result());
            }
        }
    }

    fn finish(&mut self, pending: Pending, result: i32) {
        if u32::try_from(result) != Ok(pending.len) {
            if pending.task == Task::Flush && !is_passing(result) {
                // The kernel tells of lost writes once: to ask again would make it forget them.
                self.disk.flush_has_failed();
            }
            return self.perform(pending);
        }
        let room = pending.chain.writable.len();
        let read = if matches!(pending.task, Task::Read { .. }) { room } else { 0 };
        let written = answer(pending.status, Status::Ok, read, room);
        self.complete(pending.queue, pending.chain, written);
    }

    /// Carries a request out without the ring.
    fn perform(&mut self, pending: Pending) {
        let Pending { queue, mut chain, status, task, len: _ } = pending;
        match self.disk.perform(task, status, &mut chain) {
            Served::Done { written } => self.complete(queue, chain, written),
            Served::Held => self.held.push(Held { queue, chain, status, task }),
        }
    }

    fn complete(&mut self, place: usize, chain: Chain, written: u32) {
        if let Some(queue) = self.queues.get_mut(place) {
            queue.complete(chain, written);
            queue.publish();
        }
    }

    fn announce(&mut self) {
        self.queues.iter_mut().for_each(VirtQueue::announce);
    }

    fn completions_are_there(&mut self) {
        self.reap();
        self.submit();
        self.announce();
        if self.is_full && !self.in_work.is_full() && self.held.is_empty() {
            self.is_full = false;
            self.queues.iter().for_each(VirtQueue::ring);
        }
    }
}

impl QueueHandler for UringHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        for (place, queue) in (0..).zip(&self.queues) {
            watch_doorbell(sources, queue, place);
        }
        match IoUring::new(ENTRIES.into()) {
            Ok(ring) => {
                watch(sources, &ring, COMPLETIONS, EventSet::IN);
                self.ring = Some(ring);
            }
            Err(error) => {
                journal!(Guest Warn,
                    "{}: io_uring is not to be had now, so it does without: {error}",
                    self.disk.name
                );
            }
        }
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        if event.data() == COMPLETIONS {
            self.completions_are_there();
            return Ok(());
        }
        if !self.held.is_empty() && (self.is_quiet || !self.retry()) {
            return Ok(());
        }
        self.serve()
    }

    fn quiesce(&mut self, quiet: bool) {
        self.is_quiet = quiet;
        self.submit();
        if !quiet {
            self.queues.iter().for_each(VirtQueue::ring);
        }
    }

    fn is_drained(&self) -> bool {
        self.in_work.is_empty()
    }

    fn stop(mut self: Box<Self>) -> Vec<VirtQueue> {
        *lock(&self.disk.held) = std::mem::take(&mut self.held);
        std::mem::take(&mut self.queues)
    }
}

impl Drop for UringHandler {
    fn drop(&mut self) {
        // Requests that the kernel still has: their buffers stay where they are, and guest RAM with them.
        std::mem::take(&mut self.in_work.slots).into_iter().flatten().for_each(std::mem::forget);
    }
}

impl InWork {
    fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn insert(&mut self, pending: Pending) -> Option<u16> {
        let number = self.free.pop()?;
        *self.slots.get_mut(usize::from(number))? = Some(pending);
        Some(number)
    }

    fn take(&mut self, number: u16) -> Option<Pending> {
        let pending = self.slots.get_mut(usize::from(number))?.take()?;
        self.free.push(number);
        Some(pending)
    }
}

/// True for a negative result that says nothing about the disk: the ring did not, or could not, do it.
fn is_passing(result: i32) -> bool {
    let errno = result.wrapping_neg();
    matches!(
        errno,
        libc::EINTR | libc::EAGAIN | libc::ECANCELED | libc::ENOMEM | libc::EINVAL | libc::EOPNOTSUPP
    )
}

/// What an event is about: the ring, or, below, a queue.
const COMPLETIONS: u32 = u32::MAX;
/// Requests that the kernel has at a time: as many as one queue holds.
const ENTRIES: u16 = 256;
