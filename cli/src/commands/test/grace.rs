//! How long a guest may be silent after the last of its planned TAP results before it is ended. The caller
//! supplies all times; nothing here reads a clock.

use std::time::{Duration, Instant};

/// The grace period of one run.
#[derive(Debug)]
pub(crate) struct Grace {
    silence: Duration,
    planned: Option<Planned>,
}

/// All planned results have come.
#[derive(Debug, Clone, Copy)]
struct Planned {
    documents: u64,
    /// When the last of these documents was complete.
    since: Instant,
    last_output: Instant,
}

impl Grace {
    /// Creates a grace period: a guest is ended after this much silence, or after [`TOTAL`] times as much if
    /// it keeps printing.
    pub(crate) fn new(silence: Duration) -> Grace {
        Grace { silence, planned: None }
    }

    /// Records output. `documents` is the number of documents if the results of all of them have come, and
    /// `None` if some are missing. Each further document restarts the period.
    pub(crate) fn output(&mut self, documents: Option<u64>, now: Instant) {
        let before = self.planned;
        self.planned = documents.map(|documents| {
            let same = before.filter(|before| before.documents == documents);
            Planned { documents, since: same.map_or(now, |before| before.since), last_output: now }
        });
    }

    /// Returns whether the grace period is over.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let Some(Planned { since, last_output, .. }) = self.planned else { return false };
        let is_silent = now.saturating_duration_since(last_output) >= self.silence;
        is_silent || now.saturating_duration_since(since) >= self.silence.saturating_mul(TOTAL)
    }
}

/// How many times the grace period a guest that is never silent may take.
const TOTAL: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_counted_from_the_last_output_after_the_plan_is_complete() {
        let start = Instant::now();
        let mut grace = Grace::new(SECOND);
        grace.output(None, start);
        assert!(!grace.is_over(start + SECOND * 100), "results are missing");
        grace.output(Some(1), start + SECOND * 100);
        assert!(!grace.is_over(start + SECOND * 100 + SECOND / 2));
        grace.output(Some(1), start + SECOND * 100 + SECOND / 2);
        assert!(!grace.is_over(start + SECOND * 101), "it has printed more");
        assert!(grace.is_over(start + SECOND * 101 + SECOND / 2));
    }

    #[test]
    fn document_that_begins_has_all_the_time_that_the_test_has() {
        let start = Instant::now();
        let mut grace = Grace::new(SECOND);
        grace.output(Some(1), start);
        grace.output(None, start + SECOND / 2);
        assert!(!grace.is_over(start + SECOND * 1000));
        grace.output(Some(1), start + SECOND * 1000);
        assert!(!grace.is_over(start + SECOND * 1000) && grace.is_over(start + SECOND * 1001));
    }

    #[test]
    fn guest_that_is_never_silent_is_ended_unless_documents_come() {
        let start = Instant::now();
        let mut grace = Grace::new(SECOND);
        let mut ends = |documents: fn(u64) -> u64| {
            (0..1000).find(|tenth| {
                let now = start + SECOND / 10 * *tenth;
                grace.output(Some(documents(u64::from(*tenth))), now);
                grace.is_over(now)
            })
        };
        assert_eq!(ends(|tenth| tenth / 5), None);
        assert_eq!(ends(|_| 1000), Some(TOTAL * 10));
    }
}
