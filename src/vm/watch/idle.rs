//! Detecting an idle guest by the CPU time of its vCPUs, whatever the guest waits for.

use std::time::{Duration, Instant};

/// How long a guest has been idle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idleness {
    limit: Duration,
    /// The CPU time of all vCPUs at the last look.
    used: Duration,
    looked_at: Instant,
    busy_at: Instant,
}

impl Idleness {
    /// Starts with a guest that has just been busy.
    pub(super) fn new(limit: Duration, now: Instant) -> Idleness {
        Idleness { limit, used: Duration::ZERO, looked_at: now, busy_at: now }
    }

    /// The longest time that the guest may be idle.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The time of the next look.
    pub(super) fn look_at(&self) -> Instant {
        self.looked_at + (self.limit / LOOKS).clamp(MIN_INTERVAL, MAX_INTERVAL)
    }

    /// Takes a look; `true` if the guest has been idle for the whole limit. A guest that is not allowed to
    /// run cannot be busy, and does not count as idle.
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

/// A guest counts as busy from 1/50 of a CPU, 2 %. A Linux guest that only waits uses well under 1 % for its
/// timers; one that does any work uses more than 2 %.
const BUSY_FRACTION: u32 = 50;
/// The number of looks per limit: an ending comes at most a tenth of the limit late, and ten looks cost
/// nothing.
const LOOKS: u32 = 10;
const MIN_INTERVAL: Duration = Duration::from_millis(10);
const MAX_INTERVAL: Duration = Duration::from_secs(1);

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
        assert!(
            !idleness.look(start + 2 * SECOND, ms(510), true),
            "1 % is idle, but only for a second so far"
        );
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
        assert_eq!(interval(Duration::from_millis(1)), MIN_INTERVAL);
        assert_eq!(interval(2 * SECOND), SECOND / 5);
        assert_eq!(interval(3600 * SECOND), MAX_INTERVAL);
    }
}
