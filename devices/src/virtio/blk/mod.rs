//! Block device (virtio 1.2, section 5.2).
//!
//! `request` parses the driver's requests. `handler` serves them from a [`DiskBackend`] on a thread of the
//! disk's own, since the host may take its time. The device offers the features of
//! [`Block::features`](VirtioDevice::features) and the configuration of
//! [`Block::config`](VirtioDevice::config). It refuses requests past the end of the disk, whatever the back
//! end does.

mod handler;
mod in_flight;
mod job;
mod pace;
mod request;
mod state;
mod uring;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::backend::disk::{
    DiskBackend, FileIdentity, FrozenDisk, OverlayError, OverlayLayer, OverlaySize, SECTOR,
};
use crate::journal;
use crate::virtio::state::SaveDevice;
use crate::virtio::{
    ActivateContext, ActivateError, DeviceKind, MAX_QUEUE_SIZE, QueueHandler, StopFlag, VirtQueue,
    VirtioDevice,
};
use handler::BlockHandler;
use request::MAX_RANGE_SECTORS;
use uring::UringHandler;

/// A block device.
pub struct Block {
    disk: Arc<Disk>,
    queues: u16,
    engine: Engine,
}

/// The settings of a block device.
pub struct BlockSettings {
    /// The name in messages, such as `disk root.img`.
    pub name: String,
    /// The serial number that the driver shows, of at most [`ID_LEN`] bytes.
    pub id: String,
    /// The number of request queues, at least 1.
    pub queues: u16,
    /// The way in which requests are carried out.
    pub engine: Engine,
    /// How long the thread searches for more requests before it sleeps; usually
    /// [`Poll::DEFAULT`](crate::virtio::poll::Poll::DEFAULT), and zero for no search.
    pub poll: Duration,
    /// The storage of the blocks.
    pub backend: Box<dyn DiskBackend>,
    /// Decides about requests that the host could not serve.
    pub faults: Arc<dyn FaultSink>,
}

/// The way in which the requests of a disk are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A single system call at a time: best when the host's page cache has the blocks.
    Sync,
    /// io_uring, with many requests at a time: best when blocks have to come from the medium. A host that
    /// does not allow it, and a back end without a single descriptor, get `Sync` instead.
    IoUring,
}

/// The disk behind the queues, shared by the handlers of all activations.
pub(super) struct Disk {
    name: String,
    backend: Box<dyn DiskBackend>,
    id: [u8; ID_LEN],
    faults: Arc<dyn FaultSink>,
    /// Whether a flush has failed. Earlier writes may be lost then, and no later flush can restore them.
    flush_failed: AtomicBool,
    poll: Duration,
}

/// Decides about failed requests. The disk's thread calls it, and it does not wait.
pub trait FaultSink: Send + Sync {
    /// Takes the `error` of a request of the disk, and returns what becomes of the request.
    fn failed(&self, operation: Operation, error: &io::Error) -> FaultAction;
}

/// The operation of a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read blocks.
    Read,
    /// Write blocks, write zeroes or discard.
    Write,
    /// Make writes durable.
    Flush,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
        })
    }
}

/// The treatment of a request that the host could not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAction {
    /// The driver gets an I/O error.
    Report,
    /// The request waits. It is tried again when the device resumes after a pause.
    Hold,
}

/// The length of a disk's serial number in bytes (virtio 1.2, section 5.2.6).
pub const ID_LEN: usize = 20;

/// The largest number of queues of a disk. More than one is not faster, since one thread serves all of them,
/// but lets a driver keep one per CPU.
pub const MAX_QUEUES: u16 = 16;

impl Block {
    /// Makes a block device.
    pub fn new(settings: BlockSettings) -> Self {
        let BlockSettings { name, id, queues, engine, poll, backend, faults } = settings;
        let mut bytes = [0; ID_LEN];
        bytes.iter_mut().zip(id.bytes()).for_each(|(target, byte)| *target = byte);
        let engine = usable(engine, backend.as_ref(), &name);
        let flush_failed = AtomicBool::new(false);
        let disk = Disk { name, backend, id: bytes, faults, flush_failed, poll };
        Self { disk: Arc::new(disk), queues: queues.clamp(1, MAX_QUEUES), engine }
    }

    /// Returns the present content, from which other disks go on; `None` for a disk of which only one machine
    /// can have the content. The device has to be paused, and this machine must not go on.
    pub fn freeze(&self) -> Option<FrozenDisk> {
        self.disk.backend.freeze()
    }

    /// Returns whether writes of the guest are kept in a layer of this disk.
    pub fn has_layer(&self) -> bool {
        self.disk.backend.has_layer()
    }

    /// Returns the present content, as [`freeze`](Self::freeze) does, of a disk that [has a
    /// layer](Self::has_layer). The device has to be paused, and goes on afterwards: its next writes go to
    /// `layer`.
    ///
    /// # Errors
    /// See [`DiskBackend::branch`].
    pub fn branch(
        &self,
        layer: OverlayLayer<'_>,
        size: OverlaySize,
    ) -> Result<Option<FrozenDisk>, OverlayError> {
        self.disk.backend.branch(layer, size)
    }

    /// Returns the present identity of the file of the disk; `None` for one without a file.
    pub fn identity(&self) -> Option<FileIdentity> {
        self.disk.backend.identity().ok().flatten()
    }

    fn handler(
        &self,
        queues: Vec<VirtQueue>,
        limits: request::Limits,
        stop: StopFlag,
    ) -> Box<dyn QueueHandler> {
        let (Engine::IoUring, Some(file)) = (self.engine, self.disk.backend.descriptor()) else {
            return Box::new(BlockHandler::new(queues, self.disk.clone(), limits, stop));
        };
        Box::new(UringHandler::new(queues, self.disk.clone(), limits, (file, stop)))
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn name(&self) -> String {
        self.disk.name.clone()
    }

    fn features(&self) -> u64 {
        let mut features = 1 << SEG_MAX | 1 << BLK_SIZE | 1 << FLUSH;
        features |= if self.disk.backend.is_read_only() { 1 << RO } else { 1 << DISCARD | 1 << WRITE_ZEROES };
        if self.queues > 1 { features | 1 << MQ } else { features }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![MAX_QUEUE_SIZE; self.queues.into()]
    }

    /// The configuration space (virtio 1.2, section 5.2.4). Unused fields are 0.
    fn config(&self) -> Vec<u8> {
        let sectors = self.disk.backend.capacity().checked_div(SECTOR).unwrap_or_default();
        let mut config = Vec::with_capacity(CONFIG_LEN);
        config.extend(sectors.to_le_bytes());
        config.extend([0; 4]); // size_max
        config.extend(SEGMENTS.to_le_bytes());
        config.extend([0; 4]); // geometry
        config.extend((SECTOR as u32).to_le_bytes());
        config.extend([0; 8]); // topology
        config.extend([0; 2]); // writeback
        config.extend(self.queues.to_le_bytes());
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(1_u32.to_le_bytes()); // ranges of one discard
        config.extend(DISCARD_SECTORS.to_le_bytes()); // what discards are best aligned to
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(1_u32.to_le_bytes()); // ranges of one write of zeroes
        config.extend([1, 0, 0, 0]); // which may free blocks
        config
    }

    fn blocks(&self) -> bool {
        true
    }

    fn activate(&self, mut context: ActivateContext) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let discards = context.has(DISCARD);
        let zeroes = context.has(WRITE_ZEROES);
        let first = context.queues.take(0)?;
        let queues = std::iter::once(first).chain(context.queues.into_rest()).collect();
        let limits = request::Limits { capacity: self.disk.backend.capacity(), discards, zeroes };
        Ok(vec![self.handler(queues, limits, context.stop)])
    }

    fn reset(&self) {
        self.disk.flush_failed.store(false, Ordering::Release);
    }

    fn saving(&self) -> Option<&dyn SaveDevice> {
        self.disk.backend.can_be_continued().then_some(self as &dyn SaveDevice)
    }
}

/// Returns the engine that a disk can have on this host.
fn usable(wanted: Engine, backend: &dyn DiskBackend, name: &str) -> Engine {
    if wanted == Engine::Sync || backend.descriptor().is_none() {
        return Engine::Sync;
    }
    match uring::is_allowed() {
        Ok(()) => Engine::IoUring,
        Err(error) => {
            journal!(Guest Info, "{name}: io_uring is not available, so requests run one after the other: {error}");
            Engine::Sync
        }
    }
}

/// Feature bits (virtio 1.2, section 5.2.3).
const SEG_MAX: u32 = 2;
const RO: u32 = 5;
const BLK_SIZE: u32 = 6;
const FLUSH: u32 = 9;
const MQ: u32 = 12;
const DISCARD: u32 = 13;
const WRITE_ZEROES: u32 = 14;

/// The length of the configuration space in bytes.
const CONFIG_LEN: usize = 60;
/// The largest number of data buffers of one request: the descriptors of a queue, without those of the header
/// and the status.
const SEGMENTS: u32 = MAX_QUEUE_SIZE as u32 - 2;
/// The alignment of discards, in sectors, that the driver should keep: the page of usual file systems,
/// because smaller holes free nothing.
const DISCARD_SECTORS: u32 = 8;

#[cfg(test)]
mod tests;
