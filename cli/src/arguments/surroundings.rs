//! The options for what a command in a guest finds around it: the same wherever a command is given.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::guest_ip::GuestIp;
use super::variable::named;

/// What the command finds around it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Surroundings {
    /// Variable for the command, NAME=VALUE, or NAME for its value here; again for more
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", requires = "command", value_parser = OsStringValueParser::new().try_map(named))]
    pub env: Vec<OsString>,
    /// User for the command in the guest, a name or number, and a group after a colon [default: root]
    #[arg(short, long, value_name = "USER", requires = "command")]
    pub user: Option<OsString>,
    /// Folder of the guest for the command [default: /]
    #[arg(short, long, value_name = "DIR", requires = "command")]
    pub workdir: Option<PathBuf>,
    /// Bring the guest's network up before the command: dhcp, or ADDRESS/LENGTH, and a comma-separated list
    /// of gateway=ADDRESS, dns=ADDRESS and, for dhcp, timeout=TIME (60s); the first card of --net
    #[arg(long, value_name = "ADDRESS", requires = "command")]
    pub ip: Option<GuestIp>,
}
