//! From the configuration of a vsock device to the device, and the connections between this program and the
//! guest's ports.

use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use coracle_arch::field::Field;
use coracle_devices::virtio::listener::{ListenError, PortListener};
use coracle_devices::virtio::vsock::{ConnectError, Vsock};

use super::spec::{DeviceSpec, Opened, SpecContext};
use super::template::{Link, absolute};
use super::{Handle, VirtioDevices, VirtioError};
use crate::config::{ConfigError, DeviceId, VsockConfig};

/// Why this program and a port of the guest cannot be connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VsockPortError {
    /// The machine was built without a vsock device.
    #[error("this machine has no vsock device; set `vsock` in its configuration")]
    NoDevice,
    /// The machine has ended.
    #[error("the virtual machine has ended")]
    Ended,
    /// The connection to the guest failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The port cannot be listened on.
    #[error("vsock: {0}")]
    Listen(ListenError),
}

impl From<ListenError> for VsockPortError {
    fn from(error: ListenError) -> VsockPortError {
        VsockPortError::Listen(error)
    }
}

impl DeviceSpec for VsockConfig {
    fn open(&self, _: &SpecContext) -> Result<Opened, VirtioError> {
        let device = Vsock::new(self.cid, self.uds.as_deref());
        let device = device.map_err(|source| VirtioError::Vsock { option: self.to_string(), source })?;
        let device = Arc::new(device);
        let link = Link::Socket(SocketLink(self.clone()));
        Ok(Opened { device: device.clone(), handle: Some(Handle::Vsock(device)), link })
    }

    fn id(&self) -> DeviceId {
        self.id.clone().unwrap_or_else(|| DeviceId::numbered(SocketLink::KIND, 0))
    }

    fn module(&self) -> &'static str {
        "vmw_vsock_virtio_transport"
    }

    fn setting(&self) -> String {
        format!("{FIELD} {self}")
    }
}

/// The vsock device of a machine, for those that go on from it.
#[derive(Debug, Clone)]
pub(crate) struct SocketLink(pub(crate) VsockConfig);

impl SocketLink {
    /// The name of the kind, and of the method that names another socket.
    pub(crate) const KIND: &'static str = "vsock";

    /// Returns the configuration as text, with an absolute path.
    pub(super) fn recorded(&self) -> String {
        let uds = self.0.uds.as_deref().map(absolute);
        VsockConfig { uds, id: None, ..self.0.clone() }.to_string()
    }

    /// Returns whether it has a socket on the host.
    pub(super) fn needs_host(&self) -> bool {
        self.0.uds.is_some()
    }
}

impl FromStr for SocketLink {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        text.parse().map(SocketLink)
    }
}

/// The vsock device of a machine that goes on from another one, whose id stays.
pub(super) struct ForkSocket<'a> {
    pub(super) id: &'a DeviceId,
    pub(super) config: &'a SocketLink,
}

impl DeviceSpec for ForkSocket<'_> {
    fn open(&self, context: &SpecContext) -> Result<Opened, VirtioError> {
        self.config.0.open(context)
    }

    fn id(&self) -> DeviceId {
        self.id.clone()
    }

    fn module(&self) -> &'static str {
        self.config.0.module()
    }

    fn setting(&self) -> String {
        self.config.0.setting()
    }
}

impl VirtioDevices {
    /// Returns the vsock device, if the machine has one.
    pub(super) fn vsock(&self) -> Option<&Arc<Vsock>> {
        self.handles().find_map(|handle| match handle {
            Handle::Vsock(vsock) => Some(vsock),
            _ => None,
        })
    }

    /// Connects to `port` of the guest.
    ///
    /// # Errors
    /// See [`VsockPortError`].
    pub(crate) fn connect_port(&self, port: u32) -> Result<UnixStream, VsockPortError> {
        let vsock = self.vsock().ok_or(VsockPortError::NoDevice)?;
        Ok(vsock.switchboard().connect(port, CONNECT_LIMIT)?)
    }

    /// Accepts the guest's connections to `port` of the host.
    ///
    /// # Errors
    /// See [`VsockPortError`].
    pub(crate) fn listen_port(&self, port: u32) -> Result<PortListener, VsockPortError> {
        let vsock = self.vsock().ok_or(VsockPortError::NoDevice)?;
        Ok(vsock.switchboard().listen(port)?)
    }

    /// Accepts the guest's connections to `port` of the host, if the guest connects from a privileged port
    /// (below 1024).
    ///
    /// # Errors
    /// See [`VsockPortError`].
    pub(crate) fn listen_privileged_port(&self, port: u32) -> Result<PortListener, VsockPortError> {
        let vsock = self.vsock().ok_or(VsockPortError::NoDevice)?;
        Ok(vsock.switchboard().listen_privileged(port)?)
    }
}

/// The setting that errors name.
pub(super) const FIELD: Field = Field::same("vsock");
/// How long a guest has to accept a connection: enough for a guest that is still booting, even on an emulated
/// host.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
