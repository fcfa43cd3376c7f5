//! Limits the CPU time of all vCPUs of a machine with a token bucket: time that they use beyond what has been
//! granted is a debt, which they pay by waiting outside the guest.
//!
//! This works on any host; a cgroup (`cpu.max`) does the same for a whole process.

use std::time::{Duration, Instant};

use crate::config::CpuQuota;

/// The token bucket of one machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Throttle {
    /// The granted share, in CPUs of the host.
    share: f64,
    /// The CPU time left in the bucket, in seconds; a negative value is a debt.
    left: f64,
    /// The CPU time of all vCPUs at the last look.
    used: Duration,
    looked_at: Instant,
}

impl Throttle {
    /// Starts with a full bucket.
    pub(super) fn new(quota: CpuQuota, now: Instant) -> Throttle {
        let share = quota.cpus();
        Throttle { share, left: share * BURST.as_secs_f64(), used: Duration::ZERO, looked_at: now }
    }

    /// Returns whether the vCPUs have to wait outside the guest.
    pub(super) fn is_in_debt(&self) -> bool {
        self.left < 0.0
    }

    /// The time of the next look: when the debt is paid, or before it can grow large.
    pub(super) fn look_at(&self) -> Instant {
        let debt = Duration::from_secs_f64((-self.left).max(0.0) / self.share);
        self.looked_at + debt.max(INTERVAL)
    }

    /// Subtracts the CPU time used since the last look, and adds what has been granted since then.
    pub(super) fn look(&mut self, now: Instant, used: Duration) {
        let spent = used.saturating_sub(self.used).as_secs_f64();
        let earned = now.saturating_duration_since(self.looked_at).as_secs_f64() * self.share;
        (self.used, self.looked_at) = (used, now);
        self.left = (self.left + earned).min(self.share * BURST.as_secs_f64()) - spent;
    }
}

/// The bucket's size, as the time for which a guest that was idle may use all its CPUs. It equals the default
/// period of the kernel's CFS bandwidth control.
const BURST: Duration = Duration::from_millis(100);
/// How long a guest may run beyond its share before that is noticed.
const INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Simulates a guest whose vCPUs always have work, and returns the CPU time that it got.
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
