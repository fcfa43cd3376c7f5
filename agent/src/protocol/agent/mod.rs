//! The protocol between Coracle and the agent in a guest: commands, files, clock, network and power, over one
//! byte stream. `docs/agent.md` describes it.
//!
//! Both ends are state machines without descriptors: [`HostSession`] and [`AgentSession`] take the bytes that
//! arrive and return events and bytes to send. The owner of the stream (a virtio socket, a console port, a
//! serial line) moves the bytes.
//!
//! Neither end trusts the other. A session keeps at most one frame of the input, and each stream has a
//! window: an end that sends more than the other has granted breaks the session.

mod agent_session;
mod entry;
mod flow;
mod hello;
mod host_channel;
mod host_session;
mod limits;
mod link;
mod message;
mod request;
mod restored;

pub use agent_session::{AgentEvent, AgentSession};
pub use entry::{DirEntry, EntryReader, FileKind};
pub use hello::{Hello, MAGIC};
pub use host_session::{HostEvent, HostSession, OpenError};
pub use limits::{ExecLimits, ResourceLimit};
pub use message::{AgentInfo, AgentMessage, Failure, FileInfo, HostMessage, NetworkInfo, Place, Step};
pub use request::{ExecRequest, NetworkRequest, PathRequest, Power, PutRequest, Request};
pub use restored::{AttachRequest, CardIdentity, IdentityRequest, ProcessInfo, SavedSession};

pub use super::wire::{Ending, ProtocolError, Stream, WindowSize};

/// The version of this protocol. If the ends differ, they speak the lower one, and part if one of them does
/// not know it. Versions 2 and 3 add requests ([`Request::version`]). Version 3 also adds the greeting of a
/// machine that goes on from a snapshot.
pub const VERSION: u32 = 3;

/// The oldest version that this end speaks.
pub const OLDEST_VERSION: u32 = 1;

/// The vsock port of the host to which an agent connects by default.
pub const VSOCK_PORT: u32 = 1024;

/// The name of the agent's port of a virtio console device.
pub const PORT_NAME: &str = "coracle.agent";

/// Bytes that a stream may carry before its receiver has granted more: enough to keep a fast link busy.
pub const INITIAL_WINDOW: u32 = 256 << 10;

/// The largest number of bytes that a receiver may have granted. It bounds the memory of a sender that never
/// reads.
pub const MAX_WINDOW: u32 = 16 << 20;

/// The largest number of bytes of a stream in one frame.
pub const MAX_DATA: usize = 64 << 10;

/// The longest frame of the host. Linux takes arguments and variables up to a quarter of the stack's limit,
/// which is 8 MiB by default (`execve(2)`).
pub const MAX_HOST_FRAME: usize = 2 << 20;

/// The longest frame of the agent: a piece of a stream and its header.
pub const MAX_AGENT_FRAME: usize = MAX_DATA + 64;

/// The largest number of open channels.
pub const MAX_CHANNELS: usize = 512;

/// The largest number of bytes that wait for an agent that does not read. Beyond it, the host sends no input,
/// grants no window and opens no channel. The agent alone decides when it reads, so nothing that it causes
/// may wait without a bound.
pub const MAX_WAITING: usize = 4 << 20;

/// A broken rule of the protocol. The session cannot go on after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The bytes are not a frame or message.
    #[error(transparent)]
    Message(#[from] ProtocolError),
    /// The ends have no version in common.
    #[error(
        "the other end speaks version {theirs} of the agent's protocol, and this one {OLDEST_VERSION} to {VERSION}"
    )]
    Version {
        /// The other end's highest version.
        theirs: u32,
    },
    /// The other end greets in the middle of a session.
    #[error("the other end has started again")]
    Restarted,
    /// The machine goes on from a snapshot, and what was under way between the ends stayed behind.
    #[error("the machine goes on from a snapshot")]
    Restored,
    /// The session does not begin with the message that the agent is ready.
    #[error("the first message does not report that the agent is ready")]
    NotReady,
    /// The channel of a message is not open, or is already open.
    #[error("channel {channel}: it is not in a state to receive this message")]
    Channel {
        /// The channel's number.
        channel: u32,
    },
    /// The stream of a message has ended, or the channel does not have it.
    #[error("channel {channel} has no open stream {stream}")]
    NoStream {
        /// The channel's number.
        channel: u32,
        /// The stream.
        stream: Stream,
    },
    /// More bytes arrived than were granted.
    #[error("channel {channel}: {count} bytes on the stream {stream}, and {allowed} were allowed")]
    Overrun {
        /// The channel's number.
        channel: u32,
        /// The stream.
        stream: Stream,
        /// Bytes that arrived.
        count: usize,
        /// Bytes that were granted.
        allowed: u32,
    },
    /// A grant beyond the largest window.
    #[error("channel {channel}: more than {MAX_WINDOW} bytes are granted on the stream {stream}")]
    Grant {
        /// The channel's number.
        channel: u32,
        /// The stream.
        stream: Stream,
    },
    /// A grant of 0 bytes, which no receiver sends: it would keep a caller waiting with frames that move
    /// nothing.
    #[error("channel {channel}: a grant of 0 bytes on the stream {stream}")]
    EmptyGrant {
        /// The channel's number.
        channel: u32,
        /// The stream.
        stream: Stream,
    },
    /// An answer of a bounded length is longer.
    #[error("an answer has more than {limit} bytes")]
    TooLong {
        /// The largest length in bytes.
        limit: usize,
    },
    /// The description of a path is missing, or there are several.
    #[error("an answer about one path has another number of entries")]
    NoEntry,
    /// An answer that was not asked for, or a second one.
    #[error("channel {channel}: '{what}' does not fit what came before")]
    Unexpected {
        /// The channel's number.
        channel: u32,
        /// The kind of the message.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;
