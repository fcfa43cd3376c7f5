//! The bytes that wait for the drainer, and the count of those that never reach it.

use std::collections::VecDeque;

use super::make_room;

/// The bytes that wait, oldest first: at most the buffer's capacity.
#[derive(Default)]
pub(super) struct Ring {
    pub(super) bytes: VecDeque<u8>,
    pub(super) pushed: u64,
    pub(super) dropped: u64,
    /// The number of bytes that were pushed before the first dropped one.
    dropped_from: Option<u64>,
    /// Whether a device has found no space since there was last some.
    pub(super) wants_room: bool,
}

impl Ring {
    /// Appends as many of `bytes` as fit into `capacity`, and counts the others as dropped.
    pub(super) fn append(&mut self, bytes: &[u8], capacity: usize) {
        let before = self.pushed;
        self.pushed = self.pushed.saturating_add(bytes.len() as u64);
        let room = capacity.saturating_sub(self.bytes.len());
        let (kept, lost) = bytes.split_at(room.min(bytes.len()));
        self.count_dropped(lost.len(), before.saturating_add(kept.len() as u64));
        make_room(&mut self.bytes, kept.len(), capacity);
        self.bytes.extend(kept);
    }

    /// Copies the oldest bytes into `scratch`, as many as are contiguous and fit.
    pub(super) fn copy_front<'a>(&self, scratch: &'a mut [u8]) -> &'a [u8] {
        let (front, _) = self.bytes.as_slices();
        let len = front.len().min(scratch.len());
        let (piece, _) = scratch.split_at_mut(len);
        let (oldest, _) = front.split_at(len);
        piece.copy_from_slice(oldest);
        piece
    }

    /// Drops all waiting bytes, and counts them.
    pub(super) fn discard(&mut self) {
        let (lost, from) = (self.bytes.len(), self.drained());
        self.bytes.clear();
        self.count_dropped(lost, from);
    }

    /// Returns the number of bytes that were dropped or still wait, and the number of bytes pushed before the
    /// first of them.
    pub(super) fn untaken(&self) -> (u64, Option<u64>) {
        let waiting = (!self.bytes.is_empty()).then(|| self.drained());
        let from = self.dropped_from.into_iter().chain(waiting).min();
        (self.dropped.saturating_add(self.bytes.len() as u64), from)
    }

    /// Returns the number of bytes that were drained. The same number was pushed before the oldest byte here,
    /// unless some were dropped before it.
    fn drained(&self) -> u64 {
        self.pushed.saturating_sub(self.dropped).saturating_sub(self.bytes.len() as u64)
    }

    /// Counts `bytes` as dropped. Before the first of them, `from` bytes were pushed.
    fn count_dropped(&mut self, bytes: usize, from: u64) {
        self.dropped = self.dropped.saturating_add(bytes as u64);
        if bytes > 0 {
            self.dropped_from = Some(self.dropped_from.map_or(from, |before| before.min(from)));
        }
    }
}
