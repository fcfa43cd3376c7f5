//! The runs of one case: the first run, and the repetitions by `--retries` if it fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::case::{Case, Done};
use super::report;
use super::shown::Shown;
use super::verdict::Verdict;
use crate::arguments::Flaky;
use crate::commands::settings::Failure;

/// How a failing case is repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retries {
    /// The maximum number of repetitions.
    pub(crate) count: u8,
    /// The result of a case that passes in a repetition.
    pub(crate) flaky: Flaky,
}

/// A run that failed and was repeated. It keeps what a person reads about it.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) verdict: Verdict,
    pub(crate) time: Duration,
    pub(crate) explanation: Vec<String>,
}

impl Retries {
    /// Runs a case until it passes or has used up its retries. A case whose machine cannot be built is not
    /// repeated.
    ///
    /// # Errors
    /// A file in `artifacts` cannot be created.
    pub(crate) fn run(
        self,
        case: &Case,
        artifacts: Option<&Path>,
        shown: Option<&Arc<Shown>>,
    ) -> Result<Done, Failure> {
        let mut earlier = Vec::new();
        loop {
            let done = case.run(earlier.len(), artifacts, shown)?;
            let is_again =
                done.verdict.is_bad() && done.outcome.is_some() && earlier.len() < self.count.into();
            if is_again {
                let explanation = report::explanation(&done, false);
                earlier.push(Attempt { verdict: done.verdict, time: done.time, explanation });
                continue;
            }
            return Ok(self.settled(Done { earlier, ..done }));
        }
    }

    /// Returns the last run, with its verdict changed by the earlier ones.
    fn settled(self, done: Done) -> Done {
        let is_flaky = done.verdict == Verdict::Passed && !done.earlier.is_empty();
        let done = Done { is_flaky, ..done };
        match (self.flaky, done.flakiness()) {
            (Flaky::Fail, Some(reason)) => {
                Done { verdict: Verdict::Failed(format!("flaky: {reason}")), ..done }
            }
            _ => done,
        }
    }
}

impl Done {
    /// Says in which run a flaky case has passed, and why the runs before it failed.
    pub(crate) fn flakiness(&self) -> Option<String> {
        let first = self.earlier.first().filter(|_| self.is_flaky)?;
        let reason = first.verdict.reason().unwrap_or_default();
        Some(format!("passed in run {}, after: {reason}", self.earlier.len() + 1))
    }
}

/// The largest value of `--retries`.
pub(crate) const MAX_RETRIES: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::test::scanner::{Patterns, Scanner};

    fn done(verdict: Verdict, failed: usize) -> Done {
        let attempt = |_| Attempt {
            verdict: Verdict::Failed("no line".into()),
            time: Duration::ZERO,
            explanation: Vec::new(),
        };
        Done {
            name: "case".into(),
            verdict,
            outcome: None,
            scanner: Scanner::new(Patterns::default(), None),
            time: Duration::ZERO,
            earlier: (0..failed).map(attempt).collect(),
            is_flaky: false,
        }
    }

    #[test]
    fn case_that_passes_later_is_flaky_and_fails_where_that_is_wanted() {
        let settled = |flaky, verdict, failed| Retries { count: 3, flaky }.settled(done(verdict, failed));
        let flaky = settled(Flaky::Pass, Verdict::Passed, 2);
        assert_eq!((flaky.verdict.code(), flaky.is_flaky), (0, true));
        assert_eq!(flaky.flakiness().unwrap(), "passed in run 3, after: no line");
        let failed = settled(Flaky::Fail, Verdict::Passed, 2);
        assert_eq!((failed.verdict.code(), failed.is_flaky), (120, true));
        assert_eq!(failed.verdict.reason(), Some("flaky: passed in run 3, after: no line"));
        for flaky in [Flaky::Pass, Flaky::Fail] {
            assert_eq!(settled(flaky, Verdict::Passed, 0).verdict, Verdict::Passed);
            assert!(!settled(flaky, Verdict::Failed(String::new()), 3).is_flaky);
        }
    }
}
