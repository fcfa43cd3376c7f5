//! The options of `coracle cargo-runner`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::VmArgs;
use super::variable::named;

/// A program that cargo has built, and the machine that it is to run in.
#[derive(Debug, Args)]
pub(crate) struct CargoRunnerArgs {
    /// What of the machine differs from the default guest's; `--kernel` in place of the first argument.
    #[command(flatten)]
    pub vm: VmArgs,
    /// File or folder that the program needs, at the same path in the guest; again for more
    #[arg(long = "copy", value_name = "PATH")]
    pub copies: Vec<PathBuf>,
    /// Variable for the program besides those of cargo, NAME=VALUE, or NAME for its value here; again for
    /// more
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(named))]
    pub env: Vec<OsString>,
    /// The program, and all that follows it for the program
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
    pub command: Vec<OsString>,
}
