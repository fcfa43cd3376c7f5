//! The control port between the emulated host's agent and the process that started the machine.
//!
//! A message is one frame: a little-endian `u32` length, then that many bytes, of which the first is the kind.
//! The streams of the command (stdin, stdout, stderr) have ports of their own and carry nothing but bytes;
//! everything else about the command crosses here. Both directions are bounded and checked, because a command
//! on the emulated machine runs as root there and can write to any port.
//!
//! Order: the agent sends [`FromAgent::Hello`], the outer side answers with [`ToAgent::Start`], the agent says
//! [`FromAgent::Started`] or [`FromAgent::Failed`], and at the end [`FromAgent::Exited`].

mod frame;
mod terminal;
pub(crate) mod wire;

use std::ffi::OsString;
use std::path::PathBuf;

pub use frame::{FrameReader, MAX_AGENT_FRAME, MAX_START_FRAME};
pub use terminal::{TerminalModes, WindowSize};
use wire::{Decoder, Encoder};

/// Version of this protocol. The two ends must have the same one: they are built together, and an older
/// initramfs is told from a damaged one by it.
pub const VERSION: u32 = 2;

/// First bytes of a [`FromAgent::Hello`]: fixed for all versions, so that versions can be compared at all.
const MAGIC: &[u8] = b"coracle\0";

/// Names of the virtio-serial ports, as they stand in `/sys/class/virtio-ports/*/name`.
pub mod port {
    /// Framed messages, both directions.
    pub const CONTROL: &str = "coracle.control";
    /// Bytes of the three standard streams, by file descriptor number.
    pub const STREAMS: [&str; 3] = ["coracle.stdin", "coracle.stdout", "coracle.stderr"];
}

/// Tag of the 9p share that holds the caller's `/`.
pub const ROOT_TAG: &str = "coracle";

/// Tag of the 9p share that holds the caller's [`SYSTEM_DIRECTORY`] once more.
pub const SYSTEM_TAG: &str = "coracle-system";

/// The installed system: it does not change while a command runs, so the machine may remember what it read
/// there. Without that, each program would cost hundreds of round trips to start.
pub const SYSTEM_DIRECTORY: &str = "/usr";

/// Directories that the emulated machine has for itself (tmpfs): locks, sockets, holes and `O_TMPFILE` do not
/// work across the share, and these are where programs expect them to.
pub const PRIVATE_DIRECTORIES: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// One of a command's three standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 0.
    Stdin,
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl Stream {
    /// All three, in the order of their file descriptors.
    pub const ALL: [Self; 3] = [Self::Stdin, Self::Stdout, Self::Stderr];

    /// The file descriptor number, which is also the stream's place in arrays of three.
    pub fn index(self) -> usize {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    pub(crate) fn from_wire(value: u8) -> Result<Self, ProtocolError> {
        Self::ALL
            .into_iter()
            .find(|stream| stream.index() == usize::from(value))
            .ok_or(ProtocolError::UnknownValue { what: "stream", value })
    }
}

/// The command to run and everything of the caller's surroundings that it inherits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Program and arguments; the program is looked up in `PATH` of `env` unless it has a slash.
    pub argv: Vec<OsString>,
    /// The whole environment; nothing is added.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// File mode creation mask.
    pub umask: u32,
    /// Which of stdin, stdout and stderr are terminals of the caller.
    pub terminals: [bool; 3],
    /// Modes and size of that terminal, when there is one.
    pub terminal: Option<(TerminalModes, WindowSize)>,
    /// Signals that the caller ignores (`nohup`) and that the command shall ignore too.
    pub ignored_signals: Vec<u8>,
    /// Resource limits that describe the command, not the machine.
    pub limits: Vec<Limit>,
    /// Files and directories of the caller to show inside the private directories.
    pub shares: Vec<Share>,
}

/// One resource limit (`setrlimit(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*` number.
    pub resource: u8,
    /// Soft limit, `u64::MAX` for none.
    pub soft: u64,
    /// Hard limit, `u64::MAX` for none.
    pub hard: u64,
}

/// A file or directory of the caller, bind-mounted at a path under one of the [`PRIVATE_DIRECTORIES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where it is for the caller: absolute and free of symbolic links.
    pub source: PathBuf,
    /// Where the command finds it: absolute, without `..`.
    pub target: PathBuf,
}

/// What the outer side tells the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// Run this command. Sent once.
    Start(Box<Request>),
    /// The caller's stdin ended after this many bytes.
    StdinEnd {
        /// Bytes sent through the stdin port in all.
        bytes: u64,
    },
    /// The caller's stdout or stderr was closed: nothing more can be delivered.
    OutputClosed(Stream),
    /// The caller's terminal has a new size.
    Resize(WindowSize),
    /// Send this signal to the command's foreground process group. Answered by [`FromAgent::Delivered`].
    Signal(u8),
    /// Nothing. Its arrival is an interrupt, which has the machine look for others that were lost: see the outer side's
    /// session.
    Tick,
}

/// What the agent tells the outer side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// The machine is up. First message.
    Hello {
        /// The agent's [`VERSION`].
        version: u32,
    },
    /// The command runs.
    Started,
    /// The command could not be started.
    Failed(StartFailure),
    /// A signal was passed on: the agent reacts.
    Delivered {
        /// The signal's number.
        signal: u8,
    },
    /// The command ended. Last message.
    Exited {
        /// How.
        ending: Ending,
        /// Bytes sent through each stream's port in all (for stdin: a terminal's echo).
        produced: [u64; 3],
    },
}

/// Why a command could not be started on the emulated machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// What was tried.
    pub step: StartStep,
    /// The path, or the program's name.
    pub subject: OsString,
    /// `errno` of the failed call.
    pub errno: i32,
}

/// The step of a start that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStep {
    /// Showing a shared path.
    Share,
    /// Making the pseudo-terminal or pipes.
    Streams,
    /// Entering the working directory.
    EnterDirectory,
    /// Executing the program.
    Execute,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

/// A message that breaks the protocol.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// The length of a frame is zero or over the limit of its direction.
    #[error("a message of {length} bytes: the limit is {limit}, the least is 1")]
    FrameLength {
        /// Length in the frame's header.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A message ends before its last field.
    #[error("a message ends inside the field '{field}'")]
    Truncated {
        /// Name of the field.
        field: &'static str,
    },
    /// A message goes on after its last field.
    #[error("a message has {count} bytes after its last field")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A field has a value that this version does not know.
    #[error("a message has the unknown {what} {value}")]
    UnknownValue {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u8,
    },
    /// The name of a folder's entry is empty, `.` or `..`, or has a `/` or a zero byte: joined to a path, it would
    /// lead out of the folder.
    #[error("an entry of a folder has a name that no entry can have")]
    EntryName,
    /// The first message is not a greeting.
    #[error("the first message is not an agent's greeting")]
    NotHello,
}

impl ToAgent {
    /// The message as a frame, length included.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Start(request) => encode_request(request),
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
            0 => Self::Start(Box::new(decode_request(&mut fields)?)),
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
    /// The message as a frame, length included.
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
                // Later versions may say more after the version: it is theirs to be understood.
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

fn encode_request(request: &Request) -> Vec<u8> {
    let Request { argv, env, cwd, umask, terminals, terminal, ignored_signals, limits, shares } = request;
    let mut message = Encoder::new(0)
        .list(argv, |message, argument| message.text(argument))
        .list(env, |message, (name, value)| message.text(name).text(value))
        .text(cwd.as_os_str())
        .u32(*umask);
    for is_terminal in terminals {
        message = message.u8(u8::from(*is_terminal));
    }
    message = match terminal {
        Some((modes, size)) => size.encode(modes.encode(message.u8(1))),
        None => message.u8(0),
    };
    message
        .list(ignored_signals, |message, number| message.u8(*number))
        .list(limits, |message, limit| message.u8(limit.resource).u64(limit.soft).u64(limit.hard))
        .list(shares, |message, share| message.text(share.source.as_os_str()).text(share.target.as_os_str()))
        .finish()
}

fn decode_request(fields: &mut Decoder<'_>) -> Result<Request, ProtocolError> {
    Ok(Request {
        argv: fields.list("argv", |fields| fields.text("argument"))?,
        env: fields.list("env", |fields| Ok((fields.text("name")?, fields.text("value")?)))?,
        cwd: fields.text("cwd")?.into(),
        umask: fields.u32("umask")?,
        terminals: [fields.flag("stdin")?, fields.flag("stdout")?, fields.flag("stderr")?],
        terminal: match fields.flag("terminal")? {
            true => Some((TerminalModes::decode(fields)?, WindowSize::decode(fields)?)),
            false => None,
        },
        ignored_signals: fields.list("ignored signals", |fields| fields.u8("signal"))?,
        limits: fields.list("limits", |fields| {
            Ok(Limit {
                resource: fields.u8("resource")?,
                soft: fields.u64("soft limit")?,
                hard: fields.u64("hard limit")?,
            })
        })?,
        shares: fields.list("shares", |fields| {
            Ok(Share { source: fields.text("source")?.into(), target: fields.text("target")?.into() })
        })?,
    })
}

#[cfg(test)]
mod tests;
