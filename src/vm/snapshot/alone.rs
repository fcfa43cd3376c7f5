//! The files of a snapshot without a folder or a machine. The fuzz target `snapshot_state` and the tests of
//! old formats read them by it, and nothing else does: so their inputs take the way of a restore.

use std::path::Path;

use super::SnapshotError;
use super::check::check_legacy;
use super::sections::{self, RamContent, StateFile};
use crate::config::{MemorySize, VcpuCount};
use crate::memory::FrozenRam;
use crate::snapshot_files::{
    At, Manifest, ManifestError, Sections, SnapshotId, StateFileError, encode_state,
};

/// Reads the file `state` of a machine with `vcpus` vCPUs and `memory_mib` of RAM, as a restore does before
/// it asks KVM. Returns what would be written for the same machine.
///
/// # Errors
/// The file is refused.
pub fn read_state(file: &[u8], vcpus: u8, memory_mib: u64) -> Result<Vec<u8>, SnapshotError> {
    let StateFile { machine, ram, subject, devices } = decode(file, vcpus, memory_mib)?;
    Ok(encode_state(&id_of(file), &sections::encode(&machine, &ram, &subject, &devices)))
}

/// Reads the file `state`, as [`read_state`] does. Returns all of its fields with their names, as text for
/// people.
///
/// # Errors
/// The file is refused.
pub fn show_state(file: &[u8], vcpus: u8, memory_mib: u64) -> Result<String, SnapshotError> {
    Ok(format!("{:?}", decode(file, vcpus, memory_mib)?))
}

fn id_of(file: &[u8]) -> SnapshotId {
    let id = file.get(16..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
    SnapshotId::from_bytes(id)
}

fn decode(file: &[u8], vcpus: u8, memory_mib: u64) -> Result<StateFile, SnapshotError> {
    let at = At(Path::new("fuzzed"));
    let not_a_machine = |field| move |source| at.manifest(ManifestError::Field { field, source });
    let count = VcpuCount::new(vcpus).map_err(not_a_machine("vcpus"))?;
    let memory = MemorySize::from_mib(memory_mib).map_err(not_a_machine("memory_mib"))?;
    let decode = |has_parent| {
        let sections = Sections::decode(file, &id_of(file))?;
        StateFile::decode(sections, count.value(), memory.mib(), has_parent)
    };
    // The manifest says whether there is a parent. Here, the state does.
    let decoded = match decode(false) {
        Err(StateFileError::MissingSection { name: RamContent::WHOLE }) => decode(true),
        result => result,
    };
    let state = decoded.map_err(|error| at.state(error))?;
    let empty = coracle_arch::nameless_file::create_in_memory(c"fuzzed", 0).map_err(at.read("memory"))?;
    let below = matches!(state.ram, RamContent::Changes(_)).then(|| FrozenRam::zeroes(memory.into()));
    if state.ram.clone().of_file(memory.into(), empty, below.as_ref()).is_none() {
        return Err(at.state(StateFileError::Ram { ram: memory.bytes() }).into());
    }
    check_legacy(at.0, &state.machine)?;
    Ok(state)
}

/// Reads the file `manifest.json`. Returns what would be written for the same snapshot.
///
/// # Errors
/// The file is refused.
pub fn read_manifest(file: &[u8]) -> Result<Vec<u8>, ManifestError> {
    Manifest::decode(file)?.encode()
}
