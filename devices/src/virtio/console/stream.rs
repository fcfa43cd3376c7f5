//! A port that carries a stream between a program of the guest and this one: connections instead of a
//! terminal.
//!
//! Each time the driver opens the port there is a new connection, which who listens on the host accepts; it
//! ends when the driver closes the port or resets the device, and when the host's end is dropped: then the
//! driver hears that nobody is there, and that somebody is again once it has closed the port. Neither side
//! can make the other keep more than one chain's bytes and what a socket holds: who is not read from waits.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::journal;
use crate::lock;
use crate::virtio::queue::{Chain, RingError, VirtQueue};
use crate::virtio::vsock::{ListenError, PortListener, Switchboard, socket};

/// The host's side of the port. It outlives resets of the device.
pub struct StreamPort {
    name: String,
    switchboard: Arc<Switchboard>,
    connection: Mutex<Option<Connection>>,
    /// Tells of what comes from the host, and of room there.
    epoll: Epoll,
}

/// The driver has the port open.
struct Connection {
    stream: UnixStream,
    /// What the host has not taken yet of a chain.
    output: Vec<u8>,
}

impl StreamPort {
    /// A port of this name, by which the guest finds it.
    ///
    /// # Errors
    /// The host has no more descriptors.
    pub fn new(name: &str) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            switchboard: Arc::new(Switchboard::new()?),
            connection: Mutex::default(),
            epoll: Epoll::new()?,
        })
    }

    /// Takes the guest's connections from here on. Until then, and when it has been dropped, there are none.
    ///
    /// # Errors
    /// Somebody does already, or the host has too little.
    pub fn listen(&self) -> Result<PortListener, ListenError> {
        self.switchboard.listen(PORT)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The driver has closed the port, or is no more.
    pub(super) fn disconnect(&self) {
        // Closing the socket takes it out of the epoll set.
        *lock(&self.connection) = None;
    }

    fn connect(&self) {
        let mut connection = lock(&self.connection);
        if connection.is_some() {
            return;
        }
        // Without a listener, or when it is behind, the guest is not heard; it may open the port again.
        let Some(Ok(stream)) = self.switchboard.dial(PORT, PORT) else { return };
        let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        match self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(set, 0)) {
            Ok(()) => *connection = Some(Connection { stream, output: Vec::new() }),
            Err(error) => {
                journal!(Host Error, "console port {}: a connection cannot be watched: {error}", self.name);
            }
        }
    }
}

/// The queues of the port, while the driver has the device active.
pub(super) struct StreamQueues {
    pub(super) receive: VirtQueue,
    pub(super) transmit: VirtQueue,
    port: Arc<StreamPort>,
}

/// Whether the host's end is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum HostEnd {
    /// It is, or there never was one.
    Stays,
    /// It has just gone.
    Gone,
}

impl StreamQueues {
    pub(super) fn new(receive: VirtQueue, mut transmit: VirtQueue, port: Arc<StreamPort>) -> Self {
        transmit.limit_bytes(MOST_BYTES);
        Self { receive, transmit, port }
    }

    /// What the handler watches: readable when [`Self::serve`] has something to do.
    pub(super) fn events(&self) -> &Epoll {
        &self.port.epoll
    }

    /// The driver has opened or closed the port.
    pub(super) fn heed(&mut self, is_open: bool) -> Result<(), RingError> {
        // What it has sent before belongs to the connection that was.
        self.serve_transmit()?;
        if is_open {
            self.port.connect();
        } else {
            self.port.disconnect();
        }
        Ok(())
    }

    /// Something has come, or there is room, or the driver has said so.
    pub(super) fn serve(&mut self) -> Result<HostEnd, RingError> {
        // Each event comes once; both directions are tried whatever it was.
        let _ = self.port.epoll.wait(0, &mut [EpollEvent::default()]);
        self.serve_transmit()?;
        self.serve_receive()
    }

    /// Takes what the guest sends, as far as the host does.
    fn serve_transmit(&mut self) -> Result<(), RingError> {
        let mut connection = lock(&self.port.connection);
        self.transmit.begin();
        loop {
            if connection.as_mut().is_some_and(|connection| !connection.flush()) {
                // The doorbell stays quiet: room comes first.
                self.transmit.announce();
                return Ok(());
            }
            let Some(mut chain) = self.transmit.pop()? else { return self.transmit.finish() };
            // What is sent to nobody is lost.
            if let Some(connection) = connection.as_mut() {
                connection.take(&mut chain);
            }
            self.transmit.complete(chain, 0);
        }
    }

    /// Gives the guest what comes from the host, as far as it has buffers.
    fn serve_receive(&mut self) -> Result<HostEnd, RingError> {
        let mut connection = lock(&self.port.connection);
        let Some(open) = connection.as_mut() else { return Ok(HostEnd::Stays) };
        self.receive.begin();
        let mut piece = [0; PIECE];
        loop {
            // Without a buffer, the doorbell tells when there is one.
            let Some(mut chain) = self.receive.pop()? else {
                self.receive.finish()?;
                return Ok(HostEnd::Stays);
            };
            let room = usize::try_from(chain.writable.len()).unwrap_or(PIECE).min(PIECE);
            if room == 0 {
                self.receive.complete(chain, 0);
                continue;
            }
            match socket::receive(&open.stream, piece.get_mut(..room).unwrap_or_default()) {
                Ok(count) if count > 0 => {
                    let written = chain.writable.write(piece.get(..count).unwrap_or_default());
                    self.receive.complete(chain, written as u32);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    self.receive.put_back(chain);
                    // The doorbell stays quiet while there is nothing to give.
                    self.receive.announce();
                    return Ok(HostEnd::Stays);
                }
                Ok(_) | Err(_) => {
                    self.receive.put_back(chain);
                    self.receive.announce();
                    *connection = None;
                    return Ok(HostEnd::Gone);
                }
            }
        }
    }
}

impl Connection {
    /// Copies what a chain holds; [`MOST_BYTES`] bound it.
    fn take(&mut self, chain: &mut Chain) {
        let mut piece = [0; PIECE];
        while !chain.readable.is_empty() {
            let count = chain.readable.read(&mut piece);
            self.output.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }

    /// Gives the host what it takes; true when that is all.
    fn flush(&mut self) -> bool {
        let mut rest = self.output.as_slice();
        let mut has_room = true;
        while has_room && !rest.is_empty() {
            match socket::send(&self.stream, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => has_room = false,
                // Nobody reads it any more; what has come from there is still given to the guest.
                Err(_) => rest = &[],
            }
        }
        let sent = self.output.len().saturating_sub(rest.len());
        self.output.drain(..sent);
        has_room
    }
}

/// The port's number on the switchboard, where it is alone.
const PORT: u32 = 0;
/// Twice what Linux sends at once. Of what is longer, nothing is taken.
const MOST_BYTES: u64 = 64 << 10;
/// Bytes are moved on the stack in pieces of this size.
const PIECE: usize = 4096;
