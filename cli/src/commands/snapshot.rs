//! `coracle snapshot`: what is in a snapshot, and whether it is whole.

use coracle::exit_code;
use coracle::snapshot::{self, SnapshotInfo};

use super::{answer, chain, say};
use crate::arguments::SnapshotCommand;

/// Prints the answer and returns 0, or 125 after reporting what is missing or damaged.
pub(crate) fn run(command: &SnapshotCommand) -> u8 {
    let text = match command {
        // Serialization fails only for maps with non-string keys, and there are none.
        SnapshotCommand::Info { snapshot } => {
            snapshot::info(snapshot).map(|info| serde_json::to_string_pretty(&info).unwrap_or_default())
        }
        SnapshotCommand::Merge { snapshot, merged, parents } => {
            let written = snapshot::merge(snapshot, parents, merged).and_then(|()| snapshot::info(merged));
            written.map(|info| summary(&info))
        }
        SnapshotCommand::Check { snapshot } => snapshot::check(snapshot).map(|info| summary(&info)),
    };
    match text {
        Ok(text) => answer(&text, 0),
        Err(error) => {
            say(&chain(&error));
            exit_code::BAD_USAGE
        }
    }
}

fn summary(info: &SnapshotInfo) -> String {
    let SnapshotInfo { id, machine, stored_bytes, .. } = info;
    let stored = stored_bytes.div_ceil(1 << 10);
    format!(
        "ok: snapshot {id}, vCPUs {}, RAM {}M, {stored} KiB on the disk",
        machine.vcpus, machine.memory_mib
    )
}
