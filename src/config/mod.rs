//! What a virtual machine is to be: checked values without file handles. Made by the CLI or by a program that
//! embeds Coracle, used by the builder.

mod accel;
mod agent;
mod cmdline;
mod console;
mod cpu;
mod cpu_affinity;
mod cpu_quota;
mod disk;
mod duration;
mod file;
mod keyed;
mod memory;
mod memory_size;
mod nearest;
mod net;
mod policy;
mod protocol;
mod raw;
mod root;
mod schema;
mod serial;
mod setting;
mod settings;
mod vcpu_count;
mod vsock;
mod words;
mod written;

use std::path::PathBuf;

use coracle_devices::virtio::net::MacSyntax;

pub use accel::Accel;
pub use agent::{AgentConfig, AgentPlace, AgentTransport};
pub use cmdline::{DEFAULT_CMDLINE, default_cmdline_with, names_root};
pub(crate) use cmdline::{names_file_systems, root_device, root_file_systems};
pub use console::ConsoleDevice;
pub use cpu::CpuModel;
pub use cpu_affinity::CpuAffinity;
pub use cpu_quota::CpuQuota;
pub use disk::{DiskAccess, DiskConfig, DiskEngine, DiskErrorPolicy, DiskId};
pub use duration::{Timeout, parse_duration};
#[doc(hidden)]
pub use file::in_one_line;
pub use file::{ConfigFault, ConfigFileError};
pub use memory::{HugePageSize, MemoryBacking, MemoryConfig};
pub use memory_size::MemorySize;
#[doc(hidden)]
pub use nearest::nearest;
pub use net::{LEAST_MTU, MacAddress, NetChoice, NetConfig, NetEnd};
pub use policy::{AcpiMode, HaltPolicy, ResetPolicy};
pub use protocol::KernelProtocol;
pub use root::{RootAccess, RootConfig, RootForm, RootKind};
pub use schema::schema;
pub use serial::{SerialConfig, SerialFile};
pub use settings::{RawConfig, VmConfig};
pub use vcpu_count::VcpuCount;
pub use vsock::VsockConfig;

impl VmConfig {
    /// A machine for this kernel, with the defaults for everything else.
    pub fn new(kernel: impl Into<PathBuf>) -> VmConfig {
        VmConfig { kernel: Some(kernel.into()), ..VmConfig::default() }
    }

    /// Whether the guest has a root of the user's: one that is made for it, or a device that its command line
    /// names.
    pub fn has_root(&self) -> bool {
        self.root.is_some() || names_root(&self.cmdline)
    }

    /// Whether the guest is unpacked from the default guest's initramfs, and then from `initrds`: it has no
    /// kernel and no root of the user's.
    pub fn has_default_initramfs(&self) -> bool {
        self.kernel.is_none() && !self.has_root()
    }
}

/// A value that cannot be what it stands for. Each sentence names the value, what is wrong and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not a size.
    #[error("{}", memory_size::size_advice(text))]
    SizeSyntax {
        /// As given.
        text: String,
    },
    /// A size that no virtual machine can have.
    #[error("{text} is not possible: write a size from {least} to {most}, in whole MiB")]
    SizeRange {
        /// As given.
        text: String,
        /// The smallest.
        least: MemorySize,
        /// The largest.
        most: MemorySize,
    },
    /// Neither a size nor pairs of key and value.
    #[error(
        "`{text}` is not known here: write a size, or size=SIZE with hugepages=2M, hugepages=1G or memfd"
    )]
    Memory {
        /// As given.
        text: String,
    },
    /// Memory that huge pages cannot make up.
    #[error("{size} cannot be made of huge pages of {page}: give a multiple of {page}")]
    HugePageMultiple {
        /// The size of RAM.
        size: MemorySize,
        /// The size of a page.
        page: HugePageSize,
    },
    /// A number of vCPUs that no virtual machine can have.
    #[error("{text} vCPUs are not possible: write a whole number from 1 to {most}")]
    VcpuRange {
        /// As given.
        text: String,
        /// The largest.
        most: u8,
    },
    /// A disk without a path.
    #[error(
        "`{text}` names no disk: write its path, or path=PATH and a comma-separated list, as in path=a.img,ro (`,,` is a comma \
         in the path)"
    )]
    DiskPath {
        /// As given.
        text: String,
    },
    /// A word that no disk knows.
    #[error(
        "`{word}` does not go with a disk, or not with what is before it: {}there are ro, cow, cow-size=SIZE, \
         engine=sync, engine=io_uring, poll=off or TIME up to 1000us, queues=1 to 16, id=TEXT, on-error=report and on-error=pause, each once; \
         a comma in the path is written `,,`",
        keyed::meant::<DiskConfig>(word)
    )]
    DiskWord {
        /// As given.
        word: String,
    },
    /// Not a serial number.
    #[error("`{text}` is no id of a disk: 1 to 20 printable ASCII characters are, without blanks")]
    DiskId {
        /// As given.
        text: String,
    },
    /// A root without a path.
    #[error(
        "`{text}` names no root: write the path of a folder, tar or image, or path=PATH and a comma-separated list, as in \
         path=root.img,rw (`,,` is a comma in the path)"
    )]
    RootPath {
        /// As given.
        text: String,
    },
    /// A word that no root knows.
    #[error(
        "`{word}` does not go with a root, or not with what is before it: {}there are rw, cow, cow-size=SIZE, \
         as=initramfs, as=disk and keep-ids, each once; a comma in the path is written `,,`",
        keyed::meant::<RootConfig>(word)
    )]
    RootWord {
        /// As given.
        word: String,
    },
    /// Not the end of a network card.
    #[error(
        "`{text}` is not the end of a network card: write tap=NAME, fd=NUMBER (3 or more) or socket=PATH, and a comma-separated list of mac=, mtu= and \
         poll=, or none"
    )]
    NetEnd {
        /// As given.
        text: String,
    },
    /// A word that no network card knows.
    #[error(
        "`{word}` does not go with a network card: {}there are mac=ADDRESS, mtu=BYTES (from {} to 65535) and \
         poll=off or TIME up to 1000us, each once; a comma in the path is written `,,`",
        keyed::meant::<NetConfig>(word), LEAST_MTU
    )]
    NetWord {
        /// As given.
        word: String,
    },
    /// Not the address of a network card.
    #[error("`{text}` is no address of a network card: {reason}")]
    Mac {
        /// As given.
        text: String,
        /// Why.
        reason: MacSyntax,
    },
    /// A word that no socket device knows.
    #[error(
        "`{word}` does not go with a vsock device: {}write uds=PATH, cid=NUMBER, or both with a comma, each once; \
         a comma in the path is written `,,`",
        keyed::meant::<VsockConfig>(word)
    )]
    VsockWord {
        /// As given.
        word: String,
    },
    /// An address that no guest can have.
    #[error("`{text}` is no address (CID) of a guest: from 3 to 4294967294 can be had")]
    VsockCid {
        /// As given.
        text: String,
    },
    /// A path that no socket can have.
    #[error(
        "`{text}` has {len} bytes; {most} are the most for a vsock device, whose socket's name gets `_PORT` behind it"
    )]
    VsockPath {
        /// As given.
        text: String,
        /// Its bytes.
        len: usize,
        /// The most that can be.
        most: usize,
    },
    /// Neither a list of CPUs nor pairs.
    #[error(
        "`{text}` names no CPUs: write CPUs of the host that all vCPUs share, as in 0-3, or VCPU=CPU pairs, as in \
         0=2,1=3"
    )]
    Affinity {
        /// As given.
        text: String,
    },
    /// Two CPUs for one vCPU.
    #[error("`{text}` has two CPUs for vCPU {vcpu}: leave one out")]
    AffinityTwice {
        /// As given.
        text: String,
        /// The vCPU.
        vcpu: u8,
    },
    /// Not a share of CPU time.
    #[error(
        "`{text}` is no share of CPU time: write percent of one CPU, as in 50%, from 1% to {}%",
        CpuQuota::MOST_PERCENT
    )]
    CpuQuota {
        /// As given.
        text: String,
    },
    /// Not a length of time.
    #[error("{}", duration::duration_advice(text))]
    DurationSyntax {
        /// As given.
        text: String,
    },
    /// A time of nothing.
    #[error("{text} leaves no time to run: give a longer time, or leave the limit out")]
    DurationZero {
        /// As given.
        text: String,
    },
    /// Not a boot protocol.
    #[error("`{text}` is not known here: use auto, linux or pvh")]
    Protocol {
        /// As given.
        text: String,
    },
    /// None of the words that are known for it.
    #[error("`{text}` is not known here: use {} or {}", words[0], words[1])]
    Choice {
        /// As given.
        text: String,
        /// The words.
        words: [&'static str; 2],
    },
    /// Not a place for a guest.
    #[error("`{text}` is not a place for a guest: use auto, kvm or emulate")]
    Accel {
        /// As given.
        text: String,
    },
    /// Not something about the file of a serial port.
    #[error(
        "`{word}` does not go with file=PATH: {}there is limit=SIZE, from 64K on, or limit=none, once; a comma in the path is \
         written `,,`",
        keyed::meant::<SerialConfig>(word)
    )]
    SerialWord {
        /// As given.
        word: String,
    },
    /// Not something that a serial port can be connected to.
    #[error("`{text}` is not known here: use stdio, pty, file=PATH, socket=PATH or null")]
    Serial {
        /// As given.
        text: String,
    },
}
