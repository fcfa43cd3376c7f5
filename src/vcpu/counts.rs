//! How often, and why, vCPUs leave the guest. Exits largely decide a guest's speed.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// The number of exits, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ExitCounts {
    /// Reads from I/O ports.
    pub port_in: u64,
    /// Writes to I/O ports.
    pub port_out: u64,
    /// Reads from guest physical addresses without memory.
    pub mmio_read: u64,
    /// Writes to guest physical addresses without memory.
    pub mmio_write: u64,
    /// Kicks, and returns from KVM_RUN without a reason.
    pub interrupted: u64,
    /// Triple faults and errors of KVM.
    pub fatal: u64,
}

impl ExitCounts {
    /// Returns the number of all exits.
    pub fn total(&self) -> u64 {
        let ExitCounts { port_in, port_out, mmio_read, mmio_write, interrupted, fatal } = *self;
        [port_in, port_out, mmio_read, mmio_write, interrupted, fatal]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Returns the number of exits that the guest caused: all but kicks, which come from outside.
    pub(crate) fn made_by_guest(&self) -> u64 {
        self.total().saturating_sub(self.interrupted)
    }

    /// Adds the exits of another vCPU.
    pub fn add(&mut self, other: &ExitCounts) {
        let ExitCounts { port_in, port_out, mmio_read, mmio_write, interrupted, fatal } = other;
        self.port_in = self.port_in.saturating_add(*port_in);
        self.port_out = self.port_out.saturating_add(*port_out);
        self.mmio_read = self.mmio_read.saturating_add(*mmio_read);
        self.mmio_write = self.mmio_write.saturating_add(*mmio_write);
        self.interrupted = self.interrupted.saturating_add(*interrupted);
        self.fatal = self.fatal.saturating_add(*fatal);
    }
}

impl std::fmt::Display for ExitCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ExitCounts { port_in, port_out, mmio_read, mmio_write, interrupted, fatal } = self;
        write!(
            f,
            "{port_in} port reads and {port_out} port writes, {mmio_read} reads and {mmio_write} writes of devices' \
             memory, {interrupted} interruptions, {fatal} faults"
        )
    }
}

/// The exit counters of one vCPU: only its thread writes them, any thread may read them.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters {
    pub(super) port_in: Counter,
    pub(super) port_out: Counter,
    pub(super) mmio_read: Counter,
    pub(super) mmio_write: Counter,
    pub(super) interrupted: Counter,
    pub(super) fatal: Counter,
}

impl ExitCounters {
    /// Returns the current values.
    pub(crate) fn counts(&self) -> ExitCounts {
        let ExitCounters { port_in, port_out, mmio_read, mmio_write, interrupted, fatal } = self;
        ExitCounts {
            port_in: port_in.value(),
            port_out: port_out.value(),
            mmio_read: mmio_read.value(),
            mmio_write: mmio_write.value(),
            interrupted: interrupted.value(),
            fatal: fatal.value(),
        }
    }
}

/// A counter with a single writer, which therefore needs no read-modify-write instruction.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.0.store(self.value().wrapping_add(1), Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
