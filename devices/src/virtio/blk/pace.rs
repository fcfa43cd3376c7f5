//! How the io_uring engine adapts to the file system: how many entries one call passes to the kernel, and
//! which writes do without the ring.

use std::time::{Duration, Instant};

use super::in_flight::ENTRIES;
use super::job::MAX_PIECE;

/// The entries that one call passes to the kernel. Some file systems read and write synchronously, within
/// that call, and the handler cannot react to a stop before the call returns. After such a slow call, the
/// next one passes a single request.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The number of requests that the next call may pass.
    most: u32,
    requests: u32,
    bytes: u64,
    since: Option<Instant>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { most: 1, ..Self::default() }
    }

    pub(super) fn add(&mut self, bytes: u32) {
        self.requests = self.requests.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes.into());
    }

    /// Notes that the entries have waited while `bytes` were written.
    pub(super) fn note_delay(&mut self, bytes: u64) {
        if !self.is_empty() {
            self.bytes = self.bytes.saturating_add(bytes.saturating_mul(DELAY_PER_BYTE));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.requests >= self.most || self.bytes >= MAX_PIECE
    }

    pub(super) fn begin_next(&mut self) {
        (self.requests, self.bytes, self.since) = (0, 0, Some(Instant::now()));
    }

    pub(super) fn note_submitted(&mut self) {
        let is_slow = self.since.take().is_some_and(|since| since.elapsed() > SLOW_CALL);
        self.most = if is_slow { 1 } else { self.most.saturating_mul(2).min(ENTRIES.into()) };
    }
}

/// Decides which writes the thread carries out itself. For most file systems, the kernel passes a buffered
/// write from the ring to a thread of its own, and writes to one file wait for one another there. For a write
/// that only copies to the page cache, that takes longer than the write.
///
/// After a write that took long, because the kernel had to wait for the medium, the next ones go by the ring,
/// so that other requests do not wait for them. There are more of these each time.
#[derive(Debug)]
pub(super) struct Writes {
    /// The number of writes that still go by the ring.
    by_ring: u32,
    /// The number of writes that go by the ring after the next one that takes long.
    after_slow: u32,
    /// The bytes that were written since the last look at the clock.
    bytes: u64,
    /// The time of the turn at that look.
    seen: Duration,
}

impl Writes {
    pub(super) fn new() -> Self {
        Self { by_ring: 0, after_slow: MIN_BY_RING, bytes: 0, seen: Duration::ZERO }
    }

    /// Returns whether the thread carries out the next write itself.
    pub(super) fn are_direct(&mut self) -> bool {
        let is_direct = self.by_ring == 0;
        self.by_ring = self.by_ring.saturating_sub(1);
        is_direct
    }

    /// Notes that the thread has written some bytes.
    pub(super) fn note(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Takes the time of the turn, and judges what was written since the last call.
    pub(super) fn measure(&mut self, now: Duration) {
        let (bytes, seen) = (std::mem::take(&mut self.bytes), std::mem::replace(&mut self.seen, now));
        if bytes == 0 {
            return;
        }
        // A new turn counts from zero again: its first write has only its time in this turn.
        let time = now.checked_sub(seen).unwrap_or(now);
        if time > SLOW_WRITE.saturating_add(Duration::from_nanos(bytes)) {
            self.by_ring = self.after_slow;
            self.after_slow = self.after_slow.saturating_mul(2).min(MAX_BY_RING);
        } else {
            self.after_slow = self.after_slow.saturating_sub(1).max(MIN_BY_RING);
        }
    }
}

/// The duration of a call from which it counts as slow: longer than a call that waits for nothing takes even
/// on a busy host.
const SLOW_CALL: Duration = Duration::from_millis(20);
/// The duration of a write, besides a nanosecond for each byte, from which it counts as slow: longer than a
/// copy to the page cache takes, and shorter than a spinning medium needs.
const SLOW_WRITE: Duration = Duration::from_millis(1);
/// The numbers of writes by the ring after a slow one. With the largest, even writes that take 100 ms each
/// hold the other requests up for less than 25 us a write.
const MIN_BY_RING: u32 = 64;
const MAX_BY_RING: u32 = 4096;
/// The weight of a byte that is written, compared with a byte that waits. So entries wait for at most 128 KiB
/// of writes.
const DELAY_PER_BYTE: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a direct write of 4 KiB that takes `time`. Returns the number of writes by the ring before it.
    fn write(writes: &mut Writes, time: Duration) -> u32 {
        let by_ring = (0..).take_while(|_| !writes.are_direct()).count();
        writes.measure(Duration::from_secs(1));
        writes.note(4096);
        writes.measure(Duration::from_secs(1) + time);
        by_ring as u32
    }

    #[test]
    fn writes_after_a_slow_one_go_by_the_ring_and_quick_ones_are_forgiven() {
        let (quick, slow) = (Duration::from_micros(900), Duration::from_millis(2));
        let mut writes = Writes::new();
        let by_ring: Vec<u32> = (0..9).map(|_| write(&mut writes, slow)).collect();
        assert_eq!(by_ring, [0, 64, 128, 256, 512, 1024, 2048, 4096, 4096]);
        assert_eq!(write(&mut writes, quick), 4096);
        (0..MAX_BY_RING).for_each(|_| assert_eq!(write(&mut writes, quick), 0));
        assert_eq!((write(&mut writes, slow), write(&mut writes, slow)), (0, MIN_BY_RING));
    }

    #[test]
    fn large_write_may_take_longer_and_a_turn_without_writes_as_long_as_it_likes() {
        let mut writes = Writes::new();
        writes.measure(Duration::from_secs(5));
        writes.note(32 << 20);
        writes.measure(Duration::from_secs(5) + Duration::from_millis(30));
        assert!(writes.are_direct());
        writes.note(4096);
        // The time of a turn that has just begun.
        writes.measure(Duration::from_millis(2));
        assert!(!writes.are_direct());
    }

    #[test]
    fn batch_is_full_once_its_entries_have_waited_for_enough_bytes() {
        let mut batch = Batch { most: 256, ..Batch::default() };
        batch.note_delay(MAX_PIECE);
        assert!(!batch.is_full(), "nothing waits");
        batch.add(512);
        batch.note_delay(64 << 10);
        assert!(!batch.is_full());
        batch.note_delay(64 << 10);
        assert!(batch.is_full());
    }
}
