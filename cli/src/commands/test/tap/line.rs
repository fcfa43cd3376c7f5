//! A line of TAP 13, TAP 14 or KTAP 1, without its prefix and indentation: its kind and its content.

use super::super::guest_text::harmless;

/// The kind of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// `TAP version 14` or `KTAP version 1`. The number makes no difference.
    Version {
        is_ktap: bool,
    },
    /// `1..3`, with its comment.
    Plan {
        count: u64,
        comment: String,
    },
    Result(TestPoint),
    /// `# Subtest: name`, which announces a subtest or is in it.
    Subtest {
        name: Option<String>,
    },
    BailOut {
        reason: String,
    },
    /// The beginning of a YAML block.
    YamlStart,
    Comment,
    /// A line without meaning in TAP.
    Other,
}

/// A result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestPoint {
    pub(super) is_ok: bool,
    pub(super) number: Option<u64>,
    pub(super) name: String,
    pub(super) directive: Option<Directive>,
    /// The reason of the directive, or other text after the `#`.
    pub(super) reason: String,
}

/// A directive that changes the meaning of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directive {
    Skip,
    /// `TODO`, or the kernel's `XFAIL`: a known failure.
    Todo,
}

impl Line {
    /// Parses a line, given its text after the indentation.
    pub(super) fn of(text: &str) -> Line {
        let text = text.trim_end();
        match text.chars().next() {
            Some('#') => comment(text),
            Some('1') => plan(text).unwrap_or(Line::Other),
            Some('o' | 'n') => result(text).map_or(Line::Other, Line::Result),
            Some('b' | 'B') => bail_out(text).unwrap_or(Line::Other),
            Some('T' | 'K') => match version_at(text) {
                Some(Version { start: 0, is_ktap }) => Line::Version { is_ktap },
                _ => Line::Other,
            },
            Some('-') if text == "---" || text.starts_with("--- ") => Line::YamlStart,
            _ => Line::Other,
        }
    }
}

/// A version line, possibly with a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    /// The byte offset at which the version starts.
    pub(super) start: usize,
    pub(super) is_ktap: bool,
}

/// Finds a version at the end of a line, whatever precedes it.
pub(super) fn version_at(line: &str) -> Option<Version> {
    let at = line.rfind(TAP_VERSION)?;
    let number = line.get(at + TAP_VERSION.len()..)?.trim();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let is_ktap = line.get(..at)?.ends_with('K');
    Some(Version { start: at - usize::from(is_ktap), is_ktap })
}

/// Splits a line into its indentation, in columns, and the rest. KUnit up to Linux 5.9 indents with a tab.
pub(super) fn indentation(line: &str) -> (usize, &str) {
    let mut columns = 0;
    for (index, c) in line.char_indices() {
        match c {
            ' ' => columns += 1,
            '\t' => columns = (columns / TAB + 1) * TAB,
            _ => return (columns, line.get(index..).unwrap_or_default()),
        }
    }
    (columns, "")
}

fn comment(text: &str) -> Line {
    let name = text.strip_prefix("# Subtest").map(|rest| (rest, rest.strip_prefix(':')));
    match name {
        Some((_, Some(name))) => Line::Subtest { name: Some(cleaned(name)) },
        Some(("", None)) => Line::Subtest { name: None },
        _ => Line::Comment,
    }
}

fn plan(text: &str) -> Option<Line> {
    let (count, rest) = digits(text.strip_prefix("1..")?)?;
    let rest = rest.trim();
    let comment = if rest.is_empty() { "" } else { rest.strip_prefix('#')? };
    // `# SKIP` without a reason is a directive, too.
    let reason = directive(comment.trim()).map(|(_, reason)| reason).filter(|reason| !reason.is_empty());
    let comment = reason.unwrap_or(comment);
    Some(Line::Plan { count, comment: cleaned(comment) })
}

fn bail_out(text: &str) -> Option<Line> {
    let (words, reason) = text.split_at_checked(BAIL_OUT.len())?;
    words.eq_ignore_ascii_case(BAIL_OUT).then(|| Line::BailOut { reason: cleaned(reason) })
}

fn result(text: &str) -> Option<TestPoint> {
    let (is_ok, rest) = match text.strip_prefix("not ok") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok")?),
    };
    // `okay`, `ok, link is up` and the like are ordinary text.
    if !rest.is_empty() && !rest.starts_with(BLANKS) {
        return None;
    }
    let rest = rest.trim_start();
    let (number, rest) = match digits(rest) {
        Some((number, after)) if !after.starts_with(continues_a_word) => (Some(number), after.trim_start()),
        _ => (None, rest),
    };
    let (name, directive, reason) = split_directive(rest);
    let name = name.trim();
    // The dash that TAP 14 recommends before a description is not part of it.
    let name =
        name.strip_prefix('-').filter(|name| name.is_empty() || name.starts_with(BLANKS)).unwrap_or(name);
    Some(TestPoint { is_ok, number, name: cleaned(name), directive, reason: cleaned(reason) })
}

/// Returns whether digits before this character are part of a name, as in `3rd` and `1.5`.
fn continues_a_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '_' | '%')
}

/// Splits a description from what follows the first `#` that delimits. It delimits if it is not escaped,
/// comes first or after a blank, and precedes a directive or a blank (TAP 14, "Directive" and "Escaping").
fn split_directive(text: &str) -> (&str, Option<Directive>, &str) {
    let mut may_delimit = true;
    let mut chars = text.char_indices().peekable();
    while let Some((index, c)) = chars.next() {
        if c == '\\' {
            // The second character of an escaped pair is literal. After an escaped backslash a `#` delimits,
            // as in the examples of TAP 14.
            let escaped = chars.next_if(|(_, next)| matches!(next, '\\' | '#'));
            may_delimit = escaped.is_some_and(|(_, next)| next == '\\');
            continue;
        }
        if c == '#' && may_delimit {
            let name = text.get(..index).unwrap_or_default();
            let after = text.get(index + 1..).unwrap_or_default();
            if let Some((directive, reason)) = directive(after.trim_start()) {
                return (name, Some(directive), reason);
            }
            if after.is_empty() || after.starts_with(BLANKS) {
                return (name, None, after);
            }
        }
        may_delimit = c == ' ' || c == '\t';
    }
    (text, None, "")
}

/// Returns the directive at the beginning of a text, in upper or lower case, and its reason. `Skipped:` and
/// `todo,` count as directives, too.
fn directive(text: &str) -> Option<(Directive, &str)> {
    let named = |word: &str| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    let directive = match () {
        () if named("SKIP") => Directive::Skip,
        () if named("TODO") || named("XFAIL") => Directive::Todo,
        () => return None,
    };
    Some((directive, text.split_once(BLANKS).map_or("", |(_, reason)| reason)))
}

/// Returns the number at the beginning of a text, and the rest. Numbers beyond 64 bits saturate: no plan is
/// that long.
fn digits(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at_checked(end)?;
    (!number.is_empty()).then(|| (number.parse().unwrap_or(u64::MAX), rest))
}

/// Cleans up a name or reason for people: unescapes `\#` and `\\`, removes control characters, and limits the
/// length.
fn cleaned(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.trim().chars().take(TEXT_BYTES).peekable();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next_if(|next| matches!(next, '\\' | '#')) } else { None };
        plain.push(escaped.unwrap_or(c));
    }
    let mut shown = harmless(&plain, TEXT_BYTES);
    shown.truncate(shown.floor_char_boundary(TEXT_BYTES));
    shown
}

const BLANKS: [char; 2] = [' ', '\t'];
const TAP_VERSION: &str = "TAP version ";
const BAIL_OUT: &str = "Bail out!";
const TAB: usize = 4;
/// The maximum length of a name or reason, in bytes: longer than the names that people give tests.
const TEXT_BYTES: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn point(text: &str) -> (bool, Option<u64>, String, Option<Directive>, String) {
        match Line::of(text) {
            Line::Result(point) => (point.is_ok, point.number, point.name, point.directive, point.reason),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn results_have_number_name_directive_and_reason() {
        use Directive::{Skip, Todo};
        for (text, number, name, directive, reason) in [
            ("ok", None, "", None, ""),
            ("ok 1", Some(1), "", None, ""),
            ("ok 2 - b", Some(2), "b", None, ""),
            ("ok 2 b", Some(2), "b", None, ""),
            ("ok - b", None, "b", None, ""),
            ("ok 3rd", None, "3rd", None, ""),
            ("ok 1.5 GHz", None, "1.5 GHz", None, ""),
            ("ok\t4\tname\t#\tSKIP\twhy", Some(4), "name", Some(Skip), "why"),
            ("ok 1 # skip", Some(1), "", Some(Skip), ""),
            ("ok 1 #skip why", Some(1), "", Some(Skip), "why"),
            ("ok 1#SKIP", Some(1), "", Some(Skip), ""),
            ("ok 1 - #SkIp any case", Some(1), "", Some(Skip), "any case"),
            ("ok 1 a # Skipped: on this", Some(1), "a", Some(Skip), "on this"),
            ("ok 1 a #TODO", Some(1), "a", Some(Todo), ""),
            ("ok 1 a # todo: see #7 and # too", Some(1), "a", Some(Todo), "see #7 and # too"),
            ("ok 1 # XFAIL known", Some(1), "", Some(Todo), "known"),
            ("ok 1 issue #3 # SKIP x", Some(1), "issue #3", Some(Skip), "x"),
            ("ok 1 http://x/page#skip to", Some(1), "http://x/page#skip to", None, ""),
            ("ok 1 a \\# SKIP", Some(1), "a # SKIP", None, ""),
            ("ok 1 a \\\\# todo b \\# c", Some(1), "a \\", Some(Todo), "b # c"),
            ("ok 1 a \\\\\\\\\\# todo", Some(1), "a \\\\# todo", None, ""),
            ("ok 1 a # note # todo", Some(1), "a", None, "note # todo"),
            ("ok 1 a # TIMEOUT 45 seconds", Some(1), "a", None, "TIMEOUT 45 seconds"),
            ("ok 99999999999999999999", Some(u64::MAX), "", None, ""),
        ] {
            assert_eq!(point(text), (true, number, name.into(), directive, reason.into()), "{text}");
            let failed = point(&format!("not {text}"));
            assert_eq!(failed, (false, number, name.into(), directive, reason.into()), "{text}");
        }
    }

    #[test]
    fn words_that_are_like_results_plans_and_versions_are_none() {
        for text in [
            "okay",
            "ok, link is up",
            "ok: done",
            "notok 1",
            "not  ok 1",
            "not okay",
            "1..",
            "1.. 3",
            "1..x",
            "1..3 tests",
            "2..3",
            "11..3",
            "TAP version",
            "TAP version x",
            "TAP version 13 is new",
            "KTAP versions 1",
            "---x",
            "-",
            "",
        ] {
            assert_eq!(Line::of(text), Line::Other, "{text}");
        }
    }

    #[test]
    fn plans_say_how_many_and_why_none() {
        let plan = |text: &str| match Line::of(text) {
            Line::Plan { count, comment } => (count, comment),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(plan("1..3"), (3, String::new()));
        assert_eq!(plan("1..3  "), (3, String::new()));
        assert_eq!(plan("1..0 # SKIP no disk"), (0, "no disk".into()));
        assert_eq!(plan("1..0 # Skipped: no \\# disk"), (0, "no # disk".into()));
        assert_eq!(plan("1..0 # no disk"), (0, "no disk".into()));
        assert_eq!(plan("1..99999999999999999999999"), (u64::MAX, String::new()));
    }

    #[test]
    fn other_lines_are_told_apart() {
        assert_eq!(Line::of("TAP version 14"), Line::Version { is_ktap: false });
        assert_eq!(Line::of("KTAP version 1 "), Line::Version { is_ktap: true });
        assert_eq!(Line::of("bail OUT! no \\# disk"), Line::BailOut { reason: "no # disk".into() });
        assert_eq!(Line::of("# Subtest: a b"), Line::Subtest { name: Some("a b".into()) });
        assert_eq!(Line::of("# Subtest"), Line::Subtest { name: None });
        assert_eq!(Line::of("# Subtests: 3"), Line::Comment);
        assert_eq!(Line::of("---"), Line::YamlStart);
        assert_eq!(version_at("x: KTAP version 1"), Some(Version { start: 3, is_ktap: true }));
        assert_eq!(indentation("  \t  x"), (6, "x"));
    }

    #[test]
    fn names_are_short_and_harmless() {
        let (_, _, name, ..) = point(&format!("ok 1 \u{1b}]0;x\u{7}{}", "y".repeat(10_000)));
        assert!(name.len() <= TEXT_BYTES && !name.contains(char::is_control), "{name}");
    }
}
