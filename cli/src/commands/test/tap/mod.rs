//! Results in the Test Anything Protocol (versions 12 to 14) and in the kernel's KTAP (version 1), as they
//! appear on a console: between other lines, after the timestamps of a log, and in several documents.
//! `docs/testing.md` explains how each rule is applied.
//!
//! A line passes through `prefix` (what the log adds), `track` (where a document begins and ends), `line`
//! (its kind) and `document` (its effect there); `sum` holds the total. The scanner calls [`Tap`]; nothing
//! here does I/O. Names and numbers come from the guest, so everything that is kept is bounded.

mod diagnostics;
mod document;
mod level;
mod line;
mod numbers;
mod prefix;
mod sum;
mod tally;
mod track;

use self::document::Document;
use self::prefix::without_log_prefix;
use self::sum::Sum;
use self::track::Track;

pub(crate) use self::tally::{TapOutcome, TapResult};

/// The results of a run.
#[derive(Debug)]
pub(crate) struct Tap {
    /// For each text, one track for what programs write and one for the kernel's log.
    texts: [[Track; 2]; TEXTS],
    sum: Sum,
    is_over: bool,
}

/// How many results had which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TapCounts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Known, expected failures.
    pub(crate) todo: u64,
}

impl Default for Tap {
    fn default() -> Tap {
        let tracks = || [Track::new(true), Track::new(false)];
        Tap { texts: std::array::from_fn(|_| tracks()), sum: Sum::default(), is_over: false }
    }
}

impl Tap {
    /// Takes a line of one of the [`TEXTS`], without escape sequences and line ending, and returns whether it
    /// is part of a document.
    pub(crate) fn feed(&mut self, text: usize, line: &str) -> bool {
        let is_end = ENDS.iter().any(|words| line.contains(words)) && self.has_begun() && self.is_complete();
        self.is_over |= is_end;
        let Some([written, logged]) = self.texts.get_mut(text) else { return false };
        match without_log_prefix(line) {
            Some(rest) => logged.feed(rest, &mut self.sum),
            None => written.feed(line, &mut self.sum),
        }
    }

    /// Marks the end of all output.
    pub(crate) fn end(&mut self) {
        for track in self.texts.iter_mut().flatten() {
            track.close(&mut self.sum);
        }
    }

    /// Returns whether there is a document.
    pub(crate) fn has_begun(&self) -> bool {
        self.documents() > 0
    }

    /// Returns how many documents have begun.
    pub(crate) fn documents(&self) -> u64 {
        let open = self.open().filter(|document| document.counts()).count();
        self.sum.documents.saturating_add(open as u64)
    }

    /// Returns whether every document has all the results that it announced. Further documents may follow.
    pub(crate) fn is_complete(&self) -> bool {
        let is_done = |document: &Document| !document.has_something() || document.is_complete();
        self.sum.bailed_out.is_some() || (!self.sum.tally.is_cut_short && self.open().all(is_done))
    }

    /// Returns whether that is so and every open document has a plan: a KTAP document without one may
    /// continue.
    pub(crate) fn is_fulfilled(&self) -> bool {
        let is_done = |document: &Document| !document.has_something() || document.is_fulfilled();
        self.has_begun() && self.is_complete() && self.open().all(is_done)
    }

    /// Returns whether the guest has abandoned its tests.
    pub(crate) fn has_bailed_out(&self) -> bool {
        self.sum.bailed_out.is_some()
    }

    /// Returns whether a kernel with built-in tests has finished: it then has no root to continue with, which
    /// is not a failure of the tests. `kunit.py` stops there, too.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Describes what is wrong, if anything is. Call it after [`Tap::end`].
    pub(crate) fn complaint(&self) -> Option<String> {
        self.sum.complaint()
    }

    /// Describes results that came but do not count, as the end of a sentence: failures without a plan and a
    /// version line, or a plan without results. Call it after [`Tap::end`].
    pub(crate) fn left_out(&self) -> Option<&str> {
        self.sum.left_out.as_deref()
    }

    /// Returns whether results came that are not a document, because they have no plan.
    pub(crate) fn has_no_plan(&self) -> bool {
        self.sum.has_no_plan
    }

    /// If there were tests and all of them were skipped, returns the reason that was given.
    pub(crate) fn all_skipped(&self) -> Option<&str> {
        let TapCounts { passed, failed, skipped, todo } = self.counts();
        let is_so = skipped > 0 && passed == 0 && failed == 0 && todo == 0;
        is_so.then(|| {
            self.sum.tally.results.iter().map(|it| it.reason.as_str()).find(|it| !it.is_empty()).unwrap_or("")
        })
    }

    /// Counts the results by outcome. A result that sums up a subtest does not count in addition to the
    /// subtest.
    pub(crate) fn counts(&self) -> TapCounts {
        let tally = &self.sum.tally;
        TapCounts { passed: tally.passed, failed: tally.failed, skipped: tally.skipped, todo: tally.todo }
    }

    /// Returns the results for a report, each as a test case: the first 10,000 of a run, and up to 1000
    /// failures after them. Those of one document are adjacent; results with subtests are not included. Call
    /// it after [`Tap::end`].
    pub(crate) fn results(&self) -> &[TapResult] {
        &self.sum.tally.results
    }

    /// Returns how many results were counted but are not in [`Tap::results`].
    pub(crate) fn results_left_out(&self) -> u64 {
        self.sum.tally.total().saturating_sub(self.results().len() as u64)
    }

    fn open(&self) -> impl Iterator<Item = &Document> {
        self.texts.iter().flatten().filter_map(Track::document)
    }
}

/// The number of texts whose lines do not mix: the console, and the two outputs of a command.
pub(crate) const TEXTS: usize = 3;
/// The lines that the kernel prints when it has no root, in the form that `kunit.py` recognizes.
const ENDS: [&str; 2] = ["List of all partitions:", "Kernel panic - not syncing: VFS:"];
