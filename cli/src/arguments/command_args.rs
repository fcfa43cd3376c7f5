//! The options of a command that is run in a guest.

use std::ffi::OsString;

use clap::Args;

use super::Surroundings;

/// The command and its surroundings.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    pub surroundings: Surroundings,
    /// Let the guest's own init run too, with the command beside it
    #[arg(long, requires = "command")]
    pub init: bool,
    /// Command for the guest: its streams are those of this one, and the machine is gone with it
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
