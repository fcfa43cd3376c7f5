//! The control port between the emulated host's agent and the process that started the machine.
//!
//! A message is one frame. The streams of the command (stdin, stdout, stderr) have ports of their own, which
//! carry nothing but bytes. Everything else about the command crosses here. Both directions are bounded and
//! checked, because a command on the emulated machine runs as root there and can write to any port.
//!
//! The agent sends [`FromAgent::Hello`], the outer side answers with [`ToAgent::Start`], the agent reports
//! [`FromAgent::Started`] or [`FromAgent::Failed`], and at the end it sends [`FromAgent::Exited`].

pub mod environment;
mod request;
mod terminal;

use std::ffi::OsString;

use super::wire::{Decoder, Encoder};
pub use super::wire::{Ending, FrameReader, ProtocolError, Stream, WindowSize};
pub use request::{Limit, Request, Share};
pub use terminal::TerminalModes;

/// The version of this protocol. The two ends must have the same one, because they are built together. It
/// distinguishes an older initramfs from a damaged one.
pub const VERSION: u32 = 2;

/// The first bytes of a [`FromAgent::Hello`]. They are the same in all versions, so that versions can be
/// compared.
const MAGIC: &[u8] = b"coracle\0";

/// The longest frame to the agent, in bytes. Linux accepts at most 6 MiB of arguments and environment
/// (`execve(2)`), and the rest of a request is small.
pub const MAX_START_FRAME: usize = 8 << 20;

/// The longest frame from the agent, in bytes. Its longest field is a path or a program's name.
pub const MAX_AGENT_FRAME: usize = 64 << 10;

/// Names of the virtio-serial ports, as they stand in `/sys/class/virtio-ports/*/name`.
pub mod port {
    /// Framed messages, both directions.
    pub const CONTROL: &str = "coracle.control";
    /// Bytes of the three standard streams, by file descriptor number.
    pub const STREAMS: [&str; 3] = ["coracle.stdin", "coracle.stdout", "coracle.stderr"];
}

/// Tag of the 9p share that holds the caller's `/`.
pub const ROOT_TAG: &str = "coracle";

/// Tag of a second 9p share, which holds the caller's [`SYSTEM_DIRECTORY`].
pub const SYSTEM_TAG: &str = "coracle-system";

/// The directory of the installed system. It does not change while a command runs, so the machine may cache
/// what it read there. Without the cache, each program would cost hundreds of round trips to start.
pub const SYSTEM_DIRECTORY: &str = "/usr";

/// Directories that the emulated machine has for itself (tmpfs). Locks, sockets, holes and `O_TMPFILE` do not
/// work across the share, and programs expect them in these directories.
pub const PRIVATE_DIRECTORIES: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// A message from the outer side to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// Run this command. Sent once.
    Start(Box<Request>),
    /// The caller's stdin ended after this many bytes.
    StdinEnd {
        /// Bytes that were sent through the stdin port in all.
        bytes: u64,
    },
    /// The caller's stdout or stderr was closed, so nothing more can be delivered.
    OutputClosed(Stream),
    /// The caller's terminal has a new size.
    Resize(WindowSize),
    /// Send this signal to the command's foreground process group. Answered by [`FromAgent::Delivered`].
    Signal(u8),
    /// No content. Its arrival is an interrupt, which makes the machine look for others that were lost; see
    /// the outer side's session.
    Tick,
}

/// A message from the agent to the outer side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// The machine runs. This is the first message.
    Hello {
        /// The agent's [`VERSION`].
        version: u32,
    },
    /// The command runs.
    Started,
    /// The command could not be started.
    Failed(StartFailure),
    /// A signal was passed on, so the agent is alive.
    Delivered {
        /// The signal's number.
        signal: u8,
    },
    /// The command ended. This is the last message.
    Exited {
        /// The exit code or signal.
        ending: Ending,
        /// Bytes that were sent through each stream's port in all. For stdin, they are a terminal's echo.
        produced: [u64; 3],
    },
}

/// The reason why a command could not be started on the emulated machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// The step that failed.
    pub step: StartStep,
    /// The path, or the program's name.
    pub subject: OsString,
    /// `errno` of the failed call.
    pub errno: i32,
}

/// A step of starting a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStep {
    /// Making a shared path visible.
    Share,
    /// Making the pseudo-terminal or pipes.
    Streams,
    /// Entering the working directory.
    EnterDirectory,
    /// Executing the program.
    Execute,
}

impl ToAgent {
    /// Returns the message as a frame, length included.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Start(request) => request.encode(),
            Self::StdinEnd { bytes } => Encoder::new(1).u64(*bytes).finish(),
            Self::OutputClosed(stream) => Encoder::new(2).stream(*stream).finish(),
            Self::Resize(size) => size.encode(Encoder::new(3)).finish(),
            Self::Signal(number) => Encoder::new(4).u8(*number).finish(),
            Self::Tick => Encoder::new(5).finish(),
        }
    }

    /// Reads the content of a frame (without its length).
    ///
    /// # Errors
    /// [`ProtocolError`] for every content that [`ToAgent::to_frame`] does not make.
    pub fn parse(content: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Decoder::new(content);
        let message = match fields.u8("kind")? {
            0 => Self::Start(Box::new(Request::decode(&mut fields)?)),
            1 => Self::StdinEnd { bytes: fields.u64("bytes")? },
            2 => Self::OutputClosed(Stream::from_wire(fields.u8("stream")?)?),
            3 => Self::Resize(WindowSize::decode(&mut fields)?),
            4 => Self::Signal(fields.u8("signal")?),
            5 => Self::Tick,
            value => return Err(ProtocolError::UnknownValue { what: "kind", value }),
        };
        fields.end()?;
        Ok(message)
    }
}

impl FromAgent {
    /// Returns the message as a frame, length included.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Hello { version } => Encoder::new(0).raw(MAGIC).u32(*version).finish(),
            Self::Started => Encoder::new(1).finish(),
            Self::Failed(failure) => Encoder::new(2)
                .u8(failure.step.to_wire())
                .text(&failure.subject)
                .u32(failure.errno.cast_unsigned())
                .finish(),
            Self::Delivered { signal } => Encoder::new(3).u8(*signal).finish(),
            Self::Exited { ending, produced } => {
                let (kind, value) = match ending {
                    Ending::Code(code) => (0, *code),
                    Ending::Signal(number) => (1, *number),
                };
                let [stdin, stdout, stderr] = *produced;
                Encoder::new(4).u8(kind).u8(value).u64(stdin).u64(stdout).u64(stderr).finish()
            }
        }
    }

    /// Reads the content of a frame (without its length).
    ///
    /// # Errors
    /// [`ProtocolError`] for every content that [`FromAgent::to_frame`] does not make.
    pub fn parse(content: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Decoder::new(content);
        let message = match fields.u8("kind")? {
            0 => {
                if fields.raw(MAGIC.len(), "magic")? != MAGIC {
                    return Err(ProtocolError::NotHello);
                }
                // Later versions may have more fields after the version, which only they understand.
                return Ok(Self::Hello { version: fields.u32("version")? });
            }
            1 => Self::Started,
            2 => Self::Failed(StartFailure {
                step: StartStep::from_wire(fields.u8("step")?)?,
                subject: fields.text("subject")?,
                errno: fields.u32("errno")?.cast_signed(),
            }),
            3 => Self::Delivered { signal: fields.u8("signal")? },
            4 => Self::Exited { ending: decode_ending(&mut fields)?, produced: decode_totals(&mut fields)? },
            value => return Err(ProtocolError::UnknownValue { what: "kind", value }),
        };
        fields.end()?;
        Ok(message)
    }
}

impl StartStep {
    fn to_wire(self) -> u8 {
        match self {
            Self::Share => 0,
            Self::Streams => 1,
            Self::EnterDirectory => 2,
            Self::Execute => 3,
        }
    }

    fn from_wire(value: u8) -> Result<Self, ProtocolError> {
        match value {
            0 => Ok(Self::Share),
            1 => Ok(Self::Streams),
            2 => Ok(Self::EnterDirectory),
            3 => Ok(Self::Execute),
            value => Err(ProtocolError::UnknownValue { what: "step", value }),
        }
    }
}

fn decode_ending(fields: &mut Decoder<'_>) -> Result<Ending, ProtocolError> {
    let kind = fields.u8("ending")?;
    let value = fields.u8("status")?;
    match kind {
        0 => Ok(Ending::Code(value)),
        1 => Ok(Ending::Signal(value)),
        value => Err(ProtocolError::UnknownValue { what: "ending", value }),
    }
}

fn decode_totals(fields: &mut Decoder<'_>) -> Result<[u64; 3], ProtocolError> {
    Ok([fields.u64("stdin")?, fields.u64("stdout")?, fields.u64("stderr")?])
}

#[cfg(test)]
mod tests;
