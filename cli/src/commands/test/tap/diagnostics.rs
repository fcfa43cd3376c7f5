//! Lines that explain a failure: comments before and after its result, and its YAML block. What is kept of
//! them is bounded, for each result and for the run.

use std::collections::VecDeque;

use super::super::guest_text::harmless;
use super::tally::Budget;

/// The last lines before a result that has not come yet.
#[derive(Debug, Default)]
pub(super) struct Before {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Before {
    pub(super) fn push(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.bytes > MAX_BYTES {
            self.bytes -= self.lines.pop_front().map_or(self.bytes, |line| line.len() + 1);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Takes the lines out.
    pub(super) fn take(&mut self) -> Before {
        std::mem::take(self)
    }

    /// Moves the lines into the diagnostics of a result.
    pub(super) fn add_to(self, text: &mut String, budget: &mut Budget) {
        self.lines.iter().for_each(|line| add(text, line, budget));
    }
}

/// Adds a line to the diagnostics of a result, while the result and the run have room.
pub(super) fn add(text: &mut String, line: &str, budget: &mut Budget) {
    let bytes = line.len() + usize::from(!text.is_empty());
    if text.len() + bytes <= 2 * MAX_BYTES && budget.take_text(bytes) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(line);
    }
}

/// Formats a line for a report, indented by `indent` columns.
pub(super) fn line(indent: usize, text: &str) -> String {
    let text = harmless(&text.trim_end().replace('\t', "    "), LINE_CHARS);
    format!("{}{text}", " ".repeat(indent.min(MAX_INDENT)))
}

/// The maximum number of bytes before a result, and likewise after it.
const MAX_BYTES: usize = 4096;
const LINE_CHARS: usize = 400;
const MAX_INDENT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_before_a_result_are_kept() {
        let mut before = Before::default();
        (0..10_000).for_each(|number| before.push(format!("# line {number}")));
        let mut text = String::new();
        before.add_to(&mut text, &mut Budget::default());
        assert!(text.ends_with("# line 9998\n# line 9999") && text.len() <= MAX_BYTES, "{text}");
        let mut before = Before::default();
        before.push("x".repeat(2 * MAX_BYTES));
        assert!(before.is_empty() && before.bytes == 0);
    }

    #[test]
    fn lines_are_short_and_harmless() {
        assert_eq!(line(2, "a\tb\u{1b}c  "), "  a    b\u{fffd}c");
        assert!(line(1 << 20, &"\u{10ffff}".repeat(1 << 20)).len() <= 4 * LINE_CHARS + MAX_INDENT);
    }
}
