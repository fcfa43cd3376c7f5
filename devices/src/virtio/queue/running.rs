//! A queue while its device is active: takes chains from the available ring and puts them into the used ring.

mod state;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

pub(in crate::virtio) use self::state::Positions;
use super::chain::{Chain, ChainError, Walk};
use super::pool::{ChainBudget, ChainPool};
use crate::journal;
use crate::memory::{GuestMemory, Span};
use crate::virtio::irq::VirtioIrq;
use crate::virtio::poll::TURN;

/// A running virtqueue.
///
/// One drain is [`begin`](Self::begin), then [`pop`](Self::pop) and [`complete`](Self::complete) until `pop`
/// returns `None`, then [`finish`](Self::finish). A device may also complete a chain later; it then calls
/// [`finish`](Self::finish) again, which informs the driver.
#[derive(Debug)]
pub struct VirtQueue {
    rings: RingLayout,
    parts: QueueParts,
    /// The index of the next entry of the available ring, modulo 65,536 like the driver's index.
    next_available: u16,
    /// The driver's index when it was last read.
    seen_available: u16,
    /// The index of the next entry of the used ring.
    next_used: u16,
    /// The used index that the driver has been shown.
    published: u16,
    /// The used index up to which the driver has been interrupted, if it wanted that.
    announced: u16,
    share: Share,
    /// A bit per descriptor: it is the head of a chain that the device holds.
    in_flight: Box<[u64]>,
    in_flight_count: u16,
    /// Heads of chains that were put back after others had followed them: the next pop returns the last of
    /// these. There are never more than the ring has descriptors, because `pop` takes from here first.
    returned: Vec<u16>,
    pool: ChainPool,
    max_bytes: u64,
}

/// Damage to a ring, after which nothing in it can be trusted. The device then needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The driver's index has moved by more entries than the ring has.
    #[error("queue {queue}: the driver offers {offered} chains at once in a ring of {size}")]
    AvailableIndex {
        /// The number of the queue.
        queue: u16,
        /// The number of entries by which the index has moved.
        offered: u16,
        /// The number of descriptors of the queue.
        size: u16,
    },
    /// A chain starts at a descriptor that does not exist.
    #[error("queue {queue}: a chain starts at descriptor {head} in a table of {size}")]
    Head {
        /// The number of the queue.
        queue: u16,
        /// The index of the descriptor that the driver offered.
        head: u16,
        /// The number of descriptors of the queue.
        size: u16,
    },
}

/// The addresses of a queue's rings, resolved and checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingLayout {
    pub size: u16,
    pub descriptors: Span,
    pub available: Span,
    pub used: Span,
}

/// The parts that a running queue is connected to.
#[derive(Debug, Clone)]
pub(crate) struct QueueParts {
    pub index: u16,
    pub memory: GuestMemory,
    pub irq: VirtioIrq,
    pub doorbell: Arc<EventFd>,
    pub event_idx: bool,
    pub indirect: bool,
    pub chains: ChainBudget,
}

impl VirtQueue {
    pub(super) fn new(rings: RingLayout, parts: QueueParts) -> Self {
        Self {
            next_available: 0,
            seen_available: 0,
            next_used: 0,
            published: 0,
            announced: 0,
            share: Share::new(rings.size),
            in_flight: vec![0; usize::from(rings.size.div_ceil(64))].into(),
            in_flight_count: 0,
            returned: Vec::new(),
            pool: ChainPool::new(parts.chains.clone()),
            max_bytes: u64::from(u32::MAX),
            rings,
            parts,
        }
    }

    /// Returns the number of the queue in the device.
    pub fn index(&self) -> u16 {
        self.parts.index
    }

    /// Returns the number of descriptors.
    pub fn size(&self) -> u16 {
        self.rings.size
    }

    /// Returns the doorbell. It counts as rung when the queue starts.
    pub fn doorbell(&self) -> &Arc<EventFd> {
        &self.parts.doorbell
    }

    /// Returns the memory that the chains lie in.
    pub fn memory(&self) -> &GuestMemory {
        &self.parts.memory
    }

    /// Returns the number of chains that were popped and not completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight_count
    }

    /// Returns the memory that the chains of all queues of the machine take. A device that holds chains pops
    /// no others while the budget is used up.
    pub fn chain_budget(&self) -> &ChainBudget {
        self.pool.budget()
    }

    /// Drops chains with more than `most` bytes from here on: they go back to the driver with a length of 0.
    pub fn limit_bytes(&mut self, most: u64) {
        self.max_bytes = most;
    }

    /// Starts a drain. The device wants no doorbell until [`finish`](Self::finish), and can pop chains for a
    /// [turn](crate::virtio::poll::TURN), at most as many as the queue has descriptors.
    pub fn begin(&mut self) {
        self.share = Share::new(self.rings.size);
        if !self.parts.event_idx {
            self.set_used_flags(NO_NOTIFY);
        }
    }

    /// Returns the next chain; `None` when the driver has offered no more, or when this drain has taken its
    /// share.
    ///
    /// # Errors
    /// The ring is damaged.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let queue = self.index();
        while !self.share.is_used_up() {
            let Some((head, position)) = self.next_head()? else { return Ok(None) };
            self.share.chains = self.share.chains.saturating_sub(1);
            if !self.mark_in_flight(head) {
                journal!(Guest Warn, "virtio queue {queue}: descriptor {head} is offered again before it was used");
                self.put_used(head, 0);
                continue;
            }
            let mut chain = self.pool.take(&self.parts.memory);
            chain.position = position;
            match self.fill(&mut chain, head) {
                Ok(()) => {
                    self.share.weigh(chain.readable.len().saturating_add(chain.writable.len()));
                    return Ok(Some(chain));
                }
                Err(error) => {
                    self.share.weigh(BYTES_PER_LOOK);
                    journal!(Guest Warn, "virtio queue {queue}: the chain at descriptor {head} is dropped: {error}");
                    self.complete(chain, 0);
                }
            }
        }
        Ok(None)
    }

    /// Completes `chain`, with the number of bytes that the device has written to it, counted from the first
    /// writable byte. The driver sees it with the next [`publish`](Self::publish) or
    /// [`finish`](Self::finish).
    pub fn complete(&mut self, chain: Chain, written: u32) {
        let head = chain.head;
        self.clear_in_flight(head);
        self.put_used(head, written);
        self.pool.give_back(chain);
    }

    /// Takes `chain` back as if it had not been popped, and nothing had been read from or written to it. The
    /// next pop returns it, with its descriptors as they are then. Of several chains that are put back, the
    /// one that was popped last has to come first, so that their order stays.
    ///
    /// A chain that no other has followed goes back to the available ring. The queue remembers the others by
    /// their heads, since only the driver writes that ring (virtio 1.2, section 2.7.6). A queue without
    /// chains in flight is thus described by the guest's memory, its two indices and these heads.
    pub fn put_back(&mut self, chain: Chain) {
        let Chain { head, position, .. } = chain;
        // Positions repeat after 65,536 chains, so the entry has to be the same too.
        if position.wrapping_add(1) == self.next_available && self.entry(position) == head {
            self.next_available = position;
        } else {
            self.returned.push(head);
        }
        self.share.chains = self.share.chains.saturating_add(1);
        self.clear_in_flight(head);
        self.pool.give_back(chain);
    }

    /// Shows the driver all completions without an interrupt, for a driver that polls during a drain.
    pub fn publish(&mut self) {
        if self.published != self.next_used {
            self.published = self.next_used;
            if let Some(index) = self.rings.used.cell16(2) {
                index.store(self.next_used.to_le(), Ordering::Release);
            }
        }
    }

    /// Shows the driver all completions, and interrupts it if it wants that.
    pub fn announce(&mut self) {
        self.publish();
        let (old, new) = (self.announced, self.published);
        if old == new {
            return;
        }
        self.announced = new;
        // Driver and device each write an index and then read the other's. With a full barrier between the
        // two, at least one of them sees what the other has written.
        fence(Ordering::SeqCst);
        if self.interrupt_is_wanted(old, new) {
            self.parts.irq.queue(self.parts.index);
        }
    }

    /// Ends a drain as [`rest`](Self::rest) does. If chains are left, or came in between, the queue rings its
    /// own doorbell, so that they are served after the other devices' turns.
    ///
    /// # Errors
    /// The ring is damaged.
    pub fn finish(&mut self) -> Result<(), RingError> {
        if self.rest()? {
            self.ring();
        }
        Ok(())
    }

    /// Ends a drain: shows the driver the completions, and asks it to ring again when it offers more. Returns
    /// whether chains are left, or came in between: the driver rings for none of them.
    ///
    /// # Errors
    /// The ring is damaged.
    pub fn rest(&mut self) -> Result<bool, RingError> {
        self.announce();
        if self.share.chains > 0 || !self.has_available()? {
            self.want_doorbell();
            fence(Ordering::SeqCst);
        }
        self.has_available()
    }

    /// Returns whether the driver has offered a chain that was not popped. A damaged ring counts as well,
    /// since `pop` then reports the damage.
    pub fn is_offered(&mut self) -> bool {
        self.has_available().unwrap_or(true)
    }

    /// Rings the doorbell from the device's side.
    pub fn ring(&self) {
        // The only failure is a counter at its maximum, and then the doorbell is already rung.
        let _ = self.parts.doorbell.write(1);
    }

    /// Returns the head of the next chain and its position in the available ring: a chain that was put back,
    /// or one that the driver has offered.
    fn next_head(&mut self) -> Result<Option<(u16, u16)>, RingError> {
        let position = self.next_available;
        if let Some(head) = self.returned.pop() {
            // The position is not the one before the next entry, so putting this chain back again leaves the
            // ring alone.
            return Ok(Some((head, position)));
        }
        if !self.has_available()? {
            return Ok(None);
        }
        let (queue, size, head) = (self.index(), self.size(), self.entry(position));
        self.next_available = position.wrapping_add(1);
        if head >= size {
            return Err(RingError::Head { queue, head, size });
        }
        Ok(Some((head, position)))
    }

    /// Returns the head at a position of the available ring, which counts modulo 65,536.
    fn entry(&self, position: u16) -> u16 {
        let slot = slot(position, self.rings.size);
        self.load(self.rings.available, slot.saturating_mul(2).saturating_add(4))
    }

    /// Returns whether there is a chain to pop: one that was put back, or one that the driver has offered.
    fn has_available(&mut self) -> Result<bool, RingError> {
        if !self.returned.is_empty() {
            return Ok(true);
        }
        if self.seen_available == self.next_available {
            let available = self.load(self.rings.available, 2);
            fence(Ordering::Acquire);
            let (queue, size) = (self.index(), self.size());
            let offered = available.wrapping_sub(self.next_available);
            if offered > size {
                return Err(RingError::AvailableIndex { queue, offered, size });
            }
            self.seen_available = available;
        }
        Ok(self.seen_available != self.next_available)
    }

    fn fill(&self, chain: &mut Chain, head: u16) -> Result<(), ChainError> {
        let walk = Walk {
            memory: &self.parts.memory,
            table: self.rings.descriptors,
            size: self.rings.size,
            indirect: self.parts.indirect,
            max_bytes: self.max_bytes,
        };
        chain.fill(head, &walk)
    }

    fn put_used(&mut self, head: u16, written: u32) {
        let offset = slot(self.next_used, self.rings.size).saturating_mul(8).saturating_add(4);
        let used = self.rings.used;
        if let (Some(id), Some(len)) = (used.cell32(offset), used.cell32(offset.saturating_add(4))) {
            id.store(u32::from(head).to_le(), Ordering::Relaxed);
            len.store(written.to_le(), Ordering::Relaxed);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Returns whether the driver wants an interrupt for the completions from `old` up to `new` (virtio 1.2,
    /// sections 2.7.7 and 2.7.10).
    fn interrupt_is_wanted(&self, old: u16, new: u16) -> bool {
        let available = self.rings.available;
        if !self.parts.event_idx {
            return self.load(available, 0) & NO_INTERRUPT == 0;
        }
        let event = self.load(available, u32::from(self.rings.size).saturating_mul(2).saturating_add(4));
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    fn want_doorbell(&self) {
        if !self.parts.event_idx {
            self.set_used_flags(0);
            return;
        }
        let offset = u32::from(self.rings.size).saturating_mul(8).saturating_add(4);
        if let Some(event) = self.rings.used.cell16(offset) {
            event.store(self.next_available.to_le(), Ordering::Relaxed);
        }
    }

    fn set_used_flags(&self, flags: u16) {
        if let Some(cell) = self.rings.used.cell16(0) {
            cell.store(flags.to_le(), Ordering::Relaxed);
        }
    }

    fn load(&self, ring: Span, offset: u32) -> u16 {
        ring.cell16(offset).map_or(0, |cell| u16::from_le(cell.load(Ordering::Relaxed)))
    }

    /// Returns false if the chain at `head` was already in flight.
    fn mark_in_flight(&mut self, head: u16) -> bool {
        let Some(word) = self.in_flight.get_mut(usize::from(head >> 6)) else { return false };
        let bit = 1_u64 << (head & 63);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.in_flight_count = self.in_flight_count.saturating_add(1);
        true
    }

    fn clear_in_flight(&mut self, head: u16) {
        if let Some(word) = self.in_flight.get_mut(usize::from(head >> 6)) {
            *word &= !(1_u64 << (head & 63));
            self.in_flight_count = self.in_flight_count.saturating_sub(1);
        }
    }
}

/// The part of its share that one drain has not used yet.
#[derive(Debug)]
struct Share {
    chains: u16,
    since: Instant,
    /// The cost of chains in bytes since the last look at the clock.
    weight: u64,
}

impl Share {
    fn new(chains: u16) -> Self {
        Self { chains, since: Instant::now(), weight: 0 }
    }

    /// Adds the cost of a chain of so many bytes.
    fn weigh(&mut self, bytes: u64) {
        self.weight = self.weight.saturating_add(bytes).saturating_add(BYTES_PER_CHAIN);
    }

    fn is_used_up(&mut self) -> bool {
        if self.weight >= BYTES_PER_LOOK {
            self.weight = 0;
            if self.since.elapsed() > TURN {
                self.chains = 0;
            }
        }
        self.chains == 0
    }
}

/// Returns the slot of a position in a ring of `size`, which is a power of two.
fn slot(count: u16, size: u16) -> u32 {
    u32::from(count & size.wrapping_sub(1))
}

/// The cost in bytes between two looks at the clock: copying so much takes about ten microseconds.
const BYTES_PER_LOOK: u64 = 64 << 10;
/// The cost of a chain besides its bytes, so that small chains need a look at the clock only now and then.
const BYTES_PER_CHAIN: u64 = 8 << 10;
/// Flags of the used ring and of the available ring (virtio 1.2, sections 2.7.8 and 2.7.6).
const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;
