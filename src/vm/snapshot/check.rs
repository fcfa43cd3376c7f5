//! The content of a snapshot, and whether it is whole, without a machine or KVM.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use coracle_devices::backend::console_buffer::ConsoleBuffer;
use coracle_devices::guest_request::{GuestRequest, GuestRequestSink};
use coracle_devices::irq::{MsiMessage, MsiSink};
use coracle_devices::state::SavedState;
use serde::Serialize;

use super::SnapshotError;
use super::restore::Loaded;
use crate::memory::FrozenRegion;
use crate::snapshot_files::{
    At, HostFacts, MachineFacts, Manifest, SnapshotId, StateFileError, Summary, check_memory,
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
}

/// Returns the facts about the snapshot in the folder at `path`. Only its manifest is read.
///
/// # Errors
/// A file is missing, or the manifest is damaged or of a newer format.
pub fn info(path: impl AsRef<Path>) -> Result<SnapshotInfo, SnapshotError> {
    Ok(Summary::read(path.as_ref())?.into())
}

/// Reads the whole snapshot in the folder at `path`, and compares its memory with its hashes. Whether this
/// host can run the machine is not checked.
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
    let Loaded { path: _, manifest, state, ram, stored_bytes } = Loaded::open(path)?;
    check_legacy(path, &state.machine.legacy)?;
    let content: Vec<Range<u64>> = ram.regions().iter().flat_map(in_file).collect();
    check_memory(path, &manifest, ram.file(), &content)?;
    Ok(Summary { manifest, stored_bytes }.into())
}

/// Returns the parts of a region with content, by their offsets in the file.
fn in_file(region: &FrozenRegion) -> impl Iterator<Item = Range<u64>> {
    region.parts.iter().map(|part| region.offset + part.start..region.offset + part.end)
}

/// Checks the states of the legacy devices, as a restore does.
pub(super) fn check_legacy(path: &Path, states: &[(String, SavedState)]) -> Result<(), SnapshotError> {
    let nobody = Arc::new(Nobody);
    let has_second = states.iter().any(|(name, _)| name == SECOND_PORT);
    let second = has_second.then(|| ConsoleBuffer::new(CONSOLE_CAPACITY).map(Arc::new)).transpose();
    let second = second.map_err(thread_error("the second serial port"))?;
    let platform = Platform::new(nobody.clone(), nobody, [], None, CONSOLE_CAPACITY, second.as_ref());
    let restored = platform.map_err(BuildError::from)?.restore(states);
    Ok(restored.map_err(|error| At(path).state(StateFileError::content("legacy", error)))?)
}

impl From<Summary> for SnapshotInfo {
    fn from(summary: Summary) -> SnapshotInfo {
        let Summary { manifest, stored_bytes } = summary;
        let Manifest { format, id, made_by, created, host, machine, state: _, memory: _ } = manifest;
        SnapshotInfo { id, format, made_by, created, stored_bytes, host, machine }
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
