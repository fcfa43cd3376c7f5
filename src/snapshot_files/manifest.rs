//! The file `manifest.json`, which is written last. Without it, or with a wrong checksum, there is no
//! snapshot.

use serde::{Deserialize, Serialize};

use super::{DeviceFacts, FORMAT, Hash, SnapshotId, digits};
use crate::config::{
    AcpiMode, AgentConfig, ConfigError, ConsoleDevice, DeviceId, HaltPolicy, MemorySize, SerialConfig,
    VcpuCount, VmConfig,
};

/// The content of a manifest, apart from its checksum. Its fields are those of the JSON object, in their
/// order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The format of all three files.
    pub(crate) format: u32,
    #[serde(with = "shown")]
    pub(crate) id: SnapshotId,
    /// The program that has made the snapshot, with its version.
    pub(crate) made_by: String,
    /// The date, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) host: HostFacts,
    pub(crate) machine: MachineFacts,
    /// The snapshot that has the memory that did not change; absent if this one has all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<ParentFacts>,
    /// The virtio devices, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<DeviceFacts>,
    pub(crate) state: FileFacts,
    pub(crate) memory: FileFacts,
}

/// The host that the machine ran on, as far as the state depends on it. The CPU is in the state itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HostFacts {
    /// The architecture, as `uname -m` reports it.
    pub architecture: String,
    /// The kernel's module for virtual machines, such as `kvm_intel`; `None` if that was not known.
    pub kvm: Option<String>,
    /// The CPU's name, for people.
    pub cpu: String,
}

/// The configuration that a snapshot fixes: what of [`VmConfig`] is part of the guest's machine. Paths are
/// for people, and no program opens them. Limits and connections of the host are those of whoever restores
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MachineFacts {
    /// The size of RAM in MiB.
    pub memory_mib: u64,
    /// The number of vCPUs.
    pub vcpus: u8,
    /// Whether the machine has the power button of ACPI.
    pub acpi: bool,
    /// Whether the machine ends when every vCPU has halted for good.
    pub ends_when_halted: bool,
    /// Whether the console is a virtio device. Otherwise it is the serial port.
    pub virtio_console: bool,
    /// The kind of the serial port's other end: `stdio`, `file`, `pty`, `socket` or `null`.
    pub serial: String,
    /// The way to the agent, if the machine has one: `vsock:PORT`, `console` or `serial`.
    #[serde(default)]
    pub agent: Option<String>,
    /// The path of the kernel; `None` for that of the default guest.
    pub kernel: Option<String>,
    /// The kernel's command line, as it was configured.
    pub cmdline: String,
}

/// The snapshot over which another one lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ParentFacts {
    /// Its identity.
    #[serde(with = "shown")]
    pub id: SnapshotId,
    /// The name of its folder, without those above it.
    pub name: String,
    /// The hash of its manifest.
    #[serde(with = "shown")]
    pub(crate) sha256: Hash,
}

/// The length and the hash of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileFacts {
    /// The length in bytes.
    pub(crate) bytes: u64,
    /// The hash of the whole file `state`; of `memory`, that of what follows the RAM.
    #[serde(with = "shown")]
    pub(crate) sha256: Hash,
}

/// The reason why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The file does not end with a checksum.
    #[error("it does not end with the line of its checksum; it was copied in part, or is damaged")]
    NoChecksum,
    /// The checksum does not match.
    #[error("its checksum does not match its content; it is damaged or was edited")]
    Checksum,
    /// The content is not that of a manifest.
    #[error("it is not a manifest: {reason}")]
    Syntax {
        /// The reason, with line and column.
        reason: String,
    },
    /// The format is newer than this version.
    #[error(
        "its format is {format}, made by {made_by}, and this version reads 1 to {FORMAT}; use a newer Coracle"
    )]
    Format {
        /// The format.
        format: u32,
        /// The program that has made the snapshot.
        made_by: String,
    },
    /// The name of the parent is not that of a folder.
    #[error("parent.name: `{}` is not the name of a folder; the manifest was edited", name.escape_debug())]
    ParentName {
        /// The name.
        name: String,
    },
    /// A field has a value that no machine has.
    #[error("{field}: {source}")]
    Field {
        /// The field.
        field: &'static str,
        /// The reason.
        r#source: ConfigError,
    },
}

impl Manifest {
    /// The length of the longest file: many times that of a machine with the longest command line.
    pub(crate) const MAX_BYTES: u64 = 64 << 10;

    /// Encodes the file.
    ///
    /// # Errors
    /// The result would be longer than any manifest.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let syntax = |reason: String| ManifestError::Syntax { reason };
        let text = serde_json::to_string_pretty(self).map_err(|error| syntax(error.to_string()))?;
        let content = text.strip_suffix("\n}").unwrap_or_default();
        let file = [content, &end(content)].concat();
        if file.len() as u64 > Self::MAX_BYTES {
            return Err(syntax(format!("it would have {} bytes, more than {}", file.len(), Self::MAX_BYTES)));
        }
        Ok(file.into_bytes())
    }

    /// Reads the file.
    ///
    /// # Errors
    /// The file is damaged, or has a newer format.
    pub(crate) fn decode(file: &[u8]) -> Result<Manifest, ManifestError> {
        let syntax = |error: serde_json::Error| ManifestError::Syntax { reason: error.to_string() };
        let text = str::from_utf8(file).map_err(|_| ManifestError::Checksum)?;
        let at = text.rfind(END_START).ok_or(ManifestError::NoChecksum)?;
        let (content, found) = text.split_at(at);
        let expected = end(content);
        if found.len() != expected.len() {
            return Err(ManifestError::NoChecksum);
        }
        if found != expected {
            return Err(ManifestError::Checksum);
        }
        let object = [content, "\n}"].concat();
        let Preface { format, made_by } = serde_json::from_str(&object).map_err(syntax)?;
        if !(1..=FORMAT).contains(&format) {
            return Err(ManifestError::Format { format, made_by });
        }
        let manifest: Manifest = serde_json::from_str(&object).map_err(syntax)?;
        manifest.machine.config()?;
        if let Some(ParentFacts { name, .. }) = manifest.parent.as_ref().filter(|parent| !parent.has_name()) {
            return Err(ManifestError::ParentName { name: name.clone() });
        }
        for DeviceFacts { id, .. } in &manifest.devices {
            // Names of files are made of them.
            id.parse::<DeviceId>().map_err(|source| ManifestError::Field { field: "devices.id", source })?;
        }
        Ok(manifest)
    }
}

/// Returns the end of a file with this content.
fn end(content: &str) -> String {
    format!("{END_START}{}\"\n}}\n", Hash::of(content.as_bytes()))
}

/// The fields that every format has.
#[derive(Deserialize)]
struct Preface {
    format: u32,
    made_by: String,
}

impl MachineFacts {
    /// Returns the facts about a machine of this configuration.
    pub(crate) fn of(config: &VmConfig) -> MachineFacts {
        let serial = match config.serial {
            SerialConfig::Stdio => "stdio",
            SerialConfig::File(_) => "file",
            SerialConfig::Pty => "pty",
            SerialConfig::Socket(_) => "socket",
            SerialConfig::Null => "null",
        };
        MachineFacts {
            memory_mib: config.memory.size().mib(),
            vcpus: config.vcpus.value(),
            acpi: config.acpi == AcpiMode::On,
            ends_when_halted: config.on_halt == HaltPolicy::Exit,
            virtio_console: config.console == ConsoleDevice::Virtio,
            serial: serial.to_owned(),
            agent: config.agent.as_ref().map(|agent| agent.transport.to_string()),
            kernel: config.kernel.as_ref().map(|path| path.to_string_lossy().into_owned()),
            cmdline: config.cmdline.clone(),
        }
    }

    /// Returns the configuration of a machine that is restored: with anonymous memory, a console that is not
    /// connected, and no limits.
    pub(crate) fn config(&self) -> Result<VmConfig, ManifestError> {
        let Self {
            memory_mib,
            vcpus,
            acpi,
            ends_when_halted,
            virtio_console,
            serial: _,
            agent,
            kernel: _,
            cmdline,
        } = self;
        let field = |field| move |source| ManifestError::Field { field, source };
        let transport = agent.as_deref().map(str::parse).transpose().map_err(field("machine.agent"))?;
        let memory = MemorySize::from_mib(*memory_mib).map_err(field("machine.memory_mib"))?;
        Ok(VmConfig {
            vcpus: VcpuCount::new(*vcpus).map_err(field("machine.vcpus"))?,
            memory: memory.into(),
            console: if *virtio_console { ConsoleDevice::Virtio } else { ConsoleDevice::Serial },
            acpi: if *acpi { AcpiMode::On } else { AcpiMode::Off },
            on_halt: if *ends_when_halted { HaltPolicy::Exit } else { HaltPolicy::Wait },
            agent: transport.map(|transport| AgentConfig { transport, ..AgentConfig::default() }),
            cmdline: cmdline.clone(),
            ..VmConfig::default()
        })
    }
}

/// Writes and reads ids and hashes in the form in which they are shown.
pub(super) mod shown {
    use std::fmt::Display;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Hash, SnapshotId, digits};

    pub(crate) trait Shown: Display + Sized {
        fn parse(text: &str) -> Option<Self>;
    }

    impl Shown for SnapshotId {
        fn parse(text: &str) -> Option<Self> {
            SnapshotId::parse(text)
        }
    }

    impl Shown for Hash {
        fn parse(text: &str) -> Option<Self> {
            digits(text).map(Hash)
        }
    }

    pub(crate) fn serialize<S: Serializer>(value: &impl Shown, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T: Shown, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::parse(&text).ok_or_else(|| D::Error::custom("lower-case hexadecimal digits of another number"))
    }
}

/// The start of the last lines. In strings of JSON, a quotation mark is escaped, so nothing else begins so.
const END_START: &str = ",\n  \"sha256\": \"";

#[cfg(test)]
mod tests;
