//! The options of `coracle test`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::ValueEnum;
use coracle::config::{Timeout, parse_duration};
use serde::Deserialize;

use super::{Surroundings, VmArgs};

/// One boot test, or a file of them.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// File of many cases (TOML); the options of a machine then are for every case, over what the file says
    #[arg(long, value_name = "FILE")]
    pub suite: Option<PathBuf>,
    /// Cases of the suite whose name has this in it; again for more
    #[arg(long, value_name = "TEXT", requires = "suite")]
    pub only: Vec<String>,
    /// Cases that run at once [default: as many as the vCPUs of the largest fit this machine's CPUs]
    #[arg(long, value_name = "N", requires = "suite", value_parser = clap::value_parser!(u16).range(1..=256), allow_negative_numbers = true)]
    pub jobs: Option<u16>,
    /// Regular expression that a line of the console, or of what the command writes, has to match; the test
    /// passes as soon as all have
    #[arg(long = "expect", value_name = "RE", allow_hyphen_values = true)]
    pub expect: Vec<String>,
    /// Regular expression that no line of the console, or of what the command writes, may match
    #[arg(long = "reject", value_name = "RE", allow_hyphen_values = true)]
    pub reject: Vec<String>,
    /// Results in TAP or KTAP on the console: count them where they come, require them, or ignore them
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub tap: TapMode,
    /// With --tap require: how long the guest may be silent after the last of its planned results before it
    /// is ended, or none to wait for its own end [default: 1s; 10s on an emulated host]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub tap_grace: Option<Timeout>,
    /// Longest time that the guest may take from its first instruction to its init
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    pub assert_boot: Option<Duration>,
    /// How often a case that fails is run again; one that passes then is flaky
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=10), allow_negative_numbers = true)]
    pub retries: u8,
    /// What a flaky case comes to: it passes, with a line on stderr, or fails with 120
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub flaky: Flaky,
    /// What to do where no guest can run: fail with code 115, or skip with 77
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub no_kvm: NoKvm,
    /// File to write the results to, as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// File to write the results to, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Folder for the console of each case, in CASE.log
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// Do not show the console of a single case
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub surroundings: Surroundings,
    /// Command for the guest, which has to end with 0, or to write what is expected
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "suite")]
    pub command: Vec<OsString>,
}

/// What becomes of TAP and KTAP on the console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TapMode {
    /// They count from their version line on.
    #[default]
    Auto,
    /// They have to come.
    Require,
    /// They are text like any other.
    Ignore,
}

/// What a case comes to that fails and then passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flaky {
    /// Code 0.
    #[default]
    Pass,
    /// Code 120.
    Fail,
}

/// What a test does where no guest can run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NoKvm {
    /// Code 115.
    #[default]
    Fail,
    /// Code 77.
    Skip,
}
