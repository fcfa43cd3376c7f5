//! The content of a snapshot, and whether it is whole, without a machine or KVM.

use std::iter;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use coracle_arch::x86_64::layout::VirtioMmio;
use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::guest_request::{GuestRequest, GuestRequestSink};
use coracle_devices::irq::{MsiMessage, MsiSink};
use serde::Serialize;

use super::restore::Own;
use super::sections::RamContent;
use super::state::MachineState;
use super::{SnapshotError, virtio};
use crate::memory::{FrozenRam, FrozenRegion};
use crate::snapshot_files::{
    At, DeviceFacts, HostFacts, MachineFacts, Manifest, ParentFacts, SnapshotId, StateFileError, Summary,
    check_disk, check_memory,
};
use crate::vm::BuildError;
use crate::vm::builder::thread_error;
use crate::vm::platform::{Platform, SECOND_PORT};

/// The facts about a snapshot that its manifest has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// The identity, which all of its files have.
    pub id: SnapshotId,
    /// The format of its files.
    pub format: u32,
    /// The program that has made it, with its version.
    pub made_by: String,
    /// The date at which it was made, in seconds since 1970.
    pub created: u64,
    /// The bytes that its files take on the medium, without holes.
    pub stored_bytes: u64,
    /// The host that the machine ran on.
    pub host: HostFacts,
    /// The machine.
    pub machine: MachineFacts,
    /// The snapshot over which this one lies; `None` if this one has all memory.
    pub parent: Option<ParentFacts>,
    /// Its virtio devices, with their connections to that host.
    pub devices: Vec<RecordedDevice>,
}

/// A virtio device as the manifest of a snapshot has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecordedDevice {
    /// The id.
    pub id: String,
    /// The kind: `disk`, `net`, `vsock`, `console`, `rng` or `balloon`.
    pub kind: String,
    /// The connection to the host of the first machine, in the form of the command's options, with an
    /// absolute path; `None` if there is nothing to connect.
    pub recorded: Option<String>,
    /// Whether the snapshot has blocks of the disk: those that the guest has written to its overlay, or all
    /// of them.
    pub has_blocks: bool,
}

/// Returns the facts about the snapshot in the folder at `path`. Only its manifest is read.
///
/// # Errors
/// A file is missing, or the manifest is damaged or of a newer format.
pub fn info(path: impl AsRef<Path>) -> Result<SnapshotInfo, SnapshotError> {
    Ok(Summary::read(path.as_ref())?.into())
}

/// Reads the whole snapshot in the folder at `path`, and compares its memory with its hashes. Whether this
/// host can run the machine is not checked, and neither are the snapshots over which it lies.
///
/// ```no_run
/// # fn doc() -> Result<(), coracle::SnapshotError> {
/// let info = coracle::snapshot::check("snapshots/ready")?;
/// println!("{}: {} MiB of RAM in {} bytes", info.id, info.machine.memory_mib, info.stored_bytes);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The first thing that is missing, damaged or not possible, by file and place.
pub fn check(path: impl AsRef<Path>) -> Result<SnapshotInfo, SnapshotError> {
    let path = path.as_ref();
    let Own { path: _, manifest, state, content, memory, disks, stored_bytes } = Own::open(path)?;
    check_legacy(path, &state.machine)?;
    let mut config = manifest.machine.config().map_err(|error| At(path).manifest(error))?;
    let bytes = config.memory.bytes();
    let file = memory.try_clone().map_err(At(path).read("memory"))?;
    let is_whole = matches!(content, RamContent::Whole(_));
    let below = (!is_whole).then(|| FrozenRam::zeroes(config.memory));
    let ram = content.of_file(config.memory, memory, below.as_ref());
    let ram = ram.ok_or_else(|| At(path).state(StateFileError::Ram { ram: bytes }))?;
    // Of a snapshot over another one, only the pages that have changed are used, and blocks are larger.
    let all = iter::once(0..bytes).filter(|_| !is_whole);
    let content: Vec<Range<u64>> = all.chain(ram.regions().iter().flat_map(in_file)).collect();
    check_memory(path, &manifest, &file, &content)?;
    let stored = manifest.devices.iter().filter(|device| device.stored.is_some());
    stored.zip(&disks).try_for_each(|(device, file)| check_disk(path, device, file))?;
    virtio::load(path, &state.devices, &manifest.devices, disks, &mut config)?;
    Ok(Summary { manifest, stored_bytes }.into())
}

/// Returns the parts of a region with content, by their offsets in the file.
fn in_file(region: &FrozenRegion) -> impl Iterator<Item = Range<u64>> {
    region.pieces.iter().map(|piece| region.offset + piece.range.start..region.offset + piece.range.end)
}

/// Checks the states of the legacy devices, as a restore does.
pub(super) fn check_legacy(path: &Path, machine: &MachineState) -> Result<(), SnapshotError> {
    let nobody = Arc::new(Nobody);
    let states = &machine.legacy;
    // The I/O APIC has an input for each virtio device.
    let last_gsi = (0..machine.virtio.len()).filter_map(VirtioMmio::nth).map(|place| place.gsi).max();
    let has_second = states.iter().any(|(name, _)| name == SECOND_PORT);
    let second = has_second.then(|| ConsoleBuffer::new(CONSOLE_CAPACITY).map(Arc::new)).transpose();
    let second = second.map_err(thread_error("the second serial port"))?;
    let platform = Platform::new(nobody.clone(), nobody, [], last_gsi, CONSOLE_CAPACITY, second.as_ref());
    let restored = platform.map_err(BuildError::from)?.restore(states);
    Ok(restored.map_err(|error| At(path).state(StateFileError::content("legacy", error)))?)
}

impl From<Summary> for SnapshotInfo {
    fn from(summary: Summary) -> SnapshotInfo {
        let Summary { manifest, stored_bytes } = summary;
        let Manifest { format, id, made_by, created, host, machine, parent, devices, state: _, memory: _ } =
            manifest;
        let devices = devices.into_iter().map(RecordedDevice::from).collect();
        SnapshotInfo { id, format, made_by, created, stored_bytes, host, machine, parent, devices }
    }
}

impl From<DeviceFacts> for RecordedDevice {
    fn from(facts: DeviceFacts) -> RecordedDevice {
        let DeviceFacts { id, kind, recorded, file: _, stored } = facts;
        RecordedDevice { id, kind, recorded, has_blocks: stored.is_some() }
    }
}

/// Takes what devices without a machine send.
struct Nobody;

impl MsiSink for Nobody {
    fn send(&self, _: MsiMessage) {}

    fn route_changed(&self, _: u8, _: Option<MsiMessage>) {}
}

impl GuestRequestSink for Nobody {
    fn post(&self, _: GuestRequest) {}
}

/// The room for a console's output, of which there is none.
const CONSOLE_CAPACITY: usize = 1 << 10;
