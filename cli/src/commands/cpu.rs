//! `coracle cpu dump`: the CPU that a guest would get, as a template.

use coracle::command::dump_cpu;
use coracle::config::CpuModel;
use coracle::{BuildError, CpuError};

use super::{answer, chain, say};
use crate::arguments::CpuCommand;

/// Prints the template on stdout and returns 0; returns 115 if KVM cannot be used, 125 if this host cannot
/// provide the model.
pub(crate) fn run(command: &CpuCommand) -> u8 {
    let CpuCommand::Dump { cpu } = command;
    match dump(cpu) {
        Ok(json) => answer(json.trim_end(), 0),
        Err(error) => {
            let error = BuildError::from(error);
            say(&chain(&error));
            error.exit_code()
        }
    }
}

fn dump(model: &CpuModel) -> Result<String, CpuError> {
    let template = dump_cpu(model)?;
    // Serialization fails only for maps with non-string keys, and the template has none.
    let json = serde_json::to_string_pretty(&template).unwrap_or_default();
    Ok(json + "\n")
}
