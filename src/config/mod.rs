//! The configuration of a virtual machine: checked values without file handles. The command, or a program
//! that embeds Coracle, creates it, and the builder uses it.

mod accel;
mod agent;
mod cmdline;
mod console;
mod cpu;
mod cpu_affinity;
mod cpu_quota;
mod device_id;
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
pub use device_id::DeviceId;
pub use disk::{DiskAccess, DiskConfig, DiskEngine, DiskErrorPolicy, DiskSerial};
pub(crate) use duration::milliseconds;
pub use duration::{Timeout, parse_duration};
#[doc(hidden)]
pub use file::in_one_line;
pub use file::{ConfigFault, ConfigFileError};
pub use memory::{HugePageSize, MemoryBacking, MemoryConfig};
pub use memory_size::MemorySize;
#[doc(hidden)]
pub use nearest::nearest;
pub use net::{MIN_MTU, MacAddress, NetChoice, NetConfig, NetEnd};
pub use policy::{AcpiMode, HaltPolicy, ResetPolicy, RtcMode};
pub use protocol::KernelProtocol;
pub use root::{RootAccess, RootConfig, RootForm, RootKind};
pub use schema::schema;
pub use serial::{SerialConfig, SerialFile};
pub(crate) use settings::builder_methods;
pub use settings::{RawConfig, VmConfig};
pub use vcpu_count::VcpuCount;
pub use vsock::VsockConfig;

impl VmConfig {
    /// Creates the configuration of a machine for this kernel, with defaults for everything else.
    pub fn new(kernel: impl Into<PathBuf>) -> VmConfig {
        VmConfig { kernel: Some(kernel.into()), ..VmConfig::default() }
    }

    /// Returns whether the guest has a root of the user's: one that is prepared for it, or a device that its
    /// command line names.
    pub fn has_root(&self) -> bool {
        self.root.is_some() || names_root(&self.cmdline)
    }

    /// Returns whether the guest gets the default guest's initramfs, followed by `initrds`: so it is if the
    /// user has chosen neither a kernel nor a root.
    pub fn has_default_initramfs(&self) -> bool {
        self.kernel.is_none() && !self.has_root()
    }
}

/// A value that is not valid. Each message names the value, what is wrong with it and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not a size.
    #[error("{}", memory_size::size_advice(text))]
    SizeSyntax {
        /// The rejected text.
        text: String,
    },
    /// The size is out of range.
    #[error("{text} is not possible: write a size from {least} to {most}, in whole MiB")]
    SizeRange {
        /// The rejected text.
        text: String,
        /// The smallest size.
        least: MemorySize,
        /// The largest size.
        most: MemorySize,
    },
    /// The text is neither a size nor a list of memory options.
    #[error(
        "`{text}` is not known here: write a size, or size=SIZE with hugepages=2M, hugepages=1G or memfd"
    )]
    Memory {
        /// The rejected text.
        text: String,
    },
    /// The size is not a multiple of the huge page size.
    #[error("{size} cannot be made of huge pages of {page}: give a multiple of {page}")]
    HugePageMultiple {
        /// The size of RAM.
        size: MemorySize,
        /// The size of a page.
        page: HugePageSize,
    },
    /// The number of vCPUs is out of range.
    #[error("{text} vCPUs are not possible: write a whole number from 1 to {most}")]
    VcpuRange {
        /// The rejected text.
        text: String,
        /// The largest number.
        most: u8,
    },
    /// A disk has no path.
    #[error(
        "`{text}` names no disk: write its path, or path=PATH and a comma-separated list, as in path=a.img,ro (`,,` \
         stands for a \
         comma in the path)"
    )]
    DiskPath {
        /// The rejected text.
        text: String,
    },
    /// An option of a disk is unknown or contradicts another.
    #[error(
        "`{word}` does not go with a disk, or not with what is before it: {}there are ro, cow, cow-size=SIZE, \
         engine=sync, engine=io_uring, poll=off or TIME up to 1000us, queues=1 to 16, id=ID, serial=TEXT, \
         on-error=report and on-error=pause, each once; \
         a comma in the path is written `,,`",
        keyed::meant::<DiskConfig>(word)
    )]
    DiskWord {
        /// The rejected option.
        word: String,
    },
    /// The text is not a serial number of a disk.
    #[error("`{text}` is not a serial number: write 1 to 20 printable ASCII characters without blanks")]
    DiskSerial {
        /// The rejected text.
        text: String,
    },
    /// The text is not the id of a device.
    #[error("`{text}` is not an id: write 1 to 32 characters out of a to z, 0 to 9, `_` and `-`")]
    DeviceId {
        /// The rejected text.
        text: String,
    },
    /// A root has no path.
    #[error(
        "`{text}` names no root: write the path of a directory, tar or image, or path=PATH and a comma-separated \
         list, as in \
         path=root.img,rw (`,,` stands for a comma in the path)"
    )]
    RootPath {
        /// The rejected text.
        text: String,
    },
    /// An option of a root is unknown or contradicts another.
    #[error(
        "`{word}` does not go with a root, or not with what is before it: {}there are rw, cow, cow-size=SIZE, \
         as=initramfs, as=disk, keep-ids and id=ID, each once; a comma in the path is written `,,`",
        keyed::meant::<RootConfig>(word)
    )]
    RootWord {
        /// The rejected option.
        word: String,
    },
    /// The text does not name the host's end of a network card.
    #[error(
        "`{text}` is not the end of a network card: write tap=NAME, fd=NUMBER (3 or more) or socket=PATH, and a \
         comma-separated list of mac=, mtu=, \
         poll= and id=, or none"
    )]
    NetEnd {
        /// The rejected text.
        text: String,
    },
    /// An option of a network card is unknown or repeated.
    #[error(
        "`{word}` does not go with a network card: {}there are mac=ADDRESS, mtu=BYTES (from {} to 65535), \
         poll=off or TIME up to 1000us, and id=ID, each once; a comma in the path is written `,,`",
        keyed::meant::<NetConfig>(word), MIN_MTU
    )]
    NetWord {
        /// The rejected option.
        word: String,
    },
    /// The text is not a MAC address.
    #[error("`{text}` is not a MAC address: {reason}")]
    Mac {
        /// The rejected text.
        text: String,
        /// The reason.
        reason: MacSyntax,
    },
    /// An option of a vsock device is unknown or repeated.
    #[error(
        "`{word}` does not go with a vsock device: {}write uds=PATH, cid=NUMBER and id=ID, with commas, each once; \
         a comma in the path is written `,,`",
        keyed::meant::<VsockConfig>(word)
    )]
    VsockWord {
        /// The rejected option.
        word: String,
    },
    /// The number cannot be the address of a guest.
    #[error("`{text}` is not a guest address (CID): write a number from 3 to 4294967294")]
    VsockCid {
        /// The rejected text.
        text: String,
    },
    /// The path is too long for a socket.
    #[error(
        "`{text}` has {len} bytes; a vsock device's path may have at most {most}, because `_PORT` is appended to it"
    )]
    VsockPath {
        /// The rejected text.
        text: String,
        /// The length of the path, in bytes.
        len: usize,
        /// The largest length.
        most: usize,
    },
    /// The text is neither a list of CPUs nor pairs of a vCPU and a CPU.
    #[error(
        "`{text}` names no CPUs: write CPUs of the host that all vCPUs share, as in 0-3, or VCPU=CPU pairs, as in \
         0=2,1=3"
    )]
    Affinity {
        /// The rejected text.
        text: String,
    },
    /// A vCPU has two CPUs.
    #[error("`{text}` has two CPUs for vCPU {vcpu}: leave one out")]
    AffinityTwice {
        /// The rejected text.
        text: String,
        /// The index of the vCPU.
        vcpu: u8,
    },
    /// The text is not a share of CPU time.
    #[error(
        "`{text}` is not a share of CPU time: write percent of one CPU, as in 50%, from 1% to {}%",
        CpuQuota::MAX_PERCENT
    )]
    CpuQuota {
        /// The rejected text.
        text: String,
    },
    /// The text is not a duration.
    #[error("{}", duration::duration_advice(text))]
    DurationSyntax {
        /// The rejected text.
        text: String,
    },
    /// The duration is zero.
    #[error("{text} leaves no time to run: give a longer time, or leave the limit out")]
    DurationZero {
        /// The rejected text.
        text: String,
    },
    /// The text is not a boot protocol.
    #[error("`{text}` is not known here: use auto, linux or pvh")]
    Protocol {
        /// The rejected text.
        text: String,
    },
    /// The text is neither of the two choices.
    #[error("`{text}` is not known here: use {} or {}", words[0], words[1])]
    Choice {
        /// The rejected text.
        text: String,
        /// The choices.
        words: [&'static str; 2],
    },
    /// The text does not say whether the CMOS clock is announced.
    #[error("`{text}` is not known here: use auto, on or off")]
    Rtc {
        /// The rejected text.
        text: String,
    },
    /// The text is not a choice of host.
    #[error("`{text}` is not known here: use auto, kvm or emulate")]
    Accel {
        /// The rejected text.
        text: String,
    },
    /// The text is not a way to an agent.
    #[error("`{text}` is not a way to a guest's agent: use vsock:PORT, console or serial")]
    AgentTransport {
        /// The rejected text.
        text: String,
    },
    /// An option of a serial port is unknown, repeated, or contradicts another.
    #[error(
        "`{word}` does not go with a serial port, or not with what is before it: {}there are file=PATH, followed by \
         limit=SIZE (at least 64K) or limit=none, and socket=PATH, which stands alone; a comma in the path is written \
         `,,`",
        keyed::meant::<SerialConfig>(word)
    )]
    SerialWord {
        /// The rejected option.
        word: String,
    },
    /// The text does not name something that a serial port can be connected to.
    #[error("`{text}` is not known here: use stdio, pty, file=PATH, socket=PATH or null")]
    Serial {
        /// The rejected text.
        text: String,
    },
}
