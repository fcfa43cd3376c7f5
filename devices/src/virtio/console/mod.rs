//! Console (virtio 1.2, section 5.3): a port that is `hvc0` to a Linux guest, a named port that carries a
//! stream for a program in the guest, or both. A virtio console moves many bytes per exit, where a serial
//! port needs an exit for each byte.
//!
//! The host's end of the console is the same as that of the serial port: output goes into a bounded
//! [`ConsoleBuffer`](crate::backend::console_buffer::ConsoleBuffer), and input waits on the host until the
//! guest takes it. A driver with control queues reports when it takes input; one without them gets input as
//! soon as it offers buffers.

mod control;
mod handler;
mod port;
mod state;
mod stream;

use std::io;
use std::sync::{Arc, Mutex};

use crate::lock;
use crate::virtio::state::SaveDevice;
use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice};
use control::{ControlQueues, Dialogue, Ports};
use handler::ConsoleHandler;
pub use port::{ConsolePort, TerminalSize};
pub use stream::StreamPort;
use stream::StreamQueues;

/// A console, or a stream port, or both.
pub struct Console {
    port: Arc<ConsolePort>,
    stream: Option<Arc<StreamPort>>,
    dialogue: Arc<Mutex<Dialogue>>,
}

impl Console {
    /// Makes a console whose bytes go through `port`.
    pub fn new(port: Arc<ConsolePort>) -> Self {
        Self::with_ports(port, true, None)
    }

    /// Makes a console whose bytes go through `port`, with a stream port as port 1.
    pub fn with_stream(port: Arc<ConsolePort>, stream: Arc<StreamPort>) -> Self {
        Self::with_ports(port, true, Some(stream))
    }

    /// Makes a device with a stream port only, which is port 1. A driver without control queues can use only
    /// port 0, which is then a console that nobody reads.
    ///
    /// # Errors
    /// The host has no more event descriptors.
    pub fn stream_only(stream: Arc<StreamPort>) -> io::Result<Self> {
        Ok(Self::with_ports(Arc::new(ConsolePort::new()?), false, Some(stream)))
    }

    fn with_ports(port: Arc<ConsolePort>, has_console: bool, stream: Option<Arc<StreamPort>>) -> Self {
        let name = stream.as_ref().map(|stream| stream.name().to_owned());
        let dialogue = Dialogue::about(Ports { has_console, stream: name });
        Self { port, stream, dialogue: Arc::new(Mutex::new(dialogue)) }
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
        let mut sizes = vec![QUEUE_SIZE, QUEUE_SIZE, CONTROL_SIZE, CONTROL_SIZE];
        if self.stream.is_some() {
            sizes.extend([QUEUE_SIZE, QUEUE_SIZE]);
        }
        sizes
    }

    /// The configuration space (virtio 1.2, section 5.3.4): columns, rows, and the number of ports. Without a
    /// terminal the size is 0.
    fn config(&self) -> Vec<u8> {
        let size = self.port.size().map(TerminalSize::bytes).unwrap_or_default();
        let ports: u32 = if self.stream.is_some() { 2 } else { 1 };
        size.into_iter().chain(ports.to_le_bytes()).collect()
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let (receive, transmit) = (context.queues.take(RECEIVE)?, context.queues.take(TRANSMIT)?);
        let control = if context.has(F_MULTIPORT) {
            let queues = &mut context.queues;
            Some(ControlQueues::new(queues.take(CONTROL_RECEIVE)?, queues.take(CONTROL_TRANSMIT)?))
        } else {
            None
        };
        let has_size = context.has(F_SIZE);
        let mut handler = ConsoleHandler::new(receive, transmit, self.port.clone());
        match control {
            Some(control) => {
                if let Some(port) = &self.stream {
                    let queues = &mut context.queues;
                    let (receive, transmit) = (queues.take(STREAM_RECEIVE)?, queues.take(STREAM_TRANSMIT)?);
                    handler.carry(StreamQueues::new(receive, transmit, port.clone()));
                }
                handler.converse(control, self.dialogue.clone());
            }
            None if has_size => handler.report_size_by(context.irq),
            None => {}
        }
        Ok(vec![Box::new(handler)])
    }

    fn reset(&self) {
        lock(&self.dialogue).reset();
        if let Some(stream) = &self.stream {
            stream.disconnect();
        }
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

/// Feature bits (virtio 1.2, section 5.3.3): the configuration space has the terminal's size, and there are
/// control queues.
const F_SIZE: u32 = 0;
const F_MULTIPORT: u32 = 1;

/// Queue numbers (virtio 1.2, section 5.3.2): port 0, the control queues, port 1.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
const STREAM_RECEIVE: u16 = 4;
const STREAM_TRANSMIT: u16 = 5;

/// The size of the ports' queues in descriptors. Linux fills a receive queue with pages: this many are 256
/// KiB.
const QUEUE_SIZE: u16 = 64;
/// The size of the control queues in descriptors. Two ports have at most eight messages in flight.
const CONTROL_SIZE: u16 = 16;

#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
