//! Serves the entropy requests of a driver, within a rate.

use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

use crate::event_loop::watch;
use crate::memory::Buffers;
use crate::virtio::queue::{RingError, VirtQueue};
use crate::virtio::{QueueHandler, watch_doorbell};

/// The handler of the only queue.
pub(super) struct RngHandler {
    queue: VirtQueue,
    budget: Budget,
    /// Fires when the next period begins, for requests that wait for it. Without a timer the handler could
    /// not wait, so the rate is not limited.
    timer: Option<TimerFd>,
}

impl RngHandler {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self { queue, budget: Budget::new(Instant::now()), timer: TimerFd::new().ok() }
    }

    /// Serves requests until there are none, or until the bytes of this period are used up.
    fn serve(&mut self) -> Result<(), RingError> {
        self.queue.begin();
        while self.may_go_on() {
            let Some(mut chain) = self.queue.pop()? else { return self.queue.finish() };
            let written = fill(&mut chain.writable);
            self.budget.spend(written);
            self.queue.complete(chain, written);
        }
        // The doorbell stays quiet: the timer continues instead.
        self.queue.announce();
        Ok(())
    }

    fn may_go_on(&mut self) -> bool {
        let Some(timer) = &mut self.timer else { return true };
        let Some(wait) = self.budget.wait(Instant::now()) else { return true };
        timer.reset(wait, None).is_err()
    }
}

impl QueueHandler for RngHandler {
    fn start(&mut self, sources: &mut EventOps<'_>) {
        watch_doorbell(sources, &self.queue, DOORBELL);
        if let Some(timer) = &self.timer {
            // The watch is edge-triggered, so each expiry gives one event although nobody reads the timer. A
            // read could block when the timer has been started again.
            watch(sources, timer, TIMER, EventSet::IN | EventSet::EDGE_TRIGGERED);
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) -> Result<(), RingError> {
        self.serve()
    }

    fn stop(self: Box<Self>) -> Vec<VirtQueue> {
        vec![self.queue]
    }
}

/// Writes random bytes to the front of `buffers`, and returns their number.
fn fill(buffers: &mut Buffers) -> u32 {
    let mut bytes = [0_u8; PIECE];
    let mut left = buffers.len().min(MAX_BYTES.into()) as usize;
    let mut written = 0_u32;
    while left > 0 {
        let piece = bytes.get_mut(..left.min(PIECE)).unwrap_or_default();
        // SAFETY: the pointer and the length are those of a slice.
        let count = unsafe { libc::getrandom(piece.as_mut_ptr().cast(), piece.len(), 0) };
        let Ok(count @ 1..) = usize::try_from(count) else { break };
        let done = buffers.write(piece.get(..count).unwrap_or_default());
        written = written.saturating_add(done as u32);
        left = left.saturating_sub(done.max(1));
    }
    written
}

/// The bytes that the device may still hand out in the current period.
#[derive(Debug)]
struct Budget {
    since: Instant,
    left: u32,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { since: now, left: PERIOD_BYTES }
    }

    /// Returns how long the next request has to wait; `None` if it need not wait.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.since);
        if passed >= PERIOD {
            *self = Self::new(now);
        }
        if self.left > 0 {
            return None;
        }
        Some(PERIOD.saturating_sub(passed).max(Duration::from_millis(1)))
    }

    /// Charges a request. One that gets few bytes, or none, costs [`MIN_COST`], because it takes time too.
    fn spend(&mut self, bytes: u32) {
        self.left = self.left.saturating_sub(bytes.max(MIN_COST));
    }
}

/// The event data that tell the sources apart.
const DOORBELL: u32 = 0;
const TIMER: u32 = 1;

/// The largest number of bytes for one request, however long its buffer is.
const MAX_BYTES: u32 = 64 << 10;
/// The size of the pieces, on the stack, in which random bytes are made.
const PIECE: usize = 4096;
/// The bytes of one period: 16 MiB per second. A guest that seeds itself never notices the limit, and a guest
/// that asks without end costs the host a few percent of one CPU.
const PERIOD_BYTES: u32 = 1 << 20;
const PERIOD: Duration = Duration::from_millis(62);
/// The least that a request is charged, in bytes.
const MIN_COST: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_spent_within_a_period_and_full_in_the_next() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..PERIOD_BYTES / MAX_BYTES {
            assert_eq!(budget.wait(start), None);
            budget.spend(MAX_BYTES);
        }
        assert_eq!(budget.wait(start + PERIOD / 2), Some(PERIOD / 2));
        assert_eq!(budget.wait(start + PERIOD), None);
    }

    #[test]
    fn requests_that_give_nothing_use_the_budget_up() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        (0..PERIOD_BYTES / MIN_COST).for_each(|_| budget.spend(0));
        assert!(budget.wait(start).is_some());
    }
}
