//! The requests of the host. Each opens a channel.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::restored::{AttachRequest, IdentityRequest};
use super::{ExecLimits, ProtocolError, WindowSize};
use crate::protocol::wire::{Decoder, Encoder};

/// A request of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a command. Its streams are stdin if it has one, and stdout and stderr, or stdout alone from a
    /// terminal.
    Exec(Box<ExecRequest>),
    /// Write a file, whose bytes follow on stdin.
    Put(PutRequest),
    /// Read a file, whose bytes come on stdout.
    Get(PathBuf),
    /// List a directory, whose entries come on stdout (see [`super::DirEntry`]).
    List(PathBuf),
    /// Describe a path: one entry comes on stdout, whose name has no meaning.
    Stat {
        /// The path.
        path: PathBuf,
        /// Whether a symbolic link at the end of the path is followed.
        follow: bool,
    },
    /// Read a symbolic link, whose target comes on stdout.
    ReadLink(PathBuf),
    /// Create, remove or rename a path.
    Path(PathRequest),
    /// Set the wall clock to this time since 1970.
    SetClock(Duration),
    /// Set the network up.
    Network(NetworkRequest),
    /// Shut the machine down.
    Shutdown(Power),
    /// Become the machine that has this identity, before anything else runs for the host.
    Identify(Box<IdentityRequest>),
    /// List the commands that run on since before the snapshot from which the machine goes on.
    Processes,
    /// Take up one of these commands. Its streams are as those of [`Request::Exec`].
    Attach(AttachRequest),
    /// Wait for a process that reaches its branch point. It waits there until the channel is closed.
    BranchPoint {
        /// Whether every user may reach one. Otherwise, only root may.
        any_user: bool,
    },
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments. A program without a slash is looked up in `PATH`.
    pub argv: Vec<OsString>,
    /// Variables, which override the defaults.
    pub env: Vec<(OsString, OsString)>,
    /// Whether `env` is the whole environment, without defaults.
    pub clear_env: bool,
    /// The working directory; `/` if none is given.
    pub cwd: Option<PathBuf>,
    /// The user: a name or number, with `:` and a group if wanted. If none is given, the agent's own user.
    pub user: Option<OsString>,
    /// The size of the terminal that all three streams have, if any.
    pub terminal: Option<WindowSize>,
    /// Whether there is a stdin. If not, it is `/dev/null`.
    pub stdin: bool,
    /// Limits of the command. Any limit needs version 2.
    pub limits: ExecLimits,
}

/// A change of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRequest {
    /// Make a directory.
    MakeDirectory {
        /// Its path.
        path: PathBuf,
        /// Its permission bits. Missing parents get 0755.
        mode: u32,
        /// Whether to make missing parents, and to accept an existing directory.
        parents: bool,
    },
    /// Remove a file, a link, or a directory.
    Remove {
        /// Its path.
        path: PathBuf,
        /// Whether to remove everything in the directory. If not, it must be empty.
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
        /// The link's target.
        target: PathBuf,
        /// The link's own path.
        path: PathBuf,
    },
}

/// A file to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutRequest {
    /// The path of the file.
    pub path: PathBuf,
    /// Permission bits. If none are given, those of the existing file, or 0644.
    pub mode: Option<u32>,
}

/// The settings with which the network is to come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRequest {
    /// The interface, by its name or its hardware address; the first Ethernet interface if none is given.
    pub interface: Option<OsString>,
    /// Address, length of the prefix and gateway; `None` to ask a DHCP server.
    pub address: Option<(Ipv4Addr, u8, Option<Ipv4Addr>)>,
    /// Name servers. If there are none, those that the DHCP server names.
    pub dns: Vec<Ipv4Addr>,
    /// The longest time that a DHCP server may take to answer.
    pub limit: Duration,
}

/// The way in which a machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Power off.
    Off,
    /// Restart.
    Restart,
}

impl Request {
    /// Returns the lowest version of the protocol that has the request.
    pub fn version(&self) -> u32 {
        match self.kind() {
            ..8 => 1,
            8..FIRST_OF_VERSION_3 => 2,
            _ => 3,
        }
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
            Self::Identify(_) => IDENTIFY,
            Self::Processes => PROCESSES,
            Self::Attach(_) => ATTACH,
            Self::BranchPoint { .. } => BRANCH_POINT,
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
            Self::Identify(request) => request.encode(frame),
            Self::Processes => frame,
            Self::Attach(request) => request.encode(frame),
            Self::BranchPoint { any_user } => frame.u8(u8::from(*any_user)),
        }
    }

    /// Decodes the request of a kind; `None` for a kind that is not a request.
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
            IDENTIFY => Self::Identify(Box::new(IdentityRequest::decode(fields)?)),
            PROCESSES => Self::Processes,
            ATTACH => Self::Attach(AttachRequest::decode(fields)?),
            BRANCH_POINT => Self::BranchPoint { any_user: fields.flag("any user")? },
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
    encode_network_settings(request, frame.option(request.interface.as_deref(), Encoder::text))
}

/// Encodes everything but the interface.
pub(super) fn encode_network_settings(request: &NetworkRequest, frame: Encoder) -> Encoder {
    let NetworkRequest { interface: _, address, dns, limit } = request;
    let frame = frame
        .option(*address, |frame, (address, prefix, gateway)| {
            frame.raw(&address.octets()).u8(prefix).option(gateway, encode_address)
        })
        .list(dns, |frame, server| encode_address(frame, *server));
    encode_time(frame, *limit)
}

fn decode_network(fields: &mut Decoder<'_>) -> Result<NetworkRequest, ProtocolError> {
    let interface = fields.option("interface", |fields| fields.text("interface"))?;
    Ok(NetworkRequest { interface, ..decode_network_settings(fields)? })
}

pub(super) fn decode_network_settings(fields: &mut Decoder<'_>) -> Result<NetworkRequest, ProtocolError> {
    Ok(NetworkRequest {
        interface: None,
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

pub(super) fn encode_time(frame: Encoder, time: Duration) -> Encoder {
    frame.u64(time.as_secs()).u32(time.subsec_nanos())
}

pub(super) fn decode_time(fields: &mut Decoder<'_>) -> Result<Duration, ProtocolError> {
    let (seconds, nanos) = (fields.u64("seconds")?, fields.u32("nanoseconds")?);
    if nanos >= NANOS {
        return Err(ProtocolError::UnknownValue { what: "nanoseconds", value: u8::MAX });
    }
    Ok(Duration::new(seconds, nanos))
}

const NANOS: u32 = 1_000_000_000;
/// The kinds of version 3. Those from 16 to 21 are not requests.
const FIRST_OF_VERSION_3: u8 = 15;
const IDENTIFY: u8 = 22;
const PROCESSES: u8 = 23;
const ATTACH: u8 = 24;
const BRANCH_POINT: u8 = 25;
