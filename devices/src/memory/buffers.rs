//! A list of spans that is consumed from its ends.

use std::borrow::Cow;

use super::Span;

/// Buffers of guest RAM that are consumed from the front or from the back. The bounds between them have no
/// meaning: a driver may split a request as it likes (virtio 1.2, 2.7.4).
#[derive(Debug, Default)]
pub struct Buffers {
    spans: Vec<Span>,
    /// Index of the first span that is not consumed.
    first: usize,
    len: u64,
}

impl Buffers {
    /// Returns the number of bytes left.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the spans that are left. None is empty.
    pub fn spans(&self) -> &[Span] {
        self.spans.get(self.first..).unwrap_or_default()
    }

    /// Returns spans of the next `most` bytes. If that is everything, the list is not copied.
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

    /// Takes the next bytes, as many as fit into `buffer`. Returns the number of bytes.
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

    /// Takes the next `N` bytes. If there are fewer, returns `None` and takes nothing.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.len < N as u64 {
            return None;
        }
        let mut bytes = [0; N];
        self.read(&mut bytes);
        Some(bytes)
    }

    /// Fills the next bytes with `data`, as far as there is space. Returns the number of bytes.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while let (Some(span), Some(rest @ [_, ..])) = (self.spans().first().copied(), data.get(done..)) {
            let count = span.write(0, rest);
            self.advance(span, count);
            done = done.saturating_add(count);
        }
        done
    }

    /// Skips the next `count` bytes, or all of them.
    pub fn skip(&mut self, mut count: u64) {
        while let (Some(span), 1..) = (self.spans().first().copied(), count) {
            let part = u64::from(span.len()).min(count);
            self.advance(span, part as usize);
            count = count.saturating_sub(part);
        }
    }

    /// Removes the last byte and returns it; `None` if nothing is left.
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

    /// Returns the number of spans that the list has capacity for.
    pub(crate) fn spans_capacity(&self) -> usize {
        self.spans.capacity()
    }

    /// Appends a span.
    pub(crate) fn push(&mut self, span: Span) {
        self.len = self.len.saturating_add(u64::from(span.len()));
        self.spans.push(span);
    }

    /// Consumes `count` bytes of `span`, the first.
    fn advance(&mut self, span: Span, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(span.len());
        self.len = self.len.saturating_sub(u64::from(count));
        match (span.from(count).filter(|rest| rest.len() > 0), self.spans.get_mut(self.first)) {
            (Some(rest), Some(first)) => *first = rest,
            _ => self.first = self.first.saturating_add(1),
        }
    }

    /// Drops all spans, and the capacity of the list beyond that of a usual request.
    pub(crate) fn clear(&mut self) {
        let Self { spans, first, len } = self;
        spans.clear();
        // The memory of one long chain must not be held forever.
        spans.shrink_to(KEPT_SPANS);
        (*first, *len) = (0, 0);
    }
}

/// The number of spans for which a chain's list keeps its memory: more than common requests have.
const KEPT_SPANS: usize = 64;
