//! Scans the console of a guest under test and the output of its command, line by line: for what is expected,
//! what is rejected, TAP results, and the last lines. The guest may print anything, for any length of time,
//! so everything that is kept is bounded.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;

use regex_lite::Regex;

use super::console_log::Log;
use super::guest_text::without_escapes;
use super::lines::{OpenLine, WholeLine, forms, parts};
use super::tap::{TEXTS, Tap, TapCounts};
use crate::arguments::TapMode;

/// The patterns to look for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patterns {
    pub(crate) expect: Vec<Regex>,
    pub(crate) reject: Vec<Regex>,
    pub(crate) tap: TapMode,
}

/// The source of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The guest, on its console.
    Console,
    /// The command, on its standard output.
    Stdout,
    /// The command, on its standard error.
    Stderr,
}

/// Scans the console and the output of the command.
#[derive(Debug)]
pub(crate) struct Scanner {
    patterns: Patterns,
    /// For each expectation, by index, whether it was met.
    met: Vec<bool>,
    /// True if the command has written something that is expected.
    met_by_command: bool,
    rejected: Option<Rejection>,
    tap: Tap,
    /// True if the last expectation was met after, or in, the last line of TAP.
    is_past_tap: bool,
    /// True if an expectation was met in a line that is not complete yet.
    met_in_line: bool,
    /// The incomplete line of each source.
    lines: [OpenLine; TEXTS],
    tail: VecDeque<String>,
    log: Option<Log>,
}

/// A line that is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) pattern: String,
    pub(crate) line: String,
    pub(crate) writer: Writer,
}

impl Scanner {
    pub(crate) fn new(patterns: Patterns, log: Option<File>) -> Scanner {
        Scanner {
            met: vec![false; patterns.expect.len()],
            met_by_command: false,
            patterns,
            rejected: None,
            tap: Tap::default(),
            is_past_tap: false,
            met_in_line: false,
            lines: Default::default(),
            tail: VecDeque::new(),
            log: log.map(Log::new),
        }
    }

    /// Takes output.
    pub(crate) fn feed(&mut self, writer: Writer, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            log.write(bytes);
        }
        let (mut rest, mut is_open) = (bytes, false);
        while !rest.is_empty() {
            let (left, line) = self.line(writer).take(rest);
            (rest, is_open) = (left, line.is_none());
            if let Some(line) = line {
                self.end_line(writer, line);
            }
        }
        // A prompt has no line ending. A rejected text is reported once its line is complete.
        if is_open {
            let text = self.line(writer).unseen();
            let is_news = self.look_for_expected(writer, &forms(&text));
            self.is_past_tap |= is_news;
            self.met_in_line |= is_news;
        }
    }

    /// Marks the end of all output.
    pub(crate) fn end(&mut self) {
        for writer in Writer::ALL {
            if let Some(line) = self.line(writer).finish() {
                self.end_line(writer, line);
            }
        }
        self.tap.end();
    }

    /// Returns whether the verdict is decided. TAP results may be followed by more, so they end a guest only
    /// if an expected line came after them.
    pub(crate) fn is_decided(&self) -> bool {
        if self.rejected.is_some() || (self.counts_tap() && self.tap.has_bailed_out()) {
            return true;
        }
        let is_past_tap = self.patterns.tap == TapMode::Ignore
            || (self.tap.is_complete() && (!self.counts_tap() || self.is_past_tap || self.tap.is_over()));
        self.has_all() && is_past_tap
    }

    /// Returns whether everything that is wanted has come, good or bad.
    pub(crate) fn has_all(&self) -> bool {
        let has_tap = !self.counts_tap() || (self.tap.has_begun() && self.tap.is_complete());
        self.wants_something() && self.unmet().next().is_none() && has_tap
    }

    /// Returns the number of documents if TAP results are required, everything that is wanted has come, and
    /// every plan is fulfilled: only another document may follow.
    pub(crate) fn all_planned(&self) -> Option<u64> {
        let has_all = self.patterns.tap == TapMode::Require && self.has_all() && self.tap.is_fulfilled();
        has_all.then(|| self.tap.documents())
    }

    /// Returns whether the guest's kernel has run its own tests and has nothing else to run.
    pub(crate) fn is_over(&self) -> bool {
        self.counts_tap() && self.tap.is_over()
    }

    /// Returns whether the verdict on a guest that runs a command is decided. What only the console shows is
    /// not enough: the command's exit code counts.
    pub(crate) fn is_decided_by_command(&self) -> bool {
        self.rejected.is_some() || (self.met_by_command && self.is_decided())
    }

    /// Returns whether the console can decide the verdict, and not only the guest's end.
    pub(crate) fn wants_something(&self) -> bool {
        !self.met.is_empty() || self.counts_tap()
    }

    /// Returns the expectations that no line has met.
    pub(crate) fn unmet(&self) -> impl Iterator<Item = &str> {
        self.patterns.expect.iter().zip(&self.met).filter(|(_, met)| !**met).map(|(regex, _)| regex.as_str())
    }

    /// Returns the rejected line, if one came.
    pub(crate) fn rejected(&self) -> Option<&Rejection> {
        self.rejected.as_ref()
    }

    /// Describes what is wrong with the TAP results, if they count.
    pub(crate) fn tap_complaint(&self) -> Option<String> {
        let left_out = || self.tap.left_out().map(|left_out| format!("TAP: {left_out}"));
        match (self.patterns.tap, self.tap.has_begun()) {
            (TapMode::Ignore, _) | (TapMode::Auto, false) => None,
            (TapMode::Auto, true) => self.tap.complaint(),
            (TapMode::Require, true) => {
                let is_empty = self.tap.counts() == TapCounts::default();
                let empty = || is_empty.then(|| "TAP: there were no tests to run".to_owned());
                self.tap.complaint().or_else(left_out).or_else(empty)
            }
            (TapMode::Require, false) if self.tap.has_no_plan() => Some("TAP: no plan came".to_owned()),
            (TapMode::Require, false) => {
                Some(left_out().unwrap_or_else(|| "TAP: no results came".to_owned()))
            }
        }
    }

    /// Explains that all tests were skipped, if nothing is expected but TAP results and each of them was.
    pub(crate) fn tap_all_skipped(&self) -> Option<String> {
        let reason = self.tap().filter(|_| self.patterns.expect.is_empty())?.all_skipped()?;
        let by = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        Some(format!("TAP: all tests were skipped{by}"))
    }

    /// Describes what looked like TAP results but did not count, for a run that does not fail because of it.
    pub(crate) fn tap_left_out(&self) -> Option<&str> {
        self.tap.left_out().filter(|_| self.patterns.tap == TapMode::Auto)
    }

    /// Returns the TAP results, if they count and there are any.
    pub(crate) fn tap(&self) -> Option<&Tap> {
        (self.patterns.tap != TapMode::Ignore && self.tap.has_begun()).then_some(&self.tap)
    }

    /// Explains why the console's log file is incomplete.
    pub(crate) fn log_failure(&self) -> Option<String> {
        let failure = self.log.as_ref()?.failure()?;
        Some(format!("--artifacts: the console cannot be written to its file: {failure}"))
    }

    /// Returns the last lines.
    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }

    fn counts_tap(&self) -> bool {
        self.patterns.tap == TapMode::Require || self.tap().is_some()
    }

    fn line(&mut self, writer: Writer) -> &mut OpenLine {
        let [console, stdout, stderr] = &mut self.lines;
        match writer {
            Writer::Console => console,
            Writer::Stdout => stdout,
            Writer::Stderr => stderr,
        }
    }

    fn end_line(&mut self, writer: Writer, line: WholeLine) {
        let forms = forms(&line.text);
        if self.patterns.tap != TapMode::Ignore && line.is_first {
            for part in parts(&line.text) {
                self.is_past_tap &= !self.tap.feed(writer as usize, &without_escapes(part));
            }
        }
        self.is_past_tap |= self.look_for_expected(writer, &forms) | std::mem::take(&mut self.met_in_line);
        self.look_for_rejected(writer, &line.text, &forms);
        drop(forms);
        if self.tail.len() >= TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.news);
    }

    /// Returns whether a further expectation was met.
    fn look_for_expected(&mut self, writer: Writer, forms: &[Cow<'_, str>]) -> bool {
        let mut is_news = false;
        for (regex, met) in self.patterns.expect.iter().zip(&mut self.met) {
            let is_wanted = !*met || (writer != Writer::Console && !self.met_by_command);
            if is_wanted && forms.iter().any(|form| regex.is_match(form)) {
                *met = true;
                self.met_by_command |= writer != Writer::Console;
                is_news = true;
            }
        }
        is_news
    }

    fn look_for_rejected(&mut self, writer: Writer, line: &str, forms: &[Cow<'_, str>]) {
        if self.rejected.is_none() {
            let is_broken = |regex: &&Regex| forms.iter().any(|form| regex.is_match(form));
            self.rejected = self.patterns.reject.iter().find(is_broken).map(|regex| Rejection {
                pattern: regex.as_str().to_owned(),
                line: line.to_owned(),
                writer,
            });
        }
    }
}

impl Writer {
    const ALL: [Writer; TEXTS] = [Writer::Console, Writer::Stdout, Writer::Stderr];
}

/// Longer than a kernel panic with registers and a stack trace.
const TAIL_LINES: usize = 100;

#[cfg(test)]
mod tests;
