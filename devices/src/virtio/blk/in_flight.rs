//! The requests that the kernel reads or writes the buffers of, by the number that it gives back with each.

use super::job::Job;
use super::request::Task;
use crate::memory::Span;

/// The requests in flight, and the room for more.
pub(super) struct InFlight {
    slots: Vec<Option<Pending>>,
    free: Vec<u16>,
    /// Of all pieces.
    bytes: u64,
    has_flush: bool,
}

/// A request of which a piece is in flight.
pub(super) struct Pending {
    pub job: Job,
    /// Bytes of the piece.
    pub len: u32,
    /// Its buffers, for a piece that is not all of the request.
    pub piece: Vec<Span>,
    /// Flushes that this one is for, too.
    pub followers: Vec<Job>,
}

impl Pending {
    /// The requests that end with this one.
    pub(super) fn into_jobs(self) -> impl Iterator<Item = Job> {
        std::iter::once(self.job).chain(self.followers)
    }
}

impl InFlight {
    pub(super) fn new() -> Self {
        let slots = (0..ENTRIES).map(|_| None).collect();
        Self { slots, free: (0..ENTRIES).rev().collect(), bytes: 0, has_flush: false }
    }

    pub(super) fn is_full(&self) -> bool {
        !self.has_number() || self.bytes >= MAX_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn has_flush(&self) -> bool {
        self.has_flush
    }

    /// The numbers of all.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.slots).filter_map(|(number, slot)| slot.as_ref().map(|_| number))
    }

    /// True while there is a number for another request.
    pub(super) fn has_number(&self) -> bool {
        !self.free.is_empty()
    }

    /// Gives a request its number, while [there is one](Self::has_number).
    pub(super) fn insert(&mut self, pending: Pending) -> Option<u16> {
        let number = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(number))?;
        self.bytes = self.bytes.saturating_add(pending.len.into());
        self.has_flush |= pending.job.task == Task::Flush;
        *slot = Some(pending);
        Some(number)
    }

    pub(super) fn take(&mut self, number: u16) -> Option<Pending> {
        let pending = self.slots.get_mut(usize::from(number))?.take()?;
        self.free.push(number);
        self.bytes = self.bytes.saturating_sub(pending.len.into());
        self.has_flush &= pending.job.task != Task::Flush;
        Some(pending)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // The kernel may still write to these: their buffers stay where they are, and guest RAM with them.
        std::mem::take(&mut self.slots).into_iter().flatten().for_each(std::mem::forget);
    }
}

/// Requests that the kernel has at a time: as many as one queue holds.
pub(super) const ENTRIES: u16 = 256;
/// The most bytes that the kernel has at a time, or a piece more: enough for the fastest medium, and no more
/// than a slow one transfers before whoever stops the disk gives up.
const MAX_BYTES: u64 = 16 << 20;
