//! The virtio devices of a virtual machine: created from the configuration, attached in one way, and
//! connected to each guest in turn.
//!
//! A new device is a file with its [`DeviceSpec`], and its lines here: in [`specs`], and in [`Handle`] if
//! somebody on the host talks to it.

mod balloon;
mod branch;
mod console;
mod device_thread;
mod disk;
mod net;
mod repoint;
mod rng;
mod spec;
mod state;
mod template;
mod vsock;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_arch::field::{DISKS, Field, NETS};
use coracle_arch::x86_64::layout::{VIRTIO_IRQS, VirtioMmio};
use coracle_devices::backend::disk::{DiskOpenError, OverlayError};
use coracle_devices::backend::net::NetOpenError;
use coracle_devices::bus::{BusDevice, BusRange};
use coracle_devices::event_loop::{HAND_BACK_LIMIT, LoopHandle};
use coracle_devices::journal;
use coracle_devices::memory::GuestMemory;
use coracle_devices::virtio::VirtioIrq;
use coracle_devices::virtio::balloon::Balloon;
use coracle_devices::virtio::handler::{HandlerHost, IfLate};
use coracle_devices::virtio::net::Net;
use coracle_devices::virtio::queue::ChainBudget;
use coracle_devices::virtio::transport::{Doorbell, MmioTransport, Transport, TransportParts};
use coracle_devices::virtio::vsock::{Vsock, VsockError};
use coracle_image::rootfs::Root;
use coracle_image::temporary;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub(crate) use branch::{BranchError, NewLayers};
pub(crate) use console::ConsoleSpec;
use device_thread::DeviceThread;
pub(crate) use disk::made_config;
pub(crate) use net::ForkCard;
pub use repoint::RepointError;
pub(crate) use repoint::{Repointed, check_id};
use spec::{DeviceSpec, Named, Opened, SpecContext, numbered};
pub use template::DeviceInfo;
pub(crate) use template::{Content, KnownDisk, KnownNet, Link, Plain, TemplateDevice};
use vsock::ForkSocket;
pub(crate) use vsock::SocketLink;
pub use vsock::VsockPortError;

use crate::config::{DeviceId, MacAddress, NetEnd, VmConfig};
use crate::ending::HostFailure;
use crate::gate::Gate;
use crate::kvm::{Interrupts, KvmVm, WeakKvmVm};
use crate::thread::HostCpus;

/// The devices of a machine that have not been opened yet.
pub(crate) type Specs<'a> = Vec<Box<dyn DeviceSpec + 'a>>;

/// Returns every device of a machine, in the order in which its guest finds them.
pub(crate) fn specs<'a>(config: &'a VmConfig, root: Option<&'a Root>) -> Specs<'a> {
    let id = || config.root.as_ref().and_then(|root| root.id.clone()).unwrap_or_else(DeviceId::of_root);
    let root = root.and_then(Root::disk).map(|disk| disk::RootSpec { disk, id: id() });
    let disks = [each(numbered(&config.disks, DISKS, "path")), each(root)];
    // One line for each kind.
    let kinds = [
        // Disks come first, so that their letters in a Linux guest follow their order on the command line.
        disks.into_iter().flatten().collect(),
        each(numbered(&config.nets, NETS, "end")),
        each(config.rng.then_some(rng::RngSpec)),
        each(balloon::BalloonSpec::of(config)),
        each(console::ConsoleSpec::of(config)),
        each(&config.vsock),
    ];
    kinds.into_iter().flatten().collect()
}

fn each<'a>(specs: impl IntoIterator<Item = impl DeviceSpec + 'a>) -> Specs<'a> {
    specs.into_iter().map(|spec| Box::new(spec) as Box<dyn DeviceSpec + 'a>).collect()
}

/// The host's side of a device. The device's file in this directory has the calls on it.
pub(crate) enum Handle {
    /// Asks the guest for memory.
    Balloon(Arc<Balloon>),
    /// The host's ends of the console's ports.
    Console(console::ConsolePorts),
    /// Gives its content to other machines.
    Disk(disk::DiskHandle),
    /// Counts frames.
    Net(Arc<Net>),
    /// Connects programs to the guest's ports.
    Vsock(Arc<Vsock>),
}

/// Every virtio device of a machine, in the order in which its guest finds them.
pub(crate) struct VirtioDevices {
    attached: Vec<Attached>,
    /// The threads of devices that may block.
    threads: Vec<Arc<DeviceThread>>,
}

/// An attached device with its transport.
struct Attached {
    id: DeviceId,
    transport: Arc<dyn Transport>,
    place: VirtioMmio,
    handle: Option<Handle>,
    link: Link,
}

/// The parts of the machine to which devices are attached.
pub(crate) struct AttachContext<'a> {
    /// Allocates interrupt lines.
    pub interrupts: &'a Interrupts,
    /// The I/O thread of devices that never block.
    pub io: LoopHandle,
    /// Receives the failure of a thread that panics.
    pub gate: Arc<Gate>,
}

/// Why a device could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioError {
    /// There are more devices than interrupts for them.
    #[error(
        "{first}: a machine has interrupts for {most} virtio devices, and {wanted} are configured; leave some \
         out"
    )]
    TooMany {
        /// The setting of the first device for which there is no interrupt, with its value.
        first: String,
        /// The configured number.
        wanted: usize,
        /// The limit.
        most: usize,
    },
    /// A disk's file cannot be used.
    #[error("{field} {}: {source}", path.display())]
    Disk {
        /// The setting that names it: one of the disks, or the root.
        field: Field,
        /// The configured path.
        path: PathBuf,
        /// The cause.
        r#source: DiskOpenError,
    },
    /// A disk's overlay cannot be created.
    #[error("{field} {}: {source}{}", path.display(), temporary::advice())]
    Overlay {
        /// The setting that names it: one of the disks, or the root.
        field: Field,
        /// The configured path of the disk.
        path: PathBuf,
        /// The cause.
        r#source: OverlayError,
    },
    /// Two devices have the same id.
    #[error("{second}: it has the id {id}, which another device ({first}) has; give each its own id=")]
    IdTwice {
        /// The setting of the first, with its value.
        first: String,
        /// The setting of the second, with its value.
        second: String,
        /// The id.
        id: DeviceId,
    },
    /// Two disks have the same serial number.
    #[error("{field}: two disks have the serial number {serial}; give each its own")]
    SerialTwice {
        /// The setting of the second.
        field: Field,
        /// The serial number.
        serial: String,
    },
    /// The host's end of a network card cannot be opened.
    #[error("{field} {end}: {source}")]
    Net {
        /// The setting that names it.
        field: Field,
        /// The configured end.
        end: NetEnd,
        /// The cause.
        r#source: NetOpenError,
    },
    /// Two network cards have the same MAC address.
    #[error("{field}: two network cards have the address {mac}; give each its own")]
    MacTwice {
        /// The setting of the second.
        field: Field,
        /// The MAC address.
        mac: MacAddress,
    },
    /// Two network cards have the same end on the host.
    #[error("{field}: two network cards have the end {end}; give each its own")]
    NetTwice {
        /// The setting of the second.
        field: Field,
        /// The configured end.
        end: NetEnd,
    },
    /// The vsock device cannot be set up.
    #[error("{} {option}: {source}", vsock::FIELD)]
    Vsock {
        /// The configured value, as text.
        option: String,
        /// The cause.
        r#source: VsockError,
    },
    /// A device of a machine that goes on from another one cannot be connected.
    #[error(transparent)]
    Repoint(#[from] RepointError),
    /// The host has run out of something that the device needs.
    #[error("{device}: the host cannot make it: {source}")]
    Host {
        /// The name of the device.
        device: String,
        /// The error of the system call.
        r#source: io::Error,
    },
}

impl VirtioDevices {
    /// Opens everything that the devices of `config` and the root disk need on the host, and attaches the
    /// devices.
    ///
    /// # Errors
    /// The first device that cannot be created.
    pub(crate) fn attach(
        config: &VmConfig,
        specs: &Specs<'_>,
        context: &AttachContext<'_>,
    ) -> Result<VirtioDevices, VirtioError> {
        check_together(config, specs)?;
        let opening = SpecContext { gate: context.gate.clone() };
        let opened = specs.iter().map(|spec| spec.open(&opening)).collect::<Result<Vec<_>, _>>()?;
        let places = (0..).map_while(VirtioMmio::nth);
        let (mut attached, mut threads) = (Vec::new(), Vec::new());
        let chains = ChainBudget::default();
        // A vCPU starts the threads, and may be bound to CPUs that are not for them.
        let cpus = config.cpu_affinity.as_ref().and_then(|_| HostCpus::of_this_thread());
        for ((opened, spec), place) in opened.into_iter().zip(specs).zip(places) {
            let name = opened.device.name();
            let device = Attached::new((opened, spec.id()), place, context, (&chains, &mut threads), cpus);
            attached.push(device.map_err(|source| VirtioError::Host { device: name, source })?);
        }
        Ok(VirtioDevices { attached, threads })
    }

    /// Returns the host's handles of the devices that have one.
    fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.attached.iter().filter_map(|device| device.handle.as_ref())
    }

    /// Returns the windows and interrupts of the devices, for tables and command lines.
    pub(crate) fn places(&self) -> Vec<VirtioMmio> {
        self.attached.iter().map(|device| device.place).collect()
    }

    /// Returns the register windows of the devices, for the bus.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (BusRange, Arc<dyn BusDevice>)> {
        self.attached.iter().map(|device| {
            let range = BusRange::new(device.place.base, device.transport.window_len());
            (range, device.transport.clone() as Arc<dyn BusDevice>)
        })
    }

    /// Connects the devices to a new guest before it runs. KVM learns of a device's doorbells when the driver
    /// starts the device: a machine whose doorbells were never connected closes some 10 ms sooner, because
    /// KVM frees its list of them only after a grace period.
    pub(crate) fn connect(&self, vm: &KvmVm, memory: &GuestMemory) {
        for Attached { transport, place, .. } in &self.attached {
            let (doorbells, base, vm) = (transport.doorbells(), place.base, vm.downgrade());
            transport.connect(memory.clone(), Box::new(move || connect_doorbells(&vm, base, &doorbells)));
        }
    }

    /// Resets the devices and takes the guest's memory from them, after the last vCPU has stopped. Back ends
    /// stay open. Requests that no device has started are dropped.
    ///
    /// # Errors
    /// A device is stuck in a call to the host. It keeps the memory.
    pub(crate) fn disconnect(&self) -> Result<(), HostFailure> {
        self.ask_for_queues(IfLate::Drop);
        // Disconnect every device, even after one has failed.
        let stuck = self.attached.iter().filter(|device| device.transport.disconnect().is_err());
        stuck.collect::<Vec<_>>().first().map_or(Ok(()), |device| Err(device.stuck()))
    }

    /// Takes the queues from their handlers while no vCPU runs.
    ///
    /// # Errors
    /// The name of the first device that did not stop in time; the others have stopped.
    pub(crate) fn pause(&self) -> Result<(), String> {
        self.ask_for_queues(IfLate::Continue);
        // Pause every device, even after one has failed.
        let stuck = self.attached.iter().filter(|device| device.transport.pause().is_err());
        stuck.collect::<Vec<_>>().first().map_or(Ok(()), |device| Err(device.title()))
    }

    /// Asks all devices at once, so that they share one time limit.
    fn ask_for_queues(&self, if_late: IfLate) {
        self.attached.iter().for_each(|device| device.transport.ask_for_queues(if_late));
    }

    /// Continues after [`VirtioDevices::pause`] or [`VirtioDevices::restore`], before a vCPU runs.
    pub(crate) fn resume(&self) {
        self.attached.iter().for_each(|device| device.transport.resume());
    }

    /// Closes the connections to programs of the host, after [`VirtioDevices::disconnect`].
    pub(crate) fn close(&self) {
        if let Some(vsock) = self.vsock() {
            vsock.close();
        }
    }

    /// Ends the threads of the devices, after [`VirtioDevices::disconnect`]. With `hangs`, a thread is stuck,
    /// so that none of them is waited for.
    pub(crate) fn end_threads(&self, hangs: bool) {
        self.threads.iter().for_each(|thread| thread.ask_to_end());
        self.threads.iter().for_each(|thread| thread.end(hangs));
    }
}

/// Lets KVM ring the doorbells of a device. If KVM refuses one, that one and those after it ring by an exit.
fn connect_doorbells(vm: &WeakKvmVm, base: u64, doorbells: &[Doorbell]) {
    let Some(vm) = vm.upgrade() else { return };
    let mut doorbells = doorbells.iter();
    let refused = doorbells.find_map(|doorbell| {
        let Doorbell { offset, value, event } = doorbell;
        vm.connect_doorbell(event, base + offset, *value).err()
    });
    if let Some(error) = refused {
        journal!(Host Warn, "the doorbells of a virtio device cost an exit each: {error}");
    }
}

impl Attached {
    fn new(
        (Opened { device, handle, link }, id): (Opened, DeviceId),
        place: VirtioMmio,
        context: &AttachContext<'_>,
        (chains, threads): (&ChainBudget, &mut Vec<Arc<DeviceThread>>),
        cpus: Option<HostCpus>,
    ) -> io::Result<Attached> {
        let pin = u8::try_from(place.gsi).map_err(io::Error::other)?;
        let irq = VirtioIrq::new(context.interrupts.line(pin)?);
        let doorbell = |_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Arc::new);
        let doorbells = device.queue_sizes().into_iter().map(doorbell).collect::<io::Result<_>>()?;
        let mut host: Arc<dyn HandlerHost> = Arc::new(context.io.clone());
        if device.blocks() {
            let thread = Arc::new(DeviceThread::new(place.gsi, context.gate.clone(), cpus)?);
            threads.push(thread.clone());
            host = thread;
        }
        let parts = TransportParts { device, host, irq, doorbells, chains: chains.clone() };
        let transport = Arc::new(MmioTransport::new(parts));
        Ok(Attached { id, transport, place, handle, link })
    }

    /// Returns the id, and what the device is, for errors.
    fn title(&self) -> String {
        format!("{} ({})", self.id, self.transport.name())
    }

    fn stuck(&self) -> HostFailure {
        HostFailure::DeviceStuck { device: self.title(), limit: HAND_BACK_LIMIT }
    }
}

/// The kinds of devices that have no end on the host.
pub(crate) const PLAIN: [&Plain; 2] = [&rng::PLAIN, &balloon::PLAIN];

/// Checks that the devices of `config` fit together and that its disks can be used, by opening and closing
/// the disks.
///
/// # Errors
/// The first device that cannot be used.
pub(crate) fn check(config: &VmConfig) -> Result<(), VirtioError> {
    check_values(config)?;
    // All disks are open at the same time, so that a file that is given twice is found.
    numbered(&config.disks, DISKS, "path")
        .map(|disk| disk::check(&disk))
        .collect::<Result<Vec<_>, _>>()
        .map(drop)
}

/// Checks that the devices of `config` fit together, without looking at the host.
///
/// # Errors
/// There are too many devices, or two that must differ do not.
pub(crate) fn check_values(config: &VmConfig) -> Result<(), VirtioError> {
    check_together(config, &specs(config, None))
}

/// Refuses more devices than fit, and devices that must differ but do not.
fn check_together(config: &VmConfig, specs: &Specs<'_>) -> Result<(), VirtioError> {
    let (wanted, most) = (specs.len(), VIRTIO_IRQS.len());
    if let Some(first) = specs.get(most) {
        return Err(VirtioError::TooMany { first: first.setting(), wanted, most });
    }
    check_ids(specs)?;
    check_serials(config)?;
    net::check_each_is_its_own(&config.nets)
}

/// Refuses two devices with the same id.
fn check_ids(specs: &Specs<'_>) -> Result<(), VirtioError> {
    let mut seen = HashMap::new();
    for (index, spec) in specs.iter().enumerate() {
        let first = seen.insert(spec.id(), index).and_then(|first| specs.get(first));
        if let Some(first) = first {
            return Err(VirtioError::IdTwice {
                first: first.setting(),
                second: spec.setting(),
                id: spec.id(),
            });
        }
    }
    Ok(())
}

/// Refuses two disks with the same serial number: a guest that looks for one could not tell them apart.
fn check_serials(config: &VmConfig) -> Result<(), VirtioError> {
    let mut seen = HashSet::new();
    for Named { field, config, id: _ } in numbered(&config.disks, DISKS, "serial") {
        let serial = config.shown_serial();
        if !serial.is_empty() && !seen.insert(serial) {
            return Err(VirtioError::SerialTwice { field, serial: serial.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod repoint_tests;
#[cfg(test)]
mod tests;
