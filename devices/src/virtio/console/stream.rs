//! A port that carries a stream between a program in the guest and this process: connections instead of a
//! terminal.
//!
//! Each time the driver opens the port there is a new connection, which the listener on the host accepts. It
//! ends when the driver closes the port or resets the device, and when the host drops its end. In the last
//! case the driver reads that the port is closed on the host, and, once it has closed the port itself, that
//! it is open again.
//!
//! Neither side can make this process keep more than the bytes of one chain and the content of a socket:
//! while the receiver does not read, the sender waits.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::journal;
use crate::lock;
use crate::virtio::listener::{ListenError, Listeners, PortListener};
use crate::virtio::queue::{Chain, RingError, VirtQueue};
use crate::virtio::socket;

/// The host's side of the port. It outlives resets of the device.
pub struct StreamPort {
    name: String,
    listeners: Arc<Listeners>,
    connection: Mutex<Option<Connection>>,
    /// Signals bytes from the host, and space in the host's socket.
    epoll: Epoll,
}

/// The connection, while the driver has the port open.
struct Connection {
    stream: UnixStream,
    /// Bytes of a chain that the host has not taken yet.
    output: Vec<u8>,
}

impl StreamPort {
    /// Makes a port with this name, by which the guest finds it.
    ///
    /// # Errors
    /// The host has no more descriptors.
    pub fn new(name: &str) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            listeners: Arc::default(),
            connection: Mutex::default(),
            epoll: Epoll::new()?,
        })
    }

    /// Listens for the guest's connections. Before this call, and after the listener is dropped, there are
    /// none.
    ///
    /// # Errors
    /// The port has a listener already, or the host has no more descriptors.
    pub fn listen(&self) -> Result<PortListener, ListenError> {
        self.listeners.listen(PORT)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ends the connection, because the driver has closed the port or reset the device.
    pub(super) fn disconnect(&self) {
        // Closing the socket removes it from the epoll set.
        *lock(&self.connection) = None;
    }

    /// Returns whether the guest has a connection to this host.
    pub(super) fn is_connected(&self) -> bool {
        lock(&self.connection).is_some()
    }

    fn connect(&self) {
        let mut connection = lock(&self.connection);
        if connection.is_some() {
            return;
        }
        // Without a listener, or with one that does not keep up, the bytes of the guest are dropped. It may
        // open the port again.
        let Some(Ok(stream)) = self.listeners.dial(PORT, PORT) else { return };
        let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        match self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(set, 0)) {
            Ok(()) => *connection = Some(Connection { stream, output: Vec::new() }),
            Err(error) => {
                journal!(Host Error, "console port {}: a connection cannot be watched: {error}", self.name);
            }
        }
    }
}

/// The queues of the port, while the device is active.
pub(super) struct StreamQueues {
    pub(super) receive: VirtQueue,
    pub(super) transmit: VirtQueue,
    port: Arc<StreamPort>,
}

/// The state of the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum HostEnd {
    /// The host's end is still open, or there never was one.
    Stays,
    /// The host's end has just closed.
    Gone,
}

impl StreamQueues {
    pub(super) fn new(receive: VirtQueue, mut transmit: VirtQueue, port: Arc<StreamPort>) -> Self {
        transmit.limit_bytes(MAX_BYTES);
        Self { receive, transmit, port }
    }

    /// Returns the descriptor that the handler watches. It is readable when [`Self::serve`] has something to
    /// do.
    pub(super) fn events(&self) -> &Epoll {
        &self.port.epoll
    }

    /// Opens or closes the connection, as the driver has done with the port.
    pub(super) fn heed(&mut self, is_open: bool) -> Result<(), RingError> {
        // Bytes that the driver has sent before belong to the former connection.
        self.serve_transmit()?;
        if is_open {
            self.port.connect();
        } else {
            self.port.disconnect();
        }
        Ok(())
    }

    /// Moves bytes in both directions. Returns whether the host's end has gone.
    pub(super) fn serve(&mut self) -> Result<HostEnd, RingError> {
        // An edge-triggered event comes only once, so both directions are tried whatever it was.
        let _ = self.port.epoll.wait(0, &mut [EpollEvent::default()]);
        self.serve_transmit()?;
        self.serve_receive()
    }

    /// Takes bytes from the guest, as long as the host takes them.
    fn serve_transmit(&mut self) -> Result<(), RingError> {
        let mut connection = lock(&self.port.connection);
        self.transmit.begin();
        loop {
            if connection.as_mut().is_some_and(|connection| !connection.flush()) {
                // The doorbell stays quiet, because the host has to take bytes first.
                self.transmit.announce();
                return Ok(());
            }
            let Some(mut chain) = self.transmit.pop()? else { return self.transmit.finish() };
            // Bytes without a connection are dropped.
            if let Some(connection) = connection.as_mut() {
                connection.take(&mut chain);
            }
            self.transmit.complete(chain, 0);
        }
    }

    /// Gives the guest the bytes from the host, as far as it has buffers.
    fn serve_receive(&mut self) -> Result<HostEnd, RingError> {
        let mut connection = lock(&self.port.connection);
        let Some(open) = connection.as_mut() else { return Ok(HostEnd::Stays) };
        self.receive.begin();
        let mut piece = [0; PIECE];
        loop {
            // Without a buffer, the doorbell rings when there is one.
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
                    // The doorbell stays quiet while there is nothing to deliver.
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
    /// Copies the bytes of a chain, which are at most [`MAX_BYTES`].
    fn take(&mut self, chain: &mut Chain) {
        let mut piece = [0; PIECE];
        while !chain.readable.is_empty() {
            let count = chain.readable.read(&mut piece);
            self.output.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }

    /// Sends bytes to the host. Returns true when all are sent.
    fn flush(&mut self) -> bool {
        let mut rest = self.output.as_slice();
        let mut has_room = true;
        while has_room && !rest.is_empty() {
            match socket::send(&self.stream, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => has_room = false,
                // Nobody reads any more. Bytes that came from there before are still delivered to the guest.
                Err(_) => rest = &[],
            }
        }
        let sent = self.output.len().saturating_sub(rest.len());
        self.output.drain(..sent);
        has_room
    }
}

/// The number of the port among its listeners, where it is the only one.
const PORT: u32 = 0;
/// The longest chain in bytes: twice what Linux sends at once. A longer chain is dropped as a whole.
const MAX_BYTES: u64 = 64 << 10;
/// The size of the pieces, on the stack, in which bytes are moved.
const PIECE: usize = 4096;
