//! Finds a Linux kernel panic in console output.
//!
//! The text alone proves nothing, because any program of the guest may print it. The output after it decides.
//! A kernel that panicked resets the machine after at most a stack trace, or stops with the text in its last
//! line. A machine that prints on, or announces a restart, is alive.
//!
//! ```text
//! Nothing --text--> InLine --newline--> LineEnded --anything else--> Passed
//!
//! any state --text--> InLine        any state --TRACE_LIMIT bytes or "Restarting system"--> Nothing
//! ```

use super::matcher::{Matcher, Text};

/// Reads all console output, in pieces of any size.
#[derive(Default)]
pub(super) struct PanicWatch {
    panic: Matcher<PanicMessage>,
    restart: Matcher<RestartMessage>,
    state: State,
    /// The number of bytes since the text.
    passed: usize,
    lines: PanicLine,
}

impl PanicWatch {
    /// Takes the next bytes. Returns whether the text was complete at any of them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for &byte in bytes {
            if self.state != State::Nothing {
                self.follow(byte);
            }
            let is_panic = self.panic.feed_byte(byte);
            if is_panic {
                (self.state, self.passed) = (State::InLine, 0);
                found = true;
            }
            self.lines.feed_byte(byte, is_panic);
        }
        found
    }

    /// Returns the last line with the text, without its line end. The line with which Linux ends its report
    /// does not count.
    pub(super) fn line(&self) -> &[u8] {
        self.lines.last()
    }

    /// Returns whether a reset of the machine at this point is the end of a panic.
    pub(super) fn explains_reset(&self) -> bool {
        self.state != State::Nothing
    }

    /// Returns whether the last line is the text, so that silence at this point is the end of a panic.
    pub(super) fn is_last_line(&self) -> bool {
        matches!(self.state, State::InLine | State::LineEnded)
    }

    fn follow(&mut self, byte: u8) {
        self.passed = self.passed.saturating_add(1);
        let restarts = self.restart.feed_byte(byte);
        self.state = match (self.state, byte) {
            _ if restarts || self.passed > TRACE_LIMIT => State::Nothing,
            (State::InLine, b'\n') | (State::LineEnded, b'\r' | b'\n') => State::LineEnded,
            (State::LineEnded, _) => State::Passed,
            (state, _) => state,
        };
    }
}

/// Keeps the line of a panic, however much output follows.
#[derive(Default)]
struct PanicLine {
    /// The present line, up to [`LINE_BYTES`].
    open: Vec<u8>,
    has_text: bool,
    last: Vec<u8>,
}

impl PanicLine {
    fn feed_byte(&mut self, byte: u8, is_panic: bool) {
        self.has_text |= is_panic;
        if byte != b'\n' {
            if self.open.len() < LINE_BYTES {
                self.open.push(byte);
            }
            return;
        }
        if self.open_counts() {
            std::mem::swap(&mut self.open, &mut self.last);
        }
        self.open.clear();
        self.has_text = false;
    }

    fn last(&self) -> &[u8] {
        if self.open_counts() { &self.open } else { &self.last }
    }

    fn open_counts(&self) -> bool {
        self.has_text && !self.open.windows(END_OF_REPORT.len()).any(|words| words == END_OF_REPORT)
    }
}

/// The length in bytes at which lines are cut for display.
const LINE_BYTES: usize = 1024;
/// The prefix that Linux prints before the text when it repeats it at the end of its report (`panic` in
/// kernel/panic.c).
const END_OF_REPORT: &[u8] = b"---[ end ";

/// The position of the output relative to the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The text has not come, or has lost its meaning.
    #[default]
    Nothing,
    /// The line with the text goes on.
    InLine,
    /// The line with the text has ended, and nothing follows.
    LineEnded,
    /// More output follows.
    Passed,
}

/// The text that Linux prints on every panic, whatever the cause, and again at the end if it does not reset.
#[derive(Default)]
struct PanicMessage;

impl Text for PanicMessage {
    const TEXT: &'static [u8] = b"Kernel panic - not syncing";
}

/// The text that Linux prints on every requested reset, also with `quiet`. A panic resets without it.
#[derive(Default)]
struct RestartMessage;

impl Text for RestartMessage {
    const TEXT: &'static [u8] = b"Restarting system";
}

/// The number of bytes after which the text no longer explains a reset: twice what a panic prints after its
/// text, which is registers, a stack trace and the list of modules.
const TRACE_LIMIT: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"[    1.0] Kernel panic - not syncing: VFS";

    fn watch(pieces: &[&[u8]]) -> PanicWatch {
        let mut watch = PanicWatch::default();
        for piece in pieces {
            watch.feed(piece);
        }
        watch
    }

    #[test]
    fn text_is_found_however_it_is_cut() {
        let text = b"[    1.0] KernelKernel panic - not syncing: VFS";
        for cut in 0..text.len() {
            for piece in [1, 2, 5, 100] {
                let mut watch = watch(&[&text[..cut]]);
                text[cut..].chunks(piece).for_each(|piece| {
                    watch.feed(piece);
                });
                assert!(watch.explains_reset(), "cut at {cut}, pieces of {piece}");
            }
        }
    }

    #[test]
    fn near_misses_are_not_a_panic() {
        for text in
            ["Kernel panic - not syncin", "\nKernel panic - not  syncing", "kernel panic - not syncing"]
        {
            let watch = watch(&[text.as_bytes()]);
            assert!(!watch.explains_reset() && !watch.is_last_line(), "{text}");
        }
    }

    #[test]
    fn text_is_the_last_line_until_another_begins() {
        assert!(watch(&[TEXT]).is_last_line());
        assert!(watch(&[TEXT, b" more of it\r\n\r\n"]).is_last_line());
        assert!(!watch(&[TEXT, b"\r\n# "]).is_last_line());
        assert!(watch(&[TEXT, b"\r\nCPU: 0\r\n---[ end ", TEXT, b" ]---\r\n"]).is_last_line());
    }

    #[test]
    fn reset_after_a_stack_trace_is_explained_and_after_much_more_is_not() {
        let line = b"Call Trace: something\r\n";
        let mut watch = watch(&[TEXT, b"\r\n"]);
        (0..300).for_each(|_| {
            watch.feed(line);
        });
        assert!(watch.explains_reset());
        (0..600).for_each(|_| {
            watch.feed(line);
        });
        assert!(!watch.explains_reset());
    }

    #[test]
    fn requested_reset_is_not_a_panic() {
        let watch = watch(&[TEXT, b"\r\n# reboot\r\n[    2.0] reboot: Restarting system\r\n"]);
        assert!(!watch.explains_reset());
    }

    #[test]
    fn line_of_the_panic_stays_whatever_follows() {
        assert_eq!(watch(&[b"nothing\n"]).line(), b"");
        let mut panicked = watch(&[b"before\n[  1.0] ", TEXT, b": why", b"\r"]);
        let line = [b"[  1.0] ", TEXT, b": why\r"].concat();
        assert_eq!(panicked.line(), line, "before its end");
        (0..1000).for_each(|_| {
            panicked.feed(b"\nCall trace: a function of the kernel's\n");
        });
        panicked.feed(&[b"[  1.1] ---[ end ", TEXT, b": why ]---"].concat());
        assert_eq!(panicked.line(), line);
        panicked.feed(&[b"\n", TEXT, b": again\n"].concat());
        assert_eq!(panicked.line(), [TEXT, b": again"].concat(), "the last one counts");
        panicked.feed(&[TEXT, &[b'x'; 100_000]].concat());
        assert_eq!(panicked.line().len(), LINE_BYTES);
    }

    #[test]
    fn text_counts_again_after_it_was_dismissed() {
        let watch = watch(&[TEXT, b"\r\nRestarting system\r\n", TEXT]);
        assert!(watch.explains_reset() && watch.is_last_line());
    }
}
