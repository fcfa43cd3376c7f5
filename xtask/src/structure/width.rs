//! Checks that lines fit the reader's window.

use super::ratchet::{Ratchet, Verdicts};
use super::sources::Source;

/// The maximum width of comments: that of rustfmt.toml, which rustfmt does not apply to comments.
const MAX_COMMENT_COLUMNS: usize = 110;

/// The maximum width of code: rustfmt leaves a line alone that it cannot break, such as a string.
const MAX_COLUMNS: usize = 120;

/// Comment lines that are longer. The number may only decrease.
const COMMENTS: Ratchet = Ratchet { name: "longer lines of comment", most: 0 };

/// Code lines that are longer: test inputs, such as scripts and TAP. The number may only decrease.
const CODE: Ratchet = Ratchet { name: "longer lines of code", most: 11 };

/// Counts the lines of `sources`, which are Rust, that are too long.
pub(super) fn check(sources: &[Source], verdicts: &mut Verdicts) {
    let long: Vec<bool> =
        sources.iter().flat_map(|source| source.text.lines().filter_map(too_long)).collect();
    for (is_comment, kind) in [(true, &COMMENTS), (false, &CODE)] {
        let count = long.iter().filter(|of| **of == is_comment).count();
        verdicts.judge(kind.name, "lines", count, 0, Some(kind));
    }
}

/// Returns these lines, with their locations.
pub(super) fn places(sources: &[Source]) -> Vec<String> {
    let long = |source: &Source| {
        let lines = source.text.lines().enumerate().filter(|(_, line)| too_long(line).is_some());
        lines
            .map(|(index, line)| format!("{}:{}: {}", source.path, index + 1, line.trim()))
            .collect::<Vec<_>>()
    };
    sources.iter().flat_map(long).collect()
}

/// Returns whether a line that is too long is a comment; `None` for a line that fits.
fn too_long(line: &str) -> Option<bool> {
    let is_comment = line.trim_start().starts_with("//");
    let most = if is_comment { MAX_COMMENT_COLUMNS } else { MAX_COLUMNS };
    (line.chars().count() > most).then_some(is_comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_have_110_columns_and_code_has_120() {
        for (start, most, is_comment) in [("    // ", 110, true), ("/// ", 110, true), ("x = \"", 120, false)]
        {
            let line = |columns: usize| format!("{start}{}", "ä".repeat(columns - start.len()));
            assert_eq!(too_long(&line(most)), None, "{start}");
            assert_eq!(too_long(&line(most + 1)), Some(is_comment), "{start}");
        }
    }

    #[test]
    fn one_more_than_the_table_has_is_a_fault() {
        for (kind, line) in [(COMMENTS, "// ".to_owned() + &"x".repeat(108)), (CODE, "x".repeat(121))] {
            let faults = |count| {
                let source =
                    Source { path: "src/a.rs".to_owned(), text: (line.clone() + "\n").repeat(count) };
                let mut verdicts = Verdicts::default();
                check(&[source], &mut verdicts);
                verdicts.faults.len()
            };
            assert_eq!((faults(kind.most), faults(kind.most + 1)), (0, 1), "{}", kind.name);
        }
    }
}
