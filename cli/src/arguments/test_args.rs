//! The options of `coracle test`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::ValueEnum;
use coracle::config::{Timeout, parse_duration};
use serde::Deserialize;

use super::{Surroundings, VmArgs};

// A single boot test, or a file of many.
#[derive(Debug, Args)]
#[command(after_help = include_str!("examples/test.txt").trim_end())]
pub(crate) struct TestArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// File of test cases (TOML); machine options on the command line apply to every case and override the
    /// file
    #[arg(long, value_name = "FILE")]
    pub suite: Option<PathBuf>,
    /// Run only the cases whose name contains this; can be repeated
    #[arg(long, value_name = "TEXT", requires = "suite")]
    pub only: Vec<String>,
    /// Cases to run at once, 1 to 256 [default: as many as fit this machine's CPUs, by the case with the most
    /// vCPUs]
    #[arg(long, value_name = "N", requires = "suite", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Regular expression that a line of the console or of the command's output has to match; can be
    /// repeated; the test passes as soon as all have matched
    #[arg(long = "expect", value_name = "RE", allow_hyphen_values = true)]
    pub expect: Vec<String>,
    /// Regular expression that no line of the console or of the command's output may match; can be repeated
    #[arg(long = "reject", value_name = "RE", allow_hyphen_values = true)]
    pub reject: Vec<String>,
    /// TAP or KTAP results on the console: auto counts them if they come, require fails without them, ignore
    /// treats them as text
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub tap: TapMode,
    /// With --tap require: end a guest that has been silent for this long after the last of its planned
    /// results; none waits for the guest to end [default: 1s; 10s on an emulated host]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub tap_grace: Option<Timeout>,
    /// How long the guest may take from its first instruction to its init
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    pub assert_boot: Option<Duration>,
    /// How often to repeat a case that fails, 0 to 10; a case that then passes is flaky
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=10))]
    pub retries: u8,
    /// The result of a flaky case: pass, with a line on stderr, or fail, with code 120
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub flaky: Flaky,
    /// Result if no guest can run here: fail, with code 115, or skip, with code 77
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub no_kvm: NoKvm,
    /// File for the results, as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// File for the results, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Directory for the console of each case, in CASE.log
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// Do not show the console of a single case
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub surroundings: Surroundings,
    /// Command to run in the guest; it has to exit with 0, or to write what is expected
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "suite")]
    pub command: Vec<OsString>,
}

/// How TAP and KTAP results on the console are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TapMode {
    /// Results count from the version line on.
    #[default]
    Auto,
    /// Results are required.
    Require,
    /// Results are text like any other.
    Ignore,
}

/// The result of a case that fails and then passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flaky {
    /// Passes: code 0.
    #[default]
    Pass,
    /// Fails: code 120.
    Fail,
}

/// The result of a test if no guest can run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NoKvm {
    /// Fails: code 115.
    #[default]
    Fail,
    /// Is skipped: code 77.
    Skip,
}
