//! Entropy device (virtio 1.2, section 5.4): the driver offers buffers, the device fills them with random
//! bytes.
//!
//! The bytes are those of the host's `getrandom`. A request gets 64 KiB at most, and the device as a whole a
//! bounded number of bytes a second: a guest cannot spend the host's CPU on its random numbers.

mod handler;

use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice};
use handler::RngHandler;

/// An entropy device. It keeps nothing between activations.
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
}

/// The one queue, and its descriptors: Linux offers one buffer at a time.
const REQUESTS: u16 = 0;
const QUEUE_SIZE: u16 = 64;

#[cfg(test)]
mod tests;
