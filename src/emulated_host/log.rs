//! The end of a text stream. The machine's console and QEMU's stderr are kept only to explain a failure.

use std::collections::VecDeque;

/// Bytes kept of each stream: more than the lines shown.
const KEPT: usize = 16 << 10;

/// Lines shown of each stream.
const SHOWN: usize = 20;

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    /// Adds bytes and drops the oldest beyond the limit.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.bytes.drain(..self.bytes.len().saturating_sub(KEPT));
    }

    /// Returns the last lines, without control characters.
    pub(super) fn lines(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|character| !character.is_control()).collect::<String>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines.into_iter().rev().take(SHOWN).rev().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_memory_is_bounded() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(format!("line {number}\r\n").as_bytes());
        }
        assert!(tail.bytes.len() <= KEPT);
        let lines = tail.lines();
        assert_eq!(lines.len(), SHOWN);
        assert_eq!(lines.first().unwrap(), "line 99980");
        assert_eq!(lines.last().unwrap(), "line 99999");
    }

    #[test]
    fn escapes_do_not_reach_a_terminal() {
        let mut tail = Tail::default();
        tail.push(b"\x1b[2J\x07clear\n\n");
        assert_eq!(tail.lines(), ["[2Jclear"]);
    }
}
