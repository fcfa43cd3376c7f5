//! Socket device (virtio 1.2, section 5.10): stream connections between ports of the guest and programs of
//! the host.
//!
//! The host's side is a unix socket with a naming rule, which clients of Firecracker and Cloud Hypervisor
//! know:
//! - A program connects to the socket, writes `CONNECT PORT\n` and reads `OK HOSTPORT\n`. From then on the
//!   stream is that of the guest's port. If the guest refuses, the stream ends instead.
//! - When the guest connects to port P of the host (address 2), the device connects to the socket `PATH_P`.
//!
//! Programs that embed the machine need no paths: they use the [`Switchboard`].
//!
//! ```text
//! unix sockets, switchboard <-> Mux: Connection, Connection, ... <-> VsockHandler <-> receive and transmit
//! ```
//!
//! There are at most [`MAX_CONNECTIONS`], and [`KEPT_BACK`] more for the guest's agent. Bytes to the guest
//! stay in the host's sockets until the guest has space. Bytes to the host are kept up to the window that the
//! guest was granted. A peer that is slow, stuck or gone holds up only its own connection.

mod client;
mod connection;
mod credit;
mod handler;
mod host_socket;
mod mux;
mod packet;
mod state;
mod switchboard;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::lock;
use crate::virtio::state::SaveDevice;
use crate::virtio::{ActivateContext, ActivateError, DeviceKind, QueueHandler, VirtioDevice};
use handler::{VsockHandler, VsockQueues};
use host_socket::HostSocket;
pub use host_socket::HostSocketError;
use mux::Mux;
pub use switchboard::{ConnectError, Switchboard};

/// A socket device with its connections.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    mux: Arc<Mutex<Mux>>,
    switchboard: Arc<Switchboard>,
}

/// The reason why a socket device cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VsockError {
    /// Its socket cannot be made.
    #[error(transparent)]
    Socket(#[from] HostSocketError),
    /// The host has no more descriptors.
    #[error("an event descriptor for the vsock device cannot be made: {0}")]
    Host(io::Error),
}

impl From<io::Error> for VsockError {
    fn from(error: io::Error) -> VsockError {
        VsockError::Host(error)
    }
}

impl Vsock {
    /// Makes a device whose guest has the address `guest_cid` (3 or more), with a socket at `path`, which
    /// must be free.
    ///
    /// # Errors
    /// The socket cannot be made, or the host has no more descriptors.
    pub fn new(guest_cid: u32, path: Option<&Path>) -> Result<Self, VsockError> {
        let socket = path.map(HostSocket::bind).transpose()?;
        let switchboard = Arc::new(Switchboard::new()?);
        let mux = Mux::new(guest_cid.into(), socket, switchboard.clone())?;
        Ok(Self { guest_cid, mux: Arc::new(Mutex::new(mux)), switchboard })
    }

    /// The longest path of a socket, in bytes.
    pub const LONGEST_PATH: usize = host_socket::LONGEST_PATH;

    /// Returns the way to the guest for programs that embed the machine.
    pub fn switchboard(&self) -> &Arc<Switchboard> {
        &self.switchboard
    }

    /// Panics if a table grows with the actions of guest or host, and not with the connections.
    #[cfg(any(test, feature = "testing"))]
    pub fn assert_bounded(&self) {
        lock(&self.mux).assert_bounded();
    }

    /// Ends all connections for the end of the machine. Peers get the bytes that are on their way if they
    /// take them soon. Then everything is closed and the socket's file removed.
    pub fn close(&self) {
        lock(&self.mux).close();
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn name(&self) -> String {
        "vsock".into()
    }

    fn features(&self) -> u64 {
        1 << FEATURE_STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
    }

    /// The configuration space: the guest's address (virtio 1.2, section 5.10.4).
    fn config(&self) -> Vec<u8> {
        u64::from(self.guest_cid).to_le_bytes().into()
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let queues = VsockQueues {
            receive: context.queues.take(RECEIVE)?,
            transmit: context.queues.take(TRANSMIT)?,
            events: context.queues.take(EVENTS).ok(),
        };
        Ok(vec![Box::new(VsockHandler::new(queues, self.mux.clone()))])
    }

    fn reset(&self) {
        lock(&self.mux).reset();
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        Some(self)
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.close();
    }
}

/// The largest number of connections of a device. Clients that have not yet named a port count as well.
pub const MAX_CONNECTIONS: usize = 512;

/// The number of additional connections for listeners that accept privileged ports only, so that a process of
/// the guest that opens all others does not lock out the agent.
pub const KEPT_BACK: usize = 8;

/// Queue numbers (virtio 1.2, section 5.10.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENTS: u16 = 2;
/// The size of the receive and transmit queues in descriptors. Linux fills the receive queue with buffers of
/// 4 KiB: this many are 1 MiB in flight.
const QUEUE_SIZE: u16 = 256;
/// The size of the event queue in descriptors. There is one event, for the driver of a restored device.
const EVENT_QUEUE_SIZE: u16 = 16;
/// VIRTIO_VSOCK_F_STREAM (virtio 1.2, section 5.10.3).
const FEATURE_STREAM: u32 = 0;

#[cfg(test)]
mod tests;
