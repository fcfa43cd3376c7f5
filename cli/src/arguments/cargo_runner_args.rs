//! The options of `coracle cargo-runner`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::VmArgs;
use super::variable::named;

// A program that cargo has built, and the machine to run it in.
#[derive(Debug, Args)]
#[command(mut_arg("kernel", |kernel| kernel.long("kernel").value_name("FILE")))]
#[command(after_help = include_str!("examples/cargo-runner.txt").trim_end())]
pub(crate) struct CargoRunnerArgs {
    /// Settings of the machine that differ from the default guest's; `--kernel` takes the place of the first
    /// argument of other commands.
    #[command(flatten)]
    pub vm: VmArgs,
    /// File or directory that the program needs, at the same path in the guest; can be repeated
    #[arg(long = "copy", value_name = "PATH")]
    pub copies: Vec<PathBuf>,
    /// Variable for the program in addition to cargo's: NAME=VALUE, or NAME for its value here; can be
    /// repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(named))]
    pub env: Vec<OsString>,
    /// The program, followed by its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
    pub command: Vec<OsString>,
}
