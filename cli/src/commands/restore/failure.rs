//! Errors of restored machines, with the command's options in place of the library's calls.

use coracle::snapshot::SnapshotFileError;
use coracle::{BuildError, RepointError, SnapshotError, VirtioError};

use crate::commands::chain;
use crate::commands::settings::Failure;

/// Describes an error with the options in place of the library's calls.
pub(in crate::commands) fn failure(error: &SnapshotError) -> Failure {
    let reason = match repointing(error) {
        Some(RepointError::NotNamed { id, recorded, method }) => format!(
            "{id}: the snapshot's machine had it connected to {recorded}, which a restore does not open by itself; \
             connect it with {}, or take the recorded end with --reopen",
            option(id, method)
        ),
        Some(RepointError::Descriptor { id, recorded, method }) => {
            format!(
                "{id}: the snapshot's machine had it connected to {recorded}, a descriptor; use {}",
                option(id, method)
            )
        }
        Some(RepointError::Changed { id, path, what }) => format!(
            "{id}: {path} has changed since the snapshot ({what}), and the guest would find what it does not expect; \
             name a copy from that time with --disk, or allow it with --disk-changed-ok {id}"
        ),
        _ => match error {
            SnapshotError::Files(SnapshotFileError::NeedsParent { folder, name, id }) => format!(
                "snapshot {}: it has only what has changed since the snapshot {name} ({id}); name the directory that \
                 has the folder {name} with --parents, or merge the two with `coracle snapshot merge`",
                folder.display()
            ),
            _ => chain(error),
        },
    };
    Failure { code: error.exit_code(), reason }
}

/// Returns the option for the same as a call of the library.
fn option(id: &str, method: &str) -> String {
    match method.split_once('(').map_or(method, |(name, _)| name) {
        "disk" => format!("--disk path=PATH,id={id}"),
        "net" => format!("--net tap=NAME,id={id}"),
        name => format!("--{name} uds=PATH"),
    }
}

/// Finds the error about the connection of a device.
fn repointing(error: &SnapshotError) -> Option<&RepointError> {
    match error {
        SnapshotError::Repoint(error) => Some(error),
        SnapshotError::Fork { source, .. } => repointing(source),
        SnapshotError::Build(error) => match &**error {
            BuildError::Virtio(VirtioError::Repoint(error)) => Some(error),
            _ => None,
        },
        _ => None,
    }
}
