//! The control messages of driver and device about the ports (virtio 1.2, section 5.3.6.2). Above all they
//! show when the driver takes input: Linux fills its receive queues long before, and discards bytes that
//! arrive too early.

use std::collections::BTreeSet;

use super::port::TerminalSize;
use super::state::DialogueState;
use super::stream::{HostEnd, StreamQueues};
use crate::state::{StateError, exactly, only_bits};
use crate::virtio::VirtQueue;
use crate::virtio::queue::RingError;

/// The two control queues.
pub(super) struct ControlQueues {
    pub receive: VirtQueue,
    pub transmit: VirtQueue,
}

/// The state of the exchange of messages. It outlives a pause, but not a reset.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    ports: Ports,
    /// The messages that the device still has to send, in this order. It is a set, so that a driver that asks
    /// without end fills nothing.
    owed: BTreeSet<ControlEvent>,
    /// Whether the driver has set up the console port.
    is_ready: bool,
    /// Whether the driver takes input.
    is_open: bool,
    /// Whether the driver has set up the stream port.
    is_stream_ready: bool,
}

/// The ports that the device announces.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports {
    /// Whether there is port 0.
    pub(super) has_console: bool,
    /// The name of port 1, if the device has one.
    pub(super) stream: Option<String>,
}

/// A message of the device about its ports. The order of the variants is the order of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ControlEvent {
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
        transmit.limit_bytes(MAX_BYTES);
        Self { receive, transmit }
    }

    /// Takes the driver's messages, and answers as far as there are buffers.
    pub(super) fn serve(
        &mut self,
        dialogue: &mut Dialogue,
        size: Option<TerminalSize>,
        mut stream: Option<&mut StreamQueues>,
    ) -> Result<(), RingError> {
        self.transmit.begin();
        while let Some(mut chain) = self.transmit.pop()? {
            // The port changes before the driver sees that its message has arrived, and sends bytes.
            if let Some(message) = chain.readable.read_array()
                && let Some(is_open) = dialogue.hear(message)
                && let Some(stream) = stream.as_mut()
            {
                stream.heed(is_open)?;
            }
            self.transmit.complete(chain, 0);
        }
        self.transmit.finish()?;
        self.announce(dialogue, size)
    }

    /// Sends the messages that are due, as far as there are buffers.
    pub(super) fn announce(
        &mut self,
        dialogue: &mut Dialogue,
        size: Option<TerminalSize>,
    ) -> Result<(), RingError> {
        self.receive.begin();
        while let Some(event) = dialogue.owed.first().copied() {
            let Some(message) = event.message(&dialogue.ports, size) else {
                dialogue.owed.remove(&event);
                continue;
            };
            let Some(mut chain) = self.receive.pop()? else { return self.receive.finish() };
            // A buffer that is too short goes back empty, and the next one is tried.
            let mut written = 0;
            if chain.writable.len() >= message.len() as u64 {
                written = chain.writable.write(&message);
                dialogue.owed.remove(&event);
            }
            self.receive.complete(chain, written as u32);
        }
        self.receive.announce();
        Ok(())
    }
}

impl Dialogue {
    /// Makes the state before the first message.
    pub(super) fn about(ports: Ports) -> Self {
        Self { ports, ..Self::default() }
    }

    /// Returns to the state before the first message, because the driver has reset the device.
    pub(super) fn reset(&mut self) {
        *self = Self::about(std::mem::take(&mut self.ports));
    }

    /// Returns the state as plain data.
    pub(super) fn save(&self) -> DialogueState {
        let Self { ports: _, owed, is_ready, is_open, is_stream_ready } = self;
        let bits = owed.iter().map(|event| event.bit()).fold(0, |bits, bit| bits | bit);
        DialogueState {
            owed: bits,
            is_ready: *is_ready,
            is_open: *is_open,
            is_stream_ready: *is_stream_ready,
        }
    }

    /// Checks a state of an exchange between a driver and a device with these ports.
    pub(super) fn check(&self, state: &DialogueState) -> Result<(), StateError> {
        let DialogueState { owed, is_ready, is_open: _, is_stream_ready } = *state;
        let Ports { has_console, stream } = &self.ports;
        if !has_console {
            exactly("is_ready", is_ready, false)?;
        }
        if stream.is_none() {
            exactly("is_stream_ready", is_stream_ready, false)?;
        }
        let can_be_owed = |event: &ControlEvent| match event {
            ControlEvent::Add => *has_console,
            ControlEvent::IsConsole | ControlEvent::HostIsThere | ControlEvent::Size => is_ready,
            ControlEvent::AddStream => stream.is_some(),
            ControlEvent::NameStream | ControlEvent::StreamHostIsGone | ControlEvent::StreamHostIsThere => {
                is_stream_ready
            }
        };
        let possible = ControlEvent::ALL.iter().filter(|event| can_be_owed(event));
        only_bits("owed", owed, possible.fold(0, |bits, event| bits | event.bit()))?;
        let both = ControlEvent::StreamHostIsGone.bit() | ControlEvent::StreamHostIsThere.bit();
        if owed & both == both {
            return Err(StateError::field("owed", owed, format!("not both bits of {both:#x}")));
        }
        Ok(())
    }

    /// Continues from a state that has been checked.
    pub(super) fn restore(&mut self, state: DialogueState) {
        let DialogueState { owed, is_ready, is_open, is_stream_ready } = state;
        let owed = ControlEvent::ALL.into_iter().filter(|event| owed & event.bit() != 0).collect();
        let ports = std::mem::take(&mut self.ports);
        *self = Self { ports, owed, is_ready, is_open, is_stream_ready };
    }

    /// Announces to the driver that the host's end of the stream port is gone, if it is.
    pub(super) fn stream_host(&mut self, end: HostEnd) {
        if end == HostEnd::Gone {
            self.say_stream_host(ControlEvent::StreamHostIsGone);
        }
    }

    /// Returns whether the driver takes input.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Announces a new size of the terminal.
    pub(super) fn resize(&mut self) {
        if self.is_ready {
            self.owed.insert(ControlEvent::Size);
        }
    }

    /// Replaces an older message about the host's end: only the last one counts.
    fn say_stream_host(&mut self, event: ControlEvent) {
        if self.is_stream_ready {
            self.owed.retain(|owed| {
                !matches!(owed, ControlEvent::StreamHostIsGone | ControlEvent::StreamHostIsThere)
            });
            self.owed.insert(event);
        }
    }

    /// Takes one message of the driver. Returns whether it opens or closes the stream port, if it does one of
    /// them.
    fn hear(&mut self, message: [u8; 8]) -> Option<bool> {
        let [port, port1, port2, port3, event, event1, value, value1] = message;
        let port = u32::from_le_bytes([port, port1, port2, port3]);
        let value = u16::from_le_bytes([value, value1]);
        let has_stream = self.ports.stream.is_some();
        match (u16::from_le_bytes([event, event1]), value) {
            (DEVICE_READY, 1) => {
                self.owed.extend(self.ports.has_console.then_some(ControlEvent::Add));
                self.owed.extend(has_stream.then_some(ControlEvent::AddStream));
            }
            (PORT_READY, 1) if port == CONSOLE && self.ports.has_console => {
                self.is_ready = true;
                self.owed.extend([ControlEvent::IsConsole, ControlEvent::HostIsThere, ControlEvent::Size]);
            }
            (PORT_OPEN, _) if port == CONSOLE => self.is_open = value == 1,
            (PORT_READY, 1) if port == STREAM && has_stream => {
                self.is_stream_ready = true;
                self.owed.insert(ControlEvent::NameStream);
                self.say_stream_host(ControlEvent::StreamHostIsThere);
            }
            (PORT_OPEN, 0 | 1) if port == STREAM && has_stream => {
                if value == 0 {
                    self.say_stream_host(ControlEvent::StreamHostIsThere);
                }
                return Some(value == 1);
            }
            // Failures of the driver, ports that do not exist, and events that only a device may send.
            _ => {}
        }
        None
    }
}

impl ControlEvent {
    /// Every message, in the order of sending. The position of each is its bit in a saved state.
    const ALL: [Self; 8] = [
        Self::Add,
        Self::IsConsole,
        Self::HostIsThere,
        Self::Size,
        Self::AddStream,
        Self::NameStream,
        Self::StreamHostIsGone,
        Self::StreamHostIsThere,
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// Returns the bytes of the message; `None` while there is no content to send.
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
            // The name is sent without a zero at its end.
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

/// The numbers of the ports.
const CONSOLE: u32 = 0;
const STREAM: u32 = 1;

/// Events of control messages (virtio 1.2, section 5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The longest message of the driver in bytes. A message has 8 bytes; a newer driver may append more.
const MAX_BYTES: u64 = 4096;
