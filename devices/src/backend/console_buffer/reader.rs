//! Searches the output on its way through, whether the buffer keeps it or drops it, for the text of a kernel
//! panic and for Linux's banner. Records the time of the first byte, and keeps the last lines for the report
//! on a guest that has ended.

use std::time::Instant;

use super::matcher::{Matcher, Text};
use super::panic_watch::PanicWatch;
use super::tail::ConsoleTail;

/// Reads all output of one console.
#[derive(Default)]
pub(super) struct OutputReader {
    pub(super) panic: PanicWatch,
    pub(super) tail: ConsoleTail,
    banner: Matcher<Banner>,
    pub(super) banner_at: Option<Instant>,
    pub(super) first_byte_at: Option<Instant>,
}

impl OutputReader {
    /// Reads the next bytes, of which there is at least one. Returns whether the text of a kernel panic was
    /// complete at one of them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.first_byte_at.get_or_insert_with(Instant::now);
        if self.banner.feed(bytes) {
            self.banner_at.get_or_insert_with(Instant::now);
        }
        self.tail.push(bytes);
        self.panic.feed(bytes)
    }
}

/// The start of the first line that Linux prints.
#[derive(Default)]
struct Banner;

impl Text for Banner {
    const TEXT: &'static [u8] = b"Linux version";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_byte_and_banner_keep_their_first_time() {
        let mut reader = OutputReader::default();
        assert_eq!((reader.first_byte_at, reader.banner_at), (None, None));
        reader.feed(b"LiLinux versio");
        let first = reader.first_byte_at;
        assert!(first.is_some() && reader.banner_at.is_none());
        reader.feed(b"n 6.1");
        let banner = reader.banner_at;
        assert!(banner.is_some());
        reader.feed(b"Linux version 6.1");
        assert_eq!((reader.first_byte_at, reader.banner_at), (first, banner));
    }
}
