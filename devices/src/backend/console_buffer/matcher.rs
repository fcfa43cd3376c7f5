//! Finds a text in a stream of bytes, however the stream is cut into pieces. Used on console output.

use std::marker::PhantomData;

/// A text to find. Its first byte must occur in it only once.
pub(super) trait Text {
    const TEXT: &'static [u8];
}

/// The position of a stream within the text.
#[derive(Default)]
pub(super) struct Matcher<T> {
    /// The number of bytes of the text with which the stream ends.
    matched: usize,
    text: PhantomData<T>,
}

impl<T: Text> Matcher<T> {
    /// Takes the next byte. Returns whether the text is complete with it.
    pub(super) fn feed_byte(&mut self, byte: u8) -> bool {
        // The first byte of the text occurs in it only once, so a failed match can only start again here.
        self.matched = match T::TEXT.get(self.matched) {
            Some(&wanted) if wanted == byte => self.matched.saturating_add(1),
            _ => usize::from(T::TEXT.first() == Some(&byte)),
        };
        self.matched == T::TEXT.len()
    }

    /// Takes the next bytes. Returns whether the text was complete at any of them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().fold(false, |found, byte| self.feed_byte(*byte) | found)
    }
}
