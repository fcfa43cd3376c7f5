//! Finds a text in a stream of bytes, however the stream is cut into pieces. Used on console output.

use std::marker::PhantomData;

/// A text to look for. Its first byte occurs in it only once.
pub(super) trait Text {
    const TEXT: &'static [u8];
}

/// Where in the text the stream stands.
#[derive(Default)]
pub(super) struct Matcher<T> {
    /// How many bytes of the text the stream ends with.
    matched: usize,
    text: PhantomData<T>,
}

impl<T: Text> Matcher<T> {
    /// Whether the text is complete with this byte.
    pub(super) fn feed_byte(&mut self, byte: u8) -> bool {
        // The first byte of the text occurs in it only once, so a failed match can only start anew here.
        self.matched = match T::TEXT.get(self.matched) {
            Some(&wanted) if wanted == byte => self.matched.saturating_add(1),
            _ => usize::from(T::TEXT.first() == Some(&byte)),
        };
        self.matched == T::TEXT.len()
    }

    /// Whether the text was complete at some byte of `bytes`.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().fold(false, |found, byte| self.feed_byte(*byte) | found)
    }
}
