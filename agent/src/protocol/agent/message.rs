//! The messages on channels. A frame is a length (u32), a kind (u8), a channel (u32) and the fields of the
//! kind, all little-endian; the length counts what follows it.

use std::ffi::OsString;
use std::net::Ipv4Addr;

use super::request::{decode_address, encode_address};
use super::restored::ProcessInfo;
use super::{Ending, ProtocolError, Request, Stream, WindowSize};
use crate::protocol::wire::{Decoder, Encoder};

/// A message from the host on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// Opens the channel.
    Open(Request),
    /// Bytes of a stream.
    Data(Stream, Vec<u8>),
    /// A stream has ended.
    End(Stream),
    /// The agent may send this many more bytes on a stream.
    Window(Stream, u32),
    /// A signal to send to the command.
    Signal(u8),
    /// The command's terminal has a new size.
    Resize(WindowSize),
    /// The host closes the channel, and the agent ends what runs there. [`AgentMessage::Closed`] answers it.
    Close,
}

/// A message from the agent on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentMessage {
    /// The agent takes requests. The first message, on channel 0.
    Ready(AgentInfo),
    /// The command runs.
    Started {
        /// The command's process in the guest.
        pid: u32,
    },
    /// The command has ended.
    Exited(Ending),
    /// The properties of the file whose bytes follow.
    File(FileInfo),
    /// The settings with which the network came up.
    Network(NetworkInfo),
    /// The commands that run on since before the snapshot.
    Processes(Vec<ProcessInfo>),
    /// The request was carried out.
    Done,
    /// The request failed.
    Failed(Failure),
    /// Bytes of a stream.
    Data(Stream, Vec<u8>),
    /// A stream has ended.
    End(Stream),
    /// The host may send this many more bytes on a stream.
    Window(Stream, u32),
    /// Nothing more comes on this channel.
    Closed,
}

/// The properties of the agent and its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: OsString,
    /// Whether the agent is the first process.
    pub place: Place,
    /// Whether whole control groups can be killed, so that processes that left their process group end with
    /// their command.
    pub kills_groups: bool,
}

/// The agent's role in its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The agent is PID 1.
    FirstProcess,
    /// Another init is PID 1.
    BesideInit,
}

/// The properties of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// The size in bytes, as far as the guest knows before reading. Files of `/proc` have 0.
    pub size: u64,
}

/// The settings with which the network came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInfo {
    /// The name of the interface.
    pub interface: OsString,
    /// The address of the interface.
    pub address: Ipv4Addr,
    /// The length of the network's prefix, 0 to 32.
    pub prefix: u8,
    /// The gateway, if any.
    pub gateway: Option<Ipv4Addr>,
    /// The name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// The reason why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step that failed.
    pub step: Step,
    /// The object of the step: a program, path, user or interface.
    pub subject: OsString,
    /// `errno` of the failed call.
    pub errno: i32,
}

/// A step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opening one more channel.
    Channel,
    /// Finding the user or group.
    User,
    /// Becoming the user.
    Identity,
    /// Making pipes or a terminal.
    Streams,
    /// Entering the working directory.
    Directory,
    /// Executing the program.
    Execute,
    /// Opening or making the file.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Renaming the finished file to its path.
    Rename,
    /// Setting the clock.
    Clock,
    /// Finding or setting the network interface.
    Interface,
    /// Getting an address by DHCP.
    Lease,
    /// Setting the route.
    Route,
    /// Writing the list of name servers.
    Resolver,
    /// Ending the machine.
    Power,
    /// Setting the limits of the command.
    Limits,
    /// Making the directory or the link.
    Make,
    /// Removing.
    Remove,
    /// Taking over the identity that the host gives. The subject is the file or the call.
    Machine,
    /// Finding the command to take up.
    Process,
}

impl Step {
    const ALL: [Self; 21] = [
        Self::Channel,
        Self::User,
        Self::Identity,
        Self::Streams,
        Self::Directory,
        Self::Execute,
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Rename,
        Self::Clock,
        Self::Interface,
        Self::Lease,
        Self::Route,
        Self::Resolver,
        Self::Power,
        Self::Limits,
        Self::Make,
        Self::Remove,
        Self::Machine,
        Self::Process,
    ];

    fn to_wire(self) -> u8 {
        self as u8
    }

    fn from_wire(value: u8) -> Result<Self, ProtocolError> {
        let step = Self::ALL.get(usize::from(value)).copied();
        step.ok_or(ProtocolError::UnknownValue { what: "step", value })
    }
}

impl Failure {
    /// Makes a failure from an error of the system.
    pub fn new(step: Step, subject: impl Into<OsString>, error: &std::io::Error) -> Self {
        Self { step, subject: subject.into(), errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
    }
}

impl HostMessage {
    /// Returns the message as a frame, length included.
    pub fn to_frame(&self, channel: u32) -> Vec<u8> {
        let frame = |kind| Encoder::new(kind).u32(channel);
        match self {
            Self::Open(request) => request.encode(frame(request.kind())).finish(),
            Self::Data(stream, bytes) => data_frame(channel, *stream, bytes),
            Self::End(stream) => frame(END).stream(*stream).finish(),
            Self::Window(stream, bytes) => frame(WINDOW).stream(*stream).u32(*bytes).finish(),
            Self::Signal(number) => frame(SIGNAL).u8(*number).finish(),
            Self::Resize(size) => size.encode(frame(RESIZE)).finish(),
            Self::Close => frame(CLOSE).finish(),
        }
    }

    /// Reads the content of a frame (without its length): the channel and the message.
    ///
    /// # Errors
    /// [`ProtocolError`] for every content that [`HostMessage::to_frame`] does not make.
    pub fn parse(content: &[u8]) -> Result<(u32, Self), ProtocolError> {
        let mut fields = Decoder::new(content);
        let (kind, channel) = (fields.u8("kind")?, fields.u32("channel")?);
        let message = match kind {
            DATA => Self::Data(stream(&mut fields)?, data(&mut fields)?),
            END => Self::End(stream(&mut fields)?),
            WINDOW => Self::Window(stream(&mut fields)?, fields.u32("window")?),
            SIGNAL => Self::Signal(fields.u8("signal")?),
            RESIZE => Self::Resize(WindowSize::decode(&mut fields)?),
            CLOSE => Self::Close,
            value => match Request::decode(value, &mut fields)? {
                Some(request) => Self::Open(request),
                None => return Err(ProtocolError::UnknownValue { what: "kind", value }),
            },
        };
        fields.end()?;
        Ok((channel, message))
    }
}

impl AgentMessage {
    /// Returns the message as a frame, length included.
    pub fn to_frame(&self, channel: u32) -> Vec<u8> {
        let frame = |kind| Encoder::new(kind).u32(channel);
        match self {
            Self::Ready(AgentInfo { kernel, place, kills_groups }) => {
                let place = match place {
                    Place::FirstProcess => 0,
                    Place::BesideInit => 1,
                };
                frame(0).text(kernel).u8(place).u8(u8::from(*kills_groups)).finish()
            }
            Self::Started { pid } => frame(1).u32(*pid).finish(),
            Self::Exited(ending) => {
                let (kind, value) = match ending {
                    Ending::Code(code) => (0, *code),
                    Ending::Signal(number) => (1, *number),
                };
                frame(2).u8(kind).u8(value).finish()
            }
            Self::File(FileInfo { mode, size }) => frame(3).u32(*mode).u64(*size).finish(),
            Self::Network(NetworkInfo { interface, address, prefix, gateway, dns }) => frame(4)
                .text(interface)
                .raw(&address.octets())
                .u8(*prefix)
                .option(*gateway, encode_address)
                .list(dns, |frame, server| encode_address(frame, *server))
                .finish(),
            Self::Done => frame(5).finish(),
            Self::Failed(Failure { step, subject, errno }) => {
                frame(6).u8(step.to_wire()).text(subject).u32(errno.cast_unsigned()).finish()
            }
            Self::Processes(list) => frame(7).list(list, |frame, process| process.encode(frame)).finish(),
            Self::Data(stream, bytes) => data_frame(channel, *stream, bytes),
            Self::End(stream) => frame(END).stream(*stream).finish(),
            Self::Window(stream, bytes) => frame(WINDOW).stream(*stream).u32(*bytes).finish(),
            Self::Closed => frame(CLOSE).finish(),
        }
    }

    /// Reads the content of a frame (without its length): the channel and the message.
    ///
    /// # Errors
    /// [`ProtocolError`] for every content that [`AgentMessage::to_frame`] does not make.
    pub fn parse(content: &[u8]) -> Result<(u32, Self), ProtocolError> {
        let mut fields = Decoder::new(content);
        let (kind, channel) = (fields.u8("kind")?, fields.u32("channel")?);
        let message = match kind {
            0 => Self::Ready(AgentInfo {
                kernel: fields.text("kernel")?,
                place: match fields.u8("place")? {
                    0 => Place::FirstProcess,
                    1 => Place::BesideInit,
                    value => return Err(ProtocolError::UnknownValue { what: "place", value }),
                },
                kills_groups: fields.flag("kills groups")?,
            }),
            1 => Self::Started { pid: fields.u32("pid")? },
            2 => Self::Exited(ending(&mut fields)?),
            3 => Self::File(FileInfo { mode: fields.u32("mode")?, size: fields.u64("size")? }),
            4 => Self::Network(NetworkInfo {
                interface: fields.text("interface")?,
                address: decode_address(&mut fields)?,
                prefix: fields.u8("prefix")?,
                gateway: fields.option("gateway", decode_address)?,
                dns: fields.list("name servers", decode_address)?,
            }),
            5 => Self::Done,
            6 => Self::Failed(Failure {
                step: Step::from_wire(fields.u8("step")?)?,
                subject: fields.text("subject")?,
                errno: fields.u32("errno")?.cast_signed(),
            }),
            7 => Self::Processes(fields.list("processes", ProcessInfo::decode)?),
            DATA => Self::Data(stream(&mut fields)?, data(&mut fields)?),
            END => Self::End(stream(&mut fields)?),
            WINDOW => Self::Window(stream(&mut fields)?, fields.u32("window")?),
            CLOSE => Self::Closed,
            value => return Err(ProtocolError::UnknownValue { what: "kind", value }),
        };
        fields.end()?;
        Ok((channel, message))
    }

    /// Returns the message's name in errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ready(_) => "ready",
            Self::Started { .. } => "started",
            Self::Exited(_) => "exited",
            Self::File(_) => "file",
            Self::Network(_) => "network",
            Self::Processes(_) => "processes",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Data(..) => "data",
            Self::End(_) => "end",
            Self::Window(..) => "window",
            Self::Closed => "closed",
        }
    }
}

/// Builds a frame of a stream's bytes, of which there are at most [`super::MAX_DATA`].
pub(super) fn data_frame(channel: u32, stream: Stream, bytes: &[u8]) -> Vec<u8> {
    Encoder::new(DATA).u32(channel).stream(stream).raw(bytes).finish()
}

fn data(fields: &mut Decoder<'_>) -> Result<Vec<u8>, ProtocolError> {
    let bytes = fields.rest();
    match bytes.len() {
        0 => Err(ProtocolError::Truncated { field: "data" }),
        length if length > super::MAX_DATA => {
            Err(ProtocolError::FrameLength { length, limit: super::MAX_DATA })
        }
        _ => Ok(bytes.to_vec()),
    }
}

fn stream(fields: &mut Decoder<'_>) -> Result<Stream, ProtocolError> {
    Stream::from_wire(fields.u8("stream")?)
}

fn ending(fields: &mut Decoder<'_>) -> Result<Ending, ProtocolError> {
    let (kind, value) = (fields.u8("ending")?, fields.u8("status")?);
    match kind {
        0 => Ok(Ending::Code(value)),
        1 => Ok(Ending::Signal(value)),
        value => Err(ProtocolError::UnknownValue { what: "ending", value }),
    }
}

/// Kinds that both ends have.
const DATA: u8 = 16;
const END: u8 = 17;
const WINDOW: u8 = 18;
const CLOSE: u8 = 19;
/// Kinds that the host alone has, besides requests.
const SIGNAL: u8 = 20;
const RESIZE: u8 = 21;
