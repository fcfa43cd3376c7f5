//! The state of a machine as the sections of a file.
//!
//! A part of [`MachineState`] is a section of its own, with a version of its own. A new part is a new
//! section: required, if a machine without it would not be the same.

use std::fs::File;
use std::ops::Range;

use coracle_arch::x86_64::cpu_template::CpuTemplate;
use coracle_devices::state::{SavedState, StateError};
use serde::Deserialize;

use super::state::MachineState;
use super::virtio::Devices;
use crate::config::MemoryConfig;
use crate::diagnosis::Subject;
use crate::memory::{FrozenRam, MAX_RANGES};
use crate::snapshot_files::{Section, Sections, StateFileError};
use crate::vcpu::SavedVcpu;

/// Everything in the file `state`.
#[derive(Debug)]
pub(super) struct StateFile {
    pub(super) machine: MachineState,
    pub(super) ram: RamContent,
    pub(super) subject: Subject,
    /// The virtio devices, whose states are in the machine's.
    pub(super) devices: Devices,
}

/// The ranges of each region of RAM that the file `memory` has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RamContent {
    /// All that has content, as `FrozenRam::of_file` takes them.
    Whole(Vec<Vec<Range<u64>>>),
    /// The changes since the parent, as `FrozenRam::with_file` takes them.
    Changes(Vec<Vec<Range<u64>>>),
}

impl RamContent {
    /// The section of a snapshot that has all memory.
    pub(super) const WHOLE: &str = RAM;

    fn encode(&self) -> Section {
        let (name, content) = match self {
            RamContent::Whole(parts) => (RAM, SavedState::encode(1, parts)),
            RamContent::Changes(ranges) => (CHANGES, SavedState::encode(1, ranges)),
        };
        Section { name: name.to_owned(), is_required: true, content }
    }

    /// Takes the section that a snapshot with a parent, or without one, has.
    pub(super) fn take(sections: &mut Sections, has_parent: bool) -> Result<RamContent, StateFileError> {
        if has_parent {
            required(sections, CHANGES, MAX_CHANGES).map(RamContent::Changes)
        } else {
            required(sections, RAM, SMALL).map(RamContent::Whole)
        }
    }

    /// Returns the RAM that has this content of `file`, over that of the parent. `None` if RAM of this size
    /// cannot have it.
    pub(super) fn of_file(
        self,
        memory: MemoryConfig,
        file: File,
        parent: Option<&FrozenRam>,
    ) -> Option<FrozenRam> {
        match (self, parent) {
            (RamContent::Whole(parts), None) => FrozenRam::of_file(memory, file, parts),
            (RamContent::Changes(ranges), Some(parent)) => parent.with_file(file, &ranges),
            _ => None,
        }
    }
}

/// Encodes the state of a machine with these virtio devices.
pub(super) fn encode(
    machine: &MachineState,
    ram: &RamContent,
    subject: &Subject,
    devices: &Devices,
) -> Vec<Section> {
    // Complete, so that no new part is forgotten. The states of virtio devices are in their entries.
    let MachineState { vcpus, clock, legacy, virtio: _, agent } = machine;
    let required = |name: &str, content| Section { name: name.to_owned(), is_required: true, content };
    let mut sections = vec![
        required(VCPUS, SavedState::encode(1, vcpus)),
        required(CLOCK, SavedState::encode(1, clock)),
        required(LEGACY, SavedState::encode(1, legacy)),
        ram.encode(),
        Section { name: GUEST.to_owned(), is_required: false, content: subject.save() },
    ];
    sections.extend(devices.encode());
    sections.extend(agent.map(|token| required(AGENT, SavedState::encode(1, &token))));
    sections
}

impl StateFile {
    /// Decodes the state of a machine with `vcpus` vCPUs and `memory_mib` of RAM, whose snapshot has a parent
    /// or not. What depends on the host or on the devices of the machine is checked later, by those who
    /// restore it.
    ///
    /// # Errors
    /// A section is missing or not known, or a value in it is not possible.
    pub(super) fn decode(
        mut sections: Sections,
        vcpus: u8,
        memory_mib: u64,
        has_parent: bool,
    ) -> Result<StateFile, StateFileError> {
        let content = |name: &str, error| StateFileError::content(name, error);
        let devices = Devices::decode(&mut sections)?;
        let machine = MachineState {
            vcpus: decode_vcpus(&mut sections, vcpus)?,
            clock: required(&mut sections, CLOCK, SMALL)?,
            legacy: required(&mut sections, LEGACY, MAX_LEGACY)?,
            virtio: devices.states(),
            agent: decode_agent(&mut sections)?,
        };
        let ram = RamContent::take(&mut sections, has_parent)?;
        let guest = sections.take(GUEST, MAX_GUEST)?;
        let subject = Subject::restored(guest.as_ref(), memory_mib).map_err(|error| content(GUEST, error))?;
        sections.finish()?;
        Ok(StateFile { machine, ram, subject, devices })
    }
}

fn decode_vcpus(sections: &mut Sections, count: u8) -> Result<Vec<SavedVcpu>, StateFileError> {
    let error = |error| StateFileError::content(VCPUS, error);
    let vcpus: Vec<SavedVcpu> = required(sections, VCPUS, MAX_VCPUS)?;
    if vcpus.len() != usize::from(count) {
        let allowed = format!("the manifest has {count} (machine.vcpus)").into();
        return Err(error(StateError::Length { field: VCPUS, len: vcpus.len(), allowed }));
    }
    for (vcpu, SavedVcpu { cpuid, state }) in vcpus.iter().enumerate() {
        let (len, most) = (cpuid.len(), CpuTemplate::MAX_LEAVES);
        if len > most {
            return Err(error(StateError::Length {
                field: "cpuid",
                len,
                allowed: format!("at most {most}").into(),
            }));
        }
        state.check().map_err(|source| StateFileError::Vcpu { vcpu, source })?;
    }
    Ok(vcpus)
}

fn decode_agent(sections: &mut Sections) -> Result<Option<u64>, StateFileError> {
    let section = sections.take(AGENT, SMALL)?;
    let token = section.map(|section| section.decode(1)).transpose();
    token.map_err(|error| StateFileError::content(AGENT, error))
}

/// Takes and decodes a section of at most `most` bytes.
fn required<T: for<'a> Deserialize<'a>>(
    sections: &mut Sections,
    name: &'static str,
    most: usize,
) -> Result<T, StateFileError> {
    let section = sections.take(name, most)?.ok_or(StateFileError::MissingSection { name })?;
    section.decode(1).map_err(|error| StateFileError::content(name, error))
}

const VCPUS: &str = "vcpus";
const CLOCK: &str = "clock";
const LEGACY: &str = "legacy";
const RAM: &str = "ram";
const CHANGES: &str = "ram-changes";
const GUEST: &str = "guest";
/// The session with the agent, in a machine whose agent has greeted.
const AGENT: &str = "agent";

/// The longest section of vCPUs: 64 of them, with 64 KiB of XSAVE, a page of the local APIC, 1024 registers
/// and 256 leaves of CPUID each, take 6 MiB.
const MAX_VCPUS: usize = 8 << 20;
/// The longest section of legacy devices, which take some hundred bytes. An entry of 3 bytes takes 56 in
/// memory.
const MAX_LEGACY: usize = 64 << 10;
/// The longest section about the guest, most of which is its command line.
const MAX_GUEST: usize = 64 << 10;
/// The longest section of changes: two numbers of up to 6 bytes for each of the ranges, and a length for each
/// region.
const MAX_CHANGES: usize = 13 * MAX_RANGES;
/// The longest section of a few numbers.
const SMALL: usize = 4 << 10;
