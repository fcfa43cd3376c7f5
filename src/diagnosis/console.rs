//! The last lines of a guest's console in a form that is safe to show. The guest wrote them, so nothing in
//! them is trusted.

use memchr::memmem;

/// Returns the last [`LINES`] lines of `bytes`, without control sequences of terminals.
pub(super) fn last_lines(bytes: &[u8]) -> Vec<String> {
    let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    if lines.last().is_some_and(|last| last.iter().all(|&byte| byte == b'\r')) {
        lines.pop();
    }
    let first = lines.len().saturating_sub(LINES);
    lines.drain(first..).map(readable).collect()
}

/// Returns a line that is safe to show; `None` if it is empty.
pub(super) fn line(bytes: &[u8]) -> Option<String> {
    Some(readable(bytes)).filter(|line| !line.is_empty())
}

/// Returns the text after a mark in the last line that has it; `None` if it is empty.
pub(super) fn after_mark(bytes: &[u8], mark: &str) -> Option<String> {
    let start = memmem::rfind(bytes, mark.as_bytes())?.saturating_add(mark.len());
    let rest = bytes.get(start..)?.split(|&byte| byte == b'\n').next()?;
    line(rest)
}

/// Puts `line` first unless it is among `lines`, in place of the oldest.
pub(super) fn with_line(mut lines: Vec<String>, line: &str) -> Vec<String> {
    if !lines.iter().any(|shown| shown == line) {
        let first = lines.len().saturating_sub(LINES - 1);
        lines.splice(..first, [line.to_owned()]);
    }
    lines
}

/// Returns one line without escape sequences and other control characters, at most [`LINE_CHARS`] long.
fn readable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut characters = text.trim_end_matches('\r').chars();
    let mut shown = String::new();
    let mut length = 0;
    while let Some(character) = characters.next() {
        if character == ESCAPE {
            skip_sequence(&mut characters);
            continue;
        }
        if length == LINE_CHARS {
            shown.push('…');
            break;
        }
        length += 1;
        shown.push(match character {
            '\t' => ' ',
            harmless if is_harmless(harmless) => harmless,
            _ => '\u{fffd}',
        });
    }
    shown
}

/// Skips what follows an escape character: the rest of a control sequence (ECMA-48, 5.4), or one character.
fn skip_sequence(characters: &mut std::str::Chars<'_>) {
    if characters.next() == Some('[') {
        characters.find(|character| ('@'..='~').contains(character));
    }
}

/// Returns whether a character is a letter or symbol, and not one that moves, hides or reorders others.
fn is_harmless(character: char) -> bool {
    !matches!(
        character,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffc}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// The largest number of lines in a report.
const LINES: usize = 20;
/// The largest number of characters in a line: the widest that a kernel prints, and some more.
const LINE_CHARS: usize = 240;
const ESCAPE: char = '\x1b';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_come_without_their_ends() {
        assert_eq!(last_lines(b""), [""; 0]);
        assert_eq!(last_lines(b"one\r\ntwo\r\r\n"), ["one", "two"]);
        assert_eq!(last_lines(b"one\n\nthree without an end"), ["one", "", "three without an end"]);
    }

    #[test]
    fn at_most_twenty_lines_are_shown() {
        let text: String = (0..50).map(|number| format!("{number}\n")).collect();
        let lines = last_lines(text.as_bytes());
        assert_eq!(lines.len(), 20);
        assert_eq!(lines.first().map(String::as_str), Some("30"));
    }

    #[test]
    fn line_that_must_be_shown_takes_the_place_of_the_oldest() {
        let lines = || (0..20).map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(with_line(lines(), "7"), lines());
        let with = with_line(lines(), "why");
        assert_eq!((with.len(), with[0].as_str(), with[1].as_str()), (20, "why", "1"));
        assert_eq!(with_line(vec!["1".into()], "why"), ["why", "1"]);
    }

    #[test]
    fn what_follows_a_mark_is_cleaned_and_the_last_one_counts() {
        let text = b"[ 1] agent: ends: old\n[ 2] agent: ends: root=\x1b[1mx\x1b[0m: no\r\nKernel panic\n";
        assert_eq!(after_mark(text, "agent: ends: ").as_deref(), Some("root=x: no"));
        assert_eq!(after_mark(b"agent: ends: cut", "agent: ends: ").as_deref(), Some("cut"));
        assert_eq!(after_mark(b"agent: ends: ", "agent: ends: "), None);
        assert_eq!(after_mark(text, "other"), None);
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let hostile =
            b"\x1b[2J\x1b[1;31mred\x1b[0m \x07bell\x08\x00 \x9b31m \x1b]0;title\x07 \xe2\x80\xaeevil\x1b";
        let lines = last_lines(hostile);
        let line = lines.first().unwrap();
        assert!(line.starts_with("red \u{fffd}bell"), "{line:?}");
        assert!(line.chars().all(is_harmless), "{line:?}");
        assert!(!line.contains('\u{202e}'), "{line:?}");
    }

    #[test]
    fn endless_line_is_cut() {
        let lines = last_lines(&[b'x'; 10_000]);
        assert_eq!(lines.first().unwrap().chars().count(), LINE_CHARS + 1);
        let unended = [b"\x1b[".as_slice(), &[b'1'; 10_000]].concat();
        assert_eq!(last_lines(&unended), [""]);
    }
}
