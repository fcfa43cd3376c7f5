//! The devices of a machine that goes on from another one: those that its owner connects to the host in
//! another way, and those that are as they were.

use std::ffi::OsString;
use std::sync::Arc;

use coracle_arch::field::{DISKS, NETS};
use coracle_devices::backend::disk::FrozenLayer;

use super::disk::{ForkDisk, ForkSource};
use super::net::ForkNet;
use super::spec::DeviceSpec;
use super::template::{Content, KnownDisk, KnownNet, Link, TemplateDevice};
use super::{ForkSocket, SocketLink, Specs};
use crate::config::{DeviceId, DiskAccess, DiskConfig, MacAddress, NetConfig, NetEnd};

/// The connections of devices to the host that the owner of a machine has chosen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repointed {
    disks: Vec<(String, DiskConfig)>,
    nets: Vec<(String, NetConfig)>,
    socket: Option<SocketLink>,
    /// Whether the other devices are connected as the first machine's were.
    reopens_recorded: bool,
    /// The ids of disks whose files may have changed.
    changed_ok: Vec<String>,
}

/// The reason why a device of a machine that goes on from another one cannot be connected to the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepointError {
    /// The machine has no device with this id.
    #[error("there is no device `{id}`; the machine has {devices}")]
    Unknown {
        /// The id.
        id: String,
        /// The ids of all devices with their kinds.
        devices: String,
    },
    /// The device is of another kind.
    #[error("{id}: this device is of the kind {kind}, and not {wanted}; use the id of another one")]
    Kind {
        /// The id.
        id: String,
        /// The kind of the device.
        kind: &'static str,
        /// The kind that was given.
        wanted: &'static str,
    },
    /// The device needs something of the host that several machines cannot share, or that a snapshot does not
    /// open by itself.
    #[error(
        "{id}: this device was connected to {recorded}, which is neither shared nor opened by itself; give each \
         machine an end of its own with {method}, or let one take the recorded one with reopen_recorded()"
    )]
    NotNamed {
        /// The id.
        id: String,
        /// The connection of the first machine.
        recorded: String,
        /// The call that names another one.
        method: String,
    },
    /// The device was connected to a descriptor, which nobody else can open.
    #[error(
        "{id}: this device was connected to {recorded}, a descriptor of the first machine's process; name its end with \
         {method}"
    )]
    Descriptor {
        /// The id.
        id: String,
        /// The connection of the first machine.
        recorded: String,
        /// The call that names another one.
        method: String,
    },
    /// The guest knows the disk as writable or not, and it would be the opposite.
    #[error("{id}: the guest knows this disk as {}", if *is_read_only {
        "read-only; add `ro`"
    } else {
        "writable; leave out `ro`, or write `cow` to keep the guest's writes elsewhere"
    })]
    Access {
        /// The id.
        id: String,
        /// Whether the guest knows it as read-only.
        is_read_only: bool,
    },
    /// The guest's writes are in an overlay, and the file would be the disk without them.
    #[error(
        "{id}: the guest's writes to this disk are in its overlay, and it would write over a file that lacks them; add \
         `cow`, or, if the file has them, allow it as a disk that has changed"
    )]
    Overlay {
        /// The id.
        id: String,
    },
    /// A property of a network card that the guest knows would be another.
    #[error("{id}: the guest knows this device with {what} {known}, which cannot change; leave {what} out")]
    Fixed {
        /// The id.
        id: String,
        /// The property.
        what: &'static str,
        /// Its value.
        known: String,
    },
    /// Two network cards would have the same MAC address.
    #[error("{id}: {other} has the address {mac} too; give each its own with mac=, or leave it out")]
    MacTwice {
        /// The id of the second.
        id: String,
        /// The id of the first.
        other: String,
        /// The MAC address.
        mac: MacAddress,
    },
    /// The settings of a card's address name an interface.
    #[error("{id}: the card is the interface, and {interface:?} was named too; leave `interface` out")]
    Interface {
        /// The id.
        id: String,
        /// The interface.
        interface: OsString,
    },
    /// There are more name servers than a guest can be given.
    #[error("{id}: {count} name servers were given, and {limit} are allowed; leave some out")]
    NameServers {
        /// The id.
        id: String,
        /// The number of name servers.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The machine has no agent, which would set the address of a card.
    #[error(
        "{id}: the guest's agent sets its address, and this machine has none; leave it out, or start the first \
         machine with an agent"
    )]
    NoAgent {
        /// The id.
        id: String,
    },
    /// The disk has another size than the guest knows.
    #[error("{id}: {path} has {bytes} bytes, and the guest knows a disk of {expected}; use one of that size")]
    Capacity {
        /// The id.
        id: String,
        /// The path of the disk.
        path: String,
        /// Its size in bytes.
        bytes: u64,
        /// The size that the guest knows.
        expected: u64,
    },
    /// The file has changed since the guest's state was saved.
    #[error(
        "{id}: {path} has changed since the machine's state was saved ({what}), and the guest would find what it does \
         not expect; use a copy from that time, or allow it with disk_changed_ok(\"{id}\")"
    )]
    Changed {
        /// The id.
        id: String,
        /// The path of the disk.
        path: String,
        /// The first difference.
        what: &'static str,
    },
}

impl Repointed {
    pub(crate) fn disk(&mut self, id: &str, disk: DiskConfig) {
        self.disks.push((id.to_owned(), disk));
    }

    pub(crate) fn net(&mut self, id: &str, net: NetConfig) {
        self.nets.push((id.to_owned(), net));
    }

    /// Returns whether the card with this id has another end than that of the first machine.
    pub(crate) fn has_net(&self, id: &DeviceId) -> bool {
        self.nets.iter().any(|(of, _)| of == id.as_str())
    }

    pub(crate) fn socket(&mut self, socket: SocketLink) {
        self.socket = Some(socket);
    }

    pub(crate) fn reopen_recorded(&mut self) {
        self.reopens_recorded = true;
    }

    pub(crate) fn disk_changed_ok(&mut self, id: &str) {
        self.changed_ok.push(id.to_owned());
    }

    /// Returns what has to be opened for a machine with `ram_bytes` of RAM that goes on with these devices.
    /// Nothing of the host is touched.
    ///
    /// # Errors
    /// A device is not known or of another kind, or needs something of the host that nobody has named.
    pub(crate) fn specs<'a>(
        &'a self,
        devices: &'a [TemplateDevice],
        ram_bytes: u64,
    ) -> Result<Specs<'a>, RepointError> {
        self.check_ids(devices)?;
        let mut specs: Specs<'a> = Vec::new();
        let (mut disks, mut nets) = (0.., 0..);
        let mut macs: Vec<(MacAddress, &DeviceId)> = Vec::new();
        for device in devices {
            let spec: Box<dyn DeviceSpec + 'a> = match &device.link {
                Link::Disk(known, recorded) => {
                    let field = DISKS.item(disks.next().unwrap_or_default(), "path");
                    let (config, source) = self.disk_of(device, known, recorded)?;
                    Box::new(ForkDisk { id: &device.id, field, known, config, source })
                }
                Link::Net(known, recorded) => {
                    let field = NETS.item(nets.next().unwrap_or_default(), "end");
                    let config = self.net_of(device, known, recorded)?;
                    if let Some(mac) = config.mac {
                        if let Some((_, other)) = macs.iter().find(|(of, _)| *of == mac) {
                            let [id, other] = [&device.id, *other].map(DeviceId::to_string);
                            return Err(RepointError::MacTwice { id, other, mac });
                        }
                        macs.push((mac, &device.id));
                    }
                    Box::new(ForkNet { id: &device.id, field, config })
                }
                Link::Socket(recorded) => {
                    Box::new(ForkSocket { id: &device.id, config: self.socket_of(device, recorded)? })
                }
                Link::Console(console) => Box::new(console),
                Link::Plain(plain) => (plain.spec)(ram_bytes),
            };
            specs.push(spec);
        }
        Ok(specs)
    }

    /// Checks that all ids are those of devices of their kinds.
    fn check_ids(&self, devices: &[TemplateDevice]) -> Result<(), RepointError> {
        let disks = self.disks.iter().map(|(id, _)| id).chain(&self.changed_ok).map(|id| (id, "disk"));
        let nets = self.nets.iter().map(|(id, _)| (id, "net"));
        for (id, wanted) in disks.chain(nets) {
            check_id(id, wanted, devices)?;
        }
        let has_socket = devices.iter().any(|device| matches!(device.link, Link::Socket(_)));
        if self.socket.is_some() && !has_socket {
            return Err(unknown(DeviceId::numbered(SocketLink::KIND, 0).as_str(), devices));
        }
        Ok(())
    }

    fn disk_of<'a>(
        &'a self,
        device: &'a TemplateDevice,
        known: &'a KnownDisk,
        recorded: &'a DiskConfig,
    ) -> Result<(&'a DiskConfig, ForkSource<'a>), RepointError> {
        let id = device.id.as_str();
        let Some((_, config)) = self.disks.iter().rev().find(|(of, _)| of == id) else {
            let source = match &device.content {
                Content::Shared(content) => ForkSource::Shared(content),
                _ if !self.reopens_recorded => return Err(not_named(device)),
                content => self.source(device, content.layers(), true),
            };
            return Ok((recorded, source));
        };
        if known.is_read_only != (config.access == DiskAccess::ReadOnly) {
            return Err(RepointError::Access { id: id.to_owned(), is_read_only: known.is_read_only });
        }
        let is_overlay = matches!(config.access, DiskAccess::Overlay { .. });
        let was_overlay = matches!(recorded.access, DiskAccess::Overlay { .. });
        if was_overlay && !is_overlay && !self.changed_ok.iter().any(|of| of == id) {
            return Err(RepointError::Overlay { id: id.to_owned() });
        }
        // The writes of the first machine's guest lie over the new file, too.
        let layers = if is_overlay { device.content.layers() } else { &[] };
        Ok((config, self.source(device, layers, false)))
    }

    fn source<'a>(
        &self,
        device: &TemplateDevice,
        layers: &'a [Arc<FrozenLayer>],
        is_recorded: bool,
    ) -> ForkSource<'a> {
        let may_change = self.changed_ok.iter().any(|id| id == device.id.as_str());
        let identity = device.identity.filter(|_| !may_change);
        ForkSource::Path { layers, identity, is_recorded }
    }

    fn net_of(
        &self,
        device: &TemplateDevice,
        known: &KnownNet,
        recorded: &NetConfig,
    ) -> Result<NetConfig, RepointError> {
        let id = device.id.as_str();
        let (config, mac) = match self.nets.iter().rev().find(|(of, _)| of == id) {
            Some((_, config)) => (config, config.mac),
            None if !self.reopens_recorded => return Err(not_named(device)),
            None if matches!(recorded.end, NetEnd::Fd(_)) => {
                let (recorded, method) = (recorded.end.to_string(), method(device));
                return Err(RepointError::Descriptor { id: id.to_owned(), recorded, method });
            }
            None => (recorded, Some(known.mac)),
        };
        let fixed = |what, known| RepointError::Fixed { id: id.to_owned(), what, known };
        if config.mtu.is_some() && config.mtu != known.mtu {
            return Err(fixed("mtu", known.mtu.map_or("1500 (none)".to_owned(), |mtu| mtu.to_string())));
        }
        Ok(NetConfig { mac, mtu: known.mtu, ..config.clone() })
    }

    fn socket_of<'a>(
        &'a self,
        device: &TemplateDevice,
        recorded: &'a SocketLink,
    ) -> Result<&'a SocketLink, RepointError> {
        match &self.socket {
            Some(socket) => Ok(socket),
            None if device.needs_host() && !self.reopens_recorded => Err(not_named(device)),
            None => Ok(recorded),
        }
    }
}

/// Checks that this is the id of a device of this kind.
///
/// # Errors
/// The machine has no such device, or it is of another kind.
pub(crate) fn check_id(
    id: &str,
    wanted: &'static str,
    devices: &[TemplateDevice],
) -> Result<(), RepointError> {
    let device = devices.iter().find(|device| device.id.as_str() == id);
    let kind = device.ok_or_else(|| unknown(id, devices))?.link.kind();
    if kind == wanted { Ok(()) } else { Err(RepointError::Kind { id: id.to_owned(), kind, wanted }) }
}

fn unknown(id: &str, devices: &[TemplateDevice]) -> RepointError {
    let names = devices.iter().map(|device| format!("{} ({})", device.id, device.link.kind()));
    let names = names.collect::<Vec<_>>().join(", ");
    let devices = if names.is_empty() { "none".to_owned() } else { names };
    RepointError::Unknown { id: id.escape_debug().to_string(), devices }
}

fn not_named(device: &TemplateDevice) -> RepointError {
    let (recorded, method) = (device.recorded().unwrap_or_default(), method(device));
    RepointError::NotNamed { id: device.id.to_string(), recorded, method }
}

/// Returns the call that connects a device to something else.
fn method(device: &TemplateDevice) -> String {
    let kind = device.link.kind();
    match &device.link {
        Link::Socket(_) => format!("{kind}(..)"),
        _ => format!("{kind}(\"{}\", ..)", device.id),
    }
}
