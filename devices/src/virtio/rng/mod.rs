//! Entropy device (virtio 1.2, section 5.4): the driver offers buffers, and the device fills them with random
//! bytes of the host's `getrandom`.
//!
//! A request gets at most 64 KiB, and the device as a whole a limited number of bytes per second, so that a
//! guest cannot spend the host's CPU time on random numbers.

mod handler;

use crate::state::{Restoration, SavedState, StateError, no_state, prepare_no_state};
use crate::virtio::state::{DriverState, SaveDevice};
use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice};
use handler::RngHandler;

/// An entropy device. It has no state between activations.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn name(&self) -> String {
        "rng".into()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        Ok(vec![Box::new(RngHandler::new(context.queues.take(REQUESTS)?))])
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

impl SaveDevice for Rng {
    fn save(&self) -> SavedState {
        let Self = self;
        no_state()
    }

    fn prepare(&self, state: &SavedState, _: &DriverState) -> Result<Restoration<'_>, StateError> {
        prepare_no_state(state)
    }
}

/// The number of the only queue (virtio 1.2, section 5.4.2).
const REQUESTS: u16 = 0;
/// The size of the queue in descriptors. Linux offers one buffer at a time.
const QUEUE_SIZE: u16 = 64;

#[cfg(test)]
mod tests;
