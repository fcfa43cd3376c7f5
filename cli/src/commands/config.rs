//! `coracle config`: the schema of the config file, and a check of one without a run.

use std::path::Path;

use coracle::VmBuilder;
use coracle::config::{RawConfig, VcpuCount, schema};
use coracle::exit_code;

use super::run::default_words;
use super::test::suite;
use super::{chain, say, settings};
use crate::arguments::{ConfigArgs, ConfigCommand};

/// Prints the schema or the result of the check. Returns 0, or 125 after reporting the first error.
pub(crate) fn run(args: &ConfigArgs) -> u8 {
    let answer = match &args.command {
        ConfigCommand::Schema { suite: false } => format!("{:#}", schema()),
        ConfigCommand::Schema { suite: true } => format!("{:#}", suite::schema()),
        ConfigCommand::Check { file } => match check(file) {
            Ok(()) => "ok".to_owned(),
            Err(reason) => {
                say(&reason);
                return exit_code::BAD_USAGE;
            }
        },
    };
    super::answer(&answer, 0)
}

/// Checks the values and that they fit together and, if the file names a kernel, the files from which the
/// guest starts. A file without a kernel may be meant for several, or for a machine with the default guest.
fn check(file: &Path) -> Result<(), String> {
    let raw = RawConfig::open(file).map_err(|error| chain(&error))?;
    let in_file = |reason: String| format!("{}: {reason}", file.display());
    let mut config = settings::config(&raw, default_words()).map_err(|failure| in_file(failure.reason))?;
    if raw.cpus.is_none() {
        // A flag of the run may name as many as there can be.
        config.vcpus = VcpuCount::new(VcpuCount::MAX).unwrap_or_default();
    }
    let builder = VmBuilder::new(config);
    let checked = if raw.kernel.is_some() { builder.check_files() } else { builder.check_values() };
    checked.map_err(|error| in_file(chain(&error)))
}
