//! The options of a command that runs in a guest.

use std::ffi::OsString;

use clap::Args;

use super::Surroundings;

// The command and its surroundings.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    pub surroundings: Surroundings,
    /// Also run the guest's own init, beside the command
    #[arg(long, requires = "command")]
    pub init: bool,
    /// Command to run in the guest, with the streams of this command; the machine ends with it
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
