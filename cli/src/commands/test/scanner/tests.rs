use super::*;

fn regexes(patterns: &[&str]) -> Vec<Regex> {
    patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect()
}

fn scanner(expect: &[&str], reject: &[&str]) -> Scanner {
    let patterns = Patterns { expect: regexes(expect), reject: regexes(reject), tap: TapMode::default() };
    Scanner::new(patterns, None)
}

/// Feeds console output, and returns whether that decides the verdict.
fn decides(scanner: &mut Scanner, bytes: &[u8]) -> bool {
    scanner.feed(Writer::Console, bytes);
    scanner.is_decided()
}

#[test]
fn expectations_are_met_in_any_order_and_across_pieces() {
    let mut scanner = scanner(&["^ready$", r"up in \d+ s"], &[]);
    assert!(!decides(&mut scanner, b"up in 12"));
    assert!(!decides(&mut scanner, b" s\r\nrea"));
    assert!(decides(&mut scanner, b"dy\r\n"));
    assert_eq!(scanner.unmet().count(), 0);
}

#[test]
fn prompt_without_an_end_of_line_is_seen() {
    let mut scanner = scanner(&["login: $"], &[]);
    assert!(!decides(&mut scanner, b"host lo"));
    assert!(decides(&mut scanner, b"gin: "));
    let mut scanner = self::scanner(&["xyz"], &[]);
    scanner.feed(Writer::Console, b"abc");
    assert!(decides(&mut scanner, b"\nxyz"), "as long as the last one");
}

#[test]
fn first_line_that_is_not_allowed_decides() {
    let mut scanner = scanner(&["never"], &["BUG:", "WARNING"]);
    assert!(!decides(&mut scanner, b"fine\n[ 1.0] BUG: bad"), "not before the line is whole");
    assert!(decides(&mut scanner, b" thing\nWARNING: late\n"));
    let rejected = scanner.rejected().unwrap();
    assert_eq!((rejected.pattern.as_str(), rejected.line.as_str()), ("BUG:", "[ 1.0] BUG: bad thing"));
    assert_eq!(scanner.unmet().collect::<Vec<_>>(), ["never"]);
}

#[test]
fn results_end_a_guest_only_where_something_expected_comes_after_them() {
    let mut scanner = scanner(&["begin", "done"], &[]);
    assert!(!decides(&mut scanner, b"TAP version 13\nbegin\n1..1\n"));
    assert!(!decides(&mut scanner, b"ok 1\n"));
    assert!(decides(&mut scanner, b"do\rdone"), "a prompt will do");
    let mut scanner = self::scanner(&["begin"], &[]);
    assert!(!decides(&mut scanner, b"begin\nTAP version 13\n1..1\nok 1\n"), "another document may follow");
    assert!(scanner.has_all());
    assert!(!decides(&mut scanner, b"TAP version 13\n"));
    assert!(!scanner.has_all());
    assert!(decides(&mut scanner, b"Bail out!\n"));
}

#[test]
fn all_is_planned_where_results_are_required_and_no_plan_lacks_one() {
    let planned = |tap, console: &[u8]| {
        let mut scanner = Scanner::new(Patterns { tap, ..Patterns::default() }, None);
        scanner.feed(Writer::Console, console);
        scanner.all_planned()
    };
    let document = b"TAP version 14\n1..2\nok 1\nok 2\n";
    assert_eq!(planned(TapMode::Auto, document), None);
    for (console, documents) in [
        (&document[..], Some(1)),
        (&[&document[..], document].concat(), Some(2)),
        (b"ok 1\nnot ok 2\n1..2\n", Some(1)),
        (b"1..0 # SKIP no disk\n", Some(1)),
        (b"TAP version 14\n1..2\nok 1\n", None),
        (b"TAP version 14\nok 1\n", None),
        (b"TAP version 14\n1..1\n    1..1\n    ok 1\n", None),
        (b"KTAP version 1\nok 1\n", None),
        (b"hello\n", None),
        (&[&document[..], b"TAP version 14\n"].concat(), None),
        (&[&document[..], b"1..2\n"].concat(), None),
    ] {
        let shown = String::from_utf8_lossy(console);
        assert_eq!(planned(TapMode::Require, console), documents, "{shown}");
    }
}

#[test]
fn results_without_a_plan_are_waited_for_and_fail_where_they_are_required() {
    let mut scanner = scanner(&["ready"], &[]);
    assert!(!decides(&mut scanner, b"not ok 1 - a\nready\n"), "a plan may come");
    scanner.end();
    assert!(scanner.has_all() && scanner.tap_complaint().is_none());
    assert!(scanner.tap_left_out().is_some());
    for (console, complaint) in [
        (&b"not ok 1 - a\n"[..], Some("TAP: `not ok` of a came without a plan")),
        (b"ok 1 - a\n", Some("TAP: no plan came")),
        (b"hello\n", Some("TAP: no results came")),
        (b"TAP version 13\n1..1\nok 1\n1..2\nnone", Some("TAP: more came than was planned")),
        (b"ok 1\n1..1\n", None),
        (b"KTAP version 1\n1..0\n", Some("TAP: there were no tests to run")),
        (b"KTAP version 1\n1..0 # SKIP x\n", None),
        (b"TAP version 14\n1..0\n", None),
    ] {
        let patterns = Patterns { tap: TapMode::Require, ..Patterns::default() };
        let mut scanner = Scanner::new(patterns, None);
        scanner.feed(Writer::Console, console);
        scanner.end();
        assert_eq!(scanner.tap_complaint().as_deref(), complaint);
    }
}

#[test]
fn patterns_see_lines_as_printed_without_escapes_and_between_carriage_returns() {
    let console = b"\x1b[32m 50%\x1b[0m\r\x1b[32m100%\x1b[0m done\n";
    for pattern in ["^100% done$", "^ 50%$", "\x1b\\[32m100%", "^\x1b.*done$", " 50%\r100%"] {
        let mut expects = scanner(&[pattern], &[]);
        assert!(decides(&mut expects, console), "{pattern}");
        let mut rejects = scanner(&[], &[pattern]);
        assert!(decides(&mut rejects, console), "{pattern}");
    }
    // A match in a line that is not complete.
    let mut scanner = scanner(&["^100%$"], &[]);
    assert!(!decides(&mut scanner, b" 10%\r"));
    assert!(decides(&mut scanner, b"100%\r 30%"));
}

#[test]
fn nothing_of_a_line_without_an_end_is_lost_to_what_is_not_allowed() {
    let mut scanner = scanner(&[], &["BUG:"]);
    for percent in 0..10_000 {
        scanner.feed(Writer::Console, format!("{percent:5}\r").as_bytes());
    }
    scanner.feed(Writer::Console, b"BUG: late");
    scanner.end();
    assert!(scanner.rejected().is_some());
}

#[test]
fn results_are_found_in_colour_and_after_carriage_returns() {
    let mut scanner = scanner(&[], &[]);
    scanner.feed(
        Writer::Console,
        b"\x1b[1mTAP version 13\x1b[0m\r\n1..2\r\n 50%\r\x1b[31mnot ok 1 - a\x1b[0m\r\nok 2\r\n",
    );
    scanner.end();
    assert_eq!(scanner.tap_complaint().unwrap(), "TAP: 1 of 2 failed: a");
}

#[test]
fn lines_of_two_writers_do_not_mix() {
    let mut scanner = scanner(&["^one line$"], &[]);
    scanner.feed(Writer::Stdout, b"one ");
    scanner.feed(Writer::Stderr, b"another\n");
    scanner.feed(Writer::Console, b"[ 1.0] eth0\n");
    assert!(!scanner.is_decided());
    scanner.feed(Writer::Stdout, b"line\n");
    assert!(scanner.is_decided_by_command());
}

#[test]
fn console_alone_does_not_decide_for_a_command() {
    let mut scanner = scanner(&["ready"], &["BUG"]);
    scanner.feed(Writer::Console, b"ready\n");
    assert!(scanner.is_decided() && !scanner.is_decided_by_command());
    scanner.feed(Writer::Stdout, b"ready");
    assert!(scanner.is_decided_by_command(), "it was met before, but not by the command");
    let mut scanner = self::scanner(&["ready"], &["BUG"]);
    scanner.feed(Writer::Console, b"BUG: bad\n");
    assert!(scanner.is_decided_by_command(), "what is not allowed is not allowed there either");
}

#[test]
fn nothing_wanted_leaves_the_verdict_to_the_end() {
    let mut scanner = scanner(&[], &["BUG"]);
    assert!(!decides(&mut scanner, b"hello\n"));
    assert!(!scanner.wants_something());
}

#[test]
fn endless_line_and_endless_lines_take_bounded_memory() {
    let mut scanner = scanner(&["x{3}y"], &[]);
    for _ in 0..100 {
        scanner.feed(Writer::Console, &[b'x'; 4096]);
    }
    assert!(scanner.tail().all(|line| line.len() <= 16 << 10));
    for _ in 0..1000 {
        scanner.feed(Writer::Console, b"\n\xff\xfe\n");
    }
    assert_eq!(scanner.tail().count(), TAIL_LINES);
}
