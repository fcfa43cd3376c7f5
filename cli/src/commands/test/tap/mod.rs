//! Results in the Test Anything Protocol (versions 12 to 14) and the kernel's KTAP (version 1), as a console
//! shows them: in between other lines, after the timestamps of a log, and in several documents.
//! `docs/testing.md` says which rule is taken how.
//!
//! A line goes through `prefix` (what the log adds), `track` (where a document begins and ends), `line` (what
//! it is) and `document` (what it changes there); `sum` is what all came to. The scanner calls [`Tap`];
//! nothing here reads or writes anything. Names and numbers are the guest's: all that is kept is bounded.

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
    /// For each text: what is written there, and what the kernel logs there.
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
    /// Failures that are known and expected.
    pub(crate) todo: u64,
}

impl Default for Tap {
    fn default() -> Tap {
        let tracks = || [Track::new(true), Track::new(false)];
        Tap { texts: std::array::from_fn(|_| tracks()), sum: Sum::default(), is_over: false }
    }
}

impl Tap {
    /// Takes a line, without escape sequences and its end, of one of the [`TEXTS`]. Whether it is part of a
    /// document.
    pub(crate) fn feed(&mut self, text: usize, line: &str) -> bool {
        let is_end = ENDS.iter().any(|words| line.contains(words)) && self.has_begun() && self.is_complete();
        self.is_over |= is_end;
        let Some([written, logged]) = self.texts.get_mut(text) else { return false };
        match without_log_prefix(line) {
            Some(rest) => logged.feed(rest, &mut self.sum),
            None => written.feed(line, &mut self.sum),
        }
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self) {
        for track in self.texts.iter_mut().flatten() {
            track.close(&mut self.sum);
        }
    }

    /// Whether there is a document.
    pub(crate) fn has_begun(&self) -> bool {
        self.documents() > 0
    }

    /// How many documents have begun.
    pub(crate) fn documents(&self) -> u64 {
        let open = self.open().filter(|document| document.counts()).count();
        self.sum.documents.saturating_add(open as u64)
    }

    /// Whether nothing is missing of what was announced, in any document. More documents may follow.
    pub(crate) fn is_complete(&self) -> bool {
        let is_done = |document: &Document| !document.has_something() || document.is_complete();
        self.sum.bailed_out.is_some() || (!self.sum.tally.is_cut_short && self.open().all(is_done))
    }

    /// The same, and every document that is open has a plan: a KTAP document without one may go on.
    pub(crate) fn is_fulfilled(&self) -> bool {
        let is_done = |document: &Document| !document.has_something() || document.is_fulfilled();
        self.has_begun() && self.is_complete() && self.open().all(is_done)
    }

    /// Whether the guest has given up its tests.
    pub(crate) fn has_bailed_out(&self) -> bool {
        self.sum.bailed_out.is_some()
    }

    /// Whether a kernel whose tests are built in has ended: there is no root for it to go on with, which is
    /// not a failure of the tests. `kunit.py` ends there, too.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// What is wrong, if anything is. To be called after [`Tap::end`].
    pub(crate) fn complaint(&self) -> Option<String> {
        self.sum.complaint()
    }

    /// What came and does not count, as the end of a sentence: failures without a plan and a version line, or
    /// a plan without results. To be called after [`Tap::end`].
    pub(crate) fn left_out(&self) -> Option<&str> {
        self.sum.left_out.as_deref()
    }

    /// Whether results came that are not a document, because they have no plan.
    pub(crate) fn has_no_plan(&self) -> bool {
        self.sum.has_no_plan
    }

    /// Whether there were tests, and every one of them was skipped: why, where that was said.
    pub(crate) fn all_skipped(&self) -> Option<&str> {
        let TapCounts { passed, failed, skipped, todo } = self.counts();
        let is_so = skipped > 0 && passed == 0 && failed == 0 && todo == 0;
        is_so.then(|| {
            self.sum.tally.results.iter().map(|it| it.reason.as_str()).find(|it| !it.is_empty()).unwrap_or("")
        })
    }

    /// How many results had which outcome. A result that sums up a subtest is not counted with it.
    pub(crate) fn counts(&self) -> TapCounts {
        let tally = &self.sum.tally;
        TapCounts { passed: tally.passed, failed: tally.failed, skipped: tally.skipped, todo: tally.todo }
    }

    /// The results, each of them a test case for a report: the first 10,000 of a run, and failures after them
    /// up to 1000 more. Those of one document follow each other; results with subtests are not among them. To
    /// be called after [`Tap::end`].
    pub(crate) fn results(&self) -> &[TapResult] {
        &self.sum.tally.results
    }

    /// How many results were counted and are not in [`Tap::results`].
    pub(crate) fn results_left_out(&self) -> u64 {
        self.sum.tally.total().saturating_sub(self.results().len() as u64)
    }

    fn open(&self) -> impl Iterator<Item = &Document> {
        self.texts.iter().flatten().filter_map(Track::document)
    }
}

/// Texts whose lines do not mix: the console, and the outputs of a command.
pub(crate) const TEXTS: usize = 3;
/// What the kernel says when it has no root, in the form that `kunit.py` knows.
const ENDS: [&str; 2] = ["List of all partitions:", "Kernel panic - not syncing: VFS:"];
