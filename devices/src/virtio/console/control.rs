//! What driver and device tell each other about the ports (virtio 1.2, 5.3.6.2): above all, when the driver
//! takes input. Linux fills its receive queues long before, and throws away what comes too early.

use std::collections::BTreeSet;

use super::port::TerminalSize;
use super::stream::{HostEnd, StreamQueues};
use crate::virtio::VirtQueue;
use crate::virtio::queue::RingError;

/// The two control queues of a driver that has them.
pub(super) struct ControlQueues {
    pub receive: VirtQueue,
    pub transmit: VirtQueue,
}

/// How far the two have come. It outlives a pause, not a reset.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    ports: Ports,
    /// What the driver is to be told, in this order. The same twice is the same once, so that a driver which
    /// asks without end fills nothing.
    owed: BTreeSet<Word>,
    /// The driver knows of the port.
    is_ready: bool,
    /// The driver takes input.
    is_open: bool,
    /// The driver knows of the stream port.
    is_stream_ready: bool,
}

/// The ports that the driver is told of.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports {
    /// Port 0.
    pub(super) has_console: bool,
    /// The name of port 1, in a device that has it.
    pub(super) stream: Option<String>,
}

/// What the device says about its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Add,
    IsConsole,
    HostIsThere,
    Size,
    AddStream,
    NameStream,
    StreamHostIsGone,
    StreamHostIsThere,
}

impl ControlQueues {
    pub(super) fn new(receive: VirtQueue, mut transmit: VirtQueue) -> Self {
        transmit.limit_bytes(MOST_BYTES);
        Self { receive, transmit }
    }

    /// Hears what the driver says, and answers as far as it has buffers.
    pub(super) fn serve(
        &mut self,
        dialogue: &mut Dialogue,
        size: Option<TerminalSize>,
        mut stream: Option<&mut StreamQueues>,
    ) -> Result<(), RingError> {
        self.transmit.begin();
        while let Some(mut chain) = self.transmit.pop()? {
            // The port is as the driver said before the driver knows that it was heard, and sends.
            if let Some(message) = chain.readable.read_array()
                && let Some(is_open) = dialogue.hear(message)
                && let Some(stream) = stream.as_mut()
            {
                stream.heed(is_open)?;
            }
            self.transmit.complete(chain, 0);
        }
        self.transmit.finish()?;
        self.tell(dialogue, size)
    }

    /// Says what is to be said, as far as the driver has buffers.
    pub(super) fn tell(
        &mut self,
        dialogue: &mut Dialogue,
        size: Option<TerminalSize>,
    ) -> Result<(), RingError> {
        self.receive.begin();
        while let Some(word) = dialogue.owed.first().copied() {
            let Some(message) = word.message(&dialogue.ports, size) else {
                dialogue.owed.remove(&word);
                continue;
            };
            let Some(mut chain) = self.receive.pop()? else { return self.receive.finish() };
            // One that is too short goes back empty, and the next is tried.
            let mut written = 0;
            if chain.writable.len() >= message.len() as u64 {
                written = chain.writable.write(&message);
                dialogue.owed.remove(&word);
            }
            self.receive.complete(chain, written as u32);
        }
        self.receive.announce();
        Ok(())
    }
}

impl Dialogue {
    /// Nothing has been said yet.
    pub(super) fn about(ports: Ports) -> Self {
        Self { ports, ..Self::default() }
    }

    /// The driver has begun anew.
    pub(super) fn reset(&mut self) {
        *self = Self::about(std::mem::take(&mut self.ports));
    }

    /// The host's end of the stream port has gone, or not.
    pub(super) fn stream_host(&mut self, end: HostEnd) {
        if end == HostEnd::Gone {
            self.say_stream_host(Word::StreamHostIsGone);
        }
    }

    /// Whether the driver takes input.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// The terminal has another size.
    pub(super) fn resize(&mut self) {
        if self.is_ready {
            self.owed.insert(Word::Size);
        }
    }

    /// Only the last word about it counts.
    fn say_stream_host(&mut self, word: Word) {
        if self.is_stream_ready {
            self.owed.retain(|owed| !matches!(owed, Word::StreamHostIsGone | Word::StreamHostIsThere));
            self.owed.insert(word);
        }
    }

    /// Whether the driver has opened or closed the stream port.
    fn hear(&mut self, message: [u8; 8]) -> Option<bool> {
        let [port, port1, port2, port3, event, event1, value, value1] = message;
        let port = u32::from_le_bytes([port, port1, port2, port3]);
        let value = u16::from_le_bytes([value, value1]);
        let has_stream = self.ports.stream.is_some();
        match (u16::from_le_bytes([event, event1]), value) {
            (DEVICE_READY, 1) => {
                self.owed.extend(self.ports.has_console.then_some(Word::Add));
                self.owed.extend(has_stream.then_some(Word::AddStream));
            }
            (PORT_READY, 1) if port == CONSOLE && self.ports.has_console => {
                self.is_ready = true;
                self.owed.extend([Word::IsConsole, Word::HostIsThere, Word::Size]);
            }
            (PORT_OPEN, _) if port == CONSOLE => self.is_open = value == 1,
            (PORT_READY, 1) if port == STREAM && has_stream => {
                self.is_stream_ready = true;
                self.owed.insert(Word::NameStream);
                self.say_stream_host(Word::StreamHostIsThere);
            }
            (PORT_OPEN, 0 | 1) if port == STREAM && has_stream => {
                if value == 0 {
                    self.say_stream_host(Word::StreamHostIsThere);
                }
                return Some(value == 1);
            }
            // Failures of the driver's, ports that do not exist, and what only a device may say.
            _ => {}
        }
        None
    }
}

impl Word {
    /// The word as the driver reads it; none while there is nothing to say.
    fn message(self, ports: &Ports, size: Option<TerminalSize>) -> Option<Vec<u8>> {
        let (port, event, value): (u32, u16, u16) = match self {
            Self::Add => (CONSOLE, PORT_ADD, 1),
            Self::IsConsole => (CONSOLE, CONSOLE_PORT, 1),
            Self::HostIsThere => (CONSOLE, PORT_OPEN, 1),
            Self::Size => (CONSOLE, RESIZE, 0),
            Self::AddStream => (STREAM, PORT_ADD, 1),
            Self::NameStream => (STREAM, PORT_NAME, 1),
            Self::StreamHostIsGone => (STREAM, PORT_OPEN, 0),
            Self::StreamHostIsThere => (STREAM, PORT_OPEN, 1),
        };
        let mut message = port.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes().into_iter().chain(value.to_le_bytes()));
        match self {
            Self::Size => message.extend(size?.bytes()),
            // No zero is at its end.
            Self::NameStream => message.extend(ports.stream.as_ref()?.bytes()),
            Self::Add
            | Self::IsConsole
            | Self::HostIsThere
            | Self::AddStream
            | Self::StreamHostIsGone
            | Self::StreamHostIsThere => {}
        }
        Some(message)
    }
}

/// The ports' numbers.
const CONSOLE: u32 = 0;
const STREAM: u32 = 1;

/// Events of control messages (virtio 1.2, 5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A message has 8 bytes; a driver may send what newer ones add.
const MOST_BYTES: u64 = 4096;
