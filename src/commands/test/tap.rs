//! Results in the Test Anything Protocol (version 13 and 14) and the kernel's KTAP (version 1), as a console shows them.
//!
//! A result that sums up a subtest is not counted with it. Names and numbers are the guest's: what is kept is bounded.

/// The results so far.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    begun: bool,
    /// Results of the outermost level, and how many were announced there.
    outer_results: u64,
    plan: Option<u64>,
    /// Depth of the innermost result since the last one of each level, so that a sum is told from a result.
    deepest: usize,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Failures that are known and expected (`# TODO`).
    pub(crate) todo: u64,
    bailed_out: Option<String>,
    /// The first failures by name.
    failures: Vec<String>,
}

impl Tap {
    /// Takes a line of the console.
    pub(crate) fn feed(&mut self, line: &str) {
        let line = without_timestamp(line);
        let text = line.trim_start_matches(' ');
        let depth = line.len() - text.len();
        if text.starts_with("TAP version ") || text.starts_with("KTAP version ") {
            self.begun = true;
        } else if self.begun {
            self.feed_body(depth, text);
        }
    }

    /// Whether there are results.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether all results that were announced are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.bailed_out.is_some() || self.plan.is_some_and(|plan| self.outer_results >= plan)
    }

    /// What is wrong, if anything is.
    pub(crate) fn complaint(&self) -> Option<String> {
        if let Some(reason) = &self.bailed_out {
            return Some(format!("TAP: bailed out: {reason}"));
        }
        if self.failed > 0 {
            let of = self.passed + self.failed;
            return Some(format!("TAP: {} of {of} failed: {}", self.failed, self.failures.join(", ")));
        }
        match self.plan {
            None => Some("TAP: no plan came".to_owned()),
            Some(plan) if self.outer_results < plan => {
                Some(format!("TAP: {} of {plan} results came", self.outer_results))
            }
            Some(_) => None,
        }
    }

    fn feed_body(&mut self, depth: usize, text: &str) {
        if let Some(reason) = text.strip_prefix("Bail out!") {
            self.bailed_out.get_or_insert_with(|| reason.trim().chars().take(NAME_CHARS).collect());
        } else if let Some(plan) = text.strip_prefix("1..") {
            let number = plan.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
            if depth == 0 && self.plan.is_none() {
                self.plan = number;
            }
        } else if let Some(rest) = text.strip_prefix("not ok") {
            self.result(depth, false, rest);
        } else if let Some(rest) = text.strip_prefix("ok") {
            self.result(depth, true, rest);
        }
    }

    fn result(&mut self, depth: usize, is_ok: bool, rest: &str) {
        // `okay` is a word of a log.
        if !rest.is_empty() && !rest.starts_with(' ') {
            return;
        }
        if depth == 0 {
            self.outer_results += 1;
        }
        let sums_up = self.deepest > depth;
        self.deepest = depth;
        if sums_up {
            return;
        }
        let (name, directive) = rest.rsplit_once(" # ").unwrap_or((rest, ""));
        let directive = directive.to_ascii_uppercase();
        if directive.starts_with("SKIP") {
            self.skipped += 1;
        } else if directive.starts_with("TODO") {
            self.todo += 1;
        } else if is_ok {
            self.passed += 1;
        } else {
            self.failed += 1;
            if self.failures.len() < FAILURES {
                self.failures.push(name.trim().chars().take(NAME_CHARS).collect());
            }
        }
    }
}

/// A line of the kernel's log without `[    1.234567] ` in front.
fn without_timestamp(line: &str) -> &str {
    let rest = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    match rest {
        Some((time, rest)) if time.trim().chars().all(|c| c.is_ascii_digit() || c == '.') => rest,
        _ => line,
    }
}

const FAILURES: usize = 10;
const NAME_CHARS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(text: &str) -> Tap {
        let mut tap = Tap::default();
        text.lines().for_each(|line| tap.feed(line));
        tap
    }

    #[test]
    fn plan_and_results_without_failures_are_complete_and_good() {
        for text in [
            "TAP version 13\n1..2\nok 1 a\nok 2 - b",
            "TAP version 14\nok 1\nok 2 # SKIP no disk\n1..2",
            "boot noise\n[    0.123456] KTAP version 1\n[    0.123460] 1..1\n[    0.2] ok 1 suite",
            "TAP version 13\n1..0 # SKIP nothing to do",
        ] {
            let tap = tap(text);
            assert!(tap.is_complete(), "{text}");
            assert_eq!(tap.complaint(), None, "{text}");
        }
    }

    #[test]
    fn results_of_subtests_count_and_their_sums_do_not() {
        let tap =
            tap("KTAP version 1\n1..2\n    KTAP version 1\n    # Subtest: s\n    1..2\n    ok 1 a\n    \
                       not ok 2 b\nnot ok 1 s\nok 2 t");
        assert_eq!((tap.passed, tap.failed), (2, 1));
        assert!(tap.is_complete());
        assert_eq!(tap.complaint().unwrap(), "TAP: 1 of 3 failed: 2 b");
    }

    #[test]
    fn words_before_the_version_and_like_results_do_not_count() {
        let tap = tap("ok 1 no\nTAP version 13\n1..1\nokay then\nnot okay\nok 1 yes");
        assert_eq!((tap.passed, tap.failed), (1, 0));
        assert!(!super::Tap::default().has_begun());
    }

    #[test]
    fn missing_results_a_missing_plan_and_a_bail_out_are_complaints() {
        assert_eq!(tap("TAP version 13\n1..3\nok 1").complaint().unwrap(), "TAP: 1 of 3 results came");
        assert_eq!(tap("TAP version 13\nok 1").complaint().unwrap(), "TAP: no plan came");
        let bailed = tap("TAP version 13\n1..3\nok 1\nBail out! no memory");
        assert!(bailed.is_complete());
        assert_eq!(bailed.complaint().unwrap(), "TAP: bailed out: no memory");
    }

    #[test]
    fn known_failures_are_no_failures() {
        let tap = tap("TAP version 13\n1..2\nnot ok 1 old # TODO later\nok 2 x");
        assert_eq!((tap.passed, tap.failed, tap.todo, tap.complaint()), (1, 0, 1, None));
    }

    #[test]
    fn hostile_results_take_bounded_memory() {
        let mut tap = Tap::default();
        tap.feed("TAP version 13");
        tap.feed("1..18446744073709551615");
        tap.feed("1..99999999999999999999999");
        for number in 0..10_000 {
            tap.feed(&format!("not ok {number} {}", "x".repeat(1000)));
        }
        assert!(tap.complaint().unwrap().len() < 2000);
    }
}
