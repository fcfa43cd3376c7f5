//! Console (virtio 1.2, section 5.3): one port, `hvc0` to a Linux guest. It moves bytes in pieces where a serial port
//! takes an exit for each.
//!
//! The host's end is the same as the serial port's: output goes into a bounded
//! [`ConsoleBuffer`](crate::backend::console_buffer::ConsoleBuffer), input waits in the host until the guest takes it.
//! A driver that has control queues says when it does; one without gets input as soon as it offers buffers.

mod control;
mod handler;
mod port;

use std::sync::{Arc, Mutex};

use crate::lock;
use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice};
use control::{Control, Dialogue};
use handler::ConsoleHandler;
pub use port::{ConsolePort, TerminalSize};

/// A console.
pub struct Console {
    port: Arc<ConsolePort>,
    dialogue: Arc<Mutex<Dialogue>>,
}

impl Console {
    /// A console whose bytes go through `port`.
    pub fn new(port: Arc<ConsolePort>) -> Self {
        Self { port, dialogue: Arc::default() }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn name(&self) -> String {
        "console".into()
    }

    fn features(&self) -> u64 {
        1 << F_SIZE | 1 << F_MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, CONTROL_SIZE, CONTROL_SIZE]
    }

    /// Columns, rows, and the number of ports (virtio 1.2, 5.3.4). The size of no terminal is 0.
    fn config(&self) -> Vec<u8> {
        let size = self.port.size().map(TerminalSize::bytes).unwrap_or_default();
        size.into_iter().chain(PORTS.to_le_bytes()).collect()
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let (receive, transmit) = (context.queues.take(RECEIVE)?, context.queues.take(TRANSMIT)?);
        let control = if context.has(F_MULTIPORT) {
            let queues = &mut context.queues;
            Some(Control::new(queues.take(CONTROL_RECEIVE)?, queues.take(CONTROL_TRANSMIT)?))
        } else {
            None
        };
        let has_size = context.has(F_SIZE);
        let mut handler = ConsoleHandler::new(receive, transmit, self.port.clone());
        match control {
            Some(control) => handler.converse(control, self.dialogue.clone()),
            None if has_size => handler.tell_size_by(context.irq),
            None => {}
        }
        Ok(vec![Box::new(handler)])
    }

    fn reset(&self) {
        *lock(&self.dialogue) = Dialogue::default();
    }
}

/// Feature bits (virtio 1.2, 5.3.3): the configuration space has the terminal's size; there are control queues.
const F_SIZE: u32 = 0;
const F_MULTIPORT: u32 = 1;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

const PORTS: u32 = 1;
/// Linux fills the receive queue with pages: this many are 256 KiB.
const QUEUE_SIZE: u16 = 64;
/// One port has four messages at most under way.
const CONTROL_SIZE: u16 = 16;

#[cfg(test)]
mod tests;
