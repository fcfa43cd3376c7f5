//! Split virtqueues (virtio 1.2, section 2.7): the only code that reads and writes rings.
//!
//! [`QueueConfig`] is what the driver writes; it is checked once, when the device starts, and becomes a
//! [`VirtQueue`], which owns resolved addresses. A device pops a [`Chain`], serves it and completes it. Bad
//! chains never reach a device: the queue hands them back with a length of 0. Damage to the ring itself is a
//! [`RingError`], which retires the handler.
//!
//! There is no allocation per request, no lock, no log line that a guest can repeat without limit, and no
//! loop that a guest can prolong: one drain takes as many chains as the queue has descriptors.

mod chain;
mod config;
mod pool;
mod running;

pub use chain::{Chain, ChainError, MAX_DESCRIPTORS};
pub use config::{QueueConfig, QueueConfigError};
pub use pool::ChainBudget;
pub(crate) use running::QueueParts;
use running::RingLayout;
pub use running::{RingError, VirtQueue};

#[cfg(test)]
mod tests;
