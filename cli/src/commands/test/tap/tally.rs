//! Counting the results of a level, a document or a run. Counts are exact; what else is kept is bounded.

/// A result that counts: one without subtests of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TapResult {
    /// The number of its document in the run, from 1.
    pub(crate) document: u64,
    /// The names of the enclosing tests from outside in, separated by `/`; empty for a test of the document
    /// itself. At most 400 bytes.
    pub(crate) suite: String,
    /// Its name, at most 200 bytes without control characters; empty if the guest gave none.
    pub(crate) name: String,
    /// Its number within its level, counted if the guest gave none.
    pub(crate) number: u64,
    pub(crate) outcome: TapOutcome,
    /// The text of its directive, or other text after the `#`; empty if there is none. Limited like the name.
    pub(crate) reason: String,
    /// For a failure, the comments around it and the lines of its YAML block: at most 8 KiB without control
    /// characters other than line breaks.
    pub(crate) diagnostics: String,
}

/// The outcome of a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum TapOutcome {
    #[default]
    Passed,
    Failed,
    /// Skipped: `# SKIP`.
    Skipped,
    /// A known failure, which may also have passed: `# TODO`, `# XFAIL`.
    Todo,
}

/// How much more may be kept.
#[derive(Debug)]
pub(super) struct Budget {
    any: usize,
    /// The number of further failures, once the budget for all results is used up.
    failed: usize,
    /// The number of bytes of diagnostics.
    text: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { any: KEPT, failed: KEPT_FAILED, text: KEPT_TEXT }
    }
}

impl Budget {
    /// Reserves `bytes` bytes of diagnostics, if there is room.
    pub(super) fn take_text(&mut self, bytes: usize) -> bool {
        let left = self.text.checked_sub(bytes);
        self.text = left.unwrap_or(self.text);
        left.is_some()
    }

    fn take(&mut self, outcome: TapOutcome) -> bool {
        let left = match outcome {
            TapOutcome::Failed if self.any == 0 => &mut self.failed,
            _ => &mut self.any,
        };
        let is_left = *left > 0;
        *left = left.saturating_sub(1);
        is_left
    }
}

/// The counts, the first results, the names of the first failures, and other faults.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    pub(super) todo: u64,
    pub(super) results: Vec<TapResult>,
    pub(super) failures: Vec<String>,
    pub(super) faults: Vec<String>,
    /// The number of faults beyond those that are kept.
    pub(super) more_faults: u64,
    /// True if something that was announced did not come.
    pub(super) is_cut_short: bool,
}

impl Tally {
    /// Counts a result, which the list of failures calls `label`. Returns it if it is kept.
    pub(super) fn add(
        &mut self,
        result: TapResult,
        label: &str,
        budget: &mut Budget,
    ) -> Option<&mut TapResult> {
        let count = match result.outcome {
            TapOutcome::Passed => &mut self.passed,
            TapOutcome::Failed => &mut self.failed,
            TapOutcome::Skipped => &mut self.skipped,
            TapOutcome::Todo => &mut self.todo,
        };
        *count = count.saturating_add(1);
        if result.outcome == TapOutcome::Failed && self.failures.len() < FAILURES {
            self.failures.push(label.to_owned());
        }
        if !budget.take(result.outcome) {
            return None;
        }
        self.results.push(result);
        self.results.last_mut()
    }

    /// Records a fault that no result reports.
    pub(super) fn fault(&mut self, fault: impl Into<String>) {
        if self.faults.len() < FAULTS {
            self.faults.push(fault.into());
        } else {
            self.more_faults = self.more_faults.saturating_add(1);
        }
    }

    /// Records that something that was announced is missing.
    pub(super) fn cut_short(&mut self, fault: impl Into<String>) {
        self.is_cut_short = true;
        self.fault(fault);
    }

    /// Returns whether there is a failure or a fault.
    pub(super) fn is_bad(&self) -> bool {
        self.failed > 0 || !self.faults.is_empty()
    }

    /// Returns the number of results that count.
    pub(super) fn total(&self) -> u64 {
        let counts = [self.passed, self.failed, self.skipped, self.todo];
        counts.into_iter().fold(0, u64::saturating_add)
    }

    /// Applies a directive of the enclosing test: failures and faults in it no longer count as such.
    pub(super) fn cover(&mut self, outcome: TapOutcome) {
        let count = if outcome == TapOutcome::Skipped { &mut self.skipped } else { &mut self.todo };
        *count = count.saturating_add(std::mem::take(&mut self.failed));
        for result in self.results.iter_mut().filter(|result| result.outcome == TapOutcome::Failed) {
            result.outcome = outcome;
        }
        self.failures.clear();
        self.faults.clear();
        self.more_faults = 0;
        self.is_cut_short = false;
    }

    /// Adds the results of a part with the name `part`, which is empty for a whole document.
    pub(super) fn merge(&mut self, other: Tally, part: &str) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.todo = self.todo.saturating_add(other.todo);
        self.is_cut_short |= other.is_cut_short;
        self.more_faults = self.more_faults.saturating_add(other.more_faults);
        self.results.extend(other.results.into_iter().map(|mut result| {
            result.suite = joined(part, "/", &result.suite);
            result
        }));
        let room = FAILURES.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.iter().take(room).map(|name| joined(part, "/", name)));
        for fault in &other.faults {
            self.fault(joined(part, ": ", fault));
        }
    }
}

fn joined(part: &str, by: &str, rest: &str) -> String {
    match (part, rest) {
        ("", text) | (text, "") => text.to_owned(),
        _ => {
            let mut path = format!("{part}{by}{rest}");
            path.truncate(path.floor_char_boundary(PATH_BYTES));
            path
        }
    }
}

/// The number of results that are kept; nobody reads a longer report. With the longest names they take some
/// 10 MB.
const KEPT: usize = 10_000;
/// The number of later failures that are kept, because a report is read for its failures.
const KEPT_FAILED: usize = 1000;
/// The number of bytes of diagnostics that are kept for a run.
const KEPT_TEXT: usize = 1 << 20;
const FAILURES: usize = 10;
const FAULTS: usize = 4;
const PATH_BYTES: usize = 400;
