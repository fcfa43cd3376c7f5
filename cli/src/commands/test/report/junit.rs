//! The results as JUnit XML, in the form that CI services read: a suite with a test case for each case and
//! for each of its TAP results, `failure` for an unmet expectation, and `error` for a run that ended in
//! another way. Repeated runs are reported as Maven Surefire does (its schema, `surefire-test-report.xsd`):
//! `flakyFailure` and `flakyError` if a later run passed, `rerunFailure` and `rerunError` if none did.

use std::collections::HashMap;
use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::super::attempts::Attempt;
use super::super::case::Done;
use super::super::tap::{Tap, TapOutcome, TapResult};
use super::super::verdict::Verdict;

/// Returns the whole file, for a suite with this name.
///
/// # Errors
/// Only those of writing to memory.
pub(crate) fn junit(suite: &str, cases: &[Done]) -> io::Result<Vec<u8>> {
    let suite = xml_text(suite);
    let counts = Counts::of(cases);
    let time: f64 = cases.iter().map(|case| case.time.as_secs_f64()).sum();
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let time = format!("{time:.3}");
    let [tests, failures, errors, skipped] = counts.texts();
    let totals = [
        ("name", suite.as_str()),
        ("tests", &tests),
        ("failures", &failures),
        ("errors", &errors),
        ("skipped", &skipped),
        ("time", &time),
    ];
    writer.create_element("testsuites").with_attributes(totals).write_inner_content(|writer| {
        writer.create_element("testsuite").with_attributes(totals).write_inner_content(|writer| {
            let mut names = Names::default();
            cases.iter().try_for_each(|case| {
                write_case(writer, &names.unique(component(&suite), xml_text(&case.name)), case)?;
                let results = case.scanner.tap().map(Tap::results).unwrap_or_default();
                results.iter().try_for_each(|result| {
                    write_result(writer, &names.of_result(&suite, case, result), result)
                })
            })
        })?;
        Ok(())
    })?;
    let mut xml = writer.into_inner();
    xml.push(b'\n');
    Ok(xml)
}

#[derive(Debug, Default)]
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
}

impl Counts {
    fn of(cases: &[Done]) -> Counts {
        let mut counts = Counts::default();
        for case in cases {
            counts.tests += 1;
            match case.verdict {
                Verdict::Passed => {}
                Verdict::Failed(_) => counts.failures += 1,
                Verdict::Broken { .. } => counts.errors += 1,
                Verdict::Skipped(_) => counts.skipped += 1,
            }
            for result in case.scanner.tap().map(Tap::results).unwrap_or_default() {
                counts.tests += 1;
                match result.outcome {
                    TapOutcome::Passed => {}
                    TapOutcome::Failed => counts.failures += 1,
                    TapOutcome::Skipped | TapOutcome::Todo => counts.skipped += 1,
                }
            }
        }
        counts
    }

    fn texts(&self) -> [String; 4] {
        [self.tests, self.failures, self.errors, self.skipped].map(|count| count.to_string())
    }
}

/// The class of a test case, and its name in that class.
type Name = (String, String);

/// The names in use: of several test cases with the same name, CI services keep only one.
#[derive(Debug, Default)]
struct Names(HashMap<Name, u32>);

impl Names {
    fn unique(&mut self, class: String, name: String) -> Name {
        let count = self.0.entry((class.clone(), name.clone())).or_default();
        *count += 1;
        let name = if *count == 1 { name } else { format!("{name} ({count})") };
        (class, name)
    }

    fn of_result(&mut self, suite: &str, case: &Done, result: &TapResult) -> Name {
        let groups = result.suite.split('/').filter(|group| !group.is_empty());
        let parts = [suite, &case.name].into_iter().chain(groups).map(component);
        let class = parts.collect::<Vec<_>>().join(".");
        let name =
            if result.name.is_empty() { format!("test {}", result.number) } else { xml_text(&result.name) };
        self.unique(class, name)
    }
}

/// Turns a name into a part of a class name. CI services separate the parts with dots.
fn component(text: &str) -> String {
    xml_text(text).replace('.', "_")
}

fn write_case(writer: &mut Writer<Vec<u8>>, (class, name): &Name, case: &Done) -> io::Result<()> {
    let time = format!("{:.3}", case.time.as_secs_f64());
    let attributes = [("classname", class.as_str()), ("name", name), ("time", &time)];
    writer.create_element("testcase").with_attributes(attributes).write_inner_content(|writer| {
        let explanation = case.outcome.as_ref().map(|outcome| outcome.explanation(false));
        let explanation = xml_text(&explanation.unwrap_or_default().join("\n"));
        match &case.verdict {
            Verdict::Passed => {}
            Verdict::Failed(reason) => {
                write_reason(writer, "failure", Some(EXPECTATION), reason, &explanation)?;
            }
            Verdict::Broken { code, reason } => {
                write_reason(writer, "error", Some(kind(*code)), reason, &explanation)?;
            }
            Verdict::Skipped(reason) => write_reason(writer, "skipped", None, reason, &explanation)?,
        }
        case.earlier.iter().try_for_each(|run| write_earlier(writer, case.is_flaky, run))?;
        let tail: Vec<String> = case.scanner.tail().map(xml_text).collect();
        if !tail.is_empty() {
            writer.create_element("system-out").write_text_content(BytesText::new(&tail.join("\n")))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn write_reason(
    writer: &mut Writer<Vec<u8>>,
    element: &str,
    kind: Option<&str>,
    reason: &str,
    explanation: &str,
) -> io::Result<()> {
    let reason = xml_text(reason);
    let attributes = [("message", reason.as_str())].into_iter().chain(kind.map(|kind| ("type", kind)));
    let element = writer.create_element(element).with_attributes(attributes);
    if explanation.is_empty() {
        element.write_empty()?;
    } else {
        element.write_text_content(BytesText::new(explanation))?;
    }
    Ok(())
}

/// Writes a run that failed and was repeated.
fn write_earlier(writer: &mut Writer<Vec<u8>>, is_flaky: bool, run: &Attempt) -> io::Result<()> {
    let (element, kind) = match (&run.verdict, is_flaky) {
        (Verdict::Broken { code, .. }, true) => ("flakyError", kind(*code)),
        (Verdict::Broken { code, .. }, false) => ("rerunError", kind(*code)),
        (_, true) => ("flakyFailure", EXPECTATION),
        (_, false) => ("rerunFailure", EXPECTATION),
    };
    let reason = xml_text(run.verdict.reason().unwrap_or_default());
    let attributes = [("message", reason.as_str()), ("type", kind)];
    writer.create_element(element).with_attributes(attributes).write_inner_content(|writer| {
        let explanation = xml_text(&run.explanation.join("\n"));
        writer.create_element("stackTrace").write_text_content(BytesText::new(&explanation))?;
        Ok(())
    })?;
    Ok(())
}

fn write_result(writer: &mut Writer<Vec<u8>>, (class, name): &Name, result: &TapResult) -> io::Result<()> {
    // TAP has no timing, but the attribute is required.
    let attributes = [("classname", class.as_str()), ("name", name), ("time", "0.000")];
    let element = writer.create_element("testcase").with_attributes(attributes);
    let (kind, reason) = match result.outcome {
        TapOutcome::Passed => {
            element.write_empty()?;
            return Ok(());
        }
        TapOutcome::Failed => {
            ("failure", format!("not ok {} {} {}", result.number, result.name, result.reason))
        }
        TapOutcome::Skipped => ("skipped", result.reason.clone()),
        TapOutcome::Todo => ("skipped", format!("TODO {}", result.reason)),
    };
    element.write_inner_content(|writer| {
        let of_failure = (kind == "failure").then_some("tap");
        write_reason(writer, kind, of_failure, reason.trim(), &xml_text(&result.diagnostics))
    })?;
    Ok(())
}

/// Returns the type of an error, which is the ending's name in the outcome.
fn kind(code: u8) -> &'static str {
    match code {
        110 => "panicked",
        111 => "crashed",
        112 => "reset",
        113 => "cannot-run",
        115 => "no-kvm",
        116 => "halted",
        117 => "host-failed",
        124 => "timed-out",
        125 => "not-run",
        _ => "broken",
    }
}

/// Replaces the characters of a guest's text that XML 1.0 (section 2.2) does not allow.
fn xml_text(text: &str) -> String {
    let is_blank = |c: char| matches!(c, '\t' | '\n' | '\r');
    let is_character = |c: char| matches!(c, ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    let is_allowed = |c: char| is_blank(c) || is_character(c);
    text.chars().map(|c| if is_allowed(c) { c } else { '\u{fffd}' }).collect()
}

/// The type of a failed case.
const EXPECTATION: &str = "expectation";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quick_xml::Reader;

    use super::*;
    use crate::commands::test::scanner::{Patterns, Scanner, Writer};

    fn done(name: &str, verdict: Verdict, console: &[u8]) -> Done {
        let mut scanner = Scanner::new(Patterns::default(), None);
        scanner.feed(Writer::Console, console);
        scanner.end();
        let time = Duration::from_millis(1500);
        Done {
            name: name.into(),
            verdict,
            outcome: None,
            scanner,
            time,
            earlier: Vec::new(),
            is_flaky: false,
        }
    }

    /// Returns the file, and the names of all its elements.
    fn written(cases: &[Done]) -> (String, Vec<String>) {
        let xml = String::from_utf8(junit("boot-tests", cases).unwrap()).unwrap();
        let mut reader = Reader::from_str(&xml);
        let mut names = Vec::new();
        loop {
            match reader.read_event().unwrap() {
                Event::Eof => break,
                Event::Start(tag) | Event::Empty(tag) => {
                    names.push(tag.name().as_ref().to_owned());
                }
                _ => {}
            }
        }
        (xml, names)
    }

    #[test]
    fn every_verdict_has_its_element_and_hostile_text_stays_text() {
        let cases = [
            done("good", Verdict::Passed, b"fine\n"),
            done(
                "bad <&\">",
                Verdict::Failed("no \u{1b} ]]> match".into()),
                b"\x00\x1b[31m<testcase/>\xff\n",
            ),
            done("broken", Verdict::Broken { code: 110, reason: "panic".into() }, b""),
            done("left out", Verdict::Skipped("no KVM".into()), b""),
        ];
        let (xml, names) = written(&cases);
        let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
        assert_eq!(
            (count("testcase"), count("failure"), count("error"), count("skipped")),
            (4, 1, 1, 1),
            "{xml}"
        );
        assert!(
            xml.contains("tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\" time=\"6.000\""),
            "{xml}"
        );
        assert!(xml.contains("<testsuite name=\"boot-tests\" "), "{xml}");
        assert!(xml.contains("<testcase classname=\"boot-tests\" name=\"good\" "), "{xml}");
        assert!(xml.contains("<error message=\"panic\" type=\"panicked\"/>"), "{xml}");
        assert!(xml.contains("type=\"expectation\""), "{xml}");
        assert!(!xml.contains('\u{1b}') && !xml.contains('\0'), "{xml}");
    }

    #[test]
    fn each_tap_result_is_a_test_case_of_its_own_name() {
        let tap = b"TAP version 14\n1..5\nok 1 - first\nnot ok 2 - second\nok 3 - third # SKIP no disk\n\
                    not ok 4 - second # TODO later\nok 5\n";
        let (xml, names) = written(&[done("kunit [kernel=vmlinux-6.1]", Verdict::Failed("TAP".into()), tap)]);
        assert_eq!(names.iter().filter(|name| *name == "testcase").count(), 6, "{xml}");
        assert!(xml.contains("tests=\"6\" failures=\"2\" errors=\"0\" skipped=\"2\""), "{xml}");
        let class = "classname=\"boot-tests.kunit [kernel=vmlinux-6_1]\"";
        for name in ["first", "second", "third", "second (2)", "test 5"] {
            assert!(xml.contains(&format!("{class} name=\"{name}\"")), "{name}: {xml}");
        }
        assert!(xml.contains("<failure message=\"not ok 2 second\" type=\"tap\"/>"), "{xml}");
        assert!(xml.contains("<skipped message=\"no disk\"/>"), "{xml}");
        assert!(xml.contains("<skipped message=\"TODO later\"/>"), "{xml}");
    }

    #[test]
    fn failure_of_a_tap_result_says_why() {
        let tap = b"1..2\nnot ok 1 a <b>\n# expected <1> ]]> & got\x01 2\nok 2 c\n# of nobody\n";
        let (xml, _) = written(&[done("bats", Verdict::Failed("TAP".into()), tap)]);
        let body = "type=\"tap\"># expected &lt;1&gt; ]]&gt; &amp; got\u{fffd} 2</failure>";
        assert!(xml.contains(body), "{xml}");
        assert_eq!(xml.matches("of nobody").count(), 1, "only in the console: {xml}");
    }

    #[test]
    fn subtests_are_in_the_class() {
        let ktap = b"KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: lists\n    1..1\n    ok 1 empty\nok 1 lists\n";
        let (xml, _) = written(&[done("kunit", Verdict::Passed, ktap)]);
        assert!(xml.contains("classname=\"boot-tests.kunit.lists\" name=\"empty\""), "{xml}");
    }

    #[test]
    fn runs_that_were_repeated_are_told_as_surefire_does() {
        let earlier = || {
            let run =
                |verdict| Attempt { verdict, time: Duration::ZERO, explanation: vec!["last words".into()] };
            vec![
                run(Verdict::Failed("no line".into())),
                run(Verdict::Broken { code: 124, reason: "timed out".into() }),
            ]
        };
        let flaky = Done { earlier: earlier(), is_flaky: true, ..done("late", Verdict::Passed, b"") };
        let bad = Done { earlier: earlier(), ..done("bad", Verdict::Failed("no line".into()), b"") };
        let (xml, names) = written(&[flaky, bad]);
        for element in ["flakyFailure", "flakyError", "rerunFailure", "rerunError"] {
            assert_eq!(names.iter().filter(|name| *name == element).count(), 1, "{element}: {xml}");
        }
        assert!(xml.contains("<flakyFailure message=\"no line\" type=\"expectation\">"), "{xml}");
        assert!(xml.contains("<flakyError message=\"timed out\" type=\"timed-out\">"), "{xml}");
        assert!(xml.contains("<stackTrace>last words</stackTrace>"), "{xml}");
        assert!(xml.contains("tests=\"2\" failures=\"1\" errors=\"0\""), "a flaky test has passed: {xml}");
    }
}
