//! The events for which the control thread waits, and their order of precedence.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Gate;
use crate::ending::{Ending, TimeLimit};

/// Why the control thread wakes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The first ending was posted, or the wall-clock limit has expired.
    Ended(Ending),
    /// The guest printed the text of a kernel panic.
    PanicText,
    /// A disk has a fault because of which the machine has to be paused; the text names the disk and the
    /// fault.
    Pause(String),
    /// A handle has left work for the control thread.
    Requested,
    /// The boot limit has expired: by now the guest should have reached its init.
    BootLimit(Duration),
    /// The time for a look at the guest has come.
    Look,
}

/// Time limits that start when the vCPUs are first allowed to run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StartLimits {
    /// How long the machine may run.
    pub wall: Option<Duration>,
    /// The time after which the control thread wakes up with [`Wake::BootLimit`].
    pub boot: Option<Duration>,
}

impl Gate {
    /// Waits for the first ending, which is [`Ending::TimedOut`] if the wall-clock limit expires, or for
    /// another event. Returns at `look_at` at the latest.
    pub(crate) fn next_wake(&self, limits: StartLimits, look_at: Option<Instant>) -> Wake {
        let mut record = self.lock();
        loop {
            if let Some(ending) = &record.first {
                return Wake::Ended(ending.clone());
            }
            let now = Instant::now();
            // A deadline that the clock cannot express never comes.
            let since_start = |limit: Option<Duration>| record.started?.checked_add(limit?);
            let (end, booted) = (since_start(limits.wall), since_start(limits.boot));
            let is_due = |at: Instant| now >= at;
            if let Some(limit) = limits.wall.filter(|_| end.is_some_and(is_due)) {
                record.first = Some(Ending::TimedOut { kind: TimeLimit::Wall, limit });
                self.set_state(&record);
                continue;
            }
            if let Some(limit) = limits.boot.filter(|_| booted.is_some_and(is_due)) {
                return Wake::BootLimit(limit);
            }
            if look_at.is_some_and(is_due) {
                return Wake::Look;
            }
            // Checked after everything that has a deadline: a guest can print the text of a panic as often as
            // it likes.
            if std::mem::take(&mut record.panic_text) {
                return Wake::PanicText;
            }
            if let Some(reason) = record.pause_reason.take() {
                return Wake::Pause(reason);
            }
            if std::mem::take(&mut record.requested) {
                return Wake::Requested;
            }
            let deadline = [end, booted, look_at].into_iter().flatten().min();
            record = match deadline {
                None => self.changed.wait(record).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let wait = self.changed.wait_timeout(record, at - now);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
