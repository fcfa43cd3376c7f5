//! The look at a guest that may have nothing to do: the CPU time of its vCPUs tells, whatever it waits for.

use std::time::{Duration, Instant};

/// How long a guest has had nothing to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idleness {
    limit: Duration,
    /// CPU time of all vCPUs at the last look.
    used: Duration,
    looked_at: Instant,
    busy_at: Instant,
}

impl Idleness {
    /// For a guest that has just been busy.
    pub(super) fn new(limit: Duration, now: Instant) -> Idleness {
        Idleness { limit, used: Duration::ZERO, looked_at: now, busy_at: now }
    }

    /// The longest that the guest may have nothing to do.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// When to look next.
    pub(super) fn look_at(&self) -> Instant {
        self.looked_at + (self.limit / LOOKS).clamp(LEAST_INTERVAL, MOST_INTERVAL)
    }

    /// Takes a look: true when the limit is over. A guest that is not let run has no chance to be busy, and
    /// is not idle.
    pub(super) fn look(&mut self, now: Instant, used: Duration, runs: bool) -> bool {
        let spent = used.saturating_sub(self.used);
        let elapsed = now.saturating_duration_since(self.looked_at);
        (self.used, self.looked_at) = (used, now);
        if !runs || spent * BUSY_FRACTION > elapsed {
            self.busy_at = now;
        }
        now.saturating_duration_since(self.busy_at) >= self.limit
    }
}

/// A Linux guest that waits for something takes well under 1 % of a CPU for its timers; one that does the
/// least work takes more than 2 %.
const BUSY_FRACTION: u32 = 50;
/// Looks while the limit lasts.
const LOOKS: u32 = 10;
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
const MOST_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn guest_is_idle_when_the_limit_has_passed_since_it_was_busy() {
        let start = Instant::now();
        let mut idleness = Idleness::new(3 * SECOND, start);
        let ms = Duration::from_millis;
        assert!(!idleness.look(start + SECOND, ms(500), true));
        assert!(!idleness.look(start + 2 * SECOND, ms(510), true), "1 % is nothing, but only for a second");
        assert!(!idleness.look(start + 3 * SECOND, ms(540), true), "3 % is work");
        assert!(!idleness.look(start + 5 * SECOND, ms(545), true));
        assert!(idleness.look(start + 6 * SECOND, ms(550), true));
    }

    #[test]
    fn guest_that_does_not_run_is_not_idle() {
        let start = Instant::now();
        let mut idleness = Idleness::new(SECOND, start);
        assert!(!idleness.look(start + 5 * SECOND, Duration::ZERO, false));
        assert!(!idleness.look(start + 5 * SECOND + SECOND / 2, Duration::ZERO, true));
        assert!(idleness.look(start + 6 * SECOND, Duration::ZERO, true));
    }

    #[test]
    fn looks_are_frequent_enough_and_not_too_frequent() {
        let now = Instant::now();
        let interval = |limit| Idleness::new(limit, now).look_at() - now;
        assert_eq!(interval(Duration::from_millis(1)), LEAST_INTERVAL);
        assert_eq!(interval(2 * SECOND), SECOND / 5);
        assert_eq!(interval(3600 * SECOND), MOST_INTERVAL);
    }
}
