//! The console of a guest under test, and what its command writes, line by line as it comes: what is expected, what is not
//! allowed, TAP results, and the last lines. The guest may print what it likes, for as long as it likes: all that is kept
//! is bounded.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;

use regex_lite::Regex;

use super::tap::Tap;
use crate::cli::TapMode;

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patterns {
    pub(crate) expect: Vec<Regex>,
    pub(crate) reject: Vec<Regex>,
    pub(crate) tap: TapMode,
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The guest, on its console.
    Console,
    /// The command in it, to its standard output.
    Stdout,
    /// The same, to its standard error.
    Stderr,
}

/// Reads the console and what the command writes.
#[derive(Debug)]
pub(crate) struct Scanner {
    patterns: Patterns,
    /// By the place of each expectation.
    met: Vec<bool>,
    /// The command has written something that is expected.
    met_by_command: bool,
    rejected: Option<Rejection>,
    tap: Tap,
    /// The line of each writer that has no end yet.
    lines: [Vec<u8>; Writer::ALL.len()],
    tail: VecDeque<String>,
    log: Option<Log>,
}

/// A line that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) pattern: String,
    pub(crate) line: String,
    pub(crate) writer: Writer,
}

/// The file of the console.
#[derive(Debug)]
struct Log {
    file: File,
    left: usize,
}

impl Scanner {
    pub(crate) fn new(patterns: Patterns, log: Option<File>) -> Scanner {
        Scanner {
            met: vec![false; patterns.expect.len()],
            met_by_command: false,
            patterns,
            rejected: None,
            tap: Tap::default(),
            lines: Default::default(),
            tail: VecDeque::new(),
            log: log.map(|file| Log { file, left: LOG_BYTES }),
        }
    }

    /// Takes what was written.
    pub(crate) fn feed(&mut self, writer: Writer, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.write(bytes);
        }
        let mut is_new = false;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = self.line(writer);
            let room = LINE_BYTES.saturating_sub(line.len());
            line.extend_from_slice(piece.get(..room).unwrap_or(piece));
            is_new = room > 0 && !piece.ends_with(b"\n");
            if piece.ends_with(b"\n") {
                self.end_line(writer);
            }
        }
        // A prompt has no end of line. What is not allowed is told when the line is whole.
        if is_new {
            let line = text(self.line(writer));
            self.look_for_expected(writer, &line);
        }
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self) {
        for writer in Writer::ALL {
            if !self.line(writer).is_empty() {
                self.end_line(writer);
            }
        }
    }

    /// Whether nothing that can come changes the verdict.
    pub(crate) fn is_decided(&self) -> bool {
        let tap_done = self.tap_complaint().is_none() || self.tap.is_complete();
        self.rejected.is_some() || (self.wants_something() && self.unmet().next().is_none() && tap_done)
    }

    /// The same for a guest that runs a command: what the console alone shows is no reason not to wait for its code.
    pub(crate) fn is_decided_by_command(&self) -> bool {
        self.rejected.is_some() || (self.met_by_command && self.is_decided())
    }

    /// Whether the console decides at all, and not the guest's end alone.
    pub(crate) fn wants_something(&self) -> bool {
        !self.met.is_empty() || self.counts_tap()
    }

    /// Expectations that no line has met.
    pub(crate) fn unmet(&self) -> impl Iterator<Item = &str> {
        self.patterns.expect.iter().zip(&self.met).filter(|(_, met)| !**met).map(|(regex, _)| regex.as_str())
    }

    /// The line that is not allowed, if one came.
    pub(crate) fn rejected(&self) -> Option<&Rejection> {
        self.rejected.as_ref()
    }

    /// What is wrong with the TAP results, where they count.
    pub(crate) fn tap_complaint(&self) -> Option<String> {
        match (self.patterns.tap, self.tap.has_begun()) {
            (TapMode::Ignore, _) | (TapMode::Auto, false) => None,
            (TapMode::Require, false) => Some("TAP: no results came".to_owned()),
            (TapMode::Require | TapMode::Auto, true) => self.tap.complaint(),
        }
    }

    /// The TAP results, where they count and there are some.
    pub(crate) fn tap(&self) -> Option<&Tap> {
        (self.patterns.tap != TapMode::Ignore && self.tap.has_begun()).then_some(&self.tap)
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }

    fn counts_tap(&self) -> bool {
        self.patterns.tap == TapMode::Require || self.tap().is_some()
    }

    fn line(&mut self, writer: Writer) -> &mut Vec<u8> {
        let [console, stdout, stderr] = &mut self.lines;
        match writer {
            Writer::Console => console,
            Writer::Stdout => stdout,
            Writer::Stderr => stderr,
        }
    }

    fn end_line(&mut self, writer: Writer) {
        let line = self.line(writer);
        let text = text(line);
        line.clear();
        self.look_for_expected(writer, &text);
        self.look_for_rejected(writer, &text);
        if self.patterns.tap != TapMode::Ignore {
            self.tap.feed(&text);
        }
        if self.tail.len() >= TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(text);
    }

    fn look_for_expected(&mut self, writer: Writer, line: &str) {
        for (regex, met) in self.patterns.expect.iter().zip(&mut self.met) {
            let is_news = !*met || (writer != Writer::Console && !self.met_by_command);
            if is_news && regex.is_match(line) {
                *met = true;
                self.met_by_command |= writer != Writer::Console;
            }
        }
    }

    fn look_for_rejected(&mut self, writer: Writer, line: &str) {
        if self.rejected.is_none() {
            let broken = self.patterns.reject.iter().find(|regex| regex.is_match(line));
            self.rejected = broken.map(|regex| Rejection {
                pattern: regex.as_str().to_owned(),
                line: line.to_owned(),
                writer,
            });
        }
    }
}

impl Writer {
    const ALL: [Writer; 3] = [Writer::Console, Writer::Stdout, Writer::Stderr];
}

impl Log {
    /// A file that cannot take more is told so once, and then left alone.
    fn write(&mut self, bytes: &[u8]) {
        let taken = bytes.get(..self.left).unwrap_or(bytes);
        let is_cut = taken.len() < bytes.len() && self.left > 0;
        self.left -= taken.len();
        let written = self.file.write_all(taken);
        if is_cut {
            let note = format!("\n[coracle: the console goes on; {} MiB of it are here]\n", LOG_BYTES >> 20);
            // The same file has just failed, or takes this too.
            let _ = self.file.write_all(note.as_bytes());
        }
        if written.is_err() {
            self.left = 0;
        }
    }
}

/// The text of a line, without its end.
fn text(line: &[u8]) -> String {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
    String::from_utf8_lossy(line.get(..end).unwrap_or_default()).into_owned()
}

/// Longer lines are cut: no message is as long, and a regular expression takes its time.
const LINE_BYTES: usize = 16 << 10;
/// A kernel's panic with registers and stack is not as long.
const TAIL_LINES: usize = 100;
const LOG_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn regexes(patterns: &[&str]) -> Vec<Regex> {
        patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect()
    }

    fn scanner(expect: &[&str], reject: &[&str]) -> Scanner {
        let patterns = Patterns { expect: regexes(expect), reject: regexes(reject), tap: TapMode::default() };
        Scanner::new(patterns, None)
    }

    /// Feeds a console; whether that decides.
    fn decides(scanner: &mut Scanner, bytes: &[u8]) -> bool {
        scanner.feed(Writer::Console, bytes);
        scanner.is_decided()
    }

    #[test]
    fn expectations_are_met_in_any_order_and_across_pieces() {
        let mut scanner = scanner(&["^ready$", r"up in \d+ s"], &[]);
        assert!(!decides(&mut scanner, b"up in 12"));
        assert!(!decides(&mut scanner, b" s\r\nrea"));
        assert!(decides(&mut scanner, b"dy\r\n"));
        assert_eq!(scanner.unmet().count(), 0);
    }

    #[test]
    fn prompt_without_an_end_of_line_is_seen() {
        let mut scanner = scanner(&["login: $"], &[]);
        assert!(!decides(&mut scanner, b"host lo"));
        assert!(decides(&mut scanner, b"gin: "));
        let mut scanner = self::scanner(&["xyz"], &[]);
        scanner.feed(Writer::Console, b"abc");
        assert!(decides(&mut scanner, b"\nxyz"), "as long as the last one");
    }

    #[test]
    fn first_line_that_is_not_allowed_decides() {
        let mut scanner = scanner(&["never"], &["BUG:", "WARNING"]);
        assert!(!decides(&mut scanner, b"fine\n[ 1.0] BUG: bad"), "not before the line is whole");
        assert!(decides(&mut scanner, b" thing\nWARNING: late\n"));
        let rejected = scanner.rejected().unwrap();
        assert_eq!((rejected.pattern.as_str(), rejected.line.as_str()), ("BUG:", "[ 1.0] BUG: bad thing"));
        assert_eq!(scanner.unmet().collect::<Vec<_>>(), ["never"]);
    }

    #[test]
    fn results_that_have_begun_have_to_end_before_the_verdict() {
        let mut scanner = scanner(&["begin"], &[]);
        assert!(!decides(&mut scanner, b"TAP version 13\nbegin\n1..1\n"));
        assert!(decides(&mut scanner, b"ok 1\n"));
    }

    #[test]
    fn lines_of_two_writers_do_not_mix() {
        let mut scanner = scanner(&["^one line$"], &[]);
        scanner.feed(Writer::Stdout, b"one ");
        scanner.feed(Writer::Stderr, b"another\n");
        scanner.feed(Writer::Console, b"[ 1.0] eth0\n");
        assert!(!scanner.is_decided());
        scanner.feed(Writer::Stdout, b"line\n");
        assert!(scanner.is_decided_by_command());
    }

    #[test]
    fn console_alone_does_not_decide_for_a_command() {
        let mut scanner = scanner(&["ready"], &["BUG"]);
        scanner.feed(Writer::Console, b"ready\n");
        assert!(scanner.is_decided() && !scanner.is_decided_by_command());
        scanner.feed(Writer::Stdout, b"ready");
        assert!(scanner.is_decided_by_command(), "it was met before, but not by the command");
        let mut scanner = self::scanner(&["ready"], &["BUG"]);
        scanner.feed(Writer::Console, b"BUG: bad\n");
        assert!(scanner.is_decided_by_command(), "what is not allowed is not allowed there either");
    }

    #[test]
    fn nothing_wanted_leaves_the_verdict_to_the_end() {
        let mut scanner = scanner(&[], &["BUG"]);
        assert!(!decides(&mut scanner, b"hello\n"));
        assert!(!scanner.wants_something());
    }

    #[test]
    fn endless_line_and_endless_lines_take_bounded_memory() {
        let mut scanner = scanner(&["x{3}y"], &[]);
        for _ in 0..100 {
            scanner.feed(Writer::Console, &[b'x'; 4096]);
        }
        assert!(scanner.line(Writer::Console).len() <= LINE_BYTES);
        for _ in 0..1000 {
            scanner.feed(Writer::Console, b"\n\xff\xfe\n");
        }
        assert_eq!(scanner.tail().count(), TAIL_LINES);
    }

    #[test]
    fn log_is_cut_with_a_note() {
        let file = TempFile::new().unwrap();
        let mut log = Log { file: file.as_file().try_clone().unwrap(), left: 10 };
        log.write(b"12345678");
        log.write(b"9abcdef");
        log.write(b"more");
        let mut text = String::new();
        let mut read = file.as_file();
        read.rewind().unwrap();
        read.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("123456789a\n[coracle: "), "{text}");
        assert_eq!(text.matches("coracle").count(), 1);
    }
}
