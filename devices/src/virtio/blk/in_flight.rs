//! The requests whose buffers the kernel reads or writes at present, by the tag that it returns with each
//! completion.

use super::job::Job;
use super::request::Task;
use crate::memory::Span;

/// The requests in flight, and the free tags.
pub(super) struct InFlight {
    slots: Vec<Option<Pending>>,
    free: Vec<u16>,
    /// The bytes of all pieces in flight.
    bytes: u64,
    has_flush: bool,
}

/// A request with a piece in flight.
pub(super) struct Pending {
    pub job: Job,
    /// The length of the piece in bytes.
    pub len: u32,
    /// The buffers of the piece, unless it is the whole request.
    pub piece: Vec<Span>,
    /// Other flushes that this flush completes too.
    pub followers: Vec<Job>,
}

impl Pending {
    /// Returns all requests that end with this one.
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
        !self.has_tag() || self.bytes >= MAX_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn has_flush(&self) -> bool {
        self.has_flush
    }

    /// Returns the tags of all requests in flight.
    pub(super) fn tags(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.slots).filter_map(|(tag, slot)| slot.as_ref().map(|_| tag))
    }

    /// Returns whether there is a free tag.
    pub(super) fn has_tag(&self) -> bool {
        !self.free.is_empty()
    }

    /// Gives a request a tag. Returns `None` unless [there is one](Self::has_tag).
    pub(super) fn insert(&mut self, pending: Pending) -> Option<u16> {
        let tag = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(tag))?;
        self.bytes = self.bytes.saturating_add(pending.len.into());
        self.has_flush |= pending.job.task == Task::Flush;
        *slot = Some(pending);
        Some(tag)
    }

    pub(super) fn take(&mut self, tag: u16) -> Option<Pending> {
        let pending = self.slots.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        self.bytes = self.bytes.saturating_sub(pending.len.into());
        self.has_flush &= pending.job.task != Task::Flush;
        Some(pending)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // The kernel may still write to the buffers. So their lists, and with them guest RAM, are never
        // freed.
        std::mem::take(&mut self.slots).into_iter().flatten().for_each(std::mem::forget);
    }
}

/// The largest number of requests in flight: as many as one queue holds.
pub(super) const ENTRIES: u16 = 256;
/// The number of bytes in flight from which no more requests are begun. It is enough for the fastest medium,
/// and not more than a slow one transfers before a stop of the disk times out.
const MAX_BYTES: u64 = 16 << 20;
