//! What driver and device tell each other about the port (virtio 1.2, 5.3.6.2): above all, when the driver takes input.
//! Linux fills its receive queue long before, and throws away what comes too early.

use std::collections::BTreeSet;

use super::port::TerminalSize;
use crate::virtio::VirtQueue;
use crate::virtio::queue::RingError;

/// The two control queues of a driver that has them.
pub(super) struct Control {
    pub receive: VirtQueue,
    pub transmit: VirtQueue,
}

/// How far the two have come. It outlives a pause, not a reset.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    /// What the driver is to be told, in this order. The same twice is the same once, so that a driver which asks
    /// without end fills nothing.
    owed: BTreeSet<Word>,
    /// The driver knows of the port.
    is_ready: bool,
    /// The driver takes input.
    is_open: bool,
}

/// What the device says about its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Add,
    IsConsole,
    HostIsThere,
    Size,
}

impl Control {
    pub(super) fn new(receive: VirtQueue, mut transmit: VirtQueue) -> Self {
        transmit.limit_bytes(MOST_BYTES);
        Self { receive, transmit }
    }

    /// Hears what the driver says, and answers as far as it has buffers.
    pub(super) fn serve(
        &mut self,
        dialogue: &mut Dialogue,
        size: Option<TerminalSize>,
    ) -> Result<(), RingError> {
        self.transmit.begin();
        while let Some(mut chain) = self.transmit.pop()? {
            if let Some(message) = chain.readable.read_array() {
                dialogue.hear(message);
            }
            self.transmit.complete(chain, 0);
        }
        self.transmit.finish()?;
        self.tell(dialogue, size)
    }

    fn tell(&mut self, dialogue: &mut Dialogue, size: Option<TerminalSize>) -> Result<(), RingError> {
        self.receive.begin();
        while let Some(word) = dialogue.owed.first().copied() {
            let Some(message) = word.message(size) else {
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

    fn hear(&mut self, message: [u8; 8]) {
        let [port, port1, port2, port3, event, event1, value, value1] = message;
        let port = u32::from_le_bytes([port, port1, port2, port3]);
        let value = u16::from_le_bytes([value, value1]);
        match (u16::from_le_bytes([event, event1]), value) {
            (DEVICE_READY, 1) => {
                self.owed.insert(Word::Add);
            }
            (PORT_READY, 1) if port == PORT => {
                self.is_ready = true;
                self.owed.extend([Word::IsConsole, Word::HostIsThere, Word::Size]);
            }
            (PORT_OPEN, _) if port == PORT => self.is_open = value == 1,
            // Failures of the driver's, ports that do not exist, and what only a device may say.
            _ => {}
        }
    }
}

impl Word {
    /// The word as the driver reads it; none while there is nothing to say.
    fn message(self, size: Option<TerminalSize>) -> Option<Vec<u8>> {
        let (event, value): (u16, u16) = match self {
            Self::Add => (PORT_ADD, 1),
            Self::IsConsole => (CONSOLE_PORT, 1),
            Self::HostIsThere => (PORT_OPEN, 1),
            Self::Size => (RESIZE, 0),
        };
        let mut message = PORT.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes().into_iter().chain(value.to_le_bytes()));
        if self == Self::Size {
            message.extend(size?.bytes());
        }
        Some(message)
    }
}

/// The one port.
const PORT: u32 = 0;

/// Events of control messages (virtio 1.2, 5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;

/// A message has 8 bytes; a driver may send what newer ones add.
const MOST_BYTES: u64 = 4096;
