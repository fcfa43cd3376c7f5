//! The devices of a machine from which others go on: as their guest knows them, and as they were connected
//! to their host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_devices::backend::disk::{FileIdentity, FrozenDisk, FrozenLayer};
use coracle_devices::virtio::net::MacAddress;
use serde::Serialize;

use super::console::ConsoleSpec;
use super::disk::DiskHandle;
use super::spec::DeviceSpec;
use super::{Attached, Handle, SocketLink, VirtioDevices};
use crate::config::{DeviceId, DiskConfig, NetConfig, VmConfig};

/// A device of a machine from which others go on. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TemplateDevice {
    pub(crate) id: DeviceId,
    pub(crate) link: Link,
    pub(crate) content: Content,
    /// The file of a disk, at the moment of the template; `None` if it has none, or none that can be
    /// recognized.
    pub(crate) identity: Option<FileIdentity>,
}

/// The kind of a device, what its guest takes to be fixed, and its connection to the host.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    Disk(KnownDisk, DiskConfig),
    Net(KnownNet, NetConfig),
    Socket(SocketLink),
    Console(ConsoleSpec),
    Plain(&'static Plain),
}

/// A kind of device that has neither an end on the host nor anything that its guest takes to be fixed. A
/// machine has at most one of the kind.
#[derive(Debug)]
pub(crate) struct Plain {
    /// The name of the kind.
    pub(crate) kind: &'static str,
    /// Returns the setting that asks for one.
    pub(crate) setting: fn(&mut VmConfig) -> &mut bool,
    /// Makes the device of a machine with this much RAM.
    pub(super) spec: fn(u64) -> Box<dyn DeviceSpec>,
}

/// The properties of a disk that its guest takes to be fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownDisk {
    /// The size in bytes.
    pub(crate) capacity: u64,
    pub(crate) is_read_only: bool,
    pub(crate) queues: u16,
    /// The serial number; empty for none.
    pub(crate) serial: String,
}

/// The properties of a network card that its guest takes to be fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KnownNet {
    /// The address that a driver finds after a reset of the card.
    pub(crate) mac: MacAddress,
    pub(crate) mtu: Option<u16>,
}

/// The blocks of a disk that its machine leaves behind.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Nothing: they are at the path, or the device is not a disk.
    AtPath,
    /// Open files, which any number of machines share.
    Shared(FrozenDisk),
    /// The layers of an overlay, the newest first. The file below them is at the path.
    Layers(Vec<Arc<FrozenLayer>>),
}

/// A device of a template or a snapshot, for people and for programs that connect it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The id.
    pub id: String,
    /// The kind: `disk`, `net`, `vsock`, `console`, `rng` or `balloon`.
    pub kind: &'static str,
    /// The connection to the host of the first machine, in the form of the command's options, with an
    /// absolute path; `None` if there is nothing to connect.
    pub recorded: Option<String>,
    /// Whether each machine that goes on has to be given a connection to the host.
    pub needs_host: bool,
}

impl TemplateDevice {
    /// Returns the connection to the host of the first machine, as text.
    pub(crate) fn recorded(&self) -> Option<String> {
        match &self.link {
            Link::Disk(_, DiskConfig { path, .. }) if path.as_os_str().is_empty() => None,
            Link::Disk(_, config) => {
                let config = DiskConfig { path: absolute(&config.path), id: None, ..config.clone() };
                Some(config.to_string())
            }
            Link::Net(_, config) => {
                let mut config = NetConfig { id: None, ..config.clone() };
                if let crate::config::NetEnd::Socket(path) = &mut config.end {
                    *path = absolute(path);
                }
                Some(config.to_string())
            }
            Link::Socket(socket) => Some(socket.recorded()),
            Link::Console(_) | Link::Plain(_) => None,
        }
    }

    /// Returns whether a machine that goes on needs something of the host that it is not given here.
    pub(crate) fn needs_host(&self) -> bool {
        match &self.link {
            Link::Disk(..) => !matches!(self.content, Content::Shared(_)),
            Link::Net(..) => true,
            Link::Socket(socket) => socket.needs_host(),
            Link::Console(_) | Link::Plain(_) => false,
        }
    }

    pub(crate) fn info(&self) -> DeviceInfo {
        let (id, kind) = (self.id.to_string(), self.link.kind());
        DeviceInfo { id, kind, recorded: self.recorded(), needs_host: self.needs_host() }
    }
}

impl Content {
    /// Returns the layers of an overlay, the newest first; none for another disk.
    pub(crate) fn layers(&self) -> &[Arc<FrozenLayer>] {
        match self {
            Content::AtPath => &[],
            Content::Shared(content) => content.layers().unwrap_or_default(),
            Content::Layers(layers) => layers,
        }
    }
}

impl Link {
    /// Returns the name of the kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Link::Disk(..) => "disk",
            Link::Net(..) => "net",
            Link::Socket(_) => SocketLink::KIND,
            Link::Console(_) => "console",
            Link::Plain(plain) => plain.kind,
        }
    }
}

impl VirtioDevices {
    /// Returns the devices for machines that go on from here, in their order. They are paused, and stay so as
    /// long as the blocks of their disks are needed. Without a pause, the blocks are not those of one moment,
    /// and the devices only tell what such a machine has to be given.
    pub(crate) fn template(&self) -> Vec<TemplateDevice> {
        self.attached.iter().map(Attached::template).collect()
    }
}

impl Attached {
    pub(super) fn template(&self) -> TemplateDevice {
        self.template_with(self.disk().and_then(|disk| disk.block.freeze()))
    }

    /// Returns the host's side, if this is a disk.
    pub(super) fn disk(&self) -> Option<&DiskHandle> {
        match &self.handle {
            Some(Handle::Disk(disk)) => Some(disk),
            _ => None,
        }
    }

    /// Returns the device for machines that go on with this content of the disk, if it is one.
    pub(super) fn template_with(&self, content: Option<FrozenDisk>) -> TemplateDevice {
        let content = content.map_or(Content::AtPath, Content::Shared);
        let identity = self.disk().and_then(|disk| disk.block.identity());
        TemplateDevice { id: self.id.clone(), link: self.link.clone(), content, identity }
    }
}

pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
