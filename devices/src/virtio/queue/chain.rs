//! A request as it lies in guest RAM: the checked list of the buffers that one chain of descriptors names.
//!
//! A queue makes it ([`VirtQueue::pop`](super::VirtQueue::pop)) and takes it back
//! ([`VirtQueue::complete`](super::VirtQueue::complete)). Each descriptor is read once; what the guest does
//! to it afterwards changes nothing.

use super::pool::Counted;
use crate::memory::{Buffers, GuestMemory, Span};

/// The buffers of one request: those that the device reads, and those that it writes.
#[derive(Debug)]
pub struct Chain {
    pub(super) head: u16,
    /// Where in the available ring it was, counted without end.
    pub(super) position: u16,
    /// What the driver says, in its order.
    pub readable: Buffers,
    /// Where the device answers, in the order in which it has to be filled.
    pub writable: Buffers,
    /// What its lists take.
    counted: Counted,
    /// Keeps the memory of the spans mapped.
    _memory: GuestMemory,
}

/// Why a chain cannot be served. The queue hands it back with a length of 0 and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// It has more descriptors than the table, so that it must loop, or more than [`MAX_DESCRIPTORS`].
    #[error("it is longer than {most} descriptors")]
    TooManyDescriptors {
        /// The limit that it passed.
        most: u32,
    },
    /// A descriptor names another that is not there.
    #[error("it goes on at descriptor {next} of {count}")]
    Next {
        /// As named.
        next: u16,
        /// Descriptors in the table.
        count: u32,
    },
    /// A buffer is not RAM, or not all of it.
    #[error("{len} bytes at {address:#x} are not RAM in one piece")]
    NotRam {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A buffer for the device to read follows one for it to write.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// It is longer than this device takes.
    #[error("it has more than {most} bytes")]
    TooLong {
        /// The limit.
        most: u64,
    },
    /// An indirect table that was not negotiated, is inside another, goes on after itself, or has an odd
    /// length.
    #[error("its indirect table of {len} bytes is not allowed")]
    Indirect {
        /// Bytes of the table.
        len: u32,
    },
}

/// The most descriptors of one chain, and of one indirect table: what Linux takes for one request at most,
/// twice over.
pub const MAX_DESCRIPTORS: u32 = 1024;

/// A descriptor (virtio 1.2, 2.7.5).
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_LEN: u32 = 16;

/// Where a chain starts and what it may be.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    pub memory: &'a GuestMemory,
    pub table: Span,
    /// Descriptors in `table`.
    pub size: u16,
    pub indirect: bool,
    pub max_bytes: u64,
}

impl Chain {
    pub(super) fn new(memory: GuestMemory, counted: Counted) -> Self {
        Self {
            counted,
            head: 0,
            position: 0,
            readable: Buffers::default(),
            writable: Buffers::default(),
            _memory: memory,
        }
    }

    /// Fills this chain from the descriptors that start at `head`.
    pub(super) fn fill(&mut self, head: u16, walk: &Walk<'_>) -> Result<(), ChainError> {
        self.head = head;
        self.clear();
        let filled = self.fill_from(walk.table, u32::from(walk.size), head, walk, false);
        self.count();
        filled
    }

    /// Forgets its buffers, and what they took beyond a usual request.
    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.count();
    }

    fn count(&mut self) {
        let spans = self.readable.spans_capacity().saturating_add(self.writable.spans_capacity());
        self.counted.set(spans.saturating_mul(size_of::<Span>()).saturating_add(size_of::<Self>()));
    }

    fn fill_from(
        &mut self,
        table: Span,
        count: u32,
        head: u16,
        walk: &Walk<'_>,
        nested: bool,
    ) -> Result<(), ChainError> {
        let mut index = head;
        let most = count.min(MAX_DESCRIPTORS);
        for _ in 0..most {
            let descriptor = descriptor(table, index).ok_or(ChainError::Next { next: index, count })?;
            if descriptor.flags & INDIRECT != 0 {
                let (table, count) = indirect_table(descriptor, walk, nested)?;
                return self.fill_from(table, count, 0, walk, true);
            }
            self.push(descriptor, walk)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            if u32::from(descriptor.next) >= count {
                return Err(ChainError::Next { next: descriptor.next, count });
            }
            index = descriptor.next;
        }
        Err(ChainError::TooManyDescriptors { most })
    }

    fn push(&mut self, descriptor: Descriptor, walk: &Walk<'_>) -> Result<(), ChainError> {
        let Descriptor { address, len, flags, .. } = descriptor;
        let writable = flags & WRITE != 0;
        if !writable && !self.writable.spans().is_empty() {
            return Err(ChainError::Order);
        }
        if len == 0 {
            return Ok(());
        }
        let bytes = self.readable.len().saturating_add(self.writable.len()).saturating_add(u64::from(len));
        if bytes > walk.max_bytes {
            return Err(ChainError::TooLong { most: walk.max_bytes });
        }
        let span = walk.memory.span(address, len).ok_or(ChainError::NotRam { address, len })?;
        let buffers = if writable { &mut self.writable } else { &mut self.readable };
        buffers.push(span);
        Ok(())
    }
}

/// The descriptor at `index`, read once.
fn descriptor(table: Span, index: u16) -> Option<Descriptor> {
    let mut bytes = [0; DESCRIPTOR_LEN as usize];
    let offset = u32::from(index).checked_mul(DESCRIPTOR_LEN)?;
    if table.read(offset, &mut bytes) != bytes.len() {
        return None;
    }
    let [address @ .., l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
    Some(Descriptor {
        address: u64::from_le_bytes(address),
        len: u32::from_le_bytes([l0, l1, l2, l3]),
        flags: u16::from_le_bytes([f0, f1]),
        next: u16::from_le_bytes([n0, n1]),
    })
}

/// The table that an indirect descriptor names, and how many descriptors it has (virtio 1.2, 2.7.5.3).
fn indirect_table(descriptor: Descriptor, walk: &Walk<'_>, nested: bool) -> Result<(Span, u32), ChainError> {
    let Descriptor { address, len, flags, .. } = descriptor;
    let count = len.checked_div(DESCRIPTOR_LEN).unwrap_or_default();
    let whole = len.is_multiple_of(DESCRIPTOR_LEN) && (1..=MAX_DESCRIPTORS).contains(&count);
    if !walk.indirect || nested || flags & NEXT != 0 || !whole {
        return Err(ChainError::Indirect { len });
    }
    let table = walk.memory.span(address, len).ok_or(ChainError::NotRam { address, len })?;
    Ok((table, count))
}
