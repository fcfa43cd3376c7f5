//! The protocol between Coracle and the agent in a guest: commands, files, clock, network and power, over one byte
//! stream. `docs/agent.md` describes it.
//!
//! Both ends are state machines without descriptors: [`HostSession`] and [`AgentSession`] take the bytes that arrive
//! and hand out events and the bytes to send. Who owns the stream (a virtio socket, a console port, a serial line)
//! moves the bytes.
//!
//! Neither end trusts the other. A session keeps no more than one frame of what arrives, and every stream has a window:
//! an end that sends more than the other has allowed breaks the session.

mod agent_session;
mod entry;
mod flow;
mod hello;
mod host_session;
mod limits;
mod link;
mod message;
mod request;

pub use agent_session::{AgentEvent, AgentSession};
pub use entry::{DirEntry, EntryReader, FileKind};
pub use hello::{Hello, MAGIC};
pub use host_session::{HostEvent, HostSession, OpenError};
pub use limits::{ExecLimits, ResourceLimit};
pub use message::{AgentInfo, AgentMessage, Failure, FileInfo, HostMessage, NetworkInfo, Place, Step};
pub use request::{ExecRequest, NetworkRequest, PathRequest, Power, PutRequest, Request};

pub use super::wire::{Ending, ProtocolError, Stream, WindowSize};

/// Version of this protocol. Ends of different versions speak the lower one, or part if one of them does not know it.
/// Version 2 has requests of its own ([`Request::version`]), and is the same in all else.
pub const VERSION: u32 = 2;

/// The oldest version that is spoken.
pub const OLDEST_VERSION: u32 = 1;

/// The vsock port of the host that an agent connects to unless it is told another.
pub const VSOCK_PORT: u32 = 1024;

/// The name of the agent's port of a virtio console device.
pub const PORT_NAME: &str = "coracle.agent";

/// Bytes that a stream may carry before its receiver has granted more: what keeps a fast link busy.
pub const INITIAL_WINDOW: u32 = 256 << 10;

/// What a receiver may have granted at most.
pub const MAX_WINDOW: u32 = 16 << 20;

/// Bytes of a stream in one frame at most.
pub const MAX_DATA: usize = 64 << 10;

/// The longest frame of the host: Linux takes arguments and variables up to a quarter of the stack's limit, which is
/// 8 MiB by default (`execve(2)`).
pub const MAX_HOST_FRAME: usize = 2 << 20;

/// The longest frame of the agent: a piece of a stream and its head.
pub const MAX_AGENT_FRAME: usize = MAX_DATA + 64;

/// Channels that can be open at once.
pub const MAX_CHANNELS: usize = 512;

/// Bytes that wait for an agent that does not read. Beyond it, the host sends no input, grants no window and opens no
/// channel: the agent alone decides when it reads, so that nothing that it causes may wait without a bound.
pub const MAX_WAITING: usize = 4 << 20;

/// A broken rule. The session cannot be followed from there on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A frame or message that is not one.
    #[error(transparent)]
    Message(#[from] ProtocolError),
    /// The other end speaks no version that this one does.
    #[error(
        "the other end speaks version {theirs} of the agent's protocol, and this one {OLDEST_VERSION} to {VERSION}"
    )]
    Version {
        /// Theirs.
        theirs: u32,
    },
    /// The other end greets in the middle of a session.
    #[error("the other end has started anew")]
    Restarted,
    /// The session does not begin as it has to.
    #[error("the first message is not that the agent is ready")]
    NotReady,
    /// A channel that is not open, or is already.
    #[error("a message for the channel {channel}, which cannot have it")]
    Channel {
        /// Its number.
        channel: u32,
    },
    /// A stream that has ended, or that the channel does not have.
    #[error("channel {channel} has no open stream {stream}")]
    NoStream {
        /// The channel.
        channel: u32,
        /// The stream.
        stream: Stream,
    },
    /// More bytes than were allowed.
    #[error("channel {channel}: {count} bytes on the stream {stream}, and {allowed} were allowed")]
    Overrun {
        /// The channel.
        channel: u32,
        /// The stream.
        stream: Stream,
        /// Bytes that came.
        count: usize,
        /// Bytes that could have come.
        allowed: u32,
    },
    /// A grant beyond all windows.
    #[error("channel {channel}: more than {MAX_WINDOW} bytes are granted on the stream {stream}")]
    Grant {
        /// The channel.
        channel: u32,
        /// The stream.
        stream: Stream,
    },
    /// A grant of nothing, which no receiver sends: it would keep a caller waiting with frames that move nothing.
    #[error("channel {channel}: a grant of 0 bytes on the stream {stream}")]
    EmptyGrant {
        /// The channel.
        channel: u32,
        /// The stream.
        stream: Stream,
    },
    /// An answer of a few bytes that is longer.
    #[error("an answer has more than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// What a path is has not been said, or more than once.
    #[error("an answer about one path has another number of entries")]
    NoEntry,
    /// An answer to something that was not asked, or a second one.
    #[error("channel {channel}: '{what}' does not fit what came before")]
    Unexpected {
        /// The channel.
        channel: u32,
        /// The message.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;
