//! The saved state of a console: the driver's side of its ports, and input that the guest has not read.
//!
//! Output belongs to the host once it has left the queue. So does the connection of a stream port, with the
//! bytes in it: the driver of a restored device hears that the host's end is gone, and can open the port
//! again.

use serde::{Deserialize, Serialize};

use super::port::MAX_INPUT;
use super::stream::HostEnd;
use super::{Console, F_MULTIPORT};
use crate::lock;
use crate::state::{Restoration, SavedState, StateError, exactly};
use crate::virtio::state::{DriverState, SaveDevice};

/// Version 1 of the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ConsoleState {
    port: PortState,
    dialogue: DialogueState,
    /// Whether the stream port had a connection.
    is_connected: bool,
}

/// The state of the console's own port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PortState {
    /// The input that the device has taken from the host, the oldest first.
    pub(super) input: Vec<u8>,
    /// The size of the terminal that the guest may have seen; `None` if there was none.
    pub(super) size: Option<SizeState>,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct SizeState {
    pub(super) columns: u16,
    pub(super) rows: u16,
    /// Whether the driver does not know of it yet.
    pub(super) is_new: bool,
}

/// The state of the exchange of control messages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct DialogueState {
    /// A bit for each message that the device still has to send.
    pub(super) owed: u8,
    pub(super) is_ready: bool,
    pub(super) is_open: bool,
    pub(super) is_stream_ready: bool,
}

impl SaveDevice for Console {
    fn save(&self) -> SavedState {
        let Self { port, stream, dialogue } = self;
        let (port, dialogue) = (port.save(), lock(dialogue).save());
        let is_connected = stream.as_ref().is_some_and(|stream| stream.is_connected());
        SavedState::encode(VERSION, &ConsoleState { port, dialogue, is_connected })
    }

    fn prepare(&self, state: &SavedState, driver: &DriverState) -> Result<Restoration<'_>, StateError> {
        let ConsoleState { port, dialogue, is_connected } = state.decode(VERSION)?;
        let PortState { input, size: _ } = &port;
        if input.len() > MAX_INPUT {
            let allowed = format!("at most {MAX_INPUT}").into();
            return Err(StateError::Length { field: "input", len: input.len(), allowed });
        }
        let converses = driver.uses(F_MULTIPORT);
        if !converses {
            exactly("is_ready", dialogue.is_ready, false)?;
            exactly("is_open", dialogue.is_open, false)?;
            exactly("is_stream_ready", dialogue.is_stream_ready, false)?;
        }
        lock(&self.dialogue).check(&dialogue)?;
        if !converses {
            exactly("owed", dialogue.owed, 0)?;
        }
        if !converses || self.stream.is_none() {
            exactly("is_connected", is_connected, false)?;
        }
        Ok(Restoration::new(move || {
            self.port.restore(port);
            let mut state = lock(&self.dialogue);
            state.restore(dialogue);
            if is_connected {
                state.stream_host(HostEnd::Gone);
            }
        }))
    }
}

const VERSION: u16 = 1;
