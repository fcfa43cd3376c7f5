//! Parses 200 generated documents here and with TAP::Parser, the module behind `prove`. Intended differences
//! are stated and checked: `docs/testing.md` explains them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::commands::test::tap::*;

/// The result of parsing: whether all is well, and the numbers of failed, skipped and known failures.
type Reading = (bool, u64, u64, u64);

/// How a generated document differs from a plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twist {
    None,
    /// Both parsers find a fault.
    Wrong(&'static str),
    /// Good here, and bad for TAP::Parser.
    GoodHere(&'static str),
    /// Good for TAP::Parser, and bad here.
    GoodThere(&'static str),
}

use Twist::{GoodHere, GoodThere, None as Plain, Wrong};

const TWISTS: [Twist; 18] = [
    Plain,
    Plain,
    Plain,
    Plain,
    Wrong("a failure"),
    Wrong("one result less"),
    Wrong("one result more"),
    Wrong("no plan"),
    Wrong("a number twice"),
    Wrong("a number beyond the plan"),
    Wrong("a second plan"),
    Wrong("the plan in the middle"),
    Wrong("a bail out"),
    GoodHere("another order"),
    GoodHere("a failure # Skipped: why"),
    GoodHere("a bare ok at the end"),
    GoodThere("a failure page#skip"),
    GoodThere("a failure in a subtest"),
];

/// A generator of random numbers (xorshift64), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

fn document(seed: u64) -> (String, Twist) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let twist = TWISTS[seed as usize % TWISTS.len()];
    let has_version = random.below(2) == 0;
    let is_plan_first = random.below(2) == 0 && twist != Wrong("the plan in the middle");
    let count = 2 + random.below(6);
    let mut results: Vec<String> =
        (1..=count).map(|number| result(&mut random, number, has_version, twist)).collect();
    let twisted = 1 + random.below(count - 1) as usize;
    let number = twisted + 1;
    match twist {
        Wrong("a failure") => results[twisted] = format!("not ok {number} - bad\n"),
        Wrong("one result less") => drop(results.pop()),
        Wrong("one result more") => results.push(format!("ok {} - more\n", count + 1)),
        Wrong("a number twice") => results[twisted] = format!("ok {twisted}\n"),
        Wrong("a number beyond the plan") => results[twisted] = format!("ok {}\n", count + 1),
        Wrong("the plan in the middle") => results[twisted].insert_str(0, &format!("1..{count}\n")),
        Wrong("a bail out") => results[twisted].insert_str(0, "Bail out! why\n"),
        GoodHere("another order") if has_version || is_plan_first => results.reverse(),
        // Without a version and a plan, number 1 has to begin.
        GoodHere("another order") => results[1..].reverse(),
        GoodHere("a failure # Skipped: why") => {
            results[twisted] = format!("not ok {number} - a # Skipped: why\n");
        }
        GoodThere("a failure page#skip") => results[twisted] = format!("not ok {number} - page#todo\n"),
        GoodThere("a failure in a subtest") => {
            results[twisted] = format!("# Subtest: s\n    1..1\n    not ok 1 - in it\nok {number} - s\n");
        }
        _ => {}
    }
    let plan = if twist == Wrong("no plan") {
        String::new()
    } else {
        format!("1..{count}{}\n", random.pick(&["", " "]))
    };
    let mut text = String::new();
    if has_version {
        text.push_str("TAP version 13\n");
    }
    if is_plan_first {
        text.push_str(&plan);
    }
    text.extend(results);
    if !is_plan_first && twist != Wrong("the plan in the middle") {
        text.push_str(&plan);
    }
    match twist {
        Wrong("a second plan") => text.push_str(&plan),
        GoodHere("a bare ok at the end") => text.push_str("ok\n"),
        _ => {}
    }
    // Two results in reverse order begin with number 2, which begins no document.
    let is_in_order = count == 2 && twist == GoodHere("another order") && !has_version && !is_plan_first;
    (text, if is_in_order { Plain } else { twist })
}

/// Generates a good result, with lines around it.
fn result(random: &mut Random, number: u64, has_version: bool, twist: Twist) -> String {
    let mut text =
        random.pick(&["", "", "# note # TODO\n", "something else\n", "\n", "okay then\n"]).to_owned();
    let name = random.pick(&["", " - a", " b c", " - 7 of 9", " - a \\# SKIP", " - x \\\\ y", " - 1.5 GHz"]);
    let (status, directive) = match random.below(8) {
        0 => ("not ok", random.pick(&[" # TODO", " # todo why", " #TODO why", " # ToDo see #7 # x"])),
        1 => ("ok", random.pick(&[" # SKIP", " # skip why", " #skip why", "\t#\tSKIP\twhy"])),
        2 => ("ok", random.pick(&[" # TODO", " # note", " # time=1ms"])),
        _ => ("ok", ""),
    };
    // The first result has a number: without a version line, nothing else begins a document.
    let may_lack = number > 1 && twist != GoodHere("another order");
    let shown = if may_lack && random.below(4) == 0 { String::new() } else { format!(" {number}") };
    let name = if shown.is_empty() && !name.is_empty() && !name.starts_with(" -") { " - b" } else { name };
    let _ = writeln!(text, "{status}{shown}{name}{directive}");
    if has_version && random.below(4) == 0 {
        text.push_str("  ---\n  message: |\n    not ok 9 - in yaml\n    1..9\n  ...\n");
    }
    text
}

/// Parses a document here, as `--tap require` does.
fn here(text: &str) -> Reading {
    let mut tap = Tap::default();
    for line in text.lines() {
        tap.feed(0, line);
    }
    tap.end();
    let is_good = tap.has_begun() && tap.complaint().is_none() && tap.left_out().is_none();
    let TapCounts { failed, skipped, todo, .. } = tap.counts();
    (is_good, failed, skipped, todo)
}

/// Parses every document with TAP::Parser; `None` if perl does not have it.
fn there(texts: &[String]) -> Option<Vec<Reading>> {
    const SCRIPT: &str = r#"
        binmode STDIN, ":utf8"; local $/ = "\0";
        while (my $tap = <STDIN>) {
            chomp $tap;
            my $parser = TAP::Parser->new({ tap => $tap });
            my $bailed = 0;
            while (my $line = $parser->next) { $bailed = 1 if $line->is_bailout; }
            my $good = !$parser->has_problems && !$bailed ? 1 : 0;
            print join(" ", $good, scalar(my @f = $parser->failed), scalar(my @s = $parser->skipped),
                scalar(my @t = $parser->todo)), "\n";
        }"#;
    let mut perl = Command::new("perl");
    perl.args(["-MTAP::Parser", "-e", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = perl.spawn().ok()?;
    let mut stdin = child.stdin.take()?;
    // Without the module, perl ends at once and cannot be written to.
    let fed = stdin.write_all(texts.join("\0").as_bytes());
    drop(stdin);
    let output = child.wait_with_output().ok().filter(|output| output.status.success() && fed.is_ok())?;
    let text = String::from_utf8(output.stdout).unwrap();
    let reading = |line: &str| {
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        (numbers[0] == 1, numbers[1], numbers[2], numbers[3])
    };
    Some(text.lines().map(reading).collect())
}

#[test]
fn two_hundred_documents_are_read_as_prove_reads_them_or_differ_as_stated() {
    let documents: Vec<(String, Twist)> = (0..200).map(document).collect();
    let texts: Vec<String> = documents.iter().map(|(text, _)| text.clone()).collect();
    let Some(readings) = there(&texts) else {
        eprintln!("skipped: perl has no TAP::Parser to compare with");
        return;
    };
    assert_eq!(readings.len(), texts.len());
    for ((text, twist), there) in documents.iter().zip(readings) {
        let here = here(text);
        let wanted = match twist {
            Plain => (true, true),
            Wrong(_) => (false, false),
            GoodHere(_) => (true, false),
            GoodThere(_) => (false, true),
        };
        assert_eq!((here.0, there.0), wanted, "{twist:?}, here {here:?}, there {there:?}:\n{text}");
        if *twist == Plain || *twist == Wrong("a failure") {
            assert_eq!(here, there, "{twist:?}:\n{text}");
        }
    }
}
