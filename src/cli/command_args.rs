//! The options of a command that is run in a guest.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::guest_ip::GuestIp;

/// The command and its surroundings.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    /// Variable for the command, NAME=VALUE, or NAME for its value here; again for more
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", requires = "command", value_parser = OsStringValueParser::new().try_map(variable))]
    pub env: Vec<OsString>,
    /// User for the command in the guest, a name or number, and a group behind a colon [default: root]
    #[arg(short, long, value_name = "USER", requires = "command")]
    pub user: Option<OsString>,
    /// Folder of the guest for the command [default: /]
    #[arg(short, long, value_name = "DIR", requires = "command")]
    pub workdir: Option<PathBuf>,
    /// Bring the guest's network up before the command: dhcp, or ADDRESS/LENGTH, and a comma-separated list of
    /// gateway=ADDRESS and dns=ADDRESS; the first card of --net
    #[arg(long, value_name = "ADDRESS", requires = "command")]
    pub ip: Option<GuestIp>,
    /// Let the guest's own init run too, with the command beside it
    #[arg(long, requires = "command")]
    pub init: bool,
    /// Command for the guest: its streams are those of this one, and the machine is gone with it
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// A variable, which has to have a name.
pub(super) fn variable(text: OsString) -> Result<OsString, &'static str> {
    match text.as_bytes() {
        [] | [b'=', ..] => Err("it has no name: write NAME=VALUE, or NAME for its value here"),
        _ => Ok(text),
    }
}
