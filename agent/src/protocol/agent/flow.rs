//! Windows: how much of a stream may be in flight. The receiver grants bytes as its reader takes them, so
//! that a reader that stops holds up its own stream and nothing else.

use super::{INITIAL_WINDOW, MAX_WINDOW};

/// The sending end of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    credit: u32,
    ended: bool,
}

/// The receiving end of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiver {
    /// Bytes that may still arrive.
    allowed: u32,
    /// Bytes that the reader has taken but that were not yet granted again.
    taken: u32,
    ended: bool,
}

impl Sender {
    pub(super) fn new(is_there: bool) -> Self {
        Self { credit: INITIAL_WINDOW, ended: !is_there }
    }

    /// Returns the number of bytes that may be sent now.
    pub(super) fn credit(&self) -> usize {
        if self.ended { 0 } else { self.credit as usize }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Counts bytes that are sent.
    pub(super) fn spend(&mut self, count: usize) {
        self.credit = self.credit.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Ends the stream. Returns true the first time.
    pub(super) fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.ended, true)
    }

    /// Adds a grant of the receiver. Returns false for a grant that no receiver may make.
    pub(super) fn grant(&mut self, bytes: u32) -> bool {
        self.credit = self.credit.saturating_add(bytes);
        self.credit <= MAX_WINDOW
    }
}

impl Receiver {
    pub(super) fn new(is_there: bool) -> Self {
        Self { allowed: INITIAL_WINDOW, taken: 0, ended: !is_there }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns the number of bytes that may arrive.
    pub(super) fn allowed(&self) -> u32 {
        self.allowed
    }

    /// Counts bytes that arrived. Returns false if they are too many.
    pub(super) fn accept(&mut self, count: usize) -> bool {
        let rest = u32::try_from(count).ok().and_then(|count| self.allowed.checked_sub(count));
        self.allowed = rest.unwrap_or(self.allowed);
        rest.is_some()
    }

    /// Ends the stream. Returns true the first time.
    pub(super) fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.ended, true)
    }

    /// Counts bytes that the reader has taken. Returns true when a grant is due: not every byte is worth a
    /// message.
    pub(super) fn take(&mut self, count: usize) -> bool {
        self.taken = self.taken.saturating_add(u32::try_from(count).unwrap_or(u32::MAX)).min(INITIAL_WINDOW);
        self.is_due()
    }

    /// Returns the grant that is due, if any. From then on, the sender may send as many bytes.
    pub(super) fn grant(&mut self) -> Option<u32> {
        self.is_due().then(|| {
            let grant = std::mem::take(&mut self.taken);
            self.allowed = self.allowed.saturating_add(grant).min(INITIAL_WINDOW);
            grant
        })
    }

    fn is_due(&self) -> bool {
        !self.ended && self.taken >= INITIAL_WINDOW / 4
    }
}
