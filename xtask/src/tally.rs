//! Counts the results that test programs print.

use std::fmt;
use std::ops::AddAssign;

/// The numbers of tests, by result.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { passed, failed, skipped } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The output of test programs, counted as it comes, in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct TestOutput {
    /// The beginning of an incomplete line.
    unfinished: Vec<u8>,
    reported: Tally,
    /// The number of tests that printed `skipped: WHY` and returned, so that their program counted them as
    /// passed.
    returned_early: u64,
}

impl TestOutput {
    /// Counts the complete lines in this piece, and passes them to `print`: whole lines only, because several
    /// runs may print.
    pub(crate) fn push(&mut self, piece: &[u8], mut print: impl FnMut(&[u8])) {
        self.unfinished.extend_from_slice(piece);
        while let Some(end) = self.unfinished.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            self.count(&String::from_utf8_lossy(&line));
            print(&line);
        }
    }

    /// Returns the text after the last complete line.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.unfinished
    }

    /// Combines the counts of both outputs of a run. `ended_well` is whether its exit code was 0: a run that
    /// failed without naming a failed test, because it did not build or a program crashed, counts as one
    /// failure.
    pub(crate) fn tally(outputs: [Self; 2], ended_well: bool) -> Tally {
        let mut tally = Tally::default();
        let mut returned_early = 0;
        for output in outputs {
            tally += output.reported;
            returned_early += output.returned_early;
        }
        tally.passed = tally.passed.saturating_sub(returned_early);
        tally.skipped += returned_early;
        if !ended_well {
            tally.failed = tally.failed.max(1);
        }
        tally
    }

    fn count(&mut self, line: &str) {
        if let Some(counts) = line.trim().strip_prefix("test result: ") {
            self.reported += Tally {
                passed: number_before("passed", counts),
                failed: number_before("failed", counts),
                skipped: number_before("ignored", counts),
            };
            return;
        }
        // When tests run one by one, the name of the test precedes it on the same line.
        let says_why =
            line.starts_with("skipped: ") || line.starts_with("test ") && line.contains(" ... skipped: ");
        self.returned_early += u64::from(says_why);
    }
}

/// Returns the number before `word` in `ok. 3 passed; 1 failed; 2 ignored; ...`.
fn number_before(word: &str, counts: &str) -> u64 {
    let number = counts
        .split(';')
        .find_map(|count| count.trim().strip_suffix(word)?.split_whitespace().last()?.parse().ok());
    number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_PROGRAMS: &str = "\
running 3 tests
test a ... ok
skipped: no /dev/kvm
test b ... ok
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 2 tests
test c ... skipped: no qemu
ok
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    fn tally(stdout: &str, stderr: &str, ended_well: bool) -> Tally {
        let outputs = [stdout, stderr].map(|text| {
            let mut output = TestOutput::default();
            output.push(text.as_bytes(), |_| {});
            output
        });
        TestOutput::tally(outputs, ended_well)
    }

    #[test]
    fn programs_are_summed_and_skipped_tests_are_not_passed() {
        assert_eq!(tally(TWO_PROGRAMS, "", false), Tally { passed: 1, failed: 1, skipped: 3 });
    }

    #[test]
    fn skip_on_stderr_takes_from_what_passed_on_stdout() {
        let result = "test result: ok. 2 passed; 0 failed; 0 ignored\n";
        assert_eq!(tally(result, "skipped: why\n", true), Tally { passed: 1, failed: 0, skipped: 1 });
    }

    #[test]
    fn pieces_of_one_byte_count_the_same() {
        let mut output = TestOutput::default();
        let mut printed = Vec::new();
        for byte in TWO_PROGRAMS.as_bytes() {
            output.push(&[*byte], |line| {
                assert!(line.ends_with(b"\n"));
                printed.extend_from_slice(line);
            });
        }
        assert_eq!(printed, TWO_PROGRAMS.as_bytes());
        let whole = tally(TWO_PROGRAMS, "", false);
        assert_eq!(TestOutput::tally([output, TestOutput::default()], false), whole);
    }

    #[test]
    fn run_that_fails_without_a_result_is_one_failure() {
        assert_eq!(
            tally("error: could not compile\n", "", false),
            Tally { passed: 0, failed: 1, skipped: 0 }
        );
    }

    #[test]
    fn text_that_only_mentions_a_skip_is_not_one() {
        assert_eq!(tally("the guest printed: skipped: no\n", "", true), Tally::default());
    }

    #[test]
    fn summary_line_reads_as_documented() {
        let tally = Tally { passed: 3, failed: 0, skipped: 1 };
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 1 skipped");
    }
}
