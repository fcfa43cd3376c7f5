//! The virtio devices in the files of a snapshot: a section of the state with what their guest knows and
//! their own states, and in the manifest their connections to the host.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use coracle_devices::backend::disk::{FrozenDisk, FrozenLayer, copy_data};
use coracle_devices::state::{SavedState, StateError};
use coracle_devices::virtio::net::MacAddress;
use coracle_devices::virtio::state::SavedDevice;
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::config::{ConfigError, DeviceId, MIN_MTU, VmConfig};
use crate::snapshot_files::{
    At, DeviceFacts, DiskFileError, Draft, DraftDevice, ManifestError, Section, Sections, StateFileError,
};
use crate::virtio::{
    ConsoleSpec, Content, KnownDisk, KnownNet, Link, PLAIN, SocketLink, TemplateDevice, made_config,
};

/// The devices in the state.
#[derive(Debug, Clone, Default)]
pub(super) struct Devices {
    entries: Vec<DeviceEntry>,
    /// A bit for each cluster that a guest has written to an overlay, one disk after the other.
    clusters: Vec<u8>,
}

/// A device in the section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DeviceEntry {
    id: String,
    known: Known,
    state: SavedDevice,
}

/// The properties that the guest takes to be fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Known {
    Disk {
        capacity: u64,
        is_read_only: bool,
        queues: u16,
        serial: String,
        blocks: Blocks,
    },
    Net {
        mac: [u8; 6],
        mtu: Option<u16>,
    },
    Socket,
    Console {
        has_console: bool,
        has_agent_port: bool,
    },
    /// A device without an end on the host, of the kind with this name.
    Plain(String),
}

/// The blocks of a disk that are in the snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Blocks {
    /// None: they are at the path.
    AtPath,
    /// The blocks that the guest has written to an overlay, with the number of bytes that have its bits.
    Overlay(u32),
    /// All of them.
    Whole,
}

/// Copies the blocks of the disks that are not at a path to the draft. Returns the devices of the state, and
/// those of the manifest.
pub(super) fn store(
    draft: &Draft,
    devices: &[TemplateDevice],
    states: &[(String, SavedDevice)],
) -> Result<(Devices, Vec<DraftDevice>), SnapshotError> {
    let (mut stored, mut facts) = (Devices::default(), Vec::new());
    for (device, (_, state)) in devices.iter().zip(states) {
        let (known, blocks) = store_device(draft, device, &mut stored.clusters)?;
        stored.entries.push(DeviceEntry { id: device.id.to_string(), known, state: state.clone() });
        let facts_of_device = DeviceFacts {
            id: device.id.to_string(),
            kind: device.link.kind().to_owned(),
            recorded: device.recorded(),
            file: device.identity.filter(|_| device.recorded().is_some()),
            stored: None,
        };
        facts.push(DraftDevice { facts: facts_of_device, blocks });
    }
    if stored.clusters.len() > MAX_OVERLAYS {
        let (name, len, most) = (OVERLAYS.to_owned(), stored.clusters.len(), MAX_OVERLAYS);
        return Err(At(draft.path()).state(StateFileError::TooLong { name, len, most }).into());
    }
    Ok((stored, facts))
}

fn store_device(
    draft: &Draft,
    device: &TemplateDevice,
    clusters: &mut Vec<u8>,
) -> Result<(Known, Option<(File, u64)>), SnapshotError> {
    let known = match &device.link {
        Link::Disk(known, _) => return store_disk(draft, device, known, clusters),
        Link::Net(KnownNet { mac, mtu }, _) => Known::Net { mac: mac.bytes(), mtu: *mtu },
        Link::Socket(_) => Known::Socket,
        Link::Console(spec) => {
            let (has_console, has_agent_port) = spec.ports();
            Known::Console { has_console, has_agent_port }
        }
        Link::Plain(plain) => Known::Plain(plain.kind.to_owned()),
    };
    Ok((known, None))
}

fn store_disk(
    draft: &Draft,
    device: &TemplateDevice,
    known: &KnownDisk,
    clusters: &mut Vec<u8>,
) -> Result<(Known, Option<(File, u64)>), SnapshotError> {
    let KnownDisk { capacity, is_read_only, queues, ref serial } = *known;
    let id = device.id.as_str();
    let failed = |error| At(draft.path()).disk(id, DiskFileError::Host(error));
    let layers = device.content.layers();
    let (blocks, file) = match &device.content {
        _ if !layers.is_empty() => {
            let file = draft.disk(id, capacity)?;
            let present = FrozenLayer::store(layers, capacity, &file).map_err(failed)?;
            clusters.extend_from_slice(&present);
            (Blocks::Overlay(present.len() as u32), Some(file))
        }
        Content::Shared(content) if device.recorded().is_none() => {
            let file = draft.disk(id, capacity)?;
            let copy = file.set_len(capacity).and_then(|()| copy_data(content.base(), 0, capacity, &file));
            copy.map_err(failed)?;
            (Blocks::Whole, Some(file))
        }
        _ => (Blocks::AtPath, None),
    };
    let known = Known::Disk { capacity, is_read_only, queues, serial: serial.clone(), blocks };
    Ok((known, file.map(|file| (file, capacity))))
}

impl Devices {
    /// Returns the sections of these devices; none for a machine without any.
    pub(super) fn encode(&self) -> Vec<Section> {
        let Self { entries, clusters } = self;
        let required = |name: &str, content| Section { name: name.to_owned(), is_required: true, content };
        let devices = (!entries.is_empty()).then(|| required(DEVICES, SavedState::encode(1, entries)));
        let overlays = (!clusters.is_empty()).then(|| required(OVERLAYS, SavedState::encode(1, clusters)));
        devices.into_iter().chain(overlays).collect()
    }

    /// Takes the sections.
    pub(super) fn decode(sections: &mut Sections) -> Result<Devices, StateFileError> {
        let Some(section) = sections.take(DEVICES, MAX_DEVICES)? else { return Ok(Devices::default()) };
        let refused = |error| StateFileError::content(DEVICES, error);
        let entries: Vec<DeviceEntry> = section.decode(1).map_err(refused)?;
        let clusters: Vec<u8> = match sections.take(OVERLAYS, MAX_OVERLAYS)? {
            Some(section) => section.decode(1).map_err(|error| StateFileError::content(OVERLAYS, error))?,
            None => Vec::new(),
        };
        for entry in &entries {
            entry.check().map_err(|error| refused(error.of_device(entry.shown())))?;
        }
        let wanted: usize = entries.iter().map(DeviceEntry::cluster_bytes).sum();
        if wanted != clusters.len() {
            let allowed = format!("{wanted}, those of the overlays of all disks").into();
            let error = StateError::Length { field: "clusters", len: clusters.len(), allowed };
            return Err(StateFileError::content(OVERLAYS, error));
        }
        Ok(Devices { entries, clusters })
    }

    /// Returns the states with their ids.
    pub(super) fn states(&self) -> Vec<(String, SavedDevice)> {
        self.entries.iter().map(|entry| (entry.id.clone(), entry.state.clone())).collect()
    }
}

impl DeviceEntry {
    /// Returns the number of bytes with the bits of its overlay.
    fn cluster_bytes(&self) -> usize {
        match self.known {
            Known::Disk { blocks: Blocks::Overlay(bytes), .. } => bytes as usize,
            _ => 0,
        }
    }

    fn check(&self) -> Result<(), StateError> {
        match &self.known {
            Known::Net { mac, mtu } => {
                MacAddress::new(*mac).ok_or_else(|| StateError::field("mac", mac[0], "that of one card"))?;
                match mtu {
                    Some(mtu) if *mtu < MIN_MTU => Err(StateError::field("mtu", *mtu, "at least 68")),
                    _ => Ok(()),
                }
            }
            Known::Console { has_console: false, has_agent_port: false } => {
                Err(StateError::field("ports", false, "at least one"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the id for an error, which may be any text.
    fn shown(&self) -> String {
        self.id.chars().take(MAX_SHOWN).collect::<String>().escape_debug().to_string()
    }

    fn kind(&self) -> &str {
        match &self.known {
            Known::Disk { .. } => "disk",
            Known::Net { .. } => "net",
            Known::Socket => SocketLink::KIND,
            Known::Console { .. } => "console",
            Known::Plain(kind) => kind,
        }
    }
}

/// Makes the devices of a template of the section, the manifest and the files of the snapshot at `path`, and
/// sets the configuration that they imply. Nothing of the host is opened.
///
/// # Errors
/// The two do not fit each other, or have values that no machine has.
pub(super) fn load(
    path: &Path,
    stored: &Devices,
    facts: &[DeviceFacts],
    files: Vec<File>,
    config: &mut VmConfig,
) -> Result<Vec<TemplateDevice>, SnapshotError> {
    let Devices { entries, clusters } = stored;
    let differ = || StateFileError::Content { name: DEVICES.to_owned(), source: differs() };
    let same =
        |(entry, facts): (&DeviceEntry, &DeviceFacts)| entry.id == facts.id && entry.kind() == facts.kind;
    if entries.len() != facts.len() || !entries.iter().zip(facts).all(same) {
        return Err(At(path).state(differ()).into());
    }
    let mut files = files.into_iter();
    let mut devices = Vec::new();
    let mut clusters = clusters.as_slice();
    for (entry, facts) in entries.iter().zip(facts) {
        let file = facts.stored.as_ref().and_then(|stored| Some((files.next()?, stored.capacity)));
        let (present, rest) = clusters.split_at_checked(entry.cluster_bytes()).unwrap_or((clusters, &[]));
        clusters = rest;
        let device = load_device(entry, facts, file, present);
        let device = device.map_err(|error| match error {
            LoadError::Files => At(path).state(differ()),
            LoadError::Recorded(source) => {
                At(path).manifest(ManifestError::Field { field: "devices.recorded", source })
            }
        })?;
        if let Link::Plain(plain) = &device.link {
            *(plain.setting)(config) = true;
        }
        devices.push(device);
    }
    let is_single = |device: &TemplateDevice| !matches!(device.link, Link::Disk(..) | Link::Net(..));
    let count = |kind: &str| devices.iter().filter(|device| device.link.kind() == kind).count();
    if devices.iter().any(|device| is_single(device) && count(device.link.kind()) > 1) {
        return Err(At(path).state(differ()).into());
    }
    Ok(devices)
}

enum LoadError {
    /// The files have other devices each.
    Files,
    /// The recorded connection is not one.
    Recorded(ConfigError),
}

impl From<ConfigError> for LoadError {
    fn from(error: ConfigError) -> LoadError {
        LoadError::Recorded(error)
    }
}

fn load_device(
    entry: &DeviceEntry,
    facts: &DeviceFacts,
    file: Option<(File, u64)>,
    present: &[u8],
) -> Result<TemplateDevice, LoadError> {
    let id: DeviceId = entry.id.parse()?;
    let recorded = || facts.recorded.as_deref().ok_or(LoadError::Files);
    let mut content = Content::AtPath;
    let link = match &entry.known {
        Known::Disk { capacity, is_read_only, queues, serial, blocks } => {
            let (capacity, is_read_only) = (*capacity, *is_read_only);
            content = load_blocks(blocks, file, capacity, present)?;
            let config = match blocks {
                Blocks::Whole => made_config(),
                Blocks::AtPath | Blocks::Overlay(_) => recorded()?.parse()?,
            };
            let known = KnownDisk { capacity, is_read_only, queues: *queues, serial: serial.clone() };
            Link::Disk(known, config)
        }
        Known::Net { mac, mtu } => {
            let mac = MacAddress::new(*mac).ok_or(LoadError::Files)?;
            Link::Net(KnownNet { mac, mtu: *mtu }, recorded()?.parse()?)
        }
        Known::Socket => Link::Socket(recorded()?.parse()?),
        Known::Console { has_console, has_agent_port } => {
            Link::Console(ConsoleSpec::new(*has_console, *has_agent_port).ok_or(LoadError::Files)?)
        }
        Known::Plain(kind) => {
            let plain = PLAIN.into_iter().find(|plain| plain.kind == kind);
            Link::Plain(plain.ok_or(LoadError::Files)?)
        }
    };
    Ok(TemplateDevice { id, link, content, identity: facts.file })
}

fn load_blocks(
    blocks: &Blocks,
    file: Option<(File, u64)>,
    capacity: u64,
    present: &[u8],
) -> Result<Content, LoadError> {
    let file = file.map(|(file, stored)| (Arc::new(file), stored)).filter(|(_, stored)| *stored == capacity);
    match (blocks, file) {
        (Blocks::AtPath, None) => Ok(Content::AtPath),
        (Blocks::Overlay(_), Some((file, _))) => {
            let layer = FrozenLayer::of_file(file, present, capacity).ok_or(LoadError::Files)?;
            Ok(Content::Layers(vec![Arc::new(layer)]))
        }
        (Blocks::Whole, Some((file, _))) => Ok(Content::Shared(FrozenDisk::read_only(file, capacity))),
        _ => Err(LoadError::Files),
    }
}

/// The reason for devices that are not those of the manifest.
fn differs() -> StateError {
    StateError::field("devices", 0_u8, "those of the manifest, with their files; they do not fit each other")
}

const DEVICES: &str = "virtio";
const OVERLAYS: &str = "overlays";
/// The longest section of devices: 17 disks with 16 queues of 256 chains that wait out of their order. An
/// entry of 6 bytes takes 150 in memory.
const MAX_DEVICES: usize = 256 << 10;
/// The longest section of overlays: a disk has at most 1 MiB of bits.
const MAX_OVERLAYS: usize = 6 << 20;
/// The number of characters of an id in an error.
const MAX_SHOWN: usize = 32;
