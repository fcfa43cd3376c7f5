//! The request that starts the command.

use std::ffi::OsString;
use std::path::PathBuf;

use super::TerminalModes;
use crate::protocol::wire::{Decoder, Encoder, ProtocolError, WindowSize};

/// The command to run, and everything that it inherits from the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Program and arguments. The program is looked up in `PATH` of `env` unless it has a slash.
    pub argv: Vec<OsString>,
    /// The whole environment. Nothing is added.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// File mode creation mask.
    pub umask: u32,
    /// Whether stdin, stdout and stderr are terminals of the caller.
    pub terminals: [bool; 3],
    /// Modes and size of that terminal, if there is one.
    pub terminal: Option<(TerminalModes, WindowSize)>,
    /// Signals that the caller ignores (`nohup`), and that the command must ignore too.
    pub ignored_signals: Vec<u8>,
    /// Resource limits that concern the command rather than the machine.
    pub limits: Vec<Limit>,
    /// Files and directories of the caller that are visible inside the private directories.
    pub shares: Vec<Share>,
}

/// A resource limit (`setrlimit(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*` number.
    pub resource: u8,
    /// Soft limit, `u64::MAX` for none.
    pub soft: u64,
    /// Hard limit, `u64::MAX` for none.
    pub hard: u64,
}

/// A file or directory of the caller, bind-mounted at a path under one of the
/// [`PRIVATE_DIRECTORIES`](super::PRIVATE_DIRECTORIES).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The caller's path: absolute and free of symbolic links.
    pub source: PathBuf,
    /// The command's path: absolute, without `..`.
    pub target: PathBuf,
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Request { argv, env, cwd, umask, terminals, terminal, ignored_signals, limits, shares } = self;
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
            .list(shares, |message, share| {
                message.text(share.source.as_os_str()).text(share.target.as_os_str())
            })
            .finish()
    }

    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
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
}
