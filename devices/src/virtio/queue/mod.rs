//! Split virtqueues (virtio 1.2, section 2.7). Only this module reads and writes rings.
//!
//! [`QueueConfig`] holds the registers that the driver writes. The transport checks it when the driver makes
//! the queue ready and when the device starts, and makes a [`VirtQueue`] from it, which owns resolved
//! addresses. A device pops a [`Chain`], serves it and completes it. Bad chains never reach a device: the
//! queue completes them with a length of 0. Damage to the ring itself is a [`RingError`], which retires the
//! handler.
//!
//! A request costs no allocation in the steady state and takes no lock. A guest can repeat no log line
//! without limit and prolong no loop: one drain takes at most as many chains as the queue has descriptors.

mod chain;
mod config;
mod pool;
mod running;
mod state;

pub use chain::{Chain, ChainError, MAX_DESCRIPTORS};
pub use config::{QueueConfig, QueueConfigError};
pub use pool::ChainBudget;
pub(super) use running::Positions;
pub(crate) use running::QueueParts;
use running::RingLayout;
pub use running::{RingError, VirtQueue};
pub(super) use state::{QueueRules, QueueState};

#[cfg(test)]
mod tests;
