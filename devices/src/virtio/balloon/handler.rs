//! Serves the queues of a balloon, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_manager::{EventOps, Events};

use super::PAGE_SHIFT;
use super::release::Releaser;
use crate::memory::Buffers;
use crate::memory::GuestMemory;
use crate::virtio::queue::{Chain, RingError, VirtQueue};
use crate::virtio::{QueueHandler, StopFlag, watch_doorbell};

/// The handler of all queues of one balloon.
pub(super) struct BalloonHandler {
    queues: Vec<(Work, VirtQueue)>,
    releaser: Releaser,
    released: Arc<AtomicU64>,
}

/// The purpose of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// The guest gives pages, by their numbers.
    Inflate,
    /// The guest takes pages back. It needs no answer, because they have remained its RAM.
    Deflate,
    /// The guest reports free memory, which is the buffers themselves.
    Report,
}

impl BalloonHandler {
    pub(super) fn new(mut queues: Vec<(Work, VirtQueue)>, released: Arc<AtomicU64>, stop: StopFlag) -> Self {
        for (work, queue) in &mut queues {
            if *work != Work::Report {
                queue.limit_bytes(MAX_LIST_BYTES);
            }
        }
        Self { queues, releaser: Releaser::new(stop), released }
    }
}

impl QueueHandler for BalloonHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        for (index, (_, queue)) in (0..).zip(&self.queues) {
            watch_doorbell(sources, queue, index);
        }
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        let Self { queues, releaser, released } = self;
        let Some((work, queue)) = queues.get_mut(event.data() as usize) else { return Ok(()) };
        let memory = queue.memory().clone();
        queue.begin();
        while !releaser.has_to_stop() {
            let Some(mut chain) = queue.pop()? else { return queue.finish() };
            let bytes = match work {
                Work::Inflate => inflate(&mut chain.readable, &memory, releaser),
                Work::Deflate => 0,
                Work::Report => report(&chain, &memory, releaser),
            };
            released.fetch_add(bytes, Ordering::Relaxed);
            if releaser.has_to_stop() {
                // Some pages may be left. It does no harm to give a page back twice.
                queue.put_back(chain);
            } else {
                queue.complete(chain, 0);
            }
        }
        queue.announce();
        Ok(())
    }

    fn quiesce(&mut self, quiet: bool) {
        if !quiet {
            self.releaser.go_on();
            self.queues.iter().for_each(|(_, queue)| queue.ring());
        }
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        self.queues.into_iter().map(|(_, queue)| queue).collect()
    }
}

/// Gives back the pages of a list of page numbers (virtio 1.2, section 5.5.6), with consecutive numbers as
/// one range. Returns the number of bytes.
fn inflate(list: &mut Buffers, memory: &GuestMemory, releaser: &Releaser) -> u64 {
    let mut done = 0_u64;
    let mut range: Option<(u32, u32)> = None;
    loop {
        let number = list.read_array().map(u32::from_le_bytes);
        range = match (range, number) {
            (Some((first, count)), Some(number))
                if first.checked_add(count) == Some(number) && count < MAX_PAGES =>
            {
                Some((first, count.saturating_add(1)))
            }
            (before, number) => {
                if let Some((first, count)) = before {
                    done = done.saturating_add(release(first, count, memory, releaser));
                }
                number.map(|number| (number, 1))
            }
        };
        if number.is_none() || releaser.has_to_stop() {
            return done;
        }
    }
}

/// Gives back `count` pages from page number `first`, except those that are not RAM. Returns the number of
/// bytes.
fn release(first: u32, count: u32, memory: &GuestMemory, releaser: &Releaser) -> u64 {
    let span =
        |first: u32, count: u32| memory.span(u64::from(first) << PAGE_SHIFT, count.checked_shl(PAGE_SHIFT)?);
    if let Some(span) = span(first, count) {
        return releaser.release(memory, span);
    }
    let pages = (0..count).filter_map(|page| span(first.checked_add(page)?, 1));
    pages.map(|span| releaser.release(memory, span)).fold(0, u64::saturating_add)
}

/// Gives back the memory that the guest reports: the buffers that the device may write to (virtio 1.2,
/// section 5.5.6.7). Returns the number of bytes.
fn report(chain: &Chain, memory: &GuestMemory, releaser: &Releaser) -> u64 {
    let spans = chain.writable.spans().iter();
    spans.map(|span| releaser.release(memory, *span)).fold(0, u64::saturating_add)
}

/// The longest list in bytes: 4,096 pages. Linux lists 256 at a time.
const MAX_LIST_BYTES: u64 = 16 << 10;
/// The longest range in pages: 4 MiB, so that the list is checked against the stop between ranges.
const MAX_PAGES: u32 = 1024;
