//! Splits output into lines as it comes, and derives the forms of a line that patterns are matched against.

use std::borrow::Cow;

use super::guest_text::without_escapes;

/// The line whose end has not come yet.
#[derive(Debug, Default)]
pub(crate) struct OpenLine {
    bytes: Vec<u8>,
    /// The number of bytes at its front that repeat the end of the previous piece of the same line.
    repeated: usize,
    /// The start of the last part that patterns have not seen to its end.
    unseen: usize,
}

/// A complete line, or a piece of a line that is longer than [`PIECE_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WholeLine {
    /// The text without its line ending.
    pub(crate) text: String,
    /// The text without what it repeats of the previous piece.
    pub(crate) news: String,
    /// Whether this is the first piece of its line.
    pub(crate) is_first: bool,
}

impl OpenLine {
    /// Takes bytes up to the end of the line or of a piece of it. Returns the remaining bytes, and the line
    /// if it is complete.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], Option<WholeLine>) {
        let room = PIECE_BYTES.saturating_sub(self.bytes.len());
        let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
        let (own, rest) = bytes.split_at(end.unwrap_or(room.min(bytes.len())));
        self.bytes.extend_from_slice(own);
        match end {
            Some(_) => (rest.get(1..).unwrap_or_default(), Some(self.end(0))),
            None if self.bytes.len() >= PIECE_BYTES => (rest, Some(self.end(REPEATED))),
            None => (rest, None),
        }
    }

    /// Returns the unfinished line, if it has any text.
    pub(crate) fn finish(&mut self) -> Option<WholeLine> {
        (self.bytes.len() > self.repeated).then(|| self.end(0))
    }

    /// Returns the text that patterns have not seen: the parts that a carriage return has ended since the
    /// last call, and the last part.
    pub(crate) fn unseen(&mut self) -> String {
        let text = text(self.bytes.get(self.unseen..).unwrap_or_default());
        let end = self.bytes.iter().rposition(|byte| *byte != b'\r').unwrap_or(0);
        let last = self.bytes.iter().take(end).rposition(|byte| *byte == b'\r');
        self.unseen = last.map_or(self.unseen, |last| last + 1);
        text
    }

    fn end(&mut self, repeated: usize) -> WholeLine {
        let is_first = self.repeated == 0;
        let line = text(&self.bytes);
        let news =
            if is_first { line.clone() } else { text(self.bytes.get(self.repeated..).unwrap_or_default()) };
        self.bytes.drain(..self.bytes.len().saturating_sub(repeated));
        self.repeated = self.bytes.len();
        self.unseen = 0;
        WholeLine { text: line, news, is_first }
    }
}

/// Returns the forms of a line that patterns are matched against, each of them once: as printed, without
/// escape sequences, and both for each part that ends with a carriage return.
pub(crate) fn forms(line: &str) -> Vec<Cow<'_, str>> {
    let mut forms = both(line);
    if line.contains('\r') {
        forms.extend(parts(line).flat_map(both));
    }
    forms
}

/// Splits a line at carriage returns.
pub(crate) fn parts(line: &str) -> impl Iterator<Item = &str> {
    line.split('\r').filter(|part| !part.is_empty())
}

fn both(text: &str) -> Vec<Cow<'_, str>> {
    let plain = without_escapes(text);
    match plain {
        Cow::Borrowed(_) => vec![plain],
        Cow::Owned(_) => vec![Cow::Borrowed(text), plain],
    }
}

/// Decodes a line without its line ending.
fn text(line: &[u8]) -> String {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
    String::from_utf8_lossy(line.get(..end).unwrap_or_default()).into_owned()
}

/// Longer lines come in pieces: no message is that long, and the cost of a regular expression grows with the
/// text.
const PIECE_BYTES: usize = 16 << 10;
/// How much of the previous piece a piece repeats, so that a pattern finds a match across the cut.
const REPEATED: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<WholeLine> {
        let (mut open, mut lines) = (OpenLine::default(), Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let (left, line) = open.take(rest);
                lines.extend(line);
                rest = left;
            }
        }
        lines.extend(open.finish());
        lines
    }

    #[test]
    fn lines_are_the_same_however_they_come() {
        let text = b"one\r\ntwo\n\nfour\rand\nlast";
        let whole = lines(&[text]);
        assert_eq!(
            whole.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(),
            ["one", "two", "", "four\rand", "last"]
        );
        assert_eq!(lines(&text.chunks(1).collect::<Vec<_>>()), whole);
        assert!(whole.iter().all(|line| line.is_first && line.news == line.text));
    }

    #[test]
    fn long_line_comes_in_pieces_that_lose_nothing() {
        let mut text = vec![b'.'; 3 * PIECE_BYTES];
        text.splice(PIECE_BYTES - 2..PIECE_BYTES + 2, *b"BUG:");
        text.extend_from_slice(b"end\nnext");
        let lines = lines(&[&text]);
        assert!(lines.iter().any(|line| line.text.contains("BUG:")), "across the cut");
        let news: usize = lines.iter().map(|line| line.news.len()).sum();
        assert_eq!(news, text.len() - 1);
        let firsts: Vec<bool> = lines.iter().map(|line| line.is_first).collect();
        assert_eq!(firsts, [true, false, false, false, true]);
    }

    #[test]
    fn unseen_text_is_each_part_once_and_the_last_as_long_as_it_grows() {
        let mut open = OpenLine::default();
        for (bytes, unseen) in [
            (&b" 10%"[..], " 10%"),
            (b"\r 20%\r 3", " 10%\r 20%\r 3"),
            (b"0%\r", " 30%"),
            (b" 40%", " 30%\r 40%"),
            (b"", " 40%"),
        ] {
            assert!(open.take(bytes).1.is_none());
            assert_eq!(open.unseen(), unseen);
        }
        assert_eq!(open.take(b"\n").1.unwrap().text, " 10%\r 20%\r 30%\r 40%");
        open.take(b"x");
        assert_eq!(open.unseen(), "x");
    }

    #[test]
    fn forms_have_no_escapes_and_end_at_carriage_returns() {
        assert_eq!(forms("plain"), ["plain"]);
        assert_eq!(forms("\u{1b}[1mb\u{1b}[0m"), ["\u{1b}[1mb\u{1b}[0m", "b"]);
        assert_eq!(forms("a\r\u{1b}[1mb"), ["a\r\u{1b}[1mb", "a\rb", "a", "\u{1b}[1mb", "b"]);
    }
}
