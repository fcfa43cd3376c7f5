//! The last bytes that a guest printed, kept beside the console's buffer for the report on a guest that died.
//!
//! Only [`ConsoleBuffer`](super::ConsoleBuffer) uses it, under its lock.

use std::collections::VecDeque;

use super::make_room;

/// The number of bytes kept: twice 20 lines of the width of a kernel's call trace.
pub const TAIL_BYTES: usize = 8 * 1024;

/// The last bytes of a stream. Memory grows with them, to at most [`TAIL_BYTES`].
#[derive(Default)]
pub(super) struct ConsoleTail {
    bytes: VecDeque<u8>,
    /// Whether bytes have been dropped, so that the first line is partial.
    cut: bool,
}

impl ConsoleTail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let (forgotten, kept) = bytes.split_at(bytes.len().saturating_sub(TAIL_BYTES));
        let room = TAIL_BYTES.saturating_sub(kept.len());
        let excess = self.bytes.len().saturating_sub(room);
        self.bytes.drain(..excess);
        make_room(&mut self.bytes, kept.len(), TAIL_BYTES);
        self.bytes.extend(kept);
        self.cut |= excess > 0 || !forgotten.is_empty();
    }

    /// Returns the kept bytes from the first whole line on. A single line without an end is returned as far
    /// as it has come.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let line_start =
            self.bytes.iter().position(|&byte| byte == b'\n').map_or(0, |end| end.saturating_add(1));
        let start = if self.cut && line_start < self.bytes.len() { line_start } else { 0 };
        self.bytes.range(start..).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_output_is_kept_whole() {
        let mut tail = ConsoleTail::default();
        assert_eq!(tail.bytes(), b"");
        tail.push(b"one\ntw");
        tail.push(b"o\n");
        assert_eq!(tail.bytes(), b"one\ntwo\n");
    }

    #[test]
    fn long_output_keeps_its_last_whole_lines_in_bounded_memory() {
        let mut tail = ConsoleTail::default();
        for number in 0..10_000 {
            tail.push(format!("line {number:5}\n").as_bytes());
        }
        let bytes = tail.bytes();
        assert!(bytes.starts_with(b"line ") && bytes.ends_with(b"line  9999\n"), "{}", bytes.len());
        assert!(bytes.len() > TAIL_BYTES - 20);
        assert!(tail.bytes.capacity() < 2 * TAIL_BYTES);
    }

    #[test]
    fn piece_larger_than_the_tail_keeps_its_end() {
        let mut tail = ConsoleTail::default();
        tail.push(b"before");
        tail.push(&[b'x'; 3 * TAIL_BYTES]);
        assert_eq!(tail.bytes(), [b'x'; TAIL_BYTES]);
        tail.push(b"\nend");
        assert_eq!(tail.bytes(), b"end");
    }
}
