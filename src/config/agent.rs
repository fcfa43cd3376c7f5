//! The agent in a guest: whether there is one, and how to reach it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use coracle_agent::protocol::agent::VSOCK_PORT;

use super::ConfigError;

/// An agent that runs commands in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The connection to the agent.
    pub transport: AgentTransport,
    /// The agent's role in the guest.
    pub place: AgentPlace,
    /// The agent's program, static for Linux; `None` for the default guest's. The default guest itself always
    /// uses its own.
    pub program: Option<PathBuf>,
    /// How long a call waits for a guest whose agent is not ready yet. If the machine has a
    /// [`boot_timeout`](super::VmConfig::boot_timeout) that is shorter than this, that limit applies up to
    /// the guest's init, and the agent gets ten seconds more; so a call that waits fails with the reason why
    /// the machine ended.
    pub ready_limit: Duration,
    /// How long a call about a file, the clock or the network waits for the agent in all. For a call about a
    /// command, how long it waits for the start of the command, and for the answer once the command has
    /// ended. A running command has limits of its own.
    pub answer_limit: Duration,
    /// The rate that an agent transfers at least, in bytes per second: a call about a file of `n` bytes waits
    /// `n / min_rate` seconds longer than `answer_limit`. 0 counts as 1.
    pub min_rate: u32,
}

/// The connection to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentTransport {
    /// A vsock port of the host. The machine gets a vsock device if it has none.
    Vsock(u32),
    /// A port of the virtio console device, which the machine gets for it: for kernels without vsock.
    Console,
    /// The second serial port, COM2: slow, for kernels with neither of the others.
    Serial,
}

/// The agent's role in its guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentPlace {
    /// PID 1 of the default guest's initramfs.
    #[default]
    DefaultGuest,
    /// A process beside the init of the initrds, or of the root that `root=` names.
    BesideInit,
    /// PID 1, in place of that init.
    FirstProcess,
}

impl AgentConfig {
    /// Enough for a stock kernel on an emulated host of a busy machine.
    pub const DEFAULT_READY_LIMIT: Duration = Duration::from_secs(180);

    /// Enough for a busy guest to write back a file of a gigabyte from its memory.
    pub const DEFAULT_ANSWER_LIMIT: Duration = Duration::from_secs(60);

    /// 4 KiB/s: less than the slowest connection, a serial port, achieves on a busy emulated host.
    pub const DEFAULT_MIN_RATE: u32 = 4 << 10;

    /// Returns whether it is reached through the second serial port.
    pub(crate) fn needs_serial(&self) -> bool {
        self.transport == AgentTransport::Serial
    }

    /// Returns whether it is reached through a port of the console device.
    pub(crate) fn needs_console(&self) -> bool {
        self.transport == AgentTransport::Console
    }

    /// Creates the configuration of an agent in this role that is reached through vsock.
    pub fn new(place: AgentPlace) -> AgentConfig {
        AgentConfig {
            transport: AgentTransport::default(),
            place,
            program: None,
            ready_limit: AgentConfig::DEFAULT_READY_LIMIT,
            answer_limit: AgentConfig::DEFAULT_ANSWER_LIMIT,
            min_rate: AgentConfig::DEFAULT_MIN_RATE,
        }
    }
}

impl Default for AgentConfig {
    /// The agent of the default guest.
    fn default() -> Self {
        AgentConfig::new(AgentPlace::default())
    }
}

impl fmt::Display for AgentTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentTransport::Vsock(port) => write!(f, "vsock:{port}"),
            AgentTransport::Console => f.write_str("console"),
            AgentTransport::Serial => f.write_str("serial"),
        }
    }
}

impl FromStr for AgentTransport {
    type Err = ConfigError;

    /// Parses `vsock:PORT`, `console` or `serial`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let transport = match text {
            "console" => Some(AgentTransport::Console),
            "serial" => Some(AgentTransport::Serial),
            _ => text.strip_prefix("vsock:").and_then(|port| port.parse().ok()).map(AgentTransport::Vsock),
        };
        transport.ok_or_else(|| ConfigError::AgentTransport { text: text.into() })
    }
}

impl Default for AgentTransport {
    fn default() -> Self {
        AgentTransport::Vsock(VSOCK_PORT)
    }
}
