//! The control port of the agent: sends and receives complete messages.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;

use coracle_agent::protocol::emulated_host::{
    FrameReader, FromAgent, MAX_START_FRAME, ProtocolError, Request, ToAgent,
};
use coracle_agent::relay;

/// The agent's end of the control port.
#[derive(Debug)]
pub(super) struct ControlPort {
    port: File,
    frames: FrameReader,
}

/// The reason why the control port cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error("it was closed")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("the first message is not a request")]
    NotARequest,
}

impl ControlPort {
    /// Takes the open, non-blocking port.
    pub(super) fn new(port: File) -> Self {
        Self { port, frames: FrameReader::new(MAX_START_FRAME) }
    }

    /// Sends one message, and waits for buffer space: the outer side always reads this port.
    pub(super) fn send(&mut self, message: &FromAgent) -> Result<(), ControlError> {
        let frame = message.to_frame();
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match self.port.write(rest) {
                Ok(0) => return Err(ControlError::Closed),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_for(libc::POLLOUT)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for the request. Anything that comes before it breaks the protocol.
    pub(super) fn receive_request(&mut self) -> Result<Request, ControlError> {
        loop {
            match self.next_message()? {
                Some(ToAgent::Start(request)) => return Ok(*request),
                Some(_) => return Err(ControlError::NotARequest),
                None => {
                    self.wait_for(libc::POLLIN)?;
                    self.fill()?;
                }
            }
        }
    }

    /// Returns the entry to poll.
    pub(super) fn poll_entry(&self) -> libc::pollfd {
        relay::poll_entry(self.port.as_raw_fd(), libc::POLLIN)
    }

    /// Reads what has arrived. [`ControlPort::next_message`] then returns the messages, until it returns
    /// none.
    pub(super) fn fill(&mut self) -> Result<(), ControlError> {
        let mut bytes = [0; 4096];
        match self.port.read(&mut bytes) {
            Ok(0) => Err(ControlError::Closed),
            Ok(count) => {
                self.frames.push(bytes.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the next complete message of what was read.
    pub(super) fn next_message(&mut self) -> Result<Option<ToAgent>, ControlError> {
        let Some(content) = self.frames.next_frame()? else { return Ok(None) };
        Ok(Some(ToAgent::parse(&content)?))
    }

    fn wait_for(&self, events: i16) -> Result<(), ControlError> {
        let mut entries = [relay::poll_entry(self.port.as_raw_fd(), events)];
        Ok(relay::poll(&mut entries, -1)?)
    }
}
