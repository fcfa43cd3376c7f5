//! What the host asks the agent for: each opens a channel.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::{ExecLimits, ProtocolError, WindowSize};
use crate::protocol::wire::{Decoder, Encoder};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a command. Streams: stdin to it if it has one; stdout and stderr from it, or stdout alone from its terminal.
    Exec(Box<ExecRequest>),
    /// Write a file, whose bytes follow on stdin.
    Put(PutRequest),
    /// Read a file, whose bytes come on stdout.
    Get(PathBuf),
    /// List a folder, whose entries come on stdout (see [`super::DirEntry`]).
    List(PathBuf),
    /// Say what a path is: one entry comes on stdout, whose name means nothing.
    Stat {
        /// The path.
        path: PathBuf,
        /// Whether the file at the end of a symbolic link is meant.
        follow: bool,
    },
    /// Say where a symbolic link leads: the bytes come on stdout.
    ReadLink(PathBuf),
    /// Change what paths mean.
    Path(PathRequest),
    /// Set the wall clock: the time since 1970.
    SetClock(Duration),
    /// Bring the network up.
    Network(NetworkRequest),
    /// End the machine in good order.
    Shutdown(Power),
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments; a program without a slash is looked up in `PATH`.
    pub argv: Vec<OsString>,
    /// Variables, over the defaults.
    pub env: Vec<(OsString, OsString)>,
    /// No defaults: `env` is all.
    pub clear_env: bool,
    /// Where to run; none for `/`.
    pub cwd: Option<PathBuf>,
    /// As whom: a name or number, with `:` and a group's if wanted; none for whom the agent runs as.
    pub user: Option<OsString>,
    /// With a terminal of this size for all three streams.
    pub terminal: Option<WindowSize>,
    /// With a stdin; else it is `/dev/null`.
    pub stdin: bool,
    /// What it may take. Others than none need version 2.
    pub limits: ExecLimits,
}

/// A change of what paths mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRequest {
    /// Make a directory.
    MakeDirectory {
        /// Its path.
        path: PathBuf,
        /// Its permission bits; those above it get 0755.
        mode: u32,
        /// Make those above it too, and take it where it is there already.
        parents: bool,
    },
    /// Remove a file, a link, or a directory.
    Remove {
        /// Its path.
        path: PathBuf,
        /// With all that is in it; else it has to be empty.
        all: bool,
    },
    /// Rename a file or directory (`rename(2)`).
    Rename {
        /// The old path.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
    },
    /// Make a symbolic link.
    Link {
        /// Where it leads.
        target: PathBuf,
        /// Its own path.
        path: PathBuf,
    },
}

/// A file to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutRequest {
    /// Where.
    pub path: PathBuf,
    /// Permission bits; none for those of the file that is there, or 0644.
    pub mode: Option<u32>,
}

/// How the network is to come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRequest {
    /// The interface, by its name or its hardware address; none for the first Ethernet one.
    pub interface: Option<OsString>,
    /// Address, length of the prefix and gateway; none to ask a DHCP server.
    pub address: Option<(Ipv4Addr, u8, Option<Ipv4Addr>)>,
    /// Name servers; with none, those that the DHCP server tells.
    pub dns: Vec<Ipv4Addr>,
    /// How long a DHCP server may take to answer.
    pub limit: Duration,
}

/// How a machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Power off.
    Off,
    /// Restart.
    Restart,
}

impl Request {
    /// The version of the protocol that has it.
    pub fn version(&self) -> u32 {
        if self.kind() < 8 { 1 } else { 2 }
    }

    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Exec(request) if request.limits == ExecLimits::default() => 1,
            Self::Exec(_) => 8,
            Self::Stat { .. } => 9,
            Self::ReadLink(_) => 10,
            Self::Path(PathRequest::MakeDirectory { .. }) => 11,
            Self::Path(PathRequest::Remove { .. }) => 12,
            Self::Path(PathRequest::Rename { .. }) => 13,
            Self::Path(PathRequest::Link { .. }) => 14,
            Self::Put(_) => 2,
            Self::Get(_) => 3,
            Self::List(_) => 4,
            Self::SetClock(_) => 5,
            Self::Network(_) => 6,
            Self::Shutdown(_) => 7,
        }
    }

    pub(super) fn encode(&self, frame: Encoder) -> Encoder {
        match self {
            Self::Exec(request) => encode_exec(request, frame),
            Self::Put(PutRequest { path, mode }) => frame.text(path.as_os_str()).option(*mode, Encoder::u32),
            Self::Get(path) | Self::List(path) | Self::ReadLink(path) => frame.text(path.as_os_str()),
            Self::Stat { path, follow } => frame.text(path.as_os_str()).u8(u8::from(*follow)),
            Self::Path(request) => encode_path(request, frame),
            Self::SetClock(time) => encode_time(frame, *time),
            Self::Network(request) => encode_network(request, frame),
            Self::Shutdown(power) => frame.u8(match power {
                Power::Off => 0,
                Power::Restart => 1,
            }),
        }
    }

    /// The request of a kind; `None` for a kind that is none.
    pub(super) fn decode(kind: u8, fields: &mut Decoder<'_>) -> Result<Option<Self>, ProtocolError> {
        Ok(Some(match kind {
            1 => Self::Exec(Box::new(decode_exec(fields)?)),
            2 => Self::Put(PutRequest {
                path: fields.text("path")?.into(),
                mode: fields.option("mode", |fields| fields.u32("mode"))?,
            }),
            3 => Self::Get(fields.text("path")?.into()),
            4 => Self::List(fields.text("path")?.into()),
            5 => Self::SetClock(decode_time(fields)?),
            6 => Self::Network(decode_network(fields)?),
            7 => Self::Shutdown(match fields.u8("power")? {
                0 => Power::Off,
                1 => Power::Restart,
                value => return Err(ProtocolError::UnknownValue { what: "power", value }),
            }),
            8 => {
                let mut request = decode_exec(fields)?;
                request.limits = ExecLimits::decode(fields)?;
                Self::Exec(Box::new(request))
            }
            9 => Self::Stat { path: fields.text("path")?.into(), follow: fields.flag("follow")? },
            10 => Self::ReadLink(fields.text("path")?.into()),
            11..=14 => Self::Path(decode_path(kind, fields)?),
            _ => return Ok(None),
        }))
    }
}

fn encode_path(request: &PathRequest, frame: Encoder) -> Encoder {
    match request {
        PathRequest::MakeDirectory { path, mode, parents } => {
            frame.text(path.as_os_str()).u32(*mode).u8(u8::from(*parents))
        }
        PathRequest::Remove { path, all } => frame.text(path.as_os_str()).u8(u8::from(*all)),
        PathRequest::Rename { from, to } => frame.text(from.as_os_str()).text(to.as_os_str()),
        PathRequest::Link { target, path } => frame.text(target.as_os_str()).text(path.as_os_str()),
    }
}

fn decode_path(kind: u8, fields: &mut Decoder<'_>) -> Result<PathRequest, ProtocolError> {
    let path = PathBuf::from(fields.text("path")?);
    Ok(match kind {
        11 => {
            PathRequest::MakeDirectory { path, mode: fields.u32("mode")?, parents: fields.flag("parents")? }
        }
        12 => PathRequest::Remove { path, all: fields.flag("all")? },
        13 => PathRequest::Rename { from: path, to: fields.text("path")?.into() },
        _ => PathRequest::Link { target: path, path: fields.text("path")?.into() },
    })
}

fn encode_exec(request: &ExecRequest, frame: Encoder) -> Encoder {
    let ExecRequest { argv, env, clear_env, cwd, user, terminal, stdin, limits } = request;
    let frame = frame
        .list(argv, |frame, argument| frame.text(argument))
        .list(env, |frame, (name, value)| frame.text(name).text(value))
        .u8(u8::from(*clear_env))
        .option(cwd.as_deref(), |frame, path| frame.text(path.as_os_str()))
        .option(user.as_deref(), Encoder::text)
        .option(*terminal, |frame, size| size.encode(frame))
        .u8(u8::from(*stdin));
    if *limits == ExecLimits::default() { frame } else { limits.encode(frame) }
}

fn decode_exec(fields: &mut Decoder<'_>) -> Result<ExecRequest, ProtocolError> {
    Ok(ExecRequest {
        argv: fields.list("argv", |fields| fields.text("argument"))?,
        env: fields.list("env", |fields| Ok((fields.text("name")?, fields.text("value")?)))?,
        clear_env: fields.flag("clear env")?,
        cwd: fields.option("cwd", |fields| fields.text("cwd"))?.map(Into::into),
        user: fields.option("user", |fields| fields.text("user"))?,
        terminal: fields.option("terminal", WindowSize::decode)?,
        stdin: fields.flag("stdin")?,
        limits: ExecLimits::default(),
    })
}

fn encode_network(request: &NetworkRequest, frame: Encoder) -> Encoder {
    let NetworkRequest { interface, address, dns, limit } = request;
    let frame = frame
        .option(interface.as_deref(), Encoder::text)
        .option(*address, |frame, (address, prefix, gateway)| {
            frame.raw(&address.octets()).u8(prefix).option(gateway, encode_address)
        })
        .list(dns, |frame, server| encode_address(frame, *server));
    encode_time(frame, *limit)
}

fn decode_network(fields: &mut Decoder<'_>) -> Result<NetworkRequest, ProtocolError> {
    Ok(NetworkRequest {
        interface: fields.option("interface", |fields| fields.text("interface"))?,
        address: fields.option("address", |fields| {
            let (address, prefix) = (decode_address(fields)?, fields.u8("prefix")?);
            Ok((address, prefix, fields.option("gateway", decode_address)?))
        })?,
        dns: fields.list("name servers", decode_address)?,
        limit: decode_time(fields)?,
    })
}

pub(super) fn encode_address(frame: Encoder, address: Ipv4Addr) -> Encoder {
    frame.raw(&address.octets())
}

pub(super) fn decode_address(fields: &mut Decoder<'_>) -> Result<Ipv4Addr, ProtocolError> {
    fields.array::<4>("address").map(Ipv4Addr::from)
}

fn encode_time(frame: Encoder, time: Duration) -> Encoder {
    frame.u64(time.as_secs()).u32(time.subsec_nanos())
}

fn decode_time(fields: &mut Decoder<'_>) -> Result<Duration, ProtocolError> {
    let (seconds, nanos) = (fields.u64("seconds")?, fields.u32("nanoseconds")?);
    if nanos >= NANOS {
        return Err(ProtocolError::UnknownValue { what: "nanoseconds", value: u8::MAX });
    }
    Ok(Duration::new(seconds, nanos))
}

const NANOS: u32 = 1_000_000_000;
