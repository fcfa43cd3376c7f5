//! A request as it lies in guest RAM: the checked list of the buffers that one chain of descriptors names.
//!
//! A queue makes it ([`VirtQueue::pop`](super::VirtQueue::pop)) and takes it back
//! ([`VirtQueue::complete`](super::VirtQueue::complete)). Each descriptor is read once; what the guest does to it
//! afterwards changes nothing.

use std::borrow::Cow;

use super::pool::Counted;
use super::span::Span;
use crate::memory::GuestMemory;

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

/// Buffers of guest RAM that are used up from the front, or from the back. The bounds between them have no meaning: a
/// driver may cut a request as it likes (virtio 1.2, 2.7.4).
#[derive(Debug, Default)]
pub struct Buffers {
    spans: Vec<Span>,
    /// Index of the first span that is not used up.
    first: usize,
    len: u64,
}

impl Buffers {
    /// Bytes that are left.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is left, piece by piece. No piece is empty.
    pub fn spans(&self) -> &[Span] {
        self.spans.get(self.first..).unwrap_or_default()
    }

    /// The next `most` bytes, piece by piece, or all of them, which costs no copy of the list.
    pub fn first(&self, most: u64) -> Cow<'_, [Span]> {
        if self.len <= most {
            return Cow::Borrowed(self.spans());
        }
        let mut left = most;
        let take = |span: &Span| {
            let part = span.up_to(u32::try_from(left).unwrap_or(u32::MAX));
            left = left.saturating_sub(part.len().into());
            (part.len() > 0).then_some(part)
        };
        Cow::Owned(self.spans().iter().map_while(take).collect())
    }

    /// Takes the next bytes, as many as fit into `buffer`; returns how many.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while let (Some(span), Some(rest @ [_, ..])) = (self.spans().first().copied(), buffer.get_mut(done..))
        {
            let count = span.read(0, rest);
            self.advance(span, count);
            done = done.saturating_add(count);
        }
        done
    }

    /// Takes the next `N` bytes; `None`, and nothing taken, when there are fewer.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.len < N as u64 {
            return None;
        }
        let mut bytes = [0; N];
        self.read(&mut bytes);
        Some(bytes)
    }

    /// Fills the next bytes with `data`, as far as there is room; returns how many bytes.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while let (Some(span), Some(rest @ [_, ..])) = (self.spans().first().copied(), data.get(done..)) {
            let count = span.write(0, rest);
            self.advance(span, count);
            done = done.saturating_add(count);
        }
        done
    }

    /// Leaves out the next `count` bytes, or all of them.
    pub fn skip(&mut self, mut count: u64) {
        while let (Some(span), 1..) = (self.spans().first().copied(), count) {
            let part = u64::from(span.len()).min(count);
            self.advance(span, part as usize);
            count = count.saturating_sub(part);
        }
    }

    /// Takes the last byte away from the rest; `None` when there is none.
    pub fn split_last(&mut self) -> Option<Span> {
        let last = self.spans.get_mut(self.first..)?.last_mut()?;
        let before = last.len().checked_sub(1)?;
        let byte = last.from(before)?;
        *last = last.up_to(before);
        if before == 0 {
            self.spans.pop();
        }
        self.len = self.len.saturating_sub(1);
        Some(byte)
    }

    #[cfg(test)]
    pub(super) fn spans_capacity(&self) -> usize {
        self.spans.capacity()
    }

    fn push(&mut self, span: Span) {
        self.len = self.len.saturating_add(u64::from(span.len()));
        self.spans.push(span);
    }

    /// Uses up `count` bytes of `span`, the first.
    fn advance(&mut self, span: Span, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(span.len());
        self.len = self.len.saturating_sub(u64::from(count));
        match (span.from(count).filter(|rest| rest.len() > 0), self.spans.get_mut(self.first)) {
            (Some(rest), Some(first)) => *first = rest,
            _ => self.first = self.first.saturating_add(1),
        }
    }

    fn clear(&mut self) {
        let Self { spans, first, len } = self;
        spans.clear();
        // A guest that once sent a long chain does not hold its memory for ever.
        spans.shrink_to(KEPT_SPANS);
        (*first, *len) = (0, 0);
    }
}

/// Why a chain cannot be served. The queue hands it back with a length of 0 and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
    /// An indirect table that was not negotiated, is inside another, goes on after itself, or has an odd length.
    #[error("its indirect table of {len} bytes is not allowed")]
    Indirect {
        /// Bytes of the table.
        len: u32,
    },
}

/// The most descriptors of one chain, and of one indirect table: what Linux takes for one request at most, twice over.
pub const MAX_DESCRIPTORS: u32 = 1024;

/// Spans that a chain's list keeps room for: more than common requests have.
const KEPT_SPANS: usize = 64;

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
        let spans = self.readable.spans.capacity().saturating_add(self.writable.spans.capacity());
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
        if !writable && !self.writable.spans.is_empty() {
            return Err(ChainError::Order);
        }
        if len == 0 {
            return Ok(());
        }
        let bytes = self.readable.len.saturating_add(self.writable.len).saturating_add(u64::from(len));
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
