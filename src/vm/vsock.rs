//! Connections between a program and the ports of its guest.

use std::os::unix::net::UnixStream;

use coracle_devices::virtio::listener::PortListener;

use super::{Fork, Restore, VmHandle};
use crate::config::VsockConfig;
use crate::virtio::{SocketLink, VsockPortError};

impl VmHandle {
    /// Connects to `port` of the guest through its vsock device, and waits up to 10 s for the guest to
    /// accept. The guest refuses if nothing listens on that port yet.
    ///
    /// # Errors
    /// The machine has no vsock device, or the guest does not accept.
    pub fn connect(&self, port: u32) -> Result<UnixStream, VsockPortError> {
        self.shared.virtio().ok_or(VsockPortError::Ended)?.connect_port(port)
    }

    /// Accepts the guest's connections to `port` of the host (CID 2) from here on.
    ///
    /// # Errors
    /// The machine has no vsock device, the port already has a listener, or the machine has ended.
    pub fn listen(&self, port: u32) -> Result<PortListener, VsockPortError> {
        self.shared.virtio().ok_or(VsockPortError::Ended)?.listen_port(port)
    }
}

impl Fork {
    /// Gives the vsock device another socket on the host, and the guest this address. The guest hears that
    /// its connections are gone, and reads its address again.
    #[must_use]
    pub fn vsock(mut self, vsock: VsockConfig) -> Fork {
        self.repointed_mut().socket(SocketLink(vsock));
        self
    }
}

impl Restore {
    /// Gives the vsock device this socket on the host: see [`Fork::vsock`].
    #[must_use]
    pub fn vsock(self, vsock: VsockConfig) -> Restore {
        self.with(|settings| settings.vsock(vsock))
    }
}
