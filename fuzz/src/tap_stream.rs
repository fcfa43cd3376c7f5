//! The console of a guest under test, from bytes to results in TAP. These files are the command's, which is
//! not a library.

#[path = "../../cli/src/guest_text.rs"]
#[allow(dead_code)]
mod guest_text;
#[path = "../../cli/src/commands/test/lines.rs"]
#[allow(dead_code)]
mod lines;
#[path = "../../cli/src/commands/test/tap/mod.rs"]
#[allow(dead_code)]
mod tap;

use guest_text::without_escapes;
use lines::{OpenLine, forms, parts};
use tap::{Tap, TapCounts, TapOutcome};

/// The first byte of `data` is the size of the pieces in which the rest arrives. Whatever it is, the results
/// are the same; what is kept of them is bounded, by numbers and by the input, and harmless.
pub fn tap_stream(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else { return };
    let tap = read(stream, usize::from(piece).max(1));
    let whole = read(stream, stream.len().max(1));
    assert_eq!((tap.counts(), tap.complaint()), (whole.counts(), whole.complaint()));
    assert_eq!(tap.results(), whole.results());
    check(&tap, stream.len());
}

fn read(stream: &[u8], piece: usize) -> Tap {
    let (mut tap, mut open) = (Tap::default(), OpenLine::default());
    let mut lines = Vec::new();
    for mut rest in stream.chunks(piece) {
        while !rest.is_empty() {
            let (left, line) = open.take(rest);
            rest = left;
            lines.extend(line);
        }
        open.unseen();
    }
    lines.extend(open.finish());
    for line in lines {
        let seen: usize = forms(&line.text).iter().map(|form| form.len()).sum();
        assert!(seen <= 4 * line.text.len(), "{seen} bytes of forms");
        for part in parts(&line.text).filter(|_| line.is_first) {
            let had_begun = tap.has_begun();
            tap.feed(0, &without_escapes(part));
            assert!(tap.has_begun() || !had_begun, "a document went away");
        }
    }
    tap.end();
    tap
}

fn check(tap: &Tap, length: usize) {
    let TapCounts { passed, failed, skipped, todo } = tap.counts();
    assert_eq!(passed + failed + skipped + todo, tap.results().len() as u64 + tap.results_left_out());
    assert!(tap.results().len() <= MAX.min(length));
    let (mut kept, mut diagnosed) = (0, 0);
    for result in tap.results() {
        assert!(
            result.suite.len() <= 400 && result.name.len() <= 200 && result.reason.len() <= 200,
            "{result:?}"
        );
        let texts = [&result.suite, &result.name, &result.reason];
        assert!(texts.iter().all(|text| !text.contains(char::is_control)), "{result:?}");
        let is_plain = result.diagnostics.lines().all(|line| !line.contains(char::is_control));
        assert!(result.diagnostics.len() <= 8192 && is_plain, "{result:?}");
        assert!(result.outcome != TapOutcome::Passed || result.diagnostics.is_empty(), "{result:?}");
        diagnosed += result.diagnostics.len();
        kept += result.suite.len() + result.name.len() + result.reason.len();
    }
    assert!(diagnosed <= (4 * length).min(1 << 20), "{diagnosed} bytes of diagnostics are kept of {length}");
    assert!(kept <= 400 * length, "{kept} bytes are kept of {length}");
    let has_failure = tap.results().iter().any(|result| result.outcome == TapOutcome::Failed);
    assert!(!has_failure || tap.complaint().is_some(), "a failure without a complaint");
    assert!(tap.complaint().is_none_or(|complaint| complaint.len() < 10_000));
}

/// Results that are kept of any run.
const MAX: usize = 11_000;
