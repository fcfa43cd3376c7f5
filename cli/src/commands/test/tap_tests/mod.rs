//! Whole documents, as guests print them. These tests are not in the directory of the code that they test,
//! because a fuzz target includes that directory.

mod diagnostics;
mod reference;

use super::tap::*;

fn tap(text: &str) -> Tap {
    let mut tap = Tap::default();
    for line in text.lines() {
        tap.feed(0, line);
    }
    tap.end();
    tap
}

fn counts(text: &str) -> (u64, u64, u64, u64) {
    let TapCounts { passed, failed, skipped, todo } = tap(text).counts();
    (passed, failed, skipped, todo)
}

fn complaint(text: &str) -> String {
    tap(text).complaint().unwrap_or_else(|| "none".to_owned())
}

#[test]
fn plan_and_results_without_failures_are_complete_and_good() {
    for text in [
        "TAP version 13\n1..2\nok 1 a\nok 2 - b",
        "TAP version 14\nok 1\nok 2 # SKIP no disk\n1..2",
        "boot noise\n[    0.123456] KTAP version 1\n[    0.123460] 1..1\n[    0.2] ok 1 suite",
        "TAP version 13\n1..0 # SKIP nothing to do",
        "TAP version 14\n1..3\nok 2\nok 3\nok 1",
        "TAP version 13\n1..5\nok\nok 2\nok\nok\nok",
        "KTAP version 1\nok 1 no plan\nok 2 is needed",
        "TAP version 13\r\npragma +strict\n\n# note\nanything\n1..1\nok 1",
    ] {
        let tap = tap(text);
        assert!(tap.has_begun() && tap.is_complete(), "{text}");
        assert_eq!(tap.complaint(), None, "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_plan_or_a_number_fails() {
    for (text, wrong) in [
        ("TAP version 13\n1..3\nok 1", "1 of 3 results came"),
        ("TAP version 13\nok 1", "no plan came"),
        ("TAP version 13", "no plan came"),
        ("KTAP version 1", "no results came"),
        ("TAP version 13\n1..1\nok 1\nok 2", "2 results came of 1 that were planned"),
        ("TAP version 13\n1..0\nok 1", "1 results came of 0 that were planned"),
        ("TAP version 14\n1..3\nok 2\nok 4\nok 1", "number 4 is beyond the plan of 3"),
        ("TAP version 13\n1..2\nok 1\nok 1", "number 1 came twice"),
        ("TAP version 13\n1..3\nok 1\nok 2\nok 2", "number 2 came twice"),
        ("TAP version 13\n1..2\nok 0\nok 1", "a result has number 0"),
        ("TAP version 13\nok 1\n1..2\nok 2", "results came before and after the plan"),
        ("[ 1.0] KTAP version 1\n[ 1.0] 1..2\n[ 1.0] ok 1\n[ 1.0] 1..2\n[ 1.0] ok 2", "a second plan came"),
        ("KTAP version 1\nok 1\nok 3", "number 2 is missing"),
        ("TAP version 13\n1..99999999999999999999999\nok 1", "1 of 18446744073709551615 results came"),
    ] {
        let complaint = complaint(text);
        assert!(complaint.contains(wrong), "{text}: {complaint}");
    }
}

#[test]
fn each_document_of_a_run_counts() {
    let second_fails = "TAP version 13\n1..1\nok 1\nnoise\nTAP version 13\n1..1\nnot ok 1 - b";
    assert_eq!(complaint(second_fails), "TAP: 1 of 2 failed: b");
    let first_is_cut = "TAP version 13\n1..2\nok 1\nTAP version 13\n1..2\nok 1\nok 2";
    assert_eq!(complaint(first_is_cut), "TAP: document 1: 1 of 2 results came");
    let in_log_and_beside =
        "[ 1.0] KTAP version 1\n[ 1.0] 1..2\nTAP version 13\n1..1\n[ 1.1] ok 1 a\nok 1 - b\n[ 1.2] ok 2 c";
    assert_eq!(complaint(in_log_and_beside), "none");
    assert_eq!(counts(in_log_and_beside), (3, 0, 0, 0));
    let documents: Vec<u64> = tap(in_log_and_beside).results().iter().map(|result| result.document).collect();
    assert_eq!(documents, [1, 2, 2]);
}

#[test]
fn texts_do_not_mix() {
    let mut tap = Tap::default();
    for (text, line) in
        [(0, "TAP version 13"), (1, "TAP version 13"), (0, "1..1"), (1, "1..1"), (0, "ok 1"), (1, "ok 1")]
    {
        assert!(tap.feed(text, line), "{line}");
    }
    assert!(tap.is_complete());
    tap.end();
    assert_eq!((tap.complaint(), tap.counts().passed), (None, 2));
}

#[test]
fn whatever_is_before_the_version_is_cut_from_each_line() {
    for prefix in [
        "[    1.000001][    T1] ",
        "[    1.000001] ",
        "<6>",
        "<6>[    1.000001] ",
        "Nov 30 10:11:12 host kernel: ",
        "Nov 30 10:11:12 host kernel: [    1.000001] ",
        "2026-11-30T10:11:12.345678+00:00 host test[123]: ",
        "guest-1 | ",
        "    ",
    ] {
        let body = "KTAP version 1\n1..2\n    KTAP version 1\n    1..1\n    not ok 1 x\nnot ok 1 a\nok 2 b";
        let lines = body
            .lines()
            .enumerate()
            .map(|(index, line)| format!("{}{line}\n", prefix.replace("12.", &format!("{}.", 12 + index))));
        let text: String = lines.collect();
        assert_eq!(complaint(&text), "TAP: 1 of 2 failed: a/x", "{text}");
    }
    // A line is cut only if something precedes the version.
    assert_eq!(complaint("some wordsTAP version 13\n1..1\nok 1"), "none");
    // If some lines have the prefix, lines without it come from another program.
    assert_eq!(complaint("a| TAP version 13\na| 1..1\n1..7\nnot ok 5\nb| ok 1\na| ok 1"), "none");
    assert_eq!(
        complaint("a| TAP version 13\na| 1..1\na| ok 1\nTAP version 13\n1..1\nnot ok 1"),
        "TAP: 1 of 2 failed: 1"
    );
    // The widths of times and callers grow.
    let grows = "[    1.0][    T1] KTAP version 1\n[99999.0][  T999] 1..1\n[123456.0][T123456] not ok 1 a";
    assert_eq!(complaint(grows), "TAP: 1 of 1 failed: a");
    // What a program prints between the lines of the log is not part of the document.
    assert_eq!(complaint("[ 1.0] KTAP version 1\n[ 1.0] 1..1\nok, done\nnot ok 7\n[ 1.0] ok 1"), "none");
}

#[test]
fn results_of_subtests_count_and_their_sums_do_not() {
    let text = "KTAP version 1\n1..2\n    KTAP version 1\n    # Subtest: s\n    1..2\n    ok 1 a\n    not ok 2 b\n\
                not ok 1 s\nok 2 t";
    assert_eq!((complaint(text).as_str(), counts(text)), ("TAP: 1 of 3 failed: s/b", (2, 1, 0, 0)));
    let names: Vec<_> =
        tap(text).results().iter().map(|result| (result.suite.clone(), result.name.clone())).collect();
    assert_eq!(names, [("s".into(), "a".into()), ("s".into(), "b".into()), (String::new(), "t".into())]);
    // A result that alone reports a failure counts as one; if it does not, the failure of its subtest does.
    assert_eq!(
        complaint("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a\nnot ok 1 s"),
        "TAP: 1 of 2 failed: s"
    );
    assert_eq!(
        complaint("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  not ok 1 a\nok 1 s"),
        "TAP: 1 of 1 failed: s/a"
    );
}

#[test]
fn subtests_come_in_every_form_that_is_in_use() {
    for text in [
        // TAP 14: with a comment at the parent's level, without one, nested, empty, after a result, plan
        // last.
        "TAP version 14\n# Subtest: s\n    1..1\n    ok 1 a\nok 1 - s\n1..1",
        "TAP version 14\n    ok 1 a\n    1..1\nok 1 s\n1..1",
        "TAP version 14\n        ok 1 a\n        1..1\n    ok 1 b\n    1..1\nok 1 s\n1..1",
        "TAP version 14\n1..1\n# Subtest\n    1..1\n    ok 1\nok 1",
        "TAP version 14\n1..1\n# Subtest: s\n    # Subtest: t\n        1..1\n        ok 1 a\n    ok 1 - t\n    1..1\nok 1 - s # time=1ms",
        // `node --test` prints a comment before each test, even before those without subtests.
        "TAP version 13\n# Subtest: s\n    # Subtest: a # b\n    ok 1 - a # b\n      ---\n      type: test\n      ...\n    1..1\nok 1 - s\n  ---\n  ...\n1..1\n# pass 1",
        "TAP version 14\n1..1\n    # Subtest: a\n    ok 1 - a\n    1..1\nok 1 - s",
        // KTAP: two columns a level; KUnit: four, its name inside, results without a plan; KUnit of 2020: a
        // tab.
        "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n    KTAP version 1\n    1..1\n    ok 1 a\n  ok 1 t\nok 1 s",
        "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    # module: m\n    1..1\n        KTAP version 1\n        \
         # Subtest: t\n        ok 1 a\n    # t: pass:1 fail:0\n    ok 1 t\n# s: pass:1\nok 1 s",
        "TAP version 14\n1..1\n\t# Subtest: s\n\t1..1\n\tok 1 - a\nok 1 - s",
    ] {
        assert_eq!((complaint(text).as_str(), counts(text)), ("none", (1, 0, 0, 0)), "{text}");
        let failed = text.replace("ok 1", "not ok 1");
        assert_eq!(counts(&failed), (0, 1, 0, 0), "{failed}");
    }
}

#[test]
fn plans_and_numbers_of_subtests_are_checked() {
    let with = |subtest: &str| {
        let lines: String = subtest.split('|').map(|line| format!("    {line}\n")).collect();
        complaint(&format!("TAP version 14\n1..1\n# Subtest: s\n{lines}ok 1 - s"))
    };
    assert_eq!(with("1..1|ok 1"), "none");
    for (subtest, wrong) in [
        ("1..2|ok 1", "s: 1 of 2 results came"),
        ("1..1|ok 1|ok 2", "s: 2 results came of 1 that were planned"),
        ("1..2|ok 1|ok 3", "s: number 3 is beyond the plan of 2"),
        ("ok 1", "s: no plan came"),
    ] {
        assert_eq!(with(subtest), format!("TAP: {wrong}"), "{subtest}");
    }
    let text = "TAP version 14\n1..1\n# Subtest: s\n    1..1\n    ok 1\nok 1 - t";
    assert_eq!(complaint(text), "TAP: t: the result of subtest `s` is named `t`");
    let text = "KTAP version 1\n1..1\nok 1\n  KTAP version 1\n  1..2\n  ok 1\n";
    assert_eq!(
        complaint(text),
        "TAP: a subtest: 1 of 2 results came; a subtest: no result of a subtest came"
    );
}

#[test]
fn indented_text_without_a_plan_is_no_subtest() {
    for text in [
        "TAP version 13\n1..1\n    not ok 1 this is a list\nok 1",
        "TAP version 13\n1..1\n   not ok 1 of three columns\nok 1",
        "KTAP version 1\n1..1\n   1..7\n   not ok 1\nok 1",
    ] {
        assert_eq!((complaint(text).as_str(), counts(text)), ("none", (1, 0, 0, 0)), "{text}");
    }
}

#[test]
fn directive_of_a_subtest_covers_all_that_is_in_it() {
    assert_eq!(counts("TAP version 13\n1..2\nnot ok 1 old # TODO later\nok 2 x"), (1, 0, 0, 1));
    assert_eq!(counts("KTAP version 1\n1..2\nok 1 a\nnot ok 2 b # XFAIL"), (1, 0, 0, 1));
    assert_eq!(counts("TAP version 13\n1..2\nnot ok 1 # SKIP x\nok 2 #skip"), (0, 0, 2, 0));
    assert_eq!(counts("KTAP version 1\n1..2\nnot ok 1 a # TIMEOUT 45 s\nnot ok 2 b # ERROR x"), (0, 2, 0, 0));
    for (directive, expected) in [("TODO x", (1, 0, 0, 1)), ("SKIP", (1, 0, 1, 0)), ("note", (1, 1, 0, 0))] {
        let text = format!(
            "TAP version 14\n1..1\n    1..3\n    ok 1 - x\n    not ok 2 - y\nnot ok 1 - foo # {directive}"
        );
        assert_eq!(counts(&text), expected, "{text}");
        assert_eq!(tap(&text).complaint().is_none(), directive != "note", "{text}");
    }
}

#[test]
fn plan_of_nothing_is_skipped() {
    let tap = tap("TAP version 13\n1..0 # SKIP no disk");
    assert_eq!(tap.all_skipped(), Some("no disk"));
    assert_eq!(tap.counts().skipped, 1);
    assert_eq!(counts("KTAP version 1\n1..0"), (0, 0, 0, 0), "a kernel without tests skips nothing");
    assert_eq!(counts("TAP version 14\n1..2\n    1..0 # skip x\nok 1 - s\nok 2"), (1, 0, 1, 0));
    assert_eq!(super::tap_tests::tap("TAP version 13\n1..2\nok 1 # SKIP\nok 2").all_skipped(), None);
}

#[test]
fn yaml_blocks_are_no_results() {
    for block in [
        "  ---\n  message: |\n    not ok 5 - in yaml\n\n  not ok 6\n  ...",
        " ---\n not ok 5\n ...",
        "  --- !ruby\n  not ok 5\nnoise between\n  1..7\n  ...",
        "# note\n\n  ---\n    1..3\n    not ok 1\n  ...",
        "  ---\n  not ok 5, and the block does not end",
    ] {
        let text = format!("TAP version 13\n1..2\nok 1 - a\n{block}\nok 2");
        assert_eq!((complaint(&text).as_str(), counts(&text)), ("none", (2, 0, 0, 0)), "{text}");
    }
    // The block of a subtest's result, and one that belongs to no result.
    let text =
        "TAP version 14\n1..1\n    1..2\n    ok 1\n      ---\n      not ok 3\n      ...\n    ok 2\nok 1";
    assert_eq!(counts(text), (2, 0, 0, 0));
    assert_eq!(counts("TAP version 14\n  ---\n1..1\n    1..1\n    not ok 1\nnot ok 1"), (0, 1, 0, 0));
}

#[test]
fn bail_out_ends_the_run_wherever_it_is() {
    for text in [
        "1..3\nok 1\nBail out! no memory",
        "1..1\n    1..2\n    bail OUT!  no memory\nok 1",
        // Before the first result, and before the plan.
        "1..3\nBail out! no memory",
        "ok 1\nBail out! no memory\nok 2",
        "# Subtest: a\nBail out! no memory",
    ] {
        for version in ["TAP version 13\n", ""] {
            let tap = tap(&format!("{version}{text}"));
            assert!(tap.has_begun() && tap.has_bailed_out(), "{version}{text}");
            assert_eq!(tap.complaint().unwrap(), "TAP: bailed out: no memory");
        }
    }
    assert!(!tap("Bail out! of nothing").has_bailed_out());
    assert!(!tap("TAP version 13\n1..1\nok 1\n  ---\n  Bail out!\n  ...").has_bailed_out());
}

#[test]
fn results_without_a_version_count_with_a_plan() {
    for (text, expected) in [
        ("1..2\nok 1 - a\nnot ok 2 - b", (1, 1, 0, 0)),
        ("ok 1 - a\nnot ok 2 - b\n# done\n1..2", (1, 1, 0, 0)),
        ("1..0 # SKIP no network", (0, 0, 1, 0)),
        ("1..0 # SKIP", (0, 0, 1, 0)),
        ("t/a.t ..\n1..1\nok 1\nok\nt/b.t ..\n1..1\nok 1\nok\nAll tests successful.", (2, 0, 0, 0)),
        ("1..1\nok 1\n1..2\nok 1\nok 2", (3, 0, 0, 0)),
        ("ok 1\nok 2\n1..2\nok 1\n1..1", (3, 0, 0, 0)),
        ("TAP version 13\n1..1\nok 1\n1..2\nok 1\nok 2", (3, 0, 0, 0)),
        ("# Subtest: s\n    ok 1 - a\n    1..1\nok 1 - s\n1..1", (1, 0, 0, 0)),
        ("1..2\nok - a\nok - b", (2, 0, 0, 0)),
    ] {
        let tap = tap(text);
        assert!(tap.has_begun(), "{text}");
        assert_eq!(counts(text), expected, "{text}");
        assert_eq!(tap.complaint().is_some(), expected.1 > 0, "{text}: {:?}", tap.complaint());
    }
    for (text, wrong) in [
        ("1..3\nok 1", "1 of 3 results came"),
        ("1..3\nok 1\n1..2\nok 1\nok 2", "document 1: 1 of 3 results came"),
        ("1..2\nok 1\nok 2\nok 3", "3 results came of 2 that were planned"),
        ("1..1\nok 1\nok 1", "more came than was planned"),
        ("1..1\nok 1\n1..1", "more came than was planned"),
    ] {
        assert_eq!(complaint(text), format!("TAP: {wrong}"), "{text}");
    }
}

#[test]
fn results_without_version_and_plan_are_left_out_and_named() {
    for (text, left_out) in [
        ("ok 1 - a\nnot ok 2 - b", Some("`not ok` of b came without a plan")),
        ("1..3\nnothing", Some("the plan 1..3 came without results")),
        ("ok 1 - a\nok 2", None),
        ("1..0", None),
    ] {
        let tap = tap(text);
        assert!(!tap.has_begun(), "{text}");
        assert_eq!((tap.left_out(), tap.complaint()), (left_out, None), "{text}");
    }
    assert!(tap("ok 1 - a").has_no_plan());
    for text in ["ok - a", "okay", "not ok", " 1..1\n ok 1", "    ok 1\n    1..1", "x 1..1\nx ok 1"] {
        let tap = tap(text);
        assert!(!tap.has_begun() && tap.left_out().is_none(), "{text}");
    }
}

#[test]
fn kernel_without_a_root_is_over_when_its_tests_are() {
    let panic = "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
    assert!(tap(&format!("[ 1.0] KTAP version 1\n[ 1.0] 1..1\n[ 1.0] ok 1\n{panic}")).is_over());
    assert!(!tap(&format!("[ 1.0] KTAP version 1\n[ 1.0] 1..2\n[ 1.0] ok 1\n{panic}")).is_over());
    assert!(!tap(panic).is_over());
}

#[test]
fn hostile_results_take_bounded_memory() {
    let mut tap = Tap::default();
    tap.feed(0, "TAP version 13");
    for number in 0..50_000_u64 {
        tap.feed(
            0,
            &format!("{}not ok {number} {}", " ".repeat((number % 50 * 4) as usize), "x".repeat(1000)),
        );
        tap.feed(0, &format!("{}1..{number}", " ".repeat((number % 7 * 4) as usize)));
        tap.feed(0, &format!("{}TAP version 14", "x".repeat((number % 500) as usize)));
    }
    tap.end();
    assert!(tap.complaint().unwrap().len() < 10_000);
    assert!(tap.results().len() <= 11_000);
    let kept: usize = tap.results().iter().map(|it| it.suite.len() + it.name.len() + it.reason.len()).sum();
    assert!(kept < 11_000 * 1000, "{kept}");
    assert!(tap.results_left_out() > 0);
}

/// The lines of boots of Debian's kernels 6.1 and 6.12 that look most like TAP, some of other boots and of
/// oopses, and invented ones. With and without timestamps, none of them begins a document.
#[test]
fn log_of_a_kernel_begins_no_document() {
    let lines = include_str!("kernel_log.txt");
    for time in [true, false] {
        let mut tap = Tap::default();
        for line in lines.lines() {
            let line = if time { format!("[    0.123456] {line}") } else { line.to_owned() };
            assert!(!tap.feed(0, &line), "{line}");
        }
        tap.end();
        assert!(!tap.has_begun() && tap.left_out().is_none() && !tap.has_no_plan());
    }
}
