//! Prepares a guest's text for patterns, reports and terminals: removes escape sequences that would hide what
//! is printed, and characters that would control a terminal.

use std::borrow::Cow;

/// Removes escape sequences from a line (ECMA-48, sections 5.4 and 5.6: control sequences, control strings,
/// and two-character sequences). An unfinished sequence extends to the end of the line.
pub(crate) fn without_escapes(line: &str) -> Cow<'_, str> {
    if !line.contains(ESC) {
        return Cow::Borrowed(line);
    }
    let mut pieces = line.split(ESC);
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    // A control string continues across escape characters in it, up to `ESC \` or BEL.
    let mut is_in_string = false;
    for piece in pieces {
        let rest = match piece.chars().next() {
            Some('\\') if is_in_string => after(piece, 1),
            _ if is_in_string => after_bell(piece),
            Some('[') => Some(after_control_sequence(after(piece, 1).unwrap_or_default())),
            Some(']' | 'P' | 'X' | '^' | '_') => after_bell(piece),
            _ => Some(after_short_sequence(piece)),
        };
        is_in_string = rest.is_none();
        plain.push_str(rest.unwrap_or_default());
    }
    Cow::Owned(plain)
}

/// Returns at most `limit` characters of a guest's text, for a terminal or a report. Characters that control
/// a terminal or change the direction of the text become U+FFFD.
pub(crate) fn harmless(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// Returns a text of the command's own, which may contain a guest's text. Characters that control a terminal
/// or change the direction of the text become U+FFFD, except for line breaks and tabs.
pub(crate) fn for_terminal(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| steers(c) && !matches!(c, '\n' | '\t');
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_bad(c) { '\u{fffd}' } else { c }).collect())
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn after(text: &str, bytes: usize) -> Option<&str> {
    text.get(bytes..)
}

/// Returns the text after the BEL that ends a control string; `None` if the string continues.
fn after_bell(text: &str) -> Option<&str> {
    text.split_once('\u{7}').map(|(_, rest)| rest)
}

/// Returns the text after the parameter, intermediate and final bytes of a control sequence.
fn after_control_sequence(text: &str) -> &str {
    let text =
        text.trim_start_matches(|c| matches!(c, '0'..='?')).trim_start_matches(|c| matches!(c, ' '..='/'));
    text.strip_prefix(|c| matches!(c, '@'..='~')).unwrap_or(text)
}

fn after_short_sequence(text: &str) -> &str {
    let text = text.trim_start_matches(|c| matches!(c, ' '..='/'));
    text.strip_prefix(|c| matches!(c, '0'..='~')).unwrap_or(text)
}

const ESC: char = '\u{1b}';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_of_every_form_are_left_out() {
        for (line, plain) in [
            ("plain", "plain"),
            ("\u{1b}[1;31mred\u{1b}[0m text", "red text"),
            ("\u{1b}[?25lhidden cursor\u{1b}[2K", "hidden cursor"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\ end", "link end"),
            ("\u{1b}Pdevice \u{1b}[1m string\u{1b}\\x", "x"),
            ("\u{1b}(Bascii \u{1b}7saved", "ascii saved"),
            ("cut \u{1b}[12", "cut "),
            ("cut \u{1b}", "cut "),
            ("not ended \u{1b}]0;title", "not ended "),
            ("\u{1b}[31\u{e4}x", "\u{e4}x"),
        ] {
            assert_eq!(without_escapes(line), plain, "{line:?}");
        }
    }

    #[test]
    fn harmless_text_has_nothing_that_steers_a_terminal() {
        assert_eq!(
            harmless("a\u{1b}[2J\u{9b}1m\u{202e}b\tc", 20),
            "a\u{fffd}[2J\u{fffd}1m\u{fffd}b\u{fffd}c"
        );
        assert_eq!(for_terminal("one\n\ttwo\r\u{1b}c"), "one\n\ttwo\u{fffd}\u{fffd}c");
        assert_eq!(harmless(&"\u{e4}".repeat(50), 7).chars().count(), 7);
    }
}
