//! A share of CPU time for all vCPUs of a machine, kept by a token bucket: time that they have used beyond
//! what has been given out is a debt, for which they wait outside the guest.
//!
//! It works on any host; a cgroup (`cpu.max`) does the same for a whole process.

use std::time::{Duration, Instant};

use crate::config::CpuQuota;

/// The account of one machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Throttle {
    /// CPUs that may be used.
    share: f64,
    /// Seconds of CPU time that are left; negative for a debt.
    left: f64,
    /// CPU time of all vCPUs at the last look.
    used: Duration,
    looked_at: Instant,
}

impl Throttle {
    /// With a full bucket.
    pub(super) fn new(quota: CpuQuota, now: Instant) -> Throttle {
        let share = quota.cpus();
        Throttle { share, left: share * BURST.as_secs_f64(), used: Duration::ZERO, looked_at: now }
    }

    /// Whether the vCPUs have to wait.
    pub(super) fn is_in_debt(&self) -> bool {
        self.left < 0.0
    }

    /// When to look next: when the debt is paid, or before it can be large.
    pub(super) fn look_at(&self) -> Instant {
        let debt = Duration::from_secs_f64((-self.left).max(0.0) / self.share);
        self.looked_at + debt.max(INTERVAL)
    }

    /// Books what has been used and what has been earned since the last look.
    pub(super) fn look(&mut self, now: Instant, used: Duration) {
        let spent = used.saturating_sub(self.used).as_secs_f64();
        let earned = now.saturating_duration_since(self.looked_at).as_secs_f64() * self.share;
        (self.used, self.looked_at) = (used, now);
        self.left = (self.left + earned).min(self.share * BURST.as_secs_f64()) - spent;
    }
}

/// The time for which a guest that was idle may use all CPUs that it has: as long as a period of the kernel's
/// own bandwidth control.
const BURST: Duration = Duration::from_millis(100);
/// How long a guest may run beyond its share before it is noticed.
const INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Runs a guest that always has work for so many vCPUs, and tells the CPU time that it got.
    fn greedy(percent: u32, vcpus: u32, time: Duration) -> Duration {
        let start = Instant::now();
        let mut throttle = Throttle::new(CpuQuota::from_percent(percent).unwrap(), start);
        let (mut now, mut used) = (start, Duration::ZERO);
        while now < start + time {
            let next = throttle.look_at();
            if !throttle.is_in_debt() {
                used += (next - now) * vcpus;
            }
            now = next;
            throttle.look(now, used);
        }
        used
    }

    #[test]
    fn guest_gets_its_share_over_time() {
        for (percent, vcpus) in [(10, 1), (50, 1), (50, 4), (150, 2), (1, 8)] {
            let time = 20_000 * MS;
            let share = greedy(percent, vcpus, time).as_secs_f64() / time.as_secs_f64();
            let wanted = f64::from(percent) / 100.0;
            assert!((share - wanted).abs() < 0.01 + wanted * 0.02, "{percent} % of {vcpus}: {share}");
        }
    }

    #[test]
    fn guest_within_its_share_never_waits() {
        let start = Instant::now();
        let mut throttle = Throttle::new(CpuQuota::from_percent(50).unwrap(), start);
        for look in 1..1000 {
            throttle.look(start + look * 10 * MS, look * 4 * MS);
            assert!(!throttle.is_in_debt());
        }
    }

    #[test]
    fn idle_time_is_not_saved_beyond_the_burst() {
        let start = Instant::now();
        let mut throttle = Throttle::new(CpuQuota::from_percent(100).unwrap(), start);
        throttle.look(start + 3_600_000 * MS, Duration::ZERO);
        throttle.look(start + 3_600_010 * MS, 200 * MS);
        assert!(throttle.is_in_debt());
    }
}
