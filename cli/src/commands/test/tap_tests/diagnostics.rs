//! The diagnostics of failures, in the formats of common programs.

use super::*;

/// Returns the names of the failures and their diagnostics.
fn diagnostics(text: &str) -> Vec<(String, String)> {
    let tap = tap(text);
    let results = tap.results().iter();
    assert!(results.clone().all(|it| it.outcome == TapOutcome::Failed || it.diagnostics.is_empty()));
    let failed = results.filter(|result| result.outcome == TapOutcome::Failed);
    failed.map(|result| (result.name.clone(), result.diagnostics.clone())).collect()
}

fn of_one(text: &str) -> String {
    let mut all = diagnostics(text);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).1
}

#[test]
fn comments_after_a_failure_are_its_own() {
    let bats = "1..3\nok 1 first\n# of the first\nnot ok 2 second\n# (in test file a.bats, line 6)\n\
        #   `[ 1 = 2 ]' failed\nnot ok 3 third\n\
                # (in test file a.bats, line 9)\n";
    assert_eq!(
        diagnostics(bats),
        [
            (
                "second".into(),
                "# of the first\n# (in test file a.bats, line 6)\n#   `[ 1 = 2 ]' failed".into()
            ),
            ("third".into(), "# (in test file a.bats, line 9)".into()),
        ]
    );
    // Test::More prints its plan last, and a comment after it belongs to no test.
    let last =
        "not ok 1 - x\n#   Failed test 'x'\n#   at t.t line 3.\n1..1\n# Looks like you failed 1 test of 1.\n";
    assert_eq!(of_one(last), "#   Failed test 'x'\n#   at t.t line 3.");
    // Output of another program in between does not belong to a test either.
    assert_eq!(of_one("1..1\nnot ok 1\n# a\nhello\n[    1.0] # log\n# b\n"), "# a\n# b");
}

#[test]
fn comments_before_a_failure_are_its_own_too() {
    let kselftest = "TAP version 13\n1..2\n# Starting 2 tests\nok 1 global.a\n#  RUN           global.b ...\n\
                     # b.c:12:b:Expected 1 (1) == 2 (2)\n#          FAIL  global.b\nnot ok 2 global.b\n";
    assert_eq!(
        of_one(kselftest),
        "#  RUN           global.b ...\n# b.c:12:b:Expected 1 (1) == 2 (2)\n#          FAIL  global.b"
    );
}

#[test]
fn kernel_tests_tell_before_their_results() {
    let lines = [
        "KTAP version 1",
        "1..1",
        "    KTAP version 1",
        "    # Subtest: example",
        "    # module: example",
        "    1..3",
        "    # first: EXPECTATION FAILED at lib/a.c:29",
        "    Expected 1 + 1 == 3, but",
        "        1 + 1 == 2 (0x2)",
        "    not ok 1 first",
        "    # second: EXPECTATION FAILED at lib/a.c:41",
        "    not ok 2 second",
        "    # third: initializing",
        "    ok 3 third",
        "# example: pass:1 fail:2 skip:0 total:3",
        "# Totals: pass:1 fail:2 skip:0 total:3",
        "not ok 1 example",
    ];
    let first =
        "# first: EXPECTATION FAILED at lib/a.c:29\n    Expected 1 + 1 == 3, but\n        1 + 1 == 2 (0x2)";
    let expected = [
        ("first".to_owned(), first.to_owned()),
        ("second".to_owned(), "# second: EXPECTATION FAILED at lib/a.c:41".to_owned()),
    ];
    assert_eq!(diagnostics(&lines.join("\n")), expected);
    let logged = lines.map(|line| format!("[    1.234567][    T1] {line}"));
    assert_eq!(diagnostics(&logged.join("\n")), expected);
}

#[test]
fn yaml_block_of_a_failure_is_kept_with_its_blank_lines_and_indentation() {
    let text = "TAP version 14\n1..2\nnot ok 1 a\n\
        # before the block\n  ---\n  message: |\n    one\n\n    two\n  at:\n    line: 3\n  ...\n\
                # after\nok 2 b\n  ---\n  message: fine\n  ...\n";
    assert_eq!(of_one(text), "# before the block\nmessage: |\n  one\n\n  two\nat:\n  line: 3\n# after");
    // In a subtest, which fails because of it: the result of the subtest is not a failure of its own.
    let inner = "TAP version 14\n1..1\n# Subtest: s\n    not ok 1 - inner\n      ---\n      at: x.t\n      ...\n    1..1\n\
                 not ok 1 - s\n  ---\n  message: of the subtest\n  ...\n";
    assert_eq!(diagnostics(inner), [("inner".to_owned(), "at: x.t".to_owned())]);
}

#[test]
fn hostile_diagnostics_take_bounded_memory() {
    let many = "# why\u{1b}[2J\tand where\n".repeat(20_000);
    let text = format!("TAP version 14\n1..1\n{many}not ok 1\n{many}");
    let kept = of_one(&text);
    assert!(kept.len() > 7000 && kept.len() <= 8192, "{}", kept.len());
    assert!(kept.lines().all(|line| !line.contains(char::is_control)), "{kept:?}");
    let block = format!("  ---\n{}  ...\n", "  key: value\n".repeat(1000));
    let text = format!("TAP version 14\n{}", format!("not ok\n{block}").repeat(2000));
    let all: usize = diagnostics(&text).iter().map(|(_, text)| text.len()).sum();
    assert!(all > 1_000_000 && all <= 1 << 20, "{all}");
}
