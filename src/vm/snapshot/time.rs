//! The time between saving a machine and going on with it.

use std::time::{SystemTime, UNIX_EPOCH};

use coracle_arch::x86_64::vcpu_state::VmClockState;

/// Whether the time between saving a machine and going on with it passes for its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GuestTime {
    /// The time does not pass: CLOCK_MONOTONIC of the guest goes on from where it was, and a timer waits as
    /// long as it still had to. CLOCK_REALTIME of the guest is late by that time, until somebody sets it.
    #[default]
    Stands,
    /// The time passes, as if the guest had been suspended: all of its clocks are ahead by that time, and
    /// each timer that is due meanwhile fires once. The time is that of the host's CLOCK_REALTIME, and
    /// nothing if that has gone back. `kvm_pvm` gives guests the host's own time-stamp counter, for which
    /// time passes in any case.
    Elapsed,
}

impl GuestTime {
    /// Returns the clock with which a machine that was saved with `saved` goes on now, and the nanoseconds
    /// that pass for its guest.
    pub(super) fn clock(self, saved: &VmClockState) -> (VmClockState, u64) {
        let elapsed = match (self, saved.realtime_nanoseconds) {
            (GuestTime::Elapsed, Some(then)) => now().saturating_sub(then),
            _ => 0,
        };
        (VmClockState { nanoseconds: saved.nanoseconds.saturating_add(elapsed), ..*saved }, elapsed)
    }
}

/// Adds the date of the host to a clock for which KVM reports none.
pub(super) fn dated(clock: VmClockState) -> VmClockState {
    let realtime_nanoseconds = clock.realtime_nanoseconds.or_else(|| Some(now()));
    VmClockState { realtime_nanoseconds, ..clock }
}

/// Returns the nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_only_if_it_is_to_and_never_back() {
        let at =
            |realtime| VmClockState { nanoseconds: 5, realtime_nanoseconds: realtime, ..Default::default() };
        let hour = 3_600_000_000_000;
        let ago = Some(now() - hour);
        assert_eq!(GuestTime::Stands.clock(&at(ago)), (at(ago), 0));
        let (clock, elapsed) = GuestTime::Elapsed.clock(&at(ago));
        assert!((hour..2 * hour).contains(&elapsed) && clock.nanoseconds == 5 + elapsed);
        for realtime in [None, Some(now() + hour), Some(u64::MAX)] {
            assert_eq!(GuestTime::Elapsed.clock(&at(realtime)), (at(realtime), 0));
        }
        let full = VmClockState { nanoseconds: u64::MAX, ..at(Some(0)) };
        assert_eq!(GuestTime::Elapsed.clock(&full).0.nanoseconds, u64::MAX);
        assert_eq!(dated(at(Some(7))), at(Some(7)));
        assert!(dated(at(None)).realtime_nanoseconds >= ago);
    }
}
