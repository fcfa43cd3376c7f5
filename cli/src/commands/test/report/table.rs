//! The summary of a suite, and the explanation of why a case failed.

use coracle::outcome::Seconds;

use super::super::case::Done;
use super::super::verdict::Verdict;

/// Returns a line for each case and one for all of them.
pub(crate) fn summary(cases: &[Done]) -> String {
    let width = cases.iter().map(|case| case.name.chars().count()).max().unwrap_or(0).min(NAME_WIDTH);
    let mut text = String::new();
    for case @ Done { name, verdict, time, .. } in cases {
        let flakiness = case.flakiness().filter(|_| *verdict == Verdict::Passed);
        let word = if flakiness.is_some() { "flaky" } else { verdict.word() };
        let reason = flakiness.as_deref().or(verdict.reason());
        let reason = reason.map(|reason| format!("  {reason}")).unwrap_or_default();
        let line = format!("{word:7} {name:width$} {:>9}{reason}", Seconds(*time).to_string());
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let count = |is: fn(&Verdict) -> bool| cases.iter().filter(|case| is(&case.verdict)).count();
    let passed = count(|verdict| *verdict == Verdict::Passed);
    let skipped = count(|verdict| matches!(verdict, Verdict::Skipped(_)));
    let bad = count(Verdict::is_bad);
    let flaky = cases.iter().filter(|case| case.is_flaky && case.verdict == Verdict::Passed).count();
    let flaky = if flaky > 0 { format!(" ({flaky} flaky)") } else { String::new() };
    text.push_str(&format!(
        "{} case{}: {passed} passed{flaky}, {bad} failed, {skipped} skipped\n",
        cases.len(),
        if cases.len() == 1 { "" } else { "s" }
    ));
    text
}

/// Explains why a case failed: its reason, the diagnosis, and the last lines of its console unless they have
/// been shown.
pub(crate) fn explanation(case: &Done, console_was_shown: bool) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", case.name, case.verdict.reason().unwrap_or("passed"))];
    if let Some(outcome) = &case.outcome {
        lines.extend(outcome.explanation(false));
    }
    if !console_was_shown {
        lines.extend(last_words(case).map(|line| format!("| {}", printable(line))));
    }
    lines
}

/// Returns the most telling lines: from the message of a kernel panic on, which registers and a stack trace
/// follow, otherwise the last lines.
fn last_words(case: &Done) -> impl Iterator<Item = &str> {
    let count = case.scanner.tail().count();
    let panic = case.scanner.tail().position(|line| line.contains(PANIC));
    let first = panic.map_or(count.saturating_sub(TAIL_LINES), |line| line.saturating_sub(BEFORE_PANIC));
    case.scanner.tail().skip(first).take(TAIL_LINES)
}

/// Makes a guest's line safe for a terminal, and short enough to read.
fn printable(line: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    let mut text: String = line.chars().take(LINE_CHARS).map(plain).collect();
    if line.chars().nth(LINE_CHARS).is_some() {
        text.push_str(" ...");
    }
    text
}

const NAME_WIDTH: usize = 60;
const TAIL_LINES: usize = 12;
/// The text that Linux prints before the reason of a panic (`panic` in kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";
const BEFORE_PANIC: usize = 2;
const LINE_CHARS: usize = 200;
