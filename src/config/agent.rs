//! The agent in a guest: whether there is one, and how it is reached.

use std::path::PathBuf;
use std::time::Duration;

use coracle_agent::protocol::agent::VSOCK_PORT;

/// An agent by which commands are run in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The way to it.
    pub transport: AgentTransport,
    /// Where it stands in the guest.
    pub place: AgentPlace,
    /// The program, static for Linux; none for that of the default guest. The default guest has its own.
    pub program: Option<PathBuf>,
    /// How long a call waits for a guest whose agent is not ready yet. A machine with a
    /// [`boot_timeout`](super::VmConfig::boot_timeout) has that time to its init, and its agent ten seconds
    /// more, if this is less: a call that waits then fails with what ended the machine.
    pub ready_limit: Duration,
    /// How long a call about a file, the clock or the network waits for the agent in all, and a call about a
    /// command until that has started and once it has ended. A command that runs has limits of its own.
    pub answer_limit: Duration,
    /// Bytes a second that an agent moves at least: a call about a file of `n` bytes waits `n / least_rate`
    /// seconds longer than `answer_limit`. 0 is taken as 1.
    pub least_rate: u32,
}

/// The way to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentTransport {
    /// This vsock port of the host. The machine gets a socket device if it has none.
    Vsock(u32),
    /// A port of the virtio console device, which the machine gets for it: for kernels without sockets.
    Console,
    /// The second serial port, COM2: slow, and for kernels without either.
    Serial,
}

/// Where the agent stands in its guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentPlace {
    /// The guest's initramfs is the default guest's, whose PID 1 it is.
    #[default]
    DefaultGuest,
    /// Beside the init of the initrds, or of the root that `root=` names.
    BesideInit,
    /// In place of that init, as PID 1.
    FirstProcess,
}

impl AgentConfig {
    /// Enough for a stock kernel on an emulated host of a machine that has much else to do.
    pub const DEFAULT_READY_LIMIT: Duration = Duration::from_secs(180);

    /// Enough for a busy guest to write back what a file of a gigabyte has left in its memory.
    pub const DEFAULT_ANSWER_LIMIT: Duration = Duration::from_secs(60);

    /// 4 KiB/s: less than the slowest way, a serial port, gives on a busy emulated host.
    pub const DEFAULT_LEAST_RATE: u32 = 4 << 10;

    /// Whether it is reached by the second serial port.
    pub(crate) fn needs_serial(&self) -> bool {
        self.transport == AgentTransport::Serial
    }

    /// Whether it is reached by a port of the console device.
    pub(crate) fn needs_console(&self) -> bool {
        self.transport == AgentTransport::Console
    }

    /// Reached by sockets, at this place.
    pub fn new(place: AgentPlace) -> AgentConfig {
        AgentConfig {
            transport: AgentTransport::default(),
            place,
            program: None,
            ready_limit: AgentConfig::DEFAULT_READY_LIMIT,
            answer_limit: AgentConfig::DEFAULT_ANSWER_LIMIT,
            least_rate: AgentConfig::DEFAULT_LEAST_RATE,
        }
    }
}

impl Default for AgentConfig {
    /// That of the default guest.
    fn default() -> Self {
        AgentConfig::new(AgentPlace::default())
    }
}

impl Default for AgentTransport {
    fn default() -> Self {
        AgentTransport::Vsock(VSOCK_PORT)
    }
}
