//! The prefix of each line of a document: the time, level and caller that the kernel's log adds, or whatever
//! else preceded the version line.

/// Removes the prefix that `printk` adds, `<6>`, `[ 1.234567]` and `[ T1]`, of any width, with the blank
/// after them; `None` for a line that has none of them.
pub(super) fn without_log_prefix(line: &str) -> Option<&str> {
    let after_level = bracketed(line, '<', '>', |level| level.bytes().all(|byte| byte.is_ascii_digit()));
    let rest = after_level.unwrap_or(line);
    let after_time = bracketed(rest, '[', ']', is_time);
    let rest = after_time.unwrap_or(rest);
    let after_caller = bracketed(rest, '[', ']', is_caller);
    let rest = after_caller.unwrap_or(rest);
    if after_time.is_some() || after_caller.is_some() {
        return Some(rest.strip_prefix(' ').unwrap_or(rest));
    }
    after_level
}

fn bracketed(text: &str, open: char, close: char, is: impl Fn(&str) -> bool) -> Option<&str> {
    let (content, rest) = text.strip_prefix(open)?.split_once(close)?;
    let content = content.trim_start_matches(' ');
    (!content.is_empty() && is(content)).then_some(rest)
}

/// Returns whether this is a time: seconds since boot.
fn is_time(content: &str) -> bool {
    content.starts_with(|c: char| c.is_ascii_digit())
        && content.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// Returns whether this is a caller, a thread or a CPU (`CONFIG_PRINTK_CALLER`).
fn is_caller(content: &str) -> bool {
    let number = content.strip_prefix(['T', 'C']).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The text before a version line.
#[derive(Debug, Clone, Default)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Uses the beginning of a line as a prefix; `None` if it is too long for one.
    pub(super) fn new(text: &str) -> Option<Prefix> {
        (text.len() <= LONGEST).then(|| Prefix(text.to_owned()))
    }

    /// Removes the prefix from a line that begins in the same way: with the same characters, except for
    /// digits, as time passes, and within brackets also letters and blanks, as callers change. Returns `None`
    /// for any other line.
    pub(super) fn cut<'a>(&self, line: &'a str) -> Option<&'a str> {
        let mut chars = line.chars();
        let mut is_in_brackets = false;
        for own in self.0.chars() {
            let other = chars.next()?;
            is_in_brackets = if own == '[' { true } else { is_in_brackets && own != ']' };
            if own != other && !is_alike(own, other, is_in_brackets) {
                return None;
            }
        }
        Some(chars.as_str())
    }
}

fn is_alike(own: char, other: char, is_in_brackets: bool) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == ' ';
    if is_in_brackets {
        is_word(own) && is_word(other)
    } else {
        own.is_ascii_digit() && (other.is_ascii_digit() || other == ' ')
    }
}

/// The longest prefix, in bytes: longer than the names of a host and a program and a time.
const LONGEST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_printk_adds_is_cut_at_any_width() {
        for line in [
            "[    1.000001] text",
            "[12345.000001] text",
            "[123456.000001] text",
            "[    1.000001][    T1] text",
            "[    1.000001][T12345] text",
            "[    1.000001][    C0] text",
            "<6>[    1.000001] text",
            "<14>text",
            "[    T1] text",
        ] {
            assert_eq!(without_log_prefix(line), Some("text"), "{line}");
        }
        for line in ["text", "[test] text", "[ OK ] text", "<b>text", "[] text", "<>text", "[T] text"] {
            assert_eq!(without_log_prefix(line), None, "{line}");
        }
        assert_eq!(without_log_prefix("[    1.0]     ok 1"), Some("    ok 1"));
    }

    #[test]
    fn prefix_is_cut_where_only_its_numbers_differ() {
        let cut = |prefix: &str, line| Prefix::new(prefix).unwrap().cut(line);
        assert_eq!(cut("", "ok 1"), Some("ok 1"));
        assert_eq!(cut("Nov 30 10:11:12 host kernel: ", "Nov 30 10:11:59 host kernel: ok 1"), Some("ok 1"));
        assert_eq!(cut("Nov 30 10:11:12 host kernel: ", "Nov 30 10:11:59 other kernel: ok 1"), None);
        assert_eq!(cut("guest[T1]| ", "guest[C9]|   ok 1"), Some("  ok 1"));
        assert_eq!(cut("  ", "1..2"), None);
        assert_eq!(cut("ab", "ok"), None);
        assert_eq!(cut("long prefix", "x"), None);
        assert!(Prefix::new(&"x".repeat(1000)).is_none());
    }
}
