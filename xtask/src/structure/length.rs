//! Checks that files are short enough to be read in one go.

use super::ratchet::Verdicts;
use super::sources::Source;

/// The maximum length of a file. A longer one usually has two subjects.
const MAX_LINES: usize = 450;

/// The maximum length of a file of tests, whose cases are read one by one.
const MAX_TEST_LINES: usize = 600;

/// Counts the lines of `sources`, which are Rust.
pub(super) fn check(sources: &[Source], verdicts: &mut Verdicts) {
    for source in sources {
        let most = if source.is_test() { MAX_TEST_LINES } else { MAX_LINES };
        verdicts.judge(&source.path, "lines", source.text.lines().count(), most, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, lines: usize) -> Vec<String> {
        let mut verdicts = Verdicts::default();
        check(&[Source { path: path.to_owned(), text: "\n".repeat(lines) }], &mut verdicts);
        verdicts.faults
    }

    #[test]
    fn longer_file_is_a_fault_and_tests_may_be_longer() {
        assert!(faults("src/new.rs", MAX_LINES).is_empty());
        assert_eq!(faults("src/new.rs", MAX_LINES + 1), ["src/new.rs: 451 lines, of which 450 are allowed"]);
        assert!(faults("tests/new.rs", MAX_TEST_LINES).is_empty());
        assert!(faults("src/new/tests.rs", MAX_TEST_LINES).is_empty());
        assert_eq!(faults("src/new/tests/mod.rs", MAX_TEST_LINES + 1).len(), 1);
    }
}
