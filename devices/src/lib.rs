//! Emulated devices and the buses they sit on.
//!
//! The VMM puts devices on a [`bus::Bus`] while it builds a machine and calls the bus for each port or MMIO
//! exit of a vCPU. This crate knows neither KVM nor the boot protocol: interrupts leave through
//! [`irq::MsiSink`] and [`irq::IrqLine`], and power-off and reset through
//! [`guest_request::GuestRequestSink`].
//!
//! All values that a guest writes count as hostile. A device never panics and never waits because of them,
//! and writes a bounded number of log lines ([`mod@journal`]). Every access does a bounded amount of work in
//! a bounded amount of memory.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod backend;
pub mod bus;
pub mod event_loop;
pub mod guest_request;
pub mod irq;
pub mod journal;
pub mod legacy;
pub mod memory;
pub mod signals;
pub mod state;
pub mod thread;
pub mod virtio;

#[cfg(test)]
mod testing;

/// Locks `mutex`, also after a thread has panicked while it held it. The state of a device is plain numbers
/// that are valid at every step, so a guest access need not react to a poisoned lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
