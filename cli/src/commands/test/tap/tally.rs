//! What has come, counted: of a level, of a document, of all. Counts are exact; what is kept beside them is
//! bounded.

/// A result that counts: one without subtests of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TapResult {
    /// Which of the documents of the run it is in, from 1.
    pub(crate) document: u64,
    /// The names of the tests that it is part of, from the outermost on, with `/` between; empty for a test
    /// of the document itself. At most 400 bytes.
    pub(crate) suite: String,
    /// Its own name, of at most 200 bytes that steer no terminal; empty where the guest gave none.
    pub(crate) name: String,
    /// Its number in its level, counted where the guest gave none.
    pub(crate) number: u64,
    pub(crate) outcome: TapOutcome,
    /// The text of its directive, or what else comes after the `#`; empty for none. Bounded and harmless like
    /// the name.
    pub(crate) reason: String,
    /// Of a failure, the comments around it and the lines of its YAML block: at most 8 KiB that steer no
    /// terminal, in lines.
    pub(crate) diagnostics: String,
}

/// What a result comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum TapOutcome {
    #[default]
    Passed,
    Failed,
    /// `# SKIP`.
    Skipped,
    /// A failure that is known: `# TODO`, `# XFAIL`. It may have passed.
    Todo,
}

/// How many results may still be kept.
#[derive(Debug)]
pub(super) struct Budget {
    any: usize,
    /// For failures after all others have been used up.
    failed: usize,
    /// Bytes of diagnostics.
    text: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { any: KEPT, failed: KEPT_FAILED, text: KEPT_TEXT }
    }
}

impl Budget {
    /// Takes room for so many bytes of diagnostics, if there is as much.
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

/// Counts, the first results, the first failures by name, and what is wrong beside them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    pub(super) todo: u64,
    pub(super) results: Vec<TapResult>,
    pub(super) failures: Vec<String>,
    pub(super) faults: Vec<String>,
    /// Faults beyond those that are kept.
    pub(super) more_faults: u64,
    /// Something that was announced did not come.
    pub(super) is_cut_short: bool,
}

impl Tally {
    /// Counts a result that failures call `label`, and returns it if it is kept.
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

    /// Notes what is wrong though no result says so.
    pub(super) fn fault(&mut self, fault: impl Into<String>) {
        if self.faults.len() < FAULTS {
            self.faults.push(fault.into());
        } else {
            self.more_faults = self.more_faults.saturating_add(1);
        }
    }

    /// Notes that something that was announced is missing.
    pub(super) fn cut_short(&mut self, fault: impl Into<String>) {
        self.is_cut_short = true;
        self.fault(fault);
    }

    /// Whether anything failed or is wrong.
    pub(super) fn is_bad(&self) -> bool {
        self.failed > 0 || !self.faults.is_empty()
    }

    /// How many results are counted.
    pub(super) fn total(&self) -> u64 {
        let counts = [self.passed, self.failed, self.skipped, self.todo];
        counts.into_iter().fold(0, u64::saturating_add)
    }

    /// Lets a directive of the test that all this is part of decide: failures are none, nor is anything
    /// wrong.
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

    /// Adds what has come in a part of the name `part`; an empty one for a whole document.
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

/// A report of more is nobody's to read. With the longest names this takes some 10 MB.
const KEPT: usize = 10_000;
/// Failures that come later are what a report is for.
const KEPT_FAILED: usize = 1000;
/// Bytes of diagnostics that a run may have.
const KEPT_TEXT: usize = 1 << 20;
const FAILURES: usize = 10;
const FAULTS: usize = 4;
const PATH_BYTES: usize = 400;
