//! The devices of restored machines: where each of them is connected to the host.

use coracle::Fork;
use coracle::config::{DeviceId, DiskAccess, DiskConfig, NetConfig, NetEnd, SerialConfig};
use coracle::snapshot::RecordedDevice;

use crate::arguments::{DeviceArgs, GuestIp, PerFork, SocketArgs};
use crate::commands::crossing::Crossing;
use crate::commands::say;
use crate::commands::settings::Failure;

/// The ends on the host that the arguments name, each for a device of the snapshot.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    args: &'a DeviceArgs,
    disks: Vec<(String, &'a PerFork<DiskConfig>)>,
    nets: Vec<(String, &'a PerFork<NetConfig>)>,
    /// The card that gets the address.
    ip: Option<(String, &'a PerFork<GuestIp>)>,
}

impl<'a> Ends<'a> {
    /// Finds the devices that the arguments name. With `forks`, there is one machine or more of that number.
    ///
    /// # Errors
    /// An argument does not say which device it is for, or several forks would share what they cannot.
    pub(super) fn new(
        (args, ip): (&'a DeviceArgs, Option<&'a PerFork<GuestIp>>),
        devices: &[RecordedDevice],
        forks: Option<usize>,
    ) -> Result<Ends<'a>, Failure> {
        let are_many = forks.is_some_and(|count| count > 1);
        let (mut disks, mut nets) = (Vec::new(), Vec::new());
        for disk in &args.disks {
            let DiskConfig { id, access, .. } = disk.of(Some(0));
            if are_many && access == DiskAccess::ReadWrite && !disk.differs() {
                return Err(shared(
                    "--disk",
                    disk.text(),
                    "the forks would write to one file",
                    ", or add cow",
                ));
            }
            disks.push((named("--disk", disk.text(), id, "disk", devices)?, disk));
        }
        for net in &args.nets {
            let NetConfig { id, end, .. } = net.of(Some(0));
            if are_many && (!net.differs() || matches!(end, NetEnd::Fd(_))) {
                return Err(shared("--net", net.text(), "each fork needs an end of its own", ""));
            }
            nets.push((named("--net", net.text(), id, "net", devices)?, net));
        }
        if let Some(text) = args.socket.shared().filter(|_| are_many) {
            return Err(shared(SocketArgs::OPTION, text, "each fork needs a socket of its own", ""));
        }
        let card = || devices.iter().find(|device| device.kind == "net").map(|device| device.id.clone());
        let ip = ip.map(|ip| card().map(|card| (card, ip)).ok_or_else(no_card)).transpose()?;
        Ok(Ends { args, disks, nets, ip })
    }

    /// Tells which recorded ends will be opened.
    pub(super) fn announce(&self, devices: &[RecordedDevice]) {
        let is_named = |device: &RecordedDevice| {
            let disks = self.disks.iter().map(|(id, _)| id);
            let nets = self.nets.iter().map(|(id, _)| id);
            disks.chain(nets).any(|id| *id == device.id)
                || (device.kind == SocketArgs::KIND && self.args.socket.of(None).is_some())
        };
        for device in devices.iter().filter(|device| self.args.reopen && !is_named(device)) {
            if let Some(recorded) = &device.recorded {
                say(&format!("--reopen: {} is connected to {}", device.id, recorded.escape_debug()));
            }
        }
    }

    /// Adds what the devices of all forks need on an emulated host.
    ///
    /// # Errors
    /// A device has an end on this host that a guest on another host cannot have.
    pub(super) fn cross(
        &self,
        crossing: &mut Crossing,
        forks: Option<usize>,
        serial: Option<&SerialConfig>,
    ) -> Result<(), Failure> {
        let indices: Vec<Option<usize>> = forks.map_or(vec![None], |count| (0..count).map(Some).collect());
        for index in indices {
            let disks: Vec<DiskConfig> = self.disks.iter().map(|(_, disk)| disk.of(index)).collect();
            let nets: Vec<NetConfig> = self.nets.iter().map(|(_, net)| net.of(index)).collect();
            let socket = self.args.socket.of(index);
            crossing.add_ends(&disks, (&nets, socket.as_ref()), serial)?;
        }
        Ok(())
    }

    /// Connects the devices of the fork with this index.
    pub(super) fn connect(&self, mut fork: Fork, index: Option<usize>) -> Fork {
        for (id, disk) in &self.disks {
            fork = fork.disk(id, disk.of(index));
        }
        for (id, net) in &self.nets {
            fork = fork.net(id, net.of(index));
        }
        if let Some((card, ip)) = &self.ip {
            let GuestIp(settings) = ip.of(index);
            fork = fork.address(card, settings);
        }
        fork = self.args.socket.connect(fork, index);
        for id in &self.args.disk_changed_ok {
            fork = fork.disk_changed_ok(id);
        }
        if self.args.reopen { fork.reopen_recorded() } else { fork }
    }
}

/// Returns the id of the device that an argument is for.
fn named(
    option: &str,
    text: &str,
    id: Option<DeviceId>,
    kind: &str,
    devices: &[RecordedDevice],
) -> Result<String, Failure> {
    if let Some(id) = id {
        return Ok(id.to_string());
    }
    let ids: Vec<&str> =
        devices.iter().filter(|device| device.kind == kind).map(|device| device.id.as_str()).collect();
    match ids.as_slice() {
        [] => {
            Err(Failure::usage(format!("{option} {text}: the snapshot's machine has no device of this kind")))
        }
        [id] => Ok((*id).to_owned()),
        _ => Err(Failure::usage(format!(
            "{option} {text}: which one is it for? Add id=, with {}",
            ids.join(" or ")
        ))),
    }
}

fn no_card() -> Failure {
    Failure::usage("--ip: the snapshot's machine has no network card")
}

fn shared(option: &str, text: &str, why: &str, or: &str) -> Failure {
    let mark = PerFork::<DiskConfig>::INDEX;
    Failure::usage(format!("{option} {text}: {why}; put {mark}, the index of the fork, into its name{or}"))
}
