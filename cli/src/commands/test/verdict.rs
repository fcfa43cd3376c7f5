//! The verdict on a test, from its console and the way in which its guest ended. `docs/testing.md` explains
//! the rules.

use std::time::Duration;

use coracle::diagnosis::Sign;
use coracle::exit_code;
use coracle::outcome::{Ending, EndingKind, Outcome, Seconds, TimeLimit};

use super::scanner::{Rejection, Scanner, Writer};

/// The result of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything was as expected.
    Passed,
    /// The guest did not do what was expected: code 120.
    Failed(String),
    /// The guest, Coracle or the host ended the run in another way: the code of that ending.
    Broken { code: u8, reason: String },
    /// The test could not run here, which was allowed, or all its tests were skipped: code 77.
    Skipped(String),
}

impl Verdict {
    /// Returns the exit code of a test.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Verdict::Passed => 0,
            // Whatever broke a run, its code must not be that of a passed test.
            Verdict::Failed(_) | Verdict::Broken { code: 0, .. } => exit_code::EXPECTATION_UNMET,
            Verdict::Broken { code, .. } => *code,
            Verdict::Skipped(_) => exit_code::SKIPPED,
        }
    }

    /// Returns the verdict as one word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed(_) => "failed",
            Verdict::Broken { .. } => "broken",
            Verdict::Skipped(_) => "skipped",
        }
    }

    /// Returns the reason, unless the test passed.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Verdict::Passed => None,
            Verdict::Failed(reason) | Verdict::Skipped(reason) | Verdict::Broken { reason, .. } => {
                Some(reason)
            }
        }
    }

    /// Adjusts the verdict if output was `lost` before it was scanned: the test cannot have passed, and what
    /// was missing may have been in that output.
    pub(crate) fn unless_lost(self, lost: Option<String>) -> Verdict {
        match (self, lost) {
            (Verdict::Passed | Verdict::Skipped(_), Some(reason)) => {
                Verdict::Broken { code: exit_code::HOST_FAILED, reason }
            }
            (Verdict::Failed(reason), Some(lost)) => Verdict::Failed(format!("{reason}; {lost}")),
            (verdict, _) => verdict,
        }
    }

    /// Returns whether the test counts as a failure of the run.
    pub(crate) fn is_bad(&self) -> bool {
        matches!(self, Verdict::Failed(_) | Verdict::Broken { .. })
    }
}

/// Judges a run. What broke the run takes precedence, then what the console must not show, then what it must
/// show. A guest that ended by itself and showed everything expected passes.
pub(crate) fn judge(outcome: &Outcome, scanner: &Scanner, boot: Option<Duration>) -> Verdict {
    let ending = &outcome.ending;
    let is_broken = match ending.kind() {
        EndingKind::HostFailed | EndingKind::Died => true,
        // A kernel that has run its built-in tests and has no root ends with a panic.
        EndingKind::Panicked => !scanner.is_over(),
        _ => false,
    };
    if is_broken {
        return Verdict::Broken { code: outcome.exit_code(), reason: outcome.reason() };
    }
    if let Some(rejected) = scanner.rejected() {
        return rejection(rejected);
    }
    // A guest that continues after its results may still fail. A guest that merely had not ended by its time
    // limit has not failed.
    let has_failed = scanner.tap().is_some()
        && (ending.workload_code().is_some_and(|code| code != 0)
            || ending.time_limit().is_some_and(|of| !matches!(of, TimeLimit::Wall | TimeLimit::Idle))
            || ending.signal().is_some());
    if (scanner.has_all() && !has_failed) || scanner.is_decided() {
        return judge_all(outcome, scanner, boot);
    }
    let code = ending.workload_code().unwrap_or_default();
    match ending.kind() {
        EndingKind::Finished if code == 0 && !scanner.wants_something() => judge_boot(outcome, boot),
        EndingKind::Finished => Verdict::Failed(unmet(outcome, scanner)),
        // A guest that was stopped had shown everything that was wanted, and may have begun another document
        // since.
        EndingKind::Asked if ending.signal().is_none() => Verdict::Failed(unmet(outcome, scanner)),
        EndingKind::GaveUp if scanner.wants_something() => Verdict::Failed(unmet(outcome, scanner)),
        _ => Verdict::Broken { code: outcome.exit_code(), reason: with_unmet(outcome, scanner) },
    }
}

/// Judges a guest that ended while its command ran, by itself or because the verdict was decided. A command
/// that has not written what was expected would have had to finish.
pub(crate) fn judge_without_command(outcome: &Outcome, scanner: &Scanner, boot: Option<Duration>) -> Verdict {
    match judge(outcome, scanner, boot) {
        Verdict::Passed if !scanner.is_decided_by_command() => {
            Verdict::Failed(format!("{}, and the command had not finished", outcome.reason()))
        }
        other => other,
    }
}

/// Judges a guest whose command has ended with this status: it has to be 0, unless the command has written
/// everything that was expected.
pub(crate) fn judge_command(
    command: &Ending,
    outcome: &Outcome,
    scanner: &Scanner,
    boot: Option<Duration>,
) -> Verdict {
    if outcome.ending.kind() == EndingKind::HostFailed {
        return Verdict::Broken { code: outcome.exit_code(), reason: outcome.reason() };
    }
    if let Some(rejected) = scanner.rejected() {
        return rejection(rejected);
    }
    if scanner.is_decided_by_command() {
        return judge_all(outcome, scanner, boot);
    }
    let wanted = scanner.wants_something().then(|| wanted(scanner)).flatten();
    let has_status = command.workload_code().is_some() || matches!(command, Ending::CommandKilled { .. });
    if !has_status {
        return Verdict::Broken { code: command.exit_code(), reason: command.to_string() };
    }
    match (command.workload_code() == Some(0), wanted) {
        (true, None) => judge_all(outcome, scanner, boot),
        (true, Some(wanted)) => Verdict::Failed(wanted),
        (false, None) => Verdict::Failed(command.to_string()),
        // The expectation that failed tells more than the exit code by which a program reports a failure.
        (false, Some(wanted)) => Verdict::Failed(format!("{command}, and {wanted}")),
    }
}

/// Judges a run in which everything expected came, by its TAP results and the time to its init.
fn judge_all(outcome: &Outcome, scanner: &Scanner, boot: Option<Duration>) -> Verdict {
    if let Some(complaint) = scanner.tap_complaint() {
        return Verdict::Failed(complaint);
    }
    match (scanner.tap_all_skipped(), judge_boot(outcome, boot)) {
        (Some(reason), Verdict::Passed) => Verdict::Skipped(reason),
        (_, verdict) => verdict,
    }
}

fn rejection(rejected: &Rejection) -> Verdict {
    let place = match rejected.writer {
        Writer::Console => "the console",
        Writer::Stdout | Writer::Stderr => "the command's output",
    };
    Verdict::Failed(format!("--reject {}: {place} has `{}`", rejected.pattern, excerpt(&rejected.line)))
}

/// Compares the time to the guest's init with its limit.
fn judge_boot(outcome: &Outcome, limit: Option<Duration>) -> Verdict {
    let Some(limit) = limit else { return Verdict::Passed };
    let is_init = |sign| matches!(sign, Sign::InitMark | Sign::ConsoleOpened);
    let init =
        outcome.progress.iter().filter(|milestone| is_init(milestone.sign)).filter_map(|it| it.at).min();
    match init {
        Some(time) if time <= limit => Verdict::Passed,
        Some(time) => Verdict::Failed(format!(
            "--assert-boot {}: the guest reached its init after {}",
            Seconds(limit),
            Seconds(time)
        )),
        None => Verdict::Failed(format!(
            "--assert-boot {}: it is not known when the guest reached its init: it neither wrote the boot mark nor \
             opened \
             its serial console",
            Seconds(limit)
        )),
    }
}

/// Explains why a guest that ended by itself has failed.
fn unmet(outcome: &Outcome, scanner: &Scanner) -> String {
    match wanted(scanner) {
        Some(wanted) => format!("{}, and {wanted}", outcome.reason()),
        None => outcome.reason(),
    }
}

fn with_unmet(outcome: &Outcome, scanner: &Scanner) -> String {
    wanted(scanner).map_or_else(|| outcome.reason(), |wanted| format!("{}; {wanted}", outcome.reason()))
}

/// Shortens a guest's line for use in a sentence.
fn excerpt(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(EXCERPT_CHARS).collect()
}

/// Describes what is missing.
fn wanted(scanner: &Scanner) -> Option<String> {
    let unmet: Vec<String> = scanner.unmet().map(|pattern| format!("`{pattern}`")).collect();
    if !unmet.is_empty() {
        return Some(format!("no line of its console matched {}", unmet.join(", nor ")));
    }
    scanner.tap_complaint()
}

/// Returns the exit code of several tests: that of the worst.
pub(crate) fn worst(verdicts: &[&Verdict]) -> u8 {
    let codes = verdicts.iter().filter(|verdict| verdict.is_bad()).map(|verdict| verdict.code());
    let rank = |code: &u8| SEVERITY.iter().position(|known| known == code).unwrap_or(SEVERITY.len());
    match codes.min_by_key(rank) {
        Some(code) => code,
        // No test has run at all.
        None if verdicts.iter().all(|verdict| matches!(verdict, Verdict::Skipped(_))) => exit_code::SKIPPED,
        None => 0,
    }
}

const EXCERPT_CHARS: usize = 200;
/// Exit codes from the worst on; all others are less severe.
const SEVERITY: [u8; 8] = [
    exit_code::BAD_USAGE,
    exit_code::NO_KVM,
    exit_code::HOST_FAILED,
    exit_code::CANNOT_RUN,
    exit_code::CRASHED,
    exit_code::PANICKED,
    exit_code::EXPECTATION_UNMET,
    exit_code::TIMED_OUT,
];

#[cfg(test)]
mod tests {
    use coracle::outcome::PanicEvidence;

    use super::*;
    use crate::commands::test::scanner::Patterns;

    #[test]
    fn guest_that_ends_before_its_command_has_failed() {
        let expected =
            Patterns { expect: vec![regex_lite::Regex::new("ready").unwrap()], ..Patterns::default() };
        for patterns in [Patterns::default(), expected] {
            let mut scanner = Scanner::new(patterns, None);
            scanner.feed(Writer::Console, b"ready\n");
            let verdict = judge_without_command(&Outcome::bare(Ending::PoweredOff), &scanner, None);
            let reason = "the guest powered off, and the command had not finished";
            assert_eq!(verdict, Verdict::Failed(reason.into()));
            let expects = scanner.wants_something();
            scanner.feed(Writer::Stdout, b"ready\n");
            let verdict = judge_without_command(&Outcome::bare(Ending::PoweredOff), &scanner, None);
            assert_eq!(verdict == Verdict::Passed, expects, "what it has written counts: {verdict:?}");
        }
    }

    #[test]
    fn results_count_with_how_the_guest_ends_after_them() {
        let judged = |console: &[u8], ending| {
            let mut scanner = Scanner::new(Patterns::default(), None);
            scanner.feed(Writer::Console, console);
            scanner.end();
            judge(&Outcome::bare(ending), &scanner, None).code()
        };
        let good = b"[ 1.0] KTAP version 1\n[ 1.0] 1..1\n[ 1.0] ok 1 a\n";
        let panic =
            b"[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n";
        let without_root = [&good[..], panic].concat();
        let panicked = || Ending::Panicked { evidence: PanicEvidence::Device };
        let timed_out = |kind| Ending::TimedOut { kind, limit: Duration::from_secs(1) };
        assert_eq!(judged(good, Ending::PoweredOff), 0);
        assert_eq!(judged(good, Ending::Halted), 0);
        assert_eq!(judged(good, timed_out(TimeLimit::Wall)), 0);
        assert_eq!(judged(good, timed_out(TimeLimit::Idle)), 0);
        assert_eq!(judged(good, timed_out(TimeLimit::Boot)), 124);
        assert_eq!(judged(good, Ending::Exited { code: 7 }), 120);
        assert_eq!(judged(good, Ending::Signalled { signal: 2 }), 130);
        assert_eq!(judged(good, panicked()), 110);
        assert_eq!(judged(&without_root, panicked()), 0, "it had only its own tests to run");
        assert_eq!(judged(panic, panicked()), 110);
    }

    #[test]
    fn guest_that_is_ended_in_a_document_has_failed() {
        let mut scanner = Scanner::new(Patterns::default(), None);
        scanner.feed(Writer::Console, b"TAP version 13\n1..1\nok 1\nTAP version 13\n1..2\nok 1\n");
        scanner.end();
        let verdict = judge(&Outcome::bare(Ending::Stopped), &scanner, None);
        assert_eq!(
            verdict,
            Verdict::Failed("stopped on request, and TAP: document 2: 1 of 2 results came".into())
        );
    }

    #[test]
    fn limit_of_the_boot_counts_with_a_command_too() {
        let scanner = Scanner::new(Patterns::default(), None);
        let judged = |boot| {
            judge_command(&Ending::Exited { code: 0 }, &Outcome::bare(Ending::PoweredOff), &scanner, boot)
        };
        assert_eq!(judged(None), Verdict::Passed);
        assert!(judged(Some(Duration::from_secs(9))).reason().unwrap().starts_with("--assert-boot 9 s"));
    }

    #[test]
    fn tests_that_failed_are_named_beside_the_code_that_says_so() {
        let mut scanner = Scanner::new(Patterns::default(), None);
        scanner.feed(Writer::Stdout, b"TAP version 13\n1..2\nok 1 a\nnot ok 2 b\n");
        scanner.end();
        let verdict =
            judge_command(&Ending::Exited { code: 1 }, &Outcome::bare(Ending::PoweredOff), &scanner, None);
        assert_eq!(verdict.code(), 120);
        let reason = verdict.reason().unwrap();
        assert!(reason.contains("code 1, and TAP: 1 of 2 failed: ") && reason.contains('b'), "{reason}");
    }

    #[test]
    fn nothing_passes_of_which_a_part_was_lost() {
        let lost = || Some("9 bytes were lost".to_owned());
        assert_eq!(Verdict::Passed.unless_lost(None), Verdict::Passed);
        let verdict = Verdict::Passed.unless_lost(lost());
        assert_eq!((verdict.code(), verdict.reason()), (117, Some("9 bytes were lost")));
        let verdict = Verdict::Failed("no line matched".into()).unless_lost(lost());
        assert_eq!((verdict.code(), verdict.reason()), (120, Some("no line matched; 9 bytes were lost")));
        assert_eq!(broken(110).unless_lost(lost()), broken(110));
        assert_eq!(broken(0).code(), 120);
    }

    fn broken(code: u8) -> Verdict {
        Verdict::Broken { code, reason: String::new() }
    }

    #[test]
    fn worst_verdict_is_the_code_of_all() {
        let failed = || Verdict::Failed(String::new());
        let skipped = || Verdict::Skipped(String::new());
        for (verdicts, code) in [
            (vec![Verdict::Passed, skipped()], 0),
            (vec![skipped(), skipped()], 77),
            (vec![Verdict::Passed, failed(), broken(124)], 120),
            (vec![failed(), broken(110), broken(113)], 113),
            (vec![broken(112), broken(124)], 124),
            (vec![broken(116)], 116),
        ] {
            assert_eq!(worst(&verdicts.iter().collect::<Vec<_>>()), code, "{verdicts:?}");
        }
    }
}
