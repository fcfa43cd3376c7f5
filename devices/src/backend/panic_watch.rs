//! Finds a Linux kernel panic in console output.
//!
//! The text alone is no proof: any program of the guest may print it. It becomes one by what follows. A kernel that
//! panicked resets the machine after at most a stack trace, or stops with the text in its last line; a machine that
//! prints on, or says that it restarts, lives.
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
    /// Bytes since the text.
    passed: usize,
}

impl PanicWatch {
    /// Whether the text was complete at some byte of `bytes`.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        for &byte in bytes {
            if self.state != State::Nothing {
                self.follow(byte);
            }
            if self.panic.feed_byte(byte) {
                (self.state, self.passed) = (State::InLine, 0);
                found = true;
            }
        }
        found
    }

    /// Whether a reset of the machine at this point is the end of a panic.
    pub(super) fn explains_reset(&self) -> bool {
        self.state != State::Nothing
    }

    /// Whether the last line is the text, so that silence at this point is the end of a panic.
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

/// What became of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// It has not come, or means nothing any more.
    #[default]
    Nothing,
    /// The line with it goes on.
    InLine,
    /// The line with it has ended, and nothing follows.
    LineEnded,
    /// Something follows.
    Passed,
}

/// What Linux prints on every panic, whatever the cause, and at its end again where it does not reset.
#[derive(Default)]
struct PanicMessage;

impl Text for PanicMessage {
    const TEXT: &'static [u8] = b"Kernel panic - not syncing";
}

/// What Linux prints on every reset that was asked for, also with `quiet`; a panic resets without a word.
#[derive(Default)]
struct RestartMessage;

impl Text for RestartMessage {
    const TEXT: &'static [u8] = b"Restarting system";
}

/// Twice what a panic prints after its text: registers, a stack trace, the list of modules.
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
    fn reset_that_was_asked_for_is_no_panic() {
        let watch = watch(&[TEXT, b"\r\n# reboot\r\n[    2.0] reboot: Restarting system\r\n"]);
        assert!(!watch.explains_reset());
    }

    #[test]
    fn text_counts_again_after_it_was_dismissed() {
        let watch = watch(&[TEXT, b"\r\nRestarting system\r\n", TEXT]);
        assert!(watch.explains_reset() && watch.is_last_line());
    }
}
