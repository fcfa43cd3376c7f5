//! Console (virtio 1.2, section 5.3): one port, `hvc0` to a Linux guest. It moves bytes in pieces where a serial port
//! takes an exit for each.
//!
//! The host's end is the same as the serial port's: output goes into a bounded
//! [`ConsoleBuffer`](crate::backend::console_buffer::ConsoleBuffer), input waits in the host until the guest takes it.

mod handler;
mod port;

use std::sync::Arc;

use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice};
use handler::ConsoleHandler;
pub use port::ConsolePort;

/// A console.
pub struct Console {
    port: Arc<ConsolePort>,
}

impl Console {
    /// A console whose bytes go through `port`.
    pub fn new(port: Arc<ConsolePort>) -> Self {
        Self { port }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn name(&self) -> String {
        "console".into()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE]
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let (receive, transmit) = (context.queues.take(RECEIVE)?, context.queues.take(TRANSMIT)?);
        Ok(vec![Box::new(ConsoleHandler::new(receive, transmit, self.port.clone(), context.irq))])
    }
}

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Linux fills the receive queue with pages: this many are 256 KiB.
const QUEUE_SIZE: u16 = 64;

#[cfg(test)]
mod tests;
