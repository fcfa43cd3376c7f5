//! Connections between a program and the ports of its guest.

use std::os::unix::net::UnixStream;

use coracle_devices::virtio::listener::PortListener;

use super::VmHandle;
use crate::virtio::VsockPortError;

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
