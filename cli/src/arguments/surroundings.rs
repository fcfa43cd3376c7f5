//! The options for the surroundings of a command in a guest, shared by all subcommands that run one.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::guest_ip::GuestIp;
use super::variable::named;

// The environment, user, directory and network of a command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Surroundings {
    /// Variable for the command: NAME=VALUE, or NAME for its value here; can be repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", requires = "command")]
    #[arg(value_parser = OsStringValueParser::new().try_map(named))]
    pub env: Vec<OsString>,
    /// User for the command in the guest: a name or number, optionally followed by a colon and a group
    /// [default: root]
    #[arg(short, long, value_name = "USER", requires = "command")]
    pub user: Option<OsString>,
    /// Working directory of the command in the guest [default: /]
    #[arg(short, long, value_name = "DIR", requires = "command")]
    pub workdir: Option<PathBuf>,
    /// Bring up the network of the first --net card before the command: dhcp, or ADDRESS/LENGTH, followed by
    /// a comma-separated list of gateway=ADDRESS, dns=ADDRESS and, for dhcp, timeout=TIME (60s)
    #[arg(long, value_name = "ADDRESS", requires = "command")]
    pub ip: Option<GuestIp>,
}
