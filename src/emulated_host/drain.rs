//! The output of an ended command, in flight to the caller: how long it waits for a reader.

use std::time::{Duration, Instant};

/// Decides whether a reader has had enough time. Before the command's limit is over, a reader may take any
/// time. After that it may take a second from one byte to the next.
#[derive(Debug)]
pub(super) struct Drain {
    /// The time from which a stalled reader is given up; `None` means never.
    patient_until: Option<Instant>,
    /// The number of bytes that the reader had taken at the last check, and since when it has stalled.
    last: Option<(u64, Instant)>,
}

impl Drain {
    /// Makes a drain that waits for the reader until `patient_until`.
    pub(super) fn new(patient_until: Option<Instant>) -> Drain {
        Drain { patient_until, last: None }
    }

    /// Gives up a reader that stalls from now on.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.patient_until = Some(self.patient_until.map_or(now, |until| until.min(now)));
    }

    /// Checks the bytes that have come from the machine against those that were delivered. Returns true if
    /// nobody reads the rest. A machine that is slow to send it is waited for.
    pub(super) fn is_given_up(&mut self, (taken, delivered): (u64, u64), now: Instant) -> bool {
        if taken == delivered {
            self.last = None;
            return false;
        }
        let Some(until) = self.patient_until.filter(|until| now >= *until) else { return false };
        match self.last {
            Some((before, since)) if before == delivered => {
                now.saturating_duration_since(since.max(until)) >= STANDSTILL
            }
            _ => {
                self.last = Some((delivered, now));
                false
            }
        }
    }
}

/// The time after which a reader that takes nothing is given up.
const STANDSTILL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn reader_that_stands_still_is_none_once_the_time_is_over() {
        let start = Instant::now();
        let mut drain = Drain::new(Some(start + 5 * SECOND));
        assert!(!drain.is_given_up((90, 10), start + 4 * SECOND), "the command's time is not over");
        assert!(!drain.is_given_up((90, 10), start + 6 * SECOND));
        assert!(!drain.is_given_up((90, 11), start + 7 * SECOND), "it reads");
        assert!(!drain.is_given_up((90, 11), start + 7 * SECOND + SECOND / 2));
        assert!(!drain.is_given_up((90, 90), start + 9 * SECOND), "the machine is slow");
        assert!(!drain.is_given_up((99, 90), start + 10 * SECOND));
        assert!(drain.is_given_up((99, 90), start + 11 * SECOND));
    }

    #[test]
    fn reader_that_stands_still_is_none_for_one_in_a_hurry() {
        let start = Instant::now();
        let mut drain = Drain::new(None);
        assert!(!drain.is_given_up((9, 0), start));
        drain.hurry(start);
        drain.hurry(start + SECOND);
        assert!(!drain.is_given_up((9, 0), start + SECOND / 2));
        assert!(drain.is_given_up((9, 0), start + 2 * SECOND));
    }

    #[test]
    fn without_a_limit_a_reader_has_all_time() {
        let start = Instant::now();
        let mut drain = Drain::new(None);
        assert!(!drain.is_given_up((9, 0), start));
        assert!(!drain.is_given_up((9, 0), start + 1000 * SECOND));
    }
}
