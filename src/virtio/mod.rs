//! The virtio devices of a virtual machine: made from the configuration, attached in one way, connected to
//! each life of the guest. Called by the builder, `vm::lifecycle` and `vm::stop`.
//!
//! A new device is a file with its [`DeviceSpec`](spec::DeviceSpec), and one line in [`specs`].

mod balloon;
mod console;
mod disk;
mod net;
mod spec;
mod vsock;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_arch::field::{DISKS, Field};
use coracle_arch::x86_64::layout::{VIRTIO_IRQS, VirtioMmio};
use coracle_devices::backend::disk::{DiskOpenError, OverlayError};
use coracle_devices::backend::net::NetOpenError;
use coracle_devices::bus::{BusDevice, BusRange};
use coracle_devices::event_loop::{EventLoop, HAND_BACK_LIMIT, LoopHandle};
use coracle_devices::memory::GuestMemory;
use coracle_devices::virtio::VirtioIrq;
use coracle_devices::virtio::handler::{HandlerHost, IfLate};
use coracle_devices::virtio::queue::ChainBudget;
use coracle_devices::virtio::transport::{Doorbell, MmioTransport, Transport, TransportParts};
use coracle_devices::virtio::vsock::VsockError;
use coracle_image::rootfs::Root;
use coracle_image::temporary;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub(crate) use spec::specs;
use spec::{Handle, Opened, SpecContext, numbered};
pub use vsock::VsockPortError;

use crate::config::{DiskId, MacAddress, NetEnd, VmConfig};
use crate::ending::HostFailure;
use crate::gate::Gate;
use crate::io_loop::IoLoop;
use crate::kvm::{Interrupts, KvmError, KvmVm};
use crate::thread::ThreadKind;

/// Every virtio device of a machine, in the order in which its guest finds them.
pub(crate) struct VirtioDevices {
    attached: Vec<Attached>,
    /// Those of the devices that block, until the end.
    threads: Mutex<Vec<IoLoop>>,
}

/// A device with its place in the machine.
struct Attached {
    transport: Arc<dyn Transport>,
    place: VirtioMmio,
    handle: Option<Handle>,
}

/// What devices are attached to.
pub(crate) struct AttachContext<'a> {
    /// Gives interrupt lines.
    pub interrupts: &'a Interrupts,
    /// The thread of the devices that do not block.
    pub io: LoopHandle,
    /// Told of threads that panic.
    pub gate: Arc<Gate>,
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioError {
    /// More devices than there are interrupts for them.
    #[error("{wanted} virtio devices are not possible: a machine has interrupts for {most}")]
    TooMany {
        /// As configured.
        wanted: usize,
        /// The limit.
        most: usize,
    },
    /// A disk's file cannot be one.
    #[error("{field} {}: {source}", path.display())]
    Disk {
        /// The setting that names it: one of the disks, or the root.
        field: Field,
        /// As configured.
        path: PathBuf,
        /// Why.
        r#source: DiskOpenError,
    },
    /// A disk cannot have its overlay.
    #[error("{field} {}: {source}{}", path.display(), temporary::advice())]
    Overlay {
        /// The setting that names it: one of the disks, or the root.
        field: Field,
        /// As configured.
        path: PathBuf,
        /// Why.
        r#source: OverlayError,
    },
    /// Two disks with one serial number.
    #[error("two disks have the id {id}: give each its own")]
    DiskIdTwice {
        /// The number.
        id: DiskId,
    },
    /// A network card's end on the host cannot be had.
    #[error("{field} {end}: {source}")]
    Net {
        /// The setting that names it.
        field: Field,
        /// The end.
        end: NetEnd,
        /// Why.
        r#source: NetOpenError,
    },
    /// Two network cards with one address.
    #[error("two network cards have the address {mac}: give each its own")]
    MacTwice {
        /// The address.
        mac: MacAddress,
    },
    /// Two network cards with one end.
    #[error("two network cards have the end {end}: give each its own")]
    NetTwice {
        /// The end.
        end: NetEnd,
    },
    /// The socket device cannot be had.
    #[error("{} {option}: {source}", vsock::FIELD)]
    Vsock {
        /// As configured.
        option: String,
        /// Why.
        r#source: VsockError,
    },
    /// The host has too little of something.
    #[error("{device}: the host cannot make it: {source}")]
    Host {
        /// The device's name.
        device: String,
        /// What the system said.
        r#source: io::Error,
    },
}

impl VirtioDevices {
    /// Opens what the devices of `config` and the disk of its root need on the host, and attaches them.
    ///
    /// # Errors
    /// A device cannot be had.
    pub(crate) fn attach(
        config: &VmConfig,
        root: Option<&Root>,
        context: &AttachContext<'_>,
    ) -> Result<VirtioDevices, VirtioError> {
        let specs = specs(config, root);
        check_together(config, specs.len())?;
        let opening = SpecContext { gate: context.gate.clone() };
        let opened = specs.iter().map(|spec| spec.open(&opening)).collect::<Result<Vec<_>, _>>()?;
        let places = (0..).map_while(VirtioMmio::nth);
        let (mut attached, mut threads) = (Vec::new(), Vec::new());
        let chains = ChainBudget::default();
        for (opened, place) in opened.into_iter().zip(places) {
            let name = opened.device.name();
            let device = Attached::new(opened, place, context, (&chains, &mut threads));
            attached.push(device.map_err(|source| VirtioError::Host { device: name, source })?);
        }
        Ok(VirtioDevices { attached, threads: Mutex::new(threads) })
    }

    /// The host's sides of the devices that have one.
    fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.attached.iter().filter_map(|device| device.handle.as_ref())
    }

    /// Where they are, for tables and command lines.
    pub(crate) fn places(&self) -> Vec<VirtioMmio> {
        self.attached.iter().map(|device| device.place).collect()
    }

    /// Their register windows, for the bus.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (BusRange, Arc<dyn BusDevice>)> {
        self.attached.iter().map(|device| {
            let range = BusRange::new(device.place.base, device.transport.window_len());
            (range, device.transport.clone() as Arc<dyn BusDevice>)
        })
    }

    /// Connects the devices to a new life of the guest, before it runs.
    ///
    /// # Errors
    /// KVM refuses a doorbell.
    pub(crate) fn connect(&self, vm: &KvmVm, memory: &GuestMemory) -> Result<(), KvmError> {
        for Attached { transport, place, .. } in &self.attached {
            for Doorbell { offset, value, event } in transport.doorbells() {
                vm.connect_doorbell(&event, place.base + offset, value)?;
            }
            transport.connect(memory.clone());
        }
        Ok(())
    }

    /// Resets the devices and takes the guest's memory from them, when no vCPU runs any more. Back ends stay
    /// open. What the guest has offered and no device has begun is never done.
    ///
    /// # Errors
    /// A device waits for a call of the host that does not end. It keeps the memory.
    pub(crate) fn disconnect(&self) -> Result<(), HostFailure> {
        self.ask_for_queues(IfLate::Drop);
        // All of them, whatever becomes of one.
        let stuck = self.attached.iter().filter(|device| device.transport.disconnect().is_err());
        stuck.collect::<Vec<_>>().first().map_or(Ok(()), |device| Err(device.stuck()))
    }

    /// Takes the queues from their handlers, when no vCPU runs. False when a device did not come to rest; the
    /// others did.
    pub(crate) fn pause(&self) -> bool {
        self.ask_for_queues(IfLate::Continue);
        // All of them, whatever becomes of one.
        let stuck = self.attached.iter().filter(|device| device.transport.pause().is_err());
        stuck.count() == 0
    }

    /// Asks all devices at once, so that they share one limit.
    fn ask_for_queues(&self, if_late: IfLate) {
        self.attached.iter().for_each(|device| device.transport.ask_for_queues(if_late));
    }

    /// Goes on after [`VirtioDevices::pause`], before a vCPU runs.
    pub(crate) fn resume(&self) {
        self.attached.iter().for_each(|device| device.transport.resume());
    }

    /// Closes what programs of the host are connected to, after [`VirtioDevices::disconnect`].
    pub(crate) fn close(&self) {
        if let Some(vsock) = self.vsock() {
            vsock.close();
        }
    }

    /// Ends the threads of the devices, after [`VirtioDevices::disconnect`]. One that hangs is left behind.
    pub(crate) fn end_threads(&self, hangs: bool) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        threads.iter().for_each(IoLoop::ask_to_end);
        for thread in threads {
            if hangs {
                thread.abandon();
            } else {
                thread.stop();
            }
        }
    }
}

impl Attached {
    fn new(
        Opened { device, handle }: Opened,
        place: VirtioMmio,
        context: &AttachContext<'_>,
        (chains, threads): (&ChainBudget, &mut Vec<IoLoop>),
    ) -> io::Result<Attached> {
        let pin = u8::try_from(place.gsi).map_err(io::Error::other)?;
        let irq = VirtioIrq::new(context.interrupts.line(pin)?);
        let doorbell = |_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Arc::new);
        let doorbells = device.queue_sizes().into_iter().map(doorbell).collect::<io::Result<_>>()?;
        let mut host: Arc<dyn HandlerHost> = Arc::new(context.io.clone());
        if device.blocks() {
            let event_loop = EventLoop::new()?;
            host = Arc::new(event_loop.handle());
            threads.push(IoLoop::start(&ThreadKind::Device(place.gsi), event_loop, context.gate.clone())?);
        }
        let parts = TransportParts { device, host, irq, doorbells, chains: chains.clone() };
        let transport = Arc::new(MmioTransport::new(parts));
        Ok(Attached { transport, place, handle })
    }

    fn stuck(&self) -> HostFailure {
        HostFailure::DeviceStuck { device: self.transport.name(), limit: HAND_BACK_LIMIT }
    }
}

/// Looks whether the devices of `config` go together and its disks can be had. It opens these, and closes
/// them again.
///
/// # Errors
/// A device cannot be had.
pub(crate) fn check(config: &VmConfig) -> Result<(), VirtioError> {
    check_together(config, specs(config, None).len())?;
    // All at once: two of them may be the same.
    numbered(&config.disks, DISKS, "path")
        .map(|disk| disk::check(&disk))
        .collect::<Result<Vec<_>, _>>()
        .map(drop)
}

/// Refuses more devices than there is room for, and two with one name.
fn check_together(config: &VmConfig, wanted: usize) -> Result<(), VirtioError> {
    let most = VIRTIO_IRQS.len();
    if wanted > most {
        return Err(VirtioError::TooMany { wanted, most });
    }
    check_ids(config)?;
    net::check_each_is_its_own(&config.nets)
}

/// Refuses two disks with one number, which would be one to a guest that looks for it.
fn check_ids(config: &VmConfig) -> Result<(), VirtioError> {
    let mut seen = HashSet::new();
    for id in config.disks.iter().filter_map(|disk| disk.id.as_ref()) {
        if !seen.insert(id) {
            return Err(VirtioError::DiskIdTwice { id: id.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
