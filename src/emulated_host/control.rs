//! The outer end of the control port. Messages wait in a queue until QEMU takes them, and are collected as
//! they arrive. Nothing here blocks.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use coracle_agent::protocol::emulated_host::{
    FrameReader, FromAgent, MAX_AGENT_FRAME, ProtocolError, ToAgent,
};
use coracle_agent::relay;

/// The control port's socket.
#[derive(Debug)]
pub(super) struct ControlSocket {
    socket: UnixStream,
    outgoing: VecDeque<u8>,
    frames: FrameReader,
}

/// Whether the other end is still connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Present,
    Gone,
}

impl ControlSocket {
    /// Takes the non-blocking socket.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, outgoing: VecDeque::new(), frames: FrameReader::new(MAX_AGENT_FRAME) }
    }

    /// Puts a message into the queue.
    pub(super) fn send(&mut self, message: &ToAgent) {
        self.outgoing.extend(message.to_frame());
    }

    /// Returns whether QEMU has taken everything that was sent.
    pub(super) fn is_idle(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Returns the entry to poll.
    pub(super) fn poll_entry(&self) -> libc::pollfd {
        let events = if self.outgoing.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT };
        relay::poll_entry(self.socket.as_raw_fd(), events)
    }

    /// Acts on what poll said about [`ControlSocket::poll_entry`].
    pub(super) fn handle(&mut self, answer: libc::pollfd) -> Peer {
        if answer.revents & libc::POLLOUT != 0 && self.write() == Peer::Gone {
            return Peer::Gone;
        }
        if answer.revents & !libc::POLLOUT == 0 {
            return Peer::Present;
        }
        let mut bytes = [0; 4096];
        let read = self.socket.read(&mut bytes);
        if let Ok(count) = read {
            self.frames.push(bytes.get(..count).unwrap_or_default());
        }
        peer_after(&read)
    }

    /// Returns the next complete message of what was read.
    pub(super) fn next_message(&mut self) -> Result<Option<FromAgent>, ProtocolError> {
        let Some(content) = self.frames.next_frame()? else { return Ok(None) };
        FromAgent::parse(&content).map(Some)
    }

    fn write(&mut self) -> Peer {
        let (first, _) = self.outgoing.as_slices();
        let written = self.socket.write(first);
        if let Ok(count) = written {
            self.outgoing.drain(..count);
        }
        peer_after(&written)
    }
}

fn peer_after(result: &io::Result<usize>) -> Peer {
    match result {
        Ok(0) => Peer::Gone,
        Ok(_) => Peer::Present,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Peer::Present,
        Err(_) => Peer::Gone,
    }
}
