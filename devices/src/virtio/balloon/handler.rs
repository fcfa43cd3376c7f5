//! Serves the queues of a balloon, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_manager::{EventOps, Events};

use super::PAGE_SHIFT;
use super::release::Releaser;
use crate::memory::GuestMemory;
use crate::virtio::queue::{Buffers, Chain, RingError, VirtQueue};
use crate::virtio::{QueueHandler, watch_doorbell};

/// The handler of all queues of one balloon.
pub(super) struct BalloonHandler {
    queues: Vec<(Work, VirtQueue)>,
    releaser: Releaser,
    released: Arc<AtomicU64>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// The guest gives pages, by their numbers.
    Inflate,
    /// It takes pages back, which are its own anyway.
    Deflate,
    /// It says which memory is free: the buffers themselves.
    Report,
}

impl BalloonHandler {
    pub(super) fn new(mut queues: Vec<(Work, VirtQueue)>, released: Arc<AtomicU64>) -> Self {
        for (work, queue) in &mut queues {
            if *work != Work::Report {
                queue.limit_bytes(MOST_LIST_BYTES);
            }
        }
        Self { queues, releaser: Releaser::new(), released }
    }
}

impl QueueHandler for BalloonHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        for (place, (_, queue)) in (0..).zip(&self.queues) {
            watch_doorbell(sources, queue, place);
        }
    }

    fn process(&mut self, event: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        let Self { queues, releaser, released } = self;
        let Some((work, queue)) = queues.get_mut(event.data() as usize) else { return Ok(()) };
        let memory = queue.memory().clone();
        let mut cost = 0_u64;
        queue.begin();
        while cost < COST_AT_ONCE {
            let Some(mut chain) = queue.pop()? else { return queue.finish() };
            let done = match work {
                Work::Inflate => inflate(&mut chain.readable, &memory, releaser),
                Work::Deflate => Done::default(),
                Work::Report => report(&chain, releaser),
            };
            released.fetch_add(done.bytes, Ordering::Relaxed);
            cost = cost.saturating_add(done.ranges).saturating_add(done.bytes >> COST_SHIFT);
            queue.complete(chain, 0);
        }
        // A reset or a pause may come in between.
        queue.announce();
        queue.ring();
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        self.queues.into_iter().map(|(_, queue)| queue).collect()
    }
}

/// What a request has cost.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    ranges: u64,
    bytes: u64,
}

/// Gives back the pages of a list of numbers (virtio 1.2, 5.5.6). Numbers that follow one another are one range.
fn inflate(list: &mut Buffers, memory: &GuestMemory, releaser: &mut Releaser) -> Done {
    let mut done = Done::default();
    let mut range: Option<(u32, u32)> = None;
    loop {
        let number = list.read_array().map(u32::from_le_bytes);
        range = match (range, number) {
            (Some((first, count)), Some(number))
                if first.checked_add(count) == Some(number) && count < MOST_PAGES =>
            {
                Some((first, count.saturating_add(1)))
            }
            (before, number) => {
                if let Some((first, count)) = before {
                    done.ranges = done.ranges.saturating_add(1);
                    done.bytes = done.bytes.saturating_add(release(first, count, memory, releaser));
                }
                number.map(|number| (number, 1))
            }
        };
        if number.is_none() {
            return done;
        }
    }
}

/// Gives back `count` pages from number `first` on; those that are not RAM are left out.
fn release(first: u32, count: u32, memory: &GuestMemory, releaser: &mut Releaser) -> u64 {
    let span =
        |first: u32, count: u32| memory.span(u64::from(first) << PAGE_SHIFT, count.checked_shl(PAGE_SHIFT)?);
    if let Some(span) = span(first, count) {
        return releaser.release(span);
    }
    let pages = (0..count).filter_map(|page| span(first.checked_add(page)?, 1));
    pages.map(|span| releaser.release(span)).fold(0, u64::saturating_add)
}

/// Gives back what the guest reports: the buffers that it would let the device write to (virtio 1.2, 5.5.6.7).
fn report(chain: &Chain, releaser: &mut Releaser) -> Done {
    let spans = chain.writable.spans();
    let bytes = spans.iter().map(|span| releaser.release(*span)).fold(0, u64::saturating_add);
    Done { ranges: spans.len() as u64, bytes }
}

/// 4,096 pages: Linux lists 256.
const MOST_LIST_BYTES: u64 = 16 << 10;
/// The most pages of one range: 4 MiB.
const MOST_PAGES: u32 = 1024;
/// Ranges, and mebibytes, of one event: some milliseconds of the host's time.
const COST_AT_ONCE: u64 = 4096;
const COST_SHIFT: u32 = 20;
