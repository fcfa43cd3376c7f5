//! The results as JUnit XML, in the form that CI services read: one suite, a case for each test, `failure` for an
//! expectation that was not met, `error` for a run that ended in another way.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::super::case::Done;
use super::super::verdict::Verdict;

/// The whole file.
///
/// # Errors
/// None that writing to memory has.
pub(crate) fn junit(cases: &[Done]) -> io::Result<Vec<u8>> {
    let count = |is: fn(&Verdict) -> bool| cases.iter().filter(|case| is(&case.verdict)).count().to_string();
    let failures = count(|verdict| matches!(verdict, Verdict::Failed(_)));
    let errors = count(|verdict| matches!(verdict, Verdict::Broken { .. }));
    let skipped = count(|verdict| matches!(verdict, Verdict::Skipped(_)));
    let time: f64 = cases.iter().map(|case| case.time.as_secs_f64()).sum();
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let (tests, time) = (cases.len().to_string(), format!("{time:.3}"));
    let totals = [
        ("name", "coracle"),
        ("tests", &tests),
        ("failures", &failures),
        ("errors", &errors),
        ("skipped", &skipped),
        ("time", &time),
    ];
    writer.create_element("testsuites").with_attributes(totals).write_inner_content(|writer| {
        writer
            .create_element("testsuite")
            .with_attributes(totals)
            .write_inner_content(|writer| cases.iter().try_for_each(|case| write_case(writer, case)))?;
        Ok(())
    })?;
    let mut xml = writer.into_inner();
    xml.push(b'\n');
    Ok(xml)
}

fn write_case(writer: &mut Writer<Vec<u8>>, case: &Done) -> io::Result<()> {
    let (name, time) = (xml_text(&case.name), format!("{:.3}", case.time.as_secs_f64()));
    let attributes = [("classname", "coracle"), ("name", &name), ("time", &time)];
    writer.create_element("testcase").with_attributes(attributes).write_inner_content(|writer| {
        if let Some(reason) = case.verdict.reason().map(xml_text) {
            let kind = match case.verdict {
                Verdict::Passed | Verdict::Failed(_) => "failure",
                Verdict::Broken { .. } => "error",
                Verdict::Skipped(_) => "skipped",
            };
            let element = writer.create_element(kind).with_attribute(("message", reason.as_str()));
            let explanation = case.outcome.as_ref().map(|outcome| outcome.explanation(false));
            match explanation.filter(|lines| !lines.is_empty()) {
                None => element.write_empty()?,
                Some(lines) => element.write_text_content(BytesText::new(&xml_text(&lines.join("\n"))))?,
            };
        }
        let tail: Vec<String> = case.scanner.tail().map(xml_text).collect();
        if !tail.is_empty() {
            writer.create_element("system-out").write_text_content(BytesText::new(&tail.join("\n")))?;
        }
        Ok(())
    })?;
    Ok(())
}

/// A guest's text without the characters that XML 1.0 (2.2) does not allow.
fn xml_text(text: &str) -> String {
    let is_allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    text.chars().map(|c| if is_allowed(c) { c } else { '\u{fffd}' }).collect()
}

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
        Done { name: name.into(), verdict, outcome: None, scanner, time: Duration::from_millis(1500) }
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
        let xml = String::from_utf8(junit(&cases).unwrap()).unwrap();
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
        assert!(!xml.contains('\u{1b}') && !xml.contains('\0'), "{xml}");
    }
}
