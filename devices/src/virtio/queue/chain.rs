//! A request in guest RAM: the checked list of the buffers that one chain of descriptors describes.
//!
//! A queue makes it ([`VirtQueue::pop`](super::VirtQueue::pop)) and takes it back
//! ([`VirtQueue::complete`](super::VirtQueue::complete)). Each descriptor is read once, so the guest cannot
//! change it after it has been checked.

use super::pool::Counted;
use crate::memory::{Buffers, GuestMemory, Span};

/// The buffers of one request: those that the device reads, and those that it writes.
#[derive(Debug)]
pub struct Chain {
    pub(super) head: u16,
    /// The index of its entry in the available ring, modulo 65,536 like the driver's index.
    pub(super) position: u16,
    /// The buffers that the device reads, in the driver's order.
    pub readable: Buffers,
    /// The buffers that the device writes, in the order in which it has to fill them.
    pub writable: Buffers,
    /// The memory that its lists take, as the budget counts it.
    counted: Counted,
    /// Keeps the memory of the spans mapped.
    _memory: GuestMemory,
}

/// The reason why a chain cannot be served. The queue completes it with a length of 0 and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The chain has more descriptors than the table, so that it must loop, or more than [`MAX_DESCRIPTORS`].
    #[error("it is longer than {most} descriptors")]
    TooManyDescriptors {
        /// The limit that the chain exceeds.
        most: u32,
    },
    /// A descriptor continues at one past the end of the table.
    #[error("it continues at descriptor {next} in a table of {count}")]
    Next {
        /// The index of the missing descriptor.
        next: u16,
        /// The number of descriptors in the table.
        count: u32,
    },
    /// A buffer does not lie in RAM as a whole.
    #[error("{len} bytes at {address:#x} are not contiguous RAM")]
    NotRam {
        /// The guest-physical address of the buffer.
        address: u64,
        /// The length of the buffer in bytes.
        len: u32,
    },
    /// A buffer that the device reads follows one that it writes.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// The buffers have more bytes than the device accepts.
    #[error("it has more than the allowed {most} bytes")]
    TooLong {
        /// The limit in bytes.
        most: u64,
    },
    /// An indirect table was not negotiated, is inside another one, has a descriptor after it, or has a
    /// length other than 1 to [`MAX_DESCRIPTORS`] descriptors.
    #[error("its indirect table of {len} bytes is not allowed")]
    Indirect {
        /// The length of the table in bytes.
        len: u32,
    },
}

/// The largest number of descriptors of one chain, and of one indirect table. It is four times the longest
/// request that Linux sends to these devices: one to a disk, of 254 segments, a header and a status.
pub const MAX_DESCRIPTORS: u32 = 1024;

/// A descriptor (virtio 1.2, section 2.7.5).
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
/// The length of a descriptor in bytes.
pub(super) const DESCRIPTOR_LEN: u32 = 16;

/// The table that a chain lies in, and the limits for it.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    pub memory: &'a GuestMemory,
    pub table: Span,
    /// The number of descriptors in `table`.
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

    /// Clears the buffers, and frees their memory beyond that of a usual request.
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

/// Reads the descriptor at `index`, once.
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

/// Returns the table of an indirect descriptor, and the number of its descriptors (virtio 1.2, section
/// 2.7.5.3).
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
